"""A job that crashes at every start, for ten minutes of simulated time: the real fleet's settings, the real
TaskRunner and decider, a made-up child and clock."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from remote_agent.protocol import messages, states
from tests.chaos import ChaosReport
from tests.unit.fleet_world import World
from tests.unit.task_runner_rig import KILL, TaskRunnerRig

TEN_MINUTES_S = 600.0


@pytest.mark.chaos(18)
@pytest.mark.parametrize("max_recovery_attempts", [0, 1, 3, 7])
def test_a_crash_loop_spends_its_restarts_and_no_more(
    tmp_path: Path, chaos_report: ChaosReport, max_recovery_attempts: int
) -> None:
    world = World(tmp_path, max_recovery_attempts=max_recovery_attempts)
    world.deploy({"h1": {"w1": {"command": "crash"}}})
    policy = messages.encode(world.fleet.agents.assignments.of("h1")[0].spec.restart)
    most, shortest_s = 0, TEN_MINUTES_S
    for seed in chaos_report.rounds(short=20, long=1000):
        chance = random.Random(seed)
        host = TaskRunnerRig(policy)
        with host.in_place():
            end = host.now + TEN_MINUTES_S
            while host.now < end:
                host.pass_time(min(end - host.now, chance.choice((0.01, 0.5, 3.0, 20.0))))
                host.end_child(chance.choice((KILL, 1 << 8)))
                host.advance()
        restarts = len(host.attempts) - 1
        assert restarts <= max_recovery_attempts, f"seed {seed}: {host.attempts}"
        assert host.state["state"] in (states.FAILED, states.BACKOFF), f"seed {seed}: {host.state}"
        starts = [event["at"] for event in host.events if event["after"] == states.STARTING]
        shortest_s = min([shortest_s, *(after - before for before, after in zip(starts[1:], starts[2:], strict=False))])
        most = max(most, restarts)
    assert shortest_s > 1.0  # only the first restart is immediate: a crash loop never spins
    chaos_report(f"at most {most} restarts in 10 min with max_recovery_attempts {max_recovery_attempts}")
