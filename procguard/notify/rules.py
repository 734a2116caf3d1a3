"""Alerts on measurements: the rules of `alerts:`, evaluated on the latest reports of the hosts.

    not broken ──broken──► waits `for_s` ──► firing (event alert_rule) ──► not broken any more (event alert_rule_ok)

A rule is a selector, a measurement, a limit and a duration. Each firing alert is a row of the table `rule_alerts`,
changed in the same commit as its event, so that neither a restart nor another leader repeats or loses one. Waiting
rules are in memory only and start to wait again after a restart. Alerts of unreachable hosts do not change. Sends
nothing; notifier.py does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from typing_extensions import NotRequired, TypedDict

from procguard.config.notifications import HOST_MEASURES, AlertRule
from procguard.errors import ConfigError, NotFound, UsageError
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.model.records import KNOWN_STATES, WorkerRecord
from procguard.fleet.shapes import log_metrics
from procguard.fleet.state import FleetState
from procguard.fleet.store.interface import Tables
from procguard.fleet.workers import selectors
from procguard.fleet.workers.selectors import Selector
from procguard.i18n.reasons import because
from procguard.notify.mutes import Mutes, MuteView
from procguard.notify.routes import facts_about
from remote_agent.protocol.messages import AgentHeartbeat, WorkerReport
from remote_agent.protocol.states import RUNNING

TABLE = "rule_alerts"
REST_EVERY = 100  # workers or hosts; less than a millisecond
MAX_CHANGES = 200  # events of one pass; the others follow in the next
MAX_FIRING = 10_000
METRIC_PREFIX = "metrics."

Breaks = Callable[[float], bool]
_NOBODY: frozenset[str] = frozenset()

log = logging.getLogger(__name__)


class Acknowledged(TypedDict):
    by: str
    at: str | None
    note: str


class FiringAlert(TypedDict):
    """A rule that a worker, a host or a GPU breaks now. `alert`: its identifier. `value`: the latest value, null if it
    is not measured now. `above` or `below`: the limit; both are null if the rule is no longer configured."""

    alert: str
    rule: str
    measure: str
    value: float | None
    above: float | None
    below: float | None
    since: str | None
    worker_id: str | None
    host: str
    gpu: int | None
    mute: MuteView | None
    acknowledged: Acknowledged | None


class AcknowledgedAt(TypedDict):
    """`at`: Unix seconds."""

    by: str
    at: float
    note: str


class Subject(NamedTuple):
    """What a rule is evaluated for: a worker, a host or a GPU. `gpu`: its index, or None. `value`: None if it is not
    measured. `known`: whether the host is reachable."""

    worker_id: str
    host: str
    agent_id: str
    gpu: int | None
    value: float | None
    known: bool

    @property
    def name(self) -> str:
        return self.worker_id or (self.agent_id if self.gpu is None else f"{self.agent_id}/{self.gpu}")


class FiringRow(TypedDict):
    """A firing alert as stored. `since`: Unix seconds."""

    rule: str
    measure: str
    since: float
    worker_id: str
    host: str
    agent: str
    gpu: int | None
    acknowledged: NotRequired[AcknowledgedAt]


@dataclass(frozen=True)
class _RuleChange:
    key: str
    rule: AlertRule | None
    row: FiringRow
    value: float | None
    begins: bool


class AlertRules:
    def __init__(self, rules: Sequence[AlertRule]) -> None:
        """Raises ConfigError for a selector that cannot be read."""
        self._rules: list[tuple[AlertRule, Selector]] = []
        for rule in rules:
            try:
                self._rules.append((rule, selectors.parse(rule.select)))
            except UsageError as exc:
                raise ConfigError(f"alerts, {rule.name}: select: {exc.message}", exc.next_step) from exc
        self._since: dict[str, float] = {}  # key -> monotonic: broken since
        self._firing: dict[str, FiringRow] = {}

    @property
    def count(self) -> int:
        """The number of configured rules."""
        return len(self._rules)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to evaluate and no alert is firing."""
        return not self._rules and not self._firing

    def restore(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self._firing = {key: cast(FiringRow, dict(row)) for key, row in rows.items()}

    def tables(self) -> Tables:
        return {TABLE: {key: dict(row) for key, row in self._firing.items()}}

    def firing(self, state: FleetState, mutes: Mutes, wall: float) -> list[FiringAlert]:
        """The alerts that fire now, the latest first."""
        rules = {rule.name: rule for rule, _ in self._rules}
        rows = sorted(self._firing.items(), key=lambda item: item[1]["since"], reverse=True)
        return [_firing_view(state, mutes, key, row, rules.get(row["rule"]), wall) for key, row in rows]

    def acknowledge(self, state: FleetState, key: str, note: str, actor: str, now: Now) -> None:
        """Acknowledge a firing alert; kept durably until the alert ends. `key`: its identifier. Raises NotFound."""
        row = self._firing.get(key)
        if row is None:
            raise NotFound(f"no alert {key[:200]!r} fires", "list them: invoke notify.firing", code="unknown_alert")
        seen: FiringRow = {**row, "acknowledged": {"by": actor, "at": now.wall, "note": note}}
        with state.transaction(now, actor) as tx:
            tx.put(TABLE, key, dict(seen))
            self._firing[key] = seen
            tx.undo(lambda: self._firing.update({key: row}))
            tx.event(
                "alert_acknowledged",
                worker_id=row["worker_id"],
                host=row["host"],
                reason=because("rule.seen", rule=row["rule"]).then(note),
                cause=row["rule"],
                evidence={"alert": key},
            )

    def evaluate(self, state: FleetState, now: Now, rest: Callable[[], None]) -> None:
        """Evaluate all rules once. `rest`: called frequently to yield to the event loop. Raises ProcGuardError if the
        state refuses the changes; the next evaluation repeats them."""
        changes, since, seen = [], {}, set()
        firing_of: dict[str, set[str]] = {}
        for key in self._firing:
            rule_name, _, subject_name = key.partition("|")
            firing_of.setdefault(rule_name, set()).add(subject_name)
        for rule, selector in self._rules:
            of_rule = firing_of.get(rule.name, _NOBODY)
            breaks = breaks_of(rule)
            for subject in _subjects(state, rule.measure, breaks, of_rule, now.wall, rest):
                key = f"{rule.name}|{subject.name}"
                firing = subject.name in of_rule
                seen.add(key)
                if not subject.known:
                    continue
                broken = subject.value is not None and breaks(subject.value)
                if broken and (rule.select == "*" or selector.matches(_facts(state, subject))):
                    since[key] = self._since.get(key, now.monotonic)
                    if not firing and now.monotonic - since[key] >= rule.for_s:
                        row = _row(rule, subject, now.wall)
                        changes.append(_RuleChange(key, rule, row, subject.value, True))
                elif firing:
                    changes.append(_RuleChange(key, rule, self._firing[key], subject.value, False))
        for key, row in self._firing.items():
            if key not in seen and self._is_gone(state, row):
                changes.append(_RuleChange(key, None, row, None, False))
        self._since = since
        self._apply(state, changes[:MAX_CHANGES], now)

    def _is_gone(self, state: FleetState, row: FiringRow) -> bool:
        """Whether the rule, the worker or the host no longer exists, or, on a reachable host, the GPU."""
        if row["rule"] not in {rule.name for rule, _ in self._rules}:
            return True
        if row["worker_id"]:
            return row["worker_id"] not in state.workers_by_id
        observed = state.agent_status.get(row["agent"])
        return observed is None or observed.state in KNOWN_STATES

    def _apply(self, state: FleetState, changes: list[_RuleChange], now: Now) -> None:
        room = MAX_FIRING - len(self._firing)
        begun = [one for one in changes if one.begins]
        if len(begun) > room:
            log.warning("alerts: more than %d at once; %d are left out", MAX_FIRING, len(begun) - max(0, room))
            changes = [one for one in changes if not one.begins] + begun[: max(0, room)]
        if not changes:
            return
        with state.transaction(now, "manager") as tx:
            for one in changes:
                tx.put(TABLE, one.key, dict(one.row) if one.begins else None)
                tx.event(
                    "alert_rule" if one.begins else "alert_rule_ok",
                    worker_id=one.row["worker_id"],
                    host=one.row["host"],
                    reason=_reason(one, now.wall),
                    cause=one.row["rule"],
                    evidence={**one.row, "value": one.value},
                )
        for one in changes:
            if one.begins:
                self._firing[one.key] = one.row
            else:
                self._firing.pop(one.key, None)


def _firing_view(
    state: FleetState, mutes: Mutes, key: str, row: FiringRow, rule: AlertRule | None, wall: float
) -> FiringAlert:
    seen = row.get("acknowledged")
    mute = mutes.covering(wall, facts_about(state, row.get("worker_id") or "", row.get("host") or ""))
    value = _value_now(state, row, wall)
    return {
        "alert": key,
        "rule": row["rule"],
        "measure": row["measure"],
        "value": None if value is None else _plain(value),
        "above": rule.above if rule else None,
        "below": rule.below if rule else None,
        "since": iso(row["since"]),
        "worker_id": row["worker_id"] or None,
        "host": row["host"],
        "gpu": row["gpu"],
        "mute": mute.view(wall) if mute else None,
        "acknowledged": Acknowledged(by=seen["by"], at=iso(seen["at"]), note=seen["note"]) if seen else None,
    }


def _value_now(state: FleetState, row: FiringRow, wall: float) -> float | None:
    measure = row["measure"]
    if row["worker_id"]:
        worker, observed = state.workers_by_id.get(row["worker_id"]), state.worker_status.get(row["worker_id"])
        report = observed.report if observed is not None else None
        return worker_reader(measure)(report, worker, wall) if worker is not None and report is not None else None
    agent = state.agent_status.get(row["agent"])
    values = _values(agent.heartbeat if agent else None, _READ[measure], measure.startswith("gpu."))
    return next((value for gpu, value in values if gpu == row["gpu"]), None)


def _row(rule: AlertRule, subject: Subject, wall: float) -> FiringRow:
    return {
        "rule": rule.name,
        "measure": rule.measure,
        "since": wall,
        "worker_id": subject.worker_id,
        "host": subject.host,
        "agent": subject.agent_id,
        "gpu": subject.gpu,
    }


def _reason(change: _RuleChange, wall: float) -> Any:
    row, rule = change.row, change.rule
    what = row["measure"] if row["gpu"] is None else f"{row['measure']} ({row['gpu']})"
    lasted_s = max(0.0, wall - row["since"])
    if rule is None or change.value is None:
        return because("rule.gone", rule=row["rule"], measure=what, lasted_s=lasted_s)
    values = {"rule": rule.name, "measure": what, "value": _plain(change.value), "limit": _plain(rule.limit)}
    if not change.begins:
        return because("rule.ok", lasted_s=lasted_s, **values)
    return because("rule.above" if rule.above is not None else "rule.below", for_s=rule.for_s, **values)


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else float(f"{value:.6g}")


def _facts(state: FleetState, subject: Subject) -> selectors.Facts:
    return facts_about(state, subject.worker_id, subject.host)


# ---------------------------------------------------------------------------------------------------- measurements


def breaks_of(rule: AlertRule) -> Breaks:
    limit = rule.limit
    return (lambda value: value > limit) if rule.above is not None else (lambda value: value < limit)


def _subjects(
    state: FleetState, measure: str, breaks: Breaks, firing: Set[str], wall: float, rest: Callable[[], None]
) -> Iterator[Subject]:
    """The subjects whose value breaks the rule and those in `firing`; usually there are none."""
    if measure in HOST_MEASURES:
        yield from _hosts(state, measure, breaks, firing, rest)
        return
    read = worker_reader(measure)
    for number, worker in enumerate(list(state.workers_by_id.values()), 1):
        if number % REST_EVERY == 0:
            rest()
        observed = state.worker_status.get(worker.worker_id)
        if observed is None:
            continue  # removed while this loop had yielded
        report = observed.report
        value = read(report, worker, wall) if report is not None and report.state == RUNNING else None
        if (value is not None and breaks(value)) or worker.worker_id in firing:
            agent = state.agent_status.get(worker.agent_id)
            known = agent is not None and agent.state in KNOWN_STATES and agent.heartbeat is not None
            yield Subject(worker.worker_id, worker.host, worker.agent_id, None, value, known)


def worker_reader(measure: str) -> Callable[[WorkerReport, WorkerRecord, float], float | None]:
    """A function (report of a running worker, the worker, now in Unix seconds) -> value; None if it is not measured."""
    if measure.startswith(METRIC_PREFIX):
        name = measure[len(METRIC_PREFIX) :]
        return lambda report, _worker, _wall: next((one.value for one in report.metrics if one.name == name), None)
    if measure == "progress_percent":
        return lambda report, _worker, _wall: log_metrics.progress_percent(report)
    if measure == "no_progress_s":
        return _no_progress_s
    return lambda report, _worker, _wall: getattr(report.usage, measure, None)


def _no_progress_s(report: WorkerReport, worker: WorkerRecord, wall: float) -> float | None:
    """Seconds since the worker's progress metric has changed, or since its start. The metric is that of
    restart.progress, else the first with a total, else the first."""
    if not worker.spec.metrics:
        return None
    named = worker.spec.restart.progress.removeprefix(METRIC_PREFIX)
    wanted = [one for one in report.metrics if one.name == named] or [one for one in report.metrics if one.total]
    metric = next(iter(wanted or report.metrics), None)
    changed = metric.at if metric is not None and metric.value is not None else 0.0
    return max(0.0, wall - max(changed, report.since))


def _hosts(
    state: FleetState, measure: str, breaks: Breaks, firing: Set[str], rest: Callable[[], None]
) -> Iterator[Subject]:
    read = _READ[measure]
    of_gpus = measure.startswith("gpu.")
    for number, agent in enumerate(list(state.agents_by_id.values()), 1):
        if number % REST_EVERY == 0:
            rest()
        observed = state.agent_status.get(agent.agent_id)
        if observed is None or agent.kind != "deployed":
            continue  # otherwise a host with launchers would be counted once for each of them
        beat = observed.heartbeat
        known = observed.state in KNOWN_STATES and beat is not None
        for gpu, value in _values(beat, read, of_gpus):
            broken = value is not None and breaks(value)
            if broken or firing:
                yield Subject("", agent.host, agent.agent_id, gpu, value, known)


def _share(part: float | None, whole: float | None) -> float | None:
    return 100.0 * part / whole if part is not None and whole else None


_READ: dict[str, Callable[[Any], float | None]] = {
    "host.cpu_percent": lambda beat: beat.usage.cpu_percent,
    "host.load1": lambda beat: beat.usage.load1,
    "host.memory_used_percent": lambda beat: _share(beat.usage.memory_used_bytes, beat.facts.memory_bytes),
    "host.swap_used_bytes": lambda beat: beat.usage.swap_used_bytes,
    "host.disk_free_bytes": lambda beat: beat.usage.disk_free_bytes,
    "host.disk_free_percent": lambda beat: _share(beat.usage.disk_free_bytes, beat.usage.disk_total_bytes),
    "gpu.temperature_c": lambda gpu: gpu.temperature_c,
    "gpu.utilization_percent": lambda gpu: gpu.utilization_percent,
    "gpu.memory_used_percent": lambda gpu: _share(gpu.memory_used_bytes, gpu.memory_total_bytes),
    "gpu.power_w": lambda gpu: gpu.power_w,
}
assert set(_READ) == set(HOST_MEASURES)


def _values(beat: AgentHeartbeat | None, read: Callable[..., Any], of_gpus: bool) -> Iterable[tuple[int | None, Any]]:
    if beat is None or beat.usage is None:
        return [] if of_gpus else [(None, None)]
    if of_gpus:
        return [(gpu.index, read(gpu)) for gpu in beat.usage.gpus]
    return [(None, read(beat))]
