"""A gang's member on a real runner: it never restarts alone, and the manager's variables take precedence."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from remote_agent.agent.spec_file import resolve
from remote_agent.protocol.messages import Assignment, Hook, WorkerSpec
from remote_agent.runner import environment
from remote_agent.runner.restart import FAIL, FINISH, Ending, RestartRules, decide
from remote_agent.runner.task.assignment import ASKED, TERMINATE
from remote_agent.system import paths
from tests.unit.runner_rig import FOREVER, Rig, alive
from tests.waiting import wait_until

SHORT_S = 2.5 if sys.implementation.name == "cpython" else 8.0  # seconds that a start takes at most
ALONE = "a member of a gang never restarts alone"


@pytest.fixture
def member(rig: Rig) -> Rig:
    rig.assignment.update(gang=True)
    return rig.fence(60.0)


@pytest.mark.parametrize(
    "ending",
    [
        Ending(code=1, ran_s=5.0, was_running=True),
        Ending(signal=9, oom=True, ran_s=9999.0, was_running=True),
        Ending(cause="unhealthy", detail="http: 500"),
        Ending(cause="lost", detail="its runner was killed"),
        Ending(cause="start_timeout", detail="cannot start: no pids"),
    ],
)
@pytest.mark.parametrize("policy", ["on-failure", "always", "never"])
def test_any_end_that_might_be_restarted_is_a_failure(ending: Ending, policy: str):
    """Whatever its policy and budget: those of the gang apply."""
    of_gang = RestartRules({"policy": policy, "max_attempts": 99})
    of_gang.gang = True
    decision = decide(ending, 0, of_gang)
    assert (decision.action, decision.restarts) == (FAIL, 0) and decision.reason.endswith(ALONE)


@pytest.mark.parametrize("policy", ["on-failure", "always", "never"])
def test_a_member_that_finished_well_has_finished(policy: str):
    """Also with `always`: it would start without its gang."""
    of_gang = RestartRules({"policy": policy})
    of_gang.gang = True
    assert decide(Ending(code=0, ran_s=5.0, was_running=True), 0, of_gang).action == FINISH


def test_crash_settles_at_once_with_its_exit_record(member: Rig):
    member.shell(FOREVER).run()
    os.kill(member.until("running")["pid"], signal.SIGKILL)
    state = member.until("failed")
    assert state["attempt"] == 1 and state["reason"].endswith(ALONE)
    assert member.exit_record(1)["signal"] == signal.SIGKILL
    member.runner_gone()


def test_health_check_that_wants_a_restart_fails_it(member: Rig):
    member.shell(FOREVER).run()
    pid = member.until("running")["pid"]
    assert member.link
    member.link.health("failing", "http: 500", restart=True)
    assert "unhealthy" in member.until("failed")["reason"] and not alive(pid)


def test_runner_s_death_fails_it_and_nothing_starts(member: Rig):
    member.shell(FOREVER).run()
    pid = member.until("running")["pid"]
    member.kill_runner()
    wait_until(lambda: not alive(pid), 5.0, "the child's end")
    member.run()
    assert "its runner was killed" in member.until("failed")["reason"]
    assert member.state()["attempt"] == 1


def test_reboot_fails_it_until_a_new_generation_comes(member: Rig):
    member.shell(FOREVER).run()
    member.until("running")
    member.kill_runner()
    paths.write_json(paths.state_file(member.worker_dir), {**member.state(), "boot_id": "another boot"})
    member.run()
    assert "the host went down" in member.until("failed")["reason"]
    member.assignment.update(generation=2)
    member.fence(60.0, epoch=1_000_002).run()
    assert member.until("running")["attempt"] == 2 and member.status["epoch"] == 1_000_002


@pytest.mark.slow
def test_end_of_its_lease_fails_it(member: Rig):
    """A lease of the same epoch would otherwise start it again, alone."""
    member.shell("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done").fence(SHORT_S).run()
    member.until("running")
    reason = member.until("failed")["reason"]
    assert reason.startswith("its lease ended") and reason.endswith(ALONE)
    assert member.exit_record(1)["code"] == 0


def test_shutdown_of_its_host_fails_it(member: Rig):
    """SIGTERM to the runner: another worker would be started again by the next runner."""
    member.shell(FOREVER).run()
    status = member.until("running")
    os.kill(status["runner_pid"], signal.SIGTERM)
    reason = member.until("failed")["reason"]
    assert reason.startswith(ASKED[TERMINATE]) and not alive(status["pid"])


def test_new_epoch_replaces_a_member_that_missed_the_stop(member: Rig):
    """A member with `keep` that was partitioned while its gang was stopped must not join the next start as it is."""
    member.assignment.update(lease_s=None)
    member.lease = None
    member.shell(FOREVER).run()
    old = member.until("running")["pid"]
    assert member.link
    member.write_spec(epoch=1_000_002, generation=3)
    member.link.assign()
    assert member.until("running", attempt=2)["epoch"] == 1_000_002 and not alive(old)


def test_worker_that_becomes_a_member_while_it_pauses_does_not_start_by_itself(rig: Rig):
    rig.shell("exit 1", restart={"backoff_s": [30.0]}).run()
    rig.until("backoff")
    assert rig.link
    rig.write_spec(gang=True)
    rig.link.assign()
    assert rig.until("stopped")["held"]


# -------------------------------------------------------------------------------------------- the manager's variables


def test_manager_s_variables_win_over_every_layer_and_hooks_see_them(rig: Rig, tmp_path: Path):
    """The host's, env_file, env and setup lines."""
    (tmp_path / "env").write_text("RANK=from-file\nOTHER=kept\n")
    marks = tmp_path / "marks"
    spec = WorkerSpec(
        command=["/bin/sh", "-c", 'echo "$RANK|$MASTER_ADDR|$OTHER|$PROCGUARD_WORKER_ID"; exec sleep 1000'],
        working_dir=str(tmp_path),
        env={"RANK": "from-env"},
        env_file="env",
        setup=["export RANK=from-setup MASTER_ADDR=from-setup"],
        pre_start=[Hook(f"echo $RANK >> {marks}")],
    )
    given = {"RANK": "3", "MASTER_ADDR": "it's 10.0.0.11", "PROCGUARD_WORKER_ID": "another", "not-a-name": "x"}
    content = resolve(Assignment("w1", spec, env=given), str(tmp_path))
    content["spec"].update(rig.assignment["spec"], env=spec.env)
    rig.assignment.update(content)
    rig.run()
    assert rig.logged(1) == ["3|it's 10.0.0.11|kept|w1"]
    assert marks.read_text() == "3\n"


def test_changed_variables_hold_from_the_next_start_on_and_are_no_pending_restart(rig: Rig):
    rig.shell("echo rank $RANK; exec sleep 1000")
    rig.assignment["env"] = {"RANK": "0"}
    rig.run()
    before = rig.until("running")
    assert rig.link
    rig.write_spec(env={"RANK": "1"})
    rig.status = {}
    rig.link.assign()
    after = rig.until("running")
    assert (after["pid"], after["launch_digest"]) == (before["pid"], before["launch_digest"])
    rig.link.restart(1, "c-1")
    rig.until("running", attempt=2)
    assert (rig.logged(1), rig.logged(1, attempt=2)) == (["rank 0"], ["rank 1"])


def test_only_names_that_a_shell_takes_are_exported_after_the_setup_lines():
    words = environment.wrapped(["job"], [], ["true"], {"RANK": "0", "a b": "1", "x;rm": "2"})
    assert "export RANK='0'" in words[2] and "a b" not in words[2] and "x;rm" not in words[2]
