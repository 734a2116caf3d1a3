"""Batch operations as a state machine: exactly the preview is carried out, at its concurrency, within its failure
limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.errors import Conflict, LimitExceeded, NotFound, UsageError
from procguard.fleet.history.query import EventQuery
from procguard.fleet.operations import controller as module
from procguard.fleet.operations import model as rules
from procguard.fleet.operations.confirmations import KEEP
from procguard.fleet.operations.controller import OperationOptions, Operations
from procguard.fleet.operations.model import CHUNK, FailureLimit, plan
from procguard.fleet.workers import ownership
from tests.unit.fleet_world import World


class CommandedWorld(World):
    """Hosts h1, h2, … whose workers carry out all commands at once when `obey` is called."""

    def __init__(self, directory: Path, hosts: int = 2, each: int = 3) -> None:
        super().__init__(directory)
        self.attempts: dict[str, int] = {}
        self.crashing: set[str] = set()
        self.deploy(
            {
                f"h{host}": {f"w{host}-{number}": {"command": "x", "group": f"g{host}"} for number in range(each)}
                for host in range(1, hosts + 1)
            }
        )
        for host in range(1, hosts + 1):
            self.obey(f"h{host}")

    @property
    def operations(self) -> Operations:
        return self.fleet.operations

    def obey(self, *hosts: str) -> None:
        """Each host reports its workers in their desired state; those in `crashing` fail to start."""
        for host in hosts:
            reports = []
            for worker in self.fleet.state.workers_of(host):
                report = self.fleet.state.worker_status[worker.worker_id].report
                attempt = self.attempts.setdefault(worker.worker_id, 1)
                new = report is None or report.generation < worker.generation
                if report is not None and new and worker.desired == "running":
                    attempt = self.attempts[worker.worker_id] = attempt + 1
                if worker.desired == "stopped":
                    reports.append(self.report(worker.worker_id, "stopped", attempt=attempt))
                elif worker.worker_id in self.crashing:
                    reports.append(self.report(worker.worker_id, "backoff", attempt=attempt, reason="exit code 3"))
                else:
                    reports.append(self.report(worker.worker_id, "running", attempt=attempt, pid=7))
            self.beat(host, *reports)

    def begin(self, command: str, selector: str = "*", **options: Any) -> str:
        token = self.operations.preview(command, selector, "tester", self.now)["token"]
        view = self.operations.begin(token, "tester", self.now, OperationOptions(**options))
        return str(view["operation_id"])

    def advance(self) -> None:
        while self.operations.advance(self.now):
            pass

    def counts(self, operation_id: str) -> dict[str, int]:
        return dict(self.operations.view(operation_id)["counts"])

    def status(self, operation_id: str) -> str:
        return str(self.operations.view(operation_id)["status"])


@pytest.fixture
def world(tmp_path: Path) -> CommandedWorld:
    return CommandedWorld(tmp_path)


# ---------------------------------------------------------------------------------------------- who is meant, and how


@pytest.mark.parametrize(
    ("verb", "state", "desired", "expected"),
    [
        ("stop", "running", "running", ("act", "")),
        ("stop", "failed", "running", ("act", "")),
        ("stop", "stopped", "stopped", ("skip", "already_stopped")),
        ("stop", "unknown", "running", ("pending", "host_away")),
        ("stop", "unknown", "stopped", ("skip", "already_wanted")),
        ("stop", "running", "removed", ("skip", "being_removed")),
        ("start", "running", "running", ("skip", "already_running")),
        ("start", "backoff", "running", ("act", "")),
        ("start", "stopped", "stopped", ("act", "")),
        ("start", "unknown", "stopped", ("pending", "host_away")),
        ("start", "unknown", "running", ("skip", "already_wanted")),
        ("restart", "running", "running", ("act", "")),
        ("restart", "failed", "running", ("act", "")),
        ("restart", "stopped", "stopped", ("skip", "stopped_by_operator")),
        ("restart", "unknown", "running", ("skip", "unreachable")),
        ("kill", "running", "running", ("act", "")),
        ("kill", "unknown", "running", ("skip", "unreachable")),
        ("kill", "exited", "stopped", ("skip", "already_stopped")),
    ],
)
def test_what_is_done_about_a_worker(verb: str, state: str, desired: str, expected: tuple[str, str]) -> None:
    assert tuple(plan(verb, state, desired)) == expected


def test_a_preview_counts_splits_and_says_what_is_left_out(world: CommandedWorld) -> None:
    world.fleet.workers.command("w1-0", "stop", "tester", world.now)
    world.obey("h1")
    world.fleet.agents.mark("h2", "unreachable", "no heartbeat", world.now)
    seen = world.operations.preview("stop", "*", "tester", world.now)
    assert (seen["matching"], seen["acts"], seen["pending"], seen["skipped"]) == (6, 5, 3, 1)
    assert {"state": "unknown", "matching": 3, "acts": 3} in seen["by_state"]
    assert {"host": "h1", "matching": 3, "acts": 2} in seen["by_host"] and seen["hosts"] == 2
    assert {(one["cause"], one["count"]) for one in seen["causes"]} == {("host_away", 3), ("already_stopped", 1)}
    skipped = world.operations.preview("kill", "host=h2", "tester", world.now)
    assert skipped["acts"] == 0 and skipped["causes"][0]["cause"] == "unreachable"


def test_each_command_of_an_operation_says_so_in_the_history(world: CommandedWorld) -> None:
    name = world.begin("stop", "host=h1")
    world.advance()
    world.fleet.workers.command("w2-0", "stop", "tester", world.now)
    world.obey("h1", "h2")
    world.advance()
    kinds = [event["kind"] for event in world.fleet.state.find_events(EventQuery(operation=(name,)), 100)]
    assert kinds.count("command") == 6 and set(kinds) == {"operation", "command"}


def test_a_preview_changes_nothing_and_of_nobody_gives_no_token(world: CommandedWorld) -> None:
    assert world.operations.preview("stop", "host=nowhere", "tester", world.now)["token"] is None
    world.operations.preview("stop", "*", "tester", world.now)
    assert {worker.desired for worker in world.fleet.state.workers_by_id.values()} == {"running"}


def test_words_narrow_a_selection_as_the_portal_s_filter_does(world: CommandedWorld) -> None:
    assert world.operations.preview("stop", "*", "tester", world.now, q="W1-1 h1")["matching"] == 1


# ---------------------------------------------------------------------------------------------- the token


def test_a_token_is_its_actor_s_once_and_for_five_minutes(world: CommandedWorld) -> None:
    token = world.operations.preview("stop", "*", "tester", world.now)["token"]
    with pytest.raises(Conflict, match="somebody else"):
        world.operations.begin(token, "other", world.now, OperationOptions())
    world.operations.begin(token, "tester", world.now, OperationOptions())
    with pytest.raises(Conflict, match="expired, or was used"):
        world.operations.begin(token, "tester", world.now, OperationOptions())
    late = world.operations.preview("stop", "*", "tester", world.now)["token"]
    with pytest.raises(Conflict, match="expired"):
        world.operations.begin(late, "tester", world.pass_time(301), OperationOptions())


def test_the_same_request_twice_at_once_begins_one_operation(
    world: CommandedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first one reads the world, the second one runs."""
    token = world.operations.preview("restart", "*", "tester", world.now)["token"]
    refused: list[str] = []

    def second() -> None:
        try:
            world.operations.begin(token, "tester", world.now, OperationOptions())
        except Conflict as exc:
            refused.append(exc.code)

    monkeypatch.setattr(module, "SLICE_S", 0.0)
    world.operations.on_wake(lambda: None, second)
    world.operations.begin(token, "tester", world.now, OperationOptions())
    assert len(world.operations.views()) == 1 and set(refused) == {"preview_expired"}


def test_previewing_in_a_loop_drives_out_no_others_previews(world: CommandedWorld) -> None:
    token = world.operations.preview("stop", "*", "anna", world.now)["token"]
    for _ in range(3 * KEEP):
        last = world.operations.preview("stop", "*", "script", world.now)["token"]
    world.operations.begin(token, "anna", world.now, OperationOptions())
    world.operations.begin(last, "script", world.now, OperationOptions())
    assert {one["actor"] for one in world.operations.views()} == {"anna", "script"}


def test_who_was_shown_is_who_is_meant_and_a_changed_selection_is_reported(world: CommandedWorld) -> None:
    token = world.operations.preview("stop", "state=running", "tester", world.now)["token"]
    world.fleet.workers.command("w1-0", "stop", "tester", world.now)
    world.deploy({"h3": {"w3-0": {"command": "x"}}})
    world.obey("h1", "h3")
    view = world.operations.begin(token, "tester", world.now, OperationOptions())
    assert (view["total"], view["joined"], view["left"]) == (6, 1, 1)
    world.advance()
    assert world.fleet.state.workers_by_id["w3-0"].desired == "running"
    assert world.counts(view["operation_id"])["skipped"] == 1


def test_previews_are_bounded(world: CommandedWorld) -> None:
    tokens = [world.operations.preview("stop", "*", "tester", world.now)["token"] for _ in range(60)]
    with pytest.raises(Conflict):
        world.operations.begin(tokens[0], "tester", world.now, OperationOptions())
    world.operations.begin(tokens[-1], "tester", world.now, OperationOptions())


def test_more_workers_than_one_operation_takes_are_refused(
    world: CommandedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 5)
    with pytest.raises(LimitExceeded, match="6 workers match"):
        world.operations.preview("stop", "*", "tester", world.now)


# ---------------------------------------------------------------------------------------------- going on


def test_items_go_from_accepted_over_delivered_to_done(world: CommandedWorld) -> None:
    operation = world.begin("stop", "host=h1", reason="disk change")
    assert world.counts(operation) == {"waiting": 3}
    world.advance()
    assert world.counts(operation) == {"accepted": 3}
    world.beat("h1", *(world.report(f"w1-{number}", "stopping") for number in range(3)))
    assert world.counts(operation) == {"delivered": 3}
    world.obey("h1")
    world.advance()
    view = world.operations.view(operation)
    assert view["status"] == "done" and view["counts"] == {"done": 3}
    assert [item["worker_id"] for item in view["items"]] == ["w1-0", "w1-1", "w1-2"]
    assert view["items"][0]["ended_at"] == view["ended_at"]
    command = world.fleet.state.commands("w1-0")[0]
    assert (command["operation_id"], command["reason"], command["actor"]) == (operation, "disk change", "tester")
    reported = [event["reason"] for event in world.fleet.state.events() if event["kind"] == "operation"]
    assert reported == [f"{operation} begun: stop of 3 workers (host=h1); disk change", f"{operation} done: 3 done"]


def test_no_more_are_under_way_than_the_pace_allows(world: CommandedWorld) -> None:
    operation = world.begin("stop", concurrency=2)
    world.advance()
    assert world.counts(operation) == {"waiting": 4, "accepted": 2}
    world.obey("h1")
    world.advance()
    assert world.counts(operation) == {"waiting": 2, "accepted": 2, "done": 2}
    for _ in range(2):
        world.obey("h1", "h2")
        world.advance()
    assert world.status(operation) == "done"


def test_a_chunk_at_a_time_is_begun_so_that_others_get_a_turn(tmp_path: Path) -> None:
    world = CommandedWorld(tmp_path, hosts=1, each=CHUNK + 20)
    operation = world.begin("stop", concurrency=1_000)
    assert world.operations.advance(world.now) is True
    assert world.counts(operation)["accepted"] == CHUNK
    assert world.operations.advance(world.now) is False
    assert world.counts(operation) == {"accepted": CHUNK + 20}


def test_a_start_is_done_when_the_worker_runs_and_failed_when_it_crashes(world: CommandedWorld) -> None:
    for number in range(3):
        world.fleet.workers.command(f"w1-{number}", "stop", "tester", world.now)
    world.obey("h1")
    world.crashing = {"w1-2"}
    operation = world.begin("start", "host=h1")
    world.advance()
    world.beat("h1", world.report("w1-0", "starting", attempt=2))
    assert "done" not in world.counts(operation)
    world.obey("h1")
    world.advance()
    assert world.counts(operation) == {"done": 2, "failed": 1}
    (cause,) = world.operations.view(operation)["causes"]
    assert (cause["result"], cause["message"], cause["examples"]) == ("failed", "exit code 3", ["w1-2"])


def test_a_restart_is_done_when_a_later_attempt_runs(world: CommandedWorld) -> None:
    operation = world.begin("restart", "w1-0")
    world.advance()
    world.beat("h1", world.report("w1-0", "running", attempt=1))
    world.beat("h1", world.report("w1-0", "starting", attempt=2))
    assert world.counts(operation) == {"delivered": 1}
    world.beat("h1", world.report("w1-0", "running", attempt=2))
    world.advance()
    assert world.status(operation) == "done" and world.counts(operation) == {"done": 1}


def test_a_restart_that_nobody_carries_out_expires_with_its_command(world: CommandedWorld) -> None:
    operation = world.begin("restart", "w1-0")
    world.advance()
    world.pass_time(61)
    world.expire_commands()
    world.advance()
    assert world.counts(operation) == {"expired": 1} and world.status(operation) == "done"
    assert "not carried out within 1 min" in world.operations.view(operation)["items"][0]["message"]


def test_an_item_that_takes_too_long_expires_and_stays_wanted(world: CommandedWorld) -> None:
    operation = world.begin("stop", "w1-0", timeout_s=60)
    world.advance()
    world.pass_time(59)
    world.advance()
    assert world.counts(operation) == {"accepted": 1}
    world.pass_time(2)
    world.advance()
    (item,) = world.operations.view(operation)["items"]
    assert item["result"] == "expired" and "it is running; its desired state stays stopped" in item["message"]


def test_hosts_out_of_reach_hold_nobody_up(world: CommandedWorld) -> None:
    world.fleet.agents.mark("h2", "unreachable", "no heartbeat", world.now)
    operation = world.begin("stop", concurrency=1)
    for _ in range(4):
        world.advance()
        world.obey("h1")
    world.advance()
    assert world.status(operation) == "done" and world.counts(operation) == {"done": 3, "pending": 3}
    assert world.fleet.state.workers_by_id["w2-0"].desired == "stopped"


def test_a_pending_item_is_done_when_its_host_returns_in_time(world: CommandedWorld) -> None:
    world.fleet.agents.mark("h2", "unreachable", "no heartbeat", world.now)
    operation = world.begin("stop", concurrency=10)
    world.advance()
    world.obey("h2")
    world.obey("h1")
    world.advance()
    assert world.counts(operation) == {"done": 6} and world.operations.view(operation)["causes"] == []


def test_a_later_command_overtakes(world: CommandedWorld) -> None:
    operation = world.begin("stop", "host=h1")
    world.advance()
    world.fleet.workers.command("w1-0", "start", "somebody", world.now)
    world.obey("h1")
    world.advance()
    assert world.counts(operation) == {"done": 2, "skipped": 1}
    assert world.operations.view(operation, result="skipped")["items"][0]["cause"] == "overtaken"


def test_a_worker_that_leaves_the_fleet_is_not_waited_for(world: CommandedWorld) -> None:
    operation = world.begin("stop", "host=h1", concurrency=1)
    world.advance()
    for worker_id in ("w1-0", "w1-1"):
        with world.changing() as tx:
            ownership.drop_worker(world.fleet.state, tx, world.fleet.state.find(worker_id), "forgotten", forgotten=True)
    world.advance()
    world.obey("h1")
    world.advance()
    assert world.counts(operation) == {"done": 1, "skipped": 2} and world.status(operation) == "done"


# ---------------------------------------------------------------------------------------------- the limit


@pytest.mark.parametrize(("text", "allowed"), [("", None), ("0", 0), ("3", 3), ("10%", 20), ("0%", 0), (" 5 % ", 10)])
def test_limits_are_counts_or_percentages(text: str, allowed: int | None) -> None:
    assert FailureLimit(text).allowed(200) == allowed


@pytest.mark.parametrize("text", ["-1", "ten", "101%", "1.5", "%", "5 6"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a count or a percentage"):
        FailureLimit(text)


def test_too_many_failures_halt_what_has_not_begun(world: CommandedWorld) -> None:
    for host in ("h1", "h2"):
        for number in range(3):
            world.fleet.workers.command(f"w{host[1:]}-{number}", "stop", "tester", world.now)
    world.obey("h1", "h2")
    world.crashing = {"w1-0", "w1-1", "w1-2"}
    operation = world.begin("start", concurrency=1, max_failures="1")
    for _ in range(10):
        world.advance()
        world.obey("h1", "h2")
    assert world.status(operation) == "halted"
    assert world.counts(operation) == {"failed": 2, "cancelled": 4}
    assert world.operations.view(operation)["note"] == "2 failed; at most 1 may"
    assert world.fleet.state.workers_by_id["w1-2"].desired == "stopped"


# ---------------------------------------------------------------------------------------------- cancel, retry


def test_what_has_not_begun_is_not_begun_after_a_cancel(world: CommandedWorld) -> None:
    operation = world.begin("stop", concurrency=2)
    world.advance()
    view = world.operations.cancel(operation, "somebody", world.now)
    assert view["status"] == "cancelling" and view["note"] == "cancelled by somebody"
    world.obey("h1", "h2")
    world.advance()
    assert world.status(operation) == "cancelled" and world.counts(operation) == {"done": 2, "cancelled": 4}
    assert world.fleet.state.workers_by_id["w2-2"].desired == "running"
    with pytest.raises(Conflict, match="has already finished"):
        world.operations.cancel(operation, "somebody", world.now)


def test_the_failed_are_retried_as_an_operation_of_their_own(world: CommandedWorld) -> None:
    operation = world.begin("stop", "host=h1", concurrency=2, timeout_s=60)
    world.advance()
    with pytest.raises(Conflict, match="still running"):
        world.operations.retry(operation, "tester", world.now)
    world.operations.cancel(operation, "tester", world.now)
    world.pass_time(61)
    world.advance()
    assert world.counts(operation) == {"expired": 2, "cancelled": 1}
    again = world.operations.retry(operation, "tester", world.now)
    assert (again["total"], again["retry_of"], again["command"]) == (2, operation, "stop")
    assert world.operations.retry(operation, "tester", world.now, rest=True)["total"] == 3
    world.advance()
    world.obey("h1")
    world.advance()
    assert world.status(again["operation_id"]) == "done"
    with pytest.raises(Conflict, match="no worker of"):
        world.operations.retry(again["operation_id"], "tester", world.now)


def test_only_so_many_run_at_once(world: CommandedWorld) -> None:
    for _ in range(module.MAX_RUNNING):
        world.begin("stop", "w1-0")
    with pytest.raises(Conflict, match="running operations is reached"):
        world.begin("stop", "w1-0")


def test_old_operations_are_forgotten_in_the_store_too(world: CommandedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_OPERATIONS", 3)
    shown: list[tuple[str, bool]] = []
    operations = world.operations
    world.fleet.state.bus.operations.subscribe(lambda item: shown.append((item, operations.find(item) is None)))
    first = world.begin("start", "w1-0")
    world.advance()
    for _ in range(4):
        world.begin("start", "w1-0")
        world.advance()
    assert len(world.operations.views()) == 3 and (first, True) in shown
    with pytest.raises(NotFound):
        world.operations.view(first)
    world.restart()
    assert len(world.operations.views()) == 3


# ---------------------------------------------------------------------------------------------- the manager ends


def test_an_operation_goes_on_after_a_restart_of_the_manager(world: CommandedWorld) -> None:
    operation = world.begin("stop", concurrency=2, reason="why")
    world.advance()
    world.pass_time(2)
    world.advance()
    world.restart()
    world.pass_time(30)
    assert world.status(operation) == "running" and "continued" in world.operations.view(operation)["note"]
    for _ in range(4):
        world.obey("h1", "h2")
        world.advance()
    assert world.status(operation) == "done" and world.counts(operation) == {"done": 6}


def test_after_a_long_absence_an_operation_ends_and_says_why(world: CommandedWorld) -> None:
    operation = world.begin("stop", concurrency=2)
    world.advance()
    world.pass_time(2)
    world.advance()
    world.fleet.close()
    world.pass_time(3_600)
    world.fleet = world.open()
    view = world.operations.view(operation)
    assert view["status"] == "interrupted" and view["counts"] == {"expired": 2, "cancelled": 4}
    assert "the manager was away from" in view["note"]
    assert world.fleet.state.workers_by_id["w2-2"].desired == "running"
    assert world.operations.retry(operation, "tester", world.now, rest=True)["total"] == 6


def test_ended_operations_survive_with_their_items(world: CommandedWorld) -> None:
    operation = world.begin("stop", "host=h1")
    world.advance()
    world.obey("h1")
    world.advance()
    before = world.operations.view(operation)
    world.restart()
    assert world.operations.view(operation) == before


def test_items_are_paged_and_filtered_by_result(world: CommandedWorld) -> None:
    operation = world.begin("stop", concurrency=2)
    world.advance()
    page = world.operations.view(operation, "waiting,accepted", offset=1, limit=2)
    assert page["items_total"] == 6 and [item["result"] for item in page["items"]] == ["accepted", "waiting"]
    with pytest.raises(UsageError, match="result='broken'"):
        world.operations.view(operation, "broken")


@pytest.mark.slow
def test_what_is_stored_of_a_large_operation_is_shared_out_over_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round must not write ten thousand results; the end is on disk only after all of them."""
    monkeypatch.setattr(rules, "CHUNK", 3)
    world = CommandedWorld(tmp_path, hosts=1, each=3 * (module.SAVE_CHUNKS + 2))
    operation = world.begin("stop", concurrency=10_000)
    world.advance()
    world.obey("h1")
    world.operations.advance(world.now)
    assert world.status(operation) == "done"
    world.fleet.state.store.close()
    half_stored = world.open()
    assert half_stored.operations.view(operation)["status"] == "running"
    half_stored.state.store.close()


def test_a_selection_gives_everybody_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_S", -1.0)
    world = CommandedWorld(tmp_path)
    pauses: list[int] = []

    def pause() -> None:
        pauses.append(1)
        if len(pauses) == 1:  # the world changes meanwhile
            with world.changing() as tx:
                ownership.drop_worker(
                    world.fleet.state, tx, world.fleet.state.find("w2-2"), "forgotten", forgotten=True
                )

    world.operations.on_wake(lambda: None, pause)
    assert world.operations.preview("stop", "*", "tester", world.now)["matching"] == 5
    assert len(pauses) == 6
