"""Completions of the next word: commands, options, and ids known to the manager."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.cli import app
from tests import fake_manager

ROOT = Path(app.__file__).parents[2]


@pytest.fixture(autouse=True)
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_manager.running() as one:
        views = [{"worker_id": name} for name in ("train-1", "train-2", "api")]
        one.routes["GET /api/remote-workers"] = lambda body: (200, {"workers": views, "total": 3})
        one.routes["GET /api/hosts"] = lambda body: (200, {"hosts": [{"host": "gpu01"}]})
        one.routes["GET /api/groups"] = lambda body: (200, {"groups": [{"group": "trainers"}]})
        monkeypatch.setenv("PROCGUARD_MANAGER_URL", one.url)
        yield


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["de"], ["demo", "deny", "deploy", "describe"]),
        (["token", ""], ["create", "list", "revoke"]),
        (["stop", "tr"], ["train-1", "train-2"]),
        (["logs", "train-1", "a"], ["api"]),
        (["explain", "train-1", ""], []),
        (["stop", "group=t"], ["group=trainers"]),
        (["ps", "--select", "tr"], ["train-1", "train-2"]),
        (["cordon", ""], ["gpu01"]),
        (["move", "train-1", "g"], ["gpu01"]),
        (["ps", "--output", "w"], ["wide"]),
        (["ps", "--s"], ["--select"]),
        (["nothing", ""], []),
    ],
)
def test_the_next_word(words: list[str], found: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    app.run(["__complete", *words])
    assert capsys.readouterr().out.split() == found


def test_without_a_manager_there_are_no_ids_and_no_complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROCGUARD_MANAGER_URL", "http://127.0.0.1:9")
    app.run(["__complete", "stop", "t"])
    assert capsys.readouterr() == ("", "")


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "procguard"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m procguard "$@"\n')
    program.chmod(0o755)
    script = """
    source <(procguard completion bash)
    COMP_WORDS=(procguard stop train); COMP_CWORD=2; _procguard; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", f'PATH="{tmp_path}:$PATH"; {script}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["train-1", "train-2"], done.stderr
