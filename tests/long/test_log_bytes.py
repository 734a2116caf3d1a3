"""A worker's output arrives unchanged and promptly, and is rendered readably."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.manager import REPOSITORY, own_environment
from tests.long.rig import Rig
from tests.waiting import wait_until

LIVE_S = 0.3
NEVER = {"policy": "never"}

BYTES = """
import os, random, sys
rng = random.Random(3)
data = b"text \\xff\\xfe\\x00\\x01 not utf-8 \\xc3\\n" + rng.randbytes(300_000) + b"\\r\\n\\r50%\\r60%\\n"
data += b"x" * 19_000_000 + b"\\n" + bytes(range(256)) * 40 + "zuletzt ünd ohne Ende".encode()
view = memoryview(data)
while view:
    view = view[os.write(1, view):]
"""
BAR = """
import sys, time
for number in range(36):
    sys.stdout.write("\\r%3d%% at %.6f" % (number, time.monotonic()))
    sys.stdout.flush()
    time.sleep(2.5 if number == 34 else 0.11)
sys.stdout.write("\\r100% done")
sys.stdout.flush()
time.sleep(600)
"""
# No flush anywhere: PYTHONUNBUFFERED=1 is what makes it live. Both streams, kept apart.
BOTH = """
import sys, time
for number in range(5):
    print("out", number); print("err", number, file=sys.stderr)
    time.sleep(0.3)
print("no end", end="")
time.sleep(600)
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    folder = Path(tempfile.mkdtemp(prefix="pgl"))
    python = [sys.executable, "-c"]
    workers: dict[str, dict[str, Any]] = {
        "bytes": {"command": [*python, BYTES], "restart": NEVER},
        "bar": {"command": [*python, BAR], "restart": NEVER, "stop_grace_s": 1},
        "both": {"command": [*python, BOTH], "stderr": "separate", "restart": NEVER, "stop_grace_s": 1},
        "buffered": {"command": [*python, BOTH], "env": {"PYTHONUNBUFFERED": ""}, "restart": NEVER, "stop_grace_s": 1},
    }
    try:
        with Rig(folder) as one:
            one.declare(workers)
            one.start_agent()
            yield one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Following(threading.Thread):
    """`follow=1` as in a browser or curl; records data with times."""

    def __init__(self, rig: Rig, worker_id: str) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", rig.manager.port, timeout=60)
        self._connection.request("GET", f"/api/remote-workers/{worker_id}/logs?follow=1")
        self._reply = self._connection.getresponse()
        self.pieces: list[tuple[float, str]] = []

    def run(self) -> None:
        while piece := self._reply.read1(65536):
            self.pieces.append((time.monotonic(), piece.decode()))

    @property
    def text(self) -> str:
        return "".join(piece for _, piece in self.pieces)


def test_a_progress_bar_arrives_live_and_is_shown_as_its_last_state(rig: Rig) -> None:
    wait_until(lambda: rig.stored_bytes("bar") > 0, 30, "the first state of the bar")
    follower = Following(rig, "bar")
    follower.start()
    wait_until(lambda: "100% done" in follower.text, 20, "its last state")
    late_s = [
        when - float(state.rpartition(" at ")[2])
        for when, piece in follower.pieces[1:]
        for state in piece.split("\r")[-1:]
        if " at " in state
    ]
    middle_ms, worst_ms = statistics.median(late_s) * 1000, max(late_s) * 1000
    print(f"\n{len(late_s)} states live: median {middle_ms:.0f} ms, worst {worst_ms:.0f} ms")
    assert len(late_s) > 10 and sorted(late_s)[int(0.95 * len(late_s))] <= LIVE_S  # a busy machine may miss one
    assert rig.manager.log_text("bar") == "100% done\n"
    (line,) = rig.manager.get("/api/remote-workers/bar/logs?format=json")["lines"]
    assert (line["text"], line["partial"]) == ("100% done", True)
    shown = subprocess.run(
        [sys.executable, "-m", "invoke", "logs", "bar"], cwd=REPOSITORY, capture_output=True, text=True, check=True,
        env=own_environment(rig.directory / "home") | {"PROCGUARD_MANAGER_URL": rig.manager.url}, timeout=60,
    )  # fmt: skip
    assert shown.stdout == "100% done\n"


def test_bytes_of_every_kind_survive_unchanged(rig: Rig) -> None:
    """Binary, invalid UTF-8, a line of 19 MB, no final newline: download and host's file are the same."""
    wait_until(lambda: rig.status("bytes").get("state") == "exited", 30, "its end")
    written = Path(rig.host_log("bytes")).read_bytes()
    wait_until(lambda: rig.stored_bytes("bytes") == len(written), 30, "all of it with the manager")
    assert len(written) > 19_300_000 and written.endswith(b"ohne Ende")
    assert hashlib.sha256(rig.download("bytes")).digest() == hashlib.sha256(written).digest()
    text = rig.manager.log_text("bytes")
    assert "line cut" in text and text.endswith("zuletzt ünd ohne Ende\n")


def test_python_jobs_log_live_by_default_and_stderr_is_kept_apart(rig: Rig) -> None:
    wait_until(lambda: "no end" in rig.manager.log_text("both"), 30, "its last words, while it runs")
    assert rig.status("both")["state"] == "running"
    assert rig.manager.log_text("both", "&stream=out").split("\n") == [*(f"out {n}" for n in range(5)), "no end", ""]
    assert rig.manager.log_text("both", "&stream=err").split("\n") == [*(f"err {n}" for n in range(5)), ""]
    assert rig.download("both", "&stream=err") == b"".join(b"err %d\n" % n for n in range(5))
    merged = [line.split() for line in rig.manager.log_text("both").splitlines()]
    order = [int(words[1]) for words in merged if words[0] in ("out", "err")]
    assert order == sorted(order), "both streams in the order of their times"


def test_the_workers_own_word_on_buffering_counts(rig: Rig) -> None:
    """Compared with its twin, which has printed everything by now."""
    wait_until(lambda: "no end" in rig.manager.log_text("both"), 30, "the twin's last words")
    text = rig.manager.log_text("buffered")
    assert "out" not in text and "err 0" in text, "Python buffers stdout, not stderr"
