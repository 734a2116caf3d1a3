"""Uses of modules that a bare Python lacks are found in remote_agent (scripts/agent_check.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import agent_check


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(agent_check, "ROOT", tmp_path)
    (tmp_path / "remote_agent").mkdir()
    return tmp_path / "remote_agent"


def test_imports_that_hosts_lack_are_found(folder: Path) -> None:
    (folder / "a.py").write_text("import os\nfrom remote_agent import b\nimport yaml.nodes\n")
    (found,) = agent_check.foreign_imports()
    assert found.startswith("remote_agent/a.py:3: yaml is not in the standard library")


def test_what_python_3_9_lacks_is_found_again_only_in_changed_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []
    run = agent_check._vermin
    monkeypatch.setattr(agent_check, "_vermin", lambda paths: [read.append(paths), run(paths)][1])
    (folder / "a.py").write_text("import os\n\ndef f(x):\n    match x:\n        case 1: return os\n")
    (folder / "b.py").write_text("import json\n")
    expected = ["remote_agent/a.py:4: pattern matching needs Python 3.10; hosts have 3.9"]
    assert agent_check.too_new() == expected and agent_check.too_new() == expected
    (folder / "b.py").write_text("import tomllib\n")
    assert len(agent_check.too_new()) == 2
    assert read == [["remote_agent/a.py", "remote_agent/b.py"], ["remote_agent/b.py"]]
