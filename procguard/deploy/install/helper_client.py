"""The manager's side of the SSH helper process: sends requests, waits cooperatively, restarts the helper.

Knows the helper's messages, no SSH.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from typing import Literal, NamedTuple, TypedDict

from procguard.i18n.reasons import NONE, Reason, because
from procguard.json_types import Json
from procguard.runtime.json_process import JsonProcess
from remote_agent.protocol import reasons

ONCE = ("restart", "rollback")  # never repeated, because they would be performed twice
MARGIN_S = 3.0  # added to the request's deadline, for the helper's start
AgentSeen = Literal["running", "started", "absent", "frozen", "failed", "unknown"]


class ManagerFacts(TypedDict):
    """The manager, for an agent, as in a deployment's request to the host."""

    manager_urls: list[str]
    manager_configured: list[str]
    manager_port: int
    manager_ca: str
    manager_any_name: bool


class Result(NamedTuple):
    """The helper's answer. `ok`: the host was reached over SSH. `message`: for people."""

    ok: bool
    agent: AgentSeen
    message: Reason
    log: Json = {}  # noqa: RUF012 - used by `agent_log` only, never changed
    addresses: Json = {}  # noqa: RUF012 - used by `ensure_agent` only, never changed

    @property
    def reason(self) -> Reason:
        return NONE if self.ok else self.message


class _Waiting:
    """One pending request; `process`: the helper that received it."""

    def __init__(self, process: JsonProcess) -> None:
        self.process = process
        self.done = threading.Event()
        self.answer: Json = {}


class SshHelper:
    """One helper process, started at the first request. Safe to use from many greenlets or threads."""

    def __init__(self, command: list[str] | None = None) -> None:
        self._command = command or [sys.executable, "-m", "procguard.deploy.install.helper"]
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._process: JsonProcess | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._closed = False

    def check(self, host: str, ssh: Json, deadline_s: float = 15.0) -> Result:
        """Check whether an SSH connection to `host` can be opened from this machine."""
        return self._ask({"op": "check", "host": host, "ssh": ssh}, deadline_s)

    def ensure_agent(
        self,
        host: str,
        ssh: Json,
        *,
        home: str = "",
        fleet_id: str,
        replace_frozen: bool = False,
        manager: ManagerFacts | None = None,
        deadline_s: float = 30.0,
    ) -> Result:
        """Start the agent on `host` unless it runs. `replace_frozen`: also replace an agent stopped by a signal.
        `manager`: addresses for an agent whose own do not work; see remote_agent/install/readdress.py."""
        where = {"host": host, "ssh": ssh, "home": home, "fleet_id": fleet_id}
        request = {"op": "ensure", **where, "replace_frozen": replace_frozen, "manager": manager or {}}
        return self._ask(request, deadline_s)

    def maintain(
        self,
        op: Literal["restart", "upgrade", "rollback", "log"],
        host: str,
        ssh: Json,
        *,
        home: str = "",
        fleet_id: str,
        deadline_s: float,
        max_bytes: int = 0,
    ) -> Result:
        """Perform a maintenance action on the agent on `host`; see helper.py."""
        where = {"host": host, "ssh": ssh, "home": home, "fleet_id": fleet_id}
        return self._ask({"op": op, **where, "max_bytes": max_bytes}, deadline_s)

    def close(self) -> None:
        """End the helper. Waiting requests are answered with an error."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.close()
        self._fail_all(because("ssh.manager_ends"))

    # ---------------------------------------------------------------------------------------------- inside

    def _ask(self, request: Json, deadline_s: float) -> Result:
        """Send a request and return its answer within the deadline. Repeated once if the helper dies meanwhile."""
        deadline = time.monotonic() + deadline_s
        answer = self._ask_once(request, deadline_s)
        if request["op"] not in ONCE and answer.get("died") and time.monotonic() < deadline - 1.0:
            answer = self._ask_once(request, deadline - time.monotonic())
        agent, log = answer.get("agent", "unknown"), answer.get("log") or {}
        addresses = answer.get("addresses") or {}
        return Result(bool(answer.get("ok")), agent, reasons.read(answer, "message"), log, addresses)

    def _ask_once(self, request: Json, deadline_s: float) -> Json:
        number = next(self._numbers)
        try:
            with self._lock:
                if self._closed:
                    return {"message": because("ssh.helper_closed")}
                process = self._running()
                waiting = self._waiting[number] = _Waiting(process)
                process.send([{**request, "id": number, "deadline_s": deadline_s}])
            waiting.done.wait(deadline_s + MARGIN_S)
        except (OSError, ValueError) as exc:
            return {"message": because("ssh.helper_broken", error=str(exc)), "died": True}
        finally:
            self._waiting.pop(number, None)
        return waiting.answer or {"message": because("ssh.helper_silent", host=request["host"])}

    def _running(self) -> JsonProcess:
        """The helper's process, started if there is none or it has died. Call with the lock held."""
        if self._process is None or self._process.poll() is not None:
            self._process = JsonProcess(self._command, self._take, self._take_end)
        return self._process

    def _take(self, answer: Json) -> None:
        waiting = self._waiting.get(answer.get("id", 0))
        if waiting is not None:
            waiting.answer = answer
            waiting.done.set()

    def _take_end(self, process: JsonProcess) -> None:
        self._fail_all(because("ssh.helper_ended"), process)

    def _fail_all(self, why: Reason, process: JsonProcess | None = None) -> None:
        """Fail the requests that wait for `process` (None: for any), so that none waits until its deadline."""
        for waiting in list(self._waiting.values()):
            if process is None or waiting.process is process:
                waiting.answer = {"message": why, "died": process is not None}
                waiting.done.set()
