"""Requests to agents for log ranges that this manager lacks: pending questions, permitted uploads, waiting readers.

After a takeover the leader stores new output; older bytes are still on the hosts and are fetched when they are read
(portal/logs/fetch.py). Nothing of it is stored: a question lives for seconds. Knows no HTTP and no files.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from procguard.fleet.model.clock import Now
from procguard.fleet.state import FleetState
from remote_agent.protocol import messages

MAX_AT_ONCE = 64
SEND_AGAIN_S = 2.0  # after this time a range is requested again, because the reply may have been lost


@dataclass
class RangeQuestion:
    """`asked.attempt` 0: a query of the existing files. `done`: the agent has sent everything that it has."""

    agent_id: str
    asked: messages.LogRange
    wake: Callable[[], None]
    sent_at: float | None = None  # monotonic
    done: bool = False


class LogRanges:
    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._open: dict[str, RangeQuestion] = {}

    @property
    def has_hosts(self) -> bool:
        """Whether hosts may hold log bytes that this manager lacks: it is one of several managers."""
        return self._state.leadership.term > 0

    def ask(
        self, worker_id: str, attempt: int, stream: str, offset: int, length: int, wake: Callable[[], None]
    ) -> RangeQuestion | None:
        """Ask the worker's current host; None if it is not connected. The caller must call `end` afterwards."""
        worker = self._state.workers_by_id.get(worker_id)
        if worker is None or not self.can_ask(worker_id) or len(self._open) >= MAX_AT_ONCE:
            return None
        asked = messages.LogRange("g-" + secrets.token_hex(6), worker_id, attempt, stream, offset, length)
        question = self._open[asked.range_id] = RangeQuestion(worker.agent_id, asked, wake)
        self._state.bus.news(worker.agent_id)
        return question

    def can_ask(self, worker_id: str) -> bool:
        """Whether the agent of this worker is connected to this manager."""
        worker = self._state.workers_by_id.get(worker_id)
        status = self._state.agent_status.get(worker.agent_id) if worker is not None else None
        return status is not None and status.state in ("connected", "suspect")

    def is_awaited(self, worker_id: str) -> bool:
        """Whether the agent of this worker has sent no heartbeat yet since this manager began to lead."""
        worker = self._state.workers_by_id.get(worker_id)
        status = self._state.agent_status.get(worker.agent_id) if worker is not None else None
        return status is not None and status.state == "never"

    def end(self, question: RangeQuestion) -> None:
        self._open.pop(question.asked.range_id, None)

    def for_agent(self, agent_id: str, now: Now) -> list[messages.LogRange]:
        """The ranges to request from this agent now: each once, and again if the reply may have been lost."""
        due = []
        for question in self._open.values():
            if question.agent_id != agent_id or question.done:
                continue
            if question.sent_at is None or now.monotonic - question.sent_at >= SEND_AGAIN_S:
                question.sent_at = now.monotonic
                due.append(question.asked)
        return due

    def admits(self, agent_id: str, range_id: str, worker_id: str, attempt: int, stream: str) -> bool:
        """Whether this range of this log was requested from this agent."""
        question = self._open.get(range_id)
        if question is None or (question.agent_id, question.asked.worker_id) != (agent_id, worker_id):
            return False
        return question.asked.attempt == 0 or (question.asked.attempt, question.asked.stream) == (attempt, stream)

    def complete(self, range_id: str) -> None:
        """Mark the range as complete: the agent has sent everything that it has."""
        question = self._open.get(range_id)
        if question is not None:
            question.done = True
            question.wake()
