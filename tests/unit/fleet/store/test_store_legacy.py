"""States in the previous format, written by its release (tests/golden/states), are migrated without loss."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import ProcGuardError
from procguard.fleet.fleet import Fleet
from procguard.fleet.history.events import EventLog
from procguard.fleet.history.query import EventQuery
from procguard.fleet.model.clock import Now
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.store import legacy, open_store
from procguard.portal.auth.audit import Audit
from tests.unit.store_rig import loaded, opened

GOLDEN = Path(__file__).parents[3] / "golden" / "states"
NAMES = {"yaml": "state.yaml", "sqlite": "state.db"}
DAMAGE = ["snapshot lost", "snapshot damaged", "first segment lost", "last segment lost", "line damaged", "end torn"]


@pytest.fixture(params=NAMES)
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    shutil.copytree(GOLDEN / request.param, folder)
    for name in os.listdir(folder):
        (folder / name).chmod(0o644)
    return folder / NAMES[request.param]


def expected(state: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / f"{state.parent.name}.json").read_text(encoding="utf-8"))
    return content


def segments(state: Path) -> list[Path]:
    return sorted(state.parent.glob(f"{state.name}.j*"))


def test_it_starts_with_nothing_lost_and_a_copy_made_before(state: Path) -> None:
    before = {name: (state.parent / name).read_bytes() for name in os.listdir(state.parent)}
    assert loaded(state).tables == expected(state)["tables"]
    names = [name for name in os.listdir(state.parent) if not name.endswith("-shm")]  # SQLite's own
    assert {name: (state.parent / name).read_bytes() for name in names} == before
    store, found = opened(state)
    assert (found.tables, found.intact) == (expected(state)["tables"], True)
    copy = state.parent / f"{state.name}.before-migration"
    assert str(copy) in found.notes[-1]
    assert {path.name: path.read_bytes() for path in copy.iterdir() if not path.name.endswith("-shm")} == before
    assert not segments(state) and not list(state.parent.glob("*.jsonl"))
    private = [path.stat().st_mode & 0o077 for path in state.parent.rglob("*")]
    assert private == [0] * len(private)
    events = EventLog(store)
    events.restore()
    assert len(list(events.stream(EventQuery()))) == expected(state)["events"] > 3
    assert [one["kind"] for one in Audit(store, 2**20).find(EventQuery(), 10)] == ["change", "refused", "login"]
    store.close()
    again, found = opened(state)
    assert (found.tables, found.notes) == (expected(state)["tables"], [])
    again.close()


def test_the_fleet_goes_on_with_it(state: Path) -> None:
    store, _ = opened(state)
    store.close()
    store = open_store(str(state), auto_save=False)
    fleet = Fleet(store, EventLog(store), FleetSettings(), Now(0.0, 1_790_001_000.0))
    tables = expected(state)["tables"]
    assert fleet.state.fleet_id == tables["fleet"]["fleet"]["fleet_id"]
    assert fleet.state.find("w1").spec.command == "python 训练.py --n 1"
    with fleet.state.transaction(Now(0.0, 1_790_001_000.0)) as tx:
        assert fleet.state.next_epoch(tx) > max(worker["epoch"] for worker in tables["workers"].values())
    fleet.close()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_starts_with_what_is_left_and_knows_what_is_missing(state: Path, damage: str) -> None:
    newest = segments(state)[-1]
    if damage == "snapshot lost":
        state.unlink()
        state.with_name("state.db-wal").unlink(missing_ok=True)
    elif damage == "snapshot damaged":
        state.write_bytes(state.read_bytes()[:400])
        state.with_name("state.db-wal").unlink(missing_ok=True)
    elif damage == "first segment lost":
        segments(state)[0].unlink()
    elif damage == "last segment lost":
        newest.unlink()
    elif damage == "line damaged":
        newest.write_bytes(newest.read_bytes().replace(b'"h2"', b'"h3"'))
    else:
        with open(newest, "ab") as file:
            file.write(b'0badc0de [9, [["workers"')
    seen = loaded(state)
    store, found = opened(state)
    assert (found.tables, found.intact) == (seen.tables, seen.intact)
    assert found.tables["fleet"]["fleet"]["fleet_id"] == expected(state)["tables"]["fleet"]["fleet"]["fleet_id"]
    if found.intact:
        assert found.tables == expected(state)["tables"]
    assert found.intact is (damage in ("snapshot lost", "snapshot damaged", "end torn") or _held_twice(state, damage))
    store.close()


def _held_twice(state: Path, damage: str) -> bool:
    """The older snapshot needs the first segment, the newer one does not."""
    return damage == "first segment lost" and state.suffix == ".yaml"


def test_a_migration_that_was_killed_begins_again(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(legacy.Migration, "finish", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            opened(state)
    store, found = opened(state)
    assert (found.tables, found.intact) == (expected(state)["tables"], True)
    store.close()


def test_old_files_beside_a_database_that_is_in_use_are_refused(tmp_path: Path) -> None:
    store, _ = opened(tmp_path / "state.yaml")
    store.close()
    for name in os.listdir(GOLDEN / "yaml"):
        shutil.copy(GOLDEN / "yaml" / name, tmp_path)
    with pytest.raises(
        ProcGuardError,
        match=r"files of an earlier format lie at .*; move away the one that is not this manager's state",
    ):
        opened(tmp_path / "state.yaml")
