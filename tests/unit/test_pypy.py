"""The agent's side on Debian's pypy3, a Python 3.9 without pytest: hosts have what they have.

A real agent and a real runner under that interpreter, against a stand-in manager that speaks the real protocol.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from remote_agent import protocol
from tests.agent_host import Host
from tests.fake_manager import FakeManager
from tests.unit import test_agent
from tests.waiting import wait_until

PYPY = shutil.which("pypy3")
REPOSITORY = Path(__file__).resolve().parents[2]
FLEET, HOST, PROOF_KEY, SECRET = "f-1", "here", "the fleet's key", "the agent's secret"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYPY is None and os.environ.get("CI") != "true", reason="needs pypy3"),
]


class StandIn:
    """Remembers what the agent said and answers with one worker, as wanted."""

    def __init__(self) -> None:
        self.worker = protocol.Assignment("job", protocol.WorkerSpec(command="sleep 1000"), attempt_base=0)
        self.worker.spec.restart.max_attempts = 3
        self.worker.spec.restart.start_secs = 0.1
        self.rev = "1"
        self.report: protocol.WorkerReport | None = None
        self.events: dict[int, protocol.WorkerEvent] = {}
        self.changed = threading.Condition()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                where = urlsplit(self.path)
                asked = {name: values[0] for name, values in parse_qs(where.query).items()}
                if where.path == "/api/hello":
                    proof = protocol.manager_proof(PROOF_KEY, FLEET, asked["agent"], asked["nonce"])
                    self.answer({"fleet_id": FLEET, "proof": proof, "version": "test"})
                else:
                    with stand_in.changed:
                        stand_in.changed.wait_for(lambda: asked.get("rev") != stand_in.rev, timeout=1.0)
                    self.answer(protocol.encode(stand_in.reply(asked.get("rev", ""))))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Authorization"] != f"Bearer {SECRET}":
                    self.answer({"error": {"code": "unauthorized", "message": "wrong secret"}}, 401)
                elif self.path.endswith("/heartbeat"):
                    self.answer(
                        protocol.encode(stand_in.take(protocol.decode(protocol.AgentHeartbeat, json.loads(body))))
                    )
                else:
                    query = parse_qs(urlsplit(self.path).query)
                    self.answer({"acked": int(query.get("offset", ["0"])[0]) + len(body)})

            def answer(self, data: dict[str, Any], status: int = 200) -> None:
                body = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # the agent was killed meanwhile
                    self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reply(self, rev: str) -> protocol.AgentReply:
        news = None if rev == self.rev else [self.worker]
        acked = {"job": max(self.events)} if self.events else {}
        return protocol.AgentReply(
            fleet_id=FLEET, interval_s=0.5, assignments_rev=self.rev, assignments=news, events_acked=acked
        )

    def take(self, beat: protocol.AgentHeartbeat) -> protocol.AgentReply:
        self.report = next(iter(beat.workers), self.report)
        self.events.update({event.seq: event for event in beat.events})
        return self.reply(beat.assignments_rev)

    def want(self, desired: protocol.Desired) -> None:
        with self.changed:
            self.worker.desired, self.worker.generation = desired, self.worker.generation + 1
            self.rev = str(int(self.rev) + 1)
            self.changed.notify_all()

    def state(self) -> str:
        return self.report.state if self.report else ""


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    manager = StandIn()
    yield manager
    manager.server.shutdown()
    manager.server.server_close()


def processes_naming(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_module_of_the_agent_can_be_imported(tmp_path: Path) -> None:
    assert PYPY is not None, "needs pypy3"
    names = sorted(path.stem for path in (REPOSITORY / "remote_agent").glob("*.py") if path.stem != "__main__")
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module('remote_agent.' + name)"
    done = subprocess.run(
        [PYPY, "-S", "-c", code, *names], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_agent_and_runner_start_watch_restart_and_stop_a_child(stand_in: StandIn, tmp_path: Path) -> None:
    """kill -9 of the child: a second attempt, counted; kill -9 of the agent: the next one adopts the same child."""
    assert PYPY is not None, "needs pypy3"
    agent_dir, runtime_dir = tmp_path / FLEET / HOST, tmp_path / "r"
    agent_dir.mkdir(parents=True)
    runtime_dir.mkdir(mode=0o700)
    config: dict[str, Any] = {
        "fleet_id": FLEET,
        "host": HOST,
        "agent_id": HOST,
        "secret": SECRET,
        "proof_key": PROOF_KEY,
    }
    config |= {"manager_urls": [stand_in.url], "runtime_dir": str(runtime_dir), "kind": "deployed", "python": PYPY}
    config |= {"release": "test", "base_env": {"PATH": os.environ["PATH"]}}
    (agent_dir / "agent.json").write_text(json.dumps(config))
    (agent_dir / "agent.json").chmod(0o600)

    def start_agent() -> subprocess.Popen[bytes]:
        words = [PYPY or "", "-s", "-E", "-S", "-m", "remote_agent", "run", "--dir", str(agent_dir)]
        with open(tmp_path / "agent.out", "ab") as out:
            return subprocess.Popen(words, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    agent = start_agent()
    try:
        wait_until(lambda: stand_in.state() == "running", 30, f"running; {said(tmp_path, agent_dir)}")
        assert stand_in.report is not None and stand_in.report.pid is not None
        first = stand_in.report.pid
        os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        wait_until(
            lambda: stand_in.report and stand_in.report.attempt == 2 and stand_in.state() == "running", 20, "restart"
        )
        print(f"\npypy: restarted and reported after {time.monotonic() - began:.2f} s")
        assert stand_in.report.restarts == 1
        assert stand_in.report.last_exit is not None and stand_in.report.last_exit.signal == 9

        second = stand_in.report.pid
        agent.kill()
        agent.wait()
        assert second is not None and second != first and alive(second)
        stand_in.report = None
        agent = start_agent()
        wait_until(lambda: stand_in.state() == "running", 30, "adopted")
        assert stand_in.report is not None
        assert (stand_in.report.pid, stand_in.report.attempt) == (second, 2)

        stand_in.want("stopped")
        wait_until(lambda: stand_in.state() == "stopped", 20, "stopped")
        assert not alive(second)
        assert {event.after for event in stand_in.events.values()} >= {"starting", "running", "stopped"}
        wait_until(lambda: not processes_naming(f"--worker-dir\0{agent_dir}"), 10, "the runner's end")
    finally:
        agent.terminate()
        try:
            agent.wait(15)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
        for pid in processes_naming(f"--worker-dir\0{agent_dir}"):  # only after a failure
            os.kill(pid, signal.SIGTERM)


# What test_agent says of CPython holds here word for word: agent and runners are PyPy's, the test itself is not.
BEHAVIOURS = [
    test_agent.test_killed_agent_touches_no_child_and_no_line_is_lost_or_doubled,
    test_agent.test_killed_runner_gives_a_new_attempt_after_its_tree_is_swept,
    test_agent.test_stop_and_start_converge_and_settled_stays_settled,
]


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    fake = FakeManager()
    fake.know("h1")
    yield fake
    fake.close()


@pytest.fixture
def pypy_host(tmp_path: Path, manager: FakeManager) -> Iterator[Host]:
    assert PYPY is not None, "needs pypy3"
    one = Host(tmp_path, manager, python=PYPY)
    yield one
    one.end()


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda one: one.__name__[5:])
def test_on_pypy(behaviour: Callable[[Host, FakeManager], None], pypy_host: Host, manager: FakeManager) -> None:
    """Log bytes exactly once, adoption, sweeping, converging: the same promises as on CPython."""
    behaviour(pypy_host, manager)


def test_logs_of_several_attempts_travel_whole(pypy_host: Host, manager: FakeManager) -> None:
    """Binary bytes without a final newline, of each attempt, across a kill -9 of the agent."""
    script = "printf 'attempt %s \\377\\000 ' $PROCGUARD_ATTEMPT; head -c 300000 /dev/zero; printf end; sleep 600"
    manager.assign("w1", ["/bin/sh", "-c", script], stop_grace_s=1)
    pypy_host.start()

    def log_is_whole(attempt: int) -> bool:
        whole = b"attempt %d \xff\0 " % attempt + bytes(300_000) + b"end"
        return manager.log("w1", f"{attempt}.out") == whole and manager.report("w1").get("attempt") == attempt

    wait_until(lambda: log_is_whole(1), 30, "the log of attempt 1")
    pypy_host.kill_agent()
    pypy_host.start()
    os.kill(int(manager.report("w1")["pid"]), signal.SIGKILL)
    wait_until(lambda: log_is_whole(2), 30, "the log of attempt 2")
    assert not manager.gaps


def said(tmp_path: Path, agent_dir: Path) -> str:
    logs = [tmp_path / "agent.out", agent_dir / "agent.log"]
    return "".join(log.read_text(errors="replace")[-1500:] for log in logs if log.exists())
