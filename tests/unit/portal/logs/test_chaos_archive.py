"""Scenario 32: the object storage of the log archive fails in every way, under a real manager, agent and job.

The reference is the file that the job has written on its host: what the archive returns, to a manager that has lost its
disk, is the same byte for byte.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from procguard.client.client import Client
from remote_agent.protocol.messages import secret_sha256
from remote_agent.system import paths
from tests.chaos import ChaosReport
from tests.faulty_s3 import FAULTS, OK, FaultyS3
from tests.ports import free_port
from tests.server_process import RunningManager
from tests.unit.portal.logs.test_absent import agent_of
from tests.waiting import wait_until

PRINTER = """import itertools, time
for i in itertools.count():
    print('line', i, 'x' * (i % 300), flush=True)
    time.sleep(0.002)
"""
AWAY_S = 600.0  # in the long form, once
SPOOL_BYTES = 64 * 2**20
DOWNLOAD = "/api/remote-workers/w1/logs?download=1"


@pytest.mark.slow
@pytest.mark.chaos(32)
@pytest.mark.timeout(180)
def test_an_object_storage_that_fails_loses_and_doubles_no_byte(
    chaos_report: ChaosReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretsecretsecret")
    (tmp_path / "m").mkdir()
    s3, port = FaultyS3(), free_port()
    settings = (
        "logs.archive=s3://pg-archive/logs",
        f"logs.archive_endpoint=http://127.0.0.1:{s3.port}",
        "logs.archive_interval=1",
        f"logs.keep_per_worker={SPOOL_BYTES}",
    )
    manager = RunningManager(tmp_path / "m", *settings, port=port)
    spec = {"command": [sys.executable, "-c", PRINTER], "stop_grace_s": 0.5}
    declared = {"hosts": [{"host": "h1", "ssh": {"hostname": "h1"}, "workers": [{"worker_id": "w1", "spec": spec}]}]}
    host, kills, most_spooled = None, 0, 0

    def archive() -> dict[str, object]:
        found: dict[str, object] = manager.ask("GET", "/api/logs/archive").json
        return found

    def spooled() -> int:
        files = (tmp_path / "m" / "logs").rglob("*.log")
        return sum(one.stat().st_blocks * 512 for one in files)

    try:
        assert manager.ask("POST", "/api/deployments", declared).status == 200
        digest = {"secret_sha256": secret_sha256("secret-of-h1")}
        assert manager.ask("PUT", "/api/agents/h1/credentials", digest).status == 200
        host = agent_of(manager, tmp_path, [f"http://127.0.0.1:{port}"])
        host.start()
        client = Client([f"http://127.0.0.1:{port}"])
        wait_until(lambda: s3.objects, 60, "the first object")
        for number in chaos_report.rounds(short=1, long=20):
            for fault in FAULTS:
                met = s3.met[fault]
                s3.mode = fault
                wait_until(lambda fault=fault, met=met: s3.met[fault] > met, 90, f"an upload meets: {fault}")
                if fault in ("unanswered", "torn"):  # and the manager dies of it
                    kills += 1
                    manager.process.kill()
                    manager.process.wait()
                    s3.mode = OK
                    manager = RunningManager(tmp_path / "m", *settings, port=port)
                s3.mode = OK
            s3.stop()
            wait_until(lambda: archive()["problem"], 60, "it is away, and that is known")
            assert manager.ask("GET", "/readyz").status == 200
            time.sleep(AWAY_S if chaos_report.long and number == 0 else 0.0)
            most_spooled = max(most_spooled, spooled())
            s3.start()
            wait_until(lambda: not archive()["problem"], 90, "it is back")
        wait_until(lambda: client.worker("w1")["state"] == "running", 60, "the agent is back")
        client.command("w1", "stop")
        wait_until(lambda: client.worker("w1")["state"] == "stopped", 60, "it has ended")
        worker = paths.worker_dir(host.directory, "w1")
        truth = [Path(paths.log_file(worker, one)).read_bytes() for one in sorted(paths.attempts_on_disk(worker))]
        whole = b"".join(truth)
        wait_until(lambda: archive()["waiting_bytes"] == 0 and manager.ask("GET", DOWNLOAD).body == whole, 90,
                   "all is archived")  # fmt: skip
        host.kill_agent()
        manager.process.kill()
        manager.process.wait()
        shutil.rmtree(tmp_path / "m" / "logs")
        manager = RunningManager(tmp_path / "m", *settings, port=port)
        wait_until(lambda: len(manager.ask("GET", DOWNLOAD).body) == len(whole), 90, "it is read again")
        assert manager.ask("GET", DOWNLOAD).body == whole
        assert most_spooled <= SPOOL_BYTES
        faults = sum(s3.met[one] for one in FAULTS)
        chaos_report(measured=f"0 of {len(whole):,} bytes lost or doubled in {faults} uploads that failed, {kills} of "
                              f"them with the manager; on the disk at most {most_spooled / 1e6:.1f} MB")  # fmt: skip
    finally:
        manager.close()
        if host is not None:
            host.end()
