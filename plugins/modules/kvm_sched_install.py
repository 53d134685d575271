#!/usr/bin/python
# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The package, the command and the policy of kvmsched on a host: documentation, options in, result out."""

DOCUMENTATION = r"""
module: kvm_sched_install
short_description: Install the package, the command and the policy of kvmsched on a KVM host
version_added: 1.0.0
description:
  - Writes the package that this module travels with to a directory of its own below C(/usr/local/lib/kvmsched), lets
    C(/usr/local/lib/kvmsched/current) lead there, and removes the releases that were there before. Nothing is
    downloaded. The directory is named by the version and the content of the package, so that a changed tree is
    installed anew under the same version, too.
  - Writes the command C(/usr/local/bin/kvmsched).
  - Checks O(policy) as C(kvmsched check) does, and only then writes it to C(/etc/kvmsched/policy.json). If it has a
    mistake, the module fails with a line for each, and nothing is changed.
  - Who may not enter C(/etc/kvmsched) or C(/usr/local/lib/kvmsched), or read what it writes there, is let in again.
  - It neither starts nor stops anything, and changes no guest. The role C(kvmsched.kvm.kvmsched) does all that
    belongs to a daemon, and uses this module.
author:
  - the kvmsched authors (!UNKNOWN)
extends_documentation_fragment:
  - kvmsched.kvm.attributes.install
options:
  state:
    description:
      - V(present) installs all of it, V(absent) removes all of it.
      - With V(absent) the guests keep what they have. Stop the daemon and release them first.
    type: str
    choices: [present, absent]
    default: present
  policy:
    description:
      - The policy document, as the documentation of the collection describes it (C(docs/policy.md)). It is written as
        sorted JSON, so that the same document is always the same file.
      - If not given, the policy on the host stays as it is.
    type: dict
  files:
    description:
      - Further files that belong to the installation, such as units, as a dictionary of paths and texts. They are
        written with mode V(0644), in directories that are made where there are none.
      - One with an empty text is not to be there, and with O(state=absent) none of them is.
    type: dict
    default: {}
requirements:
  - python3-jsonschema, the distribution's package, version 3.2 or newer, on the host where the module runs, if
    O(policy) is used. In check mode the policy is not checked where that is missing, with a warning.
  - Python 3.9 or newer, as C(/usr/bin/python3)
seealso:
  - module: kvmsched.kvm.kvm_mem_balance
  - module: kvmsched.kvm.kvm_vcpu_pin
"""

EXAMPLES = r"""
---
- name: Bring the command to a host, for looking around with it
  kvmsched.kvm.kvm_sched_install:

- name: See what a new policy would change, and whether it is good
  kvmsched.kvm.kvm_sched_install:
    policy:
      memory:
        starvation: 5%
        waste: 10%
      rules:
        - match: db*
          memory:
            floor: 4G
  check_mode: true
  diff: true

- name: Remove command, package and policy
  kvmsched.kvm.kvm_sched_install:
    state: absent
"""

RETURN = r"""
msg:
  description: What was changed, in one line.
  returned: always
  type: str
  sample: "kvmsched 1.0.0: changed /usr/local/lib/kvmsched, /etc/kvmsched/policy.json"
version:
  description: The version of the package that the module travels with.
  returned: success
  type: str
  sample: 1.0.0
package:
  description: Where that package is, or would be in check mode.
  returned: success
  type: str
  sample: /usr/local/lib/kvmsched/1.0.0-3fb2a91c04de
package_changed:
  description: Whether package, command or O(files) changed, so that a running daemon has to be restarted.
  returned: success
  type: bool
  sample: true
policy_changed:
  description: Whether the policy changed, so that a running daemon has to reload it.
  returned: success
  type: bool
  sample: false
policy_hash:
  description:
    - The SHA-256 of the policy's file, as the daemon tells it in its status. In check mode, of the file that would be.
    - Empty if there is no policy.
  returned: success
  type: str
  sample: 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef
diff:
  description: What changes, before and after, for each of the paths that do.
  returned: when in diff mode
  type: list
  elements: dict
  sample:
    - before_header: /usr/local/lib/kvmsched
      before: "0.1.0-91bd0c77a2ee\n"
      after_header: /usr/local/lib/kvmsched
      after: "1.0.0-3fb2a91c04de\n"
"""

import hashlib
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmsched.kvm.plugins.module_utils import old_python  # noqa: F401 pylint: disable=unused-import
from ansible_collections.kvmsched.kvm.plugins.module_utils.ansible_face import fail, seek
from ansible_collections.kvmsched.kvm.plugins.module_utils.kvmsched import __version__, config
from ansible_collections.kvmsched.kvm.plugins.module_utils.kvmsched.app import installation
from ansible_collections.kvmsched.kvm.plugins.module_utils.kvmsched.units import shown


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "policy": {"type": "dict"},
            "files": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        run(module)
    except config.ConfigError as error:
        fail(module, "the policy is refused, nothing was changed: " + "; ".join(error.mistakes))
    except OSError as error:
        fail(module, f"{error.filename or 'the host'}: {error.strerror or error}")


def run(module: AnsibleModule) -> None:
    absent, policy, others = module.params["state"] == "absent", module.params["policy"], module.params["files"]
    host, files = installation.Root(), installation.sources()
    for path, text in others.items():
        if not os.path.isabs(path):
            fail(module, f"files: got {path!r}, allowed: absolute paths")
        if not isinstance(text, str):
            fail(module, f"files: {path}: got {shown(text)}, allowed: a text")
    if policy is not None and not absent:
        check_policy(module, policy)
    differences = host.absent(others) if absent else host.present(files, policy, others)
    if not module.check_mode:
        for difference in differences:
            difference.make()
    values = result(module, differences, installation.release(files))
    if module._diff:
        values["diff"] = diff(differences)
    module.exit_json(**values, policy_hash=policy_hash(module, host))


def check_policy(module: AnsibleModule, policy: dict[str, Any]) -> None:
    """Check the policy; raise ConfigError, with every mistake."""
    cause = seek(module, "jsonschema")
    if cause and module.check_mode:
        module.warn(f"the policy is not checked, as python3-jsonschema is not installed here ({cause})")
        return
    config.load_daemon(policy)


def policy_hash(module: AnsibleModule, host: installation.Root) -> str:
    if module.params["state"] == "absent":
        return "" if module.check_mode else host.policy_hash()
    if module.params["policy"] is None:
        return host.policy_hash()
    return hashlib.sha256(installation.policy_text(module.params["policy"]).encode()).hexdigest()


def result(module: AnsibleModule, differences: list[installation.Difference], release: str) -> dict[str, Any]:
    verb = "would change" if module.check_mode else "changed"
    paths = ", ".join(difference.path for difference in differences)
    return {
        "changed": bool(differences),
        "msg": f"kvmsched {__version__}: {verb} {paths}"
        if differences
        else f"kvmsched {__version__}: nothing to change",
        "version": __version__,
        "package": os.path.join(installation.LIBRARY, release),
        "package_changed": any(difference.part != "policy" for difference in differences),
        "policy_changed": any(difference.part == "policy" for difference in differences),
    }


def diff(differences: list[installation.Difference]) -> list[dict[str, str]]:
    return [
        {
            "before_header": difference.path,
            "before": _lines(difference.before),
            "after_header": difference.path,
            "after": _lines(difference.after),
        }
        for difference in differences
    ]


def _lines(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


if __name__ == "__main__":
    main()
