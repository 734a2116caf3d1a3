"""Sends alerts: one loop per target, so that a slow or failed target delays no other target and no event.

`take` is called with every event and only sorts it in memory. Sending, retrying and waiting happen in the target's
own greenlet. Messages that cannot be delivered within RETRY_FOR_S are dropped, counted and mentioned in the next one.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gevent
import gevent.event
from typing_extensions import NotRequired, TypedDict

from procguard.config.notifications import AlertTarget
from procguard.errors import Conflict, NotFound
from procguard.fleet.history.query import Event
from procguard.fleet.model import clock
from procguard.fleet.model.clock import iso
from procguard.fleet.store.interface import Tables
from procguard.notify import alerts, transport
from procguard.notify.alerts import Gathering, Message
from procguard.notify.formats import Outcome

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
RETRY_FOR_S = 900.0  # a message is dropped after this time, in favour of newer ones

WAITING_CLASS = "host_unreachable"  # its alerts are delayed, so that alerts of later events may be sent first
LAST_LINES = 5  # last lines of a log, for a target that gets `finished`
LINES_AFTER_S = 0.5  # an agent sends new output within 0.3 s, but reports the end of a worker at once

log = logging.getLogger(__name__)

Send = Callable[[AlertTarget, Message, clock.Now], Outcome]


class TargetProgress(TypedDict):
    """The progress of one target. `seq`: all earlier events were delivered or skipped. `done`: later ones that were
    delivered, by kind. `message`: the one that is being sent: kind of its group, first and last seq."""

    seq: int
    done: NotRequired[dict[str, int]]
    message: NotRequired[list[Any]]


class NotificationTarget(TypedDict):
    name: str
    type: str
    address: str
    events: list[str]
    language: str
    sent: int
    failures: int
    last_ok: str | None
    last_error: str
    last_error_at: str | None
    queued: int
    dropped: int
    deduplicated: int
    muted: int
    retry_in_s: float | None


class Tried(TypedDict):
    name: str
    type: str
    ok: bool
    answer: str
    took_s: float


@dataclass
class Counts:
    """Counters of one target since the manager's start, in alerts; `sent` in messages."""

    sent: int = 0
    failures: int = 0  # failed attempts to send
    dropped: int = 0
    muted: int = 0
    last_ok: float | None = None
    last_error: str = ""
    last_error_at: float | None = None


class _Loop:
    """One target: its pending alerts and the greenlet that sends them."""

    def __init__(self, notifier: Notifier, target: AlertTarget) -> None:
        self.target = target
        self.gathering = Gathering(target)
        self.counts = Counts()
        self.sending = 0  # number of alerts in the message being sent
        self.sending_seq: int | None = None  # seq of the first of them
        self.taken_seq = 0  # seq of the last event that was processed
        self.done: dict[str, int] = {}  # kind of group -> seq of its last event that was delivered or dropped
        self.message: list[Any] | None = None  # being sent: kind of its group, first and last seq
        self.retry_at: float | None = None  # monotonic
        self._notifier = notifier
        self._undelivered = 0
        self._taken_at = 0.0  # monotonic
        asked = alerts.FINISHED[0] in target.events or target.name in notifier.notified_of_ends
        self._lines = (LAST_LINES if asked else 0) if target.last_lines is None else target.last_lines
        self._wake = gevent.event.Event()
        self.greenlet: Any = None

    def take(self, event: Event, now: float, routed: bool, muted: bool) -> None:
        if muted:
            self.counts.muted += routed or alerts.among(self.target.events, event)
        else:
            self.gathering.take(event, now, routed)
        self.taken_seq = max(self.taken_seq, int(event.get("seq") or 0))
        self._taken_at = now
        self._wake.set()

    @property
    def cursor(self) -> int:
        """Sequence number up to which all alerts were delivered or dropped."""
        waiting = [seq for seq in (self.gathering.oldest_seq, self.sending_seq) if seq is not None]
        return min((self.taken_seq, *(seq - 1 for seq in waiting)))

    @property
    def progress(self) -> TargetProgress:
        made: TargetProgress = {"seq": self.cursor}
        if done := {kind: seq for kind, seq in self.done.items() if seq > self.cursor}:
            made["done"] = done
        if self.message is not None:
            made["message"] = self.message
        return made

    def resume(self, kept: TargetProgress, events: Sequence[Event], now: float) -> None:
        """Process `events`, those after the cursor, again. Events of a message that was being sent form that message
        again, with the same id; events of delivered messages are skipped."""
        done = {str(kind): int(seq) for kind, seq in (kept.get("done") or {}).items()}
        kind, first, last = kept.get("message") or ("", 0, 0)
        under_way = [one for one in events if alerts.kind_of(one) == kind and first <= one["seq"] <= last]
        routed, muted, name = self._notifier.routed, self._notifier.muted, self.target.name
        for event in under_way:
            self.take(event, now, name in routed(event), muted(event))
        self.gathering.close()
        for event in events:
            waits = alerts.classified(event)[0] == WAITING_CLASS
            if event not in under_way and (waits or event["seq"] > done.get(alerts.kind_of(event), 0)):
                self.take(event, now, name in routed(event), muted(event))
        self.done = done

    def run(self) -> None:
        while True:
            try:
                self._round()
            except Exception:  # an error must not stop this target's loop
                log.exception("a notification failed name=%s", self.target.name)
                gevent.sleep(RETRY_FIRST_S)

    def _round(self) -> None:
        ripe_at = self.gathering.ripen(clock.read().monotonic)
        if not self.gathering.waiting:
            wait_s = None if ripe_at is None else max(0.0, ripe_at - clock.read().monotonic)
            self._wake.wait(wait_s)
            self._wake.clear()
            return
        gevent.sleep(self.target.group_wait)
        while (group := self.gathering.pop()) is not None:
            self.sending, self.sending_seq = group.count, group.first_seq
            self.message = [group.kind, group.first_seq, group.last_seq]
            try:
                self._notifier.keep(self.target.name, self.progress)
                if group.is_end and self._lines:
                    gevent.sleep(max(0.0, self._taken_at + LINES_AFTER_S - clock.read().monotonic))
                self._deliver(
                    alerts.compose(
                        group,
                        self.target,
                        self._notifier.fleet_id(),
                        self._notifier.link(),
                        self._undelivered,
                        self._notifier.tails(group, self._lines),
                    )
                )
                self.done[group.kind] = max(group.last_seq, self.done.get(group.kind, 0))
            except gevent.GreenletExit:
                raise  # not delivered: the next run of the manager sends this message
            except Exception:
                self._sent()
                raise
            self._sent()
        gevent.sleep(self.target.min_interval)

    def _sent(self) -> None:
        self.sending, self.sending_seq, self.message = 0, None, None

    def _deliver(self, message: Message) -> None:
        began, delay_s = clock.read().monotonic, RETRY_FIRST_S
        while True:
            outcome = self._try(message)
            if outcome.ok:
                self._undelivered = 0
                return
            waited_s = clock.read().monotonic - began
            pause_s = max(outcome.after_s or 0.0, delay_s * random.uniform(0.75, 1.25))  # noqa: S311 - spreads retries
            if not outcome.retry or waited_s + pause_s > self._notifier.retry_for_s:
                self.counts.dropped += message.count
                self._undelivered += message.count
                log.error("notification dropped name=%s alerts=%d error=%s", self.target.name, message.count,
                          outcome.answer)  # fmt: skip
                return
            self.retry_at = clock.read().monotonic + pause_s
            gevent.sleep(pause_s)
            self.retry_at = None
            delay_s = min(delay_s * 2, RETRY_MOST_S)

    def _try(self, message: Message) -> Outcome:
        outcome = self._notifier.send(self.target, message, clock.read())
        self.note(outcome)
        return outcome

    def note(self, outcome: Outcome) -> None:
        now = clock.read().wall
        if outcome.ok:
            self.counts.sent += 1
            self.counts.last_ok = now
            return
        if outcome.answer != self.counts.last_error:  # logged once per error, not with each retry
            log.warning("notification failed name=%s error=%s", self.target.name, outcome.answer)
        self.counts.failures += 1
        self.counts.last_error, self.counts.last_error_at = outcome.answer, now

    def view(self) -> NotificationTarget:
        counts, retry_at = self.counts, self.retry_at
        return {
            "name": self.target.name,
            "type": self.target.type,
            "address": self.target.shown_address,
            "events": self.target.events,
            "language": self.target.language,
            "sent": counts.sent,
            "failures": counts.failures,
            "last_ok": iso(counts.last_ok),
            "last_error": counts.last_error,
            "last_error_at": iso(counts.last_error_at),
            "queued": self.gathering.queued + self.sending,
            "dropped": counts.dropped,
            "deduplicated": self.gathering.deduplicated,
            "muted": counts.muted,
            "retry_in_s": None if retry_at is None else round(max(0.0, retry_at - clock.read().monotonic), 1),
        }


class Notifier:
    """Sends the alerts of events to all targets. `fleet_id` and `link` are called when a message is composed, because
    both are known only once the manager serves."""

    def __init__(
        self,
        targets: Sequence[AlertTarget],
        fleet_id: Callable[[], str],
        link: Callable[[], str],
        *,
        send: Send = transport.send,
        retry_for_s: float = RETRY_FOR_S,
        routed: Callable[[Event], Container[str]] = lambda _: (),
        muted: Callable[[Event], bool] = lambda _: False,
        last_lines: Callable[[str, int, int], list[str]] = lambda worker_id, attempt, most: [],
        notified_of_ends: Container[str] = (),
        routes: Sequence[Mapping[str, Any]] = (),
        keep: Callable[[str, TargetProgress], None] = lambda name, progress: None,
    ) -> None:
        """`routed(event)`: names of the targets that receive it by a route. `muted(event)`: whether no target receives
        it. `keep(target, progress)`: stores the progress before a message is sent; returns once it is durable, or if
        that is impossible. `last_lines(worker, attempt, most)`: last lines of its log. `notified_of_ends`: names of the
        targets that receive `finished` by a route. `routes`: for the API."""
        self.fleet_id = fleet_id
        self.link = link
        self.send = send
        self.routed, self.muted, self.notified_of_ends = routed, muted, notified_of_ends
        self.routes = list(routes)
        self._last_lines = last_lines
        self.keep = keep
        self.retry_for_s = retry_for_s
        self._loops = {target.name: _Loop(self, target) for target in targets}
        self._first_seq = 0  # of the first event of this run of the manager
        self._kept: dict[str, TargetProgress] = {}

    def resume(self, kept: Mapping[str, Mapping[str, Any]], events: Sequence[Event], wall: float) -> None:
        """Resume the deliveries of an earlier run or leader. `events`: the newest of the history; those after each
        target's cursor are sent unless they are too old."""
        self._kept = {name: cast(TargetProgress, dict(kept[name])) for name in self._loops if name in kept}
        since, now = iso(wall - self.retry_for_s) or "", clock.read().monotonic
        for name in set(self._loops) - set(self._kept):  # a new target receives only events from now on
            self._loops[name].taken_seq = max((event["seq"] for event in events), default=0)
        for name, progress in self._kept.items():
            loop, cursor = self._loops[name], int(progress["seq"])
            loop.taken_seq = max(loop.taken_seq, cursor)
            behind = [
                event
                for event in events
                if cursor < event["seq"] and event["at"] >= since and not 0 < self._first_seq <= event["seq"]
            ]
            loop.resume(progress, behind, now)

    def tables(self) -> Tables:
        """The progress of all targets, in the form of the store's tables."""
        return {"notifier": {name: dict(loop.progress) for name, loop in self._loops.items()}}

    def moved(self) -> dict[str, TargetProgress]:
        """The progress of the targets for which it has changed since the previous call."""
        now = {name: loop.progress for name, loop in self._loops.items()}
        found = {name: progress for name, progress in now.items() if progress != self._kept.get(name)}
        self._kept = now
        return found

    def start(self) -> None:
        for loop in self._loops.values():
            loop.greenlet = gevent.spawn(loop.run)

    def stop(self) -> None:
        for loop in self._loops.values():
            if loop.greenlet is not None:
                loop.greenlet.kill()
                loop.greenlet = None

    def take(self, event: Event) -> None:
        """Pass an event to all targets; called for every event. O(targets), no I/O."""
        now = clock.read().monotonic
        self._first_seq = self._first_seq or int(event.get("seq") or 0)
        routed, muted = self.routed(event), self.muted(event)
        for loop in self._loops.values():
            loop.take(event, now, loop.target.name in routed, muted)

    def tails(self, group: alerts.AlertGroup, most: int) -> dict[tuple[str, int], list[str]]:
        """The last log lines of the ended workers that the group's message shows, by (worker id, attempt)."""
        if not group.is_end or not most:
            return {}
        shown = group.events[-alerts.ENDED_SHOWN :]
        keys = {(str(event.get("worker_id") or ""), int(event.get("attempt") or 0)) for event in shown}
        return {key: self._last_lines(*key, most) for key in keys}

    def views(self) -> list[NotificationTarget]:
        return [loop.view() for loop in self._loops.values()]

    def test(self, name: str = "") -> list[Tried]:
        """Send a test message once to one target or to all. Returns the result of each. Raises Conflict if there are no
        targets, NotFound for an unknown name."""
        if not self._loops:
            raise Conflict("no notifications are configured", "see docs/notifications.md", code="not_configured")
        if name and name not in self._loops:
            raise NotFound(f"no notification target {name[:80]!r}", f"there are: {', '.join(self._loops)}")
        loops = [self._loops[name]] if name else list(self._loops.values())
        tries = [gevent.spawn(self._test, loop) for loop in loops]
        gevent.joinall(tries)
        return [one.get() for one in tries]

    def _test(self, loop: _Loop) -> Tried:
        began = clock.read()
        message = alerts.test_message(loop.target, self.fleet_id(), self.link(), iso(began.wall) or "")
        outcome = self.send(loop.target, message, began)
        loop.note(outcome)
        return {
            "name": loop.target.name,
            "type": loop.target.type,
            "ok": outcome.ok,
            "answer": outcome.answer,
            "took_s": round(clock.read().monotonic - began.monotonic, 3),
        }
