"""Starts the tests' managers and commands by forking a process that has already imported their modules, which saves the
time of the imports.

`start` and `run` ask a fork server, `python -m tests.forked NAME`, for a process that runs `main` of a program. A
process of pytest has its own fork servers, from their first use to the end of the session; processes side by side share
those of the first of them (`share`). They have no threads and no event loop, so that what is forked from them begins as
a new interpreter would; they wait for their children, so that their processor time counts as that of the tests. If a
process of the tests dies, everything that was forked for it ends, and if the first one does, so do the fork servers.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1] == "manager":  # before anything else is imported, as procguard.main does
    from gevent import monkey

    monkey.patch_all()

import array
import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 1 << 20  # of a request: the environment, most of all
COMMAND = "procguard.cli.app"
INVOKE = "invoke"  # the same commands in the words of a checkout: what tasks.py does with them
PR_SET_PDEATHSIG = 1  # linux/prctl.h
END = b"end"  # to a fork server: the session ends in good order
SHARED = "TESTS_FORK_SERVERS"  # the folder with the sockets of those that are shared
IMPORTED = {  # by each fork server
    "manager": (
        "encodings.idna",
        "gevent.event",
        "gevent.resolver.thread",
        "gevent.server",
        "procguard.deploy.session.ahead",
        "procguard.fleet.workers.purge",
        "procguard.main",
        "procguard.manager.app",
        "procguard.portal.logs.own_search",
        "procguard.worker_launcher",
        "tests.server_process",
    ),
    "command": (
        COMMAND,
        "procguard.cli.access",
        "procguard.cli.deploy",
        "procguard.cli.operations",
        "procguard.cli.output.deployment",
        "procguard.cli.output.listing",
        "procguard.cli.output.operations",
        "procguard.cli.workers",
        "procguard.client.api",
        "procguard.client.client",
        "procguard.client.waiting",
        "procguard.deploy.install.doctor",
        "procguard.deploy.ssh.connection",
        "yaml",
    ),
}
AT_START = dict(os.environ)  # of the session, before any test has changed it
# Variables that are read while Python starts, or by the loader before it.
OF_THE_INTERPRETER = ("PYTHON", "GEVENT", "LC_", "LANG", "LD_", "MALLOC_")


def can_run(environment: Mapping[str, str]) -> bool:
    """Whether a fork is what a new process with this environment would be."""

    def read_at_start(variables: Mapping[str, str]) -> dict[str, str]:
        found = {name: value for name, value in variables.items() if name.startswith(OF_THE_INTERPRETER)}
        return {name: value for name, value in found.items() if (name, value) != ("PYTHONPATH", str(ROOT))}

    return read_at_start(environment) == read_at_start(AT_START)


class Process:
    """As much of subprocess.Popen as the tests use."""

    def __init__(self, report: int, stdout: IO[bytes] | None) -> None:
        self._report = os.fdopen(report, "rb", buffering=0)
        self.stdout = stdout
        self.returncode: int | None = None
        line = self._report.readline()
        assert line, "the fork server made no process"
        self.pid = int(line)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def _ended(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], timeout_s)[0]:
            self.returncode = int(self._report.readline() or -signal.SIGKILL)
            self._report.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _ForkServer:
    """A connection to a fork server."""

    def __init__(self, connected: socket.socket) -> None:
        self._ours = connected

    def start(self, request: dict[str, Any], stdin: int, stdout: int | None, stderr: int) -> Process:
        ours, child_out = os.pipe() if stdout is None else (None, os.dup(stdout))
        report, child_report = os.pipe()
        try:
            socket.send_fds(self._ours, [json.dumps(request).encode()], [stdin, child_out, stderr, child_report])
        finally:
            os.close(child_out)
            os.close(child_report)
        return Process(report, None if ours is None else os.fdopen(ours, "rb"))

    def close(self) -> None:
        self._ours.close()


class _OwnForkServer(_ForkServer):
    """`listening`: where other processes of the tests connect."""

    def __init__(self, name: str, listening: socket.socket | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(ours)
        with theirs:
            given = [one.fileno() for one in (theirs, listening) if one is not None]
            command = [sys.executable, "-m", "tests.forked", name, *map(str, given)]
            self.process = subprocess.Popen(command, cwd=ROOT, env=AT_START, stdin=subprocess.DEVNULL, pass_fds=given)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._ours.send(END)
        super().close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:  # a test has left its server behind
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_servers: dict[tuple[int, str], _ForkServer] = {}  # by the pid of who has it: a fork of this process has its own


def start(
    program: str, words: list[str], environment: Mapping[str, str], folder: Path, stderr: int, stdout: int | None
) -> Process:
    """A manager, in a session of its own. `stderr` and `stdout`: open files; stdout is a pipe where it is None."""
    with open(os.devnull, "rb") as nothing:
        return _start("manager", (program, words, environment, folder), nothing.fileno(), stdout, stderr)


def run(
    words: list[str],
    environment: Mapping[str, str],
    *,
    program: str = COMMAND,
    stdin: int | None = None,
    timeout_s: float = 30.0,
    folder: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """`procguard WORDS` (or `invoke WORDS`) in `folder`, as subprocess.run does it with text that is captured."""
    if not can_run(environment):
        argv = [sys.executable, "-m", "invoke" if program == INVOKE else "procguard", *words]
        return subprocess.run(
            argv, env=environment, cwd=folder, stdin=stdin, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(os.devnull, "rb") as nothing:
        given = nothing.fileno() if stdin is None else stdin
        process = _start("command", (program, words, environment, folder), given, out.fileno(), err.fileno())
        try:
            process.wait(timeout_s)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, process.wait(), out.read(), err.read())


def _start(
    name: str, what: tuple[str, list[str], Mapping[str, str], Path], stdin: int, stdout: int | None, stderr: int
) -> Process:
    program, words, environment, folder = what
    request = {"program": program, "words": words, "environment": dict(environment), "folder": str(folder)}
    with _lock:
        server = _servers.get((os.getpid(), name))
        if server is None:
            server = _servers[os.getpid(), name] = _connected(name)
        return server.start(request, stdin, stdout, stderr)


def _connected(name: str) -> _ForkServer:
    folder = os.environ.get(SHARED)
    if not folder:
        return _OwnForkServer(name)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connected.connect(os.path.join(folder, name))
    return _ForkServer(connected)


def share() -> None:
    """Share fork servers with the processes of pytest that this one will start. Nobody else can enter their folder."""
    folder = os.environ[SHARED] = tempfile.mkdtemp(prefix="fork")
    by_socket = {}
    for name in IMPORTED:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening.bind(os.path.join(folder, name))
        listening.listen(64)
        by_socket[listening] = name
    threading.Thread(target=_start_when_asked, args=(by_socket,), daemon=True).start()


def _start_when_asked(by_socket: dict[socket.socket, str]) -> None:
    while by_socket:
        for listening in select.select(list(by_socket), [], [])[0]:
            name = by_socket.pop(listening)
            with _lock, listening:
                _servers[os.getpid(), name] = _OwnForkServer(name, listening)


def pids() -> set[int]:
    """Of this process's own fork servers."""
    return {one.process.pid for one in list(_servers.values()) if isinstance(one, _OwnForkServer)}


def close() -> None:
    """The session ends."""
    for key in [key for key in list(_servers) if key[0] == os.getpid()]:
        _servers.pop(key).close()


def unshare() -> None:
    """The session of all processes ends, in the one that shares its fork servers."""
    close()
    shutil.rmtree(os.environ.pop(SHARED), ignore_errors=True)


# ------------------------------------------------------------------------------------------- in the fork server


def serve(name: str, owner: int, listening: int | None = None) -> None:
    """`owner`: the socket of the process that has started this one; `listening`: for further ones."""
    import gc

    for module in IMPORTED[name]:
        importlib.import_module(module)
    importlib.import_module("procguard.i18n.messages.catalogue").catalogue()  # kept for those who speak Chinese
    if name == "manager":
        _read_routes()
    fork, waitpid, wait_for = os.fork, os.waitpid, select.select
    if name == "manager":
        from gevent import monkey
        from gevent._hub_local import get_hub_if_exists

        fork, waitpid = monkey.get_original("os", ["fork", "waitpid"])
        wait_for = monkey.get_original("select", "select")
        assert get_hub_if_exists() is None, "a fork would have its event loop"
    assert threading.active_count() == 1, "a fork would lack its threads"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    clients = {owner: _ours(owner)}
    if listening is not None:
        clients[listening] = _ours(listening)
    watching: dict[int, int] = {}  # pid of who watches a process -> the client that it was forked for
    while True:
        for number in wait_for(list(clients), [], [])[0]:
            if number == listening:
                accepted, _address = clients[number]._accept()
                clients[accepted] = _ours(accepted)
                continue
            request, given = _received(clients[number])
            if request == END or (not request and number == owner):
                if not request:  # the tests were killed
                    os._exit(1)
                _wait_for_all(waitpid)
                return
            if not request:  # one of several processes has ended
                clients.pop(number).close()
                for pid in [pid for pid, client in watching.items() if client == number]:
                    os.kill(pid, signal.SIGKILL)
                    watching[pid] = -1  # its number may be another client's before it is waited for
                continue
            pid = fork()
            if not pid:
                _end_with_parent()
                for one in clients.values():
                    one.close()
                _watch(json.loads(request), given, fork, waitpid)
            watching[pid] = number
            for one in given:
                os.close(one)
        with contextlib.suppress(ChildProcessError):
            while ended := waitpid(-1, os.WNOHANG)[0]:
                watching.pop(ended, None)


def _ours(number: int) -> Any:
    """Not gevent's socket: there is no event loop."""
    import _socket

    return _socket.socket(fileno=number)


def _wait_for_all(waitpid: Any) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            waitpid(-1, 0)


def _read_routes() -> None:
    """Import the API's modules, compile the expressions of all routes and prepare what reads their bodies: half of the
    processor time until a manager has answered its first requests."""
    import bottle

    from procguard.agent_api import decode
    from procguard.agent_api.declaration import routes_of
    from procguard.agent_api.handlers import AgentApi
    from procguard.portal.api.resource import all_resources
    from procguard.portal.web_monitor import PAGES

    router = bottle.Router()
    for kind in (AgentApi, *all_resources()):
        for route in routes_of(kind):
            router.add(route.path, route.method, None)
            if dataclasses.is_dataclass(route.body):
                decode._KINDS[route.body]
    for method, path in PAGES:
        router.add(path, method, None)


def _received(asked: Any) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    data, ancillary, _flags, _address = asked.recvmsg(LARGEST, socket.CMSG_LEN(4 * fds.itemsize))
    for _level, _kind, sent in ancillary:
        fds.frombytes(sent)
    return data, list(fds)


def _watch(request: dict[str, Any], given: list[int], fork: Any, waitpid: Any) -> None:
    """In a process of its own, for each that is asked for: says its pid and how it ended. Does not return."""
    *streams, report = given
    pid = fork()
    if not pid:
        _end_with_parent()
        os.close(report)
        os._exit(_run(request, streams))
    for one in (*streams, 0, 1, 2):  # whoever reads what it prints waits for its end, not for ours
        os.close(one)
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(report, b"%d\n" % pid)
    code = os.waitstatus_to_exitcode(waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        os.write(report, b"%d\n" % code)
    os._exit(0)


def _end_with_parent() -> None:
    """The kernel kills this process when the one that has forked it ends; a fork server has one thread."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _run(request: dict[str, Any], streams: list[int]) -> int:
    import atexit

    for usual, given in enumerate(streams):
        os.dup2(given, usual)
        os.close(given)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["program"] not in (COMMAND, INVOKE):
        os.setsid()  # a person's Ctrl-C is for the tests
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    sys.argv = [request["program"], *request["words"]]
    code = 1
    try:
        code = _main(request["program"], request["words"]) or 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _main(program: str, words: list[str]) -> int | None:
    if program != INVOKE:
        main = importlib.import_module(program).main
        return main() if program == COMMAND else main(words)
    from procguard.cli import app
    from procguard.cli.program import process

    process.begin()
    assert app.is_ours(words[0]), f"{words[0]}: a developer's task"
    app.main(["invoke", *words])
    return 0


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
