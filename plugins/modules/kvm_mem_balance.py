#!/usr/bin/python
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balance the memory of running KVM guests: documentation and entry point."""

DOCUMENTATION = r"""
module: kvm_mem_balance
short_description: Balance the memory of running KVM guests through their balloons
version_added: 0.1.0
description:
  - Makes one pass over the running domains of a host. It takes memory from guests that do not use it, and gives memory
    to guests that are short of it.
  - A guest is starved when its usable memory, which is what it could still get without swapping, is below
    O(starvation). It is wasteful when its unused memory, which serves nothing, not even as cache, is above O(waste).
    A guest that is both counts as starved, and never gives.
  - Memory is taken before it is given, and only what is really free on the host, above O(host_reserve), is given.
  - No guest gets less than O(floor), nor less than what it uses plus O(starvation), nor more than its maximum. A guest
    without fresh statistics is never shrunk.
  - Every change and every guest that is skipped is returned with its reason and its numbers.
author:
  - the kvmsched authors (!UNKNOWN)
extends_documentation_fragment:
  - kvmsched.kvm.attributes
  - kvmsched.kvm.attributes.action_group
  - kvmsched.kvm.options
  - kvmsched.kvm.options.change
options:
  state:
    description:
      - V(balanced) makes a pass.
      - V(released) gives back to each domain the memory and the statistics period that it had before kvmsched first
        changed it, and removes the record of it. Only the domains that O(domains) and O(exclude) select are released.
      - Giving back keeps to the same limits. A guest that now uses more than it had is not shrunk below its need, and
        no memory is given that the host does not have. Such domains are listed in RV(not_restored), keep their record,
        and the module fails. Running it again later goes on from there.
      - A domain whose record asks for more than its limits allow, or can not be read, is listed, too. So is one that
        tells nothing of its use. Whoever may write the metadata of a domain could write such a record, so the module
        only warns, unless O(domains) names the domain.
    type: str
    choices: [balanced, released]
    default: balanced
  strategy:
    description:
      - V(fair) considers all domains at once. It covers every need as far as the memory goes, by weight where it does
        not go far enough. It takes at most half of a domain's unused memory in one pass.
      - V(pairwise) considers the most starved and the most wasteful domain only. Half of the unused memory of the
        wasteful one goes to the starved one. If no domain is wasteful, the starved one gets O(waste) from the host. If
        no domain is starved, the wasteful one keeps O(waste) of its unused memory, and the rest goes back to the host.
    type: str
    choices: [fair, pairwise]
    default: fair
  starvation:
    description:
      - A domain is starved when its usable memory is below this.
      - A size such as V(150M) or V(2G), with one of the suffixes V(K), V(M), V(G), V(T), based on 1024. Or a percentage
        of the domain's maximum memory, such as V(5%).
      - O(starvation) and O(waste) must both be sizes or both be percentages, and O(starvation) must be the smaller one.
        Percentages serve better where guests have 8 GiB or more.
    type: str
    default: 150M
  waste:
    description:
      - A domain is wasteful when its unused memory is above this. In the form of O(starvation).
    type: str
    default: 300M
  host_reserve:
    description:
      - The memory that stays available on the host itself. Below it, memory is taken back from the guests.
      - A size, or a percentage of the memory of the host.
      - If not given, 5 % of the memory of the host, but at least 1 GiB.
      - To make room for a new guest of 8 GiB, run one pass with an O(host_reserve) that is 8 GiB larger, and with
        O(reclaim=lazy).
    type: str
  floor:
    description:
      - No domain gets less memory than this. A domain that has less is grown.
      - A size, or a percentage of the domain's maximum memory.
      - If not given, 10 % of the domain's maximum memory, but at least 128 MiB, and at most what it had at first.
    type: str
  reclaim:
    description:
      - V(auto) takes the memory of wasteful domains only when it makes something useful possible now, because a starved
        domain or the host needs it. What it takes below the memory that a domain had at first is owed to that domain.
      - V(eager) takes the memory of wasteful domains in every pass. A guest without swap that needs it again at once
        may be killed by its own kernel.
      - V(lazy) takes it like V(auto), and also when less is free on the host than is kept ready for sudden need. That
        is 5 % of the memory of the host, but at most O(host_reserve), above that reserve.
      - If not given, V(auto) with O(strategy=fair), and V(eager) with O(strategy=pairwise).
      - RV(wasted_kib) says how much waste a pass left.
    type: str
    choices: [auto, eager, lazy]
  cache:
    description:
      - What happens to memory that guests use as cache, when unused memory alone does not cover the need.
      - V(keep) takes it only for what is owed to another guest, or for a host in danger.
      - V(share) takes it for any need, as long as the guest keeps what it uses plus O(starvation).
    type: str
    choices: [keep, share]
    default: keep
  stats_period:
    description:
      - A domain whose balloon driver reports no statistics cannot be judged. This is how often, in seconds, such a
        driver is told to report. Setting it is a change, is undone by O(state=released), and the domain is balanced
        from the next pass on.
      - A period that is already set is left as it is.
      - V(0) never sets a period.
    type: int
    default: 5
  arrival_timeout:
    description:
      - How long, in seconds, a pass waits for the memory that it takes to arrive, before it gives. What has not arrived
        by then is not given in this pass.
    type: float
    default: 10.0
  room:
    description:
      - Make room of this size for a guest that is to start, such as V(64G), and hold it on this host for ten minutes.
        Every pass here then keeps it free, be it of the daemon, of a module or by hand. V(0) ends that.
      - Guests give what serves them nothing, then cache, but never what they must keep. What keeps other guests alive
        goes before the room. What lacks is returned in RV(room).
      - A guest that starts within these ten minutes is who the room is for.
      - Where a daemon acts on the host, this module only asks, and the daemon makes the room in its next passes.
      - In check mode nothing is asked for, and the pass shows what would be taken.
    type: str
  room_cells:
    description:
      - The NUMA cells in which O(room) is to be, such as V(0) or V(0-1). Guests whose memory is bound to them give it.
      - If not given, it may be anywhere.
    type: str
notes:
  - A domain needs a C(virtio) C(memballoon) device and its driver in the guest. Other domains are skipped, with the
    reason.
  - Nobody watches the guests after a single pass. A guest that gave memory and then needs more waits for the next pass.
    Run the module regularly, or use C(autodeflate='on') for the C(memballoon) device, so that a guest can help itself.
seealso:
  - module: kvmsched.kvm.kvm_vcpu_pin
  - module: kvmsched.kvm.kvm_sched_info
  - name: libvirt domain XML, memory balloon device
    description: How a domain gets a balloon and a statistics period.
    link: https://libvirt.org/formatdomain.html#memory-balloon-device
"""

EXAMPLES = r"""
---
- name: Balance the memory of all running guests
  kvmsched.kvm.kvm_mem_balance:

- name: See what a pass would change, and why
  kvmsched.kvm.kvm_mem_balance:
  check_mode: true
  diff: true

- name: Thresholds relative to the size of each guest, and more room for the host
  kvmsched.kvm.kvm_mem_balance:
    starvation: 5%
    waste: 15%
    host_reserve: 8G

- name: Balance the web servers, never the databases
  kvmsched.kvm.kvm_mem_balance:
    domains:
      - web*
    exclude:
      - "*-db"

- name: Take memory only when somebody needs it, and give databases priority
  kvmsched.kvm.kvm_mem_balance:
    reclaim: lazy
    rules:
      - match: "*-db"
        memory:
          weight: 4
          floor: 4G
      - match: vdi-*
        memory:
          waste: 200M
          ceiling: 6G
      - match: router
        memory:
          mode: ignore

- name: Make room for a new guest of 8 GiB, in passes until it is there
  kvmsched.kvm.kvm_mem_balance:
    room: 8G
  register: balance
  until: balance.room.lacks_kib == 0
  retries: 10
  delay: 5

- name: Balance until nothing changes any more
  kvmsched.kvm.kvm_mem_balance:
  register: balance
  until: balance is not changed
  retries: 10
  delay: 15

- name: Give every guest back what it had
  kvmsched.kvm.kvm_mem_balance:
    state: released
"""

RETURN = r"""
msg:
  description: What the pass did, in one line.
  returned: always
  type: str
  sample: "made 2 changes: starved 1 -> 0, wasteful 1 -> 0, 1 skipped"
moves:
  description:
    - What changed, or would change in check mode, in order. Memory is taken before it is given.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description:
        - V(balloon) for a change of memory, V(stats_period) for a change of the statistics period.
      returned: success
      type: str
      sample: balloon
    domain:
      description: The name of the domain.
      returned: success
      type: str
      sample: db1
    uuid:
      description: The UUID of the domain.
      returned: success
      type: str
      sample: 8f3f7ac9-5d9a-4d4b-9b6f-0d2a1c6f7e11
    before_kib:
      description: The memory of the domain before, in KiB.
      returned: for a change of memory
      type: int
      sample: 2097152
    after_kib:
      description: The memory of the domain after, in KiB.
      returned: for a change of memory
      type: int
      sample: 2981888
    on_credit:
      description:
        - Whether the memory was given although other guests have the right to it and do not use it yet. That is done
          only to keep a guest alive.
      returned: for a change of memory
      type: bool
      sample: false
    before_s:
      description: The statistics period before, in seconds, 0 for none.
      returned: for a change of the statistics period
      type: int
      sample: 0
    after_s:
      description: The statistics period after, in seconds.
      returned: for a change of the statistics period
      type: int
      sample: 5
    ordered_kib:
      description:
        - The part of what is taken that somebody asked for, such as with O(reclaim=eager). The rest is owed to the
          domain.
      returned: for a change of memory
      type: int
      sample: 0
    reason:
      description: Why, in one line with its numbers.
      returned: success
      type: str
      sample: "usable 96M < 150M, used 1952M, 98M less than it needs, share by weight 1"
  sample:
    - kind: balloon
      domain: web1
      uuid: 0b8a6c1e-3c6e-4c8e-a1b7-54b1b7a3f0d2
      before_kib: 4194304
      after_kib: 3309568
      on_credit: false
      ordered_kib: 884736
      reason: "unused 1728M > 300M"
    - kind: balloon
      domain: db1
      uuid: 8f3f7ac9-5d9a-4d4b-9b6f-0d2a1c6f7e11
      before_kib: 2097152
      after_kib: 2981888
      on_credit: false
      ordered_kib: 0
      reason: "usable 96M < 150M, used 1952M"
skips:
  description:
    - Domains that were skipped, at most 20 of them. RV(skip_counts) counts all.
  returned: success
  type: list
  elements: dict
  contains:
    domain:
      description: The name of the domain.
      returned: success
      type: str
      sample: build7
    uuid:
      description: The UUID of the domain.
      returned: success
      type: str
      sample: 5b0f4b52-9d0a-4a53-8a6f-0fb5a7f5d7c3
    code:
      description: The reason as one fixed word.
      returned: success
      type: str
      sample: settling
    reason:
      description: The reason in one line with its numbers.
      returned: success
      type: str
      sample: "statistics are 12 s old, period 5 s"
    untouched_kib:
      description: Of a domain that could not be observed, the memory in KiB that it may still touch, as far as known.
      returned: success
      type: int
      sample: 0
    rooms:
      description:
        - Of a domain that could not be observed, the names of the limits and cells that it shares with others.
        - V(null) where they are not known.
      returned: success
      type: list
      elements: str
skip_counts:
  description: How many domains were skipped, by RV(skips[].code).
  returned: success
  type: dict
  sample:
    settling: 1
    no-stats: 3
failures:
  description: Changes that were tried and did not happen.
  returned: success
  type: list
  elements: dict
  contains:
    domain:
      description: The name of the domain.
      returned: success
      type: str
      sample: web2
    uuid:
      description: The UUID of the domain.
      returned: success
      type: str
      sample: 3f0c7f9e-40f3-4f0f-9c46-1f3a9f5d2b8a
    code:
      description: The reason as one fixed word.
      returned: success
      type: str
      sample: gone
    reason:
      description: The reason in one line.
      returned: success
      type: str
      sample: "the domain is no longer running"
unmet:
  description: Memory that a domain needs and did not get.
  returned: success
  type: list
  elements: dict
  contains:
    domain:
      description: The name of the domain.
      returned: success
      type: str
      sample: db1
    uuid:
      description: The UUID of the domain.
      returned: success
      type: str
      sample: 8f3f7ac9-5d9a-4d4b-9b6f-0d2a1c6f7e11
    kib:
      description: How much is missing, in KiB.
      returned: success
      type: int
      sample: 100352
    reason:
      description: Why, in one line with its numbers.
      returned: success
      type: str
      sample: "usable 96M, starvation 150M, the host has 0M to give"
room:
  description: The room that is kept for a guest that is to start.
  returned: when O(room) was given or somebody else asked for room, else null
  type: dict
  contains:
    kib:
      description: How much is kept, in KiB. It is less than O(room) once a guest started.
      returned: success
      type: int
      sample: 8388608
    cells:
      description: The NUMA cells in which it is to be, or null.
      returned: success
      type: str
      sample: "0"
    there_kib:
      description: How much of it was there before the pass, in KiB.
      returned: success
      type: int
      sample: 2097152
    lacks_kib:
      description: How much of it still lacks once the takes of the pass have arrived, in KiB.
      returned: success
      type: int
      sample: 0
    why:
      description: Why it lacks, in one line.
      returned: success
      type: str
      sample: "the host has 512M too little, and no guest can do without more in this pass"
    since_s:
      description: When it was asked for, in seconds since 1970.
      returned: success
      type: float
      sample: 1760000000.5
wasted_kib:
  description:
    - How much waste the pass leaves with the guests, in KiB. It is unused memory above O(waste).
  returned: success
  type: int
  sample: 1564672
note:
  description:
    - Which option takes the waste that the pass leaves, and why it is left. Empty if it leaves none.
  returned: success
  type: str
  sample: "1528M of waste stays with the guests: to take it would help nobody now; reclaim=eager takes it"
unmatched:
  description: Entries of O(domains) and O(exclude), and what rules match, where no running domain has that name.
  returned: success
  type: list
  elements: str
  sample: ["web9*"]
not_restored:
  description:
    - Domains that could not be given back all that they had, and keep their record, with the reason.
      Empty with O(state=balanced).
  returned: success
  type: list
  elements: str
  sample: ["db1: 2072M of its 4096M are missing: the host has no more to give now"]
left:
  description: The same as RV(not_restored), for programs. Empty with O(state=balanced).
  returned: success
  type: list
  elements: dict
  contains:
    domain:
      description: Its name.
      returned: success
      type: str
      sample: db1
    uuid:
      description: Its UUID.
      returned: success
      type: str
      sample: 0b8f5c4e-6f0d-4d2f-9a53-1f2b7a1f7f11
    reason:
      description: Why it was not given back all that it had.
      returned: success
      type: str
      sample: "2072M of its 4096M are missing: the host has no more to give now"
    limited:
      description:
        - Whether its record asks for what is not allowed now, or can not be read. The part that is allowed was given.
          That is a warning, and fails the module only for a domain that O(domains) names.
      returned: success
      type: bool
      sample: false
    command_told:
      description: Whether RV(left[].reason) itself names the command that ends this.
      returned: success
      type: bool
      sample: false
    give_up:
      description: The command that removes its record. The domain keeps what it has.
      returned: success
      type: str
      sample: virsh metadata 0b8f5c4e-6f0d-4d2f-9a53-1f2b7a1f7f11 urn:kvmsched:state/1 --live --remove
before:
  description: The memory of the host and its domains in figures, before the pass.
  returned: success
  type: dict
  contains: &figures
    starved:
      description: How many domains are starved.
      returned: success
      type: int
      sample: 1
    wasteful:
      description: How many domains are wasteful.
      returned: success
      type: int
      sample: 1
    unknown:
      description: How many domains cannot be judged, for want of fresh statistics.
      returned: success
      type: int
      sample: 0
    limited:
      description:
        - How many of the starved and wasteful domains no change can help. They are at their floor or at their
          maximum, or their thresholds are too close to each other.
      returned: success
      type: int
      sample: 0
    unused_kib:
      description: The unused memory of all domains that report it, in KiB.
      returned: success
      type: int
      sample: 1871872
    usable_kib:
      description: The usable memory of all domains that report it, in KiB.
      returned: success
      type: int
      sample: 2035712
    actual_kib:
      description: The memory that all domains have now, in KiB.
      returned: success
      type: int
      sample: 6291456
    wasted_kib:
      description: The unused memory of all domains above their O(waste), in KiB.
      returned: success
      type: int
      sample: 1564672
    owed_kib:
      description:
        - What kvmsched took of the memory that domains had at first, and nobody asked for, in KiB. It goes back to
          them first.
      returned: success
      type: int
      sample: 0
    credit_kib:
      description:
        - What domains were given to survive though others were promised it, and the host has not covered yet, in KiB.
          Only a daemon remembers it from pass to pass.
      returned: success
      type: int
      sample: 0
    host_available_kib:
      description: The memory that is available on the host itself (C(MemAvailable)), in KiB.
      returned: if it is known
      type: int
      sample: 9437184
    host_arc_kib:
      description: What the ZFS cache of the host could give beside RV(before.host_available_kib), in KiB.
      returned: success
      type: int
      sample: 0
    host_reserve_kib:
      description: The memory that stays available on the host itself, in KiB.
      returned: if the memory of the host is known
      type: int
      sample: 1048576
after:
  description:
    - The same figures after the pass. In check mode, what is expected.
  returned: success
  type: dict
  contains: *figures
policy_source:
  description:
    - Where the rules of this pass come from. V(options) for O(rules), V(none), or the path of the policy that is
      installed on the host.
  returned: success
  type: str
  sample: /etc/kvmsched/policy.json
diff:
  description: One line for each change, before and after.
  returned: when in diff mode
  type: dict
  sample:
    before: "db1: 2048M\n"
    after: "db1: 2912M\n"
warnings:
  description: What a person should know about, such as changes that failed. Ansible shows these lines, too.
  returned: if there are any
  type: list
  elements: str
  sample: ["2 changes failed, web1: it was restarted or stopped meanwhile"]
timings_s:
  description: How long the parts of the pass took, in seconds.
  returned: success
  type: dict
  contains:
    observe:
      description: Reading the state of the host and its domains.
      returned: success
      type: float
      sample: 1.21
    decide:
      description: Making the plan.
      returned: success
      type: float
      sample: 0.01
    apply:
      description: Carrying it out, with the wait for memory to arrive. 0 in check mode.
      returned: success
      type: float
      sample: 2.4
  sample:
    observe: 1.21
    decide: 0.01
    apply: 2.4
"""

from ansible_collections.kvmsched.kvm.plugins.module_utils import old_python  # noqa: F401 pylint: disable=unused-import
from ansible_collections.kvmsched.kvm.plugins.module_utils.ansible_face import memory_module, run_memory


def main() -> None:
    run_memory(memory_module())


if __name__ == "__main__":
    main()
