"""/api/openapi.json is complete and true: routes, parameters, bodies. That answers have their documented shape is held
by `RunningServer.ask` in every test that asks (tests/api_truth.py)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs
import pytest

from procguard.config import schema as config
from procguard.portal.api.openapi.document import document, path_of
from procguard.portal.api.resource import all_routes
from procguard.portal.logs.store import LogStore
from procguard.portal.web_monitor import PAGES, WebMonitor
from remote_agent.protocol import messages
from tests import api_truth
from tests.server_process import RunningServer
from tests.unit.fleet_world import World

ROOT = Path(__file__).parents[4]
WHAT_TO_DO = "declare it at its handler (CONTRIBUTING.md: How to add a route)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    yield running
    running.close()


def test_every_route_of_the_application_is_described_and_the_other_way_round(tmp_path: Path) -> None:
    settings = config.load(None, [f"state.state_file={tmp_path}/state.yaml"])
    monitor = WebMonitor(settings, World(tmp_path).fleet, LogStore(str(tmp_path / "logs")))
    served = {(route.method, route.rule) for route in monitor.app.routes}
    described = {(route.method, route.path) for route in all_routes()}
    assert sorted(served - described - set(PAGES)) == [], f"not described: {WHAT_TO_DO}"
    assert sorted(described - served) == [], "described, but not served: take it out of the table"


def test_each_route_is_described_once_and_in_both_languages() -> None:
    keys = [(route.method, route.path) for route in all_routes()]
    assert len(keys) == len(set(keys))
    for route in all_routes():
        assert route.summary and re.search(r"[\u4e00-\u9fff]", route.zh), (
            f"{route.method} {route.path}: say it in Chinese"
        )


def test_it_is_an_openapi_3_1_document_whose_references_lead_somewhere(server: RunningServer) -> None:
    answer = server.ask("GET", "/api/openapi.json", headers={"X-Forwarded-For": "192.0.2.7"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    reported = answer.json
    assert reported == json.loads(json.dumps(document())) and reported["openapi"].startswith("3.1")
    for reference in set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(reported))):
        found = reported
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
        assert found, reference
    for schema in reported["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    ids = [operation["operationId"] for path in reported["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_the_query_is_read_only_as_it_is_declared() -> None:
    """A parameter that a handler reads directly would be missing from the description."""
    found = []
    for folder in ("portal", "agent_api"):
        for path in (ROOT / "procguard" / folder).rglob("*.py"):
            if path.name in ("http_io.py", "declaration.py"):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and (node.attr.startswith("query_") or node.attr == "getunicode"):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_every_declared_answer_and_body_is_described(server: RunningServer) -> None:
    """No operation except the description itself has a response that is only "an object"."""
    bare = []
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            contents = [one.get("content", {}) for one in operation["responses"].values()]
            contents.append(operation.get("requestBody", {}).get("content", {}))
            schemas = [one["application/json"]["schema"] for one in contents if "application/json" in one]
            bare += [f"{method} {path}" for schema in schemas if "$ref" not in schema]
    assert bare == ["get /api/openapi.json"]


def test_a_body_that_is_not_as_described_is_refused_naming_the_field(server: RunningServer) -> None:
    server.deploy("alpha", "worker1")
    for path, body, field in (
        ("/api/workers/worker1/command", {"command": 7}, "command"),
        ("/api/workers/worker1/move", {"host": ["x"]}, "host"),
        ("/api/hosts/alpha/cordon", {"reason": 7}, "reason"),
        ("/api/agents/alpha/approve", {"fingerprint": 1}, "fingerprint"),
        ("/api/operations", {"token": "p-1", "concurrency": True}, "concurrency"),
        ("/api/tokens", {"scope": "operator", "name": "a\nb"}, "name"),
        ("/api/login", {"token": 12345}, "token"),
    ):
        answer = server.ask("POST", path, body)
        assert answer.status == 400 and field in answer.json["error"]["message"], answer.body


def test_answers_about_a_fleet_that_has_everything_are_as_described(server: RunningServer) -> None:
    """Each is checked by `ask`; what matters here is that no field is left empty."""
    secret = server.deploy("full", "w1", "w2", "w3")
    exit_record = messages.ExitRecord(1, signal=9, at=1.0, duration_s=2.0, reason="killed by signal 9")
    gpu = messages.GpuUsage(0, "GPU-1", "H100", 97.0, 1, 2, 3.0, 4.0, 5.0, [messages.GpuProcess(7, 1, "python", "al")])
    reports = [
        messages.WorkerReport(
            "w1", "running", attempt=2, pid=7, last_exit=exit_record, usage=messages.WorkerUsage(1.0, 2, gpus=[0]),
            health=messages.Health("failing", "503"), next_start_in_s=1.5, since=1.0,
        ),
        messages.WorkerReport("w2", "failed", attempt=4, last_exit=exit_record),
    ]  # fmt: skip
    event = messages.WorkerEvent("w2", 1, 1.0, 4, "running", "failed", "exit code 1", exit_record)
    facts = messages.HostFacts("full", "Debian 12", "3.11", "alice", 4, 1)
    usage = messages.HostUsage(1.0, gpus=[gpu])
    server.beat("full", secret, *reports, events=[event], facts=facts, usage=usage)
    registration = {"worker_id": "by-hand", "command": "sleep 1", "host": "elsewhere", "secret_sha256": "0" * 64}
    pending = server.ask("POST", "/api/workers/register", registration, headers={"X-Forwarded-For": "192.0.2.7"})
    assert pending.status == 202
    assert server.ask("POST", "/api/hosts/full/cordon", {"reason": "fan"}).status == 200
    assert server.ask("POST", "/api/workers/w3/command", {"command": "stop", "reason": "why"}).status == 202
    preview = server.ask("POST", "/api/operations/preview", {"command": "stop", "selector": "host=full"}).json
    begun = server.ask("POST", "/api/operations", {"token": preview["token"]}).json
    for path in (
        "/api/remote-workers", "/api/remote-workers/w1", "/api/workers/w2/explain", "/api/hosts", "/api/agents",
        "/api/commands", "/api/events", "/api/groups", "/api/recoveries", "/api/tokens", "/api/notifications",
        "/api/audit",
        "/api/operations", f"/api/operations/{begun['operation_id']}", "/api/session", "/healthz", "/readyz",
        "/metrics", "/api/remote-workers/w1/logs?format=json", "/api/remote-workers/w1/logs?download=1",
        "/api/events?format=jsonl",
    ):  # fmt: skip
        assert server.ask("GET", path).status == 200, path
    agents = server.ask("GET", "/api/agents").json["agents"]
    assert {agent["agent_state"] for agent in agents} >= {"connected", "pending"}


def test_paths_are_written_as_openapi_writes_them() -> None:
    assert path_of("/api/workers/<worker_id>/command") == "/api/workers/{worker_id}/command"
    assert path_of("/static/<path:path>") == "/static/{path}"


def test_an_answer_with_a_field_that_nobody_described_is_noticed() -> None:
    good = {"status": "ready", "fleet_id": "f-1"}
    api_truth.check("GET", "/readyz", 200, "application/json", json.dumps(good).encode())
    with pytest.raises(api_truth.Untrue, match="secret"):
        api_truth.check("GET", "/readyz", 200, "application/json", json.dumps({**good, "secret": "x"}).encode())
    with pytest.raises(api_truth.Untrue, match="409"):
        api_truth.check("GET", "/readyz", 409, "application/json", b"{}")


def _shape(path: str) -> str:
    """A path with each name in it as *, without its query."""
    return re.sub(r"<[^>]+>|\$\{[^}]*\}+|\{[^}]*\}", "*", path).partition("?")[0]


def _asked_by_client() -> set[str]:
    """The URLs that procguard/client requests, from its f-strings."""
    found = set()
    for path in (ROOT / "procguard" / "client").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(one.value) if isinstance(one, ast.Constant) else "*" for one in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return {_shape(one) for one in found if re.match(r"/api/\S+$", one)}


def _asked_by_pages() -> set[str]:
    found = set()
    for path in (ROOT / "web" / "js").rglob("*.js"):
        found |= set(re.findall(r"['`](/api/[^'`\s]+)['`]", path.read_text(encoding="utf-8")))
    return {_shape(one) for one in found}


def test_what_the_client_and_the_pages_ask_for_is_declared() -> None:
    declared = {_shape(route.path) for route in all_routes()}

    def is_declared(asked: str) -> bool:
        pattern = re.compile(re.escape(asked).replace(r"\*", "[^/]+"))
        begun = asked.endswith("/")  # put together in two steps
        return any(pattern.match(one) if begun else pattern.fullmatch(one) for one in declared)

    asked = _asked_by_client() | _asked_by_pages()
    assert len(asked) > 30
    assert {one for one in asked if not is_declared(one)} == set()
