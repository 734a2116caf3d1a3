"""The interface of a channel, by which agents reach the manager.

A channel carries messages between agents and the fleet and never changes the fleet's state. HTTP (`http.py`) is
always enabled; `communication.adapter_type` adds a second channel. Knows the fleet's methods; access control is
passed in by the portal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from wsgiref.types import WSGIEnvironment

from procguard.errors import Conflict


class Channel(Protocol):
    """A channel from agents to the handlers (handlers.py). `start` and `stop` are called once, on the event loop.

    `name`: shown in hosts' views. `start` raises ProcGuardError if it cannot listen.
    """

    name: str

    @property
    def connection_count(self) -> int: ...

    @property
    def refused_count(self) -> int:
        """The number of refused connections since the start."""
        ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Principal:
    """The caller. `actor`: shown in the audit; `agent_id`: set for agents only; `token_id`: for callers with a token or
    with a session opened by one, `session` is that session's handle; for anonymous callers, `reason` is why they are
    not operators."""

    kind: Literal["operator", "viewer", "agent", "enroll", "metrics", "anonymous"]
    actor: str
    agent_id: str = ""
    via: Literal["local", "token", "session", "secret", ""] = ""
    reason: str = ""
    token_id: str = ""
    session: str = ""

    @property
    def identity(self) -> str:
        """A unique identity of the caller, also if two tokens have the same name."""
        return f"{self.actor} {self.token_id}" if self.token_id else self.actor


class Access(Protocol):
    """Access control; implemented by the portal's auth."""

    def identify(self, environ: WSGIEnvironment, own_secret_sha256: str = "", of_agents: bool = False) -> Principal:
        """The caller. `own_secret_sha256`: a bearer secret with this digest is the caller's own, not a wrong token.
        `of_agents`: the route is one of theirs.

        Raises Refused for wrong credentials.
        """
        ...

    def by_secret(self, secret_sha256: str, address: str = "") -> Principal | None:
        """The owner of a secret or token; None if it is unknown or revoked. Raises Refused for an expired token.
        `address`: the caller's."""
        ...

    def admitted(self, environ: WSGIEnvironment) -> Principal:
        """The caller that the gate admitted to this route (portal/auth/gate.py)."""
        ...

    def hold(self, caller: Principal, end: Callable[[], None]) -> Callable[[], None]:
        """Register `end()` to be called when the caller's token or session ends. Returns a function that unregisters
        it."""
        ...

    def check_agent(self, caller: Principal, agent_id: str) -> Principal:
        """Raises Refused or Forbidden unless the caller is this agent."""
        ...

    def check_worker_agent(self, caller: Principal, worker_id: str, operator_too: bool = False) -> Principal:
        """Raises Refused or Forbidden unless the caller is the agent that runs this worker."""
        ...


class LogSink(Protocol):
    """The store of uploaded logs. Offsets and lengths are in bytes of (worker, attempt, stream)."""

    def append(
        self,
        worker_id: str,
        attempt: int,
        stream: str,
        offset: int,
        data: bytes,
        at: float,
        gap: bool = False,
        times: Sequence[tuple[int, float]] = (),
    ) -> int: ...

    def length(self, worker_id: str, attempt: int, stream: str) -> int: ...

    def lengths(self, worker_id: str) -> dict[str, int]: ...

    def kept(self, worker_id: str, attempt: int, stream: str, stored: int) -> int: ...

    def announce(self, worker_id: str, attempt: int, stream: str, size: int, at: float) -> None: ...

    def fill(self, worker_id: str, attempt: int, stream: str, offset: int, data: bytes) -> None: ...

    def lose(self, worker_id: str, attempt: int, stream: str, start: int, end: int, at: float) -> None: ...


class LogGap(Conflict):
    """The bytes start beyond the stored end: the sender must continue at `stored` or report the gap as lost."""

    default_code = "log_gap"

    def __init__(self, stored: int, offset: int) -> None:
        super().__init__(
            f"offset {offset} lies beyond the {stored} bytes stored",
            f"send again from offset {stored}, or add gap=1 if the bytes in between are lost",
        )
        self.extra = {"acked": stored}
