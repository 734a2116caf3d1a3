"""docs/protocol.md is true: every route the manager serves and every message on the wire is in it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from procguard.config import schema
from procguard.portal.logs.store import LogStore
from procguard.portal.web_monitor import WebMonitor
from remote_agent.protocol import messages as protocol
from tests.unit.fleet_world import World

TEXT = (Path(__file__).parents[4] / "docs" / "protocol.md").read_text(encoding="utf-8")
# Parts of messages that the examples show without their type's name.
SHOWN_INSIDE = {
    "Assignment", "Command", "CommandResult", "ExitRecord", "Health", "HealthCheck", "HostFacts", "HostUsage",
    "RestartPolicy", "WorkerEvent", "WorkerReport", "WorkerUsage",
}  # fmt: skip


def test_every_route_is_documented(tmp_path: Path) -> None:
    settings = schema.load(None, [f"state.state_file={tmp_path}/state.yaml"])
    monitor = WebMonitor(settings, World(tmp_path).registry, LogStore(str(tmp_path / "logs")))
    served = {re.sub(r"<[^>]+>", "*", route.rule) for route in monitor.app.routes}
    documented = {re.sub(r"\b[A-Z]{2,}\b", "*", path.rstrip(".")) for path in re.findall(r"/[a-zA-Z/_<>.-]+", TEXT)}
    pages = {"/", "/static/*"}
    assert served - documented - pages == set()


@pytest.mark.parametrize(
    "name",
    [name for name, cls in inspect.getmembers(protocol, dataclasses.is_dataclass) if name not in SHOWN_INSIDE],
)
def test_every_message_is_documented(name: str) -> None:
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize(
    "key", sorted({f.name for cls in (protocol.WorkerSpec, protocol.HealthCheck) for f in dataclasses.fields(cls)})
)
def test_every_key_of_a_worker_s_specification_is_documented(key: str) -> None:
    assert f'"{key}"' in TEXT or f"`{key}`" in TEXT
