"""Rotation of agents' secrets, the manager's side: agent and manager keep working at whatever step it is killed.

The agent's side: tests/unit/remote_agent/transport/test_rotation.py; both as processes: test_rotation_kills.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.errors import Conflict
from procguard.fleet.workers import ownership
from remote_agent.protocol import messages
from tests.unit.fleet_world import World

OLD = "the-first-secret"


def digest(secret: str) -> str:
    return messages.secret_sha256(secret)


@pytest.fixture
def world(tmp_path: Path) -> World:
    one = World(tmp_path)
    one.deploy({"h1": {}, "h2": {}})
    for host in ("h1", "h2"):
        one.fleet.agents.secrets.set(host, digest(f"{OLD} of {host}"), "tester", one.now)
        one.beat(host)
    return one


def killed(world: World) -> None:
    """SIGKILL: nothing is closed or saved; the next manager loads what was durable."""
    world.fleet = world.open()


def who(world: World, secret: str) -> str | None:
    return world.fleet.agents.secrets.authenticate(digest(secret))


def asked(world: World) -> str:
    return world.beat("h1").rotate


def take(world: World, name: str, secret: str, agent: str = "h1") -> None:
    world.fleet.agents.rotations.take(agent, messages.SecretRenewal(name, digest(secret)), world.now)


@pytest.mark.parametrize("restarts", [False, True])
def test_both_secrets_are_good_until_the_new_one_was_used(world: World, restarts: bool) -> None:
    """With a manager that is killed after every step."""
    old, new = f"{OLD} of h1", "new"

    def step() -> None:
        if restarts:
            killed(world)

    assert world.fleet.agents.rotations.begin(["h1"], "alice", world.now) == {"h1": {"status": "asked", "message": ""}}
    step()
    name = asked(world)
    assert name.startswith("r-") and asked(world) == name and world.beat("h2").rotate == ""
    assert who(world, old) == "h1" and who(world, new) is None
    step()
    take(world, name, new)
    step()
    take(world, name, new)  # its answer was lost
    step()
    assert who(world, old) == "h1"
    step()
    assert who(world, new) == "h1" and who(world, old) is None
    step()
    assert who(world, new) == "h1" and who(world, old) is None and asked(world) == ""
    reported = [event for event in world.fleet.state.events(limit=100) if event["kind"] == "credentials"]
    assert any("has a new secret" in event["reason"] and event["actor"] == "alice" for event in reported)


def test_a_lost_new_secret_is_replaced_by_another(world: World) -> None:
    """The agent's disk was restored between the steps: it creates another secret for the same rotation."""
    world.fleet.agents.rotations.begin(["h1"], "alice", world.now)
    name = asked(world)
    take(world, name, "lost")
    take(world, name, "another")
    assert who(world, "lost") is None and who(world, f"{OLD} of h1") == "h1" and who(world, "another") == "h1"


@pytest.mark.parametrize("how", ["deployed", "revoked", "forgotten"])
def test_whatever_replaces_or_ends_a_secret_ends_the_rotation(world: World, how: str) -> None:
    world.fleet.agents.rotations.begin(["h1"], "alice", world.now)
    name = asked(world)
    take(world, name, "new")
    if how == "deployed":
        world.fleet.agents.secrets.set("h1", digest("deployed"), "alice", world.now)
    elif how == "revoked":
        world.fleet.agents.secrets.revoke("h1", "alice", world.now)
    else:
        with world.changing() as tx:
            ownership.drop_agent(tx, world.fleet.state.agents_by_id["h1"])
    for _ in range(2):
        assert who(world, "new") is None and who(world, f"{OLD} of h1") is None
        assert who(world, "deployed") == ("h1" if how == "deployed" else None)
        world.fleet.state.durability.commit()
        killed(world)
    if how != "forgotten":
        with pytest.raises(Conflict, match="no new secret was requested"):
            take(world, name, "new")


def test_nobody_renews_a_secret_that_was_not_asked_for_or_is_in_use(world: World) -> None:
    """A hostile agent can replace its own secret only on request, and never claim another's."""
    with pytest.raises(Conflict, match="no new secret"):
        take(world, "r-guessed", "mine")
    world.fleet.agents.rotations.begin(["h1"], "alice", world.now)
    name = asked(world)
    world.fleet.tokens.add("operator", "t", digest("a token"), "alice", world.now)
    for secret in (f"{OLD} of h2", f"{OLD} of h1", "a token"):
        with pytest.raises(Conflict):
            take(world, name, secret)
    with pytest.raises(Conflict, match="no new secret"):
        take(world, name, "mine", agent="h2")
    assert who(world, f"{OLD} of h2") == "h2"


def test_who_cannot_differs_from_who_is_away(world: World) -> None:
    world.register("w9", secret_sha256=digest("launcher"))
    world.deploy({"h3": {}, "h4": {}})
    world.fleet.agents.secrets.set("h4", digest("four"), "tester", world.now)
    found = world.fleet.agents.rotations.begin(["h1", "h3", "h4", "nobody", "launcher:w9"], "alice", world.now)
    assert {agent: one["status"] for agent, one in found.items()} == {
        "h1": "asked", "h3": "unsupported", "h4": "asked", "nobody": "unknown",
        "launcher:w9": "asked",
    }  # fmt: skip
    assert "unreachable" in found["h4"]["message"]
