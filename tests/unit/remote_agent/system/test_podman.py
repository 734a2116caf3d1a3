"""A host's support for podman: GPUs by CDI, and missing prerequisites of rootless users."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_agent.system import podman

JSON = '{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "0"}, {"name": "all"}]}'
YAML = """cdiVersion: 0.5.0
containerEdits:
  env: [A=b]
devices:
- containerEdits: {}
  name: "0"
- name: GPU-8e3a
kind: nvidia.com/gpu
"""


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("nvidia.json", JSON, ["0", "all"]),
        ("nvidia.yaml", YAML, ["0", "GPU-8e3a"]),
        ("other.yaml", YAML.replace("nvidia.com/gpu", "vendor.com/nic"), []),
        ("nvidia.txt", JSON, []),
        ("broken.json", "{", []),
    ],
)
def test_gpus_are_those_that_a_cdi_specification_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str, found: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(podman, "CDI_DIRECTORIES", (str(tmp_path), str(tmp_path / "none")))
    assert podman.gpus() == found


def test_root_lacks_nothing_and_another_user_its_ids_tools_and_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert podman.lacks({}) == []
    monkeypatch.setattr("os.geteuid", lambda: 4_000_000)
    assert podman.lacks({"PATH": str(tmp_path)}) == ["uidmap", "subuid", "runtime_dir"]
    for tool in ("newuidmap", "newgidmap"):
        (tmp_path / tool).touch(mode=0o755)
    assert podman.lacks({"PATH": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}) == ["subuid"]
    monkeypatch.setattr(podman, "_has_range", lambda path: True)
    (tmp_path / "podman").write_text('#!/bin/sh\n[ $1 = unshare ] && [ -n "$XDG_RUNTIME_DIR" ] && exit $CODE\n')
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for code, lacks in (("0", []), ("125", ["user_namespace"])):
        assert podman.lacks({"PATH": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "CODE": code}) == lacks
    assert podman.runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path / "gone")}) == ""
    assert os.path.isdir(tmp_path)
