"""A job's user attacks its agent, on a real host: files of root stay unreadable, and root executes nothing of the
user."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World
from tests.fleet.disk import USER_ID
from tests.fleet.hosts import Fleet, FleetHost
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

USER, UID, GID = "games", 5, 60
HOME = "/srv/games"  # what that user may write to
MARKS = "/root/marks"  # a file here was made by root
CANARY = f"CANARY-{os.urandom(8).hex()}"
SECRET = "/root/secret"
EVIL = """
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void run(void) {
    char name[64]; snprintf(name, sizeof name, "/root/marks/preload-%d", getpid());
    open(name, O_CREAT | O_WRONLY, 0644);
}
"""
# A program of the user: when run, it leaves a mark with the uid that ran it.
SPY = """#!/bin/sh
echo "$(basename $0) $(id -u)" >> /srv/games/who
cat /root/secret /proc/$PPID/environ 2>/dev/null
touch /root/marks/$(basename $0)
"""
# What the user's job tries by itself, with a debugger's rights and without.
PRY = r"""
cat /root/secret /root/.procguard/*/*/agent.json /root/.procguard/*/*/workers/*/spec.json
ls -R /root /run/procguard /tmp/procguard-0
for p in /proc/[0-9]*; do cat $p/environ; ls $p/fd; cat $p/fd/*; done
for f in 3 4 5 6 7 8 9; do cat <&$f; echo x >&$f; done
for s in /run/procguard/*/*.sock /tmp/procguard-0/*/*.sock; do
  python3 -c 'import socket,sys; s=socket.socket(1); s.connect(sys.argv[1]); s.send(b"{\"op\":\"kill\"}\n")' $s; done
kill -9 $(cut -d' ' -f4 /proc/$PPID/stat); for p in $(pgrep -u 0 -f remote_agent); do kill -9 $p; kill -19 $p; done
env
"""


def furnish(fleet: Fleet) -> None:
    """The user's folder, its traps, and the names it squats before the first agent starts."""
    one = fleet[0]
    for host in fleet.hosts:
        host.path("/srv").chmod(0o755)
        host.path(MARKS).mkdir(mode=0o700)
        host.path(SECRET).write_text(f"SECRET={CANARY}\n")
        host.path(SECRET).chmod(0o600)
    games = one.path(HOME)
    for folder in ("", "bin", "project", "out"):
        (games / folder).mkdir(exist_ok=True)
    for name in ("spy-check", "py-spy", "spy-hook"):
        (games / "bin" / name).write_text(SPY)
        (games / "bin" / name).chmod(0o755)
    (games / "pry.sh").write_text(PRY)
    (games / "evil.c").write_text(EVIL)
    library = fleet.directory / "evil.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, games / "evil.c"], check=True)
    (games / "evil.so").write_bytes(library.read_bytes())
    (games / "evil.so").chmod(0o755)
    (games / "out" / "good.csv").write_text("good\n")
    for name in (".env", "beat", "out/link.csv"):
        (games / name).symlink_to(SECRET)
    os.mkfifo(games / "pipe")
    one.run(f"chown -hR {USER}: {HOME}")
    for host, uid in ((one, 0), (fleet[1], USER_ID)):
        for place in (f"/tmp/procguard-{uid}", f"/var/tmp/procguard-{uid}"):
            host.run(f"mkdir -m 777 {place} && chown {USER}: {place}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("job-user"), hosts=2, prepare=furnish) as one:
        yield one


def of_user(worker_id: str, command: str, **spec: Any) -> dict[str, Any]:
    path = f"{HOME}/bin:/usr/bin:/bin"
    env = {"PATH": path, **spec.pop("env", {})}
    return {"worker_id": worker_id, "command": command, "user": USER, "working_dir": HOME, "env": env, **spec}


def check(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "interval_s": 0.5, "start_grace_s": 0, "timeout_s": 5, "failures": 1, **more}


def attackers() -> list[dict[str, Any]]:
    """One worker for each path from the user to its agent."""
    never = {"policy": "never"}
    huge = "import os,time; os.ftruncate(1, 1 << 43); os.write(1, b'end'); time.sleep(10000)"
    return [
        of_user("preload", f"env LD_PRELOAD={HOME}/evil.so sleep 10000", health=[check("exec", command="/bin/true")]),
        of_user("check", "sleep 10000", health=[check("exec", command="spy-check", failures=1000000)]),
        of_user("look", "sleep 10000", health=[check("heartbeat_file", path="beat", max_age_s=1, interval_s=1)]),
        of_user("stall", "sleep 10000", health=[check("exec", command="cat pipe", timeout_s=1)]),
        of_user("spied", "python3 -c 'import time; time.sleep(10000)'", restart={"max_attempts": 1, "backoff_s": [0]},
                health=[check("exec", command="/bin/false", action="restart")]),
        of_user("hook", "sleep 10000", pre_start="spy-hook; true", post_stop="spy-hook"),
        of_user("pry", "sh -c 'sh pry.sh 2>&1; sleep 10000'"),
        of_user("huge", f'python3 -c "{huge}"'),
        {**of_user("env", "env", restart=never), "env_file": ".env"},
        of_user("setup", "hidden", restart=never, setup=["printf 'path /root/bin' >&7; trap - EXIT; exit 3"]),
    ]  # fmt: skip


@pytest.mark.chaos(28)
def test_under_a_root_agent_a_job_s_user_gains_nothing(world: World, chaos_report: ChaosReport, tmp_path: Path) -> None:
    node = world.fleet[0]
    source = world.directory / "project"
    source.mkdir()
    (source / "train.py").write_text("print(1)\n")
    (source / "run.sh").write_text("#!/bin/sh\n")
    workers = [stamps.stamping("victim"), *attackers()]
    code = {"procguard_sync": {"src": str(source), "dest": f"{HOME}/project"}}
    inventory = jobs.write_inventory(
        world.directory / "chaos.yaml", {node.name: jobs.host_variables(node, workers) | code}
    )

    def deploy() -> str:
        run = world.operator.invoke("deploy", "--hosts", str(inventory))
        return run.stdout + run.stderr

    text = deploy()  # the squatted names stop nothing
    world.manager.wait_worker("victim", "running", 40)
    victim = stamps.only_child(node, "victim")
    agent = jobs.agents(node)[0]
    paths = 0
    for number in chaos_report.rounds(short=1, long=10):
        for worker_id in ("preload", "check", "look", "stall", "hook", "pry", "huge"):
            world.manager.wait_worker(worker_id, "running", 40)
        for worker_id in ("env", "setup", "spied"):
            world.manager.wait_worker(worker_id, "failed", 40)
        assert "Permission denied" in world.manager.worker("env")["reason"]
        wait_until(lambda: world.manager.worker("preload")["health"]["status"] == "ok", 20, "preload's check")
        wait_until(lambda: "Permission denied" in str(world.manager.worker("look")["health"]), 20, "look's check")
        wait_until(lambda: "longer than" in str(world.manager.worker("stall")["health"]), 20, "stall's check")
        wait_until(lambda: "spy-check" in node.path(f"{HOME}/who").read_text(), 20, "check's check")
        wait_until(lambda: "py-spy" in node.path(f"{HOME}/who").read_text(), 20, "spied's evidence")
        wait_until(lambda: "PROCGUARD_WORKER_ID" in world.manager.log_text("pry"), 20, "what pry could read")
        # code into a folder whose links lead elsewhere by now
        swap = f"{HOME}/project" if number % 2 else f"{HOME}/project/.procguard-sync"
        node.run(f"mkdir -p {MARKS}-outside/incoming && touch {MARKS}-outside/incoming/precious")
        as_games(node, f"rm -rf {swap}; ln -s {MARKS}-outside {swap}")
        (source / "train.py").write_text(f"print({os.urandom(4).hex()!r})\n")
        text += deploy()
        there = node.run(f"cd {MARKS}-outside && find .").stdout.split()
        assert there == [".", "./incoming", "./incoming/precious"]
        as_games(node, f"rm {swap}; mkdir -p {HOME}/project")
        # results that the operator fetches as root
        pattern = f"{HOME}/beat" if number % 2 else f"{HOME}/out/*.csv"
        run = world.operator.invoke("fetch", node.name, pattern, "--hosts", str(inventory), "--to", str(tmp_path))
        text += run.stdout + run.stderr
        assert (tmp_path / node.name / HOME[1:] / "out/good.csv").read_text() == "good\n"
        # stop and start again, by hooks and all
        world.manager.command("hook", "restart")
        wait_until(lambda: world.manager.worker("hook")["attempt"] > 1, 20, "the hook's second attempt")
        paths += len(attackers()) + 6  # and: squatted names, code, fetch, files, sockets, signals
    who = {line.split()[1] for line in node.path(f"{HOME}/who").read_text().splitlines()}
    assert who == {str(UID)}, who
    assert node.run(f"ls {MARKS}").stdout == ""
    assert_nobody_knows(world, node, text, [tmp_path])
    assert jobs.agents(node)[0].pid == agent.pid and stamps.only_child(node, "victim").pid == victim.pid
    numbers = jobs.numbers(world.manager.log_text("victim"), "victim")
    assert numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    chaos_report(measured=f"{paths} attempts by 16 paths: 0 canaries, 0 marks of root; agent and victim untouched")


def as_games(node: FleetHost, command: str) -> None:
    node.run(f"setpriv --reuid {UID} --regid {GID} --clear-groups sh -c '{command}'")


def assert_nobody_knows(world: World, node: FleetHost, text: str, folders: list[Path]) -> None:
    """The canary is only where root put it: not elsewhere on the host, at the manager, or in any output."""
    assert CANARY not in text
    for folder in (world.directory, *folders):
        run = subprocess.run(["grep", "-rlF", CANARY, str(folder)], capture_output=True, text=True, check=False)
        assert run.stdout == ""
    run = node.run(f"grep -rlF {CANARY} /root /srv /tmp /var/tmp /run /home", check=False)
    assert run.stdout.split() == [SECRET], run.stdout


@pytest.mark.chaos(28)
def test_job_that_shares_its_agent_s_user_harms_that_agent_s_workers_alone(
    world: World, chaos_report: ChaosReport
) -> None:
    """It kills its agent and its runner, rewrites its files, and uses its secret."""
    node, shared = world.fleet.hosts
    ruin = (
        "for d in ~/.procguard/*/*; do for f in $d/agent.json $d/assignments.json $d/journal.jsonl $d/workers/*/*.json "
        "$d/workers/*/events.jsonl; do head -c 100000 /dev/urandom > $f; done; done; kill -9 $PPID; "
        "for p in $(pgrep -u alice -f remote_agent); do kill -9 $p; done; while :; do echo x; done"
    )
    hosts = {
        node.name: jobs.host_variables(node, [stamps.stamping("victim")]),
        shared.name: jobs.host_variables(
            shared, [{"worker_id": "ruin", "command": ruin, "shell": True, "restart": {"policy": "always"}}], "alice"
        ),
    }
    inventory = jobs.write_inventory(world.directory / "shared.yaml", hosts)
    world.operator.invoke("deploy", "--hosts", str(inventory), "--limit", node.name)
    world.manager.wait_worker("victim", "running", 40)
    victim = stamps.only_child(node, "victim")
    before = world.manager.worker("victim")
    for _round in chaos_report.rounds(short=1, long=10):
        world.operator.invoke("deploy", "--hosts", str(inventory), "--limit", shared.name)
        record = wait_until(lambda: agent_records(shared), 20, "its agent, though others took the names it wants")[0]
        wait_until(lambda record=record: not _is_json(record), 30, "its agent's files ruined")  # type: ignore[misc]
        world.stays(lambda: world.manager.request("GET", "/healthz")[0] == 200, 2)
    after = world.manager.worker("victim")
    assert stamps.only_child(node, "victim").pid == victim.pid
    assert {name: after[name] for name in ("epoch", "attempt", "state", "host")} == {
        name: before[name] for name in ("epoch", "attempt", "state", "host")
    }
    assert world.manager.host(node.name)["agent_state"] == "connected"
    chaos_report(measured="the other host's worker, its epoch and its agent untouched; the manager answers")


def agent_records(host: FleetHost) -> list[Path]:
    return list(host.path("/home/alice/.procguard").glob("*/*/agent.json"))


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, OSError):
        return False
    return True
