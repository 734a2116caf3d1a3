"""Real programs in containers on a real host, killed in every way: at most one container of each, logs whole. By hand.

nginx, redis and gunicorn are tried where CONTAINER_PROGRAMS names a directory below /opt with their Debian packages
extracted (docs/reliability.md). The others need nothing: a loader whose workers are made by fork and by spawn (torch's
DataLoader where TORCH_PYTHON names a Python with torch), a job that ignores SIGTERM, and one that leaves processes in
sessions of their own. nginx and redis run from an image that
holds nothing else; what needs Python sees this machine's.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.processes import HostProcess
from tests.fleet.test_chaos_container import everything, prepare
from tests.unit.podman_host import IMAGE, require_long_form, shell_image
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

PROGRAMS = os.environ.get("CONTAINER_PROGRAMS", "")
TORCH = os.environ.get("TORCH_PYTHON", "")
PYTHON = TORCH or "/usr/bin/python3"
SERVERS_IMAGE = "localhost/servers:1"
STAMPED = """
(trap '' TERM; while :; do
    read now _ < /proc/uptime
    echo "$0 $PROCGUARD_EPOCH $PROCGUARD_ATTEMPT 1 ${now%.*}${now#*.}0000000" >> /var/tmp/stamps/$0
    sleep 0.02
done) &
exec "$@"
"""
NGINX = """
daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log stderr;
events {}
http { access_log off; server { listen 127.0.0.1:8081; location / { return 200 "nginx\\n"; } } }
"""
LOADER = """
import multiprocessing, sys, time

def work(tasks, results):
    for task in iter(tasks.get, None):
        results.put(task * task)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    tasks, results = context.Queue(), context.Queue()
    for _ in range(3):
        context.Process(target=work, args=(tasks, results), daemon=True).start()
    for number in range(10**9):
        tasks.put(number)
        results.get()
        print("batch", number, flush=True)
        time.sleep(0.005)
"""
DATALOADER = """
import sys, time
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 10**9

    def __getitem__(self, at):
        return at * at

if __name__ == "__main__":
    loader = DataLoader(Squares(), batch_size=4, num_workers=3, multiprocessing_context=sys.argv[1])
    for number, _batch in enumerate(loader):
        print("batch", number, flush=True)
        time.sleep(0.005)
"""
APP = "def app(environ, start):\n    start('200 OK', [])\n    return [b'gunicorn\\n']\n"
DEAF = "trap '' TERM; number=0; while :; do echo batch $number; number=$((number + 1)); sleep 0.02; done"
STAYS = "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &"
LEAVES = f"setsid {STAYS}\n({STAYS})\n"
HOST_FILES = [f"{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64", "/opt")]
FETCH = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:{}/', timeout=2).read())"
ASKED = {
    "nginx": FETCH.format(8081),
    "gunicorn": FETCH.format(8082),
    "redis": "import socket; s=socket.create_connection(('127.0.0.1',8083),2); "
    "s.sendall(b'PING\\r\\n'); print(s.recv(9))",
}
ANSWERS = {"nginx": "nginx", "gunicorn": "gunicorn", "redis": "PONG"}


def boxed(
    worker_id: str, command: list[str], image: str = IMAGE, files: list[str] | None = None, **spec: Any
) -> dict[str, Any]:
    mounts = ["/var/tmp/stamps:/var/tmp/stamps", "/opt/jobs:/opt/jobs:ro", *(files or [])]
    restart = {"max_attempts": 1000, "backoff_s": [0.0], "start_secs": 0.2}
    container = {"image": image, "pull": "never", "mounts": mounts}
    command = ["/bin/sh", "-c", STAMPED, worker_id, *command]
    return {
        "worker_id": worker_id,
        "command": command,
        "container": container,
        "restart": restart,
        "stop_grace_s": 2.0,
    } | spec


def workers() -> list[dict[str, Any]]:
    found = [
        boxed("fork", [PYTHON, "/opt/jobs/loader.py", "fork"], files=HOST_FILES),
        boxed("spawn", [PYTHON, "/opt/jobs/loader.py", "spawn"], files=HOST_FILES),
        boxed("deaf", ["/bin/sh", "-c", DEAF]),
        boxed("leaves", ["/bin/sh", "-c", LEAVES + DEAF], on_partition="fence", lease_s=60.0),
    ]
    if PROGRAMS:
        gunicorn = [
            "/usr/bin/python3",
            "-m",
            "gunicorn",
            "-b",
            "127.0.0.1:8082",
            "--worker-tmp-dir",
            "/dev/shm",
            "app:app",
        ]
        env = {"PYTHONPATH": f"{PROGRAMS}/usr/lib/python3/dist-packages:/opt/jobs"}
        found += [
            boxed("nginx", ["/usr/sbin/nginx", "-e", "stderr", "-c", "/opt/jobs/nginx.conf"], SERVERS_IMAGE),
            boxed("redis", ["/usr/bin/redis-server", "--port", "8083", "--save", ""], SERVERS_IMAGE),
            boxed("gunicorn", gunicorn, files=HOST_FILES, env=env),
        ]
    return found


def servers_image(root: Path) -> bytes:
    """A shell, nginx and redis of their packages, and the libraries that these need."""
    shell_image(root)
    libraries = f"{PROGRAMS}/usr/lib/x86_64-linux-gnu"
    for program in ("usr/sbin/nginx", "usr/bin/redis-server"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{PROGRAMS}/{program}", root / program)
        listed = subprocess.run(
            ["ldd", f"{PROGRAMS}/{program}"], env={**os.environ, "LD_LIBRARY_PATH": libraries}, capture_output=True,
            text=True, check=True,
        ).stdout  # fmt: skip
        for word in listed.split():
            if word.startswith("/"):
                target = root / word.removeprefix(PROGRAMS).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, target)
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    for folder in ("var/lib/nginx/body", "var/log/nginx"):
        (root / folder).mkdir(parents=True)
    return subprocess.run(["tar", "-C", str(root), "-c", "."], capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_long_form(request.config)
    directory = tmp_path_factory.mktemp("programs")
    images = {IMAGE: shell_image(directory / "image")}
    if PROGRAMS:
        images[SERVERS_IMAGE] = servers_image(directory / "servers")

    def ready(fleet: Fleet) -> None:
        prepare(fleet)
        place = fleet[0].path("/opt/jobs")
        place.mkdir(parents=True, exist_ok=True)
        for name, text in (("loader.py", DATALOADER if TORCH else LOADER), ("nginx.conf", NGINX), ("app.py", APP)):
            (place / name).write_text(text)
        for number, data in enumerate(images.values()):
            (place / f"image-{number}.tar").write_bytes(data)

    with World(directory, hosts=1, prepare=ready) as one:
        for number, image in enumerate(images):
            one.fleet[0].run(f"podman import /opt/jobs/image-{number}.tar {image}", timeout_s=60)
        one.fleet[0].run("mkdir -p /var/tmp/stamps")
        one.deploy({"node1": workers()})
        yield one


def parts(host: FleetHost, worker_id: str) -> dict[str, HostProcess]:
    """Its runner, its conmon where it lives, and the first process of its container."""
    each = list(everything(host))
    found = {}
    for one in each:
        if "runner/__main__.py" in one.command and f"/workers/{worker_id}-" in one.command:
            found["runner"] = one
        elif one.command.startswith("/usr/bin/conmon") and f"-{worker_id}-" in one.command:
            found["conmon"] = one
    keepers = {one.outer_pid for one in found.values()}
    for one in each:
        if one.parent_outer_pid in keepers and not one.command.startswith(
            ("/usr/bin/conmon", "podman", "/usr/bin/podman", "procguard-fence")
        ):
            found["job"] = one
    return found


def answers(host: FleetHost, worker_id: str) -> None:
    if worker_id in ASKED:
        wait_until(
            lambda: ANSWERS[worker_id] in host.run(f'python3 -c "{ASKED[worker_id]}"', check=False).stdout,
            20,
            worker_id,
        )


def starting(host: FleetHost, worker_id: str) -> list[HostProcess]:
    each = everything(host)
    return [one for one in each if one.command.startswith("podman run") and f"-{worker_id}-" in one.command]


@pytest.mark.chaos(33)
@pytest.mark.timeout(3600)
def test_real_programs_killed_in_every_way_run_once_at_most(world: World, chaos_report: ChaosReport) -> None:
    host, kills = world.fleet[0], 0
    names = [one["worker_id"] for one in workers()]

    def settle() -> None:
        for name in names:
            world.settled(name, 90)
            answers(host, name)

    def each(what: str) -> None:
        nonlocal kills
        for name in names:
            there = parts(host, name)
            if what in there or what != "conmon":  # which may have been killed before while its job continues
                host.kill(there[what])
                kills += 1

    def agent() -> None:
        for one in jobs.agents(host):
            host.kill(one)

    def power() -> None:
        host.power_cut()
        host.power_on()

    def restart() -> None:
        for name in names:
            world.manager.command(name, "restart")

    def client() -> None:
        """podman itself, as it removes or starts a container after the job was killed."""
        nonlocal kills
        for name in names:
            there = parts(host, name)
            if "job" in there:
                host.kill(there["job"])
            found = wait_until(lambda: starting(host, name), 20, f"podman run of {name}", every_s=0.005)  # noqa: B023
            host.kill(found[0])
            kills += 1

    ways: list[Callable[[], None]] = [
        agent, lambda: each("runner"), lambda: each("job"), lambda: each("conmon"), restart, client, power,
    ]  # fmt: skip
    settle()
    for _round in chaos_report.rounds(short=1, long=3):
        for way in random.sample(ways, len(ways)):
            way()
            settle()
    logs = {name: attempt_logs(host, name) for name in ("fork", "spawn", "deaf", "leaves")}
    for name in names:
        world.manager.command(name, "stop")
    for name in names:
        world.manager.wait_worker(name, "stopped", 60)
    assert [one.command for one in everything(host) if one.pid == 1 and one.outer_pid != host.init_pid] == []
    assert host.run("podman ps --all --quiet").stdout == ""
    found = stamps.instances(world.stamps(*names))
    overlap_ms = stamps.overlap_ms(found)
    assert overlap_ms == 0, found
    lines = 0
    for name, each_log in logs.items():
        for text in each_log:
            numbers = [int(line.split()[1]) for line in text.splitlines()[:-1] if line.startswith("batch ")]
            assert numbers == list(range(len(numbers))), name
            lines += len(numbers)
    measured = (
        f"{', '.join(names)}: {kills} kills of single processes, {len(found)} instances, overlap {overlap_ms:.0f} ms, "
        f"0 left; {lines} lines in order"
    )
    chaos_report(measured=measured)
    print(f"\n{measured}")


def attempt_logs(host: FleetHost, worker_id: str) -> list[str]:
    """What each attempt wrote, as it stands on the host."""
    found = host.path("/root/.procguard").glob(f"*/{host.name}/workers/{worker_id}-*/attempts/*.log")
    return [path.read_text(errors="replace") for path in sorted(found)]
