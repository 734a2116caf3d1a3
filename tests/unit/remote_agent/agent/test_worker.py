"""One worker as its agent sees it, without a runner: validity of the files of an earlier one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from remote_agent.agent.leases import LeaseHolder
from remote_agent.agent.worker import WorkerHandle
from remote_agent.protocol.messages import Assignment, Lease, WorkerSpec
from remote_agent.runner.leases import AWAITS_LEASE, boottime_ns
from remote_agent.system import processes
from remote_agent.system.processes import boot_id


@pytest.mark.parametrize(
    ("boot", "start", "state"), [("another", 0, "backoff"), ("", 0, "running"), ("", 1, "backoff")]
)
def test_only_a_process_that_lives_is_reported_as_running(tmp_path: Path, boot: str, start: int, state: str) -> None:
    """In the same boot a worker without a runner may still have its child; after another boot no process of it is
    alive, nor is a process with another start time it."""
    own = processes.identity_of(os.getpid())
    assert own is not None
    record = {"state": "running", "pid": own.pid, "pid_start": own.start + start, "attempt": 3}
    record["boot_id"] = boot or boot_id()
    (tmp_path / "state.json").write_text(json.dumps(record))
    worker = WorkerHandle("w1", str(tmp_path), str(tmp_path / "r"))
    worker.read_status()
    report = worker.report()
    assert (report.state, report.pid, report.attempt) == (state, own.pid if state == "running" else None, 3)
    assert bool(report.reason) == (state == "backoff")


def test_report_says_how_long_it_may_run_and_nothing_where_nothing_runs(tmp_path: Path) -> None:
    worker = WorkerHandle("w1", str(tmp_path), str(tmp_path / "r"))
    worker.assignment = Assignment("w1", WorkerSpec("sleep 1"), lease_s=60.0)
    assert worker.report().lease_left_s == 0.0 and AWAITS_LEASE in worker.report().reason
    worker.take_lease(Lease("w1", worker.assignment.epoch, 60.0), boottime_ns())
    left_s = worker.report().lease_left_s
    assert left_s is not None and 50.0 < left_s <= 60.0 and AWAITS_LEASE not in worker.report().reason
    worker.assignment = Assignment("w1", WorkerSpec("sleep 1"))
    assert worker.report().lease_left_s is None


def test_leases_as_an_agent_takes_them(tmp_path: Path) -> None:
    """The later lease of an epoch applies; an end returns all leases, and earlier requests are void."""
    fenced = Assignment("w1", WorkerSpec("sleep 1"), epoch=7, lease_s=60.0)
    held, asked = LeaseHolder(), boottime_ns()
    until = asked + 60_000_000_000
    assert held.now(fenced) is None and not held.may_start(fenced)
    assert held.take(Lease("w1", 7, 60.0), asked) == until
    assert held.take(Lease("w1", 7, 60.0), asked) == 0, "doubled: no news"
    assert held.take(Lease("w1", 7, 60.0), asked - 1) == 0, "late"
    assert held.now(fenced) == (7, until)
    for nonsense in (0.0, -1.0, float("nan"), True, None, "60"):
        assert held.take(Lease("w1", 7, nonsense), boottime_ns()) == 0  # type: ignore[arg-type]
    held.heed({"state": "running", "attempt": 1, "event_seq": 4})
    assert held.now(fenced) == (7, until)
    ended = {"state": "failed", "attempt": 1, "event_seq": 5}
    held.heed(ended)
    assert held.now(fenced) is None
    assert held.take(Lease("w1", 7, 60.0), asked + 1) == 0, "the manager may hear of the end after it gave this"
    later = boottime_ns()
    held.heed(ended)  # read again
    assert held.take(Lease("w1", 7, 60.0), later) > until
    held.heed({"state": "stopped", "in_hand": True, "attempt": 1, "event_seq": 6})
    assert held.now(fenced) is not None, "a runner has it in hand: it is about to start"


@pytest.mark.parametrize(("boot", "known"), [("", True), ("an earlier boot", False)])
def test_new_agent_knows_the_lease_that_a_runner_of_this_boot_held(tmp_path: Path, boot: str, known: bool) -> None:
    until = boottime_ns() + 30_000_000_000
    record = {"state": "running", "boot_id": boot or boot_id(), "lease_epoch": 7, "lease_until_ns": until}
    (tmp_path / "state.json").write_text(json.dumps(record))
    worker = WorkerHandle("w1", str(tmp_path), str(tmp_path / "r"))
    worker.read_status()
    fenced = Assignment("w1", WorkerSpec("sleep 1"), epoch=7, lease_s=60.0)
    assert worker.leases.now(fenced) == ((7, until) if known else None)
