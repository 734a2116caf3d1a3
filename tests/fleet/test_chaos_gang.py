"""A gang restarts while one of its members is partitioned: ranks of two epochs never run concurrently."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.chaos import ChaosReport
from tests.fleet import stamps
from tests.fleet.chaos_world import World
from tests.fleet.cuts import partitioned
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

LEASE_S, GRACE_S = 4.0, 1.0
MEMBERS = ("rank-0", "rank-1", "rank-2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("gang"), hosts=3) as one:
        spec = {"group": "trainers", "on_partition": "fence", "lease_s": LEASE_S, "stop_grace_s": GRACE_S}
        workers = {
            "node1": [stamps.stamping("rank-0", **spec)],
            "node2": [stamps.stamping("rank-1", stubborn=True, **spec)],
            "node3": [stamps.stamping("rank-2", **spec)],
        }
        groups = {"trainers": {"restart": "gang", "max_attempts": 1000}}
        one.deploy(workers, everywhere={"procguard_groups": groups})
        yield one


def epochs(world: World) -> set[int]:
    return {int(world.manager.worker(name)["epoch"]) for name in MEMBERS}


def wait_for_launch(world: World, before: int) -> None:
    """All members under one epoch, later than `before`."""
    try:
        wait_until(lambda: len(epochs(world)) == 1 and min(epochs(world)) > before, 90, "one new epoch", every_s=0.1)
    except AssertionError as exc:
        known = [world.manager.worker(name) for name in MEMBERS]
        said = [(one["worker_id"], one["host"], one["state"], one["epoch"], one["reason"]) for one in known]
        raise AssertionError(f"{exc}; {world.manager.get('/api/groups')}; {said}") from None


def give_attempts_back(world: World) -> None:
    """An operator's start resets it; otherwise each restart of the gang would wait longer than the previous one."""
    world.manager.command(MEMBERS[0], "stop")
    for name in MEMBERS:
        world.manager.wait_worker(name, "stopped", 40)
    world.manager.command(MEMBERS[0], "start")


@pytest.mark.chaos(14)
def test_a_gang_with_a_member_cut_off_never_runs_two_epochs_at_once(world: World, chaos_report: ChaosReport) -> None:
    """One member is killed, or restarted by an operator, while another one is partitioned, which returns sometimes
    before, now after its lease's end."""
    took_s = []
    for number in chaos_report.rounds(short=1, long=10):
        by_operator = number % 3 == 2
        if (
            number and not by_operator
        ):  # an operator's restart spends nothing, and right after a start it is the same one
            give_attempts_back(world)
        for name in MEMBERS:
            world.settled(name)
        (before,) = epochs(world)
        lost, killed = random.sample(range(3), 2)
        away_s = random.uniform(0.0, 2 * LEASE_S) if chaos_report.long else LEASE_S + GRACE_S + 2
        began = time.monotonic()
        with partitioned(world.fleet[lost]):
            if by_operator:
                world.manager.command(MEMBERS[killed], "restart")
            else:
                world.fleet[killed].kill(stamps.only_child(world.fleet[killed], MEMBERS[killed]))
            time.sleep(away_s)
        wait_for_launch(world, before)
        for name in MEMBERS:
            world.settled(name)
        took_s.append(time.monotonic() - began - away_s)
        world.stays(lambda: len(epochs(world)) == 1, 1)
    found = stamps.instances(world.stamps(*MEMBERS))
    mixed_ms, overlap_ms = stamps.mixed_epochs_ms(found), stamps.overlap_ms(found)
    assert (mixed_ms, overlap_ms) == (0, 0), found
    assert len({one.epoch for one in found}) >= 1 + len(took_s)
    chaos_report(
        measured=f"mixed epochs 0 ms, overlap 0 ms; all ran again at most {max(took_s):.1f} s after the member's return"
    )
