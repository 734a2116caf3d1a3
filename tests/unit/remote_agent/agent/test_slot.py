"""One worker as its agent sees it, without a runner: what the files of an earlier one are worth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from remote_agent.agent.granted import Granted
from remote_agent.agent.worker import WorkerSlot
from remote_agent.protocol.messages import Assignment, Lease, WorkerSpec
from remote_agent.runner.leases import AWAITS_LEASE, boottime_ns
from remote_agent.system import processes
from remote_agent.system.processes import boot_id


@pytest.mark.parametrize(
    ("boot", "start", "state"), [("another", 0, "backoff"), ("", 0, "running"), ("", 1, "backoff")]
)
def test_only_a_process_that_lives_is_reported_as_running(tmp_path: Path, boot: str, start: int, state: str) -> None:
    """In this boot a worker without a runner may still have its child; after another boot nothing of it lives, nor is
    a process with another start time it."""
    own = processes.identity_of(os.getpid())
    assert own is not None
    record = {"state": "running", "pid": own.pid, "pid_start": own.start + start, "attempt": 3}
    record["boot_id"] = boot or boot_id()
    (tmp_path / "state.json").write_text(json.dumps(record))
    slot = WorkerSlot("w1", str(tmp_path), str(tmp_path / "r"))
    slot.read_status()
    report = slot.report()
    assert (report.state, report.pid, report.attempt) == (state, own.pid if state == "running" else None, 3)
    assert bool(report.reason) == (state == "backoff")


def test_report_says_how_long_it_may_run_and_nothing_where_nothing_runs(tmp_path: Path) -> None:
    slot = WorkerSlot("w1", str(tmp_path), str(tmp_path / "r"))
    slot.assignment = Assignment("w1", WorkerSpec("sleep 1"), lease_s=60.0)
    assert slot.report().lease_left_s == 0.0 and AWAITS_LEASE in slot.report().reason
    slot.take_lease(Lease("w1", slot.assignment.epoch, 60.0), boottime_ns())
    left_s = slot.report().lease_left_s
    assert left_s is not None and 50.0 < left_s <= 60.0 and AWAITS_LEASE not in slot.report().reason
    slot.assignment = Assignment("w1", WorkerSpec("sleep 1"))
    assert slot.report().lease_left_s is None


def test_leases_as_an_agent_takes_them(tmp_path: Path) -> None:
    """The later one of an epoch holds; an end gives all back, and what was asked for before it is worth nothing."""
    fenced = Assignment("w1", WorkerSpec("sleep 1"), epoch=7, lease_s=60.0)
    granted, asked = Granted(), boottime_ns()
    until = asked + 60_000_000_000
    assert granted.now(fenced) is None and not granted.may_start(fenced)
    assert granted.take(Lease("w1", 7, 60.0), asked) == until
    assert granted.take(Lease("w1", 7, 60.0), asked) == 0, "doubled: no news"
    assert granted.take(Lease("w1", 7, 60.0), asked - 1) == 0, "late"
    assert granted.now(fenced) == (7, until)
    for nonsense in (0.0, -1.0, float("nan"), True, None, "60"):
        assert granted.take(Lease("w1", 7, nonsense), boottime_ns()) == 0  # type: ignore[arg-type]
    granted.heed({"state": "running", "attempt": 1, "event_seq": 4})
    assert granted.now(fenced) == (7, until)
    ended = {"state": "failed", "attempt": 1, "event_seq": 5}
    granted.heed(ended)
    assert granted.now(fenced) is None
    assert granted.take(Lease("w1", 7, 60.0), asked + 1) == 0, "the manager may hear of the end after it gave this"
    later = boottime_ns()
    granted.heed(ended)  # read again
    assert granted.take(Lease("w1", 7, 60.0), later) > until
    granted.heed({"state": "stopped", "in_hand": True, "attempt": 1, "event_seq": 6})
    assert granted.now(fenced) is not None, "a runner has it in hand: it is about to start"


@pytest.mark.parametrize(("boot", "known"), [("", True), ("an earlier boot", False)])
def test_new_agent_knows_the_lease_that_a_runner_of_this_boot_held(tmp_path: Path, boot: str, known: bool) -> None:
    until = boottime_ns() + 30_000_000_000
    record = {"state": "running", "boot_id": boot or boot_id(), "lease_epoch": 7, "lease_until_ns": until}
    (tmp_path / "state.json").write_text(json.dumps(record))
    slot = WorkerSlot("w1", str(tmp_path), str(tmp_path / "r"))
    slot.read_status()
    fenced = Assignment("w1", WorkerSpec("sleep 1"), epoch=7, lease_s=60.0)
    assert slot.granted.now(fenced) == ((7, until) if known else None)
