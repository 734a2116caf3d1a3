"""The fleet as agents and operators see it: commands, reports, deployments, restarts of the manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.errors import Conflict, NotFound, UsageError
from procguard.fleet.model.clock import Now
from remote_agent.protocol import messages
from tests.unit.fleet_world import SECRET, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}})
    world.beat("h1", world.report("w1"))
    return world


def test_an_agent_receives_its_workers_once_and_again_only_when_they_change(world: World) -> None:
    reply = world.beat("h1", world.report("w1"))
    assert reply.assignments is not None
    assert [one.worker_id for one in reply.assignments] == ["w1"]
    same = world.beat("h1", world.report("w1"), assignments_rev=reply.assignments_rev)
    assert same.assignments is None
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    changed = world.beat("h1", world.report("w1"), assignments_rev=reply.assignments_rev)
    assert changed.assignments is not None
    assert changed.assignments[0].desired == "stopped"


def test_the_manager_s_recovery_settings_fill_what_a_worker_leaves_open(tmp_path: Path) -> None:
    world = World(tmp_path, max_recovery_attempts=7, recovery_timeout_s=12.0)
    own = {"command": "true", "restart": {"max_attempts": 2}}
    world.deploy({"h1": {"w1": {"command": "true"}, "w2": own}})
    specs = {one.worker_id: one.spec for one in world.fleet.agents.assignments.of("h1")}
    assert (specs["w1"].restart.max_attempts, specs["w2"].restart.max_attempts) == (7, 2)
    assert specs["w1"].restart.start_timeout_s == 12.0


def test_agents_receive_how_much_of_a_shipped_log_stays_with_them(tmp_path: Path) -> None:
    world = World(tmp_path, keep_local_bytes=2**21, keep_attempts=7)
    world.deploy({"h1": {}})
    reply = world.beat("h1")
    assert (reply.keep_local_bytes, reply.keep_attempts) == (2**21, 7)


@pytest.mark.parametrize(("workers", "gather_s"), [(1, 0.0), (100, 0.0), (400, 0.4), (1_900, 1.9)])
def test_agents_of_a_large_fleet_gather_what_their_workers_print(tmp_path: Path, workers: int, gather_s: float) -> None:
    """Ten requests a second from each of a thousand workers would saturate the manager."""
    world = World(tmp_path)
    world.deploy({"h1": {f"w{number}": {"command": "sleep 9"} for number in range(workers)}})
    assert world.beat("h1").log_gather_s == pytest.approx(gather_s)


def test_enable_auto_recovery_false_restarts_nothing_children_included(tmp_path: Path) -> None:
    world = World(tmp_path, enable_auto_recovery=False)
    world.deploy({"h1": {"w1": {"command": "true", "restart": {"policy": "always"}}}})
    assert world.fleet.agents.assignments.of("h1")[0].spec.restart.policy == "never"


def test_restart_means_the_attempt_that_is_alive_now(world: World) -> None:
    world.beat("h1", world.report("w1", attempt=4))
    world.fleet.workers.command("w1", "restart", "tester", world.now)
    reply = world.beat("h1", world.report("w1", attempt=4))
    assert [(one.command, one.attempt) for one in reply.commands] == [("restart", 4)]


def test_a_delivered_command_is_not_sent_twice_to_the_same_agent_process(world: World) -> None:
    record = world.fleet.workers.command("w1", "restart", "tester", world.now)
    first = world.beat("h1", world.report("w1"))
    assert [one.command_id for one in first.commands] == [record.command_id]
    assert world.beat("h1", world.report("w1"), commands_seq=first.commands[0].seq).commands == []
    # A lost reply: the agent has not seen that seq, so it is sent again.
    assert world.beat("h1", world.report("w1"), commands_seq=0).commands != []


def test_restart_of_a_settled_worker_is_a_start(world: World) -> None:
    world.beat("h1", world.report("w1", "failed"))
    before = world.fleet.state.workers_by_id["w1"].generation
    assert world.fleet.workers.command("w1", "restart", "tester", world.now).command == "start"
    assert world.fleet.state.workers_by_id["w1"].generation == before + 1


def test_a_restart_that_nobody_carries_out_expires_visibly(world: World) -> None:
    record = world.fleet.workers.command("w1", "restart", "tester", world.now)
    world.pass_time(59)
    assert world.expire_commands() == []
    world.pass_time(2)
    assert [one.command_id for one in world.expire_commands()] == [record.command_id]
    assert world.fleet.state.command_view(record.command_id)["status"] == "expired"


def test_stop_is_done_when_the_worker_is_seen_stopped(world: World) -> None:
    record = world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.beat("h1", world.report("w1", "stopping"))
    assert world.fleet.state.command_view(record.command_id)["status"] != "done"
    world.beat("h1", world.report("w1", "stopped"))
    assert world.fleet.state.command_view(record.command_id)["status"] == "done"


def test_a_report_of_an_older_generation_does_not_finish_a_newer_stop(world: World) -> None:
    world.beat("h1", world.report("w1", "exited"))
    world.fleet.workers.command("w1", "start", "tester", world.now)
    record = world.fleet.workers.command("w1", "stop", "tester", world.now)
    old = world.fleet.state.workers_by_id["w1"].generation - 1
    world.beat("h1", world.report("w1", "exited", generation=old))
    assert world.fleet.state.command_view(record.command_id)["status"] != "done"


@pytest.mark.parametrize("verb", ["", "explode", "START"])
def test_an_unknown_command_names_the_known_ones(world: World, verb: str) -> None:
    with pytest.raises(UsageError, match="start, stop, restart, kill"):
        world.fleet.workers.command("w1", verb, "tester", world.now)


def test_an_unknown_worker_is_not_found(world: World) -> None:
    with pytest.raises(NotFound, match="no worker 'w9'"):
        world.fleet.workers.command("w9", "start", "tester", world.now)


def test_worker_events_are_stored_once_however_often_they_arrive(world: World) -> None:
    event = world.event("w1", "running", "backoff", "exit code 1 after 3 s")
    for _ in range(3):
        reply = world.beat("h1", world.report("w1"), events=[event])
        assert reply.events_acked == {"w1": event.seq}
    assert [e["reason"] for e in world.fleet.state.events(worker="w1") if e["kind"] == "worker_state"] == [event.reason]


def test_no_accepted_command_is_lost_by_a_restart_of_the_manager(world: World) -> None:
    world.fleet.workers.command("w1", "restart", "tester", world.now)
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.restart()
    reply = world.beat("h1", world.report("w1"))
    assert sorted(one.command for one in reply.commands) == ["restart", "stop"]
    assert reply.assignments is not None
    assert reply.assignments[0].desired == "stopped"


def test_a_manager_killed_without_goodbye_loses_nothing_it_acknowledged(world: World) -> None:
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    again = world.open()  # the first one is simply abandoned, as by kill -9
    assert again.state.workers_by_id["w1"].desired == "stopped"
    assert again.state.fleet_id == world.fleet.state.fleet_id


def test_workers_show_their_last_known_state_until_their_agent_returns(world: World) -> None:
    world.restart()
    view = world.fleet.state.worker("w1")
    assert (view["state"], view["last_known_state"]) == ("unknown", "running")
    world.beat("h1", world.report("w1"))
    assert world.fleet.state.worker("w1")["state"] == "running"


def test_an_agent_that_knows_a_higher_epoch_is_right_and_what_is_granted_next_is_higher(world: World) -> None:
    """The state was lost or restored. The instance keeps running under its own epoch."""
    old = world.fleet.state.workers_by_id["w1"].epoch
    grant = world.fleet.state.grant("w1", old + 5_000_000, "h1")
    world.beat("h1", world.report("w1", epoch=old + 5_000_000, generation=9, grant=grant))
    worker = world.fleet.state.workers_by_id["w1"]
    assert (worker.epoch, worker.generation) == (old + 5_000_000, 9)
    assert world.next_epoch() > old + 5_000_000
    world.restart()
    assert world.fleet.state.workers_by_id["w1"].epoch == old + 5_000_000


def test_a_worker_that_another_agent_has_at_a_higher_epoch_is_that_agent_s(world: World) -> None:
    """The lost changes had moved it: two agents would run it if the state were trusted."""
    world.deploy({"h2": {}})
    epoch = world.fleet.state.workers_by_id["w1"].epoch
    world.beat("h2", world.report("w1", epoch=epoch + 7, grant=world.fleet.state.grant("w1", epoch + 7, "h2")))
    worker = world.fleet.state.workers_by_id["w1"]
    assert (worker.agent_id, worker.host, worker.epoch) == ("h2", "h2", epoch + 7)
    assert [(one.worker_id, one.desired) for one in world.fleet.agents.assignments.of("h1")] == [("w1", "removed")]
    world.beat("h1", world.report("w1", epoch=epoch))
    assert world.fleet.state.workers_by_id["w1"].agent_id == "h2"


def test_an_epoch_that_no_manager_can_have_granted_is_not_believed(world: World) -> None:
    epoch = world.fleet.state.workers_by_id["w1"].epoch
    world.beat("h1", world.report("w1", epoch=2**60))
    assert world.fleet.state.workers_by_id["w1"].epoch == epoch
    assert world.next_epoch() < 2**53


def test_a_generation_the_state_has_lost_is_taken_from_the_agent(world: World) -> None:
    """Otherwise the agent would treat everything from the manager as outdated, permanently."""
    worker = world.fleet.state.workers_by_id["w1"]
    world.beat("h1", world.report("w1", "stopped", generation=worker.generation + 3))
    assert world.fleet.state.workers_by_id["w1"].generation >= worker.generation
    command = world.fleet.workers.command("w1", "stop", "tester", world.now)
    assert command.generation == 5


def test_every_start_of_the_manager_grants_higher_epochs_whatever_the_clock_says(world: World) -> None:
    granted = []
    for wall_s in (0.0, 60.0, -3600.0, 10.0):
        world.now = Now(world.now.monotonic, world.now.wall + wall_s)
        world.restart()
        granted += [world.next_epoch(), world.next_epoch()]
        world.fleet.state.durability.commit()
    assert granted == sorted(set(granted))


def test_a_term_that_is_used_up_goes_on_in_the_next(world: World) -> None:
    with world.changing() as tx:
        tx.edit(world.fleet.state._fleet).n = 999_997
    granted = [world.next_epoch() for _ in range(4)]
    assert granted == sorted(set(granted))
    world.fleet.state.durability.commit()
    world.restart()
    assert world.next_epoch() > granted[-1]


def test_a_worker_unknown_to_the_state_is_warned_about_and_left_alone(world: World) -> None:
    reply = world.beat("h1", world.report("w1"), world.report("stray"), pid=78)
    assert any("stray" in e["reason"] for e in world.fleet.state.events() if e["kind"] == "warning")
    assert "stray" not in [one.worker_id for one in reply.assignments or []]


# ------------------------------------------------------------------------------------------------ deployments


def test_a_second_deployment_of_the_same_changes_nothing(world: World) -> None:
    rev = world.beat("h1", world.report("w1")).assignments_rev
    answer = world.deploy({"h1": {"w1": {"command": "sleep 9"}}})
    assert answer["hosts"]["h1"]["workers"]["w1"]["result"] == "unchanged"
    assert world.beat("h1", world.report("w1"), assignments_rev=rev).assignments is None


def test_a_changed_command_is_stored_and_shown_as_restart_pending(world: World) -> None:
    digest = messages.launch_digest(world.fleet.state.workers_by_id["w1"].spec)
    world.beat("h1", world.report("w1", launch_digest=digest))
    answer = world.deploy({"h1": {"w1": {"command": "sleep 10"}}})
    assert answer["hosts"]["h1"]["workers"]["w1"]["result"] == "changed"
    assert world.fleet.state.worker("w1")["restart_pending"] is True
    assert world.fleet.state.workers_by_id["w1"].generation == 1


def test_a_worker_gone_from_the_inventory_runs_on_as_undeclared_until_pruned(world: World) -> None:
    world.deploy({"h1": {}})
    view = world.fleet.state.worker("w1")
    assert (view["undeclared"], view["desired"]) == (True, "running")
    world.deploy({"h1": {}}, prune=True)
    reply = world.beat("h1", world.report("w1"))
    assert reply.assignments is not None
    assert reply.assignments[0].desired == "removed"
    world.beat("h1", assignments_rev=reply.assignments_rev)
    with pytest.raises(NotFound):
        world.fleet.state.worker("w1")


def test_a_worker_that_moved_is_refused_while_its_old_instance_lives(world: World) -> None:
    answer = world.deploy({"h2": {"w1": {"command": "sleep 9"}}})
    result = answer["hosts"]["h2"]["workers"]["w1"]
    assert result["result"] == "refused"
    assert "h1" in result["message"]
    assert world.fleet.state.workers_by_id["w1"].agent_id == "h1"


def test_a_worker_that_ended_moves_with_a_higher_epoch_and_its_old_host_drops_it(world: World) -> None:
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.beat("h1", world.report("w1", "stopped"))
    epoch = world.fleet.state.workers_by_id["w1"].epoch
    answer = world.deploy({"h2": {"w1": {"command": "sleep 9"}}})
    assert answer["hosts"]["h2"]["workers"]["w1"]["result"] == "moved"
    assert world.fleet.state.workers_by_id["w1"].epoch > epoch
    assert [(one.worker_id, one.desired) for one in world.fleet.agents.assignments.of("h1")] == [("w1", "removed")]
    assert [(one.worker_id, one.desired) for one in world.fleet.agents.assignments.of("h2")] == [("w1", "running")]


@pytest.mark.parametrize("state", ["failed", "backoff"])
def test_a_corrected_worker_begins_again_with_a_new_budget(world: World, state: str) -> None:
    world.beat("h1", world.report("w1", state, attempt=4, restarts=3))
    before = world.fleet.state.workers_by_id["w1"].generation
    same = world.deploy({"h1": {"w1": {"command": "sleep 9"}}})["hosts"]["h1"]["workers"]["w1"]
    assert (same["result"], same["starts"], world.fleet.state.worker("w1")["current"]) == ("unchanged", None, True)
    reported = world.deploy({"h1": {"w1": {"command": "sleep 10"}}})["hosts"]["h1"]["workers"]["w1"]
    assert (reported["result"], reported["starts"]) == ("changed", 5) and "new restart budget" in reported["message"]
    assert world.fleet.state.workers_by_id["w1"].generation == before + 1
    assert world.fleet.state.worker("w1")["current"] is False  # what is known of it answers the old generation
    again = world.deploy({"h1": {"w1": {"command": "sleep 10"}}})["hosts"]["h1"]["workers"]["w1"]
    assert (again["result"], again["starts"]) == ("unchanged", None)


@pytest.mark.parametrize("state", ["running", "exited", "stopped"])
def test_a_changed_worker_that_did_not_fail_is_left_as_it_is(world: World, state: str) -> None:
    world.beat("h1", world.report("w1", state))
    before = world.fleet.state.workers_by_id["w1"].generation
    reported = world.deploy({"h1": {"w1": {"command": "sleep 10"}}})["hosts"]["h1"]["workers"]["w1"]
    assert reported["starts"] is None and world.fleet.state.workers_by_id["w1"].generation == before


# ------------------------------------------------------------------------------------ gone from the inventory


def of(name: str, *hosts: str, workers: dict[str, str] | None = None) -> dict[str, Any]:
    return {"inventory": {"name": name, "hosts": list(hosts) or None, "workers": workers or {}}}


def test_a_host_deleted_from_its_inventory_is_reported_marked_and_pruned(world: World) -> None:
    """h1 with w1, h2 with w2; then the inventory names h2 only."""
    world.deploy({"h1": {"w1": {"command": "a"}}, "h2": {"w2": {"command": "b"}}}, **of("prod", "h1", "h2"))
    world.beat("h1", world.report("w1"))
    probed = world.deploy({"h2": {"w2": {"command": "b"}}}, check=True, **of("prod", "h2"))
    assert list(probed["absent"]) == ["h1"] and world.fleet.state.worker("w1")["undeclared"] is False
    part = world.deploy({"h2": {"w2": {"command": "b"}}}, **of("prod"))  # --limit: nothing is known of the others
    assert part["absent"] == {}
    gone = world.deploy({"h2": {"w2": {"command": "b"}}}, **of("prod", "h2"))["absent"]["h1"]
    assert (gone["agent_id"], gone["ssh"], gone["guests"]) == ("h1", {"hostname": "h1"}, [])
    assert gone["workers"]["w1"]["result"] == "undeclared" and world.fleet.state.worker("w1")["undeclared"] is True
    assert [host["undeclared"] for host in world.fleet.state.hosts()] == [True, False]
    pruned = world.deploy({"h2": {"w2": {"command": "b"}}}, prune=True, **of("prod", "h2"))
    assert pruned["absent"]["h1"]["workers"]["w1"]["result"] == "removed"
    assert world.fleet.state.workers_by_id["w1"].desired == "removed"
    world.deploy({"h1": {"w1": {"command": "a"}}, "h2": {}}, **of("prod", "h1", "h2"))  # and there it is again
    assert world.fleet.state.worker("w1")["undeclared"] is False
    assert [host["undeclared"] for host in world.fleet.state.hosts()] == [False, False]


def test_the_hosts_of_another_inventory_are_left_alone(world: World) -> None:
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}}, **of("prod", "h1"))
    answer = world.deploy({"l1": {}}, prune=True, **of("lab", "l1"))
    assert (answer["absent"], answer["of_other_inventories"]) == ({}, {"h1": "prod"})
    assert world.fleet.state.workers_by_id["w1"].desired == "running"
    unnamed = world.deploy({"l1": {}}, prune=True)  # hosts that no file names
    assert (unnamed["absent"], unnamed["of_other_inventories"]) == ({}, {})


def test_a_worker_that_the_inventory_declares_elsewhere_is_not_pruned_by_a_part_of_it(world: World) -> None:
    """A wave of --serial, or --limit: the request names only some of the hosts."""
    answer = world.deploy({"h1": {}}, prune=True, **of("prod", workers={"w1": "h2"}))
    reported = answer["hosts"]["h1"]["workers"]["w1"]
    assert reported["result"] == "elsewhere" and "invoke move w1 h2" in reported["message"]
    assert world.fleet.state.workers_by_id["w1"].desired == "running"


def test_a_renamed_host_does_not_end_what_was_declared_under_its_new_name(world: World) -> None:
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}}, **of("prod", "h1"))
    answer = world.deploy({"h9": {"w1": {"command": "sleep 9"}}}, prune=True, **of("prod", "h9"))
    assert answer["absent"]["h1"]["workers"] == {}
    assert answer["hosts"]["h9"]["workers"]["w1"]["result"] == "refused"
    assert world.fleet.state.workers_by_id["w1"].desired == "running"


def test_a_host_that_was_never_deployed_is_taken_back_with_its_workers(world: World) -> None:
    world.deploy({"h7": {"w7": {"command": "a"}}})
    world.fleet.agents.retract("h7", "tester", world.now)
    assert "h7" not in world.fleet.state.agents_by_id and "w7" not in world.fleet.state.workers_by_id
    world.restart()
    assert "h7" not in world.fleet.state.agents_by_id


def test_a_host_that_was_deployed_is_never_taken_back(world: World) -> None:
    with pytest.raises(Conflict, match="deployed before"):
        world.fleet.agents.retract("h1", "tester", world.now)  # heard
    world.deploy({"h7": {"w7": {"command": "a"}}})
    world.fleet.agents.secrets.set("h7", SECRET, "tester", world.now)  # its agent may be about to come
    with pytest.raises(Conflict, match="deployed before"):
        world.fleet.agents.retract("h7", "tester", world.now)
    assert world.fleet.state.workers_by_id["w7"].desired == "running"


def test_a_worker_that_ran_elsewhere_is_not_lost_with_a_host_that_could_not_be_deployed(world: World) -> None:
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.beat("h1", world.report("w1", "stopped", attempt=3))
    assert world.deploy({"h7": {"w1": {"command": "sleep 9"}}})["hosts"]["h7"]["workers"]["w1"]["result"] == "moved"
    with pytest.raises(Conflict, match="deployed before"):
        world.fleet.agents.retract("h7", "tester", world.now)
    assert world.fleet.state.workers_by_id["w1"].attempt == 3


def test_an_operator_s_stop_survives_a_deployment(world: World) -> None:
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.deploy({"h1": {"w1": {"command": "sleep 10"}}})
    assert world.fleet.state.workers_by_id["w1"].desired == "stopped"


def test_a_worker_declared_twice_changes_nothing(world: World) -> None:
    with pytest.raises(UsageError, match="w5 is declared on h1 and on h2"):
        world.deploy({"h1": {"w5": {"command": "a"}}, "h2": {"w5": {"command": "a"}}})
    assert "w5" not in world.fleet.state.workers_by_id


def test_check_changes_nothing(world: World) -> None:
    answer = world.deploy({"h3": {"w7": {"command": "a"}}, "h1": {}}, check=True)
    assert answer["hosts"]["h3"]["workers"]["w7"]["result"] == "new"
    assert "w7" not in world.fleet.state.workers_by_id
    assert "h3" not in world.fleet.state.agents_by_id
    assert world.fleet.state.worker("w1")["undeclared"] is False


# ---------------------------------------------------------------------------------------- hand-started launchers


def test_a_trusted_launcher_registers_at_once_and_may_use_its_secret(world: World) -> None:
    reply = world.register("train", secret_sha256=SECRET)
    assert (reply.status, reply.agent_id) == ("registered", "launcher:train")
    assert world.fleet.agents.secrets.authenticate(SECRET) == "launcher:train"
    assert reply.proof_key == world.fleet.state.proof_key("launcher:train")


def test_a_launcher_from_elsewhere_waits_for_approval_and_changes_nothing_until_then(world: World) -> None:
    reply = world.register("train", secret_sha256=SECRET, trusted=False, peer="10.9.9.9")
    assert (reply.status, reply.fingerprint) == ("pending", messages.fingerprint(SECRET))
    assert "train" not in world.fleet.state.workers_by_id
    assert world.fleet.agents.secrets.authenticate(SECRET) is None
    world.fleet.agents.enrolment.approve("launcher:train", "tester", world.now)
    again = world.register("train", secret_sha256=SECRET, trusted=False, peer="10.9.9.9")
    assert (again.status, again.proof_key != "") == ("registered", True)
    # The key is handed out once: knowing the hash of the secret must not be enough to fetch it.
    assert world.register("train", secret_sha256=SECRET, trusted=False).proof_key == ""


def test_an_approved_launcher_gets_its_key_once_also_from_the_next_manager(world: World) -> None:
    world.register("train", secret_sha256=SECRET, trusted=False, peer="10.9.9.9")
    world.fleet.agents.enrolment.approve("launcher:train", "tester", world.now)
    world.restart()
    assert world.register("train", secret_sha256=SECRET, trusted=False, peer="10.9.9.9").proof_key != ""
    world.fleet = world.open()  # as after kill -9
    assert world.register("train", secret_sha256=SECRET, trusted=False).proof_key == ""


def test_knowing_a_launcher_s_hash_is_not_enough_to_change_its_command(world: World) -> None:
    """The hash is sent in clear text; otherwise anyone who saw it could make the launcher run any command."""
    world.register("train", secret_sha256=SECRET)
    reply = world.register("train", secret_sha256=SECRET, trusted=False, command="rm -rf /", peer="10.6.6.6")
    assert reply.status == "registered"
    assert world.fleet.state.workers_by_id["train"].spec.command == "python train.py"
    changed = world.register("train", secret_sha256=SECRET, trusted=True, command="python train.py --lr 1")
    assert changed.status == "registered"
    assert world.fleet.state.workers_by_id["train"].spec.command == "python train.py --lr 1"


def test_nobody_else_can_replace_what_waits_for_approval(world: World) -> None:
    world.register("train", secret_sha256=SECRET, trusted=False, peer="10.9.9.9")
    with pytest.raises(Conflict, match=r"from 10\.9\.9\.9 is already pending"):
        world.register("train", secret_sha256=SECRET, trusted=False, command="rm -rf /", peer="10.6.6.6")
    world.fleet.agents.enrolment.approve("launcher:train", "tester", world.now)
    assert world.fleet.state.workers_by_id["train"].spec.command == "python train.py"


def test_two_launchers_waiting_under_one_name_are_distinguished_by_fingerprint(world: World) -> None:
    other = messages.secret_sha256("two")
    world.register("train", secret_sha256=SECRET, trusted=False)
    world.register("train", secret_sha256=other, trusted=False)
    with pytest.raises(Conflict, match=messages.fingerprint(other)):
        world.fleet.agents.enrolment.approve("launcher:train", "tester", world.now)
    world.fleet.agents.enrolment.approve("launcher:train", "tester", world.now, messages.fingerprint(other))
    assert world.fleet.agents.secrets.authenticate(other) == "launcher:train"


def test_an_id_that_runs_elsewhere_is_refused_naming_the_holder(world: World) -> None:
    with pytest.raises(Conflict, match="w1 is held by h1 on host h1, where it is running"):
        world.register("w1", secret_sha256=SECRET)


def test_an_id_of_a_silent_host_is_refused_too(world: World) -> None:
    world.fleet.agents.mark("h1", "unreachable", "no heartbeat", world.now)
    with pytest.raises(Conflict, match=r"unknown \(last known: running\)"):
        world.register("w1", secret_sha256=SECRET)


def test_an_id_that_was_stopped_elsewhere_is_taken_over_with_a_higher_epoch(world: World) -> None:
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.beat("h1", world.report("w1", "stopped"))
    before = world.fleet.state.workers_by_id["w1"].epoch
    reply = world.register("w1", secret_sha256=SECRET)
    assert reply.status == "registered"
    assert reply.epoch > before
    assert [(one.worker_id, one.desired) for one in world.fleet.agents.assignments.of("h1")] == [("w1", "removed")]


def test_the_same_launcher_comes_back_to_its_running_worker(world: World) -> None:
    first = world.register("train", secret_sha256=SECRET)
    world.beat("launcher:train", world.report("train"))
    again = world.register("train", secret_sha256=SECRET)
    assert (again.status, again.epoch) == ("registered", first.epoch)


def test_another_launcher_of_a_running_worker_is_refused(world: World) -> None:
    world.register("train", secret_sha256=SECRET)
    world.beat("launcher:train", world.report("train"))
    with pytest.raises(Conflict, match="held by launcher:train on host laptop"):
        world.register("train", secret_sha256=messages.secret_sha256("two"), host="other")


def test_a_launcher_in_any_language_gets_its_commands_with_the_plain_heartbeat(world: World) -> None:
    world.register("curl")
    world.fleet.agents.heartbeats.take_plain("curl", messages.WorkerHeartbeat("running", pid=42), world.now)
    assert world.fleet.state.worker("curl")["state"] == "running"
    world.fleet.workers.command("curl", "stop", "tester", world.now)
    reply = world.fleet.agents.heartbeats.take_plain("curl", messages.WorkerHeartbeat("running", pid=42), world.now)
    assert (reply.desired, [one.command for one in reply.commands]) == ("stopped", ["stop"])
    again = world.fleet.agents.heartbeats.take_plain("curl", messages.WorkerHeartbeat("running", pid=42), world.now)
    assert again.commands == []
    world.fleet.agents.heartbeats.take_plain("curl", messages.WorkerHeartbeat("stopped"), world.now)
    assert world.fleet.state.worker("curl")["state"] == "stopped"


# ------------------------------------------------------------------------------------------------- credentials


def test_a_new_secret_ends_the_old_one(world: World) -> None:
    new = messages.secret_sha256("two")
    world.fleet.agents.secrets.set("h1", SECRET, "tester", world.now)
    world.fleet.agents.secrets.set("h1", new, "tester", world.now)
    assert world.fleet.agents.secrets.authenticate(SECRET) is None
    assert world.fleet.agents.secrets.authenticate(new) == "h1"


def test_tokens_survive_a_restart_and_end_when_revoked(world: World) -> None:
    token = world.fleet.tokens.add("operator", "laptop", SECRET, "tester", world.now)
    world.restart()
    found = world.fleet.tokens.find(SECRET)
    assert found is not None
    assert found.scope == "operator"
    world.fleet.tokens.revoke(token.token_id, "tester", world.now)
    assert world.fleet.tokens.find(SECRET) is None


def test_an_agent_reports_only_its_own_workers(world: World) -> None:
    world.deploy({"h2": {"w2": {"command": "a"}}})
    world.beat("h2", world.report("w1", "failed"))
    assert world.fleet.state.worker("w1")["state"] == "running"
    assert not world.fleet.agents.owns("h2", "w1")
    assert world.fleet.agents.owns("h1", "w1")


def test_after_stop_all_what_is_declared_is_declared_stopped_until_an_operator_starts_something(world: World) -> None:
    world.deploy({"h1": {"w1": {"command": "a"}}})
    with world.changing() as tx:
        world.fleet.workers.stop_all(tx, "w1 failed")
    world.fleet.state.durability.commit()
    world.restart()
    reported = world.deploy({"h1": {"w1": {"command": "a"}, "w2": {"command": "b"}}})["hosts"]["h1"]["workers"]["w2"]
    assert (reported["result"], "w1 failed" in reported["message"]) == ("new", True)
    assert {one.desired for one in world.fleet.state.workers_by_id.values()} == {"stopped"}
    world.register("by-hand")
    assert world.fleet.state.workers_by_id["by-hand"].desired == "stopped"
    world.fleet.workers.command("w1", "start", "anna", world.now)
    world.deploy({"h2": {"w3": {"command": "c"}}})
    assert world.fleet.state.workers_by_id["w3"].desired == "running"
    assert world.fleet.state.workers_by_id["w2"].desired == "stopped"


def test_a_worker_that_failed_again_unseen_has_failed_again(world: World) -> None:
    """It was started and failed between two heartbeats: two failures, not one that continues."""
    failed: list[str] = []
    world.fleet.state.failing.subscribe(lambda _tx, worker: failed.append(worker.worker_id))
    world.deploy({"h1": {"w1": {"command": "a"}}})
    world.beat("h1", world.report("w1", "failed", attempt=3))
    world.beat("h1", world.report("w1", "failed", attempt=3))
    assert failed == ["w1"]
    world.beat("h1", world.report("w1", "failed", attempt=4))
    assert failed == ["w1", "w1"]


def test_a_worker_that_may_be_starting_on_a_silent_host_is_not_taken_over_by_hand(world: World) -> None:
    """Its last report was "stopped", but its desired state was running: its agent may have started it since."""
    world.deploy({"h1": {"w1": {"command": "a"}}})
    world.beat("h1", world.report("w1", "stopped"))
    world.fleet.agents.mark("h1", "unreachable", "no heartbeat", world.now)
    with pytest.raises(Conflict, match="held by h1"):
        world.register("w1", host="laptop")
    world.beat("h1", world.report("w1", "exited"))
    world.fleet.agents.mark("h1", "unreachable", "no heartbeat", world.now)
    assert world.register("w1", host="laptop").status == "registered"


def test_a_new_specification_reaches_the_agent_though_the_old_one_was_resolved_before(world: World) -> None:
    """Resolved specifications and their digests are cached; a changed one must never be served from the cache."""
    before = world.beat("h1", world.report("w1"))
    world.deploy({"h1": {"w1": {"command": "sleep 10"}}})
    reply = world.beat("h1", world.report("w1"), assignments_rev=before.assignments_rev)
    assert reply.assignments_rev != before.assignments_rev
    assert reply.assignments is not None and reply.assignments[0].spec.command == "sleep 10"
    assert world.beat("h1", world.report("w1"), assignments_rev=reply.assignments_rev).assignments is None


def test_a_heartbeat_that_says_nothing_new_waits_for_no_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy({"h1": {"w1": {"command": "x"}}})
    world.beat("h1", world.report("w1"))
    commits = []
    commit = world.fleet.state.durability.commit
    monkeypatch.setattr(world.fleet.state.durability, "commit", lambda: (commits.append(1), commit())[1])
    world.pass_time(2.0)
    world.beat("h1", world.report("w1", usage=messages.WorkerUsage(cpu_percent=7.0)))
    assert commits == []
    world.beat("h1", world.report("w1", attempt=2), events=[world.event("w1", "running", "starting")])
    assert commits == [1]
