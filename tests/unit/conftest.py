"""Fixtures that several unit tests share; a file that needs other ones of these names defines its own. A test whose
fixtures start an agent, a launcher, an SSH server or podman is `slow`."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.console import language
from procguard.fleet.history.events import EventLog
from tests.agent_host import host, manager  # noqa: F401 - known to pytest by being here
from tests.unit import languages
from tests.unit.one_sshd import server  # noqa: F401
from tests.unit.podman_host import podman_host  # noqa: F401
from tests.unit.runner_rig import rig  # noqa: F401

SLOW = {"agent_host.host", "test_worker_launcher.desk", "one_sshd.server", "podman_host.podman_host"}


@pytest.hookimpl(tryfirst=True)  # before what `-m` leaves out is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        found = getattr(item, "_fixtureinfo", None)
        for name, made in found.name2fixturedefs.items() if found is not None else ():
            if f"{made[-1].func.__module__.rpartition('.')[2]}.{name}" in SLOW:
                item.add_marker(pytest.mark.slow)
                break


@pytest.fixture(autouse=True)
def language_of_one_command() -> Iterator[None]:
    """`--lang` is kept in the environment, for the process of one command."""
    yield
    os.environ.pop(language.VARIABLE, None)


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """A folder for what depends on a disk's file system: `tmp_path` may be in memory (scripts/scratch.py)."""
    with tempfile.TemporaryDirectory(prefix="pg-disk-", dir="/var/tmp") as folder:
        yield Path(folder)


_add = EventLog.add


def _add_and_look(self: EventLog, *args: Any, **values: Any) -> dict[str, Any]:
    event = _add(self, *args, **values)
    languages.check(event)
    return event


EventLog.add = _add_and_look  # type: ignore[method-assign]
