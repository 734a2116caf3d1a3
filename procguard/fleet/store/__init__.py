"""Where the registry's state is kept, behind one interface. Which store it is, the name of the state file says."""

from __future__ import annotations

from procguard.fleet.store.appendlog import RunBlocking, run_here
from procguard.fleet.store.interface import Store

YAML_ENDINGS = (".yaml", ".yml")
SQLITE_ENDINGS = (".db", ".sqlite")
ENDINGS = YAML_ENDINGS + SQLITE_ENDINGS


def open_store(path: str, *, auto_save: bool = True, run_blocking: RunBlocking = run_here) -> Store:
    """The store of this state file; nothing is read or written before `load`."""
    if path.endswith(SQLITE_ENDINGS):
        from procguard.fleet.store.sql import SqlStore  # noqa: PLC0415 - only who uses it waits for SQLAlchemy

        return SqlStore(path, auto_save=auto_save, run_blocking=run_blocking)
    from procguard.fleet.store.yaml_file import YamlStore  # noqa: PLC0415 - and only who uses that for YAML

    return YamlStore(path, auto_save=auto_save, run_blocking=run_blocking)
