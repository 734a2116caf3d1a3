"""Syncs the code of a whole wave before any of its workers may start, and keeps the hosts' sessions for later stages.

A gang whose code is only on some hosts must not start: if the host of one member fails here, the hosts of the others
are skipped too. Owns the order and the sessions; transfer.py owns the transfer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

from procguard.deploy.inventory.model import Host
from procguard.deploy.session.session import HostSession, HostStatus, Sessions
from procguard.deploy.sync.transfer import Brought, CodeSync
from procguard.errors import HostError, ProcGuardError
from procguard.json_types import Json

MAX_KEPT = 64  # sessions kept open for the second stage; other hosts reconnect, because descriptors are limited


@dataclass
class _Visit:
    brought: list[Brought] = field(default_factory=list)
    error: ProcGuardError | None = None
    session: HostSession | None = None  # kept open, with the response to `hello`
    found: HostStatus = field(default_factory=HostStatus)
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class SyncWave:
    """`with wave: wave.bring(hosts, …)`, then `session(host, …)` for each."""

    def __init__(self, sessions: Sessions, stage: Callable[[str, str], None], code: CodeSync) -> None:
        """`stage(host, stage)` reports the progress of each host, from many threads."""
        self._sessions = sessions
        self._stage = stage
        self._code = code
        self._visits: dict[str, _Visit] = {}  # each thread writes its own host's

    def __enter__(self) -> SyncWave:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        for visit in self._visits.values():
            visit.closing.close()

    def read(self, hosts: Sequence[Host]) -> None:
        """Read the local code. Raises UsageError if that fails, before any host is changed."""
        for host in hosts:
            self._code.read(host.syncs)

    def bring(self, hosts: Sequence[Host], fleet_id: str, forks: int, timeout_s: float) -> None:
        """Sync the code to the hosts that have some; the results are in `brought`."""
        visited = [host for host in hosts if host.syncs]
        kept = {host.name for host in visited[:MAX_KEPT]}

        def visit(host: Host) -> None:
            where = {"fleet_id": fleet_id, "host": host.name, "home": host.home}
            self._visits[host.name] = self._visit(host, where, time.monotonic() + timeout_s, host.name in kept)

        with ThreadPoolExecutor(max(1, min(forks, len(visited))), "code") as pool:
            list(pool.map(visit, visited))
        self._leave_gangs_whole(hosts)

    def failed(self, host: str) -> bool:
        return self.brought(host)[1] is not None

    def brought(self, host: str) -> tuple[list[Brought], ProcGuardError | None]:
        visit = self._visits.get(host) or _Visit()
        return visit.brought, visit.error

    @contextlib.contextmanager
    def session(self, host: Host, where: Json, deadline: float) -> Iterator[tuple[HostSession, HostStatus]]:
        """A session with `host` and its `hello` response: the one that synced the code, or a new one."""
        visit = self._visits.get(host.name)
        if visit is not None and visit.session is not None:
            with visit.closing:
                yield visit.session, visit.found
            return
        with self._open(host, deadline) as session:
            yield session, session.hello(where, deadline)

    def _open(self, host: Host, deadline: float) -> contextlib.AbstractContextManager[HostSession]:
        self._stage(host.name, "connect")
        return self._sessions.session(host.target, deadline, lambda: self._stage(host.name, "probe"))

    def _visit(self, host: Host, where: Json, deadline: float, keep: bool) -> _Visit:
        visit = _Visit()
        try:
            session = visit.closing.enter_context(self._open(host, deadline))
            visit.found = session.hello(where, deadline)
            self._stage(host.name, "code")
            for sync in host.syncs:
                visit.brought.append(self._code.bring(session, sync, where))
            if keep:
                visit.session = session
        except ProcGuardError as exc:
            visit.error = exc
        except Exception as exc:
            what = f"{host.name}: copying its code failed ({type(exc).__name__}: {exc})"
            visit.error = HostError(what, "this is a bug in ProcGuard; please report it")
        if visit.session is None:
            visit.closing.close()
        return visit

    def _leave_gangs_whole(self, hosts: Sequence[Host]) -> None:
        failed = [host for host in hosts if self.failed(host.name)]
        broken = {group: host.name for host in failed for group in _gangs(host)}
        for host in hosts:
            group = next((one for one in sorted(_gangs(host)) if one in broken), "")
            if group and not self.failed(host.name):
                there = f"its gang {group} has a member on {broken[group]}, which lacks the code"
                visit = self._visits.setdefault(host.name, _Visit())
                visit.closing.close()
                visit.session = None
                visit.error = HostError(
                    f"{host.name}: skipped: {there}",
                    "fix the cause there and run it again",
                    code="gang_incomplete",
                )


def _gangs(host: Host) -> set[str]:
    groups = {str(worker.spec.get("group") or "") for worker in host.workers}
    return {group for group in groups if group in host.policies and host.policies[group].restart == "gang"}
