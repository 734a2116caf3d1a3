"""A live table: rows in slots, sent as columns. One snapshot, then frames with the absolute values of changed slots,
encoded once for all clients.

    GET /api/live/workers  {"epoch": E, "seq": N, "columns": {"worker_id": […], "state": {"of": […], "at": […]}, …}}
    sub  rows:workers seq N
    rows      {"t":"rows","topic","seq","prev","gone":[slots],"slots":[…],"columns":{name: [values]}}   never dropped
    measures  {"t":"measures","topic","seq","slots":[…],"columns":{…}}   once a second; those of many rows in parts, all
              but the last with "more":true; may be dropped for a slow reader, whose next frame is complete
    gap       {"t":"gap","topic","seq"}   missed changes are no longer available: load a snapshot

`slots` is difference-encoded (the first from 0). A column with few distinct values is sent as these values and one
index per row. Knows rows and clients; columns.py produces the rows.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Protocol

from procguard.agent_api import http_io
from procguard.json_types import Json
from procguard.portal.http import frames

HISTORY_FRAMES = 256
SEEN_FOR_S = 30.0  # changes are collected for this time after the last client or snapshot
COMPRESSED_FROM_BYTES, COMPRESSION = 1024, 5
ASIDE_FROM_BYTES = 32 * 1024  # deflating this many bytes takes about a millisecond
REST_EVERY = 50  # rows; less than a millisecond
PART_ROWS = 1000  # a page applies the measures of this many rows within a frame of the screen
MOST_PARTS = 10
DISTINCT_SHARE = 0.5  # a column with more distinct values than this is sent unchanged

_NUMBERS = {int, bool, float}
_PLAIN = {str, type(None), *_NUMBERS}

Row = tuple[Any, ...]


class TableClient(Protocol):
    def send_frame(self, frame: bytes) -> bool: ...

    def offer_frame(self, frame: bytes) -> bool:
        """Send a frame that may be dropped. False: the client reads too slowly, and it was dropped."""
        ...


class RowSource(Protocol):
    """Rows by id (columns.py). `row` and `measured` return None for unknown ids."""

    columns: tuple[str, ...]
    measures: tuple[str, ...]
    key: str

    def ids(self) -> list[str]: ...

    def row(self, item_id: str, before: Row | None, wall: float) -> Row | None: ...

    def measured(self, item_id: str) -> Row | None: ...


def _here(work: Callable[..., bytes], arguments: tuple[Any, ...]) -> bytes:
    return work(*arguments)


class RowTopic:
    """`name`: the topic that clients subscribe to. `rest()` yields to other greenlets if due, `wait()` always;
    `aside(work, arguments)` runs work in a thread. A large text frame with columns is sent as a binary one: the same
    JSON, deflated (zlib)."""

    def __init__(
        self,
        name: str,
        source: RowSource,
        rest: Callable[[], None],
        wait: Callable[[], None] | None = None,
        aside: Callable[[Callable[..., bytes], tuple[Any, ...]], bytes] = _here,
    ) -> None:
        self.name = name
        self.seq = 1
        self.clients: set[TableClient] = set()
        self._source = source
        self._rest = rest
        self._wait = wait or rest
        self._aside = aside
        self._slots: dict[str, int] = {}
        self._rows: list[Row | None] = []
        self._measured: list[Row | None] = []
        self._free: list[int] = []
        self._dirty: set[str] = set()
        self._measuring: set[str] = set()  # items of which only measures may have changed
        self._moved: set[int] = set()  # slots whose measures have not been sent
        self._parts: deque[list[int]] = deque()  # slots of the measures that remain to be sent this second
        self._new: set[TableClient] = set()  # clients without measures so far
        self._behind: set[TableClient] = set()  # clients that missed a frame: they get all measures
        self._stale = True  # changes were not collected
        self._seen_until = float("-inf")  # monotonic
        self._history: deque[tuple[int, bytes]] = deque(maxlen=HISTORY_FRAMES)
        self._building = False

    # ------------------------------------------------------------------------------------------------ changes

    @property
    def seen(self) -> bool:
        return bool(self.clients) or time.monotonic() < self._seen_until

    @property
    def moving(self) -> bool:
        """Whether there is something for `flush_measures`."""
        owed = self._moved or self._measuring or self._behind or self._new or self._parts
        return bool(owed) and bool(self.clients)

    @property
    def in_parts(self) -> bool:
        """Whether there is something for `send_part`."""
        return bool(self._parts)

    @property
    def awaited(self) -> bool:
        """Whether a new client waits for measures."""
        return bool(self._new)

    def mark_changed(self, item_id: str) -> bool:
        """Note that an item may have changed. Returns whether there are subscribers. O(1)."""
        if self.seen:
            self._dirty.add(item_id)
            return True
        self._stale = True
        return False

    def mark_measured(self, item_id: str) -> bool:
        """As `mark_changed`, if only measures can have changed; they are read when they are sent."""
        if self.seen:
            self._measuring.add(item_id)
            return True
        self._stale = True
        return False

    def flush(self) -> None:
        """Send the changes since the last flush."""
        if not self._dirty or self._building:
            return
        dirty, self._dirty = self._dirty, set()
        if not self.seen:
            self._stale = True
            return
        self._building = True
        try:
            self._publish_changes(*self._take(dirty))
        finally:
            self._building = False

    def _take(self, item_ids: Iterable[str]) -> tuple[list[int], dict[int, Row | None]]:
        """Read these items again. Returns (freed slots, {slot: previous row} of the changed ones)."""
        gone: list[int] = []
        changed: dict[int, Row | None] = {}
        wall = time.time()
        for number, item_id in enumerate(item_ids, 1):
            if number % REST_EVERY == 0:
                self._rest()
            slot = self._slots.get(item_id)
            before = self._rows[slot] if slot is not None else None
            row = self._source.row(item_id, before, wall)
            if row is None:
                if slot is not None:
                    self._drop(item_id, slot)
                    gone.append(slot)
                continue
            if slot is None:
                slot = self._place(item_id)
            if row != before:
                self._rows[slot] = row
                changed[slot] = None if before is None else changed.get(slot, before)
            self._measure(item_id, slot)
        return gone, changed

    def _measure(self, item_id: str, slot: int) -> None:
        measured = self._source.measured(item_id)
        if measured != self._measured[slot]:
            self._measured[slot] = measured
            self._moved.add(slot)

    def _place(self, item_id: str) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._rows)
            self._rows.append(None)
            self._measured.append(None)
        self._slots[item_id] = slot
        return slot

    def _drop(self, item_id: str, slot: int) -> None:
        del self._slots[item_id]
        self._rows[slot] = self._measured[slot] = None
        self._moved.discard(slot)
        self._free.append(slot)

    def _publish_changes(self, gone: list[int], changed: dict[int, Row | None]) -> None:
        if not gone and not changed:
            return
        slots = sorted(changed)
        whole = any(changed[slot] is None for slot in slots)
        columns: dict[str, list[Any]] = {}
        for at, name in enumerate(self._source.columns):
            self._rest()
            if whole or any(self._cell(slot, at) != changed[slot][at] for slot in slots):  # type: ignore[index]
                columns[name] = [self._cell(slot, at) for slot in slots]
        message = {"t": "rows", "topic": self.name, "seq": self.seq + 1, "prev": self.seq, "gone": sorted(gone)}
        frame = self._encode(message, slots, columns)
        self.seq += 1
        self._history.append((self.seq, frame))
        for client in list(self.clients):
            client.send_frame(frame)

    def _cell(self, slot: int, at: int) -> Any:
        row = self._rows[slot]
        return row[at] if row is not None else None

    def flush_measures(self) -> None:
        """Send the measures since the last call; once a second is enough. Of many rows, this is the first part:
        `send_part` sends the others, so that no page is busy with all of them at once."""
        for part in self._parts:
            self._moved.update(part)
        self._parts.clear()
        if not self.clients:
            self._moved.clear()
            return
        measuring, self._measuring = self._measuring, set()
        for number, item_id in enumerate(measuring, 1):
            if number % REST_EVERY == 0:
                self._rest()
            slot = self._slots.get(item_id)
            if slot is not None:
                self._measure(item_id, slot)
        moved, self._moved = sorted(self._moved), set()
        rows = max(PART_ROWS, -(-len(moved) // MOST_PARTS))
        self._parts.extend(moved[at : at + rows] for at in range(0, len(moved), rows))
        self.send_part()
        behind = [client for client in self._behind | self._new if client in self.clients]
        self._new.clear()
        if behind:
            whole = self._measures([slot for slot, row in enumerate(self._rows) if row is not None])
            self._behind = {client for client in behind if not client.offer_frame(whole)}

    def send_part(self) -> None:
        """Send the next part of a second's measures, if any."""
        if not self._parts:
            return
        slots = [slot for slot in self._parts.popleft() if self._rows[slot] is not None]
        frame = self._measures(slots, more=bool(self._parts))
        for client in self.clients - self._new - self._behind:
            if not client.offer_frame(frame):
                self._behind.add(client)

    def _measures(self, slots: list[int], more: bool = False) -> bytes:
        empty = (None,) * len(self._source.measures)
        values = [self._measured[slot] or empty for slot in slots]  # a copy: other greenlets run from here on
        message = {"t": "measures", "topic": self.name, "seq": self.seq, **({"more": True} if more else {})}
        columns: dict[str, list[Any]] = {}
        for at, name in enumerate(self._source.measures):
            self._rest()
            column = [one[at] for one in values]
            if any(one is not None for one in column):
                columns[name] = column
        return self._encode(message, slots, columns)

    def _encode(self, message: Json, slots: list[int], columns: dict[str, list[Any]]) -> bytes:
        """Encode a frame, yielding in between; large ones are deflated in a thread."""
        parts = [http_io.dumps({**message, "slots": differences(slots)})[:-1], b',"columns":{']
        for number, (name, values) in enumerate(columns.items()):
            self._rest()
            parts += [b"," if number else b"", http_io.dumps(name), b":", http_io.dumps(values)]
        text = b"".join([*parts, b"}}"])
        if len(text) < COMPRESSED_FROM_BYTES:
            return frames.encode(frames.TEXT, text)
        aside = self._aside if len(text) >= ASIDE_FROM_BYTES else _here
        return frames.encode(frames.BINARY, aside(zlib.compress, (text, COMPRESSION)))

    # ---------------------------------------------------------------------------------------------- subscribers

    def subscribe(self, client: TableClient, seq: int) -> None:
        """`seq`: of the client's snapshot. Missed changes are sent, or a gap if they are no longer available."""
        self.clients.add(client)
        missed = [encoded for number, encoded in self._history if number > seq]
        if self._stale or not (seq == self.seq or (0 < seq < self.seq and len(missed) == self.seq - seq)):
            self._seen_until = time.monotonic() + SEEN_FOR_S
            gap = {"t": "gap", "topic": self.name, "seq": self.seq}
            client.send_frame(frames.encode(frames.TEXT, http_io.dumps(gap)))
            self.clients.discard(client)
            return
        for encoded in missed:
            client.send_frame(encoded)
        self._new.add(client)

    def unsubscribe(self, client: TableClient) -> None:
        if client in self.clients:
            self.clients.discard(client)
            self._behind.discard(client)
            self._new.discard(client)
            self._seen_until = time.monotonic() + SEEN_FOR_S

    def snapshot(self, epoch: str) -> bytes:
        """The whole table as JSON, and the position from which its changes are sent."""
        self._seen_until = time.monotonic() + SEEN_FOR_S
        while self._building:
            self._wait()
        if self._stale:
            self._rebuild()
        seq, rows = self.seq, list(self._rows)
        kept = [slot for slot, row in enumerate(rows) if row is not None]
        head = http_io.dumps({"epoch": epoch, "topic": self.name, "seq": seq, "key": self._source.key})
        parts = [head[:-1], b',"slots":', http_io.dumps(differences(kept)), b',"columns":{']
        for at, name in enumerate(self._source.columns):
            self._rest()
            column = column_text([rows[slot][at] for slot in kept])  # type: ignore[index]
            parts += [b"," if at else b"", http_io.dumps(name), b":", column]
        return b"".join([*parts, b"}}"])

    def _rebuild(self) -> None:
        """Read everything again after a time without clients; a client with an older state loads a snapshot."""
        self._building = True
        try:
            self._stale = False
            self._history.clear()
            self.seq += 1
            self._dirty.clear()
            self._measuring.clear()
            self._take([*self._source.ids(), *[one for one in self._slots if self._source.row(one, None, 0.0) is None]])
        finally:
            self._building = False


def differences(numbers: list[int]) -> list[int]:
    """[3, 4, 9] -> [3, 1, 5], because neighbouring slots then compress well."""
    return [second - first for first, second in pairwise([0, *numbers])]


def column_text(values: list[Any]) -> bytes:
    """A column as JSON: its values, or {"of": distinct values, "at": one index per row} if that is shorter."""
    kinds = set(map(type, values))
    plain = kinds <= _PLAIN and len(kinds & _NUMBERS) <= 1  # equal values are the same: 1 and True are equal
    keys = values if plain else list(map(http_io.dumps, values))
    index = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(index) > len(values) * DISTINCT_SHARE:
        return http_io.dumps(values)
    distinct = http_io.dumps(list(index)) if plain else b"[%s]" % b",".join(index)
    return b'{"of":%s,"at":%s}' % (distinct, http_io.dumps([index[key] for key in keys]))
