"""The Python client: what the commands do, for programs. Synchronous, typed, safe to use from several threads.

    import procguard

    with procguard.Client("http://gpu-head:5000", token="…") as fleet:
        for worker in fleet.list_workers("group=trainers,state=failed"):
            print(worker["worker_id"], worker["reason"])
            fleet.restart(worker["worker_id"])
        fleet.wait("group=trainers", "running", timeout_s=60)

Every call raises a `procguard.ProcGuardError`: `ManagerUnreachable`, `NotFound`, `Refused`, … (procguard/errors.py).
docs/client.md has examples, which run as tests. The commands use it themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

from procguard.client import api, contexts, discovery, waiting
from procguard.client.types import (
    CommandInfo,
    EventInfo,
    ExplanationInfo,
    HostInfo,
    LogLineInfo,
    OperationInfo,
    WorkerInfo,
)
from procguard.client.waiting import WaitOutcome
from procguard.errors import NotFound

EVENTS_EVERY_S = 0.5
LIVE_OPERATIONS = ("running", "cancelling", "halting")


class Client(api.ManagerClient):
    """One manager, or the one of several that leads.

    `url`: its address, or a list of several managers' addresses; "" means that of the context `context`, of
    PROCGUARD_MANAGER_URL, of the current context of `~/.config/procguard/contexts.yaml`, or of this user's manager on
    this machine, in this order. `token`: an operator's or a viewer's; the manager's own user on the manager's machine
    needs none. `ca_file`: certificates (PEM) to trust for https.
    """

    def __init__(self, url: str | Sequence[str] = "", token: str = "", ca_file: str = "", *, context: str = "") -> None:
        if not url:
            url, known_token, known_ca = _known(os.environ, context)
            token, ca_file = token or known_token, ca_file or known_ca
        super().__init__(url, token, ca_file)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Each request has a connection of its own: nothing is left to close."""

    def __repr__(self) -> str:
        return f"<procguard.Client {self.url}>"

    # ------------------------------------------------------------------------------------------------ looking

    def list_workers(self, selector: str = "") -> list[WorkerInfo]:
        """Those that `selector` names ("train-*", "group=trainers,state=failed"), sorted by id; "": all."""
        return cast("list[WorkerInfo]", self.workers(select=selector))

    def get_worker(self, worker_id: str) -> WorkerInfo:
        """Raises NotFound."""
        return cast(WorkerInfo, self.worker(worker_id))

    def list_hosts(self) -> list[HostInfo]:
        return cast("list[HostInfo]", self.hosts()["hosts"])

    def explain_worker(self, worker_id: str, language: str = "en") -> ExplanationInfo:
        """`language`: en or zh. Raises NotFound."""
        return cast(ExplanationInfo, self.explain(worker_id, language))

    # ------------------------------------------------------------------------------------------------ acting

    def start(self, worker_id: str, reason: str = "") -> CommandInfo:
        """Have it run. `reason` is kept in the history. Raises NotFound, Conflict, Refused."""
        return cast(CommandInfo, self.command(worker_id, "start", reason))

    def stop(self, worker_id: str, reason: str = "") -> CommandInfo:
        """Have it stop, and stay so."""
        return cast(CommandInfo, self.command(worker_id, "stop", reason))

    def restart(self, worker_id: str, reason: str = "") -> CommandInfo:
        """End its process and start another, with its newest specification."""
        return cast(CommandInfo, self.command(worker_id, "restart", reason))

    def kill(self, worker_id: str, reason: str = "") -> CommandInfo:
        """SIGKILL now; it stays stopped."""
        return cast(CommandInfo, self.command(worker_id, "kill", reason))

    def operate(self, command: str, selector: str, **how: Any) -> OperationInfo:
        """`command` for all workers that `selector` names, as one operation that has begun when this returns.

        `how`: concurrency (at once), max_failures ("5" or "10%"), reason. Raises NotFound where nothing matches.
        """
        preview = self.preview(command, selector)
        if not preview["token"]:
            raise NotFound(f"no worker matches {selector}", "see list_workers()")
        return cast(OperationInfo, self.begin_operation({"token": preview["token"], **how}))

    def follow_operation(self, operation_id: str, every_s: float = 0.3) -> Iterator[OperationInfo]:
        """Its state again and again, last when it has ended."""
        while True:
            view = self.operation(operation_id, limit=1)
            yield cast(OperationInfo, view)
            if view["status"] not in LIVE_OPERATIONS:
                return
            time.sleep(every_s)

    def wait(self, selector: str, state: str = "running", timeout_s: float = 300.0) -> WaitOutcome:
        """Until all that match are in `state` (running, exited, stopped, failed), can't get there by themselves, or the
        time is over; `missing` of the answer names those that are not. Raises NotFound where nothing matches."""
        return waiting.wait(self, selector, state, timeout_s)

    # ------------------------------------------------------------------------------------------------ iterators

    def iterate_events(
        self, *, follow: bool = False, limit: int = 1000, every_s: float = EVENTS_EVERY_S, **filters: Any
    ) -> Iterator[EventInfo]:
        """What happened, oldest of the newest `limit` first; with `follow` it goes on as they come.

        `filters`: worker, host, kind, cause, reason_code, actor, operation, since ("2h" or ISO), until, q (text).
        """
        after = 0
        while True:
            for event in self.events(**filters, limit=limit, after=after or None):
                after = max(after, int(event["seq"]))
                yield cast(EventInfo, event)
            if not follow:
                return
            time.sleep(every_s)

    def iterate_logs(self, worker_id: str, *, follow: bool = False, **filters: Any) -> Iterator[LogLineInfo]:
        """The lines of its log; with `follow` it goes on as they are written, each once it is finished.

        `filters`: tail (lines back, 200), attempt, stream (out, err), since, regex. Raises NotFound.
        """
        lines = self.follow_log_lines(worker_id, **filters) if follow else self.log_lines(worker_id, **filters)
        for line in lines:
            yield cast(LogLineInfo, line)


def from_environment(environ: Mapping[str, str] | None = None) -> Client:
    """The manager that the environment names, as the commands do: see `Client`."""
    values = os.environ if environ is None else environ
    url, token, ca_file = _known(values, values.get("PROCGUARD_CONTEXT") or "")
    return Client(url, token, ca_file)


def _known(values: Mapping[str, str], context_name: str) -> tuple[str, str, str]:
    """Address, token and certificates that were not said."""
    url = values.get("PROCGUARD_MANAGER_URL") or ""
    context = contexts.load().chosen(context_name) if context_name or not url else None
    token, ca_file = values.get("PROCGUARD_TOKEN", ""), values.get("PROCGUARD_CA", "")
    if context is not None:
        return context.url, context.token() or token, os.path.expanduser(context.ca) or ca_file
    known = discovery.find(url or api.DEFAULT_URL) if "," not in url else None
    return url or (known.url if known is not None else api.DEFAULT_URL), token, ca_file
