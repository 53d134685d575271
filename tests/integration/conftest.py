# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all of these tests."""

from __future__ import annotations

import quiet

pytest_collection_modifyitems = quiet.pytest_collection_modifyitems
pytest_runtest_call = quiet.pytest_runtest_call
