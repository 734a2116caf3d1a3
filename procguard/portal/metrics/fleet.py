"""The fleet's series for /metrics, written as text in one pass over the records that yields regularly.

Ten thousand workers are 150,000 lines: creating a view and a sample object for each would block the event loop for
seconds. Names and units follow Prometheus' conventions (docs/metrics.md lists each); values that were not measured have
no sample. Reads the fleet; changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from procguard import __version__
from procguard.fleet.fleet import Fleet
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import KNOWN_STATES, WorkerObserved, WorkerRecord
from procguard.fleet.shapes import log_metrics
from procguard.fleet.shapes import views as shapes
from procguard.fleet.shapes.hosts import HOST
from procguard.fleet.shapes.workers import WORKER
from procguard.fleet.workers.views import observed_state
from remote_agent.protocol import messages, states

AGENT_STATES = ("never", "connected", "suspect", "unreachable", "ended", "pending")
REST_EVERY = 100  # workers or hosts; about 2 ms

T = TypeVar("T")
Kind = Literal["gauge", "counter", "histogram"]


@dataclass
class Family:
    """One metric. `name` of a counter ends in _total."""

    name: str
    kind: Kind
    help: str
    lines: list[str] = field(default_factory=list)

    def add(self, labels: str, value: float) -> None:
        self.lines.append(f"{self.name}{labels} {value}")

    def text(self) -> str:
        """The metric in the exposition format. HELP and TYPE are written without samples as well, so that the name is
        always known."""
        return "\n".join((f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.kind}", *self.lines, ""))


def label_set(**labels: str) -> str:
    """{host="gpu01",worker="w1"}, with special characters escaped."""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value


_PERCENT = 100.0

# (name, help, accessor of the usage)
_OF_USAGE = shapes.metrics_of(WORKER)
_OF_HOST = shapes.metrics_of(HOST)
_OF_GPU: tuple[tuple[str, str, Callable[[messages.GpuUsage], float | None]], ...] = (
    ("utilization_ratio", "Utilisation as the driver counts it", lambda g: _ratio(g.utilization_percent)),
    ("memory_used_bytes", "GPU memory in use", lambda g: g.memory_used_bytes),
    ("memory_bytes", "GPU memory", lambda g: g.memory_total_bytes),
    ("power_watts", "Power drawn", lambda g: g.power_w),
    ("temperature_celsius", "Temperature", lambda g: g.temperature_c),
    ("throttled", "1 while its clocks are held down by heat or power", lambda g: float(bool(g.throttled))),
)


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else round(percent / _PERCENT, 6)


def families(fleet: Fleet, now: Now, *, per_worker: bool, rest: Callable[[], None]) -> Iterator[Family]:
    """Every family of the fleet, with or without samples. `rest` yields to other greenlets."""
    info = Family("procguard_build_info", "gauge", "The running manager")
    info.add(label_set(version=__version__, fleet=fleet.state.fleet_id), 1)
    yield info
    yield from _workers(fleet, per_worker=per_worker, rest=rest)
    yield from _agents(fleet, now, per_worker=per_worker, rest=rest)


def _workers(fleet: Fleet, *, per_worker: bool, rest: Callable[[], None]) -> Iterable[Family]:
    def gauge(name: str, text: str) -> Family:
        return Family(f"procguard_worker_{name}", "gauge", text)

    up = gauge("up", "1 while the worker is running")
    state_of = gauge("state", "1 for the state that the worker is in")
    since = gauge("state_since_timestamp_seconds", "When it entered its state, Unix time")
    suspect = gauge("suspect", "1 while it looks hung")
    unhealthy = gauge("unhealthy", "1 while a health check of its own fails")
    restarts = Family("procguard_worker_restarts_total", "counter", "Automatic restarts of the worker")
    usage = [(gauge(name, text), read) for name, text, read in _OF_USAGE]
    metric = gauge("metric", "A number from the worker's log, as its specification declares it")
    progress = gauge("progress_ratio", "How far the worker is, by the first of its metrics with a total")
    eta = gauge("eta_seconds", "Time left until that total at the present rate")
    by_state: Counter[str] = Counter()
    for number, worker in enumerate(list(fleet.state.workers_by_id.values()), 1):
        if number % REST_EVERY == 0:
            rest()
        observed = fleet.state.worker_status.get(worker.worker_id)
        if observed is None:
            continue  # it was removed while other greenlets ran
        state = _state_of(fleet, worker, observed)
        by_state[state] += 1
        if not per_worker:
            continue
        report = observed.report
        labels = label_set(worker=worker.worker_id, host=worker.host, group=worker.spec.group)
        up.add(labels, 1 if state == states.RUNNING else 0)
        state_of.add(f'{labels[:-1]},state="{state}"}}', 1)
        suspect.add(labels, 1 if observed.suspect else 0)
        if worker.last_since or report:
            since.add(labels, report.since if report else worker.last_since)
        if report is None:
            continue
        restarts.add(labels, report.restarts_total)
        if report.health is not None:
            unhealthy.add(labels, 1 if report.health.status == "failing" else 0)
        if report.metrics:
            for one in report.metrics:
                if one.value is not None:
                    metric.add(f'{labels[:-1]},metric="{one.name}"}}', one.value)
            percent, left_s = log_metrics.progress_percent(report), log_metrics.eta_s(report)
            if percent is not None:
                progress.add(labels, round(percent / _PERCENT, 6))
            if left_s is not None:
                eta.add(labels, left_s)
        if report.usage is not None:
            for family, read in usage:
                value = read(report.usage)
                if value is not None:
                    family.add(labels, value)
    counts = Family("procguard_workers", "gauge", "Workers by state")
    for state in states.ALL:
        counts.add(label_set(state=state), by_state[state])
    of_log = [metric, progress, eta]
    return [counts, up, state_of, since, suspect, unhealthy, restarts, *(family for family, _ in usage), *of_log]


def _state_of(fleet: Fleet, worker: WorkerRecord, observed: WorkerObserved) -> str:
    """The worker's state as in the API, where a member may be failed because of its gang."""
    if worker.gang:
        return str(fleet.state.worker_view(worker)["state"])
    reachable = fleet.state.agent_status[worker.agent_id].state in KNOWN_STATES
    return observed_state(worker, observed, reachable)[0]


def _agents(fleet: Fleet, now: Now, *, per_worker: bool, rest: Callable[[], None]) -> Iterable[Family]:
    def gauge(name: str, text: str) -> Family:
        return Family(f"procguard_{name}", "gauge", text)

    up = gauge("agent_up", "1 while the agent is connected")
    age = gauge("agent_heartbeat_age_seconds", "Since the agent was heard last")
    cpus, memory = gauge("host_cpus", "Cores of the host"), gauge("host_memory_bytes", "Memory of the host")
    of_host = [(gauge(f"host_{name}", text), read) for name, text, read in _OF_HOST]
    of_gpu = [(gauge(f"gpu_{name}", text), read) for name, text, read in _OF_GPU]
    by_state: Counter[str] = Counter()
    for number, agent in enumerate(list(fleet.state.agents_by_id.values()), 1):
        if number % (REST_EVERY // 5) == 0:  # eight GPUs take as long as five workers
            rest()
        observed = fleet.state.agent_status.get(agent.agent_id)
        if observed is None:
            continue
        by_state[observed.state] += 1
        if agent.kind != "deployed" and not per_worker:
            continue  # a hand-started launcher belongs to one worker
        labels = label_set(agent=agent.agent_id, host=agent.host)
        up.add(labels, 1 if observed.state == "connected" else 0)
        if observed.last_seen is not None:
            age.add(labels, round(max(0.0, now.monotonic - observed.last_seen), 3))
        if agent.kind != "deployed" or observed.heartbeat is None:
            continue  # the host of launchers would otherwise be counted once for each of them
        labels = label_set(host=agent.host)
        cpus.add(labels, observed.heartbeat.facts.cpus)
        memory.add(labels, observed.heartbeat.facts.memory_bytes)
        if observed.heartbeat.usage is None:
            continue
        _measured(of_host, labels, observed.heartbeat.usage)
        for gpu in observed.heartbeat.usage.gpus:
            _measured(of_gpu, label_set(host=agent.host, gpu=str(gpu.index), worker=gpu.worker_id), gpu)
    by_state["pending"] = sum(1 for view in fleet.agents.enrolment.views())
    counts = gauge("agents", "Agents by state")
    for state in AGENT_STATES:
        counts.add(label_set(state=state), by_state[state])
    return [counts, up, age, cpus, memory, *(family for family, _ in of_host), *(family for family, _ in of_gpu)]


def _measured(measures: list[tuple[Family, Callable[[T], float | None]]], labels: str, usage: T) -> None:
    for family, read in measures:
        value = read(usage)
        if value is not None:
            family.add(labels, value)
