"""The chaos suite's part of pytest: the number of a scenario, its rounds, and its measured values.

    @pytest.mark.chaos(2)
    def test_…(chaos_report: ChaosReport) -> None:
        for _ in chaos_report.rounds(short=1, long=10):
            …
        chaos_report(measured="0 second instances")

Owns the options that `invoke chaos` (scripts/chaos.py) hands on and the files it reads back; knows no scenario.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LONG_TIMEOUT_S = 7200
_REPORT = pytest.StashKey["ChaosReport"]()


class ChaosReport:
    """Call it once with the measured values; `rounds` yields the rounds to run."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._asked_rounds = int(item.config.getoption("chaos_rounds"))
        self.long = bool(item.config.getoption("chaos_long"))
        self.round_count = 0
        self.measured = ""

    def __call__(self, measured: str) -> None:
        """`measured`: the values as short text, in the form of the table."""
        self.measured = measured

    def rounds(self, short: int = 1, long: int = 5) -> Iterator[int]:
        """0, 1, … as often as this form asks for; `--rounds` goes before both."""
        count = self._asked_rounds or (long if self.long else short)
        for number in range(count):
            began = time.monotonic()
            yield number
            self.round_count = number + 1
            self.progress(f"round {number + 1} of {count}: {time.monotonic() - began:.1f} s")

    def progress(self, text: str) -> None:
        """Print a line of progress in a long form; does nothing in an ordinary run."""
        terminal: Any = self._item.config.pluginmanager.get_plugin("terminalreporter")
        if self._item.config.getoption("chaos_out") and terminal is not None:
            with self._item.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():  # type: ignore[union-attr]
                terminal.write_line(f"    {self._item.name}: {text}")


def number_of(item: pytest.Item) -> int | None:
    """The number of the scenario to which this test belongs."""
    marker = item.get_closest_marker("chaos")
    return int(marker.args[0]) if marker else None


@pytest.fixture
def chaos_report(request: pytest.FixtureRequest) -> ChaosReport:
    return request.node.stash.setdefault(_REPORT, ChaosReport(request.node))


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos", "the chaos suite (docs/reliability.md); `invoke chaos` sets these")
    group.addoption("--chaos-long", action="store_true", help="the long forms")
    group.addoption("--chaos-rounds", type=int, default=0, help="rounds of each scenario, instead of its own number")
    group.addoption("--chaos-only", default="", help="numbers of scenarios, by comma: nothing else runs")
    group.addoption("--chaos-out", default="", help="folder for one JSON file per test")


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the requested scenarios; long forms have no time limit."""
    only = {int(word) for word in config.getoption("chaos_only").split(",") if word}
    if only:
        config.hook.pytest_deselected(items=[item for item in items if number_of(item) not in only])
        items[:] = [item for item in items if number_of(item) in only]
    if config.getoption("chaos_long") or config.getoption("chaos_rounds"):
        for item in items:
            if number_of(item) is not None:
                item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S), append=False)


def record(item: pytest.Item, report: pytest.TestReport) -> None:
    """A test's outcome for `invoke chaos`. One that passed without a figure has proven nothing: it fails."""
    number, found = number_of(item), item.stash.get(_REPORT, None)
    if number is None or (report.when != "call" and report.passed):
        return
    if report.passed and (found is None or not found.measured):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a chaos scenario reports what it measured: chaos_report(measured=…)"
    folder = item.config.getoption("chaos_out")
    if not folder:
        return
    figures = {
        "scenario": number,
        "test": item.nodeid,
        "outcome": report.outcome,
        "rounds": max(found.round_count, 1) if found else 0,
        "measured": found.measured if found else "",
        "took_s": round(report.duration, 1),
        "trouble": "" if report.passed else str(report.longrepr).strip().splitlines()[-1],
    }
    name = item.nodeid.replace("/", ".").replace("::", "-")
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, f"{name}.json").write_text(json.dumps(figures), encoding="utf-8")
