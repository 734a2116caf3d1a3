"""Runs test files side by side: `pytest --forks N` collects the tests once and forks N processes, each of which takes
one file after another.

With pytest-xdist (`-n N`) each process imports and collects everything, and the reports of a test take 3 ms of
processor time to be sent; here they take a tenth of it. Where a test ends its process, the test fails, and another
process takes the rest of the file. Plugins find `config.workerinput` in the processes, as with xdist.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests import stuck

END_S = 60.0  # for the fixtures of a process when a run is broken off


def add_option(parser: pytest.Parser) -> None:
    text = "run the test files side by side in N processes, forked after the collection"
    parser.addoption("--forks", type=int, metavar="N", default=0, help=text)


def register(config: pytest.Config, watch: stuck.Watch) -> None:
    count = int(config.getoption("forks"))
    if count:
        config.pluginmanager.register(SideBySide(config, watch, count))


class _Process:
    """One of them, as the first process sees it."""

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid = pid
        self.connection = connection
        self.left: list[int] = []  # of its file, by number in session.items: first the one that it runs


class SideBySide:
    """In the first process: shares out the files, and reports what happens to them."""

    def __init__(self, config: pytest.Config, watch: stuck.Watch, count: int) -> None:
        self._config = config
        self._watch = watch
        self._count = count
        self._made = 0
        self._files: deque[list[int]] = deque()
        self._running: dict[Any, _Process] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed or self._config.option.collectonly:
            return None  # pytest itself says so
        files: dict[Path, list[int]] = {}
        for number, item in enumerate(session.items):
            files.setdefault(item.path, []).append(number)
        self._files.extend(files.values())
        try:
            for _ in range(min(self._count, len(files))):
                self._fork(session)
            while self._running:
                self._listen(session)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
        finally:
            self._break_off()
        return True

    def _fork(self, session: pytest.Session) -> None:
        ours, theirs = Pipe()
        self._made += 1
        folder = self._config._tmp_path_factory.getbasetemp() / f"fork{self._made}"  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            for one in (ours, *self._running):  # whoever has an end of a pipe open keeps it from ending
                one.close()
            _take_turns(session, theirs, folder)
        theirs.close()
        self._running[ours] = _Process(pid, ours)

    def _listen(self, session: pytest.Session) -> None:
        ready = wait(list(self._running), stuck.SILENT_S)
        if not ready:
            self._watch.end(process.pid for process in self._running.values())
        for one in ready:
            process = self._running[one]
            try:
                found, begins = process.connection.recv()
            except (EOFError, ConnectionError):
                self._ended(session, process)
                continue
            for kind, value in found:
                self._report(kind, value)
            if begins is None:
                process.left = self._files.popleft() if self._files else []
                process.connection.send(process.left)
            else:
                item = session.items[begins]
                process.left = process.left[process.left.index(begins) :]
                self._config.hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def _report(self, kind: str, value: Any) -> None:
        hook = self._config.hook
        if kind == "report":
            hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=self._config, data=value))
        else:
            hook.pytest_warning_recorded.call_historic(kwargs=value)

    def _ended(self, session: pytest.Session, process: _Process) -> None:
        del self._running[process.connection]
        process.connection.close()
        code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        if not process.left and not code:
            return
        nodeid, location = "the end of a process", ("", None, "")
        if process.left:
            item = session.items[process.left.pop(0)]
            nodeid, location = item.nodeid, item.location
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        text = f"a process crashed while running '{nodeid}': {how}"
        report = pytest.TestReport(nodeid, location, {}, "failed", text, "call")
        self._config.hook.pytest_runtest_logreport(report=report)
        if process.left:
            self._files.appendleft(process.left)
            self._fork(session)

    def _break_off(self) -> None:
        """End what still runs: each process notices that nobody listens, and tears its fixtures down."""
        for one in self._running:
            one.close()
        deadline = time.monotonic() + END_S
        for process in self._running.values():
            while not os.waitpid(process.pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    os.kill(process.pid, signal.SIGKILL)
                time.sleep(0.05)
        self._running.clear()


# --------------------------------------------------------------------------------------- in each process


def _take_turns(session: pytest.Session, connection: Connection, folder: Path) -> NoReturn:
    """Run one file after another; does not return."""
    code = 1
    try:
        _begin(session, folder)
        found = _Found(session.config)
        session.config.pluginmanager.register(found)
        try:
            _run(session, connection, found)
        finally:
            session._setupstate.teardown_exact(None)
        code = 0
    except (BrokenPipeError, EOFError, KeyboardInterrupt):  # the run is broken off
        code = 2
    except BaseException:
        with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            traceback.print_exc()
    os._exit(code)


def _begin(session: pytest.Session, folder: Path) -> None:
    """Take what two processes cannot share: the terminal, the captured output, the folder of temporary files."""
    config = session.config
    config.workerinput = {"workerid": folder.name}  # type: ignore[attr-defined]
    config.pluginmanager.unregister(name="terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    folder.mkdir(mode=0o700)
    config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]


def _run(session: pytest.Session, connection: Connection, found: _Found) -> None:
    while True:
        connection.send((found.taken(), None))
        numbers = connection.recv()
        if not numbers:
            return
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            connection.send((found.taken(), number))
            item = session.items[number]
            # after the last of a file the fixtures of the whole session stay
            after = session if following is None else session.items[following]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)


class _Found:
    """What the first process is told before the next test begins."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._kept: list[tuple[str, Any]] = []

    def taken(self) -> list[tuple[str, Any]]:
        kept, self._kept = self._kept, []
        return kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._kept.append(("report", data))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        one = warning_message
        kept = warnings.WarningMessage(str(one.message), one.category, one.filename, one.lineno)
        values = {"warning_message": kept, "when": when, "nodeid": nodeid, "location": location}
        self._kept.append(("warning", values))
