# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""That an emulated machine is a KVM hypervisor of the shape that was asked for, and its guests are KVM's."""

from __future__ import annotations

import re

from lab import Guest, Lab, Machine

ISOLATED = 7
STRICT = "<numatune><memory mode='strict' nodeset='1'/></numatune>"


def test_the_machine_is_what_was_asked_for(machine: Machine) -> None:
    said = machine.run("virt-host-validate qemu", check=False)
    assert re.search(r"hardware virtualization\s*: PASS", said) and re.search(r"/dev/kvm is accessible\s*: PASS", said)
    assert machine.run("cat /sys/devices/system/cpu/cpu[0246]/topology/thread_siblings_list").split() == [
        *("0-1", "2-3", "4-5", "6-7")
    ]
    assert machine.run("cat /sys/devices/system/node/node[01]/cpulist").split() == ["0-3", "4-7"]
    assert machine.run("cat /sys/devices/system/node/node[01]/distance").splitlines() == ["10 20", "20 10"]
    assert machine.read("/sys/devices/system/cpu/isolated").strip() == str(ISOLATED)


def test_guests_are_of_kvm_and_say_what_only_kvm_says(machine: Machine) -> None:
    with Lab(own=machine, say=print) as lab:
        (guest,) = lab.start(Guest("kvmsched-test-kvm", memory_mib=160, cpu=[0.9], pin={0: "4-6"}, extra=STRICT))
        assert "<domain type='kvm'" in guest.domain.XMLDesc()
        assert "anon_inode:kvm-vm" in machine.run(f"readlink /proc/{guest.pid}/fd/*")
        assert guest.affinity() == {4, 5, 6}
        statistics = machine.run(f"virsh domstats --vcpu --balloon {guest.name}")
        names = {line.strip().partition("=")[0] for line in statistics.splitlines()}
        wanted = {"vcpu.0.time", "vcpu.0.wait", "vcpu.0.exits.sum", "balloon.usable", "balloon.last-update"}
        assert wanted <= names
