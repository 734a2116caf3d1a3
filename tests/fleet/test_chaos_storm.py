"""A whole fleet loses its manager at once, and reconnects. The agents are simulated with the real protocol: the
swarm uses the agents' own session (remote_agent.agent.session). Needs no root."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from scripts.swarm import Swarm
from tests.chaos import ChaosReport
from tests.fleet.manager import Manager, own_environment

AGENTS = 500
PEAK_TO_MEAN = 3.0
AWAY_S = 3.0
SLICES = 10


def peak_to_mean(times: list[float]) -> tuple[float, float]:
    """(how much busier the busiest tenth of the return was than the average, how long the return took). The last 2 %
    are left out: one straggler would stretch the time, and flatter the figure."""
    times = sorted(times)[: max(1, round(0.98 * len(times)))]
    took_s = max(times[-1] - times[0], 1e-6)
    slices = Counter(min(SLICES - 1, int(SLICES * (at - times[0]) / took_s)) for at in times)
    return max(slices.values()) / (len(times) / SLICES), took_s


@pytest.mark.alone
@pytest.mark.chaos(17)
@pytest.mark.timeout(300)
def test_five_hundred_agents_come_back_spread_out_and_none_is_called_dead(
    tmp_path: Path, chaos_report: ChaosReport
) -> None:
    settings = ["monitoring.heartbeat_timeout=15", "web.host=127.0.0.1"]
    ratios, took, dead = [], [], []
    with Manager(tmp_path, own_environment(tmp_path), settings) as manager:
        with Swarm(manager.url, agents=AGENTS, workers_per_agent=1, seed=17) as swarm:
            swarm.wait_running(120)
            for _round in chaos_report.rounds(short=1, long=10):
                manager.kill()
                time.sleep(AWAY_S)
                manager.start()
                began = time.monotonic() - AWAY_S
                enough = 2 * AGENTS  # each has two connections
                swarm.wait(lambda _, began=began, enough=enough: len(returns(swarm, began)) >= enough, 90, "all back")
                ratio, took_s = peak_to_mean(returns(swarm, began))
                ratios.append(ratio)
                took.append(took_s)
                received = swarm.summary().beats_answered + 2 * AGENTS
                swarm.wait(lambda now, received=received: now.beats_answered >= received, 90, "heartbeats go on")
                hosts = manager.get("/api/hosts")["hosts"]
                dead += [one["host"] for one in hosts if one["agent_state"] != "connected"]
                events = manager.get("/api/events?limit=5000")["events"]
                dead += [one["host"] for one in events if one["kind"] == "agent_unreachable"]
    assert dead == []
    assert max(ratios) <= PEAK_TO_MEAN, f"{ratios} within {took} s"
    chaos_report(f"{AGENTS} agents back within {max(took):.1f} s, peak/mean at most {max(ratios):.2f}; 0 declared dead")


def returns(swarm: Swarm, since: float) -> list[float]:
    """When connections were opened after `since`, monotonic seconds."""
    return [at for at in swarm.samples()["connects"] if at >= since]
