"""The output of `invoke status` and `invoke hosts`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from procguard.console import grid, tables
from procguard.fleet.shapes.hosts import HOST
from procguard.fleet.shapes.workers import WORKER

NOW = datetime(2026, 11, 30, tzinfo=timezone.utc)


def shown(columns: tables.Columns, view: dict[str, Any]) -> str:
    return "\n".join(grid.render(columns, [view], None))


def exited(**exit_record: Any) -> dict[str, Any]:
    return {"worker_id": "web", "state": "exited", "host": "h1", "last_exit": {"code": 0, **exit_record}}


def test_a_command_that_went_into_the_background_is_not_ticked_off() -> None:
    assert "✓ exited" in shown(tables.workers(NOW, WORKER), exited())
    assert "! exited" in shown(tables.workers(NOW, WORKER), exited(left=2, left_names=["nginx"]))


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("", ""),
        ("space", "disk full (/data): nothing new starts"),
        ("inodes", "no inodes left (/data)"),
        ("io", "disk errors (/data)"),
    ],
)
def test_a_host_whose_disk_refuses_writes_says_so(trouble: str, words: str) -> None:
    host = {"host": "h1", "agent_state": "connected", "disk_trouble": trouble, "disk_path": "/data"}
    text = shown(tables.hosts(NOW, HOST), host)
    assert words in text and (bool(words) == ("/data" in text))
