"""The agent's side of zmq: it switches where zmq is offered, reports why if it cannot, and loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from remote_agent.logs.shipper import LogShipper
from remote_agent.logs.watcher import ShippedWorker
from remote_agent.protocol import messages
from remote_agent.system import paths
from remote_agent.transport import zmq as zmq_wire
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.caller import heartbeat, poll
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.negotiation import AGAIN_LAST_S, Channels
from remote_agent.transport.outcomes import LinkDown
from tests.ports import free_ports
from tests.server_process import ROOT
from tests.unit.channel_links import World
from tests.waiting import Stopwatch, wait_until


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World("zmq", tmp_path_factory.mktemp("choice"))
    yield made
    made.close()
    assert "Traceback" not in made.server.log()


@pytest.fixture(autouse=True)
def agents_end() -> Iterator[None]:
    """Garbage collection must not find a ZeroMQ context with open sockets: it would block without limit."""
    yield
    while Agent.living:
        Agent.living.pop().close()


class Agent:
    """An agent's connections, without the agent."""

    living: ClassVar[list[Agent]] = []

    def __init__(self, world: World, name: str) -> None:
        self.living.append(self)
        self.world, self.name = world, name
        secret = world.deploy(name, f"{name}-w1")
        self.said: list[str] = []
        self.channels = Channels(self.said.append)
        fleet_id = world.server.ask("GET", "/api/hello").json["fleet_id"]
        self.credentials = AgentCredentials(name, fleet_id, secret, world.proof_keys[name])
        self.connections: list[Connection] = []

    def close(self) -> None:
        for connection in self.connections:
            connection.disconnect()
        if self.channels._zmq is not None:
            self.channels._zmq.context.term()

    def connection(self, *, logs: bool = False) -> Connection:
        made = Connection(
            Addresses([f"http://127.0.0.1:{self.world.server.port}"]), self.credentials, self.channels, logs=logs
        )
        self.connections.append(made)
        return made

    def beat(self, connection: Connection) -> Any:
        body = messages.encode(messages.AgentHeartbeat(self.name, channel_trouble=self.channels.trouble))
        return heartbeat(self.name, body)(connection)

    def host(self) -> Any:
        hosts = self.world.server.ask("GET", "/api/hosts").json["hosts"]
        return next(one for one in hosts if one["agent"] == self.name)


def test_an_agent_goes_over_to_zmq_where_it_is_offered(world: World) -> None:
    agent = Agent(world, "over")
    connection = agent.connection()
    assert agent.beat(connection).data["beat"] == 0
    assert (agent.said, agent.host()["channel"]) == (["zmq"], "zmq")
    assert connection._http is None  # nothing is kept open beside it


def test_a_command_comes_over_zmq_and_is_answered_at_once(world: World) -> None:
    agent = Agent(world, "fast")
    rev = agent.beat(agent.connection()).data["assignments_rev"]
    answers: list[tuple[float, Any]] = []

    def ask() -> None:
        reply = poll("fast", rev, 0)(agent.connection())
        answers.append((time.monotonic(), reply))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    wait_until(lambda: agent.host()["agent_state"] == "connected" and len(agent.connections) == 2, 5.0, "it polls")
    time.sleep(0.3)  # however long it has been held
    began = time.monotonic()
    world.server.ask("POST", "/api/workers/fast-w1/command", {"command": "stop"})
    thread.join(5)
    assert answers[0][1].data["assignments"][0]["desired"] == "stopped" and answers[0][0] - began < 0.5


def test_without_pyzmq_an_agent_stays_on_http_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'zmq'")

    monkeypatch.setattr(zmq_wire, "_import", missing)
    agent = Agent(world, "bare")
    connection = agent.connection()
    assert agent.beat(connection).ok and agent.beat(connection).ok
    assert agent.said == ["http: no pyzmq in this Python (No module named 'zmq')"]
    host = agent.host()
    assert host["channel"] == "http" and "no pyzmq" in host["channel_trouble"]
    assert not agent.channels.due()  # it will not have it later either


def test_what_cannot_be_reached_is_left_for_http_at_once_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(world, "cut")
    connection = agent.connection()
    genuine = agent.channels.connect
    elsewhere = free_ports()

    def connect(host: str, offer: messages.ZmqOffer, logs: bool) -> Any:
        offer.port = elsewhere
        return genuine(host, offer, logs)

    monkeypatch.setattr(agent.channels, "connect", connect)
    watch = Stopwatch()
    assert agent.beat(connection).ok
    assert watch.seconds < 3.0
    assert str(elsewhere) in agent.said[-1] and agent.said[-1].startswith("http: ")
    assert agent.beat(connection).ok and str(elsewhere) in agent.host()["channel_trouble"]
    assert not agent.channels.due()
    monkeypatch.setattr(agent.channels, "connect", genuine)
    agent.channels._again_at = 0.0
    assert agent.beat(connection).ok
    assert (agent.said[-1], agent.host()["channel"]) == ("zmq", "zmq")
    assert agent.beat(connection).ok and agent.host()["channel_trouble"] == ""


def test_tries_become_rarer_but_never_end() -> None:
    channels = Channels()
    for _ in range(40):
        channels._again_at = 0.0
        channels.failed("refused")
        assert 0 < channels._again_at - time.monotonic() <= AGAIN_LAST_S
    assert channels._again_at - time.monotonic() >= AGAIN_LAST_S / 2 - 1


def test_an_offer_that_is_not_the_managers_own_is_not_believed() -> None:
    offer = messages.ZmqOffer(5550, 5551, "ab" * 32)
    offer.proof = messages.zmq_offer_proof("key", "h1", "nonce", offer)
    channels = Channels()
    assert channels.read_offer(messages.encode(offer), "key", "h1", "nonce") == offer
    for change in (
        {"port": 22},
        {"curve_key": "cd" * 32},
        {"logs_port": 1},
        {"timeout_ms": 5},
        {"proof": ""},
        {"port": "x"},
    ):
        fresh = Channels()
        assert fresh.read_offer({**messages.encode(offer), **change}, "key", "h1", "nonce") is None, change
        assert "not proven" in fresh.trouble
    assert Channels().read_offer(messages.encode(offer), "key", "h1", "another") is None
    assert Channels().read_offer(["zmq"], "key", "h1", "nonce") is None
    assert Channels().read_offer(None, "key", "h1", "nonce") is None


def test_a_request_under_way_ends_when_the_agent_does(world: World) -> None:
    agent = Agent(world, "ending")
    connection = agent.connection()
    rev = agent.beat(connection).data["assignments_rev"]
    ended: list[LinkDown] = []

    def ask() -> None:
        try:
            poll("ending", rev, 0)(connection)
        except LinkDown as exc:
            ended.append(exc)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(0.2)
    connection.close()
    thread.join(2.0)
    assert len(ended) == 1 and not thread.is_alive()


def test_a_revoked_agent_notices_over_zmq(world: World) -> None:
    agent = Agent(world, "revoked")
    connection = agent.connection()
    assert agent.beat(connection).ok
    assert world.server.ask("POST", "/api/agents/revoked/revoke").status == 200
    assert agent.beat(connection).status == 401


def test_agents_and_their_logs_outlive_a_manager_that_is_killed(world: World, tmp_path: Path) -> None:
    """Every line once, though the manager dies while they are sent, and zmq again afterwards."""
    agent = Agent(world, "logs")
    directory = str(tmp_path / "worker")
    os.makedirs(paths.attempts_dir(directory))
    lines = b"".join(b"%07d %s\n" % (number, b"x" * 90) for number in range(40_000))
    with open(paths.log_file(directory, 1, "out"), "wb") as file:
        file.write(lines)
    shipper = LogShipper(agent.connection(logs=True), lambda kind, value: None)
    shipper._max_chunk_bytes = 200_000
    shipper.update([ShippedWorker("logs-w1", directory, 1, False)])
    shipper.watch()
    shipper.start()
    stored = world.directory / "logs" / messages.directory_name("logs-w1") / "1.out.log"
    try:
        wait_until(lambda: stored.exists() and stored.stat().st_size > 400_000, 20.0, "some of it is stored")
        port = world.server.port
        world.options = (f"web.port={port}",)
        world.restart()
        shipper.link_is_up()
        wait_until(lambda: stored.stat().st_size >= len(lines), 40.0, "all of it is stored")
    finally:
        shipper.end()
    assert stored.read_bytes() == lines
    connection = agent.connection()
    assert agent.beat(connection).ok and agent.host()["channel"] == "zmq"


def test_an_agent_loads_no_pyzmq_before_it_is_offered() -> None:
    code = (
        "import sys; import remote_agent.agent.agent, remote_agent.transport.client, "
        "remote_agent.transport.negotiation; "
        "sys.exit('zmq' in sys.modules or 'remote_agent.transport.zmq' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("python", [sys._base_executable, "/usr/bin/python3"])  # type: ignore[attr-defined]
def test_packages_of_a_virtual_environment_are_scanned_first(tmp_path: Path, python: str) -> None:
    if not os.path.exists(python):
        pytest.skip(f"{python} is not here")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text(f"home = {os.path.dirname(python)}\n")
    (venv / "bin" / "python").symlink_to(python)
    code = "from remote_agent.transport import zmq as zmq_wire; print(zmq_wire._package_paths()[0])"
    command = [str(venv / "bin" / "python"), "-s", "-E", "-S", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"{venv}/lib/python3.") and done.stdout.strip().endswith("/site-packages"), (
        done.stderr
    )


def test_pyzmq_is_found_though_the_agent_runs_without_site_packages() -> None:
    code = (
        "import sys; from remote_agent.transport import zmq as zmq_wire; known = list(sys.path); own = zmq_wire.Zmq(); "
    )
    code += "assert sys.path == known; print(len(own.public_key))"
    command = [sys.executable, "-s", "-E", "-S", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("64", 0), done.stderr
