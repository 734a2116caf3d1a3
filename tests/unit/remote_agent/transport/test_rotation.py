"""Rotation of agents' secrets, the agent's side: agent and manager keep working at whatever step it is killed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent import settings
from remote_agent.protocol import messages
from remote_agent.system import paths
from remote_agent.transport import rotation
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.caller import heartbeat
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.outcomes import LinkDown
from remote_agent.transport.rotation import SecretRotation
from tests.server_process import RunningServer

OLD = "the-first-secret"


def digest(secret: str) -> str:
    return messages.secret_sha256(secret)


class Died(BaseException):
    """SIGKILL at this very place."""


class Agent:
    """An agent's files, and the rotation on them as often as it takes, against a real manager."""

    def __init__(self, server: RunningServer, directory: Path, name: str = "h1") -> None:
        answer = server.ask("POST", "/api/deployments", {"hosts": [{"host": name}]}).json
        self.old = f"{OLD} of {name}"
        server.ask("PUT", f"/api/agents/{name}/credentials", {"secret_sha256": digest(self.old)})
        self.server, self.name = server, name
        self.dir = str(directory / answer["fleet_id"] / name)
        os.makedirs(self.dir)
        self.url = f"http://127.0.0.1:{server.port}"
        config = settings.AgentSettings(
            answer["fleet_id"],
            name,
            name,
            [self.url],
            str(directory / "run"),
            self.old,
            answer["hosts"][name]["proof_key"],
        )
        settings.save(self.dir, config)
        self.begin()

    def begin(self) -> None:
        """The process starts with the content of its file."""
        config = settings.load(self.dir)
        self.credentials = AgentCredentials(self.name, config.fleet_id, config.secret, config.proof_key)
        self.rotation = SecretRotation(
            self.dir, self.credentials, self.connect, replacing=lambda _: None, replaced=lambda: None, say=self._say
        )
        self.said: list[str] = []

    def _say(self, event: str, **facts: Any) -> None:
        self.said.append(f"{event} {facts}")

    def connect(self) -> Connection:
        return Connection(Addresses([self.url]), self.credentials)

    def beat(self) -> messages.AgentReply:
        beat = messages.AgentHeartbeat(self.name, pid=os.getpid())
        reply = heartbeat(self.name, messages.encode(beat))(self.connect())
        assert reply.ok, reply.why
        return messages.decode(messages.AgentReply, reply.data)

    def pending(self) -> Any:
        return next(one for one in self.server.ask("GET", "/api/agents").json["agents"] if one["agent"] == self.name)[
            "rotation"
        ]

    def ask_for_another(self) -> str:
        """The operator does; the name of the rotation, as the agent is told it."""
        self.beat()
        answer = self.server.ask("POST", "/api/agents/rotate", {"agents": [self.name]})
        assert answer.json == {"agents": {self.name: {"status": "asked", "message": ""}}}
        return self.beat().rotate


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    yield running
    running.close()
    assert "Traceback" not in running.log()


@pytest.fixture
def agent(server: RunningServer, tmp_path: Path, request: pytest.FixtureRequest) -> Agent:
    return Agent(server, tmp_path / "home", "h" + digest(request.node.name)[:12])


STEPS = (
    "before the new secret is stored",
    "after it was stored",
    "before its digest is told",
    "after its digest was told",
    "before agent.json",
    "after agent.json",
    "before the new secret is forgotten",
)


def die_at(monkeypatch: pytest.MonkeyPatch, agent: Agent, step: str) -> None:
    write, request, unlink = paths.write_json, Connection.request, os.unlink
    next_file = rotation.next_secret_file(agent.dir)

    def write_json(path: str, value: object, *args: Any, **kwargs: Any) -> None:
        which = "the new secret is stored" if path == next_file else "agent.json"
        if step == f"before {which}":
            raise Died
        write(path, value, *args, **kwargs)
        if step == ("after it was stored" if path == next_file else "after agent.json"):
            raise Died

    def asked(self: Connection, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith("/secret") and step == "before its digest is told":
            raise Died
        reply = request(self, method, path, *args, **kwargs)
        if path.endswith("/secret") and step == "after its digest was told":
            raise Died
        return reply

    def forget(path: Any, *args: Any, **kwargs: Any) -> None:
        if path == next_file and step == "before the new secret is forgotten":
            raise Died
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(paths, "write_json", write_json)
    monkeypatch.setattr(Connection, "request", asked)
    monkeypatch.setattr(os, "unlink", forget)


def die(monkeypatch: pytest.MonkeyPatch, agent: Agent, step: str) -> None:
    """The agent is asked for a new secret and killed at that step; the next process reads its files."""
    name = agent.ask_for_another()
    with monkeypatch.context() as patched:
        die_at(patched, agent, step)
        with pytest.raises(Died):
            agent.rotation._carry_out(name)
    agent.begin()


def assert_it_comes_to_its_end(agent: Agent) -> None:
    """With the next heartbeats, of which one may be interrupted: the manager closes connections of the old secret."""
    for _ in range(4):
        try:
            again = agent.beat().rotate
        except LinkDown:
            continue
        if not again:
            break
        agent.rotation._carry_out(again)
    assert agent.beat().rotate == "" and agent.pending() is None
    secret = settings.load(agent.dir).secret
    assert secret != agent.old and agent.credentials.secret == secret
    agent.credentials.secret = agent.old
    reply = heartbeat(agent.name, messages.encode(messages.AgentHeartbeat(agent.name)))(agent.connect())
    assert reply.status == 401


@pytest.mark.parametrize("step", STEPS)
def test_an_agent_that_dies_anywhere_comes_back_with_a_secret_that_is_good(
    monkeypatch: pytest.MonkeyPatch, agent: Agent, step: str
) -> None:
    die(monkeypatch, agent, step)
    assert_it_comes_to_its_end(agent)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["after its digest was told", "after agent.json"])
def test_and_so_it_is_when_the_manager_dies_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str) -> None:
    first = RunningServer(tmp_path)
    agent = Agent(first, tmp_path / "home")
    die(monkeypatch, agent, step)
    first.process.kill()
    first.close()
    agent.server = RunningServer(tmp_path, f"web.port={first.port}")
    try:
        assert_it_comes_to_its_end(agent)
    finally:
        agent.server.close()


def test_the_new_secret_is_private_and_durable_before_anybody_knows_it(
    monkeypatch: pytest.MonkeyPatch, agent: Agent
) -> None:
    name = agent.ask_for_another()
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    modes: list[int] = []

    def reported(self: Connection, *_args: Any, **_kwargs: Any) -> Any:
        path = rotation.next_secret_file(agent.dir)
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        assert any(os.path.basename(path) in one for one in synced), "told before it was on the disk"
        raise LinkDown("cut")

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "request", reported)
        agent.rotation._run(name)
    assert modes == [0o600] and "cut" in agent.said[-1]
    agent.rotation._run(name)
    assert stat.S_IMODE(os.stat(paths.agent_file(agent.dir)).st_mode) == 0o600
    assert not os.path.exists(rotation.next_secret_file(agent.dir))


def test_a_bearer_secret_is_not_enough_to_replace_it(agent: Agent) -> None:
    """The new one must exclude whoever has read it on the wire."""
    name = agent.ask_for_another()
    mine = {"rotation": name, "secret_sha256": digest("thief")}
    answer = agent.server.ask("POST", f"/api/agents/{agent.name}/secret", mine, secret=agent.old)
    assert (answer.status, answer.error_code) == (409, "no_session")
    assert agent.pending()["state"] == "asked"


def test_a_deployment_under_way_keeps_its_file(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """agent.json belongs to the agent while it holds the lock; its content is not overwritten."""
    name = agent.ask_for_another()
    monkeypatch.setattr(rotation, "LOCK_WITHIN_S", 0.1)
    with rotation._installers_lock(agent.dir) as mine:
        assert mine
        agent.rotation._run(name)
    assert "deployment is under way" in agent.said[-1] and settings.load(agent.dir).secret == agent.old
    config = settings.load(agent.dir)
    config.secret = "of the deployment"
    settings.save(agent.dir, config)
    agent.rotation._run(name)
    assert settings.load(agent.dir).secret == "of the deployment"


def test_connections_that_stand_go_on_with_the_new_secret(agent: Agent) -> None:
    """No request of an agent fails because of the rotation, whichever connection first uses the new secret."""
    name = agent.ask_for_another()
    first, second = agent.connect(), agent.connect()
    beat = heartbeat(agent.name, messages.encode(messages.AgentHeartbeat(agent.name)))
    assert beat(first).ok and beat(second).ok
    agent.rotation._carry_out(name)
    assert beat(first).ok and agent.pending() is None
    assert beat(second).ok
