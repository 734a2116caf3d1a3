"""procguard.Client: the examples of its document run, and its types match the manager's."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import procguard
from procguard.client import types
from procguard.portal.api import history, hosts, logs, operations, workers
from tests import fake_manager
from tests.server_process import RunningServer

REPOSITORY = Path(__file__).parents[3]
DECLARED = {"hosts": [{"host": "gpu01", "workers": [{"worker_id": "train-1", "spec": {"command": "python train.py"}}]}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("client"))
    try:
        assert running.ask("POST", "/api/deployments", DECLARED).status == 200
        yield running
    finally:
        running.close()


def test_every_example_of_the_document_runs(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "client.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        code = block.replace("http://localhost:5000", f"http://127.0.0.1:{server.port}")
        exec(compile(code, "docs/client.md", "exec"), names)
    said = capsys.readouterr().out
    assert "train-1" in said and "no worker" in said


@pytest.mark.parametrize(
    ("info", "answer"),
    [
        (types.WorkerInfo, workers.WorkerAnswer),
        (types.HostInfo, hosts.HostAnswer),
        (types.EventInfo, history.EventAnswer),
        (types.CommandInfo, workers.Accepted),
        (types.ExplanationInfo, history.ExplanationAnswer),
        (types.OperationInfo, operations.OperationAnswer),
    ],
)
def test_types_have_the_keys_that_the_manager_declares(info: type, answer: Any) -> None:
    assert set(typing.get_type_hints(info)) == set(typing.get_type_hints(answer))


def test_a_line_of_a_log_has_the_keys_that_the_manager_declares() -> None:
    assert set(typing.get_type_hints(types.LogLineInfo)) == set(typing.get_type_hints(logs.Line)) - {
        "marker",
        "partial",
    }


def test_what_is_public_is_imported_when_it_is_asked_for() -> None:
    for name in procguard.__all__:
        assert getattr(procguard, name)
    with pytest.raises(AttributeError):
        procguard.nothing  # noqa: B018


def test_events_are_followed_without_a_gap_or_a_repetition() -> None:
    batches = [[{"seq": 1}, {"seq": 2}], [], [{"seq": 3}]]
    with fake_manager.running() as manager:
        manager.routes["GET /api/events"] = lambda body: (200, {"events": batches.pop(0)})
        events = procguard.Client(manager.url).iterate_events(follow=True, every_s=0.01)
        assert [next(events)["seq"] for _ in range(3)] == [1, 2, 3]
        asked = [path.partition("?")[2] for _, path, *_ in manager.asked("GET", "/api/events")]
    assert [query.partition("after=")[2] for query in asked] == ["", "2", "2"]
