"""The link to the manager: proof before secret, addresses, keep-alive, retry delays."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from remote_agent.transport.addresses import Addresses
from remote_agent.transport.caller import Caller, heartbeat
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.outcomes import LinkDown, Reply, Unknown, UnprovenManager, retry_delay_s
from remote_agent.tunnel.port_owner import is_own_listener
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

ME = AgentCredentials("h1", "fleet-1", "s3cret", "key")
BEAT = {"workers": [], "events": [], "results": [], "assignments_rev": "", "commands_seq": 0}


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    fake = FakeManager()
    fake.know("h1")
    yield fake
    fake.close()


def session_begun(manager: FakeManager) -> bool:
    return any(one.authorization for one in manager.requests)


def test_session_begins_only_after_the_proof(manager: FakeManager) -> None:
    """The first request of a connection is hello, with nothing of the secret; then the heartbeat with its MAC."""
    reply = heartbeat("h1", BEAT)(Connection(Addresses([manager.url]), ME))
    assert reply.ok and reply.data["fleet_id"] == "fleet-1"
    (hello, beat) = manager.requests
    assert hello.path.startswith("/api/hello?agent=h1&nonce=") and hello.authorization == ""
    assert beat.path == "/api/agents/h1/heartbeat" and beat.authorization.startswith("ProcGuard ")
    assert "s3cret" not in str(manager.requests)


def test_impostor_with_another_key_never_sees_the_secret(manager: FakeManager) -> None:
    """Right fleet by name, wrong proof."""
    manager.proof_keys["h1"] = "guessed"
    with pytest.raises(UnprovenManager, match="cannot prove"):
        heartbeat("h1", BEAT)(Connection(Addresses([manager.url]), ME))
    assert not session_begun(manager)


def test_manager_of_another_fleet_is_named_and_never_sees_the_secret(manager: FakeManager) -> None:
    """A reused address: the message says which fleet answered."""
    manager.fleet_id = "fleet-2"
    with pytest.raises(UnprovenManager, match="manager of fleet fleet-2, not of fleet-1"):
        heartbeat("h1", BEAT)(Connection(Addresses([manager.url]), ME))
    assert not session_begun(manager)


def test_manager_that_forgot_the_agent_is_distinguished(manager: FakeManager) -> None:
    """Unknown: a launcher may register again, a deployed agent waits."""
    del manager.proof_keys["h1"]
    with pytest.raises(Unknown):
        heartbeat("h1", BEAT)(Connection(Addresses([manager.url]), ME))
    assert not session_begun(manager)


def test_connection_is_kept_and_proof_asked_once(manager: FakeManager) -> None:
    """Many requests, one hello."""
    connection = Connection(Addresses([manager.url]), ME)
    for _ in range(5):
        assert heartbeat("h1", BEAT)(connection).ok
    assert sum(one.path.startswith("/api/hello") for one in manager.requests) == 1


def test_connection_closed_by_the_manager_is_reopened_and_proven_again(manager: FakeManager) -> None:
    """A restart of the manager causes no failed heartbeat, and the manager proves itself again."""
    connection = Connection(Addresses([manager.url]), ME)
    assert heartbeat("h1", BEAT)(connection).ok
    manager.close()
    second = FakeManager(port=manager.port)
    try:
        second.know("h1")
        assert heartbeat("h1", BEAT)(connection).ok
        assert second.requests[0].path.startswith("/api/hello")
    finally:
        second.close()


def test_next_address_is_tried_when_one_is_dead(manager: FakeManager) -> None:
    """Several manager addresses: the second is asked once the first was refused, within one request."""
    addresses = Addresses(["http://127.0.0.1:9", manager.url])
    connection = Connection(addresses, ME)
    assert heartbeat("h1", BEAT)(connection).ok
    assert addresses.current() == manager.url


def test_one_failure_moves_on_one_address_only() -> None:
    """Two connections failing at the same address skip none."""
    addresses = Addresses(["http://a", "http://b", "http://c"])
    addresses.failed("http://a")
    addresses.failed("http://a")
    assert addresses.current() == "http://b"


def test_retry_is_full_jitter_within_bounds() -> None:
    """Uniform below a bound that trebles: 0.2 s at first, at most 5 s; refused: at most 30 s; never a busy loop."""
    assert [round(retry_delay_s(n, rng=lambda: 1.0), 6) for n in (1, 2, 3, 4)] == [0.2, 0.6, 1.8, 5.0]
    assert retry_delay_s(50, rng=lambda: 1.0) == 5.0
    assert retry_delay_s(50, refused=True, rng=lambda: 1.0) == 30.0
    assert 0.0 < retry_delay_s(1, rng=lambda: 0.0) < 0.2
    assert len({retry_delay_s(10) for _ in range(20)}) > 10


def test_caller_hands_back_every_outcome(manager: FakeManager) -> None:
    """A response, a dead manager, and a bug in a job: the thread survives and reports it."""
    outcomes: list[tuple[str, object]] = []
    caller = Caller("test", Connection(Addresses([manager.url]), ME), lambda tag, value: outcomes.append((tag, value)))
    caller.start()
    caller.submit("heartbeat", heartbeat("h1", BEAT))
    wait_until(lambda: len(outcomes) == 1, what="an answer")
    caller.busy = False
    caller.submit("bug", lambda _: Reply(1 // 0))
    wait_until(lambda: len(outcomes) == 2, what="the bug")
    caller.end()
    assert isinstance(outcomes[0][1], Reply) and outcomes[0][1].ok
    assert isinstance(outcomes[1][1], LinkDown) and "ZeroDivisionError" in str(outcomes[1][1])
    caller.join(5)
    assert not caller.is_alive()


def test_the_secret_is_in_no_repr() -> None:
    """Logs and tracebacks show the owner of credentials, never their values."""
    assert "s3cret" not in repr(ME) and "key" not in repr(ME).replace("proof_key", "")


def test_a_tunnels_port_that_another_user_of_this_host_took_gets_no_secret(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could relay the real manager's proof; the kernel reports the owner of the listener."""
    tunnelled = Connection(Addresses([manager.url], tunnel_url=manager.url), ME)
    assert heartbeat("h1", BEAT)(tunnelled).ok
    tunnelled.disconnect()
    monkeypatch.setattr(os, "getuid", lambda: 47_123)
    asked = len(manager.requests)
    with pytest.raises(UnprovenManager, match="another user of this host listens there"):
        heartbeat("h1", BEAT)(tunnelled)
    assert len(manager.requests) == asked
    assert heartbeat("h1", BEAT)(Connection(Addresses([manager.url]), ME)).ok  # no tunnel: any machine may be asked


def test_who_listens_on_a_port_is_read_from_the_kernels_table() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_own_listener(port)
        assert not is_own_listener(port, uid=os.getuid() + 1)
    assert not is_own_listener(port)
