"""A worker that another fleet runs on this host is not started a second time unless forced."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent.worker import WorkerHandle
from remote_agent.install.__main__ import InstallerSession
from remote_agent.install.installer import Installer
from remote_agent.install.release import InstallError
from remote_agent.protocol.messages import Assignment, WorkerSpec
from remote_agent.system import other_fleets, paths

OURS, THEIRS = "f-ours", "f-theirs"


@contextmanager
def fleet(
    home: Path, fleet_id: str, *running: str, host: str = "h1", settled: tuple[str, ...] = (), **config: Any
) -> Iterator[str]:
    """An agent of that fleet with runners for `running`; they count as alive while their locks are held."""
    directory = paths.agent_dir(str(home), fleet_id, host)
    runtime = home.parent / f"run-{fleet_id}"
    runtime.mkdir(exist_ok=True)
    record = {
        "kind": "deployed", "fleet_id": fleet_id, "host": host, "runtime_dir": str(runtime),
        "manager_urls": ["http://10.0.0.9:5000"], **config,
    }  # fmt: skip
    with ExitStack() as held:
        for worker_id in (*running, *settled):
            worker = Path(paths.worker_dir(directory, worker_id))
            worker.mkdir(parents=True, exist_ok=True)
            Path(paths.worker_id_file(str(worker))).write_text(worker_id + "\n")
            if worker_id in running:
                lock = held.enter_context(open(paths.runner_lock(str(runtime), str(worker)), "w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
        Path(directory).mkdir(parents=True, exist_ok=True)
        Path(paths.agent_file(directory)).write_text(json.dumps(record))
        yield directory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def refused(home: Path, *worker_ids: str, **request: Any) -> InstallError | None:
    installer = Installer(str(home), OURS, "h1")
    try:
        installer.install({"worker_ids": list(worker_ids), "release": "0" * 64, **request}, lambda: b"")
    except InstallError as exc:
        return exc if exc.code == "another_fleet" else None
    raise AssertionError("nothing was to be installed")


def test_what_another_fleet_runs_is_refused_naming_both_fleets_and_its_manager(home: Path) -> None:
    with fleet(home, THEIRS, "train", "eval", host="other-name"):
        error = refused(home, "train", "mine")
    assert error is not None
    assert "train already runs here in another fleet" in error.message and "eval" not in error.message
    assert THEIRS in error.message and OURS in error.message and "http://10.0.0.9:5000" in error.message
    assert "--another-fleet" in error.next_step and not (home / OURS).exists()


def test_check_is_refused_what_a_deployment_would_be(home: Path) -> None:
    """It names its workers with the first request; other requests for the host's status are answered."""
    session = InstallerSession()
    where = {"op": "hello", "fleet_id": OURS, "host": "h1", "home": str(home)}
    with fleet(home, THEIRS, "train"):
        with pytest.raises(InstallError, match="already runs here in another fleet"):
            session._do({**where, "worker_ids": ["train"]})
        assert session._do(where)["hello"]["installed"] is False


def test_other_workers_and_those_that_have_ended_are_nobodys_trouble(home: Path) -> None:
    with fleet(home, THEIRS, "eval", settled=("train",)):
        assert refused(home, "train") is None
    with fleet(home, THEIRS, "train"):
        assert refused(home, "train", another_fleet=True) is None
    assert refused(home, "train") is None  # its runner is gone


def test_what_this_fleet_runs_already_is_not_refused_to_it(home: Path) -> None:
    """Both are intended: --another-fleet is needed once, not with each later deployment."""
    with fleet(home, THEIRS, "train"), fleet(home, OURS, "train"):
        assert refused(home, "train") is None


def started(directory: str, worker_id: str) -> str:
    """Why the agent in `directory` may not start it."""
    worker = paths.worker_dir(directory, worker_id)
    return other_fleets.forbids(worker, worker_id)


def test_an_agent_starts_nothing_that_another_fleet_runs(home: Path) -> None:
    """Its manager may declare a worker before a deployment to this host."""
    with fleet(home, OURS) as ours, fleet(home, THEIRS, "train"):
        assert THEIRS in started(ours, "train") and started(ours, "eval") == ""
        worker = WorkerHandle("train", paths.worker_dir(ours, "train"), str(home.parent / f"run-{OURS}"))
        worker.assign(Assignment("train", WorkerSpec("sleep 1")), "/", {})
        for moment in (1.0, 10.0, 100.0, 1000.0):
            worker.converge(moment, "/bin/false", "/", True)
        report = worker.report()
        assert report.state == "failed" and "already runs here in another fleet" in report.reason


@pytest.mark.parametrize("insisting", [OURS, THEIRS])
def test_where_one_of_both_was_deployed_with_insistence_both_run(home: Path, insisting: str) -> None:
    mine, other = ({"another_fleet": True} if insisting == one else {} for one in (OURS, THEIRS))
    with fleet(home, OURS, **mine) as ours, fleet(home, THEIRS, "train", **other):
        assert started(ours, "train") == ""


def test_a_launcher_of_another_fleet_counts_too(home: Path) -> None:
    with fleet(home, THEIRS, host="h1/launchers/l1", kind="launcher"):
        pass
    with fleet(home, THEIRS, "train", host="h1/launchers/l1", kind="launcher"):
        assert refused(home, "train") is not None


def test_unreadable_neighbours_are_passed_over(home: Path) -> None:
    with fleet(home, THEIRS) as theirs:
        Path(paths.agent_file(theirs)).write_text("{torn")
        (home / "f-odd").mkdir()
        (home / "f-odd" / "h1").write_text("a file")
        assert other_fleets.found(str(home), OURS) == []
