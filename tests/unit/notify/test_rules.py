"""Alerts on measurements: conditions, minimum duration, end, and the effect of a restart."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from procguard.config import schema
from procguard.config.notifications import HOST_MEASURES, WORKER_MEASURES, AlertRule, AlertTarget
from procguard.errors import ConfigError, NotFound
from procguard.fleet.workers import selectors
from procguard.notify import alerts, rules
from procguard.notify.mutes import Mutes
from procguard.notify.routes import facts_of
from procguard.notify.rules import AlertRules
from remote_agent.protocol import messages
from remote_agent.protocol.messages import GpuUsage, HostFacts, HostUsage, LogMetric, WorkerUsage
from tests import sinks
from tests.rows import each
from tests.server_process import ROOT, RunningManager
from tests.sinks import HttpSink
from tests.unit.fleet_world import World
from tests.waiting import wait_until

GIB = 2**30
METRICS = {"loss": "loss ([0-9.]+)", "step": "step ([0-9]+)/([0-9]+)"}


def rule(measure: str, **values: Any) -> AlertRule:
    values = {"name": "r1", "for": 0.0, **values}
    if "below" not in values:
        values.setdefault("above", 10)
    return AlertRule(measure=measure, **values)


class Fleet:
    """A world with two hosts, and rules that are evaluated over it."""

    def __init__(self, directory: Path, *declared: AlertRule) -> None:
        self.world = World(directory)
        workers = {"w1": {"command": "x", "group": "g", "metrics": METRICS}, "w2": {"command": "x"}}
        self.world.deploy({"h1": workers, "h2": {"w3": {"command": "x"}}})
        self.rules = AlertRules(declared)

    def beat(self, usage: HostUsage | None = None, **w1: Any) -> None:
        facts = HostFacts(memory_bytes=100 * GIB)
        reports = [self.world.report("w1", **w1), self.world.report("w2")]
        self.world.beat("h1", *reports, usage=usage or HostUsage(), facts=facts)

    def evaluate(self, after_s: float = 0.0) -> list[tuple[str, str, str]]:
        """The new events: (kind, worker or host, reason)."""
        if after_s:
            self.world.pass_time(after_s)
        before = len(self.events())
        self.rules.evaluate(self.world.fleet.state, self.world.now, lambda: None)
        found = self.events()[before:]
        return [(one["kind"], alerts.subject_of(one), one["reason"]) for one in found]

    def events(self) -> list[dict[str, Any]]:
        found = self.world.fleet.state.events(limit=10_000)
        return [one for one in found if one["kind"].startswith("alert_rule")]


HOT = GpuUsage(0, temperature_c=91.0)
CASES: list[tuple[AlertRule, dict[str, Any], str]] = [
    (rule("rss_bytes", above="1 GiB"), {"usage_of": WorkerUsage(rss_bytes=2 * GIB)}, "w1"),
    (rule("rss_bytes", above="3 GiB"), {"usage_of": WorkerUsage(rss_bytes=2 * GIB)}, ""),
    (rule("gpu_percent", below=5), {"usage_of": WorkerUsage(gpu_percent=1.0)}, "w1"),
    (rule("gpu_percent", below=5), {"usage_of": WorkerUsage()}, ""),  # not measured
    (rule("metrics.loss"), {"metrics": [LogMetric("loss", 11.0, 1.0)]}, "w1"),
    (rule("metrics.loss"), {"metrics": [LogMetric("loss", 10.0, 1.0)]}, ""),
    (rule("metrics.loss", select="group=other"), {"metrics": [LogMetric("loss", 11.0)]}, ""),
    (rule("progress_percent"), {"metrics": [LogMetric("step", 2.0, 1.0, 4.0)]}, "w1"),
    (rule("metrics.loss"), {"metrics": [LogMetric("loss", 11.0)], "state": "backoff"}, ""),
    (rule("host.disk_free_bytes", below="20 GiB"), {"usage": HostUsage(disk_free_bytes=GIB)}, "h1"),
    (rule("host.disk_free_percent", below=5), {"usage": HostUsage(disk_free_bytes=1, disk_total_bytes=100)}, "h1"),
    (rule("host.memory_used_percent", above=90), {"usage": HostUsage(memory_used_bytes=95 * GIB)}, "h1"),
    (rule("host.load1", select="host=h2"), {"usage": HostUsage(load1=99.0)}, ""),
    (rule("gpu.temperature_c", above=88, select="host=h*"), {"usage": HostUsage(gpus=[HOT])}, "h1"),
    (rule("gpu.memory_used_percent"), {"usage": HostUsage(gpus=[GpuUsage(0, memory_used_bytes=5)])}, ""),
]  # fmt: skip


@each("case", CASES)
def test_a_rule_compares_what_was_reported_last(case: tuple[AlertRule, dict[str, Any], str], tmp_path: Path) -> None:
    declared, reported, subject = case
    directory = tmp_path / str(id(case))
    directory.mkdir()
    fleet = Fleet(directory, declared)
    values = dict(reported)
    if "usage_of" in values:
        usage = values.pop("usage_of")
        fleet.world.beat("h1", fleet.world.report("w1", usage=usage))
    else:
        fleet.beat(**values)
    assert [name for _, name, _ in fleet.evaluate()] == ([subject] if subject else [])
    assert fleet.evaluate() == [], "once"
    fleet.world.fleet.close()


def test_it_must_last_and_ends_with_an_event_of_its_own(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, rule("metrics.loss", **{"for": 60}))
    fleet.beat(metrics=[LogMetric("loss", 11.5, 1.0)])
    assert fleet.evaluate() == [] == fleet.evaluate(59)
    fleet.beat(metrics=[LogMetric("loss", 9.0, 1.0)])
    assert fleet.evaluate(2) == [], "it was over in between"
    fleet.beat(metrics=[LogMetric("loss", 11.5, 1.0)])
    assert fleet.evaluate(1) == []
    assert fleet.evaluate(60) == [("alert_rule", "w1", "r1: metrics.loss is 11.5, above 10 for 1 min")]
    (event,) = fleet.events()
    assert (event["cause"], event["evidence"]["value"], event["host"]) == ("r1", 11.5, "h1")
    fleet.beat(metrics=[LogMetric("loss", 1.0, 1.0)])
    ((kind, name, reason),) = fleet.evaluate(30)
    assert (kind, name) == ("alert_rule_ok", "w1") and "is 1 again (limit 10), after 30 s" in reason
    assert fleet.rules.tables() == {"rule_alerts": {}}


def test_no_progress_counts_from_the_last_change_or_the_start(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, rule("no_progress_s", above=600))
    wall = fleet.world.now.wall
    fleet.beat(since=wall)
    assert fleet.evaluate(500) == []
    assert [one[1] for one in fleet.evaluate(101)] == ["w1"], "w2 declares no metrics"
    fleet.beat(since=wall, metrics=[LogMetric("loss", 5.0, wall), LogMetric("step", 1.0, wall + 590, 9.0)])
    assert [one[0] for one in fleet.evaluate()] == ["alert_rule_ok"]


def test_a_restart_and_a_silent_host_change_nothing_and_what_is_gone_ends(tmp_path: Path) -> None:
    declared = [rule("metrics.loss"), rule("gpu.temperature_c", name="hot", above=88)]
    fleet = Fleet(tmp_path, *declared)
    hot = HostUsage(gpus=[GpuUsage(0, temperature_c=91.0), GpuUsage(1, temperature_c=92.0)])
    fleet.beat(usage=hot, metrics=[LogMetric("loss", 11.0, 1.0)])
    assert len(fleet.evaluate()) == 3
    fleet.world.restart()
    fleet.rules = AlertRules(declared)
    fleet.rules.restore(fleet.world.fleet.kept_tables["rule_alerts"])
    assert fleet.evaluate() == [] == fleet.evaluate(100), "its agent has not reported yet"
    fleet.beat(usage=hot, metrics=[LogMetric("loss", 11.0, 1.0)])
    assert fleet.evaluate() == []
    fleet.world.fleet.agents.mark("h1", "unreachable", "silent", fleet.world.now)
    assert fleet.evaluate(100) == []
    fleet.beat(usage=HostUsage(gpus=[GpuUsage(1, temperature_c=92.0)]), state="exited")
    ended = fleet.evaluate()
    assert sorted(one[:2] for one in ended) == [("alert_rule_ok", "h1"), ("alert_rule_ok", "w1")]
    fleet.rules = AlertRules([])
    fleet.rules.restore(fleet.world.fleet.kept_tables["rule_alerts"] and {"x": {**ROW, "agent": "h1"}})
    assert not fleet.rules.idle and [one[0] for one in fleet.evaluate()] == ["alert_rule_ok"] and fleet.rules.idle


ROW = {"rule": "old", "measure": "rss_bytes", "since": 1.0, "worker_id": "w9", "host": "h1", "gpu": None}


def test_alerts_of_two_rules_or_gpus_are_two_alerts_and_mutes_apply(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, rule("metrics.loss"), rule("metrics.loss", name="r2", above=5))
    fleet.beat(metrics=[LogMetric("loss", 11.0, 1.0)])
    fleet.evaluate()
    target = AlertTarget(name="t", type="webhook", url="http://x/", events=["alerts"])  # type: ignore[arg-type]
    gathering = alerts.Gathering(target)
    for event in [*fleet.events(), *fleet.events()]:
        gathering.take(event, 1.0)
    assert (gathering.queued, gathering.deduplicated) == (2, 2)
    group = gathering.pop()
    assert group is not None
    message = alerts.compose(group, target, "f-1", "")
    assert message.title == "2 alert rules fire: w1" and message.message_id == f"f-1-rule-{group.first_seq}"
    facts = facts_of(fleet.world.fleet.state, fleet.events()[0])
    assert selectors.parse("group=g").matches(facts) and not selectors.parse("group=h").matches(facts)


def test_a_storm_is_bounded_and_a_pass_over_many_workers_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_CHANGES", 7)
    monkeypatch.setattr(rules, "MAX_FIRING", 15)
    world = World(tmp_path)
    world.deploy({"h1": {f"w{number}": {"command": "x"} for number in range(20)}})
    usage = WorkerUsage(rss_bytes=GIB)
    world.beat("h1", *(world.report(f"w{number}", usage=usage) for number in range(20)))
    found = AlertRules([rule("rss_bytes")])
    counts = []
    for _ in range(4):
        found.evaluate(world.fleet.state, world.now, lambda: None)
        counts.append(len(found.tables()["rule_alerts"]))
    assert counts == [7, 14, 15, 15]
    rested: list[int] = []
    monkeypatch.setattr(rules, "REST_EVERY", 5)
    AlertRules([rule("rss_bytes", above=2 * GIB)]).evaluate(world.fleet.state, world.now, lambda: rested.append(1))
    assert len(rested) == 4


def test_what_fires_is_listed_with_value_limit_mute_and_who_has_seen_it_until_it_ends(tmp_path: Path) -> None:
    declared = [rule("metrics.loss"), rule("gpu.temperature_c", name="hot", above=88)]
    fleet, mutes = Fleet(tmp_path, *declared), Mutes()
    state = fleet.world.fleet.state
    hot = HostUsage(gpus=[GpuUsage(0, temperature_c=20.0), GpuUsage(1, temperature_c=92.0)])
    fleet.beat(usage=hot, metrics=[LogMetric("loss", 11.0, 1.0)])
    fleet.evaluate()
    fleet.beat(usage=hot, metrics=[LogMetric("loss", 12.5, 1.0)])
    for select, for_s in (("group=g", 60), ("w1", 600), ("other", 6000)):
        mutes.put(mutes.made(select, None, for_s, "n", "li", fleet.world.now.wall))
    fleet.rules.acknowledge(state, "hot|h1/1", "a fan", "operator:li", fleet.world.now)
    for _ in range(2):
        found = {one["alert"]: one for one in fleet.rules.firing(state, mutes, fleet.world.now.wall)}
        loss, gpu = found["r1|w1"], found["hot|h1/1"]
        assert (loss["value"], loss["above"], loss["worker_id"], loss["gpu"]) == (12.5, 10.0, "w1", None)
        assert (loss["mute"] or {}).get("select") == "w1" and loss["acknowledged"] is None
        assert (gpu["value"], gpu["host"], gpu["gpu"], gpu["mute"]) == (92, "h1", 1, None) and len(found) == 2
        assert gpu["acknowledged"] and (gpu["acknowledged"]["by"], gpu["acknowledged"]["note"]) == (
            "operator:li",
            "a fan",
        )
        before = fleet.rules.tables()["rule_alerts"]
        fleet.rules = AlertRules(declared)  # as after a restart
        fleet.rules.restore(json.loads(json.dumps(before)))
    with pytest.raises(NotFound, match=r"no alert 'hot\|h1/0' fires"):
        fleet.rules.acknowledge(state, "hot|h1/0", "", "li", fleet.world.now)
    fleet.beat(usage=HostUsage(gpus=[GpuUsage(1)]), metrics=[])
    fleet.evaluate()
    assert fleet.rules.firing(state, mutes, fleet.world.now.wall) == []


MISTAKES = [
    ({"measure": "rss", "above": 1}, "metrics.NAME or one of cpu_percent"),
    ({"measure": "rss_bytes"}, "one of above and below"),
    ({"measure": "rss_bytes", "above": 1, "below": 2}, "one of above and below"),
    ({"measure": "rss_bytes", "above": "lots"}, "a size in bytes"),
    ({"measure": "rss_bytes", "above": 1, "for": -1}, "for_s"),
    ({"measure": "rss_bytes", "above": 1, "name": "a b"}, "a name of letters"),
    ({"measure": "metrics.a-b", "above": 1}, "metrics.NAME"),
]


@each("case", MISTAKES)
def test_a_mistaken_rule_is_refused_with_what_was_expected(case: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    entry, said = case
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"alerts": [{"name": "r", **entry}]}))
    with pytest.raises(ConfigError, match="alerts") as refused:
        schema.load(str(path), [])
    assert said in str(refused.value)


def test_selectors_and_names_of_rules_are_checked_and_the_documented_ones_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alerts, r1: select"):
        AlertRules([rule("rss_bytes", select="stat=")])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"alerts": [{"name": "r", "measure": "fds", "above": 1}] * 2}))
    with pytest.raises(ConfigError, match="used twice"):
        schema.load(str(path), [])
    text = (ROOT / "docs" / "notifications.md").read_text(encoding="utf-8")
    (block,) = [one for one in text.split("```yaml\n")[1:] if one.startswith("alerts:")]
    path.write_text(block.split("```")[0])
    AlertRules(schema.load(str(path), []).alerts)
    section = text.split("## Alerts on measurements")[1].split("\n## ")[0]
    assert all(f"`{name}`" in section for name in (*WORKER_MEASURES, *HOST_MEASURES))


@pytest.fixture
def sink() -> Iterator[HttpSink]:
    with sinks.http_sink() as made:
        yield made


@pytest.mark.slow
def test_a_real_manager_sends_an_alert_and_its_end_and_repeats_neither_after_a_restart(
    tmp_path: Path, sink: HttpSink
) -> None:
    targets = [{"name": "li", "type": "webhook", "url": sink.url + "/li", "events": ["rule"], "min_interval": 0}]
    declared = [{"name": "big", "measure": "rss_bytes", "above": "1 GiB", "for": 0}]
    settings = (f"notifications={json.dumps(targets)}", f"alerts={json.dumps(declared)}")
    manager = RunningManager(tmp_path, *settings)
    secret = manager.deploy("alpha", "w1")

    def beat(rss: int) -> None:
        usage = messages.WorkerUsage(rss_bytes=rss)
        report = messages.WorkerReport("w1", "running", 1, 0, 1, 7, time.time(), usage=usage)
        manager.beat("alpha", secret, report, started_at=1.0)

    def ids() -> set[str]:
        """A message in progress when a manager ended is sent again unchanged."""
        return {one.json["id"] for one in sink.posted}

    def sent(number: int, rss: int) -> bool:
        beat(rss)
        return len(ids()) >= number

    try:
        wait_until(lambda: sent(1, 2 * GIB), 60, "the alert")
        seen = manager.ask("POST", "/api/alerts/acknowledge", {"alert": "big|w1", "note": "a known leak"})
        assert seen.json == {"alert": "big|w1", "status": "acknowledged"}
        manager.close()
        manager = RunningManager(tmp_path, *settings)
        (firing,) = manager.ask("GET", "/api/alerts").json["alerts"]
        assert (firing["alert"], firing["acknowledged"]["note"], firing["above"]) == ("big|w1", "a known leak", GIB)
        said = manager.ask("GET", "/api/events?kind=alert_acknowledged").json["events"][-1]
        assert said["reason"] == "alert big; a known leak" and said["worker_id"] == "w1"
        for _ in range(25):  # two passes
            beat(2 * GIB)
            time.sleep(1.0)
        assert len(ids()) == 1
        wait_until(lambda: sent(2, 1), 60, "its end")
    finally:
        manager.close()
    first, last = sink.posted[0].json, sink.posted[-1].json
    assert (first["alert"], first["severity"], last["severity"]) == ("rule", "warning", "info")
    assert first["id"] != last["id"] and "big: rss_bytes is 2147483648, above 1073741824" in first["text"]
