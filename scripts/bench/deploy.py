"""invoke bench deploy: a complete verified deployment of real SSH hosts, compared with ssh alone for the same bytes.

The anchor in the same run is parallel `ssh` with tar over stdin, a link, a file, and two starts of Python on each host,
which any agent needs. ProcGuard's deployment ends only once every agent has sent a heartbeat after its SSH session
closed, and includes the start of the command line. Both modes are measured: `--no-wait`, and the default, which ends
once the workers have been up for their start_secs (1 s here; ssh does not wait). `--processor` shows which processes
use the processor, in separate rounds, because measuring it takes time. Ansible runs the shipped playbook with the same
number of forks and pipelining. Needs root (network namespaces).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from procguard.deploy.session import bundle
from scripts.bench import common, processor
from tests.fleet import jobs
from tests.fleet.hosts import Fleet, why_unavailable
from tests.fleet.manager import Manager, Operator

GOAL_FIRST, GOAL_AGAIN, GOAL_ANSIBLE = 2.0, 1.4, 12.0
FLOOR = (
    "rm -rf /root/floor; mkdir -p /root/floor/r && tar xz -C /root/floor/r && ln -sfn r /root/floor/current && "
    "echo '{}' > /root/floor/agent.json && python3 -c pass && python3 -c pass && "
    "(setsid sleep 5 >/dev/null 2>&1 </dev/null &)"
)


# Words of a command line -> kind of process; the first match is used.
KINDS = (
    (("sshd",), "sshd"),
    (("remote_agent/runner/__main__.py",), "runner"),
    (("remote_agent", "run", "--dir"), "agent"),
    (("sys.version_info",), "installer"),
    (("invoke",), "operator"),
    (("procguard.main",), "manager"),
    (("procguard.deploy.install.helper",), "helper"),
)


def kind_of(words: list[str]) -> str:
    line = " ".join(words)
    return next((kind for marks, kind in KINDS if all(mark in line for mark in marks)), "")


class Hosts:
    """The fleet, a manager, and an operator with an inventory of one worker per host."""

    def __init__(self, fleet: Fleet, manager: Manager, operator: Operator, folder: Path) -> None:
        self._fleet = fleet
        self._operator = operator
        self._ssh = [
            "ssh", "-q", "-i", str(fleet.private_key), "-o", f"UserKnownHostsFile={fleet.known_hosts}",
            "-o", "BatchMode=yes",
        ]  # fmt: skip
        variables = {
            host.name: jobs.host_variables(host, [{"worker_id": f"w-{host.name}", "command": "sleep 100000"}])
            | {
                "procguard_manager_url": f"http://{fleet.manager_address}:{manager.port}",
                "ansible_ssh_private_key_file": str(fleet.private_key),
                "ansible_ssh_common_args": f"-o UserKnownHostsFile={fleet.known_hosts}",
                "ansible_python_interpreter": "/usr/bin/python3",
            }
            for host in fleet.hosts
        }
        self.inventory = jobs.write_inventory(folder / "hosts.yaml", variables)

    def floor(self) -> float:
        """Seconds that parallel `ssh` takes to copy the same bytes and start a program on every host."""
        data = bundle.build().data
        began = time.monotonic()
        running = []
        for host in self._fleet.hosts:
            command = [*self._ssh, f"root@{host.address}", FLOOR]
            one = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            running.append(one)
        for one in running:
            assert one.stdin is not None
            one.stdin.write(data)
            one.stdin.close()
        failed = [one.args for one in running if one.wait(60) != 0]
        if failed:
            raise SystemExit(f"bench deploy: ssh failed on {len(failed)} hosts")
        return time.monotonic() - began

    def invoke(self, task: str, *options: str) -> float:
        began = time.monotonic()
        run = self._operator.invoke(task, "--hosts", str(self.inventory), "--forks", "32", *options, timeout_s=300)
        took = time.monotonic() - began
        if run.returncode != 0:
            raise SystemExit(f"bench deploy: invoke {task} failed\n{run.stdout[-3000:]}{run.stderr[-2000:]}")
        return took

    def spending(self, *options: str) -> dict[str, float]:
        """Processor seconds of a whole deployment, by kind of process."""
        with processor.Spending(kind_of) as spending:
            self.invoke("deploy", *options)
        spent = spending.by_kind()
        spent.pop("", None)  # processes that do not belong to this deployment
        return {kind: round(spent[kind], 2) for kind in sorted(spent, key=spent.__getitem__, reverse=True)}

    def ansible(self, folder: Path) -> float:
        environment = self._operator.environment | {
            "PROCGUARD_MANAGER_URL": self._operator.manager_url,
            "ANSIBLE_FORKS": str(len(self._fleet.hosts)),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_HOME": str(folder / "ansible"),
            "LC_ALL": "C.UTF-8",
        }
        playbook = os.path.join(common.ROOT, "playbooks", "deploy.yaml")
        command = [sys.executable, "-m", "ansible", "playbook", "-i", str(self.inventory), playbook]
        began = time.monotonic()
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=590, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"bench deploy: the playbook failed\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
        return time.monotonic() - began


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench deploy")
    parser.add_argument("--hosts", type=int, default=16, help="how many (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="of floor, deploy, deploy again, undeploy (default 3)")
    parser.add_argument("--no-ansible", action="store_true", help="leave the playbook out; it takes minutes")
    parser.add_argument("--processor", action="store_true", help="also which processes spend the processor")
    given = parser.parse_args(arguments)
    reason = why_unavailable()
    if reason:
        print(f"bench deploy: {reason}")
        return 1
    floors, firsts, agains, waits, wait_agains, playbook = [], [], [], [], [], None
    spent: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="pgb") as name, Fleet(given.hosts) as fleet:
        folder = Path(name)
        operator = Operator.with_keys(folder / "home", fleet.private_key, fleet.known_hosts)
        (folder / "manager").mkdir()
        with Manager(folder / "manager", operator.environment) as manager:
            operator.manager_url = manager.url
            hosts = Hosts(fleet, manager, operator, folder)
            hosts.floor()  # warm up: every program is read from disk once
            for number in range(given.rounds):
                floors.append(hosts.floor())
                firsts.append(hosts.invoke("deploy", "--no-wait"))
                agains.append(hosts.invoke("deploy", "--no-wait"))
                hosts.invoke("undeploy")
                waits.append(hosts.invoke("deploy"))
                wait_agains.append(hosts.invoke("deploy"))
                hosts.invoke("undeploy")
                print(
                    f"round {number + 1}: floor {floors[-1]:.2f} s, deploy --no-wait {firsts[-1]:.2f} s, "
                    f"again {agains[-1]:.2f} s; deploy {waits[-1]:.2f} s, again {wait_agains[-1]:.2f} s"
                )
            for _ in range(given.rounds if given.processor else 0):
                spent.append(hosts.spending("--no-wait"))
                print(f"processor seconds of deploy --no-wait, {sum(spent[-1].values()):.2f}: {spent[-1]}")
                hosts.invoke("undeploy")
            if not given.no_ansible:
                playbook = hosts.ansible(folder)
                hosts.invoke("undeploy")
    report = common.Report(
        "deploy",
        raw={
            "floor_s": floors,
            "deploy_s": firsts,
            "again_s": agains,
            "deploy_wait_s": waits,
            "again_wait_s": wait_agains,
            "playbook_s": playbook,
            "processor_s": spent,
        },
    )
    floor, first = statistics.median(floors), statistics.median(firsts)
    what = f"{given.hosts} hosts"
    report.add(f"whole verified deploy --no-wait, {what}", first, "s", anchor=floor, anchor_name="ssh", goal=GOAL_FIRST)
    again = statistics.median(agains)
    report.add("deploy --no-wait again, nothing to do", again, "s", anchor=floor, anchor_name="ssh", goal=GOAL_AGAIN)
    wait, wait_again = statistics.median(waits), statistics.median(wait_agains)
    report.add(f"deploy until the workers are up, {what}", wait, "s", anchor=floor, anchor_name="ssh")
    report.add("deploy again, nothing to do", wait_again, "s", anchor=floor, anchor_name="ssh", goal=GOAL_AGAIN)
    report.add(
        "the shipped playbook, as many forks", playbook, "s", anchor=first, anchor_name="invoke deploy",
        goal=GOAL_ANSIBLE, at_least=True, note="" if playbook else "left out",
    )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
