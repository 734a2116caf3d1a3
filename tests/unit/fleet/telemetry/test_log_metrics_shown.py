"""Numbers from logs at the manager: validated, shown everywhere, kept as a history, at no cost for other workers."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from procguard.agent_api import decode
from procguard.console import tables
from procguard.errors import UsageError
from procguard.fleet.shapes.workers import WORKER
from procguard.fleet.telemetry.files import MeasurementFiles
from procguard.fleet.telemetry.timeseries import SAMPLE_S, SPANS, Measurements
from procguard.i18n.words import Words
from procguard.portal.live.columns import WorkerColumns
from procguard.portal.logs.store import LogStore
from procguard.portal.metrics.exposition import Metrics
from remote_agent.protocol import messages
from remote_agent.protocol.messages import LogMetric
from tests.rows import each
from tests.unit.fleet.test_transaction import Commits
from tests.unit.fleet_world import World
from tests.unit.portal.metrics.test_metrics import of, samples

DECLARED = {"loss": "loss ([0-9.]+)", "step": "epoch ([0-9]+)/([0-9]+)"}
LOSS, STEP = LogMetric("loss", 0.123456, 1_790_000_000.0), LogMetric("step", 42.0, 1_790_000_000.0, 100.0, 11_520.0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.deploy({"h1": {"w1": {"command": "x", "metrics": DECLARED}, "w2": {"command": "x"}}})
    made.beat("h1", made.report("w1", metrics=[STEP, LOSS, LogMetric("undeclared", 1.0)]), made.report("w2"))
    return made


def test_declared_numbers_are_in_the_view_the_feed_and_metrics(world: World, tmp_path: Path) -> None:
    view = world.fleet.state.worker("w1")
    assert [one["name"] for one in view["metrics"]] == ["loss", "step"], "what nobody declared is dropped"
    assert (view["progress_percent"], view["eta_s"]) == (42.0, 11_520.0)
    plain = world.fleet.state.worker("w2")
    assert (plain["metrics"], plain["progress_percent"], plain["eta_s"]) == ([], None, None)
    rows = WorkerColumns(world.fleet)
    feed = dict(zip(rows.measures, rows.measured("w1") or (), strict=True))
    assert feed["metrics"] == {"loss": 0.123456, "step": 42.0} and feed["progress_percent"] == 42.0
    assert rows.measured("w2") is None
    found = samples(Metrics(world.fleet, LogStore(str(tmp_path / "logs")), {}))
    assert found["procguard_worker_metric", tuple(sorted((*of("w1"), ("metric", "loss"))))] == 0.123456
    assert found["procguard_worker_progress_ratio", of("w1")] == 0.42
    assert found["procguard_worker_eta_seconds", of("w1")] == 11_520.0
    assert not any(
        "w2" in str(labels) for name, labels in found if name.endswith(("_metric", "_ratio", "_eta_seconds"))
    )


def test_the_command_line_shows_them(world: World) -> None:
    view: dict[str, Any] = {**world.fleet.state.worker("w1")}
    columns = {one.title: one for one in tables.workers(datetime.now(timezone.utc), WORKER)}
    assert columns["METRICS"].cell(view) == "loss=0.123456 step=42/100"
    assert columns["PROGRESS"].cell(view) == "42 %, 3 h 12 min left"
    assert tables.progress_text(view, Words("zh")) == "42 %，剩余 3 小时 12 分钟"
    always = {one.title: one.wide for one in tables.workers(datetime.now(timezone.utc), WORKER, progress=True)}
    assert (columns["PROGRESS"].wide, always["PROGRESS"], always["METRICS"]) == (True, False, True)
    view["metrics"][0]["trouble"] = "too_long"
    assert "takes too long" in columns["METRICS"].cell(view)  # type: ignore[operator]


def test_another_number_is_no_commit_and_no_change_of_a_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    bus = world.fleet.state.bus
    bus.unseen.clear()
    bus.topics["workers"].subscribe(lambda worker: published.append(f"row {worker}"))
    bus.measures["workers"].subscribe(published.append)
    commits = Commits(world, monkeypatch)
    world.beat("h1", world.report("w1", metrics=[LogMetric("loss", 0.1, 2.0)]), world.report("w2"))
    assert commits.made == [] and published == ["w1"]


def test_the_history_holds_the_declared_ones_with_all_their_digits_and_survives_a_restart(
    world: World, tmp_path: Path
) -> None:
    measurements, files = Measurements(), MeasurementFiles(str(tmp_path / "measured"))
    files.load(measurements, world.now.wall)
    done = measurements.sample(world.fleet.state, world.now.wall, lambda: None)
    files.append(done, {kind: dict(measurements.tables[kind].slots) for kind, _, _ in done})
    world.beat("h1", world.report("w1", "exited", metrics=[LOSS]))
    done = measurements.sample(world.fleet.state, world.now.wall + SAMPLE_S, lambda: None)
    files.append(done, {kind: dict(measurements.tables[kind].slots) for kind, _, _ in done})
    files.close()
    again = Measurements()
    MeasurementFiles(str(tmp_path / "measured")).load(again, world.now.wall + SAMPLE_S)
    for one in (measurements, again):
        assert sorted(one.tables["metrics"].slots) == ["w1/loss", "w1/step"]
        found = one.tables["metrics"].read("w1/loss", SPANS[0], 0.0)
        assert found is not None and found[1] == {"value": [0.123456, None]}, "nothing while it does not run"
    world.beat("h1", world.report("w1", metrics=[LogMetric("loss", 1e308)]))
    measurements.sample(world.fleet.state, world.now.wall + 2 * SAMPLE_S, lambda: None)
    found = measurements.tables["metrics"].read("w1/loss", SPANS[0], 0.0)
    assert found is not None and found[1]["value"][-1] == pytest.approx(3.4e38), "no infinity in JSON"


HOSTILE = [
    '[{"name": "a", "value": "loss"}]', '[{"name": "a", "value": NaN}]', '[{"name": "a", "value": 1e999}]',
    '[{"name": "a", "value": -Infinity}]', '[{"name": "a\\nb", "value": 1}]', '[{"name": "a\\"}", "value": 1}]',
    '[{"name": "", "value": 1}]', '[{"name": "a", "value": 1, "eta_s": Infinity}]', '[{"name": "a", "trouble": "x"}]',
    '[{"value": 1}]', '{"a": 1}', "[" + ",".join(f'{{"name": "m{n}", "value": 1}}' for n in range(17)) + "]",
    '[{"name": "' + "a" * 41 + '", "value": 1}]', '[{"name": "a", "value": 1' + "0" * 5000 + "}]",
]  # fmt: skip


@each("text", HOSTILE)
def test_a_hostile_agents_numbers_are_refused_whole(text: str) -> None:
    body = f'{{"agent_id": "h1", "workers": [{{"worker_id": "w1", "metrics": {text}}}]}}'.encode()
    with pytest.raises(UsageError):
        decode.read(messages.AgentHeartbeat, body)


def test_nothing_is_added_for_workers_without_metrics() -> None:
    """Neither their heartbeats nor their specifications grow."""
    assert "metrics" not in json.dumps(
        messages.encode(messages.AgentHeartbeat("h1", workers=[messages.WorkerReport("w1")]))
    )
    assert "metrics" not in json.dumps(messages.encode(messages.Assignment("w1", messages.WorkerSpec("x"))))
