"""GET /api/remote-workers/<id>/logs: the last lines, filtered; following; downloading."""

from __future__ import annotations

import contextlib
from typing import Any

import bottle

from procguard.admission.memory import ByteBudget
from procguard.agent_api import http_io
from procguard.agent_api.handlers import checked_worker_id
from procguard.config.limits import WebLimits
from procguard.errors import LimitExceeded
from procguard.fleet.model import clock
from procguard.fleet.registry import Registry
from procguard.portal.auth.access import CALLER
from procguard.portal.logs import around
from procguard.portal.logs.follow import Follower
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.query import LogQuery, parse_since
from procguard.portal.logs.reader import LogLine
from procguard.portal.logs.store import LogStore


class LogsApi:
    def __init__(
        self, registry: Registry, log_store: LogStore, limits: WebLimits | None = None, matching: Matching | None = None
    ) -> None:
        self.matching = matching or Matching()
        self._limits = limits or WebLimits()
        self._follow_memory = ByteBudget(self._limits.follow_memory)
        self._registry = registry
        self.store = log_store
        self._followers: set[Follower] = set()
        log_store.on_append(self._on_append)

    def mount(self, app: bottle.Bottle) -> None:
        app.route("/api/remote-workers/<worker_id>/logs", "GET", http_io.answered(self._get))

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

    def _get(self, worker_id: str) -> Any:
        worker_id = checked_worker_id(worker_id)
        self._registry.worker(worker_id)  # 404 for an unknown one
        query = LogQuery.from_request(self.matching.read)
        if http_io.query_flag("download"):
            return self._download(worker_id, query)
        if http_io.query_flag("follow"):
            return self._follow(worker_id, query)
        if place := http_io.query_text("at", 64):
            return self._excerpt(worker_id, place, query.as_json)
        lines = self.read_tail(worker_id, query, caller_name())
        if not query.as_json:
            return bottle.HTTPResponse("".join(line.text + "\n" for line in lines).encode(), 200, _text_headers())
        last = lines[-1] if lines else None
        end = {"attempt": last.attempt, "offset": last.end} if last else None
        attempts = self.store.attempts(worker_id)
        shown = [line.as_json() for line in lines]
        return {"worker_id": worker_id, "lines": shown, "next": end, "attempts": attempts}

    def _excerpt(self, worker_id: str, at: str, as_json: bool) -> Any:
        """`at`: the address of a line, or a moment: the lines around it."""
        before = http_io.query_int("before", around.DEFAULT_LINES, 0, around.MAX_LINES)
        after = http_io.query_int("after", around.DEFAULT_LINES, 0, around.MAX_LINES)
        place = around.LogAddress.parse(at)
        if place is None:
            moment = parse_since(at, clock.read().wall, "at")
            place = self.store.beside(around.address_at, self.store, worker_id, moment)
        found = (
            around.NOTHING
            if place is None
            else self.store.beside(around.excerpt, self.store, worker_id, place, before, after)
        )
        if not as_json:
            return bottle.HTTPResponse("".join(line.text + "\n" for line in found.lines).encode(), 200, _text_headers())
        return {
            "worker_id": worker_id,
            "lines": [line.as_json() for line in found.lines],
            "target": found.target.as_json() if found.target else None,
            "attempts": self.store.attempts(worker_id),
        }

    def read_tail(self, worker_id: str, query: LogQuery, caller: str, keep_partial: bool = False) -> list[LogLine]:
        question = (worker_id, query.lines, query.attempt, query.stream, query.since, query.expression, keep_partial)
        if query.expression is None:
            return self.store.beside(self.store.tail, *question)
        return self.matching.scan(caller, self.store.tail_steps(*question))

    def _download(self, worker_id: str, query: LogQuery) -> bottle.HTTPResponse:
        headers = _text_headers()
        headers["Content-Disposition"] = f'attachment; filename="{worker_id}.log"'
        return bottle.HTTPResponse(self.store.raw(worker_id, query.attempt, query.stream), 200, headers)

    def _follow(self, worker_id: str, query: LogQuery) -> bottle.HTTPResponse:
        if len(self._followers) >= self._limits.log_followers:
            raise LimitExceeded.for_now(
                f"{self._limits.log_followers} logs are being followed already", "try again later", 10, "limit_exceeded"
            )
        held = contextlib.ExitStack()
        if query.expression is not None:
            held.enter_context(self.matching.follow(caller_name()))
        sock = bottle.request.environ.get("procguard.socket")
        follower = Follower(worker_id, query, sock, self._follow_memory, self.matching, held)
        self._followers.add(follower)  # before the tail is read: nothing falls between
        headers = _text_headers()
        if query.as_json:
            headers["Content-Type"] = "application/x-ndjson"
        bottle.request.environ["procguard.stream"] = True  # headers leave at once, whenever the first line comes
        return bottle.HTTPResponse(_FollowedLog(self, follower, query), 200, headers)

    def leave(self, follower: Follower) -> None:
        self._followers.discard(follower)
        follower.end()


class _FollowedLog:
    """A follower as the file that bottle streams: `read` waits for the next lines; empty = the end."""

    def __init__(self, api: LogsApi, follower: Follower, query: LogQuery) -> None:
        self._api = api
        self._follower = follower
        self._query: LogQuery | None = query  # until the tail was shown
        self._caller = caller_name()  # of a request that is over when the first `read` comes

    def read(self, _size: int = -1) -> bytes:
        follower = self._follower
        if self._query is not None:
            query, self._query = self._query, None
            chunk = follower.begin(self._lines_so_far(query), self._api.store)
            if chunk:
                return chunk
        while not follower.poll.ending:
            chunk = follower.next_chunk()
            if chunk:
                return chunk
            follower.poll.wait(60.0)
        return b""

    def _lines_so_far(self, query: LogQuery) -> list[LogLine]:
        try:
            return self._api.read_tail(self._follower.worker_id, query, self._caller, keep_partial=True)
        except LimitExceeded as exc:  # the answer has begun already
            text = f"[procguard: earlier lines are not shown: {exc.message}]"
            return [LogLine(0, "out", 0, 0.0, text, marker=True)]

    def close(self) -> None:
        self._api.leave(self._follower)


def caller_name() -> str:
    """Whose share of the threads this request uses."""
    principal = bottle.request.environ.get(CALLER)
    return str(getattr(principal, "actor", ""))


def _text_headers() -> dict[str, str]:
    # Worker output is data: never rendered, never sniffed.
    return {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}
