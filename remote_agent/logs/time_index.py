"""Records when the bytes of a log were written: points (offset, wall time), created when bytes are first observed.

Owns the points of one log file, in memory and in a file beside it (`<n>.log.idx`), both bounded. Bytes between two
points were written at the time of the second one. Knows no manager and no thread. Points of shipped bytes are
dropped; the file tells the next agent when unshipped bytes were written, and until when the previous agent observed.
"""

from __future__ import annotations

import os
import struct
from array import array

from remote_agent.system import paths

POINT = struct.Struct("<Qd")
MAX_OFFSET = 1 << 62  # no log is as large: such a point is invalid
MAX_POINTS = 8192  # beyond this number, close points are merged: 8 hours are kept with a resolution of 8 s
WRITE_WAITING_S = 1.0  # a point whose bytes wait for the manager is on disk within this time
WRITE_SHIPPED_S = 10.0  # interval at which the watch is recorded
UNWATCHED_PARTS = 32  # unobserved bytes are spread evenly over the time without an agent


class TimeIndex:
    """Points of one log file, rising. `path` is the log's."""

    def __init__(self, path: str) -> None:
        self._path = path + ".idx"
        self._ends = array("Q")
        self._times = array("d")
        self._apart_s = 0.0  # minimum distance between points
        self._unwritten = 0  # how many of the last points the file does not have
        self._written_at = 0.0
        self._records = 0
        self._load()

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def last(self) -> int:
        """The offset up to which times are known."""
        return self._ends[-1] if self._ends else 0

    def saw(self, size: int, at: float) -> None:
        """Record that the file had `size` bytes at wall time `at`."""
        if size > self.last:
            if self._times and 0 < self._times[-1] - at < 1.0:
                at = self._times[-1]  # a file's mtime is a little behind the clock
            if len(self._ends) > 1 and 0 <= self._times[-1] - self._times[-2] < self._apart_s:
                self._ends[-1], self._times[-1] = size, at
                self._unwritten = max(1, self._unwritten)
            else:
                self._ends.append(size)
                self._times.append(at)
                self._unwritten += 1
            if len(self._ends) > MAX_POINTS:
                self._thin()

    def saw_first(self, size: int, changed_at: float) -> None:
        """The first observation by a new agent: bytes since the previous agent's last observation were written by
        `changed_at`, the file's mtime."""
        before, since = self.last, self._times[-1] if self._times else changed_at
        if since < changed_at - 1.0 and size > before:
            for part in range(1, UNWATCHED_PARTS):
                share = part / UNWATCHED_PARTS
                self.saw(before + int((size - before) * share), since + (changed_at - since) * share)
        self.saw(size, changed_at)

    def runs(self, start: int, end: int, limit: int) -> tuple[list[tuple[int, float]], int]:
        """Returns ([(offset, wall time)…], end): at most `limit` runs of bytes from `start` on, and their end."""
        index = self._find(start)
        found: list[tuple[int, float]] = []
        while start < end and index < len(self._ends):
            if len(found) >= limit:
                return found, start
            found.append((start, self._times[index]))
            start = self._ends[index]
            index += 1
        if start < end and not found:
            found.append((start, self._times[-1] if self._times else 0.0))
        return found, end

    def forget_before(self, offset: int) -> None:
        """Drop the points of shipped bytes. The last point is kept, because it records the time of the last
        observation."""
        gone = min(self._find(offset), len(self._ends) - 1)
        if gone > 0:
            del self._ends[:gone]
            del self._times[:gone]
            self._unwritten = min(self._unwritten, len(self._ends))
            if len(self._ends) == 1:
                self._apart_s = 0.0

    def _find(self, offset: int) -> int:
        """The index of the first point after `offset`."""
        low, high = 0, len(self._ends)
        while low < high:
            middle = (low + high) // 2
            if self._ends[middle] <= offset:
                low = middle + 1
            else:
                high = middle
        return low

    def _thin(self) -> None:
        """Merge points: bytes have the time of the point after them, so a point can be removed if the next one is
        close."""
        while len(self._ends) > MAX_POINTS * 3 // 4 and self._apart_s < 1e9:
            self._apart_s = max(0.2, self._apart_s * 2)
            ends, times = array("Q"), array("d")
            for number in range(len(self._ends) - 1, -1, -1):
                if not times or not 0 <= times[-1] - self._times[number] < self._apart_s:
                    ends.append(self._ends[number])
                    times.append(self._times[number])
            self._ends, self._times = ends[::-1], times[::-1]
        del self._ends[:-MAX_POINTS], self._times[:-MAX_POINTS]  # a clock that jumps all the time
        self._rewrite()

    # ------------------------------------------------------------------------------------------ on disk

    def write(self, now_wall: float, waiting: bool) -> None:
        """Write new points to the disk if due. Raises OSError."""
        every_s = WRITE_WAITING_S if waiting else WRITE_SHIPPED_S
        if not self._unwritten or 0 <= now_wall - self._written_at < every_s:
            return
        if self._records + self._unwritten > 2 * MAX_POINTS:
            self._rewrite()
            return
        fresh = self._unwritten if waiting else 1
        data = b"".join(POINT.pack(*point) for point in zip(self._ends[-fresh:], self._times[-fresh:]))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, paths.PRIVATE_FILE)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        self._records += fresh
        self._unwritten = 0
        self._written_at = now_wall

    def _rewrite(self) -> None:
        data = b"".join(POINT.pack(*point) for point in zip(self._ends, self._times))
        try:
            paths.write_atomic(self._path, data)
        except OSError:
            return  # tried again with the next points
        self._records = len(self._ends)
        self._unwritten = 0

    def _load(self) -> None:
        """A torn or foreign end is dropped and the file rewritten: later points must not follow it."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(4 * MAX_POINTS * POINT.size)
        except OSError:
            return
        whole = len(data) // POINT.size * POINT.size
        for end, at in POINT.iter_unpack(data[:whole]):
            if not self.last < end < MAX_OFFSET or not 0 < at < 1e11:
                break
            self._ends.append(end)
            self._times.append(at)
        self._records = len(self._ends)
        if len(self._ends) * POINT.size != len(data):
            self._rewrite()
        while len(self._ends) > MAX_POINTS:
            self._thin()

    def remove(self) -> None:
        try:
            os.unlink(self._path)
        except OSError:
            pass
