"""The manager's state is lost for good, with its backups: the fleet is taken over, and nothing runs twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fleet import stamps
from tests.fleet.chaos_world import World


@pytest.mark.fleet
@pytest.mark.timeout(240)
def test_a_rebuilt_state_takes_over_what_runs_at_the_next_deployment(tmp_path: Path) -> None:
    """As docs/operations.md says it: the id from a host, `invoke state.rebuild`, start, deploy."""
    with World(tmp_path, hosts=1) as world:
        host = world.fleet.hosts[0]
        world.deploy({host.name: [stamps.stamping("w1")]})
        before = world.manager.wait_worker("w1", "running")
        world.manager.kill()
        data = world.manager.directory / "data"
        assert (data / "procguard_state.yaml.j00000001").exists()
        shutil.rmtree(data)

        fleet = next(one.name for one in host.path("/root/.procguard").iterdir() if one.name.startswith("f-"))
        done = world.operator.invoke("state.rebuild", fleet, "--state", str(data / "procguard_state.yaml"))
        assert done.returncode == 0, done.stderr
        world.manager.start()
        world.deploy({host.name: [stamps.stamping("w1")]})
        world.settled("w1")
        after = world.manager.wait_worker("w1", "running")
        assert (after["pid"], after["attempt"]) == (before["pid"], before["attempt"])
        assert after["epoch"] >= before["epoch"]
        assert len({(one.epoch, one.pid) for one in world.stamps("w1")}) == 1
        # And it obeys its new manager.
        world.manager.command("w1", "stop")
        world.manager.wait_worker("w1", "stopped", 20)
