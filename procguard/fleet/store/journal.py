"""The journal: every change that was ever committed since the snapshot, in numbered segments beside the state file.

    procguard_state.yaml.j00000012    lines of appendlog.py

    [16, [["fleet", "fleet", {…}]], "head"]                       what HEAD_TABLES held after the 16th commit
    [17, [["workers", "w1", {…}], ["commands", "c-1", null]]]     the 17th commit ever; null deletes
    {"next": 13}                                                  the segment's end: it goes on in j00000013

Owns the segments, their order and the proof that none is missing. Three things prove it: commits are numbered without
a gap; a segment that ended names the next one; and there is always a last segment, because a manager that runs, or ran,
has one open. Each segment begins with the records of HEAD_TABLES: any one that is left tells whose state it was.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from typing import Any

from procguard.fleet.store import appendlog
from procguard.fleet.store.interface import Change, Tables, apply

HEAD_TABLES = ("fleet",)  # the fleet's name and key, and the highest term


@dataclass
class Position:
    """Up to where a snapshot holds what was committed."""

    commit: int = 0
    segment: int = 0  # every segment up to this one is held as a whole; 0: not known, or none


@dataclass
class Replayed:
    """`intact` is False where something acknowledged may be missing after the snapshot."""

    last_commit: int
    changed: set[tuple[str, str]]  # (table, key) of every record that came from the journal
    intact: bool = True
    notes: list[str] = field(default_factory=list)


class Journal:
    """Being written. `also` sees the changes of each commit, in order, in the thread that made them durable."""

    def __init__(self, path: str, run_blocking: appendlog.RunBlocking, also: Any = None) -> None:
        self._state_path = path
        self._run_blocking = run_blocking
        self._also = also
        self._numbering = threading.Lock()
        self._head: dict[tuple[str, str], Any] = {}
        self._commit = 0
        self.segment = 0
        self._log: appendlog.AppendLog | None = None

    def open(self, last_commit: int, tables: Tables) -> None:
        """Begin a segment of our own after all that are there."""
        before = segments(self._state_path)
        self._commit = last_commit
        self._head = {(table, key): record for table in HEAD_TABLES for key, record in tables.get(table, {}).items()}
        self.segment = max(before, default=0) + 1
        path = segment_path(self._state_path, self.segment)
        self._log = appendlog.AppendLog(path, self._run_blocking, self._also)
        self._log.append(self._head_lines())
        if before:
            end_segment(segment_path(self._state_path, before[-1]), self.segment)

    def open_again(self) -> None:
        """The segment being written is gone. Begin another, with what was committed and is not on disk."""
        self.segment = max([*segments(self._state_path), self.segment]) + 1
        log = appendlog.AppendLog(segment_path(self._state_path, self.segment), self._run_blocking, self._also)
        log.append(self._head_lines(), wait=False)
        self.log.hand_over(log)
        self._log = log

    @property
    def log(self) -> appendlog.AppendLog:
        assert self._log is not None, "load() first"
        return self._log

    @property
    def last_commit(self) -> int:
        return self._commit

    def commit(self, changes: list[Change], payload: Any, *, wait: bool) -> None:
        """With `wait`, all that was ever handed in is durable when it returns, also what failed before."""
        log = self.log
        if changes:
            with self._numbering:
                self._commit += 1
                for table, key, record in changes:
                    if table in HEAD_TABLES:
                        self._head[table, key] = record
                log.append([[self._commit, changes]], wait=False, payload=(self._commit, payload))
        if wait:
            log.flush()

    def rotate(self) -> int:
        """Close this segment and go on in the next. Returns the number of the one that is now whole."""
        log, closed = self.log, self.segment
        log.flush()
        with self._numbering:
            head = self._head_lines()
        log.switch(segment_path(self._state_path, closed + 1), head, {"next": closed + 1})
        self.segment = closed + 1
        return closed

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _head_lines(self) -> list[Any]:
        changes = [[table, key, record] for (table, key), record in self._head.items()]
        return [[self._commit, changes, "head"]] if changes else []


def replay(path: str, tables: Tables, held: Position | None, upto: int | None = None) -> Replayed:
    """Bring `tables`, which hold everything up to `held`, up to date (or to the end of segment `upto`, while the
    journal is being written). `held` None: there was no readable snapshot."""
    present = segments(path)
    start = held or Position()
    done = Replayed(start.commit, set())
    following: int | None = None
    for number in present:
        if number <= start.segment or (upto is not None and number > upto):
            continue
        here = segment_path(path, number)
        found = appendlog.examine(here)
        following = _take(found.records, tables, done, here)
        if found.torn:
            done.notes.append(f"{here}: its end is torn (never acknowledged); dropped")
        if found.damaged:
            _lost(done, f"{here}: damaged; what stood in the damaged lines may be lost")
    if following is not None and following not in present:
        _lost(done, f"{segment_path(path, following)}: missing; what it held is lost")
    if held is not None and not any(number > start.segment for number in present):
        _lost(done, f"{segment_path(path, start.segment + 1)}: missing, or a later one; what it held is lost")
    return done


def _take(lines: list[Any], tables: Tables, done: Replayed, here: str) -> int | None:
    """Apply one segment's lines. Returns the number of the segment it names as the next one."""
    following = None
    for line in lines:
        if isinstance(line, dict):
            following = int(line["next"])
            continue
        head = len(line) == 3 and line[2] == "head"
        commit, changes = line[0], line[1]
        if head and commit < done.last_commit:
            continue
        if head:  # says nothing new, unless what led to it is lost
            apply(tables, [tuple(change) for change in changes])
            done.changed.update((change[0], change[1]) for change in changes)
            continue
        if commit <= done.last_commit:
            continue  # the snapshot holds it, or it was written twice because the disk refused in between
        if commit != done.last_commit + 1:
            _lost(done, f"{here}: commits {done.last_commit + 1} to {commit - 1} are missing")
        apply(tables, [tuple(change) for change in changes])
        done.changed.update((change[0], change[1]) for change in changes)
        done.last_commit = commit
    return following


def _lost(done: Replayed, note: str) -> None:
    done.intact = False
    done.notes.append(note)


# ------------------------------------------------------------------------------------------------------- segments


def segments(path: str) -> list[int]:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return []
    found = (re.fullmatch(re.escape(name) + r"\.j(\d{8})", entry) for entry in os.listdir(folder))
    return sorted(int(match.group(1)) for match in found if match)


def segment_path(path: str, number: int) -> str:
    return f"{path}.j{number:08d}"


def drop(path: str, upto: int) -> None:
    """Remove the segments that a snapshot and the one before it both hold."""
    for number in segments(path):
        if number <= upto:
            os.unlink(segment_path(path, number))


def end_segment(path: str, following: int) -> None:
    """Say where it goes on, unless it has been said; after cutting off what a power cut left of a line."""
    found = appendlog.examine(path, only_last=True)
    if found.records and isinstance(found.records[-1], dict):
        return
    if found.torn and not found.damaged:
        os.truncate(path, found.good_bytes)
    if not found.damaged:
        log = appendlog.AppendLog(path)
        log.append([{"next": following}])
        log.close()


def sync_directory(path: str) -> None:
    appendlog.sync_directory(path)
