# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An error of libvirt, for what stands in for it."""

from __future__ import annotations


class Error(Exception):
    """Stands for libvirt.libvirtError, of any code and domain of errors."""

    def __init__(self, code: int, domain: int = 10, text: str = "it failed") -> None:
        super().__init__(text)
        self._code, self._domain = code, domain

    def get_error_code(self) -> int:
        return self._code

    def get_error_domain(self) -> int:
        return self._domain

    def get_int1(self) -> int:
        return -1
