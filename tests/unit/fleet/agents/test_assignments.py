"""The digest of an agent's assignments: the same as long as they are, and another one after each change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.agent_api import decode
from procguard.fleet.agents import assignments
from remote_agent.protocol import messages
from remote_agent.protocol.records import names
from tests.unit.fleet_world import World

SPEC: dict[str, Any] = {
    "command": ["python", "train.py", "--größe", "5"],
    "env": {"B": "2", "A": "1"},
    "labels": {"rack": "r1", "part": "0"},
    "stop_grace_s": 5.0,
    "restart": {"max_attempts": 4},
    "health": [{"type": "tcp", "port": 80}],
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.deploy({"h1": {"w1": SPEC, "w2": {"command": "true"}}})
    yield made
    made.fleet.close()


def rev(world: World) -> str:
    world.fleet.state.agent_status["h1"].rev = ""
    return world.fleet.agents.assignments.rev("h1")


def test_a_restarted_manager_sends_nothing_again(world: World) -> None:
    before = world.beat("h1", world.report("w1"), world.report("w2"))
    world.restart()
    again = world.beat("h1", world.report("w1"), world.report("w2"), assignments_rev=before.assignments_rev)
    assert again.assignments is None and again.assignments_rev == before.assignments_rev


def test_the_order_of_mappings_makes_no_difference(world: World) -> None:
    before = rev(world)
    turned = {name: dict(reversed(list(one.items()))) if isinstance(one, dict) else one for name, one in SPEC.items()}
    worker = world.fleet.state.workers_by_id["w1"]
    with world.changing() as tx:
        tx.edit(worker).spec = messages.decode(messages.WorkerSpec, turned)
    assert rev(world) == before


def test_a_registered_launcher_gets_nothing_again_after_a_restart(world: World) -> None:
    """Its decoded specification leaves defaults to the class; the stored one does not."""
    asked = {"worker_id": "by-hand", "command": "x", "host": "laptop", "spec": SPEC, "secret_sha256": "a" * 64}
    registration = decode.read(messages.Registration, json.dumps(asked).encode())
    agent_id = world.fleet.agents.enrolment.register(
        registration, actor="tester", trusted=True, peer="10.0.0.1", now=world.now
    ).agent_id
    before = world.fleet.agents.assignments.rev(agent_id)
    world.restart()
    assert world.fleet.agents.assignments.rev(agent_id) == before


def test_each_value_of_an_assignment_makes_a_difference(world: World) -> None:
    (first, *_) = world.fleet.agents.assignments.of("h1")
    of_spec = {"command": "false", "env": {"A": "2"}, "labels": {}, "stop_grace_s": 6.0, "user": "ml", "group": "g"}
    changed: list[dict[str, Any]] = [
        {"worker_id": "w3"}, {"desired": "stopped"}, {"generation": 9}, {"epoch": 9}, {"attempt_base": 9},
        {"lease_s": 9.0}, {"gang": True}, {"env": {"RANK": "0"}}, {"grant": "0"}, {"causes": {"a": "b"}},
        {"metrics": {"loss": ["loss=(.*)", ""]}}, *({"spec": {name: one}} for name, one in of_spec.items()),
    ]  # fmt: skip
    plain = messages.encode(first)
    digests = [assignments.digest([first])]
    for values in changed:
        spec = {**plain["spec"], **values.get("spec", {})}
        digests.append(assignments.digest([messages.decode(messages.Assignment, {**plain, **values, "spec": spec})]))
    assert len(set(digests)) == len(changed) + 1
    assert set(names(messages.Assignment)) == {name for one in changed for name in one}, "a new field is not tried here"


def test_a_text_that_utf_8_cannot_encode_has_a_digest(world: World) -> None:
    (first, *_) = world.fleet.agents.assignments.of("h1")
    first.env = {"NAME": "caf\udce9"}
    assert len(assignments.digest([first])) == 16
