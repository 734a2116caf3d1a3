"""invoke bench logs: log bytes from one agent to one manager on loopback, compared with a bare pywsgi app that stores
nothing.

A worker prints a large file. The time is from the first byte that the manager has received until the last one is
durable. The anchor is the same bytes, POSTed by one client in bodies of the same size to a pywsgi app that reads and
responds. While the agent ships, /healthz is requested every 10 ms, to measure how responsive the manager stays.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from remote_agent.logs import shipper, watcher
from scripts.bench import common
from tests.long.rig import Rig

GOAL_RATIO = 0.5
GOAL_MB_PER_S = 50.0
MB = 1_000_000
ASK_EVERY_S = 0.01

BARE_APP = """
from gevent import monkey; monkey.patch_all()
import socket
from gevent import pywsgi
def app(environ, start_response):
    stream = environ["wsgi.input"]
    while stream.read(1024 * 1024):
        pass
    start_response("200 OK", [("Content-Type", "application/json")])
    return [b'{"acked": 1}']
class Handler(pywsgi.WSGIHandler):
    def __init__(self, sock, *rest):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(sock, *rest)
server = pywsgi.WSGIServer(("127.0.0.1", 0), app, log=None, handler_class=Handler)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""


class Asker(threading.Thread):
    """Requests /healthz repeatedly and records how long each response took."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._ending = threading.Event()
        self.times_ms: list[float] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._ending.wait(ASK_EVERY_S):
            began = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            self.times_ms.append((time.perf_counter() - began) * 1000)

    def end(self) -> None:
        self._ending.set()
        self.join(30)

    def percentile(self, share: float) -> float:
        return sorted(self.times_ms)[min(len(self.times_ms) - 1, int(len(self.times_ms) * share))]


def bare_mb_per_s(data_path: str, size: int) -> float:
    """The rate of the anchor, in MB/s: without authentication, files or durability."""
    app = subprocess.Popen([sys.executable, "-c", BARE_APP], stdout=subprocess.PIPE)
    try:
        assert app.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(app.stdout.readline()), timeout=30)
        with open(data_path, "rb") as file:
            began = time.perf_counter()
            while body := file.read(shipper.LARGE_CHUNK_BYTES):
                connection.request("POST", "/logs", body, {"Content-Type": "application/octet-stream"})
                connection.getresponse().read()
            return size / MB / (time.perf_counter() - began)
    finally:
        app.kill()
        app.wait()


def agent_mb_per_s(folder: Path, data_path: str, size: int) -> tuple[float, Asker, float]:
    """(rate in MB/s, times of the /healthz responses, processor seconds of manager and agent)."""
    with Rig(folder / "rig", "logs.keep_local=4 GiB") as rig:
        rig.declare({"w1": {"command": ["cat", data_path], "restart": {"policy": "never"}}})
        rig.start_agent()
        assert rig.manager.process is not None and rig.agent is not None
        asker = Asker(rig.manager.port)
        used_s = -common.cpu_s(rig.manager.process.pid) - common.cpu_s(rig.agent.pid)
        until(lambda: rig.stored_bytes("w1") > 0)
        path = rig.stored("w1")
        began, first = time.perf_counter(), path.stat().st_size
        asker.start()
        until(lambda: path.stat().st_size == size)
        took_s = time.perf_counter() - began
        asker.end()
        used_s += common.cpu_s(rig.manager.process.pid) + common.cpu_s(rig.agent.pid)
        return (size - first) / MB / took_s, asker, used_s


def until(predicate: object, timeout_s: float = 120.0) -> None:
    assert callable(predicate)
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s:g} s")
        time.sleep(0.002)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench logs")
    parser.add_argument("--megabytes", type=int, default=600, help="size of the log (default 600)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (default 3)")
    options = parser.parse_args(arguments)
    folder = Path(common.short_folder())
    try:
        data_path, size = str(folder / "data"), options.megabytes * MB
        line = b"step 000123  loss 0.1234  lr 1.0e-4  tokens/s 123456  grad 0.987 \n" * 1000
        with open(data_path, "wb") as file:
            for _ in range(size // len(line)):
                file.write(line)
        size = os.path.getsize(data_path)
        rates, bare, slow_ms, cpu = [], [], [], []
        for number in range(options.rounds):
            bare.append(bare_mb_per_s(data_path, size))
            rate, asker, used_s = agent_mb_per_s(folder / str(number), data_path, size)
            rates.append(rate)
            slow_ms.append(asker.percentile(0.99))
            cpu.append(used_s / (size / MB) * 1000)
            print(f"round {number + 1}: {rate:.0f} MB/s, bare pywsgi {bare[-1]:.0f} MB/s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = common.Report("logs", raw={"mb_per_s": rates, "bare": bare, "healthz_p99_ms": slow_ms})
    rate, anchor = statistics.median(rates), statistics.median(bare)
    report.add("agent to manager, durable, MB/s", rate, "MB/s", goal=GOAL_MB_PER_S, at_least=True)
    report.add(
        "the same beside a bare pywsgi app", rate, "MB/s", anchor=anchor, anchor_name="pywsgi",
        goal=None if rate >= GOAL_MB_PER_S else GOAL_RATIO, at_least=True,
    )  # fmt: skip
    report.add("GET /healthz meanwhile, 99th percentile", statistics.median(slow_ms), "ms", goal=100.0)
    report.add("processor time of both per GB", statistics.median(cpu), "s/GB")
    report.raw["look_every_s"] = watcher.POLL_INTERVAL_S
    return report.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
