#!/usr/bin/python
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balance the vCPUs of running KVM guests: documentation and entry point."""

DOCUMENTATION = r"""
module: kvm_vcpu_pin
short_description: Balance the vCPUs of running KVM guests over the physical CPUs
version_added: 0.1.0
description:
  - Makes one pass over the running domains of a host. It measures what every vCPU demands over a short interval. It
    pins vCPUs to physical CPUs (pCPUs) so that all pCPUs carry about the same load, and moves as few vCPUs as it can.
  - The load of a pCPU is the demand of the vCPUs that are on it and what the host itself runs there. Demand is the
    time that a vCPU ran, plus the time that it was ready to run and had to wait. By run time alone a full pCPU looks
    the same with two vCPUs as with eight.
  - Nothing moves unless the plan serves more work, or gives the worst-served vCPU a larger share, or brings the
    imbalance down by at least O(threshold).
  - A vCPU only goes where its domain may run. That is what C(<vcpu cpuset>), C(<vcpupin>) of the persistent definition,
    C(numatune) and the control group of the domain have in common. A pCPU that is offline, isolated or reserved is not
    in it.
  - Domains with real-time vCPUs or with pCPUs of their own are skipped.
  - Every change and every domain that is skipped is returned with its reason and its numbers, beside lower bounds
    that show how good the plan is.
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
      - V(released) gives back to each vCPU the affinity that it had before kvmsched first changed it, and removes the
        record of it. Only the domains that O(domains) and O(exclude) select are released. It does not measure load.
      - Domains that could not be given back what they had, for example because of a migration, are listed in
        RV(not_restored), keep their record, and the module fails. Running it again later goes on from there.
      - A record leads nobody onto pCPUs that are offline, isolated, outside of the cpuset of the definition, or another
        domain's own. The others are given back, or where none is left, what the domain gets when it starts anew. It is
        listed, too, and so is a domain whose record can not be read, with the command that removes it. Whoever may
        write the metadata of a domain could write such a record, so the module only warns, unless O(domains) names the
        domain.
    type: str
    choices: [balanced, released]
    default: balanced
  interval:
    description:
      - How long, in seconds, load is measured before deciding. From 0.1 to 3600. A longer interval sees less noise.
    type: float
    default: 2.0
  threshold:
    description:
      - The least drop of the imbalance that a plan must bring, in percentage points, where it serves no more work.
        Below it, no vCPU is moved from one pCPU to another for balance alone.
      - The imbalance is the standard deviation of the demand on the usable pCPUs, in percent of one pCPU.
    type: float
    default: 5.0
  granularity:
    description:
      - What a vCPU is pinned to.
      - V(pcpu) is one pCPU. A vCPU that may run on several pCPUs and has load is placed on one, for any imbalance.
      - V(core), V(llc) and V(cell) are all pCPUs of one core, of one last-level cache, or of one NUMA cell. The kernel
        goes on balancing inside.
      - A live pin that somebody else set keeps its width, unless C(widen) of its rule in O(rules) is true.
    type: str
    choices: [pcpu, core, llc, cell]
    default: pcpu
  floating:
    description:
      - What becomes of vCPUs that float, which the kernel balances at once and for nothing.
      - V(place) pins each that is not idle to a pCPU.
      - V(leave) never pins them, and gives back those that were pinned by an earlier pass.
      - V(auto) does the same, but gives a vCPU another set of pCPUs where that serves it. That is beside its memory,
        or out of a full set into a free one of the same size. It is the default of the daemon.
    type: str
    choices: [place, leave, auto]
    default: place
  pcpus:
    description:
      - The pCPUs that may be used, as a CPU set such as V(0-3,8) or V(0-7,^2).
      - Isolated pCPUs are used only if they are named here or in the C(<vcpu cpuset>) of a domain, and only with
        O(granularity=pcpu).
      - If not given, all pCPUs that are online and not isolated.
    type: str
  reserved:
    description:
      - pCPUs that are kept for the host, as a CPU set. No vCPU is put there.
      - If not given, none.
    type: str
  max_moves:
    description:
      - The most threads to move in one pass, those of vCPUs before those of O(emulator). V(0) moves none.
      - If not given, there is no limit.
    type: int
  emulator:
    description:
      - Where the emulator threads and I/O threads of a domain run, which serve its devices.
      - V(float) leaves them where they are.
      - V(spread) gives them all pCPUs that the vCPUs of the domain may use.
      - V(reserved) puts them on the pCPUs of O(reserved). If none of these is online, they are left where they are,
        with a warning.
    type: str
    choices: [float, spread, reserved]
    default: float
notes:
  - libvirt can widen a live pin, but not remove it. After O(state=released) a vCPU that had no pin may run on every
    pCPU that its domain may use. C(virsh vcpupin) shows that as a pin until the domain is started anew.
  - Pins travel with a live migration. Release a domain before it is migrated to a host without kvmsched. libvirt
    refuses a pin to a pCPU that the other host lacks, also one that a release leaves. So a domain migrates to a host
    with fewer pCPUs only with an XML that has no pins (C(virsh migrate --xml)).
seealso:
  - module: kvmsched.kvm.kvm_mem_balance
  - module: kvmsched.kvm.kvm_sched_info
  - name: libvirt domain XML, CPU tuning
    description: How the definition of a domain says where its vCPUs may run.
    link: https://libvirt.org/formatdomain.html#cpu-tuning
"""

EXAMPLES = r"""
---
- name: Balance the vCPUs of all running guests
  kvmsched.kvm.kvm_vcpu_pin:

- name: See what a pass would change, and why
  kvmsched.kvm.kvm_vcpu_pin:
  check_mode: true
  diff: true

- name: Measure for ten seconds, keep two pCPUs for the host, and move at most four vCPUs
  kvmsched.kvm.kvm_vcpu_pin:
    interval: 10
    reserved: "0-1"
    max_moves: 4

- name: Keep the vCPUs of each guest within one last-level cache, and let the kernel do the rest
  kvmsched.kvm.kvm_vcpu_pin:
    granularity: llc

- name: Balance a part of the guests on a part of the pCPUs
  kvmsched.kvm.kvm_vcpu_pin:
    pcpus: 8-31,^16
    domains:
      - web*
      - 8f3f7ac9-5d9a-4d4b-9b6f-0d2a1c6f7e11
    exclude:
      - web-canary*

- name: Leave a latency-critical guest and its pCPUs alone
  kvmsched.kvm.kvm_vcpu_pin:
    rules:
      - match: trading-*
        vcpu:
          mode: dedicated

- name: Give one guest back what it had, before it is migrated
  kvmsched.kvm.kvm_vcpu_pin:
    state: released
    domains:
      - web1
"""

RETURN = r"""
msg:
  description: What the pass did, in one line.
  returned: always
  type: str
  sample: "made 2 changes: imbalance 50.0 -> 0.4 points, 1 skipped"
moves:
  description: What changed, or would change in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: V(pin), a change of affinity.
      returned: success
      type: str
      sample: pin
    domain:
      description: The name of the domain.
      returned: success
      type: str
      sample: web1
    uuid:
      description: The UUID of the domain.
      returned: success
      type: str
      sample: 0b8a6c1e-3c6e-4c8e-a1b7-54b1b7a3f0d2
    thread:
      description: Which kind of thread moves, one of V(vcpu), V(emulator) and V(iothread).
      returned: success
      type: str
      sample: vcpu
    id:
      description: The number of the vCPU or the I/O thread, 0 for the emulator threads.
      returned: success
      type: int
      sample: 3
    before:
      description: Where it could run before, as a CPU set.
      returned: success
      type: str
      sample: 0-7
    after:
      description: Where it can run after, as a CPU set.
      returned: success
      type: str
      sample: "5"
    load:
      description: Its demand, as a fraction of one pCPU, where it is known.
      returned: success
      type: float
      sample: 0.84
    reason:
      description: Why, in one line with its numbers.
      returned: success
      type: str
      sample: "84 % demand; pCPU 0 at 196 %, pCPU 5 at 3 %"
  sample:
    - kind: pin
      domain: web1
      uuid: 0b8a6c1e-3c6e-4c8e-a1b7-54b1b7a3f0d2
      thread: vcpu
      id: 3
      before: "0"
      after: "5"
      load: 0.84
      reason: "84 % demand; pCPU 0 at 196 %, pCPU 5 at 3 %"
moves_bound:
  description:
    - A proven lower bound on the moves that any plan needs until every pCPU carries at most RV(target_pct), or has one
      busy vCPU only. Placing a vCPU that floated is not part of it.
  returned: success
  type: int
  sample: 1
target_pct:
  description:
    - The maximum load that the plan brings every pCPU down to that has more than one busy vCPU, in percent of one pCPU.
      RV(moves_bound) refers to it. 0 if there is no such pCPU.
  returned: success
  type: float
  sample: 89.0
trigger:
  description:
    - What made the pass act, as fixed words separated by commas. Empty if nothing did.
    - V(imbalance) is uneven load, V(placing) a vCPU that floats and has load, V(wait) vCPUs that wait for a pCPU,
      V(siblings) threads of one core of a guest that do not share one of the host, V(emulator) threads to place as
      O(emulator) says, V(release) is O(state=released).
  returned: success
  type: str
  sample: imbalance
note:
  description: What decided whether the pass acts, in one line with its numbers. Empty with O(state=released).
  returned: success
  type: str
  sample: "imbalance falls by 49.6 points, threshold 5"
placed:
  description:
    - How many of the moves place a vCPU that could run on several pCPUs before, or an emulator or I/O thread. They are
      not part of RV(moves_bound).
  returned: success
  type: int
  sample: 0
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
      sample: rt1
    uuid:
      description: The UUID of the domain.
      returned: success
      type: str
      sample: 5b0f4b52-9d0a-4a53-8a6f-0fb5a7f5d7c3
    code:
      description: The reason as one fixed word.
      returned: success
      type: str
      sample: realtime
    reason:
      description: The reason in one line with its numbers.
      returned: success
      type: str
      sample: "vCPU 0 has real-time class fifo"
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
    realtime: 1
    ignored: 2
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
  sample: ["web1: a job is under way (migration, backup, dump...), virsh domjobinfo shows it"]
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
      sample: web1
    uuid:
      description: Its UUID.
      returned: success
      type: str
      sample: 0b8f5c4e-6f0d-4d2f-9a53-1f2b7a1f7f11
    reason:
      description: Why it was not given back all that it had.
      returned: success
      type: str
      sample: "a job is under way (migration, backup, dump...), virsh domjobinfo shows it"
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
  description: The load of the pCPUs in figures, before the pass.
  returned: success
  type: dict
  contains: &figures
    pcpus:
      description: How many pCPUs may be used.
      returned: success
      type: int
      sample: 8
    average_pct:
      description: The average demand on a pCPU, in percent of one pCPU.
      returned: success
      type: float
      sample: 41.5
    max_pct:
      description: The demand on the fullest pCPU, in percent of one pCPU. It can be above 100.
      returned: success
      type: float
      sample: 196.2
    imbalance_pct:
      description: The standard deviation of the demand over the pCPUs, in percentage points.
      returned: success
      type: float
      sample: 61.3
    bound_pct:
      description: A proven lower bound on RV(before.max_pct), for any assignment of these vCPUs to those of
        these pCPUs where each may run.
      returned: success
      type: float
      sample: 84.0
    max_all_pct:
      description: As RV(before.max_pct), but over all online pCPUs, also those that may not be used.
      returned: success
      type: float
      sample: 196.2
after:
  description:
    - The same figures after the pass, as the plan expects them.
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
    before: "web1 vCPU 3: 0\n"
    after: "web1 vCPU 3: 5\n"
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
      description: Reading the state of the host and its domains, with the interval of measuring.
      returned: success
      type: float
      sample: 2.13
    decide:
      description: Making the plan.
      returned: success
      type: float
      sample: 0.01
    apply:
      description: Carrying it out. 0 in check mode.
      returned: success
      type: float
      sample: 0.05
  sample:
    observe: 2.13
    decide: 0.01
    apply: 0.05
"""

from ansible_collections.kvmsched.kvm.plugins.module_utils import old_python  # noqa: F401 pylint: disable=unused-import
from ansible_collections.kvmsched.kvm.plugins.module_utils.ansible_face import run_vcpu, vcpu_module


def main() -> None:
    run_vcpu(vcpu_module())


if __name__ == "__main__":
    main()
