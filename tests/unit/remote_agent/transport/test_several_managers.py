"""Several managers: the leader is found, a replaced one refused, and no manager gets a signed request before its
proof."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_agent.protocol import leadership
from remote_agent.transport.addresses import Addresses, ManagersFile
from remote_agent.transport.caller import heartbeat, poll
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.outcomes import LinkDown, NotLeader, extra_timeout_s
from remote_agent.transport.tls import Trust
from tests.fake_manager import FakeManager
from tests.waiting import Stopwatch, wait_until

ME = AgentCredentials("h1", "fleet-1", "s3cret", "key")
BEAT = {"workers": [], "events": [], "results": [], "assignments_rev": "", "commands_seq": 0}
WALL = 1_796_000_000.0  # term 28,774,800
NOW = 28_774_800


@pytest.fixture
def managers() -> Iterator[tuple[FakeManager, FakeManager]]:
    """Two of one fleet; the first leads."""
    made = FakeManager(), FakeManager()
    for one in made:
        one.know("h1")
        one.managers = [other.url for other in made]
    lead(made[0], NOW, made[1])
    yield made
    for one in made:
        one.close()


def lead(leader: FakeManager, term: int, *others: FakeManager) -> None:
    for one in (leader, *others):
        one.term, one.stands_by = term, one is not leader
        one.managers = sorted(one.managers, key=lambda url: url != leader.url)


def of(*managers: FakeManager, memory: ManagersFile | None = None) -> Addresses:
    return Addresses([one.url for one in managers], memory=memory, wall=lambda: WALL)


def beat(connection: Connection) -> Any:
    return heartbeat("h1", BEAT)(connection)


def signed(manager: FakeManager) -> int:
    return sum(bool(one.authorization) for one in manager.requests)


def test_an_agent_that_knows_one_standby_finds_the_leader_from_its_proven_list(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    leader, standby = managers
    assert beat(Connection(of(standby), ME)).ok
    assert len(leader.received) == 1 and signed(standby) == 0


def test_a_list_without_the_proof_of_the_fleets_key_leads_nowhere(managers: tuple[FakeManager, FakeManager]) -> None:
    leader, standby = managers
    standby.standby_key = "guessed"
    with pytest.raises(NotLeader, match="stands by"):
        beat(Connection(of(standby), ME))
    assert not leader.requests and signed(standby) == 0


@pytest.mark.parametrize("status", [400, 401, 404, 421, 429, 500, 503])
def test_a_hello_that_is_refused_leads_to_the_next_address_and_to_no_request_there(
    managers: tuple[FakeManager, FakeManager], status: int
) -> None:
    leader, other = managers
    error = {"code": "no", "message": "not now", "next": ""}
    other.routes["GET /api/hello"] = lambda _: (status, {"error": error, "fleet_id": "fleet-1"})
    assert beat(Connection(of(other, leader), ME)).ok
    assert [one.path.partition("?")[0] for one in other.requests] == ["/api/hello"]


def test_a_leader_that_stands_by_from_now_on_is_left_in_the_same_request(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    """Its session is still valid: the response is signed, and its list is trusted."""
    first, second = managers
    connection = Connection(of(first), ME)
    assert beat(connection).ok
    lead(second, NOW + 1, first)
    assert beat(connection).ok and len(second.received) == 1


def test_a_reply_of_a_lower_term_is_refused_whatever_it_says(managers: tuple[FakeManager, FakeManager]) -> None:
    """A partitioned leader that does not know of its successor."""
    stale, leader = managers
    addresses = of(leader, stale)
    lead(leader, NOW + 1, stale)
    assert beat(Connection(addresses, ME)).ok
    leader.close()
    stale.stands_by, stale.term = False, NOW
    with pytest.raises(LinkDown, match=rf"a reply of term {NOW} is refused: a manager of term {NOW + 1} leads"):
        beat(Connection(addresses, ME))
    with pytest.raises(LinkDown, match="is refused"):
        poll("h1", "", 0)(Connection(addresses, ME))


def test_refusals_of_a_lower_term_count_for_nothing_either(managers: tuple[FakeManager, FakeManager]) -> None:
    """409 of a log would move the offset back; 404 would have a launcher register anew."""
    stale, _ = managers
    addresses = of(stale)
    addresses.learn(NOW + 1, [])
    stale.refuse_status = 404
    with pytest.raises(LinkDown, match="is refused"):
        beat(Connection(addresses, ME))


def test_the_term_and_the_list_outlive_the_agent(managers: tuple[FakeManager, FakeManager], tmp_path: Path) -> None:
    first, second = managers
    assert beat(Connection(of(first, memory=ManagersFile(str(tmp_path))), ME)).ok
    stored = json.loads((tmp_path / "known_managers.json").read_text())
    assert stored == {"term": NOW, "managers": [first.url, second.url]}
    first.close()
    lead(second, NOW - 1)
    again = of(first, memory=ManagersFile(str(tmp_path)))
    with pytest.raises(LinkDown, match="is refused"):
        beat(Connection(again, ME))
    lead(second, NOW + 1)
    assert beat(Connection(again, ME)).ok


def test_a_term_far_above_the_clock_ends_with_the_agent_that_has_seen_it(tmp_path: Path) -> None:
    """A manager whose clock was wrong and whose database was restored since: restarting the agent resolves it."""
    addresses = Addresses(["http://a:1"], memory=ManagersFile(str(tmp_path)), wall=lambda: WALL)
    addresses.learn(NOW + leadership.MARGIN_TERMS + 1, [])
    assert addresses.refuses(NOW)
    assert not Addresses(["http://a:1"], memory=ManagersFile(str(tmp_path)), wall=lambda: WALL).refuses(NOW)


def test_a_manager_of_an_earlier_release_is_obeyed_after_one_with_terms(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    """Its replies have no term: a manager that was downgraded, never one of several."""
    leader, _ = managers
    connection = Connection(of(leader), ME)
    assert beat(connection).ok
    leader.term = 0
    assert beat(connection).ok


@pytest.mark.parametrize("term", [True, -1, 1.5, "7", None, [], 2**60, {}])
def test_a_term_that_is_none_is_refused(managers: tuple[FakeManager, FakeManager], term: Any) -> None:
    leader, _ = managers
    leader.routes["POST /api/agents/h1/heartbeat"] = lambda _: (200, {"fleet_id": "fleet-1", "term": term})
    leader.term = 0
    with pytest.raises(NotLeader, match="it can't be right"):
        beat(Connection(of(leader), ME))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(term=JSON, managers=JSON, retry_s=JSON)
def test_nothing_in_a_reply_breaks_what_is_known_of_managers(term: Any, managers: Any, retry_s: Any) -> None:
    addresses = Addresses(["http://10.0.0.5:5000"])
    addresses.learn(NOW, [])
    data = {"term": term, "managers": managers, "retry_s": retry_s}
    found = leadership.read_term(data)
    if found is not None and not addresses.refuses(found):
        addresses.learn(found, leadership.read_managers(data))
    assert NOW <= addresses.term <= leadership.HIGHEST_TERM and addresses.current() == "http://10.0.0.5:5000"
    assert 1 <= len(addresses.urls()) <= 1 + leadership.MAX_MANAGERS
    assert 0 <= leadership.read_retry_s(data) <= leadership.MAX_RETRY_S


@pytest.mark.parametrize(
    ("configured", "learned", "tunnel"),
    [
        (["http://10.0.0.5:5000"], "http://127.0.0.1:9000", ""),
        (["http://10.0.0.5:5000"], "http://localhost:9000", ""),
        (["http://10.0.0.5:5000"], "http://[::1]:9000", ""),
        (["http://127.0.0.1:7001"], "http://127.0.0.1:9000", "http://127.0.0.1:7001"),
        (["http://127.0.0.1:7001"], "http://10.0.0.5:5000", "http://127.0.0.1:7001"),
        (["https://10.0.0.5:5000"], "http://10.0.0.6:5000", ""),
        (["http://10.0.0.5:5000"], "ftp://10.0.0.6", ""),
        (["http://10.0.0.5:5000"], "http://", ""),
        (["http://10.0.0.5:5000"], "http://10.0.0.6:5000/\nHost: x", ""),
    ],
)
def test_a_managers_word_leads_neither_to_this_host_nor_from_https_to_http(
    configured: list[str], learned: str, tunnel: str
) -> None:
    addresses = Addresses(configured, Trust(), tunnel)
    addresses.learn(NOW, leadership.read_managers({"managers": [learned, "https://10.0.0.9:5000"]}))
    assert learned not in addresses.urls() and configured[0] in addresses.urls()


def test_a_takeover_ends_the_poll_that_the_former_leader_still_holds(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    """A frozen leader keeps its connections: without this a command would wait for the poll's own timeout."""
    frozen, leader = managers
    addresses = of(frozen, leader)
    polling = addresses.interrupt(Connection(addresses, ME))
    assert beat(Connection(addresses, ME)).ok
    answers: list[Any] = []
    held = threading.Event()

    def hold(_: Any) -> tuple[int, Any]:
        held.set()
        released.wait(30)
        return 200, frozen.reply("", 0)

    released = threading.Event()
    frozen.routes["GET /api/agents/h1/commands"] = hold
    thread = threading.Thread(target=lambda: answers.append(poll("h1", "", 0)(polling)), daemon=True)
    thread.start()
    assert held.wait(10)
    lead(leader, NOW + 1)
    leader.command("w1", "restart", 1)
    addresses.failed(frozen.url, silent=True)
    watch = Stopwatch()
    assert beat(Connection(addresses, ME)).ok
    wait_until(lambda: answers, 10.0)
    released.set()
    assert [one["command"] for one in answers[0].data["commands"]] == ["restart"] and watch.seconds < 5.0


def test_an_address_that_was_silent_is_not_waited_for_while_a_standby_answers(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    """A frozen manager's kernel still takes connections."""
    _, standby = managers
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        silent = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        addresses = Addresses([silent, standby.url])
        addresses.failed(silent, silent=True)
        standby.managers = [silent, standby.url]
        watch = Stopwatch()
        with pytest.raises(NotLeader):
            beat(Connection(addresses, ME))
        lead(standby, NOW + 1)
        assert beat(Connection(addresses, ME)).ok and watch.seconds < 4.0


def test_connects_are_given_more_time_only_where_no_address_answers() -> None:
    addresses = Addresses(["http://a:1", "http://b:1"])
    assert addresses.connect_timeout_s() == 2.0
    for _ in range(4):
        addresses.failed(addresses.current())
    assert addresses.connect_timeout_s() > 4.0
    addresses.answered("http://a:1")
    assert addresses.connect_timeout_s() == 2.0


def test_a_large_body_is_given_the_time_that_a_slow_link_takes(managers: tuple[FakeManager, FakeManager]) -> None:
    leader, _ = managers
    connection = Connection(of(leader), ME)
    assert beat(connection).ok
    asked: list[float] = []
    http = connection._http
    assert http is not None
    exchange = http.exchange

    def noted(*arguments: Any, **named: Any) -> Any:
        asked.append(named["timeout_s"])
        return exchange(*arguments, **named)

    http.exchange = noted  # type: ignore[method-assign]
    connection.request("POST", "/api/agents/h1/heartbeat", json.dumps({**BEAT, "x": "y" * 1_000_000}).encode())
    beat(connection)
    assert asked[0] > 60 and 5.0 <= asked[1] < 5.1


def test_a_stranger_at_a_standby_is_led_to_the_leader(managers: tuple[FakeManager, FakeManager]) -> None:
    """A launcher started with a single address."""
    leader, standby = managers
    reply = Connection(of(standby), AgentCredentials("")).anonymous("GET", "/api/hello")
    assert reply.data["fleet_id"] == "fleet-1" and leader.requests


def test_a_launcher_with_a_token_is_led_from_a_standby_to_the_leader_that_knows_it(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    """It is not an agent yet: no key proves the list to it. The leader proves that it knows the token."""
    leader, standby = managers
    leader.tokens.append("t0ken")
    spec = {"command": "true"}
    body = json.dumps({"worker_id": "w1", "spec": spec, "state": "stopped", "secret_sha256": "0" * 64}).encode()
    connection = Connection(of(standby), AgentCredentials("launcher:w1", "fleet-1"))
    reply = connection.with_token("POST", "/api/workers/register", body, "t0ken")
    assert reply.data["status"] == "registered" and leader.of_tokens == ["t0ken"] and signed(standby) == 0


def test_an_overloaded_manager_gets_more_time_if_it_is_the_only_one(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    leader, _ = managers
    leader.term, leader.managers = 0, []
    asked, may_answer = threading.Event(), threading.Event()

    def slowly(_: Any) -> Any:
        asked.set()
        may_answer.wait(60)
        return 200, {}

    connection = Connection(of(leader), ME)
    assert beat(connection).ok
    leader.routes["POST /api/agents/h1/heartbeat"] = slowly
    waited = threading.Timer(0.5, may_answer.set)
    waited.start()
    try:
        assert connection.request("POST", "/api/agents/h1/heartbeat", b"{}", timeout_s=0.1).ok
        assert asked.is_set() and sum(one.path.startswith("/api/hello") for one in leader.requests) == 1
    finally:
        waited.cancel()
        may_answer.set()


def test_an_overloaded_manager_is_left_if_another_one_may_lead(managers: tuple[FakeManager, FakeManager]) -> None:
    leader, standby = managers
    may_answer = threading.Event()
    connection = Connection(of(leader), ME)
    assert beat(connection).ok
    leader.routes["POST /api/agents/h1/heartbeat"] = lambda _: (may_answer.wait(60), (200, {}))[1]
    try:
        watch = Stopwatch()
        with pytest.raises(LinkDown, match="no answer in time"):
            connection.request("POST", "/api/agents/h1/heartbeat", b"{}", timeout_s=0.1)
        assert watch.seconds < 10 and any(one.path.startswith("/api/hello") for one in standby.requests)
    finally:
        may_answer.set()


def test_a_frozen_leader_behind_a_common_address_is_left_in_time(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    """The agent knows one address, which leads to whichever manager leads."""
    leader, _ = managers
    leader.managers = [leader.url]
    may_answer = threading.Event()
    connection = Connection(of(leader), ME)
    assert beat(connection).ok
    leader.routes["POST /api/agents/h1/heartbeat"] = lambda _: (may_answer.wait(60), (200, {}))[1]
    waited = threading.Timer(1.0, may_answer.set)
    waited.start()
    try:
        with pytest.raises(LinkDown, match="no answer in time"):
            connection.request("POST", "/api/agents/h1/heartbeat", b"{}", timeout_s=0.1)
        assert not may_answer.is_set()
    finally:
        waited.cancel()
        may_answer.set()


def test_a_leader_that_nobody_replaces_gets_more_time_for_each_attempt(
    managers: tuple[FakeManager, FakeManager],
) -> None:
    """It is overloaded: agents that always gave up after the same time would never get a response."""
    leader, _ = managers
    leader.managers = [leader.url]
    may_answer = threading.Event()
    connection = Connection(of(leader), ME)
    assert beat(connection).ok
    path = "/api/agents/h1/heartbeat"
    answer = {"term": NOW, "managers": leader.managers}
    leader.routes[f"POST {path}"] = lambda _: (may_answer.wait(60), (200, answer))[1]
    try:
        with pytest.raises(LinkDown, match="no answer in time"):
            connection.request("POST", path, b"{}", timeout_s=0.1)
        before = len(leader.requests)
        waited = threading.Timer(0.5, may_answer.set)
        waited.start()
        assert connection.request("POST", path, b"{}", timeout_s=0.1).ok
        assert [one.path.partition("?")[0] for one in leader.requests[before:]] == ["/api/hello", path]
    finally:
        may_answer.set()


def test_the_extra_time_grows_up_to_that_of_an_only_manager() -> None:
    assert [extra_timeout_s(timeouts) for timeouts in range(5)] == [0.0, 5.0, 10.0, 10.0, 10.0]
