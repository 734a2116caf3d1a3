"""A full disk or a closed pipe ends a command with at most one line, never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.fleet.manager import own_environment
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free_kib", [0, 4])
@pytest.mark.parametrize("ending", ["yaml", "db"])
def test_a_manager_that_starts_on_a_full_disk_says_so_in_one_line(small_disk: Path, ending: str, free_kib: int) -> None:
    (small_disk / "filler").write_bytes(bytes(1024 * (64 - free_kib)))
    (small_disk.parent / "logs").mkdir()
    settings = {
        "state.state_file": small_disk / "data" / f"s.{ending}",
        "logging.file": small_disk.parent / "logs" / "x",
    }
    words = ["--port", str(free_port())]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]

    with open(small_disk.parent / "out", "wb") as out, open(small_disk.parent / "err", "w+b") as err:
        environment = own_environment(small_disk.parent)
        manager = forked.start("procguard.main", words, environment, ROOT, err.fileno(), out.fileno())
        try:
            code = manager.wait(30)
        finally:
            manager.kill()
        err.seek(0)
        said = err.read().decode()

    assert code == 1
    assert [line for line in said.splitlines() if not line.startswith("procguard: ")] == []
    assert "No space left on device" in said or "full" in said


def invoke_into(tmp_path: Path, redirection: str) -> subprocess.CompletedProcess[str]:
    script = f'"{sys.executable}" -m invoke --list {redirection}'
    return subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env=own_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    done = invoke_into(tmp_path, '| true; echo "${PIPESTATUS[0]}"')
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_an_output_file_on_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    done = invoke_into(tmp_path, ">/dev/full")
    assert done.returncode != 0
    assert done.stderr == "procguard: cannot write the output (No space left on device); free space, then repeat\n"
