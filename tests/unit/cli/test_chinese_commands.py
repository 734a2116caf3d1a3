"""`--lang zh`, end to end: output, help and errors of each command contain no English sentence of ProcGuard."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from procguard.cli import app
from procguard.console.terminal import say
from procguard.errors import ManagerUnreachable
from tests import fake_manager
from tests.rows import each
from tests.unit.console import test_terminal as every_answer
from tests.unit.console.test_terminal import COMMANDS, HostileManager, shown

# Three words of English in a row that are no name, path, option or key.
SENTENCE = re.compile(r"(?<![\w./:=<'`-])[A-Za-z]{2,} [a-z]{2,} [a-z]{2,}(?: [a-z]{2,})*")
# Commands to type, and what the manager of these tests says as others would.
OF_OTHERS = re.compile(r"(?:invoke|procguard|ssh-keygen|source|python) [^，；。）\n]*")


def english_in(text: str) -> list[str]:
    return SENTENCE.findall(OF_OTHERS.sub("", re.sub(r"\x1b\[[0-9;]*m", "", text)))


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileManager]:
    """Answers every route according to its schema; texts of others are X1."""
    monkeypatch.setattr(every_answer, "HOSTILE", "X1")
    monkeypatch.setattr(fake_manager, "FakeManager", HostileManager)
    with fake_manager.running() as one:
        monkeypatch.setenv("PROCGUARD_MANAGER_URL", one.url)
        monkeypatch.setenv("PROCGUARD_TOKEN", "x")
        yield one  # type: ignore[misc]


def printed(line: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        return shown(lambda: app.main(["procguard", *line.split(), "--lang", "zh"]), patch)


@each("line", [one for one in COMMANDS if "json" not in one and "--lang" not in one])
def test_the_output_of_a_command_is_chinese(manager: HostileManager, line: str) -> None:
    assert english_in(printed(line)) == []


def every_command() -> list[str]:
    return [*app.commands(), *(f"{group}.{name}" for group in app.GROUPS for name in app.group(group))]


def test_the_help_of_every_command_is_chinese() -> None:
    assert {name: found for name in every_command() if (found := english_in(printed(f"{name} --help")))} == {}
    with pytest.MonkeyPatch.context() as patch:
        overview = shown(lambda: app.main(["procguard", "--lang", "zh"]), patch)
    assert english_in(overview) == [] and "部署" in overview


@each(
    "line",
    [
        "nonsense", "agents.nonsense", "ps --nonsense", "ps extra", "logs", "ps -o xml", "top --every 0", "validate",
        "token.create --scope god", "token.create --expires 3x", "wait w1 --for dead", "deploy", "completion tcsh",
        "deploy --hosts /nowhere.yaml", "start w1 --wait 5 --no-wait", "state.show --config /nowhere.yaml",
        "context.use nowhere",
    ],
)  # fmt: skip
def test_a_mistake_is_explained_in_chinese(manager: HostileManager, line: str) -> None:
    text = printed(line)
    assert text.startswith("procguard: ") and re.search(r"[\u4e00-\u9fff]", text), text
    assert english_in(text) == [], text


def test_a_planted_english_sentence_is_found() -> None:
    def planting() -> None:
        say("nobody has translated this")
        raise ManagerUnreachable("the manager went for a walk", "wait until it returns")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROCGUARD_LANG", "zh")
        text = shown(lambda: app.process.guarded(planting), patch)
    assert len(english_in(text)) == 2, text


def test_without_it_the_same_commands_are_english(manager: HostileManager) -> None:
    for line in ("ps", "deploy --help", "logs", "token"):
        with pytest.MonkeyPatch.context() as patch:
            text = shown(lambda line=line: app.main(["procguard", *line.split()]), patch)  # type: ignore[misc]
        assert not re.search(r"[\u4e00-\u9fff]", text), text
