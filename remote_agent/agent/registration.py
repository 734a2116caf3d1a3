"""Registration of a launcher's worker: register, wait for approval, be accepted or refused.

Owns the client side of a registration; the agent handles what follows (heartbeats, commands). The launcher's secret
is never sent, only its SHA-256, which becomes its credential on approval.
"""

from __future__ import annotations

import json
import os
import re
import socket

from remote_agent.agent.agent import Agent
from remote_agent.agent.session import Registrar
from remote_agent.agent.worker import WorkerHandle
from remote_agent.protocol import messages, states
from remote_agent.protocol.hints import Callable, Optional
from remote_agent.protocol.messages import RegisterReply, Registration, WorkerSpec
from remote_agent.runner.restart import needs_runner
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.outcomes import LinkDown, Outcome, Reply, Unknown, UnknownToken, retry_delay_s

PENDING_AGAIN_S = 2.0
PENDING_STATUS = 202
HOW_TO_GET_ONE = (
    "create one on the manager's machine: invoke token.create --scope enroll; or start without --token and have an "
    "operator approve it"
)


class LauncherRegistrar(Registrar):
    """Registers the worker until the manager accepts; after that only `lost` makes it register again."""

    def __init__(
        self,
        worker_id: str,
        spec: WorkerSpec,
        token: str,
        credentials: AgentCredentials,
        url: str,
        say: Callable[[str], None],
    ) -> None:
        self._worker_id, self._spec, self._token, self._url = worker_id, spec, token, url
        self._credentials = credentials
        self._say = say
        self._registered = False
        self._first = True
        self._failures = 0
        self.agent: Optional[Agent] = None
        self.may_start_offline = False
        self.accepted: Callable[[RegisterReply], None] = lambda _: None
        self.renewed: Callable[[], None] = lambda: None  # a new secret has to be stored
        self.refused = ""  # why the launcher ends

    def needed(self) -> bool:
        return not self._registered

    def request(self) -> Callable[[Connection], Reply]:
        body = messages.encode(self._registration())
        mine, token = self._credentials, self._token

        def job(connection: Connection) -> Reply:
            payload = json.dumps(body).encode()
            if mine.proof_key:
                # A launcher that was registered before: the manager proves its identity, then the secret proves that a
                # changed command comes from this launcher. A token is used only if that is not sufficient.
                try:
                    reply = connection.request("POST", "/api/workers/register", payload)
                    if not token or (reply.ok and reply.status != PENDING_STATUS):
                        return reply
                except Unknown:
                    pass  # the manager has lost its state
            if token:
                return connection.with_token("POST", "/api/workers/register", payload, token)
            return connection.anonymous("POST", "/api/workers/register", payload)

        return job

    def outcome(self, outcome: Outcome) -> float:
        if isinstance(outcome, UnknownToken):
            return self._bad_token(outcome)
        if isinstance(outcome, LinkDown):
            self._failures += 1
            if self._first and self.agent is not None and self.may_start_offline:
                self.agent.may_start = True
            self._say(f"manager {self._url} not reachable ({outcome}); retrying")
            return retry_delay_s(self._failures)
        self._failures = 0
        code = (
            str((outcome.data.get("error") or {}).get("code", ""))
            if isinstance(outcome.data.get("error"), dict)
            else ""
        )
        if outcome.ok:
            return self._answer(messages.decode(RegisterReply, outcome.data))
        if outcome.status == 429 or outcome.status >= 500 or (outcome.status == 409 and code == "full"):
            self._say(f"the manager does not take the registration yet: {outcome.why}")
            return PENDING_AGAIN_S
        if code == "secret_revoked":
            self._credentials.secret = os.urandom(32).hex()
            self.renewed()
            self._say("its secret was revoked on the manager; it has created a new one")
            return retry_delay_s(1)
        self.refused = outcome.why.partition(": ")[2] or outcome.why
        if self.agent is not None:
            self.agent.leave()
        return PENDING_AGAIN_S

    def _bad_token(self, outcome: UnknownToken) -> float:
        """End a first start. A launcher that was approved before, or whose worker runs, continues: its manager has
        lost its state, or does not answer here."""
        if self._first and not self._credentials.proof_key and not self._worker_runs():
            self.refused = f"{outcome}; {HOW_TO_GET_ONE}"
            if self.agent is not None:
                self.agent.leave()
            return PENDING_AGAIN_S
        self._failures += 1
        self._say(f"not registered: {outcome}; {HOW_TO_GET_ONE}; retrying")
        return retry_delay_s(self._failures)

    def _worker_runs(self) -> bool:
        worker = self.agent.workers.get(self._worker_id) if self.agent is not None else None
        return worker is not None and worker.runner_alive()

    def lost(self, why: str) -> None:
        self._registered = False
        self._say(f"the manager does not know this launcher ({why}); registering again")

    def _answer(self, reply: RegisterReply) -> float:
        if reply.status == "pending":
            agent_id = reply.agent_id or self._credentials.agent_id
            self._say(
                f"waits for approval, fingerprint {reply.fingerprint}; nothing runs until then. "
                f"On the manager: invoke agents approve {agent_id}"
            )
            return PENDING_AGAIN_S
        self._registered, self._first = True, False
        self.accepted(reply)
        self._say(f"registered with {self._url}")
        if self.agent is not None:
            self.agent.start_after_reply = True
        return 0.0

    def _registration(self) -> Registration:
        assert self.agent is not None
        worker = self.agent.workers.get(self._worker_id)
        alive = worker is not None and worker.state in states.ALIVE and worker.runner_alive()
        return Registration(
            worker_id=self._worker_id,
            command=self._spec.command,
            host=host_name(),
            spec=self._spec,
            secret_sha256=messages.secret_sha256(self._credentials.secret),
            state=self._reported_state(worker),  # type: ignore[arg-type]
            attempt=worker.attempt if worker is not None and alive else 0,
            epoch=int(worker.status.get("epoch") or 0) if worker is not None else 0,
        )

    def _reported_state(self, worker: Optional[WorkerHandle]) -> str:
        """The state to register. "exited" makes the manager start the worker again: it had ended, and its user has
        started the launcher again."""
        if worker is None or not worker.status:
            return states.STOPPED
        if worker.state not in states.SETTLED:
            return worker.state
        same = {"desired": "running", "generation": worker.status.get("generation")}
        return states.EXITED if self._first and not needs_runner(same, worker.status) else states.STOPPED


def host_name() -> str:
    """This machine's host name, converted to a valid id."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64]
    return name if messages.valid_id(name) else "host-" + name[:59].strip("-.") if name.strip("-.") else "host"
