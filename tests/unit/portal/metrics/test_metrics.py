"""/metrics describes the fleet in Prometheus's format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from procguard.portal.logs.store import LogStore
from procguard.portal.metrics import fleet
from procguard.portal.metrics.exposition import Metrics, MetricsOptions
from procguard.runtime.loop_lag import LagHistogram
from remote_agent.protocol import messages
from tests.unit.fleet_world import World


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def of(worker: str, host: str = "h1", group: str = "") -> tuple[tuple[str, str], ...]:
    return (("group", group), ("host", host), ("worker", worker))


def test_workers_and_agents_are_counted_by_state(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "true"}, "w2": {"command": "true"}}, "h2": {"w3": {"command": "true"}}})
    world.beat("h1", world.report("w1", restarts_total=4), world.report("w2", state="failed"))
    store = LogStore(str(tmp_path / "logs"), sync=lambda paths: None)
    store.append("w1", 1, "out", 0, b"12345", 1.0)
    metrics = Metrics(world.fleet, store, {"procguard_answer": ("The answer", lambda: 42.0)})
    found = samples(metrics)
    assert found["procguard_workers", (("state", "running"),)] == 1
    assert found["procguard_workers", (("state", "unknown"),)] == 1
    assert found["procguard_workers", (("state", "backoff"),)] == 0
    assert found["procguard_agents", (("state", "connected"),)] == 1
    assert found["procguard_worker_restarts_total", of("w1")] == 4
    assert found["procguard_worker_up", of("w2")] == 0
    assert found["procguard_worker_state", (*of("w2")[:2], ("state", "failed"), of("w2")[2])] == 1
    assert found["procguard_log_stored_bytes_total", ()] == 5
    assert found["procguard_answer", ()] == 42


def test_requests_are_counted_by_route_never_by_address(tmp_path: Path) -> None:
    metrics = Metrics(World(tmp_path).fleet, LogStore(str(tmp_path / "logs")), {})
    metrics.count("/api/remote-workers/<worker_id>", "GET", 200, 0.01)
    metrics.count("(none)", "BREW", 404, 0.01)
    found = samples(metrics)
    labels = (("method", "GET"), ("route", "/api/remote-workers/<worker_id>"), ("status", "200"))
    assert found["procguard_http_requests_total", labels] == 1
    assert ("procguard_http_requests_total", (("method", "other"), ("route", "(none)"), ("status", "404"))) in found


def test_each_manager_has_a_registry_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        metrics = Metrics(World(tmp_path / name).fleet, LogStore(str(tmp_path / name / "logs")), {})
        metrics.count("/api/hosts", "GET", 200, 0.01)
        labels = (("method", "GET"), ("route", "/api/hosts"), ("status", "200"))
        assert samples(metrics)["procguard_http_requests_total", labels] == 1


def test_usage_of_hosts_workers_and_gpus(tmp_path: Path) -> None:
    """A missing measurement has no sample instead of a zero."""
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "true"}}})
    gpu = messages.GpuUsage(3, utilization_percent=97.0, power_w=412.5, worker_id="w1")
    usage = messages.WorkerUsage(cpu_percent=187.5, rss_bytes=10, gpus=[3], gpu_percent=97.0)
    world.beat("h1", world.report("w1", usage=usage), usage=messages.HostUsage(load1=2.5, gpus=[gpu]))
    found = samples(Metrics(world.fleet, LogStore(str(tmp_path / "logs")), {}))
    assert found["procguard_worker_cpu_usage_ratio", of("w1")] == 1.875
    assert found["procguard_worker_gpu_utilization_ratio", of("w1")] == 0.97
    assert found["procguard_worker_suspect", of("w1")] == 0
    assert ("procguard_worker_proportional_memory_bytes", of("w1")) not in found
    assert found["procguard_host_load1", (("host", "h1"),)] == 2.5
    assert found["procguard_gpu_power_watts", (("gpu", "3"), ("host", "h1"), ("worker", "w1"))] == 412.5
    assert not any(name == "procguard_gpu_temperature_celsius" for name, _ in found)


def families(metrics: Metrics) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}


def full(tmp_path: Path, **options: Any) -> tuple[World, Metrics]:
    """A fleet in which everything has been measured, and happened, at least once."""
    world = World(tmp_path)
    targets = [{"name": "chat", "type": "slack", **dict.fromkeys(NOTIFIED, 1)}]
    store = LogStore(str(tmp_path / "logs"), sync=lambda paths: None)
    gauges = {name: ("help", lambda: 1.0) for name in GAUGES}
    made = Metrics(world.fleet, store, gauges, lambda: targets, MetricsOptions(**options))
    world.deploy({"h1": {"w1": {"command": "true", "group": "trainers", "metrics": {"step": "([0-9]+)/([0-9]+)"}}}})
    gpu = messages.GpuUsage(0, "u", "n", 97.0, 1, 2, 412.5, 500.0, 60.0, worker_id="w1")
    usage = messages.WorkerUsage(1.0, 1, 1, 1, 1, 1, 1, 1, 1.0, 1.0, [0], 97.0, 1)
    host = messages.HostUsage(1.0, 1.0, 1, 1, 1, 1, 1.0, 1.0, [gpu])
    last = messages.WorkerReport("w1", "running", 1, 1, 1, 7, 1_790_000_000.0, usage=usage)
    last.health = messages.Health("failing", "x")
    last.metrics = [messages.LogMetric("step", 1.0, 1.0, 2.0, 3.0)]
    world.beat("h1", last, usage=host, facts=messages.HostFacts("h1", "linux", "3", "me", 8, 2**34))
    world.fleet.workers.command("w1", "stop", "me", world.now)
    world.emit("recovery", reason="heard", evidence={"outcome": "recovered"})
    made.count("/api/hosts", "GET", 200, 0.01)
    return world, made


NOTIFIED = ("sent", "failures", "dropped", "deduplicated", "queued")
GAUGES = (
    "procguard_websocket_clients", "procguard_log_followers", "procguard_held_requests", "procguard_connections",
    "procguard_connections_unproven", "procguard_connections_refused",
)  # fmt: skip


def test_names_are_as_prometheus_asks(tmp_path: Path) -> None:
    """What `promtool check metrics` complains of: help, counters in _total, base units, no types in names."""
    text = full(tmp_path)[1].exposition().decode()
    helps = re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert len(helps) == len(dict(helps)) == len(types) > 40
    for name, kind in types.items():
        assert re.fullmatch(r"(procguard|process)_[a-z0-9]+(_[a-z0-9]+)*", name), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(percent|ms|milliseconds|minutes|hours|kb|mb|gb|gauge|counter|histogram)(_|$)", name), (
            name
        )
        if kind != "histogram":
            assert not name.endswith(("_count", "_sum", "_bucket", "_info")) or name == "procguard_build_info"
    samples_by_name = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    silent = {name for name, kind in types.items() if name not in samples_by_name and kind != "histogram"}
    assert silent == set(), "a full fleet has a sample of each"


def test_labels_are_escaped(tmp_path: Path) -> None:
    world, metrics = full(tmp_path)
    world.fleet.state.find("w1").spec.group = 'a"b\\c\nd'
    found = samples(metrics)
    assert found["procguard_worker_up", of("w1", group='a"b\\c\nd')] == 1


def test_series_of_each_worker_can_be_left_out(tmp_path: Path) -> None:
    found = samples(full(tmp_path, per_worker=False)[1])
    assert not any(name.startswith("procguard_worker_") for name, _ in found)
    assert found["procguard_workers", (("state", "running"),)] == 1
    assert ("procguard_gpu_power_watts", (("gpu", "0"), ("host", "h1"), ("worker", "w1"))) in found


def test_what_happened_is_counted(tmp_path: Path) -> None:
    found = samples(full(tmp_path)[1])
    assert found["procguard_commands_total", (("command", "stop"), ("status", "accepted"))] == 1
    assert found["procguard_events_total", (("cause", "operator"), ("kind", "command"))] == 1
    assert found["procguard_recoveries_total", (("outcome", "recovered"),)] == 1
    assert found["procguard_notifications_dropped_total", (("target", "chat"), ("type", "slack"))] == 1
    assert found["procguard_agent_heartbeat_age_seconds", (("agent", "h1"), ("host", "h1"))] >= 0
    assert found["process_resident_memory_bytes", ()] > 1_000_000


def test_an_answer_is_kept_for_a_moment(tmp_path: Path) -> None:
    world, metrics = full(tmp_path, cache_s=60.0)
    running = ("procguard_workers", (("state", "running"),))
    requests = ("procguard_commands_total", (("command", "start"), ("status", "accepted")))
    assert samples(metrics)[running] == 1
    world.beat("h1", world.report("w1", state="failed"))
    world.fleet.workers.command("w1", "start", "me", world.now)
    again = samples(metrics)
    assert again[running] == 1 and again[requests] == 1, "the fleet is kept, what the manager counts is not"
    (tmp_path / "other").mkdir()
    world, metrics = full(tmp_path / "other", cache_s=0.0)
    assert samples(metrics)[running] == 1
    world.beat("h1", world.report("w1", state="failed"))
    assert samples(metrics)[running] == 0


def test_others_run_while_a_large_fleet_is_written(tmp_path: Path) -> None:
    rests: list[int] = []
    world = World(tmp_path)
    world.deploy({"h1": {f"w{number}": {"command": "true"} for number in range(1_000)}})
    made = list(fleet.families(world.fleet, world.now, per_worker=True, rest=lambda: rests.append(1)))
    assert len(rests) >= 1_000 // fleet.REST_EVERY
    assert len(next(family for family in made if family.name == "procguard_worker_up").lines) == 1_000


def test_how_late_the_event_loop_was(tmp_path: Path) -> None:
    lags = LagHistogram()
    metrics = Metrics(World(tmp_path).fleet, LogStore(str(tmp_path / "logs")), {}, lags=lags)
    lags.add(0.0)
    lags.add(0.015)
    found = samples(metrics)
    name = "procguard_loop_lag_seconds"
    assert found[f"{name}_bucket", (("le", "0.005"),)] == 1
    assert found[f"{name}_bucket", (("le", "0.025"),)] == found[f"{name}_bucket", (("le", "+Inf"),)] == 2
    assert (found[f"{name}_count", ()], found[f"{name}_sum", ()]) == (2, 0.015)


# ------------------------------------------------------------------------------------------------ Grafana

GRAFANA = Path(__file__).parents[4] / "docs" / "grafana"
NAME = re.compile(r"\b(procguard_[a-z0-9_]+|process_[a-z0-9_]+)\b")


def known_names(tmp_path: Path) -> set[str]:
    text = full(tmp_path)[1].exposition().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    suffixes = {f"{name}{end}" for name, kind in types.items() if kind == "histogram" for end in ("_bucket", "_sum")}
    return set(types) | suffixes


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_dashboard_asks_only_for_what_there_is(tmp_path: Path) -> None:
    dashboard = json.loads((GRAFANA / "procguard.json").read_text(encoding="utf-8"))
    known = known_names(tmp_path)
    asked: set[str] = set()
    for panel in panels(dashboard):
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            names = set(NAME.findall(target["expr"]))
            assert names and names <= known, (panel["title"], names - known)
            assert target["datasource"]["uid"] == "${datasource}"
            asked |= names
    for variable in dashboard["templating"]["list"]:
        assert set(NAME.findall(str(variable.get("query")))) <= known
    assert len(asked) > 20


def test_the_dashboard_is_what_grafana_imports() -> None:
    dashboard = json.loads((GRAFANA / "procguard.json").read_text(encoding="utf-8"))
    assert dashboard["schemaVersion"] >= 36 and dashboard["id"] is None and dashboard["uid"] and dashboard["title"]
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    locations: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        taken = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not taken & locations, f"{panel['title']} lies over another"
        locations |= taken


def test_alert_rules_ask_only_for_what_there_is(tmp_path: Path) -> None:
    rules = yaml.safe_load((GRAFANA / "alerts.yml").read_text(encoding="utf-8"))
    known = known_names(tmp_path)
    found = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in found}) == len(found) >= 8
    for rule in found:
        names = set(NAME.findall(rule["expr"]))
        assert names and names <= known, (rule["alert"], names - known)
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_every_metric_is_documented(tmp_path: Path) -> None:
    shown = (GRAFANA.parent / "metrics.md").read_text(encoding="utf-8")
    text = full(tmp_path)[1].exposition().decode()
    for name in re.findall(r"^# TYPE (procguard_\S+) ", text, re.MULTILINE):
        assert f"`{name}" in shown, name


def test_a_cause_that_only_an_agent_knows_is_no_label(tmp_path: Path) -> None:
    world = World(tmp_path, causes={"data_gone": "x"})
    metrics = Metrics(world.fleet, LogStore(str(tmp_path / "logs")), {})
    for cause in ("gpu_oom", "data_gone", "made_up_1", "made_up_2"):
        world.emit("worker_failed", reason="…", worker_id="w1", host="h1", cause=cause)
    text = metrics.exposition().decode()
    assert 'procguard_events_total{kind="worker_failed",cause="other"} 2' in text and "made_up" not in text
    for cause in ("gpu_oom", "data_gone"):
        assert f'procguard_events_total{{kind="worker_failed",cause="{cause}"}} 1' in text
