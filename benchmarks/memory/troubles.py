# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Worlds in which drivers, statistics, hosts or the daemon itself do not do what one would like."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from .drawing import RATES, demand, idle, kind, plain, told, wave
from .faults import packed
from .host import GIB, Spec, World

# ---------------------------------------------------------------- drivers and statistics


@kind()
def slow_statistics(rng: Random, seed: int) -> World:
    """Six guests of 4 to 16G whose statistics come every 15 to 60 s, on a host with room; two have swap and lack 10
    to 25 % of their size, the others burst within their size."""
    seconds, guests = 1800, []
    for i in range(6):
        size = rng.choice((4, 8, 16)) * GIB
        used = size * rng.uniform(0.2, 0.4)
        lacks = i < 2
        more = [(400, seconds, size * rng.uniform(0.1, 0.25))] if lacks else _bursts(rng, seconds, size * 0.35)
        first = used + 300 if lacks else size
        guests.append(
            Spec(
                f"g{i}", demand(rng, seconds, used, 10, more), size, first, rate=rng.choice(RATES), idle=used,
                swap=4 * GIB if lacks else 0.0, **plain(rng, stats_s=rng.choice((15, 30, 60))),
            )
        )  # fmt: skip
    return World("slow_statistics", seed, seconds, tuple(guests), 1.2 * sum(g.size for g in guests) + 4 * GIB)


@kind()
def slow_donors(rng: Random, seed: int) -> World:
    """Five guests of 4 to 16G without swap whose statistics come every 15 to 60 s burst by 90 % of what they do not
    use. Before each burst another one with swap, that tells every 5 s, comes to lack 2 to 4G; the host has less."""
    seconds = 1800
    guests = []
    for i in range(5):
        size = rng.choice((4, 8, 16)) * GIB
        used = size * rng.uniform(0.2, 0.4)
        wanted = demand(rng, seconds, used, 10, _bursts(rng, seconds, 0.9 * (size - used)))
        slow = plain(rng, stats_s=rng.choice((15, 30, 60)))
        guests.append(Spec(f"g{i}", wanted, size, size, rate=rng.choice(RATES), idle=used, **slow))
    lacks = [(begin, begin + 150, rng.uniform(2, 4) * GIB) for begin in range(400, seconds - 200, 400)]
    hog = Spec(
        "hog", demand(rng, seconds, 2 * GIB, 10, lacks), 8 * GIB, 2.5 * GIB, rate=200, idle=2 * GIB, swap=4 * GIB,
        **plain(rng),
    )  # fmt: skip
    total = 1.06 * sum(guest.size + 90 for guest in (*guests, hog)) + 3 * GIB
    return World("slow_donors", seed, seconds, (*guests, hog), total, short=True)


def _bursts(
    rng: Random, seconds: int, size: float, first: int = 500, gap: int = 400
) -> list[tuple[float, float, float]]:
    """Two minutes of *size* more, now and then."""
    return [(start + rng.randrange(60), start + 150, size) for start in range(first, seconds - 150, gap)]


@kind()
def late_driver(rng: Random, seed: int) -> World:
    """Four guests with swap in waves of 5 to 10 minutes; while they are short of memory their drivers and
    statistics answer 5 to 20 s late. Two more without swap burst within their sizes. The host has a fifth of its
    memory free."""
    seconds = 1500
    guests = [
        Spec(
            f"late{i}", wave(rng, seconds, 1.2 * GIB, 3.2 * GIB, rng.uniform(300, 600)), 8 * GIB, 2.6 * GIB,
            swap=4 * GIB, rate=200, lag_s=rng.randrange(5, 21), **told(rng),
        )
        for i in range(4)
    ]  # fmt: skip
    guests += _bursting(rng, seconds, 2)
    return World("late_driver", seed, seconds, tuple(guests), 1.25 * sum(g.size for g in guests) + 3 * GIB)


def _bursting(rng: Random, seconds: int, count: int, size: float = 6 * GIB, first: int = 500) -> list[Spec]:
    """Guests without swap that use a quarter of their size, and at times half of it more."""
    guests = []
    for i in range(count):
        more = _bursts(rng, seconds, size * rng.uniform(0.3, 0.5), first)
        wanted = demand(rng, seconds, size * 0.25, 10, more)
        guests.append(Spec(f"burst{i}", wanted, size, size, rate=rng.choice(RATES), idle=size * 0.25, **plain(rng)))
    return guests


def _hog(rng: Random, seconds: int, until_s: int, lacks: float) -> Spec:
    """A guest of 8G with swap that comes to lack so much after 200 s, until *until_s*."""
    wanted = demand(rng, seconds, 2 * GIB, 6, [(200, until_s, lacks + 400)])
    return Spec("hog", wanted, 8 * GIB, 2.5 * GIB, swap=6 * GIB, rate=200, **plain(rng))


@kind()
def tmpfs(rng: Random, seed: int) -> World:
    """Three guests of 8G without swap that tell no usable memory, whose caches are mostly tmpfs and shared buffers,
    on a full host; a fourth with swap comes to lack 1 to 2G."""
    seconds = 1000
    hog = _hog(rng, seconds, seconds, rng.uniform(1, 2) * GIB)
    guests = [hog]
    for i in range(3):
        shared = rng.uniform(2, 4) * GIB
        wanted = demand(rng, seconds, shared + 2 * GIB, 10)
        guests.append(
            Spec(
                f"mute{i}",
                wanted,
                8 * GIB,
                8 * GIB,
                shared=shared,
                usable=False,
                idle=GIB,
                files=0.5 * GIB,
                reads=10,
                **plain(rng),
            )
        )
    total = 2 * GIB + sum(g.size + 70 for g in guests) + 1.8 * GIB
    return World("tmpfs", seed, seconds, tuple(guests), total)


@kind()
def keeps(rng: Random, seed: int) -> World:
    """A full host on which half of the guests' balloons give back while the host keeps their memory; for odd seeds
    VmLck tells so. One guest with swap comes to lack 1 to 2G; those that keep burst without swap later."""
    seconds = 1200
    hog = _hog(rng, seconds, seconds, rng.uniform(1, 2) * GIB)
    pinned = [
        replace(guest, name=f"keeps{i}", keeps=True, locked=bool(seed % 2))
        for i, guest in enumerate(_bursting(rng, seconds, 3, first=600))
    ]
    guests = (hog, *pinned, *idle(rng, seconds, 3, touched=1.0))
    total = 2 * GIB + sum(g.size + 70 for g in guests) + 2 * GIB
    return World("keeps", seed, seconds, guests, total)


@kind()
def resets(rng: Random, seed: int) -> World:
    """Six guests of 2 to 8G on a host with room, three of them below their maximum; each is reset once or twice,
    and wants the same again within a minute."""
    seconds, guests = 1200, []
    for i in range(6):
        maximum = rng.choice((2, 4, 8)) * GIB
        used = maximum * rng.uniform(0.3, 0.5)
        times = tuple(sorted(rng.randrange(150, seconds - 100) for _each in range(rng.randrange(1, 3))))
        first = used + 500 if i % 2 else maximum
        guests.append(
            Spec(
                f"g{i}", demand(rng, seconds, used, 10), maximum, first, rate=60, idle=200, resets_s=times, **told(rng)
            )
        )
    return World("resets", seed, seconds, tuple(guests), 1.15 * sum(g.maximum for g in guests) + 3 * GIB, fits=True)


@kind()
def liar(rng: Random, seed: int) -> World:
    """A guest of 16G holds 2G and says at each reading that its counters fell, as if it booted for ever. Three others
    with swap come to lack 0.5 to 1G beside 8G free."""
    seconds = 900
    lies = Spec("liar", demand(rng, seconds, GIB), 16 * GIB, 2 * GIB, falls=True, **plain(rng))
    short = [
        Spec(
            f"short{i}", demand(rng, seconds, 2 * GIB, 8, [(150 + 100 * i, seconds, 400 + rng.uniform(0.5, 1) * GIB)]),
            8 * GIB, 2.5 * GIB, swap=4 * GIB, rate=100, **plain(rng),
        )
        for i in range(3)
    ]  # fmt: skip
    total = 2 * GIB + sum(g.size + 70 for g in (lies, *short)) + 8 * GIB
    return World("liar", seed, seconds, (lies, *short), total)


@kind()
def ignored(rng: Random, seed: int) -> World:
    """A guest of 32G whose balloon ignores all commands comes to lack 1 to 2G, with swap. Another one with swap
    comes to lack 1 to 2G after 5 minutes, beside 6 to 8G free. Three without swap burst within their sizes later."""
    seconds = 1500
    ignores = Spec(
        "ignores", demand(rng, seconds, 7.2 * GIB, 10, [(60, seconds, rng.uniform(1, 2) * GIB)]), 32 * GIB, 8 * GIB,
        swap=4 * GIB, follows_s=0, rate=50, **plain(rng),
    )  # fmt: skip
    hog = Spec(
        "hog", demand(rng, seconds, 2 * GIB, 6, [(500, seconds, rng.uniform(1, 2) * GIB + 400)]), 8 * GIB, 2.5 * GIB,
        swap=6 * GIB, rate=200, **plain(rng),
    )  # fmt: skip
    guests = (ignores, hog, *_bursting(rng, seconds, 3, first=800))
    total = 2 * GIB + 1.06 * sum(g.size + 70 for g in guests) + rng.uniform(6, 8) * GIB
    return World("ignored", seed, seconds, guests, total)


@kind()
def pinned(rng: Random, seed: int) -> World:
    """A full host of eight guests of 1.5 to 2G without swap, whose QEMUs have locked all of it: what their balloons
    give is lost. A guest with swap comes to lack 1 to 2G; the others burst within their sizes later."""
    seconds = 1200
    hog = _hog(rng, seconds, seconds, rng.uniform(1, 2) * GIB)
    others = _bursting(rng, seconds, 8, rng.uniform(1.5, 2) * GIB, first=600)
    guests = (hog, *(replace(guest, name=f"pinned{i}", keeps=True, locked=True) for i, guest in enumerate(others)))
    total = 2 * GIB + sum(g.size + 70 for g in guests) + 1.8 * GIB
    return World("pinned", seed, seconds, guests, total, short=True)


@kind()
def throttled(rng: Random, seed: int) -> World:
    """Two guests of 8G that read files of 3G, on a host with much free; 200 to 400M above their sizes stands the
    memory.high of their QEMUs. Their programs come to want a little more than is comfortable."""
    seconds, guests = 900, []
    for i in range(2):
        size = rng.uniform(3, 4) * GIB
        overhead = rng.uniform(40, 90)
        used = size - 1.2 * GIB
        wanted = demand(rng, seconds, used, 5, [(200 + 100 * i, seconds, 0.95 * GIB)])
        guests.append(
            Spec(
                f"g{i}", wanted, 8 * GIB, size, files=3 * GIB, reads=50, rate=50, stats_s=5, overhead=overhead,
                high=size + overhead + rng.uniform(200, 400),
            )
        )  # fmt: skip
    return World("throttled", seed, seconds, tuple(guests), 48 * GIB)


@kind()
def expander(rng: Random, seed: int) -> World:
    """A guest of up to 24G that fills whatever it gets, at 50 to 200 MiB/s, beside a fifth of the host free; two
    guests with swap come to lack 0.5 to 1G, two without burst within their sizes."""
    seconds = 1500
    eater = Spec(
        "expander", demand(rng, seconds, 3 * GIB), 24 * GIB, 4 * GIB, expands=True, rate=rng.uniform(50, 200),
        idle=2 * GIB, swap=2 * GIB, **plain(rng),
    )  # fmt: skip
    short = [
        Spec(
            f"short{i}", demand(rng, seconds, 2 * GIB, 8, [(500 + 200 * i, seconds, 400 + rng.uniform(0.5, 1) * GIB)]),
            8 * GIB, 2.5 * GIB, swap=4 * GIB, rate=100, **plain(rng),
        )
        for i in range(2)
    ]  # fmt: skip
    guests = (eater, *short, *_bursting(rng, seconds, 2))
    return World("expander", seed, seconds, guests, 1.25 * sum(g.size for g in guests) + 2 * GIB, short=True)


# ---------------------------------------------------------------- the daemon


@kind()
def debt(rng: Random, seed: int) -> World:
    """A full host: one guest with swap wants 2 to 3G more for 10 minutes, which five others without swap hold
    unused. A minute after that each of those bursts within its first size, at 40 to 500 MiB/s."""
    return _debt("debt", rng, seed)


@kind()
def daemon_away(rng: Random, seed: int) -> World:
    """The same, and the daemon is dead for 5 minutes when the bursts begin; for odd seeds it comes back without
    history."""
    return replace(_debt("daemon_away", rng, seed), daemon_away_s=(840, 1140), forgets=bool(seed % 2))


def _debt(name: str, rng: Random, seed: int) -> World:
    seconds = 1500
    hog = _hog(rng, seconds, 800, rng.uniform(2, 3) * GIB)
    donors = []
    for i in range(5):
        used = rng.uniform(0.2, 0.3) * 4 * GIB
        more = [(start + rng.randrange(40), start + 120, rng.uniform(0.4, 0.6) * 4 * GIB) for start in (860, 1200)]
        wanted = demand(rng, seconds, used, 10, more)
        donors.append(Spec(f"donor{i}", wanted, 4 * GIB, 4 * GIB, rate=rng.choice(RATES[:5]), idle=used, **plain(rng)))
    guests = (hog, *donors)
    total = 2 * GIB + sum(g.size + 70 for g in guests) + 1.8 * GIB
    return World(name, seed, seconds, guests, total)


@kind()
def upgraded(rng: Random, seed: int) -> World:
    """A host that eager shrank for 15 minutes goes over to this policy, with its records and without history; 10
    minutes later its guests without swap burst within their first sizes, again and again."""
    seconds = 2700
    guests = _bursting(rng, seconds, rng.randrange(4, 8), rng.choice((4, 6, 8)) * GIB, first=1500)
    total = 1.15 * sum(g.size for g in guests) + 3 * GIB
    return World("upgraded", seed, seconds, tuple(guests), total, fits=True, eager_until_s=900)


# ---------------------------------------------------------------- the host


@kind()
def host_grows(rng: Random, seed: int) -> World:
    """The host itself comes to use 10 to 20 % of its memory more for 10 minutes (a backup), within a minute; its
    guests hold half unused. Half of the hosts have swap. Afterwards the guests, without swap, burst within their
    sizes."""
    seconds = 1500
    guests = _bursting(rng, seconds, 6, first=1000)
    total = 1.12 * sum(g.size for g in guests) + 2 * GIB
    grown = total * rng.uniform(0.1, 0.2)
    other = [2 * GIB + grown * min(1.0, max(0.0, (now_s - 300) / 60)) * (now_s < 900) for now_s in range(seconds)]
    return World("host_grows", seed, seconds, tuple(guests), total, other, swap=rng.choice((0.0, 16 * GIB)))


@kind()
def host_swap(rng: Random, seed: int) -> World:
    """Six guests of 8G promised 130 % of a host with swap: four come to touch all of theirs, one after the other,
    and two hold half of theirs unused though touched."""
    seconds, guests = 1200, []
    for i in range(6):
        more = [(150 * i + rng.randrange(60), seconds, 4 * GIB)] if i < 4 else []
        wanted = demand(rng, seconds, 2.5 * GIB, 10, more)
        guests.append(
            Spec(
                f"g{i}",
                wanted,
                8 * GIB,
                8 * GIB,
                rate=rng.choice(RATES),
                idle=2 * GIB,
                touched=0.45 if i < 4 else 1.0,
                **plain(rng),
            )
        )
    return World("host_swap", seed, seconds, tuple(guests), 48 * GIB / 1.3 + 2 * GIB, swap=16 * GIB)


@kind()
def promised(rng: Random, seed: int) -> World:
    """Ten to fifteen guests of 8G without swap, promised 95 to 110 % of a host and touched to a third; one with swap
    comes to lack 60 to 400M of that. Then each of the others bursts within its first size, one after the other."""
    seconds, guests = 1200, []
    count = rng.randrange(10, 16)
    for i in range(count):
        used, begin = 0.15 * 8 * GIB, 400 + 600 * i // count
        wanted = demand(rng, seconds, used, 6, [(begin, begin + 120, rng.uniform(0.5, 0.75) * 8 * GIB)])
        guests.append(
            Spec(
                f"donor{i}",
                wanted,
                8 * GIB,
                8 * GIB,
                rate=rng.choice(RATES),
                idle=used,
                **plain(rng, touched=rng.uniform(0.25, 0.4)),
            )
        )
    lacks = demand(rng, seconds, 3.2 * GIB, 6, [(200, seconds, 0.8 * GIB - 260 + rng.uniform(60, 400))])
    guests.append(Spec("hog", lacks, 8 * GIB, 4 * GIB, rate=20, idle=3 * GIB, swap=4 * GIB, **plain(rng)))
    total = (2 * GIB + sum(g.size + 70 for g in guests)) / rng.uniform(0.95, 1.1)
    return World("promised", seed, seconds, tuple(guests), total, fits=True)


@kind()
def login(rng: Random, seed: int) -> World:
    """The packed host with swap, on which somebody logs in: within 5 s it reads 10 to 100M of its own from there."""
    begin, share = 300 + rng.randrange(300), rng.uniform(10, 100) / 5
    swap_ins = dict.fromkeys(range(begin, begin + 5), share)
    return replace(packed(rng, seed), name="login", swap=16 * GIB, swap_ins=swap_ins)


@kind()
def hung(rng: Random, seed: int) -> World:
    """The packed host, on which a guest's QEMU answers libvirt nothing for 30 to 120 s (its storage hangs)."""
    begin = 300 + rng.randrange(300)
    whole = packed(rng, seed)
    one = replace(whole.guests[0], hangs_s=(begin, begin + rng.randrange(30, 120)))
    return replace(whole, name="hung", guests=(one, *whole.guests[1:]))


@kind()
def new_guest(rng: Random, seed: int) -> World:
    """Four guests with swap come to lack 0.5 to 1.5G beside 10G free; then a new one pins 25 to 40 % of what was
    free within a second."""
    seconds = 900
    guests = [
        Spec(
            f"short{i}", demand(rng, seconds, 2 * GIB, 8, [(150, seconds, 400 + rng.uniform(0.5, 1.5) * GIB)]),
            16 * GIB, 2.5 * GIB, swap=4 * GIB, rate=100, **plain(rng),
        )
        for i in range(4)
    ]  # fmt: skip
    size = rng.uniform(2.5, 4) * GIB
    pinned = Spec(
        "pinned",
        demand(rng, seconds, size * 0.5),
        size,
        size,
        driver=False,
        inhibitors=("hostdev",),
        starts_s=400,
        locked=True,
    )
    total = 2 * GIB + sum(g.size + 70 for g in guests) + 10 * GIB
    return World("new_guest", seed, seconds, (*guests, pinned), total)


@kind()
def cgroup(rng: Random, seed: int) -> World:
    """A cgroup that four guests with swap share: three of weight 1 come to lack 300 to 500M for comfort, one of
    weight 100 without swap dies of 300 to 500M more; the cgroup has 0.5 to 1G left, the host much."""
    seconds = 600
    guests = [
        Spec(
            f"low{i}", demand(rng, seconds, 3 * GIB, 5, [(150, seconds, rng.uniform(300, 400))]), 8 * GIB,
            3 * GIB + 600, swap=2 * GIB, rate=100, room="shared", **plain(rng),
        )
        for i in range(3)
    ]  # fmt: skip
    more = [(180, seconds, 400 + rng.uniform(300, 500))]
    guests.append(
        Spec(
            "high", demand(rng, seconds, 3 * GIB, 5, more), 8 * GIB, 3 * GIB + 600, weight=100.0, swap=2 * GIB, rate=30,
            room="shared", **plain(rng),
        )
    )  # fmt: skip
    limit = sum(g.size + 75 for g in guests) + rng.uniform(500, 1000)
    return World("cgroup", seed, seconds, tuple(guests), 64 * GIB, rooms={"shared": limit}, watch="high", watch_s=195)


@kind()
def overload(rng: Random, seed: int) -> World:
    """Six guests with swap of weights 1 to 4 come to want 20 to 40 % more than the host has, all within a minute,
    for 5 minutes; two idle ones without swap burst afterwards."""
    seconds = 1200
    guests = [
        Spec(
            f"g{i}", demand(rng, seconds, 2 * GIB, 10, [(200 + rng.randrange(60), 600, rng.uniform(2.5, 4) * GIB)]),
            8 * GIB, 4 * GIB, weight=rng.choice((1.0, 2.0, 4.0)), swap=6 * GIB, rate=rng.choice(RATES[:4]),
            **plain(rng),
        )
        for i in range(6)
    ]  # fmt: skip
    guests += _bursting(rng, seconds, 2, first=700)
    total = 2 * GIB + sum(g.size + 70 for g in guests) + 3 * GIB
    return World("overload", seed, seconds, tuple(guests), total, short=True)


@kind()
def antiphase(rng: Random, seed: int) -> World:
    """Six guests with swap between 1 and 5G and back in 150 to 400 s, out of step, on a host that holds their sum
    on average with a fifth to spare; first sizes in the middle."""
    seconds = 1200
    period = rng.uniform(150, 400)
    guests = tuple(
        Spec(f"g{i}", wave(rng, seconds, GIB, 5 * GIB, period), 8 * GIB, 4 * GIB, swap=4 * GIB, rate=500, **plain(rng))
        for i in range(6)
    )
    return World("antiphase", seed, seconds, guests, 28 * GIB)
