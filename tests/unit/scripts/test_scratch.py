"""The tests use memory as a disk only if there is space for a whole run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from scripts import scratch

GIB = 1 << 30


def with_memory(folder: Path, available_bytes: int) -> str:
    path = folder / "meminfo"
    path.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_bytes // 1024} kB\nHugePages_Total: 0\n")
    return str(path)


def test_the_folder_is_in_memory_only_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        f_bavail, f_frsize, f_flag = 5 * GIB // 4096, 4096, 0

    monkeypatch.setattr(os, "statvfs", lambda path: Found)
    enough, little = with_memory(tmp_path, 5 * GIB), str(tmp_path / "missing")
    assert scratch.base(str(tmp_path), enough) == str(tmp_path)
    assert scratch.base(str(tmp_path), little) is None
    assert scratch.base(str(tmp_path / "none"), enough) is None
    assert scratch.base(str(tmp_path), with_memory(tmp_path, GIB)) is None
    enough = with_memory(tmp_path, 5 * GIB)
    Found.f_flag = os.ST_NOEXEC
    assert scratch.base(str(tmp_path), enough) is None
    Found.f_flag, Found.f_bavail = 0, GIB // 4096
    assert scratch.base(str(tmp_path), enough) is None


def test_the_folder_has_a_short_path_that_other_users_may_pass_and_not_list() -> None:
    path = Path(scratch.make())
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o711 and len(str(path)) < 24
    finally:
        path.rmdir()
