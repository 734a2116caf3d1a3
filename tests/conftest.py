"""What every test run does.

Continuous integration tries the same hypothesis examples each time; elsewhere hypothesis looks on, and what it finds
becomes an @example. And a run takes back the control groups of runners that ended without a chance to remove theirs; of
runs side by side, the last one does.

In `invoke check` a test that costs seconds of processor time fails: there are thousands of them.

A power cut takes a real machine's groups along; the test hosts share this machine's. A group in use is not empty, and
the kernel refuses to remove it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import tempfile
from collections.abc import Generator
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, settings

from scripts.leftovers import control_groups
from tests import chaos, costs, forked, stuck
from tests.chaos import chaos_report  # noqa: F401 - known to pytest by being here
from tests.sizes import QUICK

# No example has a deadline: how long one takes says more of the machine's load than of the code.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# A script's background job is started with Ctrl-C ignored, one under nohup with SIGHUP: so would be everything that the
# tests send one to.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

# Files are shared out among processes in this order, and a run ends when its last file does.
LONGEST = ["test_axe", "test_portal", "test_appearance", "test_operations", "test_logs"]
LONGEST += ["test_playbooks", "test_documents", "test_wheel", "test_other_releases", "test_agent_lease", "test_lease"]
LONGEST += ["test_deploy", "test_tls", "test_reassignment"]
LONGEST += ["test_chaos_fence", "test_gangs", "test_upgrade", "test_agent_memory", "test_recovery", "test_trust_doctor"]
LONGEST += ["test_tunnel", "test_chaos_several", "test_chaos_manager", "test_worker_launcher", "test_reach"]
LONGEST += ["test_chaos_disk", "test_log_kills", "test_code", "test_seed", "test_chaos_keep", "test_swarm"]
LONGEST += ["test_inventory_parity", "test_zmq", "test_chaos_clock", "test_chaos_proxy", "test_channel_conformance"]
LONGEST += ["test_agent_gpus", "test_stuck", "test_zoo", "test_pypy"]

# What one test may take of the processor in `invoke check`, with the processes it has waited for. The dearest takes a
# third of it on a quiet machine, so that a busy one, which makes processor time longer too, fails nothing here.
QUICK_TEST_CPU_S = 4.0

# For tests that parse the whole tree: each of their millions of objects is there until the test ends.
GARBAGE = (20_000, 20, 20)
COLLECTING = __file__  # a lock
gc.disable()  # while thousands of tests are collected: all of that stays
_BEFORE = pytest.StashKey[set[str]]()
_PRESENT = pytest.StashKey[int]()  # a lock that runs of pytest with the same temporary folder share


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("timeout"):  # a run of the suite
        config.pluginmanager.register(stuck.Watch(config))
    costs.register(config)
    costs_or_worker = config.getoption("costs") or hasattr(config, "workerinput")
    if QUICK and config.getoption("numprocesses", None) and not costs_or_worker:
        forked.share()
        config.add_cleanup(forked.unshare)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_BEFORE] = set(control_groups())
    if not hasattr(session.config, "workerinput"):
        session.config.stash[_PRESENT] = present = os.open(tempfile.gettempdir(), os.O_RDONLY)
        fcntl.flock(present, fcntl.LOCK_SH)


def pytest_sessionfinish(session: pytest.Session) -> None:
    forked.close()
    if hasattr(session.config, "workerinput"):
        return  # one of several processes side by side: the first of them does it when all are done
    present, before = session.config.stash[_PRESENT], session.config.stash[_BEFORE]
    try:
        fcntl.flock(present, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(set(control_groups()) - before)
    except BlockingIOError:
        pass  # another run goes on: the group of a job between two starts is empty as well
    finally:
        os.close(present)


def _remove(groups: set[str]) -> None:
    for path in groups:
        with contextlib.suppress(OSError):
            os.rmdir(path)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Of processes side by side one is the first to collect. The others then find the byte code of all tests made: it
    takes three times as long as collecting them."""
    with open(COLLECTING, encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH)
        return (yield)


def pytest_collection_finish() -> None:
    if hasattr(gc, "freeze"):  # not in PyPy
        gc.freeze()  # each look for garbage would go through all of it again
    gc.set_threshold(*GARBAGE)
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    chaos.add_options(parser)
    costs.add_option(parser)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `long` run only when they are asked for: `pytest -m long`, or PROCGUARD_LONG=1."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    chaos.select(config, items)
    asked = "long" in str(config.getoption("markexpr", "")) or bool(os.environ.get("PROCGUARD_LONG"))
    for item in items:
        if item.get_closest_marker("long") and not asked:
            item.add_marker(pytest.mark.skip(reason="takes minutes: pytest -m long"))


# Under CI=true a skipped test is a failed one, unless it skips for one of these: what no package brings to a machine.
LAWFUL_SKIPS = ("takes minutes", "this file system", "this kernel", "no writable cgroup", "pypy", "no torch here")


def _must_not_skip(item: pytest.Item, report: Any) -> str:
    """Why this skip is a failure in continuous integration; "" where it is none."""
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI") != "true":
        return ""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if item.get_closest_marker("long") or reason.lower().startswith(LAWFUL_SKIPS):
        return ""
    return f"{item.nodeid} was skipped under CI=true: {reason}"


_BEGAN = pytest.StashKey[float]()


def _cpu_s() -> float:
    return sum(os.times()[:4])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    item.stash[_BEGAN] = _cpu_s()


def _too_dear(item: pytest.Item, report: Any) -> str:
    """Why it is no test for `invoke check`; "" elsewhere."""
    if not QUICK or report.when != "call" or not report.passed:
        return ""
    took_s = _cpu_s() - item.stash[_BEGAN]
    if took_s < QUICK_TEST_CPU_S:
        return ""
    return f"{item.nodeid} took {took_s:.1f} s of processor time: make it cheaper, or mark it slow"


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """In `invoke check`, one of the processes side by side sends the first one only what that shows: how a test ended,
    and a set-up or clean-up that failed. All messages of thousands of tests take seconds of processor time."""
    if not QUICK or not hasattr(item.config, "workerinput") or item.config.getoption("costs"):
        return None  # as usual
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    trouble = _must_not_skip(item, report) or _too_dear(item, report)
    if trouble:
        report.outcome, report.longrepr = "failed", trouble
    chaos.record(item, report)
    return report
