"""Classifies events as alerts and groups alerts into messages. Pure: no clock, no sending.

    event ──► classified ──► Gathering (one for each target): dedup, one Group for each class ──► Message

A group keeps a count, the newest events and some names, independent of the number of events: 200 workers that fail at
the same time are one message with a count, and an endpoint that is down for days uses a bounded amount of memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal
from urllib.parse import quote

from procguard.config.notifications import ALERT_CLASSES, AlertTarget
from procguard.fleet.history.query import Event
from procguard.i18n.words import Words
from procguard.json_types import Json

Tails = Mapping[tuple[str, int], list[str]]
Severity = Literal["critical", "warning", "info"]

SAMPLES = 20  # events of a group that its message shows
NAMES = 200  # names of subjects that a group keeps
ENDED_SHOWN = 5  # ended workers whose last lines a message shows
REMEMBERED = 10_000  # alerts kept for deduplication

# kind -> (class, severity). The event that ends an alert has the same class, with the severity "info".
ALERT_OF_KIND: dict[str, tuple[str, Severity]] = {
    "worker_failed": ("failed", "critical"),
    "worker_suspect": ("suspect", "warning"),
    "worker_clear": ("suspect", "info"),
    "agent_unreachable": ("host_unreachable", "critical"),
    "agent_connected": ("host_unreachable", "info"),
    "recovery_gave_up": ("recovery_gave_up", "critical"),
    "host_disk_full": ("host_disk", "critical"),
    "host_disk_ok": ("host_disk", "info"),
    "task_gave_up": ("no_spare", "critical"),
    "circuit_breaker_open": ("circuit_breaker", "critical"),
    "circuit_breaker_closed": ("circuit_breaker", "info"),
    "stop_all": ("stop_all", "critical"),
    "reassigned": ("reassigned", "warning"),
    "no_spare": ("no_spare", "critical"),
    "gang_failed": ("gang_failed", "critical"),
    "state": ("state", "warning"),
    "not_durable": ("state", "critical"),
    "durable_again": ("state", "info"),
    "archive_failing": ("state", "warning"),
    "archive_works": ("state", "info"),
    "alert_rule": ("rule", "warning"),
    "alert_rule_ok": ("rule", "info"),
    "gpu_failed": ("gpu", "critical"),
    "gpu_fault": ("gpu", "warning"),
}
assert {alert for alert, _ in ALERT_OF_KIND.values()} == set(ALERT_CLASSES)


FINISHED: tuple[str, Severity] = ("finished", "info")


def classified(event: Event) -> tuple[str, Severity]:
    """(class, severity) of an event; for an event that is not an alert, the class is its kind."""
    if event["kind"] == "worker_state" and event.get("after") == "exited":
        return FINISHED
    return ALERT_OF_KIND.get(event["kind"], (event["kind"], "info"))


def kind_of(event: Event) -> str:
    """The kind of the group that receives the event (`AlertGroup.kind`)."""
    return "|".join(classified(event))


def among(asked: Sequence[str], event: Event) -> bool:
    """Whether `asked` includes this event's class. A failure also counts as `finished`."""
    alert, _ = classified(event)
    if alert == "failed" and FINISHED[0] in asked:
        return True
    return "all" in asked or event["kind"] in asked or alert in asked or ("alerts" in asked and alert in ALERT_CLASSES)


def subject_of(event: Event) -> str:
    return str(event.get("worker_id") or event.get("host") or "")


def _rule_of(event: Event) -> tuple[str, ...]:
    """The part of the deduplication key for rules: alerts of different rules or GPUs are different alerts."""
    evidence = event.get("evidence")
    if event["kind"] != "alert_rule" or not isinstance(evidence, dict):
        return ()
    return str(evidence.get("rule")), str(evidence.get("gpu"))


@dataclass
class AlertGroup:
    """Alerts of one class and severity that will be one message."""

    alert: str
    severity: Severity
    first_at: str = ""
    last_at: str = ""
    count: int = 0
    first_seq: int = 0
    last_seq: int = 0
    events: list[Event] = field(default_factory=list)  # the newest
    names: dict[str, None] = field(default_factory=dict)  # subjects, in order of arrival

    @property
    def is_end(self) -> bool:
        """Whether the group's alerts are about workers that have ended."""
        return self.alert in (FINISHED[0], "failed")

    @property
    def kind(self) -> str:
        return f"{self.alert}|{self.severity}"

    def add(self, event: Event) -> None:
        self.first_at = self.first_at or str(event["at"])
        self.first_seq = self.first_seq or int(event.get("seq") or 0)
        self.last_seq = max(self.last_seq, int(event.get("seq") or 0))
        self.last_at = str(event["at"])
        self.count += 1
        self.events = [*self.events, event][-SAMPLES:]
        if len(self.names) < NAMES:
            self.names[subject_of(event)] = None


class Gathering:
    """One target's pending alerts, and the recently sent ones for deduplication. `now`: monotonic seconds."""

    def __init__(self, target: AlertTarget) -> None:
        self._target = target
        self._groups: dict[tuple[str, Severity], AlertGroup] = {}
        self._closed: list[AlertGroup] = []  # nothing is added to them; sent first
        self._sent_at: OrderedDict[tuple[str, ...], float] = OrderedDict()  # (kind, subject, …) -> time
        self._silent: dict[str, tuple[float, Event]] = {}  # host -> (since when, its event), not yet reported
        self._reported_silent: set[str] = set()  # hosts whose silence was reported: their return is reported too
        self.deduplicated = 0

    @property
    def queued(self) -> int:
        return sum(group.count for group in (*self._closed, *self._groups.values()))

    @property
    def oldest_seq(self) -> int | None:
        """The seq of the oldest event not yet reported to this target; None if there is none."""
        silent = (int(event.get("seq") or 0) for _, event in self._silent.values())
        groups = (*self._closed, *self._groups.values())
        return min((*(group.first_seq for group in groups), *silent), default=None)

    @property
    def waiting(self) -> bool:
        return bool(self._groups or self._closed)

    def close(self) -> None:
        """Send the alerts added so far as messages of their own, without those that follow."""
        self._closed += self._groups.values()
        self._groups = {}

    def take(self, event: Event, now: float, routed: bool = False) -> None:
        """Add an event. `routed`: included regardless of the target's own classes."""
        if not routed and not among(self._target.events, event):
            return
        kind, host = event["kind"], str(event.get("host") or "")
        if kind == "agent_unreachable":
            self._silent[host] = (now, event)
        elif kind == "agent_connected" and not self._listens_to(kind):
            self._silent.pop(host, None)
            if host in self._reported_silent:
                self._reported_silent.discard(host)
                self._add(event)
        else:
            self._take_once(event, now)

    def _listens_to(self, kind: str) -> bool:
        """Whether the target receives every event of this kind, not only one that ends an alert."""
        return kind in self._target.events or "all" in self._target.events

    def _take_once(self, event: Event, now: float) -> None:
        key = (str(event["kind"]), subject_of(event), *_rule_of(event))
        if classified(event)[1] != "info":
            sent_at = self._sent_at.get(key)
            if sent_at is not None and now - sent_at < self._target.dedup:
                self.deduplicated += 1
                return
            self._sent_at[key] = now
            self._sent_at.move_to_end(key)
            if len(self._sent_at) > REMEMBERED:
                self._sent_at.popitem(last=False)
        self._add(event)

    def _add(self, event: Event) -> None:
        alert, severity = classified(event)
        self._groups.setdefault((alert, severity), AlertGroup(alert, severity)).add(event)

    def ripen(self, now: float) -> float | None:
        """Turn hosts that have been silent long enough into alerts. Returns when to call again, None if not needed."""
        after = self._target.unreachable_after
        for host, (since, event) in list(self._silent.items()):
            if now - since >= after:
                del self._silent[host]
                self._reported_silent.add(host)
                self._take_once(event, now)
        return min((since + after for since, _ in self._silent.values()), default=None)

    def pop(self) -> AlertGroup | None:
        """Remove and return the group that has waited longest; None if there is none."""
        if self._closed:
            return self._closed.pop(0)
        return self._groups.pop(next(iter(self._groups))) if self._groups else None


# --------------------------------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class EndedJob:
    """A worker that has finished or failed. `line`: the log line that proves the cause. `last_lines`: of its log,
    oldest first."""

    worker_id: str
    host: str
    state: str
    attempt: int
    code: int | None
    signal: int | None
    cause: str
    duration_s: float
    line: str
    last_lines: list[str]
    link: str


@dataclass(frozen=True)
class Message:
    """The content of a message, independent of its format."""

    alert: str
    severity: Severity
    title: str
    lines: list[str]
    language: str
    count: int
    first_at: str
    last_at: str
    events: list[Event]
    fleet_id: str
    link: str = ""
    undelivered: int = 0  # earlier alerts that could not be delivered to this target
    test: bool = False
    ended: list[EndedJob] = field(default_factory=list)  # some of the ended workers
    message_id: str = ""  # the same if the message is sent again, also by another manager

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def compose(
    group: AlertGroup, target: AlertTarget, fleet_id: str, link: str, undelivered: int = 0, tails: Tails | None = None
) -> Message:
    """The message of a group. `undelivered`: earlier alerts that could not be delivered. `tails`: known last log lines
    by (worker id, attempt)."""
    ended = [_ended(event, link, tails or {}) for event in group.events[-ENDED_SHOWN:]] if group.is_end else []
    words = Words(target.language)
    names = list(group.names)
    key = f"alert.{group.alert}_{group.severity}"
    key = key if words.has(key) else f"alert.{group.alert}" if words.has(f"alert.{group.alert}") else "alert.other"
    what = words.say(key, n=group.count, kind=group.alert)
    shown = words.listed([name for name in names if name], 5)
    title = words.say("alert.title", what=what, names=shown) if shown else what
    lines = [_line(event, words) for event in group.events]
    if group.count == 1 and ended:
        lines += [f"> {line}" for line in ended[0].last_lines]
        link = ended[0].link
    if group.count > len(lines):
        lines.append(words.say("alert.more", n=group.count - len(lines)))
    if undelivered:
        lines.append(words.say("alert.undelivered", n=undelivered))
    return Message(
        group.alert, group.severity, title, lines, words.language, group.count, group.first_at, group.last_at,
        group.events, fleet_id, link, undelivered, ended=ended,
        message_id=f"{fleet_id}-{group.alert}-{group.first_seq}",
    )  # fmt: skip


def _ended(event: Event, link: str, tails: Tails) -> EndedJob:
    evidence = event.get("evidence")
    record = evidence.get("exit") if isinstance(evidence, dict) else None
    record = record if isinstance(record, dict) else {}
    worker, attempt = str(event.get("worker_id") or ""), int(event.get("attempt") or 0)
    return EndedJob(
        worker, str(event.get("host") or ""), str(event.get("after") or "failed"), attempt, record.get("code"),
        record.get("signal"), str(event.get("cause") or ""), float(record.get("duration_s") or 0.0),
        str(record.get("line") or ""), tails.get((worker, attempt), []),
        f"{link}/#/workers/{quote(worker, safe='')}" if link else "",
    )  # fmt: skip


def _line(event: Event, words: Words) -> str:
    where = subject_of(event)
    if event.get("worker_id") and event.get("host"):
        where = words.say("alert.where", worker=event["worker_id"], host=event["host"])
    return words.say("alert.line", where=where, what=words.event(event)) if where else words.event(event)


def test_message(target: AlertTarget, fleet_id: str, link: str, at: str) -> Message:
    words = Words(target.language)
    lines = [words.say("alert.test_line", name=target.name)]
    title = words.say("alert.test")
    return Message("test", "info", title, lines, words.language, 1, at, at, [], fleet_id, link, test=True)


def payload(message: Message) -> Json:
    """The JSON of a `webhook` target, documented in docs/notifications.md. Fields are only ever added."""
    return {
        "version": 1,
        "id": message.message_id,
        "alert": message.alert,
        "severity": message.severity,
        "title": message.title,
        "text": message.text,
        "language": message.language,
        "count": message.count,
        "first_at": message.first_at,
        "last_at": message.last_at,
        "events": message.events,
        "ended": [asdict(one) for one in message.ended],
        "undelivered": message.undelivered,
        "fleet_id": message.fleet_id,
        "link": message.link,
        "test": message.test,
    }
