"""Numbers from logs on the host: matches in new output, whatever a job prints."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from procguard import log_metrics
from remote_agent.logs import grep, number_reader
from remote_agent.logs.number_reader import MAX_NEW_BYTES, NumberReader, PrintedNumber, Text
from remote_agent.logs.number_readings import NumberReadings
from remote_agent.system import paths
from tests.agent_host import Host, running
from tests.fake_manager import FakeManager
from tests.rows import each
from tests.waiting import wait_until

DECLARED = {"loss": "loss ([^ ]+)", "step": "epoch ([0-9]+)/([0-9]+)"}
ON_HOST = log_metrics.for_hosts(DECLARED)


def row(directory: Path, over: bool = False, expressions: Any = ON_HOST) -> list[Any]:
    return ["w1", 1, str(directory), expressions, over]


class WrittenLog:
    """A reader over one log, which the test writes."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "1.log"
        self.path.touch()
        self.reader = NumberReader(grep.Watch())
        self.reader.take([row(directory)])
        self.wall = 1000.0
        self.reader.examine(self.wall)

    def printed(self, data: bytes, times: int = 1, after_s: float = 10.0) -> dict[str, Any]:
        """What is new, by name."""
        with open(self.path, "ab") as file:
            file.write(data)
        found: dict[str, Any] = {}
        for _ in range(times):
            self.wall += after_s
            found.update(self.reader.examine(self.wall).get("w1", [1, {}])[1])
        return found


PRINTED = [
    (b"loss 0.5\n", {"loss": 0.5}),
    (b"loss 0.5\nloss 0.25\nother\n", {"loss": 0.25}),  # the newest counts
    (b"loss 0.5.\n", {"loss": 0.5}),
    (b"loss 1e-3\r\nloss -2\r\n", {"loss": -2.0}),
    (b"\repoch 1/9 loss 0.9\repoch 2/9 loss 0.8\r", {"loss": 0.8, "step": 2.0}),  # a progress bar
    (b"\x1b[31mloss\x1b[0m 0.7\n", {"loss": 0.7}),
    (b"loss 0.5\nloss nan\nloss inf\nloss -Infinity\nloss 1_0\nloss x\n", {"loss": 0.5}),
    (b"loss " + b"9" * 100_000 + b"\n", {}),
    (b"loss 1e999\n", {}),
    (b"loss \xd9\xa3\n", {"loss": 3.0}),  # float() reads the digits of every script
    (b"\xff\xfeloss 4\n", {"loss": 4.0}),
    (b"a" * 5000 + b"loss 5\n", {}),  # beyond what is looked at of a line
    (b"", {}),
]


@each("case", PRINTED)
def test_the_newest_number_of_what_is_printed(case: tuple[bytes, dict[str, float]], tmp_path: Path) -> None:
    printed, values = case
    directory = tmp_path / str(abs(hash(printed)))
    directory.mkdir()
    found = WrittenLog(directory).printed(printed)
    assert {name: one[0] for name, one in found.items()} == values
    json.dumps(found, allow_nan=False)


def test_half_a_number_is_none_until_nothing_follows(tmp_path: Path) -> None:
    log = WrittenLog(tmp_path)
    assert log.printed(b"loss 0.1") == {}
    assert log.printed(b"25\nloss 0.")["loss"][0] == 0.125
    assert log.printed(b"", times=2)["loss"][0] == 0.0  # a prompt, or a stalled progress bar
    assert log.printed(b"75\n")["loss"][0] == 0.75


def test_progress_has_a_total_and_the_time_left_at_the_present_rate(tmp_path: Path) -> None:
    log = WrittenLog(tmp_path)
    assert log.printed(b"epoch 10/100\n")["step"][2:4] == [100.0, None]
    assert log.printed(b"epoch 20/100\n")["step"][3] == 80.0
    assert log.printed(b"epoch 1/100\n")["step"][3] is None, "it began again"
    assert log.printed(b"epoch 2/100\n")["step"][3] == 980.0
    assert log.printed(b"epoch 2/100\n") == {}, "nothing has changed"
    assert log.printed(b"epoch 3/0\n")["step"][2] == 0.0


def test_a_flood_is_looked_at_from_its_end_and_skipped_before(tmp_path: Path) -> None:
    log = WrittenLog(tmp_path)
    found = log.printed(b"epoch 1/2\n" + b"loss 1.5 and more\n" * (MAX_NEW_BYTES // 10))
    assert found == {"loss": [1.5, log.wall, None, None, ""]}
    assert log.printed(b"x" * (2 * MAX_NEW_BYTES)) == {} == log.printed(b"\n")
    assert log.printed(b"loss 2\n")["loss"][0] == 2.0
    assert len(Text(b"\n" * MAX_NEW_BYTES).lines()) <= number_reader.MAX_LINES


def test_an_attempt_has_its_own_numbers_and_an_earlier_log_is_read_from_its_end(tmp_path: Path) -> None:
    (tmp_path / "1.log").write_bytes(b"x\n" * MAX_NEW_BYTES + b"loss 3\n")
    os.utime(tmp_path / "1.log", (500.0, 500.0))
    reader = NumberReader(grep.Watch())
    reader.take([row(tmp_path)])
    assert reader.examine(1000.0) == {"w1": [1, {"loss": [3.0, 500.0, None, None, ""]}]}
    reader.take([["w1", 2, str(tmp_path), ON_HOST, False]])
    assert reader.examine(1001.0) == {}
    (tmp_path / "2.err").write_bytes(b"loss 4\n")
    assert reader.examine(1002.0)["w1"][1]["loss"][0] == 4.0
    reader.take([["w1", 2, str(tmp_path), ON_HOST, True]])
    assert not reader.done
    for _ in range(number_reader.QUIET_LOOKS):
        reader.examine(1003.0)
    assert reader.done


def test_an_expression_that_holds_on_is_given_up_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager refuses such an expression; an agent must survive one nevertheless."""
    monkeypatch.setattr(grep, "LINE_CPU_S", 0.02)
    watch = grep.Watch()
    watch.start()
    try:
        hostile, sane = PrintedNumber("(?:a+)+b"), PrintedNumber("loss ([0-9.]+)", "loss ")
        for _ in range(number_reader.STRIKES):
            text = Text(b"loss 7\n" + b"a" * 4000 + b"\n")
            hostile.examine(text, 1.0, watch)
            sane.examine(text, 1.0, watch)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    assert hostile.trouble == "too_long" and hostile.value is None
    assert (sane.value, sane.trouble) == (7.0, "")
    assert PrintedNumber("(").trouble == "too_long"


def test_the_process_may_be_killed_and_goes_when_nothing_is_left_to_read(tmp_path: Path) -> None:
    (tmp_path / "1.log").write_bytes(b"loss 1\n")
    readings = NumberReadings(sys.executable, lambda *_, **__: None)
    readings.update([row(tmp_path)])
    try:
        wait_until(lambda: [one.value for one in readings.of("w1", 1)] == [1.0], 30, "the first value")
        (pid,) = readers()
        os.kill(pid, 9)
        wait_until(lambda: readers() not in ([], [pid]), 30, "another process")
        with open(tmp_path / "1.log", "ab") as file:
            file.write(b"loss 2\n")
        wait_until(lambda: [one.value for one in readings.of("w1", 1)] == [2.0], 30, "the next value")
        assert readings.of("w1", 2) == []
        readings.update([row(tmp_path, over=True)])
        wait_until(lambda: readers() == [], 30, "no process")
        assert [one.value for one in readings.of("w1", 1)] == [2.0]
        readings.update([])
        assert readings.of("w1", 1) == []
    finally:
        readings.end()
    wait_until(lambda: readers() == [], 30, "no process")


def readers() -> list[int]:
    """Number readers that are this process's own children."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if int(stat[1]) == os.getpid() and stat[0] != "Z" and b"number_reader.py" in command:
            found.append(int(name))
    return found


def test_what_a_worker_prints_is_in_its_agents_heartbeats(host: Host, manager: FakeManager) -> None:
    """A real agent, runner and job; the agent is killed in between; without metrics nothing is added."""
    prints = "print(f'epoch {n}/2000 loss {1 / n}', end='\\r', flush=True)"
    job = f"import time\nfor n in range(1, 2000): {prints}; time.sleep(0.05)"
    manager.assign("w1", [sys.executable, "-c", job], metrics=DECLARED)
    manager.assign("w2", ["sleep", "600"])
    manager.assignments["w1"].metrics = ON_HOST
    host.start()
    running(manager)

    def step() -> float:
        found = {one["name"]: one for one in manager.report("w1").get("metrics") or ()}
        return float(found["step"]["value"]) if "step" in found else 0.0

    first = wait_until(step, 60, "a first number")
    wait_until(lambda: step() > first, 60, "it rises")
    (one,) = [one for one in manager.report("w1")["metrics"] if one["name"] == "step"]
    assert one["total"] == 2000.0 and abs(one["at"] - time.time()) < 60 and one["trouble"] == ""
    assert "metrics" not in manager.report("w2")
    host.kill_agent()
    before = step()
    host.start()
    wait_until(lambda: step() > before, 60, "it goes on with another agent")
    assert paths.read_json(paths.spec_file(paths.worker_dir(host.directory, "w1")))["metrics"] == ON_HOST  # type: ignore[index, call-overload]
