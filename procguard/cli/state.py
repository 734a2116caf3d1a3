"""The operator's tasks about the manager's own state: where it lies, export, import, migrate, rebuild.

Registered by app.py. All but the first refuse while a manager runs on the state, and none overwrites anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from invoke import Collection, Context

from procguard.cli.task import operator_task
from procguard.config import state_places
from procguard.console.terminal import json_escaped, say, say_json
from procguard.errors import Conflict, UsageError

if TYPE_CHECKING:  # the configuration's types cost every task 0.2 s to import
    from procguard.config.schema import Config
    from procguard.fleet.store.interface import Tables

NAMES = ("show", "export", "import", "migrate", "rebuild")
WHERE = {"state": "the state file", "config": "the manager's configuration file"}


@operator_task(name="show", default=True, help={**WHERE, "json_": "as JSON"})
def show(_context: Context, state: str = "", config: str = "", json_: bool = False) -> None:
    """Where the state lies, its kind, its size, how old its snapshot is. Example: invoke state"""
    from procguard.fleet.store import SQLITE_ENDINGS, exchange, journal
    from procguard.manager import daemon

    settings = _settings(state, config)
    path = settings.state.state_file
    files = exchange.files_of(path)
    running = daemon.find(settings)
    snapshot = path + ".prev" if path.endswith(SQLITE_ENDINGS) else path
    journals = [journal.segment_path(path, number) for number in journal.segments(path)]
    facts = {
        "state_file": path,
        "exists": bool(files),
        "format": "sqlite" if path.endswith(SQLITE_ENDINGS) else "yaml",
        "bytes": sum(os.path.getsize(name) for name in files),
        "snapshot_age_s": round(time.time() - os.path.getmtime(snapshot)) if os.path.exists(snapshot) else None,
        "journal_segments": len(journals),
        "journal_bytes": sum(os.path.getsize(name) for name in journals),
        "manager_pid": running.pid if running else None,
    }
    if json_:
        say_json(facts)
        return
    if not files:
        say(f"{path}: no state yet (the first start of the manager makes it)")
        return
    age, kind = facts["snapshot_age_s"], "SQLite" if facts["format"] == "sqlite" else "YAML"
    copy = "copy" if facts["format"] == "sqlite" else "snapshot"
    say(f"{path}")
    say(f"  kind      {kind}, {facts['bytes']} bytes with all that belongs to it")
    say(f"  {copy:<8}  " + (f"{age} s old" if age is not None else "none yet"))
    say(f"  journal   {facts['journal_bytes']} bytes in {len(journals)} segment(s)")
    say("  manager   " + (f"running, pid {running.pid}" if running else "none is running on it"))


@operator_task(("file",), name="export", help={**WHERE, "file": "a new file, or - for standard output"})
def export(_context: Context, file: str, state: str = "", config: str = "") -> None:
    """The whole state as JSON lines, to keep or to carry elsewhere. Example: invoke state.export backup.jsonl

    It holds the fleet's key: the file is made for its owner's eyes alone.
    """
    from procguard.fleet.store import exchange

    settings = _settings(state, config)
    with _stopped(settings):
        loaded = exchange.read(settings.state.state_file)
    _tell(loaded.notes)
    lines = exchange.exported(loaded.tables, time.time())
    if file == "-":
        sys.stdout.writelines(map(json_escaped, lines))
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}", "name a new file in a directory you may write") from exc
    with open(descriptor, "w", encoding="utf-8") as out:
        out.writelines(lines)
        out.flush()
        os.fsync(out.fileno())
    count = sum(len(records) for records in loaded.tables.values())
    say(f"{file}: {count} records of {settings.state.state_file}")


@operator_task(("file",), name="import", help={"file": "an export, or - for standard input", "state": "the new state"})
def import_(_context: Context, file: str, state: str = "") -> None:
    """Make a new state of an export. Example: invoke state.import backup.jsonl --state data/restored.db"""
    from procguard.fleet.store import exchange

    if not state:
        raise UsageError("no new state was named", "invoke state import FILE --state data/new.yaml (or .db)")
    settings = _settings(state, "")
    try:
        with contextlib.ExitStack() as stack:
            source = sys.stdin if file == "-" else stack.enter_context(open(file, encoding="utf-8"))
            tables = exchange.imported(source, file)
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{file}: {getattr(exc, 'strerror', None) or 'not text'}", "name an export") from exc
    with _stopped(settings):
        exchange.write_new(settings.state.state_file, tables)
    _written(settings, tables)


@operator_task(("source", "target"), name="migrate", help={"source": "the state as it is", "target": "the new one"})
def migrate(_context: Context, source: str, target: str) -> None:
    """A state of one kind becomes one of the other; the old one stays. Example: invoke state.migrate a.yaml a.db"""
    from procguard.fleet.state import events_path
    from procguard.fleet.store import exchange

    old, new = _settings(source, ""), _settings(target, "")
    with contextlib.ExitStack() as stack:
        for directory in sorted({one.state_directory: one for one in (old, new)}.items()):
            stack.enter_context(_stopped(directory[1]))
        loaded = exchange.read(old.state.state_file)
        _tell(loaded.notes)
        exchange.write_new(new.state.state_file, loaded.tables)
        for ending in ("", ".1"):
            history, copied = (events_path(one.state.state_file) + ending for one in (old, new))
            if os.path.exists(history) and not os.path.exists(copied):
                shutil.copyfile(history, copied, follow_symlinks=False)
                os.chmod(copied, 0o600)
    _written(new, loaded.tables)


@operator_task(("fleet",), name="rebuild", help={"fleet": "its id, f-…: the folder's name on every host", **WHERE})
def rebuild(_context: Context, fleet: str, state: str = "", config: str = "") -> None:
    """An empty state for a fleet whose state is lost for good; then deploy. Example: invoke state.rebuild f-0a1b2c3d4e

    Its hosts know their fleet by this id: a deployment with it takes over the agents and workers that run, where one
    with a new id would start everything a second time. The id is the name of the folder in ~/.procguard on each host.
    That deployment reads over SSH what runs where. What runs on its host is taken over; what runs on another is not
    started a second time; what runs nowhere is declared stopped, for you to start.
    """
    from procguard.fleet.store import exchange

    if not re.fullmatch(r"f-[0-9a-f]{4,32}", fleet):
        raise UsageError(f"{fleet!r} is no fleet's id", "look on a host: ls ~/.procguard shows it, like f-0a1b2c3d4e")
    settings = _settings(state, config)
    record = {"fleet_id": fleet, "fleet_key": secrets.token_hex(32), "term": 0, "n": 0, "rebuilt": True}
    with _stopped(settings):
        exchange.write_new(settings.state.state_file, {"fleet": {"fleet": record}})
    say(f"{settings.state.state_file}: an empty state for fleet {fleet}")
    say("  now start the manager on it, then: invoke deploy --hosts INVENTORY")


def _settings(state: str, config: str) -> Config:
    from procguard.config.schema import load

    if state:
        return load(config or None, [f"state.state_file={json.dumps(state)}"])
    return load(config or None, [] if config else state_places.without_configuration())


@contextlib.contextmanager
def _stopped(settings: Config) -> Iterator[None]:
    """No manager runs on this state, and none can begin to."""
    from procguard.manager import daemon

    try:
        lock = daemon.lock_state(settings)
    except Conflict as exc:
        raise Conflict(
            f"a manager is running on the state in {settings.state_directory}",
            f"stop it first ({daemon.stop_line(settings)}; the workers run on), then repeat this",
            code="already_running",
        ) from exc
    try:
        yield
    finally:
        lock.release()


def _tell(notes: list[str]) -> None:
    for note in notes:
        say(f"note: {note}", err=True)


def _written(settings: Config, tables: Tables) -> None:
    path = settings.state.state_file
    say(f"{path}: {sum(len(records) for records in tables.values())} records")
    say(f"  put it into the configuration, or: ./start_manager.sh --set state.state_file={path}")


def collection() -> Collection:
    return Collection(show, export, import_, migrate, rebuild)
