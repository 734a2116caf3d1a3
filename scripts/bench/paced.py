"""Sends requests at a given rate over many connections, independent of the response times: the load of agents without
their work.

Also a program, so that it can run on its own core: `python -m scripts.bench.paced PORT CONNECTIONS PER_S SECONDS`. A
delay is counted from the time when the request was due, so that a slow response does not hide the delay of later ones.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from dataclasses import dataclass

from scripts.bench import common
from scripts.bench.load import KeptConnection
from scripts.bench.server import on_core

BODY = json.dumps({"state": "running", "pid": 1, "filling": "x" * 900}).encode()  # about as many bytes as a heartbeat
WAITS_S = 10.0  # time at the end for missing responses


@dataclass
class Paced:
    """The responses. `late_ms`: the largest delay of the load generator itself."""

    answered: int
    per_s: float
    p50_ms: float
    p99_ms: float
    late_ms: float


def run(port: int, connections: int, per_s: float, seconds: float, core: int | None) -> Paced:
    words = [*on_core(core), sys.executable, "-m", "scripts.bench.paced", str(port), str(connections)]
    done = subprocess.run(
        [*words, str(per_s), str(seconds)], cwd=common.ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"bench: the paced load failed: {done.stderr[-500:]}")
    return Paced(**json.loads(done.stdout))


def drive(port: int, connections: int, per_s: float, seconds: float) -> Paced:
    head = f"POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    request = head.encode() + BODY
    poll, due_at = select.epoll(), dict[int, float]()
    kept = [KeptConnection(port) for _ in range(connections)]
    by_fd = {one.sock.fileno(): one for one in kept}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    delays: list[float] = []
    began, sent, late = time.perf_counter(), 0, 0.0
    ends = began + seconds
    while (now := time.perf_counter()) < ends + WAITS_S and (now < ends or due_at):
        while now < ends and (due := began + sent / per_s) <= now:
            one = kept[sent % connections]
            sent += 1
            if one.sock.fileno() not in due_at:  # otherwise its last response is pending
                due_at[one.sock.fileno()] = due
                late = max(late, now - due)
                one.ask(request)
        wait_s = min(0.05, max(0.0, began + sent / per_s - time.perf_counter()))
        for fd, _ in poll.poll(wait_s):
            status = by_fd[fd].answer()
            if status is not None and status != 200:
                raise SystemExit(f"answered {status}" if status else "a connection was closed")
            if status == 200:
                delays.append(time.perf_counter() - due_at.pop(fd))
    delays += [WAITS_S] * len(due_at)
    delays.sort()
    p50, p99 = (1000 * delays[int(share * len(delays))] for share in (0.5, 0.99))
    return Paced(len(delays), len(delays) / seconds, p50, p99, 1000 * late)


if __name__ == "__main__":
    print(json.dumps(vars(drive(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))))
