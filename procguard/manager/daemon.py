"""One manager per state, in the foreground or background: --daemon, --status, --stop, and the lock behind them.

Owns three files in the state's directory: `manager.lock` (held by the running manager, with its identity),
`manager.pid` and `manager.out` (output of a background manager). Must not know what a manager does: it is a process
that holds the lock and answers GET /readyz.
"""

from __future__ import annotations

import dataclasses
import fcntl
import http.client
import json
import os
import shlex
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TextIO
from urllib.parse import urlsplit

from procguard import hints
from procguard.config import state_paths
from procguard.console.language import shown
from procguard.errors import Conflict, ProcGuardError
from remote_agent.system import processes

if TYPE_CHECKING:  # the demo needs no configuration, whose import takes longer than everything else here
    from procguard.config.schema import Config

EXIT_NOT_RUNNING = 3
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
MAX_READY_BYTES = 10_000
ANYWHERE = ("0.0.0.0", "::", "")  # listening everywhere: reachable as localhost


@dataclasses.dataclass(frozen=True)
class Running:
    """The manager that holds the lock. `url` is "" until it listens."""

    pid: int
    start: int  # clock ticks since boot, from /proc: tells this process from a later one with the same pid
    boot_id: str
    url: str = ""
    started_at: float = 0.0  # wall clock, for display

    @property
    def identity(self) -> processes.Identity:
        return processes.Identity(self.pid, self.start, self.boot_id)


class StateLock:
    """The lock that allows this process to manage a state; released at the latest when the process ends."""

    def __init__(self, file: TextIO, pid_path: str, running: Running) -> None:
        self._file = file
        self._pid_path = pid_path
        self._running = running
        self._write()
        _write_text(pid_path, f"{running.pid}\n")

    def announce(self, url: str) -> None:
        """Write the URL for --daemon and --status, once the manager listens."""
        self._running = dataclasses.replace(self._running, url=url)
        self._write()

    def renew(self) -> None:
        """Take the lock again if its file was deleted. Raises Conflict if another manager has taken it meanwhile."""
        path = self._file.name
        try:
            if not self._file.closed and os.path.samestat(os.stat(path), os.fstat(self._file.fileno())):
                return
        except FileNotFoundError:
            pass
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            file = open(path, "a+", encoding="utf-8", opener=private)  # noqa: SIM115 - held until the manager ends
        except OSError as exc:
            raise ProcGuardError(
                f"cannot write {path}: {exc.strerror}", "make its folder writable; the manager retries"
            ) from exc
        if not _take(file):
            file.close()
            raise Conflict(
                f"another manager was started on {path}, after its files were deleted under this one",
                "stop one of the two; this one acknowledges no change until then",
                code="another_state",
            )
        self._file.close()
        self._file = file
        self._write()
        _write_text(self._pid_path, f"{self._running.pid}\n")

    def let_go(self) -> None:
        """Release the lock of a state that another manager owns; `renew` takes it again."""
        self._file.close()

    def release(self) -> None:
        if not self._file.closed:
            try:
                os.unlink(self._pid_path)
            except OSError:
                pass
            self._file.close()

    def _write(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump(dataclasses.asdict(self._running), self._file)
        self._file.write("\n")
        self._file.flush()


# ------------------------------------------------------------------------------------------------------- the lock


def lock_state(config: Config) -> StateLock:
    """Take the lock of this state. Raises Conflict that names the running manager. Creates the state's directory."""
    path = _lock_path(config)
    try:
        os.makedirs(config.state_directory, mode=0o700, exist_ok=True)
        file = open(path, "a+", encoding="utf-8", opener=private)  # noqa: SIM115 - held until the manager ends
    except OSError as exc:
        raise ProcGuardError(
            f"cannot write the state in {config.state_directory}: {exc.strerror}",
            "check the directory's owner and rights, or choose another: --set state.state_file=PATH",
        ) from exc
    if not _take(file):
        file.close()
        raise already_running(config)
    own = processes.identity_of(os.getpid())
    if own is None:
        raise ProcGuardError("/proc is not mounted", "ProcGuard needs Linux with /proc")
    running = Running(own.pid, own.start, own.boot_id, started_at=time.time())
    try:
        return StateLock(file, os.path.join(config.state_directory, "manager.pid"), running)
    except OSError as exc:
        raise ProcGuardError(
            f"cannot write the state in {config.state_directory}: {exc.strerror}",
            "free space there, or choose another place: --set state.state_file=PATH",
        ) from exc


def _take(file: TextIO) -> bool:
    """Take the exclusive lock; retried briefly, because `find` holds a shared lock for a moment."""
    deadline = time.monotonic() + 0.5
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)


def find(config: Config) -> Running | None:
    """The manager that holds this state's lock now, or None."""
    deadline = time.monotonic() + 0.5
    while True:
        text = _holder_text(config)
        running = _parse(text) if text is not None else None
        if text is None or running is not None:
            return running
        if time.monotonic() > deadline:  # held by an unknown process
            return Running(0, 0, "")
        time.sleep(POLL_S)


def _holder_text(config: Config) -> str | None:
    """The identity written by the lock's holder; None if nobody holds the lock and the file is stale."""
    try:
        with open(_lock_path(config), encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                return file.read()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ProcGuardError(
            f"cannot look at {_lock_path(config)}: {exc.strerror}", "run this as the user who runs the manager"
        ) from exc


def already_running(config: Config) -> Conflict:
    running = find(config)
    who = f"a manager (pid {running.pid})" if running and running.pid else "a manager"
    where = f" ({running.url})" if running and running.url else ""
    return Conflict(
        f"{who} is already running on the state in {config.state_directory}{where}",
        f"stop it with {stop_line(config)}, or give this one its own: --set state.state_file=PATH",
        code="already_running",
    )


def _parse(text: str) -> Running | None:
    """The parsed identity; None for incomplete text, which the holder is still writing."""
    try:
        data = json.loads(text)
        names = {field.name for field in dataclasses.fields(Running)}
        return Running(**{name: value for name, value in data.items() if name in names})
    except (ValueError, TypeError, AttributeError):
        return None


# --------------------------------------------------------------------------------- --daemon, --status and --stop


def start(argv: Sequence[str], config: Config, module: str = "procguard.main") -> int:
    """Run `python -m <module>` with `argv` (less --daemon) in the background; return once it answers.

    0: ready, with its address printed. 1: it exited, or is not ready yet; its output is printed.
    """
    if find(config) is not None:
        raise already_running(config)
    os.makedirs(config.state_directory, mode=0o700, exist_ok=True)
    log_path = os.path.join(config.state_directory, "manager.out")
    arguments = [argument for argument in argv if argument != "--daemon"]
    with open(log_path, "a", encoding="utf-8", opener=private) as log:
        begin = log.tell()
        child = subprocess.Popen(
            [*module_command(module), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return _await_ready(config, child, log_path, begin)


def _await_ready(config: Config, child: subprocess.Popen[bytes], log_path: str, begin: int) -> int:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            _say(f"the manager exited at once (exit code {child.returncode}); its output:", sys.stderr)
            _say(_since(log_path, begin), sys.stderr)
            return 1
        running = find(config)
        found = readiness(running.url or address(config)) if running is not None and running.pid == child.pid else ""
        if running is not None and found:
            url = running.url or address(config)
            pid = child.pid
            _say(
                f"manager stands by at {url} (pid {pid})"
                if found == "standby"
                else f"manager running at {url} (pid {pid})"
            )
            _say(f"  log {config.logging.file}   state {config.state.state_file}")
            _say(f"  stop: {stop_line(config)}")
            child.returncode = 0  # the daemon continues: suppress the warning about a running child
            return 0
        time.sleep(POLL_S)
    _say(
        f"the manager (pid {child.pid}) is not ready after {READY_TIMEOUT_S:.0f} s and is still starting; see",
        sys.stderr,
    )
    _say(f"  {log_path} and {config.logging.file}, then {hints.commands('./start_manager.sh')} --status", sys.stderr)
    child.returncode = 1
    return 1


def status(config: Config) -> int:
    """Print one line. 0: a manager runs on this state; 3: none does."""
    running = find(config)
    if running is None:
        _say(f"not running (state {config.state_directory})")
        return EXIT_NOT_RUNNING
    url = running.url or address(config)
    ready = {"ready": "ready", "standby": "stands by"}.get(readiness(url), "not answering yet")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(running.started_at))
    _say(f"running: pid {running.pid} since {since}, {url}, {ready} (state {config.state_directory})")
    return 0


def stop(config: Config) -> int:
    """Stop the manager of this state and wait. Workers keep running. 0: it has ended; 1: it does not end; 3: none
    ran, so nothing was stopped."""
    running = find(config)
    if running is None:
        _say(f"not running, nothing was stopped (state {config.state.state_file})", sys.stderr)
        return EXIT_NOT_RUNNING
    if not processes.send_signal(running.identity, signal.SIGTERM) and find(config) is not None:
        raise ProcGuardError(
            f"the manager of {config.state_directory} (pid {running.pid}) cannot be signalled from here",
            "stop it on the machine, in the container or as the user that runs it",
        )
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        if find(config) is None and not processes.is_alive(running.identity):
            _say(f"stopped (pid {running.pid}); workers keep running")
            return 0
        time.sleep(POLL_S)
    _say(f"the manager (pid {running.pid}) has not ended after {STOP_TIMEOUT_S:.0f} s; see", sys.stderr)
    _say(f"  {config.logging.file}; last resort, nothing acknowledged is lost by it: kill -9 {running.pid}", sys.stderr)
    return 1


# ------------------------------------------------------------------------------------------------------- helpers


def stop_line(config: Config) -> str:
    """The command that stops the manager of this state, valid in any directory."""
    words = ["./start_manager.sh", "--stop"]
    if config.state.state_file != state_paths.well_known():
        words += ["--set", f"state.state_file={config.state.state_file}"]
    return hints.commands(shlex.join(words))


def python_command() -> list[str]:
    """This interpreter with -P if it was started so: without it a queue.py in the user's
    working directory would replace the library's."""
    return [sys.executable, *(["-P"] if sys.flags.safe_path else [])]


def module_command(module: str) -> list[str]:
    return [*python_command(), "-m", module]


def address(config: Config) -> str:
    """The URL of a manager with this configuration, from this machine."""
    return local_url("http" if config.web.tls.mode == "off" else "https", config.web.host, config.web.port)


def local_url(scheme: str, host: str, port: int) -> str:
    """The address from this machine of a server that listens on `host`."""
    host = "localhost" if host in ANYWHERE else host
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_ready(url: str, timeout_s: float = 2.0) -> bool:
    """Whether GET /readyz answers 200."""
    return readiness(url, timeout_s) == "ready"


def readiness(url: str, timeout_s: float = 2.0) -> Literal["ready", "standby", ""]:
    """The status according to GET /readyz: 200, or 503 of a standby. Connects directly, ignoring proxies of the
    environment."""
    parts = urlsplit(url)
    where = (parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80))
    if parts.scheme == "https":  # no secret is sent there, and the response is only displayed
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            *where,
            timeout=timeout_s,
            context=ssl._create_unverified_context(),  # noqa: S323
        )
    else:
        connection = http.client.HTTPConnection(*where, timeout=timeout_s)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        if response.status == 200:
            return "ready"
        body = response.read(MAX_READY_BYTES)
        return "standby" if response.status == 503 and json.loads(body)["error"]["code"] == "standby" else ""
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return ""
    finally:
        connection.close()


def _lock_path(config: Config) -> str:
    return os.path.join(config.state_directory, "manager.lock")


def private(path: str, flags: int) -> int:
    """An opener for `open`: new files are accessible to their owner only, regardless of the umask."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", opener=private) as file:
        file.write(text)


def _since(path: str, begin: int, at_most_bytes: int = 8000) -> str:
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - at_most_bytes))
        return file.read().decode(errors="replace").rstrip()


def _say(text: str, to: TextIO | None = None) -> None:
    print(shown(text), file=to or sys.stdout, flush=True)
