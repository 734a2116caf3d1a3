"""The archive in a real manager, with a real agent: kills, a lost disk, and the operator's view."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from procguard.client.client import Client
from remote_agent.protocol.messages import secret_sha256
from tests.ports import free_port
from tests.server_process import RunningManager
from tests.unit.portal.logs.test_absent import PRINTER, agent_of
from tests.waiting import wait_until


@pytest.mark.slow
def test_what_was_archived_survives_kills_and_the_loss_of_the_disk(tmp_path: Path) -> None:
    """A worker prints numbers. The manager is killed in the middle of its uploads, then its logs and the archive's
    index are lost with its disk, and the host has dropped what it may: every line is there once."""
    (tmp_path / "m").mkdir()
    (tmp_path / "shared").mkdir()
    port = free_port()
    settings = (f"logs.archive=file://{tmp_path}/shared", "logs.archive_interval=1", "logs.keep_local=1 MiB")
    spec = {"command": [sys.executable, "-c", PRINTER], "stop_grace_s": 0.5}
    declared = {"hosts": [{"host": "h1", "ssh": {"hostname": "h1"}, "workers": [{"worker_id": "w1", "spec": spec}]}]}
    manager = RunningManager(tmp_path / "m", *settings, port=port)
    host = None
    try:
        assert manager.ask("POST", "/api/deployments", declared).status == 200
        digest = {"secret_sha256": secret_sha256("secret-of-h1")}
        assert manager.ask("PUT", "/api/agents/h1/credentials", digest).status == 200
        url = f"http://127.0.0.1:{port}"
        host = agent_of(manager, tmp_path, [url])
        host.start()
        client = Client([url])

        def archived() -> int:
            return int(manager.ask("GET", "/api/logs/archive").json["uploaded_objects"])

        for _ in range(3):
            wait_until(lambda: archived() >= 2, 30, "two objects")
            manager.process.kill()
            manager.process.wait()
            manager = RunningManager(tmp_path / "m", *settings, port=port)
        client.command("w1", "stop")
        wait_until(lambda: client.worker("w1")["state"] == "stopped", 30, "it has stopped")
        wait_until(lambda: manager.ask("GET", "/api/logs/archive").json["waiting_bytes"] == 0, 30, "all is archived")
        whole = manager.ask("GET", "/api/remote-workers/w1/logs?download=1").body.decode()

        manager.process.kill()
        manager.process.wait()
        shutil.rmtree(tmp_path / "m" / "logs")
        for path in (tmp_path / "m").glob("*.archive.db*"):
            path.unlink()
        manager = RunningManager(tmp_path / "m", *settings, port=port)
        asked = "/api/remote-workers/w1/logs?download=1"
        wait_until(lambda: len(manager.ask("GET", asked).body) >= len(whole), 30, "the index is made again")
        again = manager.ask("GET", asked).body.decode()
        numbers = [int(one) for one in re.findall(r"line (\d+)", again)]
        assert numbers == list(range(len(numbers))) and len(numbers) > 200 and again.startswith(whole)
        view = manager.ask("GET", "/api/logs/archive").json
        assert (view["place"], view["problem"]) == (f"file://{tmp_path}/shared", "")
        token = {"secret": manager.ask("POST", "/api/tokens", {"scope": "viewer", "name": "v"}).json["token"]}
        assert manager.ask("GET", "/api/logs/archive", **token).json["place"] == "file://"

        shutil.move(tmp_path / "shared", tmp_path / "unmounted")
        client.command("w1", "start")
        wait_until(lambda: manager.ask("GET", "/api/logs/archive").json["problem"], 30, "the archive is away")
        assert manager.ask("GET", "/readyz").status == 200
        assert str(tmp_path) in manager.ask("GET", "/api/logs/archive").json["problem"]
        for path in ("/api/logs/archive", "/api/events?limit=100&kind=archive_failing"):
            seen = manager.ask("GET", path, **token).body.decode()
            assert "file://" in seen and str(tmp_path) not in seen  # a viewer sees that it is away, not where it is
        shutil.move(tmp_path / "unmounted", tmp_path / "shared")
        wait_until(lambda: not manager.ask("GET", "/api/logs/archive").json["problem"], 60, "it is back")
        kinds = [one["kind"] for one in manager.ask("GET", "/api/events?limit=100").json["events"]]
        assert kinds.count("archive_failing") == kinds.count("archive_works") == 1
    finally:
        manager.close()
        if host is not None:
            host.end()
