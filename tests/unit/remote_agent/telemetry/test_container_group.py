"""A container's control groups, of either version: which files say what it uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_agent.system import cgroup
from remote_agent.telemetry import container_group

ID = "libpod-0123abcd"


@pytest.fixture
def worker_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Beside `cgroup`, which stands for /sys/fs/cgroup."""
    monkeypatch.setattr(cgroup, "MOUNTS", (str(tmp_path / "cgroup"),))
    (tmp_path / "w1").mkdir()
    return tmp_path / "w1"


def make(worker_dir: Path, files: dict[str, str]) -> list[str]:
    """The control groups with these files, noted innermost first as the runner does."""
    groups = []
    for name, text in files.items():
        path = worker_dir.parent / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        groups.append(str(path.parent))
    (worker_dir / "container.groups").write_text("".join(f"{one}\n" for one in sorted(groups, key=len, reverse=True)))
    return container_group.directories(str(worker_dir))


def test_version_2_counts_the_whole_container_and_leaves_out_cache_that_nobody_uses(worker_dir: Path) -> None:
    groups = make(
        worker_dir,
        {
            f"machine.slice/{ID}.scope/cpu.stat": "usage_usec 2500000\nuser_usec 2000000\n",
            f"machine.slice/{ID}.scope/memory.current": "9000\n",
            f"machine.slice/{ID}.scope/memory.stat": "anon 4000\ninactive_file 3000\n",
            f"machine.slice/{ID}.scope/container/cpu.stat": "usage_usec 7\n",
        },
    )
    assert container_group.cpu_ns(groups) == 2_500_000_000
    assert container_group.memory_bytes(groups) == 6000


def test_version_1_has_a_directory_for_each_controller(worker_dir: Path) -> None:
    groups = make(
        worker_dir,
        {
            f"cpuacct/libpod_parent/{ID}/cpuacct.usage": "1234567\n",
            f"memory/libpod_parent/{ID}/memory.usage_in_bytes": "9000\n",
            f"memory/libpod_parent/{ID}/memory.stat": "inactive_file 1\ntotal_inactive_file 8000\n",
        },
    )
    assert (container_group.cpu_ns(groups), container_group.memory_bytes(groups)) == (1234567, 1000)


def test_what_is_not_counted_is_not_known(worker_dir: Path) -> None:
    groups = make(worker_dir, {f"pids/{ID}/pids.current": "3\n"})
    assert (container_group.cpu_ns(groups), container_group.memory_bytes(groups)) == (None, None)


def test_a_worker_without_a_container_and_directories_elsewhere_are_no_groups(worker_dir: Path, tmp_path: Path) -> None:
    assert container_group.directories(str(worker_dir)) == []
    (tmp_path / "libpod-x").mkdir()
    (worker_dir / "container.groups").write_text(f"{tmp_path}/libpod-x\n{tmp_path}/cgroup/../libpod-x\n\n")
    assert container_group.directories(str(worker_dir)) == []
