# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated placement problems: seeded, so that every run of the benchmark sees the same ones."""

from __future__ import annotations

import random

from kvmsched.policy.vcpu.problem import Problem, kappa

DISTRIBUTIONS = ("uniform", "bimodal", "lognormal")


def loads(rng: random.Random, distribution: str, count: int) -> list[float]:
    """*count* vCPU loads in whole thousandths of a pCPU, so that an integer solver sees the very same numbers."""
    draw = {
        "uniform": lambda: rng.uniform(0.01, 1.0),
        "bimodal": lambda: rng.uniform(0.75, 1.0) if rng.random() < 0.25 else rng.uniform(0.02, 0.2),
        "lognormal": lambda: min(1.0, rng.lognormvariate(-2.2, 1.0)),
    }[distribution]
    return [max(1, round(1000 * draw())) / 1000 for _each in range(count)]


def plain(rng: random.Random, distribution: str, pcpus: int, vcpus: int) -> Problem:
    """vCPUs of domains of their own on random pCPUs, all equal and free for all."""
    return Problem(
        capacity=[1] * pcpus,
        fixed=[0.0] * pcpus,
        mates=[()] * pcpus,
        kappa=[0.0] * pcpus,
        load=loads(rng, distribution, vcpus),
        now=[rng.randrange(pcpus) for _each in range(vcpus)],
        owner=list(range(vcpus)),
        reach=[0] * vcpus,
        classes=[list(range(pcpus))],
        stays=[False] * vcpus,
    )


def numa(rng: random.Random, distribution: str, pcpus: int, vcpus: int, cells: int = 4, per_domain: int = 4) -> Problem:
    """SMT pairs, *cells* NUMA cells, domains of *per_domain* vCPUs that stay in one cell and on pCPUs of their own."""
    size = pcpus // cells
    cell_of = [domain % cells for domain in range(vcpus // per_domain)]
    return Problem(
        capacity=[1] * pcpus,
        fixed=[0.0] * pcpus,
        mates=[(b ^ 1,) for b in range(pcpus)],
        kappa=[kappa(2)] * pcpus,
        load=loads(rng, distribution, vcpus),
        now=[cell_of[v // per_domain] * size + rng.randrange(size) for v in range(vcpus)],
        owner=[v // per_domain for v in range(vcpus)],
        reach=[cell_of[v // per_domain] for v in range(vcpus)],
        classes=[list(range(c * size, (c + 1) * size)) for c in range(cells)],
        stays=[False] * vcpus,
    )
