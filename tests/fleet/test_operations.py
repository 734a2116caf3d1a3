"""Many workers at once on real hosts: a rolling restart halted by a bad release, its retry, a cancelled stop."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fleet import jobs
from tests.fleet.hosts import Fleet
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

BROKEN = "/var/tmp/broken"
NAMES = [f"job-{number}" for number in range(4)]
STUBBORN = ["stubborn-0", "stubborn-1"]


def careful(worker_id: str) -> dict[str, object]:
    """Counts, unless the release is broken."""
    return {
        "worker_id": worker_id,
        "command": f"sh -c 'test ! -e {BROKEN} || exit 3; exec python3 {jobs.JOB_PATH} {worker_id}'",
        "group": "careful",
        "restart": {"max_attempts": 0, "start_secs": 0.5},
    }


def stubborn(worker_id: str) -> dict[str, object]:
    """Lets its grace pass before it ends."""
    return {
        "worker_id": worker_id,
        "command": "sh -c 'trap \"\" TERM; while :; do sleep 0.2; done'",
        "stop_grace_s": 10,
    }


def pids(fleet: Fleet) -> dict[str, list[int]]:
    return {name: [one.pid for one in jobs.children(fleet[0], name)] for name in NAMES}


def test_operations_on_real_workers(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    with Manager(tmp_path, operator.environment) as manager:
        operator = Operator(operator.home, operator.environment, manager.url)
        workers = [*map(careful, NAMES), *map(stubborn, STUBBORN)]
        inventory = jobs.write_inventory(tmp_path / "inventory.yaml", {"node1": jobs.host_variables(fleet[0], workers)})
        deployed = operator.invoke("deploy", "--hosts", str(inventory))
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        for name in [*NAMES, *STUBBORN]:
            manager.wait_worker(name, "running")
        first = pids(fleet)

        # one after the other, and not who was excluded
        done = operator.invoke("restart", "group=careful,!job-0", "--concurrency", "1", "--reason", "new data")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3 done" in done.stdout
        second = pids(fleet)
        assert [name for name in NAMES if second[name] == first[name]] == ["job-0"]
        begun = [jobs.starts(fleet[0], name)[-1][1] for name in NAMES[1:]]
        assert begun == sorted(begun)
        assert manager.get("/api/commands?worker=job-1")["commands"][0]["reason"] == "new data"

        # a bad release stops at its first victim
        fleet[0].path(BROKEN).touch()
        halted = operator.invoke("restart", "job-*", "--concurrency", "1", "--max-failures", "0")
        assert halted.returncode == 2, halted.stdout + halted.stderr
        assert "halted" in halted.stdout and "1 failed" in halted.stdout
        third = pids(fleet)
        assert third["job-0"] == [] and [third[name] for name in NAMES[1:]] == [second[name] for name in NAMES[1:]]

        # mended, the failed one comes back, and only that
        fleet[0].path(BROKEN).unlink()
        found = re.search(r"operations\.retry (o-[0-9a-f]+)", halted.stderr)
        assert found, halted.stderr
        retried = operator.invoke("operations.retry", found[1])
        assert retried.returncode == 0, retried.stdout + retried.stderr
        fourth = pids(fleet)
        assert len(fourth["job-0"]) == 1 and [fourth[name] for name in NAMES[1:]] == [third[name] for name in NAMES[1:]]

        # what has not begun is not begun
        begun_stop = operator.invoke("stop", "stubborn-*", "--concurrency", "1", "--no-wait", "--json")
        assert begun_stop.returncode == 0, begun_stop.stderr
        [view] = [one for one in manager.get("/api/operations")["operations"] if one["command"] == "stop"]
        path = f"/api/operations/{view['operation_id']}"
        wait_until(lambda: "waiting" in manager.get(path)["counts"] and manager.get(path)["counts"]["waiting"] == 1, 10)
        cancelled = operator.invoke("operations.cancel", view["operation_id"])
        assert cancelled.returncode == 0 and "1 of 2 not begun" in cancelled.stdout
        wait_until(lambda: manager.get(path)["status"] == "cancelled", 40, "the end of what had begun")
        assert manager.worker("stubborn-0")["state"] == "stopped"
        assert manager.worker("stubborn-1")["state"] == "running"
