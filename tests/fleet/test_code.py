"""procguard_sync and `invoke fetch` on real hosts: with rsync and without, under a running job, and back again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import jobs
from tests.fleet.hosts import Fleet
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

DEST = "~/it's a project"
THERE = "/root/it's a project"
JOB = 'import time\nprint("code 1", flush=True)\nopen("seen.txt", "a").write("1")\ntime.sleep(1000)\n'


def test_code_arrives_before_its_worker_starts_and_results_come_back(
    fleet: Fleet, manager: Manager, operator: Operator, tmp_path: Path
) -> None:
    source = tmp_path / "project"
    source.mkdir()
    (source / "job.py").write_text(JOB)
    (source / "weights.bin").write_bytes(os.urandom(300_000))
    (source / "out").mkdir()
    (source / "out" / "local.csv").write_text("not for the hosts")
    near, far = fleet[0], fleet[1]
    far.run("rm /usr/bin/rsync")  # of its own overlay

    def hosts() -> dict[str, Any]:
        return {
            host.name: jobs.host_variables(
                host, [{"worker_id": f"job-{host.name}", "command": "python3 job.py", "working_dir": DEST}]
            )
            for host in (near, far)
        }

    everywhere = {"procguard_sync": {"src": "project", "dest": DEST, "exclude": ["out/"]}}
    inventory = jobs.write_inventory(tmp_path / "prod.yaml", hosts(), everywhere)

    def deploy(*options: str) -> tuple[int, dict[str, Any], str]:
        run = operator.invoke("deploy", "--hosts", str(inventory), "--json", *options)
        answer: dict[str, Any] = json.loads(run.stdout) if run.stdout else {"hosts": {}}
        return run.returncode, {name: one["code"] for name, one in answer["hosts"].items()}, run.stdout + run.stderr

    # --check says it and leaves nothing there
    code, would, text = deploy("--check")
    assert code == 0 and would["node1"][0]["status"] == "would_change", text
    assert not near.path(THERE).exists()

    code, brought, text = deploy()
    assert code == 0, text
    assert [brought[name][0]["way"] for name in ("node1", "node2")] == ["rsync", "session"], text
    for host in (near, far):
        manager.wait_worker(f"job-{host.name}", "running")
        assert host.path(f"{THERE}/weights.bin").read_bytes() == (source / "weights.bin").read_bytes()
        assert not host.path(f"{THERE}/out").exists()
        assert manager.worker(f"job-{host.name}")["restarts_total"] == 0  # its code was there before its first start

    # a new release of the code: not under running jobs unless requested
    (source / "job.py").write_text(JOB.replace("1", "2"))
    before = {host.name: host.path(f"{THERE}/job.py").read_text() for host in (near, far)}
    run = operator.invoke("deploy", "--hosts", str(inventory), "--diff")
    assert run.returncode == 0 and "~ job.py" in run.stdout and "--sync-running" in run.stdout, run.stdout + run.stderr
    assert "out of date (1 changed, " in run.stdout and "job-node1 run there" in run.stdout
    assert {host.name: host.path(f"{THERE}/job.py").read_text() for host in (near, far)} == before

    code, brought, text = deploy("--sync-running", "--restart-changed")
    assert code == 0 and brought["node1"][0]["status"] == brought["node2"][0]["status"] == "changed", text
    for host in (near, far):
        wait_until(lambda host=host: host.path(f"{THERE}/seen.txt").read_text() == "12", 20, "the new code ran")  # type: ignore[misc]
    assert deploy()[1]["node1"][0]["status"] == "same"

    _fetch_back(operator, inventory, fleet, tmp_path)
    run = operator.invoke("undeploy", "--hosts", str(inventory))
    assert run.returncode == 0, run.stdout + run.stderr
    assert near.path(f"{THERE}/seen.txt").exists()  # the project is its owner's


def _fetch_back(operator: Operator, inventory: Path, fleet: Fleet, tmp_path: Path) -> None:
    """The results of all reachable hosts: one without an sshd is named and does not hide others."""
    hosts: dict[str, dict[str, Any]] = {host.name: {"ansible_host": host.address} for host in fleet.hosts[:3]}
    hosts["node3"]["ansible_port"] = 2
    path = jobs.write_inventory(tmp_path / "fetch.yaml", hosts, {"ansible_user": "root"})
    run = operator.invoke("fetch", str(path), "it's a project/seen*", "--to", str(tmp_path / "fetched"))
    assert run.returncode == 2, run.stdout + run.stderr
    assert "refused, " in run.stdout and "node3" in run.stdout and "from 2 of 3 hosts" in run.stdout, run.stdout
    for name in ("node1", "node2"):
        assert (tmp_path / "fetched" / name / THERE.lstrip("/") / "seen.txt").read_text() == "12"
    run = operator.invoke("fetch", "node1", "/etc/nosuch*", "--hosts", str(inventory), "--to", str(tmp_path / "f2"))
    assert run.returncode == 2 and "nothing matches /etc/nosuch*" in run.stdout, run.stdout


def test_a_host_without_room_for_the_code_starts_nothing(
    fleet: Fleet, manager: Manager, operator: Operator, tmp_path: Path
) -> None:
    """And names it; the other member of its gang waits too, while workers outside the gang continue."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "data.bin").write_bytes(os.urandom(3_000_000))
    node1, node2 = fleet[0], fleet[1]
    node1.run("mkdir -p /data && mount -t tmpfs -o size=1m tmpfs /data")
    workers = {
        "node1": [jobs.counting("rank-1", group="gang")],
        "node2": [jobs.counting("rank-2", group="gang")],
        "node4": [jobs.counting("alone")],
    }
    hosts = {host.name: jobs.host_variables(host, workers[host.name]) for host in (node1, node2, fleet[3])}
    everywhere = {
        "procguard_sync": {"src": "big", "dest": "/data/code"},
        "procguard_groups": {"gang": {"restart": "gang"}},
    }
    inventory = jobs.write_inventory(tmp_path / "prod.yaml", hosts, everywhere)
    try:
        run = operator.invoke("deploy", "--hosts", str(inventory))
    finally:
        node1.run("umount /data")
    text = run.stdout + run.stderr
    assert run.returncode == 2, text
    assert "no space in /data/code" in text and "its gang gang has a member on node1" in text, text
    manager.wait_worker("alone", "running")
    assert manager.worker("rank-1") == manager.worker("rank-2") == {}
    assert operator.invoke("undeploy", "--hosts", str(inventory)).returncode == 0
