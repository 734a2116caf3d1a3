"""`logs.retention`: which attempts' logs are deleted, by age and size, of the workers that each rule selects.

Whole attempts, the oldest first. Kept by every rule: the newest attempt of a worker that is not settled, and the newest
attempt of a failed worker until its age is over. `decide` is pure; `RetentionKeeper` measures and deletes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from procguard.config.logs import RetentionRule
from procguard.errors import ConfigError, UsageError
from procguard.fleet.workers import selectors
from procguard.fleet.workers.selectors import WorkerFacts
from procguard.portal.logs import retention
from procguard.portal.logs.store import LogStore
from remote_agent.protocol import states
from remote_agent.protocol.messages import directory_name

DAY_S = 86_400.0
CLOCK_LEAP_S = 3_600.0


def facts_of_removed(worker_id: str) -> WorkerFacts:
    return {
        "worker_id": worker_id,
        "state": "",
        "desired": "removed",
        "host": "",
        "agent": "",
        "group": "",
        "labels": {},
    }


@dataclass(frozen=True)
class AttemptLog:
    """The log of one attempt: bytes on the disk, time of the last write (Unix seconds). `held`: protected from all
    rules; `failed`: the newest of a failed worker."""

    worker: str
    attempt: int
    size: int
    written_at: float
    held: bool = False
    failed: bool = False


@dataclass
class Rule:
    """One entry of `logs.retention`, and the result of its last application."""

    select: str
    selector: selectors.Selector
    days: float | None
    max_bytes: int | None
    workers: int = 0
    held_bytes: int = 0
    oldest_at: float | None = None
    deleted_bytes: int = 0  # since the manager started

    @property
    def age_s(self) -> float:
        return float("inf") if self.days is None else self.days * DAY_S


def read(entries: Sequence[RetentionRule]) -> list[Rule]:
    """Parse the entries. Raises ConfigError for an invalid selector."""
    rules = []
    for number, entry in enumerate(entries, 1):
        try:
            selector = selectors.parse(entry.select)
        except UsageError as exc:
            raise ConfigError(f"logs.retention, entry {number}: select: {exc.message}", exc.next_step) from exc
        rules.append(Rule(entry.select, selector, entry.days, entry.max))
    return rules


def decide(rule: Rule, logs: Iterable[AttemptLog], now: float) -> list[AttemptLog]:
    """Decide which of these logs, all of selected workers, are deleted; oldest first."""
    gone: list[AttemptLog] = []
    kept: list[AttemptLog] = []
    for one in sorted((one for one in logs), key=lambda one: (one.written_at, one.attempt)):
        expired = not one.held and now - one.written_at > rule.age_s
        (gone if expired else kept).append(one)
    if rule.max_bytes is not None:
        over = sum(one.size for one in kept) - rule.max_bytes
        for one in kept:
            if over > 0 and not one.held and not one.failed:
                gone.append(one)
                over -= one.size
    return gone


class RetentionKeeper:
    """Applies the rules. `facts`: returns the facts of every worker for selectors; yields in between."""

    def __init__(
        self, entries: Sequence[RetentionRule], store: LogStore, facts: Callable[[], Iterable[WorkerFacts]]
    ) -> None:
        """Raises ConfigError."""
        self.rules = read(entries)
        self._store = store
        self._facts = facts
        self._clock: tuple[float, float] | None = None  # wall and monotonic time of the first application of the rules

    def apply(self, wall: float, monotonic: float) -> int:
        """Delete expired logs. Returns the number of bytes. Raises OSError, or UsageError if the wall clock was set:
        ages are then unreliable, and nothing is deleted."""
        if self._clock is None:
            self._clock = (wall, monotonic)
        leapt_s = (wall - self._clock[0]) - (monotonic - self._clock[1])
        if abs(leapt_s) > CLOCK_LEAP_S:
            raise UsageError(
                f"this machine's clock was set by {leapt_s:.0f} s while the manager ran; no log is deleted by age",
                "check the clock, then restart the manager",
            )
        known = {directory_name(facts["worker_id"]): facts for facts in self._facts()}
        measured = self._store.measured()
        deleted = 0
        for number, folder, floor in self._store.beside(self._plan, known, measured, wall):
            freed = self._store.drop_below(folder, floor, measured[folder])
            self.rules[number].deleted_bytes += freed
            deleted += freed
        return deleted

    def _plan(
        self, known: dict[str, WorkerFacts], measured: dict[str, list[retention.Held]], now: float
    ) -> list[tuple[int, str, int]]:
        """(rule, folder, attempt below which everything is deleted). Runs in a thread: thousands of workers times
        dozens of rules."""
        facts = {
            folder: known.get(folder) or facts_of_removed(folder.removesuffix(retention.GONE))
            for folder, streams in measured.items()
            if streams
        }
        left = {folder: logs_of(folder, measured[folder], one["state"]) for folder, one in facts.items()}
        found = []
        for number, rule in enumerate(self.rules):
            chosen = [folder for folder in left if rule.selector.matches(facts[folder])]
            floors: dict[str, int] = {}
            for one in decide(rule, [log for folder in chosen for log in left[folder]], now):
                floors[one.worker] = max(floors.get(one.worker, 0), one.attempt + 1)
            for folder, floor in floors.items():
                found.append((number, folder, floor))
                left[folder] = [one for one in left[folder] if one.attempt >= floor]
            kept = [log for folder in chosen for log in left[folder]]
            rule.workers = len({one.worker for one in kept})
            rule.held_bytes = sum(one.size for one in kept)
            rule.oldest_at = min((one.written_at for one in kept), default=None)
        return found


def logs_of(folder: str, streams: Sequence[retention.Held], state: str) -> list[AttemptLog]:
    """The logs by attempt. `state`: the worker's; "" for a removed worker."""
    newest = max(one.attempt for one in streams)
    found = []
    for attempt in sorted({one.attempt for one in streams}):
        parts = [one for one in streams if one.attempt == attempt]
        runs = attempt == newest and state != "" and state not in states.SETTLED
        failed = attempt == newest and state == "failed"
        found.append(
            AttemptLog(
                folder, attempt, retention.total(list(parts)), max(one.written_at for one in parts), runs, failed
            )
        )
    return found
