"""python -m scripts.swarm.process PLAN: runs some of the swarm's agents, controlled by JSON lines on stdin.

PLAN is a file that is removed once read, because it contains the agents' secrets: {"address", "netloc", "seed",
"behaviour", "ramp_s", "crashes_per_s", "agents": [[id, fleet, secret, key, [worker…]]…]}. Commands: {"do": "kill" |
"silence" | "return" | "storm" | "crash" | "finish", "ids": […]}, {"do": "samples", "path"}, {"do": "end"}. Every half
second it writes a line with its counters. It exits when stdin is closed, so that no swarm is left behind.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import select
import signal
import sys
import time
from collections import Counter
from typing import Any

from remote_agent.transport.client import AgentCredentials
from scripts.swarm.agent import SimulatedAgent
from scripts.swarm.behaviour import Behaviour
from scripts.swarm.loop import Loop
from scripts.swarm.tally import Tally
from scripts.swarm.worker import SimulatedWorker

REPORT_EVERY_S = 0.5


class Process:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._loop = Loop()
        self._tally = Tally()
        self._behaviour = Behaviour(**plan["behaviour"])
        self._chance = random.Random(f"{plan['seed']}")
        self._ramp_s = float(plan["ramp_s"])
        self._crashes_per_s = float(plan["crashes_per_s"])
        host, port = plan["address"]
        self._agents = {
            agent_id: SimulatedAgent(
                self._loop,
                (host, port),
                plan["netloc"],
                AgentCredentials(agent_id, fleet_id, secret, proof_key),
                worker_ids,
                self._behaviour,
                self._tally,
                random.Random(f"{plan['seed']}/{agent_id}"),
                source_address(number),
            )
            for number, (agent_id, fleet_id, secret, proof_key, worker_ids) in enumerate(plan["agents"])
        }
        self._input = b""

    def run(self) -> None:
        os.set_blocking(0, False)
        self._loop.watch(0, self, select.EPOLLIN)
        now = time.monotonic()
        for number, agent in enumerate(self._agents.values()):
            self._loop.call_at(now + self._ramp_s * number / max(1, len(self._agents)), agent.start)
        if self._crashes_per_s > 0:
            self._loop.call_at(now + self._ramp_s, self._crash_one)
        self._report()
        self._loop.run()
        for agent in self._agents.values():
            agent.end()
        self._say()
        self._loop.unwatch(0)
        self._loop.close()

    # ------------------------------------------------------------------------------------------------ being told

    def on_io(self, _events: int) -> None:
        """Read commands from stdin."""
        try:
            data = os.read(0, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self._loop.ending = True
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        what = order["do"]
        if what == "end":
            self._loop.ending = True
        elif what == "samples":
            self._write_samples(order["path"])
        elif what in ("crash", "finish"):
            now = time.monotonic()
            for agent_id, worker_id in order["ids"]:
                agent = self._agents[agent_id]
                if worker_id in agent.workers:
                    getattr(agent.workers[worker_id], what)(now)
                    agent.happened(now)
        else:
            method = {"return": "come_back"}.get(what, what)
            for agent_id in order["ids"]:
                getattr(self._agents[agent_id], method)()

    def _crash_one(self) -> None:
        now = time.monotonic()
        agent = self._chance.choice(list(self._agents.values()))
        running = [worker for worker in agent.workers.values() if worker.report.state == "running"]
        if running:
            worker: SimulatedWorker = self._chance.choice(running)
            worker.crash(now)
            agent.happened(now)
        self._loop.call_at(now + self._chance.expovariate(self._crashes_per_s), self._crash_one)

    # ------------------------------------------------------------------------------------------------ telling

    def _report(self) -> None:
        self._say()
        self._loop.call_at(time.monotonic() + REPORT_EVERY_S, self._report)

    def _say(self) -> None:
        states = Counter(agent.state for agent in self._agents.values())
        workers = Counter(worker.report.state for agent in self._agents.values() for worker in agent.workers.values())
        line = {
            **self._tally.as_json(),
            "cpu_s": time.process_time(),
            "worst_lag_s": self._loop.worst_lag_s,
            "terms": Counter(str(agent.term) for agent in self._agents.values()),
            "linked": sum(agent.linked for agent in self._agents.values()),
            "bytes_sent": self._loop.bytes_sent,
            "bytes_received": self._loop.bytes_received,
            "states": states,
            "workers": workers,
        }
        try:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self._loop.ending = True

    def _write_samples(self, path: str) -> None:
        """Write the samples to a file that appears under its name only once it is complete."""
        with open(path + ".new", "w", encoding="ascii") as file:
            json.dump({"beats": self._tally.samples.tolist(), "connects": self._tally.connected_at.tolist()}, file)
        os.replace(path + ".new", path)


def source_address(number: int) -> str:
    """The source address of a host. Each host has its own, as real hosts do; one address has too few ports for ten
    thousand agents that reconnect."""
    return f"127.9.{number // 250}.{1 + number % 250}"


def main() -> None:
    # Ctrl-C reaches the whole group; the starting process ends this one in an orderly way
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    os.unlink(sys.argv[1])
    gc.disable()  # there are almost no reference cycles, and searching for them would delay thousands of agents
    Process(plan).run()


if __name__ == "__main__":
    main()
