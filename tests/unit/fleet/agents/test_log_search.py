"""Searches in the logs of the whole fleet: a host's matches, their limits, and the manager's merged result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from procguard.errors import LimitExceeded, NotFound
from procguard.fleet.agents import log_search as searches
from procguard.fleet.agents.log_search import Question
from remote_agent.logs import grep
from remote_agent.logs import search as log_search
from remote_agent.logs.search import LogSearcher, run_search
from remote_agent.protocol import messages
from remote_agent.transport.client import AgentCredentials
from remote_agent.transport.outcomes import LinkDown, Reply
from scripts.swarm import Swarm
from tests.server_process import ROOT, RunningServer
from tests.unit.fleet_world import World
from tests.waiting import wait_until

RUNS_AWAY = "(a+)+$"


# ------------------------------------------------------------------------------------------------ on a host


class Logs:
    """Workers' directories of attempts, as they lie on a host."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, worker: str, attempt: int, data: bytes, stream: str = "log", at: float | None = None) -> Path:
        path = self._directory / worker / f"{attempt}.{stream}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        if at is not None:
            os.utime(path, (at, at))
        return path

    def find(self, pattern: str, **asked: Any) -> messages.LogSearchResult:
        workers = sorted(os.listdir(self._directory))
        search = messages.LogSearch("s-1", pattern, workers=workers, **asked)
        directories = [[one, str(self._directory / one)] for one in workers]
        return run_search(sys.executable, search, directories, threading.Event())


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def texts(result: messages.LogSearchResult) -> list[str]:
    return [line.text for line in result.lines]


def test_the_newest_lines_come_first_from_the_newest_attempt_on(logs: Logs) -> None:
    """Matches are usually near the end; each line has its position."""
    logs.write("w1", 9, b"error 1\nfine\nerror 2\n", at=1000.0)
    logs.write("w1", 10, b"error 3\nerror 4, cut off", at=2000.0)
    logs.write("w1", 10, b"error of the other stream\n", stream="err", at=1500.0)
    result = logs.find("error [0-9]")
    assert texts(result) == ["error 4, cut off", "error 3", "error 2", "error 1"]
    assert [(line.attempt, line.stream, line.offset) for line in result.lines] == [
        (10, "out", 8), (10, "out", 0), (9, "out", 13), (9, "out", 0),
    ]  # fmt: skip
    first = result.lines[0]
    assert first.text[first.begin : first.end] == "error 4"
    assert (result.status, result.found, result.bytes) == ("done", 4, 71)
    assert texts(logs.find("error", stream="err")) == ["error of the other stream"]


@pytest.mark.parametrize(
    ("pattern", "asked", "found"),
    [
        ("loss=nan", {"regex": False}, ["step 2 loss=nan (bad)"]),
        ("(bad)", {"regex": False}, ["step 2 loss=nan (bad)"]),
        ("(bad)", {}, ["step 3 bad BAD", "step 2 loss=nan (bad)"]),
        ("BAD", {"regex": False}, ["step 3 bad BAD"]),
        ("BAD", {"regex": False, "ignore_case": True}, ["step 3 bad BAD", "step 2 loss=nan (bad)"]),
        ("step [12]", {}, ["step 2 loss=nan (bad)", "step 1"]),
        ("^step", {"max_lines": 2}, ["step 3 bad BAD", "step 2 loss=nan (bad)"]),
        ("训练开始", {"regex": False}, ["训练开始"]),
        ("red alert", {"regex": False}, ["a red alert"]),
        ("red alert", {}, ["a red alert"]),
        ("loading 1", {"regex": False}, ["loading 100%"]),
        ("loading 5", {"regex": False}, []),
    ],
)
def test_what_matches(logs: Logs, pattern: str, asked: dict[str, Any], found: list[str]) -> None:
    """Literal text or an expression; colours and overwritten progress bars are not part of a line."""
    logs.write(
        "w1",
        1,
        "训练开始\nloading 50%\rloading 100%\na \x1b[1;31mred\x1b[0m alert\n\nstep 1\nstep 2 loss=nan (bad)\n"
        "step 3 bad BAD\n".encode(),
    )
    assert texts(logs.find(pattern, **asked)) == found


def test_bytes_that_are_no_text_and_lines_without_end_are_searched_all_the_same(logs: Logs) -> None:
    """A 19 MB line, invalid UTF-8: the line is found by its beginning, and shown in part."""
    logs.write("w1", 1, b"before\n\xff\xfe needle \xc3\n" + b"needle " + b"x" * 19_000_000 + b"\nafter needle\n")
    result = logs.find("needle", regex=False)
    assert [text[:12] for text in texts(result)] == ["after needle", "needle xxxxx", "\ufffd\ufffd needle \ufffd"]
    assert all(len(text) <= 1010 for text in texts(result))
    assert [line.text[line.begin : line.end] for line in result.lines] == ["needle"] * 3


def test_a_match_far_inside_a_long_line_is_shown_with_what_stands_around_it(logs: Logs) -> None:
    logs.write("w1", 1, b"x" * 5000 + b"needle" + b"y" * 5000 + b"\n")
    line = logs.find("needle", regex=False).lines[0]
    assert line.text[line.begin : line.end] == "needle"
    assert line.text.startswith("…xxx") and line.text.endswith("yyy…") and len(line.text) == 1002


def test_every_line_is_found_once_across_the_blocks_in_which_files_are_read(logs: Logs) -> None:
    """3 MB of numbered lines, read a mebibyte at a time."""
    logs.write("w1", 1, b"".join(b"line %d\n" % number for number in range(250_000)))
    result = logs.find(r"line \d*77777$", max_lines=5000)
    assert texts(result) == ["line 177777", "line 77777"]
    assert logs.find("line ", regex=False, max_lines=10).found == 10, "enough is enough"


def test_only_what_may_lie_in_the_time_asked_for_is_reported(logs: Logs) -> None:
    """By the time index beside a log; bytes written before the last sample have the time of that sample."""
    path = logs.write("w1", 1, b"one\ntwo\nthree\n", at=3000.0)
    points = ((4, 1000.0), (8, 2000.0), (14, 3000.0))
    Path(f"{path}.idx").write_bytes(b"".join(log_search_point(*point) for point in points))
    logs.write("w2", 1, b"one of another time\n", at=500.0)
    assert [line.at for line in logs.find("one|two|three").lines] == [3000.0, 2000.0, 1000.0, 500.0]
    assert texts(logs.find("one|two|three", since=1500.0)) == ["three", "two"]
    assert texts(logs.find("one|two|three", since=600.0, until=900.0)) == ["one"], "written between 0 and 1000"


def log_search_point(end: int, at: float) -> bytes:
    import struct

    return struct.pack("<Qd", end, at)


@pytest.mark.parametrize("pattern", [RUNS_AWAY, "a.*a.*a.*b"])
def test_an_expression_that_runs_away_on_a_line_passes_it_over_and_says_so(logs: Logs, pattern: str) -> None:
    """The rest of the log is searched, and its matches count."""
    logs.write("w1", 1, b"aaab\n" + b"a" * 1500 + b"!\n" + b"aaa aaab\n" + b"aaaa\n")
    result = logs.find(pattern, timeout_s=8.0)
    assert result.status == "failed" and result.elapsed_s < 8.0
    assert result.reason.startswith("the expression took too long on this host: 1 line skipped")
    assert result.lines and not any(len(line) > 100 for line in texts(result))


def test_many_lines_that_an_expression_runs_away_on_end_at_the_deadline(logs: Logs) -> None:
    logs.write("w1", 1, (b"a" * 60 + b"!\n") * 1000)
    began = time.monotonic()
    result = logs.find(RUNS_AWAY, timeout_s=1.0)
    assert result.status in ("failed", "timeout") and result.reason
    assert time.monotonic() - began < 5.0
    assert not [one for one in processes() if "logs/grep.py" in one]


def processes() -> list[str]:
    """Command lines of this test's children."""
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                if f"PPid:\t{os.getpid()}\n" in status:
                    found.append(Path(f"/proc/{pid}/cmdline").read_text())
            except OSError:
                pass
    return found


def test_an_expression_that_this_python_does_not_take_is_said_so(logs: Logs) -> None:
    """The manager's Python may be newer than the host's."""
    logs.write("w1", 1, b"a\n")
    result = logs.find("(a")
    assert result.status == "failed"
    assert "does not take it" in result.reason


def test_one_loud_worker_does_not_starve_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its turn, at first a small block: the time may be up before a large one of the loud one is through. By a
    clock that moves with each line, for the search takes what processor others leave."""
    now, said = [0.0], []
    monkeypatch.setattr(grep, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    logs = Logs(tmp_path)
    logs.write("loud", 1, b"nothing here\n" * 100_000)
    logs.write("quiet", 1, b"needle\n")
    search = grep.GrepSearch({"pattern": "needle", "timeout_s": 20_000.0}, said.append)
    usual = search._match

    def slowly(line: bytes) -> Any:
        now[0] += 1.0
        return usual(line)

    monkeypatch.setattr(search, "_match", slowly)
    directories = [[one, str(tmp_path / one)] for one in ("loud", "quiet")]
    assert not search.run(grep.files_of(directories, "", float("-inf"))), "all of it was looked at in time"
    assert [one[5] for one in said if isinstance(one, list)] == ["needle"]


class Answers:
    """The connection that carries responses."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.failures = 0

    def request(self, _method: str, path: str, body: bytes) -> Reply:
        if self.failures:
            self.failures -= 1
            raise LinkDown("no network")
        self.posted.append((path, json.loads(body)))
        return Reply(200)

    def disconnect(self) -> None:
        pass

    close = disconnect


def test_a_search_sent_twice_is_answered_once_and_lost_answers_are_sent_again(logs: Logs, tmp_path: Path) -> None:
    logs.write("w1", 1, b"needle\n")
    answers = Answers()
    answers.failures = 1
    searcher = LogSearcher(AgentCredentials("h1"), sys.executable, lambda: answers)  # type: ignore[arg-type,return-value]
    search = messages.LogSearch("s-1", "needle", workers=["w1", "not-here"])
    for _ in range(3):
        searcher.take([search], lambda worker_id: str(tmp_path / worker_id) if worker_id == "w1" else None)
    wait_until(lambda: len(answers.posted) == 1, 10, "the answer")
    searcher.take([messages.LogSearch("s-2", "nothing", workers=["w1"])], lambda _: str(tmp_path / "w1"))
    wait_until(lambda: len(answers.posted) == 2, 10, "the second")
    (path, first), (_, second) = answers.posted
    assert path == "/api/agents/h1/searches"
    assert [line["text"] for line in first["lines"]] == ["needle"]
    assert (second["search_id"], second["lines"], second["status"]) == ("s-2", [], "done")
    searcher.end()


def test_more_searches_than_it_can_do_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A faulty manager cannot exhaust the agent's memory."""
    held, begun = threading.Event(), []

    def slow(_python: str, search: messages.LogSearch, *_: object) -> messages.LogSearchResult:
        begun.append(search.search_id)
        held.wait(10)
        return messages.LogSearchResult(search.search_id)

    monkeypatch.setattr(log_search, "run_search", slow)
    answers = Answers()
    searcher = LogSearcher(AgentCredentials("h1"), sys.executable, lambda: answers)  # type: ignore[arg-type,return-value]
    searcher.take([messages.LogSearch(f"s-{n}", "x") for n in range(50)], lambda _: None)
    held.set()
    wait_until(lambda: len(answers.posted) == log_search.MAX_WAITING, 10, "those that were taken")
    assert len(begun) == log_search.MAX_WAITING
    searcher.end()


# ------------------------------------------------------------------------------------------- in the manager


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.deploy({f"h{n}": {f"w{n}": {"command": "sleep 9"}} for n in range(1, 5)})
    for agent in ("h1", "h2"):
        made.beat(agent)
    return made


def ask(world: World, wakes: list[str] | None = None, **asked: Any) -> searches.Search:
    workers = world.fleet.operations.matching("", "")
    question = Question("needle", **asked)
    return world.fleet.log_searches.begin(question, workers, world.now, lambda: (wakes or []).append("woken"))


def reported(world: World, agent_id: str) -> list[str]:
    reply = world.fleet.agents.replies.news_for_agent(
        agent_id, world.fleet.agents.assignments.rev(agent_id), 0, world.now
    )
    return [search.search_id for search in reply.searches] if reply is not None else []


def test_each_host_is_reported_once_and_who_cannot_be_asked_is_named_with_its_reason(world: World) -> None:
    woken: list[str] = []
    world.fleet.state.bus.news.subscribe(woken.append)
    search = ask(world)
    assert woken == ["h1", "h2"]
    assert {part.host: part.status for part, _ in search.fresh} == {"h3": "away", "h4": "away"}
    assert reported(world, "h1") == [search.search_id]
    assert reported(world, "h1") == []
    assert reported(world, "h3") == []
    world.pass_time(searches.RESEND_S + 0.1)
    assert reported(world, "h1") == [search.search_id], "the answer that told it may have been lost"


def test_an_answer_counts_once_and_only_for_workers_that_were_asked_about(world: World) -> None:
    search = ask(world)
    search.fresh.clear()
    own = messages.LogMatch("w1", 1, "out", 0, "needle")
    foreign = messages.LogMatch("w2", 1, "out", 0, "needle of another host")
    result = messages.LogSearchResult(search.search_id, lines=[own, foreign], found=2, bytes=100)
    for _ in range(2):
        world.fleet.log_searches.take("h1", result)
    assert [(part.host, lines) for part, lines in search.fresh] == [("h1", [own])]
    assert search.open
    with pytest.raises(NotFound):
        world.fleet.log_searches.take("h4x", result)
    world.fleet.log_searches.end(search)
    with pytest.raises(NotFound):
        world.fleet.log_searches.take("h2", result)


def test_who_has_not_answered_in_time_is_named(world: World) -> None:
    search = ask(world, timeout_s=2.0)
    world.fleet.log_searches.take("h2", messages.LogSearchResult(search.search_id))
    search.give_up()
    assert {part.host: part.status for part, _ in search.fresh}["h1"] == "no_answer"
    assert not search.open
    world.pass_time(search.ends_at - world.now.monotonic + 1)
    assert reported(world, "h1") == []


def test_so_many_searches_at_once_and_no_more(world: World) -> None:
    running = [ask(world) for _ in range(searches.MAX_AT_ONCE)]
    with pytest.raises(LimitExceeded):
        ask(world)
    world.fleet.log_searches.end(running[0])
    ask(world)


# --------------------------------------------------------------------------------------------- both together


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    yield running
    running.close()
    assert "Traceback" not in running.log()


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "bad_request"),
        ("text=a&regex=b", 400, "bad_request"),
        ("regex=(a", 400, "bad_expression"),
        ("text=a&stream=in", 400, "bad_request"),
        ("text=a&since=yesterday", 400, "bad_request"),
        ("text=a&limit=0", 400, "bad_request"),
        ("text=a&limit=5001", 400, "bad_request"),
        ("text=a&format=xml", 400, "bad_request"),
        ("text=a&select=state=", 400, "bad_selector"),
        (f"text={'a' * 513}", 400, "bad_request"),
    ],
)
def test_a_wrong_question_is_refused(server: RunningServer, query: str, status: int, code: str) -> None:
    answer = server.ask("GET", f"/api/log-search?{query}")
    assert (answer.status, answer.error_code) == (status, code)


def test_only_operators_ask_and_only_the_agent_itself_answers(server: RunningServer) -> None:
    secret = server.deploy("h9", "w9")
    assert server.ask("GET", "/api/log-search?text=a", secret=secret).status == 403
    assert server.ask("GET", "/api/log-search?text=a", secret="wrong").status == 401
    assert server.ask("POST", "/api/log-search?text=a").status == 405
    answer = {"search_id": "s-1", "lines": []}
    path = "/api/agents/h9/searches"
    assert server.ask("POST", path, answer).status == 403, "an operator is no agent"
    assert server.ask("POST", path, answer, secret=server.deploy("h8", "w8")).status == 403
    assert server.ask("POST", path, answer, secret=secret).status == 404, "no request is waiting"
    traversal = {"worker_id": "w9", "attempt": 1, "stream": "../../x", "offset": 0, "text": ""}
    assert server.ask("POST", path, {"search_id": "s-1", "lines": [traversal]}, secret=secret).status == 400


def test_no_worker_matches_is_an_answer_too(server: RunningServer) -> None:
    found = server.ask("GET", "/api/log-search?text=a&select=nobody").json
    assert (found["hosts_asked"], found["lines"], found["complete"]) == (0, [], True)


@pytest.mark.slow
def test_a_launcher_s_log_is_found_with_the_times_that_the_manager_knows(server: RunningServer, tmp_path: Path) -> None:
    """From `invoke search` to a real agent and back: the host searches, the manager merges."""
    job = "import time; print('before'); print('needle 1 <b>'); time.sleep(600)"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PROCGUARD_HOME": str(tmp_path / "home"),
        "PROCGUARD_MANAGER_URL": f"http://127.0.0.1:{server.port}",
    }
    words = [sys.executable, "-m", "procguard.worker_launcher", "--worker-id", "seeker"]
    words += ["--manager-url", environment["PROCGUARD_MANAGER_URL"], "--command", f'{sys.executable} -uc "{job}"']
    launcher = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        path = "/api/remote-workers/seeker/logs"
        wait_until(lambda: b"needle 1" in server.ask("GET", path).body, 20, "its log at the manager")
        found = server.ask("GET", "/api/log-search?regex=needle%20(.)&select=seeker", timeout_s=30).json
        assert [(line["worker_id"], line["text"]) for line in found["lines"]] == [("seeker", "needle 1 <b>")]
        stored = server.ask("GET", f"{path}?format=json").json["lines"]
        assert found["lines"][0]["at"] == pytest.approx(stored[-1]["at"], abs=0.001)
        assert found["complete"] and found["hosts"][0]["status"] == "done"

        task = [sys.executable, "-m", "procguard", "search", "needle", "--select", "seeker"]
        said = subprocess.run(task, env=environment, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        assert said.stdout.endswith("seeker: needle 1 <b>\n")
        assert "1 of 1 matching lines, 1 of 1 hosts" in said.stderr
    finally:
        launcher.send_signal(signal.SIGINT)
        launcher.wait(20)


@pytest.mark.slow
def test_simulated_hosts_answer_and_the_newest_lines_are_kept(server: RunningServer) -> None:
    with Swarm(f"http://127.0.0.1:{server.port}", 5, 4, prefix="many") as swarm:
        swarm.wait_running(20)
        found = server.ask("GET", "/api/log-search?text=loss&select=many-*&limit=7", timeout_s=30).json
        assert (found["hosts_answered"], found["found"], len(found["lines"])) == (5, 20, 7)
        times = [line["at"] for line in found["lines"]]
        assert times == sorted(times, reverse=True)
        server.deploy("h9", "w9")
        pieces = server.ask("GET", "/api/log-search?text=loss&select=many-*|w9&format=jsonl", timeout_s=30)
        said = [json.loads(line) for line in pieces.body.splitlines()]
        assert [said[0]["t"], said[-1]["t"], len(said)] == ["begin", "end", 8]
        assert {one["status"] for one in said if one["t"] == "host"} == {"done", "away"}
        assert not said[-1]["complete"]
