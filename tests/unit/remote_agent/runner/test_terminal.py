"""`tty`: a job at a terminal of its runner. Its bytes are in the same log, once and unchanged, whichever of agent,
runner and keeper is killed; signals reach it as they reach any other job."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol.messages import ContainerSpec, TerminalSpec, WorkerSpec
from remote_agent.runner import terminal
from remote_agent.runner.task.tree import NO_ROOM_ERRORS
from remote_agent.system import paths, processes
from tests.agent_host import Host
from tests.fake_manager import FakeManager
from tests.unit.runner_rig import STUBBORN_DAEMON, Rig, alive
from tests.waiting import wait_until

SIZE = {"rows": 24, "columns": 80}


def at_terminal(rig: Rig, script: str, **spec: Any) -> Rig:
    """Run a Python script at a terminal."""
    rig.shell(f"exec {shlex.quote(sys.executable)} -c {shlex.quote(script)}", **{"tty": dict(SIZE), **spec}).run()
    return rig


def logged(rig: Rig, attempt: int = 1) -> bytes:
    try:
        return Path(paths.log_file(rig.worker_dir, attempt)).read_bytes()
    except FileNotFoundError:
        return b""


def until_logged(rig: Rig, data: bytes, attempt: int = 1) -> None:
    wait_until(lambda: data in logged(rig, attempt), 20, f"{data!r} in the log; it is {logged(rig, attempt)[-300:]!r}")


def keepers(rig: Rig) -> list[int]:
    cookie = str(rig.state().get("cookie") or "")
    found = []
    for one in processes.members_left_behind(None, cookie, _in_group(rig)):
        if processes.names([one]) == [terminal.KEEPER_NAME.decode()]:
            found.append(one.pid)
    return found


def _in_group(rig: Rig) -> list[int]:
    try:
        return [int(line) for line in Path(str(rig.state().get("cgroup")), "cgroup.procs").read_text().split()]
    except OSError:
        return []


def test_a_job_finds_a_terminal_of_the_declared_size_and_may_open_it_by_name(rig: Rig):
    script = """
import os, sys
print([os.isatty(n) for n in (0, 1, 2)], tuple(os.get_terminal_size()), os.environ["TERM"])
print(os.getsid(0) == os.getpid(), os.tcgetpgrp(0) == os.getpgrp(), sorted(os.listdir("/proc/self/fd"))[:4])
with open("/dev/tty", "w") as file: file.write("by its name\\n")
"""
    at_terminal(rig, script, tty={"rows": 50, "columns": 132})
    rig.until("exited")
    lines = logged(rig).decode().split("\n")
    assert lines[0] == "[True, True, True] (132, 50) xterm-256color"
    assert lines[1].startswith("True True ['0', '1', '2', ")  # the leader, in the foreground; none of the runner's
    assert lines[2:] == ["by its name", ""]


def test_what_it_writes_is_in_the_log_once_and_unchanged_down_to_its_last_byte(rig: Rig):
    """Every byte there is, half a megabyte, carriage returns and newlines as they were."""
    script = """
import os
data = (bytes(range(256)) + b"\\r 50%|#####     |\\r100%|##########|\\n") * 1800
while data: data = data[os.write(1, data):]
os._exit(3)
"""
    at_terminal(rig, script, restart={"policy": "never"})
    rig.until("failed")
    assert logged(rig) == (bytes(range(256)) + b"\r 50%|#####     |\r100%|##########|\n") * 1800
    wait_until(lambda: keepers(rig) == [], 10, "the keeper's end")


def test_a_failure_at_a_terminal_has_its_cause_in_spite_of_colours_and_progress_bars(rig: Rig):
    script = r"""
import sys
sys.stderr.write("\r 10%|#         |\r 20%|##        |\n")
sys.stderr.write("Traceback (most recent call last):\n")
sys.stderr.write("  File \x1b[35m\"/p/train.py\"\x1b[0m, line \x1b[35m3\x1b[0m, in <module>\n")
sys.stderr.write("    import torchh\n\x1b[1;35mModuleNotFoundError\x1b[0m: \x1b[35mNo module named 'torchh'\x1b[0m\n")
sys.exit(1)
"""
    at_terminal(rig, script, restart={"policy": "never"})
    rig.until("failed")
    record = rig.exit_record(1)
    assert record["cause"] == "import_error" and "torchh" in record["reason"], record


def test_a_prompt_of_python_waits_at_its_terminal_and_ends_with_a_stop(rig: Rig):
    rig.shell(f"exec {shlex.quote(sys.executable)} -q", tty=dict(SIZE)).run()
    rig.until("running")
    until_logged(rig, b">>> ")
    assert rig.link is not None
    rig.link.assign("stopped", 2, 1_000_001)
    rig.until("stopped")
    assert rig.exit_record(1)["signal"] == signal.SIGTERM and keepers(rig) == []


def test_a_job_behind_a_shell_keeps_its_grace_when_the_shell_ends_first(rig: Rig):
    """The leader of a terminal's session ends at once at SIGTERM; the kernel then sends SIGHUP to all others."""
    job = """
import signal, sys, time
def save(*_):
    time.sleep(0.5); print("saved", flush=True); sys.exit(0)
signal.signal(signal.SIGTERM, save); print("up", flush=True)
while True: time.sleep(0.1)
"""
    rig.shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(job)}; true", tty=dict(SIZE)).run()
    until_logged(rig, b"up\n")
    assert rig.link is not None
    rig.link.assign("stopped", 2, 1_000_001)
    rig.until("stopped")
    assert logged(rig) == b"up\nsaved\n"


def test_a_stop_by_sighup_ends_a_job_at_a_terminal(rig: Rig):
    rig.shell("echo up; exec sleep 1000", tty=dict(SIZE), stop_signal="HUP").run()
    until_logged(rig, b"up\n")
    assert rig.link is not None
    rig.link.assign("stopped", 2, 1_000_001)
    rig.until("stopped")
    assert rig.exit_record(1)["signal"] == signal.SIGHUP


def test_the_last_words_of_a_job_that_had_to_be_killed_are_in_the_log(rig: Rig):
    script = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for n in range(100000): print(n, flush=True); time.sleep(0.001)
"""
    at_terminal(rig, script, stop_grace_s=0.3)
    until_logged(rig, b"\n20\n")
    assert rig.link is not None
    rig.link.assign("stopped", 2, 1_000_001)
    rig.until("stopped")
    lines = logged(rig).decode().split("\n")
    assert lines[:-1] == [str(n) for n in range(len(lines) - 1)]
    assert rig.exit_record(1)["signal"] == signal.SIGKILL and keepers(rig) == []


def test_a_job_that_closes_its_terminal_runs_on_and_may_open_it_again(rig: Rig):
    """As a daemon does. Closing the last descriptor is not a hangup and does not end it."""
    go = os.path.join(rig.worker_dir, "go")
    rig.shell(
        f"trap 'echo HANGUP >{go}.hup' HUP; t=$(tty); echo before; exec </dev/null >/dev/null 2>&1;"
        f' while [ ! -e {go} ]; do sleep 0.05; done; echo after >"$t"; sleep 0.2; exit 7',
        tty=dict(SIZE), restart={"policy": "never"},
    ).run()  # fmt: skip
    pid = rig.until("running")["pid"]
    until_logged(rig, b"before\n")
    wait_until(lambda: keepers(rig) == [], 10, "its keeper to end: nobody has the terminal open")
    assert alive(pid)
    Path(go).touch()
    rig.until("failed")
    assert (logged(rig), rig.exit_record(1)["code"]) == (b"before\nafter\n", 7)
    assert not os.path.exists(f"{go}.hup") and keepers(rig) == []


def test_sighup_is_ignored_at_first_and_a_job_may_handle_it(rig: Rig):
    rig.shell(
        "kill -HUP $$; echo still here;"
        f' exec {shlex.quote(sys.executable)} -c "import os, signal;'
        " print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN);"
        " signal.signal(signal.SIGHUP, lambda *_: print('handled')); os.kill(os.getpid(), signal.SIGHUP)\"",
        tty=dict(SIZE),
    ).run()
    rig.until("exited")
    assert logged(rig) == b"still here\nTrue\nhandled\n"


def test_its_size_is_that_of_its_start_until_it_starts_again(rig: Rig):
    script = "trap 'echo RESIZED' WINCH; stty size; while :; do sleep 0.05; done"
    rig.shell(script, tty=dict(SIZE)).run()
    rig.until("running")
    until_logged(rig, b"24 80\n")
    rig.write_spec(generation=2, spec={**rig.assignment["spec"], "tty": {"rows": 50, "columns": 132}})
    assert rig.link is not None
    rig.link.assign()
    wait_until(lambda: rig.pump() or rig.status.get("generation") == 2, 10, "the new declaration")
    rig.link.restart(1, "c-1")
    assert rig.result("c-1")["status"] == "done"
    until_logged(rig, b"50 132\n", attempt=2)
    assert logged(rig) == b"24 80\n"


@pytest.mark.parametrize("groups", [True, False], ids=["control group", "no control group"])
def test_a_stop_leaves_no_process_of_a_job_at_a_terminal(rig: Rig, groups: bool):
    """Neither a daemon of it in a session of its own that holds the terminal open, nor the keeper."""
    if not groups and os.geteuid() != 0:
        pytest.skip("hiding control groups needs root")
    rig.without_groups = not groups
    rig.shell(STUBBORN_DAEMON + "echo up; exec sleep 1000", tty=dict(SIZE), stop_grace_s=0.5).run()
    pid = rig.until("running")["pid"]
    until_logged(rig, b"up\n")
    daemon = int(wait_until(lambda: re.search(rb"daemon (\d+)", logged(rig)), 10, "its pid")[1])
    cookie, group = str(rig.state()["cookie"]), _in_group(rig)
    assert alive(daemon) and (not groups or daemon in group)
    assert rig.link is not None
    rig.link.assign("stopped", 2, 1_000_001)
    rig.until("stopped")
    assert not alive(pid) and not alive(daemon) and processes.members_left_behind(None, cookie, _in_group(rig)) == []


NUMBERS = """
import signal, sys, time
def stop(*_):
    for n in range(3): print("stopping", n, flush=True); time.sleep(0.05)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: print("HANGUP", flush=True))
for n in range(1000000): print(n, flush=True); time.sleep(0.001)
"""


@pytest.mark.parametrize("groups", [True, False], ids=["control group", "no control group"])
def test_a_killed_runner_hangs_nobody_up_and_the_log_goes_on_until_the_job_has_ended(rig: Rig, groups: bool):
    if not groups and os.geteuid() != 0:
        pytest.skip("hiding control groups needs root")
    rig.without_groups = not groups
    at_terminal(rig, NUMBERS)
    until_logged(rig, b"\n50\n")
    pid, before = rig.until("running")["pid"], len(logged(rig))
    rig.kill_runner()
    wait_until(lambda: len(logged(rig)) > before + 1000, 10, "more of its output, without a runner")
    assert alive(pid) and len(keepers(rig)) == 1
    rig.start()
    rig.until("running", attempt=2)
    assert not alive(pid)
    text = logged(rig).decode()
    numbers, _, stopping = text.partition("stopping")
    lines = numbers.split("\n")
    assert lines[:-1] == [str(n) for n in range(len(lines) - 1)] and "HANGUP" not in text
    assert stopping == " 0\nstopping 1\nstopping 2\n"
    until_logged(rig, b"\n5\n", attempt=2)
    assert len(keepers(rig)) == 1


def test_a_killed_keeper_is_replaced_and_the_job_not_hung_up(rig: Rig):
    """The job says a line at each file that appears, so that nothing is between the two when the keeper is killed."""
    folder = rig.worker_dir
    script = f"""
import os, signal, time
signal.signal(signal.SIGHUP, lambda *_: print("HANGUP", flush=True))
for n in range(4):
    while not os.path.exists(f"{folder}/go.{{n}}"): time.sleep(0.01)
    print("line", n, flush=True)
"""
    at_terminal(rig, script)
    rig.until("running")
    for n in range(4):
        Path(folder, f"go.{n}").touch()
        until_logged(rig, b"line %d\n" % n)
        if n < 2:
            [keeper] = wait_until(lambda: keepers(rig), 10, "a keeper")
            os.kill(keeper, signal.SIGKILL)
            wait_until(lambda keeper=keeper: not alive(keeper), 10, "its death")
    rig.until("exited")
    assert logged(rig) == b"line 0\nline 1\nline 2\nline 3\n"


def test_a_job_with_setup_lines_a_lease_or_a_user_has_its_terminal_too(rig: Rig):
    rig.assignment["start"] = {"setup": ["export A=1"]}
    rig.shell('test -t 0 && test -t 1 && echo "$A" at $(tty) >/dev/tty', tty=dict(SIZE)).fence(60).run()
    rig.until("exited")
    assert logged(rig).startswith(b"1 at /dev/pts/")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_job_with_a_user_of_its_own_owns_its_terminal(rig: Rig):
    nobody = pwd.getpwnam("nobody")
    os.chmod(os.path.dirname(rig.worker_dir), 0o755)
    ids = {"uid": nobody.pw_uid, "gid": nobody.pw_gid, "groups": [nobody.pw_gid]}
    rig.assignment.update(cwd="/", start={"run_as": {"name": "nobody", **ids, "home": "/", "shell": "/bin/sh"}})
    rig.shell('t=$(tty); stat -c %U "$t"; echo opened >"$t"', tty=dict(SIZE)).run()
    rig.until("exited")
    assert logged(rig) == b"nobody\nopened\n"


def test_a_host_without_a_terminal_left_is_no_host_with_a_full_disk(monkeypatch: pytest.MonkeyPatch):
    def none_left() -> tuple[int, int]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "openpty", none_left)
    with pytest.raises(OSError) as caught:
        terminal.Terminal(24, 80, 1, "")
    assert caught.value.filename == "/dev/ptmx" and caught.value.errno not in NO_ROOM_ERRORS


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"container": ContainerSpec("i")}, "tty is not supported beside container"),
        ({"stderr": "separate"}, "a terminal has one stream"),
        ({"tty": TerminalSpec(rows=0)}, "tty.rows 0: expected a number from 1 to 1000"),
        ({"tty": TerminalSpec(columns=70000)}, "tty.columns 70000: expected"),
    ],
)
def test_what_a_terminal_cannot_be_is_refused_in_words(fields: dict[str, Any], said: str):
    from remote_agent.agent.spec_file import mistakes_in

    assert any(said in one for one in mistakes_in(WorkerSpec(**{"command": "a", "tty": TerminalSpec(), **fields})))
    assert mistakes_in(WorkerSpec(command="a", tty=TerminalSpec())) == []


def test_a_killed_agent_neither_touches_the_job_nor_its_output(host: Host, manager: FakeManager):
    manager.assign("w1", [sys.executable, "-c", NUMBERS], tty=TerminalSpec())
    host.start()
    wait_until(lambda: manager.report("w1").get("state") == "running", 40, "its start")
    pid = manager.report("w1")["pid"]
    log = Path(paths.log_file(paths.worker_dir(host.directory, "w1"), 1))
    host.kill_agent()
    before = log.stat().st_size
    wait_until(lambda: log.stat().st_size > before + 1000, 10, "more of its output, without an agent")
    host.start()
    wait_until(lambda: manager.report("w1").get("pid") == pid, 40, "the same process")
    lines = log.read_bytes().decode().split("\n")
    assert alive(pid) and lines[:-1] == [str(n) for n in range(len(lines) - 1)]
