"""Agents on a hostile network where others read, relay and change messages: the secret is never sent, nothing is
accepted that the other side has not signed, and nothing is sent over an unproven connection."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.agent_api.sessions import KEPT, MOST, OPEN_WITHIN_S, AgentSessions
from procguard.errors import LimitExceeded, Refused
from procguard.portal.http import own_addresses
from remote_agent.protocol import messages, session
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.caller import heartbeat, poll
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.outcomes import LinkDown, UnprovenManager
from remote_agent.tunnel import port_owner
from tests.relay_in_between import Relay
from tests.server_process import RunningServer

SECRET = "a-secret-that-nobody-may-see-4711"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    running.operator_token = running.ask("POST", "/api/tokens", {"scope": "operator", "name": "tests"}).json["token"]
    running.deploy("h1", "w1", secret=SECRET)
    yield running
    running.close()
    assert "Traceback" not in running.log()


@pytest.fixture
def relay(server: RunningServer) -> Iterator[Relay]:
    one = Relay(("127.0.0.1", server.port))
    yield one
    one.close()


def me(server: RunningServer, agent_id: str = "h1", secret: str = SECRET) -> AgentCredentials:
    answer = server.ask("POST", "/api/deployments", {"hosts": [{"host": agent_id}], "check": True}).json
    return AgentCredentials(agent_id, answer["fleet_id"], secret, answer["hosts"][agent_id]["proof_key"])


def beat(**values: Any) -> dict[str, Any]:
    return messages.encode(messages.AgentHeartbeat("h1", pid=5, **values))


def report(state: str = "running") -> messages.WorkerReport:
    return messages.WorkerReport("w1", state=state, generation=1, epoch=1, attempt=1)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- who reads or relays


def test_the_secret_never_travels(server: RunningServer, relay: Relay) -> None:
    """Heartbeats, held requests, log bytes and registrations through a relay that keeps every byte."""
    connection = Connection(Addresses([relay.url]), me(server))
    for _ in range(3):
        assert heartbeat("h1", beat(workers=[report()]))(connection).ok
    assert poll("h1", "", 0)(connection).ok
    logs = "/api/workers/w1/logs?attempt=1&stream=out&offset=0&at=1790000000.5&times=2:250"
    assert connection.request("POST", logs, b"hello").data == {"acked": 5}
    assert connection.request("POST", "/api/workers/w9/logs?attempt=1", b"x").status == 403
    passed = b"".join(relay.sent + relay.answered)
    assert b"ProcGuard" in passed
    assert SECRET.encode() not in passed and SECRET.encode().hex().encode() not in passed
    assert messages.secret_sha256(SECRET).encode() not in passed and b"Bearer" not in passed


def test_an_answer_that_was_changed_on_its_way_is_not_believed(server: RunningServer, relay: Relay) -> None:
    """Otherwise a relay could make an agent run its own commands."""
    connection = Connection(Addresses([relay.url]), me(server))
    assert heartbeat("h1", beat())(connection).ok
    relay.change_answer = lambda data: data.replace(b'"command":"sleep 9"', b'"command":"touch /"')
    with pytest.raises(LinkDown, match="without the manager's proof"):
        heartbeat("h1", beat())(connection)
    assert any(b'"command":"sleep 9"' in data for data in relay.answered)
    relay.change_answer = lambda data: data.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 404 OK")
    with pytest.raises(LinkDown, match="HTTP 404"):
        heartbeat("h1", beat())(connection)


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b'"state":"running"', b'"state":"stopped"', b" 400 "),
        (b"/api/agents/h1/heartbeat", b"/api/agents/h1/searches ", b" 40"),
        (b" 1 ", b" 2 ", b" 401 "),
    ],
)
def test_a_request_that_was_changed_on_its_way_has_no_effect(
    server: RunningServer, relay: Relay, old: bytes, new: bytes, status: bytes
) -> None:
    heartbeat("h1", beat(workers=[report()]))(Connection(Addresses([f"http://127.0.0.1:{server.port}"]), me(server)))
    relay.change_request = lambda data: data.replace(old, new) if b"POST" in data else data
    connection = Connection(Addresses([relay.url]), me(server))
    try:
        assert not heartbeat("h1", beat(workers=[report()]))(connection).ok
    except LinkDown:
        pass
    assert any(status in data.partition(b"\r\n")[0] for data in relay.answered[1:]), relay.answered
    assert server.ask("GET", "/api/remote-workers/w1").json["state"] == "running"


def test_what_was_recorded_is_good_for_nothing(server: RunningServer, relay: Relay) -> None:
    """Neither a session's first request nor a later one is taken twice, on its connection or another."""
    connection = Connection(Addresses([relay.url]), me(server))
    for _ in range(2):
        assert heartbeat("h1", beat())(connection).ok
    requests = [data for data in relay.sent if data.startswith(b"POST")]
    assert len(requests) == 2 and session.OPEN_HEADER.encode() in requests[0]
    for recorded in (*requests, requests[1].replace(b"heartbeat", b"searches")):
        with socket.create_connection(("127.0.0.1", server.port), 5) as sock:
            sock.sendall(recorded)
            assert sock.recv(65536).split(None, 2)[1] == b"401"
    assert heartbeat("h1", beat())(connection).ok  # and the session is not disturbed by it


def test_nobody_can_make_an_agent_send_its_secret_by_hiding_the_session(server: RunningServer, relay: Relay) -> None:
    """The manager gives no other proof for such a nonce, and the agent accepts no other; nor a session for another."""

    def without_session(data: bytes) -> bytes:
        _head, mark, body = data.partition(b"\r\n\r\n")
        if b'"session"' not in body:
            return data
        reported = json.loads(body)
        reported["proof"] = reported.pop("session")["proof"]
        changed = json.dumps(reported).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d" % len(changed) + mark + changed

    relay.change_answer = without_session
    with pytest.raises(UnprovenManager):
        heartbeat("h1", beat())(Connection(Addresses([relay.url]), me(server)))
    relay.change_answer = lambda data: data
    relay.change_request = lambda data: data.replace(b"nonce=session.", b"nonce=sessiom.")
    with pytest.raises(UnprovenManager):
        heartbeat("h1", beat())(Connection(Addresses([relay.url]), me(server)))
    passed = b"".join(relay.sent)
    assert b"Authorization" not in passed and SECRET.encode() not in passed


def test_what_the_state_holds_is_no_agents_secret(server: RunningServer) -> None:
    """Its reader has the fleet's key and the digest of each secret: a digest is refused as a secret, in a session or
    not."""
    digest = messages.secret_sha256(SECRET)
    as_secret = heartbeat("h1", beat())(
        Connection(Addresses([f"http://127.0.0.1:{server.port}"]), me(server, "h1", digest))
    )
    assert as_secret.refused
    bearer = server.ask("POST", "/api/agents/h1/heartbeat", beat(), secret=digest)
    assert bearer.status == 401


def test_a_revoked_secret_is_refused_in_words_that_are_believed(server: RunningServer) -> None:
    server.deploy("h2", secret="soon-revoked")
    mine = me(server, "h2", "soon-revoked")
    connection = Connection(Addresses([f"http://127.0.0.1:{server.port}"]), mine)
    again = messages.encode(messages.AgentHeartbeat("h2"))
    assert heartbeat("h2", again)(connection).ok
    assert server.ask("POST", "/api/agents/h2/revoke", {}).status == 200
    reply = heartbeat("h2", again)(connection)
    assert reply.refused and "not known here" in reply.why
    with pytest.raises(UnprovenManager):  # and the key by which it knew its manager has ended, too
        heartbeat("h2", again)(Connection(Addresses([f"http://127.0.0.1:{server.port}"]), mine))


def test_an_agent_without_a_key_to_recognise_its_manager_by_says_nothing(server: RunningServer, relay: Relay) -> None:
    mine = me(server)
    mine.proof_key = ""
    with pytest.raises(UnprovenManager, match="no key"):
        heartbeat("h1", beat())(Connection(Addresses([relay.url]), mine))
    assert relay.sent == []


# ------------------------------------------------------------------------------------------- enrolment tokens


def enrol(server: RunningServer, url: str, worker_id: str, token: str) -> Any:
    body = {
        "worker_id": worker_id,
        "command": "sleep 9",
        "host": "far",
        "secret_sha256": messages.secret_sha256("mine"),
    }
    connection = Connection(Addresses([url]), AgentCredentials(f"launcher:{worker_id}", me(server).fleet_id, "mine"))
    return connection.with_token("POST", "/api/workers/register", json.dumps(body).encode(), token)


def test_an_enrolment_token_and_the_key_that_it_brings_never_travel_in_clear(
    server: RunningServer, relay: Relay
) -> None:
    """Neither is useful to an eavesdropper or relay of the registration; with that key the launcher continues."""
    made = server.ask("POST", "/api/tokens", {"scope": "enroll", "name": "lab", "uses": 1}).json
    reply = enrol(server, relay.url, "far1", made["token"])
    assert reply.data["status"] == "registered"
    key = reply.data["proof_key"]
    assert len(key) == 64
    passed = b"".join(relay.sent + relay.answered)
    assert made["token"].encode() not in passed and key.encode() not in passed and b"Bearer" not in passed
    mine = AgentCredentials("launcher:far1", me(server).fleet_id, "mine", key)
    beat_ = heartbeat("launcher:far1", messages.encode(messages.AgentHeartbeat("launcher:far1")))
    assert beat_(Connection(Addresses([relay.url]), mine)).ok
    again = enrol(server, relay.url, "far2", made["token"])
    assert again.status == 401 and "maximum number of launchers" in again.why


def test_a_token_is_sent_to_nobody_who_does_not_know_it(server: RunningServer, relay: Relay) -> None:
    """A manager of another fleet, one that has lost its state, and an impostor."""
    token = "pg-nobody-knows-this-one"
    with pytest.raises(UnprovenManager, match="not sent"):
        enrol(server, relay.url, "far3", token)
    operators = server.ask("POST", "/api/tokens", {"scope": "operator", "name": "op"}).json["token"]
    with pytest.raises(UnprovenManager, match="not sent"):
        enrol(server, relay.url, "far3", operators)
    fake = Answering(200, json.dumps({"fleet_id": me(server).fleet_id, "proof": "00"}).encode(), {})
    try:
        with pytest.raises(UnprovenManager):
            enrol(server, fake.url, "far3", token)
    finally:
        fake.close()
    received = b"".join(relay.sent).decode() + str(fake.received)
    assert token not in received and operators not in received and "Authorization" not in received


# --------------------------------------------------------------------------- no secret over what was not proven


class Answering:
    """Answers hello as scripted, keeps the connection, and records all requests."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.received: list[tuple[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer()

            def _answer(self) -> None:
                outer.received.append((self.path, str(self.headers)))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (503, b'{"error": {"code": "too_many", "message": "full", "next": ""}}', {}),
        (429, b'{"error": {"code": "too_many", "message": "wait", "next": ""}}', {}),
        (200, b'{"fleet_id": "fleet-1"}', {}),
        (200, b'{"fleet_id": "fleet-1", "proof": "00"}', {}),
        (200, b'{"fleet_id": "fleet-1", "session": {"id": "00", "uid": 0, "machine": "", "proof": "00"}}', {}),
        (200, b'{"fleet_id": "fleet-1", "session": {"id": 7}}', {}),
        (200, b"{", {}),
        (302, b"", {"Location": "http://127.0.0.1:1/"}),
        (307, b"", {"Location": "http://127.0.0.1:1/"}),
        (401, b"{}", {}),
        (421, b"{}", {}),
    ],
)
def test_no_secret_without_a_proof_whatever_hello_is_answered(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    """Not on that connection and not on the next: each begins with hello."""
    fake = Answering(status, body, headers)
    try:
        connection = Connection(Addresses([fake.url]), AgentCredentials("h1", "fleet-1", SECRET, "key"))
        for _ in range(3):
            with pytest.raises(LinkDown):
                heartbeat("h1", beat())(connection)
        assert len(fake.received) == 3 and all(path.startswith("/api/hello?") for path, _ in fake.received)
        assert not any("Authorization" in headers or "Open" in headers for _, headers in fake.received)
    finally:
        fake.close()


# ----------------------------------------------------------------------------------------- under which name


def test_the_manager_proves_itself_only_under_a_name_that_leads_to_it(server: RunningServer) -> None:
    """An address of the manager's own machine on a connection to another address indicates a relay."""
    own = next((one for one in own_addresses.all_own() if ":" not in one), "")
    if not own:
        pytest.skip("this machine has no address but loopback")
    key = me(server).proof_key
    refused = server.ask("GET", f"/api/hello?agent=h1&nonce=session.00&to=http://{own}:{server.port}")
    assert refused.status == 421 and "the connection came to 127.0.0.1" in refused.json["error"]["message"]
    answer = server.ask("GET", "/api/hello?agent=h1&nonce=session.00&to=http://manager.example:5000")
    assert answer.status == 200 and "session" in answer.json and "proof" not in answer.json
    offer = session.Offer.read(answer.json["session"])
    assert offer is not None
    shared = session.handshake(key, answer.json["fleet_id"], "h1", "session.00", offer.id)
    assert offer.proof == session.manager_proof(shared, "http://manager.example:5000", offer.uid, offer.machine)
    assert offer.proof != session.manager_proof(shared, "http://172.17.0.1:5000", offer.uid, offer.machine)


@pytest.mark.parametrize(
    ("url", "peer", "arrived_at", "direct", "good"),
    [
        ("http://10.0.0.5:5000", "10.0.0.9", "10.0.0.5", True, True),  # as scripted
        ("http://172.17.0.1:5000", "10.0.0.9", "10.0.0.5", True, False),  # relayed by who listens there on 10.0.0.9
        ("http://172.17.0.1:5000", "172.17.0.4", "172.17.0.1", True, True),  # a container of this machine
        ("http://[fd00::5]:5000", "10.0.0.9", "10.0.0.5", True, False),
        ("http://[fd00::5]:5000", "fd00::9", "fd00::5", True, True),
        ("http://10.0.0.5:5000", "10.0.0.9", "::ffff:10.0.0.5", True, True),
        ("http://localhost:5000", "127.0.0.1", "127.0.0.1", True, True),
        ("http://127.0.0.1:5000", "10.0.0.9", "10.0.0.5", True, False),
        ("http://localhost:5000", "10.0.0.9", "10.0.0.5", True, False),
        ("http://127.0.0.1:23456", "127.0.0.1", "127.0.0.1", False, True),  # our own tunnel
        ("http://10.0.0.5:5000", "127.0.0.1", "127.0.0.1", False, False),  # another name at a tunnel's end
        ("http://203.0.113.7:80", "10.0.0.9", "10.0.0.5", True, True),  # NAT, a load balancer: not an address of ours
        ("http://head:5000", "10.0.0.9", "10.0.0.5", True, True),
        ("http://10.0.0.6:80", "10.0.0.9", "10.0.0.5", True, True),  # a port that is mapped to ours
        ("http://10.0.0.6:5000", "10.0.0.9", "", True, True),  # through a proxy that is believed
        ("https://configured.example:443", "10.0.0.9", "10.0.0.5", True, True),
        ("http://10.0.0.7:5000", "10.0.0.9", "10.0.0.5", True, True),  # web.advertise
        ("http://[", "10.0.0.9", "10.0.0.5", True, False),
    ],
)
def test_names_and_where_their_connections_arrive(
    monkeypatch: pytest.MonkeyPatch, url: str, peer: str, arrived_at: str, direct: bool, good: bool
) -> None:
    own = ["10.0.0.5", "10.0.0.6", "10.0.0.7", "172.17.0.1", "fd00::5"]
    monkeypatch.setattr(own_addresses, "all_own", lambda: own)
    configured = ["https://configured.example:443/", "http://10.0.0.7:5000"]
    found = own_addresses.Arrivals(configured, lambda: 5000).why_not(url, peer, arrived_at, direct)
    assert (found == "") == good, found


def test_a_bridge_counts_only_where_it_leads_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker0 with its containers does not; br0 with a network card, a vlan or the default route does."""
    net = tmp_path / "net"
    for name in ("eth0/device", "eth1.5", "veth1", "tap1", "docker0/brif/veth1", "virbr0/brif", "br0/brif/eth0",
                 "br1/brif/tap1", "br1/brif/eth1.5", "br2/brif/veth1", "wg0"):  # fmt: skip
        (net / name).mkdir(parents=True)
    (net / "eth1.5" / "uevent").write_text("DEVTYPE=vlan\nINTERFACE=eth1.5\n")
    (net / "veth1" / "uevent").write_text("INTERFACE=veth1\n")
    inner = [name for name in sorted(os.listdir(net)) if own_addresses.is_inner(name, str(net))]
    assert inner == ["br2", "docker0", "virbr0"]
    routes = tmp_path / "route"
    routes.write_text("Iface\tDestination\tGateway \tFlags\nbr2\t00000000\t0100000A\t0003\neth0\t0\t0\t0001\n")
    one = [type("A", (), {"family": socket.AF_INET, "address": "10.0.0.%d"})]

    def addresses() -> dict[str, Any]:
        names = sorted(os.listdir(net))
        return {name: [type("A", (), {"family": socket.AF_INET, "address": name})] for name in names} if one else {}

    monkeypatch.setattr(own_addresses.psutil, "net_if_addrs", addresses)
    assert set(own_addresses.offered(str(net), str(routes))) == set(os.listdir(net)) - {"docker0", "virbr0"}


# --------------------------------------------------------------------------------- who listens on this host


def test_any_address_of_this_host_counts_as_its_own(server: RunningServer) -> None:
    assert port_owner.is_local("127.0.0.1") and port_owner.is_local("127.9.9.9") and port_owner.is_local("::1")
    assert all(port_owner.is_local(one) for one in own_addresses.all_own())
    assert (
        not port_owner.is_local("192.0.2.250")
        and not port_owner.is_local("2001:db8::1")
        and not port_owner.is_local("x")
    )
    assert port_owner.owners_of("127.0.0.1", server.port) == {os.getuid()}
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        assert port_owner.owners_of("127.0.0.1", everywhere.getsockname()[1]) == {os.getuid()}
    assert port_owner.owners_of("127.0.0.1", 1) == set()


def test_a_kernel_without_routing_tables_keeps_no_agent_from_its_manager(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_owner, "FIB", "/nowhere")
    assert not port_owner.is_local("192.0.2.250") and port_owner.is_local("192.0.2.250", "192.0.2.250")
    assert heartbeat("h1", beat())(Connection(Addresses([f"http://127.0.0.1:{server.port}"]), me(server))).ok


@pytest.mark.parametrize("owner", [1, 65534])
def test_another_users_listener_on_this_host_gets_nothing(
    server: RunningServer, relay: Relay, monkeypatch: pytest.MonkeyPatch, owner: int
) -> None:
    """Even if the proof is valid, because it was relayed."""
    uid = os.getuid() + owner
    monkeypatch.setattr(port_owner, "owners_of", lambda _address, _port: {uid})
    connection = Connection(Addresses([relay.url]), me(server))
    with pytest.raises(UnprovenManager, match="another user listens there"):
        heartbeat("h1", beat())(connection)
    assert not any(b"Authorization" in data for data in relay.sent)


def test_a_manager_of_another_user_on_this_machine_is_taken_on_its_own_word(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its proof names the user and machine; the same uid on another machine is another user."""
    managers_uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: managers_uid + 5)
    monkeypatch.setattr(port_owner, "ROOT", managers_uid + 6)
    url = f"http://127.0.0.1:{server.port}"
    assert heartbeat("h1", beat())(Connection(Addresses([url]), me(server))).ok
    monkeypatch.setattr(session, "machine_mark", lambda: "another machine")
    with pytest.raises(UnprovenManager, match="another user listens there"):
        heartbeat("h1", beat())(Connection(Addresses([url]), me(server)))


# ------------------------------------------------------------------------------------------ what it may cost


class Agents:
    """Sessions on a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.sessions = AgentSessions(
            "f-1", lambda agent: "" if agent == "gone" else f"key of {agent}", lambda: self.now
        )

    def hello(self, agent: str = "h1", secret: str = SECRET) -> session.ClientSession:
        nonce = session.new_nonce()
        offer = session.Offer.read(self.sessions.offer(agent, nonce, "http://m:5000"))
        assert offer is not None
        return session.ClientSession(
            agent, secret, nonce, offer, session.handshake(f"key of {agent}", "f-1", agent, nonce, offer.id)
        )

    def ask(self, headers: dict[str, str], path: str = "/api/x") -> Any:
        environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": ""}
        environ |= {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}
        return self.sessions.check(environ)


def test_who_only_asks_hello_leaves_nothing_behind() -> None:
    agents = Agents()
    for number in range(1_000):
        agents.hello(f"h{number}")
    assert len(agents.sessions) == 0
    assert agents.sessions.offer("gone", session.new_nonce(), "") is None


def test_sessions_of_an_agent_are_bounded_and_the_oldest_go() -> None:
    agents = Agents()
    for _ in range(MOST):
        agents.ask(agents.hello().sign("GET", "/api/x", None))
    with pytest.raises(LimitExceeded, match="too many sessions"):
        agents.ask(agents.hello().sign("GET", "/api/x", None))
    agents.ask(agents.hello("h2").sign("GET", "/api/x", None))
    agents.now += OPEN_WITHIN_S + 1
    agents.ask(agents.hello().sign("GET", "/api/x", None))
    assert len(agents.sessions) == KEPT + 1


def test_an_offer_lasts_seconds_and_a_forgotten_session_is_not_opened_again() -> None:
    agents = Agents()
    late, first = agents.hello(), agents.hello()
    recorded = first.sign("GET", "/api/x", None)
    agents.ask(recorded)
    agents.now += OPEN_WITHIN_S + 1
    with pytest.raises(Refused, match="too long ago"):
        agents.ask(late.sign("GET", "/api/x", None))
    for _ in range(KEPT):
        agents.ask(agents.hello().sign("GET", "/api/x", None))
    with pytest.raises(Refused, match="too long ago"):
        agents.ask(recorded)


@pytest.mark.parametrize("name", ["Authorization", session.OPEN_HEADER])
def test_broken_headers_are_refused_in_words(name: str) -> None:
    agents = Agents()
    right = agents.hello().sign("GET", "/api/x", None)
    for text in (
        "",
        "ProcGuard",
        "ProcGuard a b c d",
        "ProcGuard " + "0" * 52 + " 1 - x",
        "h1 x",
        "h1 x zz",
        "\xff \xff 0",
    ):
        with pytest.raises(Refused):
            agents.ask({**right, name: text})
    with pytest.raises(Refused):
        agents.ask(right, "/api/y")
    assert agents.ask(right).session.secret_sha256 == messages.secret_sha256(SECRET)
