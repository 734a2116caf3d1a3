"""The Python client: the operations of the commands, for programs. Synchronous, typed, thread-safe.

    import procguard

    with procguard.Client("http://gpu-head:5000", token="…") as fleet:
        for worker in fleet.list_workers("group=trainers,state=failed"):
            print(worker["worker_id"], worker["reason"])
            fleet.restart(worker["worker_id"])
        fleet.wait("group=trainers", "running", timeout_s=60)

Every call raises a `procguard.ProcGuardError`: `ManagerUnreachable`, `NotFound`, `Refused`, … (procguard/errors.py).
docs/client.md has examples, which run as tests. The commands use this client as well.
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
    """A client of one manager, or of the leader of several.

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
        """Does nothing: each request opens and closes its own connection."""

    def __repr__(self) -> str:
        return f"<procguard.Client {self.url}>"

    # ------------------------------------------------------------------------------------------------ reading

    def list_workers(self, selector: str = "") -> list[WorkerInfo]:
        """The workers that match `selector` ("train-*", "group=trainers,state=failed"; "": all), sorted by id."""
        return self.workers(select=selector)

    def get_worker(self, worker_id: str) -> WorkerInfo:
        """One worker. Raises NotFound."""
        return self.worker(worker_id)

    def list_hosts(self) -> list[HostInfo]:
        return self.hosts()["hosts"]

    def explain_worker(self, worker_id: str, language: str = "en") -> ExplanationInfo:
        """Explain a worker's state in sentences. `language`: en or zh. Raises NotFound."""
        return cast(ExplanationInfo, self.explain(worker_id, language))

    # ------------------------------------------------------------------------------------------------ commands

    def start(self, worker_id: str, reason: str = "") -> CommandInfo:
        """Start a worker. `reason` is recorded in the history. Raises NotFound, Conflict, Refused."""
        return cast(CommandInfo, self.command(worker_id, "start", reason))

    def stop(self, worker_id: str, reason: str = "") -> CommandInfo:
        """Stop a worker; it stays stopped. Raises as `start`."""
        return cast(CommandInfo, self.command(worker_id, "stop", reason))

    def restart(self, worker_id: str, reason: str = "") -> CommandInfo:
        """Restart a worker with its newest specification. Raises as `start`."""
        return cast(CommandInfo, self.command(worker_id, "restart", reason))

    def kill(self, worker_id: str, reason: str = "") -> CommandInfo:
        """Kill a worker with SIGKILL; it stays stopped. Raises as `start`."""
        return cast(CommandInfo, self.command(worker_id, "kill", reason))

    def operate(self, command: str, selector: str, **how: Any) -> OperationInfo:
        """Begin one operation that applies `command` to all workers that match `selector`.

        `how`: concurrency (number of workers in parallel), max_failures ("5" or "10%"), reason. Raises NotFound if no
        worker matches.
        """
        preview = self.preview(command, selector)
        if not preview["token"]:
            raise NotFound(f"no worker matches {selector}", "see list_workers()")
        return self.begin_operation({"token": preview["token"], **how})

    def follow_operation(self, operation_id: str, every_s: float = 0.3) -> Iterator[OperationInfo]:
        """The operation's state every `every_s` seconds; the last one is its state after the end."""
        while True:
            view = self.operation(operation_id, limit=1)
            yield view
            if view["status"] not in LIVE_OPERATIONS:
                return
            time.sleep(every_s)

    def wait(self, selector: str, state: str = "running", timeout_s: float = 300.0) -> WaitOutcome:
        """Wait until all workers that match are in `state` (running, exited, stopped, failed), the others cannot reach
        it by themselves, or the timeout has passed. `missing` of the result names the workers that are not in `state`.
        Raises NotFound if no worker matches."""
        return waiting.wait(self, selector, state, timeout_s)

    # ------------------------------------------------------------------------------------------------ iterators

    def iterate_events(
        self, *, follow: bool = False, limit: int = 1000, every_s: float = EVENTS_EVERY_S, **filters: Any
    ) -> Iterator[EventInfo]:
        """The newest `limit` events, oldest first; with `follow`, then new events as they occur.

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
        """The last lines of a worker's log; with `follow`, then new lines as they are written, each once complete.

        `filters`: tail (number of lines, default 200), attempt, stream (out, err), since, regex. Raises NotFound.
        """
        lines = self.follow_log_lines(worker_id, **filters) if follow else self.log_lines(worker_id, **filters)
        for line in lines:
            yield cast(LogLineInfo, line)


def from_environment(environ: Mapping[str, str] | None = None) -> Client:
    """A client of the manager that the environment selects, as for the commands (see `Client`). `environ`: default:
    os.environ."""
    values = os.environ if environ is None else environ
    url, token, ca_file = _known(values, values.get("PROCGUARD_CONTEXT") or "")
    return Client(url, token, ca_file)


def _known(values: Mapping[str, str], context_name: str) -> tuple[str, str, str]:
    """(address, token, path of the CA certificates) from the environment, the context or this machine's manager."""
    url = values.get("PROCGUARD_MANAGER_URL") or ""
    context = contexts.load().chosen(context_name) if context_name or not url else None
    token, ca_file = values.get("PROCGUARD_TOKEN", ""), values.get("PROCGUARD_CA", "")
    if context is not None:
        return context.url, context.token() or token, os.path.expanduser(context.ca) or ca_file
    known = discovery.find(url or api.DEFAULT_URL) if "," not in url else None
    return url or (known.url if known is not None else api.DEFAULT_URL), token, ca_file
