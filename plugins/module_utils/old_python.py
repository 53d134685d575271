# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fail in one line under a Python that can't even read the rest; to import it is enough.

ansible-core 2.16 reaches targets with Python 3.6, so this file and the modules that import it keep to what that reads.
It is internal to this collection.
"""

import json
import sys

LEAST = (3, 9)

if sys.version_info < LEAST:
    needs, has = (".".join(map(str, version[:2])) for version in (LEAST, sys.version_info))
    message = f"kvmsched needs Python {needs} or newer, {sys.executable} is {has}: set ansible_python_interpreter"
    # AnsibleModule would want to know the module's options first.
    sys.stdout.write(json.dumps({"failed": True, "msg": message}) + "\n")
    raise SystemExit(1)
