# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Import libvirt's binding for the files of this layer; None where it is not installed."""

from __future__ import annotations

try:
    import libvirt
except ImportError:  # the faces say which package is missing
    libvirt = None

__all__ = ["libvirt"]
