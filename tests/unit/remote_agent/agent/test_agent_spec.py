"""A specification reaches the child through agent and runner; its errors reach the manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol.messages import HealthCheck, Hook, RestartPolicy, launch_digest
from tests.agent_host import Host, alive, running
from tests.fake_manager import FakeManager
from tests.waiting import wait_until


@pytest.mark.slow
def test_what_hooks_print_is_shipped_in_order_after_the_worker_s_end_too(host: Host, manager: FakeManager) -> None:
    manager.assign(
        "w1",
        "echo command",
        pre_start=[Hook("echo before")],
        post_stop=[Hook("sleep 1.5; echo after $PROCGUARD_EXIT_CODE")],
    )
    host.start()
    wait_until(lambda: manager.state("w1") == "exited", what="its end")
    wait_until(lambda: manager.log("w1") == b"before\ncommand\nafter 0\n", what="the whole log at the manager")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"working_dir": "{tmp}/gone"}, "working directory does not exist: {tmp}/gone"),
        ({"command": "trian.py"}, "command not found: trian.py (looked in PATH="),
        ({"command": "{tmp}/plain"}, "{tmp}/plain may not be executed; chmod +x {tmp}/plain"),
        ({"command": "'unclosed"}, "command cannot be split into words (No closing quotation): 'unclosed"),
        ({"env_file": "{tmp}/plain"}, "env_file {tmp}/plain:1: this line has no =; expected NAME=VALUE"),
        ({"user": "nobody-there"}, "user nobody-there does not exist on this host"),
        ({"conda": "none-such"}, "conda environment not found: none-such ("),
    ],
)
def test_what_keeps_a_worker_from_starting_is_one_failed_reason_at_the_manager(
    host: Host, manager: FakeManager, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    (tmp_path / "plain").write_text("no program\n")
    there = {"command": "sleep 600", **{name: value.format(tmp=tmp_path) for name, value in fields.items()}}
    manager.assign("w1", there.pop("command"), **there)
    host.start()
    wait_until(lambda: manager.state("w1") == "failed", what="failed")
    assert manager.report("w1")["reason"].startswith(reason.format(tmp=tmp_path))
    assert manager.report("w1")["restarts_total"] == 0


def test_changed_environment_leaves_the_child_alone_and_shows_as_another_start(
    host: Host, manager: FakeManager, tmp_path: Path
) -> None:
    """restart pending: the running attempt's digest is the old specification's."""
    (tmp_path / "e").write_text("A=1")
    before = manager.assign("w1", "sleep 600", restart=RestartPolicy(start_secs=0.1))
    host.start()
    pid = running(manager)
    after = manager.assign("w1", "sleep 600", restart=RestartPolicy(start_secs=0.1), env_file=str(tmp_path / "e"))
    beats = len(manager.beats)
    wait_until(lambda: len(manager.beats) > beats + 2, what="the agent's next words")
    assert alive(pid) and manager.report("w1")["pid"] == pid
    assert manager.report("w1")["launch_digest"] == launch_digest(before.spec) != launch_digest(after.spec)


def test_an_exec_check_runs_in_the_environment_its_job_was_started_with(
    host: Host, manager: FakeManager, tmp_path: Path
) -> None:
    """Variables of env_file and of setup lines apply there too: a check often needs the job's own Python."""
    (tmp_path / "e").write_text("FROM_FILE=yes\n")
    check = HealthCheck(
        "exec", command="sh -c 'test $FROM_FILE$FROM_SETUP = yesyes'", interval_s=0.2, start_grace_s=0.0, failures=1
    )
    manager.assign(
        "w1", "sleep 600", env_file=str(tmp_path / "e"), setup=["export FROM_SETUP=yes"], health=[check],
        restart=RestartPolicy(start_secs=0.1),
    )  # fmt: skip
    host.start()
    health = wait_until(
        lambda: (
            found if (found := manager.report("w1").get("health") or {}).get("status") in ("ok", "failing") else None
        ),
        what="the check's verdict",
    )
    assert health["status"] == "ok", health
