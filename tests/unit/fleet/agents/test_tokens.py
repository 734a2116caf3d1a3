"""Tokens: scopes, expiry, uses, last use; revoked agents' secrets; pending launchers."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.admission.rate import FREE_FAILURES, MAX_KEYS, BackOff
from procguard.errors import NotFound, Refused, UsageError
from procguard.fleet.agents import enrolment
from procguard.fleet.agents.addresses import address_group
from procguard.fleet.agents.credentials import NOTE_USE_EVERY_S
from remote_agent.protocol import messages
from tests.unit.fleet_world import SECRET, World

TWO = messages.secret_sha256("two")


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.deploy({"h1": {"w1": {"command": "a"}}})
    return made


def enrol(world: World, worker_id: str, sha256: str, token_id: str) -> messages.RegisterReply:
    registration = messages.Registration(worker_id, command="true", host="laptop", secret_sha256=sha256)
    return world.fleet.agents.enrolment.register(
        registration, actor="token lab", trusted=True, peer="10.0.0.9", now=world.now, enrolled_by=token_id
    )


@pytest.mark.parametrize("scope", ["", "admin", "agent", "agent:", "agent:../x", "OPERATOR", "operator "])
def test_a_scope_that_does_not_exist_is_refused(world: World, scope: str) -> None:
    with pytest.raises(UsageError, match=r"scope|agent's id"):
        world.fleet.tokens.add(scope, "t", SECRET, "tester", world.now)


def test_a_token_for_an_agent_names_one_that_is_here_or_a_launcher_to_come(world: World) -> None:
    tokens = world.fleet.tokens
    assert tokens.add("agent:h1", "t", SECRET, "tester", world.now).scope == "agent:h1"
    assert tokens.add("agent:launcher:later", "t", TWO, "tester", world.now).scope == "agent:launcher:later"
    with pytest.raises(NotFound):
        tokens.add("agent:nobody", "t", "0" * 64, "tester", world.now)


def test_a_token_ends_at_its_time_also_after_a_restart(world: World) -> None:
    token = world.fleet.tokens.add("viewer", "screen", SECRET, "tester", world.now, life_s=3600)
    assert world.fleet.tokens.usable(token, world.now) == ""
    world.restart()
    found = world.fleet.tokens.find(SECRET)
    assert found is not None and found.created_by == "tester"
    assert world.fleet.tokens.usable(found, world.pass_time(3599)) == ""
    assert "expired at" in world.fleet.tokens.usable(found, world.pass_time(2))


def test_the_last_use_is_remembered_and_written_now_and_then(world: World) -> None:
    tokens = world.fleet.tokens
    token = tokens.add("operator", "laptop", SECRET, "tester", world.now)
    tokens.used(token, "10.0.0.9", world.pass_time(NOTE_USE_EVERY_S + 1))
    seen = world.now.wall
    tokens.used(token, "10.0.0.10", world.pass_time(1))  # shown, but not written again yet
    assert tokens.last_use(token) == (world.now.wall, "10.0.0.10")
    world.restart()
    found = world.fleet.tokens.find(SECRET)
    assert found is not None and world.fleet.tokens.last_use(found) == (seen, "10.0.0.9")


def test_an_enrolment_token_lets_in_so_many_launchers_and_the_same_one_again(world: World) -> None:
    token = world.fleet.tokens.add("enroll", "lab", "1" * 64, "tester", world.now, uses=2)
    for worker_id, secret in (("a", SECRET), ("b", TWO), ("a", SECRET)):
        assert enrol(world, worker_id, secret, token.token_id).status == "registered"
    with pytest.raises(Refused, match="maximum number of launchers"):
        enrol(world, "c", messages.secret_sha256("three"), token.token_id)
    assert "c" not in world.fleet.state.workers_by_id
    world.restart()
    found = world.fleet.tokens.find("1" * 64)
    assert found is not None and found.uses_left == 0


def test_only_enrolment_tokens_have_uses(world: World) -> None:
    with pytest.raises(UsageError):
        world.fleet.tokens.add("operator", "t", SECRET, "tester", world.now, uses=3)


def test_a_revoked_secret_and_the_agents_tokens_are_good_for_nothing_and_a_deployment_gives_another(
    world: World,
) -> None:
    fleet = world.fleet
    fleet.agents.secrets.set("h1", SECRET, "tester", world.now)
    fleet.tokens.add("agent:h1", "t", TWO, "tester", world.now)
    key, ended = fleet.state.proof_key("h1"), []
    fleet.state.bus.revoked.subscribe(ended.append)
    fleet.agents.secrets.revoke("h1", "tester", world.now)
    assert fleet.agents.secrets.authenticate(SECRET) is None and fleet.tokens.find(TWO) is None
    assert fleet.state.proof_key("h1") != key and ended == ["h1"]  # what was stolen names no manager either
    assert fleet.state.workers_by_id["w1"].desired == "running"
    reported = world.deploy({"h1": {"w1": {"command": "a"}}})["hosts"]["h1"]
    assert reported["secret_sha256"] == "" and reported["proof_key"] == fleet.state.proof_key("h1")
    world.restart()
    assert world.fleet.agents.secrets.authenticate(SECRET) is None
    assert world.fleet.state.proof_key("h1") == reported["proof_key"]


def test_a_launcher_whose_secret_was_revoked_must_make_another_and_wait(world: World) -> None:
    fleet = world.fleet
    world.register("train", secret_sha256=SECRET)
    fleet.agents.secrets.revoke("launcher:train", "tester", world.now)
    for trusted in (True, False):
        with pytest.raises(Refused) as refusal:
            world.register("train", secret_sha256=SECRET, trusted=trusted)
        assert refusal.value.code == "secret_revoked"
    assert world.register("train", secret_sha256=TWO, trusted=False).status == "pending"
    fleet.agents.enrolment.approve("launcher:train", "tester", world.now)
    assert world.register("train", secret_sha256=TWO, trusted=False).status == "registered"
    assert fleet.agents.secrets.authenticate(TWO) == "launcher:train"


def test_a_launcher_that_asks_no_more_waits_no_more_whatever_the_wall_clock_says(world: World) -> None:
    world.register("train", secret_sha256=SECRET, trusted=False, peer="10.9.9.9")
    jumped = world.now._replace(wall=world.now.wall + 10 * 366 * 86_400)
    world.fleet.agents.enrolment.expire(jumped)
    assert len(world.fleet.agents.enrolment.views()) == 1
    world.fleet.agents.enrolment.expire(world.pass_time(enrolment.PENDING_EXPIRES_S + 1))
    assert world.fleet.agents.enrolment.views() == []
    with pytest.raises(NotFound):
        world.fleet.agents.enrolment.approve("launcher:train", "tester", world.now)


# ------------------------------------------------------------------------------------------------------- back-off


def test_wrong_tokens_wait_longer_each_time_and_only_where_they_came_from() -> None:
    waits = BackOff()
    for _ in range(FREE_FAILURES):
        assert waits.wrong("10.0.0.1", 0.0) == 0.0
    first = waits.wrong("10.0.0.1", 0.0)
    assert first > 0 and waits.wrong("10.0.0.2", 0.0) == 0.0
    assert waits.wrong("10.0.0.1", first) == 0.0 < first < waits.wrong("10.0.0.1", first)


def test_the_memory_of_wrong_tokens_is_bounded() -> None:
    waits = BackOff()
    for number in range(MAX_KEYS + 500):
        waits.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert len(waits) == MAX_KEYS


def test_one_machine_is_its_whole_ipv6_network() -> None:
    assert address_group("2001:db8::1") == address_group("2001:db8::ffff:1") != address_group("2001:db8:0:1::1")
    assert address_group("::ffff:10.0.0.1") == "10.0.0.1" == address_group("10.0.0.1")
    assert address_group("fe80::1%eth0") == address_group("fe80::2")
    assert address_group("not:an:address") == "not:an:address"
