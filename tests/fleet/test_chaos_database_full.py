"""Scenario 31: the disk of the database is full, either the one with its tables or the one with its log (pg_wal).

Without space for its tables, PostgreSQL refuses what would enlarge them and keeps running. Without space for its log it
crashes and does not start again until there is space; the test then starts it, as its service would.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres_server
from tests.chaos import ChaosReport
from tests.fleet import small_disks
from tests.fleet.several_world import Declarer, SeveralManagers, check_nothing_lost, declaring
from tests.fleet.small_disks import Filler, Tmpfs
from tests.postgres_server import Postgres
from tests.waiting import wait_until

TABLES, LOG = "tables", "log"
SMALL = "96m"
FULL_S = 6.0  # longer than a standby waits before it takes over
ACCEPTED_WITHIN_S = 10.0


@contextlib.contextmanager
def on_a_small_disk(what: str) -> Iterator[tuple[Postgres, Tmpfs]]:
    """A server and the disk with its `what`. The rest of its files are elsewhere."""
    small_disks.require()
    with tempfile.TemporaryDirectory(prefix="pgdisk") as folder, Tmpfs(Path(folder, "small"), SMALL) as disk:
        roomy = Path(folder, "roomy")
        roomy.mkdir()
        for one in (Path(folder), roomy):
            one.chmod(0o711)
        disks = (disk.place, roomy) if what == TABLES else (roomy, disk.place)
        with postgres_server.cluster(*disks, wal_keep_size="0", wal_recycle="off") as server:
            yield server, disk


@pytest.mark.timeout(300)
@pytest.mark.chaos(31)
@pytest.mark.parametrize("what", [TABLES, LOG])
def test_while_the_disk_of_the_database_is_full_nothing_is_acknowledged_falsely(
    tmp_path: Path, chaos_report: ChaosReport, what: str
) -> None:
    back: list[float] = []
    with on_a_small_disk(what) as (server, disk), SeveralManagers(tmp_path, server) as world:
        with declaring(world) as declarer:
            for _ in chaos_report.rounds(short=1, long=20):
                changes_are_accepted(declarer)
                leader, terms = world.leader(), world.terms()
                with Filler(disk, "space"):
                    if what == LOG:
                        wait_until(lambda: has_crashed(server), 60, "the server has crashed", 0.1)
                    wait_until(lambda: leader.role() == "cut", 60, "changes are refused")  # noqa: B023 - in this round
                    refused = len(declarer.acknowledged)
                    time.sleep(FULL_S)
                    assert len(declarer.acknowledged) <= refused + 1  # one had been sent when the first was refused
                    assert leader.request("GET", "/healthz")[0] == 200
                    assert [one.role() for one in world.others(leader)] == ["standby"]
                    assert world.terms() == terms
                if what == LOG:
                    server.start()
                began = time.monotonic()
                changes_are_accepted(declarer)
                back.append(time.monotonic() - began)
                check_in_the_database(world, declarer)
    assert max(back) <= ACCEPTED_WITHIN_S
    chaos_report(
        f"disk with the database's {what} full {len(back)} times: changes accepted again after at most "
        f"{max(back):.1f} s; 0 of {len(declarer.acknowledged)} acknowledged changes lost, 0 epochs twice"
    )


def has_crashed(server: Postgres) -> bool:
    """Whether it has ended. If not, it is made to begin the next file of its log, as it does after each megabyte."""
    assert server.process is not None
    if server.process.poll() is not None:
        return True
    with contextlib.suppress(AssertionError):
        server.sql("SELECT pg_switch_wal()")
    return False


def changes_are_accepted(declarer: Declarer) -> None:
    before = len(declarer.acknowledged)
    wait_until(lambda: len(declarer.acknowledged) > before + 3, 60, "changes are acknowledged")


def check_in_the_database(world: SeveralManagers, declarer: Declarer) -> None:
    """A leader remembers what it failed to write, so the next one is asked, which knows only what was written."""
    leader = world.leader()
    leader.kill()
    check_nothing_lost(world, world.leader(), declarer)
    leader.start()
