"""A lock protects only while its file is at its path: at most one runner, whatever cleans /tmp."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from remote_agent.agent import settings
from remote_agent.agent.settings import AgentLock
from remote_agent.runner import lock as only_one
from remote_agent.runner.control import EXIT_ALREADY_RUNNING
from remote_agent.runner.lock import CannotStart, take_lock
from remote_agent.system.locks import is_still_at, lock_held


class Cleaner:
    """Between a runner's open and its flock the file is removed, and another runner takes a new one in its place."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, *, another: bool) -> None:
        self.path = path
        self.another = another
        self.other = -1
        self._flock = fcntl.flock
        monkeypatch.setattr(only_one.fcntl, "flock", self.flock)

    def flock(self, descriptor: int, operation: int) -> None:
        if self.other == -1:
            self.path.unlink()
            self.other = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            if self.another:
                self._flock(self.other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._flock(descriptor, operation)


def test_a_lock_on_a_file_that_was_replaced_meanwhile_lets_no_second_runner_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flock succeeds, but on an unlinked file: the other runner has the worker."""
    cleaner = Cleaner(tmp_path / "w.lock", monkeypatch, another=True)
    with pytest.raises(CannotStart) as caught:
        take_lock(str(cleaner.path), 0.1)
    assert caught.value.code == EXIT_ALREADY_RUNNING
    os.close(cleaner.other)


def test_a_lock_file_that_was_replaced_meanwhile_is_taken_where_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaner = Cleaner(tmp_path / "w.lock", monkeypatch, another=False)
    held = take_lock(str(cleaner.path), 1.0)
    assert is_still_at(str(cleaner.path), held) and lock_held(str(cleaner.path))
    os.close(held)
    os.close(cleaner.other)


def test_a_removed_or_replaced_file_is_not_the_one_that_is_held(tmp_path: Path) -> None:
    path = tmp_path / "w.lock"
    held = take_lock(str(path), 0.0)
    assert is_still_at(str(path), held)
    path.unlink()
    assert not is_still_at(str(path), held)
    path.touch()
    assert not is_still_at(str(path), held)
    os.close(held)


def test_an_agent_whose_lock_file_was_replaced_meanwhile_is_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "LOCK_TIMEOUT_S", 0.1)
    cleaner = Cleaner(tmp_path / "agent.lock", monkeypatch, another=True)
    lock = AgentLock(str(tmp_path))
    assert lock.take() == "pid unknown"
    os.close(cleaner.other)
    assert lock.take() is None
    lock.release()
