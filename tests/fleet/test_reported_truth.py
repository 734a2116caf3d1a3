"""A deployment's report is true: exit code 2 and the reason if a worker does not come up, on three hosts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import SETTINGS, World
from tests.fleet.manager import Manager

pytestmark = pytest.mark.fleet

SLEEP = "sleep 100000"
NODES = ("node1", "node2", "node3")
Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("truth"), hosts=3) as one:
        yield one


def write(world: World, workers: dict[str, list[dict[str, Any]]], **more: Any) -> Path:
    hosts = {name: jobs.host_variables(world.host(name), specs) | more for name, specs in workers.items()}
    return jobs.write_inventory(world.directory / "truth.yaml", hosts)


def deploy(world: World, *options: str) -> Run:
    return world.operator.invoke("deploy", "--hosts", str(world.directory / "truth.yaml"), *options, timeout_s=120)


def said(run: Run) -> str:
    return run.stdout + run.stderr


def recap(run: Run) -> str:
    return run.stdout[run.stdout.index("RECAP") :]


def twenty(broken: str) -> dict[str, list[dict[str, Any]]]:
    """Twenty workers on three hosts; w07 runs `broken`."""
    spread: dict[str, list[dict[str, Any]]] = {name: [] for name in NODES}
    for number in range(20):
        command = broken if number == 7 else f"{SLEEP}{number}"
        spread[NODES[number % 3]].append({"worker_id": f"w{number:02}", "command": command})
    return spread


def states(world: World) -> dict[str, str]:
    return {one["worker_id"]: one["state"] for one in world.manager.get("/api/remote-workers")["workers"]}


def test_one_broken_worker_of_twenty_is_named_and_all_others_run(world: World) -> None:
    write(world, twenty("python3 /opt/jobs/trian.py"))
    first = deploy(world)
    print(said(first))
    assert first.returncode == 2, said(first)
    found = states(world)
    assert found.pop("w07") in ("failed", "backoff") and set(found.values()) == {"running"}, found
    text = recap(first)
    assert "w07 on node2" in text and "can't open file '/opt/jobs/trian.py'" in text, said(first)
    assert all(len(re.findall(rf"^{node} ", text, re.MULTILINE)) == 1 for node in NODES), text
    assert "changed=2  failed=1" in text, text
    again = deploy(world)
    assert again.returncode == 2 and "w07 on node2" in recap(again), said(again)
    assert "ok=2  changed=0  failed=1" in recap(again), said(again)


def test_start_and_restart_of_one_worker_say_whether_it_came_up(world: World) -> None:
    started = world.operator.invoke("start", "w07")
    assert started.returncode == 2 and "can't open file" in started.stderr, said(started)
    well = world.operator.invoke("restart", "w01")
    assert well.returncode == 0 and "w01: running (pid " in well.stdout, said(well)
    begun = world.operator.invoke("restart", "w07", "--no-wait")
    assert begun.returncode == 0 and "accepted" in begun.stdout, said(begun)


def test_a_corrected_worker_gets_a_new_budget_from_its_deployment(world: World) -> None:
    """Also if the whole budget was used."""
    spec = {"worker_id": "w07", "command": "false", "restart": {"max_attempts": 0}}
    workers = twenty(SLEEP)
    workers["node2"] = [spec if one["worker_id"] == "w07" else one for one in workers["node2"]]
    write(world, workers)
    assert deploy(world).returncode == 2
    assert world.manager.wait_worker("w07", "failed")["restarts"] == 0
    write(world, twenty(SLEEP))
    corrected = deploy(world)
    assert corrected.returncode == 0, said(corrected)
    assert set(states(world).values()) == {"running"}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "directory": ({"command": SLEEP, "working_dir": "/no/such/folder"}, "/no/such/folder"),
    "venv": ({"command": SLEEP, "venv": "/no/venv"}, "/no/venv"),
    "env-file": ({"command": SLEEP, "env_file": "/no/env"}, "/no/env"),
    "user": ({"command": SLEEP, "user": "nobody-at-all"}, "nobody-at-all"),
    "gpu": ({"command": SLEEP, "gpus": 1}, "GPU"),
    "program": ({"command": "trian --epochs 3"}, "trian"),
}


def test_whatever_keeps_a_worker_from_starting_is_reported_with_its_reason(world: World) -> None:
    workers = {"node1": [{"worker_id": name, **spec} for name, (spec, _) in BROKEN.items()]}
    workers["node1"] += [{"worker_id": "done", "command": "true"}, {"worker_id": "fine", "command": SLEEP}]
    write(world, workers)
    run = deploy(world, "--limit", "node1")
    assert run.returncode == 2, said(run)
    text = recap(run)
    for name, (_, word) in BROKEN.items():
        assert re.search(rf"^ +{name} on node1: (failed|in backoff): .*{re.escape(word)}", text, re.MULTILINE), text
    assert "fine on" not in text and "done on" not in text, text
    assert world.operator.invoke("status").returncode == 0


def test_another_state_does_not_double_what_runs(world: World, tmp_path: Path) -> None:
    write(world, {"node1": [stamps.stamping("solo")], "node2": []})
    assert deploy(world, "--limit", "node1").returncode == 0
    mine = stamps.only_child(world.host("node1"), "solo")
    (fleet,) = {path.name for path in world.host("node1").path("/root/.procguard").iterdir()} - {"releases"}
    with Manager(tmp_path, world.operator.environment, SETTINGS) as other:
        elsewhere = replace(world.operator, manager_url=other.url)
        inventory = str(world.directory / "truth.yaml")
        refused = elsewhere.invoke("deploy", "--hosts", inventory, "--limit", "node1")
        assert refused.returncode == 2 and "solo already runs here in another fleet" in said(refused), said(refused)
        (second,) = set(re.findall(r"f-[0-9a-f]{10}", said(refused))) - {fleet}
        assert f"fleet {fleet} (manager http://" in said(refused) and f"this one is {second}" in said(refused)
        assert stamps.only_child(world.host("node1"), "solo") == mine
        assert other.get("/api/remote-workers")["workers"] == []  # no ghost of what was never deployed
        doctor = elsewhere.invoke("doctor", "node1", "--hosts", inventory)
        assert doctor.returncode == 2 and f"fleet {fleet}" in doctor.stdout and "both mean solo" in doctor.stdout
        insisted = elsewhere.invoke("deploy", "--hosts", inventory, "--another-fleet", "--limit", "node1")
        assert insisted.returncode == 0, said(insisted)
        assert len(stamps.children(world.host("node1"), "solo")) == 2
        assert "ok=1  changed=0" in recap(deploy(world, "--limit", "node1"))  # and this fleet's deployments continue
        assert elsewhere.invoke("undeploy", "--hosts", inventory, "--limit", "node1").returncode == 0
    assert stamps.only_child(world.host("node1"), "solo") == mine


def test_a_host_deleted_from_the_inventory_is_reported_and_pruned_and_a_failed_deploy_leaves_no_ghosts(
    world: World,
) -> None:
    write(world, {"node1": [], "node3": [{"worker_id": "left", "command": SLEEP}]})
    assert deploy(world, "--prune").returncode == 0
    hosts = {"node1": jobs.host_variables(world.host("node1"), [])}
    nowhere = {"ansible_host": world.host("node1").address, "ansible_port": 9, "ansible_user": "root"}
    hosts["ghost"] = {**nowhere, "procguard_workers": [{"worker_id": "boo", "command": SLEEP}]}
    inventory = jobs.write_inventory(world.directory / "truth.yaml", hosts)
    reported = deploy(world)
    assert reported.returncode == 2 and "unreachable=1" in recap(reported), said(reported)
    assert "node3: gone from the inventory; undeclared: left" in said(reported)
    assert world.manager.worker("left")["undeclared"] is True and world.manager.worker("boo") == {}
    assert world.manager.host("ghost") == {}
    jobs.write_inventory(inventory, {"node1": hosts["node1"]})
    dry_run = deploy(world, "--prune", "--check")
    assert "would stop and remove left" in said(dry_run) and world.manager.worker("left")["state"] == "running"
    pruned = deploy(world, "--prune")
    assert pruned.returncode == 0, said(pruned)
    assert world.manager.worker("left") == {} and world.manager.host("node3") == {}
    assert world.host("node3").processes("remote_agent") == []


def test_undeploy_and_rollback_say_what_they_do(world: World) -> None:
    inventory = write(world, {"node1": [{"worker_id": "kept", "command": SLEEP}]})
    assert deploy(world, "--limit", "node1").returncode == 0
    checked = world.operator.invoke("undeploy", "--hosts", str(inventory), "--check")
    assert "would stop and remove kept" in said(checked) and "not in the inventory" not in said(checked)
    nothing = world.operator.invoke("rollback", "--hosts", str(inventory))
    assert nothing.returncode == 2 and "there is no release to roll back to" in said(nothing)
    assert "workers: 1 running" in recap(nothing)
    gone = world.operator.invoke("undeploy", "--hosts", str(inventory))
    assert gone.returncode == 0 and "workers: 1 removed" in recap(gone), said(gone)
    assert "not in the inventory" not in said(gone)


def test_check_finds_what_no_host_can_run(world: World) -> None:
    workers = [{"worker_id": "w1", "command": "cd /tmp && sleep 1"}, {"worker_id": "w2", "command": "echo 'a"}]
    workers.append({"worker_id": "w3", "command": "python3 ~/train.py"})
    write(world, {"node1": workers})
    words = deploy(world, "--check")
    assert words.returncode == 1, said(words)
    assert all(part in words.stderr for part in ("w1: command: &&", "w2: command: a ' is opened", "w3: command: ~/"))
    write(world, {"node1": []}, ansible_python_interpreter="/opt/nowhere/python3")
    for options in (("--check",), ()):
        python = deploy(world, *options)
        assert python.returncode == 2 and "program /opt/nowhere/python3 not found on this host" in said(python), said(
            python
        )


def test_restart_changed_with_a_typing_mistake_ends_at_the_first_host(world: World) -> None:
    def jobs_of(command: str) -> dict[str, list[dict[str, Any]]]:
        return {name: [{"worker_id": f"job-{name}", "command": command}] for name in NODES}

    def pids() -> dict[str, int]:
        return {name: world.manager.worker(f"job-{name}")["pid"] for name in NODES}

    write(world, jobs_of(SLEEP))
    assert deploy(world, "--prune").returncode == 0
    before = pids()
    for number, options in enumerate([("--serial", "1", "--max-fail", "0"), ()]):
        write(world, jobs_of(f"sleeep {number}"))  # the second time node1's has failed already, and fails again
        run = deploy(world, "--restart-changed", *options)
        assert run.returncode == 2, said(run)
        assert "skipped=2" in recap(run) and "job-node1 on node1" in recap(run), said(run)
        now = pids()
        assert (now["node2"], now["node3"]) == (before["node2"], before["node3"]), said(run)
    write(world, jobs_of("sleep 200000"))
    well = deploy(world, "--restart-changed")
    assert well.returncode == 0 and "skipped" not in recap(well), said(well)
    assert not set(pids().values()) & set(before.values())  # the first one, corrected, too
