"""A search finds lines that the worker's current host lacks: it moved, its host is unreachable, or its log was
trimmed."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from procguard.errors import LimitExceeded
from procguard.fleet.agents.log_search import Question, Search
from procguard.fleet.model import clock
from procguard.portal.logs import own_search
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.own_search import OwnSearch
from procguard.portal.logs.store import LogStore
from remote_agent.logs.search import run_search
from remote_agent.protocol import messages
from tests.server_process import Answer, RunningServer
from tests.unit.fleet_world import World
from tests.waiting import wait_until

NUMBER = itertools.count(1)
AT = 1_790_000_000.0


class Server(RunningServer):
    """Its operator has a token, so that the owner of each connection need not be looked up."""

    operator = ""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.operator = self.ask("POST", "/api/tokens", {"scope": "operator", "name": "tester"}).json["token"]

    def ask(self, *words: Any, secret: str = "", **more: Any) -> Answer:
        return super().ask(*words, secret=secret or self.operator, **more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.close()
    assert "Traceback" not in running.log()


class Host:
    """A host whose agent sends heartbeats and logs and answers searches from its own files, as the real one does."""

    def __init__(self, server: Server, directory: Path, name: str) -> None:
        self.server, self.directory, self.name = server, directory / name, name
        self.secret, self.reports, self.on = f"secret-of-{name}", [], True
        self.forged: dict[str, Any] = {}
        self.directory.mkdir(parents=True)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        path, rev = f"/api/agents/{self.name}", ""
        while self.on:
            self.beat()
            reply = self.server.ask("GET", f"{path}/commands?wait=0.5&rev={rev}&seq=0", secret=self.secret).json
            rev = reply["assignments_rev"]
            for search in reply["searches"]:
                answer = messages.encode(self.run_search(messages.decode(messages.LogSearch, search))) | self.forged
                self.server.ask("POST", f"{path}/searches", answer, secret=self.secret)

    def off(self) -> None:
        """Its agent becomes silent."""
        self.on = False
        self._thread.join(20)

    def beat(self) -> Any:
        with self._lock:
            return self.server.beat(self.name, self.secret, *self.reports)

    def run_search(self, search: messages.LogSearch) -> messages.LogSearchResult:
        directories = [[one, str(self.directory / one)] for one in search.workers if (self.directory / one).is_dir()]
        return run_search(sys.executable, search, directories, threading.Event())

    def write(self, worker: str, attempt: int, text: str, shipped: int = -1) -> None:
        """The worker's output, on the host and, as far as it was sent, at the manager."""
        path = self.directory / worker / f"{attempt}.log"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        query = f"attempt={attempt}&stream=out&offset=0&at={AT + attempt}"
        data = text.encode()[: shipped if shipped >= 0 else None]
        answer = self.server.ask("POST", f"/api/workers/{worker}/logs?{query}", data, secret=self.secret)
        assert answer.status == 200, answer.body

    def says(self, worker: str, state: str, attempt: int) -> None:
        view = self.server.ask("GET", f"/api/remote-workers/{worker}").json
        known = {"generation": view["generation"], "epoch": view["epoch"]}
        with self._lock:
            self.reports = [messages.WorkerReport(worker, state, attempt=attempt, **known)]  # type: ignore[arg-type]
        self.beat()


class Moved:
    """`worker` ran attempts 1 and 2 on `old`, which has not released it yet; attempt 3 runs on `new`."""

    def __init__(self, server: Server, directory: Path, unshipped: int = 0) -> None:
        number = next(NUMBER)
        self.server, self.worker = server, f"roam{number}"
        names = [f"{kind}{number}" for kind in ("old", "new")]
        server.deploy(names[0], self.worker)
        server.deploy(names[1])
        self.old, self.new = (Host(server, directory, name) for name in names)
        self.old.write(self.worker, 1, "needle 1\nneedle 2\n")
        last = "needle 3\nhay\nneedle 4\n"
        self.old.write(self.worker, 2, last, len(last) - unshipped)
        self.old.says(self.worker, "stopped", 2)
        assert server.ask("POST", f"/api/workers/{self.worker}/command", {"command": "stop"}).status == 202
        self.old.says(self.worker, "stopped", 2)
        workers = [{"worker_id": self.worker, "spec": {"command": "sleep 9"}}]
        declared = [{"host": self.new.name, "ssh": {"hostname": "x"}, "workers": workers}]
        answer = server.ask("POST", "/api/deployments", {"hosts": declared})
        assert answer.status == 200, answer.body
        self.new.says(self.worker, "running", 3)
        self.new.write(self.worker, 3, "needle 5\n")

    def find(self, **query: str) -> Any:
        given = {"text": "needle", "select": self.worker, "timeout": "5", **query}
        text = "&".join(f"{name}={value}" for name, value in given.items() if value)
        return self.server.ask("GET", f"/api/log-search?{text}", timeout_s=30).json

    def off(self) -> None:
        for host in (self.old, self.new):
            host.on = False
        for host in (self.old, self.new):
            host.off()


@pytest.fixture
def moved(server: Server, tmp_path: Path) -> Iterator[Moved]:
    made = Moved(server, tmp_path)
    yield made
    made.off()


def texts(found: Any) -> list[str]:
    return [line["text"] for line in found["lines"]]


def statuses(found: Any) -> dict[str, str]:
    return {part["host"].rstrip("0123456789"): part["status"] for part in found["hosts"]}


ALL = [f"needle {number}" for number in (5, 4, 3, 2, 1)]


def test_every_line_of_a_moved_worker_is_found_once_the_newest_first(moved: Moved) -> None:
    for query in ({}, {"text": "", "regex": "nee?dle%20[0-9]"}, {"text": "NEEDLE", "ignore_case": "1"}):
        found = moved.find(**query)
        assert texts(found) == ALL, found
        assert statuses(found) == {"old": "done", "new": "done", "manager": "done"}
        assert (found["complete"], found["found"], found["workers"]) == (True, 5, 1)
        assert found["hosts_asked"] == found["hosts_answered"] == 3
        line = found["lines"][-1]
        assert (line["host"], line["attempt"], line["offset"]) == ("manager", 1, 0)
        assert line["text"][line["begin"] : line["end"]].startswith("needle")
    assert texts(moved.find(limit="2")) == ALL[:2]
    assert texts(moved.find(since=str(AT + 1.5), until=str(AT + 2.5))) == ["needle 4", "needle 3"]
    assert texts(moved.find(stream="err")) == []


def test_the_parts_of_a_moved_worker_come_one_by_one(moved: Moved) -> None:
    path = f"/api/log-search?text=needle&select={moved.worker}&format=jsonl"
    said = [json.loads(line) for line in moved.server.ask("GET", path, timeout_s=30).body.splitlines()]
    assert [one["t"] for one in said] == ["begin", "host", "host", "host", "end"]
    lines = [line for one in said for line in one.get("lines", [])]
    assert sorted(line["text"] for line in lines) == sorted(ALL)


def test_lines_that_only_the_host_before_still_holds_are_found(server: Server, tmp_path: Path) -> None:
    """Its agent had not sent "le 4" yet."""
    moved = Moved(server, tmp_path, unshipped=5)
    found = moved.find()
    assert texts(found) == ALL and found["complete"]
    moved.off()


def test_an_agent_of_an_earlier_release_does_not_hide_what_ran_before(moved: Moved) -> None:
    """It does not report its files; the manager knows when the worker arrived there."""
    moved.new.forged = {"held": None}
    assert texts(moved.find()) == ALL


def test_a_host_cannot_rewrite_or_hide_what_ran_elsewhere_before(moved: Moved) -> None:
    keys = {f"{attempt}.out": 0 for attempt in range(9)}
    forged = messages.LogMatch(moved.worker, 1, "out", 0, "needle, forged", 0, 6)
    moved.new.forged = {"held": {moved.worker: keys}, "lines": [messages.encode(forged)], "found": 1}
    found = moved.find()
    assert texts(found) == ALL[1:] and found["found"] == 4


def test_what_a_host_has_given_back_to_its_disk_is_found_at_the_manager(moved: Moved) -> None:
    """An attempt that was deleted completely, and the beginning of another: also the line at the cut, once."""
    lines = [f"line {number:06} {'.' * 88}\n" for number in range(12_000)]
    moved.new.write(moved.worker, 4, "".join(lines))
    moved.new.write(moved.worker, 5, "gone at the host\n")
    (moved.new.directory / moved.worker / "5.log").unlink()
    path, cut = moved.new.directory / moved.worker / "4.log", 1024 * 1024
    data = path.read_bytes()
    with open(path, "wb") as file:  # a hole, as log_disk makes it
        file.seek(cut)
        file.write(data[cut:])
    through = lines[cut // len(lines[0])]
    around = [f"line {int(through[5:11]) + step:06}" for step in (1, 0, -1)]
    found = moved.find(text="", regex="|".join(one.replace(" ", "%20") for one in around) + "|gone")
    assert [text.rstrip(" .") for text in texts(found)] == ["gone at the host", *around], found
    assert found["complete"] and found["found"] == 4


def test_the_lines_of_a_host_that_is_away_are_found_and_the_host_is_named(server: Server) -> None:
    secret = server.deploy("far", "far1")
    path = f"/api/workers/far1/logs?attempt=1&stream=out&offset=0&at={AT}"
    data = b"needle\n\x1b[31mred\x1b[0m needle\nneedle without end"
    assert server.ask("POST", path, data, secret=secret).status == 200
    found = server.ask("GET", "/api/log-search?text=needle&select=far1").json
    assert texts(found) == ["needle without end", "red needle", "needle"]
    assert statuses(found) == {"far": "away", "manager": "done"}
    assert (found["hosts_asked"], found["hosts_answered"], found["complete"]) == (2, 1, False)


def test_a_host_that_a_worker_left_is_asked_until_it_has_let_go_of_it(tmp_path: Path) -> None:
    """And named where it cannot be searched: unsent lines may be left there."""
    world = World(tmp_path)
    world.deploy({"h2": {"w1": {"command": "sleep 9"}}, "h1": {}})
    world.beat("h1")
    world.fleet.workers.command("w1", "stop", "tester", world.now)
    world.beat("h2", world.report("w1", "stopped", attempt=3))
    world.deploy({"h1": {"w1": {"command": "sleep 9"}}, "h2": {}})
    world.restart()
    world.beat("h1", world.report("w1", attempt=4))
    search = begun(world)
    assert search.attempts_before == {"w1": 3}, "durable"
    assert (search.parts["h1"].former, search.parts["h2"].former) == ({}, {"w1": 3})
    assert search.parts["h2"].status == "away" and "w1 ran there before" in search.parts["h2"].reason
    world.beat("h2", world.report("w1", "stopped", attempt=3))
    search = begun(world)
    assert search.parts["h2"].status == "asked"
    search.fresh.clear()
    own, foreign = (messages.LogMatch("w1", attempt, "out", 0, "needle") for attempt in (3, 4))
    world.fleet.log_searches.take("h2", messages.LogSearchResult(search.search_id, lines=[own, foreign], found=2))
    assert [lines for _, lines in search.fresh] == [[own]], "attempt 4 never ran there"
    world.beat("h2", assignments_rev=world.fleet.agents.assignments.rev("h2"))
    assert list(begun(world).parts) == ["h1"]


def begun(world: World) -> Search:
    workers = world.fleet.operations.matching("", "")
    return world.fleet.log_searches.begin(Question("needle"), workers, world.now, lambda: None)


# ------------------------------------------------------------------------------------------------- its bounds


class Own:
    """The manager's part alone: w1's host never connected. `silent`: w2's host is asked, and does not answer."""

    def __init__(self, directory: Path, silent: bool = False, **asked: Any) -> None:
        world = World(directory)
        world.deploy({"h1": {"w1": {"command": "sleep 9"}}, "h2": {"w2": {"command": "sleep 9"}}})
        if silent:
            world.beat("h2")
        self.store, self.matching, self.woken = LogStore(str(directory / "logs")), Matching(), 0
        workers = world.fleet.operations.matching("", "")
        self.search = world.fleet.log_searches.begin(Question("needle", **asked), workers, clock.read(), self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def run_search(self) -> tuple[Any, list[messages.LogMatch]]:
        find = lambda text: (0, 1) if "needle" in text else None  # noqa: E731
        own = OwnSearch(self.store, self.matching, self.search, find, "tester")
        own.begin()
        wait_until(lambda: gevent.sleep(0.01) or self.search.parts[""].status != "asked", 20, "its end")
        return self.search.fresh[-1]


def test_the_manager_s_part_ends_after_its_bytes_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_search, "MAX_SCAN_BYTES", 100_000)
    own = Own(tmp_path)
    own.store.append("w1", 1, "out", 0, b"hay\n" * 100_000 + b"needle\n", AT)
    part, lines = own.run_search()
    assert part.status == "timeout" and "narrow it down" in part.reason
    assert len(lines) == 1 and part.bytes <= 200_000


def test_the_manager_s_part_ends_when_its_time_is_over(tmp_path: Path) -> None:
    own = Own(tmp_path, timeout_s=-2.5)
    own.store.append("w1", 1, "out", 0, b"hay\n" * 100_000, AT)
    assert own.run_search()[0].status == "timeout"


def test_what_the_manager_has_found_is_not_lost_for_a_host_that_does_not_answer(tmp_path: Path) -> None:
    own = Own(tmp_path, silent=True, timeout_s=-2.0)
    own.store.append("w1", 1, "out", 0, b"needle\n", AT)
    part, lines = own.run_search()
    assert own.search.parts["h2"].status == "asked" and own.woken
    assert (part.status, [line.text for line in lines]) == ("done", ["needle"])


def test_one_search_too_many_of_a_caller_is_said_in_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Own(tmp_path)
    own.store.append("w1", 1, "out", 0, b"needle\n", AT)

    def busy(*_: object) -> None:
        raise LimitExceeded("2 of your own searches are already in progress", "wait", status=429)

    monkeypatch.setattr(own.matching, "scan", busy)
    part, lines = own.run_search()
    assert (part.status, lines) == ("failed", []) and "in progress" in part.reason
