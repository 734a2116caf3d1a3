"""invoke bench channels: the same heartbeats and commands by HTTP and by zmq, to one manager on one core, in one run.

HTTP is loaded by wrk as in `bench heartbeats`, zmq by the same number of connections, each with CURVE. In both cases
the manager identifies the sender, validates, updates the registry and replies. The result is heartbeats per processor
second of the manager's whole process, including libzmq's thread. Commands are timed from an operator's POST until the
agent has received them.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict

import zmq

from remote_agent.protocol import messages
from scripts.bench import common, heartbeats
from scripts.bench.load import Answered, Load
from scripts.bench.server import Manager, ask, cores
from scripts.bench.zmq_load import Client, Sender, ZmqLoad, zmq_ports

GOAL = 3.0
COMMANDS = 200  # by each channel
# The operator is a separate process, because agents are on other machines in practice. It posts to the path on each
# line.
OPERATOR = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
for line in sys.stdin:
    connection.request("POST", line.strip(), json.dumps({"command": "restart"}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    print(answer.status, flush=True)
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench channels")
    parser.add_argument("--seconds", type=float, default=4.0, help="each is under load, each round (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (default 3)")
    options = parser.parse_args(arguments)
    folder = common.short_folder()
    try:
        return _measure(folder, options).finish()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(folder: str, options: argparse.Namespace) -> common.Report:
    server_core, load_core = cores()
    settings = ("communication.adapter_type=zmq", f"communication.adapter_config.port_base={zmq_ports()}")
    manager = Manager(folder, settings, core=server_core)
    rounds: dict[str, list[tuple[Answered, float]]] = {}
    try:
        manager.start()
        plain, agents = heartbeats.plain_requests(manager), heartbeats.agent_requests(manager)
        http_load, zmq_load = Load(folder, load_core), ZmqLoad(folder, load_core)
        senders = {"plain": _launchers(manager, plain), "agents": _agents(manager, agents)}
        requests = {"plain": plain, "agents": agents}
        for _ in range(options.rounds):
            for kind in ("plain", "agents"):
                for channel in ("http", "zmq"):
                    name = f"{kind} by {channel}"
                    before = manager.cpu_s()
                    if channel == "http":
                        answered = http_load.run(kind, manager.port, requests[kind], options.seconds)
                    else:
                        answered = zmq_load.run(kind, manager.port, senders[kind], options.seconds)
                    cpu_s = manager.cpu_s() - before
                    if answered.refused:
                        sys.exit(f"bench: {name}: {answered.refused} of {answered.requests} refused")
                    rounds.setdefault(name, []).append((answered, cpu_s))
                    print(
                        f"{name:16} {answered.requests / answered.took_s:8.0f}/s, {answered.requests / cpu_s:8.0f} per "
                        f"processor second, p99 {answered.p99_ms:.1f} ms",
                        flush=True,
                    )
        delays = _command_delays(manager, senders["agents"])
    finally:
        manager.end()
    report = _report(rounds, http_load)
    for channel, found in delays.items():
        found.sort()
        report.add(f"a command reaches its agent by {channel}, median", 1000 * found[len(found) // 2], "ms")
        report.add("… 99 of 100", 1000 * found[int(0.99 * len(found))], "ms")
    return report


def _command_delays(manager: Manager, senders: list[Sender]) -> dict[str, list[float]]:
    """Seconds from each operator's request until the agent's long poll is answered, by channel."""
    context = zmq.Context()
    by_zmq = [Client(context, manager.port, asdict(one)) for one in senders]
    by_http = [http.client.HTTPConnection("127.0.0.1", manager.port, timeout=60) for _ in senders]
    delays: dict[str, list[float]] = {"http": [], "zmq": []}
    command = [sys.executable, "-c", OPERATOR, str(manager.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as operator:
        assert operator.stdin is not None and operator.stdout is not None
        for turn in range(2 * COMMANDS):
            number = turn // 2 % len(senders)
            sender, client, connection = senders[number], by_zmq[number], by_http[number]
            rev = json.loads(sender.requests[0][1])["assignments_rev"]
            path = f"/api/agents/{sender.agent_id}/commands?wait=25&rev={rev}&seq={time.time_ns() // 1_000_000}"
            if turn % 2:
                client.hold(path)
            else:
                connection.request("GET", path, headers={"Authorization": f"Bearer {sender.secret}"})
            time.sleep(0.01)  # the long poll is held by now
            began = time.perf_counter()
            print(f"/api/workers/{sender.agent_id}-w{turn % 8}/command", file=operator.stdin, flush=True)
            answer = client.held(10.0) if turn % 2 else json.loads(connection.getresponse().read())
            delays["zmq" if turn % 2 else "http"].append(time.perf_counter() - began)
            status = operator.stdout.readline().strip()
            if status not in ("200", "202"):
                sys.exit(f"bench: the command was answered {status}")
            if not answer["commands"]:
                sys.exit("bench: a held request was answered without the command")
    context.destroy(0)
    return delays


def _report(rounds: dict[str, list[tuple[Answered, float]]], load: Load) -> common.Report:
    per_cpu_s = {
        name: statistics.median(answered.requests / cpu_s for answered, cpu_s in found)
        for name, found in rounds.items()
    }
    raw = {name: [{**vars(one), "cpu_s": cpu_s} for one, cpu_s in found] for name, found in rounds.items()}
    report = common.Report("channels", raw=raw)
    note = "" if load.program else f"load by our own generator: {load.note}"
    for kind, shown in (("plain", "one worker"), ("agents", "eight workers")):
        report.add(
            f"zmq heartbeats per processor second, {shown}", per_cpu_s[f"{kind} by zmq"], "/s",
            anchor=per_cpu_s[f"{kind} by http"], anchor_name="by HTTP", goal=GOAL if kind == "plain" else None,
            at_least=True, note=note,
        )  # fmt: skip
    for name, value in per_cpu_s.items():
        report.add(f"processor time of a heartbeat, {name}", 1e6 / value, "µs")
    return report


# ------------------------------------------------------------------------------------------------------ the same by zmq


def _parts(request: bytes) -> tuple[str, str, str]:
    """(path, secret, body) of a prepared HTTP request."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    secret = next(line for line in lines if line.startswith("Authorization: Bearer ")).split()[-1]
    return lines[0].split()[1], secret, body.decode()


def _launchers(manager: Manager, requests: list[bytes]) -> list[Sender]:
    senders: dict[str, Sender] = {}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", manager.port, timeout=60)) as connection:
        for request in requests:
            path, secret, body = _parts(request)
            worker_id = path.split("/")[3]
            if worker_id not in senders:
                digest = messages.secret_sha256(secret)
                registration = {"worker_id": worker_id, "command": "python train.py", "secret_sha256": digest}
                reply = ask(connection, "POST", "/api/workers/register", registration)
                senders[worker_id] = Sender(reply["agent_id"], secret, reply["proof_key"], [])
            senders[worker_id].requests.append((path, body))
    return list(senders.values())


def _agents(manager: Manager, requests: list[bytes]) -> list[Sender]:
    senders: dict[str, Sender] = {}
    for request in requests:
        path, secret, body = _parts(request)
        agent_id = path.split("/")[3]
        senders.setdefault(agent_id, Sender(agent_id, secret, "", [])).requests.append((path, body))
    keys = manager.ask("POST", "/api/deployments", {"hosts": heartbeats.declared_hosts()})["hosts"]
    for agent_id, sender in senders.items():
        sender.proof_key = keys[agent_id]["proof_key"]
    return list(senders.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
