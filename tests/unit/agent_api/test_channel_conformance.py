"""Requests of agents get the same responses on every channel: HTTP, zmq and the in-process mock.

Each test runs on all three. Where a channel could answer differently, the same request goes by HTTP as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from remote_agent.protocol import messages
from tests.unit.channel_links import CHANNELS, HttpLink, Link, World
from tests.waiting import wait_until


@pytest.fixture(scope="module", params=CHANNELS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(request.param, tmp_path_factory.mktemp(request.param))
    yield made
    made.close()
    assert "Traceback" not in made.server.log()


def beat(agent_id: str, *reports: messages.WorkerReport, **values: Any) -> dict[str, Any]:
    return messages.encode(messages.AgentHeartbeat(agent_id, workers=list(reports), pid=77, **values))


def running(worker_id: str, attempt: int = 1) -> messages.WorkerReport:
    return messages.WorkerReport(worker_id, state="running", attempt=attempt, pid=5)


def held_count(world: World) -> int:
    text = world.server.ask("GET", "/metrics").body.decode()
    line = next(line for line in text.splitlines() if line.startswith("procguard_held_requests "))
    return int(float(line.split()[1]))


class Held:
    """A held request in a thread of its own."""

    def __init__(self, world: World, link: Link, path: str) -> None:
        before = held_count(world)
        self.answer: tuple[int, dict[str, Any]] | None = None
        self.answered_at = 0.0
        self._link, self._path = link, path
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        wait_until(lambda: self.answer is not None or held_count(world) > before, 5.0, f"{path} is held")

    def _ask(self) -> None:
        answer = self._link.ask("GET", self._path, timeout_s=30)
        self.answered_at = time.monotonic()
        self.answer = answer

    def wait(self, timeout_s: float = 5.0) -> dict[str, Any]:
        self._thread.join(timeout_s)
        assert self.answer is not None, f"not answered within {timeout_s} s"
        return self.answer[1]


def as_http(world: World, secret: str, method: str, path: str, body: Any) -> tuple[int, Any]:
    """The same request by HTTP, for comparison."""
    link = HttpLink(world.server.port, secret)
    try:
        return comparable(link.ask(method, path, body))
    finally:
        link.close()


def comparable(answer: tuple[int, dict[str, Any]]) -> tuple[int, Any]:
    """Without parts that differ between requests, and without the next step that names an HTTP header."""
    status, data = answer
    error = data.get("error")
    if isinstance(error, dict):
        return status, {**data, "error": (error["code"], error["message"] if status not in (401, 403) else "")}
    return status, data


# ----------------------------------------------------------------------------------------- heartbeats, commands


def test_a_heartbeat_is_answered_and_says_by_which_channel_it_came(world: World) -> None:
    link = world.link("hb", world.deploy("hb", "hb-w1"))
    status, reply = link.ask("POST", "/api/agents/hb/heartbeat", beat("hb", running("hb-w1"), beat=42))
    assert (status, reply["beat"], [one["worker_id"] for one in reply["assignments"]]) == (200, 42, ["hb-w1"])
    status, reply = link.ask(
        "POST", "/api/agents/hb/heartbeat", beat("hb", running("hb-w1"), assignments_rev=reply["assignments_rev"])
    )
    host = next(one for one in world.server.ask("GET", "/api/hosts").json["hosts"] if one["agent"] == "hb")
    assert (host["agent_state"], host["channel"]) == ("connected", world.name)
    assert world.server.ask("GET", "/api/remote-workers/hb-w1").json["state"] == "running"


def test_a_registered_launcher_registers_again_and_gets_its_log_offsets(world: World) -> None:
    secret = "launcher-of-reg1"
    body = {"worker_id": "reg1", "command": "sleep 9", "host": "here", "secret_sha256": messages.secret_sha256(secret)}
    first = world.server.ask("POST", "/api/workers/register", body).json
    world.proof_keys["launcher:reg1"] = first["proof_key"]
    logs = world.link("launcher:reg1", secret, logs=True)
    assert logs.ask("POST", "/api/workers/reg1/logs?attempt=1&offset=0", b"abc") == (200, {"acked": 3})
    link = world.link("launcher:reg1", secret)
    status, again = link.ask("POST", "/api/workers/register", body)
    assert (status, again["status"], again["agent_id"]) == (200, "registered", "launcher:reg1")
    assert again["log_offsets"] == {"1.out": 3}
    stolen = {**body, "worker_id": "hb-none", "secret_sha256": messages.secret_sha256("another")}
    assert link.ask("POST", "/api/workers/register", stolen)[0] == 202


def test_the_plain_form_reports_each_command_once(world: World) -> None:
    secret = world.deploy("plain", "plain-w1")
    link = world.link("plain", secret)
    path = "/api/workers/plain-w1"
    status, reply = link.ask("POST", f"{path}/heartbeat", {"state": "running", "pid": 42, "attempt": 1})
    assert (status, reply["desired"]) == (200, "running")
    held = Held(world, world.link("plain", secret), f"{path}/command?wait=20")
    assert world.server.ask("POST", f"{path}/command", {"command": "restart"}).status == 202
    assert [one["command"] for one in held.wait()["commands"]] == ["restart"]
    assert link.ask("GET", f"{path}/command?wait=0")[1]["commands"] == []


def test_a_command_comes_at_once(world: World) -> None:
    secret = world.deploy("push", "push-w1")
    _, reply = world.link("push", secret).ask("POST", "/api/agents/push/heartbeat", beat("push", running("push-w1", 2)))
    path = f"/api/agents/push/commands?wait=20&rev={reply['assignments_rev']}&seq=0"
    held = Held(world, world.link("push", secret), path)
    began = time.monotonic()
    assert world.server.ask("POST", "/api/workers/push-w1/command", {"command": "restart"}).status == 202
    assert [(one["command"], one["attempt"]) for one in held.wait()["commands"]] == [("restart", 2)]
    assert held.answered_at - began < 0.5


def test_a_request_is_held_while_others_of_the_same_agent_are_answered(world: World) -> None:
    secret = world.deploy("both", "both-w1")
    link = world.link("both", secret)
    _, reply = link.ask("POST", "/api/agents/both/heartbeat", beat("both", running("both-w1")))
    held = Held(world, world.link("both", secret), f"/api/agents/both/commands?wait=20&rev={reply['assignments_rev']}")
    for _ in range(3):
        assert link.ask("POST", "/api/agents/both/heartbeat", beat("both", running("both-w1")))[0] == 200
    assert held.answer is None
    world.server.ask("POST", "/api/workers/both-w1/command", {"command": "stop"})
    assert held.wait()["assignments"][0]["desired"] == "stopped"


def test_the_newest_held_request_supersedes_the_older(world: World) -> None:
    secret = world.deploy("newer", "newer-w1")
    _, reply = world.link("newer", secret).ask("POST", "/api/agents/newer/heartbeat", beat("newer"))
    path = f"/api/agents/newer/commands?wait=20&rev={reply['assignments_rev']}&seq=0"
    older = Held(world, world.link("newer", secret), path)
    link, answers = world.link("newer", secret), []
    thread = threading.Thread(target=lambda: answers.append(link.ask("GET", path, timeout_s=30)), daemon=True)
    thread.start()
    answer = older.wait()
    assert (answer["commands"], answer["assignments"]) == ([], None)
    assert not answers
    world.server.ask("POST", "/api/workers/newer-w1/command", {"command": "stop"})
    thread.join(5)
    assert answers[0][1]["assignments"][0]["desired"] == "stopped"


def test_a_held_request_ends_empty_after_its_wait(world: World) -> None:
    secret = world.deploy("wait", "wait-w1")
    link = world.link("wait", secret)
    _, reply = link.ask("POST", "/api/agents/wait/heartbeat", beat("wait"))
    began = time.monotonic()
    status, empty = link.ask("GET", f"/api/agents/wait/commands?wait=0.3&rev={reply['assignments_rev']}")
    assert (status, empty["commands"], empty["assignments"]) == (200, [], None)
    assert 0.25 < time.monotonic() - began < 5.0


def test_a_killed_agents_connection_is_noticed_at_once(world: World) -> None:
    secret = world.deploy("killed", "killed-w1")
    _, reply = world.link("killed", secret).ask("POST", "/api/agents/killed/heartbeat", beat("killed"))
    before = held_count(world)
    link = world.link("killed", secret)
    path = f"/api/agents/killed/commands?wait=25&rev={reply['assignments_rev']}"
    link.begin("GET", path)
    wait_until(lambda: held_count(world) > before, 5.0, "the request is held")
    link.close()
    wait_until(lambda: held_count(world) == before, 2.0, "the closed connection was noticed", every_s=0.005)


# ----------------------------------------------------------------------------------------------------- log bytes


def test_log_bytes_are_acknowledged_by_length_and_stored_once(world: World) -> None:
    secret = world.deploy("log", "log-w1")
    link = world.link("log", secret, logs=True)
    path = "/api/workers/log-w1/logs?attempt=1&stream=out"
    assert link.ask("POST", f"{path}&offset=0&at=5.0", b"one\n") == (200, {"acked": 4})
    assert link.ask("POST", f"{path}&offset=0&at=5.0", b"one\ntwo\n") == (200, {"acked": 8})  # half of it came before
    assert link.ask("POST", f"{path}&offset=0", b"") == (200, {"acked": 8})
    status, beyond = link.ask("POST", f"{path}&offset=20", b"x")
    assert (status, beyond["acked"], beyond["error"]["code"]) == (409, 8, "log_gap")
    assert link.ask("POST", f"{path}&offset=20&gap=1", b"three\n") == (200, {"acked": 26})
    text = world.server.ask("GET", "/api/remote-workers/log-w1/logs").body.decode()
    assert text.count("one\n") == text.count("two\n") == text.count("three\n") == 1 and "12" in text
    for wrong in ("stream=up", "offset=-1", "attempt=x", "times=4:x"):
        status, refused = link.ask("POST", f"/api/workers/log-w1/logs?{wrong}", b"x")
        assert (status, refused["error"]["code"]) == (400, "bad_request"), wrong


def test_a_backlog_reports_when_its_bytes_were_written(world: World) -> None:
    link = world.link("times", world.deploy("times", "times-w1"), logs=True)
    path = "/api/workers/times-w1/logs?attempt=1&offset=0&at=1000&times=4:60000,8:3600500,99:1"
    assert link.ask("POST", path, b"one\ntwo\nthree\n") == (200, {"acked": 14})
    lines = world.server.ask("GET", "/api/remote-workers/times-w1/logs?format=json&since=1050").json["lines"]
    assert [(line["text"], line["at"]) for line in lines] == [("two", 1060.0), ("three", 4600.5)]


def test_4_megabytes_of_log_are_taken_and_more_is_refused(world: World) -> None:
    secret = world.deploy("large", "large-w1")
    link = world.link("large", secret, logs=True)
    path = "/api/workers/large-w1/logs?attempt=1&offset=0"
    whole = messages.MAX_LOG_POST_BYTES
    assert link.ask("POST", path, b"x" * whole) == (200, {"acked": whole})
    status, refused = world.link("large", secret, logs=True).ask("POST", path, b"x" * (whole + 1))
    assert (status, refused["error"]["code"]) == (413, "body_too_large")


# ------------------------------------------------------------------------------------------------- who may what


def test_wrong_and_missing_secrets_are_refused(world: World) -> None:
    world.deploy("who", "who-w1")
    for secret in ("nonsense", ""):
        link = world.link("who", secret)
        for method, path in (
            ("POST", "/api/agents/who/heartbeat"),
            ("GET", "/api/agents/who/commands"),
            ("POST", "/api/workers/who-w1/heartbeat"),
        ):
            status, refused = link.ask(method, path, beat("who") if method == "POST" else None)
            assert (status, refused["error"]["code"]) == (401, "unauthorized"), (secret, path)
        logs = world.link("who", secret, logs=True)
        assert logs.ask("POST", "/api/workers/who-w1/logs?attempt=1&offset=0", b"x")[0] == 401
    assert "who-w1" not in [
        one["worker_id"] for one in world.server.ask("GET", "/api/remote-workers?state=running").json["workers"]
    ]


def test_an_agents_secret_does_not_open_anothers_routes(world: World) -> None:
    secret, _ = world.deploy("mine", "mine-w1"), world.deploy("theirs", "theirs-w1")
    link = world.link("mine", secret)
    for method, path, body in (
        ("GET", "/api/agents/theirs/commands", None),
        ("POST", "/api/agents/theirs/heartbeat", beat("theirs")),
        ("POST", "/api/workers/theirs-w1/heartbeat", {"state": "running"}),
        ("GET", "/api/workers/theirs-w1/command", None),
        ("POST", "/api/agents/theirs/searches", {"search_id": "s-1"}),
    ):
        assert link.ask(method, path, body)[0] == 403, path
    logs = world.link("mine", secret, logs=True)
    assert logs.ask("POST", "/api/workers/theirs-w1/logs?attempt=1&offset=0", b"x")[0] == 403
    status, refused = link.ask("POST", "/api/agents/mine/heartbeat", beat("theirs"))
    assert status == 400 and "theirs" in refused["error"]["message"]


def test_a_revoked_secret_ends_what_is_held_and_opens_nothing_more(world: World) -> None:
    secret = world.deploy("gone", "gone-w1")
    link = world.link("gone", secret)
    _, reply = link.ask("POST", "/api/agents/gone/heartbeat", beat("gone"))
    held = Held(world, world.link("gone", secret), f"/api/agents/gone/commands?wait=25&rev={reply['assignments_rev']}")
    assert world.server.ask("POST", "/api/agents/gone/revoke").status == 200
    assert held.wait(2.0).get("commands", []) == []
    assert link.ask("POST", "/api/agents/gone/heartbeat", beat("gone"))[0] == 401


# --------------------------------------------------------------------------------------------- bounds and nonsense


def test_what_is_wrong_with_a_message_is_said_as_over_http(world: World) -> None:
    secret = world.deploy("wrong", "wrong-w1")
    link = world.link("wrong", secret)
    path = "/api/agents/wrong/heartbeat"
    for body in (
        {"agent_id": "wrong", "workers": [{"worker_id": "wrong-w1", "pid": "x"}]},
        {"agent_id": "wrong", "workers": [{"worker_id": "../etc"}]},
        {"agent_id": "wrong", "workers": [{"worker_id": "wrong-w1", "state": "flying"}]},
        {"agent_id": "wrong", "workers": [{"worker_id": "wrong-w1", "reason": "x" * 5000}]},
        {"agent_id": "wrong", "results": [{}]},
        {"agent_id": "other"},
        {},
        [],
        b"{",
        b"",
        b'{"agent_id": "wrong", "at": NaN}',
        b'{"agent_id": "wrong", "at": 1e999}',
        b"\xff",
        b"[" * 9999,
    ):
        answer = link.ask("POST", path, body)
        assert answer[0] == 400, (body, answer)
        assert comparable(answer) == as_http(world, secret, "POST", path, body), body
    assert link.ask("POST", path, {"agent_id": "wrong", "from_the_future": 1})[0] == 200


def test_unknown_addresses_and_methods_are_refused_as_over_http(world: World) -> None:
    secret = world.deploy("where", "where-w1")
    link = world.link("where", secret)
    for method, path in (
        ("GET", "/api/nothing"),
        ("GET", "/api/agents/where/heartbeat"),
        ("POST", "/api/agents/where/commands"),
        ("POST", "/api/agents/where"),
        ("GET", "/api/agents/%2e%2e/commands"),
        ("POST", "/api/workers/..%2Fetc/heartbeat"),
        ("GET", "/api/agents/where/commands?wait=soon"),
        ("GET", "/api/agents/where/commands?seq=-1"),
    ):
        status, refused = link.ask(method, path, {} if method == "POST" else None)
        assert status in (400, 403, 404, 405) and refused["error"]["next"], (path, status, refused)
        if path not in ("/api/agents/where", "/api/workers/..%2Fetc/heartbeat"):  # operators' own, another path
            assert status == as_http(world, secret, method, path, {} if method == "POST" else None)[0], path


def test_large_heartbeats_are_taken_and_too_large_ones_refused(world: World) -> None:
    secret = world.deploy("big", *[f"big-{number}" for number in range(300)])
    link = world.link("big", secret)
    reports = [messages.WorkerReport(f"big-{number}", reason="x" * 1000) for number in range(300)]
    status, reply = link.ask("POST", "/api/agents/big/heartbeat", beat("big", *reports))
    assert (status, len(reply["assignments"])) == (200, 300)
    status, refused = link.ask("POST", "/api/agents/big/heartbeat", b" " * (8 * 1024 * 1024 + 1))
    assert (status, refused["error"]["code"]) == (413, "body_too_large")
    assert world.link("big", secret).ask("POST", "/api/agents/big/heartbeat", beat("big"))[0] == 200


def test_one_who_asks_a_lot_does_not_keep_another_waiting(world: World) -> None:
    """A crowd of requests from one agent, and the heartbeats of another in the meantime."""
    busy, calm = world.deploy("busy", "busy-w1"), world.deploy("calm", "calm-w1")
    ending = threading.Event()

    def ask_on() -> None:
        link = world.link("busy", busy)
        while not ending.is_set():
            link.ask("POST", "/api/agents/busy/heartbeat", beat("busy", running("busy-w1")))

    crowd = [threading.Thread(target=ask_on, daemon=True) for _ in range(4)]
    for thread in crowd:
        thread.start()
    try:
        link = world.link("calm", calm)
        took = []
        for _ in range(20):
            began = time.monotonic()
            assert link.ask("POST", "/api/agents/calm/heartbeat", beat("calm", running("calm-w1")))[0] == 200
            took.append(time.monotonic() - began)
        assert sorted(took)[10] < 0.5
    finally:
        ending.set()
        for thread in crowd:
            thread.join(5)


# ----------------------------------------------------------------------------------------------- the manager ends


@pytest.mark.slow
def test_after_a_manager_was_killed_the_next_one_takes_the_same_secrets(world: World) -> None:
    """The last test: it stops the manager of all others."""
    secret = world.deploy("again", "again-w1")
    logs = world.link("again", secret, logs=True)
    assert logs.ask("POST", "/api/workers/again-w1/logs?attempt=1&offset=0", b"kept")[0] == 200
    world.restart()
    link = world.link("again", secret)
    status, reply = link.ask("POST", "/api/agents/again/heartbeat", beat("again"))
    assert (status, len(reply["assignments"])) == (200, 1)
    logs = world.link("again", secret, logs=True)
    assert logs.ask("POST", "/api/workers/again-w1/logs?attempt=1&offset=0", b"") == (200, {"acked": 4})
    assert world.link("again", "nonsense").ask("GET", "/api/agents/again/commands")[0] == 401
    held = Held(world, link, f"/api/agents/again/commands?wait=25&rev={reply['assignments_rev']}")
    world.server.process.terminate()  # an orderly end answers what is held
    if world.name != "mock":  # its connections are its process's own
        assert held.wait()["commands"] == []
