"""The fast path of plain heartbeats that contain only new measurements: the same responses, views and events as
on the full path."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procguard.fleet.agents.heartbeat import HeartbeatProcessor
from remote_agent.protocol import messages
from tests.sizes import examples
from tests.unit.fleet_world import World

USAGES = (None, messages.WorkerUsage(5.0, 1000), messages.WorkerUsage(7.5, 2000, gpus=[1]))
STEPS = st.one_of(
    st.builds(
        messages.WorkerHeartbeat,
        state=st.sampled_from(["running", "running", "running", "stopped", "exited", "starting"]),
        pid=st.sampled_from([None, 10, 10, 11]),
        attempt=st.sampled_from([None, None, 0, 1, 2]),
        usage=st.sampled_from(USAGES),
        reason=st.sampled_from(["", "", "warming up"]),
        last_exit=st.sampled_from([None, None, messages.ExitRecord(1, at=5.0, code=1, reason="exit code 1")]),
        results=st.sampled_from([[], [], [messages.CommandResult("c-unknown", "done", "")]]),
    ),
    st.sampled_from(["stop", "start", "restart"]),
    st.sampled_from([0.5, 100.0]),  # seconds pass; after the longer ones it was taken for gone
)


class Fleet:
    """One launcher's worker."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.world = World(directory)
        self.world.register("w1", secret_sha256=messages.secret_sha256("w1"))

    def do(self, step: Any) -> Any:
        fleet = self.world.fleet
        if isinstance(step, str):
            return fleet.workers.command("w1", step, "tester", self.world.now).command
        if isinstance(step, float):
            fleet.state.agent_status[fleet.state.workers_by_id["w1"].agent_id].state = (
                "connected" if step < 1 else "suspect"
            )
            return self.world.pass_time(step)
        reply = fleet.agents.heartbeats.take_plain("w1", copy.deepcopy(step), self.world.now)
        for command in reply.commands:
            command.command_id = "any"
        return messages.encode(reply)

    def failed_probes(self) -> Any:
        fleet = self.world.fleet
        events = [{**event, "evidence": None} for event in fleet.state.events(limit=1_000)]
        worker = {name: value for name, value in vars(fleet.state.workers_by_id["w1"]).items() if name != "epoch"}
        return fleet.state.worker("w1") | {"epoch": 0}, events, worker


@given(steps=st.lists(STEPS, min_size=1, max_size=12))
@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_short_way_gives_what_the_long_one_gives(
    steps: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("fleets")
    short, long = Fleet(directory / "short"), Fleet(directory / "long")
    for step in steps:
        reported = short.do(step)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(HeartbeatProcessor, "_only_measured", lambda *_: False)
            expected = long.do(step)
        if isinstance(reported, dict):
            reported["epoch"] = expected["epoch"]
        assert reported == expected
        assert short.failed_probes() == long.failed_probes()


def test_it_is_the_way_that_most_heartbeats_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path / "fleet")
    fleet.do(messages.WorkerHeartbeat(pid=10, attempt=1))
    long_way: list[str] = []
    take_report = HeartbeatProcessor._take_report

    def counted(*given: Any) -> None:
        long_way.append("taken")
        take_report(*given)

    monkeypatch.setattr(HeartbeatProcessor, "_take_report", counted)
    for usage in USAGES:
        fleet.do(messages.WorkerHeartbeat(pid=10, attempt=1, usage=usage))
        assert fleet.world.fleet.state.worker("w1")["usage"] == (usage and messages.encode(usage))
    assert long_way == []
    fleet.do(messages.WorkerHeartbeat(pid=10, attempt=1, state="exited"))
    assert long_way == ["taken"]
