"""docs/protocol.md is complete: it contains every route of the manager and every message of the protocol."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from remote_agent.protocol import messages as protocol
from scripts import route_docs
from tests.rows import each

TEXT = (Path(__file__).parents[4] / "docs" / "protocol.md").read_text(encoding="utf-8")
# Parts of messages that the examples show without their type's name.
SHOWN_INSIDE = {
    "Assignment", "Command", "CommandResult", "ExitRecord", "Health", "HealthCheck", "HostFacts", "HostUsage",
    "RestartPolicy", "WorkerEvent", "WorkerReport", "WorkerUsage",
}  # fmt: skip


def test_every_route_is_documented_as_it_is_declared() -> None:
    """Run `python scripts/route_docs.py` after a change of a declaration."""
    assert route_docs.with_table(TEXT) == TEXT


def test_every_link_within_it_leads_to_a_heading() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) - headings == set()


@each(
    "name",
    [name for name, cls in inspect.getmembers(protocol, dataclasses.is_dataclass) if name not in SHOWN_INSIDE],
)
def test_every_message_is_documented(name: str) -> None:
    assert f"`{name}`" in TEXT


@each("key", sorted({f.name for cls in (protocol.WorkerSpec, protocol.HealthCheck) for f in dataclasses.fields(cls)}))
def test_every_key_of_a_worker_s_specification_is_documented(key: str) -> None:
    assert f'"{key}"' in TEXT or f"`{key}`" in TEXT
