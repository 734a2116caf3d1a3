"""Log search: the agents search the logs on their hosts, and this module merges their results as they arrive.

The manager itself searches the logs that no host holds any longer (portal/logs/own_search.py); its result is merged
like an agent's. This module owns the pending request: its deadline, its limits, and the times of lines (the manager's
times take precedence over the hosts'). Agents post their results to agent_api/handlers.py. Closing the request ends the
search.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import bottle
from typing_extensions import TypedDict

from procguard import expression
from procguard.agent_api import declaration, http_io
from procguard.agent_api.declaration import JSON, LINES, choice, flag, get, seconds, whole
from procguard.agent_api.long_poll import LongPoll
from procguard.errors import UsageError
from procguard.fleet.agents.log_search import OPEN, HostSearched, Part, Question, Search
from procguard.fleet.fleet import Fleet
from procguard.fleet.model import clock
from procguard.portal.api.logs import DIALECT
from procguard.portal.api.resource import Resource, caller_name
from procguard.portal.api.workers import MAX_SELECT_CHARS
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.own_search import Find, OwnSearch
from procguard.portal.logs.query import parse_since
from procguard.portal.logs.store import LogStore

DEFAULT_LINES, MAX_LINES = 500, 5000
DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S = 10.0, 60.0


@dataclass(frozen=True)
class SearchQuery:
    text: str = declaration.text("literal text; alternatively `regex`", expression.MAX_CHARS)
    regex: str = declaration.text(DIALECT, expression.MAX_CHARS)
    ignore_case: bool = flag("ignore case")
    select: str = declaration.text("a selector: `group=trainers,state=failed`", MAX_SELECT_CHARS)
    q: str = declaration.text("words that the worker's fields contain")
    stream: str = choice("out", "err", says="only this stream; default: both")
    since: str = declaration.text("`2h`, ISO 8601 or Unix seconds")
    until: str = declaration.text("as `since`")
    limit: int = whole(DEFAULT_LINES, 1, MAX_LINES, "number of newest lines")
    timeout: float = seconds(
        DEFAULT_TIMEOUT_S, 1.0, MAX_TIMEOUT_S, "time limit of the search on each host in seconds, at most 60"
    )
    format: str = choice(
        "json", "jsonl", default="json", says="`jsonl`: results as the hosts answer, one object per line"
    )


class FoundLine(TypedDict):
    host: str
    worker_id: str
    attempt: int
    stream: Literal["out", "err"]
    offset: int
    text: str
    begin: int
    end: int
    at: float


class FoundTotals(TypedDict):
    search_id: str
    hosts_asked: int
    hosts_answered: int
    hosts_open: int
    workers: int
    found: int
    shown: int
    bytes: int
    complete: bool
    elapsed_s: float


class FoundAnswer(FoundTotals):
    """`lines`: newest first; in each, `[begin, end)` is the part of `text` that matched."""

    hosts: list[HostSearched]
    lines: list[FoundLine]


class SearchApi(Resource):
    @get(
        "/api/log-search", "viewer", tag="logs", zh="在所有主机上搜索日志", answers={200: FoundAnswer},
        errors=(413, 429), media=(JSON, LINES), example_query="?regex=x&timeout=1",
    )  # fmt: skip
    def search(self, query: SearchQuery) -> FoundAnswer | bottle.HTTPResponse:
        """Search the logs of all hosts; the agents search the files on their hosts.

        Requires `text` or `regex` ([below](#log-search)).
        """
        services, matching = self.services, self.services.matching
        question, find = read_question(query, matching)
        workers = self.fleet.operations.matching(query.select, query.q)
        poll = LongPoll("search", "", bottle.request.environ.get("procguard.socket"))
        search = self.fleet.log_searches.begin(question, workers, clock.read(), poll.wake)
        own = OwnSearch(services.log_store, matching, search, find, caller_name())
        running = RunningSearch(self.fleet, services.log_store, search, poll, own)
        try:
            own.begin()
        except BaseException:
            running.close()
            raise
        if query.format == "jsonl":
            bottle.request.environ["procguard.stream"] = True
            headers = {"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}
            return bottle.HTTPResponse(running, 200, headers)
        try:
            return running.whole()
        finally:
            running.close()


class RunningSearch:
    """A running search as a file object for bottle: `read` waits for the next host's result and returns b"" at the
    end."""

    def __init__(self, fleet: Fleet, store: LogStore, search: Search, poll: LongPoll, own: OwnSearch) -> None:
        self._fleet, self._store, self._search, self._poll, self._own = fleet, store, search, poll, own
        self._newest = Newest(search.question.max_lines)
        self._begun = self._ended = False

    def read(self, _size: int = -1) -> bytes:
        search = self._search
        if not self._begun:
            self._begun = True
            return _line({"t": "begin", **self._totals()})
        while not self._poll.ending:
            if search.fresh:
                part, lines = self._next()
                return _line({"t": "host", **part.view(), "lines": lines})
            if not search.open:
                break
            self._wait()
        if self._ended or self._poll.ending:
            return b""
        self._ended = True
        return _line({"t": "end", **self._totals()})

    def whole(self) -> FoundAnswer:
        """The whole result, once the last host has answered or the deadline has passed."""
        search = self._search
        while not self._poll.ending and (search.fresh or search.open):
            if search.fresh:
                self._next()
            else:
                self._wait()
        hosts = [part.view() for part in search.parts.values()]
        return {**self._totals(), "hosts": hosts, "lines": self._newest.lines()}

    def close(self) -> None:
        self._poll.release()
        self._own.end()
        self._fleet.log_searches.end(self._search)

    def _wait(self) -> None:
        left_s = self._search.ends_at - clock.read().monotonic
        if left_s <= 0:
            self._search.give_up()
        else:
            self._poll.wait(left_s)

    def _next(self) -> tuple[Part, list[FoundLine]]:
        """The next finished part, with those of its lines that are among the newest so far."""
        part, matches = self._search.fresh.popleft()
        matches = self._own.merge(part, matches)
        question = self._search.question
        written = self._store.written(matches) if matches else []
        kept = []
        for match, known in zip(matches, written, strict=True):
            at = known or match.at
            outside = (question.since is not None and at < question.since) or (
                question.until is not None and at > question.until
            )
            if not outside:
                line: FoundLine = {
                    "host": part.host,
                    "worker_id": match.worker_id,
                    "attempt": match.attempt,
                    "stream": match.stream,
                    "offset": match.offset,
                    "text": match.text,
                    "begin": match.begin,
                    "end": match.end,
                    "at": round(at, 3),
                }
                if line in self._newest:
                    part.found -= 1
                elif self._newest.add(line):
                    kept.append(line)
        return part, kept

    def _totals(self) -> FoundTotals:
        search = self._search
        parts = search.parts.values()
        return {
            "search_id": search.search_id,
            "hosts_asked": len(search.parts),
            "hosts_answered": sum(part.status == "done" for part in parts),
            "hosts_open": sum(part.status in OPEN for part in parts),
            "workers": search.worker_count,
            "found": sum(part.found for part in parts),
            "shown": len(self._newest),
            "bytes": sum(part.bytes for part in parts),
            "complete": all(part.status == "done" for part in parts),
            "elapsed_s": round(clock.read().monotonic - search.began, 3),
        }


class Newest:
    """The newest `limit` lines, independent of the order of arrival. `line in newest`: whether the same line is already
    kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, int, FoundLine]] = []
        self._positions: set[tuple[Any, ...]] = set()
        self._count = 0

    def __contains__(self, line: FoundLine) -> bool:
        return _position(line) in self._positions

    def add(self, line: FoundLine) -> bool:
        """Add a line. False if it is older than all kept lines and the limit is reached."""
        self._count += 1
        entry = (line["at"], -self._count, line)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, entry)
            self._positions.add(_position(line))
            return True
        gone = heapq.heappushpop(self._heap, entry)
        if gone is entry:
            return False
        self._positions.discard(_position(gone[2]))
        self._positions.add(_position(line))
        return True

    def lines(self) -> list[FoundLine]:
        """Newest first."""
        return [line for _, _, line in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

    def __len__(self) -> int:
        return len(self._heap)


def _position(line: FoundLine) -> tuple[Any, ...]:
    """The identity of a line, independent of whether a host or the manager found it."""
    return (line["worker_id"], line["attempt"], line["stream"], line["offset"])


def read_question(query: SearchQuery, matching: Matching) -> tuple[Question, Find]:
    """The search request, and the function that finds its matches in the manager's own logs. Raises UsageError."""
    if bool(query.text) == bool(query.regex):
        raise UsageError("expected text= or regex=, and not both", "e.g. ?text=CUDA%20error&select=group=trainers")
    pattern, find = query.text, _literally(query.text)
    if query.regex or query.ignore_case:
        if query.regex:
            wanted = matching.read(query.regex, query.ignore_case)
        else:  # case folding is the same on every host, independent of its Python version
            literal = expression.literal(query.text)
            wanted = expression.read(literal, True, "text", expression.MAX_LITERAL_CHARS)
        pattern, find = wanted.for_hosts, wanted.place_in  # RE2 here; on the host, `re` in a process that can be killed
    now_wall = clock.read().wall
    question = Question(
        pattern=pattern,
        regex=pattern is not query.text,
        stream=query.stream,
        since=parse_since(query.since, now_wall) if query.since else None,
        until=parse_since(query.until, now_wall, "until") if query.until else None,
        max_lines=query.limit,
        timeout_s=query.timeout,
    )
    return question, find


def _literally(text: str) -> Callable[[str], tuple[int, int] | None]:
    def find(line: str) -> tuple[int, int] | None:
        begin = line.find(text)
        return None if begin < 0 else (begin, begin + len(text))

    return find


def _line(message: Mapping[str, object]) -> bytes:
    return http_io.dumps(message) + b"\n"
