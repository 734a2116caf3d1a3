"""GET /api/log-search: the agents look through their hosts' logs, and what they find is merged here as it comes.

What no host holds any longer, the manager looks through itself (portal/logs/own_search.py): one part more, merged like
the others. Owns the request that waits: its deadline, its bounds, when lines were written (which the manager knows
better than the hosts, where it has them too). What agents answer comes in at the desk. Closing the request ends the
search.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import bottle

from procguard.agent_api import http_io
from procguard.agent_api.long_poll import HeldPoll
from procguard.errors import UsageError
from procguard.fleet.agents.log_search import OPEN, Part, Question, Search
from procguard.fleet.model import clock
from procguard.fleet.registry import Registry
from procguard.portal.logs import expression
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.own_search import Find, OwnSearch
from procguard.portal.logs.query import parse_since
from procguard.portal.logs.store import LogStore
from remote_agent.protocol import messages

DEFAULT_LINES, MAX_LINES = 500, 5000
DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S = 10.0, 60.0
MAX_PATTERN_CHARS = expression.MAX_CHARS
MAX_SELECT_CHARS = 8_000  # a request line has 8,192; a longer one fits the body of a preview

Line = dict[str, Any]


class SearchApi:
    def __init__(
        self, registry: Registry, log_store: LogStore, matching: Matching, caller: Callable[[], str] = lambda: ""
    ) -> None:
        """`caller`: whose share of Matching's threads this request uses."""
        self._caller = caller
        self._registry = registry
        self._store = log_store
        self._matching = matching

    def mount(self, app: bottle.Bottle) -> None:
        app.route("/api/log-search", "GET", http_io.answered(self._search))

    def _search(self) -> Any:
        question, find = read_question(self._matching)
        shape = http_io.query_text("format") or "json"
        if shape not in ("json", "jsonl"):
            raise UsageError(f"format={shape[:20]!r}: not known", "use format=json or format=jsonl")
        select, words = http_io.query_text("select", MAX_SELECT_CHARS), http_io.query_text("q")
        workers = self._registry.operations.matching(select, words)
        poll = HeldPoll("search", "", bottle.request.environ.get("procguard.socket"))
        search = self._registry.searches.begin(question, workers, clock.read(), poll.wake)
        own = OwnSearch(self._store, self._matching, search, find, self._caller())
        running = RunningSearch(self._registry, self._store, search, poll, own)
        try:
            own.begin()
        except BaseException:
            running.close()
            raise
        if shape == "jsonl":
            bottle.request.environ["procguard.stream"] = True
            headers = {"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}
            return bottle.HTTPResponse(running, 200, headers)
        try:
            return running.whole()
        finally:
            running.close()


class RunningSearch:
    """A search as the file that bottle streams: each `read` waits for the next host; empty = the end."""

    def __init__(self, registry: Registry, store: LogStore, search: Search, poll: HeldPoll, own: OwnSearch) -> None:
        self._registry, self._store, self._search, self._poll, self._own = registry, store, search, poll, own
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

    def whole(self) -> dict[str, Any]:
        """Everything at once, when the last host has answered or the time is up."""
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
        self._registry.searches.end(self._search)

    def _wait(self) -> None:
        left_s = self._search.ends_at - clock.read().monotonic
        if left_s <= 0:
            self._search.give_up()
        else:
            self._poll.wait(left_s)

    def _next(self) -> tuple[Part, list[Line]]:
        """The next part, and those of its lines that are among the newest so far."""
        part, matches = self._search.fresh.popleft()
        matches = self._own.heard(part, matches)
        question = self._search.question
        written = self._store.written(matches) if matches else []
        kept = []
        for match, known in zip(matches, written, strict=True):
            at = known or match.at
            outside = (question.since is not None and at < question.since) or (
                question.until is not None and at > question.until
            )
            if not outside:
                line = {"host": part.host, **messages.encode(match), "at": round(at, 3)}
                if line in self._newest:
                    part.found -= 1
                elif self._newest.add(line):
                    kept.append(line)
        return part, kept

    def _totals(self) -> dict[str, Any]:
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
    """The newest lines of all that come, in whatever order they come; `in`: a line that is among them already."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, int, Line]] = []
        self._places: set[tuple[Any, ...]] = set()
        self._count = 0

    def __contains__(self, line: Line) -> bool:
        return _place(line) in self._places

    def add(self, line: Line) -> bool:
        """False where enough newer ones are here already."""
        self._count += 1
        entry = (line["at"], -self._count, line)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, entry)
            self._places.add(_place(line))
            return True
        gone = heapq.heappushpop(self._heap, entry)
        if gone is entry:
            return False
        self._places.discard(_place(gone[2]))
        self._places.add(_place(line))
        return True

    def lines(self) -> list[Line]:
        """Newest first."""
        return [line for _, _, line in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

    def __len__(self) -> int:
        return len(self._heap)


def _place(line: Line) -> tuple[Any, ...]:
    """What makes it the same line, whoever found it."""
    return (line["worker_id"], line["attempt"], line["stream"], line["offset"])


def read_question(matching: Matching) -> tuple[Question, Find]:
    """What this request asks, and where a line of the manager's own logs matches it. Raises UsageError."""
    text, regex = http_io.query_text("text", MAX_PATTERN_CHARS), http_io.query_text("regex", MAX_PATTERN_CHARS)
    if bool(text) == bool(regex):
        raise UsageError("expected text= or regex=, and not both", "e.g. ?text=CUDA%20error&select=group=trainers")
    ignore_case = http_io.query_flag("ignore_case")
    pattern, find = text, _literally(text)
    if regex or ignore_case:
        if regex:
            wanted = matching.read(regex, ignore_case)
        else:  # upper and lower case are the same on every host, whatever its Python thinks
            wanted = expression.read(expression.literal(text), True, "text", expression.MAX_LITERAL_CHARS)
        pattern, find = wanted.for_hosts, wanted.place_in  # RE2 here; `re` in a process that may be killed there
    stream = http_io.query_text("stream")
    if stream not in ("", "out", "err"):
        raise UsageError(f"stream={stream[:20]!r}: expected out or err", "leave it out for both")
    now_wall = clock.read().wall
    since, until = http_io.query_text("since"), http_io.query_text("until")
    question = Question(
        pattern=pattern,
        regex=pattern is not text,
        stream=stream,
        since=parse_since(since, now_wall) if since else None,
        until=parse_since(until, now_wall, "until") if until else None,
        max_lines=http_io.query_int("limit", DEFAULT_LINES, 1, MAX_LINES),
        timeout_s=http_io.query_seconds("timeout", DEFAULT_TIMEOUT_S, 1.0, MAX_TIMEOUT_S),
    )
    return question, find


def _literally(text: str) -> Callable[[str], tuple[int, int] | None]:
    def find(line: str) -> tuple[int, int] | None:
        begin = line.find(text)
        return None if begin < 0 else (begin, begin + len(text))

    return find


def _line(message: dict[str, Any]) -> bytes:
    return http_io.dumps(message) + b"\n"
