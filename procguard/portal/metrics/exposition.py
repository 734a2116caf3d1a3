"""/metrics: the fleet and the manager itself, for Prometheus.

fleet.py has the fleet's series; this module has the manager's own counters and the response, which is cached briefly
so that several scrapers cost one pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import gevent.lock
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from procguard.fleet.fleet import Fleet
from procguard.fleet.history import causes
from procguard.fleet.history.query import Event
from procguard.fleet.model import clock
from procguard.notify.notifier import NotificationTarget
from procguard.portal.logs.spool import SpooledLogStore
from procguard.portal.logs.store import LogStore
from procguard.portal.metrics import fleet
from procguard.portal.metrics.fleet import Family, label_set
from procguard.portal.metrics.request_counts import RequestCounts, histogram
from procguard.runtime import loop_lag
from procguard.runtime.cooperative import yield_to_hub

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REST_LINES = 500  # yield after a family with more samples


@dataclass(frozen=True)
class MetricsOptions:
    """`metrics.*` of the configuration."""

    per_worker: bool = True
    cache_s: float = 1.0


class Metrics:
    """`gauges`: name -> (help, reader) of values of other parts of the manager; `notifications`: the status of targets;
    `lags`: those of the event loop."""

    def __init__(
        self,
        of: Fleet,
        log_store: LogStore,
        gauges: dict[str, tuple[str, Callable[[], float]]],
        notifications: Callable[[], list[NotificationTarget]] = list,
        options: MetricsOptions | None = None,
        lags: loop_lag.LagHistogram | None = None,
    ) -> None:
        self._fleet = of
        self._log_store = log_store
        self._gauges = gauges
        self._notifications = notifications
        self._options = options or MetricsOptions()
        self._lags = lags or loop_lag.LagHistogram()
        self._kept: tuple[float, bytes] | None = None
        self._one_at_a_time = gevent.lock.Semaphore()
        self._events: Counter[tuple[str, str]] = Counter()
        self._commands: Counter[tuple[str, str]] = Counter()
        self._recoveries: Counter[str] = Counter()
        self._collectors = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._collectors)
        self._requests = RequestCounts()
        self.count = self._requests.count
        of.state.bus.events.subscribe(self._take)

    def _take(self, event: Event) -> None:
        """Count one event of the history. Kinds, causes and outcomes are defined by the code or the configuration, so
        that their number is bounded. A cause known only to an agent is counted as `other`."""
        kind, evidence, cause = event["kind"], event.get("evidence"), event.get("cause") or ""
        if cause not in causes.WORDS and cause not in self._fleet.state.settings.causes:
            cause = "other"
        self._events[kind, cause] += 1
        if not isinstance(evidence, dict):
            return
        if kind == "command":
            self._commands[str(evidence.get("command") or ""), str(event["after"])] += 1
        elif kind == "recovery" and evidence.get("outcome"):
            self._recoveries[str(evidence["outcome"])] += 1

    def exposition(self) -> bytes:
        """The whole response. The fleet's part is reused while it is younger than `cache_s`."""
        own = b"".join(family.text().encode() for family in self._own())
        return b"".join((self._of_fleet(), own, generate_latest(self._collectors)))

    def _of_fleet(self) -> bytes:
        with self._one_at_a_time:
            now = clock.read()
            if self._kept is None or now.monotonic - self._kept[0] > self._options.cache_s:
                parts = []
                per_worker = self._options.per_worker
                for family in fleet.families(self._fleet, now, per_worker=per_worker, rest=yield_to_hub):
                    parts.append(family.text().encode())
                    if len(family.lines) > REST_LINES:
                        yield_to_hub()
                self._kept = (now.monotonic, b"".join(parts))
            return self._kept[1]

    def _own(self) -> Iterable[Family]:
        for name, text, rows in (
            ("procguard_events_total", "Events since the manager's start", _labelled(self._events, "kind", "cause")),
            (
                "procguard_commands_total",
                "Commands by what became of them",
                _labelled(self._commands, "command", "status"),
            ),
            (
                "procguard_recoveries_total",
                "Incidents of silent agents that ended",
                [(label_set(outcome=outcome), number) for outcome, number in sorted(self._recoveries.items())],
            ),
            ("procguard_log_stored_bytes_total", "Log bytes stored", [("", self._log_store.bytes_stored)]),
            (
                "procguard_log_dropped_bytes_total",
                "Log bytes dropped here for logs.keep_per_worker and logs.keep_in_all",
                [("", self._log_store.bytes_dropped)],
            ),
            ("procguard_log_lost_bytes_total", "Log bytes declared lost", [("", self._log_store.bytes_lost)]),
        ):
            family = Family(name, "counter", text)
            for labels, value in rows:
                family.add(labels, value)
            yield family
        yield _gauge(
            "procguard_recoveries_open",
            "Incidents of silent agents that go on",
            sum(1 for one in self._fleet.state.incidents() if one.outcome == "open"),
        )
        yield from self._requests.families()
        yield from self._of_archive()
        yield from self._of_notifications()
        for name, (text, read) in self._gauges.items():
            yield _gauge(name, text, read())
        lags = Family("procguard_loop_lag_seconds", "histogram", "How late the event loop is")
        lags.lines += histogram(lags.name, loop_lag.BOUNDS_S, self._lags.buckets, self._lags.sum_s)
        yield lags

    def _of_archive(self) -> Iterable[Family]:
        """None without one."""
        archive = self._log_store.archive if isinstance(self._log_store, SpooledLogStore) else None
        if archive is None:
            return
        status = archive.status
        for name, text, value in (
            ("procguard_log_archive_objects_total", "Objects uploaded to the log archive", status.uploaded_objects),
            ("procguard_log_archive_uploaded_bytes_total", "Bytes of these objects", status.uploaded_bytes),
            ("procguard_log_archive_read_bytes_total", "Bytes read back from the log archive", status.read_bytes),
            (
                "procguard_log_archive_unreadable_total",
                "Archived pieces that are missing or damaged",
                status.unreadable_pieces,
            ),
        ):
            family = Family(name, "counter", text)
            family.add("", value)
            yield family
        yield _gauge("procguard_log_archive_waiting_bytes", "Log bytes not archived yet", float(status.waiting_bytes))
        yield _gauge("procguard_log_archive_failing", "1: it takes nothing now", float(status.problem != ""))

    def _of_notifications(self) -> Iterable[Family]:
        targets = self._notifications()
        counters: tuple[tuple[str, str, Callable[[NotificationTarget], int]], ...] = (
            ("procguard_notifications_sent_total", "Messages delivered", lambda one: one["sent"]),
            ("procguard_notifications_failures_total", "Tries that failed", lambda one: one["failures"]),
            ("procguard_notifications_dropped_total", "Alerts that were given up", lambda one: one["dropped"]),
            (
                "procguard_notifications_deduplicated_total",
                "Alerts told a short while before",
                lambda one: one["deduplicated"],
            ),
            ("procguard_notifications_queued", "Alerts that wait to be delivered", lambda one: one["queued"]),
        )
        for name, text, count in counters:
            family = Family(name, "counter" if name.endswith("_total") else "gauge", text)
            for view in targets:
                family.add(label_set(target=view["name"], type=view["type"]), count(view))
            yield family


def _gauge(name: str, text: str, value: float) -> Family:
    family = Family(name, "gauge", text)
    family.add("", value)
    return family


def _labelled(counts: Counter[tuple[str, str]], first: str, second: str) -> list[tuple[str, float]]:
    return [(label_set(**{first: one, second: other}), number) for (one, other), number in sorted(counts.items())]
