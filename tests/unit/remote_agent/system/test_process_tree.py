"""Identity and membership of real processes; unrelated processes are never found and never signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote_agent.system import processes
from remote_agent.system.processes import Identity, StatLine
from tests.waiting import wait_until

COOKIE = "c0ffee" + os.urandom(8).hex()


@pytest.fixture
def sleeper():
    child = subprocess.Popen(["sleep", "1000"], env={"PATH": os.environ["PATH"], "PROCGUARD_COOKIE": f"{COOKIE}-3"})
    wait_until(lambda: processes.carries_cookie(child.pid, COOKIE), 5, "the exec")
    yield child
    child.kill()
    child.wait()


def other(identity: Identity, **change: Any) -> Identity:
    return Identity(**{"pid": identity.pid, "start": identity.start, "boot_id": identity.boot_id, **change})


def test_identity_is_pid_start_and_boot(sleeper):
    """The same process twice gives the same identity."""
    identity = processes.identity_of(sleeper.pid)
    assert identity == processes.identity_of(sleeper.pid)
    assert identity.pid == sleeper.pid and identity.start > 0 and identity.boot_id == processes.boot_id()
    assert processes.is_alive(identity)


@pytest.mark.parametrize("change", [{"start": 1}, {"boot_id": "another boot"}, {"boot_id": ""}, {"boot_id": None}])
def test_a_stranger_with_our_pid_is_never_signalled(sleeper, change):
    """A different start time or boot: another process."""
    stranger = other(processes.identity_of(sleeper.pid), **change)
    assert not processes.is_alive(stranger)
    assert not processes.send_signal(stranger, signal.SIGKILL)
    assert sleeper.poll() is None


def test_nonsense_pids_are_nobody():
    """kill(0) and kill(-1) would hit a whole group, or all processes."""
    for pid in (0, -1, 2**22 + 7):
        assert not processes.send_signal(Identity(pid, 0, processes.boot_id()), 0)


@pytest.mark.parametrize("way", ["os", "syscall", "kill"])
def test_signal_reaches_its_process_every_way(sleeper, way, monkeypatch):
    """By os.pidfd_open, by the bare system call (pypy), and by kill() on old kernels."""
    if way != "os":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.delattr(signal, "pidfd_send_signal", raising=False)
    if way == "kill":
        monkeypatch.setattr(processes, "_open_pidfd", lambda pid: None)
    assert processes.send_signal(processes.identity_of(sleeper.pid), signal.SIGKILL)
    assert sleeper.wait(5) == -signal.SIGKILL


def test_zombie_is_not_alive_and_no_signal_harms():
    """Dead but not collected."""
    child = subprocess.Popen(["true"])
    identity = processes.identity_of(child.pid)
    wait_until(lambda: not processes.is_alive(identity), 5, "the end of true")
    processes.send_signal(identity, signal.SIGKILL)
    assert child.wait() == 0


def test_names_with_brackets_and_spaces_are_read(tmp_path):
    """The command name in /proc/<pid>/stat may hold anything."""
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(odd), "1000"])
    try:
        wait_until(lambda: b"a) R" in Path(f"/proc/{child.pid}/stat").read_bytes(), 5, "the exec")
        found = processes.read_process(child.pid)
        assert (found.pid, found.ppid) == (child.pid, os.getpid()) and found.start > 0
    finally:
        child.kill()
        child.wait()


def test_descendants_are_found_at_every_depth_and_the_dead_left_out():
    """Pure: a table of processes with a zombie in the middle and a loop that could not be."""
    table = {
        pid: StatLine(pid, ppid, pid, state, 1)
        for pid, ppid, state in [(10, 1, "S"), (11, 10, "Z"), (12, 11, "S"), (13, 12, "D"), (20, 1, "S"), (30, 30, "S")]
    }
    assert [p.pid for p in processes.descendants({10}, table)] == [12, 13]
    assert processes.descendants({30}, table) == []


def test_cookie_finds_a_daemon_that_nobody_parents_any_more(tmp_path):
    """Double fork, setsid, runner dead: only the environment identifies it. Its later children count too."""
    script = "setsid sh -c 'echo $$ > pid; env -i sleep 1000; true' >/dev/null 2>&1 &"
    env = {"PATH": os.environ["PATH"], "PROCGUARD_COOKIE": f"{COOKIE}-1"}
    subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, env=env, check=True)
    pid = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 5, "the daemon"))
    try:
        wait_until(lambda: len(processes.members_left_behind(None, COOKIE)) == 2, 5, "daemon and its scrubbed child")
        assert pid in {member.pid for member in processes.members_left_behind(None, COOKIE)}
        assert processes.members_left_behind(None, "another" + COOKIE) == []
        assert processes.members_left_behind(None, "") == []
    finally:
        processes.signal_all(processes.members_left_behind(None, COOKIE), signal.SIGKILL)
    wait_until(lambda: processes.members_left_behind(None, COOKIE) == [], 5, "their end")


def test_recorded_child_is_found_without_cookie(sleeper):
    """A job that overwrote its own environment (setproctitle) is still known by its identity."""
    child = processes.identity_of(sleeper.pid)
    assert processes.members_left_behind(child, "no such cookie") == [child]
    assert processes.members_left_behind(other(child, start=1), "no such cookie") == []


def test_mark_finds_a_daemon_that_scrubbed_its_environment_and_nobody_else():
    """Inherited over fork, exec, env -i and setsid; another cookie's mark is another one."""
    script = (
        "import os, sys; from remote_agent.system import processes as p; assert p.mark_descendants(sys.argv[1]);"
        "os.execvp('env', ['env', '-i', '/usr/bin/setsid', '/bin/sh', '-c', 'sleep 1000; true'])"
    )
    daemon = subprocess.Popen([sys.executable, "-c", script, COOKIE])
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        wait_until(lambda: len(processes.members_left_behind(None, COOKIE)) == 2, 5, "the shell and its child")
        found = {one.pid for one in processes.members_left_behind(None, COOKIE)}
        assert daemon.pid in found and stranger.pid not in found
        assert processes.members_left_behind(None, "0" * 32) == []
        assert processes.mark_descendants("no cookie") is None
    finally:
        processes.signal_all(processes.members_left_behind(None, COOKIE), signal.SIGKILL)
        for one in (daemon, stranger):
            one.kill()
            one.wait()


def test_what_the_agent_saw_is_a_member_only_as_the_very_process(sleeper):
    seen = processes.identity_of(sleeper.pid)
    assert processes.members_left_behind(None, "", seen=[seen]) == [seen]
    assert processes.members_left_behind(None, "", seen=[other(seen, start=1)]) == []
    assert processes.members_left_behind(None, "", seen=[other(seen, boot_id="another")]) == []


def test_an_observer_is_never_a_member():
    """A runner started from inside a job must not sweep itself or its ancestors."""
    script = (
        "from remote_agent.system import processes as p; import os;"
        "print([m.pid for m in p.members_left_behind(None, os.environ['PROCGUARD_COOKIE'])])"
    )
    env = {**os.environ, "PROCGUARD_COOKIE": COOKIE + "-own"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_whose_parent_ends_during_the_search_is_found():
    """Its line in /proc names the parent that has gone; the runner is its parent by then."""
    script = """
import os, subprocess
from remote_agent.system import processes as p
assert p.become_subreaper()
shell = subprocess.Popen(['/bin/sh', '-c', 'sleep 1000 & echo $!; exec sleep 1000'], stdout=subprocess.PIPE)
job = int(shell.stdout.readline())
look = p.all_processes
def while_the_parent_ends():
    found = look()
    shell.kill(); shell.wait()
    del found[shell.pid]  # it was read after that
    return found
p.all_processes = while_the_parent_ends
members = p.members_below(os.getpid())
os.kill(job, 9)
assert [one.pid for one in members] == [job], (members, job)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_subreaper_adopts_orphans():
    """A double-forked grandchild becomes the child of the process that called become_subreaper."""
    script = (
        "import os, subprocess; from remote_agent.system import processes as p; assert p.become_subreaper();"
        "subprocess.run(['/bin/sh', '-c', 'setsid sleep 1000 &']);"
        "members = p.members_below(os.getpid()); print(len(members));"
        "p.signal_all(members, 9); os.waitpid(-1, 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == "1", done.stderr
