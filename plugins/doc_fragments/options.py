# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that several modules share; plugins/module_utils/ansible_face.py has their argument specs."""

from __future__ import annotations


class ModuleDocFragment:
    # Every module.
    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The libvirt connection URI of the hypervisor.
      - Changes are made on the local host only, by V(qemu:///system) or V(qemu:///session). V(test:///default) is
        libvirt's test driver, good for trying the wiring.
      - A remote URI such as V(qemu+ssh://root@kvm1/system) can be observed, by M(kvmsched.kvm.kvm_sched_info) and in
        check mode. To act on that host, run the module there.
    type: str
    default: qemu:///system
  domains:
    description:
      - Which domains a pass may touch, as a list of exact names, case-sensitive shell patterns for names (V(*), V(?),
        V([seq])) or exact UUIDs.
      - Domains outside the selection are never touched, but what they use still counts as load and memory of the host.
      - An entry that matches no running domain is no error. One that is no text is, for example V(0123) without quotes.
    type: list
    elements: raw
    default: ["*"]
  exclude:
    description:
      - Which domains a pass skips, in the form of O(domains). O(exclude) wins over O(domains).
    type: list
    elements: raw
    default: []
  deadline:
    description:
      - How long, in seconds, something that hangs may hold the pass, for example a guest whose monitor does not answer.
      - A domain that takes longer is skipped, with the reason. The other domains are served. From 0.1 to 600.
    type: float
    default: 10.0
requirements:
  - python3-libvirt, the distribution's package, version 8.0 or newer, on the host where the module runs
  - Python 3.9 or newer
"""

    # The modules that change a host.
    CHANGE = r"""
options:
  lock_timeout:
    description:
      - How long, in seconds, to wait while another pass of kvmsched works on this host. The module then fails, naming
        the process that holds the lock.
      - Check mode takes no lock and does not wait.
    type: float
    default: 10.0
  rules:
    description:
      - Settings for some of the domains, in any number of rules.
      - Where several rules match a domain, the more specific one has the last word. An exact name or UUID is more
        specific than a pattern, and of two patterns the one with more literal characters is.
      - What the owner of a domain wrote into its metadata goes before every rule.
      - The same rules serve memory and vCPUs, so that one list can be given to both modules. Each module uses its part.
      - If not given, the rules of the policy that is installed on the host are used, if there is one at
        C(/etc/kvmsched/policy.json) and O(uri) is the host itself. V([]) uses none. RV(policy_source) says which.
      - Of an installed policy only the rules are used. What holds for all domains comes from the options of the module.
    type: list
    elements: dict
    suboptions:
      match:
        description:
          - The domains that the rule is for, as one exact name, one shell pattern for names or one exact UUID.
        type: raw
        required: true
      memory:
        description:
          - What M(kvmsched.kvm.kvm_mem_balance) uses for these domains, in the place of its options of the same names.
        type: dict
        suboptions:
          starvation:
            description:
              - The domain is starved when its usable memory is below this.
            type: str
          waste:
            description:
              - The domain is wasteful when its unused memory is above this.
            type: str
          floor:
            description:
              - The domain never gets less memory than this.
            type: str
          ceiling:
            description:
              - The domain never gets more memory than this, even where its maximum is higher.
            type: str
          weight:
            description:
              - The share of the domain, relative to others, where there is not enough for all. Between 0.01 and 1000.
              - Domains without a weight have 1.
            type: float
          mode:
            description:
              - V(auto) balances the domain.
              - V(grow-only) may give it memory, but takes none.
              - V(ignore) skips it.
            type: str
            choices: [auto, grow-only, ignore]
          reclaim:
            description:
              - V(idle) lets the daemon take what the domain left unused for an hour. A single pass takes nothing so.
              - V(auto), the default, lets it only where the domain has C(autodeflate='on') and was seen to take such
                memory back by itself.
            type: str
            choices: [auto, idle]
      vcpu:
        description:
          - What M(kvmsched.kvm.kvm_vcpu_pin) uses for these domains.
        type: dict
        suboptions:
          mode:
            description:
              - V(auto) balances the domain.
              - V(ignore) skips it.
              - V(dedicated) skips it, too, and gives its pCPUs to no other domain.
            type: str
            choices: [auto, ignore, dedicated]
          pcpus:
            description:
              - The only pCPUs that these domains may use, such as V(0-3,8), within what their definition allows.
              - Other domains may use them, too. Floating vCPUs are fenced in.
            type: str
          widen:
            description:
              - Whether live pins that stood before us are widened to all that the domain may use.
            type: bool
notes:
  - Only the live state of running domains is changed, never their persistent definition. A domain that is shut off and
    started again is as its definition says.
  - Before the first change of a domain, what it had is recorded in the metadata of the running domain, under the XML
    namespace V(urn:kvmsched:state/1). The record outlives the module, the control machine and libvirt's daemon, moves
    with a live migration, and ends with the domain.
  - The owner of a domain can keep kvmsched away, or set limits, by an element of the XML namespace
    V(urn:kvmsched:policy/1) in the metadata of the domain. The module only reads that element.
  - Its attributes are C(memory) (V(auto), V(grow-only), V(ignore)), C(vcpu) (V(auto), V(ignore), V(dedicated)),
    C(starvation), C(waste), C(floor), C(ceiling), C(weight) and C(reclaim).
  - Trouble with one domain is a skip or an entry in RV(failures), each with its reason, and a warning. The others are
    served. The module fails for wrong options, if nothing can be observed, if the lock is held, if every change
    failed, or if O(state=released) leaves something.
  - No running domain is no error. The module says so, and nothing is changed.
  - If the Python that Ansible uses on the host cannot import libvirt, the module goes on under the distribution's own
    Python, where it can (C(/usr/bin/python3) or C(/usr/libexec/platform-python)).
requirements:
  - python3-jsonschema, the distribution's package, version 3.2 or newer, on the host where the module runs, if
    O(rules) is used or a policy is installed there
"""
