"""A manager that receives SIGTERM during its takeover terminates."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests import forked, postgres_server
from tests.ports import free_port


@pytest.mark.slow
def test_a_signal_that_comes_while_a_manager_takes_over_is_not_lost(tmp_path: Path) -> None:
    """The signal arrived after the standby had ended and before the leader handled signals."""
    with postgres_server.cluster() as server:
        settings = [
            f"state.database={server.url(server.database())}", f"state.database_password_file={server.password}",
            f"state.state_file={tmp_path}/state.yaml", f"logging.file={tmp_path}/log", "state.manager_name=m1",
        ]  # fmt: skip
        words = [word for setting in settings for word in ("--set", setting)]
        words += ["--host", "127.0.0.1", "--port", str(free_port())]
        with open(tmp_path / "out", "wb") as out:
            manager = forked.start("procguard.main", words, os.environ, tmp_path, out.fileno(), out.fileno())
        try:
            log, until = tmp_path / "log", time.monotonic() + 30
            while not (log.exists() and " leads term=" in log.read_text()):
                assert manager.poll() is None and time.monotonic() < until, "it never led"
                time.sleep(0.001)
            manager.send_signal(signal.SIGTERM)
            assert manager.wait(20) == 0
        finally:
            manager.kill()
