"""The outcomes of a request to the manager: a reply or an error, and how long to wait before the next attempt.

Knows no connection.
"""

from __future__ import annotations

import os

from remote_agent.protocol import leadership
from remote_agent.protocol.hints import Any, Callable, Union
from remote_agent.protocol.records import field, record

REQUEST_TIMEOUT_S = 5.0
EXTRA_TIMEOUT_S = 10.0  # in addition, for a manager that has received the request: it is overloaded
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 5.0
RETRY_GROWS = 3.0  # with a bound that all agents reach soon, they reconnect evenly after an outage of the manager
FIRST_REFUSED_S, LAST_REFUSED_S = 2.0, 30.0


class LinkDown(Exception):
    """No usable response; the text names the address and the cause."""


class UnprovenManager(LinkDown):
    """The server at the address cannot prove that it is this fleet's manager. The secret was not sent."""


class Unknown(UnprovenManager):
    """A manager of this fleet that does not know this agent (its state was lost, or the agent was removed)."""


class NotLeader(LinkDown):
    """The manager at this address does not lead: it is a standby or has been replaced. `retry_s`: seconds that a
    standby asks agents to wait before the next attempt; 0 if not given."""

    def __init__(self, text: str, retry_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_s = retry_s


class UnknownToken(UnprovenManager):
    """The manager does not know this enrolment token. The token was not sent."""


@record
class Reply:
    """An HTTP response. `data`: its JSON object, {} if there is none. `asked_ns`: the time just before the first byte
    of the request was sent, on CLOCK_BOOTTIME; the response was created later."""

    status: int
    data: dict[str, Any] = field(default_factory=dict)
    asked_ns: int = 0

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        return self.status in (401, 403)

    @property
    def why(self) -> str:
        """The manager's error message as one line."""
        error = self.data.get("error")
        if not isinstance(error, dict):
            return f"HTTP {self.status}"
        message, step = str(error.get("message", "")), str(error.get("next", ""))
        return f"HTTP {self.status}: {message}; {step}" if step else f"HTTP {self.status}: {message}"


Outcome = Union[Reply, LinkDown]  # the result of a request


def _chance() -> float:
    """Uniform in [0, 1), from the system's generator: the module `random` would cost 100 KB of memory."""
    return int.from_bytes(os.urandom(4), "big") / 2.0**32


def retry_delay_s(
    failures: int, refused: bool = False, rng: Callable[[], float] = _chance, *, most_s: float = LAST_RETRY_S
) -> float:
    """Full jitter: uniform between (almost) 0 and a bound that grows with each consecutive failure (1 = the first), up
    to `most_s`."""
    first, last = (FIRST_REFUSED_S, LAST_REFUSED_S) if refused else (FIRST_RETRY_S, most_s)
    bound: float = min(last, first * RETRY_GROWS ** min(max(0, failures - 1), 20))
    return max(0.02, bound * rng())


def extra_timeout_s(timeouts: int) -> float:
    """The extra time of a request after consecutive timeouts, where another manager may lead. Grows, because agents
    that give up before an overloaded manager has reached their request never get a response."""
    return min(EXTRA_TIMEOUT_S, timeouts * REQUEST_TIMEOUT_S)


def stands_by(reply: Reply) -> bool:
    error = reply.data.get("error")
    code = error.get("code") if isinstance(error, dict) else ""
    return reply.status == leadership.STANDBY_STATUS and code == leadership.STANDBY


def of_all(failures: list[LinkDown]) -> LinkDown:
    """The error that represents the failures at several addresses. `Unknown` counts only if every address reports it,
    because the leader may be the one that does not respond."""
    if all(isinstance(one, UnprovenManager) for one in failures):
        return failures[0]
    text = "; ".join(dict.fromkeys(str(one) for one in failures[:4]))
    standby = next((one for one in failures if isinstance(one, NotLeader)), None)
    return NotLeader(text, standby.retry_s) if standby is not None else LinkDown(text)
