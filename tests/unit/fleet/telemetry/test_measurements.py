"""Measurements: kept for a day in few bytes, per worker and host, and across restarts of the manager."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from procguard.fleet.telemetry.files import MeasurementFiles
from procguard.fleet.telemetry.timeseries import SAMPLE_S, SPANS, Measurements, Table, packed, unpacked
from remote_agent.protocol import messages
from tests.unit.fleet_world import World

QUARTER, HOUR, DAY = SPANS
BEGAN = 1_790_000_000.0


def rest() -> None:
    pass


def reading(cpu: float | None, rss: float | None = None) -> tuple[float | None, ...]:
    return (cpu, rss, None, None)


def fill(table: Table, samples: int, read: Any, began: float = BEGAN) -> float:
    """`read(number)` -> {id: cpu}. Returns the moment of the last sample."""
    at = began
    for number in range(samples):
        at = began + number * SAMPLE_S
        table.add(at, {one: reading(cpu, cpu) for one, cpu in read(number).items()}, rest)
    return at


def values(table: Table, item_id: str, span: Any, name: str = "cpu_percent") -> list[float | None]:
    found = table.read(item_id, span, 0.0)
    assert found is not None
    return found[1].get(name, [])


@pytest.mark.parametrize("value", [0.0, 0.1, 3.14, 99.9, 799.0, 5_368_709_120.0, 2.0**40])
def test_a_value_keeps_three_digits_in_two_bytes(value: float) -> None:
    found = unpacked(packed([value]), 0)
    assert found is not None and found == pytest.approx(value, rel=0.005)


def test_what_was_not_measured_is_not_zero() -> None:
    assert unpacked(packed([float("nan"), 0.0]), 0) is None
    assert unpacked(packed([float("nan"), 0.0]), 1) == 0.0
    assert unpacked(packed([1.0]), 7) is None and unpacked(None, 0) is None


def test_every_span_has_its_own_grain_and_its_bound() -> None:
    table = Table("workers")
    fill(table, 9_000, lambda number: {"w1": float(number % 100)})  # 25 hours
    assert len(values(table, "w1", QUARTER)) == QUARTER.points
    assert len(values(table, "w1", HOUR)) == HOUR.points
    assert len(values(table, "w1", DAY)) == DAY.points
    found = table.read("w1", DAY, 0.0)
    assert found is not None
    steps = {second - first for first, second in zip(found[0], found[0][1:], strict=False)}
    assert steps == {float(DAY.step_s)}


def test_coarse_spans_hold_means_and_of_memory_the_peak() -> None:
    """A memory spike that ended a job is still visible a day later."""
    table = Table("workers")
    at = BEGAN // 300 * 300
    fill(table, 31, lambda number: {"w1": 100.0 if number == 7 else 10.0}, at)
    assert values(table, "w1", DAY) == [pytest.approx(13.0, rel=0.005)]
    assert values(table, "w1", DAY, "rss_bytes") == [100.0]


def test_a_pause_in_the_measuring_is_a_gap_not_a_dip() -> None:
    table = Table("workers")
    fill(table, 6, lambda number: {"w1": None if number in (2, 3) else 50.0})
    assert values(table, "w1", QUARTER) == [50, 50, None, None, 50, 50]
    mean = [one for one in values(table, "w1", HOUR) if one is not None]
    assert mean and all(one == 50.0 for one in mean), "means are of what was measured"


def test_a_new_worker_never_inherits_the_past_of_one_that_is_gone() -> None:
    table = Table("workers")
    at = fill(table, 40, lambda _: {"old": 80.0, "stays": 5.0})
    fill(table, 3, lambda _: {"stays": 5.0}, at + SAMPLE_S)
    fill(table, 40, lambda _: {"new": 1.0, "stays": 5.0}, at + 10 * SAMPLE_S)
    assert table.size == 2, "the slot is used again"
    for span in SPANS:
        assert set(values(table, "new", span)) <= {None, 1.0}
        assert set(values(table, "stays", span)) <= {None, 5.0}
    assert table.read("old", QUARTER, 0.0) is None


def test_ten_thousand_workers_take_less_than_thirty_megabytes() -> None:
    """CPU and memory of each for all three spans; the bound of the issue, measured."""
    table = Table("workers")
    readings = {f"w{number}": reading(50.0, 1e9) for number in range(10_000)}
    table.add(BEGAN, readings, rest)
    one_row = sum(len(column or b"") for column in table.rows["15m"][0].columns)
    total = one_row * sum(span.points for span in SPANS)
    assert one_row == 40_000 and total < 30_000_000


def keep(files: MeasurementFiles, measurements: Measurements, samples: int, began: float, *ids: str) -> float:
    """Samples of these workers, written; their CPU is the number of the sample."""
    table, at = measurements.tables["workers"], began
    for number in range(samples):
        at = began + number * SAMPLE_S
        done = [
            ("workers", span, row)
            for span, row in table.add(at, {one: reading(float(number % 90)) for one in ids}, rest)
        ]
        files.append(done, {"workers": dict(table.slots)})
    return at


def reopened(folder: Path, now: float) -> tuple[MeasurementFiles, Measurements]:
    files, measurements = MeasurementFiles(str(folder)), Measurements()
    files.load(measurements, now)
    return files, measurements


def test_a_restart_keeps_all_spans_and_whose_they_are(tmp_path: Path) -> None:
    files, before = reopened(tmp_path / "m", BEGAN)
    at = keep(files, before, 400, BEGAN, "w1", "w2", "w3")
    files.close()
    files, after = reopened(tmp_path / "m", at)
    for worker_id in ("w1", "w2", "w3"):
        for span in SPANS:
            reported = after.tables["workers"].read(worker_id, span, 0.0)
            assert reported == before.tables["workers"].read(worker_id, span, 0.0), span.name
    keep(files, after, 3, at + 60, "w1", "w2", "w3")
    moments = after.tables["workers"].read("w1", QUARTER, 0.0)
    assert moments is not None and moments[0][-4:] == [at, at + 60, at + 70, at + 80], "the gap stays a gap"


def test_a_slot_that_changed_hands_before_a_restart_shows_nobody_s_past(tmp_path: Path) -> None:
    """The day's file records owners of slots less often than the 15-minute file: the newest record counts."""
    files, before = reopened(tmp_path / "m", BEGAN)
    at = keep(files, before, 70, BEGAN, "old", "w2")
    at = keep(files, before, 2, at + SAMPLE_S, "w2")
    at = keep(files, before, 2, at + SAMPLE_S, "new", "w2")  # no row of a day is complete yet
    files.close()
    _, after = reopened(tmp_path / "m", at)
    table = after.tables["workers"]
    assert set(values(table, "new", DAY)) <= {None}
    assert any(one is not None for one in values(table, "w2", DAY))


def test_a_torn_end_loses_only_itself(tmp_path: Path) -> None:
    files, before = reopened(tmp_path / "m", BEGAN)
    at = keep(files, before, 20, BEGAN, "w1")
    files.close()
    path = tmp_path / "m" / "workers-15m-000001.seg"
    path.write_bytes(path.read_bytes()[:-7])
    files, after = reopened(tmp_path / "m", at)
    assert values(after.tables["workers"], "w1", QUARTER) == [float(number) for number in range(19)]
    at = keep(files, after, 2, at + SAMPLE_S, "w1")  # into a file of its own
    files.close()
    _, again = reopened(tmp_path / "m", at)
    assert values(again.tables["workers"], "w1", QUARTER) == [*[float(number) for number in range(19)], 0.0, 1.0]


def test_rubbish_in_the_folder_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "workers-15m-000001.seg").write_bytes(os.urandom(4096))
    (folder / "notes.txt").write_text("x", encoding="ascii")
    files, measurements = reopened(folder, BEGAN)
    keep(files, measurements, 2, BEGAN, "w1")
    assert values(measurements.tables["workers"], "w1", QUARTER) == [0.0, 1.0]


def test_the_disk_holds_twice_a_span_at_most(tmp_path: Path) -> None:
    files, measurements = reopened(tmp_path / "m", BEGAN)
    keep(files, measurements, 1_000, BEGAN, "w1")
    names = [name for name in os.listdir(tmp_path / "m") if name.startswith("workers-15m")]
    assert len(names) == 2


def test_restarts_again_and_again_keep_what_is_needed(tmp_path: Path) -> None:
    """Each run begins its own file: many small files must not displace data that the span still shows."""
    at = BEGAN
    for _ in range(12):
        files, measurements = reopened(tmp_path / "m", at)
        at = keep(files, measurements, 5, at + SAMPLE_S, "w1")
        files.close()
    _, measurements = reopened(tmp_path / "m", at)
    assert len(values(measurements.tables["workers"], "w1", QUARTER)) == 60


def test_workers_hosts_and_gpus_are_read_from_their_reports(tmp_path: Path) -> None:
    world, measurements = World(tmp_path), Measurements()
    world.deploy({"h1": {"w1": {"command": "x"}, "w2": {"command": "x"}}})
    gpu = messages.GpuUsage(3, utilization_percent=80.0, memory_used_bytes=10_000, power_w=300.0, temperature_c=71.0)
    usage = messages.HostUsage(7.0, 1.5, 1000, 5, 9, gpus=[gpu])
    world.beat("h1", world.report("w1", usage=messages.WorkerUsage(12.0, 2048)), world.report("w2"), usage=usage)
    measurements.sample(world.fleet.state, world.now.wall, rest)
    assert values(measurements.tables["workers"], "w1", QUARTER) == [12.0]
    assert values(measurements.tables["workers"], "w2", QUARTER) == []
    assert values(measurements.tables["hosts"], "h1", QUARTER, "load1") == [1.5]
    assert measurements.gpus_of("h1") == [3]
    assert values(measurements.tables["gpus"], "h1/3", QUARTER, "power_w") == [300.0]
    assert values(measurements.tables["gpus"], "h1/3", QUARTER, "temperature_c") == [71.0]
    # a host that is silent is not measured, and its past stays
    world.fleet.agents.mark("h1", "unreachable", "silent", world.now)
    measurements.sample(world.fleet.state, world.now.wall + SAMPLE_S, rest)
    assert values(measurements.tables["workers"], "w1", QUARTER) == [12.0, None]
    assert values(measurements.tables["gpus"], "h1/3", QUARTER, "power_w") == [300.0, None]
