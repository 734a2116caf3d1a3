"""A launcher with an invalid enrolment token reports it and how to get another: with a real manager."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent import settings
from remote_agent.protocol import messages
from tests.server_process import RunningServer
from tests.waiting import wait_until

ROOT = str(Path(__file__).resolve().parents[4])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    yield running
    running.close()


def launch(server: RunningServer, tmp_path: Path, worker_id: str, token: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "procguard.worker_launcher", "--worker-id", worker_id, "--command", "sleep 60"]
    words += ["--manager-url", f"http://127.0.0.1:{server.port}", "--token", token]
    environment = {**os.environ, "PROCGUARD_HOME": str(tmp_path / "home"), "PYTHONPATH": ROOT}
    try:
        return subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20, check=False
        )
    finally:
        for record in tmp_path.glob("home/**/agent.json"):
            shutil.rmtree(settings.load(str(record.parent)).runtime_dir, ignore_errors=True)


def make(server: RunningServer, **values: Any) -> dict[str, Any]:
    return dict(server.ask("POST", "/api/tokens", {"scope": "enroll", "name": "lab", **values}).json)


def used_up(server: RunningServer) -> str:
    token = make(server, uses=1)["token"]
    assert register(server, token, body("first"))[0] == 200
    return str(token)


def expired(server: RunningServer) -> str:
    made = make(server, expires_in_s=1)

    wait_until(lambda: register(server, made["token"], body("while-it-lasts"))[0] == 401, what="its end", every_s=0.1)
    return str(made["token"])


def revoked(server: RunningServer) -> str:
    made = make(server)
    assert server.ask("DELETE", f"/api/tokens/{made['token_id']}").status == 200
    return str(made["token"])


def body(worker_id: str) -> dict[str, Any]:
    return {"worker_id": worker_id, "command": "x", "host": "far", "secret_sha256": messages.secret_sha256("mine")}


def register(server: RunningServer, token: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """As a launcher in any language does."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request("POST", "/api/workers/register", json.dumps(body), headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (lambda _: "pg-mistyped", "knows no such enrolment token"),
        (revoked, "knows no such enrolment token"),
        (lambda server: make(server, scope="operator")["token"], "knows no such enrolment token"),
        (used_up, "this enrolment token has admitted its maximum number of launchers"),
        (expired, "this enrolment token expired at"),
    ],
)
def test_a_launcher_with_a_bad_token_ends_and_says_how_to_get_an_enrolment_token(
    server: RunningServer, tmp_path: Path, bad: Any, cause: str
) -> None:
    token = bad(server)
    ended = launch(server, tmp_path, "far1", token)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1 and cause in said, said
    assert "invoke token.create --scope enroll" in said and "without --token" in said
    assert '"scope": "operator"' not in said and token not in said and "Traceback" not in said


def test_a_registration_in_any_language_is_handled_the_same(server: RunningServer) -> None:
    status, answer = register(server, "pg-mistyped", body("far2"))
    assert status == 401 and "enrolment token" in answer["error"]["message"]
    assert "invoke token.create --scope enroll" in answer["error"]["next"]
    assert "operator" not in answer["error"]["next"].partition("without --token")[0]
