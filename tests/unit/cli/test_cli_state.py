"""invoke state: show, backup, export, import, migrate, rebuild; never over existing files or beside a running
manager."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from procguard.cli import app
from procguard.cli import state as cli_state
from procguard.cli.program import process
from procguard.cli.program.command import CliCommand
from procguard.config import schema
from procguard.errors import ProcGuardError
from procguard.fleet.fleet import Fleet
from procguard.fleet.history.events import EventLog
from procguard.fleet.model.clock import Now
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.store import database, open_store, sqlite
from procguard.manager import daemon
from tests.unit.store_rig import KINDS, loaded

WALL = 1_790_000_000.0


def opened(path: Path | str, wall: float = WALL) -> Fleet:
    store = open_store(str(path))
    return Fleet(store, EventLog(store), FleetSettings(), Now(0.0, wall))


@pytest.fixture(params=KINDS)
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A fleet with one worker, 训练, and a manager that has ended."""
    path = tmp_path / "old" / f"fleet{request.param}"
    path.parent.mkdir()
    fleet = opened(path)
    spec = {"command": "python 训练.py"}
    fleet.workers.deploy(
        {"hosts": [{"host": "h1", "workers": [{"worker_id": "w1", "spec": spec}]}]}, "tester", Now(0.0, WALL)
    )
    fleet.close()
    return path


def run(command: CliCommand, *arguments: str, **options: Any) -> int:
    """Its exit code."""
    given = dict(zip((one.name for one in command.positionals), arguments, strict=False))
    return process.guarded(lambda: command.run({**given, **options}))


def other(state: Path) -> Path:
    return state.parent.parent / "new" / ("fleet.db" if state.suffix == ".yaml" else "fleet.yaml")


def same_but_marked(new: Path, old: Path) -> None:
    expected = loaded(old).tables
    expected["fleet"]["fleet"]["imported"] = True
    assert loaded(new).tables == expected


def test_an_export_imported_into_the_other_kind_is_the_same_state(state: Path, tmp_path: Path) -> None:
    file, new = tmp_path / "export.jsonl", other(state)
    assert run(cli_state.export, str(file), state=str(state)) == 0
    assert os.stat(file).st_mode & 0o077 == 0
    assert run(cli_state.import_, str(file), state=str(new)) == 0
    same_but_marked(new, state)
    assert [os.stat(new.parent / name).st_mode & 0o077 for name in os.listdir(new.parent)] == [0] * len(
        os.listdir(new.parent)
    )


def test_a_migrated_fleet_is_the_same_fleet_with_higher_epochs_that_first_resyncs(state: Path) -> None:
    new = other(state)
    assert run(cli_state.migrate, str(state), str(new)) == 0
    same_but_marked(new, state)
    before = loaded(state).tables["workers"]["w1"]["epoch"]
    fleet = opened(new, WALL - 1e6)  # also where the clock was set back
    assert fleet.state.fleet_id == loaded(state).tables["fleet"]["fleet"]["fleet_id"]
    with fleet.state.transaction(Now(0.0, WALL - 1e6)) as tx:
        assert fleet.state.next_epoch(tx) > before
    assert fleet.resync.open(Now(0.0, WALL))
    assert any(event["kind"] == "deploy" for event in fleet.state.events())
    fleet.close()
    again = opened(new)
    assert not again.resync.open(Now(0.0, WALL))
    again.close()


def test_going_back_to_an_older_release_begins_with_the_copy_from_before_the_migration(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in docs/operations.md: a later release migrates; this one refuses its state with a message and imports the
    copy."""
    before = loaded(state).tables
    with monkeypatch.context() as later:
        later.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "CREATE TABLE extra (one TEXT)"))
        later.setattr(sqlite, "__version__", "0.9.0")
        fleet = opened(state)
        with fleet.state.transaction(Now(0.0, WALL)) as tx:
            fleet.state.next_epoch(tx)
        fleet.close()
    with pytest.raises(ProcGuardError, match=r"was written by ProcGuard 0\.9\.0 in format 2; this release"):
        loaded(state)
    (copy,) = state.parent.glob("*.db.v1")
    new = other(state)
    assert run(cli_state.import_, str(copy), state=str(new)) == 0, capsys.readouterr().err
    assert {name: loaded(new).tables[name] for name in before if name != "fleet"} == {
        name: records for name, records in before.items() if name != "fleet"
    }
    fleet = opened(new)
    assert fleet.resync.open(Now(0.0, WALL))  # every agent is asked before anything is assigned
    fleet.close()


def test_nothing_is_ever_overwritten(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "export.jsonl"
    assert run(cli_state.export, str(file), state=str(state)) == 0
    before = file.read_bytes(), loaded(state).tables
    assert run(cli_state.export, str(file), state=str(state)) == 1
    assert run(cli_state.import_, str(file), state=str(state)) == 1
    assert run(cli_state.migrate, str(state), str(state)) == 1
    assert run(cli_state.rebuild, "f-0123456789", state=str(state)) == 1
    assert (file.read_bytes(), loaded(state).tables) == before
    assert "exists; nothing was written" in capsys.readouterr().err


def test_while_a_manager_runs_on_it_nothing_is_touched(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = daemon.lock_state(schema.load(None, [f"state.state_file={state}"]))
    try:
        assert run(cli_state.migrate, str(state), str(other(state))) == 1
        assert run(cli_state.import_, str(state), state=str(state.with_name("new.db"))) == 1
        assert "stop it first (./start_manager.sh --stop --set state.state_file=" in capsys.readouterr().err
        assert run(cli_state.show, state=str(state)) == 0
        assert f"running, pid {os.getpid()}" in capsys.readouterr().out
    finally:
        lock.release()
    assert not other(state).exists() and not state.with_name("new.db").exists()


def test_a_backup_and_an_export_are_made_while_a_manager_writes(state: Path, tmp_path: Path) -> None:
    fleet, new = opened(state), other(state)
    lock = daemon.lock_state(schema.load(None, [f"state.state_file={state}"]))
    try:
        fleet.workers.command("w1", "stop", "anna", Now(0.0, WALL))
        assert run(cli_state.backup, str(tmp_path / "b.db"), state=str(state)) == 0
        assert run(cli_state.backup, str(tmp_path / "b.db"), state=str(state)) == 1  # never over another
        assert run(cli_state.export, str(tmp_path / "x.jsonl"), state=str(state)) == 0
        fleet.workers.command("w1", "start", "anna", Now(0.0, WALL))
    finally:
        lock.release()
    fleet.close()
    assert os.stat(tmp_path / "b.db").st_mode & 0o077 == 0
    for file in ("b.db", "x.jsonl"):
        assert run(cli_state.import_, str(tmp_path / file), state=str(new)) == 0
        found = loaded(new)
        assert found.tables["workers"]["w1"]["desired"] == "stopped" and found.tables["fleet"]["fleet"]["imported"]
        kinds = [event["kind"] for event in opened(new).state.events()]
        assert ("command" in kinds) is (file == "b.db")
        shutil.rmtree(new.parent)


def test_a_backup_put_in_the_place_of_the_database_first_asks_the_agents(state: Path, tmp_path: Path) -> None:
    fleet = opened(state)
    assert run(cli_state.backup, str(tmp_path / "b.db"), state=str(state)) == 0
    fleet.close()
    shutil.rmtree(state.parent)
    state.parent.mkdir(mode=0o700)
    shutil.copy(tmp_path / "b.db", state.with_suffix(".db"))
    again = opened(state)
    assert again.resync.open(Now(0.0, WALL)) and "w1" in again.state.workers_by_id
    again.close()


def test_an_edited_snapshot_becomes_a_state_by_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "old" / "fleet.yaml"
    state.parent.mkdir()
    fleet = opened(state)
    spec = {"command": "python a.py"}
    fleet.workers.deploy(
        {"hosts": [{"host": "h1", "workers": [{"worker_id": "w1", "spec": spec}]}]}, "tester", Now(0.0, WALL)
    )
    fleet.close()
    document = yaml.safe_load(state.read_text(encoding="utf-8"))
    document["tables"]["workers"]["w1"]["spec"]["command"] = "python b.py"
    state.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ProcGuardError, match=r"invoke state\.import"):
        opened(state)
    new = tmp_path / "new" / "fleet.yaml"
    assert run(cli_state.import_, str(state), state=str(new)) == 0
    again = opened(new)
    assert again.state.find("w1").spec.command == "python b.py" and again.resync.open(Now(0.0, WALL))
    again.close()
    state.write_text("all: {hosts: {web-01: {}}}")
    assert run(cli_state.import_, str(state), state=str(tmp_path / "x" / "x.yaml")) == 1
    assert "not a snapshot of a state" in capsys.readouterr().err


def test_migrating_between_two_names_of_one_database_is_refused(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = state.with_suffix(".db" if state.suffix == ".yaml" else ".yaml")
    assert run(cli_state.migrate, str(state), str(target)) == 1
    assert f"no migration is needed: put state.state_file={target}" in capsys.readouterr().err


def test_a_probe_says_where_what_and_how_large(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli_state.show, state=str(state), json_=True) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state_file"], facts["exists"], facts["manager_pid"]) == (str(state), True, None)
    assert facts["bytes"] > 0 and facts["database"] == str(state.with_suffix(".db"))
    assert (facts["snapshot_age_s"] is not None) is (state.suffix == ".yaml")
    assert run(cli_state.show, state=str(state.with_name("none.yaml"))) == 0
    assert "no state yet" in capsys.readouterr().out


def exported(state: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run(cli_state.export, "-", state=str(state)) == 0
    return capsys.readouterr().out.splitlines(keepends=True)


@pytest.mark.parametrize("harm", ["cut", "changed", "shortened", "not one", "newer", "empty"])
def test_an_export_that_is_not_whole_is_refused_and_nothing_is_made(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    lines = exported(state, capsys)
    harmed, said = {
        "cut": (lines[:-1], "the file is truncated"),
        "changed": ([one.replace("\\u8bad", "\\u8bae") for one in lines], "are not those that were exported"),
        "shortened": ([*lines[:2], *lines[3:]], "are not those that were exported"),
        "not one": (["all:\n"], "-:1: not a line of an export"),
        "newer": ([lines[0].replace('"procguard_state":1', '"procguard_state":2'), *lines[1:]], "reads up to 1"),
        "empty": ([], "the file is truncated"),
    }[harm]
    assert harmed != lines
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(harmed)))
    assert run(cli_state.import_, "-", state=str(other(state))) == 1
    assert said in capsys.readouterr().err
    assert not other(state).exists()


def test_a_state_for_a_fleet_that_lost_everything_has_its_name_and_asks_first(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    assert run(cli_state.rebuild, "f-0123456789", state=str(path)) == 0
    fleet = opened(path)
    assert fleet.state.fleet_id == "f-0123456789"
    fleet.close()
    assert run(cli_state.rebuild, "../x", state=str(tmp_path / "other.yaml")) == 1


def test_the_program_takes_the_words_as_a_person_writes_them(tmp_path: Path) -> None:
    assert app.find(["state", "export", "-"])[1:] == ("state export", ["-"])
    assert app.find(["state.export", "-"])[1:] == ("state export", ["-"])
    assert app.find(["state", "--json"])[1:] == ("state", ["--json"])
    words = [sys.executable, "-m", "procguard", "state", "import", "nowhere", "--state", str(tmp_path / "x.txt")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 1
    assert "expected a path that ends in .yaml (readable) or in .db (SQLite)" in done.stderr
    assert "Traceback" not in done.stderr
