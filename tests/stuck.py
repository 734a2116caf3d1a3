"""Ends tests that hang, so that they do not block a run, and reports failures even if the run is ended from outside.

pytest-timeout raises an exception in a test that takes too long. That does not end what swallows it, waits once more
while it cleans up, is in C code, or was stopped by a signal. A minute later faulthandler writes the stacks of all
threads to standard error and ends the process; xdist names the test and goes on in another process. If none of the
processes side by side has reported for `SILENT_S`, the first of them does the same to all.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Generator

import psutil
import pytest

from tests import forked

GRACE_S = 60.0  # beyond the time limit of a test
SILENT_S = 600.0  # longer than the limit of any test that is not marked long


class Watch:
    """A plugin of each process of pytest: ends it where a test can't be ended, and names what fails when it fails."""

    def __init__(self, config: pytest.Config) -> None:
        self._limit_s = float(config.getini("timeout") or 0.0)
        self._plugins = config.pluginmanager
        self._many = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")
        self._reported = time.monotonic()
        with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            self._stderr = os.dup(2)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        marker = item.get_closest_marker("timeout")
        limit_s = float(marker.args[0]) if marker else self._limit_s
        if limit_s:
            faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=self._stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_sessionstart(self) -> None:
        if self._many:
            threading.Thread(target=self._end_the_silent, daemon=True).start()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reported = time.monotonic()
        if report.failed and self._many:
            crash = getattr(report.longrepr, "reprcrash", None)
            first = next(iter(str(crash.message if crash else report.longrepr).strip().splitlines()), "")
            self._plugins.getplugin("terminalreporter").write_line(
                f"\nFAILED {report.nodeid} ({report.when}): {first}", red=True
            )

    def _end_the_silent(self) -> None:
        while True:
            time.sleep(1.0)
            if time.monotonic() - self._reported < SILENT_S:
                continue
            self._reported = time.monotonic()
            for one in psutil.Process().children():
                if one.pid in forked.pids():
                    continue
                with contextlib.suppress(psutil.NoSuchProcess):
                    message = f"\nnothing reported for {SILENT_S:.0f} s: ending {one.pid} ({one.status()})\n"
                    os.write(self._stderr, message.encode())
                    one.send_signal(signal.SIGABRT)  # pytest has enabled faulthandler: it writes the stacks
                    one.send_signal(signal.SIGCONT)
