"""Batch operations over HTTP: from the preview to the end, and the next step in the response to every mistake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol import messages
from tests.raw_websocket import RawWebSocket
from tests.server_process import RunningServer
from tests.waiting import wait_until

FAR = {"X-Forwarded-For": "192.0.2.7"}  # enough to be no longer a local operator
WORKERS = ("w1", "w2", "w3")


def fleet_in(directory: Path) -> Iterator[RunningServer]:
    running = RunningServer(directory)
    secret = running.deploy("alpha", *WORKERS)
    running.beat("alpha", secret, *(messages.WorkerReport(one, state="running", attempt=1, pid=7) for one in WORKERS))
    yield running
    running.close()
    assert "Traceback" not in running.log()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    yield from fleet_in(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """For what changes nothing."""
    yield from fleet_in(tmp_path_factory.mktemp("server"))


def preview(server: RunningServer, command: str = "stop", selector: str = "host=alpha", **more: Any) -> dict[str, Any]:
    answer = server.ask("POST", "/api/operations/preview", {"command": command, "selector": selector, **more})
    assert answer.status == 200, answer.body
    return dict(answer.json)


def begin(server: RunningServer, **options: Any) -> dict[str, Any]:
    answer = server.ask("POST", "/api/operations", {"token": preview(server)["token"], **options})
    assert answer.status == 202, answer.body
    return dict(answer.json)


def counts(server: RunningServer, operation_id: str) -> dict[str, int]:
    return dict(server.ask("GET", f"/api/operations/{operation_id}").json["counts"])


@pytest.mark.slow
def test_an_operation_from_its_preview_to_its_end(server: RunningServer) -> None:
    seen = preview(server, selector="w*,!w3", q="sleep")
    assert (seen["matching"], seen["acts"], seen["skipped"]) == (2, 2, 0)
    assert seen["by_state"] == [{"state": "running", "matching": 2, "acts": 2}]
    body = {"token": seen["token"], "concurrency": 1, "max_failures": "10%", "reason": "disk change"}
    answer = server.ask("POST", "/api/operations", body)
    assert answer.status == 202
    operation = answer.json
    assert (operation["total"], operation["concurrency"], operation["max_failures"]) == (2, 1, "10%")
    for worker_id in ("w1", "w2"):
        wait_until(
            lambda: sum(counts(server, operation["operation_id"]).get(one, 0) for one in ("accepted", "delivered")) == 1
        )
        generation = server.ask("GET", f"/api/remote-workers/{worker_id}").json["generation"]
        report = messages.WorkerReport(worker_id, state="stopped", attempt=1, generation=generation)
        server.beat("alpha", "secret-of-alpha", report)
    path = f"/api/operations/{operation['operation_id']}"
    wait_until(lambda: server.ask("GET", path).json["status"] == "done")
    shown = server.ask("GET", path + "?result=done&limit=1&offset=1").json
    assert shown["items_total"] == 2 and [item["worker_id"] for item in shown["items"]] == ["w2"]
    assert [one["operation_id"] for one in server.ask("GET", "/api/operations").json["operations"]] == [
        operation["operation_id"]
    ]
    (command,) = server.ask("GET", "/api/commands?worker=w1").json["commands"]
    assert (command["status"], command["reason"]) == ("done", "disk change")
    assert command["operation_id"] == operation["operation_id"]


@pytest.mark.slow
def test_cancel_and_retry(server: RunningServer) -> None:
    operation = begin(server, concurrency=1)["operation_id"]
    wait_until(lambda: "waiting" in counts(server, operation) and counts(server, operation)["waiting"] == 2)
    assert server.ask("POST", f"/api/operations/{operation}/retry").error_code == "still_running"
    cancelled = server.ask("POST", f"/api/operations/{operation}/cancel")
    assert cancelled.status == 200 and cancelled.json["counts"]["cancelled"] == 2
    generation = server.ask("GET", "/api/remote-workers/w1").json["generation"]
    server.beat(
        "alpha", "secret-of-alpha", messages.WorkerReport("w1", state="stopped", attempt=1, generation=generation)
    )
    wait_until(lambda: server.ask("GET", f"/api/operations/{operation}").json["status"] == "cancelled")
    assert server.ask("POST", f"/api/operations/{operation}/cancel").error_code == "has_ended"
    assert server.ask("POST", f"/api/operations/{operation}/retry").error_code == "nothing_failed"
    again = server.ask("POST", f"/api/operations/{operation}/retry", {"rest": True})
    assert again.status == 202 and (again.json["total"], again.json["retry_of"]) == (2, operation)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/api/operations/preview", {"command": "stop"}, 400, "bad_request"),
        ("POST", "/api/operations/preview", {"command": 7, "selector": "*"}, 400, "bad_request"),
        ("POST", "/api/operations/preview", {"command": "explode", "selector": "*"}, 400, "unknown_command"),
        ("POST", "/api/operations/preview", {"command": "stop", "selector": "state=runing"}, 400, "bad_selector"),
        ("POST", "/api/operations/preview", b"[]", 400, "bad_json"),
        ("POST", "/api/operations", {}, 400, "bad_request"),
        ("POST", "/api/operations", {"token": 5}, 400, "bad_request"),
        ("POST", "/api/operations", {"token": "p-0", "concurrency": 0}, 400, "bad_request"),
        ("POST", "/api/operations", {"token": "p-0", "concurrency": 1.5}, 400, "bad_request"),
        ("POST", "/api/operations", {"token": "p-0", "concurrency": True}, 400, "bad_request"),
        ("POST", "/api/operations", {"token": "p-0", "timeout_s": 1}, 400, "bad_request"),
        ("POST", "/api/operations", {"token": "p-0", "max_failures": 1.5}, 400, "bad_limit"),
        ("POST", "/api/operations", {"token": "p-0", "reason": ["x"]}, 400, "bad_request"),
        ("POST", "/api/operations", {"token": "p-0"}, 409, "preview_expired"),
        ("GET", "/api/operations/o-nothing", None, 404, "not_found"),
        ("GET", "/api/operations/o-nothing?limit=0", None, 400, "bad_request"),
        ("POST", "/api/operations/o-nothing/cancel", {}, 404, "not_found"),
        ("POST", "/api/operations/o-nothing/retry", {}, 404, "not_found"),
        ("POST", "/api/operations/o-nothing/retry", {"rest": "all"}, 400, "bad_request"),
        ("DELETE", "/api/operations", None, 405, "method_not_allowed"),
        ("PUT", "/api/operations/preview", {}, 405, "method_not_allowed"),
        ("POST", "/api/commands", {}, 405, "method_not_allowed"),
        ("GET", "/api/commands?worker=../etc", None, 400, "bad_id"),
        ("GET", "/api/remote-workers?select=state=", None, 400, "bad_selector"),
    ],
)
def test_mistakes_are_answered_with_the_next_step(
    untouched: RunningServer, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = untouched.ask(method, path, body)
    assert (answer.status, answer.error_code) == (status, code), answer.body
    assert answer.json["error"]["next"]


@pytest.mark.slow
def test_a_limit_that_can_t_be_read_leaves_the_token_as_it_was(server: RunningServer) -> None:
    token = preview(server)["token"]
    assert server.ask("POST", "/api/operations", {"token": token, "max_failures": "many"}).error_code == "bad_limit"
    assert server.ask("POST", "/api/operations", {"token": token}).status == 202
    assert server.ask("POST", "/api/operations", {"token": token}).error_code == "preview_expired"


def test_a_preview_is_nobody_else_s(untouched: RunningServer) -> None:
    other = untouched.ask("POST", "/api/tokens", {"scope": "operator", "name": "other"}).json["token"]
    body = {"token": preview(untouched)["token"]}
    assert untouched.ask("POST", "/api/operations", body, headers=FAR, secret=other).error_code == "not_your_preview"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/operations/preview"),
        ("POST", "/api/operations"),
        ("GET", "/api/operations"),
        ("GET", "/api/operations/o-1"),
        ("POST", "/api/operations/o-1/cancel"),
        ("POST", "/api/operations/o-1/retry"),
        ("GET", "/api/commands"),
    ],
)
def test_nobody_without_the_right_gets_anywhere(untouched: RunningServer, method: str, path: str) -> None:
    body = {} if method == "POST" else None
    assert untouched.ask(method, path, body, headers=FAR).status == 401
    assert untouched.ask(method, path, body, headers=FAR, secret="secret-of-alpha").status in (401, 403)


def test_a_selector_as_long_as_documented_fits_an_address(untouched: RunningServer) -> None:
    described = untouched.ask("GET", "/api/openapi.json").json["paths"]["/api/remote-workers"]["get"]["parameters"]
    [longest] = [one["schema"]["maxLength"] for one in described if one["name"] == "select"]
    answer = untouched.ask("GET", "/api/remote-workers?select=host=" + "h" * (longest - len("host=")))
    assert (answer.status, answer.json["workers"]) == (200, [])


def test_the_list_of_workers_takes_selectors_too(untouched: RunningServer) -> None:
    answer = untouched.ask("GET", "/api/remote-workers?select=w1|w3,state!=failed").json
    assert [view["worker_id"] for view in answer["workers"]] == ["w1", "w3"]


@pytest.mark.slow
def test_progress_comes_live(server: RunningServer) -> None:
    with RawWebSocket(server.port) as client:
        assert client.message()["t"] == "hello"
        client.say({"t": "sub", "topic": "operations", "seq": 0})
        assert client.message()["items"] == []
        operation = begin(server)["operation_id"]
        received: list[dict[str, int]] = []
        while not received or "accepted" not in received[-1]:
            frame = client.message()
            assert frame["t"] == "delta" and frame["set"][0]["operation_id"] == operation
            received.append(frame["set"][0]["counts"])
        assert received[0] == {"waiting": 3}
