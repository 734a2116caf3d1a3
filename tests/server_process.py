"""The portal's server as a process of its own, on a free port, for tests: pytest itself stays free of gevent.

`python -m tests.server_process DIRECTORY [key=value…]` serves a real fleet and log store in DIRECTORY and prints its
port. `RunningServer` starts it, and speaks to it as agents and operators would. Its state is a database without the
YAML beside it, which a process of its own would write whenever one ends.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported: bottle's request is one of each greenlet
    from gevent import monkey

    monkey.patch_all()

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from procguard.fleet.leadership import SoleManager
from remote_agent.protocol import messages
from tests import api_truth, forked
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_code(self) -> str:
        return str(self.json["error"]["code"])


def _started(
    program: str, words: list[str], environment: dict[str, str], folder: Path, stderr: int, stdout: int | None = None
) -> Any:
    """Forked, where that is the same as a new interpreter. `stdout`: None for a pipe."""
    if ROOT == forked.ROOT and forked.can_run(environment):
        return forked.start(program, words, environment, folder, stderr, stdout)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", program, *words],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if stdout is None else stdout, stderr=stderr,
        env=environment,
    )  # fmt: skip


class RunningServer:
    """`ask` is a request of this machine's own user: an operator, unless told otherwise. `operator_token` is sent with
    requests that name no secret; needed in tests whose process relays, which makes it no local operator."""

    operator_token = ""

    def __init__(self, directory: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.directory = directory
        self._log_path = directory / "server.log"
        environment = {**os.environ, **(env or {})}
        with open(self._log_path, "ab") as log_file:
            words = [str(directory), *options]
            self.process = _started("tests.server_process", words, environment, ROOT, log_file.fileno())
        line = self.process.stdout.readline()
        assert line, f"the server did not start: {self.log()}"
        self.port = int(line)
        self.secure = any(option.startswith("web.tls") for option in options)

    def routes(self) -> list[tuple[str, str]]:
        """(method, rule) of every route of the application, as it says itself."""
        return [(method, rule) for method, rule in json.loads((self.directory / "routes.json").read_text())]

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def longest_turn_ms(self) -> float:
        """Of the event loop's CPU, since asked last; for a server with `test.meter=1`."""
        port = int((self.directory / "meter.port").read_text())
        with socket.create_connection(("127.0.0.1", port), timeout=120) as asked:
            return float(asked.makefile().read())

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        secret: str = "",
        timeout_s: float = 10.0,
    ) -> Answer:
        """`body`: bytes as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        if self.secure:  # whose certificate it shows is what test_tls.py asks
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout_s, context=context)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            sent = {"Host": f"localhost:{self.port}", "Content-Type": "application/json", **(headers or {})}
            if secret or self.operator_token:
                sent["Authorization"] = f"Bearer {secret or self.operator_token}"
            connection.request(method, path, data, sent)
            answer = Answer(connection.getresponse())
        finally:
            connection.close()
        if method != "HEAD":
            api_truth.check(method, path, answer.status, answer.headers.get("Content-Type", ""), answer.body)
        return answer

    # ------------------------------------------------------------------------------------------ a fleet in it

    def deploy(self, host: str, *worker_ids: str, secret: str = "") -> str:
        """Declare a host with workers and give its agent a secret; returns the secret."""
        secret = secret or f"secret-of-{host}"
        workers = [{"worker_id": worker_id, "spec": {"command": "sleep 9"}} for worker_id in worker_ids]
        declared = {"hosts": [{"host": host, "ssh": {"hostname": host}, "workers": workers}]}
        answer = self.ask("POST", "/api/deployments", declared)
        assert answer.status == 200, answer.body
        digest = {"secret_sha256": messages.secret_sha256(secret)}
        assert self.ask("PUT", f"/api/agents/{host}/credentials", digest).status == 200
        return secret

    def beat(self, agent_id: str, secret: str, *reports: messages.WorkerReport, **values: Any) -> Any:
        values.setdefault("pid", 77)
        beat = messages.AgentHeartbeat(agent_id, workers=list(reports), at=time.time(), **values)
        answer = self.ask("POST", f"/api/agents/{agent_id}/heartbeat", messages.encode(beat), secret=secret)
        assert answer.status == 200, answer.body
        return answer.json


class RunningManager(RunningServer):
    """The manager itself, `python -m procguard.main`, with its monitor, its helper and the usual times."""

    def __init__(self, directory: Path, *settings: str, port: int = 0) -> None:
        """`port`: that of an earlier one on the same state."""
        self.directory = directory
        self.secure = False
        self._log_path = directory / "manager.out"
        named = (f"state.state_file={directory}/state.db", f"logging.file={directory}/manager.log", *settings)
        pairs = [word for setting in named for word in ("--set", setting)]
        for attempts_left in (2, 1, 0):
            self.port = port or free_port()
            with open(self._log_path, "ab") as log_file:
                words = ["--host", "127.0.0.1", "--port", str(self.port), *pairs]
                output = log_file.fileno()
                self.process = _started("procguard.main", words, dict(os.environ), directory, output, output)
            try:
                if self._ready() or not attempts_left:  # somebody else may have taken the port meanwhile
                    break
            except BaseException:
                self.close()
                raise
        assert self.process.poll() is None, self.log()

    def _ready(self) -> bool:
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/readyz", timeout_s=2).status == 200:
                    return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(arguments: list[str]) -> None:
    import signal

    import gevent
    import gevent.event

    from procguard.config import schema as configuration
    from procguard.fleet.fleet import Fleet
    from procguard.fleet.history.events import EventLog
    from procguard.fleet.model import clock
    from procguard.fleet.model.settings import FleetSettings
    from procguard.fleet.store import open_store
    from procguard.manager.loops import operations
    from procguard.portal.http import websocket
    from procguard.portal.logs.store import LogStore
    from procguard.portal.web_monitor import WebMonitor

    directory, *pairs = arguments
    own = dict(pair.removeprefix("test.").split("=", 1) for pair in pairs if pair.startswith("test."))
    overrides = [pair for pair in pairs if not pair.startswith("test.")]
    own_state = f"state.state_file={directory}/state.db"
    config = configuration.load(None, [own_state, "web.port=0", "web.host=127.0.0.1", *overrides])
    store = open_store(os.path.join(directory, "state.db"))
    leadership = _OneOfSeveral(own["managers"].split("+"), int(own["term"])) if "term" in own else None
    fleet = Fleet(store, EventLog(store), FleetSettings(), clock.read(), leadership=leadership)
    web = WebMonitor(
        config,
        fleet,
        LogStore(
            os.path.join(directory, "logs"),
            config.logs.keep_attempts,
            keep_per_worker=config.logs.keep_per_worker,
            keep_in_all=config.logs.keep_in_all,
        ),
        keeper=websocket.PingReaper(float(own.get("ping_s", 15)), float(own.get("reap_s", 45))),
    )
    web.start()
    if "meter" in own:
        _meter(os.path.join(directory, "meter.port"))
    if "bridge_port" in own:
        _bridge(web._channel, int(own["bridge_port"]))
    gevent.spawn(operations.drive, fleet.operations)
    with open(os.path.join(directory, "routes.json"), "w", encoding="utf-8") as file:
        json.dump(sorted({(route.method, route.rule) for route in web.app.routes}), file)
    print(web.port, flush=True)
    ending = gevent.event.Event()
    gevent.signal_handler(signal.SIGTERM, ending.set)
    ending.wait()
    web.stop()
    fleet.close()


class _OneOfSeveral(SoleManager):
    """Leads a fleet with this term, as one of several managers; where that comes from is manager/seat.py's."""

    def __init__(self, urls: list[str], term: int) -> None:
        self.term = term
        self._urls = urls

    def manager_urls(self) -> list[str]:
        return self._urls


def _meter(path: str) -> None:
    """Who connects is told how many milliseconds of this thread's CPU the longest turn of the event loop has taken
    since somebody asked last. CPU and not time: another process's turn on this core is nobody's fault here."""
    import gevent
    import gevent.server

    longest, since = 0.0, time.thread_time()

    def turned() -> None:
        nonlocal longest, since
        now = time.thread_time()
        longest, since = max(longest, now - since), now

    def hello(sock: Any, _address: Any) -> None:
        nonlocal longest
        sock.sendall(b"%.3f" % (1000 * longest))
        longest = 0.0

    watcher = gevent.get_hub().loop.check()
    watcher.start(turned)
    server = gevent.server.StreamServer(("127.0.0.1", 0), hello)
    server.start()
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(server.server_port))


def _bridge(channel: Any, port: int) -> None:
    """Gives a test in another process access to the in-process channel: a connection here is one there, each line a
    request {"secret", "method", "path", "body" (base64)}, answered by [status, data]."""
    import base64

    import gevent.server

    def serve(sock: Any, _address: Any) -> None:
        connection, lines = None, sock.makefile("rb")

        def ask(line: bytes) -> None:
            asked = json.loads(line)
            answer = connection.request(asked["method"], asked["path"], base64.b64decode(asked["body"]))
            with contextlib.suppress(OSError):  # it went away meanwhile
                sock.sendall(json.dumps([answer.status, answer.data]).encode() + b"\n")

        for line in lines:
            connection = connection or channel.connect(json.loads(line)["secret"])
            gevent.spawn(ask, line)
        if connection is not None:
            connection.close()

    gevent.server.StreamServer(("127.0.0.1", port), serve).start()


if __name__ == "__main__":
    main(sys.argv[1:])
