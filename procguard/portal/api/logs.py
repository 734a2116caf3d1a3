"""A worker's log: its last lines, filters, following and download; the status of retention and of the archive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import bottle

from procguard import expression
from procguard.admission.memory import ByteBudget
from procguard.agent_api.declaration import JSON, LINES, TEXT, choice, flag, get, text, whole
from procguard.agent_api.handlers import MAX_ATTEMPT
from procguard.agent_api.interface import Principal
from procguard.errors import LimitExceeded, UsageError
from procguard.fleet.model import clock
from procguard.portal.api.resource import Resource, Services, caller_name
from procguard.portal.logs import around
from procguard.portal.logs.archive.object_store import kind_of, without_place
from procguard.portal.logs.fetch import MOST_BYTES, TAIL_BYTES, LogFetcher
from procguard.portal.logs.follow import Follower
from procguard.portal.logs.query import DEFAULT_LINES, MAX_LINES, LogQuery, parse_resume, parse_since
from procguard.portal.logs.reader import Line, LogLine
from procguard.portal.logs.spool import SpooledLogStore

DIALECT = "RE2's dialect: docs/protocol.md#regular-expressions"


@dataclass(frozen=True)
class LogsQuery:
    tail: int = whole(DEFAULT_LINES, 0, MAX_LINES, "number of lines")
    attempt: int = whole(-1, -1, MAX_ATTEMPT, "only this attempt; -1: all")
    stream: str = choice("out", "err", says="only this stream; default: both")
    since: str = text("`10m`, ISO 8601 or Unix seconds")
    until: str = text("as `since`; not with `follow`")
    regex: str = text(DIALECT, expression.MAX_CHARS)
    at: str = text("an address (`3.out.73014`) or a time: the lines around it, see `before` and `after`", 64)
    before: int = whole(around.DEFAULT_LINES, 0, around.MAX_LINES, "lines before it")
    after: int = whole(around.DEFAULT_LINES, 0, around.MAX_LINES, "lines after it")
    format: str = choice("text", "json", default="text")
    follow: bool = flag("continue with new lines; as JSON, one object per line")
    download: bool = flag("download the whole log as a file")
    resume: str = text("with `follow`: continue after these positions, e.g. `3.out.73014,3.err.20`", 512)


@dataclass(frozen=True)
class LogPosition:
    attempt: int
    offset: int


@dataclass(frozen=True)
class Lines:
    """`attempts`: those of which any output is kept. `next`: the position after the last line; null for a request with
    `at`. `target`: the line at the requested address or time; only for a request with `at`."""

    worker_id: str
    lines: list[Line]
    next: LogPosition | None
    attempts: list[int]
    target: Line | None = None


@dataclass(frozen=True)
class RetentionView:
    """A rule of `logs.retention`. `workers`, `held_bytes` and `oldest_at` (Unix seconds) are as of the last time the
    rule was applied; `deleted_bytes` counts since the manager started."""

    select: str
    days: float | None
    max_bytes: int | None
    workers: int
    held_bytes: int
    oldest_at: float | None
    deleted_bytes: int


@dataclass(frozen=True)
class Retention:
    rules: list[RetentionView]


@dataclass(frozen=True)
class ArchiveView:
    """The status of the archive. `place`: "" if there is no archive; viewers see only its kind, `s3://` or `file://`.
    `problem`: "" if it works. `conditional`: whether the place refuses to overwrite an object; null if unknown.
    `failing_since`, `uploaded_at`: Unix seconds. `waiting_bytes`: on the manager's disk and not archived yet. The other
    numbers count since the manager started."""

    place: str
    problem: str = ""
    failing_since: float | None = None
    uploaded_at: float | None = None
    waiting_bytes: int = 0
    uploaded_objects: int = 0
    uploaded_bytes: int = 0
    read_bytes: int = 0
    unreadable_pieces: int = 0
    evicted_bytes: int = 0
    conditional: bool | None = None


class LogsApi(Resource):
    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self.store = services.log_store
        self._matching = services.matching
        self._limits = services.limits
        self._follow_memory = ByteBudget(self._limits.follow_memory)
        self._followers: set[Follower] = set()
        self.store.on_append(self._on_append)
        fetcher = LogFetcher(services.fleet.log_ranges, self.store)
        self.store.fetch = fetcher.complete
        self.store.fetch_for_search = fetcher.for_search
        self.store.hosts_hold = lambda: fetcher.has_hosts

    @property
    def follower_count(self) -> int:
        return len(self._followers)

    def stop(self) -> None:
        for follower in list(self._followers):
            follower.poll.end("stopping")

    def _on_append(self, worker_id: str, attempt: int, stream: str, offset: int, data: bytes, at: float) -> None:
        for follower in self._followers:
            if follower.worker_id == worker_id:
                follower.take(attempt, stream, offset, data, at)

    @get("/api/logs/retention", "viewer", tag="logs", zh="日志保留规则及其占用")
    def retention(self) -> Retention:
        """The rules of `logs.retention`, with the size of the logs that each one covers.

        They are applied one minute after the manager has started, then every ten minutes.
        """
        rules = self.services.retention
        return Retention(
            [
                RetentionView(
                    one.select,
                    one.days,
                    one.max_bytes,
                    one.workers,
                    one.held_bytes,
                    one.oldest_at,
                    one.deleted_bytes,
                )
                for one in rules
            ]
        )

    @get("/api/logs/archive", "viewer", tag="logs", zh="日志归档的状态")
    def archive(self, caller: Principal) -> ArchiveView:
        """The status of the archive (`logs.archive`): whether it works, and how much it has stored and returned."""
        if not isinstance(self.store, SpooledLogStore) or self.store.archive is None:
            return ArchiveView("")
        status, place = self.store.archive.status, self.store.archive.place
        sees_all = caller.kind == "operator"
        return ArchiveView(
            status.place if sees_all else kind_of(status.place),
            status.problem if sees_all else without_place(status.problem, status.place),
            status.failing_since,
            status.uploaded_at,
            status.waiting_bytes,
            status.uploaded_objects,
            status.uploaded_bytes,
            status.read_bytes,
            status.unreadable_pieces,
            self.store.bytes_evicted,
            place.conditional,
        )

    @get(
        "/api/remote-workers/<worker_id>/logs", "viewer", tag="logs", zh="查看、跟踪或下载日志", answers={200: Lines},
        errors=(404, 429), media=(TEXT, JSON, LINES),
    )  # fmt: skip
    def logs(self, worker_id: str, query: LogsQuery) -> Lines | bottle.HTTPResponse:
        """A worker's log: the last lines, a followed stream, or the whole log.

        As text, or with `format=json` as JSON with `attempts`, those of which any output is kept. `at` is an address
        (`ATTEMPT.STREAM.OFFSET`, as in a search hit: `3.out.73014`) or a time (as in `since`) and selects the lines
        around it, of both streams; as JSON also `target`, the line itself, or null if the manager no longer has it.
        `regex` uses [this syntax](#regular-expressions); a search ends after 10 s with a line that reports it. A line
        whose end has not been written yet has `"partial": true`; when following, a later line with the same
        (`attempt`, `stream`, `offset`) replaces it.
        """
        self.fleet.state.find(worker_id)  # raises NotFound (404) for an unknown worker
        wanted = self._read(query)
        narrow = not (wanted.expression or wanted.resume or query.at or query.since or query.until or query.download)
        most, resumed = TAIL_BYTES if narrow else MOST_BYTES, wanted.resume is not None
        times = {"since": wanted.since, "until": wanted.until, "caller": caller_name()}
        near: dict[tuple[int, str], int] | None = {} if query.at or query.download else None  # no position is known yet
        self.store.fetch(worker_id, wanted.attempt, wanted.stream, most, await_host=resumed, near=near, **times)
        if query.download:
            return self._download(worker_id, wanted)
        if query.follow:
            return self._follow(worker_id, wanted)
        if query.at:
            return self._excerpt(worker_id, query, as_json=wanted.as_json)
        lines = self.read_tail(worker_id, wanted, caller_name())
        if not wanted.as_json:
            return _as_text(lines)
        end = LogPosition(lines[-1].attempt, lines[-1].end) if lines else None
        return Lines(worker_id, _as_json(lines), end, self.store.attempts(worker_id))

    def _excerpt(self, worker_id: str, query: LogsQuery, *, as_json: bool) -> Lines | bottle.HTTPResponse:
        """The lines around `at`, the address of a line or a time."""
        place = around.LogAddress.parse(query.at)
        if place is None:
            try:
                moment = parse_since(query.at, clock.read().wall, "at")
            except UsageError as exc:
                example = "e.g. 3.out.73014 (attempt, stream, offset), 10m, 2026-11-23T22:00:00Z, or Unix seconds"
                raise UsageError(f"at={query.at!r}: expected the address of a line or a time", example) from exc
            place = self.store.beside(around.address_at, self.store, worker_id, moment)
        if place is not None:
            near = self.store.beside(around.beside, self.store, worker_id, place)
            self.store.fetch(worker_id, place.attempt, None, MOST_BYTES, near=near, caller=caller_name())
        found = (
            around.NOTHING
            if place is None
            else self.store.beside(around.excerpt, self.store, worker_id, place, query.before, query.after)
        )
        if not as_json:
            return _as_text(found.lines)
        target = found.target.as_json() if found.target else None
        return Lines(worker_id, _as_json(found.lines), None, self.store.attempts(worker_id), target)

    def _read(self, query: LogsQuery) -> LogQuery:
        if query.until and query.follow:
            raise UsageError("until= and follow= cannot be combined", "omit one of them")
        now_wall = clock.read().wall
        return LogQuery(
            lines=query.tail,
            attempt=query.attempt if query.attempt >= 0 else None,
            stream=query.stream or None,
            since=parse_since(query.since, now_wall) if query.since else None,
            until=parse_since(query.until, now_wall, "until") if query.until else None,
            expression=self._matching.read(query.regex) if query.regex else None,
            as_json=query.format == "json",
            resume=parse_resume(query.resume) if query.follow else None,
        )

    def read_tail(self, worker_id: str, query: LogQuery, caller: str, keep_partial: bool = False) -> list[LogLine]:
        times = (query.since, query.expression, keep_partial, query.until)
        question = (worker_id, query.lines, query.attempt, query.stream, *times)
        if query.expression is None:
            return self.store.beside(self.store.tail, *question)
        return self._matching.scan(caller, self.store.tail_steps(*question))

    def _download(self, worker_id: str, query: LogQuery) -> bottle.HTTPResponse:
        headers = _text_headers()
        headers["Content-Disposition"] = f'attachment; filename="{worker_id}.log"'
        return bottle.HTTPResponse(self.store.raw(worker_id, query.attempt, query.stream, caller_name()), 200, headers)

    def _follow(self, worker_id: str, query: LogQuery) -> bottle.HTTPResponse:
        if len(self._followers) >= self._limits.log_followers:
            raise LimitExceeded.for_now(
                f"{self._limits.log_followers} logs are being followed already", "try again later", 10, "limit_exceeded"
            )
        held = contextlib.ExitStack()
        if query.expression is not None:
            held.enter_context(self._matching.follow(caller_name()))
        sock = bottle.request.environ.get("procguard.socket")
        follower = Follower(worker_id, query, sock, self._follow_memory, self._matching, held)
        self._followers.add(follower)  # before the tail is read, so that no line between the two is lost
        try:
            # A client that has the headers receives every line that is stored from then on: a tail that is read later
            # would leave out those that it has no room for.
            first = follower.begin(self._lines_so_far(follower, query), self.store)
        except BaseException:
            self.leave(follower)
            raise
        headers = _text_headers()
        if query.as_json:
            headers["Content-Type"] = "application/x-ndjson"
        bottle.request.environ["procguard.stream"] = True  # send the headers immediately, before the first line exists
        return bottle.HTTPResponse(_FollowedLog(self, follower, first), 200, headers)

    def _lines_so_far(self, follower: Follower, query: LogQuery) -> list[LogLine]:
        """The first lines to send: the tail, or for a reconnecting client the lines that it has not received."""
        if query.resume is None:
            return self._tail(follower, query)
        query.lines = MAX_LINES
        lines = self._tail(follower, query)
        lacking = [line for line in lines if query.resume.lacks(line.attempt, line.stream, line.end)]
        if len(lacking) < len(lines) or len(lines) < MAX_LINES:
            return lacking
        text = f"[procguard: earlier lines are not shown: more than {MAX_LINES:,} since the connection ended]"
        return [LogLine(0, "out", 0, 0.0, text, marker=True), *lacking]

    def _tail(self, follower: Follower, query: LogQuery) -> list[LogLine]:
        try:
            return self.read_tail(follower.worker_id, query, caller_name(), keep_partial=True)
        except LimitExceeded as exc:  # the lines that come can be followed without them
            text = f"[procguard: earlier lines are not shown: {exc.message}]"
            return [LogLine(0, "out", 0, 0.0, text, marker=True)]

    def leave(self, follower: Follower) -> None:
        self._followers.discard(follower)
        follower.end()


class _FollowedLog:
    """A followed log as a file object for bottle: `read` waits for the next lines and returns b"" at the end."""

    def __init__(self, api: LogsApi, follower: Follower, first: bytes) -> None:
        self._api = api
        self._follower = follower
        self._first = first

    def read(self, _size: int = -1) -> bytes:
        follower = self._follower
        chunk, self._first = self._first, b""
        while not chunk and not follower.poll.ending:
            chunk = follower.next_chunk()
            if not chunk:
                follower.poll.wait(60.0)
        return chunk

    def close(self) -> None:
        self._api.leave(self._follower)


def _as_text(lines: Iterable[LogLine]) -> bottle.HTTPResponse:
    return bottle.HTTPResponse("".join(line.text + "\n" for line in lines).encode(), 200, _text_headers())


def _as_json(lines: Iterable[LogLine]) -> list[Line]:
    return [line.as_json() for line in lines]


def _text_headers() -> dict[str, str]:
    # Output of workers is untrusted: browsers must not render it or guess its type.
    return {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}
