"""Commands for the manager's state: show, backup, export, import, migrate, rebuild, reindex.

The first three work while the manager runs, the others require that it is stopped. No command overwrites a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from procguard import hints
from procguard.cli.program.command import operator_task
from procguard.config import state_paths
from procguard.console.terminal import json_escaped, say, say_json
from procguard.errors import Conflict, UsageError

if TYPE_CHECKING:  # importing the configuration's types takes 0.2 s, for every command
    from procguard.config.schema import Config
    from procguard.fleet.store.interface import Line, Loaded, Tables
    from procguard.fleet.store.postgres_link import DatabasePlace

WHERE = {"state": "the state file", "config": "the manager's configuration file"}


@operator_task(name="show", default=True, help={**WHERE, "json_": "as JSON"})
def show(state: str = "", config: str = "", json_: bool = False) -> None:
    """Show the path, format, size and snapshot age of the state. Example: invoke state"""
    from procguard.fleet.store import database_of, exchange
    from procguard.manager import daemon

    settings = _settings(state, config)
    if settings.state.database:
        _show_database(settings, json_)
        return
    path = settings.state.state_file
    files = exchange.files_of(path)
    running = daemon.find(settings)
    log = database_of(path) + "-wal"
    facts = {
        "state_file": path,
        "exists": bool(files),
        "format": "yaml" if exchange.is_yaml(path) else "sqlite",
        "database": database_of(path),
        "bytes": sum(os.path.getsize(name) for name in files),
        "write_ahead_log_bytes": os.path.getsize(log) if os.path.exists(log) else 0,
        "snapshot_age_s": None,
        "manager_pid": running.pid if running else None,
    }
    if exchange.is_yaml(path) and os.path.exists(path):
        facts["snapshot_age_s"] = round(time.time() - os.path.getmtime(path))
    if json_:
        say_json(facts)
        return
    if not files:
        say(f"{path}: no state yet (the first start of the manager creates it)")
        return
    say(f"{path}")
    say(f"  database  {facts['database']}, {facts['bytes']} bytes with its auxiliary files")
    if exchange.is_yaml(path):
        age = facts["snapshot_age_s"]
        say(f"  snapshot  {age} s old" if age is not None else "  snapshot  none yet")
    say(f"  manager   running, pid {running.pid}" if running else "  manager   not running")


@operator_task(("file",), name="backup", help={**WHERE, "file": "a new file"})
def backup(file: str, state: str = "", config: str = "") -> None:
    """Back up the state and its history, also while the manager runs. Example: invoke state.backup b.db

    The backup contains the fleet's key, so only its owner can read the file. To restore it: invoke state.import.
    """
    from procguard.fleet.store import database, database_of

    settings = _settings(state, config)
    if settings.state.database:
        raise UsageError("the state is in PostgreSQL", "back it up with pg_dump, or: invoke state.export FILE")
    source = database_of(settings.state.state_file)
    try:
        database.backup(source, os.path.abspath(file))
    except OSError as exc:
        named = exc.filename or source
        raise UsageError(f"{named}: {exc.strerror}", "give a state and a new file in a writable directory") from exc
    say(f"{file}: a copy of {source}")


@operator_task(("file",), name="export", help={**WHERE, "file": "a new file, or - for standard output"})
def export(file: str, state: str = "", config: str = "") -> None:
    """Export the state as JSON lines. Example: invoke state.export backup.jsonl

    The export contains the fleet's key, so only its owner can read the file.
    """
    from procguard.fleet.store import exchange

    settings = _settings(state, config)
    loaded = _read_database(settings) if settings.state.database else exchange.read(settings.state.state_file)
    _print_notes(loaded.notes)
    lines = exchange.exported(loaded.tables, time.time())
    if file == "-":
        sys.stdout.writelines(map(json_escaped, lines))
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}", "give a new file in a writable directory") from exc
    with open(descriptor, "w", encoding="utf-8") as out:
        out.writelines(lines)
        out.flush()
        os.fsync(out.fileno())
    count = sum(len(records) for records in loaded.tables.values())
    say(f"{file}: {count} records of {settings.state.database.partition('?')[0] or settings.state.state_file}")


@operator_task(
    ("file",), name="import", help={"file": "an export, a backup or a snapshot; -: an export", "state": "the new state"}
)
def import_(file: str, state: str = "") -> None:
    """Create a state from an export, a backup or a snapshot, which may have been edited.

    Example: invoke state.import backup.jsonl --state data/restored.yaml
    """
    from procguard.fleet.store import exchange

    if not state:
        raise UsageError("no target state given", "invoke state import FILE --state data/new.yaml (or .db)")
    settings = _settings(state, "")
    history: Iterable[Line] = ()
    try:
        with contextlib.ExitStack() as stack:
            if exchange.is_yaml(file):
                tables = exchange.read_changed(file)
            elif file != "-" and (file.endswith((".db", ".sqlite")) or exchange.is_database(file)):
                tables, history = exchange.read(os.path.abspath(file)).tables, exchange.read_history(file)
            else:
                source = sys.stdin if file == "-" else stack.enter_context(open(file, encoding="utf-8"))
                tables = exchange.imported(source, file)
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{file}: {getattr(exc, 'strerror', None) or 'not text'}", "name an export") from exc
    with _stopped(settings):
        exchange.write_new(settings.state.state_file, tables, history)
    _written(settings, tables)


@operator_task(
    ("source", "target"),
    name="migrate",
    help={
        "source": "the current state: a state file, or postgresql://…",
        "target": "the new state, of either kind",
        "password_file": "file with the database password; default: PGPASSFILE, ~/.pgpass or PGPASSWORD",
    },
)
def migrate(source: str, target: str, password_file: str = "") -> None:
    """Copy a state with its history to another path or format. The old state is kept.

    Example: invoke state.migrate data/fleet.yaml postgresql://pg@db1/fleet

    Stop the manager first and start it on the new state afterwards; agents and workers keep running meanwhile.
    """
    from procguard.config.types import is_postgres_url
    from procguard.fleet.store import database_of, exchange

    if is_postgres_url(source) or is_postgres_url(target):
        _migrate_database(source, target, password_file)
        return
    old, new = _settings(source, ""), _settings(target, "")
    if source != target and database_of(old.state.state_file) == database_of(new.state.state_file):
        raise UsageError(
            f"{source} and {target} have the same database",
            f"no migration is needed: put state.state_file={target} into the configuration",
        )
    with contextlib.ExitStack() as stack:
        for directory in sorted({one.state_directory: one for one in (old, new)}.items()):
            stack.enter_context(_stopped(directory[1]))
        loaded = exchange.read(old.state.state_file)
        _print_notes(loaded.notes)
        history = exchange.read_history(old.state.state_file)
        exchange.write_new(new.state.state_file, loaded.tables, history)
    _written(new, loaded.tables)


def _place(settings: Config) -> DatabasePlace:
    from procguard.fleet.store.postgres_link import DatabasePlace

    return DatabasePlace(settings.state.database, settings.state.database_password_file)


def _read_database(settings: Config) -> Loaded:
    from procguard.fleet.store.postgresql import PostgresqlStore

    loaded = PostgresqlStore(_place(settings)).read()
    if not loaded.tables:
        raise UsageError(f"there is no state in {_place(settings)}", "the first manager that uses it creates it")
    return loaded


def _show_database(settings: Config, json_: bool) -> None:
    from procguard.fleet.store import postgresql

    place = _place(settings)
    tables, leader = postgresql.PostgresqlStore(place).read().tables, postgresql.leader_of(place)
    count = sum(len(records) for records in tables.values())
    if json_:
        say_json(
            {"database": str(place), "format": "postgresql", "exists": bool(tables), "records": count, "leader": leader}
        )
        return
    say(f"{place}" if tables else f"{place}: no state yet (the first start of a manager creates it)")
    say(f"  PostgreSQL, {count} records; leader: {leader or 'none'}")


def _migrate_database(source: str, target: str, password_file: str) -> None:
    from procguard.config.types import is_postgres_url
    from procguard.fleet.store import exchange, postgresql
    from procguard.fleet.store.postgres_link import DatabasePlace

    databases = {
        text: DatabasePlace(_checked_url(text), password_file) for text in (source, target) if is_postgres_url(text)
    }
    with contextlib.ExitStack() as stack:
        for text in (source, target):
            if text not in databases:
                stack.enter_context(_stopped(_settings(text, "")))
            elif leader := postgresql.leader_of(databases[text]):
                raise Conflict(
                    f"manager {leader} runs on {databases[text]}",
                    "stop every manager of this database first (workers keep running), then try again",
                    code="already_running",
                )
        if source in databases:
            tables = postgresql.PostgresqlStore(databases[source]).read().tables
            if not tables:
                raise UsageError(f"there is no state in {databases[source]}", "name the database of the managers")
            history = postgresql.history_of(databases[source])
        else:
            old = _settings(source, "").state.state_file
            loaded = exchange.read(old)
            _print_notes(loaded.notes)
            tables, history = loaded.tables, list(exchange.read_history(old))
        if target in databases:
            exchange.write_database(databases[target], tables, history)
            say(f"{databases[target]}: {sum(len(records) for records in tables.values())} records")
            say("  put it into the configuration: state.database, with state.database_password_file")
        else:
            new = _settings(target, "")
            exchange.write_new(new.state.state_file, tables, history)
            _written(new, tables)


def _checked_url(text: str) -> str:
    from procguard.config.types import postgres_url_problem

    problem = postgres_url_problem(text)
    if problem:  # the given text may contain a password, so the message does not repeat it
        raise UsageError(f"the database's address: expected {problem}", "name the file with --password-file")
    return text


@operator_task(("fleet",), name="rebuild", help={"fleet": "its id, f-…: the folder's name on every host", **WHERE})
def rebuild(fleet: str, state: str = "", config: str = "") -> None:
    """Create an empty state for a fleet whose state is lost. Deploy next. Example: invoke state.rebuild f-0a1b2c3d4e

    The hosts identify their fleet by this id: a deployment with the same id adopts the running agents and workers,
    whereas a new id would start everything a second time. The id is the name of the folder in ~/.procguard on each
    host. The next deployment reads over SSH what runs where. A worker that runs on its declared host is adopted; one
    that runs on another host is not started again; one that runs nowhere is declared stopped, for you to start.
    """
    from procguard.fleet.store import exchange

    if not re.fullmatch(r"f-[0-9a-f]{4,32}", fleet):
        raise UsageError(
            f"{fleet!r} is not a fleet id", "find it on a host: ls ~/.procguard shows a folder such as f-0a1b2c3d4e"
        )
    settings = _settings(state, config)
    record = {"fleet_id": fleet, "fleet_key": secrets.token_hex(32), "term": 0, "n": 0, "rebuilt": True}
    with _stopped(settings):
        exchange.write_new(settings.state.state_file, {"fleet": {"fleet": record}})
    say(f"{settings.state.state_file}: an empty state for fleet {fleet}")
    say(hints.commands("  now start the manager on it, then: invoke deploy --hosts INVENTORY"))


@operator_task(name="reindex", help={"config": WHERE["config"]})
def reindex(config: str = "") -> None:
    """Rebuild the index of the log archive from its objects. Example: procguard state reindex --config c.yaml

    Adds every object that the index lacks. A manager that starts without an index does the same automatically; use this
    command after a damaged index file was moved away. No manager may be running.
    """
    from procguard.fleet.store import open_store
    from procguard.manager import log_archive
    from procguard.portal.logs.archive.index import ArchiveIndex
    from procguard.portal.logs.archive.rebuild import rebuild as rebuild_index

    settings = _settings("", config)
    if not settings.logs.archive:
        raise UsageError("logs.archive is not set", "name the manager's configuration file with --config")
    with _stopped(settings):
        database = _place(settings) if settings.state.database else None
        state = _read_database(settings) if database else open_store(settings.state.state_file).read()
        fleet_id = str(state.tables.get("fleet", {}).get("fleet", {}).get("fleet_id", ""))
        if not fleet_id:
            raise UsageError(
                f"there is no fleet in {settings.state.state_file}",
                "create one first: procguard state rebuild FLEET_ID",
            )
        place = log_archive.place_of(settings, fleet_id, log_archive.secrets_of(settings))
        index = ArchiveIndex(log_archive.tables_of(settings, database))
        try:
            done = rebuild_index(place, index, lambda work, *arguments: work(*arguments))
        except OSError as exc:
            raise Conflict(f"the index of the log archive: {exc.strerror or exc}", "see the message above") from exc
        finally:
            index.close()
    left_out = f", {done.damaged} skipped as damaged (see the log)" if done.damaged else ""
    say(f"{place.shown}: {done.objects} objects with {done.pieces} pieces added to the index{left_out}")


def _settings(state: str, config: str) -> Config:
    from procguard.config.schema import load

    if state:
        return load(config or None, [f"state.state_file={json.dumps(state)}"])
    return load(config or None, [] if config else state_paths.without_configuration())


@contextlib.contextmanager
def _stopped(settings: Config) -> Iterator[None]:
    """A context in which no manager runs on this state or can start on it. Raises Conflict if one is running."""
    from procguard.manager import daemon

    try:
        lock = daemon.lock_state(settings)
    except Conflict as exc:
        raise Conflict(
            f"a manager is running on the state in {settings.state_directory}",
            f"stop it first ({daemon.stop_line(settings)}; workers keep running), then try again",
            code="already_running",
        ) from exc
    try:
        yield
    finally:
        lock.release()


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        say(f"note: {note}", err=True)


def _written(settings: Config, tables: Tables) -> None:
    path = settings.state.state_file
    say(f"{path}: {sum(len(records) for records in tables.values())} records")
    say(hints.commands(f"  put it into the configuration, or: ./start_manager.sh --set state.state_file={path}"))


STATE = (show, backup, export, import_, migrate, rebuild, reindex)
