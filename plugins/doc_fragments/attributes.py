# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module of the collection says about check mode, diff mode, idempotence and platform."""

from __future__ import annotations


class ModuleDocFragment:
    # The modules that change a host.
    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in check mode and predict what a real run would change, without changing anything.
    support: full
    details:
      - The pass opens a read-only connection to libvirt, takes no lock and writes no file.
      - On the same snapshot of a host, check mode and a real run make the same plan. A real run may carry out less of
        it, each time with the reason, never more and nothing else.
  diff_mode:
    description: Returns what has changed, or would change in check mode, when in diff mode.
    support: full
    details:
      - One line for each thing that changes, and only for those.
  idempotent:
    description:
      - When run twice in a row with the same arguments and the same load, the second invocation indicates that
        nothing has changed.
    support: full
    details:
      - What the guests do in between is load, and may give a later run a reason to act. The thresholds keep it from
        acting on noise.
  platform:
    description: Where the module can act.
    support: full
    platforms: linux
"""

    # The modules that only read.
    INFO_MODULE = r"""
attributes:
  check_mode:
    description: Can run in check mode and predict what a real run would change, without changing anything.
    support: full
    details:
      - This module changes nothing, in any mode. It opens a read-only connection to libvirt.
  diff_mode:
    description: Returns what has changed, or would change in check mode, when in diff mode.
    support: N/A
    details:
      - This module changes nothing.
  idempotent:
    description:
      - When run twice in a row with the same arguments and the same load, the second invocation indicates that
        nothing has changed.
    support: full
    details:
      - This module changes nothing.
  platform:
    description: Where the module can act.
    support: full
    platforms: linux
"""

    # The module that installs.
    INSTALL = r"""
attributes:
  check_mode:
    description: Can run in check mode and predict what a real run would change, without changing anything.
    support: full
    details:
      - Also on a host where nothing of kvmsched is installed yet.
  diff_mode:
    description: Returns what has changed, or would change in check mode, when in diff mode.
    support: full
    details:
      - Of the package it shows the releases, not the files.
  idempotent:
    description: When run twice in a row with the same arguments, the second invocation changes nothing.
    support: full
  platform:
    description: Where the module can act.
    support: full
    platforms: linux
"""

    # Membership of the action group.
    ACTION_GROUP = r"""
attributes:
  action_group:
    description:
      - Use C(group/kvmsched.kvm.kvmsched) in C(module_defaults) to set options of all modules of this collection at
        once, for example O(ignore:uri).
    support: full
    membership:
      - kvmsched.kvm.kvmsched
"""
