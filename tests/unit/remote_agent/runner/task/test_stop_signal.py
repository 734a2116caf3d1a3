"""The stop signal is sent at once: neither the files of the state nor the search for other processes delay it."""

from __future__ import annotations

import subprocess
from unittest import mock

from remote_agent.runner.termination import ProcessTreeTerminator
from remote_agent.system import processes
from remote_agent.system.processes import Identity
from tests.unit.task_runner_rig import TERM, TaskRunnerRig

POLICY: dict[str, object] = {"start_secs": 1.0, "backoff_s": [30.0], "max_attempts": 3, "jitter": 0.0}


def test_a_stop_reaches_the_job_before_the_state_is_written():
    """A disk that hangs delays no stop. A runner that is killed there has stopped the job; the next one starts one."""
    for operation in ({"op": "restart", "attempt": 1, "id": "c-1"}, {"op": "assign"}):
        host = TaskRunnerRig(POLICY)
        with host.in_place():
            host.pass_time(2.0)
            assert host.state["state"] == "running" and host.alive
            if operation["op"] == "assign":
                host.spec = {**host.spec, "desired": "stopped", "generation": 2}
            host.writes_left = 0
            host.operate(operation)
            assert host.torn == 1 and not host.alive, operation
            assert host.state["state"] == "running", "nothing was written"
            host.pass_time(60.0)
            assert len(host.jobs) == (2 if operation["op"] == "restart" else 1)


def test_the_process_that_keeps_a_container_is_not_asked_to_stop():
    """Whatever the newest specification says: it may have replaced the container by a command."""
    host = TaskRunnerRig(POLICY)
    with host.in_place():
        host.pass_time(2.0)
        assert host.runner is not None and host.runner.task.attempt is not None
        attempt, terminator = host.runner.task.attempt, host.runner.task.terminator
        attempt.first_pid = 4242  # the container's first process; attempt.pid is conmon's
        with mock.patch.object(terminator, "_to_ask", list):  # it is not found
            host.operate({"op": "restart", "attempt": 1, "id": "c-1"})
        assert attempt.pid in host.alive


def test_a_known_process_is_signalled_before_the_others_are_searched_for():
    """Searching takes milliseconds on a host with thousands of processes."""
    first, second = started = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    try:
        known, other = (_identity(one.pid) for one in started)

        def find() -> list[Identity]:
            assert first.wait(10) == -TERM
            return [known, other]

        ending = ProcessTreeTerminator(find, lambda: False, lambda: None)
        ending.begin(0.0, TERM, 5.0, known)
        assert second.wait(10) == -TERM
        assert ending.reached == 2
    finally:
        for one in started:
            one.kill()
            one.wait()


def _identity(pid: int) -> Identity:
    found = processes.identity_of(pid)
    assert found is not None
    return found
