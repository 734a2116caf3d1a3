"""One place for a field, one file for a route: a copy of the tree gets one line and one file more, and shows both
everywhere (CONTRIBUTING.md, How to add a field, How to add a route)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol import messages
from tests import server_process
from tests.server_process import RunningServer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[4]
FIELD = """    Of("exit_count", "int", lambda w: w.worker.attempt + 40, "", Label("Exits", "退出"), unit="count"),
"""
ROUTE = '''"""How long the manager has been running."""

from __future__ import annotations

from dataclasses import dataclass

from procguard.agent_api.declaration import get, whole
from procguard.portal.api.resource import Resource


@dataclass(frozen=True)
class UptimeQuery:
    digits: int = whole(0, 0, 3, "after the point")


@dataclass(frozen=True)
class Uptime:
    seconds: float


class UptimeApi(Resource):
    @get("/api/uptime", "viewer", tag="manager", zh="运行时长")
    def uptime(self, query: UptimeQuery) -> Uptime:
        """How long the manager has been running."""
        return Uptime(round(12.3456, query.digits))
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with one line and one file more."""
    place = tmp_path_factory.mktemp("tree")
    for name in ("procguard", "remote_agent", "web", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "golden", "fleet" if name == "tests" else "")
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    fields = place / "procguard" / "fleet" / "shapes" / "workers.py"
    text = fields.read_text(encoding="utf-8")
    mark = '    Of("reason", "str",'
    assert text.count(mark) == 1
    fields.write_text(text.replace(mark, FIELD + mark), encoding="utf-8")
    (place / "procguard" / "portal" / "api" / "uptime.py").write_text(ROUTE, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def server(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_process, "ROOT", copy)
        patch.setenv("PYTHONPATH", str(copy))
        running = RunningServer(tmp_path_factory.mktemp("server"))
    secret = running.deploy("alpha", "worker1")
    running.beat("alpha", secret, messages.WorkerReport("worker1", state="running", attempt=2, pid=7))
    yield running
    running.close()


def answer(server: RunningServer, path: str, **headers: str) -> tuple[int, Any]:
    """Not by `ask`, which checks responses against the description of the unmodified tree."""
    request = urllib.request.Request(f"http://localhost:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as exc:
        return exc.code, json.load(exc)


def test_a_new_field_is_in_the_api_openapi_the_live_feed_and_the_portals_columns(server: RunningServer) -> None:
    _, worker = answer(server, "/api/remote-workers/worker1")
    assert worker["exit_count"] == 42
    _, described = answer(server, "/api/openapi.json")
    schema = described["components"]["schemas"]["WorkerAnswer"]
    assert schema["properties"]["exit_count"]["type"] == "integer" and "exit_count" in schema["required"]
    _, live = answer(server, "/api/live/workers")
    assert live["columns"]["exit_count"] == [42]
    _, fields = answer(server, "/api/fields")
    [reported] = [one for one in fields["workers"] if one["name"] == "exit_count"]
    assert reported["label"] == {"en": "Exits", "zh": "退出"} and reported["column"]["key"] == "exit_count"
    assert reported["live"] == "row"


def test_a_new_field_is_in_the_commands_wide_table(copy: Path, server: RunningServer) -> None:
    environ = {**os.environ, "PYTHONPATH": str(copy), "PROCGUARD_MANAGER_URL": f"http://localhost:{server.port}"}
    command = [sys.executable, "-m", "procguard", "ps", "--output", "wide"]
    shown = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, timeout=60, check=False)
    head, line = shown.stdout.splitlines()[:2]
    assert "EXITS" in head.split() and "42" in line.split(), shown


def test_a_new_route_is_served_guarded_and_described_by_one_file(copy: Path, server: RunningServer) -> None:
    assert answer(server, "/api/uptime?digits=1") == (200, {"seconds": 12.3})
    status, error = answer(server, "/api/uptime?digits=9")
    assert status == 400 and "expected a whole number from 0 to 3" in error["error"]["message"]
    assert answer(server, "/api/uptime", **{"X-Forwarded-For": "192.0.2.7"})[0] == 401
    assert ("GET", "/api/uptime") in server.routes()
    _, described = answer(server, "/api/openapi.json")
    operation = described["paths"]["/api/uptime"]["get"]
    assert operation["summary"] == "How long the manager has been running" and operation["x-who"] == "viewer"
    assert [one["name"] for one in operation["parameters"]] == ["digits"]
    assert described["components"]["schemas"]["Uptime"]["properties"]["seconds"]["type"] == "number"


def test_a_new_route_is_in_the_documents_table_and_tried_by_the_access_test(copy: Path) -> None:
    code = (
        "from tests.unit.portal.auth.test_access_table import ROWS, by_rule, READ; "
        "from procguard.portal.api.resource import all_routes; "
        "assert ROWS['GET /api/uptime'].who == by_rule('GET /api/uptime') == READ; "
        "print([one.summary for one in all_routes() if one.path == '/api/uptime'])"
    )
    environ = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "['How long the manager has been running']", done.stderr
