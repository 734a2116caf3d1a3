"""invoke bench heartbeats: heartbeats per second that one core of the manager processes, compared with two bare
servers.

All servers receive the same requests: the documented single-worker heartbeat (POST /api/workers/ID/heartbeat) from 64
launchers over 64 connections. ProcGuard identifies the sender, validates, updates the registry and replies; the anchors
read the body and return a fixed response (gevent's pywsgi with TCP_NODELAY), or store it in a dict and return JSON
(Flask-SocketIO with threads, the design of the seed). Also measured: the agents' endpoint with eight workers per
request.

Server and load each have one core. The result is requests per processor second of the server, which equals requests per
second on an idle core and stays valid on a shared one.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import statistics
import sys
from typing import Any

from remote_agent.protocol import messages
from scripts.bench import common
from scripts.bench.load import Answered, Load
from scripts.bench.server import Manager, Server, ask, cores, free_port

GOAL_BARE, GOAL_FLASK, GOAL_AGENT = 0.6, 2.5, 3.0
SENDERS = 64
WORKERS_OF_AGENT = 8
VARIANTS = 4  # number of variants per sender, so that no two successive heartbeats are equal
FLASK = ("flask-socketio==5.5.1", "simple-websocket==1.1.0")
FIXED_REPLY = {"worker_id": "bench-00", "desired": "running", "epoch": 1000001, "interval_s": 2.0, "commands": []}

BARE = f"""
import socket, sys
from gevent import pywsgi
REPLY = {json.dumps(FIXED_REPLY).encode()!r}
def app(environ, start_response):
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [REPLY]
class Handler(pywsgi.WSGIHandler):
    def __init__(self, sock, *rest):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(sock, *rest)
pywsgi.WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None, handler_class=Handler).serve_forever()
"""

FLASK_SOCKETIO = """
import logging, sys, time
from flask import Flask, jsonify, request
from flask_socketio import SocketIO
logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = Flask("seed")
socketio = SocketIO(app, async_mode="threading")
workers = {}
@app.post("/api/workers/<worker_id>/heartbeat")
def heartbeat(worker_id):
    workers[worker_id] = {**request.get_json(), "last_heartbeat": time.time()}
    return jsonify({"worker_id": worker_id, "desired": "running", "commands": []})
socketio.run(app, host="127.0.0.1", port=int(sys.argv[1]), allow_unsafe_werkzeug=True)
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench heartbeats")
    parser.add_argument("--seconds", type=float, default=4.0, help="each server is under load, each round (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (default 3)")
    options = parser.parse_args(arguments)
    folder = common.short_folder()
    try:
        return _measure(folder, options).finish()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Subject:
    """A server, the requests that it receives, and its responses in each round."""

    def __init__(self, name: str, server: Server, requests: list[bytes]) -> None:
        self.name, self.server, self.requests = name, server, requests
        self.rounds: list[tuple[Answered, float]] = []  # with the processor seconds used

    def round(self, load: Load, seconds: float) -> None:
        before = self.server.cpu_s()
        answered = load.run(self.name, self.server.port, self.requests, seconds)
        cpu_s = self.server.cpu_s() - before
        if answered.refused:
            sys.exit(f"bench: {self.name} refused {answered.refused} of {answered.requests} requests")
        self.rounds.append((answered, cpu_s))
        print(
            f"{self.name:10} {answered.requests / answered.took_s:8.0f}/s, {answered.requests / cpu_s:8.0f} per "
            f"processor second, p99 {answered.p99_ms:.1f} ms",
            flush=True,
        )

    @property
    def per_cpu_s(self) -> float:
        return statistics.median(answered.requests / cpu_s for answered, cpu_s in self.rounds)

    @property
    def per_s(self) -> float:
        return statistics.median(answered.requests / answered.took_s for answered, _ in self.rounds)


def _measure(folder: str, options: argparse.Namespace) -> common.Report:
    server_core, load_core = cores()
    load = Load(folder, load_core)
    manager = Manager(folder, core=server_core)
    started: list[Server] = []
    try:
        started.append(manager)
        manager.start()
        plain = plain_requests(manager)
        subjects = [
            Subject("bare", bare_server(folder, server_core), plain),
            Subject("plain", manager, plain),
            Subject("agents", manager, agent_requests(manager)),
        ]
        flask, missing = _flask(folder, server_core)
        if flask is not None:
            subjects.append(Subject("flask", flask, plain))
        for one in subjects:
            if one.server not in started:
                started.append(one.server)
                one.server.start()
        for _ in range(options.rounds):
            for one in subjects:
                one.round(load, options.seconds)
    finally:
        for server in started:
            server.end()
    return _report({one.name: one for one in subjects}, load, missing)


def _report(by_name: dict[str, Subject], load: Load, missing: str) -> common.Report:
    report = common.Report("heartbeats", raw={name: _raw(one) for name, one in by_name.items()})
    plain, bare, agents, flask = (by_name.get(name) for name in ("plain", "bare", "agents", "flask"))
    assert plain is not None and bare is not None and agents is not None
    note = "" if load.program else f"load by our own generator: {load.note}"
    report.add(
        "single-worker heartbeats per processor second", plain.per_cpu_s, "/s",
        anchor=bare.per_cpu_s, anchor_name="bare pywsgi", goal=GOAL_BARE, at_least=True, note=note,
    )  # fmt: skip
    report.add(
        "the same beside the seed's design", plain.per_cpu_s, "/s", anchor=flask.per_cpu_s if flask else None,
        anchor_name="Flask-SocketIO", goal=GOAL_FLASK, at_least=True, note=missing,
    )  # fmt: skip
    report.add(
        f"workers, {WORKERS_OF_AGENT} in each agent's heartbeat", agents.per_cpu_s * WORKERS_OF_AGENT, "/s",
        anchor=plain.per_cpu_s, anchor_name="one by one", goal=GOAL_AGENT, at_least=True,
    )  # fmt: skip
    report.add("processor time of a single-worker heartbeat", 1e6 / plain.per_cpu_s, "µs")
    report.add("… of an agent's", 1e6 / agents.per_cpu_s, "µs")
    for one in by_name.values():
        report.add(f"requests/s by the clock: {one.name}", one.per_s, "/s")
    return report


def _raw(one: Subject) -> list[dict[str, Any]]:
    return [{**vars(answered), "cpu_s": cpu_s} for answered, cpu_s in one.rounds]


# ------------------------------------------------------------------------------------------------------ anchors


def bare_server(folder: str, core: int) -> Server:
    port = free_port()
    return Server("bare pywsgi", [sys.executable, "-c", BARE, str(port)], port, os.path.join(folder, "bare"), core)


def bare_request_us(folder: str, server_core: int, load_core: int, seconds: float = 4.0) -> float:
    """Processor time of a request to a bare server on this core, in µs: the current speed of the machine."""
    server = bare_server(folder, server_core)
    body = json.dumps({"state": "running", "pid": 1})
    head = f"POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    server.start()
    try:
        subject = Subject("bare", server, [(head + body).encode()])
        subject.round(Load(folder, load_core), seconds)
    finally:
        server.end()
    return 1e6 / subject.per_cpu_s


def _flask(folder: str, core: int) -> tuple[Server | None, str]:
    python, missing = common.python_with("flask-socketio", FLASK)
    if not python:
        return None, missing
    port = free_port()
    words = [python, "-c", FLASK_SOCKETIO, str(port)]
    return Server("Flask-SocketIO", words, port, os.path.join(folder, "flask"), core), ""


# ------------------------------------------------------------------------------------------------------ requests


def plain_requests(manager: Manager) -> list[bytes]:
    """The requests of launchers, as in the quick start of docs/protocol.md."""
    requests = []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", manager.port, timeout=60)) as connection:
        for number in range(SENDERS):
            secret, worker_id = f"bench-secret-{number:04d}-0123456789abcdef", f"bench-{number:02d}"
            registration = {
                "worker_id": worker_id,
                "command": "python train.py",
                "host": f"h{number}",
                "secret_sha256": messages.secret_sha256(secret),
            }
            ask(connection, "POST", "/api/workers/register", registration)
            requests.append((worker_id, secret))
    return [
        _request(manager, f"/api/workers/{worker_id}/heartbeat", secret, _plain_beat(number, variant))
        for variant in range(VARIANTS)
        for number, (worker_id, secret) in enumerate(requests)
    ]


def _plain_beat(number: int, variant: int) -> dict[str, Any]:
    return {
        "state": "running",
        "pid": 4000 + number,
        "attempt": 1,
        "usage": {"cpu_percent": 90.0 + variant + number / 100, "rss_bytes": 2_000_000_000 + variant * 4096},
    }


def agent_requests(manager: Manager) -> list[bytes]:
    """The requests of deployed agents with eight workers each, after they have received their assignments."""
    hosts = declared_hosts()
    names = [host["host"] for host in hosts]
    workers = {host["host"]: [worker["worker_id"] for worker in host["workers"]] for host in hosts}
    fleet_id = manager.ask("POST", "/api/deployments", {"hosts": hosts})["fleet_id"]
    beats = []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", manager.port, timeout=60)) as connection:
        for number, name in enumerate(names):
            secret = f"bench-secret-of-{name}-0123456789abcdef"
            digest = {"secret_sha256": messages.secret_sha256(secret)}
            ask(connection, "PUT", f"/api/agents/{name}/credentials", digest)
            rev = ""
            for _ in range(2):  # the first response contains the assignments; their digest changes once the workers run
                beat = _agent_beat(fleet_id, name, workers[name], number, 0, rev)
                rev = ask(connection, "POST", f"/api/agents/{name}/heartbeat", beat, secret)["assignments_rev"]
            beats.append((name, secret, rev))
    return [
        _request(
            manager,
            f"/api/agents/{name}/heartbeat",
            secret,
            _agent_beat(fleet_id, name, workers[name], number, variant, rev),
        )
        for variant in range(VARIANTS)
        for number, (name, secret, rev) in enumerate(beats)
    ]


def declared_hosts() -> list[dict[str, Any]]:
    spec = {"command": "python train.py", "labels": {"team": "vision"}, "group": "trainers"}
    names = [f"host-{number:02d}" for number in range(SENDERS)]
    return [
        {
            "host": name,
            "ssh": {},
            "workers": [{"worker_id": f"{name}-w{number}", "spec": spec} for number in range(WORKERS_OF_AGENT)],
        }
        for name in names
    ]


def _agent_beat(fleet_id: str, name: str, workers: list[str], number: int, variant: int, rev: str) -> dict[str, Any]:
    reports = [
        messages.WorkerReport(
            worker_id,
            "running",
            generation=1,
            attempt=1,
            pid=5000 + index,
            since=1790000000.0,
            reason=f"running (pid {5000 + index})",
            launch_digest="0123456789abcdef",
            usage=messages.WorkerUsage(90.0 + variant + index / 10, 2_000_000_000 + variant * 4096, 3, 24),
        )
        for index, worker_id in enumerate(workers)
    ]
    beat = messages.AgentHeartbeat(
        name,
        fleet_id,
        release="bench",
        boot_id="5ca1ab1e-0000-4000-8000-000000000001",
        pid=300 + number,
        started_at=1790000000.0,
        at=1790000000.0 + variant,
        facts=messages.HostFacts(name, "Debian 12", "3.11.2", "ml", 64, 2**38),
        usage=messages.HostUsage(50.0 + variant, 30.0, 2**36, 2**38, 2**40),
        workers=reports,
        assignments_rev=rev,
        beat=1_000_000_000 * (variant + 1),
    )
    return messages.encode(beat)


def _request(manager: Manager, path: str, secret: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{manager.port}\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode("ascii") + data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
