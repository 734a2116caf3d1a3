"""Lifecycles of runners and agents: effects on a child, and recovery by the next runner."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from remote_agent.runner import control
from remote_agent.runner.lock import take_lock
from remote_agent.system import paths, processes
from tests.unit.runner_rig import FOREVER, PYTHON, ROOT, Rig, alive
from tests.waiting import wait_until


def test_agents_come_and_go_without_touching_the_child(rig: Rig):
    """Adoption: any number of agents connect at any time and get the same status."""
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    other = control.RunnerLink.connect(paths.runner_socket(rig.runtime_dir, rig.worker_dir))
    rig.link.close()
    reported: list[dict] = []
    wait_until(lambda: reported.extend(other.receive()) or reported, 5, "the status")
    assert reported[0]["type"] == "status" and reported[0]["pid"] == pid and reported[0]["v"] == 1
    other.close()
    assert alive(pid)


def test_answers_are_sent_again_to_an_agent_that_comes_back(rig: Rig):
    """An agent killed between command and result gets the result after its restart."""
    rig.shell(FOREVER).run()
    rig.until("running")
    rig.link.restart(1, "c-1")
    rig.result("c-1")
    rig.link.close()
    rig.results.clear()
    rig.connect()
    assert rig.result("c-1")["status"] == "done"


def test_second_runner_refuses(rig: Rig):
    """The lock."""
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    assert rig.run() == control.EXIT_ALREADY_RUNNING
    assert rig.until("running")["pid"] == pid


def test_second_runner_refuses_even_if_the_lock_file_vanished(rig: Rig):
    """A cleaned /tmp never allows a double: state.json names a living runner."""
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    os.unlink(paths.runner_lock(rig.runtime_dir, rig.worker_dir))
    os.unlink(paths.runner_socket(rig.runtime_dir, rig.worker_dir))
    assert rig.run() == control.EXIT_ALREADY_RUNNING
    assert alive(pid)


def test_tree_of_a_killed_runner_is_swept_before_anything_starts(rig: Rig):
    """Runner killed: child and double-forked daemon are ended, then the next attempt starts, once."""
    rig.shell("(setsid sleep 1000 &); echo up; exec sleep 1000", stop_grace_s=1).run()
    old = rig.until("running")["pid"]
    rig.logged(1)
    before = {member.pid for member in rig.survivors()}
    assert len(before) == 2
    rig.kill_runner()
    assert alive(old), "a child outlives its runner"
    assert rig.run() == control.EXIT_STARTED
    status = rig.until("running", attempt=2)
    assert not any(alive(pid) for pid in before) and status["restarts"] == 1
    assert rig.exit_record(1)["reason"] == "its runner was killed; 2 left-over processes ended"


def test_stop_asked_for_while_no_runner_lived_is_carried_out(rig: Rig):
    """Runner killed, then desired stopped: the next runner sweeps and settles."""
    rig.shell(FOREVER).run()
    old = rig.until("running")["pid"]
    rig.kill_runner()
    rig.assignment.update(desired="stopped", generation=2)
    rig.run()
    rig.until("stopped")
    assert not alive(old) and rig.state()["held"]


def test_exit_that_the_former_runner_wrote_is_used(rig: Rig):
    """Died between record and report: the exit is not lost."""
    rig.shell(FOREVER, restart={"policy": "never"}).run()
    rig.until("running")
    rig.kill_runner()
    paths.write_json(
        paths.exit_file(rig.worker_dir, 1), {"attempt": 1, "code": 7, "signal": None, "duration_s": 5.0, "reason": "x"}
    )
    rig.run()
    assert "exit code 7 after 5 s" in rig.until("failed")["reason"]


def test_backoff_goes_on_under_the_next_runner(rig: Rig):
    """The restart delay is neither lost nor restarted."""
    rig.shell("exit 1", restart={"backoff_s": [30.0]}).run()
    due = rig.until("backoff")["next_start_at"]
    rig.kill_runner()
    rig.run()
    assert abs(rig.until("backoff")["next_start_at"] - due) < 1.0
    assert rig.state()["attempt"] == 1


def test_reboot_starts_again_without_signalling_anybody(rig: Rig):
    """Another boot id: recorded pids mean nothing any more."""
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        rig.shell(FOREVER).write_spec()
        found = processes.read_process(bystander.pid)
        paths.write_json(
            paths.state_file(rig.worker_dir),
            {"v": 1, "state": "running", "generation": 1, "epoch": 1, "attempt": 4, "pid": bystander.pid, "restarts": 0,
             "pid_start": found.start, "boot_id": "another boot", "runner_pid": bystander.pid,
             "runner_start": found.start, "cookie": "f" * 32, "event_seq": 77},
        )  # fmt: skip
        rig.run()
        status = rig.until("running")
        assert status["attempt"] == 5 and bystander.poll() is None
        assert rig.events()[0]["seq"] == 78 and "the host went down while it ran" in rig.events()[0]["reason"]
    finally:
        bystander.kill()
        bystander.wait()


def test_reused_pid_is_never_signalled(rig: Rig):
    """Same boot, same pid, different start time: an unrelated process."""
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        rig.shell(FOREVER).write_spec()
        found = processes.read_process(bystander.pid)
        paths.write_json(
            paths.state_file(rig.worker_dir),
            {"v": 1, "state": "running", "generation": 1, "attempt": 1, "pid": bystander.pid,
             "pid_start": found.start - 1, "boot_id": processes.boot_id(), "cookie": "e" * 32},
        )  # fmt: skip
        rig.run()
        rig.until("running", attempt=2)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_sigterm_to_the_runner_stops_the_child_and_the_next_runner_starts_it(rig: Rig):
    """A shutdown of the host: stopped but not held."""
    rig.shell(FOREVER).run()
    rig.until("running")
    assert processes.send_signal(rig.runner_identity(), signal.SIGTERM)
    assert "the runner was asked to end by SIGTERM" in rig.until("stopped")["reason"]
    rig.runner_gone()
    assert rig.survivors() == []
    rig.run()
    assert rig.until("running")["attempt"] == 2


def test_sighup_means_nothing_to_the_runner(rig: Rig):
    """A closing terminal or log-out."""
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    processes.send_signal(rig.runner_identity(), signal.SIGHUP)
    rig.link.restart(9, "c-1")
    rig.result("c-1")
    assert alive(pid)


def test_socket_and_lock_are_private(rig: Rig):
    """No other user of the host can stop the job."""
    rig.shell(FOREVER).run()
    rig.until("running")
    for path in (paths.runner_socket(rig.runtime_dir, rig.worker_dir), paths.state_file(rig.worker_dir)):
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0


def test_runner_is_small(rig: Rig):
    """Under 12 MB resident with one child (CPython)."""
    rig.shell(FOREVER).run()
    pid = rig.until("running")["runner_pid"]
    if "pypy" in os.readlink(f"/proc/{pid}/exe"):
        pytest.skip("pypy has a heap of its own")
    status = Path(f"/proc/{pid}/status").read_text()
    resident_kb = int(status.split("VmRSS:")[1].split()[0])
    assert resident_kb < 12 * 1024
    assert len(os.listdir(f"/proc/{pid}/task")) == 1


def test_runner_without_specification_says_so(rig: Rig):
    """One line in runner.log, nothing started."""
    argv = control.runner_argv(PYTHON, ROOT, rig.worker_dir, rig.runtime_dir)
    done = subprocess.run([*argv, "--foreground"], check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == control.EXIT_CANNOT_START
    assert "spec.json is missing or no assignment" in done.stderr and "Traceback" not in done.stderr


def test_a_runner_that_ends_before_it_listens_is_no_started_one(rig: Rig):
    """The command reports the daemon's output; a daemon that was killed earlier has none."""
    rig.write_spec()
    held = take_lock(paths.runner_lock(rig.runtime_dir, rig.worker_dir))  # so long the daemon waits for it
    argv = control.runner_argv(PYTHON, ROOT, rig.worker_dir, rig.runtime_dir)
    try:
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True) as command:
            daemon = wait_until(
                lambda: processes.descendants({command.pid}, processes.all_processes()), 10.0, "a daemon"
            )
            os.kill(daemon[0].pid, signal.SIGKILL)
            assert command.wait(10) == control.EXIT_CANNOT_START
    finally:
        os.close(held)
    assert rig.start() == control.EXIT_STARTED


def test_a_runner_leads_no_session_however_it_was_started(rig: Rig):
    """A terminal that its job opens by name never becomes the runner's."""
    rig.shell(FOREVER).run()
    rig.until("running")  # a runner that has just been started may not have written its state yet
    for apart in (False, True):
        pid = int(rig.state()["runner_pid"])
        assert os.getsid(pid) not in (pid, os.getsid(0))
        os.kill(pid, signal.SIGKILL)
        rig.runner_gone()
        argv = control.runner_argv(PYTHON, ROOT, rig.worker_dir, rig.runtime_dir)
        assert subprocess.run(argv, start_new_session=apart, check=False, timeout=20).returncode == control.EXIT_STARTED
        wait_until(lambda pid=pid: rig.state()["runner_pid"] != pid, 10.0, "the next runner")
        rig.connect()
