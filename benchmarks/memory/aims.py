# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the figures should be: the aims of the default, the faults that each world was made for, and what "red" is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterable, Optional, Sequence

from . import worlds
from .figures import Row


@dataclass(frozen=True)
class Aim:
    """One aim and its figure. ``guards``: the command fails where it is not met."""

    text: str
    figure: str
    met: bool
    guards: bool


# Aims that are met today: whoever breaks one of these is told by the exit status.
GUARDED = frozenset({"harm fits", "overrun", "rest", "gift", "most", "one pass harm"})


def judge(rows: Sequence[Row], costs: Sequence[dict[str, float]]) -> list[Aim]:
    """Every aim that the rows can tell of."""
    by = {(row.world, row.tool): row for row in rows}
    names = list(dict.fromkeys(row.world for row in rows))
    auto = [by[name, "auto"] for name in names if (name, "auto") in by]
    fits = [row for row in auto if row.fits]
    tight = [row for row in auto if not row.fits and not row.asked]
    alone = {name: by[name, "untouched"] for name in names}
    found = [
        _none("auto: harmed guests where all fits", "harm fits", fits, lambda row: row.harmed),
        _none("auto: kills beyond untouched", "auto kills", auto, lambda row: row.killed_more),
        _share("auto: harmed at most a fifth of saved elsewhere", "harm tight", tight),
        _none("auto: less relief than an alike guest of less weight", "weights",
              [row for row in auto if row.world == "weights"], lambda row: row.unkept),
        _none("auto: harmed guests of more weight than a saved one", "heavier", auto, lambda row: row.heavier),
        _none("auto: host overrun beyond untouched, s", "overrun", auto,
              lambda row: max(0, row.overrun_s - alone[row.world].overrun_s)),
        _starved([row for row in auto if not row.short and not row.asked], alone),
        _most("auto: commands per guest and hour at rest, hours 2 to 4 and 5, at most 0.5", "rest",
              [r for r in auto if r.world != "noise"], lambda row: row.rest_moves, 0.5),
        _most("auto: gift over lacking, at most 1.3", "gift", [r for r in auto if r.world == "one_reading"],
              lambda row: row.gift, 1.3),
        _most("auto: half of what waste covers after a pass, 12 s", "half", [r for r in auto if r.world == "cover"],
              lambda row: row.half_s, 12),
        _most("auto: 90 % of it after four, 27 s", "most", [r for r in auto if r.world == "cover"],
              lambda row: row.most_s, 27),
        _least("auto: idle memory back with the host after hours, at least 70 %", "idle back",
               [r for r in auto if r.world in ("idle_offered", "idle_seen")], lambda row: row.idle_back_pct, 70),
        _none("one pass: harmed guests where all fits", "one pass harm",
              [by[r.world, "one pass"] for r in fits if (r.world, "one pass") in by], lambda row: row.harmed),
        _none("one pass: kills beyond untouched", "one pass kills",
              [by[name, "one pass"] for name in names if (name, "one pass") in by], lambda row: row.killed_more),
        _cost(costs),
    ]  # fmt: skip
    return [aim for aim in found if aim is not None]


Figure = Callable[[Row], Optional[float]]


def _none(text: str, key: str, rows: Sequence[Row], figure: Figure) -> Optional[Aim]:
    if not rows:
        return None
    broken = [(row.world, figure(row) or 0) for row in rows if figure(row)]
    told = ", ".join(f"{world} {value:g}" for world, value in broken)
    return Aim(
        text, f"{sum(value for _world, value in broken):g}" + (f" ({told})" if told else ""), not broken, key in GUARDED
    )


def _most(text: str, key: str, rows: Sequence[Row], figure: Figure, limit: float) -> Optional[Aim]:
    known = [(value, row.world) for row in rows if (value := figure(row)) is not None]
    if not known:
        return None
    value, world = max(known)
    return Aim(text, f"{value:.2f} ({world})", value <= limit, key in GUARDED)


def _least(text: str, key: str, rows: Sequence[Row], figure: Figure, limit: float) -> Optional[Aim]:
    known = [(value, row.world) for row in rows if (value := figure(row)) is not None]
    if not known:
        return None
    value, world = min(known)
    return Aim(text, f"{value:.0f} ({world})", value >= limit, key in GUARDED)


def _share(text: str, key: str, rows: Sequence[Row]) -> Optional[Aim]:
    if not rows:
        return None
    broken = [f"{row.world} {row.harmed} of {row.saved}" for row in rows if row.harmed * 5 > row.saved]
    harmed, saved = sum(row.harmed for row in rows), sum(row.saved for row in rows)
    return Aim(text, f"{harmed} of {saved}" + (f"; {', '.join(broken)}" if broken else ""), not broken, key in GUARDED)


def _starved(rows: Sequence[Row], alone: dict[str, Row]) -> Optional[Aim]:
    if not rows:
        return None
    broken = [
        f"{row.world} {row.starved_s / alone[row.world].starved_s:.2f}"
        for row in rows
        if alone[row.world].starved_s and row.starved_s > 0.25 * alone[row.world].starved_s
    ]
    broken += [
        f"{row.world} {row.starved_s} s of 0" for row in rows if row.starved_s and not alone[row.world].starved_s
    ]
    whole = sum(row.starved_s for row in rows) / max(1, sum(alone[row.world].starved_s for row in rows))
    text = "auto: starved time at most a quarter of untouched, where the host has enough"
    return Aim(text, f"{whole:.2f}" + (f"; {', '.join(broken)}" if broken else ""), not broken, "starved" in GUARDED)


def _cost(costs: Sequence[dict[str, float]]) -> Optional[Aim]:
    thousand = next((row for row in costs if row["domains"] == 1000), None)
    if thousand is None:
        return None
    return Aim(
        "decide() for 1,000 domains under 20 ms", f"{thousand['ms']:.1f} ms", thousand["ms"] < 20, "cost" in GUARDED
    )


def show(aims: Iterable[Aim]) -> None:
    print("the aims")
    for aim in aims:
        print(f"  {'met  ' if aim.met else 'MISSED' if not aim.guards else 'BROKEN'}  {aim.text}: {aim.figure}")


# ---------------------------------------------------------------- the faults of the first default


def show_faults(rows: Sequence[Row]) -> None:
    """Which world shows which fault, by the reclaim that was the default when they were found: eager."""
    by = {(row.world, row.tool): row for row in rows}
    print("the faults that each world was made for: untouched -> eager (the first default) -> auto")
    for name in dict.fromkeys(row.world for row in rows):
        shows = worlds.KINDS[name].shows
        if not shows or (name, "eager") not in by:
            continue
        alone, eager, auto = by[name, "untouched"], by[name, "eager"], by.get((name, "auto"))
        cells = [
            f"{title} " + " -> ".join(f"{getattr(row, key):.{digits}f}" for row in (alone, eager, auto) if row)
            for title, key, digits in FAULTS.get(name, (("harmed", "harmed", 0), ("kills", "kills", 0)))
            if all(getattr(row, key) is not None for row in (alone, eager, auto) if row)
        ]
        if eager.gift is not None and name in ("one_reading", "deaf"):
            cells.append(f"gift {eager.gift:.2f}" + (f" -> {auto.gift:.2f}" if auto and auto.gift is not None else ""))
        if name == "person" and eager.overruled_s is not None:
            now = "never" if auto is None or auto.overruled_s is None else f"{auto.overruled_s:.0f} s"
            cells.append(f"overruled after {eager.overruled_s:.0f} s -> {now}")
        print(f"  {shows:8}{name:14}{'; '.join(cells)}")
    print()


FAULTS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "cache": (("harmed", "harmed", 0), ("reads GiB", "reads_gib", 0)),
    "caches": (("harmed", "harmed", 0), ("reads GiB", "reads_gib", 0), ("kills", "kills", 0)),
    "one_reading": (),
    "promise": (("harmed", "harmed", 0), ("starved s", "starved_s", 0), ("moves", "moves", 0)),
    "noise": (("moves per guest-hour", "rest_moves", 1),),
    "rest": (("moves per guest-hour", "rest_moves", 1), ("kills", "kills", 0)),
    "silent": (("starved s", "starved_s", 0),),
    "weights": (("weights not kept", "unkept", 0),),
    "person": (),
    "zfs": (("harmed", "harmed", 0), ("moves", "moves", 0), ("owed GiB", "owed_gib", 1)),
    "cell": (("starved s", "starved_s", 0),),
    "packed": (("harmed", "harmed", 0), ("back GiB", "returned_gib", 1), ("reads GiB", "reads_gib", 0)),
}


# ---------------------------------------------------------------- what red is

# The worlds that each rule of the policy is for; a rule without an entry is tried on all.
WORLDS_OF: dict[str, tuple[str, ...]] = {
    "fresh": ("resets", "slow_statistics", "late_driver", "silent"),
    "stuck": ("deaf", "ignored"),
    "promises": ("promise", "host_swap", "new_guest"),
    "futile": ("keeps",),
    "rise": ("silent", "cover", "fleet", "antiphase"),
    "one_gift": ("one_reading",),
    "two_rises": ("noise", "rest"),
    "useful": ("promise", "promised", "fleet"),
    "danger": ("packed", "login", "hung", "zfs"),
    "keep": ("debt", "cover", "expander"),
    "debts": ("debt", "upgraded", "daemon_away"),
    "survival": ("promise", "weights", "new_guest"),
    "usable": ("mute", "tmpfs"),
    "mute": ("silent",),
    "person": ("person",),
    "bounds": ("liar",),
    "answers": ("ignored", "deaf"),
    "caches": ("zfs", "cell"),
    "slow": ("slow_statistics", "slow_donors"),
    "high": ("throttled",),
    "locked": ("pinned", "keeps"),
    "rooms": ("cgroup",),
    "bottomless": ("expander",),
    "eager": ("burst", "cache", "rest"),
    "lazy": ("packed", "debt", "zfs"),
}

# Figure, how much more of it (as a factor and beside that) is worse, and how grave it is.
_RED = (
    ("killed_more", 1.0, 0.5, 1000.0),
    ("harmed", 1.1, 0.5, 100.0),
    ("overrun_s", 1.1, 2.0, 50.0),
    ("unkept", 1.0, 0.5, 50.0),
    ("starved_s", 1.15, 20.0, 10.0),
    ("reads_gib", 1.1, 1.0, 5.0),
    ("rest_moves", 1.5, 0.25, 5.0),
    ("gift", 1.2, 0.1, 5.0),
    ("owed_gib", 1.2, 0.3, 3.0),
    ("half_s", 1.3, 3.0, 3.0),
    ("most_s", 1.3, 3.0, 3.0),
    ("reserve_s", 1.3, 30.0, 1.0),
)


def redder(row: Row, before: Row) -> list[dict[str, Any]]:
    """The figures of *row* that are worse than those of *before*, by more than chance."""
    found = []
    for figure, factor, beside, weight in _RED:
        now, then = getattr(row, figure), getattr(before, figure)
        if now is None or now <= (then or 0.0) * factor + beside:
            continue
        found.append({"figure": figure, "before": then or 0.0, "after": now, "weight": weight})
    if row.overruled_s is not None and (before.overruled_s is None or row.overruled_s < before.overruled_s / 2):
        before_s = float("inf") if before.overruled_s is None else before.overruled_s
        found.append({"figure": "overruled_s", "before": before_s, "after": row.overruled_s, "weight": 20.0})
    if row.world == "rest" and row.returned_gib < before.returned_gib - 0.1:
        ratchet = {"before": -before.returned_gib, "after": -row.returned_gib}
        found.append({"figure": "ratchet_gib", **ratchet, "weight": 4.0})
    back, was = row.idle_back_pct, before.idle_back_pct
    if row.world.startswith("idle") and back is not None and was is not None and back < was - 20:
        found.append({"figure": "idle_back_pct", "before": was, "after": back, "weight": 2.0})
    return found
