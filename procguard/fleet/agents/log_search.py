"""Searches in the logs of hosts: which agents are queried, which have answered, and which could not be queried and
why.

Agents search their own hosts' files; this module tracks requests and results. A worker that moved is searched on each
host that may still have a part of its log; the manager itself searches what no host has (portal/logs/own_search.py).
Nothing is stored: a search exists while its caller waits, for at most about a minute. Knows no HTTP and no clock.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import TypedDict

from procguard.errors import LimitExceeded, NotFound
from procguard.fleet.model.clock import Now
from procguard.fleet.state import FleetState
from procguard.fleet.workers.selectors import WorkerFacts
from procguard.i18n.reasons import NONE, Reason, because, reason_of
from procguard.json_types import ReasonParams
from remote_agent.protocol import messages, reasons

MAX_AT_ONCE = 4
RESEND_S = 3.0  # after this time the request is sent again, because the reply may have been lost
ANSWER_GRACE_S = 5.0  # time for the answers to arrive, after the agents' time limit

Status = Literal["asked", "done", "timeout", "failed", "no_answer", "away"]
OPEN: tuple[Status, ...] = ("asked",)
WHY_SILENT = because("search.silent")
ANY_ATTEMPT = 2**62
MANAGER = "manager"  # the name of the manager's own part, in place of a host's


class HostSearched(TypedDict):
    agent: str
    host: str
    status: Status
    reason: str
    reason_code: str
    reason_params: ReasonParams
    workers: int
    found: int
    bytes: int
    elapsed_s: float


@dataclass
class Part:
    """One agent's share of a search, or the manager's own (its `agent_id` is empty).

    `former`: workers that left this host, with the last attempt that it may have run, until the host has confirmed
    their removal. `held`: as reported by the agent (LogSearchResult).
    """

    agent_id: str
    host: str
    worker_ids: list[str]
    former: dict[str, int] = field(default_factory=dict)
    held: dict[str, dict[str, int]] | None = None
    status: Status = "asked"
    reason: Reason = NONE
    found: int = 0
    bytes: int = 0
    elapsed_s: float = 0.0
    sent_at: float | None = None  # monotonic

    def view(self) -> HostSearched:
        reason, code, params = reasons.values(self.reason)
        return {
            "agent": self.agent_id,
            "host": self.host,
            "status": self.status,
            "reason": reason,
            "reason_code": code,
            "reason_params": params,
            "workers": len(self.worker_ids),
            "found": self.found,
            "bytes": self.bytes,
            "elapsed_s": self.elapsed_s,
        }


@dataclass
class Question:
    """The search request; times are Unix seconds."""

    pattern: str
    regex: bool = True
    ignore_case: bool = False
    stream: str = ""
    since: float | None = None
    until: float | None = None
    max_lines: int = 500
    timeout_s: float = 10.0


@dataclass
class Search:
    """`fresh`: answered or abandoned parts that the caller has not processed yet; `wake` notifies it."""

    search_id: str
    question: Question
    parts: dict[str, Part]
    began: float  # monotonic
    wake: Callable[[], None]
    attempts_before: dict[str, int] = field(default_factory=dict)  # of moved workers: the last attempt on earlier hosts
    fresh: deque[tuple[Part, list[messages.LogMatch]]] = field(default_factory=deque)

    @property
    def ends_at(self) -> float:
        """The deadline, monotonic. Agents that answer later are ignored."""
        return self.began + self.question.timeout_s + ANSWER_GRACE_S

    @property
    def open(self) -> bool:
        return any(part.status in OPEN for part in self.parts.values())

    @property
    def worker_count(self) -> int:
        """The number of distinct workers; one that moved is part of several hosts' shares."""
        return len({worker_id for part in self.parts.values() for worker_id in part.worker_ids})

    def add_manager(self) -> Part:
        """Add the manager's own part. The caller searches the stored logs and answers it with `finish`."""
        part = self.parts[""] = Part("", MANAGER, [])
        return part

    def finish(self, part: Part, lines: list[messages.LogMatch]) -> None:
        """Record the answer of a part."""
        self.fresh.append((part, lines))
        self.wake()

    def give_up(self) -> None:
        """Stop waiting: all open parts time out."""
        for part in self.parts.values():
            if part.status in OPEN:
                part.status, part.reason = "no_answer", WHY_SILENT
                self.fresh.append((part, []))


class LogSearches:
    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._searches: dict[str, Search] = {}

    def begin(self, question: Question, workers: Iterable[WorkerFacts], now: Now, wake: Callable[[], None]) -> Search:
        """Ask the agents of these workers (facts, as selectors see them). Raises LimitExceeded. The caller must call
        `end` afterwards."""
        if len(self._searches) >= MAX_AT_ONCE:
            raise LimitExceeded.for_now(
                f"{MAX_AT_ONCE} searches are already in progress", "wait until one has ended", question.timeout_s
            )
        of_agent: dict[str, list[str]] = {}
        moved: dict[str, int] = {}
        for facts in workers:
            worker_id = facts["worker_id"]
            of_agent.setdefault(facts["agent"], []).append(worker_id)
            worker = self._state.workers_by_id.get(worker_id)
            if worker is not None and worker.attempts_before:
                moved[worker_id] = worker.attempts_before
        former = self._former(moved)
        parts = {
            agent_id: self._part(agent_id, of_agent.get(agent_id, []), former.get(agent_id, {}))
            for agent_id in sorted(of_agent.keys() | former.keys())
        }
        search = Search("s-" + secrets.token_hex(6), question, parts, now.monotonic, wake, moved)
        search.fresh.extend((part, []) for part in parts.values() if part.status not in OPEN)
        self._searches[search.search_id] = search
        for part in parts.values():
            if part.status in OPEN:
                self._state.bus.news(part.agent_id)
        return search

    def _former(self, moved: dict[str, int]) -> dict[str, dict[str, int]]:
        """{agent: {worker that left it: its last attempt there}}, if that host may still have a part of its log."""
        found: dict[str, dict[str, int]] = {}
        for agent_id, agent in self._state.agents_by_id.items() if moved else ():
            for worker_id in agent.withdrawn.keys() & moved.keys():
                last = agent.withdrawn[worker_id].attempts_to
                if last >= 0:
                    found.setdefault(agent_id, {})[worker_id] = last
        return found

    def _part(self, agent_id: str, worker_ids: list[str], former: dict[str, int]) -> Part:
        observed = self._state.agent_status[agent_id]
        part = Part(agent_id, self._state.agents_by_id[agent_id].host, worker_ids + sorted(former), former)
        if observed.state not in ("connected", "suspect") or observed.heartbeat is None:
            part.status, part.reason = "away", observed.reason or because("agent.away")
        if part.status not in OPEN and former:
            part.reason = part.reason.then(because("search.ran_there", workers=sorted(former)[:100]))
        return part

    def end(self, search: Search) -> None:
        self._searches.pop(search.search_id, None)

    def for_agent(self, agent_id: str, now: Now) -> list[messages.LogSearch]:
        """The searches to send to this agent now: each once, and again if the response may not have arrived."""
        requests = []
        for search in self._searches.values():
            part = search.parts.get(agent_id)
            if part is None or part.status not in OPEN:
                continue
            if part.sent_at is not None and now.monotonic - part.sent_at < RESEND_S:
                continue
            part.sent_at = now.monotonic
            asked = search.question
            left_s = min(asked.timeout_s, search.ends_at - ANSWER_GRACE_S / 2 - now.monotonic)
            if left_s > 0:
                requests.append(
                    messages.LogSearch(
                        search.search_id,
                        asked.pattern,
                        asked.regex,
                        asked.ignore_case,
                        part.worker_ids,
                        asked.stream,
                        asked.since,
                        asked.until,
                        asked.max_lines,
                        round(left_s, 3),
                    )
                )
        return requests

    def take(self, agent_id: str, result: messages.LogSearchResult) -> None:
        """Record an agent's answer, limited to workers that it was asked about. Raises NotFound if no search waits
        for it."""
        search = self._searches.get(result.search_id)
        part = search.parts.get(agent_id) if search is not None else None
        if search is None or part is None:
            raise NotFound(f"no request is waiting for search {result.search_id[:40]!r}", "nothing to do")
        if part.status not in OPEN:
            return  # a duplicate answer
        part.status, part.reason = result.status, reason_of(result.reason)
        part.found, part.bytes, part.elapsed_s = result.found, result.bytes, result.elapsed_s
        part.held = result.held
        own = dict.fromkeys(part.worker_ids, ANY_ATTEMPT) | part.former
        search.finish(part, [line for line in result.lines if line.attempt <= own.get(line.worker_id, -1)])
