"""`invoke forget`: permanently lost workers leave the list; possibly running ones are not forgotten by accident."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from procguard.cli import app
from tests import fake_manager
from tests.fake_manager import FakeManager


def worker(worker_id: str, host: str, state: str, last_known: str = "") -> dict[str, Any]:
    return {
        "worker_id": worker_id, "host": host, "agent": host, "state": state, "last_known_state": last_known or state,
    }  # fmt: skip


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeManager, list[str]]]:
    """gpu1 is unreachable with `busy` and `idle`; `laptop` is a launcher that has ended; gpu2 is connected."""
    forgotten: list[str] = []
    with fake_manager.running() as manager:
        workers = [
            worker("busy", "gpu1", "unknown", "running"),
            worker("idle", "gpu2", "stopped"),
            worker("gpu2", "gpu2", "exited"),
        ]
        hosts = [
            {"host": "gpu1", "agent": "gpu1", "agent_state": "unreachable"},
            {"host": "gpu2", "agent": "gpu2", "agent_state": "connected"},
            {"host": "laptop", "agent": "launcher:solo", "agent_state": "unreachable"},
        ]
        manager.routes["GET /api/remote-workers"] = lambda body: (200, {"workers": workers})
        manager.routes["GET /api/hosts"] = lambda body: (200, {"hosts": hosts, "server_time": ""})
        for path in ("workers/busy", "workers/idle", "workers/gpu2", "agents/gpu1", "agents/launcher:solo"):
            manager.routes[f"DELETE /api/{path}"] = lambda body, path=path: (200, forgotten.append(path) or {})  # type: ignore[misc]
        refusal = {"error": {"code": "connected", "message": "gpu2 is connected", "next": "uninstall it first"}}
        manager.routes["DELETE /api/agents/gpu2"] = lambda body: (409, refusal)
        monkeypatch.setenv("PROCGUARD_MANAGER_URL", manager.url)
        yield manager, forgotten


def forget(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app.main(["procguard", "forget", *words])
        raise SystemExit(0)
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("words", "code", "path"),
    [
        (("idle",), 0, "workers/idle"),
        (("gpu2",), 0, "workers/gpu2"),  # a worker comes before an agent of the same name
        (("gpu2", "--agent"), 1, ""),  # connected
        (("busy",), 1, ""),
        (("busy", "--yes"), 0, "workers/busy"),
        (("gpu1",), 1, ""),
        (("gpu1", "--yes"), 0, "agents/gpu1"),
        (("solo",), 0, "agents/launcher:solo"),
        (("laptop",), 0, "agents/launcher:solo"),
        (("nobody",), 1, ""),
    ],
)
def test_what_is_forgotten(fleet: tuple[FakeManager, list[str]], words: tuple[str, ...], code: int, path: str) -> None:
    assert forget(*words) == code
    assert fleet[1] == ([path] if path else [])


def test_a_refusal_says_what_to_do(fleet: tuple[FakeManager, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    forget("busy")
    assert "busy on gpu1" in (reported := capsys.readouterr().err) and "invoke forget busy --yes" in reported
    forget("gpu2", "--agent")
    assert "gpu2 is connected; uninstall it first" in capsys.readouterr().err
