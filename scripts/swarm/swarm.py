"""The interface of the swarm: declares its hosts in the manager like an operator, runs and controls the processes, and
cleans up.

Owns the simulated hosts in the manager and the processes. Connects only to a manager on this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import math
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from procguard.client.api import DEFAULT_URL, ManagerClient
from procguard.errors import Conflict, NotFound, ProcGuardError, UsageError
from remote_agent.protocol import messages
from scripts.swarm.behaviour import AGENT_ACTIONS, WORKER_ACTIONS, Behaviour
from scripts.swarm.tally import Summary

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HOSTS_AT_ONCE = 250  # in one deployment
AGENTS_PER_PROCESS = 5_000
MAX_AGENTS = 20_000
AT_ONCE = 8  # concurrent requests of the operator
RAMP_AGENTS_PER_S = 500.0
CLEAN_UP_WITHIN_S = 60.0

Some = float | int | None | Iterable[str]  # a share, a number, None for all, or ids
Spec = Callable[[int, int], dict[str, Any]]


def default_spec(host: int, number: int) -> dict[str, Any]:
    """The declaration of the simulated worker `number` of `host`, with enough variety for selectors."""
    return {
        "command": f"python train.py --shard {host} --part {number}",
        "labels": {"swarm": "true", "rack": f"r{host // 32}", "part": str(number)},
        "group": f"group{host % 8}",
        "stop_grace_s": 5.0,
    }


class Swarm:
    """`agents` simulated hosts with `workers_per_agent` workers each: a context manager, or `start` and `stop`.

    The same seed gives the same swarm: which workers are stubborn, which agents a share selects, when children crash.
    Every host's and worker's id begins with `prefix` (swarm-00007, swarm-00007-w0). `keep`: the hosts stay in the
    manager when the swarm stops.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        agents: int = 10,
        workers_per_agent: int = 1,
        seed: int = 1,
        *,
        behaviour: Behaviour | None = None,
        prefix: str = "swarm",
        token: str = "",
        processes: int | None = None,
        spec: Spec = default_spec,
        keep: bool = False,
    ) -> None:
        if not 1 <= agents <= MAX_AGENTS or not 0 <= workers_per_agent <= 1_000:
            raise UsageError(
                f"swarm: {agents} agents with {workers_per_agent} workers each", f"1 to {MAX_AGENTS}, and 0 to 1000"
            )
        if not messages.valid_id(prefix) or len(prefix) > 40:
            raise UsageError(f"swarm: {prefix[:60]!r} cannot begin an id", "letters, digits and -, at most 40")
        self.url = url
        self._address, self._netloc = loopback(url)
        self._client = ManagerClient(url, token)
        self._behaviour = behaviour or Behaviour()
        self._seed, self._keep, self._spec = seed, keep, spec
        self._chance = random.Random(f"{seed}")
        wanted = processes or math.ceil(agents / AGENTS_PER_PROCESS)
        self._process_count = max(1, min(wanted, agents))
        self.agent_ids = [f"{prefix}-{number:05d}" for number in range(agents)]
        self.workers = {one: [f"{one}-w{number}" for number in range(workers_per_agent)] for one in self.agent_ids}
        self._fleet_id = ""
        self._keys: dict[str, str] = {}
        self._secrets = {one: secrets.token_urlsafe(24) for one in self.agent_ids}
        self._parts: list[_Part] = []
        self._part_of: dict[str, _Part] = {}
        self.away: set[str] = set()  # agents that were killed or silenced
        self._folder = ""
        self.declared_in_s = 0.0

    def __enter__(self) -> Swarm:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------------------------------------ life

    def start(self) -> Swarm:
        """Declare the hosts and start their agents. Returns immediately; `wait_connected` waits for them."""
        self.declare()
        self._folder = tempfile.mkdtemp(prefix="pgswarm")
        for index in range(self._process_count):
            own = self.agent_ids[index :: self._process_count]
            part = _Part(self._plan(own, index), self._folder, index)
            self._parts.append(part)
            self._part_of.update(dict.fromkeys(own, part))
        return self

    def declare(self) -> None:
        """Make the simulated hosts known to the manager, as `invoke deploy` does for real ones; without SSH."""
        began = time.monotonic()
        numbered = list(enumerate(self.agent_ids))
        for first in range(0, len(numbered), HOSTS_AT_ONCE):
            hosts = [
                self._declaration(number, agent_id) for number, agent_id in numbered[first : first + HOSTS_AT_ONCE]
            ]
            answer = self._client.deploy({"hosts": hosts})
            self._fleet_id = answer["fleet_id"]
            self._keys.update({host: reported["proof_key"] for host, reported in answer["hosts"].items()})
        self._at_once(lambda one: self._client.set_credentials(one, messages.secret_sha256(self._secrets[one])))
        self.declared_in_s = time.monotonic() - began

    def stop(self) -> None:
        """Stop the agents and remove the simulated hosts from the manager, unless `keep` is set."""
        for part in self._parts:
            part.end()
        self._parts = []
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        if not self._keep and self._fleet_id:
            self.clean_up()

    def clean_up(self) -> None:
        """Remove the hosts from the manager. Raises ProcGuardError if any remains after CLEAN_UP_WITHIN_S."""
        deadline = time.monotonic() + CLEAN_UP_WITHIN_S
        kept: list[str] = []

        def forget(agent_id: str) -> None:
            while True:
                try:
                    self._client.forget_agent(agent_id)
                    return
                except NotFound:
                    return
                except Conflict as exc:  # the manager has not noticed yet that the agent has gone
                    if time.monotonic() > deadline:
                        kept.append(exc.message)
                        return
                    time.sleep(0.2)

        self._at_once(forget)
        if kept:
            raise ProcGuardError(
                f"swarm: {len(kept)} hosts are still in the manager ({kept[0]})", "later: invoke swarm --clean"
            )

    def _at_once(self, act: Callable[[str], Any]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(act, self.agent_ids):
                pass

    def _declaration(self, number: int, agent_id: str) -> dict[str, Any]:
        workers = [
            {"worker_id": worker_id, "spec": self._spec(number, index)}
            for index, worker_id in enumerate(self.workers[agent_id])
        ]
        return {"host": agent_id, "ssh": {}, "workers": workers}

    def _plan(self, agent_ids: list[str], index: int) -> dict[str, Any]:
        share = len(agent_ids) / len(self.agent_ids)
        return {
            "address": self._address,
            "netloc": self._netloc,
            "seed": f"{self._seed}.{index}",
            "behaviour": dataclasses.asdict(self._behaviour),
            "ramp_s": len(agent_ids) * self._process_count / RAMP_AGENTS_PER_S,
            "crashes_per_s": self._behaviour.crashes_per_s * share,
            "agents": [
                [one, self._fleet_id, self._secrets[one], self._keys[one], self.workers[one]] for one in agent_ids
            ],
        }

    # ------------------------------------------------------------------------------------------------ what happens

    def kill(self, some: Some = None) -> list[str]:
        """Kill agents: their connections close, their workers' children keep running. Returns their ids."""
        return self.act("kill", some)

    def silence(self, some: Some = None) -> list[str]:
        """Make agents hang: they close nothing and send nothing. Returns their ids."""
        return self.act("silence", some)

    def bring_back(self, some: Some = None) -> list[str]:
        """Restart killed agents, which adopt their workers, and let silent ones continue. Returns their ids."""
        return self.act("return", some)

    def storm(self, some: Some = None) -> list[str]:
        """Break the agents' connections; they reconnect by the real agent's retry rule. Returns their ids."""
        return self.act("storm", some)

    def crash(self, some: Some = None) -> list[str]:
        """End workers' children with SIGKILL; `some` counts or names workers. Returns their ids."""
        return self.act("crash", some)

    def finish(self, some: Some = None) -> list[str]:
        """End workers' children with exit code 0. Returns the workers' ids."""
        return self.act("finish", some)

    def act(self, action: str, some: Some = None) -> list[str]:
        """Run an action by its name in a script. Returns the affected ids."""
        if action in WORKER_ACTIONS:
            of = {worker_id: agent_id for agent_id, ids in self.workers.items() for worker_id in ids}
            chosen = self._choose(list(of), some)
            reported = [(of[worker_id], worker_id) for worker_id in chosen]
            for part in self._parts:
                part.send(do=action, ids=[pair for pair in reported if self._part_of[pair[0]] is part])
            return chosen
        if action not in AGENT_ACTIONS:
            raise UsageError(f"swarm: unknown action {action[:40]!r}", ", ".join(AGENT_ACTIONS + WORKER_ACTIONS))
        candidates = [one for one in self.agent_ids if (one in self.away) == (action == "return")]
        chosen = self._choose(candidates, some)
        if action == "return":
            self.away.difference_update(chosen)
        elif action != "storm":
            self.away.update(chosen)
        for part in self._parts:
            part.send(do=action, ids=[one for one in chosen if self._part_of[one] is part])
        return chosen

    def _choose(self, candidates: list[str], some: Some) -> list[str]:
        if some is None:
            return candidates
        if isinstance(some, float):
            some = round(some * len(candidates))
        if isinstance(some, int):
            return sorted(self._chance.sample(candidates, min(some, len(candidates))))
        return list(some)

    # ------------------------------------------------------------------------------------------------ looking

    def summary(self) -> Summary:
        """The counters of all processes, at most half a second old. Raises ProcGuardError if a process has died."""
        whole = Summary()
        for part in self._parts:
            whole.add(part.latest())
        return whole

    def wait(self, reached: Callable[[Summary], bool], timeout_s: float, what: str) -> Summary:
        """Wait until the summary satisfies `reached`. Raises ProcGuardError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = self.summary()
            if reached(now):
                return now
            if time.monotonic() > deadline:
                raise ProcGuardError(
                    f"swarm: not within {timeout_s:g} s: {what} (agents {dict(now.states)}, workers "
                    f"{dict(now.workers)}, {now.beats_answered} heartbeats answered, {now.failures} requests failed, "
                    f"answers {dict(now.statuses)})",
                    "is the manager up, and fast enough for so many?",
                )
            time.sleep(0.1)

    def wait_connected(self, timeout_s: float = 60.0) -> Summary:
        """Wait until every agent that is not killed or silent has been answered."""
        count = len(self.agent_ids) - len(self.away)
        return self.wait(lambda now: now.linked >= count, timeout_s, f"{count} agents answered")

    def wait_followed(self, term: int, timeout_s: float = 60.0) -> float:
        """Wait until the leader of this term has answered every agent that is not killed or silent. Returns when it
        first answered the last of them (monotonic)."""
        count = len(self.agent_ids) - len(self.away)
        what = f"{count} agents answered by the leader of term {term}"
        return self.wait(lambda now: now.terms[term] >= count, timeout_s, what).followed_at

    def wait_running(self, timeout_s: float = 60.0) -> Summary:
        """Wait until every worker runs, which implies that every agent has its assignments."""
        count = sum(len(ids) for ids in self.workers.values())
        return self.wait(lambda now: now.workers["running"] >= count, timeout_s, f"{count} workers running")

    def samples(self) -> dict[str, list[float]]:
        """{"beats": [sent, delay, sent, delay, …], "connects": [time, …]}, in monotonic seconds of this machine."""
        found: dict[str, list[float]] = {"beats": [], "connects": []}
        for part in self._parts:
            for name, values in part.samples().items():
                found[name] += values
        return found

    @property
    def pids(self) -> list[int]:
        return [part.pid for part in self._parts]


class _Part:
    """One process of the swarm."""

    def __init__(self, plan: dict[str, Any], folder: str, index: int) -> None:
        path = os.path.join(folder, f"plan{index}.json")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(plan, file)
        self._folder, self._index = folder, index
        self._errors = os.path.join(folder, f"errors{index}")
        with open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scripts.swarm.process", path],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.pid = self._process.pid
        self._latest: dict[str, Any] | None = None
        self._notified = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._latest = json.loads(line)
            self._notified.set()
        self._notified.set()

    def latest(self) -> dict[str, Any]:
        self._notified.wait(30.0)
        if self._latest is None or self._process.poll() is not None:
            with open(self._errors, encoding="utf-8", errors="replace") as file:
                raise ProcGuardError(f"swarm: process {self.pid} has ended: {file.read()[-2000:].strip()}")
        return self._latest

    def send(self, **order: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `latest` reports that the process has died
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def samples(self) -> dict[str, list[float]]:
        path = os.path.join(self._folder, f"samples{self._index}.json")
        self.send(do="samples", path=path)
        deadline = time.monotonic() + 30
        while not os.path.exists(path):
            self.latest()
            if time.monotonic() > deadline:
                raise ProcGuardError(f"swarm: process {self.pid} does not answer")
            time.sleep(0.02)
        with open(path, encoding="ascii") as file:
            found: dict[str, list[float]] = json.load(file)
        os.unlink(path)
        return found

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # the process ends at the end of its input
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        self._process.stdout.close()


def loopback(url: str) -> tuple[tuple[str, int], str]:
    """((address, port), netloc) of a manager on this machine. Raises UsageError for any other, which a swarm would
    flood."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(f"swarm: {url[:80]!r} is no plain http address", "e.g. http://localhost:5000")
    port = parts.port or 80
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise UsageError(f"swarm: {parts.hostname} cannot be resolved ({exc})", "use http://localhost:5000") from exc
    addresses = [str(one[4][0]) for one in found]
    if not addresses or not all(ipaddress.ip_address(one).is_loopback for one in addresses):
        raise UsageError(
            f"swarm: {parts.hostname} is not this machine (loopback)",
            "a swarm is for a manager on this machine alone: http://localhost:PORT",
        )
    address = next((one for one in addresses if ":" not in one), addresses[0])
    return (address, port), parts.netloc
