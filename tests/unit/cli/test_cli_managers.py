"""Several managers at the command line: a state moves to PostgreSQL and back; the leader is shown and changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.cli import managers as cli_managers
from procguard.cli import state as cli_state
from procguard.fleet.history.query import EventQuery
from procguard.fleet.store.postgres_link import DatabasePlace
from procguard.fleet.store.postgresql import PostgresqlStore
from tests import fake_manager, postgres_server
from tests.fake_manager import FakeManager
from tests.postgres_server import PASSWORD, Postgres
from tests.unit.cli.test_cli_state import opened, run, same_but_marked, state  # noqa: F401 - a fixture
from tests.unit.store_rig import loaded

ANSWER: dict[str, Any] = {
    "leader": "m1",
    "term": 28829083,
    "since": "2026-11-30T15:00:00.000Z",
    "database": "postgresql://procguard@db1/procguard",
    "replication": "asynchronous, 1 connected",
    "warnings": ["the replicas of the database are asynchronous"],
    "managers": [
        {"name": "m1", "role": "leader", "urls": ["http://10.0.0.1:5000"], "version": "0.2.0"}
        | {"seen_s": 0.4, "behind": 0, "clock_s": 0.1, "ssh": None},
        {"name": "m2", "role": "standby", "urls": ["http://10.0.0.2:5000"], "version": "0.2.0"}
        | {"seen_s": 0.2, "behind": 3, "clock_s": -7.0}
        | {"ssh": {"ok": 11, "failed": 1, "reasons": {"gpu01": "connection refused"}}},
        {"name": "m3", "role": "away", "urls": [], "version": ""}
        | {"seen_s": 90.0, "behind": 70, "clock_s": 0.0, "ssh": None},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server.cluster(fsync="off") as started:
        yield started


@pytest.fixture
def url(server: Postgres) -> str:
    return server.url(server.database())


def migrated(source: str, target: str, server: Postgres) -> int:
    return run(cli_state.migrate, source, target, password_file=str(server.password))


def test_a_state_moves_to_postgresql_and_back_with_its_history(
    state: Path,  # noqa: F811
    url: str,
    server: Postgres,
    tmp_path: Path,
) -> None:
    assert migrated(str(state), url, server) == 0
    place = DatabasePlace(url, str(server.password))
    expected = loaded(state).tables
    expected["fleet"]["fleet"]["imported"] = True
    assert PostgresqlStore(place).read().tables == expected
    events = PostgresqlStore(place).find("events", EventQuery(), 100)
    assert any(event["kind"] == "deploy" for event in events)
    back = tmp_path / "back" / state.name
    assert migrated(url, str(back), server) == 0
    same_but_marked(back, state)
    fleet = opened(back)
    assert [one["seq"] for one in fleet.state.events(limit=100)][: len(events)] == [one["seq"] for one in events]
    fleet.close()


def test_what_a_database_holds_is_never_overwritten(
    state: Path,  # noqa: F811
    url: str,
    server: Postgres,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert migrated(str(state), url, server) == 0
    before = PostgresqlStore(DatabasePlace(url, str(server.password))).read().tables
    assert migrated(str(state), url, server) == 1
    assert "already contains a state; nothing was written" in capsys.readouterr().err
    assert PostgresqlStore(DatabasePlace(url, str(server.password))).read().tables == before


def test_while_a_manager_is_there_nothing_is_moved(
    state: Path,  # noqa: F811
    url: str,
    server: Postgres,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert migrated(str(state), url, server) == 0
    name = url.rpartition("/")[2]
    server.sql("INSERT INTO procguard.managers VALUES ('m1', 'p', clock_timestamp(), '[]', '{}')", name)
    assert migrated(url, str(tmp_path / "back.yaml"), server) == 1
    assert "manager m1 runs on" in capsys.readouterr().err
    assert not (tmp_path / "back.yaml").exists()


def test_a_url_with_a_password_is_refused_without_repeating_it(
    state: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(cli_state.migrate, str(state), "postgresql://procguard:hunter2@127.0.0.1/x") == 1
    said = capsys.readouterr()
    assert "a URL without a password" in said.err
    assert "hunter2" not in said.err + said.out


def test_an_empty_database_and_one_that_is_away_are_one_clear_line(
    url: str, server: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrated(url, str(tmp_path / "back.yaml"), server) == 1
    assert "there is no state in postgresql://" in capsys.readouterr().err
    assert run(cli_state.migrate, "postgresql://procguard@127.0.0.1:1/x", str(tmp_path / "back.yaml")) == 1
    said = capsys.readouterr().err
    assert re.search(r"cannot use postgresql://procguard@127.0.0.1:1/x \(.*refused", said)
    assert "Traceback" not in said and PASSWORD not in said


def test_a_configured_database_is_shown_and_exported(
    state: Path,  # noqa: F811
    url: str,
    server: Postgres,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "m1.yaml"
    config.write_text(f"state:\n  database: {url}\n  database_password_file: {server.password}\n")
    assert run(cli_state.show, config=str(config)) == 0
    assert "no state yet" in capsys.readouterr().out
    assert migrated(str(state), url, server) == 0
    assert run(cli_state.show, config=str(config)) == 0
    assert "PostgreSQL" in capsys.readouterr().out
    assert run(cli_state.export, str(tmp_path / "export.jsonl"), config=str(config)) == 0
    kinds = {json.loads(line).get("table") for line in (tmp_path / "export.jsonl").read_text().splitlines()}
    assert {"fleet", "agents", "workers"} <= kinds
    assert run(cli_state.backup, str(tmp_path / "b.db"), config=str(config)) == 1
    assert "pg_dump" in capsys.readouterr().err


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeManager]:
    with fake_manager.running() as fake:
        monkeypatch.setenv("PROCGUARD_MANAGER_URL", fake.url)
        monkeypatch.setenv("COLUMNS", "200")
        yield fake


def test_managers_shows_who_leads_and_what_endangers_a_takeover(
    manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.routes["GET /api/managers"] = lambda body: (200, ANSWER)
    assert run(cli_managers.managers_list) == 0
    said = capsys.readouterr().out
    assert re.search(r"m1 +leader", said)
    assert re.search(r"m2 +standby .* 3 commits .*no to 1 of 12 hosts \(gpu01: connection refused\) .*-7.0 s", said)
    assert "m3" in said and "away" in said
    assert "asynchronous, 1 connected; term 28829083" in said
    assert "warning: the replicas of the database are asynchronous" in said


def test_one_manager_says_that_it_is_alone(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    manager.routes["GET /api/managers"] = lambda body: (200, {**ANSWER, "managers": [], "warnings": []})
    assert run(cli_managers.managers_list) == 0
    assert "one manager, with a state of its own" in capsys.readouterr().out


def test_promote_names_who_is_to_lead(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    manager.routes["POST /api/managers/promote"] = lambda body: (200, {"leader": "m2", "status": "handing over"})
    assert run(cli_managers.managers_promote, "m2") == 0
    assert manager.asked("POST", "/api/managers/promote")[0][2] == {"name": "m2"}
    assert "m2: takes over now" in capsys.readouterr().out
