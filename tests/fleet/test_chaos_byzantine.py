"""Hostile agents and launchers send arbitrary messages. Nothing of others changes, is disclosed or ends.

The fleet is real: a manager, a host with jobs that stamp. The hostile ones have what an approved agent and launcher
have, and know more than they could: ids, epochs, commands and searches of others. What they send: hostile_messages.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol import messages as protocol
from tests.chaos import ChaosReport
from tests.fleet import stamps
from tests.fleet.chaos_world import World
from tests.fleet.test_chaos_flood import Watch
from tests.hostile_messages import Byzantine, Known, Request
from tests.waiting import wait_until

MARK = "NOBODY-ELSE-READS-THIS"
SHORT, LONG = 2_400, 100_000
ATTACKERS = 4  # of each kind
MORE_MEMORY, MORE_DISK = 150 * 2**20, 150 * 2**20
VOLATILE = ("last_seen", "usage", "reason", "reason_code", "reason_params", "last_exit", "next_start_in_s")


class Attacker:
    """One hostile identity with a connection of its own."""

    def __init__(self, port: int, agent_id: str, secret: str, known: Known, seed: int) -> None:
        self.agent_id = agent_id
        self._port = port
        self._secret = secret
        self._source = Byzantine(seed, agent_id, known)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []

    def send(self, messages: int) -> None:
        for _ in range(messages):
            self.say(self._source.next())

    def say(self, request: Request) -> bytes:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._secret}"}
        try:
            self._connection.request(request.method, request.path, request.body, headers)
            answer = self._connection.getresponse()
            status, body = answer.status, answer.read()
        except (OSError, http.client.HTTPException):  # an answer that ends the connection is one of the manager's means
            self._connection.close()
            self.statuses[0] += 1
            return b""
        self.statuses[status] += 1
        if status >= 500 or MARK.encode() in body:
            self.failures.append(
                f"{status} {request.method} {request.path[:150]} {request.body[:300]!r}: {body[:300]!r}"
            )
        return body


class Fleet:
    """The victims, the hostile ones, and what must not change."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.manager = world.manager
        self.host = world.fleet.hosts[0]
        self.victims = ["kept", "fenced", "left", "quiet1"]
        self.attackers: list[Attacker] = []
        self.found: list[dict[str, Any]] = []  # by a search under the attack

    def build(self, seed: int) -> None:
        marked = {"env": {"SECRET": MARK}}
        self.declare("evil0", "left")  # it was there once, and never confirms that it is gone
        self.beat("evil0", protocol.WorkerReport("left", state="stopped", attempt=2, epoch=0))
        self.manager.command("left", "stop")
        left = self.manager.worker("left")
        gone = protocol.WorkerReport(
            "left", state="stopped", attempt=2, epoch=left["epoch"], generation=left["generation"]
        )
        workers = [
            stamps.stamping("kept", **marked),
            stamps.stamping("fenced", on_partition="fence", lease_s=6, **marked),
            stamps.stamping("left", **marked),
        ]
        with self.received("evil0", gone):
            self.world.deploy({self.host.name: workers})
        self.declare("quiet", "quiet1")
        self.quiet_command = self.manager.command("quiet1", "stop")["command_id"]
        known = self._known()
        for number in range(ATTACKERS):
            agent_id, own = f"evil{number}", [f"own{number}a", f"own{number}b"]
            self.declare(agent_id, *own)
            mine = Known(
                own, known.others, known.agents, known.secrets, known.numbers
            )  # which share one list of secrets
            self._attacker(agent_id, f"secret-{agent_id}", mine, seed * 100 + number)
            agent_id = f"launcher:hand{number}"
            secret = f"secret-hand{number}"
            registered = {
                "worker_id": f"hand{number}",
                "command": "true",
                "host": "far",
                "secret_sha256": protocol.secret_sha256(secret),
            }
            assert self.manager.request("POST", "/api/workers/register", registered)[0] == 200
            mine = Known([f"hand{number}"], known.others, known.agents, known.secrets, known.numbers)
            self._attacker(agent_id, secret, mine, seed * 100 + 50 + number)
        for number in range(ATTACKERS):
            self.beat(f"evil{number}")
        known.secrets.append(self._search())

    def _attacker(self, agent_id: str, secret: str, known: Known, seed: int) -> None:
        self.attackers.append(Attacker(self.manager.port, agent_id, secret, known, seed))

    def _known(self) -> Known:
        views = [self.manager.worker(one) for one in self.victims]
        numbers = sorted({view[key] + more for view in views for key in ("epoch", "attempt") for more in (-1, 0, 1, 9)})
        return Known([], self.victims, [self.host.name, "quiet", "evil0"], [self.quiet_command], numbers)

    def declare(self, host: str, *worker_ids: str) -> None:
        workers = [{"worker_id": one, "spec": {"command": "sleep 9", "env": {"OWN": one}}} for one in worker_ids]
        declared = {"hosts": [{"host": host, "ssh": {}, "workers": workers}]}
        assert self.manager.request("POST", "/api/deployments", declared)[0] == 200
        digest = {"secret_sha256": protocol.secret_sha256(f"secret-{host}")}
        assert self.manager.request("PUT", f"/api/agents/{host}/credentials", digest)[0] == 200

    def _search(self) -> str:
        """A search through all logs, which the hostile ones do not answer; returns its id. Its lines go to `found`
        when it ends."""
        search = http.client.HTTPConnection("127.0.0.1", self.manager.port, timeout=90)
        search.request("GET", "/api/log-search?text=line&format=jsonl&timeout=30&limit=2000")
        answer = search.getresponse()
        begin = json.loads(answer.readline())

        def read() -> None:
            for line in answer:
                self.found += json.loads(line).get("lines", [])

        self.searching = threading.Thread(target=read, daemon=True)
        self.searching.start()
        return str(begin["search_id"])

    def beat(self, agent_id: str, *reports: protocol.WorkerReport, **values: Any) -> None:
        beat = protocol.AgentHeartbeat(agent_id, workers=list(reports), **values)
        attacker = Attacker(self.manager.port, agent_id, f"secret-{agent_id}", Known([], ["x"], ["x"]), 0)
        body = json.dumps(protocol.encode(beat)).encode()
        attacker.say(Request("POST", f"/api/agents/{agent_id}/heartbeat", body))
        assert attacker.statuses == {200: 1}

    @contextlib.contextmanager
    def received(self, agent_id: str, report: protocol.WorkerReport) -> Iterator[None]:
        """Its heartbeats continue meanwhile."""
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(0.3):
                self.beat(agent_id, report)

        self.beat(agent_id, report)
        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # ------------------------------------------------------------------------------------------ what must not change

    def snapshot(self) -> dict[str, Any]:
        """State of others: the manager's records and views, the beginnings of their logs, their processes."""
        found: dict[str, Any] = {}
        for worker_id in self.victims:
            view = self.manager.worker(worker_id)
            found[worker_id] = {key: value for key, value in view.items() if key not in VOLATILE}
        for name in (self.host.name, "quiet"):
            view = self.manager.host(name)
            found[name] = {key: view[key] for key in ("agent", "release", "facts", "workers", "agent_pid")}
            found[name]["heard"] = view["agent_state"] == "connected"
        found["command"] = self.manager.get(f"/api/commands/{self.quiet_command}")["status"]
        found["processes"] = {
            (one.worker, one.pid, one.epoch, one.attempt) for one in self.world.stamps("kept", "fenced", "left")
        }
        events = self.manager.get("/api/events?limit=1000&kind=worker_state,command,reassigned,takeover,move")["events"]
        found["events"] = [
            (one["kind"], one["worker_id"], one["after"]) for one in events if one["worker_id"] in self.victims
        ]
        return found

    def attack(self, messages: int) -> None:
        each = messages // len(self.attackers)
        threads = [threading.Thread(target=one.send, args=(each,), daemon=True) for one in self.attackers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.fleet
@pytest.mark.chaos(26)
@pytest.mark.timeout(180)
def test_no_message_of_a_hostile_agent_or_launcher_has_an_effect_on_another(
    tmp_path: Path, chaos_report: ChaosReport
) -> None:
    with World(tmp_path, hosts=1) as world:
        fleet = Fleet(world)
        fleet.build(seed=int(time.time()) if chaos_report.long else 26)
        assert world.manager.process is not None
        before = fleet.snapshot()
        watch = Watch(world.manager.process.pid, world.manager.directory)
        sent = 0
        for _ in chaos_report.rounds(short=1, long=10):
            messages = LONG // 10 if chaos_report.long else SHORT
            fleet.attack(messages)
            sent += messages
            watch.sample()
            after = fleet.snapshot()
            assert after == before, {key: (before[key], after[key]) for key in before if before[key] != after[key]}
            assert [failure for one in fleet.attackers for failure in one.failures] == []
        # They wrote nothing into the logs of others: the numbered lines are complete, with nothing between them.
        for worker_id in ("kept", "fenced", "left"):
            text = world.manager.log_text(worker_id, "&attempt=" + str(world.manager.worker(worker_id)["attempt"]))
            assert "forged" not in text
        fleet.searching.join(60)
        victims = set(fleet.victims)
        of_victims = [line for line in fleet.found if line["worker_id"] in victims]
        # Of what ran there before its host may say what it likes; "left" ran at evil0 until its second attempt.
        of_victims = [
            line for line in of_victims if (line["worker_id"], line["host"]) != ("left", "evil0") or line["attempt"] > 2
        ]
        assert {line["host"] for line in of_victims} == {fleet.host.name}
        own = [path.read_text(errors="replace") for path in world.manager.directory.glob("logs/procguard.log*")]
        assert own, "the manager's own log"
        log = world.manager.console() + "".join(own)
        assert "Traceback" not in log and "internal_error" not in log, log[-4000:]
        # And the victims still obey.
        world.manager.command("kept", "stop")
        wait_until(lambda: world.manager.worker("kept")["state"] == "stopped", 20, "kept stops")
        assert watch.more_memory < MORE_MEMORY and watch.more_disk < MORE_DISK
        statuses = sum((one.statuses for one in fleet.attackers), Counter[int]())
        chaos_report(
            measured=f"0 effects, 0 of 5xx in {sent:,} messages of {len(fleet.attackers)} hostile agents and launchers "
            f"({statuses[200]:,} taken as their own, {sent - statuses[200]:,} refused); memory +"
            f"{watch.more_memory / 2**20:.0f} MB, disk +{watch.more_disk / 2**20:.0f} MB"
        )
