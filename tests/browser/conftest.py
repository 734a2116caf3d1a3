"""A real manager, a real launcher with its worker, and Chromium. Everything that is started here is also ended here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from scripts import chromium as chromium_program
from scripts import portal_wheel
from tests import forked
from tests.browser import bundled
from tests.ports import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MANAGER = "procguard.main"
BUNDLED = "tests.browser.bundled"
# Numbered lines, markup that must stay text, a progress bar on one line, and a line that is never finished.
JOB = r"""
import sys, time
print("attempt begins <b>not bold</b> \x1b[31mred\x1b[0m 训练开始", flush=True)
for percent in (10, 60, 100):
    print(f"\rloading {percent}%", end="", flush=True)
print(flush=True)
number = 0
while True:
    number += 1
    print(f"line {number}", flush=True)
    if number % 10 == 0:
        print(f"complaint {number}", file=sys.stderr, flush=True)
    time.sleep(0.05)
"""

expect.set_options(timeout=15_000)


@dataclass
class Program:
    """A process whose output is kept; it is ended by a signal and waited for."""

    process: subprocess.Popen[bytes] | forked.Process
    output: Path

    @classmethod
    def start(cls, module: str, *arguments: str, directory: Path, name: str, **environment: str) -> Program:
        output = directory / f"{name}.out"
        variables = {key: value for key, value in os.environ.items() if key != bundled.FOLDER}
        variables |= {"PYTHONPATH": str(ROOT), **environment}
        with output.open("ab") as file:
            if module == MANAGER and forked.can_run(variables):
                program = BUNDLED if bundled.FOLDER in variables else MANAGER
                return cls(
                    forked.start(program, [*arguments], variables, directory, file.fileno(), file.fileno()), output
                )
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return cls(process, output)

    def end(self, signal_number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@dataclass
class ManagerRig:
    """One manager on a state of its own, and launchers that report to it."""

    directory: Path
    port: int = field(default_factory=free_port)
    manager: Program | None = None
    launchers: list[Program] = field(default_factory=list)
    secure: bool = False  # https, whoever's certificate
    swarm: Any = None  # its simulated hosts, where it has some
    root: Path = ROOT  # where its `procguard` is: the checkout, or an unpacked wheel
    bundled: bool = True  # the checkout's portal, where it can be; False: the modules as they lie there

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://127.0.0.1:{self.port}"

    def start_manager(self, *settings: str) -> None:
        self.secure = "web.tls=auto" in settings
        chosen = [
            f"state.state_file={self.directory}/state.yaml",
            f"logging.file={self.directory}/manager.log",
            *settings,
        ]
        pairs = [word for setting in chosen for word in ("--set", setting)]
        portal = os.environ.get(bundled.FOLDER, "") if self.bundled else ""
        self.manager = Program.start(
            MANAGER, "--host", "127.0.0.1", "--port", str(self.port), *pairs,
            directory=self.directory, name="manager", PYTHONPATH=str(self.root),
            **({bundled.FOLDER: portal} if portal else {}),
        )  # fmt: skip
        wait_until(self.ready, 30, "the manager answers")

    def ready(self) -> bool:
        assert self.manager is not None
        assert self.manager.process.poll() is None, self.manager.output.read_text()
        try:
            with urllib.request.urlopen(self.url + "/readyz", timeout=2, context=self._tls()) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def start_worker(self, worker_id: str) -> None:
        job = self.directory / "job.py"
        job.write_text(JOB, encoding="utf-8")
        launcher = Program.start(
            "procguard.worker_launcher", "--worker-id", worker_id, "--manager-url", self.url,
            "--command", f"{sys.executable} {job}",
            directory=self.directory, name=worker_id, PROCGUARD_HOME=str(self.directory / "home"),
        )  # fmt: skip
        self.launchers.append(launcher)
        wait_until(lambda: self.worker(worker_id).get("state") == "running", 30, f"{worker_id} runs", every_s=0.1)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json", **named}, method=method
        )
        with urllib.request.urlopen(request, timeout=10, context=self._tls()) as answer:
            return json.load(answer)

    def _tls(self) -> ssl.SSLContext | None:
        return ssl._create_unverified_context() if self.secure else None

    def worker(self, worker_id: str) -> dict[str, Any]:
        try:
            return dict(self.ask("GET", f"/api/remote-workers/{worker_id}"))
        except urllib.error.HTTPError:
            return {}

    def end(self) -> None:
        for launcher in self.launchers:
            launcher.end(signal.SIGINT)  # stops its worker too
        for settings in self.directory.glob("home/*/*/**/agent.json"):
            shutil.rmtree(json.loads(settings.read_text())["runtime_dir"], ignore_errors=True)  # locks, outside `home`
        if self.manager is not None:
            self.manager.end()


@pytest.fixture(scope="session", autouse=True)
def bundled_portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the managers serve. test_access.py and test_chinese.py, which sees every page, look at the modules."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all processes of this run
    if not portal_wheel.missing():
        os.environ[bundled.FOLDER] = str(bundled.made_once(base / "portal"))
    yield
    os.environ.pop(bundled.FOLDER, None)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    """A manager with one running worker, shared by the tests of a module."""
    with one_worker(tmp_path_factory.mktemp("house")) as made:
        yield made


@contextlib.contextmanager
def one_worker(directory: Path, **options: Any) -> Iterator[ManagerRig]:
    made = ManagerRig(directory, **options)
    try:
        made.start_manager()
        made.start_worker("worker1")
        yield made
    finally:
        made.end()


@pytest.fixture
def empty_rig(tmp_path: Path) -> Iterator[ManagerRig]:
    """A manager with its own state, not started yet."""
    made = ManagerRig(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = chromium_program.path_for_tests()
    if path is None:
        reason = chromium_program.HOW_TO_HAVE_IT
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=chromium_program.ARGUMENTS)
        yield browser
        browser.close()


class Visitor:
    """Opens pages. Errors on their consoles are collected and fail the test at its end."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self._network_changed = False

    def open(self, url: str, *, locale: str = "en", theme: Any = "light", width: int = 1440, height: int = 900) -> Page:
        context = self._browser.new_context(
            locale=locale,
            color_scheme=theme,
            viewport={"width": width, "height": height},
            reduced_motion="reduce",
            ignore_https_errors=True,  # Chromium knows no CA of a test's manager
        )
        self._contexts.append(context)
        # of the context, not of one page: a page that a page opens is watched as well
        context.on("console", lambda message: self._note(message.type, message.text))
        context.on("weberror", lambda error: self.complaints.append(f"page error: {error.error}"))
        page = context.new_page()
        self._network_changed = False
        page.goto(url)
        if self._network_changed:
            page.reload()
        return page

    def _note(self, kind: str, text: str) -> None:
        if "ERR_NETWORK_CHANGED" in text:  # an interface of this machine came or went: Chromium drops what is under way
            self._network_changed = True
        elif kind in ("error", "warning"):
            self.complaints.append(f"console {kind}: {text}")

    def forgive(self, part: str) -> None:
        """Ignore errors that the test itself has caused: Chromium reports each refused request and lost connection."""
        self.complaints = [one for one in self.complaints if part not in one]

    def forgive_an_absent_manager(self) -> None:
        """Ignore what Chromium reports while no manager is there, and of the requests that a killed one left."""
        for part in (
            "ERR_CONNECTION_REFUSED",
            "ERR_CONNECTION_RESET",
            "ERR_CONNECTION_CLOSED",
            "ERR_EMPTY_RESPONSE",
            "ERR_INCOMPLETE_CHUNKED_ENCODING",
            "/ws' failed",
        ):
            self.forgive(part)

    def leave(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def visitor(chromium: Browser) -> Iterator[Visitor]:
    made = Visitor(chromium)
    try:
        yield made
    finally:
        made.leave()
    assert made.complaints == []


@pytest.fixture
def guest(visitor: Visitor) -> Iterator[Visitor]:
    """A visitor that also requests missing things, for which Chromium reports each 404."""
    yield visitor
    visitor.forgive("404")
