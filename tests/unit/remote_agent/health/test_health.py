"""Health checks: bounded in time, and the effect of their results."""

from __future__ import annotations

import http.server
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.health import user_process
from remote_agent.health.schedule import Elsewhere, HealthMonitor, LogWatch, run_check
from remote_agent.protocol.messages import HealthCheck
from remote_agent.system import paths, processes
from tests.ports import free_port
from tests.waiting import Stopwatch, wait_until


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_http_check_takes_2xx_and_3xx_as_healthy(web: str) -> None:
    """Anything else names the status."""
    assert run_check(HealthCheck("http", url=f"{web}/200"))[0]
    assert run_check(HealthCheck("http", url=f"{web}/302"))[0]
    healthy, detail = run_check(HealthCheck("http", url=f"{web}/503"))
    assert not healthy and "HTTP 503" in detail


def test_http_check_of_a_server_that_says_nothing_ends_in_time() -> None:
    """A hung server must not hold the checking thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        watch = Stopwatch()
        healthy, detail = run_check(
            HealthCheck("http", url=f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout_s=0.2)
        )
        assert not healthy and watch.seconds < 1.5
        assert "127.0.0.1" in detail


def test_tcp_check_distinguishes_open_from_closed() -> None:
    """Refused is a failed check that names the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert run_check(HealthCheck("tcp", port=listener.getsockname()[1]))[0]
    port = free_port()
    healthy, detail = run_check(HealthCheck("tcp", port=port))
    assert not healthy and str(port) in detail


def exec_check(directory: Path, command: str, timeout_s: float = 5.0, **content: Any) -> tuple[bool, str]:
    """As the agent runs it: in a separate process, from the files in the worker's directory."""
    spec = {"worker_id": "w1", "epoch": 7, "cwd": str(directory), "spec": {"env": content.pop("own", {})}, **content}
    paths.write_json(paths.spec_file(str(directory)), spec)
    paths.write_json(paths.base_env_file(str(directory)), {"PATH": "/usr/bin:/bin"})
    check = {"type": "exec", "command": command, "argv": shlex.split(command)}
    facts = {"worker_dir": str(directory), "attempt": 3, "pid": os.getpid(), "pid_start": 1}
    healthy, detail = user_process.run(sys.executable, {**facts, "check": check, "timeout_s": timeout_s})
    return healthy, detail


def test_exec_check_runs_in_the_directory_and_environment_of_the_specification(tmp_path: Path) -> None:
    """Exit code 0 is healthy. The manager's variables take precedence over the specification's."""
    (tmp_path / "here").touch()
    (tmp_path / ".env").write_text("FROM_FILE=1\n")
    command = "sh -c 'test $MARK$FROM_FILE$RANK$PROCGUARD_ATTEMPT = yes123 && test -e here'"
    more = {"own": {"MARK": "yes", "RANK": "9"}, "start": {"env_files": [str(tmp_path / ".env")]}, "env": {"RANK": "2"}}
    assert exec_check(tmp_path, command, **more) == (True, f"`{command}` ended with 0")
    healthy, detail = exec_check(tmp_path, command)
    assert not healthy and "ended with" in detail


def test_exec_check_sees_what_setup_lines_set_without_running_them_again(tmp_path: Path) -> None:
    """They are read from the recorded start of the job; nothing else in it is trusted."""
    job = subprocess.Popen(["sleep", "100"], env={"FROM_SETUP": "1", "PATH": "/usr/bin:/bin"})
    try:
        found = processes.read_process(job.pid)
        assert found is not None
        spec = {"worker_id": "w1", "cwd": str(tmp_path), "spec": {"env": {}}, "start": {"setup": ["touch again"]}}
        paths.write_json(paths.base_env_file(str(tmp_path)), {"PATH": "/usr/bin:/bin"})
        check = {"type": "exec", "command": "…", "argv": ["sh", "-c", "test $FROM_SETUP = 1"]}
        for start, setup, expected in ((found.start, True, True), (found.start + 1, True, False), (found.start, False, False)):  # fmt: skip # noqa: E501
            paths.write_json(paths.spec_file(str(tmp_path)), spec if setup else {**spec, "start": {}})
            facts = {"worker_dir": str(tmp_path), "attempt": 1, "pid": job.pid, "pid_start": start}
            assert user_process.run(sys.executable, {**facts, "check": check, "timeout_s": 5.0})[0] is expected
        assert not (tmp_path / "again").exists()
    finally:
        job.kill()
        job.wait()


def test_exec_check_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Also what has left its process group, in bounded time."""
    mark = tmp_path / "late"
    started = time.monotonic()
    healthy, detail = exec_check(tmp_path, f"sh -c '(setsid sh -c \"sleep 1.5; touch {mark}\") & sleep 30'", 0.2)
    assert not healthy and "longer than" in detail and time.monotonic() - started < 5
    time.sleep(1.6)
    assert not mark.exists()


def test_missing_command_and_bad_words_are_failed_checks_not_exceptions(tmp_path: Path) -> None:
    """Whatever is in the specification, the thread survives."""
    healthy, detail = exec_check(tmp_path, "/no/such/program")
    assert not healthy and "command not found" in detail
    healthy, detail = exec_check(tmp_path, "true", start={"env_files": [str(tmp_path / "gone"), str(tmp_path)]})
    assert not healthy and "cannot be run: env_file" in detail
    assert not run_check(HealthCheck("http", url="ftp://x"))[0]


def monitor_with(check: HealthCheck) -> HealthMonitor:
    monitor = HealthMonitor("worker1")
    monitor.running(1, [check], 0.0)
    return monitor


def test_nothing_is_due_before_the_start_grace() -> None:
    """A job that still loads its data is not unhealthy."""
    monitor = monitor_with(HealthCheck("tcp", port=1, start_grace_s=10, interval_s=5))
    assert monitor.due(9.9) == []
    assert len(monitor.due(10.0)) == 1
    assert monitor.due(30.0) == []  # one at a time


def test_only_failures_in_a_row_make_it_failing_and_restart_is_asked_once() -> None:
    """Two failures, a success, then three failures: failing at the third, and one restart."""
    monitor = monitor_with(HealthCheck("tcp", port=1, start_grace_s=0, interval_s=1, failures=3, action="restart"))
    now, asked, seen = 0.0, [], []
    for healthy in (False, False, True, False, False, False, False):
        (due,) = monitor.due(now)
        asked.append(monitor.result(due, healthy, "refused", now))
        health = monitor.current()
        assert health is not None
        seen.append(health.status)
        now += 1.0
    assert asked == [False] * 5 + [True, False]
    assert seen[2] == "ok" and seen[4] != "failing" and seen[5] == "failing"


def test_what_could_not_be_found_out_changes_no_result() -> None:
    """An overloaded host is no evidence against the job."""
    monitor = monitor_with(HealthCheck("tcp", port=1, start_grace_s=0, interval_s=1, failures=2, action="restart"))
    now, asked = 0.0, []
    for healthy in (True, False, None, None, None, False):
        (due,) = monitor.due(now)
        asked.append(monitor.result(due, healthy, "refused", now))
        now += 1.0
    assert asked == [False, False, False, False, False, True]
    health = monitor.current()
    assert health is not None and health.status == "failing"


def test_alert_never_asks_for_a_restart() -> None:
    """A suspicion is shown; it stops the job only if the policy says so."""
    monitor = monitor_with(HealthCheck("tcp", port=1, start_grace_s=0, failures=1))
    (due,) = monitor.due(0.0)
    assert monitor.result(due, False, "refused", 0.0) is False
    health = monitor.current()
    assert health is not None and health.status == "failing" and "refused" in health.detail


def test_a_late_result_of_the_former_attempt_counts_for_nothing() -> None:
    """The new attempt starts without earlier results."""
    monitor = monitor_with(HealthCheck("tcp", port=1, start_grace_s=0, failures=1, action="restart"))
    (due,) = monitor.due(0.0)
    monitor.running(2, [HealthCheck("tcp", port=1, start_grace_s=0, failures=1, action="restart")], 1.0)
    assert monitor.result(due, False, "refused", 1.0) is False
    health = monitor.current()
    assert health is not None and health.status == "unknown"
    monitor.stopped()
    assert monitor.current() is None


def one_check(check: HealthCheck, cwd: str = "", log: LogWatch | None = None) -> HealthMonitor:
    monitor = HealthMonitor("w1")
    elsewhere = Elsewhere(cwd, "", False, lambda check: (False, "no process here"), lambda path, timeout_s: None)
    monitor.running(1, [check], time.monotonic() - 1000.0, elsewhere=elsewhere, log=log)
    return monitor


def probe_once(monitor: HealthMonitor) -> tuple[bool, str]:
    """Make the due check, whenever it is due."""
    (due,) = monitor.due(time.monotonic() + 1000.0)
    healthy, detail = due.run()
    monitor.result(due, healthy, detail, time.monotonic())
    return healthy, detail


def test_heartbeat_file_must_change_within_its_age(tmp_path: Path) -> None:
    """Compared with itself: a file whose time lies years ahead is no better than another."""
    beat = tmp_path / "beat"
    monitor = one_check(HealthCheck("heartbeat_file", path="beat", max_age_s=0.3, start_grace_s=0), str(tmp_path))
    healthy, detail = probe_once(monitor)
    assert not healthy and str(beat) in detail and "No such file" in detail
    beat.write_text("1")
    assert probe_once(monitor)[0]
    os.utime(beat, (4e9, 4e9))
    assert probe_once(monitor)[0]
    assert wait_until(lambda: not probe_once(monitor)[0], what="found unchanged")
    healthy, detail = probe_once(monitor)
    assert "unchanged for" in detail and "(allowed: 0.3 s)" in detail
    os.utime(beat, (1e9, 1e9))  # a clock set back is a change, too
    assert probe_once(monitor)[0]


def test_heartbeat_file_on_a_hung_file_system_fails_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: gate.wait(30) if "beat" in str(path) else real(path, **more))
    monitor = one_check(HealthCheck("heartbeat_file", path="beat", timeout_s=0.1), str(tmp_path))
    started = time.monotonic()
    healthy, detail = probe_once(monitor)
    assert not healthy and "file system hangs" in detail and time.monotonic() - started < 5
    gate.set()


def test_log_silence_counts_from_the_last_output() -> None:
    size = [0]
    log = LogWatch(lambda: (1, size[0], 0), lambda: None)
    monitor = one_check(HealthCheck("log_silence", max_age_s=0.3, start_grace_s=0), log=log)
    assert probe_once(monitor)[0]
    assert wait_until(lambda: not probe_once(monitor)[0], what="silence noticed")
    assert "no output for" in probe_once(monitor)[1]
    size[0] += 1
    assert probe_once(monitor)[0]


def test_log_silence_without_an_age_follows_the_job_s_own_rhythm() -> None:
    """And reports it while it is unknown."""
    limit: list[float | None] = [None]
    log = LogWatch(lambda: (1, 7, 0), lambda: limit[0])
    monitor = one_check(HealthCheck("log_silence", start_grace_s=0), log=log)
    healthy, detail = probe_once(monitor)
    assert healthy and "rhythm is not known yet" in detail
    limit[0] = 0.05
    assert wait_until(lambda: not probe_once(monitor)[0], what="silence beyond its rhythm")
