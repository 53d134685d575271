# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One scheduling brain for KVM hosts: observe -> decide -> apply.

The package imports itself by relative imports only, so it runs unchanged from inside the Ansible
collection and from a host's library directory.
"""

from __future__ import annotations

__version__ = "0.1.0"
