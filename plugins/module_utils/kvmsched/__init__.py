# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One scheduling brain for KVM hosts: observe -> decide -> apply.

The package imports itself by relative imports only, so it runs unchanged from inside the Ansible
collection and from a host's library directory.

It is internal to this collection: what others may rely on are the modules, the role, the playbooks, the command and
the documents that it reads and writes. Semantic versioning covers those, and nothing in here.
"""

from __future__ import annotations

__version__ = "1.0.0-rc.1"
