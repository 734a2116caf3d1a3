"""Workers in containers of a real podman on a real host: whatever is killed, at most one of each exists."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.processes import HostProcess, read_process
from tests.unit.podman_host import IMAGE, shell_image, usable
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

# The stamping job for a shell: /proc/uptime is the kernel's monotonic time, to 10 ms. Each instance is a pid 1.
STAMP = """
trap 'exit 0' TERM
number=0
while :; do
    read now _ < /proc/uptime
    echo "$1 $PROCGUARD_EPOCH $PROCGUARD_ATTEMPT $$ ${now%.*}${now#*.}0000000" >> /var/tmp/stamps/$1
    echo "$1 line $number"
    number=$((number + 1))
    sleep 0.02
done
"""
LEASE_S = 15.0  # longer than the host is away: what is tried is the end of its runner
WORKERS = ("box", "escapes", "fenced")
ESCAPING = "setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &\n"
CONF = {
    "storage.conf": '[storage]\ndriver = "vfs"\ngraphroot = "/var/lib/boxes"\nrunroot = "/run/boxes"\n',
    "containers.conf": '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
    '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n',
}


def prepare(fleet: Fleet) -> None:
    """podman as root, with the control groups that a real machine has."""
    for host in fleet.hosts:
        groups = Path("/sys/fs/cgroup")
        host.mount(groups, str(groups))
        for one in groups.iterdir():
            if one.is_mount():
                host.mount(one, str(one))
        for name, text in CONF.items():
            host.path(f"/etc/containers/{name}").parent.mkdir(parents=True, exist_ok=True)
            host.path(f"/etc/containers/{name}").write_text(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not usable():
        pytest.skip("needs podman, conmon and runc")
    directory = tmp_path_factory.mktemp("container")
    with World(directory, hosts=1, prepare=prepare) as one:
        host = one.fleet[0]
        host.path("/opt/image.tar").write_bytes(shell_image(directory / "image"))
        host.run(f"podman import /opt/image.tar {IMAGE} && rm /opt/image.tar", timeout_s=60)
        host.run("mkdir -p /var/tmp/stamps")
        escapes = boxed("escapes", ESCAPING + STAMP, stop_grace_s=1.0)
        fenced = boxed("fenced", ESCAPING + STAMP, stop_grace_s=1.0, on_partition="fence", lease_s=LEASE_S)
        one.deploy({"node1": [boxed("box", STAMP), escapes, fenced]})
        yield one


def boxed(worker_id: str, script: str, **spec: object) -> dict[str, object]:
    container = {"image": IMAGE, "pull": "never", "network": "none", "mounts": ["/var/tmp/stamps:/var/tmp/stamps"]}
    restart = {"max_attempts": 1000, "backoff_s": [0.0], "start_secs": 0.2}
    command = ["/bin/sh", "-c", script, "sh", worker_id]
    return {"worker_id": worker_id, "command": command, "container": container, "restart": restart, **spec}


def everything(host: FleetHost) -> Iterator[HostProcess]:
    """Its processes, those in pid namespaces below its own too."""
    for one in psutil.Process(host.init_pid).children(recursive=True):
        with contextlib.suppress(OSError, ValueError, LookupError):
            found = read_process(one.pid)
            if found is not None:
                yield found


def processes(host: FleetHost, worker_id: str) -> dict[str, HostProcess]:
    """The worker's processes to kill: its job, its conmon, its runner."""
    found = {}
    for one in everything(host):
        program = one.command.partition(" ")[0]
        if program == "/bin/sh" and one.command.rstrip().endswith(f"sh {worker_id}"):
            found["job"] = one
        elif program.endswith("conmon") and f"-{worker_id}-" in one.command:
            found["conmon"] = one
        elif "runner/__main__.py" in one.command and f"/workers/{worker_id}-" in one.command:
            found["runner"] = one
    return found


def kill(world: World, what: str) -> None:
    host = world.fleet[0]
    if what == "host":
        host.power_cut()
        host.power_on()
        return
    if what == "agent":
        for one in jobs.agents(host):
            host.kill(one)
        return
    for worker_id in WORKERS:
        parts = what.split(" and ")
        there = wait_until(lambda: having(parts, processes(host, worker_id)), 20, f"{what} of {worker_id}")  # noqa: B023
        for part in parts:
            host.kill(there[part])


def having(parts: list[str], found: dict[str, HostProcess]) -> dict[str, HostProcess] | None:
    return found if set(parts) <= found.keys() else None


def test_a_deployment_and_doctor_say_which_podman_there_is(world: World) -> None:
    inventory = str(world.directory / "chaos.yaml")
    checked = world.operator.invoke("deploy", "--check", "--hosts", inventory)
    version = world.fleet[0].run("podman --version").stdout.split()[-1]
    assert f"podman {version}, for box, escapes, fenced" in checked.stdout + checked.stderr
    examined = world.operator.invoke("doctor", "node1", "--hosts", inventory)
    assert f"version {version}, for box, escapes, fenced" in examined.stdout, examined.stdout
    valid = world.operator.invoke("validate", "--hosts", inventory)
    assert "workers in containers need podman on node1" in valid.stderr


@pytest.mark.chaos(33)
def test_whatever_is_killed_no_worker_has_two_containers(world: World, chaos_report: ChaosReport) -> None:
    host, kills = world.fleet[0], 0
    for _round in chaos_report.rounds(short=1, long=10):
        for what in ("agent", "runner", "job", "conmon", "agent", "runner and job", "host"):
            before = {one: world.settled(one, 60)["attempt"] for one in WORKERS}
            kill(world, what)
            kills += 1
            for worker_id, attempt in before.items():
                if what not in ("agent", "conmon"):  # then its job continues
                    wait_until(lambda: world.manager.worker(worker_id)["attempt"] > attempt, 60, f"again after {what}")  # noqa: B023
                assert world.settled(worker_id, 60)["attempt"] == attempt + (what not in ("agent", "conmon"))
    for worker_id in WORKERS:
        world.manager.command(worker_id, "stop")
        world.manager.wait_worker(worker_id, "stopped", 40)
        assert processes(host, worker_id).keys() <= {"runner"}
    left = [one for one in everything(host) if "sleep 0.1" in one.command or "conmon" in one.command]
    assert left == []
    assert host.run("podman ps --all --quiet").stdout == ""
    found = stamps.instances(world.stamps(*WORKERS))
    overlap_ms = stamps.overlap_ms(found)
    assert overlap_ms == 0, found
    chaos_report(measured=f"{kills} kills and power cuts, {len(found)} instances: overlap {overlap_ms:.0f} ms, 0 left")
