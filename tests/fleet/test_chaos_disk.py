"""The manager's own disk: power cuts, no space, failed syncs. Scenarios 5 and 21."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from remote_agent.protocol import messages
from tests.chaos import ChaosReport
from tests.fleet import small_disks
from tests.fleet.manager import Manager, own_environment
from tests.fleet.small_disks import LoopDisk, Tmpfs
from tests.store_writer import Writer, lost
from tests.unit.store_rig import KINDS, loaded
from tests.waiting import wait_until

RECOVERS_WITHIN_S = 10.0
SECRET = "the-secret-of-h1"
WORKERS = [f"w{n}" for n in range(12)]


# ------------------------------------------------------------------------------------------------- 5: a power cut


@pytest.mark.fleet
@pytest.mark.chaos(5)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_of_the_manager_s_disk_loses_nothing(kind: str, tmp_path: Path, chaos_report: ChaosReport) -> None:
    small_disks.require()
    chance = random.Random(5)
    changes: set[int] = set()
    epochs: list[int] = []
    with LoopDisk(tmp_path / "disk", tmp_path / "image") as disk:
        path = disk.place / "state" / f"s{kind}"
        path.parent.mkdir(mode=0o700)
        for _round in chaos_report.rounds(short=4, long=50):
            writer = Writer(path)
            try:
                writer.wait_for(chance.randrange(1, 60))
                time.sleep(chance.uniform(0, 0.03))  # anywhere between two acknowledgements
                cut_ns = disk.cut_power()
            finally:
                writer.kill()
            disk.unmount()
            disk.mount()
            changes |= set(writer.said("change", cut_ns))
            epochs += writer.said("epoch", cut_ns)
            found = loaded(path)
            assert found.intact, found.notes
            assert lost(changes, found) == set()
        assert epochs == sorted(set(epochs))
    chaos_report(measured=f"{len(changes)} acknowledged changes, 0 lost; {len(epochs)} epochs, 0 twice; always loads")


@pytest.mark.fleet
def test_a_disk_has_power_again_though_another_namespace_still_holds_it(tmp_path: Path) -> None:
    """As a test host's that was made meanwhile."""
    small_disks.require()
    with LoopDisk(tmp_path / "disk", tmp_path / "image") as disk:
        (disk.place / "file").write_text("kept")
        os.sync()
        with subprocess.Popen(["unshare", "-m", "sh", "-c", "echo; read _"], stdin=PIPE, stdout=PIPE) as other:
            assert other.stdin is not None and other.stdout is not None
            other.stdout.readline()  # it has the mount
            disk.cut_power()
            disk.unmount()
            disk.mount()
            assert (disk.place / "file").read_text() == "kept"
            other.stdin.close()


# ---------------------------------------------------------------------------- 21: no space, and a sync that fails


class Trouble:
    """A manager with its state on a separate disk, and an agent that continues its heartbeats."""

    def __init__(self, place: Path, kind: str, environment: dict[str, str]) -> None:
        place.mkdir(exist_ok=True)
        work = place.parent / "work"
        work.mkdir()
        self.state = place / "state" / f"s{kind}"
        settings = [f"state.state_file={self.state}", f"logging.file={work}/log", "monitoring.interval=1"]
        self.manager = Manager(work, environment, settings)
        self.accepted: dict[str, str] = {}  # worker -> desired, of what was acknowledged
        self.refused = 0
        self._turn = 0

    def deploy(self) -> None:
        workers = [{"worker_id": name, "spec": {"command": "sleep 9"}} for name in WORKERS]
        declared = {"hosts": [{"host": "h1", "ssh": {"hostname": "h1"}, "workers": workers}]}
        assert self.manager.request("POST", "/api/deployments", declared)[0] == 200
        digest = {"secret_sha256": messages.secret_sha256(SECRET)}
        assert self.manager.request("PUT", "/api/agents/h1/credentials", digest)[0] == 200

    def beat(self) -> dict[str, Any]:
        """One heartbeat, answered with 200."""
        body = messages.encode(messages.AgentHeartbeat("h1", pid=77, at=time.time()))
        request = urllib.request.Request(
            f"{self.manager.url}/api/agents/h1/heartbeat", json.dumps(body).encode(), method="POST"
        )
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {SECRET}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
            return dict(json.load(answer))

    def change(self) -> int:
        """One operator's command: 202 and durable, or 503 with the reason."""
        self._turn += 1
        worker, verb = WORKERS[self._turn % len(WORKERS)], "stop" if self._turn % 3 else "start"
        status, body = self.manager.request("POST", f"/api/workers/{worker}/command", {"command": verb})
        if status == 202:
            self.accepted[worker] = "stopped" if verb == "stop" else "running"
        else:
            self.refused += 1
            self.accepted.pop(worker, None)  # unacknowledged changes may follow nevertheless
            error = json.loads(body)["error"]
            assert (status, error["code"]) == (503, "not_durable"), (status, body)
            assert "free space or repair the disk" in error["next"]
        return status

    def until_refused(self) -> None:
        """All of a dozen: a small one may still fit into the blocks that the files have."""
        wait_until(lambda: all(self.change() == 503 for _ in range(12)), 60, "changes are refused", every_s=0.0)

    def live_through(self, restore: Callable[[], object]) -> float:
        """While the disk refuses writes, the rest continues. Returns how long after `restore` changes were accepted
        again."""
        for _ in range(5):
            assert self.change() == 503
            assert self.beat()["assignments"] is None
            assert self.manager.request("GET", "/api/remote-workers")[0] == 200
        status, body = self.manager.request("GET", "/readyz")
        assert status == 503
        assert b"cannot write the state" in body
        assert self.manager.request("GET", "/healthz")[0] == 200
        restore()
        began = time.monotonic()
        wait_until(lambda: self.manager.request("GET", "/readyz")[0] == 200, RECOVERS_WITHIN_S, "ready again")
        took_s = time.monotonic() - began
        assert self.change() == 202
        assert self.beat()["assignments"] is not None
        return took_s

    def figures(self, slowest_s: float) -> str:
        return f"{self.refused} changes refused, 0 acknowledged falsely, 0 torn; taken again after {slowest_s:.1f} s"

    def judge(self) -> None:
        """Kill it: acknowledged changes are present, and no file is torn."""
        self.manager.kill()
        found = loaded(self.state)
        assert found.intact, found.notes
        kept = {name: record["desired"] for name, record in found.tables["workers"].items()}
        assert {name: kept[name] for name in self.accepted} == self.accepted
        self.manager.start()
        assert self.change() == 202


@pytest.mark.fleet
@pytest.mark.chaos(21)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_refuses_changes_and_nothing_else(kind: str, tmp_path: Path, chaos_report: ChaosReport) -> None:
    small_disks.require()
    with Tmpfs(tmp_path / "disk", "6m") as disk:
        trouble = Trouble(disk.place, kind, own_environment(tmp_path))
        slowest_s = 0.0
        with trouble.manager:
            trouble.deploy()
            trouble.beat()
            for _round in chaos_report.rounds(short=2, long=20):
                filler = disk.fill()
                trouble.until_refused()
                slowest_s = max(slowest_s, trouble.live_through(filler.unlink))
                trouble.judge()
                trouble.beat()
    chaos_report(measured=trouble.figures(slowest_s))


@pytest.mark.fleet
@pytest.mark.chaos(21)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sync_that_fails_refuses_changes_and_nothing_else(
    kind: str, tmp_path: Path, chaos_report: ChaosReport
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    shim, flag = tmp_path / "shim.so", tmp_path / "refuse"
    source = Path(__file__).with_name("fsync_shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    environment = {**own_environment(tmp_path), "LD_PRELOAD": str(shim), "FSYNC_SHIM": str(flag)}
    trouble = Trouble(tmp_path / "disk", kind, environment)
    slowest_s = 0.0
    with trouble.manager:
        trouble.deploy()
        trouble.beat()
        for _round in chaos_report.rounds(short=1, long=20):
            flag.touch()
            trouble.until_refused()
            slowest_s = max(slowest_s, trouble.live_through(flag.unlink))
            trouble.judge()
            trouble.beat()
    chaos_report(measured=trouble.figures(slowest_s))
