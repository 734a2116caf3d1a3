"""The runner with real children: starts, restarts, stops. Each test names the guarantee that it checks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from remote_agent.runner import control
from remote_agent.system import paths
from tests.unit.runner_rig import FOREVER, STUBBORN_DAEMON, Rig, alive
from tests.waiting import wait_until

# ------------------------------------------------------------------------------------------------ starting


def test_child_becomes_running_after_start_secs(rig: Rig):
    """stopped -> starting -> running, each an event with a rising seq and a reason."""
    assert rig.shell(FOREVER).run() == control.EXIT_STARTED
    status = rig.until("running")
    assert alive(status["pid"]) and status["attempt"] == 1 and status["launch_digest"] == "d1"
    events = rig.events()
    assert [(e["before"], e["after"]) for e in events] == [("stopped", "starting"), ("starting", "running")]
    assert events[0]["seq"] < events[1]["seq"] and all(e["reason"] for e in events)
    assert abs(events[0]["seq"] / 1000 - time.time()) < 60


def test_child_gets_its_own_session_and_environment(rig: Rig):
    """Own session, the worker's variables over the base environment, the OOM killer's preference, no stdin."""
    script = (
        "env; echo sid $(cut -d' ' -f6 /proc/self/stat) $$; echo oom $(cat /proc/self/oom_score_adj); cat; sleep 1000"
    )
    rig.shell(script, env={"OWN": "a b", "PYTHONUNBUFFERED": "0"}).run()
    wait_until(lambda: "oom" in rig.log(), 10, "the child's words")
    log = rig.log()
    for wanted in ("OWN=a b", "PYTHONUNBUFFERED=0", "PROCGUARD_WORKER_ID=w1", "PROCGUARD_ATTEMPT=1", "HOME=/tmp",
                   "PROCGUARD_EPOCH=1000001", f"PROCGUARD_COOKIE={rig.state()['cookie']}-1", "oom 500"):  # fmt: skip
        assert wanted in log
    sid_line = next(line for line in log.splitlines() if line.startswith("sid")).split()
    assert sid_line[1] == sid_line[2]


def test_stderr_is_kept_apart_where_asked(rig: Rig):
    """merge keeps the order in one file, separate makes two."""
    rig.shell("echo out; echo err >&2; exec sleep 1000", stderr="separate").run()
    wait_until(lambda: rig.log(1, "err") == "err\n" and rig.log() == "out\n", 10, "both files")


def test_output_is_appended_never_overwritten(rig: Rig):
    """O_APPEND: other writers of the log lose nothing."""
    rig.shell(FOREVER).write_spec()
    os.makedirs(paths.attempts_dir(rig.worker_dir))
    rig.run()
    flags = Path(f"/proc/{rig.until('running')['pid']}/fdinfo/1").read_text()
    assert int(flags.split("flags:")[1].split()[0], 8) & os.O_APPEND


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"argv": ["trian.py"]}, "command not found: trian.py (looked in PATH="),
        ({"argv": ["./nothing"]}, "command not found: "),
        ({"argv": ["./plain"]}, "may not be executed; chmod +x"),
        ({"argv": ["./badline"]}, "the interpreter in the first line of"),
        ({"argv": ["./noline"]}, "is not a program"),
        ({"argv": ["sleep", "1"], "cwd": "/does/not/exist"}, "working directory does not exist: /does/not/exist"),
        ({"argv": []}, "names no command"),
    ],
)
def test_what_cannot_start_fails_at_once_with_one_clear_reason(rig: Rig, change, words):
    """No retry loop where only a person can help."""
    directory = Path(str(rig.assignment["cwd"]))
    (directory / "plain").write_text("#!/bin/sh\n")
    (directory / "badline").write_text("#!/no/such/interpreter\n")
    (directory / "noline").write_text("echo no\n")
    for name in ("badline", "noline"):
        (directory / name).chmod(0o700)
    rig.assignment.update(change)
    rig.run()
    status = rig.until("failed")
    assert words in status["reason"] and status["attempt"] == 1
    assert rig.passed_through() == ["starting", "failed"]
    if change["argv"]:
        assert words in rig.exit_record(1)["reason"]
    rig.runner_gone()


def test_child_not_running_by_start_timeout_has_failed(rig: Rig):
    """recovery_timeout: a start that takes too long is a failed attempt."""
    rig.shell(FOREVER, restart={"start_secs": 30, "start_timeout_s": 0.2, "max_attempts": 1}).run()
    status = rig.until("failed")
    assert status["attempt"] == 2 and "not running after 0." in status["reason"]
    assert "s: start_secs is 30 s" in status["reason"]
    assert rig.survivors() == []


# ---------------------------------------------------------------------------------------------- restarting


def test_killed_child_is_restarted_at_once_and_counted(rig: Rig):
    """kill -9 child -> new child within 50 ms, with the reason in words."""
    rig.shell(FOREVER).run()
    first = rig.until("running")
    os.kill(first["pid"], signal.SIGKILL)
    killed_at = time.time()
    second = rig.until("running", attempt=2)
    starting = rig.events()[2]
    assert (starting["before"], starting["after"], starting["attempt"]) == ("running", "starting", 2)
    assert (
        starting["reason"].startswith("killed by signal 9 (SIGKILL) after 0")
        and "restart 1 of 3 now" in starting["reason"]
    )
    assert starting["exit"]["attempt"] == 1 and starting["exit"]["signal"] == 9
    assert starting["at"] - killed_at < 0.25, "the event may be late on a busy machine, but not by this much"
    assert second["pid"] != first["pid"] and (second["restarts"], second["restarts_total"]) == (1, 1)


def test_exit_record_is_on_disk_before_it_is_reported(rig: Rig):
    """An exit is never lost: its record exists before it is reported."""
    rig.shell(FOREVER).run()
    os.kill(rig.until("running")["pid"], signal.SIGTERM)
    rig.until("starting", attempt=2)
    record = rig.exit_record(1)
    assert (record["signal"], record["code"], record["oom"]) == (15, None, False) and record["duration_s"] > 0.04


def test_child_exiting_before_start_secs_enters_backoff_after_its_free_restart(rig: Rig):
    """The second crash waits; state and reason say how long."""
    rig.shell("exit 3", restart={"start_secs": 5, "backoff_s": [0.0, 60.0]}).run()
    status = rig.until("backoff")
    assert status["attempt"] == 2 and "exit code 3 after" in status["reason"]
    assert status["reason"].endswith("restart 2 of 3 in 1 min")
    assert 50 < status["next_start_at"] - time.time() <= 60
    assert rig.passed_through() == ["starting", "starting", "backoff"]


def test_crash_loop_ends_in_failed_and_the_runner_leaves(rig: Rig):
    """Budget spent: failed, state kept, no process left, socket gone."""
    rig.shell("echo crash; exit 1", restart={"backoff_s": [0.0, 0.05]}).run()
    status = rig.until("failed")
    assert status["attempt"] == 4 and status["reason"].endswith("all 3 restarts are used up")
    rig.runner_gone()
    assert not os.path.exists(paths.runner_socket(rig.runtime_dir, rig.worker_dir))
    assert rig.state()["state"] == "failed" and rig.events()[-1]["exit"]["code"] == 1


def test_exit_zero_is_exited(rig: Rig):
    """Finished: no restart, and the runner exits."""
    rig.shell("sleep 0.1").run()
    assert rig.until("exited")["reason"].startswith("finished: exit code 0 after 0")
    rig.runner_gone()


def test_never_restarts_nothing(rig: Rig):
    """enable_auto_recovery: false."""
    rig.shell(FOREVER, restart={"policy": "never"}).run()
    os.kill(rig.until("running")["pid"], signal.SIGKILL)
    assert "restarts are off" in rig.until("failed")["reason"]


def test_healthy_run_gives_the_budget_back(rig: Rig):
    """Running healthy_after_s resets the count, not the total."""
    rig.shell(FOREVER, restart={"healthy_after_s": 0.4}).run()
    os.kill(rig.until("running")["pid"], signal.SIGKILL)
    assert rig.until("running", attempt=2)["restarts"] == 1
    wait_until(lambda: rig.pump() or rig.status["restarts"] == 0, 5, "the budget back")
    assert rig.status["restarts_total"] == 1


def test_what_a_child_leaves_behind_is_ended_before_the_restart(rig: Rig):
    """A clean slate: the orphans of a crashed job hold its GPU."""
    rig.shell("sleep 1000 & echo $!; exec sleep 1000").run()
    orphan = int(rig.logged(1)[0])
    os.kill(rig.until("running")["pid"], signal.SIGKILL)
    rig.until("running", attempt=2)
    assert not alive(orphan)
    assert any("left behind" in str(m.get("reason")) for m in rig.said)


def test_unhealthy_attempt_is_ended_and_restarted_by_the_policy(rig: Rig):
    """The agent's health check asks; it spends the budget like a crash, and never passes through stopping."""
    rig.shell("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done").run()
    rig.until("running")
    assert rig.link
    rig.link.health("failing", "http: 500 three times", restart=False)
    rig.link.health("failing", "http: 500 three times", restart=True)
    status = rig.until("running", attempt=2)
    assert status["restarts"] == 1 and "stopping" not in rig.passed_through()
    assert "unhealthy after" in rig.exit_record(1)["reason"]


# ------------------------------------------------------------------------------------------------- stopping


def test_stop_escalates_signals_and_leaves_nothing(rig: Rig):
    """Double fork and setsid included: stop signal, grace, SIGKILL, 0 survivors."""
    rig.shell(STUBBORN_DAEMON + "(setsid sleep 1000 &) ; echo ready; exec sleep 1000", stop_grace_s=0.3).run()
    rig.until("running")
    rig.logged(2)
    assert len(rig.survivors()) >= 3
    rig.write_spec(desired="stopped", generation=2)
    rig.link.assign()
    status = rig.until("stopped")
    assert rig.survivors() == []
    assert status["held"] and "did not end within 0.3 s" in status["reason"]
    assert rig.passed_through()[-2:] == ["stopping", "stopped"]
    rig.runner_gone()


def test_daemon_that_scrubbed_its_environment_does_not_survive(rig: Rig):
    """No cookie, no parent, no session of the worker: the runner is its subreaper nevertheless."""
    rig.shell("env -i setsid sh -c 'echo $$; exec sleep 1000' & wait", stop_grace_s=0.3).run()
    daemon = int(rig.logged(1)[0])
    rig.until("running")
    rig.write_spec(desired="stopped", generation=2)
    rig.link.assign()
    rig.until("stopped")
    assert not alive(daemon)


def test_polite_child_has_its_grace(rig: Rig):
    """The stop signal of the specification arrives, and the child ends in its own way."""
    script = "trap 'echo saving; sleep 0.1; echo saved; exit 0' USR1; echo up; while :; do sleep 0.02; done"
    rig.shell(script, stop_signal="USR1").run()
    rig.logged(1)
    rig.until("running")
    rig.write_spec(desired="stopped", generation=2)
    rig.link.assign()
    status = rig.until("stopped")
    assert "saved" in rig.log()
    assert "exit code 0" in status["reason"] and "did not end" not in status["reason"]


def test_stopped_process_is_continued_to_receive_the_signal(rig: Rig):
    """A SIGSTOPped job gets SIGCONT after the stop signal: no need to wait for the grace."""
    rig.shell(FOREVER, stop_grace_s=30).run()
    os.kill(rig.until("running")["pid"], signal.SIGSTOP)
    rig.write_spec(desired="stopped", generation=2)
    rig.link.assign()
    assert "signal 15" in rig.until("stopped", timeout_s=5)["reason"]


def test_kill_is_at_once_and_holds(rig: Rig):
    """SIGKILL without grace; the same generation does not start it again."""
    rig.shell("trap '' TERM; " + STUBBORN_DAEMON + "while :; do sleep 0.1; done", stop_grace_s=60).run()
    rig.until("running")
    rig.link.kill(1, "c-1")
    assert rig.result("c-1")["status"] == "done"
    assert rig.until("stopped")["restarts_total"] == 0
    rig.runner_gone()
    assert rig.survivors() == []
    assert rig.run() == control.EXIT_STARTED
    rig.runner_gone()
    assert rig.state()["state"] == "stopped" and rig.state()["attempt"] == 1


def test_restart_by_an_operator_spends_no_budget(rig: Rig):
    """running -> stopping -> starting; completion is reported with the new attempt."""
    rig.shell(FOREVER).run()
    rig.until("running")
    rig.link.restart(1, "c-1")
    assert rig.result("c-1")["status"] == "done"
    status = rig.until("running", attempt=2)
    assert (status["restarts"], status["restarts_total"]) == (0, 0)
    assert rig.passed_through() == ["starting", "running", "stopping", "starting", "running"]


def test_command_for_another_attempt_does_nothing(rig: Rig):
    """restart and kill act on the attempt that they target, or on none."""
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    rig.link.restart(7, "c-1")
    rig.link.kill(0, "c-2")
    assert rig.result("c-1")["status"] == rig.result("c-2")["status"] == "failed"
    assert "meant attempt 7, but attempt 1 is running" in str(rig.results["c-1"]["message"])
    assert alive(pid) and rig.state()["pid"] == pid


def test_restart_ends_a_backoff_and_stop_ends_it_for_good(rig: Rig):
    """An operator's restart does not wait for the delay."""
    rig.shell("sleep 0.05; exit 1", restart={"backoff_s": [60.0]}).run()
    rig.until("backoff", attempt=1)
    rig.link.restart(1, "c-1")
    rig.until("backoff", attempt=2)
    rig.write_spec(desired="stopped", generation=2)
    rig.link.assign()
    assert rig.until("stopped")["reason"] == "stopped by an operator"


def test_new_generation_gives_the_budget_back_and_starts_what_failed(rig: Rig):
    """failed needs a start by hand: the same generation does not do it, a new one does."""
    rig.shell("exit 1", restart={"max_attempts": 0}).run()
    rig.until("failed")
    rig.runner_gone()
    rig.run()
    rig.runner_gone()
    assert rig.state()["attempt"] == 1
    rig.shell(FOREVER).assignment["generation"] = 2
    rig.run()
    assert rig.until("running")["attempt"] == 2 and rig.status["generation"] == 2


def test_start_while_stopping_starts_after_the_stop(rig: Rig):
    """stop, then start at once: the old tree ends first, then a new attempt."""
    rig.shell("trap 'sleep 0.3; exit 0' TERM; echo up; while :; do sleep 0.02; done").run()
    rig.logged(1)
    rig.until("running")
    rig.write_spec(desired="stopped", generation=2)
    rig.link.assign()
    rig.until("stopping")
    rig.write_spec(desired="running", generation=3)
    rig.link.assign()
    assert rig.until("running", attempt=2)["generation"] == 3
    assert "stopped" not in rig.passed_through()


def test_old_grant_is_ignored(rig: Rig):
    """A lower epoch or generation than the current one is an outdated command."""
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    rig.write_spec(desired="stopped", generation=2, epoch=1_000_000)
    rig.link.assign()
    rig.write_spec(desired="stopped", generation=0, epoch=1_000_001)
    rig.link.assign()
    rig.link.restart(9, "c-1")
    rig.result("c-1")
    assert rig.status["state"] == "running" and alive(pid)


@pytest.mark.parametrize("how", ["setsid sleep 1000 >/dev/null 2>&1 &", "nohup sleep 1000 >/dev/null 2>&1 &"])
def test_command_that_goes_into_the_background_is_finished_and_says_what_was_ended(rig: Rig, how: str):
    """nginx with daemon on, redis --daemonize, nohup: they are ended, and the reason says so and what to do."""
    has_become_sleep = 'until read -r name </proc/$!/comm && [ "$name" = sleep ]; do :; done'
    rig.shell(f"{how} {has_become_sleep}; exit 0", stop_grace_s=1).run()
    reason = rig.until("exited")["reason"]
    assert reason.startswith("finished: exit code 0 after ")
    assert "it left 1 process in the background (sleep), ended now; a worker has to stay in the foreground" in reason
    assert (rig.exit_record(1)["left"], rig.exit_record(1)["left_names"]) == (1, ["sleep"])
    assert rig.survivors() == []


def test_failed_command_names_what_it_left_without_advice(rig: Rig):
    left = 'setsid sleep 1000 & until [ "$(cat /proc/$!/comm)" = sleep ]; do sleep 0.01; done'
    rig.shell(f"{left}; exit 3", restart={"policy": "never"}, stop_grace_s=1).run()
    reason = rig.until("failed")["reason"]
    assert "exit code 3" in reason and "1 process in the background (sleep), ended now" in reason
    assert "foreground" not in reason
