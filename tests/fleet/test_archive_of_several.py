"""The log archive of two managers on one PostgreSQL, whose leader is killed in the middle of uploads.

Then all disks are lost but those of the object storage and of the database: the portal's API and the command line still
show every line.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_agent.system import paths
from tests import forked, postgres_server
from tests.agent_host import Host
from tests.faulty_s3 import OK, FaultyS3
from tests.fleet.manager import own_environment
from tests.fleet.several_world import OneOfSeveral, SeveralManagers
from tests.fleet.test_agents_of_several import deploy
from tests.postgres_server import Postgres
from tests.waiting import wait_until

# What the leader's last PUT meets: stored after its death, half of it received, stored without an answer.
MET = ("slow", "torn", "unanswered")
DOWNLOAD = "/api/remote-workers/w0/logs?download=1"
ROUNDS = 20  # 60 takeovers


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server.cluster() as started:
        yield started


def an_upload_meets(s3: FaultyS3, mode: str) -> None:
    before = s3.met[mode]
    wait_until(lambda: s3.met[mode] > before, 60, f"an upload: {mode}")


def uploaded(leader: OneOfSeveral) -> bool:
    """Whether this leader has archived all that it has received."""
    view = leader.get("/api/logs/archive")
    return not view["problem"] and view["uploaded_objects"] > 0 and view["waiting_bytes"] == 0


def whole_log(leader: OneOfSeveral) -> bytes:
    status, body = leader.request("GET", DOWNLOAD, timeout_s=30)
    return body if status == 200 else b""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_takeovers_in_mid_upload_and_the_loss_of_all_disks_lose_no_archived_line(
    server: Postgres, tmp_path: Path
) -> None:
    pytest.importorskip("boto3")
    s3 = FaultyS3()
    (tmp_path / "keys").write_text("[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = secretsecret\n")
    settings = (
        "logs.archive=s3://pg-archive/logs", f"logs.archive_endpoint=http://127.0.0.1:{s3.port}",
        f"logs.archive_credentials_file={tmp_path}/keys", "logs.archive_interval=1",
    )  # fmt: skip
    host: Host | None = None
    kills = 0
    with SeveralManagers(tmp_path, server, ("m1", "m2"), *settings) as world:
        try:
            leader = world.leader()
            host = deploy(leader, tmp_path, 0)
            leader.wait_worker("w0", "running", 60)
            wait_until(lambda: s3.met[OK], 60, "the first object")
            for fault in MET * ROUNDS:
                s3.mode = fault
                an_upload_meets(s3, fault)
                began = time.monotonic()
                leader.send(signal.SIGKILL)
                s3.mode, former = OK, leader
                kills += 1
                leader, _ = world.led_by_another(former, began, 40)
                former.ended()
                former.start()
                an_upload_meets(s3, OK)
            leader.wait_worker("w0", "running", 60)
            leader.command("w0", "stop")
            leader.wait_worker("w0", "stopped", 60)
            worker = paths.worker_dir(host.directory, "w0")
            files = [paths.log_file(worker, number) for number in sorted(paths.attempts_on_disk(worker))]
            truth = b"".join(Path(one).read_bytes() for one in files)
            wait_until(lambda: len(whole_log(leader)) == len(truth) and uploaded(leader), 120, "all is archived")
            assert whole_log(leader) == truth

            host.end()
            shutil.rmtree(tmp_path / "home")
            for one in world.managers.values():
                one.kill()
                shutil.rmtree(one.directory)
                one.directory.mkdir()
            for one in world.managers.values():
                one.start()
            leader = world.leader(60)
            assert whole_log(leader) == truth
            _everything_is_shown(leader, tmp_path, truth.decode().splitlines())
            print(f"{kills} leaders killed in mid-upload, {len(truth):,} bytes, {len(s3.objects)} objects")
        finally:
            if host is not None and Path(host.directory).exists():
                host.end()


def _everything_is_shown(leader: OneOfSeveral, folder: Path, lines: list[str]) -> None:
    """By the API and by the command line, of a fleet with no host and no log on a disk."""
    seen = leader.log_text("w0")
    assert re.findall(r"line \d+", seen) == lines
    environment = own_environment(folder) | {"PROCGUARD_MANAGER_URL": leader.url}

    def printed(*words: str) -> str:
        done = forked.run([*words], environment, timeout_s=90)
        assert done.returncode in (0, 2), done.stderr  # 2: the lost host was not searched, which is said
        return done.stdout

    assert re.findall(r"line \d+", printed("logs", "w0", "--tail", str(len(lines)))) == lines
    for wanted in (lines[0], lines[len(lines) // 2], lines[-1]):
        found = printed("search", f"{wanted}$", "--since", "30d")
        assert re.findall(r"line \d+", found) == [wanted], found
