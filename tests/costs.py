"""The cost of each test: `pytest --costs 40` prints the 40 most expensive tests, fixtures and files.

    wall    seconds by the clock
    own     seconds of processor time of pytest's own process
    others  of all its descendants, alive or ended: managers, agents, jobs, browsers

The time of a fixture is that of its set-up, without the fixtures that it asks for. Processor time hardly depends on
what else runs on a machine, so figures taken at different times can be compared. A process whose parent has ended
belongs to no test any more unless a test host's first process adopts it.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Generator
from time import monotonic  # as it is before a test replaces it
from typing import Any, NamedTuple

import pytest

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Seconds: at one moment, or between two."""

    wall: float = 0.0
    own: float = 0.0
    others: float = 0.0

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(*(one + two for one, two in zip(self, other, strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(one - two for one, two in zip(self, other, strict=True)))

    @property
    def processor(self) -> float:
        return self.own + self.others


def now() -> Cost:
    times = os.times()
    others = times.children_user + times.children_system + _of_the_living()
    return Cost(monotonic(), times.user + times.system, others)


def _of_the_living() -> float:
    """Seconds of processor time of all descendants that nobody has waited for, and of those they have waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there are none
        return 0.0
    children: dict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # it may have ended
            fields = file.read().rpartition(b")")[2].split()
            children[int(fields[1])].append(int(name))
            ticks[int(name)] = sum(map(int, fields[11:15]))
    found = list(children[os.getpid()])
    for pid in found:  # which grows
        found += children[pid]
    return sum(ticks[pid] for pid in found) * TICK_S


class Costs:
    """A plugin of each process of pytest. The reports of its tests carry what was measured to the first process."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._fixtures: list[tuple[str, Cost]] = []  # of this test
        self._inner: list[Cost] = []  # of each fixture that is being set up: what those that it asks for have cost
        self._of: dict[str, dict[str, Cost]] = defaultdict(lambda: defaultdict(Cost))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if not fixturedef.baseid.startswith("tests"):
            return (yield)
        before = now()
        self._inner.append(Cost())
        try:
            return (yield)
        finally:
            took = now() - before
            name = f"{fixturedef.argname} ({fixturedef.scope}, {fixturedef.baseid})"
            self._fixtures.append((name, took - self._inner.pop()))
            if self._inner:
                self._inner[-1] += took

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._began = now()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        report = yield
        ended = now()
        fixtures = [(name, tuple(cost)) for name, cost in self._fixtures]  # as xdist can send them
        report.costs = (tuple(ended - self._began), fixtures)
        self._began, self._fixtures = ended, []
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not hasattr(report, "costs"):
            return
        took, fixtures = Cost(*report.costs[0]), report.costs[1]
        path = report.nodeid.partition("::")[0]
        self._of["tests"][report.nodeid if report.when == "call" else f"{report.nodeid} ({report.when})"] += took
        self._of["files"][path] += took
        self._of["folders"][path.rpartition("/")[0]] += took
        self._of["the run"]["everything"] += took
        for name, cost in fixtures:
            self._of["fixtures"][name] += Cost(*cost)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for kind, costs in self._of.items():
            terminalreporter.section(f"costs of {kind}, in seconds")
            terminalreporter.write_line(f"{'wall':>8} {'own':>8} {'others':>8}")
            rows = sorted(costs.items(), key=lambda one: max(one[1].wall, one[1].processor), reverse=True)
            for name, cost in rows[: self._rows]:
                terminalreporter.write_line(f"{cost.wall:8.1f} {cost.own:8.1f} {cost.others:8.1f}  {name}")


def add_option(parser: pytest.Parser) -> None:
    text = "say what the dearest N tests, fixtures and files cost, by the clock and of the processor"
    parser.addoption("--costs", type=int, metavar="N", default=0, help=text)


def register(config: pytest.Config) -> None:
    rows = int(config.getoption("costs"))
    if rows:
        config.pluginmanager.register(Costs(rows))
