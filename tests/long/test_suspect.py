"""Signs of a hang with a real agent, at its real pace."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.agent_host import Host, running
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def test_a_stopped_process_is_reported_as_suspect_and_left_alone(host: Host, manager: FakeManager) -> None:
    manager.assign("w1", ["sleep", "600"])
    host.start()
    pid = running(manager)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: "stopped by a signal" in manager.report("w1").get("suspect", ""), 40, "suspect")
    assert manager.report("w1")["attempt"] == 1 and manager.state("w1") == "running"
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: manager.report("w1").get("suspect") == "", 20, "clear")


def test_a_job_that_falls_silent_is_suspect_after_a_minute_and_clear_when_it_prints(
    host: Host, manager: FakeManager, tmp_path: Path
) -> None:
    """Nothing is configured: its own rhythm decides."""
    gate = tmp_path / "silent"
    script = f"while true; do [ -e {gate} ] || echo step; sleep 0.5; done"
    manager.assign("w1", script, shell=True)
    host.start()
    running(manager)
    wait_until(lambda: (tmp_path / "home").exists() and manager.log("w1").count(b"step") > 130, 90, "its rhythm")
    gate.touch()
    wait_until(lambda: manager.report("w1").get("suspect", "").startswith("no output for 1 min"), 90, "suspect")
    assert "its longest pause before was 5" in manager.report("w1")["suspect"]
    gate.unlink()
    wait_until(lambda: manager.report("w1").get("suspect") == "", 20, "clear")
