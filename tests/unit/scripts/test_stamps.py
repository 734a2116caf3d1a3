"""The chaos suite's oracle: it detects every overlap, and only overlaps."""

from __future__ import annotations

import pytest

from tests.fleet import stamps
from tests.fleet.stamps import Instance, Stamp

MS = 1_000_000


def instance(host: str, first_ms: int, last_ms: int, *, worker: str = "w", epoch: int = 1, pid: int = 7) -> Instance:
    """Stamped every 10 ms, both ends included."""
    return Instance(host, worker, epoch, 1, pid, tuple(ms * MS for ms in range(first_ms, last_ms + 1, 10)))


def test_lines_become_instances_by_process_not_by_number_alone() -> None:
    """The same pid on another host, or in another attempt, is another process."""
    text = "w 3 1 77 1000\nw 3 1 77 2000\nw 3 2 77 9000\nw 3 2 77 99"
    found = stamps.instances([*stamps.parse("a", text), *stamps.parse("b", "w 4 1 77 5000\n")])
    assert [(one.host, one.epoch, one.attempt, one.ns) for one in found] == [
        ("a", 3, 1, (1000, 2000)),
        ("b", 4, 1, (5000,)),
        ("a", 3, 2, (9000,)),
    ]


def test_one_after_the_other_is_no_overlap() -> None:
    assert stamps.overlap_ms([instance("a", 0, 500), instance("b", 510, 900), instance("a", 910, 950, pid=8)]) == 0


@pytest.mark.parametrize(
    ("other", "expected_ms"),
    [
        (instance("b", 490, 900), 10),
        (instance("b", 100, 200), 100),
        (instance("a", 100, 900, pid=8), 400),
        (instance("b", 0, 500, worker="v"), 0),
    ],
)
def test_overlap_is_the_time_in_which_two_of_one_worker_ran(other: Instance, expected_ms: int) -> None:
    assert stamps.overlap_ms([instance("a", 0, 500), other]) == expected_ms
    assert stamps.overlap_ms([other, instance("a", 0, 500)]) == expected_ms


def test_a_frozen_instance_runs_again_only_after_its_thaw() -> None:
    """Its replacement ran meanwhile: by its lifetime they overlap throughout, by its steps only after the thaw."""
    frozen = Instance("a", "w", 1, 1, 7, (0, 10 * MS, 20 * MS, 9000 * MS, 9010 * MS))
    replacement = instance("b", 3000, 10_000, epoch=2)
    assert stamps.overlap_ms([frozen, replacement]) == 6010
    assert frozen.spans(asleep_over_s=1) == [(0, 20 * MS), (9000 * MS, 9010 * MS)]
    assert stamps.overlap_ms([frozen, replacement], asleep_over_s=1) == 10


def test_mixed_epochs_are_seen_across_workers_and_equal_epochs_are_none() -> None:
    old, new = instance("a", 0, 500, worker="r0"), instance("b", 450, 900, worker="r1", epoch=2)
    assert stamps.mixed_epochs_ms([old, new]) == 50
    assert stamps.mixed_epochs_ms([old, instance("b", 0, 500, worker="r1")]) == 0


def test_a_stamp_says_who_and_when() -> None:
    assert stamps.parse("a", "w 3 1 77 1000\n") == [Stamp("a", "w", 3, 1, 77, 1000)]
