"""A gang of containers on three real hosts and a spare, beside one of plain workers: nothing of two epochs ever
runs at once, and what both take after a killed rank and a lost host. By hand.

Its ranks train a small model by DistributedDataParallel (gloo), which continues from a snapshot, if TORCH_PYTHON names
a Python with torch, as for test_torch_gang.py. By default they meet by sockets of their own, with the same variables:
MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos import ChaosReport
from tests.fleet import stamps
from tests.fleet.chaos_world import World
from tests.fleet.hosts import Fleet
from tests.fleet.processes import HostProcess
from tests.fleet.test_chaos_container import everything, prepare
from tests.unit.podman_host import IMAGE, require_long_form, shell_image
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

TORCH = os.environ.get("TORCH_PYTHON", "")
PYTHON = TORCH or "/usr/bin/python3"
LEASE_S, GRACE_S = (15.0, 2.0) if TORCH else (6.0, 1.0)
HOSTS = ("node1", "node2", "node3")
GANGS = ("plain", "boxes")
JOB_PATH = "/opt/jobs/rank.py"
# Every step needs all ranks, and each notes when it took part in one.
JOB = """
import os, socket, sys, time

worker, env = sys.argv[1], os.environ
rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
head = "%s %s %s %d " % (worker, env["PROCGUARD_EPOCH"], env["PROCGUARD_ATTEMPT"], os.getpid())
file = os.open("/var/tmp/stamps/" + worker, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

def stamp():
    os.write(file, b"%s%d\\n" % (head.encode(), time.monotonic_ns()))

stamp()
if sys.argv[2] == "torch":
    from datetime import timedelta
    import torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    snapshot = "/var/tmp/stamps/" + worker + ".snapshot"
    net = torch.nn.Linear(20, 1)
    done = torch.zeros(1, dtype=torch.int64)
    if rank == 0 and os.path.exists(snapshot):
        found = torch.load(snapshot, weights_only=True)
        net.load_state_dict(found["net"])
        done[0] = found["step"]
    dist.broadcast(done, src=0)
    began = int(done)
    print("rank %d of %d: trains from step %d" % (rank, world, began), flush=True)
    net = DistributedDataParallel(net)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01)
    def step():
        done.add_(1)
        batch = torch.randn(32, 20, generator=torch.Generator().manual_seed(int(done) * world + rank))
        loss = torch.nn.functional.mse_loss(net(batch), batch.sum(1, keepdim=True))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        if rank == 0 and int(done) % 10 == 0:
            torch.save({"step": int(done), "net": net.module.state_dict()}, snapshot + ".new")
            os.replace(snapshot + ".new", snapshot)
        ranks = torch.ones(1)
        dist.all_reduce(ranks)
        return int(ranks)
elif rank == 0:
    listener = socket.create_server(("", int(env["MASTER_PORT"])))
    peers = [listener.accept()[0] for _ in range(world - 1)]
    def step():
        total = 1 + sum(len(peer.recv(1)) for peer in peers)
        for peer in peers:
            peer.sendall(bytes([total]))
        return total
else:
    peer = None
    while peer is None:
        try:
            peer = socket.create_connection((env["MASTER_ADDR"], int(env["MASTER_PORT"])), 5)
        except OSError:
            time.sleep(0.05)
    def step():
        peer.sendall(b"1")
        return ord(peer.recv(1))
number = 0
while True:
    assert step() == world
    stamp()
    if number % 20 == 0:
        print("rank %d of %d: step %d together" % (rank, world, number), flush=True)
    number += 1
    time.sleep(0.02)
"""
MOUNTS = [f"{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64", "/opt")] + ["/var/tmp/stamps:/var/tmp/stamps"]


def members(gang: str) -> list[str]:
    return [f"{gang}-{number}" for number in range(len(HOSTS))]


def declared(gang: str, worker_id: str) -> dict[str, Any]:
    command = [PYTHON, JOB_PATH, worker_id, "torch" if TORCH else "sockets"]
    box = {"container": {"image": IMAGE, "pull": "never", "mounts": MOUNTS}} if gang == "boxes" else {}
    return {
        "worker_id": worker_id, "command": command, "group": gang, "lease_s": LEASE_S, "stop_grace_s": GRACE_S, **box,
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_long_form(request.config)
    directory = tmp_path_factory.mktemp("boxes")
    image = shell_image(directory / "image")

    def ready(fleet: Fleet) -> None:
        prepare(fleet)
        for host in fleet.hosts:
            host.path(JOB_PATH).parent.mkdir(parents=True, exist_ok=True)
            host.path(JOB_PATH).write_text(JOB)
            host.path("/opt/image.tar").write_bytes(image)

    with World(directory, hosts=4, settings=["recovery.task_reassignment=true"], prepare=ready) as one:
        for host in one.fleet.hosts:
            host.run(
                f"mkdir -p /var/tmp/stamps && podman import /opt/image.tar {IMAGE} && rm /opt/image.tar", timeout_s=60
            )
        # Without a pause: after the second and third restart in a row it would be most of what is measured, 5 and 30 s.
        policy = {"restart": "gang", "rendezvous": "torch", "max_attempts": 1000, "backoff_s": [0.0]}
        groups = dict.fromkeys(GANGS, policy)
        more: dict[str, dict[str, Any]] = {host.name: {"procguard_groups": groups} for host in one.fleet.hosts}
        more["node4"]["procguard_spare"] = True
        workers = {host: [declared(gang, members(gang)[number]) for gang in GANGS] for number, host in enumerate(HOSTS)}
        one.deploy({**workers, "node4": []}, more)
        yield one


def view(world: World, gang: str) -> dict[str, Any]:
    return next(one for one in world.manager.get("/api/groups")["groups"] if one["group"] == gang)


def together(world: World, gang: str, above_epoch: int) -> int:
    """The epoch under which all its ranks took a step together, later than this one."""

    def arrived() -> int:
        now = view(world, gang)
        epoch = int(now["epoch"])
        well = epoch > above_epoch and all(one["state"] == "running" for one in now["members"])
        return epoch if well and all(len(ns) > 1 for ns in steps_of(world, gang, epoch).values()) else 0

    try:
        return wait_until(arrived, 120, f"all ranks of {gang} together", every_s=0.05)
    except AssertionError as exc:
        said = {one: world.manager.log_text(one)[-500:] for one in members(gang)}
        raise AssertionError(f"{exc}; {view(world, gang)}; {said}") from None


def steps_of(world: World, gang: str, epoch: int) -> dict[str, list[int]]:
    """Per member: when it took part in steps of this epoch. The first stamp of each is its begin."""
    found: dict[str, list[int]] = {one: [] for one in members(gang)}
    for one in world.stamps(*members(gang)):
        if one.epoch == epoch:
            found[one.worker].append(one.ns)
    return found


def rank(world: World, worker_id: str) -> HostProcess:
    host = world.host(str(world.manager.worker(worker_id)["host"]))
    (found,) = [one for one in everything(host) if one.command.startswith(f"{PYTHON} {JOB_PATH} {worker_id} ")]
    return found


@pytest.mark.chaos(33)
@pytest.mark.timeout(900)
def test_a_gang_of_containers_restarts_as_one_and_never_in_two_epochs(world: World, chaos_report: ChaosReport) -> None:
    epochs = {gang: together(world, gang, 0) for gang in GANGS}
    took: dict[str, list[float]] = {gang: [] for gang in GANGS}
    for number in chaos_report.rounds(short=1, long=5):
        for gang in GANGS:
            victim = members(gang)[number % len(HOSTS)]
            began = time.monotonic()
            world.host(str(world.manager.worker(victim)["host"])).kill(rank(world, victim))
            epochs[gang] = together(world, gang, epochs[gang])
            took[gang].append(time.monotonic() - began)
    lost = world.host("node2")
    began = time.monotonic()
    lost.power_cut()
    moved = {}
    for gang in GANGS:
        epochs[gang] = together(world, gang, epochs[gang])
        # Both wait for the end of the same lease: the clock of stamps says when the ranks met again.
        met_ns = max(ns[1] for ns in steps_of(world, gang, epochs[gang]).values())
        moved[gang] = met_ns / 1e9 - began
        assert world.manager.worker(members(gang)[1])["host"] == "node4"
    for gang in GANGS if TORCH else ():
        said_begins = "".join(world.manager.log_text(one) for one in members(gang))
        begins = [int(step) for step in re.findall(r"rank 0 of 3: trains from step (\d+)", said_begins)]
        assert len(begins) >= 3 and begins[0] == 0 and begins == sorted(begins) and begins[-1] > 0, begins
    lost.power_on()
    world.wait_connected("node2")
    left = [one.command for one in everything(lost) if JOB_PATH in one.command]
    assert left == []
    for gang in GANGS:
        world.manager.command(members(gang)[0], "stop")
        for one in members(gang):
            world.manager.wait_worker(one, "stopped", 40)
    for host in world.fleet.hosts:
        assert host.run("podman ps --quiet").stdout == ""
    for gang in GANGS:
        found = stamps.instances(world.stamps(*members(gang)))
        assert (stamps.mixed_epochs_ms(found), stamps.overlap_ms(found)) == (0, 0), found
    said = [
        f"{gang}: all ranks met again {sorted(took[gang])[len(took[gang]) // 2]:.1f} s after a killed rank (median of "
        f"{', '.join(f'{one:.1f}' for one in took[gang])}), "
        f"{moved[gang]:.1f} s after a lost host, on the spare"
        for gang in GANGS
    ]
    chaos_report(measured=f"{'torch' if TORCH else 'sockets'}; {'; '.join(said)}; mixed epochs 0 ms, overlap 0 ms")
    print("\n" + "\n".join(said))
