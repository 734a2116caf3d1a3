"""A browser that vanished silently, with the manager's default timeouts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.raw_websocket import PING, RawWebSocket
from tests.server_process import RunningManager

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]


def test_the_manager_pings_after_15_s_and_reaps_after_45(tmp_path: Path) -> None:
    """It holds a connection for less than a minute; an unanswered ping is the only sign of it."""
    manager = RunningManager(tmp_path)
    try:
        began = time.monotonic()
        with RawWebSocket(manager.port, timeout_s=60.0) as client:
            assert client.message()["t"] == "hello"
            frame = client.frame()
            assert frame is not None and frame.opcode == PING
            assert 14 < time.monotonic() - began < 20
            assert client.close_code() == 1006
            assert 44 < time.monotonic() - began < 55
    finally:
        manager.close()
