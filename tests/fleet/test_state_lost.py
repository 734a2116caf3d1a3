"""The manager's state is lost permanently, with its backups: the fleet is adopted, and nothing runs twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World


@pytest.mark.fleet
@pytest.mark.timeout(240)
def test_a_rebuilt_state_takes_over_what_runs_at_the_next_deployment(tmp_path: Path) -> None:
    """As in docs/operations.md: the id from a host, `invoke state.rebuild`, start, deploy."""
    with World(tmp_path, hosts=1) as world:
        host = world.fleet.hosts[0]
        world.deploy({host.name: [stamps.stamping("w1")]})
        before = world.manager.wait_worker("w1", "running")
        world.manager.kill()
        data = world.manager.directory / "data"
        assert (data / "procguard_state.db").exists()
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


@pytest.mark.fleet
@pytest.mark.timeout(240)
def test_after_a_rebuild_a_worker_that_had_moved_is_not_started_where_it_was_declared(tmp_path: Path) -> None:
    """The hosts are read over SSH: workers that run elsewhere are refused, those that run nowhere wait for an
    operator."""
    with World(tmp_path, hosts=2) as world:
        one, two = world.fleet.hosts
        declared = {one.name: [stamps.stamping("moved"), stamps.stamping("idle")], two.name: []}
        world.deploy(declared)
        assert world.operator.invoke("move", "moved", two.name).returncode == 0
        world.until(lambda: world.manager.worker("moved")["host"] == two.name, "it moves", 30)
        before = world.manager.wait_worker("moved", "running", 30)
        world.manager.command("idle", "stop")
        world.manager.wait_worker("idle", "stopped", 20)
        starts = len({(line.host, line.pid) for line in world.stamps("moved", "idle")})
        world.manager.kill()
        data = world.manager.directory / "data"
        shutil.rmtree(data)
        fleet = next(found.name for found in one.path("/root/.procguard").iterdir() if found.name.startswith("f-"))
        done = world.operator.invoke("state.rebuild", fleet, "--state", str(data / "procguard_state.yaml"))
        assert done.returncode == 0, done.stderr
        world.manager.start()

        inventory = str(world.directory / "chaos.yaml")
        run = world.operator.invoke("deploy", "--hosts", inventory)
        assert run.returncode == 2 and f"it runs on {two.name}" in run.stdout, run.stdout + run.stderr
        assert "invoke start idle" in run.stdout
        assert world.manager.worker("idle")["desired"] == "stopped"
        hosts = {
            one.name: jobs.host_variables(one, [stamps.stamping("idle")]),
            two.name: jobs.host_variables(two, [stamps.stamping("moved")]),
        }
        inventory = str(jobs.write_inventory(world.directory / "again.yaml", hosts, None))
        run = world.operator.invoke("deploy", "--hosts", inventory)
        assert run.returncode == 0, run.stdout + run.stderr
        after = world.settled("moved")
        assert (after["host"], after["pid"], after["attempt"]) == (two.name, before["pid"], before["attempt"])
        assert len({(line.host, line.pid) for line in world.stamps("moved", "idle")}) == starts
        assert world.operator.invoke("start", "idle").returncode == 0
        world.manager.wait_worker("idle", "running", 20)


@pytest.mark.fleet
@pytest.mark.timeout(240)
def test_a_restored_older_state_learns_from_the_grant_where_a_worker_is(tmp_path: Path) -> None:
    """It moved after the backup: its process keeps running, its former host starts nothing, and it accepts commands."""
    with World(tmp_path, hosts=2) as world:
        one, two = world.fleet.hosts
        world.deploy({one.name: [stamps.stamping("w1")], two.name: []})
        world.manager.stop()
        data, backup = world.manager.directory / "data", str(tmp_path / "backup.jsonl")
        state = str(data / "procguard_state.yaml")
        done = world.operator.invoke("state.export", backup, "--state", state)
        assert done.returncode == 0, done.stderr
        world.manager.start()
        world.settled("w1")
        world.wait_connected(two.name)
        assert world.operator.invoke("move", "w1", two.name).returncode == 0
        world.until(lambda: world.manager.worker("w1")["host"] == two.name, "it moves", 30)
        before = world.manager.wait_worker("w1", "running", 30)
        starts = len({(line.host, line.pid) for line in world.stamps("w1")})
        world.manager.kill()
        shutil.rmtree(data)
        done = world.operator.invoke("state.import", backup, "--state", state)
        assert done.returncode == 0, done.stderr
        world.manager.start()
        world.until(lambda: world.manager.worker("w1").get("host") == two.name, "the grant counts", 30)
        after = world.settled("w1")
        assert (after["pid"], after["attempt"], after["epoch"]) == (before["pid"], before["attempt"], before["epoch"])
        world.manager.command("w1", "stop")
        world.manager.wait_worker("w1", "stopped", 20)
        assert len({(line.host, line.pid) for line in world.stamps("w1")}) == starts
