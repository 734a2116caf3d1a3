"""The messages of scenario 26 leave out no field of any message that an agent or a launcher sends."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from remote_agent.protocol import messages
from tests.hostile_messages import Byzantine, Known

SENT = (messages.AgentHeartbeat, messages.WorkerHeartbeat, messages.LogSearchResult, messages.Registration)
KNOWN = Known(["e1"], ["w1", "w2"], ["h1"], ["c-1", "s-1"], [5, 6])


def values_of(message: dict[str, Any], found: dict[str, set[str]], where: str) -> None:
    for name, value in message.items():
        found.setdefault(f"{where}.{name}", set()).add(json.dumps(value)[:100])
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                values_of(one, found, f"{where}.{name}")


def paths_of(cls: type[Any], where: str) -> set[str]:
    found = set()
    for one in dataclasses.fields(cls):
        found.add(f"{where}.{one.name}")
        inner = messages.NESTED.get(cls, {}).get(one.name)
        if inner is not None:
            found |= paths_of(inner[1], f"{where}.{one.name}")
    return found


@pytest.mark.parametrize("cls", SENT)
def test_every_field_of_every_message_takes_many_values(cls: type[Any]) -> None:
    source, found = Byzantine(1, "evil", KNOWN), dict[str, set[str]]()
    for _ in range(800):
        values_of(source.make(cls), found, cls.__name__)
    poor = {path for path in paths_of(cls, cls.__name__) if len(found.get(path, ())) < 2}
    assert poor == set()


def test_a_seed_gives_the_same_messages_again() -> None:
    one, other = Byzantine(7, "evil", KNOWN), Byzantine(7, "evil", KNOWN)
    assert [one.next() for _ in range(300)] == [other.next() for _ in range(300)]
