"""The audit log: who requested which change, from where, and its result. Append-only, bounded, on disk.

Owns three logs of the store's history (changes, logins, refusals), which are read as one. Each has its own share in
memory and on disk, so that logins and refusals cannot displace changes. All changes are written; logins of one token
and refusals of one caller only up to a limit, and the rest is counted. A change and its record are one commit if the
record is complete by then; a different outcome is recorded separately. Reads requests only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple
from wsgiref.types import WSGIEnvironment

from procguard.admission.rate import RecordLimiter
from procguard.agent_api import http_io
from procguard.agent_api.interface import Principal
from procguard.errors import ProcGuardError
from procguard.fleet.history.events import EventBounds, EventLog, Numbers
from procguard.fleet.history.query import Event, EventQuery
from procguard.fleet.model import clock
from procguard.fleet.store.interface import Fenced, Line, NotDurable, Store

REFUSALS_AT_ONCE, REFUSALS_PER_S = 60, 1 / 60  # per known caller; for all unauthenticated callers together
LOGINS_AT_ONCE, LOGINS_PER_S = 30, 30 / 3600  # limits per token
MAX_PATH_CHARS = 300
ASKS = "procguard.asks"  # key in a request's environment: the caller, also if it was refused


class _Share(NamedTuple):
    """The limits of one kind of record. `part`: share of the bytes on disk."""

    log: str
    kept: int  # records kept in memory
    part: float


_SHARES = (_Share("audit", 5_000, 0.5), _Share("audit-logins", 2_000, 0.25), _Share("audit-refused", 2_000, 0.25))
_CHANGES, _LOGINS, _REFUSED = range(len(_SHARES))


@dataclass
class _Change:
    """A request in progress. `written`: (status, text) that was committed with its change."""

    environ: WSGIEnvironment
    caller: Principal
    names: Mapping[str, str]
    status: int  # the status of the successful response
    written: tuple[int, str] | None = None


class Audit:
    def __init__(self, store: Store, max_bytes: int) -> None:
        """`store`: already loaded."""
        numbers = Numbers()
        self._logs = [
            EventLog(store, EventBounds(share.kept, int(max_bytes * share.part)), numbers, share.log)
            for share in _SHARES
        ]
        for log in self._logs:
            log.restore()
        # Context-local: each request runs in its own greenlet or thread.
        self._under_way: ContextVar[_Change | None] = ContextVar("change", default=None)
        self._refusals = RecordLimiter(REFUSALS_AT_ONCE, REFUSALS_PER_S)
        self._logins = RecordLimiter(LOGINS_AT_ONCE, LOGINS_PER_S)

    def begin(self, environ: WSGIEnvironment, caller: Principal, names: Mapping[str, str], status: int) -> None:
        """Begin an admitted request that may change something. `names`: the parameters of its path (worker_id, host,
        …); `status`: that of the successful response. Until `end`, its commits include its record.
        """
        self._under_way.set(_Change(environ, caller, names, status))

    def take(self) -> list[Line]:
        """The record of the current request, for the commit of its change; [] if there is none or its change is not
        known yet."""
        change = self._under_way.get()
        if change is None or change.written is not None:
            return []
        said, final = http_io.noted_change(change.environ)
        if not final:
            return []
        change.written = (change.status, said)
        self._note(change, change.status, said)
        return self._logs[_CHANGES].take()

    def end(self, status: int) -> None:
        """The request was answered with `status`."""
        change = self._under_way.get()
        self._under_way.set(None)
        if change is not None:
            said, _ = http_io.noted_change(change.environ)
            if change.written != (status, said):
                self._note(change, status, said)
                self._flush(_CHANGES)

    def _note(self, change: _Change, status: int, said: str) -> None:
        names = change.names
        worker_id, host = names.get("worker_id", "")[:64], (names.get("host") or names.get("agent_id") or "")[:100]
        self._add(_CHANGES, "change", change.environ, status, change.caller, said, worker_id, host)

    def refused(self, environ: WSGIEnvironment, exc: ProcGuardError) -> None:
        """Record a change or log-in that was refused."""
        caller: Principal | None = environ.get(ASKS)
        more = self._refusals.suppressed(caller.identity if caller is not None else "", clock.read().monotonic)
        if more is not None:
            omitted = [f"{more} more refusals before this one"] if more else []
            what = "; ".join([exc.message, *omitted])
            self._add(_REFUSED, "refused", environ, exc.http_status, caller, what)
            self._flush(_REFUSED)

    def logged_in(self, environ: WSGIEnvironment, caller: Principal) -> None:
        self._add_login("login", environ, caller)

    def logged_out(self, environ: WSGIEnvironment, caller: Principal) -> None:
        self._add_login("logout", environ, caller)

    def _add_login(self, kind: str, environ: WSGIEnvironment, caller: Principal) -> None:
        more = self._logins.suppressed(caller.token_id, clock.read().monotonic)
        if more is not None:
            what = f"and {more} more log-ins and log-outs of this token before this one" if more else ""
            self._add(_LOGINS, kind, environ, 200, caller, what)
            self._flush(_LOGINS)

    def find(self, query: EventQuery, limit: int) -> list[Event]:
        """The newest `limit` records that match, oldest first."""
        found = [record for log in self._logs for record in log.search(query, limit)]
        return sorted(found, key=lambda record: int(record["seq"]))[-limit:]

    def close(self) -> None:
        for log in self._logs:
            with contextlib.suppress(NotDurable, Fenced):  # a full disk must not prevent the manager from ending
                log.flush()

    def _add(
        self,
        share: int,
        kind: str,
        environ: WSGIEnvironment,
        status: int,
        caller: Principal | None = None,
        what: str = "",
        worker_id: str = "",
        host: str = "",
    ) -> None:
        path = environ.get("bottle.raw_path") or environ.get("PATH_INFO", "")
        request = f"{environ.get('REQUEST_METHOD', '?')} {path[:MAX_PATH_CHARS]}"
        self._logs[share].add(
            kind,
            clock.read(),
            reason=f"{request}: {what}" if what else request,
            actor=caller.actor if caller is not None else "",
            worker_id=worker_id,
            host=host,
            after=str(status),
            evidence={
                "from": environ.get("REMOTE_ADDR", "?"),
                "via": caller.via if caller is not None else "",
                "token": caller.token_id if caller is not None else "",
                "request_id": environ.get("procguard.request_id", ""),
            },
        )

    def _flush(self, share: int) -> None:
        # reported elsewhere: the change itself was not acknowledged either
        with contextlib.suppress(NotDurable, Fenced):
            self._logs[share].flush()
