"""Nothing of a worker survives its end, and no other process is hit: hostile process trees and reused pids.

Short by default (10 stops, 50 reused pids); 100 and 1,000 with PROCGUARD_LONG_TESTS=1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from remote_agent.system import cgroup, processes
from remote_agent.system.cgroup import WorkerGroup
from tests.sizes import LONG
from tests.unit.runner_rig import ROOT, Rig, make_rig, remove
from tests.waiting import wait_until

STOPS = 100 if LONG else 10
REUSED_PIDS = 1_000 if LONG else 50
SHELL_THAT_IGNORES = 'trap "" TERM INT HUP USR1; sleep {mark} & sleep {mark} & while :; do sleep {mark}; done'


def marked(mark: str) -> list[int]:
    """The live processes with `mark` in their command line, found without ProcGuard's code."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in words:
                found.append(int(name))
    return found


@pytest.fixture
def mark():
    """A unique argument of sleep."""
    return f"{86400 + os.getpid()}.{int.from_bytes(os.urandom(4), 'big')}"


@pytest.fixture
def rig(mark: str):
    made, directory = make_rig()
    yield made
    made.clean_up()
    for pid in marked(mark):  # only where a test has failed
        os.kill(pid, 9)
    remove(directory)


@pytest.fixture
def group():
    """Skips the test if this user cannot create control groups."""
    made = WorkerGroup(os.urandom(16).hex())
    if not made.path:
        pytest.skip("no writable cgroup v2 with cgroup.kill here")
    yield made
    made.remove()


def worst_tree(mark: str) -> str:
    """Double fork and setsid, every polite signal ignored, the environment scrubbed in one branch."""
    daemon = SHELL_THAT_IGNORES.format(mark=mark)
    return f"(setsid sh -c '{daemon}' &); (env -i /usr/bin/setsid /bin/sh -c '{daemon}' &); {daemon}"


def stop(rig: Rig) -> None:
    rig.write_spec(desired="stopped", generation=int(rig.assignment["generation"]) + 1)
    assert rig.link
    rig.link.assign()
    rig.until("stopped")
    rig.runner_gone()


# -------------------------------------------------------------------------------------------------- 0 survivors


def test_stops_of_the_worst_tree_leave_no_survivor(rig: Rig, mark: str):
    """Every one of them; the clock starts when the whole tree is there."""
    rig.shell(worst_tree(mark), stop_grace_s=0.05)
    for _ in range(STOPS):
        rig.assignment.update(desired="running", generation=int(rig.assignment["generation"]) + 1)
        rig.run()
        rig.until("running")
        wait_until(lambda: len(marked(mark)) >= 12, 10, "three shells with three sleeps each, and their shells")
        stop(rig)
        assert marked(mark) == []
        assert rig.link
        rig.link.close()


def test_tree_that_forks_without_end_is_ended(rig: Rig, mark: str):
    """Processes fork during the scan: SIGKILL is repeated, or the kernel sends it to all at once."""
    one = f"setsid sh -c 'trap \"\" TERM; sleep 0.2; sleep {mark}; true'"
    rig.shell(f"trap '' TERM; echo up; while :; do ({one} &); sleep 0.01; done", stop_grace_s=0.1)
    rig.run()
    rig.until("running")
    wait_until(lambda: len(marked(mark)) > 20, 10, "a crowd")
    stop(rig)
    assert marked(mark) == []


@pytest.mark.parametrize("scrubbed", [False, True])
def test_tree_of_a_killed_runner_is_swept_whatever_it_did_to_its_environment(
    rig: Rig, mark: str, group: WorkerGroup, scrubbed: bool
):
    """No parent, no session, no cookie, its recorded child dead: it is still in the control group."""
    env = "env -i /usr/bin/" if scrubbed else ""
    rig.shell(f"({env}setsid /bin/sh -c 'sleep {mark}; true' &); echo up; exec sleep {mark}", stop_grace_s=0.2).run()
    child = rig.until("running")["pid"]
    wait_until(lambda: len(marked(mark)) == 3, 10, "child, daemon and the daemon's child")
    assert set(rig.state()["cgroup"].split("/")) & {f"{cgroup.PREFIX}{rig.state()['cookie'][:16]}"}
    rig.kill_runner()
    os.kill(child, 9)  # nothing is left that state.json names
    wait_until(lambda: len(marked(mark)) == 2, 10, "the child's death")
    before = set(marked(mark))
    rig.run()
    rig.until("running", attempt=2)
    wait_until(lambda: len(marked(mark)) == 3, 10, "the new tree")
    assert not before & set(marked(mark))


@pytest.mark.slow
@pytest.mark.parametrize("remembers", ["mark", "agent"])
def test_without_a_group_a_scrubbed_daemon_of_a_killed_runner_is_swept(rig: Rig, mark: str, remembers: str):
    """env -i, setsid, its parents dead: it has the runner's mark; if it has dropped that, the agent has seen it.
    An unrelated process with the same command is not affected."""
    if not shutil.which("unshare") or os.getuid() != 0:
        pytest.skip("needs root and unshare")
    rig.without_groups = True
    off = "prlimit --rttime=unlimited " if remembers == "agent" else ""
    daemon = f"env -i /usr/bin/setsid {off}/bin/sh -c 'sleep {mark}; true'"
    stranger = subprocess.Popen(["sleep", f"{mark}0"], start_new_session=True)
    try:
        for round_ in range(20 if LONG else 3):
            attempt = 2 * round_ + 1
            rig.shell(f"({daemon} &); echo up; exec sleep {mark}", stop_grace_s=0.2).run()
            child = rig.until("running", attempt=attempt)["pid"]
            assert rig.state()["cgroup"] == ""
            wait_until(lambda: len(marked(mark)) == 4, 10, "child, daemon, the daemon's child, and the stranger")
            runner = rig.runner_identity()
            if remembers == "agent":
                below = processes.members_below(runner.pid)
                rig.seen = [(one.pid, one.start) for one in below] + [(stranger.pid, 1)]
            rig.kill_runner()
            os.kill(child, 9)
            before = set(marked(mark)) - {stranger.pid}
            rig.run()
            rig.until("running", attempt=attempt + 1)
            assert not before & set(marked(mark))
            assert stranger.poll() is None
            rig.assignment["generation"] += 1
            stop(rig)
            assert marked(mark) == [stranger.pid]
            rig.assignment.update(desired="running", generation=rig.assignment["generation"] + 1)
            rig.seen = []
    finally:
        stranger.kill()
        stranger.wait()


def test_group_is_gone_when_the_worker_has_settled(rig: Rig, mark: str, group: WorkerGroup):
    """Nothing is left under /sys/fs/cgroup, and the runner was inside while the child ran."""
    rig.shell(f"exec sleep {mark}").run()
    running = rig.until("running")
    path = running["cgroup"]
    assert sorted(cgroup._read_pids(path)) == sorted([running["pid"], running["runner_pid"]])
    stop(rig)
    assert not os.path.exists(path)


def test_dead_of_the_tree_are_collected(rig: Rig, mark: str):
    """Orphans that end become zombies of their subreaper: it collects them."""
    rig.shell(f"for i in 1 2 3 4 5 6 7 8; do (setsid sh -c 'exit 3' &); done; echo up; exec sleep {mark}").run()
    runner = rig.until("running")["runner_pid"]
    rig.logged(1)

    def zombies() -> list[int]:
        return [one.pid for one in processes.all_processes().values() if one.ppid == runner and one.state == "Z"]

    wait_until(lambda: not zombies(), 5, "no zombie below the runner")
    assert len(marked(mark)) == 1


# ----------------------------------------------------------------------------------------------------- the group


def test_everything_inside_dies_at_one_instant_but_not_we(group: WorkerGroup, mark: str):
    group.join()
    assert os.path.realpath(cgroup.own_group()) == os.path.realpath(group.path)
    children = [subprocess.Popen(["sleep", mark], start_new_session=True) for _ in range(5)]
    assert group.members() == sorted(child.pid for child in children)
    group.kill()
    assert [child.wait(5) for child in children] == [-9] * 5
    assert cgroup.own_group() != group.path
    group.remove()
    assert not os.path.exists(group.path)


def test_what_was_started_before_the_group_was_joined_is_moved_into_it(
    group: WorkerGroup, mark: str, monkeypatch: pytest.MonkeyPatch
):
    """Children and grandchildren in sessions of their own, and what they start later."""
    script = f"(setsid sleep {mark} & exec setsid sleep {mark}) & sleep {mark} & read line; sleep {mark}"
    child = subprocess.Popen(["sh", "-c", script], start_new_session=True, stdin=subprocess.PIPE)
    wait_until(lambda: len(marked(mark)) == 4, 10, "the shell and three below it")
    early = set(marked(mark))
    # not the others below the tests: the end of the group would kill the fork servers of tests/forked.py
    below = cgroup._descendants
    monkeypatch.setattr(cgroup, "_descendants", lambda _: [child.pid, *below(child.pid)])
    group.join_with_descendants()
    assert set(group.members()) >= early | {child.pid}
    assert child.stdin
    child.stdin.write(b"on\n")
    child.stdin.flush()
    wait_until(lambda: len(marked(mark)) == 5, 10, "one that was started later")
    assert set(group.members()) >= set(marked(mark))
    group.kill()
    assert child.wait(5) == -9
    wait_until(lambda: not marked(mark), 5, "their end")


def test_without_a_right_there_is_no_group_and_no_word(tmp_path: Path, monkeypatch):
    """A v1 host, a container with a read-only /sys, a kernel before cgroup.kill."""
    monkeypatch.setattr(cgroup, "MOUNTS", (str(tmp_path / "nothing"),))
    assert cgroup.own_group() == ""
    monkeypatch.setattr(cgroup, "own_group", lambda: str(tmp_path))
    (tmp_path / "cgroup.procs").write_text("")
    for made in (WorkerGroup(), WorkerGroup("c0ffee" * 5, "/etc")):
        assert (made.path, made.members()) == ("", [])
        made.join()
        made.kill()
        made.remove()
    assert [entry.name for entry in tmp_path.iterdir()] == ["cgroup.procs"]


def test_a_group_of_another_name_is_never_touched(group: WorkerGroup):
    """state.json may say anything: only what bears the worker's cookie is its group."""
    assert not group._is_ours("/sys/fs/cgroup/unified")
    assert not group._is_ours("/sys/fs/cgroup/system.slice")
    assert not group._is_ours("/tmp/" + group._name)
    assert group._is_ours(os.path.join(cgroup.MOUNTS[0], "elsewhere", group._name))


# ---------------------------------------------------------------------------------------------------- reused pids


@pytest.mark.slow
def test_reused_pids_are_never_signalled():
    """In its own pid namespace with controlled pids: unrelated processes with reused pids."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    script = [sys.executable, "-m", "tests.unit.pid_reuse", str(REUSED_PIDS)]
    done = subprocess.run([*command, *script], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    if "cannot" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout.split() == ["reused", str(REUSED_PIDS), "wrong", "0", "missed", "0"], done.stderr
