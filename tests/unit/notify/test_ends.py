"""A real manager, launchers and a webhook: targets, delay and contents of messages when a worker ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import sinks
from tests.server_process import ROOT, RunningManager
from tests.sinks import HttpSink
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def sink() -> Iterator[HttpSink]:
    with sinks.http_sink() as made:
        yield made


def launch(manager: RunningManager, worker: str, script: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROCGUARD_HOME": str(manager.directory / f"home-{worker}")}
    words = [sys.executable, "-m", "procguard.worker_launcher", "--worker-id", worker, "--manager-url"]
    words += [f"http://127.0.0.1:{manager.port}", "--command", script, "--shell"]
    return subprocess.Popen(words, cwd=manager.directory, env=environment, stdout=subprocess.DEVNULL)


def test_an_end_reaches_its_webhook_within_two_seconds_with_the_last_lines(tmp_path: Path, sink: HttpSink) -> None:
    targets = [{"name": "li", "type": "webhook", "url": sink.url + "/li", "events": [], "min_interval": 0}]
    routes = [{"select": "good|bad|hushed", "to": "li", "on": ["finished"]}]
    manager = RunningManager(tmp_path, f"notifications={json.dumps(targets)}", f"notify={json.dumps(routes)}",
                             "recovery.max_recovery_attempts=0")  # fmt: skip
    ends = {"good": "exit 0", "bad": "echo 'MemoryError: no more' >&2; exit 3", "other": "exit 0", "hushed": "exit 0"}
    made = manager.ask("POST", "/api/mutes", {"select": "hushed", "for_s": 600, "note": "known"}).json["mute"]
    assert made["active"] and [one["mute_id"] for one in manager.ask("GET", "/api/mutes").json["mutes"]] == [
        made["mute_id"]
    ]
    stamp = {worker: tmp_path / f"{worker}.end" for worker in ends}
    launchers = [
        launch(manager, worker, f"sleep 1.5; echo {worker} is over; date +%s.%N > {stamp[worker]}; {end}")
        for worker, end in ends.items()
    ]
    try:
        wait_until(lambda: len(sink.posted) == 2 and all(one.exists() for one in stamp.values()), 60, "both messages")
        came_at = {one.json["ended"][0]["worker_id"]: one for one in sink.posted}
        for worker, state, code in (("good", "exited", 0), ("bad", "failed", 3)):
            ended = came_at[worker].json["ended"][0]
            assert (ended["state"], ended["code"], ended["attempt"]) == (state, code, 1) and ended["duration_s"] >= 1.5
            assert ended["last_lines"][0] == f"{worker} is over"
            late_s = came_at[worker].at - float(stamp[worker].read_text())
            assert late_s < 2.5, f"{worker}: {late_s:.2f} s after its end"  # two, and what a busy machine adds
        wait_until(
            lambda: manager.ask("GET", "/api/notifications").json["notifications"][0]["muted"] == 1, 20, "the mute"
        )
    finally:
        for launcher in launchers:
            launcher.terminate()
        for launcher in launchers:
            launcher.wait(20)
        manager.close()
    assert len(sink.posted) == 2 and {one.path for one in sink.posted} == {"/li"}
