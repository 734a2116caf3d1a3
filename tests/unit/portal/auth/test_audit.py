"""The audit: every change with its actor and origin; refusals cannot displace changes; visibility by role."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.agent_api import http_io
from procguard.agent_api.interface import Principal
from procguard.errors import Refused
from procguard.fleet.history.query import EventQuery
from procguard.fleet.model import clock
from procguard.portal.api import access
from procguard.portal.api.access import LOG_INS_AT_ONCE
from procguard.portal.auth import audit as audit_module
from procguard.portal.auth.audit import ASKS, LOGINS_AT_ONCE, REFUSALS_AT_ONCE, Audit
from remote_agent.protocol import messages
from tests.server_process import RunningServer
from tests.unit import store_rig
from tests.unit.fleet_world import World
from tests.waiting import wait_until

FAR = {"X-Forwarded-For": "192.0.2.7"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    running.deploy("alpha", "worker1")
    yield running
    running.close()


def changed(audit: Audit, asked: dict[str, Any], caller: Principal, names: dict[str, str], status: int) -> None:
    audit.begin(asked, caller, names, status)
    audit.end(status)


def trail(server: RunningServer, **query: Any) -> list[dict[str, Any]]:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    records: list[dict[str, Any]] = server.ask("GET", f"/api/audit?{text}").json["audit"]
    return records


def make_token(server: RunningServer, scope: str, **more: Any) -> dict[str, Any]:
    answer = server.ask("POST", "/api/tokens", {"scope": scope, "name": "laptop", **more})
    assert answer.status == 201, answer.body
    made: dict[str, Any] = answer.json
    return made


def test_a_change_stands_there_with_who_from_where_what_and_its_end(server: RunningServer) -> None:
    token = make_token(server, "operator")["token"]
    asked = {"command": "stop", "reason": "new driver"}
    answer = server.ask("POST", "/api/workers/worker1/command", asked, {"Host": "m:1"}, secret=token)
    assert answer.status == 202
    last = trail(server, worker="worker1")[-1]
    assert (last["kind"], last["actor"], last["via"], last["address"]) == (
        "change",
        "token laptop",
        "token",
        "127.0.0.1",
    )
    assert last["what"] == "POST /api/workers/worker1/command: stop: new driver"
    assert (last["status"], last["request_id"]) == (202, answer.headers["X-Request-Id"])
    kept = b"".join(one.read_bytes() for one in server.directory.glob("state.db*"))
    assert b"new driver" in kept and token.encode() not in kept


def test_a_change_that_failed_stands_there_too(server: RunningServer) -> None:
    assert server.ask("POST", "/api/workers/nosuch/command", {"command": "stop"}).status == 404
    assert trail(server, worker="nosuch")[-1]["status"] == 404


def test_looking_is_no_change(server: RunningServer) -> None:
    before = len(trail(server, limit=10000))
    server.ask("GET", "/api/remote-workers")
    assert len(trail(server, limit=10000)) == before


def test_log_ins_refusals_and_log_outs_stand_there(server: RunningServer) -> None:
    token = make_token(server, "viewer")["token"]
    answer = server.ask("POST", "/api/login", {"token": token}, FAR)
    browser = {**FAR, "Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    acting = {**browser, "X-ProcGuard-CSRF": answer.json["csrf"]}
    refused = server.ask("POST", "/api/workers/worker1/command", {"command": "kill"}, acting)
    assert (refused.status, refused.error_code) == (403, "viewer")
    assert "a viewer: it is read-only" in refused.json["error"]["message"]
    assert server.ask("POST", "/api/logout", {}, acting).status == 200
    kinds = [record["kind"] for record in trail(server)[-3:]]
    assert kinds == ["login", "refused", "logout"]
    assert "is a viewer" in trail(server, kind="refused")[-1]["what"]


def test_refusals_are_in_the_language_of_the_reader(server: RunningServer) -> None:
    viewer = make_token(server, "viewer")["token"]
    for _ in range(REFUSALS_AT_ONCE + 2):
        server.ask("POST", "/api/workers/worker1/command", {"command": "stop"}, FAR, secret=viewer)
    answer = server.ask("GET", "/api/audit?kind=refused", headers={"Accept-Language": "zh-CN"})
    last = answer.json["audit"][-1]["what"]
    assert last == "POST /api/workers/worker1/command: token laptop 是只读用户"
    assert "is a viewer" in trail(server, kind="refused")[-1]["what"]


def test_a_refusal_is_translated_once_however_often_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    translated: list[str] = []
    monkeypatch.setattr(http_io, "in_language", lambda text, _language: translated.append(text) or text)
    for _ in range(3):
        assert access._refusal("POST /api/login: read ever again", "zh") == "POST /api/login: read ever again"
    assert translated == ["read ever again"]


def test_a_viewers_session_says_so_and_sees(server: RunningServer) -> None:
    answer = server.ask("POST", "/api/login", {"token": make_token(server, "viewer")["token"]}, FAR)
    browser = {**FAR, "Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    session = server.ask("GET", "/api/session", headers=browser).json
    assert (session["operator"], session["role"], session["via"]) == (False, "viewer", "session")
    assert server.ask("GET", "/api/remote-workers", headers=browser).status == 200
    assert server.ask("GET", "/api/tokens", headers=browser).status == 403


def test_a_token_for_launchers_opens_no_browser_session(server: RunningServer) -> None:
    assert server.ask("POST", "/api/login", {"token": make_token(server, "enroll")["token"]}, FAR).status == 401


def test_an_expired_token_is_reported_so(server: RunningServer) -> None:
    made = make_token(server, "operator", expires_in_s=1)
    assert made["expires_at"]

    def ended() -> Any:
        answer = server.ask("GET", "/api/hosts", secret=made["token"])
        return answer if answer.status == 401 else None

    answer = wait_until(ended, 5, "the token's end", every_s=0.1)
    assert answer.error_code == "token_ended" and "expired at" in answer.json["error"]["message"]


def test_right_tokens_are_good_while_wrong_ones_from_the_same_address_wait(server: RunningServer) -> None:
    token = make_token(server, "operator")["token"]
    statuses = [server.ask("GET", "/api/hosts", secret=f"pg-guess{n}").status for n in range(12)]
    assert set(statuses[:3]) <= {401, 429} and statuses[-1] == 429
    answer = server.ask("GET", "/api/hosts", secret="pg-guess")
    assert int(answer.headers["Retry-After"]) >= 1 and answer.error_code == "too_many_wrong_tokens"
    assert server.ask("POST", "/api/login", {"token": "pg-guess"}, FAR).status == 429  # one count for both ways
    assert server.ask("GET", "/api/hosts", secret=token).status == 200
    assert server.ask("POST", "/api/login", {"token": token}, FAR).status == 200


def test_an_agents_secret_is_revoked_and_its_held_request_ends(server: RunningServer) -> None:
    secret = server.deploy("beta", "worker9")
    server.beat("beta", secret)
    rev = server.beat("beta", secret)["assignments_rev"]
    ended: list[int] = []

    def hold() -> None:
        answer = server.ask("GET", f"/api/agents/beta/commands?wait=25&rev={rev}", secret=secret, timeout_s=30)
        ended.append(answer.status)

    holder = threading.Thread(target=hold)
    holder.start()
    wait_until(lambda: b"procguard_held_requests 1" in server.ask("GET", "/metrics").body, 10, "the request is held")
    assert server.ask("POST", "/api/agents/beta/revoke").status == 200
    holder.join(10)
    assert ended == [401]  # at once
    assert server.ask("GET", "/api/agents/beta/commands", secret=secret).status == 401
    other = server.deploy("beta", "worker9", secret="another")
    server.beat("beta", other)
    assert server.ask("POST", "/api/agents/nosuch/revoke").status == 404


def test_a_token_made_for_a_launcher_admits_it_and_reports_for_it(server: RunningServer) -> None:
    token = make_token(server, "agent:launcher:curled")["token"]
    registration = {"worker_id": "curled", "command": "sleep 9", "host": "elsewhere"}
    answer = server.ask("POST", "/api/workers/register", registration, FAR, secret=token)
    assert (answer.status, answer.json["status"]) == (200, "registered")
    beat = ("POST", "/api/workers/curled/heartbeat", {"state": "running", "pid": 4})
    assert server.ask(*beat, FAR, secret=token).status == 200
    assert server.ask("POST", "/api/workers/worker1/heartbeat", {"state": "running"}, FAR, secret=token).status == 403


# ------------------------------------------------------------------------------------------------------ the file


def opened(tmp_path: Path, max_bytes: int = 2**20) -> Audit:
    """Also that of an earlier one that was killed."""
    return Audit(store_rig.opened(tmp_path / "s.db")[0], max_bytes)


def environ(path: str = "/api/x") -> dict[str, Any]:
    return {"REQUEST_METHOD": "POST", "PATH_INFO": path, "REMOTE_ADDR": "192.0.2.1", "procguard.request_id": "r"}


def test_refusals_cannot_drive_changes_out(tmp_path: Path) -> None:
    audit = opened(tmp_path)
    changed(audit, environ(), Principal("operator", "me", via="local"), {"worker_id": "w1"}, 202)
    for _ in range(5_000):
        audit.refused(environ(), Refused("no"))
    records = audit.find(EventQuery(), 10_000)
    assert records[0]["actor"] == "me" and len(records) == 1 + REFUSALS_AT_ONCE


def refused_of(token_id: str) -> dict[str, Any]:
    return {**environ(), ASKS: Principal("viewer", "token screen", via="token", token_id=token_id)}


def test_neither_log_ins_nor_refusals_of_many_drive_changes_out_of_memory_or_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = audit_module._SHARES
    monkeypatch.setattr(audit_module, "_SHARES", tuple(one._replace(kept=one.kept // 10) for one in shares))
    audit = opened(tmp_path, 40_000)
    for number in range(20):
        changed(audit, environ(f"/api/{number}"), Principal("operator", "me", via="local"), {}, 202)
    for number in range(10):  # more than memory and disk hold of either
        viewer = Principal("viewer", "token screen", via="session", token_id=f"t-{number}")
        for _ in range(LOGINS_AT_ONCE):
            audit.logged_in(environ(), viewer)
            audit.refused(refused_of(f"t-{number}"), Refused("no"))
    for log in (audit, None):
        if log is None:  # as the next manager reads it
            audit = opened(tmp_path, 40_000)
            assert sum(len(json.dumps(record)) for record in audit.find(EventQuery(), 100_000)) < 40_000
        records = audit.find(EventQuery(), 100_000)
        assert sum(record["kind"] == "change" for record in records) == 20
        assert [record["seq"] for record in records] == sorted({record["seq"] for record in records})


def test_log_ins_of_one_token_are_counted_where_they_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, later = opened(tmp_path), clock.read()
    for name, times in (("screen", 5_000), ("anna", 1)):
        for _ in range(times):
            audit.logged_in(environ(), Principal("viewer", name, via="session", token_id=f"t-{name}"))
    records = audit.find(EventQuery(kind=("login",)), 10_000)
    assert len(records) == LOGINS_AT_ONCE + 1 and records[-1]["actor"] == "anna"
    later = clock.Now(later.wall + 3600, later.monotonic + 3600)
    monkeypatch.setattr(clock, "read", lambda: later)
    audit.logged_in(environ(), Principal("viewer", "screen", via="session", token_id="t-screen"))
    newest = audit.find(EventQuery(), 1)[0]
    assert f"and {5_000 - LOGINS_AT_ONCE} more log-ins" in newest["reason"]


def test_strangers_refusals_hide_no_viewers(tmp_path: Path) -> None:
    audit = opened(tmp_path)
    for _ in range(5_000):
        audit.refused(environ(), Refused("no"))
    audit.refused(refused_of("t-1"), Refused("it is read-only"))
    newest = audit.find(EventQuery(), 1)[0]
    assert (newest["actor"], newest["evidence"]["token"]) == ("token screen", "t-1")


@pytest.mark.slow
def test_one_token_logs_in_only_so_often_and_others_as_they_like(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    try:
        tokens = [make_token(server, "viewer")["token"] for _ in range(2)]
        answers = [server.ask("POST", "/api/login", {"token": tokens[0]}, FAR) for _ in range(LOG_INS_AT_ONCE + 2)]
        assert [answer.status for answer in answers].count(200) >= LOG_INS_AT_ONCE
        assert (answers[-1].status, answers[-1].error_code) == (429, "too_often")
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert server.ask("POST", "/api/login", {"token": tokens[1]}, FAR).status == 200
        assert server.ask("GET", "/api/hosts", headers=FAR, secret=tokens[0]).status == 200
        assert trail(server, kind="refused")[-1]["actor"] == "token laptop"
    finally:
        server.close()


def test_the_audit_survives_a_restart_and_is_bounded(tmp_path: Path) -> None:
    audit = opened(tmp_path, 40_000)
    for number in range(200):
        changed(audit, environ(f"/api/{number}"), Principal("operator", "me"), {}, 200)
    again = opened(tmp_path, 40_000)
    assert again.find(EventQuery(), 1)[0]["reason"] == "POST /api/199"
    kept = again.find(EventQuery(), 1_000)
    assert 20 < len(kept) < 60
    assert all((one.stat().st_mode & 0o077) == 0 for one in tmp_path.iterdir())


def test_a_full_disk_keeps_neither_the_answer_nor_the_managers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change itself is not acknowledged then. The record follows when the disk accepts writes."""

    audit = opened(tmp_path)
    with monkeypatch.context() as while_full:
        store_rig.refusing(while_full)
        changed(audit, environ(), Principal("operator", "me"), {}, 503)
    changed(audit, environ(), Principal("operator", "me"), {}, 202)
    with monkeypatch.context() as while_full:
        store_rig.refusing(while_full)
        changed(audit, environ(), Principal("operator", "me"), {}, 503)
        audit.close()
    again = opened(tmp_path)
    assert [record["after"] for record in again.find(EventQuery(), 10)] == ["503", "202"]


def test_a_long_address_does_not_fill_the_audit(tmp_path: Path) -> None:
    audit = opened(tmp_path)
    audit.refused(environ("/api/" + "x" * 100_000), Refused("no"))
    assert len(json.dumps(audit.find(EventQuery(), 1))) < 2_000


def test_hashes_of_secrets_are_what_is_kept(server: RunningServer) -> None:
    secret = server.deploy("gamma", secret="a-secret-of-gamma")
    token = make_token(server, "operator")["token"]
    kept = "".join(one.read_text(errors="replace") for one in server.directory.iterdir() if one.is_file())
    assert messages.secret_sha256(token) in kept
    assert token not in kept and secret not in kept


def test_a_change_and_its_record_are_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {"command": "x"}}})
    store = world.fleet.state.store
    audit = Audit(store, 2**20)
    world.fleet.state.durability.lines = audit.take
    commits: list[list[str]] = []
    commit = store.commit

    def counted(changes: Any, history: Any = ()) -> None:
        commits.append([log for log, _ in history])
        commit(changes, history)

    monkeypatch.setattr(store, "commit", counted)
    asked = environ("/api/workers/w1/command")
    audit.begin(asked, Principal("operator", "me"), {"worker_id": "w1"}, 202)
    world.fleet.workers.command("w1", "stop", "me", world.now)
    audit.end(202)
    assert commits == [["events", "audit"]]
    world.fleet.workers.command("w1", "start", "me", world.now)  # without a request
    assert commits[1:] == [["events"]]
    audit.begin(asked, Principal("operator", "me"), {"worker_id": "w1"}, 202)
    audit.end(409)  # refused before anything was changed
    assert commits[2:] == [["audit"]]
    assert [record["after"] for record in audit.find(EventQuery(), 10)] == ["202", "409"]


def test_a_change_whose_words_come_later_is_recorded_with_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    audit = Audit(world.fleet.state.store, 2**20)
    world.fleet.state.durability.lines = audit.take
    asked = environ("/api/tokens")
    asked.update({"procguard.change": "scope viewer", "procguard.change_final": False})
    audit.begin(asked, Principal("operator", "me"), {}, 201)
    world.emit("token", reason="created")
    asked.update({"procguard.change": "t-1, scope viewer", "procguard.change_final": True})
    audit.end(201)
    [record] = audit.find(EventQuery(), 10)
    assert "t-1" in record["reason"]
