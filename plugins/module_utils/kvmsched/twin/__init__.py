# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The twin of a recorded host, on which other moves are made: what would follow from them. Pure, as the policies are.

The demand that was seen is kept: what a vCPU wanted, what a guest used. Read in this order: cpu and memory (what moves
change), host (a host over time), score (what came of it), errors (how well this tells what really followed).
What it does not know stands in docs/replay.md.
"""
