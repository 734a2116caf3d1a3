"""Gangs in the fleet's state: members start, stop and fail together; commands of operators, and deployments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from procguard.cli import app
from procguard.config.groups import GroupPolicy
from procguard.errors import Conflict, UsageError
from procguard.fleet.operations.controller import OperationOptions
from remote_agent.protocol import messages
from tests import fake_manager
from tests.unit.fleet_world import SECRET
from tests.unit.gang_world import GROUP, LEASE_S, GangWorld


@pytest.fixture
def world(tmp_path: Path) -> GangWorld:
    """Three members that run."""
    world = GangWorld(tmp_path)
    world.declare()
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    return world


def states(world: GangWorld) -> set[str]:
    return {view["state"] for view in world.fleet.state.workers()}


def test_all_members_start_together_under_one_epoch_and_not_before_the_last_host_is_there(tmp_path: Path) -> None:
    world = GangWorld(tmp_path)
    world.declare()
    world.hosts["h3"].connected = False
    world.go_on(5)
    assert world.running() == []
    assert "h3" in world.fleet.gangs.views()[0]["reason"] or "w3" in world.fleet.gangs.views()[0]["reason"]
    world.hosts["h3"].connected = True
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.epochs() == {world.gang.epoch}
    assert [world.fleet.state.worker(f"w{n}")["gang"]["rank"] for n in (1, 2, 3)] == [0, 1, 2]


def test_a_member_that_fails_stops_all_and_all_start_under_one_new_epoch(world: GangWorld) -> None:
    before = world.gang.epoch
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.epochs() == {world.gang.epoch}
    assert world.gang.epoch > before
    assert world.mixed_s() == 0.0
    assert world.gang.attempts == 1
    incident = world.fleet.gangs.views()[0]["incident"]
    assert incident["member"] == "w2"
    assert "signal 9" in incident["reason"]
    assert incident["ended"]
    kinds = world.kinds()
    assert kinds.index("gang_incident") < len(kinds) - 1 - kinds[::-1].index("gang_started")


def test_a_member_that_failed_of_a_cause_of_never_on_fails_the_gang_and_spends_no_restart(tmp_path: Path) -> None:
    world = GangWorld(tmp_path)
    spec = world.spec(restart={"never_on": ["import_error"]})
    world.deploy({f"h{n}": {f"w{n}": spec} for n in (1, 2, 3)})
    world.go_on(1)
    world.hosts["h2"].fails("w2", "exit code 1 after 5 s")
    exit_record = world.job("w2").last_exit
    assert exit_record is not None
    exit_record.cause = "import_error"
    world.go_on(2)
    assert world.running() == [] and (world.gang.phase, world.gang.attempts) == ("failed", 0)
    assert world.gang.reason.endswith("not restarted: restart.never_on names import_error")


def test_only_its_own_time_limit_ends_a_gang_and_not_one_that_its_output_names(tmp_path: Path) -> None:
    """Slurm's limit, or a job's text of that form, is a failure like any other beside `max_run_s`."""
    for line, phase in (("slurmstepd: error: *** STEP 7.0 CANCELLED DUE TO TIME LIMIT ***", "running"), ("", "failed")):
        world = GangWorld(tmp_path / (line[:5] or "own"))
        world.deploy({f"h{n}": {f"w{n}": world.spec(max_run_s=3600.0)} for n in (1, 2, 3)})
        world.go_on(1)
        world.hosts["h2"].fails("w2", "exit code 1 after 5 s")
        exit_record = world.job("w2").last_exit
        assert exit_record is not None
        exit_record.cause, exit_record.line = "time_limit", line
        world.go_on(12)
        assert world.gang.phase == phase


def test_the_operators_word_stays_while_the_gang_holds_its_members(world: GangWorld) -> None:
    world.hosts["h3"].connected = False
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    for worker_id in ("w1", "w2"):
        view = world.fleet.state.worker(worker_id)
        assert view["desired"] == "running"
        assert view["gang"]["held"]
        assert "w2 on h2: killed by signal 9" in view["reason"]
    assert world.running() == ["w3"]  # cut off: it lives by its lease


def test_a_member_that_is_cut_off_runs_until_its_lease_ends_and_nothing_starts_before_it_is_confirmed_stopped(
    world: GangWorld,
) -> None:
    world.hosts["h3"].connected = False
    world.go_on(LEASE_S - 2)
    assert world.running() == ["w1", "w2", "w3"]  # a cut alone is no failure
    world.go_on(12)
    assert world.running() == []
    assert world.gang.phase == "restarting"
    assert "h3" in world.gang.reason
    world.hosts["h3"].connected = True
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.mixed_s() == 0.0
    assert world.gang.attempts == 1


def test_a_host_that_comes_back_after_a_power_cut_does_not_start_its_member_alone(world: GangWorld) -> None:
    world.hosts["h1"].power_cut()
    world.go_on(3)
    world.hosts["h1"].power_on()
    world.go_on(2)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.mixed_s() == 0.0
    attempts = {worker_id: world.job(worker_id).attempt for worker_id in ("w1", "w2", "w3")}
    assert attempts == {"w1": 2, "w2": 2, "w3": 2}
    assert "went down" in world.gang.incident.reason


def test_a_member_whose_lease_ended_is_not_started_again_alone(world: GangWorld) -> None:
    """Its host was partitioned briefly and returns before the manager notices."""
    host = world.hosts["h2"]
    host.connected = False
    for _ in range(int(LEASE_S) + 2):
        world.pass_time(1)
        host.obey()
        for other in ("h1", "h3"):
            world.hosts[other].talk()
    assert "w2" not in world.running()
    host.connected = True
    host.talk()
    assert world.gang.phase == "restarting"
    assert "w2" not in world.running()
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]


def test_the_budget_ends_in_failed_and_names_the_first_member_and_how(world: GangWorld) -> None:
    for _ in range(3):
        world.hosts["h2"].fails("w2", "exit code 1 after 2 s")
        world.go_on(60)
        assert world.running() == ["w1", "w2", "w3"]
    world.hosts["h2"].fails("w2", "exit code 1 after 2 s")
    world.go_on(600)
    assert world.running() == []
    assert states(world) == {"failed"}
    for view in world.fleet.state.workers():
        assert "w2 on h2: exit code 1 after 2 s" in view["reason"]
        assert "all 3 restarts are used up" in view["reason"]
    assert world.gang.attempts == 3
    assert "gang_failed" in world.kinds()


def test_restarts_after_the_first_wait_for_their_pause(world: GangWorld) -> None:
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    world.hosts["h2"].fails("w2")
    world.go_on(3)
    assert world.running() == []
    world.go_on(5)
    assert world.running() == ["w1", "w2", "w3"]


def test_ten_healthy_minutes_give_the_attempts_back(world: GangWorld) -> None:
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    world.go_on(590, step_s=5)
    assert world.gang.attempts == 1
    world.go_on(20, step_s=5)
    assert world.gang.attempts == 0
    assert "gang_healthy" in world.kinds()


def test_a_groups_own_max_attempts_counts(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, groups={GROUP: GroupPolicy(restart="gang", max_attempts=0)})
    world.declare()
    world.go_on(1)
    world.hosts["h1"].fails("w1")
    world.go_on(5)
    assert states(world) == {"failed"}
    assert "no restarts are allowed" in world.gang.reason


def test_a_groups_own_pauses_count_before_those_of_its_members(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, groups={GROUP: GroupPolicy(restart="gang", backoff_s=[0.0, 0.5], max_attempts=9)})
    world.declare()
    world.go_on(1)
    for _ in range(4):  # by default the fourth restart waits 120 s
        world.hosts["h2"].fails("w2")
        world.go_on(2)
        assert world.running() == ["w1", "w2", "w3"]


def test_the_pauses_of_its_members_count_where_the_group_says_nothing(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, groups={GROUP: GroupPolicy(restart="gang", max_attempts=9)})
    member = world.spec(restart={"backoff_s": [30.0]})
    world.deploy({f"h{n}": {f"w{n}": member} for n in (1, 2, 3)})
    world.go_on(1)
    world.hosts["h2"].fails("w2")
    world.go_on(20)
    assert world.running() == []
    world.go_on(20)
    assert world.running() == ["w1", "w2", "w3"]


def test_the_member_that_failed_first_is_the_culprit_also_where_its_report_comes_later(world: GangWorld) -> None:
    world.hosts["h2"].fails("w2", "killed by signal 9 (SIGKILL) after 5 s")
    world.pass_time(0.3)
    world.hosts["h1"].fails("w1", "exit code 1 after 5 s: connection closed by peer")
    world.hosts["h1"].talk()
    assert world.gang.incident.member == "w1"

    world.hosts["h2"].talk()

    assert (world.gang.incident.member, world.gang.phase) == ("w2", "restarting")
    reason = world.gang.incident.reason
    assert reason.startswith("w2 on h2: killed by signal 9 (SIGKILL) after 5 s; restart 1 of 3 of the gang")


def test_members_that_were_stopped_because_of_the_incident_are_not_its_culprits(world: GangWorld) -> None:
    world.hosts["h2"].fails("w2")
    world.go_on(3)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.gang.incident.member == "w2"


def test_a_host_that_was_lost_before_its_peers_failed_is_the_culprit(world: GangWorld) -> None:
    world.hosts["h3"].power_cut()
    world.pass_time(1)
    world.hosts["h1"].fails("w1", "exit code 1 after 5 s: NCCL timeout")
    world.hosts["h1"].talk()
    assert world.gang.incident.member == "w1"

    world.go_on(15)

    assert world.gang.incident.member == "w3"
    assert "its host h3 is unreachable" in world.gang.incident.reason


def test_without_automatic_recovery_a_failed_member_ends_the_gang(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, enable_auto_recovery=False)
    world.declare()
    world.go_on(1)
    world.hosts["h1"].fails("w1")
    world.go_on(5)
    assert (world.running(), states(world)) == ([], {"failed"})
    assert "enable_auto_recovery" in world.gang.reason


def test_a_gang_is_done_when_all_members_have_finished(world: GangWorld) -> None:
    world.hosts["h1"].finishes("w1")
    world.go_on(5)
    assert world.running() == ["w2", "w3"]
    world.hosts["h2"].finishes("w2")
    world.hosts["h3"].finishes("w3")
    world.go_on(5)
    assert world.gang.phase == "finished"
    assert states(world) == {"exited"}
    world.restart()
    world.go_on(50)
    assert (world.running(), world.gang.phase) == ([], "finished")


def test_a_failure_after_another_member_has_finished_restarts_all(world: GangWorld) -> None:
    world.hosts["h1"].finishes("w1")
    world.go_on(1)
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.mixed_s() == 0.0


# --------------------------------------------------------------------------------------------------- operators


def command(world: GangWorld, worker_id: str, verb: str) -> str:
    return world.fleet.workers.command(worker_id, verb, "ann", world.now).command_id


def test_stopping_one_member_stops_the_gang_and_starting_one_starts_it(world: GangWorld) -> None:
    stopped = command(world, "w2", "stop")
    world.go_on(1)
    assert world.running() == []
    assert {view["desired"] for view in world.fleet.state.workers()} == {"stopped"}
    assert states(world) == {"stopped"}
    assert world.fleet.state.command_view(stopped)["status"] == "done"
    world.go_on(100)
    assert world.running() == []
    started = command(world, "w1", "start")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.fleet.state.command_view(started)["status"] == "done"
    assert world.mixed_s() == 0.0


def test_restarting_one_member_restarts_all_and_spends_nothing(world: GangWorld) -> None:
    before = world.gang.epoch
    asked = command(world, "w3", "restart")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.gang.epoch > before
    assert world.gang.attempts == 0
    assert world.fleet.state.command_view(asked)["status"] == "done"


def test_a_batch_that_names_every_member_restarts_the_gang_once(world: GangWorld) -> None:
    before = world.gang.epoch
    commands = [command(world, "w1", "restart")]
    world.go_on(0)
    commands += [command(world, worker_id, "restart") for worker_id in ("w2", "w3")]
    world.go_on(2)
    assert world.gang.epoch == before + 1
    assert {world.fleet.state.command_view(one)["status"] for one in commands} == {"done"}


@pytest.mark.parametrize("phase", ["running", "failed"])
def test_a_rolling_restart_of_a_group_restarts_its_gang_once_and_every_item_is_done(tmp_path: Path, phase: str) -> None:
    world = GangWorld(tmp_path, groups={GROUP: GroupPolicy(restart="gang", max_attempts=0)})
    world.declare()
    world.go_on(1)
    if phase == "failed":
        world.hosts["h2"].fails("w2")
        world.go_on(1)
    before, operations = world.gang.epoch, world.fleet.operations
    token = operations.preview("restart", f"group={GROUP}", "ann", world.now)["token"]
    begun = operations.begin(token, "ann", world.now, OperationOptions(concurrency=1))["operation_id"]
    for _ in range(12):
        while operations.advance(world.now):
            pass
        world.go_on(4)  # longer than a person's double click
    view = operations.view(begun)
    assert (view["status"], view["counts"]) == ("done", {"done": 3}), view
    assert world.gang.epoch == before + 1
    assert world.running() == ["w1", "w2", "w3"]


def test_killing_one_member_kills_all_and_they_stay_stopped(world: GangWorld) -> None:
    command(world, "w2", "kill")
    replies = {name: world.fleet.agents.replies.news_for_agent(name, "", 0, world.now) for name in world.hosts}
    assert {one.command for reply in replies.values() if reply for one in reply.commands} == {"kill"}
    world.go_on(5)
    assert (world.running(), states(world)) == ([], {"stopped"})


def test_an_operators_start_of_a_failed_gang_gives_a_new_budget(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, groups={GROUP: GroupPolicy(restart="gang", max_attempts=0)})
    world.declare()
    world.go_on(1)
    world.hosts["h1"].fails("w1")
    world.go_on(2)
    for verb in ("start", "restart"):
        asked = command(world, "w3", verb)
        world.go_on(1)
        assert world.running() == ["w1", "w2", "w3"]
        assert world.fleet.state.command_view(asked)["status"] == "done"
        world.hosts["h1"].fails("w1")
        world.go_on(2)
        assert states(world) == {"failed"}


def test_a_failed_gang_begins_again_once_a_member_is_corrected(tmp_path: Path) -> None:
    """The whole gang starts once, under one epoch; a deployment without corrections starts nothing."""
    world = GangWorld(tmp_path, groups={GROUP: GroupPolicy(restart="gang", max_attempts=0)})
    world.declare()
    world.go_on(1)
    world.hosts["h2"].fails("w2")
    world.go_on(2)
    world.declare()
    world.go_on(2)
    assert (states(world), world.running()) == ({"failed"}, [])
    corrected = {f"h{n}": {f"w{n}": world.spec(command="train --well")} for n in (1, 2, 3)}
    answer = world.deploy(corrected)
    assert "its gang starts again" in answer["hosts"]["h1"]["workers"]["w1"]["message"]
    world.go_on(2)
    assert world.running() == ["w1", "w2", "w3"] and world.epochs() == {world.gang.epoch}
    assert world.mixed_s() == 0.0 and len(world.lives) == 6


def test_an_operators_restart_waits_for_no_pause(world: GangWorld) -> None:
    for _ in range(3):
        world.hosts["h2"].fails("w2")
        world.go_on(0)
    assert world.gang.phase == "restarting"
    command(world, "w1", "restart")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]


def test_a_stop_during_a_restart_ends_in_stopped(world: GangWorld) -> None:
    world.hosts["h3"].connected = False
    asked = command(world, "w1", "restart")
    world.go_on(1)
    command(world, "w1", "stop")
    world.hosts["h3"].connected = True
    world.go_on(100)
    assert (world.running(), world.gang.phase) == ([], "stopped")
    assert world.fleet.state.command_view(asked)["status"] == "failed"


# ------------------------------------------------------------------------------------------- manager restarts


def test_a_manager_that_restarts_in_the_middle_of_an_incident_goes_on_and_starts_nothing_twice(
    world: GangWorld,
) -> None:
    world.hosts["h3"].connected = False
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    world.restart()
    world.go_on(3)
    assert world.running() == ["w3"]
    assert world.gang.incident.member == "w2"
    world.hosts["h3"].connected = True
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.mixed_s() == 0.0
    assert {world.job(worker_id).attempt for worker_id in ("w1", "w2", "w3")} == {2}
    assert world.gang.attempts == 1


def test_a_manager_that_restarts_touches_no_gang_that_runs(world: GangWorld) -> None:
    world.restart()
    world.go_on(60)
    assert world.running() == ["w1", "w2", "w3"]
    assert {world.job(worker_id).attempt for worker_id in ("w1", "w2", "w3")} == {1}


# ------------------------------------------------------------------------------------------------ deployments


def test_a_member_that_is_added_to_a_running_gang_joins_at_its_next_start(world: GangWorld) -> None:
    world.deploy({"h1": {"w1": world.spec(), "w4": world.spec()}})
    world.go_on(5)
    assert world.running() == ["w1", "w2", "w3"]
    assert "next start" in world.fleet.state.worker("w4")["reason"]
    command(world, "w1", "restart")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3", "w4"]
    assert world.epochs() == {world.gang.epoch}


def test_a_member_that_is_removed_restarts_the_others_without_it_and_spends_nothing(world: GangWorld) -> None:
    world.deploy({"h3": {}}, prune=True)
    world.go_on(1)
    assert world.running() == ["w1", "w2"]
    assert world.gang.attempts == 0
    env = {one.worker_id: one.env for name in ("h1", "h2") for one in world.fleet.agents.assignments.of(name)}
    assert env["w1"]["WORLD_SIZE"] == "2"


def test_workers_that_run_when_their_group_becomes_a_gang_run_on_until_its_first_restart(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, groups={})
    world.declare()
    world.go_on(1)
    lives = list(world.lives)
    world.declare(groups={GROUP: {"restart": "gang"}})
    world.go_on(30)
    assert world.lives == lives
    assert world.gang.phase == "running"
    world.hosts["h1"].fails("w1")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.epochs() == {world.gang.epoch}


def test_what_an_inventory_says_of_groups_is_durable_and_the_configuration_is_stronger(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, groups={"other": GroupPolicy(restart="gang", max_attempts=7)})
    world.declare(groups={GROUP: {"restart": "gang"}, "other": {"restart": "alone"}})
    world.restart()
    groups = world.fleet.gangs.groups
    assert groups.policy(GROUP).restart == "gang"
    assert groups.policy("other").max_attempts == 7
    assert (groups.said_by(GROUP), groups.said_by("other")) == ("inventory", "configuration")
    world.declare(groups={})
    assert groups.policy(GROUP).restart == "alone"
    assert {view["gang"] for view in world.fleet.state.workers() if view["gang"] is None} == {None}


def test_a_group_of_which_nothing_is_said_is_only_a_name(tmp_path: Path) -> None:
    world = GangWorld(tmp_path, groups={})
    world.declare()
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.fleet.state.worker("w1")["gang"] is None
    (view,) = world.fleet.gangs.views()
    assert (view["group"], view["restart"], view["phase"]) == (GROUP, "alone", None)


@pytest.mark.parametrize(
    ("group", "words"),
    [({"restart": "gnag"}, "restart"), ({"restrat": "gang"}, "restrat"), ({"rendezvous": "torch"}, "restart: gang")],
)
def test_a_deployment_with_a_mistaken_group_is_refused(tmp_path: Path, group: dict[str, str], words: str) -> None:
    world = GangWorld(tmp_path, groups={})
    with pytest.raises(UsageError, match=words):
        world.declare(groups={GROUP: group})


def test_a_hand_started_launcher_can_be_no_member(world: GangWorld) -> None:
    with pytest.raises(Conflict, match="restarts as a gang"):
        world.register("mine", spec=messages.WorkerSpec(command="train", group=GROUP), secret_sha256=SECRET)


def test_members_are_fenced_whatever_their_specification_says(world: GangWorld) -> None:
    (variables,) = world.fleet.agents.assignments.of("h1")
    assert (variables.gang, variables.lease_s, variables.spec.on_partition) == (True, LEASE_S, "keep")


# ------------------------------------------------------------------------------------------------- rendezvous


def test_ranks_stay_and_the_port_is_agreed_again_for_each_start(world: GangWorld) -> None:
    def variables() -> list[dict[str, str]]:
        return [world.fleet.agents.assignments.of(name)[0].env for name in ("h1", "h2", "h3")]

    first = variables()
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    second = variables()
    for before, after in zip(first, second, strict=True):
        assert {**before, "MASTER_PORT": "", "PET_MASTER_PORT": ""} == {
            **after,
            "MASTER_PORT": "",
            "PET_MASTER_PORT": "",
        }
        assert before["MASTER_PORT"] != after["MASTER_PORT"]
    assert {one["MASTER_PORT"] for one in second} == {str(world.gang.master_port)}
    assert {one["MASTER_ADDR"] for one in second} == {"h1"}
    world.restart()
    world.go_on(1)
    assert variables() == second


# ------------------------------------------------------------------------------------------------- what is shown


def test_groups_are_served_with_members_in_the_order_of_their_ranks(world: GangWorld) -> None:
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    (view,) = world.fleet.gangs.views()
    assert json.loads(json.dumps(view)) == view
    assert [(one["worker_id"], one["rank"]) for one in view["members"]] == [("w1", 0), ("w2", 1), ("w3", 2)]
    assert view["master"] == f"h1:{world.gang.master_port}"
    assert (view["phase"], view["attempts"], view["max_attempts"]) == ("running", 1, 3)


def test_invoke_groups_shows_phase_attempts_and_ranks(
    world: GangWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.hosts["h3"].connected = False
    world.hosts["h2"].fails("w2")
    world.go_on(1)
    world.deploy({"h1": {"w1": world.spec(), "solo": {"command": "a", "group": "others"}}})
    with fake_manager.running() as manager:
        manager.routes["GET /api/groups"] = lambda body: (200, {"groups": world.fleet.gangs.views()})
        monkeypatch.setenv("PROCGUARD_MANAGER_URL", manager.url)
        monkeypatch.setenv("COLUMNS", "240")
        app.run(["groups"])
        shown = capsys.readouterr().out
        assert re.search(r"trainers +↻ restarting .*1 of 3 .*waits until w3 has surely ended", shown)
        assert re.search(r"  w2 +✖ failed +h2 +1 ", shown) or re.search(r"  w2 +■ stopped +h2 +1 ", shown)
        assert re.search(r"others +1 workers .*own policy", shown)
        app.run(["groups", "--json"])
        assert json.loads(capsys.readouterr().out)[-1]["group"] == GROUP


def test_a_spare_takes_a_lost_member_over_with_its_rank_once_it_is_confirmed_stopped(world: GangWorld) -> None:
    world.add_spare()
    world.go_on(1)
    world.hosts["h2"].power_cut()
    world.go_on(12)
    assert not world.give_to_spare("w2")  # its lease may last on
    assert world.running() == ["w1", "w3"]
    world.go_on(int(LEASE_S) + 5)
    assert world.give_to_spare("w2")
    world.go_on(1)
    assert world.running() == ["w1", "w2", "w3"]
    assert world.hosts["h4"].jobs["w2"].life is not None
    assert world.fleet.state.worker("w2")["gang"]["rank"] == 1
    (variables,) = world.fleet.agents.assignments.of("h4")
    assert (variables.env["RANK"], variables.epoch) == ("1", world.gang.epoch)
    assert world.mixed_s() == 0.0
    world.hosts["h2"].power_on()
    world.go_on(30)
    assert world.running() == ["w1", "w2", "w3"]
    assert "w2" not in world.hosts["h2"].jobs
    assert world.gang.attempts == 1
