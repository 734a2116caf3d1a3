"""./start_manager.sh --demo: a manager, this machine as a host and three example workers, isolated from everything
else.

With `--managers 2`, several managers on a PostgreSQL server of its own. Owns one folder (~/.cache/procguard-demo) that
it creates and removes, and everything it starts: Ctrl-C or SIGTERM stops workers, runners, agent and manager. Uses the
manager, deployer and installer as separate programs; never touches ~/.procguard or another manager's state.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from procguard import resources
from procguard.console.language import VARIABLE as LANGUAGE
from procguard.console.language import of_environment, shown
from procguard.errors import Conflict, ProcGuardError, UsageError
from procguard.manager import daemon, demo_database

INVENTORY = resources.path("inventory", "demo.yaml")
INSTALLER = os.path.join(resources.import_root(), "remote_agent", "install", "__main__.py")
DEFAULT_PORT = 5000
READY_TIMEOUT_S = 30.0
DEPLOY_TIMEOUT_S = 120.0
RUNNING_TIMEOUT_S = 60.0
MOST_MANAGERS = 3
STANDBY_LEADS_AFTER_S = 4.0
END_TIMEOUT_S = 60.0
DEPLOYER = """
import sys
from procguard.cli import app as cli
from procguard.deploy.install import deployer
from procguard.deploy.session import connector
from procguard.deploy.inventory import model as inventory
from procguard.cli.output import deployment as show
if sys.stdin.readline():
    cli.main(["procguard", "deploy", "--hosts", sys.argv[1]])
"""
WHAT_THEY_DO = {
    "train-tiny": "trains a tiny model; its progress is in its log",
    "web-api": "serves http, with a health check",
    "flaky": "crashes every 20 to 60 s and is restarted",
}


def run(args_port: int | None, args_host: str | None, managers: int = 1) -> int:
    """Run the demo until Ctrl-C. 0: it ran and everything ended; 1: something did not start or did not end."""
    if not 1 <= managers <= MOST_MANAGERS:
        raise UsageError(f"--managers {managers}: expected 1 to {MOST_MANAGERS}", "e.g. --managers 2")
    if managers > 1:
        demo_database.programs()
    ending = DemoEnding()
    before = {
        number: signal.signal(number, ending.request_stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        with _own_folder(default_folder()) as folder:
            return Demo(folder, args_host or "127.0.0.1", args_port, ending, managers).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def default_folder() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "procguard-demo")


class ExampleWorker(NamedTuple):
    worker_id: str
    state: str
    reason: str
    pid: int | None = None


class DemoEnding:
    """Whether a signal has requested the end. A plain flag, because a lock taken in a signal handler can deadlock."""

    def __init__(self) -> None:
        self.requested = False

    def request_stop(self, *_signal: object) -> None:
        self.requested = True

    def wait(self, timeout_s: float) -> bool:
        time.sleep(timeout_s)
        return self.requested


class Demo:
    """One run of the demo in `folder`, which this process holds for itself."""

    def __init__(self, folder: str, host: str, port: int | None, ending: DemoEnding, managers: int = 1) -> None:
        self._folder = folder
        self._home = os.path.join(folder, "home")
        self._state = os.path.join(folder, "state")
        self._host = host
        self._count = managers
        self._database = demo_database.DemoDatabase(folder)
        self._ports: list[int] = []
        self._urls: list[str] = []  # URLs of the managers, in the same order
        self._wanted_port = port
        self._ending = ending
        self._managers: dict[int, subprocess.Popen[bytes]] = {}  # keyed by the index in _urls
        self._deployment: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        if self._left_from_before():
            _say("removing what an earlier demo left")
            if not self._end():  # the error has been printed
                return 1
        well = False
        try:
            well = self._start() and self._watch()
        finally:
            _say(f"stopping the demo: {self._called()}, workers, agent")
            ended = self._end()
        if ended:
            _say("stopped; nothing is left")
        return 0 if well and ended else 1

    # ---------------------------------------------------------------------------------------------- starting

    def _start(self) -> bool:
        """Start the manager, deploy, and wait until all workers run. False if it was interrupted or something
        failed."""
        self._ports = [choose_port(self._host, self._wanted_port)]
        while len(self._ports) < self._count:
            self._ports.append(free_port(self._host))
        self._urls = [daemon.local_url("http", self._host, port) for port in self._ports]
        environment = self._environment()
        os.makedirs(self._state, mode=0o700, exist_ok=True)
        if self._count > 1:
            _say("starting a PostgreSQL server …")
            if not self._database.start(free_port("127.0.0.1"), self._wait):
                return self._failed("the database does not answer", self._database.output())
        _say(f"starting {self._called()} …")
        self._start_manager(0)  # the leader
        self._prepare_deployment(environment)
        if not self._wait(lambda: self._ready(0), READY_TIMEOUT_S):
            return self._failed("the manager does not answer", self._manager_output(0))
        for number in range(1, self._count):
            self._start_manager(number)
        _say("deploying three example workers to this machine …")
        return self._deploy() and self._await_workers() and self._await_standbys()

    def _called(self) -> str:
        return "the manager" if self._count == 1 else f"{self._count} managers"

    def _state_of(self, number: int) -> str:
        return self._state if self._count == 1 else os.path.join(self._state, _name(number))

    def _overrides(self, state: str) -> list[str]:
        paths = {
            "state.state_file": os.path.join(state, "fleet.yaml"),
            "logging.file": os.path.join(state, "procguard.log"),
        }
        return [f"{key}={json.dumps(path)}" for key, path in paths.items()]  # quoted: a path may mean something in YAML

    def _of_several(self, number: int) -> list[str]:
        values = {
            "state.database": self._database.url,
            "state.database_password_file": self._database.password_file,
            "state.manager_name": _name(number),
            "web.advertise": [self._urls[number]],
        }
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("PROCGUARD_") or name == LANGUAGE
        }
        if "PROCGUARD_CI_MARK" in os.environ:  # lets a test run find processes that it left behind
            kept["PROCGUARD_CI_MARK"] = os.environ["PROCGUARD_CI_MARK"]
        return kept | {
            "PROCGUARD_HOME": self._home,
            "PROCGUARD_MANAGER_URL": ",".join(self._urls),
            "PROCGUARD_DEMO_DATA": os.path.join(self._folder, "data"),
            "PROCGUARD_DEMO_HTTP_PORT": str(free_port("127.0.0.1")),
        }

    def _start_manager(self, number: int) -> None:
        os.makedirs(self._state_of(number), mode=0o700, exist_ok=True)
        words = daemon.module_command("procguard.main")
        for override in self._overrides(self._state_of(number)) + (self._of_several(number) if self._count > 1 else []):
            words += ["--set", override]
        words += ["--host", self._host, "--port", str(self._ports[number])]
        with open(self._output_path(number), "ab", opener=daemon.private) as output:
            # A session of its own: Ctrl-C reaches only this process, which ends things in the right order.
            self._managers[number] = subprocess.Popen(
                words,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _ready(self, number: int) -> bool:
        """Whether manager `number` leads or, with several managers, stands by."""
        code = self._managers[number].poll()
        if code is not None:
            raise ProcGuardError(f"the demo's manager exited with code {code}: {self._manager_output(number)}")
        return daemon.readiness(self._urls[number]) in ("ready", "standby" if number else "ready")

    def _prepare_deployment(self, environment: dict[str, str]) -> None:
        """Start the deployer as a process that imports everything while the manager starts and then waits for input. If
        the demo dies first, its stdin ends and it deploys nothing."""
        with open(os.path.join(self._folder, "deploy.out"), "wb", opener=daemon.private) as output:
            self._deployment = subprocess.Popen(
                [*daemon.python_command(), "-c", DEPLOYER, INVENTORY],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _deploy(self) -> bool:
        deployment = self._deployment
        assert deployment is not None and deployment.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed already, as its exit code shows
            deployment.stdin.write(b"deploy\n")
            deployment.stdin.close()
        if self._wait(lambda: deployment.poll() is not None, DEPLOY_TIMEOUT_S) and deployment.returncode == 0:
            return True
        return self._failed(
            "the example workers could not be deployed", _tail(os.path.join(self._folder, "deploy.out"))
        )

    def _await_workers(self) -> bool:
        from procguard.client.api import ManagerClient  # noqa: PLC0415 - the manager starts before it is loaded

        self._client = ManagerClient(",".join(self._urls))
        if not self._wait(lambda: all(one.state == "running" for one in self._workers()), RUNNING_TIMEOUT_S):
            states = "\n".join(f"{one.worker_id}: {one.state} ({one.reason})" for one in self._workers())
            return self._failed("not all example workers are running", states)
        return True

    def _await_standbys(self) -> bool:
        for number in range(1, self._count):
            if not self._wait(lambda number=number: self._ready(number), READY_TIMEOUT_S):  # type: ignore[misc]
                return self._failed(f"manager {_name(number)} did not become a standby", self._manager_output(number))
        self._print_summary()
        return True

    def _workers(self) -> list[ExampleWorker]:
        """The manager's view of the example workers; unknown ones count as not running."""
        known = {
            one["worker_id"]: ExampleWorker(one["worker_id"], one["state"], one["reason"], one["pid"])
            for one in self._client.workers()
        }
        return [known.get(name, ExampleWorker(name, "unknown", "not heard yet")) for name in WHAT_THEY_DO]

    def _print_summary(self) -> None:
        _say(f"\nProcGuard demo: {self._urls[0]}\n")
        if self._count > 1:
            for number, process in self._managers.items():
                role = "leads" if number == 0 else "stands by"
                _say(f"  manager {_name(number)} {role:9} pid {process.pid:<8} {self._urls[number]}")
            _say("")
        for one in self._workers():
            what = shown(WHAT_THEY_DO[one.worker_id])
            _say(f"  {one.worker_id:11} {_state(one.state):8} pid {one.pid or '':<8} {what}")
        _say(f"\nTry: kill -9 {self._workers()[0].pid}   and watch it come back in the portal")
        if self._count > 1:
            _say(f"     kill -9 {self._managers[0].pid}   and watch {_name(1)} take over; {_name(0)} is started again")
        _say(f"     curl {self._urls[0]}/api/remote-workers/train-tiny/logs")
        _say("Ctrl-C stops everything and removes it.")

    def _watch(self) -> bool:
        """Wait for the end. False if the manager ended by itself; one of several managers is started again."""
        while not self._ending.wait(0.2):
            for number, process in list(self._managers.items()):
                if process.poll() is None:
                    continue
                if self._count == 1:
                    return self._failed(f"the manager ended (exit code {process.returncode})", self._manager_output(0))
                _say(f"manager {_name(number)} ended (exit code {process.returncode}); starting it again as a standby")
                self._ending.wait(STANDBY_LEADS_AFTER_S)  # otherwise the others would not notice its loss
                self._start_manager(number)
        return True

    # ------------------------------------------------------------------------------------------------ ending

    def _left_from_before(self) -> bool:
        return os.path.isdir(self._home) or os.path.isdir(self._state)

    def _end(self) -> bool:
        """Stop the manager, which would otherwise restart the agent, then each agent with its workers; remove the
        folder."""
        if self._deployment is not None and self._deployment.poll() is None:
            self._deployment.terminate()
            self._deployment.wait()
        well = self._end_managers()
        for path in glob.glob(os.path.join(glob.escape(self._home), "*", "*", "agent.json")):
            well = self._uninstall(os.path.dirname(path)) and well
        if well:
            self._database.stop()
            for name in os.listdir(self._folder):
                _remove(os.path.join(self._folder, name))
        return well

    def _end_managers(self) -> bool:
        if self._managers:
            for process in self._managers.values():
                process.terminate()
            for process in self._managers.values():
                try:
                    process.wait(END_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._managers.clear()
            return True
        from procguard.config import schema  # noqa: PLC0415 - takes 0.2 s; only this method needs it

        well = True
        for state in (self._state, *glob.glob(os.path.join(glob.escape(self._state), "m?"))):  # of an earlier demo
            settings = schema.load(None, self._overrides(state))
            with contextlib.redirect_stdout(None):
                well = (daemon.find(settings) is None or daemon.stop(settings) == 0) and well
        return well

    def _uninstall(self, agent_dir: str) -> bool:
        words = [sys.executable, "-I", INSTALLER, "uninstall", "--dir", agent_dir]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=END_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return self._failed(f"the agent in {agent_dir} does not stop", "end it by hand: " + " ".join(words))
        if done.returncode != 0:
            return self._failed(f"the agent in {agent_dir} could not be stopped", done.stdout + done.stderr)
        return True

    # ----------------------------------------------------------------------------------------------- helpers

    def _wait(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for `reached()`. Returns False after `timeout_s` or if the end was requested."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > deadline or self._ending.wait(0.05):
                return False
        return not self._ending.requested

    def _failed(self, what: str, details: str) -> bool:
        if not self._ending.requested:  # a requested end during the start is not a failure
            _say(f"procguard: {what}\n{details.rstrip()}", sys.stderr)
        return False

    def _output_path(self, number: int) -> str:
        return os.path.join(self._state_of(number), "manager.out")

    def _manager_output(self, number: int) -> str:
        return _tail(self._output_path(number))


def _state(state: str) -> str:
    if of_environment() == "en":
        return state
    from procguard.i18n.words import Words  # noqa: PLC0415 - only for other languages

    return Words(of_environment()).state(state)


def _name(number: int) -> str:
    """The name of one of several managers."""
    return f"m{number + 1}"


# ------------------------------------------------------------------------------------------------------------ ports


def choose_port(host: str, wanted: int | None) -> int:
    """The port `wanted`, which must be free; by default 5000 or the next free port. Raises UsageError, Conflict."""
    try:
        _bound(host, 0).close()
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        raise UsageError(
            f"cannot listen on {host} ({why})", "give --host an address of this machine, or leave it out"
        ) from exc
    if wanted is not None:
        if wanted and not _is_free(host, wanted):
            raise Conflict(f"port {wanted} is in use on {host}", "choose another --port, or omit it")
        return wanted or free_port(host)
    for port in range(DEFAULT_PORT, DEFAULT_PORT + 50):
        if _is_free(host, port):
            if port != DEFAULT_PORT:
                _say(f"port {DEFAULT_PORT} is taken; using {port}")
            return port
    return free_port(host)


def free_port(host: str) -> int:
    with contextlib.closing(_bound(host, 0)) as probe:
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    try:
        _bound(host, port).close()
    except OSError:
        return False
    return True


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    probe = socket.socket(family, kind, protocol)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    except OSError:
        probe.close()
        raise
    return probe


# ----------------------------------------------------------------------------------------------------------- folder


@contextlib.contextmanager
def _own_folder(folder: str) -> Any:
    """Lock the demo's folder for this process; removed at the end if it is empty."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Conflict(f"the demo is already running in {folder}", "stop it with Ctrl-C in its terminal") from exc
        yield folder
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    finally:
        os.close(held)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _tail(path: str, at_most_bytes: int = 8000) -> str:
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - at_most_bytes))
        return file.read().decode(errors="replace").rstrip()


def _say(text: str, to: TextIO | None = None) -> None:
    """Print to the terminal; a closed terminal must not stop the shutdown."""
    with contextlib.suppress(OSError):
        print(shown(text), file=to or sys.stdout, flush=True)
