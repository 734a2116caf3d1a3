"""Measurements of workers, hosts and GPUs over 15 minutes, an hour and a day. The memory of each is bounded.

    15m: every 10 s, 90 points    1h: every 30 s, 120 points    24h: every 5 min, 288 points

All series are sampled at the same times, so that each time is one row with one value per slot. A worker occupies a
slot, not an object: a column has two bytes per value (bfloat16, whose three digits suffice for a chart), or four bytes
for numbers from logs (float32, for a nearly constant loss or a step in the millions). Coarser spans hold means, but
maxima of memory and temperature, because the peak precedes an out-of-memory kill or thermal throttling.

Reads the fleet's records; knows no files (files.py) and no clock.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from operator import add
from struct import unpack
from typing import NamedTuple

from procguard.fleet.state import FleetState

SAMPLE_S = 10
REST_EVERY = 100  # number of items read between yields; less than a millisecond
NAN = math.nan
MAX_METRICS = 50_000  # limit of numbers from logs with a history in the whole fleet: 100 MB
LARGEST_FLOAT32 = 3.4e38
_ROUND_UP = 1 + 2**-9  # truncating a float's lower half rounds down; with this factor it rounds to the nearest


class Span(NamedTuple):
    name: str
    step_s: int
    points: int


SPANS = (Span("15m", SAMPLE_S, 90), Span("1h", 30, 120), Span("24h", 300, 288))

SERIES: dict[str, tuple[str, ...]] = {
    "workers": ("cpu_percent", "rss_bytes", "gpu_percent", "gpu_memory_bytes"),
    "hosts": (
        "cpu_percent",
        "memory_used_bytes",
        "load1",
        "disk_free_bytes",
        "network_received_bytes_per_s",
        "network_sent_bytes_per_s",
    ),
    "gpus": ("utilization_percent", "memory_used_bytes", "power_w", "temperature_c"),
    "metrics": ("value",),
}
_PEAKS = ("rss_bytes", "gpu_memory_bytes", "memory_used_bytes", "temperature_c")

Values = tuple[float | None, ...]


class Row(NamedTuple):
    """The values at one time. A column is None if no slot had a value."""

    at: float  # Unix seconds
    columns: list[bytearray | None]


class Packing(NamedTuple):
    """The encoding of a column's values."""

    width: int
    no_value: bytes
    pack: Callable[[Iterable[float]], bytearray]
    read: Callable[[bytes], float]
    digits: int


def packed(values: Iterable[float]) -> bytearray:
    """Values as bfloat16, the upper half of a float32."""
    raw = array("f", [value * _ROUND_UP for value in values])
    if sys.byteorder == "big":
        raw.byteswap()
    data = raw.tobytes()
    halves = bytearray(len(data) // 2)
    halves[0::2], halves[1::2] = data[2::4], data[3::4]
    return halves


def packed_whole(values: Iterable[float]) -> bytearray:
    """Values as float32."""
    raw = array("f", [max(min(value, LARGEST_FLOAT32), -LARGEST_FLOAT32) for value in values])  # NaN is preserved
    if sys.byteorder == "big":
        raw.byteswap()
    return bytearray(raw.tobytes())


HALF = Packing(2, b"\xc0\x7f", packed, lambda data: float(unpack("<f", b"\0\0" + data)[0]), 3)
WHOLE = Packing(4, b"\0\0\xc0\x7f", packed_whole, lambda data: float(unpack("<f", data)[0]), 7)
PACKING = {"metrics": WHOLE}


def packing_of(kind: str) -> Packing:
    return PACKING.get(kind, HALF)


def unpacked(column: bytearray | None, slot: int, packing: Packing = HALF) -> float | None:
    """The value of one slot, rounded to the precision of its encoding."""
    begin, end = packing.width * slot, packing.width * (slot + 1)
    if column is None or end > len(column):
        return None
    value = packing.read(bytes(column[begin:end]))
    return None if math.isnan(value) or math.isinf(value) else float(f"{value:.{packing.digits}g}")


class _Gathering:
    """Collects the samples of a coarser span until its step ends."""

    def __init__(self, span: Span, peaks: list[bool], pack: Callable[[Iterable[float]], bytearray]) -> None:
        self.span = span
        self._pack = pack
        self.bucket: int | None = None
        self._peaks = peaks
        self._sums: list[list[float]] = [[] for _ in peaks]
        self._counts: list[list[int]] = [[] for _ in peaks]

    def take(self, at: float, columns: list[list[float] | None], size: int, rest: Callable[[], None]) -> Row | None:
        """Add a sample. Returns the row of the previous step if `at` begins a new one."""
        bucket = int(at // self.span.step_s)
        done = self._row(rest) if self.bucket is not None and bucket != self.bucket else None
        self.bucket = bucket
        for number, values in enumerate(columns):
            rest()
            sums, counts = self._sums[number], self._counts[number]
            if len(sums) < size:
                sums.extend([0.0] * (size - len(sums)))
                counts.extend([0] * (size - len(counts)))
            if values is None:
                continue
            there = [not missing for missing in map(math.isnan, values)]
            known = [value if one else 0.0 for value, one in zip(values, there, strict=True)]
            together = max if self._peaks[number] else add
            self._sums[number] = list(map(together, sums, known))
            self._counts[number] = list(map(add, counts, there))
        return done

    def _row(self, rest: Callable[[], None]) -> Row:
        columns: list[bytearray | None] = []
        for number, peak in enumerate(self._peaks):
            rest()
            sums, counts = self._sums[number], self._counts[number]
            self._sums[number], self._counts[number] = [0.0] * len(sums), [0] * len(counts)
            if not any(counts):
                columns.append(None)
            elif peak:
                columns.append(self._pack(one if n else NAN for one, n in zip(sums, counts, strict=True)))
            else:
                columns.append(self._pack(one / n if n else NAN for one, n in zip(sums, counts, strict=True)))
        assert self.bucket is not None
        return Row(float((self.bucket + 1) * self.span.step_s), columns)

    def forget(self, slot: int) -> None:
        for sums, counts in zip(self._sums, self._counts, strict=True):
            if slot < len(sums):
                sums[slot], counts[slot] = 0.0, 0


class Table:
    """The series of one kind. `slots`: id -> slot; a freed slot is wiped before it is reused."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.series = SERIES[kind]
        self._packing = packing_of(kind)
        self.slots: dict[str, int] = {}
        self.size = 0
        self.rows: dict[str, deque[Row]] = {span.name: deque(maxlen=span.points) for span in SPANS}
        self._free: list[int] = []
        peaks = [name in _PEAKS for name in self.series]
        self._gathering = [_Gathering(span, peaks, self._packing.pack) for span in SPANS[1:]]

    def add(self, at: float, readings: dict[str, Values], rest: Callable[[], None]) -> list[tuple[Span, Row]]:
        """Add one sample. Items that are missing from `readings` lose their slots. Returns the completed rows."""
        for item_id in [one for one in self.slots if one not in readings]:
            self._drop(item_id)
        for item_id in readings:
            if item_id not in self.slots:
                self._place(item_id)
        slots = [self.slots[item_id] for item_id in readings]
        columns: list[list[float] | None] = []
        newest: list[bytearray | None] = []
        for number in range(len(self.series)):
            rest()
            values = [NAN] * self.size
            some = False
            for slot, reading in zip(slots, readings.values(), strict=True):
                value = reading[number]
                if value is not None:
                    values[slot] = value
                    some = True
            columns.append(values if some else None)
            newest.append(self._packing.pack(values) if some else None)
        done = [(SPANS[0], Row(at, newest))]
        for gathering in self._gathering:
            row = gathering.take(at, columns, self.size, rest)
            if row is not None:
                done.append((gathering.span, row))
        for span, row in done:
            self.rows[span.name].append(row)
        return done

    def _place(self, item_id: str) -> None:
        if self._free:
            slot = self._free.pop()
        else:
            slot, self.size = self.size, self.size + 1
        self.slots[item_id] = slot

    def _drop(self, item_id: str) -> None:
        slot = self.slots.pop(item_id)
        for rows in self.rows.values():
            wipe(rows, slot, self._packing)
        for gathering in self._gathering:
            gathering.forget(slot)
        self._free.append(slot)

    def adopt(self, slots: dict[str, int], rows: dict[str, list[Row]]) -> None:
        """Load the rows of an earlier run. Called before the first sample."""
        self.slots = dict(slots)
        self.size = max(slots.values(), default=-1) + 1
        taken = set(slots.values())
        self._free = [slot for slot in range(self.size) if slot not in taken]
        for name, found in rows.items():
            self.rows[name].extend(found)

    def read(self, item_id: str, span: Span, since: float) -> tuple[list[float], dict[str, list[float | None]]] | None:
        """(times after `since`, values of each series that has any); None if the item is unknown."""
        slot = self.slots.get(item_id)
        if slot is None:
            return None
        rows = [row for row in self.rows[span.name] if row.at > since]
        series = {
            name: [unpacked(row.columns[number], slot, self._packing) for row in rows]
            for number, name in enumerate(self.series)
        }
        known = {name: values for name, values in series.items() if any(value is not None for value in values)}
        return [row.at for row in rows], known

    @property
    def memory_bytes(self) -> int:
        """The memory used by its rows."""
        return sum(len(one) for rows in self.rows.values() for row in rows for one in row.columns if one is not None)


def wipe(rows: Iterable[Row], slot: int, packing: Packing) -> None:
    begin, end = packing.width * slot, packing.width * (slot + 1)
    for row in rows:
        for column in row.columns:
            if column is not None and end <= len(column):
                column[begin:end] = packing.no_value


class Measurements:
    """The tables of all kinds. Keys: worker id, agent id of a host, "agent/index" of a GPU, "worker/name" of a number
    from a log."""

    def __init__(self) -> None:
        self.tables = {kind: Table(kind) for kind in SERIES}

    def sample(self, state: FleetState, wall: float, rest: Callable[[], None]) -> list[tuple[str, Span, Row]]:
        """Sample the last report of every host and worker. Returns the completed rows, to be stored."""
        at = float(wall // SAMPLE_S * SAMPLE_S)
        workers = self._read_workers(state, rest)
        hosts: dict[str, Values] = {}
        gpus: dict[str, Values] = {}
        for number, (agent_id, observed) in enumerate(list(state.agent_status.items()), 1):
            if number % REST_EVERY == 0:
                rest()
            usage = (
                observed.heartbeat.usage if observed.heartbeat is not None and observed.state == "connected" else None
            )
            hosts[agent_id] = tuple(getattr(usage, name, None) for name in SERIES["hosts"])
            for gpu in usage.gpus if usage is not None else ():
                gpus[f"{agent_id}/{gpu.index}"] = tuple(getattr(gpu, name) for name in SERIES["gpus"])
        for known in self.tables["gpus"].slots:  # GPUs of a silent host keep their slots without values
            if known not in gpus and known.rpartition("/")[0] in state.agent_status:
                gpus[known] = (None,) * len(SERIES["gpus"])
        metrics = self._read_metrics(state, rest)
        readings: dict[str, dict[str, Values]] = {"workers": workers, "hosts": hosts, "gpus": gpus, "metrics": metrics}
        done = []
        for kind, found in readings.items():
            done += [(kind, span, row) for span, row in self.tables[kind].add(at, found, rest)]
        return done

    @staticmethod
    def _read_workers(state: FleetState, rest: Callable[[], None]) -> dict[str, Values]:
        found: dict[str, Values] = {}
        silent = {agent_id for agent_id, observed in state.agent_status.items() if observed.state != "connected"}
        for number, worker in enumerate(list(state.workers_by_id.values()), 1):
            if number % REST_EVERY == 0:
                rest()
            observed = state.worker_status.get(worker.worker_id)
            usage = observed.report.usage if observed is not None and observed.report is not None else None
            if usage is None or worker.agent_id in silent:
                found[worker.worker_id] = (None, None, None, None)
            else:
                found[worker.worker_id] = (
                    usage.cpu_percent,
                    usage.rss_bytes,
                    usage.gpu_percent,
                    usage.gpu_memory_bytes,
                )
        return found

    @staticmethod
    def _read_metrics(state: FleetState, rest: Callable[[], None]) -> dict[str, Values]:
        """Read the declared numbers from logs. All of them keep their slots, but have a value only if it was printed,
        while the worker runs and its host is connected."""
        found: dict[str, Values] = {}
        for number, worker in enumerate(list(state.workers_by_id.values()), 1):
            if number % REST_EVERY == 0:
                rest()
            if not worker.spec.metrics or len(found) + len(worker.spec.metrics) > MAX_METRICS:
                continue
            observed, agent = state.worker_status.get(worker.worker_id), state.agent_status.get(worker.agent_id)
            report = observed.report if observed is not None else None
            live = report is not None and report.state == "running" and agent is not None and agent.state == "connected"
            values = {one.name: one.value for one in report.metrics} if live and report is not None else {}
            for name in worker.spec.metrics:
                found[f"{worker.worker_id}/{name}"] = (values.get(name),)
        return found

    def gpus_of(self, agent_id: str) -> list[int]:
        """The indexes of a host's GPUs with measurements."""
        before = agent_id + "/"
        found = [one[len(before) :] for one in self.tables["gpus"].slots if one.startswith(before)]
        return sorted(int(one) for one in found if one.isdigit())

    @property
    def memory_bytes(self) -> int:
        return sum(table.memory_bytes for table in self.tables.values())
