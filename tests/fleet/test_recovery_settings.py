"""The seed's recovery settings on a real host: max_recovery_attempts and enable_auto_recovery."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fleet import jobs
from tests.fleet.hosts import Fleet
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet


def deploy(manager: Manager, operator: Operator, path: Path, fleet: Fleet, *workers: dict[str, object]) -> Operator:
    operator = Operator(operator.home, operator.environment, manager.url)
    inventory = jobs.write_inventory(path / "inventory.yaml", {"node1": jobs.host_variables(fleet[0], workers)})
    run = operator.invoke("deploy", "--hosts", str(inventory))
    assert run.returncode in (0, 2), run.stdout + run.stderr  # 2: one of them crashes already, as it is meant to
    return operator


def last_lines(manager: Manager, path: str) -> list[str]:
    status, body = manager.request("GET", path)
    assert status == 200, body
    return body.decode().splitlines()


def test_a_crash_loop_ends_after_max_recovery_attempts(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    """One start and two restarts, then failed with a reason; an operator's start gives it a new budget."""
    with Manager(tmp_path, operator.environment, ["recovery.max_recovery_attempts=2"]) as manager:
        script = "sh -c 'seq 1 60; echo out of paper; exit 3'"
        crashing = {"worker_id": "crashing", "command": script, "restart": {"backoff_s": [0, 0.1]}}
        deploy(manager, operator, tmp_path, fleet, crashing)
        view = manager.wait_worker("crashing", "failed", 20)
        assert view["attempt"] == 3
        assert view["last_exit"]["code"] == 3
        assert "2" in view["reason"]
        time.sleep(1.0)  # long enough for a wrong restart to show
        assert manager.worker("crashing")["attempt"] == 3
        [failure] = [one for one in manager.get("/api/events?worker=crashing")["events"] if one["after"] == "failed"]
        assert failure["logs"] == "/api/remote-workers/crashing/logs?attempt=3&tail=50"
        last_words = [*map(str, range(12, 61)), "out of paper"]
        wait_until(lambda: last_lines(manager, failure["logs"]) == last_words, 10, "its last 50 lines")
        assert last_lines(manager, "/api/remote-workers/crashing/logs?tail=50") == last_words
        manager.command("crashing", "start")
        wait_until(lambda: manager.worker("crashing")["attempt"] == 6, 20, "a new budget of attempts")
        manager.wait_worker("crashing", "failed")


def test_without_auto_recovery_nothing_is_restarted(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    """Neither a killed child nor a killed agent; that they are gone is shown with the reason."""
    settings = ["recovery.enable_auto_recovery=false", "monitoring.heartbeat_timeout=2"]
    with Manager(tmp_path, operator.environment, settings) as manager:
        deploy(manager, operator, tmp_path, fleet, jobs.counting("left-alone"), jobs.counting("orphan"))
        manager.wait_worker("left-alone", "running")
        manager.wait_worker("orphan", "running")
        orphan, child = (jobs.only_child(fleet[0], worker_id) for worker_id in ("orphan", "left-alone"))
        fleet[0].kill(child)
        view = manager.wait_worker("left-alone", "failed")
        assert "signal 9" in view["reason"], view

        [agent] = [one for one in jobs.agents(fleet[0]) if one.pid == manager.host("node1")["agent_pid"]]
        fleet[0].kill(agent)
        manager.wait_worker("orphan", "unknown")
        recovery = manager.get("/api/recoveries")["recoveries"][0]
        assert recovery["outcome"] == "left"
        assert "enable_auto_recovery" in recovery["steps"][-1]["text"]
        time.sleep(1.0)  # long enough for a wrong start to show
        assert orphan.is_alive()
        assert jobs.children(fleet[0], "left-alone") == []
        assert not agent.is_alive()
        assert manager.host("node1")["agent_pid"] == agent.pid
