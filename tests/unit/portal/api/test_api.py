"""The HTTP API of operators: the seed's commands unchanged, and the next step in the response to every mistake."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.config import schema as configuration
from procguard.errors import ProcGuardError, UsageError
from procguard.portal.http import sockets
from procguard.portal.logs.query import parse_since
from remote_agent.protocol import messages
from tests.server_process import RunningServer
from tests.waiting import wait_until

FAR = {"X-Forwarded-For": "192.0.2.7"}  # enough to be no longer a local operator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    secret = running.deploy("alpha", "worker1", "worker2")
    running.beat("alpha", secret, messages.WorkerReport("worker1", state="running", attempt=3, pid=7, restarts_total=2))
    yield running
    running.close()
    assert "Traceback" not in running.log()


def ship(server: RunningServer, worker: str, data: bytes, attempt: int = 1, stream: str = "out") -> None:
    path = f"/api/workers/{worker}/logs?attempt={attempt}&stream={stream}"
    stored = server.ask("POST", f"{path}&offset=0", b"", secret="secret-of-alpha").json["acked"]
    assert server.ask("POST", f"{path}&offset={stored}", data, secret="secret-of-alpha").status == 200


# ---------------------------------------------------------------------------------------------- the seed's lines


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "kill"])
def test_the_documented_commands_are_accepted_as_they_are_written(server: RunningServer, verb: str) -> None:
    answer = server.ask("POST", "/api/workers/worker1/command", f'{{"command": "{verb}"}}'.encode())
    assert answer.status == 202
    assert answer.json["worker_id"] == "worker1" and answer.json["status"] == "accepted"
    assert answer.json["command_id"].startswith("c-")


def test_the_documented_curl_lines_work_on_this_machine(server: RunningServer) -> None:
    base = f"http://localhost:{server.port}"
    listing = subprocess.run(["curl", "-sS", f"{base}/api/remote-workers"], capture_output=True, check=True, timeout=10)
    assert [view["worker_id"] for view in json.loads(listing.stdout)["workers"]] == ["worker1", "worker2"]
    ship(server, "worker2", b"hello\n")
    logs = subprocess.run(
        ["curl", "-sS", f"{base}/api/remote-workers/worker2/logs"], capture_output=True, check=True, timeout=10
    )
    assert logs.stdout == b"hello\n"


def test_a_worker_shows_what_the_plan_promises(server: RunningServer) -> None:
    view = server.ask("GET", "/api/remote-workers/worker1").json
    promised = (
        "worker_id state last_known_state desired host agent pid attempt epoch restarts command group labels last_seen "
        "usage last_exit reason since health restart_pending undeclared restarts_total generation"
    )
    assert set(promised.split()) <= set(view)


def test_workers_are_filtered_sorted_and_paged(server: RunningServer) -> None:
    def ids(query: str) -> list[str]:
        return [view["worker_id"] for view in server.ask("GET", f"/api/remote-workers?{query}").json["workers"]]

    assert ids("sort=-worker_id") == ["worker2", "worker1"]
    assert ids("q=WORKER2") == ["worker2"]
    assert ids("host=nowhere") == []
    assert ids("host=alpha,beta&limit=1&offset=1") == ["worker2"]
    assert ids("sort=-restarts_total")[0] == "worker1"
    assert server.ask("GET", "/api/remote-workers?limit=1").json["total"] == 2
    assert server.ask("GET", "/api/remote-workers?sort=secret").status == 400
    assert server.ask("GET", "/api/remote-workers?limit=-1").status == 400


# ------------------------------------------------------------------------------------------------------------ mistakes


MISTAKES: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/api/workers/nobody/command", {"command": "stop"}, 404, "unknown_worker"),
    ("GET", "/api/remote-workers/nobody", None, 404, "unknown_worker"),
    ("GET", "/api/remote-workers/nobody/logs", None, 404, "unknown_worker"),
    ("POST", "/api/workers/worker1/command", {"command": "explode"}, 400, "unknown_command"),
    ("POST", "/api/workers/worker1/command", {"command": ["stop"]}, 400, "unknown_command"),
    ("POST", "/api/workers/worker1/command", {}, 400, "unknown_command"),
    ("POST", "/api/workers/worker1/command", b"stop", 400, "bad_json"),
    ("POST", "/api/workers/worker1/command", b"", 400, "bad_json"),
    ("POST", "/api/workers/worker1/command", b'["stop"]', 400, "bad_json"),
    ("POST", "/api/workers/..%2f..%2fetc/command", {"command": "stop"}, 404, "not_found"),
    ("POST", "/api/workers/a%00b/command", {"command": "stop"}, 400, "bad_id"),
    ("GET", "/api/workers/worker1/command?wait=NaN", None, 400, "bad_request"),
    ("GET", "/nowhere", None, 404, "not_found"),
    ("GET", "/api/%ff%fe", None, 404, "not_found"),
    ("PUT", "/api/remote-workers", {}, 405, "method_not_allowed"),
    ("DELETE", "/api/deployments", None, 405, "method_not_allowed"),
    ("POST", "/api/deployments", {"hosts": "x"}, 400, "bad_request"),
    ("PUT", "/api/agents/alpha/credentials", {"secret_sha256": "x"}, 400, "bad_request"),
    ("PUT", "/api/agents/nobody/credentials", {"secret_sha256": "0" * 64}, 404, "unknown_agent"),
    ("POST", "/api/tokens", {"scope": "god"}, 400, "bad_request"),
    ("DELETE", "/api/tokens/t-none", None, 404, "not_found"),
    ("POST", "/api/hosts/nowhere/check-ssh", None, 404, "not_found"),
    ("GET", "/api/events?limit=x", None, 400, "bad_request"),
    ("GET", "/api/remote-workers/worker1/logs?regex=(", None, 400, "bad_expression"),
    ("GET", "/api/remote-workers/worker1/logs?tail=many", None, 400, "bad_request"),
    ("GET", "/api/remote-workers/worker1/logs?since=yesterday", None, 400, "bad_request"),
    ("GET", "/api/remote-workers/worker1/logs?until=tomorrow", None, 400, "bad_request"),
    ("GET", "/api/remote-workers/worker1/logs?until=1m&follow=1", None, 400, "bad_request"),
    ("GET", "/api/remote-workers/worker1/logs?at=3.out", None, 400, "bad_request"),
    ("GET", "/api/remote-workers/worker1/logs?at=1.out.0&before=5001", None, 400, "bad_request"),
    ("GET", "/api/remote-workers/worker1/logs?stream=both", None, 400, "bad_request"),
    ("GET", "/api/remote-workers/worker1/logs?format=xml", None, 400, "bad_request"),
    ("GET", "/ws", None, 426, "upgrade_required"),
]


@pytest.mark.parametrize("method, path, body, status, code", MISTAKES)
def test_a_mistake_is_answered_in_json_with_the_next_step(
    server: RunningServer, method: str, path: str, body: object, status: int, code: str
) -> None:
    answer = server.ask(method, path, body)
    assert (answer.status, answer.error_code) == (status, code), answer.body
    error = answer.json["error"]
    assert error["message"] and error["next"] and error["request_id"] == answer.headers["X-Request-Id"]


def test_an_unknown_command_is_answered_with_the_list(server: RunningServer) -> None:
    answer = server.ask("POST", "/api/workers/worker1/command", {"command": "explode"})
    assert "start, stop, restart, kill" in answer.json["error"]["next"]


def test_a_wrong_method_names_the_right_ones(server: RunningServer) -> None:
    assert "GET" in server.ask("PUT", "/api/remote-workers", {}).headers["Allow"]


def test_a_body_over_the_cap_is_refused(server: RunningServer) -> None:
    body = {"command": "stop", "padding": "x" * (1024 * 1024)}
    answer = server.ask("POST", "/api/workers/worker1/command", body)
    assert (answer.status, answer.error_code) == (413, "body_too_large")


# -------------------------------------------------------------------------------------------------------------- headers


def test_every_answer_carries_the_security_headers(server: RunningServer) -> None:
    for path in ("/", "/api/remote-workers", "/nowhere", "/healthz", "/api/session"):
        headers = server.ask("GET", path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Request-Id"] and headers["Date"]
        assert headers["Server"] == "ProcGuard"
    assert server.ask("GET", "/api/remote-workers").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../pyproject.toml",
        "/static/..%2fpyproject.toml",
        "/static/%2e%2e/pyproject.toml",
        "/static//etc/passwd",
    ],
)
def test_static_files_never_leave_their_directory(server: RunningServer, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status in (403, 404) and b"[project]" not in response.read()
    connection.close()


def test_the_shell_page_is_for_anyone_and_data_for_operators(server: RunningServer) -> None:
    assert server.ask("GET", "/", headers=FAR).status == 200
    assert server.ask("GET", "/healthz", headers=FAR).json == {"status": "ok"}
    assert server.ask("GET", "/readyz", headers=FAR).status == 200
    protected = (
        "/api/remote-workers /api/remote-workers/worker1 /api/remote-workers/worker1/logs /api/hosts /api/agents "
        "/api/events /api/recoveries /api/groups /api/tokens /metrics /api/commands/c-1 /api/workers/worker1/command "
        "/api/agents/alpha/commands"
    )
    for path in protected.split():
        answer = server.ask("GET", path, headers=FAR)
        assert answer.status == 401, path
        assert answer.headers["WWW-Authenticate"].startswith("Bearer") and answer.json["error"]["next"]


# ------------------------------------------------------------------------------------------------------------- browsers


def test_a_browser_logs_in_acts_and_logs_out(server: RunningServer) -> None:
    token = server.ask("POST", "/api/tokens", {"scope": "operator", "name": "browser"}).json["token"]
    assert server.ask("POST", "/api/login", {"token": "pg-wrong"}, FAR).status == 401
    answer = server.ask("POST", "/api/login", {"token": token}, FAR)
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and token not in cookie
    browser = {**FAR, "Cookie": cookie.split(";")[0]}
    session = server.ask("GET", "/api/session", headers=browser).json
    assert session["operator"] and session["via"] == "session" and session["csrf"] == answer.json["csrf"]
    assert server.ask("GET", "/api/hosts", headers=browser).status == 200
    beginning = server.ask("GET", "/api/live", headers=browser).json
    assert beginning["session"] == session
    assert beginning["workers"] == server.ask("GET", "/api/live/workers", headers=browser).json
    assert beginning["hosts"] == server.ask("GET", "/api/live/hosts", headers=browser).json
    stop = ("POST", "/api/workers/worker2/command", {"command": "stop"})
    assert server.ask(*stop, headers=browser).status == 403
    acting = {**browser, "X-ProcGuard-CSRF": session["csrf"]}
    assert server.ask(*stop, headers=acting).status == 202
    assert server.ask("POST", "/api/logout", {}, acting).status == 200
    assert server.ask("GET", "/api/hosts", headers=browser).status == 401
    assert server.ask("GET", "/api/session", headers=browser).json["operator"] is False
    beginning = server.ask("GET", "/api/live", headers=browser).json
    assert (beginning["session"]["role"], beginning["workers"], beginning["hosts"]) == (None, None, None)


@pytest.mark.slow
def test_guessing_tokens_is_locked(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    try:
        statuses = [server.ask("POST", "/api/login", {"token": f"guess{n}"}, FAR).status for n in range(7)]
        assert statuses[:5] == [401] * 5 and statuses[5:] == [429, 429]
        answer = server.ask("POST", "/api/login", {"token": "guess"}, FAR)
        assert int(answer.headers["Retry-After"]) >= 1
    finally:
        server.close()


def test_tokens_are_listed_without_their_secret(server: RunningServer) -> None:
    made = server.ask("POST", "/api/tokens", {"scope": "enroll", "name": "listed"}).json
    listed = server.ask("GET", "/api/tokens")
    assert made["token_id"] in listed.body.decode() and made["token"] not in listed.body.decode()
    assert messages.secret_sha256(made["token"]) not in listed.body.decode()


def test_a_specification_is_shown_without_the_values_of_its_environment(server: RunningServer) -> None:
    """The declared specification without defaults; values in `env` and in a container's options may be secrets."""
    spec = {"command": "python a.py", "working_dir": "/srv", "env": {"TOKEN": "s3cret", "A": "1"}, "stop_grace_s": 3.0}
    options = ["--env", "KEY=s3cret", "-eK=s3cret", "--env=X=s3cret", "--ipc=host"]
    workers = [
        {"worker_id": "w1", "spec": spec},
        {"worker_id": "w2", "spec": {"container": {"image": "i", "options": options}}},
    ]
    declared = {"hosts": [{"host": "h7", "ssh": {"hostname": "h7"}, "workers": workers}], "inventory": {"name": "prod"}}
    assert server.ask("POST", "/api/deployments", declared).status == 200
    said = server.ask("GET", "/api/workers/w1/spec").json
    assert said["inventory"] == "prod"
    assert said["declared"] == {"command": "python a.py", "working_dir": "/srv", "stop_grace_s": 3.0}
    assert said["env_names"] == ["A", "TOKEN"] and said["defaults"]["stderr"] == "merge"
    contained = server.ask("GET", "/api/workers/w2/spec").json
    assert contained["declared"]["container"]["options"] == ["--env", "KEY=…", "-eK=…", "--env=X=…", "--ipc=host"]
    assert "s3cret" not in str(said) + str(contained)
    assert server.ask("GET", "/api/workers/nobody/spec").status == 404
    assert server.ask("POST", "/api/workers/w1/spec", {}).status == 405


def test_a_worker_names_its_lines_of_the_inventory_and_what_waits_for_a_restart(server: RunningServer) -> None:
    """Where an operator changes it, and which other workers that affects; paths are hidden from viewers."""
    place = "/home/ml/my inventory/prod.yaml"

    def declared(batch: int, line: int, lr: str) -> dict[str, Any]:
        spec = {"command": f"python a.py --batch {batch}", "env": {"LR": lr}}
        copies = [{"worker_id": f"p{n}", "spec": spec, "source": f"{place}:{line}"} for n in (1, 2)]
        hosts = [{"host": "h8", "workers": copies}, {"host": "h9", "workers": [{"worker_id": "p3", "spec": spec}]}]
        return {"hosts": hosts, "inventory": {"name": f"head:{place}"}}

    assert server.ask("POST", "/api/deployments", declared(8, 12, "s3cret")).status == 200
    said = server.ask("GET", "/api/workers/p1/spec").json
    assert said["source"] == {"file": place, "line": 12, "workers": 2, "host": "h8"} and said["pending"] == []
    assert server.ask("GET", "/api/workers/p3/spec").json["source"] is None
    digest = messages.launch_digest(messages.WorkerSpec("python a.py --batch 8", env={"LR": "s3cret"}))
    secret = server.deploy("h8")
    assert server.ask("POST", "/api/deployments", declared(8, 12, "s3cret")).status == 200
    server.beat("h8", secret, messages.WorkerReport("p1", state="running", attempt=1, pid=7, launch_digest=digest))
    for batch, line in ((16, 14), (32, 15)):  # twice before anybody restarts it: what runs is still the first
        assert server.ask("POST", "/api/deployments", declared(batch, line, "other")).status == 200
    said = server.ask("GET", "/api/workers/p1/spec").json
    assert said["source"]["line"] == 15
    assert said["pending"] == ['command: "python a.py --batch 8" -> "python a.py --batch 32"', "env.LR: changed"]
    assert server.ask("GET", "/api/workers/p2/spec").json["pending"] == []  # does not run
    token = server.ask("POST", "/api/tokens", {"scope": "viewer", "name": "screen"}).json["token"]
    seen = server.ask("GET", "/api/workers/p1/spec", headers={**FAR, "Authorization": f"Bearer {token}"}).json
    assert (seen["source"]["file"], seen["inventory"]) == ("prod.yaml", "prod.yaml")
    odd = {"hosts": [{"host": "h8", "workers": [{"worker_id": "p1", "spec": {"command": "x"}, "source": "a\nb:1"}]}]}
    assert "control characters" in server.ask("POST", "/api/deployments", odd).json["error"]["message"]


def test_a_stolen_browser_session_declares_nothing_and_makes_no_token_that_could(server: RunningServer) -> None:
    token = server.ask("POST", "/api/tokens", {"scope": "operator", "name": "me"}).json["token"]
    answer = server.ask("POST", "/api/login", {"token": token}, FAR)
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    browser = {**FAR, "Cookie": cookie, "X-ProcGuard-CSRF": answer.json["csrf"]}
    workers = [{"worker_id": "evil", "spec": {"command": "id"}}]
    refused = server.ask("POST", "/api/deployments", {"hosts": [{"host": "h8", "workers": workers}]}, browser)
    assert (refused.status, refused.error_code) == (403, "forbidden")
    assert "invoke deploy" in refused.json["error"]["next"]
    assert server.ask("GET", "/api/remote-workers/evil").status == 404
    for scope, status in (("operator", 403), ("agent:h8", 403), ("viewer", 201), ("enroll", 201), ("metrics", 201)):
        assert server.ask("POST", "/api/tokens", {"scope": scope, "name": "x"}, browser).status == status, scope
    bearer = {**FAR, "Authorization": f"Bearer {token}"}
    assert server.ask("POST", "/api/deployments", {"hosts": [{"host": "h8"}], "check": True}, bearer).status == 200
    pose = ("PUT", "/api/agents/h8/credentials", {"secret_sha256": messages.secret_sha256("mine")})
    assert server.ask(*pose, browser).status == 403


def test_every_gpu_of_the_fleet_says_whose_it_is(server: RunningServer) -> None:
    secret = server.deploy("delta", "d1", "d2")
    process = messages.GpuProcess
    gpus = [
        messages.GpuUsage(0, utilization_percent=90.0, worker_id="d1"),
        messages.GpuUsage(1, utilization_percent=0.0, processes=[process(7, worker_id="d2")]),
        messages.GpuUsage(2, utilization_percent=40.0, processes=[process(8, name="python", user="ann")]),
        messages.GpuUsage(3, utilization_percent=0.0, memory_used_bytes=9 << 30),
        messages.GpuUsage(4, utilization_percent=0.0, memory_used_bytes=1 << 20),
        messages.GpuUsage(5, trouble="fallen off the bus"),
    ]
    server.beat("delta", secret, usage=messages.HostUsage(gpus=gpus))
    said = server.ask("GET", "/api/gpus").json["gpus"]
    own = [gpu for gpu in said if gpu["host"] == "delta"]
    assert [gpu["state"] for gpu in own] == ["busy", "idle", "other", "nobody", "free", "lost"]
    assert [gpu["workers"] for gpu in own[:3]] == [["d1"], ["d2"], []]
    assert own[2]["others"] == ["8 ann python"]
    assert server.ask("POST", "/api/gpus", {}).status == 405


# ----------------------------------------------------------------------------------------------------------------- logs


def test_logs_are_shown_filtered_and_downloaded(server: RunningServer) -> None:
    ship(server, "worker1", b"".join(b"line %d\n" % n for n in range(300)), attempt=3)
    ship(server, "worker1", b"oops\n", attempt=4, stream="err")
    path = "/api/remote-workers/worker1/logs"
    assert len(server.ask("GET", path).body.splitlines()) == 200
    assert server.ask("GET", f"{path}?tail=2").body == b"line 299\noops\n"
    assert server.ask("GET", f"{path}?regex=9$&attempt=3&tail=1").body == b"line 299\n"
    assert server.ask("GET", f"{path}?stream=err").body == b"oops\n"
    answer = server.ask("GET", f"{path}?format=json&tail=1").json
    assert answer["lines"][0]["text"] == "oops" and answer["next"] == {"attempt": 4, "offset": 5}
    download = server.ask("GET", f"{path}?download=1&attempt=3")
    assert download.headers["Content-Disposition"] == 'attachment; filename="worker1.log"'
    assert download.body.count(b"\n") == 300
    assert download.headers["Content-Type"].startswith("text/plain")


def test_the_lines_around_an_address_or_a_time_are_shown(server: RunningServer) -> None:
    ship(server, "worker1", b"".join(b"line %03d\n" % n for n in range(300)), attempt=8)
    path = "/api/remote-workers/worker1/logs"
    answer = server.ask("GET", f"{path}?at=8.out.900&before=1&after=2&format=json").json
    assert [line["text"] for line in answer["lines"]] == ["line 099", "line 100", "line 101", "line 102"]
    assert answer["target"]["offset"] == 900
    assert server.ask("GET", f"{path}?at=8.out.900&before=0&after=0").body == b"line 100\n"
    assert "3.out.73014" in server.ask("GET", f"{path}?at=3.out").json["error"]["next"]
    gone = server.ask("GET", f"{path}?at=8.out.900000&format=json").json
    assert gone["lines"] == [] and gone["target"] is None and 8 in gone["attempts"]
    assert server.ask("GET", f"{path}?at=2020-01-01T00:00:00Z&format=json").json["target"] is None


def test_following_shows_each_line_once_and_holds_back_what_is_unfinished(server: RunningServer) -> None:
    ship(server, "worker2", b"before\nunfin", attempt=9)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as connection:
        connection.request("GET", "/api/remote-workers/worker2/logs?follow=1&tail=1&attempt=9&regex=e|u")
        response = connection.getresponse()
        ship(server, "worker2", b"ished \xe4\xbd", attempt=9)
        ship(server, "worker2", b"\xa0\nno match\nnext\n", attempt=9)
        assert response.readline() + response.readline() == "unfinished 你\nnext\n".encode()


def test_a_followers_departure_is_noticed(server: RunningServer) -> None:
    def threads() -> str:
        text = server.ask("GET", "/metrics").body.decode()
        return next(line for line in text.splitlines() if line.startswith("procguard_log_followers ")).split()[1]

    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET /api/remote-workers/worker2/logs?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(1024)
        wait_until(lambda: threads() == "1.0", 3.0, "one follower")
    wait_until(lambda: threads() == "0.0", 3.0, "no follower")


def test_since_takes_ages_times_and_unix_seconds() -> None:
    assert parse_since("10m", 1000.0) == 400.0
    assert parse_since("1.5h", 10_000.0) == 4_600.0
    assert parse_since("1700000000", 0.0) == 1_700_000_000.0
    assert parse_since("2023-11-14T22:13:20Z", 0.0) == 1_700_000_000.0
    assert parse_since("2023-11-14T23:13:20+01:00", 0.0) == 1_700_000_000.0
    assert parse_since("2023-11-14 22:13:20", 0.0) == 1_700_000_000.0
    with pytest.raises(UsageError):
        parse_since("soon", 0.0)


# -------------------------------------------------------------------------------------------------------------- serving


@pytest.mark.slow
def test_web_disabled_keeps_the_api_and_drops_the_portal(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, "web.enabled=false")
    try:
        assert server.ask("GET", "/api/remote-workers").status == 200
        for path in ("/", "/static/index.html", "/ws"):
            assert server.ask("GET", path).status == 404
    finally:
        server.close()


@pytest.mark.slow
def test_trust_local_false_wants_a_token_from_everybody(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, "web.trust_local=false")
    try:
        assert server.ask("GET", "/api/remote-workers").status == 401
    finally:
        server.close()


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ProcGuardError) as refusal:
            sockets.listen("127.0.0.1", port)
    assert f"port {port} on 127.0.0.1 is in use" in str(refusal.value) and "--port" in str(refusal.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_is_one_clear_line(host: str) -> None:
    with pytest.raises(ProcGuardError) as refusal:
        sockets.listen(host, 0)
    assert host in str(refusal.value)


@pytest.mark.slow
def test_the_mock_channel_follows_commands_like_a_launcher(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, "communication.adapter_config.mock_workers=3")

    def state(worker: str) -> tuple[str, int]:
        view = server.ask("GET", f"/api/remote-workers/{worker}").json
        return view["state"], view["attempt"]

    try:
        wait_until(lambda: state("mock-3") == ("running", 1), 5.0, "three simulated workers run")
        server.ask("POST", "/api/workers/mock-1/command", {"command": "stop"})
        wait_until(lambda: state("mock-1") == ("stopped", 1), 2.0, "stopped")
        server.ask("POST", "/api/workers/mock-1/command", {"command": "start"})
        wait_until(lambda: state("mock-1") == ("running", 2), 2.0, "started again")
        accepted = server.ask("POST", "/api/workers/mock-2/command", {"command": "restart"}).json
        wait_until(lambda: state("mock-2") == ("running", 2), 2.0, "restarted")
        path = f"/api/commands/{accepted['command_id']}"
        wait_until(lambda: server.ask("GET", path).json["status"] == "done", 2.0, "the restart is reported done")
    finally:
        server.close()


def test_the_default_configuration_has_no_simulated_workers() -> None:
    assert configuration.load(None).communication.adapter_config.mock_workers == 0


@pytest.mark.skipif(sys.platform != "linux", reason="uids of sockets are asked from Linux")
def test_another_users_request_from_this_machine_needs_a_token(server: RunningServer) -> None:
    import os

    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = (
        "import http.client, os, sys, socket, email.parser, encodings.latin_1; 'x'.encode('idna');"
        "c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1])); os.setgid(65534); os.setuid(65534);"
        "c.request('GET', '/api/remote-workers', headers={'Host': 'localhost'}); print(c.getresponse().status)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(server.port)], capture_output=True, text=True, timeout=20, cwd="/", check=False
    )
    assert answer.stdout.strip() == "401", answer.stderr


def test_a_forgotten_worker_takes_its_log_along(server: RunningServer) -> None:
    """Its successor counts attempts from 1 again: old bytes at the same offsets would hide new ones."""
    secret = server.deploy("gone", "gone1")
    server.beat("gone", secret, messages.WorkerReport("gone1", state="stopped", attempt=1))
    path = "/api/workers/gone1/logs?attempt=1&offset=0"
    assert server.ask("POST", path, b"old life\n", secret=secret).json == {"acked": 9}
    server.ask("POST", "/api/workers/gone1/command", {"command": "stop"})
    answer = server.ask("DELETE", "/api/workers/gone1")
    assert answer.status == 200, answer.body
    server.deploy("gone", "gone1", secret=secret)
    assert server.ask("POST", path, b"new\n", secret=secret).json == {"acked": 4}
    assert server.ask("GET", "/api/remote-workers/gone1/logs").body == b"new\n"


# ------------------------------------------------------------------------------------------------ history


def test_events_are_filtered_and_exported_as_lines(server: RunningServer) -> None:
    asked = {"X-Probe": "1"}
    assert server.ask("POST", "/api/workers/worker2/command", b'{"command": "stop"}', asked).status == 202
    events = server.ask("GET", "/api/events?kind=command&worker=worker2&cause=operator&since=1h&limit=10000").json
    last = events["events"][-1]
    assert last["evidence"]["from"] == "127.0.0.1, local" and last["evidence"]["command_id"].startswith("c-")
    assert {event["kind"] for event in events["events"]} == {"command"}
    export = server.ask("GET", "/api/events?kind=command&worker=worker2&format=jsonl")
    assert export.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in export.body.decode().splitlines()]
    assert lines[-1] == last and len(lines) >= len(events["events"])
    assert server.ask("GET", "/api/events?until=yesterday").json["error"]["message"].startswith("until=")
    assert server.ask("GET", "/api/events?format=xml").status == 400


def test_a_worker_is_explained_in_the_language_that_was_asked_for(server: RunningServer) -> None:
    said = server.ask("GET", "/api/workers/worker1/explain?lang=zh", headers={"Accept-Language": "en"}).json
    assert said["language"] == "zh" and "正在 alpha 上运行" in said["headline"] and said["state"] == "running"
    assert {"topic", "text"} == set(said["sentences"][0]) and said["timeline"][-1]["at"]
    by_browser = server.ask("GET", "/api/workers/worker1/explain", headers={"Accept-Language": "zh-CN,en;q=0.5"})
    assert by_browser.json["language"] == "zh"
    assert server.ask("GET", "/api/workers/worker1/explain").json["language"] == "en"
    assert server.ask("GET", "/api/workers/nobody/explain").status == 404


def test_a_manager_without_notifications_says_so(server: RunningServer) -> None:
    assert server.ask("GET", "/api/notifications").json == {"notifications": [], "routes": []}
    assert server.ask("POST", "/api/notifications/test").error_code == "not_configured"
    assert server.ask("POST", "/api/notifications/test", b'{"name": 5}').status == 400
    assert server.ask("GET", "/api/notifications", headers=FAR).status == 401


def test_a_scraper_s_token_reads_metrics_and_nothing_else(server: RunningServer) -> None:
    token = server.ask("POST", "/api/tokens", {"scope": "metrics", "name": "prometheus"}).json["token"]
    answer = server.ask("GET", "/metrics", headers=FAR, secret=token)
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"procguard_build_info" in answer.body
    for path in ("/api/remote-workers", "/api/events", "/api/tokens"):
        assert server.ask("GET", path, headers=FAR, secret=token).status == 403
    assert server.ask("POST", "/api/login", {"token": token}).status == 401
    assert server.ask("GET", "/metrics", headers=FAR).status == 401


SENTENCE = re.compile(r"(?<![\w./:=<'`-])[a-z]{3,} [a-z]{3,} [a-z]{2,}")
TO_TYPE = re.compile(r"(?:invoke|procguard|curl) [^，；。]*")


def test_an_error_is_chinese_where_the_page_asks_for_it(server: RunningServer) -> None:
    """Each mistake above, and refusals of a route and of the server itself; the English text remains beside it."""
    chinese = {"Accept-Language": "zh-CN"}
    mistakes = [one[:3] for one in MISTAKES if one[1] != "/ws" and "wait=" not in one[1]]  # which pages don't ask
    more = [("GET", "/api/nowhere", None), ("PUT", "/api/remote-workers", None), ("GET", "/api/operations/o-1", None)]
    more += [("POST", "/api/tokens", {"scope": 7}), ("POST", "/api/tokens", {"scope": "none"})]
    bad = []
    for method, path, body in [*mistakes, *more]:
        error = server.ask(method, path, body, chinese).json["error"]
        shown = error["localized"]
        for text in (shown["message"], shown["next"]):
            if text and (not re.search(r"[\u4e00-\u9fff]", text) or SENTENCE.search(TO_TYPE.sub("", text))):
                bad.append((path, text))
        assert not re.search(r"[\u4e00-\u9fff]", error["message"] + error["next"])
        assert "localized" not in server.ask(method, path, body).json["error"]
    assert bad == []
