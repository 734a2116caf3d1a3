"""Fixtures of the fleet tests: hosts, a manager, the operator's command line.

Without root or without a tool the tests are skipped with the reason; under CI=true that is a failure instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import jobs
from tests.fleet.hosts import Fleet, why_unavailable
from tests.fleet.manager import Manager, Operator


def require_fleet() -> None:
    """Skip (or, under CI=true, fail) where no fleet can be built."""
    reason = why_unavailable()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def require_programs(*names: str) -> None:
    """The same for programs that only some tests want."""
    missing = [name for name in names if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"missing: {', '.join(missing)}")
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Four hosts, node1 to node4; node3 and node4 share root's home, as over NFS."""
    require_fleet()
    with Fleet(4) as hosts:
        hosts.share_home(hosts.hosts[2:])
        jobs.plant(hosts)
        yield hosts


@pytest.fixture(scope="module")
def operator(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """A person with a home of their own: the fleet's key and known_hosts in ~/.ssh."""
    home = tmp_path_factory.mktemp("home")
    return Operator.with_keys(home, fleet.private_key, fleet.known_hosts)


@pytest.fixture(scope="module")
def manager(operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager of this person on a free port, with heartbeat_timeout 3 s so that tests needn't wait long."""
    directory: Path = tmp_path_factory.mktemp("manager")
    with Manager(directory, operator.environment, settings=["monitoring.heartbeat_timeout=3"]) as running:
        operator.manager_url = running.url
        yield running
