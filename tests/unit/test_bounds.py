# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others write has bounds: CPU sets, records, owners' words, XML, and what is shown of all that."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from kvmsched import baseline, libvirt_xml
from kvmsched.baseline import OWNER_URI, STATE_URI
from kvmsched.model import PinRecord, Record
from kvmsched.units import LONGEST_LINE, CpuSets, escaped, format_cpuset, one_line, parse_cpuset, printable, shown

ONLINE = frozenset({0, 1, 2, 3})
# C0, DEL, C1, a line and a paragraph separator, bidirectional ones, a byte order mark, half of a surrogate pair.
NASTY = "\x00\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066\ufeff\ud800"


def test_no_cpu_set_costs_more_than_its_text_is_long() -> None:
    assert parse_cpuset(",".join(["0-16383"] * 8000)) == frozenset(range(16384))
    assert parse_cpuset("0-7,^2-5,3") == {0, 1, 3, 6, 7}
    widest = format_cpuset(range(0, 16384, 2))
    assert len(parse_cpuset(widest)) == 8192, "the longest text that says something can be read"
    with pytest.raises(ValueError, match="of at most 65536 characters"):
        parse_cpuset("0," * 40000)


def test_all_cpu_sets_of_one_document_name_a_bounded_number() -> None:
    read = CpuSets()
    assert all(len(read("0-16383")) == 16384 for _turn in range(1000)), "the same text costs nothing more"
    for first in (1, 2, 3):
        read(f"{first}-16383")
    with pytest.raises(ValueError, match="name more than 65536 CPUs"):
        for first in range(4, 10):
            read(f"{first}-16383")


def stored(record: str) -> ET.Element:
    return ET.fromstring(record)


def test_a_record_beyond_any_of_ours_is_damaged() -> None:
    pins = "".join(
        f'<pin thread="vcpu" id="{n}" when_s="1" original="0" previous="0" intended="1"/>' for n in range(9999)
    )
    for inside in (pins, f'<memory reach_kib="{"1 " * 200000}"/>'):
        with pytest.raises(ValueError, match=r"record is damaged \(a record of .* allowed: 262144"):
            baseline.decode(stored(f'<state version="1" host="h" domain="1">{inside}</state>'))
    wide = "".join(
        f'<pin thread="vcpu" id="{n}" when_s="1" original="{n}-16383" previous="0" intended="1"/>' for n in range(99)
    )
    with pytest.raises(ValueError, match="name more than 65536 CPUs"):
        baseline.decode(stored(f'<state version="1" host="h" domain="1">{wide}</state>'))


def test_what_could_not_be_read_again_is_not_written() -> None:
    odd = frozenset(range(0, 16384, 2))
    fits = Record("host", 1, pins=tuple(PinRecord("vcpu", n, odd, odd, odd, 1) for n in range(1)))
    assert baseline.decode(stored(baseline.encode(fits))) == fits
    pins = tuple(PinRecord("vcpu", n, odd, odd, odd, 1) for n in range(4))
    with pytest.raises(ValueError, match="allowed: 262144"):
        baseline.encode(Record("host", 1, pins=pins))


def test_what_a_damaged_record_says_is_cut() -> None:
    for text in (f'<state version="{"9" * 99999}"/>', f'<state version="1" host="h" domain="{"x" * 99999}"/>'):
        with pytest.raises(ValueError, match="its record") as caught:
            baseline.decode(stored(text))
        assert len(str(caught.value)) < 300


def owned(attributes: str, inside: str = "") -> libvirt_xml.DomainDefinition:
    text = f'<k:policy xmlns:k="{OWNER_URI}" {attributes}>{inside}</k:policy>'
    return libvirt_xml.parse_domain(f"<domain><metadata>{text}</metadata></domain>", ONLINE)


@pytest.mark.parametrize(
    "attributes",
    [
        f'floor="{"1" * 999999}"',
        f'{"f" * 99999}="1G"',
        " ".join(f'a{n}="1"' for n in range(9999)),
    ],
    ids=["value", "name", "number"],
)
def test_an_owners_word_is_short(attributes: str) -> None:
    owner = owned(f'memory="ignore" {attributes}').owner
    assert owner.settings["memory"] == "ignore", "what can be read holds"
    assert owner.error and "allowed: at most 32 attributes of at most 64 characters" in owner.error
    assert len(owner.error) < 200 and sum(map(len, owner.settings)) < 2048


def test_an_owners_element_is_cut() -> None:
    error = owned("", f"<{'e' * 9999}/>").owner.error
    assert error and error.endswith("allowed: attributes only") and len(error) < 100


def test_one_record_of_a_domain_is_read() -> None:
    """libvirt keeps one of each namespace. Reading thousands would cost as much as nobody may ask for."""
    records = f'<k:state xmlns:k="{STATE_URI}" version="1" host="{{}}" domain="1"/>'
    text = f"<domain><metadata>{''.join(records.format(n) for n in range(3))}</metadata></domain>"
    record = libvirt_xml.parse_domain(text, ONLINE).record
    assert record is not None and record.host_uuid == "0"


def test_one_text_of_each_domain_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = libvirt_xml.Parsed()
    read: list[str] = []
    whole = libvirt_xml.parse_domain
    monkeypatch.setattr(libvirt_xml, "parse_domain", lambda text, online: read.append(text) or whole(text, online))
    texts = [f"<domain><memory>{size}</memory></domain>" for size in range(100)]
    for text in texts:
        assert parsed.live("u1", text, ONLINE) is parsed.live("u1", text, ONLINE)
        parsed.inactive("u1", text)
    assert read == texts and len(parsed._live) == len(parsed._inactive) == 1
    parsed.live("u1", texts[-1], frozenset({0}))
    assert len(read) == 101, "on other CPUs it means something else"
    parsed.keep({"u2"})
    assert not parsed._live and not parsed._inactive


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        10**5000,
        [[["x" * 99] * 99] * 99] * 99,
        dict.fromkeys(range(999), "x" * 999),
        {1: 10**5000},
        b"x" * 999,
    ],
    ids=["text", "number", "lists", "mapping", "number inside", "bytes"],
)
def test_a_value_is_cut_before_it_is_written(value: object) -> None:
    assert len(shown(value)) <= 60


def test_what_is_short_is_shown_as_it_is() -> None:
    assert shown("db*") == "'db*'" and shown(["a", 1]) == "['a', 1]" and shown(1.5) == "1.5"


def test_a_line_is_one_and_bounded() -> None:
    assert one_line("a\n b\tc") == "a b c"
    assert len(one_line("x" * 10**6)) == 300 and len(printable("x" * 10**6)) == LONGEST_LINE


def test_nothing_shown_does_more_than_stand_there() -> None:
    assert printable(f"a{NASTY}b") == "a" + "?" * len(NASTY) + "b"
    assert printable("Grüße 日本 🙂") == escaped("Grüße 日本 🙂") == "Grüße 日本 🙂"


def test_in_a_document_nothing_is_lost() -> None:
    text = escaped(json.dumps({"name": NASTY, "tag": "\U000e0041"}, ensure_ascii=False, indent=1))
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text) == {"name": NASTY, "tag": "\U000e0041"}
