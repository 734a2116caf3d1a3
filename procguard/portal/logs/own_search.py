"""The manager's part of a search: stored logs that no queried host has.

These are all logs of workers on unreachable hosts, attempts of a moved worker before its current host, and what a
host has deleted (it keeps logs.keep_local of each). Owns the selection of files, the greenlet that searches them in
Matching's thread, and its limits. Knows no HTTP.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence

import gevent
import gevent.event

from procguard.errors import LimitExceeded
from procguard.fleet.agents.log_search import ANSWER_GRACE_S, OPEN, Part, Search
from procguard.fleet.model import clock
from procguard.i18n.reasons import NONE, Reason, because, of_message
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.reader import MAX_SCAN_BYTES, LogLine, ScanBudget
from procguard.portal.logs.store import LogStore
from procguard.portal.logs.stored import STEP_S
from procguard.runtime.cooperative import Pace
from remote_agent.logs.grep import COLOURS, cut_out
from remote_agent.protocol.messages import LogMatch

Find = Callable[[str], "tuple[int, int] | None"]
Wanted = dict[tuple[int, str], "int | None"]  # (attempt, stream) -> only lines that begin up to this offset; None: all

TURN_LINES = 512  # lines of one worker per turn
MAX_OPEN = 16  # limit of workers read concurrently, because each has some files open
# limit of bytes fetched for one search, in equal parts for each of its workers, newest first
ARCHIVE_BYTES = 64 * 1024 * 1024
LATE = because("search.host_late")


class OwnSearch:
    """Call `begin`, then `merge` with each host's answer, finally `end`. The manager's part joins the search once
    there are logs to search. `find`: the position of a match in a line."""

    def __init__(self, store: LogStore, matching: Matching, search: Search, find: Find, caller: str) -> None:
        self._store, self._matching, self._search, self._find, self._caller = store, matching, search, find, caller
        self._pending = set(search.parts)
        self._part: Part | None = None
        self._more = gevent.event.Event()
        self._ended = False
        self._deadline = search.ends_at - ANSWER_GRACE_S / 2
        self._budget = ScanBudget(MAX_SCAN_BYTES)
        self._todo: deque[tuple[str, Wanted]] = deque()
        self._lines: list[tuple[float, int, LogMatch]] = []  # a heap of the newest matches
        self._found = 0
        self._problem: tuple[str, Reason] = ("", NONE)
        self._archive_left = ARCHIVE_BYTES
        self._unread = 0  # archived bytes that were not searched
        self._late = False  # whether archived logs of some workers were not searched

    def begin(self) -> None:
        """Select the logs that are known before any host has answered."""
        self._store.await_index()
        self._add(self._store.beside(self._of_earlier_hosts))
        for part in list(self._search.parts.values()):
            if part.agent_id and part.status not in OPEN:
                self.merge(part, [])

    def merge(self, part: Part, matches: list[LogMatch]) -> list[LogMatch]:
        """Process a host's answer; returns its lines that the manager's part does not report itself."""
        if not part.agent_id:
            return matches
        if part.agent_id in self._pending:
            if part.status != "no_answer":
                self._add(self._store.beside(self._not_on, part, matches))
            self._pending.discard(part.agent_id)
            self._more.set()
        doubtful = [match for match in matches if self._may_reveal(part, match)]
        part.held = None  # may be arbitrarily large: drop it
        if not doubtful:
            return matches
        duplicates = {id(match) for match in self._store.beside(self._stored, doubtful)}
        part.found -= len(duplicates)
        return [match for match in matches if id(match) not in duplicates]

    def end(self) -> None:
        self._ended = True
        self._more.set()

    # ----------------------------------------------------------------------------------------------- selection

    def _streams(self, worker_id: str) -> list[tuple[int, str]]:
        only = self._search.question.stream
        return [(attempt, stream) for attempt, stream in self._store.streams(worker_id) if only in ("", stream)]

    def _of_earlier_hosts(self) -> list[tuple[str, Wanted]]:
        moved = self._search.attempts_before.items()
        return [
            (worker_id, {one: None for one in self._streams(worker_id) if one[0] <= before})
            for worker_id, before in moved
        ]

    def _not_on(self, part: Part, matches: Sequence[LogMatch]) -> list[tuple[str, Wanted]]:
        """Logs that are stored here but not on that host, which has answered or is unreachable."""
        lost = part.status == "away"
        if not lost and part.held is None:
            return []  # the agent does not report its files
        # Enough lines, all newer than anything stored only here.
        lines = Counter(match.worker_id for match in matches)
        full = {worker_id for worker_id, number in lines.items() if number >= self._search.question.max_lines}
        found = []
        for worker_id in part.worker_ids:
            if worker_id in part.former or worker_id in full:
                continue
            held = {} if lost or part.held is None else part.held.get(worker_id, {})
            wanted: Wanted = {}
            for attempt, stream in self._streams(worker_id):
                first = held.get(f"{attempt}.{stream}")
                if attempt > self._search.attempts_before.get(worker_id, 0) and first != 0:
                    wanted[(attempt, stream)] = first
            found.append((worker_id, wanted))
        return found

    def _may_reveal(self, part: Part, match: LogMatch) -> bool:
        """Whether the manager's copy takes precedence: for attempts that ran on another host before, and for the line
        at which the host's log was cut, possibly in the middle."""
        first = ((part.held or {}).get(match.worker_id) or {}).get(f"{match.attempt}.{match.stream}", 0)
        earlier = match.attempt <= self._search.attempts_before.get(match.worker_id, 0)
        return earlier or 0 < match.offset <= first

    def _stored(self, matches: Sequence[LogMatch]) -> list[LogMatch]:
        """The logs that are stored completely."""
        return [
            match
            for match in matches
            if self._store.holds(
                match.worker_id, match.attempt, match.stream, match.offset + len(match.text.encode("utf-8", "replace"))
            )
        ]

    def _add(self, pairs: list[tuple[str, Wanted]]) -> None:
        pairs = [(worker_id, wanted) for worker_id, wanted in pairs if wanted]
        if not pairs or self._ended:
            return
        if self._part is not None and self._part.status not in OPEN:
            if self._part.status == "done":  # this host has answered after the deadline
                self._part.status, self._part.reason = "timeout", LATE
            return
        if self._part is None:
            self._part = self._search.add_manager()
            gevent.spawn(self._run, self._part)
        known = set(self._part.worker_ids)
        self._part.worker_ids += [worker_id for worker_id, _ in pairs if worker_id not in known]
        self._todo.extend(pairs)
        self._more.set()

    # ---------------------------------------------------------------------------------------------------- searching

    def _run(self, part: Part) -> None:
        began = time.monotonic()
        while not self._ended and not self._problem[0] and (self._todo or self._pending):
            self._more.clear()
            if not self._todo:
                if not self._more.wait(max(0.0, self._deadline - clock.read().monotonic)):
                    break  # keep the results even if a host does not answer
                continue
            try:
                self._fetch_archived()
                self._matching.scan(self._caller, self._search_all())
            except LimitExceeded as exc:
                self._problem = ("failed", of_message(exc.message))
        if part.status not in OPEN:
            return  # given up
        if self._late and not self._problem[0]:
            self._problem = ("timeout", because("search.own_late"))
        if self._unread and not self._problem[0]:
            self._problem = ("timeout", because("search.archive_rest", mb=math.ceil(self._unread / 1e6)))
        status, part.reason = self._problem
        part.status = "timeout" if status == "timeout" else "failed" if status else "done"
        part.found, part.bytes = self._found, MAX_SCAN_BYTES - max(0, self._budget.left)
        part.elapsed_s = round(time.monotonic() - began, 3)
        newest_first = sorted(self._lines, key=lambda entry: (-entry[0], -entry[1]))
        self._search.finish(part, [match for _, _, match in newest_first])

    def _fetch_archived(self) -> None:
        """Fetch archived logs to the disk first, for at most half of the remaining time."""
        now, question = clock.read().monotonic, self._search.question
        ends = time.monotonic() + max(0.0, self._deadline - now) / 2
        pairs, self._todo = list(self._todo), deque()
        rest = Pace()
        for number, (worker_id, wanted) in enumerate(pairs):
            rest()
            if time.monotonic() > ends or self._ended:
                self._late = True
                self._todo.extend(pairs[number:])
                return
            share = max(0, self._archive_left) // (len(pairs) - number)
            left = self._store.fetch_for_search(
                worker_id, wanted, share, ends, self._caller, since=question.since, until=question.until
            )
            self._unread += left
            self._archive_left -= share if left else 0
            self._todo.append((worker_id, wanted))

    def _search_all(self) -> Generator[None, None, None]:
        """Search in Matching's thread, some lines of each worker in turn."""
        round_robin: deque[Iterator[None]] = deque()
        step_ends = time.monotonic() + STEP_S
        try:
            while self._todo or round_robin:
                while self._todo and len(round_robin) < MAX_OPEN:
                    round_robin.append(self._worker(*self._todo.popleft()))
                steps = round_robin.popleft()
                if next(steps, self) is not self:
                    round_robin.append(steps)
                if self._ended:
                    return
                if self._budget.left <= 0:
                    self._problem = ("timeout", because("search.too_much", mb=round(MAX_SCAN_BYTES / 1e6)))
                elif clock.read().monotonic > self._deadline:
                    self._problem = ("timeout", because("search.own_late"))
                if self._problem[0]:
                    return
                if time.monotonic() > step_ends:
                    yield
                    step_ends = time.monotonic() + STEP_S
        except OSError as exc:
            self._problem = ("failed", because("search.unreadable", error=exc.strerror or str(exc)))

    def _worker(self, worker_id: str, wanted: Wanted) -> Iterator[None]:
        question, found = self._search.question, 0
        for number, line in enumerate(self._store.newest_lines(worker_id, wanted, self._budget), 1):
            if question.since is not None and line.at < question.since:
                return  # all remaining lines are older
            if not line.marker and (question.until is None or line.at <= question.until):
                found += self._take(worker_id, line)
            if found >= question.max_lines:
                return
            if number % TURN_LINES == 0:
                yield

    def _take(self, worker_id: str, line: LogLine) -> bool:
        """Keep the line if it matches and is among the newest. Returns whether it matches."""
        text = COLOURS.sub("", line.text) if "\x1b" in line.text else line.text
        place = self._find(text)
        if place is None:
            return False
        self._found += 1
        shown, begin, end = cut_out(text, *place)
        match = LogMatch(
            worker_id,
            line.attempt,
            "err" if line.stream == "err" else "out",
            line.offset,
            shown,
            begin,
            end,
            round(line.at, 3),
        )
        entry = (line.at, -self._found, match)
        if len(self._lines) < self._search.question.max_lines:
            heapq.heappush(self._lines, entry)
        else:
            heapq.heappushpop(self._lines, entry)
        return True
