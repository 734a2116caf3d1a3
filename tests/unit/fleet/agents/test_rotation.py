"""Agents' secrets are replaced while they run: each side may die between any two steps, and the pair works on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import Conflict
from remote_agent.agent import settings
from remote_agent.protocol import messages
from remote_agent.system import paths
from remote_agent.transport import rotation
from remote_agent.transport.client import Addresses, AgentCredentials, Connection, LinkDown, heartbeat
from remote_agent.transport.rotation import SecretRotation
from tests.agent_host import end_runners
from tests.server_process import ROOT, RunningManager, RunningServer
from tests.unit.channel_links import free_ports
from tests.unit.fleet_world import World
from tests.waiting import wait_until

OLD = "the-first-secret"
SETTINGS = ("monitoring.heartbeat_timeout=2",)


def digest(secret: str) -> str:
    return messages.secret_sha256(secret)


# -------------------------------------------------------------------------------------------- the manager's half


@pytest.fixture
def world(tmp_path: Path) -> World:
    one = World(tmp_path)
    one.deploy({"h1": {}, "h2": {}})
    for host in ("h1", "h2"):
        one.fleet.agents.secrets.set(host, digest(f"{OLD} of {host}"), "tester", one.now)
        one.beat(host)
    return one


def killed(world: World) -> None:
    """SIGKILL: nothing is closed or saved; the next manager has what was durable."""
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
    told = [event for event in world.fleet.state.events(limit=100) if event["kind"] == "credentials"]
    assert any("has a new secret" in event["reason"] and event["actor"] == "alice" for event in told)


def test_a_lost_new_secret_is_replaced_by_another(world: World) -> None:
    """The agent's disk was restored between the steps: it makes another one for the same rotation."""
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
        world.fleet.state.drop_agent("h1")
    for _ in range(2):
        assert who(world, "new") is None and who(world, f"{OLD} of h1") is None
        assert who(world, "deployed") == ("h1" if how == "deployed" else None)
        world.fleet.state.commit()
        killed(world)
    if how != "forgotten":
        with pytest.raises(Conflict, match="no new secret is asked for"):
            take(world, name, "new")


def test_nobody_renews_a_secret_that_was_not_asked_for_or_is_in_use(world: World) -> None:
    """A hostile agent can replace its own secret only when asked, and never claim another's."""
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


def test_who_cannot_is_told_apart_from_who_is_away(world: World) -> None:
    world.register("w9", secret_sha256=digest("launcher"))
    world.deploy({"h3": {}, "h4": {}})
    world.fleet.agents.secrets.set("h4", digest("four"), "tester", world.now)
    found = world.fleet.agents.rotations.begin(["h1", "h3", "h4", "nobody", "launcher:w9"], "alice", world.now)
    assert {agent: one["status"] for agent, one in found.items()} == {
        "h1": "asked", "h3": "unsupported", "h4": "asked", "nobody": "unknown",
        "launcher:w9": "asked",
    }  # fmt: skip
    assert "away" in found["h4"]["message"]


# -------------------------------------------------------------------------------------------- the agent's half


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
        """The process starts: what it knows is in its file."""
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
    """The agent is asked for a new secret, and is killed at that step; its next life reads what it finds."""
    name = agent.ask_for_another()
    with monkeypatch.context() as patched:
        die_at(patched, agent, step)
        with pytest.raises(Died):
            agent.rotation._carry_out(name)
    agent.begin()


def assert_it_comes_to_its_end(agent: Agent) -> None:
    """By the next heartbeats."""
    for _ in range(3):
        again = agent.beat().rotate
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


def test_the_new_secret_is_private_and_durable_before_anybody_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, agent: Agent
) -> None:
    name = agent.ask_for_another()
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    modes: list[int] = []

    def told(self: Connection, *_args: Any, **_kwargs: Any) -> Any:
        path = rotation.next_secret_file(agent.dir)
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        assert any(os.path.basename(path) in one for one in synced), "told before it was on the disk"
        raise LinkDown("cut")

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "request", told)
        agent.rotation._run(name)
    assert modes == [0o600] and "cut" in agent.said[-1]
    agent.rotation._run(name)
    assert stat.S_IMODE(os.stat(paths.agent_file(agent.dir)).st_mode) == 0o600
    assert not os.path.exists(rotation.next_secret_file(agent.dir))


def test_a_bearer_secret_is_not_enough_to_replace_it(agent: Agent) -> None:
    """Whoever has read it on the wire is whom the new one is to keep out."""
    name = agent.ask_for_another()
    mine = {"rotation": name, "secret_sha256": digest("thief")}
    answer = agent.server.ask("POST", f"/api/agents/{agent.name}/secret", mine, secret=agent.old)
    assert (answer.status, answer.error_code) == (409, "no_session")
    assert agent.pending()["state"] == "asked"


def test_a_deployment_under_way_keeps_its_file(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """agent.json is its own while it holds the lock; what it has brought is not written over."""
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
    """None of an agent's requests fails for the change, whichever connection is the first to use the new one."""
    name = agent.ask_for_another()
    first, second = agent.connect(), agent.connect()
    beat = heartbeat(agent.name, messages.encode(messages.AgentHeartbeat(agent.name)))
    assert beat(first).ok and beat(second).ok
    agent.rotation._carry_out(name)
    assert beat(first).ok and agent.pending() is None
    assert beat(second).ok


# ------------------------------------------------------------------------------------- real processes, the command


def invoke(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", *words],
        cwd=ROOT,
        env={**os.environ, "PROCGUARD_MANAGER_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Process:
    """One real agent of a real manager."""

    def __init__(self, manager: RunningManager, directory: Path, host: str) -> None:
        answer = manager.ask("POST", "/api/deployments", {"hosts": [{"host": host}]}).json
        self.old = f"{OLD} of {host}"
        manager.ask("PUT", f"/api/agents/{host}/credentials", {"secret_sha256": digest(self.old)})
        home = str(directory / f"home-{host}")
        self.dir = paths.agent_dir(home, answer["fleet_id"], host)
        os.makedirs(self.dir)
        self.runtime_dir = paths.choose_runtime_dir(home, answer["fleet_id"], host)
        key, urls = answer["hosts"][host]["proof_key"], [f"http://127.0.0.1:{manager.port}"]
        config = settings.AgentSettings(answer["fleet_id"], host, host, urls, self.runtime_dir, self.old, key)
        config.python = sys.executable
        settings.save(self.dir, config)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-s", "-E", "-S", "-m", "remote_agent", "run", "--dir", self.dir]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def secret(self) -> str:
        return settings.load(self.dir).secret


@contextlib.contextmanager
def agents(manager: RunningManager, directory: Path, *hosts: str) -> Iterator[list[Process]]:
    found = [Process(manager, directory, host) for host in hosts]
    try:
        yield found
    finally:
        for one in found:
            one.kill()
            end_runners(one.dir, one.runtime_dir)
            shutil.rmtree(one.runtime_dir, ignore_errors=True)


def state_of(manager: RunningManager, host: str) -> dict[str, Any]:
    return next(view for view in manager.ask("GET", "/api/agents").json["agents"] if view["agent"] == host)


def test_invoke_agents_rotate(tmp_path: Path) -> None:
    """Who is connected has a new secret when it returns; who is away does it when it comes back; the exit code says
    whether all have."""
    manager = RunningManager(tmp_path, *SETTINGS)
    url = f"http://127.0.0.1:{manager.port}"
    try:
        with agents(manager, tmp_path, "gpu01", "gpu02", "cpu01") as (one, two, away):
            one.start()
            two.start()
            for host in ("gpu01", "gpu02"):
                wait_until(lambda host=host: state_of(manager, host)["agent_state"] == "connected", 40, host)
            done = invoke(url, "agents.rotate", "gpu*")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "gpu01: rotated" in done.stdout and "2 of 2 agents rotated" in done.stdout
            assert one.secret() not in (one.old, two.secret()) and away.secret() == away.old
            first = one.secret()
            everybody = invoke(url, "agents.rotate", "*", "--limit", "!gpu02", "--json")
            assert everybody.returncode == 2 and "1 of 2 agents have no new secret: cpu01" in everybody.stderr
            told = json.loads(everybody.stdout)["agents"]
            assert told["gpu01"]["status"] == "rotated" and told["cpu01"]["status"] == "asked"
            assert one.secret() != first
            listed = invoke(url, "agents").stdout
            assert "new secret asked" in listed
            assert invoke(url, "agents.rotate", "cpu01", "--no-wait").returncode == 0
            away.start()
            wait_until(
                lambda: state_of(manager, "cpu01")["rotation"] is None and away.secret() != away.old, 20, "cpu01"
            )
            assert invoke(url, "agents.rotate", "tpu*").returncode == 1
            entries = manager.ask("GET", "/api/audit").json["audit"]
            assert any("rotate" in json.dumps(entry) and "gpu01" in json.dumps(entry) for entry in entries)
        assert "Traceback" not in manager.log()
    finally:
        manager.close()


def test_over_zmq_the_curve_key_is_replaced_as_well(tmp_path: Path) -> None:
    """And the agent stays on its channel: no request fails for the change."""
    zmq = pytest.importorskip("zmq")
    assert zmq.has("curve")
    settings_ = (f"communication.adapter_config.port_base={free_ports(2)}", "communication.adapter_type=zmq")
    manager = RunningManager(tmp_path, *SETTINGS, "communication.adapter_config.host=127.0.0.1", *settings_)
    try:
        with agents(manager, tmp_path, "gpu01") as [one]:
            one.start()
            wait_until(lambda: state_of(manager, "gpu01")["channel"] == "zmq", 40, "zmq", every_s=0.05)
            done = invoke(f"http://127.0.0.1:{manager.port}", "agents.rotate", "gpu01")
            assert done.returncode == 0, done.stdout + done.stderr
            assert one.secret() != one.old
            time.sleep(1.5)  # long enough for a fall back to HTTP to show
            view = state_of(manager, "gpu01")
            assert (view["channel"], view["channel_trouble"], view["agent_state"]) == ("zmq", "", "connected")
            said = (Path(one.dir) / "agent.log").read_text()
            assert "secret replaced" in said and 'is_now="http' not in said.partition("secret replaced")[2]
        assert "Traceback" not in manager.log()
    finally:
        manager.close()


def test_a_launcher_has_its_secret_replaced_too_and_comes_back_with_it(tmp_path: Path) -> None:
    """It goes on with the new one, and so does the next launcher of the same worker."""
    manager = RunningManager(tmp_path, *SETTINGS)
    url, home = f"http://127.0.0.1:{manager.port}", tmp_path / "home"
    (tmp_path / "desk").mkdir()
    words = ["--worker-id", "w1", "--manager-url", url, "--command", "sleep 600"]

    def launch() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "procguard.worker_launcher", *words],
            cwd=tmp_path / "desk",
            env={**os.environ, "PROCGUARD_HOME": str(home), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def state() -> str:
        return str(manager.ask("GET", "/api/remote-workers/w1").json.get("state"))

    launcher = launch()
    try:
        wait_until(lambda: state() == "running", 40, "the worker", every_s=0.1)
        [file] = home.rglob("agent.json")
        before = json.loads(file.read_text())
        done = invoke(url, "agents.rotate", "launcher:w1")
        assert done.returncode == 0, done.stdout + done.stderr
        after = json.loads(file.read_text())
        assert after["secret"] != before["secret"] and after["proof_key"] == before["proof_key"]
        pid = manager.ask("GET", "/api/remote-workers/w1").json["pid"]
        launcher.kill()
        launcher.wait()
        launcher = launch()  # registers with the new secret, and adopts the child
        wait_until(lambda: "registered with" in (tmp_path / "desk/logs/launcher-w1.log").read_text(), 40, "registered")
        wait_until(lambda: state() == "running", 40, "the worker again", every_s=0.1)
        assert manager.ask("GET", "/api/remote-workers/w1").json["pid"] == pid
        assert json.loads(file.read_text())["secret"] == after["secret"]
        wait_until(lambda: state_of(manager, "launcher:w1")["agent_state"] == "connected", 40, "connected")
    finally:
        launcher.kill()
        launcher.wait()
        for record in home.rglob("agent.json"):
            runtime_dir = settings.load(str(record.parent)).runtime_dir
            end_runners(str(record.parent), runtime_dir)
            shutil.rmtree(runtime_dir, ignore_errors=True)
        manager.close()


class Rounds:
    """A manager that may be another process after each round."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.manager = RunningManager(directory, *SETTINGS)

    def kill(self) -> None:
        self.manager.process.kill()
        self.manager.process.wait()

    def start(self) -> None:
        self.manager = restarted(self._directory, self.manager.port)

    def view(self) -> dict[str, Any]:
        return state_of(self.manager, "h1")

    def wait_connected(self) -> None:
        wait_until(lambda: self.view()["agent_state"] == "connected", 40, "connected", every_s=0.05)


def test_agents_killed_in_the_midst_of_it_are_never_locked_out(tmp_path: Path) -> None:
    """kill -9 at random moments of several rotations, of the manager too: the agent always comes back."""
    rng, rounds = random.Random(7), Rounds(tmp_path)
    try:
        with agents(rounds.manager, tmp_path, "h1") as [agent]:
            seen = {agent.old}
            for number in range(6):
                agent.start()
                rounds.wait_connected()
                asked = rounds.manager.ask("POST", "/api/agents/rotate", {"agents": ["h1"]})
                assert asked.json["agents"]["h1"]["status"] == "asked", asked.json
                time.sleep(rng.uniform(0.0, 0.6))
                if number % 3 == 2:
                    rounds.kill()
                agent.kill()
                if number % 3 == 2:
                    rounds.start()
                seen.add(agent.secret())
            agent.start()
            wait_until(lambda: rounds.view()["rotation"] is None, 20, "the last rotation's end", every_s=0.05)
            rounds.wait_connected()
            assert len(seen | {agent.secret()}) > 2
    finally:
        rounds.manager.close()


def restarted(directory: Path, port: int) -> RunningManager:
    """On the same state and port as before."""
    again = RunningManager.__new__(RunningManager)
    again.directory, again.secure, again.port = directory, False, port
    again._log_path = directory / "manager.out"
    named = (f"state.state_file={directory}/state.yaml", f"logging.file={directory}/manager.log", *SETTINGS)
    words = ["--host", "127.0.0.1", "--port", str(port), *(word for one in named for word in ("--set", one))]
    with open(again._log_path, "ab") as log_file:
        again.process = subprocess.Popen(
            [sys.executable, "-m", "procguard.main", *words],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert again._ready(), again.log()
    return again
