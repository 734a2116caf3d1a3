"""The history of measurements on disk: appended row by row, so that a restart of the manager loses only a few seconds.

One series of files for each kind and span, `workers-1h-000017.seg`. Each record has a checksum, and reading stops at
the first torn one. A file has as many rows as its span has points, and one older file is kept, so that the disk holds
at most twice the data in memory, compressed. Nothing depends on these files: unreadable ones are reported and
skipped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import zlib
from typing import Any, BinaryIO

from procguard.fleet.telemetry.timeseries import SERIES, SPANS, Measurements, Row, Span, packing_of, wipe

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<IIBd")  # length of the content, its CRC-32, kind of the record, time
_SLOTS, _ROW = 0, 1
_NAME = re.compile(r"(workers|hosts|gpus|metrics)-(\w+)-(\d{6})\.seg")
MAX_RECORD_BYTES = 64 * 1024 * 1024


class _Series:
    """The files of one kind and span. `written_slots`: the slots recorded in the newest file."""

    def __init__(self, folder: str, kind: str, span: Span) -> None:
        self.folder, self.kind, self.span = folder, kind, span
        self.number = 0
        self.rows_of: dict[int, int] = {}  # number of a file -> number of its rows
        self.file: BinaryIO | None = None
        self.written_slots: dict[str, int] = {}

    def path(self, number: int) -> str:
        return os.path.join(self.folder, f"{self.kind}-{self.span.name}-{number:06d}.seg")

    def append(self, slots: dict[str, int], row: Row) -> None:
        if self.file is None or self.rows_of[self.number] >= self.span.points:
            self._begin()
        assert self.file is not None
        if slots != self.written_slots:
            # slot -> new owner, for every slot whose owner has changed; None: free
            changed: dict[int, str | None] = {
                slot: None for one, slot in self.written_slots.items() if slots.get(one) != slot
            }
            changed.update({slot: one for one, slot in slots.items() if self.written_slots.get(one) != slot})
            self._write(_SLOTS, row.at, json.dumps(list(changed.items())).encode())
            self.written_slots = dict(slots)
        parts = [b"" if one is None else bytes(one) for one in row.columns]
        self._write(_ROW, row.at, struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts))
        self.file.flush()
        self.rows_of[self.number] += 1

    def _begin(self) -> None:
        """Begin a new file and delete older files that are no longer needed."""
        self.close()
        self.number += 1
        self.file = os.fdopen(os.open(self.path(self.number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        self.rows_of[self.number], self.written_slots = 0, {}
        newer = 0
        for number in sorted(self.rows_of, reverse=True):
            if newer >= self.span.points:
                _remove(self.path(number))
                del self.rows_of[number]
            else:
                newer += self.rows_of[number]

    def _write(self, what: int, at: float, content: bytes) -> None:
        data = zlib.compress(content, 1)
        assert self.file is not None
        self.file.write(_HEAD.pack(len(data), zlib.crc32(data), what, at) + data)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def load(self, now: float) -> tuple[dict[int, str], list[Row], float]:
        """Read the files. Returns (slot -> owner, the rows of the span before `now`, the time of the last row)."""
        owners: dict[int, str] = {}
        rows: list[Row] = []
        columns = len(SERIES[self.kind])
        oldest = now - self.span.step_s * self.span.points
        for number in self._numbers():
            owners_here: dict[int, str] = {}
            self.rows_of[number] = 0
            for what, at, content in _records(self.path(number)):
                if what == _SLOTS:
                    for slot, owner in json.loads(content):
                        if owner is None:
                            owners_here.pop(slot, None)
                        else:
                            owners_here[slot] = owner
                        if owners.get(slot) != owner:
                            wipe(rows, slot, packing_of(self.kind))
                            owners.pop(slot, None)
                        if owner is not None:
                            owners[slot] = owner
                    continue
                self.rows_of[number] += 1
                row = _row(at, content, columns)
                if row is not None and oldest < at <= now + self.span.step_s:
                    rows.append(row)
            self.number = number
        return owners, rows[-self.span.points :], rows[-1].at if rows else 0.0

    def _numbers(self) -> list[int]:
        found = []
        for name in os.listdir(self.folder):
            match = _NAME.fullmatch(name)
            if match and match[1] == self.kind and match[2] == self.span.name:
                found.append(int(match[3]))
        return sorted(found)


class MeasurementFiles:
    """All files of measurements. Every method blocks on the disk and must be called off the event loop."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._series = {(kind, span.name): _Series(folder, kind, span) for kind in SERIES for span in SPANS}
        self._trouble = ""

    def load(self, measurements: Measurements, now: float) -> None:
        """Load the history of earlier runs into `measurements`."""
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            for kind, table in measurements.tables.items():
                found = {span.name: self._series[kind, span.name].load(now) for span in SPANS}
                newest = max(found.values(), key=lambda one: one[2])
                owners = newest[0]
                for earlier, rows, _ in found.values():
                    for slot, owner in earlier.items():
                        if owners.get(slot) != owner:
                            wipe(rows, slot, packing_of(kind))
                slots = {owner: slot for slot, owner in owners.items()}
                table.adopt(slots, {name: rows for name, (_, rows, _) in found.items()})
        except (OSError, ValueError, struct.error) as exc:
            self._warn_once(f"the history of measurements cannot be read: {exc}")

    def append(self, done: list[tuple[str, Span, Row]], slots: dict[str, dict[str, int]]) -> None:
        """Append these rows. `slots`: kind -> its current slots."""
        try:
            for kind, span, row in done:
                self._series[kind, span.name].append(slots[kind], row)
            self._trouble = ""
        except OSError as exc:
            for series in self._series.values():
                series.close()  # reading stops at a torn record: continue in a new file
            self._warn_once(f"the history of measurements is not written: {exc}")

    def _warn_once(self, trouble: str) -> None:
        """Log a problem once. Nothing depends on these files, so that no error is raised."""
        if trouble != self._trouble:
            log.warning("%s", trouble)
        self._trouble = trouble

    def close(self) -> None:
        for series in self._series.values():
            series.close()


def _records(path: str) -> Any:
    """(kind, time, content) of each complete record."""
    with open(path, "rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            size, check, what, at = _HEAD.unpack(head)
            data = file.read(min(size, MAX_RECORD_BYTES))
            if len(data) != size or zlib.crc32(data) != check:
                return
            yield what, at, zlib.decompress(data)


def _row(at: float, content: bytes, columns: int) -> Row | None:
    """The row in a record; None if it was written by a release with other series."""
    lengths = struct.Struct(f"<{columns}I")
    if len(content) < lengths.size:
        return None
    sizes = lengths.unpack_from(content)
    if lengths.size + sum(sizes) != len(content):
        return None
    found: list[bytearray | None] = []
    begin = lengths.size
    for size in sizes:
        found.append(bytearray(content[begin : begin + size]) if size else None)
        begin += size
    return Row(at, found)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
