"""The audit: who asked for which change, from where, and what came of it. Append-only, bounded, on disk.

Owns `….audit.jsonl` (+ `.1`) beside the state. Changes that were let in and log-ins are all written; refusals only so
many, so that nobody can drive the changes out by being refused. Reads nothing but requests.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from procguard.channels import Principal, http_io
from procguard.channels.rate import RateLimiter
from procguard.errors import ProcGuardError
from procguard.fleet import clock
from procguard.fleet.event_query import EventQuery
from procguard.fleet.events import EventBounds, EventLog
from procguard.fleet.store import appendlog

KEPT_IN_MEMORY = 5_000
REFUSALS_AT_ONCE, REFUSALS_PER_S = 60, 1 / 60
MAX_PATH_CHARS = 300

Record = dict[str, Any]


def path_beside(state_file: str) -> str:
    """data/procguard_state.yaml -> data/procguard_state.audit.jsonl."""
    return os.path.splitext(os.path.abspath(state_file))[0] + ".audit.jsonl"


class Audit:
    def __init__(self, path: str, max_bytes: int, run_blocking: appendlog.RunBlocking = appendlog.run_here) -> None:
        self._log = EventLog(path, run_blocking, EventBounds(KEPT_IN_MEMORY, max_bytes))
        self._refusals = RateLimiter(REFUSALS_AT_ONCE, REFUSALS_PER_S)
        self._untold = 0  # refusals that were not written since the last one that was

    def changed(self, environ: dict[str, Any], caller: Principal, names: Mapping[str, str], status: int) -> None:
        """A request that was let in, answered with `status`. `names`: what its address names (worker_id, host, …)."""
        self._add(
            "change",
            environ,
            status,
            caller,
            worker_id=names.get("worker_id", "")[:64],
            host=(names.get("host") or names.get("agent_id") or "")[:100],
        )

    def refused(self, environ: dict[str, Any], exc: ProcGuardError) -> None:
        """A change or a log-in that was not let in."""
        if self._refusals.wait_s("", clock.read().monotonic) > 0:
            self._untold += 1
            return
        more, self._untold = self._untold, 0
        what = exc.message + (f" (and {more} more refusals before this one)" if more else "")
        self._add("refused", environ, exc.http_status, what=what)

    def logged_in(self, environ: dict[str, Any], caller: Principal) -> None:
        self._add("login", environ, 200, caller)

    def logged_out(self, environ: dict[str, Any], caller: Principal) -> None:
        self._add("logout", environ, 200, caller)

    def find(self, query: EventQuery, limit: int) -> list[Record]:
        """The newest `limit` records in memory that match, oldest first."""
        return self._log.find(query, limit)

    def close(self) -> None:
        with contextlib.suppress(appendlog.NotDurable):  # a full disk does not keep the manager from ending
            self._log.close()

    def _add(
        self,
        kind: str,
        environ: dict[str, Any],
        status: int,
        caller: Principal | None = None,
        what: str = "",
        worker_id: str = "",
        host: str = "",
    ) -> None:
        path = environ.get("bottle.raw_path") or environ.get("PATH_INFO", "")
        request = f"{environ.get('REQUEST_METHOD', '?')} {path[:MAX_PATH_CHARS]}"
        said = what or http_io.noted_change(environ)
        self._log.add(
            kind,
            clock.read(),
            reason=f"{request}: {said}" if said else request,
            actor=caller.actor if caller is not None else "",
            worker_id=worker_id,
            host=host,
            after=str(status),
            evidence={
                "from": environ.get("REMOTE_ADDR", "?"),
                "via": caller.via if caller is not None else "",
                "request_id": environ.get("procguard.request_id", ""),
            },
        )
        with contextlib.suppress(
            appendlog.NotDurable
        ):  # told elsewhere: the change itself was not acknowledged, either
            self._log.flush()
