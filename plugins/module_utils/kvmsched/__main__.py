# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 -m kvmsched``, as it was called in a checkout so far. Galaxy refuses the name, so no release holds it."""

from __future__ import annotations

if __name__ == "__main__":
    from .app.cli import main

    raise SystemExit(main())
