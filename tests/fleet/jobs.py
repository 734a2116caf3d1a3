"""The jobs of these tests' workers, and the inventories that declare them.

Each job notes its own starts (pid, monotonic ns, attempt) on the host: all hosts share one kernel and so one clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.processes import HostProcess
from tests.waiting import wait_until

JOB_PATH = "/opt/jobs/count.py"
COUNT = """
import os, sys, time

name = sys.argv[1]
with open(f"/var/tmp/{name}.starts", "a") as starts:
    starts.write(f"{os.getpid()} {time.monotonic_ns()} {os.environ.get('PROCGUARD_ATTEMPT')}\\n")
number = 0
while True:
    print(f"{name} line {number}", flush=True)
    number += 1
    time.sleep(0.01)
"""


def plant(fleet: Fleet) -> None:
    """Put the job on every host."""
    for host in fleet.hosts:
        path = host.path(JOB_PATH)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)
        path.write_text(COUNT)


def counting(worker_id: str, **spec: Any) -> dict[str, Any]:
    """A worker that prints numbered lines, as an inventory declares it."""
    return {"worker_id": worker_id, "command": f"python3 {JOB_PATH} {worker_id}", **spec}


def children(host: FleetHost, worker_id: str) -> list[HostProcess]:
    """The living children of a worker on this host; exactly one is expected."""
    return [one for one in host.processes(JOB_PATH) if one.command == f"python3 {JOB_PATH} {worker_id}"]


def only_child(host: FleetHost, worker_id: str, timeout_s: float = 10) -> HostProcess:
    def found() -> HostProcess | None:
        now = children(host, worker_id)
        assert len(now) <= 1, f"{worker_id} runs more than once on {host.name}: {now}"
        return now[0] if now else None

    process = wait_until(found, timeout_s, f"child of {worker_id} on {host.name}")
    assert process is not None
    return process


def agents(host: FleetHost) -> list[HostProcess]:
    return [one for one in host.processes("remote_agent") if " run " in f"{one.command} "]


def starts(host: FleetHost, worker_id: str) -> list[tuple[int, int, int]]:
    """(pid on the host, monotonic ns, attempt) of every start so far."""
    path = host.path(f"/var/tmp/{worker_id}.starts")
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(int(word) for word in line.split()) for line in lines]  # type: ignore[misc]


def numbers(text: str, worker_id: str) -> list[int]:
    """The numbers of the lines a counting worker printed, in the order in which they stand in `text`."""
    return [int(found) for found in re.findall(rf"^.*{re.escape(worker_id)} line (\d+)$", text, re.MULTILINE)]


def write_inventory(path: Path, hosts: dict[str, dict[str, Any]], everywhere: dict[str, Any] | None = None) -> Path:
    """An Ansible inventory in YAML: host name -> its variables; `everywhere`: those of all hosts."""
    content = {"hosts": hosts} | ({"vars": everywhere} if everywhere else {})
    path.write_text(yaml.safe_dump({"all": content}, sort_keys=False, allow_unicode=True))
    return path


def host_variables(host: FleetHost, workers: Iterable[dict[str, Any]], user: str = "root") -> dict[str, Any]:
    return {"ansible_host": host.address, "ansible_user": user, "procguard_workers": list(workers)}
