"""What the manager says at its start about the Python that runs it."""

from __future__ import annotations

import http.cookies
import tarfile
from pathlib import Path

import pytest

from procguard.runtime import interpreter
from tests.server_process import RunningManager


def test_each_hole_is_sought_in_the_library_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(http.cookies, "_unquote_sub", raising=False)
    monkeypatch.setattr(tarfile.TarInfo, "_block", lambda _self, count: count)
    both = interpreter.known_holes()
    assert len(both) == 2 and "CVE-2024-7592" in both[0] and "CVE-2025-8194" in both[1]

    def refuses(_self: object, _count: int) -> int:
        raise tarfile.InvalidHeaderError("invalid offset")

    monkeypatch.setattr(http.cookies, "_unquote_sub", object(), raising=False)
    monkeypatch.setattr(tarfile.TarInfo, "_block", refuses)
    assert interpreter.known_holes() == []


@pytest.mark.slow
def test_the_manager_says_so_at_its_start(tmp_path: Path) -> None:
    manager = RunningManager(tmp_path)
    manager.close()
    for note in interpreter.known_holes():
        assert note in manager.log() and note in (tmp_path / "manager.log").read_text()
