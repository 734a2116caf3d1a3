"""Logs after a takeover: the new leader stores new bytes, fetches bytes on demand, and marks bytes that are lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.client.client import Client
from procguard.portal.logs import absent
from procguard.portal.logs.fetch import AT_ONCE, LogFetcher
from procguard.portal.logs.follow import Follower
from procguard.portal.logs.query import LogQuery, parse_resume
from procguard.portal.logs.reader import holes
from procguard.portal.logs.store import LogStore
from remote_agent.agent import settings
from remote_agent.logs import ranges
from remote_agent.logs.time_index import TimeIndex
from remote_agent.logs.watcher import LogFile, ShippedWorker, WorkerLogs
from remote_agent.protocol.messages import LogRange, secret_sha256
from remote_agent.system import paths
from tests.agent_host import Host
from tests.ports import free_port
from tests.server_process import RunningServer
from tests.waiting import wait_until

PRINTER = "import itertools,time\nfor i in itertools.count(): print('line', i, flush=True); time.sleep(0.01)"


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    made = LogStore(str(tmp_path / "logs"), sync=lambda _: None, in_thread=lambda work, *given: work(*given))
    made.hosts_hold = lambda: True
    return made


def texts(store: LogStore) -> list[str]:
    return [line.text for line in store.tail("w1")]


def test_a_new_leader_takes_what_comes_and_marks_what_only_the_host_has(store: LogStore) -> None:
    assert store.append("w1", 1, "out", 5_000, b"later\n", 20.0) == 5_006
    marker, line = store.tail("w1")
    assert marker.marker and "5,000 bytes of this log are not on the manager's disk" in marker.text
    assert (line.text, line.offset, store.kept("w1", 1, "out", 5_006)) == ("later", 5_000, 0)
    assert b"5,000 bytes of this log are not on the manager's disk" in b"".join(store.raw("w1", None, None))


def test_what_is_filled_in_reads_as_if_it_had_come_in_its_time(store: LogStore) -> None:
    whole = b"".join(b"line %d\n" % number for number in range(1_000))
    store.append("w1", 1, "out", 6_003, whole[6_003:], 20.0)  # in the middle of a line
    store.fill("w1", 1, "out", 3_000, whole[3_000:6_003])
    assert store.absent("w1") == [(1, "out", 0, 3_000)]
    store.fill("w1", 1, "out", 0, whole[:3_500])
    assert b"".join(store.raw("w1", None, None)) == whole and store.absent("w1") == []
    assert store.kept("w1", 1, "out", len(whole)) == len(whole)


def test_what_is_here_already_is_never_written_over(store: LogStore) -> None:
    store.append("w1", 1, "out", 4, b"mine\n", 20.0)
    store.fill("w1", 1, "out", 0, b"old\nXXXXXXXX")
    assert b"".join(store.raw("w1", None, None)) == b"old\nmine\n"


def test_what_the_host_sends_once_more_fills_what_was_absent(store: LogStore) -> None:
    """A restarted agent begins at its recorded offset."""
    store.append("w1", 1, "out", 4, b"two\n", 20.0)
    assert store.append("w1", 1, "out", 0, b"one\ntwo\nthree\n", 21.0) == 14
    assert texts(store) == ["one", "two", "three"]


def test_what_the_host_has_no_more_is_marked_with_its_size(store: LogStore) -> None:
    store.append("w1", 1, "out", 5_000, b"later\n", 20.0)
    store.lose("w1", 1, "out", 0, 4_990, 21.0)
    store.fill("w1", 1, "out", 4_990, b"the end..\n")
    assert texts(store)[1:] == ["the end..", "later"] and "4,990 bytes of this log were dropped" in texts(store)[0]


def test_an_ended_attempt_is_known_from_its_host(store: LogStore) -> None:
    """Nothing of it is sent any more."""
    store.announce("w1", 1, "out", 8, 10.0)
    store.announce("w1", 1, "out", 4, 10.0)  # told twice, or out of turn
    assert store.absent("w1") == [(1, "out", 0, 8)]
    store.fill("w1", 1, "out", 0, b"one\ntwo\n")
    assert [(line.text, line.at) for line in store.tail("w1")] == [("one", 10.0), ("two", 10.0)]


@pytest.mark.parametrize(
    "text", ["", "x", "1", "1 2 3", "-1 5", "9 4", "1 2\n\0\0\0", "5 99999999999999999999", "\xff"]
)
def test_a_list_that_cannot_be_right_leaves_out_what_it_cannot_mean(tmp_path: Path, text: str) -> None:
    base = str(tmp_path / "1.out")
    Path(base + ".absent").write_bytes(text.encode("latin-1"))
    assert all(0 <= start < end <= 100 for start, end in absent.read(base, 100))


@hypothesis.settings(deadline=None)  # each move is made durable
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 30)), max_size=12))
def test_absent_bytes_are_those_that_were_neither_sent_nor_lost(moves: list[tuple[bool, int, int]]) -> None:
    """Against a set of bytes, one by one."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        base = os.path.join(folder, "1.out")
        absent.add(base, 0, 50)
        absent.add(base, 70, 80)
        left = {*range(50), *range(70, 80)}
        for gone, start, length in moves:
            absent.remove(base, 80, start, start + length)
            left -= set(range(start, start + length))
            if gone:
                with open(base + ".gaps", "a", encoding="ascii") as file:
                    file.write(f"{start} {min(80, start + length)} 1.0\n")
        found = absent.read(base, 80)
        assert {byte for start, end in found for byte in range(start, end)} == left
        shown = holes(base, 80)
        assert all(one.end <= other.start for one, other in zip(shown, shown[1:], strict=False))
        assert {byte for one in shown if one.at is None for byte in range(one.start, one.end)} <= left


WHOLE = b"".join(b"line %d\n" % number for number in range(100))


def followed(store: LogStore, resume: str, *runs: tuple[int, bytes]) -> list[str]:
    """The complete lines that a follower gets after `resume`."""
    follower = Follower("w1", LogQuery(as_json=True, resume=parse_resume(resume)), None)
    shown = follower.begin([], store)
    for offset, data in runs:
        store.append("w1", 1, "out", offset, data, 20.0)
        follower.take(1, "out", offset, data, 20.0)
        shown += follower.next_chunk()
    lines = [json.loads(line) for line in shown.splitlines()]
    return [line["text"] for line in lines if not line.get("partial")]


def test_a_follower_that_came_before_its_agent_is_shown_what_lies_between(store: LogStore) -> None:
    """The new leader had nothing of the log yet; its first bytes begin in the middle of a line."""
    store.fetch = lambda *_, **__: store.fill("w1", 1, "out", 0, WHOLE[:403])
    assert followed(store, "1.out.70", (403, WHOLE[403:500]), (500, WHOLE[500:])) == WHOLE[70:].decode().splitlines()


class _ComingHost:
    """Its agent's first heartbeat comes after `rounds` rounds; then it has all requested bytes."""

    has_hosts, done = True, True

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.asked: list[tuple[int, int]] = []

    def is_awaited(self, _worker_id: str) -> bool:
        self.rounds -= 1
        return self.rounds >= 0

    def ask(self, *asked: Any) -> _ComingHost | None:
        if self.rounds >= 0:
            return None
        _worker_id, _attempt, _stream, offset, length, wake = asked
        self.asked.append((offset, length))
        wake()
        return self

    def end(self, _question: object) -> None:
        pass


@pytest.mark.parametrize(("await_host", "asked"), [(True, [(0, 0), (0, 5_000)]), (False, [])])
def test_who_followed_at_the_leader_before_waits_for_the_host(
    store: LogStore, await_host: bool, asked: list[tuple[int, int]]
) -> None:
    """It came before the agent's first heartbeat; a plain reader is shown the marker at once."""
    store.append("w1", 1, "out", 5_000, b"later\n", 20.0)
    host = _ComingHost(rounds=3)
    LogFetcher(host, store).complete("w1", 1, "out", await_host=await_host)  # type: ignore[arg-type]
    assert host.asked == asked


def test_who_waits_for_a_host_takes_no_turn_from_others(store: LogStore) -> None:
    """Viewers that follow the logs of an absent host do not turn other readers' bytes into markers."""
    store.append("w1", 1, "out", 5_000, b"later\n", 20.0)
    absent_host = _ComingHost(rounds=10**6)
    fetcher = LogFetcher(absent_host, store)  # type: ignore[arg-type]
    waiting = [gevent.spawn(fetcher.complete, "w1", 1, "out", await_host=True) for _ in range(AT_ONCE + 1)]
    gevent.sleep(0)
    absent_host.rounds = -1
    fetcher.complete("w1", 1, "out")
    assert absent_host.asked == [(0, 0), (0, 5_000)]
    gevent.killall(waiting)


def test_a_follower_sees_the_size_of_what_nobody_has(store: LogStore) -> None:
    marker, *lines = followed(store, "1.out.70", (408, WHOLE[408:]))
    assert "408 bytes of this log" in marker and lines == WHOLE[408:].decode().splitlines()


# ------------------------------------------------------------------------------------------------- on the host


def files_of(tmp_path: Path, **logs: bytes) -> WorkerLogs:
    worker = WorkerLogs(ShippedWorker("w1", str(tmp_path)))
    for name, data in logs.items():
        path = tmp_path / f"{name}.log"
        path.write_bytes(data)
        number = int(name.removeprefix("a"))
        file = LogFile(number, "out", str(path), TimeIndex(str(path)), acked=len(data), size=len(data))
        worker.files[file.key] = file
    return worker


def test_a_host_sends_what_it_has_of_a_range_and_says_what_is_gone(tmp_path: Path) -> None:
    worker = files_of(tmp_path, a1=b"0123456789")
    worker.files["1.out"].gone = 4
    found = list(ranges.posts(worker, LogRange("g-1", "w1", 1, "out", 2, 20)))
    assert [(one.offset, one.data, one.gone_to, one.last) for one in found] == [
        (2, b"", 4, False),
        (4, b"456789", 0, False),
        (10, b"", 22, True),
    ]


def test_a_host_says_how_much_of_each_file_was_acknowledged(tmp_path: Path) -> None:
    worker = files_of(tmp_path, a1=b"0123456789", a2=b"01234", a3=b"0")
    worker.files["2.out"].acked, worker.files["3.out"].acked = 3, None
    found = list(ranges.posts(worker, LogRange("g-1", "w1")))
    assert [(one.attempt, one.offset, one.last) for one in found] == [(1, 10, False), (2, 3, True)]


@pytest.mark.parametrize(
    "asked",
    [
        LogRange("g-1", "w1", 7, "out", 0, 10),
        LogRange("g-1", "w1", 1, "", 0, 10),
        LogRange("g-1", "w1", 1, "out", -5, 10),
        LogRange("g-1", "w1", 1, "out", 0, -10),
        LogRange("g-1", "w1", 1, "out", 2**62, 2**62),
        LogRange("g-1", "w1", 1, "../../etc/passwd", 0, 10),
    ],
)
def test_whatever_is_asked_for_has_an_end(tmp_path: Path, asked: LogRange) -> None:
    found = list(ranges.posts(files_of(tmp_path, a1=b"0123456789"), asked))
    assert len(found) <= 3 and found[-1].last and all(one.offset >= 0 for one in found)
    assert sum(len(one.data) for one in found) <= 10


# -------------------------------------------------------------------------------------- a takeover, with real parts


@pytest.fixture
def two_ports() -> Iterator[list[int]]:
    yield [free_port(), free_port()]


def agent_of(server: RunningServer, tmp_path: Path, urls: list[str]) -> Host:
    answer = server.ask("POST", "/api/deployments", {"hosts": [{"host": "h1"}], "check": True}).json
    host = object.__new__(Host)
    home = str(tmp_path / "home")
    host.python, host.agent = sys.executable, None
    host.directory = paths.agent_dir(home, answer["fleet_id"], "h1")
    os.makedirs(host.directory)
    host.runtime_dir = paths.choose_runtime_dir(home, answer["fleet_id"], "h1")
    own = settings.AgentSettings(
        answer["fleet_id"],
        "h1",
        "h1",
        urls,
        host.runtime_dir,
        "secret-of-h1",
        answer["hosts"]["h1"]["proof_key"],
        python=host.python,
    )
    settings.save(host.directory, own)
    return host


@pytest.mark.slow
def test_a_log_has_no_unmarked_gap_after_the_leaders_disk_is_lost(tmp_path: Path, two_ports: list[int]) -> None:
    """Two real managers with one state, a real agent that knows only the first one's address, and a worker that
    prints numbers. The first is killed and its logs are lost. At the second every line is there once: of the attempt
    that ran, of the one that had ended, and of a log that was followed."""
    urls = [f"http://127.0.0.1:{port}" for port in two_ports]
    managers = f"test.managers={'+'.join(urls)}"
    (tmp_path / "a").mkdir()
    first = RunningServer(tmp_path / "a", f"web.port={two_ports[0]}", managers, "test.term=28000000")
    spec = {"command": [sys.executable, "-c", PRINTER], "stop_grace_s": 0.5}
    declared = {"hosts": [{"host": "h1", "ssh": {"hostname": "h1"}, "workers": [{"worker_id": "w1", "spec": spec}]}]}
    second: RunningServer | None = None
    host: Host | None = None
    try:
        assert first.ask("POST", "/api/deployments", declared).status == 200
        digest = {"secret_sha256": secret_sha256("secret-of-h1")}
        assert first.ask("PUT", "/api/agents/h1/credentials", digest).status == 200
        host = agent_of(first, tmp_path, urls[:1])
        host.start()
        client = Client(urls)
        wait_until(lambda: len(client.log_lines("w1", tail=1000)) > 50, 30, "lines of the first attempt")
        client.command("w1", "restart")
        wait_until(lambda: len(client.log_lines("w1", tail=1000, attempt=2)) > 50, 30, "lines of the second attempt")
        before = [(line["attempt"], line["text"]) for line in client.log_lines("w1", tail=10_000)]
        following = client.follow_log_lines("w1", tail=5)
        seen = [next(following) for _ in range(20)]

        first.process.kill()
        first.process.wait()
        shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("logs", "*.log", "*.lock"))
        second = RunningServer(tmp_path / "b", f"web.port={two_ports[1]}", managers, "test.term=28000001")
        wait_until(lambda: client.log_lines("w1", tail=1, attempt=2), 30, "the agent at the second one")

        seen += [next(following) for _ in range(200)]
        numbers = [int(line["text"].split()[1]) for line in seen]
        assert numbers == list(range(numbers[0], numbers[0] + 220)), "a followed log"

        after = [(line["attempt"], line["text"]) for line in client.log_lines("w1", tail=10_000)]
        assert after[: len(before)] == before
        text = second.ask("GET", "/api/remote-workers/w1/logs?download=1&attempt=1").body.decode()
        assert re.findall(r"line (\d+)", text) == [str(number) for number in range(text.count("line"))]
        assert "procguard" not in text
    finally:
        for one in (first, second):
            if one is not None and one.process.poll() is None:
                one.close()
        if host is not None:
            host.end()


def test_bytes_that_were_not_asked_for_are_refused(tmp_path: Path) -> None:
    """Arbitrary parts of a log from a hostile agent."""
    (tmp_path / "a").mkdir()
    server = RunningServer(tmp_path / "a", "test.managers=http://127.0.0.1:1", "test.term=28000000")
    try:
        secret = server.deploy("h1", "w1")
        path = "/api/workers/w1/logs?attempt=1&stream=out&offset=9&fill=g-000000000000"
        for more, body in (("", b"x" * 9), ("&gap=1&end=99", b""), ("", b""), ("&last=1", b"")):
            answer = server.ask("POST", path + more, body, secret=secret)
            assert (answer.status, answer.error_code, answer.json["term"]) == (409, "no_range", 28_000_000)
        said: Any = server.ask("POST", "/api/workers/w1/logs?attempt=1&offset=5", b"later", secret=secret).json
        assert said == {"acked": 10, "kept": 0, "term": 28_000_000}
    finally:
        server.close()
