#!/usr/bin/python
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What kvmsched sees of a KVM host: documentation and entry point."""

DOCUMENTATION = r"""
module: kvm_sched_info
short_description: Show what kvmsched sees of a KVM host and its running guests
version_added: 0.1.0
description:
  - Returns a snapshot of a host, such as M(kvmsched.kvm.kvm_mem_balance) and M(kvmsched.kvm.kvm_vcpu_pin) decide by. It
    holds the topology, the memory of the host, the load and the affinity of the vCPUs, and the balloons.
  - Reads only, over a read-only connection. A user who may open one, such as V(qemu:///system) through its read-only
    socket, needs no further rights. What such a user cannot see is V(null) in the result.
author:
  - the kvmsched authors (!UNKNOWN)
extends_documentation_fragment:
  - kvmsched.kvm.attributes.info_module
  - kvmsched.kvm.attributes.action_group
  - kvmsched.kvm.options
options:
  subsets:
    description:
      - Which parts of the snapshot are returned.
      - V(host) is the hypervisor and its memory, V(topology) the pCPUs and NUMA cells with their load.
      - V(vcpus) are the vCPUs of the domains with their load and affinity, V(memory) the balloons of the domains.
    type: list
    elements: str
    choices: [host, topology, vcpus, memory]
    default: [host, topology, vcpus, memory]
  interval:
    description:
      - How long, in seconds, load is measured. From 0.1 to 3600.
    type: float
    default: 2.0
notes:
  - Remote URIs can be observed, too. What only the host itself knows, such as the time that vCPUs wait for a pCPU, is
    V(null) then.
seealso:
  - module: kvmsched.kvm.kvm_mem_balance
  - module: kvmsched.kvm.kvm_vcpu_pin
"""

EXAMPLES = r"""
---
- name: Take a snapshot of the host
  kvmsched.kvm.kvm_sched_info:
  register: host

- name: Show the guests that are short of memory
  ansible.builtin.debug:
    msg: "{{ item.name }}: usable {{ item.balloon.usable_kib // 1024 }}M of {{ item.balloon.actual_kib // 1024 }}M"
  loop: "{{ host.snapshot.domains }}"
  loop_control:
    label: "{{ item.name }}"
  when:
    - item.balloon.usable_kib is not none
    - item.balloon.usable_kib < 150 * 1024

- name: Look at the memory of the web servers only
  kvmsched.kvm.kvm_sched_info:
    subsets: [host, memory]
    domains: [web*]

- name: Look at another host from here
  kvmsched.kvm.kvm_sched_info:
    uri: qemu+ssh://kvm1.example.com/system
"""

RETURN = r"""
msg:
  description: What was observed, in one line.
  returned: always
  type: str
  sample: "kvm1: 12 running domains, 34 vCPUs on 16 pCPUs"
snapshot:
  description:
    - The state of the host at one instant. Parts that O(subsets) leaves out are missing.
    - Memory is in KiB, points in time are seconds of the wall clock of the host, counters grow from an unspecified
      start. V(null) is not known, which is never the same as 0.
  returned: success
  type: dict
  contains:
    format:
      description: The version of the format of the snapshot.
      returned: success
      type: int
      sample: 1
    wall_s:
      description: When the snapshot was taken, by the wall clock of the host.
      returned: success
      type: float
      sample: 1790000000.25
    monotonic_s:
      description: When the snapshot was taken, by the monotonic clock of the host.
      returned: success
      type: float
      sample: 86400.5
    host:
      description: The hypervisor.
      returned: O(subsets) holds V(host) or V(topology)
      type: dict
      contains:
        uuid:
          description: The UUID of the host.
          returned: success
          type: str
          sample: 4c4c4544-0042-4810-8056-b9c04f4d3732
        name:
          description: The name of the host.
          returned: success
          type: str
          sample: kvm1
        uri:
          description: The URI of the connection.
          returned: success
          type: str
          sample: qemu:///system
        driver:
          description: The driver of the hypervisor.
          returned: success
          type: str
          sample: QEMU
        memory:
          description:
            - The memory of the host. C(total_kib) and C(available_kib) are C(MemTotal) and C(MemAvailable),
              C(psi_some_avg10_pct) and C(psi_full_avg10_pct) the memory pressure of the last 10 seconds, in percent.
            - C(arc_kib) is what the ZFS cache can give back, which C(MemAvailable) leaves out, C(swap_in_kib) what the
              host ever read back from its own swap.
          returned: O(subsets) holds V(host)
          type: dict
          sample: {total_kib: 65842176, available_kib: 9437184, psi_some_avg10_pct: 0.0, psi_full_avg10_pct: 0.0,
                   arc_kib: null, swap_in_kib: 0}
        rooms:
          description:
            - The control groups with a memory limit that domains share. C(left_kib) is what is left of the limit,
              caches dropped. C(high_left_kib) is the same for C(memory.high), above which the kernel throttles.
          returned: O(subsets) holds V(host)
          type: list
          elements: dict
          sample: [{name: /sys/fs/cgroup/machine.slice, left_kib: 8388608, high_left_kib: null}]
        topology:
          description:
            - C(pcpus) are the online pCPUs with their place in the host, C(cells) the NUMA cells, C(isolated) the pCPUs
              on which the kernel balances no load, as a CPU set.
            - Of a pCPU, C(llc) are those of its cell that share its last-level cache. C(kind) tells classes of pCPUs
              apart where the host is hybrid, C(capacity) is the capacity that the kernel tells then.
            - C(nohz_full) are pCPUs that run without a tick and are not isolated.
            - Of a cell, C(free_kib) is free, C(low_kib) the part of it that the kernel keeps for itself.
              C(clean_cache_kib) are file pages that it could drop, C(slab_kib) what it could free of its own.
          returned: O(subsets) holds V(topology)
          type: dict
          sample:
            pcpus:
              - {id: 0, cell: 0, socket: 0, die: 0, core: 0, siblings: "0-1", llc: 0-7, kind: "", capacity: null}
            cells:
              - {id: 0, pcpus: 0-7, memory_kib: 65842176, free_kib: 1245184, distances: {"0": 10}, low_kib: 81920,
                 clean_cache_kib: 6291456, slab_kib: 524288}
            isolated: ""
            nohz_full: ""
        busy_ns:
          description: For each pCPU, the time that it was busy, in nanoseconds.
          returned: O(subsets) holds V(topology)
          type: dict
          sample: {"0": 81234567890123}
        bound_ns:
          description:
            - For each pCPU, the part of RV(snapshot.host.busy_ns) that could run nowhere else, which is interrupts and
              processes that are confined to that pCPU. V(null) if it is not known.
          returned: O(subsets) holds V(topology)
          type: dict
          sample: {"0": 1234567890}
        foreign_ns:
          description:
            - The time of other host work that can run on some pCPUs only, one entry for each set of two pCPUs or more.
              V(null) if it is not known.
          returned: O(subsets) holds V(topology)
          type: list
          elements: dict
          sample: [{pcpus: 0-3, time_ns: 9876543210}]
        pinners:
          description: Running programs that change affinities, too, for example V(numad).
          returned: O(subsets) holds V(topology)
          type: list
          elements: str
          sample: []
    domains:
      description: The running domains that O(domains) and O(exclude) select.
      returned: O(subsets) holds V(vcpus) or V(memory)
      type: list
      elements: dict
      contains:
        name:
          description: The name of the domain.
          returned: success
          type: str
          sample: web1
        uuid:
          description: The UUID of the domain.
          returned: success
          type: str
          sample: 0b8a6c1e-3c6e-4c8e-a1b7-54b1b7a3f0d2
        id:
          description: The id of the running domain.
          returned: success
          type: int
          sample: 7
        state:
          description: The state of the domain, in the words of libvirt.
          returned: success
          type: str
          sample: running
        persistent:
          description: Whether the domain has a persistent definition.
          returned: success
          type: bool
          sample: true
        started_s:
          description: When its QEMU process was started.
          returned: success
          type: float
          sample: 1789990000.0
        busy:
          description: Why a change would have to wait, for example a migration.
          returned: success
          type: str
        cpuset:
          description: The CPU set of C(<vcpu cpuset>), V(null) for no limit.
          returned: O(subsets) holds V(vcpus)
          type: str
          sample: 0-7
        numa_pcpus:
          description: The pCPUs of the NUMA cells that the domain is bound to, V(null) for no limit.
          returned: O(subsets) holds V(vcpus)
          type: str
        cgroup_pcpus:
          description: The pCPUs that the control group of the domain allows, V(null) for no limit.
          returned: O(subsets) holds V(vcpus)
          type: str
        vcpus:
          description:
            - The online vCPUs. C(time_ns) is the time that it ran, C(delay_ns) the time that it waited for a pCPU.
            - C(pin) is its configured affinity, C(affinity) what the kernel has, C(definition) the C(<vcpupin>) of the
              persistent definition, C(scheduler) its real-time class.
            - C(numa_pcpus) are the pCPUs of the NUMA cells that hold the memory of its guest cell.
            - For a transient domain, C(definition) is the pin that stood when it was first seen.
          returned: O(subsets) holds V(vcpus)
          type: list
          elements: dict
          sample:
            - id: 0
              pin: 0-7
              affinity: 0-7
              definition: null
              scheduler: null
              numa_pcpus: null
              time_ns: 912345678901
              delay_ns: 1234567890
        threads:
          description:
            - Where the emulator threads (C(kind=emulator)) and the I/O threads (C(kind=iothread)) may run.
              C(definition) is their pin in the persistent definition.
          returned: O(subsets) holds V(vcpus)
          type: list
          elements: dict
          sample:
            - {kind: emulator, id: 0, pin: 0-7, definition: null}
        cpu_weight:
          description: The weight of its control group, 100 by default. V(null) if it has none.
          returned: O(subsets) holds V(vcpus)
          type: float
          sample: 100.0
        guest_threads:
          description: How many vCPUs with consecutive ids the guest takes for hardware threads of one core.
          returned: O(subsets) holds V(vcpus)
          type: int
          sample: 1
        cachetune:
          description: Whether a part of a host cache is allocated to vCPUs of the domain.
          returned: O(subsets) holds V(vcpus)
          type: bool
          sample: false
        start_unknown:
          description: Whether the domain is transient and the pins of its start are not known.
          returned: O(subsets) holds V(vcpus)
          type: bool
          sample: false
        vcpu_quota:
          description: The share of a pCPU that each of its vCPUs may use (C(<cputune><quota>)), V(null) for no limit.
          returned: success
          type: float
          sample: 0.5
        managed_by:
          description: The program that manages the domain, by its metadata (V(nova), V(ovirt), V(kubevirt)), or empty.
          returned: success
          type: str
          sample: ""
        balloon:
          description:
            - The memory of the domain. C(actual_kib) is what it has now, C(maximum_kib) what it can have, C(unused_kib)
              what it does not use at all.
            - C(usable_kib) is what it could still get without swapping, C(rss_kib) what its QEMU process holds on the
              host.
            - C(limit_kib) is the memory limit of QEMU itself, C(rooms) names those of RV(snapshot.host.rooms) that it
              is in, C(cells) are the NUMA cells that its memory is bound to, C(memnodes) the parts that strict memnodes
              bind to some of these.
            - C(fixed_kib) is the part of C(maximum_kib) that no balloon can have (NVDIMM, virtio-pmem, SGX EPC),
              C(huge_kib) what lies on huge pages.
            - Of the QEMU process C(locked_kib) is locked or pinned, C(swapped_kib) in the swap of the host, and
              above C(high_kib) the kernel throttles it.
            - A size that cannot be, as a guest may tell it, voids what the guest tells; its C(actual_kib) is then
              its maximum.
            - C(last_update_s) is when the balloon driver of the guest last answered (0 is never), and C(period_s) how
              often it is asked (0 is never).
          returned: O(subsets) holds V(memory)
          type: dict
          sample:
            actual_kib: 4194304
            maximum_kib: 8388608
            device: true
            unused_kib: 1871872
            usable_kib: 2035712
            disk_caches_kib: 262144
            swap_in_kib: 0
            swap_out_kib: 0
            major_faults: 312
            rss_kib: 4231168
            last_update_s: 1789999998
            period_s: 5
            autodeflate: false
            inhibitors: []
            limit_kib: null
            cells: null
            virtio_mem: false
            rooms: [/sys/fs/cgroup/machine.slice]
            fixed_kib: 0
            huge_kib: 0
            locked_kib: 0
            swapped_kib: 0
            high_kib: null
            memnodes: []
        owner:
          description: What the owner of the domain wrote into its metadata for kvmsched.
          returned: success
          type: dict
          sample: {settings: {weight: "4"}, error: null}
        record:
          description: What the domain had before kvmsched first changed it, V(null) if it never did.
          returned: success
          type: dict
        record_error:
          description: Why the record of the domain cannot be used.
          returned: success
          type: str
    skips:
      description:
        - Domains that could not be observed, each with C(domain), C(uuid), C(code) and C(reason).
        - C(untouched_kib) is what of its memory QEMU does not hold yet, as far as that is known.
        - C(rooms) are the limits and cells that it shares with others, V(null) where they are not known.
      returned: success
      type: list
      elements: dict
      sample: []
load:
  description: The load over O(interval). What is not known is V(null).
  returned: success
  type: dict
  contains:
    interval_s:
      description: How long was really measured, in seconds.
      returned: success
      type: float
      sample: 2.003
    pcpus:
      description: How busy each pCPU was, in percent.
      returned: O(subsets) holds V(topology)
      type: list
      elements: dict
      sample:
        - {id: 0, busy_pct: 97.4}
    vcpus:
      description:
        - For each vCPU, how much it ran (C(run_pct)) and how much it waited for a pCPU (C(delay_pct)), in percent of
          one pCPU.
      returned: O(subsets) holds V(vcpus)
      type: list
      elements: dict
      sample:
        - {domain: web1, uuid: 0b8a6c1e-3c6e-4c8e-a1b7-54b1b7a3f0d2, id: 0, run_pct: 49.8, delay_pct: 48.1}
unmatched:
  description: Entries of O(domains) and O(exclude) that match no running domain.
  returned: success
  type: list
  elements: str
  sample: []
timings_s:
  description: How long it took, in seconds.
  returned: success
  type: dict
  contains:
    observe:
      description: Reading the state of the host and its domains, with the interval of measuring.
      returned: success
      type: float
      sample: 2.13
    decide:
      description: Always 0, as there is no plan.
      returned: success
      type: float
      sample: 0.0
    apply:
      description: Always 0, as nothing is changed.
      returned: success
      type: float
      sample: 0.0
  sample:
    observe: 2.13
    decide: 0.0
    apply: 0.0
"""

from ansible_collections.kvmsched.kvm.plugins.module_utils import old_python  # noqa: F401 pylint: disable=unused-import
from ansible_collections.kvmsched.kvm.plugins.module_utils.ansible_face import info_module, run_info


def main() -> None:
    run_info(info_module())


if __name__ == "__main__":
    main()
