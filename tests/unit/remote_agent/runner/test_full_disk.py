"""A disk that refuses everything: no space, no inodes, read-only. Decisions stay valid, and are carried out once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent.worker import WorkerHandle
from remote_agent.logs.watcher import KEEP_TAIL_BYTES, MIN_AHEAD_BYTES, LogFiles, ShippedWorker
from remote_agent.protocol.messages import Assignment, WorkerSpec
from remote_agent.runner import control
from remote_agent.system import disk_space, paths, processes, state_files
from remote_agent.system.locks import lock_held
from remote_agent.system.state_files import SLOT_BYTES
from remote_agent.telemetry import host_disk
from tests.unit.runner_rig import FOREVER, PYTHON, ROOT, Rig, alive
from tests.waiting import wait_until

MIB = 2**20


class Disk:
    """A tmpfs of its own; `fill` it, make it `read_only`, or give it `room`."""

    def __init__(self, place: str, options: str) -> None:
        self.place = place
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)

    def fill(self, what: str) -> None:
        if what == "read_only":
            subprocess.run(["mount", "-o", "remount,ro", self.place], check=True)
            return
        folder = Path(self.place, "filler")
        folder.mkdir()
        with contextlib.suppress(OSError):
            if what == "inodes":
                for number in range(100_000):
                    (folder / str(number)).touch()
            else:
                with open(folder / "bytes", "wb", buffering=0) as file:
                    while file.write(b"x" * 4096) == 4096:
                        pass

    def room(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", self.place], check=True)
        shutil.rmtree(os.path.join(self.place, "filler"), ignore_errors=True)


@pytest.fixture
def disk() -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tempfile.mkdtemp(prefix="pgd")
    yield Disk(place, "size=2m,nr_inodes=200")
    subprocess.run(["umount", "-l", place], check=True)
    os.rmdir(place)


@pytest.fixture
def rig(disk: Disk) -> Iterator[Rig]:
    """Locks and sockets lie on another file system, as they do under /run or /tmp."""
    made = Rig(disk.place)
    made.runtime_dir = tempfile.mkdtemp(prefix="pgr")
    yield made
    with contextlib.suppress(subprocess.CalledProcessError):
        disk.room()
    made.clean_up()
    shutil.rmtree(made.runtime_dir)


def known(rig: Rig) -> dict[str, Any]:
    """What the next runner and the next agent read."""
    return dict(state_files.read(rig.worker_dir, rig.runtime_dir) or {})


def runner_alive(rig: Rig) -> bool:
    return lock_held(paths.runner_lock(rig.runtime_dir, rig.worker_dir))


REFUSALS = ["space", "inodes", "all"]  # all: the reserve, too; the runtime directory is left


def refuse(rig: Rig, disk: Disk, what: str) -> None:
    disk.fill("inodes" if what == "all" else what)
    if what == "all":
        os.unlink(paths.state_reserve(rig.worker_dir))
        Path(disk.place, "filler", "last").touch()


@pytest.mark.parametrize("what", REFUSALS)
def test_stop_reaches_its_runner_although_it_cannot_be_written(rig: Rig, disk: Disk, what: str) -> None:
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    refuse(rig, disk, what)
    assert rig.link
    rig.link.assign("stopped", 2, 1_000_001)
    wait_until(lambda: not alive(pid), 5, "the child's end")
    wait_until(lambda: known(rig).get("state") == "stopped", 5, "stopped")
    assert (known(rig)["generation"], known(rig)["held"]) == (2, True)


@pytest.mark.parametrize("what", REFUSALS)
def test_what_ended_on_a_full_disk_is_not_run_again(rig: Rig, disk: Disk, what: str) -> None:
    """The runner exits only once its end is on some disk, where its successor reads it."""
    flag = os.path.join(rig.runtime_dir, "end")
    rig.shell(f"while [ ! -e {flag} ]; do sleep 0.02; done; exit 0", oneshot=True).run()
    rig.until("running")
    refuse(rig, disk, what)
    Path(flag).touch()
    rig.runner_gone()
    assert (known(rig)["state"], known(rig)["attempt"]) == ("exited", 1)
    worker = WorkerHandle("w1", rig.worker_dir, rig.runtime_dir)
    worker.read_status()
    assert (worker.state, worker.report().pid) == ("exited", None)
    disk.room()
    assert not Path(paths.log_file(rig.worker_dir, 2)).exists()


def test_a_runner_whose_end_no_disk_takes_stays_and_leaves_once_one_does(rig: Rig, disk: Disk) -> None:
    """Nor the runtime directory: it keeps responding, starts nothing, and finally writes its end."""
    rig.runtime_dir, kept = os.path.join(disk.place, "r"), rig.runtime_dir
    rig.shell("sleep 0.3; exit 0", oneshot=True).run()
    rig.until("running")
    refuse(rig, disk, "all")
    try:
        rig.until("exited")
        runner = rig.runner_identity()
        assert rig.link
        rig.link.kill(1, "c-1")
        assert rig.result("c-1")["status"] == "done"
        rig.link.restart(1, "c-2")
        assert rig.result("c-2")["status"] == "failed"
        os.kill(runner.pid, signal.SIGTERM)
        rig.link.assign("stopped", 7, 1_000_001)
        wait_until(lambda: rig.pump() or rig.status["generation"] == 7, 5, "the stop is noted")
        assert runner_alive(rig) and processes.is_alive(runner)
        disk.room()
        rig.runner_gone()
        assert (rig.state()["state"], rig.state()["generation"]) == ("exited", 7)
    finally:
        disk.room()
        shutil.rmtree(kept)
        os.makedirs(kept)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["space", "inodes"])
def test_start_waits_for_room_and_spends_nothing(rig: Rig, disk: Disk, what: str) -> None:
    """Its log cannot be made: nothing was started, so nothing has failed. With room it starts within seconds."""
    rig.shell(FOREVER, restart={"max_attempts": 1, "backoff_s": [0.0]}).run()
    pid = rig.until("running")["pid"]
    disk.fill(what)
    os.kill(pid, signal.SIGKILL)
    if what == "inodes":
        status = rig.until("backoff", attempt=2)
        assert "free space on the host; it then starts automatically, and no restart is counted" in status["reason"]
        time.sleep(2.5)  # at least one more try
        rig.pump()
        assert (rig.status["state"], rig.status["restarts"], rig.status["attempt"]) == ("backoff", 1, 2)
        disk.room()
    status = rig.until("running", attempt=2)
    assert status["restarts"] == 1


def test_a_budget_is_spent_once_across_runners_on_a_full_disk(rig: Rig, disk: Disk) -> None:
    """Each runner is killed after the start that it could record only in the reserve."""
    rig.shell(FOREVER, restart={"max_attempts": 2, "backoff_s": [0.0]}).run()
    rig.until("running")
    disk.fill("space")  # a log can be made, which on this file system needs no block
    os.kill(int(known(rig)["pid"]), signal.SIGKILL)
    for attempt in (2, 3):
        rig.until("running", attempt=attempt)
        assert rig.state()["attempt"] == 1, "state.json is from before"
        rig.kill_runner_as_known(known(rig))
        processes.signal_all(processes.members_left_behind(None, str(known(rig)["cookie"])), signal.SIGKILL)
        assert (known(rig)["attempt"], known(rig)["restarts"]) == (attempt, attempt - 1)
        if attempt == 3:
            disk.room()
        assert rig.start() == control.EXIT_STARTED
    assert "all 2 restarts are used up" in rig.until("failed")["reason"]
    assert not Path(paths.log_file(rig.worker_dir, 4)).exists()


def test_status_shows_no_process_that_is_dead(rig: Rig, disk: Disk) -> None:
    rig.shell(FOREVER).run()
    pid = int(rig.until("running")["pid"])
    disk.fill("space")
    rig.kill_runner()
    worker = WorkerHandle("w1", rig.worker_dir, rig.runtime_dir)
    worker.read_status()
    assert (worker.report().state, worker.report().pid) == ("running", pid)  # unsupervised, but running
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), 5, "its death")
    assert (worker.report().state, worker.report().pid) == ("backoff", None)
    assert "its runner and its process have ended" in worker.report().reason


def test_stop_reaches_what_a_killed_runner_left_although_it_cannot_be_written(rig: Rig, disk: Disk) -> None:
    """There is no listener: the sweeping runner gets it at its start."""
    rig.shell(FOREVER).run()
    pid = int(rig.until("running")["pid"])
    disk.fill("inodes")
    rig.kill_runner()
    worker = WorkerHandle("w1", rig.worker_dir, rig.runtime_dir)
    worker.read_status()
    worker.assign(Assignment("w1", WorkerSpec("sleep 1"), "stopped", 2, 1_000_001), "/", {"PATH": "/bin"})
    assert "No space left on device" in worker.unwritten
    wait_until(lambda: worker.converge(time.monotonic(), PYTHON, ROOT, True) or not alive(pid), 10, "a runner")
    wait_until(lambda: not alive(pid) and known(rig).get("state") == "stopped", 10, "its end")
    assert (known(rig)["generation"], known(rig)["attempt"]) == (2, 1)
    if worker.link is not None:
        worker.link.close()


# ----------------------------------------------------------------------------------------------------- the copies


def test_the_newest_copy_counts_wherever_it_is(tmp_path: Path) -> None:
    worker, runtime = str(tmp_path / "w-0123456789"), str(tmp_path)
    os.makedirs(worker)
    assert state_files.read(worker, runtime) is None
    assert state_files.make_reserve(worker)
    states = [{"event_seq": 5, "writes": number, "state": str(number)} for number in range(1, 6)]
    paths.write_json(paths.state_file(worker), states[0])
    for state in states[1:4]:
        assert state_files.keep_in_reserve(worker, state)
        assert state_files.read(worker) == state
    state_files.keep_in_runtime(runtime, worker, states[4])
    assert state_files.read(worker, runtime) == states[4]
    # A runner of an earlier release has no `writes`: its change of state is newer nevertheless.
    paths.write_json(paths.state_file(worker), {"event_seq": 6, "state": "stopped"})
    assert (state_files.read(worker, runtime) or {})["state"] == "stopped"


@pytest.mark.parametrize("at", [3, 30, 100])
def test_a_torn_slot_leaves_the_one_before(tmp_path: Path, at: int) -> None:
    """A power cut in the middle of a write."""
    worker = str(tmp_path)
    state_files.make_reserve(worker)
    for number in (1, 2):
        state_files.keep_in_reserve(worker, {"event_seq": number, "state": "x" * 200})
    with open(paths.state_reserve(worker), "r+b") as file:
        file.seek(SLOT_BYTES + at)
        file.write(b"\xff")
    assert (state_files.read(worker) or {})["event_seq"] == 1


def test_what_decides_is_kept_however_long_the_words(tmp_path: Path) -> None:
    state_files.make_reserve(str(tmp_path))
    state = {"event_seq": 1, "state": "failed", "reason": "w" * 9000, "last_exit": {"detail": "d" * 9000, "code": 3}}
    assert state_files.keep_in_reserve(str(tmp_path), state)
    found: Any = state_files.read(str(tmp_path))
    assert (found["state"], found["last_exit"]["code"]) == ("failed", 3)


def test_the_agent_trusts_what_a_runner_said_over_an_older_file(tmp_path: Path) -> None:
    """That runner was killed before any disk accepted its last record."""
    directory = tmp_path / "w-0123456789"
    directory.mkdir()
    (directory / "state.json").write_text(json.dumps({"state": "running", "event_seq": 5, "writes": 9}))
    worker = WorkerHandle("w", str(directory), str(tmp_path))
    worker.status = {"state": "exited", "event_seq": 6, "writes": 11}
    worker.read_status()
    assert worker.state == "exited"


# ------------------------------------------------------------------------------------------------- a job that prints


def test_a_job_prints_on_when_the_disk_is_full(disk: Disk) -> None:
    """Space was reserved in its log; then its own oldest bytes are removed, those that the manager has first."""
    worker = Path(disk.place, "w-0123456789")
    log = Path(paths.log_file(str(worker), 1))
    log.parent.mkdir(parents=True)
    log.write_bytes(b"")
    files = LogFiles(lambda kind, text: None)
    files.update([ShippedWorker("w", str(worker), 1)])
    files.scan(0.0)
    if disk_space.allocate(os.open(log, os.O_WRONLY), 0, 4096):
        pytest.skip("this tmpfs cannot set room aside")
    disk.fill("space")
    (one,) = files.workers()
    printed = 0
    with open(log, "ab", buffering=0) as out:
        for step in range(1, 400):
            assert out.write(b"y" * 16384) == 16384, f"refused after {printed} bytes"
            printed += 16384
            one.files["1.out"].acked = max(0, printed - 65536) if step < 200 else one.files["1.out"].acked
            files.scan(step * 0.1)
    assert log.stat().st_size == printed > 3 * disk_space.LOW_BYTES
    assert log.stat().st_blocks * 512 <= 2 * MIB
    assert log.read_bytes()[-KEEP_TAIL_BYTES // 2 :].strip(b"y") == b""


def test_room_that_was_set_aside_is_given_back_when_the_attempt_is_over(disk_path: Path) -> None:
    worker = disk_path / "w-0123456789"
    log = Path(paths.log_file(str(worker), 1))
    log.parent.mkdir(parents=True)
    log.write_bytes(b"printed\n")
    files = LogFiles(lambda kind, text: None)
    files.update([ShippedWorker("w", str(worker), 1)])
    files.scan(0.0)
    if log.stat().st_blocks * 512 < MIN_AHEAD_BYTES:
        pytest.skip("this file system cannot set room aside")
    assert log.stat().st_size == 8
    again = LogFiles(lambda kind, text: None)  # another agent, after the attempt's end
    again.update([ShippedWorker("w", str(worker), 1, settled=True)])
    again.scan(0.0)
    again.scan(10.0)
    assert log.stat().st_blocks * 512 < MIN_AHEAD_BYTES and log.read_bytes() == b"printed\n"


# -------------------------------------------------------------------------------------------------------- notifications


@pytest.mark.parametrize("what", ["space", "inodes", "read_only"])
def test_the_agent_names_what_its_disk_lacks(disk: Disk, what: str) -> None:
    assert host_disk.probe(disk.place, thorough=True) == ""
    disk.fill(what)
    assert host_disk.probe(disk.place, thorough=True) == what
    disk.room()
    assert host_disk.probe(disk.place, thorough=True) == ""
    assert not [name for name in os.listdir(disk.place) if name.startswith(".probe")]


def test_a_disk_is_well_again_only_when_seen_so_twice() -> None:
    watched = host_disk.HostDisk("/", lambda tag, job: True)
    assert watched.take("space") and not watched.take("space")
    assert not watched.take("") and watched.trouble == "space"
    assert watched.take("") and watched.trouble == ""


# Lines to a terminal and their count beside it, which says whether the job is waiting.
AT_TERMINAL = """
import os, time
while not os.path.exists("{go}"): time.sleep(0.02)
count = os.open("{count}", os.O_WRONLY | os.O_CREAT)
for n in range(6000):
    os.write(1, b"%06d %s\\n" % (n, b"x" * 93))
    os.pwrite(count, b"%d" % n, 0)
"""


def at_a_full_disk(rig: Rig, disk: Disk) -> Path:
    """A job that writes more to its terminal than fits on the disk, once it waits there; the file with its count."""
    count = Path(rig.runtime_dir, "count")
    script = Path(rig.runtime_dir, "job.py")
    go = Path(rig.runtime_dir, "go")
    script.write_text(AT_TERMINAL.format(count=count, go=go))
    rig.shell(f"exec {PYTHON} {script}", tty={"rows": 24, "columns": 80}, stop_grace_s=1.0).run()
    rig.until("running")
    disk.fill("space")
    go.touch()
    seen: list[str] = []

    def waits() -> bool:
        seen.append(count.read_text() if count.exists() else "")
        return len(seen) > 10 and len(set(seen[-10:])) == 1 and seen[-1] != ""

    wait_until(waits, 20, "the job waits", every_s=0.1)
    return count


def test_a_job_at_a_terminal_waits_for_room_and_loses_no_byte(rig: Rig, disk: Disk) -> None:
    count = at_a_full_disk(rig, disk)
    assert int(count.read_text()) < 5999 and rig.until("running")
    disk.room()
    rig.until("exited")
    lines = Path(paths.log_file(rig.worker_dir, 1)).read_text().splitlines()
    assert [line[:6] for line in lines] == [f"{n:06d}" for n in range(6000)]


def test_a_stop_ends_a_job_that_waits_at_its_terminal_for_room(rig: Rig, disk: Disk) -> None:
    at_a_full_disk(rig, disk)
    pid, cookie = rig.until("running")["pid"], str(known(rig)["cookie"])
    assert rig.link
    rig.link.assign("stopped", 2, 1_000_001)
    wait_until(lambda: known(rig).get("state") == "stopped", 20, "stopped")
    assert not alive(pid) and processes.members_left_behind(None, cookie, []) == []
