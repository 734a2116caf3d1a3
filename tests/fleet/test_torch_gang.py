"""The example of a real torch.distributed job (gloo, CPUs) on three hosts: it resumes after a power cut.

torch is optional, so these are skipped where it is missing, also in continuous integration. The hosts see this
machine's files, but neither its home directories, /tmp nor this checkout: TORCH_PYTHON names a Python with torch
elsewhere, e.g. /opt/torch/bin/python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.inventory import model as inventory
from tests.fleet.chaos_world import World
from tests.fleet.hosts import REPOSITORY, Fleet, FleetHost
from tests.waiting import wait_until

EXAMPLE = REPOSITORY / "configs" / "examples" / "torch_gang"
PLACE = "/opt/jobs/torch_gang"
HOSTS = ("node1", "node2", "node3")
STEPS, EVERY = 400, 10
LEASE_S = 15.0  # torch is a heavy load for a small machine: it must not look like an outage


def python_with_torch() -> str:
    """ "" where there is none."""
    for python in (os.environ.get("TORCH_PYTHON", ""), sys.executable):
        if python and shutil.which(python):
            found = subprocess.run([python, "-c", "import torch.distributed"], capture_output=True, check=False)
            if found.returncode == 0:
                return python
    return ""


@pytest.fixture(scope="module")
def python() -> str:
    found = python_with_torch()
    if not found:
        pytest.skip("no torch here: TORCH_PYTHON names a Python that has it (docs/groups.md)")
    return found


@pytest.fixture(scope="module")
def world(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    def plant(fleet: Fleet) -> None:
        for host in fleet.hosts:
            host.path(PLACE).mkdir(parents=True, exist_ok=True)
            shutil.copy(EXAMPLE / "train.py", host.path(PLACE))

    with World(tmp_path_factory.mktemp("torch"), hosts=3, prepare=plant) as one:
        seen = one.fleet[0].run(f"{python} -c 'import torch'", check=False, timeout_s=60)
        if seen.returncode != 0:
            pytest.skip(f"the test hosts do not see the torch of {python}: put it elsewhere, e.g. below /opt")
        yield one


def declare(world: World, group: str, policy: dict[str, Any], workers: dict[str, dict[str, Any]]) -> None:
    hosts = {host: [{"worker_id": f"{group}-{host}", **spec, "group": group}] for host, spec in workers.items()}
    more = {host: {"procguard_groups": {group: policy}} for host in workers}
    world.deploy(hosts, more)


def checkpoint_of(host: FleetHost) -> Path:
    """On the host's disk, whether it is on or off."""
    return host.directory / "upper" / PLACE.lstrip("/") / "checkpoint.pt"


@pytest.mark.fleet
@pytest.mark.torch
@pytest.mark.timeout(400)
def test_a_torch_job_on_three_hosts_goes_on_from_its_checkpoint_after_a_power_cut(world: World, python: str) -> None:
    """The host that loses power is rank 0's, which keeps the checkpoint and the rendezvous."""
    command = f"{python} train.py --steps {STEPS} --every {EVERY} --pause 0.03 --timeout 120"
    spec = {"command": command, "working_dir": PLACE, "lease_s": LEASE_S, "stop_grace_s": 2.0}
    began = time.monotonic()
    declare(world, "train", {"restart": "gang", "rendezvous": "torch"}, dict.fromkeys(HOSTS, spec))
    host = world.fleet[0]
    wait_or_report(world, lambda: step_of(world) >= EVERY * 5, 150, "some checkpoints")
    print(f"\ndeploy to step {step_of(world)}: {time.monotonic() - began:.1f} s")
    cut_at = time.monotonic()
    before = step_of(world)
    host.power_cut()
    assert checkpoint_of(host).exists()
    time.sleep(2)  # a machine takes a while to come back
    host.power_on()
    resumed = wait_or_report(world, lambda: began_at(world), 200, "a resumed start")
    print(f"power cut at step {before}: resumed at step {resumed} after {time.monotonic() - cut_at:.1f} s")
    assert EVERY * 5 <= resumed <= before + 3 * EVERY
    for name in HOSTS:
        world.manager.wait_worker(f"train-{name}", "exited", 120)
    print(f"finished {time.monotonic() - began:.1f} s after the deployment began")
    (view,) = [one for one in world.manager.get("/api/groups")["groups"] if one["group"] == "train"]
    assert view["phase"] == "finished"
    said = [world.manager.log_text(f"train-{name}") for name in HOSTS]
    ends = [re.findall(rf"finished at step {STEPS}, weights ([0-9.]+)", one) for one in said]
    assert ends[0] == ends[1] == ends[2] and len(ends[0]) == 1, ends
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", world.manager.log_text("train-node1"))]
    assert losses[-1] < losses[0] / 3, losses


def wait_or_report(world: World, predicate: Callable[[], int], timeout_s: float, what: str) -> int:
    """As wait_until; a failure shows the output of the job and its gang."""
    try:
        return wait_until(predicate, timeout_s, what, every_s=0.2)
    except AssertionError as exc:
        said = "\n".join(f"{name}: {world.manager.log_text(f'train-{name}')[-1500:]}" for name in HOSTS)
        raise AssertionError(f"{exc}\n{world.manager.get('/api/groups')}\n{said}") from None


def step_of(world: World) -> int:
    """The last step that rank 0 has recorded."""
    found = re.findall(r"^.*step (\d+) loss", world.manager.log_text("train-node1"), re.MULTILINE)
    return int(found[-1]) if found else 0


def began_at(world: World) -> int:
    """The step from which rank 0 resumed, 0 before that."""
    found = re.findall(r"begins at step (\d+)", world.manager.log_text("train-node1"))
    return int(found[-1]) if found else 0


@pytest.mark.fleet
@pytest.mark.torch
@pytest.mark.timeout(300)
def test_torchrun_takes_everything_it_needs_from_the_environment(world: World, python: str) -> None:
    """Two hosts with two processes each: a world of four, without a single argument to torchrun."""
    torchrun = str(Path(python).parent / "torchrun")
    command = f"{torchrun} train.py --steps 20 --every 10 --checkpoint torchrun.pt --timeout 120"
    spec = {"command": command, "working_dir": PLACE, "lease_s": LEASE_S, "stop_grace_s": 5.0}
    policy = {"restart": "gang", "rendezvous": "torch", "nproc_per_node": 2}
    declare(world, "run", policy, dict.fromkeys(HOSTS[:2], spec))
    for name in HOSTS[:2]:
        world.manager.wait_worker(f"run-{name}", "exited", 120)
    said = "".join(world.manager.log_text(f"run-{name}") for name in HOSTS[:2])
    assert sorted(re.findall(r"rank (\d) of 4", said)) == ["0", "1", "2", "3"]
    assert len(set(re.findall(r"weights ([0-9.]+)", said))) == 1


def test_the_example_s_inventory_loads_and_forms_one_gang() -> None:
    found = inventory.load(EXAMPLE / "inventory.yaml")
    assert list(found.hosts) == ["gpu01", "gpu02", "gpu03"]
    for host in found.hosts.values():
        assert host.policies["trainers"].restart == "gang"
        assert host.warnings == ()
        assert [worker.spec["group"] for worker in host.workers] == ["trainers"]
