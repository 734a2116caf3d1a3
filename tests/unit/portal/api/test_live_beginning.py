"""GET /api/live with `also`: a page's first reads come in the same response, with the same permission checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from procguard.portal.http.embedding import MAX_PATHS
from tests.server_process import RunningServer

FAR = {"X-Forwarded-For": "192.0.2.7"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    made = RunningServer(tmp_path_factory.mktemp("live"))
    yield made
    made.close()


def beginning(server: RunningServer, paths: Any, headers: dict[str, str] | None = None) -> Any:
    return server.ask("GET", f"/api/live?also={quote(json.dumps(paths))}", headers=headers or {})


def test_other_answers_come_along_as_their_own_requests_would_give_them(server: RunningServer) -> None:
    paths = ["/api/mutes", "/api/releases", "/api/gpus", "/api/events?limit=3&kind=nothing", "/api/tokens"]
    also = beginning(server, paths).json["also"]
    assert sorted(also) == sorted(paths)
    for path in paths:
        alone = server.ask("GET", path)
        assert also[path] == {"etag": alone.headers.get("ETag"), "body": alone.json}, path


def test_a_quoted_name_in_a_path_is_understood(server: RunningServer) -> None:
    server.ask(
        "POST", "/api/workers/register", {"worker_id": "w1", "command": "id", "host": "h1", "secret_sha256": "0" * 64}
    )
    path = "/api/measurements/hosts/launcher%3Aw1?span=15m"
    assert server.ask("GET", path).status == 200
    assert beginning(server, [path]).json["also"][path]["body"]["agent_id"] == "launcher:w1"


def test_what_the_caller_may_not_read_or_is_no_reading_does_not_come_along(server: RunningServer) -> None:
    token = server.ask("POST", "/api/tokens", {"scope": "viewer", "name": "wall"}).json["token"]
    paths = ["/api/tokens", "/api/mutes", "/api/live", "/api/openapi.json", "/api/nowhere", "/api/remote-workers/none"]
    viewer = beginning(server, paths, {**FAR, "Authorization": f"Bearer {token}"})
    assert (viewer.status, sorted(viewer.json["also"])) == (200, ["/api/mutes"])
    stranger = beginning(server, paths, FAR)
    assert (stranger.status, stranger.json["also"]) == (200, {})


@pytest.mark.parametrize(
    "paths", [{}, ["/metrics"], [1], ["/api/mutes"] * (MAX_PATHS + 1), ["/api/" + "x" * 3000], "[["]
)
def test_what_is_no_list_of_paths_is_refused_in_one_line(server: RunningServer, paths: Any) -> None:
    answer = beginning(server, paths)
    assert answer.status == 400 and answer.json["error"]["message"].startswith("also: ")
