"""Managers by name: the one that a command uses, and its token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.cli import app
from procguard.cli.program import process
from procguard.client import contexts
from tests import fake_manager
from tests.fake_manager import FakeManager


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PROCGUARD_MANAGER_URL", raising=False)
    monkeypatch.setenv("PROCGUARD_CONTEXT", "")


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    with fake_manager.running() as one:
        one.routes["GET /api/groups"] = lambda body: (200, {"groups": []})
        yield one


def run(*words: str) -> int:
    return process.guarded(lambda: app.run(words))


def test_the_current_context_says_where_to_and_with_which_token(manager: FakeManager, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    assert run("context", "add", "lab", "--url", manager.url, "--token-file", str(token)) == 0
    assert run("groups") == 0
    assert manager.requests[-1].authorization == "Bearer s3cret"
    assert Path(contexts.path()).stat().st_mode & 0o777 == 0o600
    assert "s3cret" not in Path(contexts.path()).read_text()


def test_the_environment_wins_over_the_current_context_and_the_flag_over_both(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("context", "add", "there", "--url", manager.url) == 0
    assert run("context", "add", "nowhere", "--url", "http://127.0.0.1:9") == 0
    assert run("groups") == 3
    assert run("--context", "there", "groups") == 0
    monkeypatch.setenv("PROCGUARD_CONTEXT", "")
    monkeypatch.setenv("PROCGUARD_MANAGER_URL", manager.url)
    assert run("groups") == 0
    assert run("--context", "nowhere", "groups") == 3


def test_contexts_are_listed_changed_and_removed(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        run("context", "add", name, "--url", manager.url)
    assert run("context", "use", "a") == 0
    capsys.readouterr()
    assert run("context", "-o", "json") == 0
    assert [(one["name"], one["current"]) for one in json.loads(capsys.readouterr().out)] == [("a", True), ("b", False)]
    assert run("context", "remove", "a") == 0 and contexts.load().current == ""
    assert run("context", "use", "a") == 1 and "no context 'a'" in capsys.readouterr().err
    assert run("context", "use", "b") == 0 and run("context", "use", "-") == 0 and contexts.load().current == ""


def test_mistakes_are_one_line_each(manager: FakeManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    token.chmod(0o644)
    for words, reported in (
        (("context", "add", "lab"), "no address given"),
        (("context", "add", "../x", "--url", manager.url), "expected letters"),
        (("context", "add", "lab", "--url", "gpu-head"), "not a manager's address"),
        (
            ("context", "add", "lab", "--url", manager.url, "--token-file", str(token)),
            "other users can read this token",
        ),
        (("context", "add", "lab", "--url", manager.url, "--token-file", "/nonexistent"), "No such file"),
    ):
        assert run(*words) in (1, 3), words
        said = capsys.readouterr().err
        assert reported in said and len(said.splitlines()) == 1, said
    for text in ("contexts: [", "- a", "contexts: {lab: {url: 5}}", "contexts: {lab: {url: x, token: y}}"):
        Path(contexts.path()).parent.mkdir(parents=True, exist_ok=True)
        Path(contexts.path()).write_text(text)
        assert run("groups") == 1 and "contexts.yaml" in capsys.readouterr().err
