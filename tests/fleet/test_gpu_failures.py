"""GPU failures of a gang and of a single worker, on real hosts with real agents. Driver and kernel log are fakes: a
nvidia-smi that names two GPUs, and a FIFO in place of /dev/kmsg with lines as the kernel writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet import stamps
from tests.fleet.chaos_world import World
from tests.fleet.hosts import FleetHost
from tests.waiting import wait_until

pytestmark = [pytest.mark.fleet]

SPEC: dict[str, Any] = {"gpus": 1, "lease_s": 6.0, "stop_grace_s": 1.0}
GROUP: dict[str, Any] = {"trainers": {"restart": "gang", "rendezvous": "torch", "max_attempts": 10}}
MEMBERS = ("rank-0", "rank-1")
NVIDIA_SMI = """#!/bin/sh
case "$1" in
--query-gpu=*pci.bus_id*)
    echo "0, 00000000:3B:00.0, 0, No, No, 0x0"
    echo "1, 00000000:3C:00.0, 0, No, No, 0x0" ;;
--query-gpu=*)
    echo "0, GPU-$(hostname)-a, Fake GPU, 0, 0, 81920, 60, 700, 40"
    echo "1, GPU-$(hostname)-b, Fake GPU, 0, 0, 81920, 60, 700, 40" ;;
esac
"""
LOST = "3,1001,{us},-;NVRM: Xid (PCI:0000:3{bus}:00): 79, pid=1, name=python, GPU has fallen off the bus."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("gpus"), hosts=5, settings=["recovery.gpu_failures=move"]) as one:
        for host in one.fleet.hosts:
            host.run("mkfifo /dev/kmsg")
            smi = host.path("/usr/local/bin/nvidia-smi")
            smi.write_text(NVIDIA_SMI)
            smi.chmod(0o755)
        workers = {
            "node1": [stamps.stamping("rank-0", group="trainers", **SPEC)],
            "node2": [stamps.stamping("rank-1", group="trainers", **SPEC)],
            "node3": [stamps.stamping("alone", **SPEC)],
            "node4": [],
            "node5": [],
        }
        more: dict[str, dict[str, Any]] = {host.name: {"procguard_groups": GROUP} for host in one.fleet.hosts}
        for name in ("node4", "node5"):
            more[name]["procguard_spare"] = 1
        one.deploy(workers, more)
        yield one


def fails(host: FleetHost, index: int, seconds_after_boot: int = 5) -> None:
    line = LOST.format(us=seconds_after_boot * 10**6, bus="bc"[index])
    host.run(f"echo '{line}' > /dev/kmsg", timeout_s=30)


def gpus_of(world: World, worker_id: str) -> str:
    """CUDA_VISIBLE_DEVICES of its process."""
    child = stamps.only_child(world.host(world.manager.worker(worker_id)["host"]), worker_id)
    with open(f"/proc/{child.outer_pid}/environ", "rb") as file:
        pairs = dict(pair.partition(b"=")[::2] for pair in file.read().split(b"\0") if pair)
    return pairs.get(b"CUDA_VISIBLE_DEVICES", b"none").decode()


def gpu(world: World, host: str, index: int) -> dict[str, Any]:
    found = [one for one in world.manager.get("/api/gpus")["gpus"] if (one["host"], one["index"]) == (host, index)]
    return dict(found[0]) if found else {}


def on(world: World, host: str, worker_id: str) -> bool:
    view = world.manager.worker(worker_id)
    return (view.get("host"), view.get("state")) == (host, "running")


def off_gpu(world: World, worker_id: str, host: str, epoch: int) -> bool:
    """Whether it has left the host, or runs there on GPU 1 since a later launch than `epoch`."""
    view = world.manager.worker(worker_id)
    return view["host"] != host or (view["epoch"] > epoch and gpu(world, host, 1).get("workers") == [worker_id])


def post(world: World, path: str, body: dict[str, Any]) -> None:
    status, said = world.manager.request("POST", path, body)
    assert status in (200, 202), said


def kinds(world: World) -> list[tuple[str, str, str]]:
    return [(one["kind"], one["host"], one["reason"]) for one in world.events()]


def test_a_fatal_fault_cordons_the_gpu_and_its_gang_goes_on_with_a_spare(world: World) -> None:
    (before,) = {world.manager.worker(name)["epoch"] for name in MEMBERS}
    wait_until(lambda: gpu(world, "node2", 0).get("workers") == ["rank-1"], 30, "the GPU's owner is known")
    fails(world.host("node2"), 0)
    wait_until(lambda: world.manager.worker("rank-1")["host"] in ("node4", "node5"), 60, "rank-1 on a spare")
    for name in MEMBERS:
        world.settled(name)
    (after,) = {world.manager.worker(name)["epoch"] for name in MEMBERS}
    assert after > before and world.manager.worker("rank-0")["host"] == "node1"
    found = stamps.instances(world.stamps(*MEMBERS))
    assert (stamps.mixed_epochs_ms(found), stamps.overlap_ms(found)) == (0.0, 0.0), found
    gang = next(one for one in world.manager.get("/api/groups")["groups"] if one["group"] == "trainers")
    assert gang["attempts"] == 0, "what its host broke is not counted against the gang"
    fault = "GPU 0: Xid 79, the GPU has fallen off the bus"
    assert {("gpu_failed", "node2", fault), ("gpu_cordoned", "node2", fault)} <= set(kinds(world))
    view = gpu(world, "node2", 0)
    assert view["state"] == "failed" and view["cordoned"]["reason"] == fault
    assert gpu(world, "node2", 1)["state"] == "free"


def test_a_gang_whose_member_dies_of_the_fault_goes_on_elsewhere(world: World) -> None:
    """Its end is known before the fault is: the gang is restarting when its member has to move. If it no longer holds
    the GPU by then, it may also be started with the other GPU of its host."""
    before = {name: world.settled(name)["epoch"] for name in MEMBERS}
    host = world.host(world.manager.worker("rank-1")["host"])
    wait_until(lambda: gpu(world, host.name, 0).get("workers") == ["rank-1"], 30, "the GPU's owner is known")
    host.kill(stamps.only_child(host, "rank-1"))
    fails(host, 0)
    wait_until(lambda: off_gpu(world, "rank-1", host.name, before["rank-1"]), 60, "rank-1 elsewhere")
    wait_until(lambda: all(world.settled(one)["epoch"] > before[one] for one in MEMBERS), 60, "the gang restarted")
    assert len({world.manager.worker(name)["epoch"] for name in MEMBERS}) == 1
    found = stamps.instances(world.stamps(*MEMBERS))
    assert (stamps.mixed_epochs_ms(found), stamps.overlap_ms(found)) == (0.0, 0.0), found


def test_a_single_worker_moves_and_its_host_never_gives_the_gpu_again(world: World) -> None:
    wait_until(lambda: gpu(world, "node3", 0).get("workers") == ["alone"], 30, "the GPU's owner is known")
    assert gpus_of(world, "alone") == "0"
    fails(world.host("node3"), 0)
    wait_until(lambda: on(world, "node4", "alone") or on(world, "node5", "alone"), 60, "moved to a spare")
    post(world, "/api/workers/alone/move", {"host": "node3"})
    wait_until(lambda: on(world, "node3", "alone"), 60, "back home, where one GPU is left")
    assert gpus_of(world, "alone") == "1"
    post(world, "/api/hosts/node3/uncordon", {"gpu": 0})
    wait_until(lambda: gpu(world, "node3", 0)["cordoned"] is None, 10, "uncordoned")
    world.manager.command("alone", "stop")
    world.manager.wait_worker("alone", "stopped")
    world.manager.command("alone", "start")
    world.settled("alone")
    assert gpus_of(world, "alone") == "0"


def test_a_worker_keeps_a_gpu_that_an_operator_cordons_until_it_is_stopped(world: World) -> None:
    world.settled("alone")
    child = stamps.only_child(world.host("node3"), "alone")
    post(world, "/api/hosts/node3/cordon", {"gpu": 0, "reason": "a loud fan"})
    wait_until(lambda: gpu(world, "node3", 0)["cordoned"] is not None, 10, "cordoned")
    view = gpu(world, "node3", 0)
    assert (view["state"], view["workers"], view["cordoned"]["reason"]) == ("failed", ["alone"], "a loud fan")
    world.stays(child.is_alive, 2)
    world.manager.command("alone", "stop")
    world.manager.wait_worker("alone", "stopped")
    world.manager.command("alone", "start")
    world.settled("alone")
    assert gpus_of(world, "alone") == "1"
