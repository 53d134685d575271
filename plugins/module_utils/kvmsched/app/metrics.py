# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon's metrics for Prometheus: on a port of its own, and in a file for node_exporter's textfile collector.

There are about 90 series of the host and the daemon, one for each pCPU, and fourteen for each domain. At most
MOST_DOMAINS domains are told one by one. Labels are a domain's name, a pCPU's
number, and words of fixed lists; whatever else the daemon knows stands in its journal.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import re
import socket
import socketserver
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Iterable, Optional, Union

from ..config import DAEMON_MODES
from ..lock import write_atomically
from ..model import BalloonMove, FailureCode, Move, PinMove, SkipCode
from ..passes import MemoryResult, Tick, VcpuResult
from ..units import escaped
from . import exposition, process
from .exposition import Family, Gauge, Summary
from .schedule import RESOURCES
from .status import DomainStatus, Status

MOST_DOMAINS = 1000

# A scraper needs one connection for some milliseconds. Whoever holds one for longer is cut off. Where there are too
# many, who came first is cut, those that did not even ask before others, but not before it had a little time to ask:
# any local user may open as many as they like, and a scraper shall be served.
_MOST_CLIENTS = 8
_LONGEST_S = 10.0
_WAIT_S, _LEAST_S = 1.0, 0.25
# A scraper's request has some hundred bytes. http.server itself takes megabytes, and the memory stays.
_LONGEST_REQUEST = 16384

_KIB = 1024
PHASES = ("observe", "decide", "apply")
# What moves are counted by, and their failures (hypervisor.explain): a counter that begins at 0 misses no first event.
KINDS = {"memory": ("give", "take", "credit", "stats_period"), "vcpu": ("vcpu", "emulator", "iothread")}
WATCHED_SKIPS: tuple[SkipCode, ...] = ("busy", "hung")
FAILURES: tuple[FailureCode, ...] = ("gone", "busy", "hung", "denied", "unsupported", "away", "error")


# ---------------------------------------------------------------- what is counted


@dataclass
class Totals:
    """What happened since the daemon started; keys are (resource, word)."""

    passes: Counter[tuple[str, str]] = field(default_factory=Counter)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    timed: Counter[str] = field(default_factory=Counter)
    phases_s: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count_tick(self, tick: Tick) -> None:
        for resource, result in (("memory", tick.memory), ("vcpu", tick.vcpu)):
            if result is not None:
                self._count(resource, result)
        for resource in tick.failed:
            self.count_failed(resource)

    def count_failed(self, resource: str) -> None:
        """Count a pass that could not even begin, or ended without a result."""
        self.passes[resource, "failed"] += 1

    def _count(self, resource: str, result: Union[MemoryResult, VcpuResult]) -> None:
        self.passes[resource, "failed" if result.failed else "ok"] += 1
        self.timed[resource] += 1
        for phase, seconds in result.timings_s.items():
            self.phases_s[resource, phase] += seconds  # type: ignore[assignment]
        for move in result.outcome.moves:
            self.moves[resource, _kind(move)] += 1
        for failure in result.outcome.failures:
            self.failures[resource, failure.code] += 1


def _kind(move: Move) -> str:
    if isinstance(move, BalloonMove):
        return ("credit" if move.on_credit else "give") if move.gives else "take"
    return move.thread if isinstance(move, PinMove) else move.kind


# ---------------------------------------------------------------- what is exported


class Metrics:
    """The last status and the totals in Prometheus' text format."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._status: Optional[Status] = None
        self._lock = threading.Lock()
        self._rendered: dict[bool, bytes] = {}

    def tell(self, status: Status) -> None:
        """Publish *current* from now on."""
        with self._lock:
            self._status = status
            self._rendered = {}

    def render(self, packed: bool = False) -> bytes:
        """Return the text, by gzip if *packed*: rendered once for each status, however many ask."""
        with self._lock:
            if packed not in self._rendered:
                text = exposition.text_of(self._collect())
                self._rendered[packed] = gzip.compress(text, 5) if packed else text
            return self._rendered[packed]

    def write(self, path: str) -> None:
        """Write a textfile; OSError if that can't be. Whoever runs node_exporter must be able to read it."""
        write_atomically(path, self.render().decode(), 0o644)

    def _collect(self) -> Iterable[Family]:
        yield from process.families()
        if self._status is not None:
            yield from _of_daemon(self._status)
            yield from _of_passes(self._status, self._totals)
            yield from _of_host(self._status)
            yield from _of_domains(self._status.domains)


def _gauge(name: str, text: str, value: Optional[float]) -> Iterable[Family]:
    """Yield one gauge without labels, unless its value is not known."""
    if value is not None:
        yield Gauge(f"kvmsched_{name}", text, value=value)


def _labelled(
    family: type[Family], name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[Any, ...]]
) -> Family:
    """Return a family with one sample for each of *rows*, which are the label values and then the value."""
    whole = family(f"kvmsched_{name}", text, labels=labels)
    for *values, value in rows:
        if value is not None:
            whole.add([escaped(str(text)) for text in values], value)
    return whole


def _of_daemon(status: Status) -> Iterable[Family]:
    about = [(status.version, status.policy_hash, 1)]
    yield _labelled(Gauge, "info", "The daemon, and its policy.", ("version", "policy_hash"), about)
    for name, text, mode in (
        ("mode_configured", "1 for the mode that the policy sets.", status.mode),
        (
            "mode_effective",
            "1 for the mode that the daemon is in: observe where it may only read, or is paused.",
            status.effective_mode,
        ),
    ):
        rows = [(known, float(known == mode)) for known in DAEMON_MODES]
        yield _labelled(Gauge, name, text, ("mode",), rows)
    text = "When the pause that somebody asked for ends, 0: none."
    yield from _gauge("paused_until_seconds", text, status.paused_until_s)
    text = "Whether the last pass could begin: libvirt answered, and nobody else held the host."
    yield from _gauge("ready", text, float(not status.trouble))
    good = float(not status.policy_error)
    yield from _gauge("policy_reload_ok", "Whether the last reload of the policy was accepted.", good)


def _of_passes(status: Status, totals: Totals) -> Iterable[Family]:
    last = {"memory": status.memory_pass, "vcpu": status.vcpu_pass}
    both = ("resource",)
    rows = [("memory", status.memory_period_s), ("vcpu", status.vcpu_period_s)]
    yield _labelled(Gauge, "period_seconds", "Time from one pass to the next.", both, rows)
    rows = [(name, done.when_s) for name, done in last.items()]
    text = "When a pass last succeeded, 0: never."
    yield _labelled(Gauge, "last_success_timestamp_seconds", text, both, rows)
    rows = [(name, done.planned) for name, done in last.items()]
    text = "Moves that the last pass planned, made or not (observe mode)."
    yield _labelled(Gauge, "planned_moves", text, both, rows)
    # What an alert watches is exported while it is 0, too: else the alert could not see that it ended.
    watched: dict[str, int] = dict.fromkeys(WATCHED_SKIPS, 0)
    skips = [(name, code, n) for name, done in last.items() for code, n in {**watched, **done.skips}.items()]
    text = "Domains that were skipped in the last pass."
    yield _labelled(Gauge, "skipped_domains", text, ("resource", "reason"), skips)
    passes = [(name, result, totals.passes[name, result]) for name in last for result in ("ok", "failed")]
    yield _labelled(exposition.Counter, "passes", "Passes.", ("resource", "result"), passes)
    moves = [(name, kind, totals.moves[name, kind]) for name in last for kind in KINDS[name]]
    yield _labelled(exposition.Counter, "moves", "Moves that were made.", ("resource", "kind"), moves)
    failures = [(name, reason, totals.failures[name, reason]) for name in last for reason in FAILURES]
    text = "Moves that were tried and failed."
    yield _labelled(exposition.Counter, "failures", text, ("resource", "reason"), failures)
    took = Summary("kvmsched_pass_duration_seconds", "Time in passes.", labels=("resource", "phase"))
    for name in RESOURCES:
        for phase in PHASES:
            took.add([name, phase], totals.timed[name], totals.phases_s[name, phase])
    yield took


def _of_host(status: Status) -> Iterable[Family]:
    yield from _gauge("domains", "Running domains.", len(status.domains))
    total_kib = status.memory_total_kib
    yield from _gauge("host_memory_bytes", "MemTotal of the host, without huge pages.", _bytes(total_kib))
    if status.memory is not None:
        memory = status.memory
        for name, text, value in (
            ("domains_starved", "Domains with less usable memory than their starvation threshold.", memory.starved),
            ("domains_wasteful", "Domains with more unused memory than their waste threshold.", memory.wasteful),
            ("domains_unknown", "Domains without fresh memory statistics.", memory.unknown),
            ("domains_limited", "Starved or wasteful domains that no move can help.", memory.limited),
            ("host_memory_available_bytes", "MemAvailable of the host.", _bytes(memory.host_available_kib)),
            ("host_memory_arc_bytes", "What the ZFS cache of the host could give beside.", _bytes(memory.host_arc_kib)),
            (
                "host_memory_credit_bytes",
                "What guests were given to survive beyond what the host can give, and is not covered yet.",
                _bytes(memory.credit_kib),
            ),
            ("host_memory_reserve_bytes", "What the host keeps for itself.", _bytes(memory.host_reserve_kib)),
        ):
            yield from _gauge(name, text, value)
    if status.room is not None:
        yield from _gauge("room_bytes", "What is kept for a guest that is to start.", _bytes(status.room.kib))
        yield from _gauge("room_lacking_bytes", "What still lacks of it.", _bytes(status.room.lacks_kib))
    yield from _gauge("pins_ours", "vCPUs that are pinned where kvmsched pinned them.", status.pins_ours)
    yield from _gauge("trials", "Floating vCPUs that are pinned by way of trial.", status.trials)
    for name, text, count in (
        ("trials_begun", "Trials since the host was booted.", status.trials_begun),
        ("trials_undone", "Trials that did not help, and were undone.", status.trials_undone),
    ):
        yield exposition.Counter(f"kvmsched_{name}", text, value=count)
    if status.vcpu is not None:
        vcpu = status.vcpu
        for name, text, percent in (
            ("pcpu_load_average_ratio", "Demand per usable pCPU.", vcpu.average_pct),
            ("pcpu_load_max_ratio", "Demand on the usable pCPU that has most.", vcpu.max_pct),
            ("pcpu_load_max_all_ratio", "Demand on the online pCPU that has most, usable or not.", vcpu.max_all_pct),
            ("pcpu_load_bound_ratio", "The least of that, with any pins where vCPUs may run.", vcpu.bound_pct),
            ("imbalance_ratio", "Standard deviation of demand over the usable pCPUs.", vcpu.imbalance_pct),
        ):
            yield from _gauge(name, text, None if percent is None else percent / 100)
    busy = [(pcpu.id, pcpu.busy_pct / 100) for pcpu in status.pcpus]
    yield _labelled(Gauge, "pcpu_busy_ratio", "Time that a pCPU was busy.", ("pcpu",), busy)


def _of_domains(domains: tuple[DomainStatus, ...]) -> Iterable[Family]:
    told = domains[:MOST_DOMAINS]
    yield from _gauge(
        "domains_untold", "Running domains beyond those that are told one by one.", len(domains) - len(told)
    )
    for name, text in (
        ("maximum", "What a domain may have at most."),
        ("actual", "What a domain has: its balloon."),
        ("target", "Where the last plan sends its balloon."),
        ("usable", "What a domain could still get without swapping."),
        ("unused", "What serves nothing in a domain, not even cache."),
        ("rss", "What its QEMU holds on the host."),
        ("unmet", "What a domain needs and does not get."),
    ):
        sizes = [(d.name, _bytes(getattr(d, f"{name}_kib"))) for d in told if d.actual_kib is not None]
        yield _labelled(Gauge, f"domain_memory_{name}_bytes", text, ("domain",), sizes)
    owed = [(d.name, _bytes(d.owed_kib)) for d in told if d.actual_kib is not None]
    text = "What kvmsched took from a domain below what it had, though nobody asked for that."
    yield _labelled(Gauge, "domain_owed_bytes", text, ("domain",), owed)
    starved = [
        (d.name, float(d.verdict == "starved")) for d in told if d.managed and d.verdict not in ("unknown", d.state)
    ]
    text = "Whether a domain, not skipped by the policy, has less usable memory than its starvation threshold."
    yield _labelled(Gauge, "domain_starved", text, ("domain",), starved)
    vcpus = [(domain.name, len(domain.vcpus) or None) for domain in told]
    yield _labelled(Gauge, "domain_vcpus", "vCPUs.", ("domain",), vcpus)
    for name, text in (
        ("run", "Time that a domain's vCPUs ran, of all that they could."),
        ("wait", "Time that a domain's vCPUs waited for a pCPU, of all that they could run."),
    ):
        rows = [(domain.name, _mean(getattr(vcpu, f"{name}_pct") for vcpu in domain.vcpus)) for domain in told]
        yield _labelled(Gauge, f"domain_vcpu_{name}_ratio", text, ("domain",), rows)
    # A scrape each 15 s misses two of three windows; of what is counted it misses nothing.
    for name, text in (
        ("run", "Time that a domain's vCPUs ran, since it was started."),
        ("wait", "Time that a domain's vCPUs waited for a pCPU, since it was started."),
    ):
        times = [(domain.name, _seconds(getattr(vcpu, f"{name}_ns") for vcpu in domain.vcpus)) for domain in told]
        yield _labelled(exposition.Counter, f"domain_vcpu_{name}_seconds", text, ("domain",), times)


def _mean(percents: Iterable[Optional[float]]) -> Optional[float]:
    known = [percent for percent in percents if percent is not None]
    return sum(known) / len(known) / 100 if known else None


def _seconds(counters_ns: Iterable[Optional[int]]) -> Optional[float]:
    """Return their sum, where all are known: one that comes and goes would look like a reset."""
    known = list(counters_ns)
    return sum(ns for ns in known if ns is not None) / 1e9 if known and None not in known else None


def _bytes(kib: Optional[int]) -> Optional[int]:
    return None if kib is None else kib * _KIB


# ---------------------------------------------------------------- the port


class Port:
    """Answers GET and HEAD at *listen* ("address:port") with *metrics*, in threads of its own. OSError if it can't.

    Whatever clients do, it costs at most a few threads and connections for some seconds.
    """

    def __init__(self, listen: str, metrics: Metrics) -> None:
        self.listen = listen
        self._server = _Server(listen, metrics)
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    # Not http.server's own, which asks DNS for its name.
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, listen: str, metrics: Metrics) -> None:
        host, _sep, port = listen.rpartition(":")
        host = host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.metrics = metrics
        # Connections: since when those are there that were not cut, those that sent a whole request, and all that
        # still have a thread.
        self._open: dict[Any, float] = {}
        self.asked: set[Any] = set()
        self._served: set[Any] = set()
        self._ended = threading.Condition()
        super().__init__((host, int(port)), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._cut_idle()
        with self._ended:  # those that were cut notice it at once, if they are not busy with an answer
            free = self._ended.wait_for(lambda: len(self._served) < 2 * _MOST_CLIENTS, _WAIT_S)
        if not free:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic()
        self._served.add(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread is to be had
            self._forget(request)
            raise

    def _cut_idle(self) -> None:
        """Cut connections, the idle ones first, until one more is allowed."""
        with self._ended:
            while len(self._open) >= _MOST_CLIENTS:
                oldest = next((one for one in self._open if one not in self.asked), next(iter(self._open)))
                left_s = self._open[oldest] + _LEAST_S - time.monotonic()
                if left_s <= 0:
                    self._cut(oldest)
                else:
                    self._ended.wait(left_s)

    def _cut(self, request: Any) -> None:
        """End a connection; its thread ends by that."""
        self._open.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: Any) -> None:
        with self._ended:
            self._open.pop(request, None)
            self.asked.discard(request)
            self._served.discard(request)
            self._ended.notify()

    def service_actions(self) -> None:
        """End slow clients, about twice a second: one that sends its request byte by byte does not get for ever."""
        for request, since_s in list(self._open.items()):
            if time.monotonic() - since_s > _LONGEST_S:
                self._cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a client that went away, or sent garbage, is no news."""


class _AtMost:
    """The lines of *file*, until so many bytes have been read."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self.left = file, size
        self.close = file.close

    def readline(self, size: int) -> bytes:
        line: bytes = self._file.readline(min(size, self.left))
        self.left -= len(line)
        return line


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = 5
    server_version, sys_version = "kvmsched", ""

    def setup(self) -> None:
        super().setup()
        self.rfile: Any = _AtMost(self.rfile, _LONGEST_REQUEST)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        self.server.asked.add(self.connection)
        if self.rfile.left == 0:
            self.send_error(431)
            return
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404)
            return
        packed = bool(re.search(r"\bgzip\b(?! *; *q=0(\.0*)?(,|$))", self.headers.get("Accept-Encoding", "")))
        text = self.server.metrics.render(packed)
        self.send_response(200)
        self.send_header("Content-Type", exposition.CONTENT_TYPE)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)

    def log_message(self, *_arguments: Any) -> None:
        """Log nothing: whoever scrapes every few seconds would fill the journal."""
