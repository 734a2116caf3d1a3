"""Two users deploy one host at the same moment: it has one agent and one child afterwards."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World

pytestmark = pytest.mark.fleet


@pytest.mark.chaos(13)
def test_two_deploys_at_once_make_one_agent_and_one_child(tmp_path: Path, chaos_report: ChaosReport) -> None:
    """Alternately onto a bare host and over the result of the previous two."""
    with World(tmp_path, hosts=1) as world, ThreadPoolExecutor(2) as both:
        (node1,) = world.fleet.hosts
        inventory = jobs.write_inventory(
            tmp_path / "both.yaml", {"node1": jobs.host_variables(node1, [stamps.stamping("one")])}
        )

        def invoke(task: str) -> subprocess.CompletedProcess[str]:
            return world.operator.invoke(task, "--hosts", str(inventory), timeout_s=120)

        rounds = 0
        for rounds in chaos_report.rounds(short=2, long=50):
            for run in both.map(invoke, ["deploy", "deploy"]):
                assert run.returncode == 0, run.stdout + run.stderr
            world.settled("one")
            assert len(jobs.agents(node1)) == 1, jobs.agents(node1)
            stamps.only_child(node1, "one")
            after = invoke("deploy")
            assert after.returncode == 0 and "ok=1  changed=0" in after.stdout, after.stdout + after.stderr
            if rounds % 2 == 0:
                gone = invoke("undeploy")
                assert gone.returncode == 0, gone.stdout + gone.stderr
                assert node1.processes("remote_agent") + node1.processes(stamps.STAMP_PATH) == []
        assert stamps.overlap_ms(stamps.instances(world.stamps("one"))) == 0
    chaos_report(measured=f"1 agent, 1 child each time; overlap 0 ms in {rounds + 1} rounds")
