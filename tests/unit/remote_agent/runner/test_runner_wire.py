"""Agent and runner of different releases: golden messages of their control protocol, and an older release's runner.

tests/wire/runner-v1 is permanent: a runner lives as long as its job, which may outlive many agents. A file
is `<message>.<case>.json`; a new field needs a new file that shows it, and no file is changed. Fields are only added,
unknown ones and unknown operations are ignored, and only a change that breaks this would raise PROTOCOL_VERSION.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent.worker import WorkerHandle
from remote_agent.protocol.reasons import Reason
from remote_agent.runner import control
from remote_agent.runner.control import JsonConnection, RunnerLink
from remote_agent.system import paths
from tests.agent_host import Host
from tests.unit.runner_rig import ROOT, Rig, alive
from tests.waiting import wait_until

GOLDEN = Path(ROOT) / "tests" / "wire" / "runner-v1"
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GOLDEN.glob("*.json"))}
OPERATIONS = {name: value for name, value in FILES.items() if name.startswith("op.")}
STATUSES = {name: value for name, value in FILES.items() if name.startswith("status.")}
EARLIER_RELEASES = ("e752ebf",)  # commits whose runners may still supervise a job
FOREVER = "echo up; exec sleep 1000"


def from_a_newer_release(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "from_a_newer_release": {"x": [1]}}


@pytest.fixture
def worker(tmp_path):
    """An agent's view of a worker, and the runner's end of the connection to it."""
    here, there = socket.socketpair()
    made = WorkerHandle("w1", str(tmp_path), str(tmp_path))
    made.link = RunnerLink(here)
    runner = JsonConnection(there)
    yield made, runner
    made.link.close()
    runner.close()


# --------------------------------------------------------------------------------- a runner of today, old messages


def test_an_agent_of_today_says_what_a_runner_of_then_understands():
    """Every operation in its first form is contained in the current form."""
    here, there = socket.socketpair()
    link, runner = RunnerLink(here), JsonConnection(there)
    link.send({"op": "hello", "v": control.PROTOCOL_VERSION})
    link.assign()
    link.restart(3, "c-1", 16077000000000)
    link.kill(3, "c-2", 16077000000000)
    link.lease(1000003, 16077000000000)
    link.health("failing", "http: 500 three times", restart=True)
    link.time_limit(3, Reason(str(OPERATIONS["op.time_limit"]["detail"])))
    link.progress(12.0)
    said = runner.receive()
    for golden in OPERATIONS.values():
        assert any(golden.items() <= message.items() for message in said), golden
    assert {message["op"] for message in said} == {golden["op"] for golden in OPERATIONS.values()}
    link.close()
    runner.close()


@pytest.mark.parametrize("newer", [False, True])
def test_a_runner_of_today_understands_an_agent_of_then_and_of_tomorrow(rig: Rig, newer: bool):
    """Each golden operation has its effect; what is unknown is ignored, also a whole operation."""
    rig.shell(FOREVER, stop_grace_s=0.5).run()
    pid = rig.until("running")["pid"]
    assert rig.link

    def say(name: str, **values: Any) -> None:
        message = {**OPERATIONS[name], **values}
        assert rig.link
        rig.link.send(from_a_newer_release(message) if newer else message)

    rig.link.send({"op": "dance", "attempt": 1, "id": "c-0"})
    rig.status = {}
    say("op.hello")
    assert rig.until("running")["pid"] == pid
    say("op.health", restart=False)
    say("op.lease")
    say("op.restart", attempt=1)
    assert rig.result("c-1")["status"] == "done" and rig.until("running")["attempt"] == 2
    say("op.health")
    assert rig.until("running", attempt=3)["restarts"] == 1
    say("op.kill", attempt=3)
    assert rig.result("c-2")["status"] == "done"
    assert rig.until("stopped")["held"]


def test_a_runner_of_today_says_what_an_agent_of_then_understands(rig: Rig):
    """Every field of the golden messages is still sent, with a value of the same type."""
    rig.shell(FOREVER).run()
    rig.until("running")
    rig.link.restart(1, "c-1")
    rig.until("running", attempt=2)
    rig.write_spec(desired="stopped", generation=2)
    rig.link.assign()
    rig.until("stopped")
    wait_until(lambda: rig.pump() or rig.link.closed, 10, "the end of the stream")
    first_status = next(message for message in rig.said if "protocol" in message)  # the answer to hello
    for name, golden in FILES.items():
        kind = golden.get("type")
        if not kind:
            continue
        reported = [first_status] if kind == "status" else [message for message in rig.said if message["type"] == kind]
        assert reported, name
        for message in reported:
            assert set(golden) <= set(message), f"{name}: {set(golden) - set(message)} is no longer told"
            for key, value in golden.items():
                same = value is None or message[key] is None or isinstance(message[key], type(value))
                assert same, f"{name}.{key}: {message[key]!r} is of another kind than {value!r}"
    assert rig.said[-1] == FILES["bye"]


# --------------------------------------------------------------------------------- an agent of today, old messages


@pytest.mark.parametrize("name", sorted(STATUSES))
@pytest.mark.parametrize("newer", [False, True])
def test_an_agent_of_today_understands_a_status_of_then_and_of_tomorrow(worker, name: str, newer: bool):
    """The report to the manager for every golden status."""
    worker, runner = worker
    golden = STATUSES[name]
    runner.send(from_a_newer_release(golden) if newer else golden)
    assert worker.receive() == ([], True)
    report = worker.report()
    reported = ("state", "generation", "epoch", "attempt", "since", "restarts", "restarts_total", "launch_digest")
    assert {key: getattr(report, key) for key in reported} == {key: golden[key] for key in reported}
    assert report.reason.startswith(golden["reason"]) and golden["problem"] in report.reason
    assert report.last_exit is not None and report.last_exit.signal == 9
    assert (report.next_start_in_s is None) == (golden["next_start_at"] is None)


def test_an_agent_of_today_understands_results_events_and_the_last_word_of_then(worker):
    worker, runner = worker
    for name in ("event.ended", "result.done", "event.running", "result.failed", "result.expired", "bye"):
        runner.send(from_a_newer_release(FILES[name]))
    runner.send({"type": "from_a_newer_release"})
    results, changed = worker.receive()
    reported = [("c-1", "done"), ("c-2", "failed"), ("c-3", "expired")]
    assert changed and [(one["id"], one["status"]) for one in results] == reported
    assert worker._said_bye


def test_every_kind_of_message_has_a_golden_file():
    assert {name.partition(".")[0] for name in FILES} == {"op", "status", "event", "result", "bye"}
    assert all(value.get("v", 1) == 1 for value in FILES.values())


# ------------------------------------------------------------------------------------------ the runner of a release


def older_number(folder: Path) -> None:
    """This release as if the control protocol had been numbered one lower."""
    shutil.copytree(Path(ROOT) / "remote_agent", folder / "remote_agent", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "remote_agent" / "runner" / "control.py"
    text = path.read_text(encoding="utf-8")
    older = text.replace("PROTOCOL_VERSION = 1\n", "PROTOCOL_VERSION = 0\n")
    assert older != text
    path.write_text(older, encoding="utf-8")


def earlier_release(commit: str, folder: Path) -> None:
    def git(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)

    if shutil.which("git") is None or git("cat-file", "-e", f"{commit}^{{commit}}").returncode != 0:
        pytest.skip(f"no commit {commit} here: the history is not complete")
    packed = git("archive", commit, "remote_agent")
    assert packed.returncode == 0
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)


@pytest.mark.parametrize("release", ["older number", *EARLIER_RELEASES])
def test_a_runner_of_the_previous_release_keeps_working_under_the_new_agent(tmp_path: Path, manager, release: str):
    """Adopted untouched, restarted, stopped; what it reports arrives; its successor is of the new release."""
    folder = tmp_path / "old"
    if release == "older number":
        older_number(folder)
    else:
        earlier_release(release, folder)
    host = Host(tmp_path, manager)
    try:
        manager.assign("w1", ["sleep", "600"])
        host.start()
        wait_until(lambda: host.status("w1").get("state") == "running", 20, "the worker running")
        host.kill_agent()
        _replace_runner(host, folder)
        old = host.status("w1")
        assert str(folder) in Path(f"/proc/{old['runner_pid']}/cmdline").read_text()

        host.start()
        wait_until(lambda: manager.report("w1").get("pid") == old["pid"], 20, "the adoption")
        assert alive(old["pid"]) and host.status("w1")["runner_pid"] == old["runner_pid"]
        os.kill(old["pid"], 9)
        wait_until(
            lambda: manager.report("w1").get("attempt") == old["attempt"] + 1, 20, "the restart by the old runner"
        )
        assert host.status("w1")["runner_pid"] == old["runner_pid"]
        wait_until(lambda: any((one.get("exit") or {}).get("signal") == 9 for one in manager.events), 10, "its event")
        manager.assign("w1", ["sleep", "600"], desired="stopped", generation=2)
        wait_until(lambda: manager.report("w1").get("state") == "stopped", 20, "the stop")
        manager.assign("w1", ["sleep", "600"], desired="running", generation=3)
        wait_until(lambda: manager.report("w1").get("state") == "running", 20, "the next start")
        runner = host.status("w1")["runner_pid"]
        assert str(folder) not in Path(f"/proc/{runner}/cmdline").read_text()
    finally:
        host.end()


def _replace_runner(host: Host, release: Path) -> None:
    """No agent is running: end the worker's runner, and let `release` start its own."""
    directory = paths.worker_dir(host.directory, "w1")
    os.kill(host.status("w1")["runner_pid"], 15)
    wait_until(lambda: host.status("w1").get("state") == "stopped", 20, "the end of the first runner")
    command = control.runner_argv(sys.executable, str(release), directory, host.runtime_dir)
    earlier = release / "remote_agent" / "runner.py"  # where releases had it before it was a package
    if earlier.exists():
        command[3] = str(earlier)
    wait_until(lambda: subprocess.run(command, check=False).returncode == control.EXIT_STARTED, 10, "the old runner")
    wait_until(lambda: host.status("w1").get("state") == "running", 20, "the worker running under it")
