"""An interrupted benchmark ends its processes, also if its parent task was killed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]
MARK = "PROCGUARD_TEST_BENCH"


def started(mark: str) -> list[psutil.Process]:
    """The living processes of this benchmark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def manager_runs(mark: str) -> bool:
    try:
        return any("procguard.main" in process.cmdline() for process in started(mark))
    except psutil.Error:  # it has just ended
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_benchmark_that_is_cut_off_leaves_no_process_behind(how: str) -> None:
    mark = secrets.token_hex(8)
    task = subprocess.Popen(
        [sys.executable, "-m", "invoke", "bench", "heartbeats", "--args", "--seconds 60"],
        cwd=REPOSITORY,
        env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: manager_runs(mark), 60, "the benchmark's manager runs")
        getattr(task, how)()
        task.wait(20)
        wait_until(lambda: not started(mark), 30, "everything the benchmark started has ended")
    finally:
        for process in started(mark):
            process.kill()
