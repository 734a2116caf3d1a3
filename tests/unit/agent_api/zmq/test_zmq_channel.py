"""The zmq channel in addition to test_channel_conformance.py: who may connect, and that nothing which can be sent to
its ports does more than end the connection it came on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from procguard.agent_api.zmq.channel import reachable_from
from procguard.agent_api.zmq.keys import KEYS_PER_AGENT, CurveKeyStore, key_from_hex
from remote_agent.protocol import messages
from tests.ports import free_ports
from tests.server_process import ROOT, RunningServer
from tests.sizes import examples
from tests.unit.channel_links import World, ZmqLink, offered
from tests.waiting import wait_until

HELLO = {"id": 1, "method": "GET", "path": "/api/hello"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World("zmq", tmp_path_factory.mktemp("zmq"))
    made.deploy("h1", "w1")
    yield made
    made.close()
    assert "Traceback" not in made.server.log()


def healthy(world: World) -> None:
    """Other peers are served as usual."""
    status, _ = ZmqLink(world, "h1", "secret-of-h1").ask("GET", "/api/agents/h1/commands?wait=0", timeout_s=5.0)
    assert status == 200


def gauge(world: World, name: str) -> float:
    lines = world.server.ask("GET", "/metrics").body.decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def dealer(world: World, **options: Any) -> Any:
    made = world.context.socket(zmq.DEALER)
    made.linger = 0
    for name, value in options.items():
        setattr(made, name, value)
    return made


# ------------------------------------------------------------------------------------------------ who may connect


def test_a_key_that_was_not_admitted_gets_no_further_than_the_handshake(world: World) -> None:
    offer = offered(world, "h1")
    public, secret = zmq.curve_keypair()
    server_key = z85.encode(bytes.fromhex(offer["curve_key"]))
    before = gauge(world, "procguard_channel_refused_connections")
    with dealer(world, curve_publickey=public, curve_secretkey=secret, curve_serverkey=server_key) as stranger:
        stranger.connect(f"tcp://127.0.0.1:{offer['port']}")
        stranger.send(json.dumps(HELLO).encode())
        wait_until(lambda: gauge(world, "procguard_channel_refused_connections") > before, 5.0, "it was refused")
        assert not stranger.poll(100)
    healthy(world)


@pytest.mark.parametrize("port", ["port", "logs_port"])
def test_without_curve_nothing_is_answered(world: World, port: str) -> None:
    offer = offered(world, "h1")
    with dealer(world) as plain:
        plain.connect(f"tcp://127.0.0.1:{offer[port]}")
        plain.send(json.dumps(HELLO).encode())
        assert not plain.poll(300)
    healthy(world)


def test_a_key_is_admitted_only_from_who_has_the_proof_key(world: World) -> None:
    key = "ab" * 32
    for mac in ("", "00" * 32, "%C3%A9", messages.curve_key_proof("another key", "h1", "n1", key)):
        answer = world.server.ask("GET", f"/api/hello?agent=h1&nonce=n1&curve={key}&mac={mac}")
        assert (answer.status, answer.error_code) == (401, "unauthorized")
    wrong = "zz" * 32
    mac = messages.curve_key_proof(world.proof_keys["h1"], "h1", "n1", wrong)
    assert world.server.ask("GET", f"/api/hello?agent=h1&nonce=n1&curve={wrong}&mac={mac}").status == 400


def test_an_unknown_agent_is_offered_nothing(world: World) -> None:
    assert world.server.ask("GET", "/api/hello?agent=nobody&nonce=n1").json.get("zmq") is None


def test_another_agents_secret_is_refused_on_ones_own_connection(world: World) -> None:
    stolen = world.deploy("h2", "w2")
    status, refused = ZmqLink(world, "h1", stolen).ask("GET", "/api/agents/h2/commands?wait=0")
    assert (status, refused["error"]["code"]) == (403, "forbidden")


def test_a_socket_that_names_itself_is_ignored(world: World) -> None:
    """Its name could be that of another, authenticated connection."""
    offer_key = zmq.curve_keypair()
    offer = offered(world, "h1", z85.decode(offer_key[0]).hex())
    with dealer(
        world,
        curve_publickey=offer_key[0],
        curve_secretkey=offer_key[1],
        curve_serverkey=z85.encode(bytes.fromhex(offer["curve_key"])),
        routing_id=b"me",
    ) as named:
        named.connect(f"tcp://127.0.0.1:{offer['port']}")
        named.send(json.dumps(HELLO).encode())
        assert not named.poll(300)
    healthy(world)


def test_the_newest_keys_of_an_agent_are_admitted() -> None:
    key_store = CurveKeyStore()
    keys = [bytes([number]) * 32 for number in range(1, KEYS_PER_AGENT + 2)]
    for key in keys:
        key_store.admit("h1", key)
        key_store.admit("h1", key)
    assert key_store.agent_of(keys[0]) is None
    assert all(key_store.agent_of(key) == "h1" for key in keys[1:])
    key_store.admit("h2", keys[1])
    assert key_store.agent_of(keys[1]) == "h2"
    key_store.revoke("h1")
    assert [key_store.agent_of(key) for key in keys[2:]] == [None] * (len(keys) - 2)
    assert key_store.agent_of(keys[1]) == "h2"
    key_store.admit("h1", keys[2])
    assert key_store.agent_of(keys[2]) == "h1"
    assert key_from_hex("00" * 32) is None and key_from_hex("ab") is None and key_from_hex("é" * 64) is None


def test_a_channel_on_loopback_is_offered_to_this_machine_only() -> None:
    assert reachable_from("127.0.0.1", "127.0.0.1") and reachable_from("::1", "::ffff:127.0.0.1")
    assert not reachable_from("127.0.0.1", "10.0.0.7") and not reachable_from("localhost", "2001:db8::1")
    assert reachable_from("0.0.0.0", "10.0.0.7") and reachable_from("10.0.0.5", "127.0.0.1")


# ----------------------------------------------------------------------------------------------- what may be sent


@pytest.mark.slow
def test_an_agent_opens_only_as_many_connections_as_it_may(tmp_path: Path) -> None:
    world = World("zmq", tmp_path, "web.limits.connections_per_agent=8")
    try:
        secret, other = world.deploy("h1", "w1"), world.deploy("h2", "w2")
        public, own = zmq.curve_keypair()
        offer = offered(world, "h1", z85.decode(public).hex())
        server_key = z85.encode(bytes.fromhex(offer["curve_key"]))
        dealers = []
        for number in range(1, 13):
            one = dealer(world, curve_publickey=public, curve_secretkey=own, curve_serverkey=server_key)
            one.setsockopt(zmq.RECONNECT_IVL, -1)
            one.connect(f"tcp://127.0.0.1:{offer['port']}")
            one.send(json.dumps({**HELLO, "id": number}).encode())
            dealers.append(one)
        wait_until(lambda: gauge(world, "procguard_channel_refused_connections") == 4, 5.0, "four are refused")
        assert sum(1 for one in dealers if one.poll(500)) == 8
        assert ZmqLink(world, "h2", other).ask("GET", "/api/hello")[0] == 200  # others have their own
        for one in dealers:
            one.close(0)
        wait_until(lambda: gauge(world, "procguard_channel_connections") <= 1, 5.0, "they are gone")
        time.sleep(0.3)  # one more may arrive every quarter of a second
        assert ZmqLink(world, "h1", secret).ask("GET", "/api/hello")[0] == 200
    finally:
        world.close()


def test_what_is_no_request_is_reported_so(world: World) -> None:
    link = ZmqLink(world, "h1", "secret-of-h1")
    for header, code in (
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b"[" * 5000, "bad_json"),
        (b'{"id": NaN}', "bad_json"),
        ([], "bad_json"),
        ({}, "bad_request"),
        ({**HELLO, "id": 0}, "bad_request"),
        ({**HELLO, "id": True}, "bad_request"),
        ({**HELLO, "id": 2**60}, "bad_request"),
        ({**HELLO, "id": 1e5}, "bad_request"),
        ({"id": 1}, "bad_request"),
        ({"id": 1, "method": ["GET"], "path": "/api/hello"}, "bad_request"),
        ({"id": 1, "method": "GET", "path": "/" + "x" * 20_000}, "header_too_large"),
        ({"id": 1, "method": "GET", "path": "/" * 9000}, "not_found"),
        ({**HELLO, "secret": 5}, "bad_request"),
        ({**HELLO, "secret": "x" * 600}, "bad_request"),
        ({"id": 1, "method": "POST", "path": "/api/agents/h1/heartbeat", "body_bytes": "9"}, "bad_request"),
        ({"id": 1, "method": "POST", "path": "/api/workers/w1/logs"}, "not_found"),
    ):
        link.send(header)
        status, refused = link.answer()
        assert (400 <= status < 500, refused["error"]["code"]) == (True, code), header
    link.socket.send_multipart([json.dumps(HELLO).encode(), b"{}", b"more"])
    status, refused = link.answer()
    assert (status, refused["error"]["code"]) == (400, "bad_frames")
    assert link.ask("GET", "/api/hello")[0] == 200  # on the same connection


def test_what_is_asked_again_and_again_is_answered_each_time_for_itself(world: World) -> None:
    """As agents write their headers: the same text except for the id, which the response repeats."""
    link = ZmqLink(world, "h1", "secret-of-h1")
    assert link.ask("GET", "/api/agents/h1/commands?wait=0")[0] == 200  # with the secret

    def asked(head: bytes, body: bytes = b"") -> tuple[int, int, dict[str, Any]]:
        link.socket.send(head + b"\n" + body)
        assert link.socket.poll(10_000)
        head, _, body = link.socket.recv().partition(b"\n")
        return json.loads(head)["id"], json.loads(head)["status"], json.loads(body)

    beat = b',"method":"POST","path":"/api/workers/w1/heartbeat"}'
    for number in (7, 8, 9, 2**53 - 1):
        answer = asked(b'{"id":%d' % number + beat, b'{"state": "running"}')
        assert answer[:2] == (number, 200) and answer[2]["worker_id"] == "w1"
    assert asked(b'{"id":10' + beat, b'{"state": "dancing"}')[:2] == (10, 400)
    assert (
        asked(b'{"id":11,"method":"GET","path":"/api/hello"}')[1:]
        == asked(b'{"id":12,"method":"GET","path":"/api/hello"}')[1:]
    )
    assert asked(b'{"id":13' + beat.replace(b"w1", b"w9"), b"{}")[:2] == (13, 403)
    assert asked(b'{"id":14' + beat, b'{"state": "running"}')[:2] == (14, 200)
    for wrong in (b"0", b"007", b"-1", b"1.5", b'"1"', b"", b"9" * 16):
        assert asked(b'{"id":' + wrong + beat, b'{"state": "running"}')[:2] == (0, 400), wrong


def test_only_log_bytes_go_to_the_second_port(world: World) -> None:
    status, refused = ZmqLink(world, "h1", "secret-of-h1", logs=True).ask("GET", "/api/hello")
    assert status == 404 and str(world.port) in refused["error"]["next"]
    status, refused = ZmqLink(world, "h1", "secret-of-h1").ask("POST", "/api/workers/w1/logs?attempt=1", b"x")
    assert status == 404 and str(world.port + 1) in refused["error"]["next"]


def test_a_large_body_is_asked_for_and_must_be_what_was_announced(world: World) -> None:
    link = ZmqLink(world, "h1", "secret-of-h1", logs=True)
    asked = {"method": "POST", "path": "/api/workers/w1/logs?attempt=7&offset=0", "secret": "secret-of-h1"}
    link.send({**asked, "id": 1}, b"x" * (messages.ZMQ_INLINE_BYTES + 1))  # not announced
    assert link.answer()[0] == 400
    for body in (b"x" * 70_000, b"x" * 99_999, b""):
        link.send({**asked, "id": 2, "body_bytes": 80_000})
        assert link.answer()[0] == 100
        link.send({"id": 2}, body)
        status, refused = link.answer()
        assert (status, refused["error"]["code"]) == (400, "body_incomplete")
    link.send({**asked, "id": 3, "body_bytes": 10**12})
    status, refused = link.answer()
    assert (status, refused["error"]["code"]) == (413, "body_too_large")
    assert link.ask("POST", "/api/workers/w1/logs?attempt=7&offset=0", b"") == (200, {"acked": 0})


def test_a_frame_beyond_all_bounds_ends_its_connection_and_no_other(world: World) -> None:
    bystander = ZmqLink(world, "h1", "secret-of-h1")
    assert bystander.ask("GET", "/api/hello")[0] == 200
    link = ZmqLink(world, "h1", "secret-of-h1", logs=True)
    link.send({"id": 1, "method": "POST", "path": "/api/workers/w1/logs"}, b"x" * (5 * 1024 * 1024))
    assert not link.socket.poll(300)
    assert bystander.ask("GET", "/api/hello")[0] == 200


def test_who_asks_without_reading_answers_is_answered_a_bounded_number(world: World) -> None:
    link = ZmqLink(world, "h1", "secret-of-h1")
    path = "/api/agents/h1/commands?wait=20"
    _, reply = link.ask("GET", "/api/agents/h1/commands?wait=0")
    rev = reply["assignments_rev"]
    for number in range(10, 30):
        link.send({"id": number, "method": "GET", "path": f"{path}&rev={rev}&seq={2**52}"})
    statuses = [link.answer()[0] for _ in range(19)]  # each newer one ends the one before; the last one is held
    assert set(statuses) <= {200, 429}
    for _ in range(3_000):
        link.send(HELLO)
    healthy(world)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_frame_makes_the_manager_fail(world: World, data: st.DataObject) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=8,
    )
    paths = st.sampled_from(
        ["/api/hello", "/api/agents/h1/heartbeat", "/api/agents/h1/commands?wait=0", "/api/workers/w1/heartbeat",
         "/api/workers/w1/command", "/api/workers/w1/logs?attempt=1", "/api/workers/register",
         "/api/agents/h1/searches"]
    )  # fmt: skip
    headers = st.fixed_dictionaries(
        {},
        optional={
            "id": st.integers(-1, 2**54) | values,
            "method": st.sampled_from(["GET", "POST", "PUT"]) | values,
            "path": paths | st.text(max_size=60) | values,
            "secret": st.just("secret-of-h1") | values,
            "body_bytes": st.integers(-1, 100_000) | values,
        },
    ).map(lambda header: json.dumps(header).encode("utf-8", "surrogatepass"))
    bodies = st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    frames = st.lists(
        st.binary(max_size=120) | st.builds(lambda head, body: head + b"\n" + body, headers, bodies),
        min_size=1,
        max_size=3,
    )
    link = _fuzzed(world)
    link.socket.send_multipart(data.draw(frames))
    assert link.answer()[0] < 500


_LINKS: dict[int, tuple[ZmqLink, int]] = {}


def _fuzzed(world: World) -> ZmqLink:
    """A connection for a few messages: announced but unsent messages count as unanswered requests."""
    link, used = _LINKS.get(id(world), (None, 0))
    if link is None or used >= 6:
        if link is not None:
            link.close()
        link, used = ZmqLink(world, "h1", "secret-of-h1", logs=random.random() < 0.5), 0
    _LINKS[id(world)] = (link, used + 1)
    return link


def test_bytes_that_are_no_zmtp_end_their_connection(world: World) -> None:
    offer = offered(world, "h1")
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\0" * 8 + b"\x7f" + os.urandom(200), os.urandom(500)):
        with socket.create_connection(("127.0.0.1", offer["port"]), 5) as raw:
            raw.settimeout(20)
            raw.sendall(nonsense)
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(4096):  # its own greeting; then it hangs up
                    pass
    healthy(world)


# ------------------------------------------------------------------------------------------------------ the ports


@pytest.mark.slow
@pytest.mark.parametrize("taken", [0, 1])
def test_a_port_that_is_taken_gives_one_clear_line(tmp_path: Path, taken: int) -> None:
    base = free_ports(3)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", base + taken))
        holder.listen()
        done = subprocess.run(
            [sys.executable, "-m", "procguard.main", "--host", "127.0.0.1", "--port", str(base + 2), "--set",
             f"state.state_file={tmp_path}/s.yaml", "--set", f"logging.file={tmp_path}/m.log", "--set",
             "communication.adapter_type=zmq", "--set", f"communication.adapter_config.port_base={base}", "--set",
             "communication.adapter_config.host=127.0.0.1"],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("procguard: communication.adapter_config.port_base: port")
    assert str(base + taken) in done.stderr and "ss -ltnp" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_zmq_listens_on_two_ports_and_the_shipped_configuration_on_none_but_http(world: World, tmp_path: Path) -> None:
    def listening(server: RunningServer) -> set[int]:
        found = psutil.Process(server.process.pid).net_connections(kind="inet")
        return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}

    shipped = RunningServer(tmp_path)
    try:
        ports = listening(shipped)
        assert shipped.port in ports and len(ports) == 2  # the other one is loopback's, where tunnels end
    finally:
        shipped.close()
    assert listening(world.server) >= {world.server.port, world.port, world.port + 1}
    assert len(listening(world.server)) == 4


def test_answers_come_without_delay(world: World) -> None:
    link = ZmqLink(world, "h1", "secret-of-h1")
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert link.ask("GET", "/api/hello")[0] == 200
        took.append(time.monotonic() - began)
    assert sorted(took)[10] < 0.03


def descriptors(world: World) -> int:
    return len(os.listdir(f"/proc/{world.server.process.pid}/fd"))


@pytest.mark.slow
def test_strangers_that_say_nothing_do_not_fill_the_manager_with_connections(tmp_path: Path) -> None:
    """libzmq accepts connections without a limit, before any proof: the longest silent one is closed, authenticated
    ones stay."""
    world = World("zmq", tmp_path, "web.limits.unproven_per_address=8")
    try:
        world.deploy("h1", "w1")
        member = ZmqLink(world, "h1", "secret-of-h1")
        assert member.ask("GET", "/api/agents/h1/commands?wait=0")[0] == 200
        before = descriptors(world)
        port = offered(world, "h1")["port"]
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
        try:
            wait_until(lambda: descriptors(world) <= before + 12, 4.0, "the longest silent ones are closed", 0.1)
            assert gauge(world, "procguard_channel_refused_connections") >= 80
            assert member.ask("GET", "/api/agents/h1/commands?wait=0")[0] == 200
            healthy(world)
        finally:
            for one in silent:
                one.close()
    finally:
        world.close()


def memory_mb(world: World) -> float:
    lines = Path(f"/proc/{world.server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


@pytest.mark.slow
def test_addresses_without_end_fill_no_memory(world: World) -> None:
    """The table of routes kept 30 to 77 KB of each one, before the 401."""
    link = ZmqLink(world, "h1", "secret-of-h1")
    before = memory_mb(world)
    for number in range(2_000):
        status, _ = link.ask("POST", f"/api/agents/{'x' * 15_000}{number}/heartbeat", timeout_s=10.0)
        assert status >= 400
    assert memory_mb(world) - before < 30
