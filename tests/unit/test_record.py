# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records: what is written is read again, exactly; a file that was cut anywhere loses no more than its tail."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import memory_worlds
import pytest
import vcpu_worlds
from examples import TIMES, examples
from hypothesis import given
from hypothesis import strategies as st
from kvmsched import config, model
from kvmsched.app import bundle, cli, record, recorder
from kvmsched.app.bundle import Decided
from kvmsched.app.record import Context, Encoder, Entry, Look, Past, Span
from kvmsched.config import DaemonPolicy
from kvmsched.model import BalloonMove, Domain, Host, HostMemory, Skip, Snapshot, Vcpu
from kvmsched.passes import Tick, Turn
from kvmsched.policy.memory import MemoryHistory
from kvmsched.policy.vcpu import VcpuHistory

MIB = 1024


def first_look(rng: random.Random, guests: int = 3) -> Snapshot:
    """A host of two cells with some guests, all counters known."""
    topology = vcpu_worlds.topology(4, cells=2)
    pcpus = sorted(topology.online)
    domains = []
    for number in range(guests):
        vcpus = tuple(Vcpu(n, topology.online, rng.randrange(10**6) * 1000, 0, topology.online) for n in range(2))
        domains.append(replace(memory_worlds.domain(f"g{number}", 512, 1024, unused=100, usable=200), vcpus=vcpus))
    memory = HostMemory(8 * 1024 * MIB, 4 * 1024 * MIB, psi_some_avg10_pct=0.0)
    host = Host(
        "host", "kvm1", "qemu:///system", "QEMU", topology, dict.fromkeys(pcpus, 0), dict.fromkeys(pcpus, 0), memory
    )
    return Snapshot(1000.25, 1_700_000_000.123456, host, tuple(domains))


def next_look(now: Snapshot, rng: random.Random) -> Snapshot:
    """What might be seen five seconds later: counters grow, and now and then anything else changes."""
    domains = [_next_domain(domain, rng) for domain in now.domains]
    if rng.random() < 0.2:
        domains.append(memory_worlds.domain(f"new{rng.randrange(99)}", 256))
        domains = list({domain.uuid: domain for domain in domains}.values())
    if rng.random() < 0.1 and domains:
        domains.pop(rng.randrange(len(domains)))
    if rng.random() < 0.1:
        rng.shuffle(domains)
    host = replace(now.host, busy_ns={p: ns + rng.randrange(5000) * 10**6 for p, ns in now.host.busy_ns.items()})
    if rng.random() < 0.5 and host.memory:
        host = replace(host, memory=replace(host.memory, available_kib=rng.randrange(8 * 1024 * MIB)))
    if rng.random() < 0.1:
        host = replace(host, bound_ns=None if host.bound_ns else dict.fromkeys(host.busy_ns, 1000))
    if rng.random() < 0.2:
        cells = tuple(replace(cell, free_kib=rng.randrange(MIB)) for cell in host.topology.cells)
        host = replace(host, topology=replace(host.topology, cells=cells))
    skips = (Skip("hung", "u", "hung", "it does not answer", 5),) if rng.random() < 0.2 else ()
    step_s = rng.choice((5.0, 5.000001, 0.5, 61.7))
    return Snapshot(round(now.monotonic_s + step_s, 6), round(now.wall_s + step_s, 6), host, tuple(domains), skips)


def _next_domain(domain: Domain, rng: random.Random) -> Domain:
    vcpus = tuple(
        replace(v, time_ns=None if v.time_ns is None or rng.random() < 0.05 else v.time_ns + rng.randrange(5000) * 1000)
        for v in domain.vcpus
    )
    assert domain.balloon
    balloon = replace(domain.balloon, unused_kib=rng.choice((None, 5, 99 * MIB)), last_update_s=rng.randrange(10**6))
    if rng.random() < 0.1:
        balloon = replace(balloon, inhibitors=("vfio",), actual_kib=balloon.actual_kib + 4)
    if rng.random() < 0.1:
        vcpus = tuple(replace(vcpu, pin=frozenset({1})) for vcpu in vcpus)
    return replace(domain, vcpus=vcpus, balloon=balloon, busy=rng.choice((None, None, None, "a backup runs")))


def day(seed: int, looks: int) -> list[Snapshot]:
    rng = random.Random(seed)
    found = [first_look(rng)]
    while len(found) < looks:
        found.append(next_look(found[-1], rng))
    return found


def written(path: Path, snapshots: list[Snapshot], **more: Any) -> Path:
    file = recorder.File(str(path))
    for snapshot in snapshots:
        file.add(Entry(snapshot, Context(**more)))
    file.close()
    return path


def snapshots_of(path: Path) -> list[Snapshot]:
    return [look.snapshot for look in record.read([str(path)])]


# ---------------------------------------------------------------- round trips


@examples(4)
@given(seed=st.integers(0, 10**9))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    looks = day(seed, 12)
    assert snapshots_of(written(tmp_path_factory.mktemp("record") / "r.kvmrec.gz", looks)) == looks


@examples(3)
@given(seed=st.integers(0, 10**9), data=st.data())
def test_a_file_cut_anywhere_loses_its_tail_only(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    """As kill -9 leaves it: all that was flushed is there, and nothing is there that was not written."""
    directory = tmp_path_factory.mktemp("record")
    looks = day(seed, 12)
    file = recorder.File(str(directory / "r.kvmrec.gz"))
    flushed = []
    for number, snapshot in enumerate(looks):
        file.add(Entry(snapshot))
        if number % 4 == 3:
            file.flush()
            flushed.append((file.size, number + 1))
    file.close()
    whole = (directory / "r.kvmrec.gz").read_bytes()
    cut = data.draw(st.integers(flushed[0][0], len(whole)))
    (directory / "cut").write_bytes(whole[:cut])
    found = snapshots_of(directory / "cut")
    assert found == looks[: len(found)]
    assert len(found) >= max(count for size, count in flushed if size <= cut)


def test_a_cut_of_any_length_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    looks = day(5, 4)
    whole = written(tmp_path / "r.kvmrec.gz", looks).read_bytes()
    for length in range(0, len(whole), max(1, 116 // TIMES)):
        (tmp_path / "cut").write_bytes(whole[:length])
        try:
            found = snapshots_of(tmp_path / "cut")
        except record.RecordError as error:
            assert "\n" not in str(error) and length < 2000
        else:
            assert found == looks[: len(found)]


def test_what_stands_before_a_damage_is_read(tmp_path: Path) -> None:
    """Not only what other blocks of the disk hold: a record of hours may be one of them."""
    looks = day(8, 60)
    path = written(tmp_path / "r", looks)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 300] + b"\xff" * 300)
    lost: list[str] = []
    found = [look.snapshot for look in record.read([str(path)], lost.append)]
    assert len(found) > 20 and found == looks[: len(found)] and "the rest can't be read" in lost[0]
    path.write_bytes(whole[:30] + b"\xff" * 300)
    for read in (lambda: list(record.read([str(path)])), lambda: record.span([str(path)])):
        with pytest.raises(record.RecordError, match=f"{path}: got nothing that can be read"):
            read()


@examples(8)
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_told(tmp_path_factory: pytest.TempPathFactory, position: int, byte: int) -> None:
    path = written(tmp_path_factory.mktemp("record") / "r", day(7, 5))
    damaged = bytearray(path.read_bytes())
    damaged[position % len(damaged)] = byte
    path.write_bytes(bytes(damaged))
    try:
        list(record.read([str(path)]))
    except record.RecordError as error:
        assert "\n" not in str(error)


def test_the_steps_are_small_and_frames_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "FRAME_EVERY_S", 30.0)
    looks = [first_look(random.Random(1))]
    for number in range(1, 20):
        before = looks[-1]
        looks.append(replace(before, monotonic_s=1000.25 + 5 * number, wall_s=before.wall_s + 5))
    path = written(tmp_path / "r.kvmrec.gz", looks)
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert sum(b'"snapshots"' in line for line in lines) == 4
    assert all(len(line) < 100 for line in lines if b'"snapshots"' not in line)
    assert [look.begins for look in record.read([str(path)])].count(True) == 4


def test_another_policy_mode_or_room_begins_a_new_frame() -> None:
    encoder, looks = Encoder(), day(3, 4)
    contexts = [Context(), Context({"exclude": ["a"]}), Context({"exclude": ["a"]}, mode="act"), Context(acted=True)]
    lines = [encoder.line(Entry(look, context)) for look, context in zip(looks, contexts)]
    assert all(line.startswith('{"snapshots"') for line in lines)


# ---------------------------------------------------------------- one format


def by_hand() -> dict[str, Any]:
    return {"snapshots": [{"host": {"topology": {"pcpus": [{"id": 0}]}}, "domains": [{"name": "a"}]}] * 2}


def test_a_bundle_is_a_record_of_one_look(tmp_path: Path) -> None:
    """Also one that was written by hand, on one line or many; and one that is compressed."""
    one, many, packed = tmp_path / "one.json", tmp_path / "bundle.json", tmp_path / "bundle.json.gz"
    one.write_text(json.dumps(by_hand()))
    many.write_text(json.dumps(by_hand(), indent=1))
    packed.write_bytes(gzip.compress(many.read_bytes()))
    for path in (one, many, packed):
        (look,) = record.read([str(path)])
        assert look.begins and look.snapshot.domains[0].name == "a" and look.decided == {}
        assert [s.monotonic_s for s in look.earlier] == [look.snapshot.monotonic_s - 5]
        assert record.span([str(path)]) == Span(look.earlier[0].wall_s, look.snapshot.wall_s, 2)
        assert [(one.snapshot, one.begins) for one in record.apart([look])] == [
            (look.earlier[0], True),
            (look.snapshot, False),
        ]


def test_what_snapshot_writes_is_the_line_of_a_record_laid_out_for_people(tmp_path: Path) -> None:
    whole = replace(bundle.read(json.dumps(by_hand())), kvmsched="1.2.3", acted=True)
    (tmp_path / "bundle.json").write_text(bundle.write(whole))
    (look,) = record.read([str(tmp_path / "bundle.json")])
    (line,) = record.lines_of([look])
    assert json.loads(line) == model.to_json(whole) and look.frame == whole
    (tmp_path / "r").write_text(line + "\n")
    assert list(record.read([str(tmp_path / "r")])) == [look]
    assert record.span([str(tmp_path / "r")]) == record.span([str(tmp_path / "bundle.json")])
    validator = jsonschema.Draft7Validator(record.schema())
    for text in (line, (tmp_path / "bundle.json").read_text(), json.dumps(by_hand())):
        validator.validate(json.loads(text))


def test_the_schema_says_what_is_wrong_with_a_bundle() -> None:
    """Not that it is neither a bundle nor a step."""
    wrong = by_hand()
    wrong["snapshots"][0]["domains"][0]["nmae"] = "a"
    mistakes = list(jsonschema.Draft7Validator(record.schema()).iter_errors(wrong))
    assert mistakes and all("nmae" in mistake.message and mistake.absolute_path for mistake in mistakes)


def test_every_line_fits_the_schema(tmp_path: Path) -> None:
    jsonschema.Draft7Validator.check_schema(record.schema())
    move = BalloonMove("g0", memory_worlds.uuid_of("g0"), 1, 2, "why")
    validator = jsonschema.Draft7Validator(record.schema())
    encoder = Encoder()
    for look in day(9, 8):
        entry = Entry(look, Context(mode="act"), {"memory": Past(MemoryHistory())}, {"memory": Decided((move,))})
        validator.validate(json.loads(encoder.line(entry)))


def test_decisions_come_back_with_their_reasons_said_once(tmp_path: Path) -> None:
    looks = day(11, 4)
    moves = [BalloonMove("g0", "u", 100, 200, f"lacks {n}") for n in range(4)]
    file = recorder.File(str(tmp_path / "r"))
    for look, move in zip(looks, moves):
        file.add(Entry(look, decided={"memory": Decided((move,), (), forgot=move is moves[3])}))
    file.close()
    found = [look.decided["memory"] for look in record.read([str(tmp_path / "r")])]
    assert [one.moves[0].reason for one in found] == ["lacks 0", "", "", ""]
    assert found[3].forgot and found[0].changes == () and found[0].moves[0] == moves[0]


def test_what_was_handed_to_the_passes_comes_back(tmp_path: Path) -> None:
    looks = day(13, 3)
    pasts = {"memory": Past(MemoryHistory(level="low"), looks[0]), "vcpu": Past(VcpuHistory(number=7), looks[1])}
    (tmp_path / "r").write_text(Encoder().line(Entry(looks[2], Context(policy_hash="f00"), pasts)) + "\n")
    (look,) = record.read([str(tmp_path / "r")])
    assert look.snapshot == looks[2] and look.frame.snapshots == tuple(looks)
    assert look.frame.history.memory == MemoryHistory(level="low") and look.frame.history.vcpu == VcpuHistory(number=7)
    assert look.frame.last_s == {"memory": looks[0].monotonic_s, "vcpu": looks[1].monotonic_s}


def test_a_history_of_another_version_is_left_out_and_the_record_is_read(tmp_path: Path) -> None:
    """Which is told once, of a bundle too; who wrote one by hand is told of the mistake."""
    looks, encoder = day(1, 2), Encoder()
    entries = [
        Entry(look, Context(acted=bool(n)), {"vcpu": Past(VcpuHistory(number=7))}) for n, look in enumerate(looks)
    ]
    lines = [json.loads(encoder.line(entry)) for entry in entries]
    for data in lines:
        data["history"]["memory"] = {"level": "ok", "field_of_another_version": 1}
    (tmp_path / "r").write_text("".join(json.dumps(data, separators=(",", ":")) + "\n" for data in lines))
    (tmp_path / "bundle.json").write_text(json.dumps(lines[0], indent=1))
    for name in ("r", "bundle.json"):
        lost: dict[str, None] = {}
        look, *_others = record.read([str(tmp_path / name)], lost.setdefault)
        assert look.frame.history.memory is None and look.frame.history.vcpu == VcpuHistory(number=7)
        told = ", ".join(lost)
        assert len(lost) == 1 and told.startswith(str(tmp_path / name)) and "remembered of memory is of no use" in told
    del lines[0]["kvmsched"]
    (tmp_path / "bundle.json").write_text(json.dumps(lines[0], indent=1))
    with pytest.raises(record.RecordError, match="field_of_another_version"):
        list(record.read([str(tmp_path / "bundle.json")]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty file"),
        ("{}", "missing snapshots"),
        ('{"us":1,"wall_us":1}\n', "us"),
        ('FRAME\n{"us":0,"wall_us":1}\nFRAME\n', "line 2: us: got 0"),
        ('FRAME\n{"us":1,"wall_us":1,"busy_us":[-1,0,0,0]}\nFRAME\n', "line 2: got a counter that comes to -1000"),
        ('FRAME\n{"us":1,"wall_us":1,"uuids":["x","x"]}\nFRAME\n', "line 2: uuids: one stands there twice"),
        ('{"snapshots":[],"format":9}\n', "format: got 9"),
        ('{"snapshots":[],"format":1}\n', "at least one"),
        ("FRAME\n[]\nFRAME\n", "line 2: got list"),
        ('FRAME\n{"us":1}\nFRAME\n', "line 2: got a step with the keys us"),
        ('FRAME\n{"us":1,"wall_us":1,"ran_us":[1]}\nFRAME\n', "line 2: a column is too short"),
        ('FRAME\n{"us":1,"wall_us":1,"ran_us":["a"]}\nFRAME\n', "line 2: got a column"),
        ('FRAME\n{"us":1,"wall_us":1,"memory":{"rsss":[1]}}\nFRAME\n', "line 2: memory: unknown column rsss"),
        ('FRAME\n{"us":1,"wall_us":1,"host":{"x":1}}\nFRAME\n', "line 2: host.x: unknown"),
        ('FRAME\n{"us":1,"wall_us":1,"uuids":["x"]}\nFRAME\n', "line 2"),
        ('FRAME\n{"us":0.5,"wall_us":1}\nFRAME\n', "line 2: us: got 0.5"),
        ('FRAME\n{"us":true,"wall_us":1}\nFRAME\n', "line 2: us: got True"),
        ("FRAME\nPAST\nPAST\nFRAME\n", "line 3: wall_us: got a clock that comes to -"),
        ('FRAME\n{"us":1,"wall_us":1,"ran_us":[1,1,1,1,1,1,1]}\nFRAME\n', "line 2: a column is too long"),
        ('FRAME\n{"us":1,"wall_us":1,"host":DEEP}\nFRAME\n', "line 2"),
        ('{"snapshots":[{"wall_s":9e17,"host":{"topology":{"pcpus":[]}},"domains":[]}]}', "wall_s: got 9e\\+17"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    frame = Encoder().line(Entry(day(1, 1)[0]))
    deep = '{"memory":' + "[" * 700 + "]" * 700 + "}"
    past = '{"us":1,"wall_us":-1000000000000000}'
    (tmp_path / "r").write_text(text.replace("FRAME", frame).replace("DEEP", deep).replace("PAST", past))
    with pytest.raises(record.RecordError, match=words.replace("[", r"\[")) as caught:
        list(record.read([str(tmp_path / "r")]))
    assert "\n" not in str(caught.value)


def test_the_oldest_format_stays_readable() -> None:
    """Files that the first version wrote: whoever changes the format keeps this test, and adds others."""
    looks = list(record.read([str(Path(__file__).with_name("record_1.kvmrec.gz"))]))
    assert len(looks) == 4 and looks[-1].snapshot.domains[0].name == "g0" and looks[0].decided["memory"].moves
    (look,) = record.read([str(Path(__file__).with_name("bundle_1.json"))])
    assert look.snapshot.domains[2].name == "brown-214" and len(look.earlier) == 1
    assert look.frame.history.memory and look.frame.history.vcpu and look.frame.policy["vcpu"] == {"hold": 1}


# ---------------------------------------------------------------- the daemon's own


def tick(snapshot: Snapshot) -> Tick:
    return Tick(snapshot)


def turns() -> dict[str, Turn[Any, Any]]:
    policy = config.Policy()
    return {"memory": Turn(policy.memory, MemoryHistory()), "vcpu": Turn(policy.vcpu, VcpuHistory())}


def test_the_daemon_s_files_stay_within_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 48 * 1024
    monkeypatch.setattr(recorder, "_FLUSH_S", 0.0)
    monkeypatch.setattr(recorder, "_LEAST_PART", 8 * 1024)
    daemons = recorder.Recorder()
    daemons.open(DaemonPolicy(record=str(tmp_path / "kept"), record_size_kib=most // 1024))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/notes.txt").write_text("a person's")
    rng = random.Random(1)
    now = first_look(rng, guests=20)
    for _turn in range(75):
        now = next_look(now, rng)
        daemons.take(tick(now), Context(), turns())
        kept = list((tmp_path / "kept").glob("*.gz"))
        assert sum(file.stat().st_size for file in kept) <= most
    daemons.close()
    assert len(kept) > 2 and (tmp_path / "kept/notes.txt").exists()
    looks = list(record.read([str(tmp_path / "kept")]))
    assert looks[-1].snapshot == now and 15 < len(looks) < 75


def test_a_disk_that_is_full_is_told_once_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemons = recorder.Recorder()
    daemons.open(DaemonPolicy(record=str(tmp_path / "no/kept")))
    (tmp_path / "no").write_text("a file where its directory should be")
    looks = day(2, 3)
    with pytest.raises(OSError):
        daemons.take(tick(looks[0]), Context(), turns())
    daemons.take(tick(looks[1]), Context(), turns())
    (tmp_path / "no").unlink()
    monkeypatch.setattr(recorder.time, "monotonic", lambda: 1e9)
    daemons.take(tick(looks[2]), Context(), turns())
    daemons.close()
    assert [look.snapshot for look in record.read([str(tmp_path / "no/kept")])] == looks[2:]


def test_no_record_is_kept_unless_asked_for(tmp_path: Path) -> None:
    daemons = recorder.Recorder()
    daemons.open(DaemonPolicy())
    daemons.take(tick(day(2, 1)[0]), Context(), turns())
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("another's")
    (tmp_path / "r").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        recorder.File(str(tmp_path / "r"))
    bundle_path = Path(__file__).with_name("bundle_1.json")
    assert cli.main(["record", "--from", str(bundle_path), str(tmp_path / "r")]) == 2
    assert (tmp_path / "r").is_symlink()
    assert (tmp_path / "other").read_text() == "another's"


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_LONGEST_LINE", 1024 * 1024)
    pack = zlib.compressobj(9, wbits=31)
    (tmp_path / "r").write_bytes(pack.compress(b"[" * 4 * 1024 * 1024) + pack.flush())
    with pytest.raises(record.RecordError, match="a line of more than"):
        list(record.read([str(tmp_path / "r")]))
    pack = zlib.compressobj(9, wbits=31)
    (tmp_path / "r").write_bytes(pack.compress(b"{\n" * 2 * 1024 * 1024) + pack.flush())
    with pytest.raises(record.RecordError, match="a bundle of more than"):
        list(record.read([str(tmp_path / "r")]))


def test_a_look_knows_its_frame() -> None:
    frame = bundle.Bundle((day(1, 1)[0],))
    assert Look(frame.snapshots[0], frame, True, {}).frame.policy == {} and model.to_json(frame)["mode"] == ""


# ---------------------------------------------------------------- names out


def test_an_anonymised_record_has_no_names_and_the_same_figures(tmp_path: Path) -> None:
    looks = day(21, 8)
    uuid = memory_worlds.uuid_of("g0")
    move = BalloonMove("g0", uuid, 100, 200, "g0 lacks /srv/acme/x")
    past = Past(VcpuHistory(waited={f"{uuid}/1/0": 3}, resting={f"{uuid}/1/0": 9.0}), looks[0])
    file = recorder.File(str(tmp_path / "r"))
    policy = {"exclude": ["g1"], "daemon": {"mode": "grow-only", "metrics_textfile": "/srv/acme/k.prom"}}
    for look in looks:
        file.add(Entry(look, Context(policy), {"vcpu": past}, {"memory": Decided((move,))}))
    file.close()
    lines = list(record.anonymised(lambda: record.read([str(tmp_path / "r")])))
    text = "\n".join(lines)
    names = {domain.name for look in looks for domain in look.domains}
    assert not any(f'"{name}"' in text for name in names) and uuid not in text and "acme" not in text
    assert "kvm1" not in text
    recorder.write_lines(str(tmp_path / "a"), lines)
    found = list(record.read([str(tmp_path / "a")]))
    assert [look.snapshot.host.busy_ns for look in found] == [look.host.busy_ns for look in looks]
    assert [[d.balloon for d in look.snapshot.domains] for look in found] == [
        [d.balloon for d in s.domains] for s in looks
    ]
    assert found[0].frame.policy["daemon"] == {"mode": "grow-only"} and found[0].frame.policy["exclude"][0] in text
    assert found[0].decided["memory"].moves[0].domain == found[0].snapshot.domains[0].name


def test_records_of_several_hosts_are_anonymised_together(tmp_path: Path) -> None:
    looks = day(23, 2)
    moved = [replace(look, host=replace(look.host, uuid="other", name="kvm2")) for look in looks]
    told = [replace(look, skips=(Skip("g0", "u", "hung", "kvm1 and kvm2 do not answer", 5),)) for look in moved]
    paths = [str(written(tmp_path / str(n), looks, policy_hash="f00")) for n, looks in enumerate((looks, told))]
    lines = list(record.anonymised(lambda: record.read(paths)))
    assert not any(name in "".join(lines) for name in ("kvm1", "kvm2", "other", "f00"))
    (tmp_path / "a").write_text("".join(f"{line}\n" for line in lines))
    assert [look.snapshot.host.uuid for look in record.read([str(tmp_path / "a")])] == ["host-1"] * 2 + ["host-2"] * 2


def test_several_records_become_one(tmp_path: Path) -> None:
    looks = day(22, 9)
    paths = [str(written(tmp_path / f"{n}{record.SUFFIX}", looks[n : n + 3])) for n in (0, 3, 6)]
    recorder.write_lines(str(tmp_path / "all"), record.lines_of(record.read(paths)))
    assert snapshots_of(tmp_path / "all") == looks == [look.snapshot for look in record.read([str(tmp_path)])][-9:]
