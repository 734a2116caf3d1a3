"""docs/architecture.md answers its questions by call paths: every step exists and leads to the next."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
STEP = re.compile(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`: (.*)$", re.MULTILINE)
FILE = re.compile(r"`([\w./]+\.(?:py|md|toml)|[\w/]+/)`")
DEFINITION = re.compile(r"`(\w+\.(?!(?:py|md|toml)`)[a-z_]\w*)`")
SHORT = {one.partition(".")[0] for one in DEFINITION.findall(TEXT)}
FOLDERS = ("", "procguard", "remote_agent", "docs")  # from which the page names files
QUESTIONS = 10


class Step(NamedTuple):
    path: str
    name: str
    words: str

    @property
    def elsewhere(self) -> bool:
        """In another process, or called back: no reference leads here."""
        return self.words.startswith("(")


def questions() -> dict[str, list[Step]]:
    section = TEXT.partition("## Ten questions")[2].partition("\n## ")[0]
    _, *parts = section.split("\n### ")
    return {part.partition("\n")[0]: [Step(*found.groups()) for found in STEP.finditer(part)] for part in parts}


def defined_in(path: str) -> set[str]:
    """`function`, `Class` and `Class.method` of a module."""
    names: set[str] = set()
    for node in ast.parse((REPOSITORY / path).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return names


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(FILE.findall(TEXT))
    assert len(named) > 60
    assert [one for one in sorted(named) if not any((REPOSITORY / folder / one).exists() for folder in FOLDERS)] == []


def test_every_definition_that_the_page_names_is_there() -> None:
    """`Class.method`, or `module.function`; other names, such as keys, do not have these forms."""
    held: set[str] = set()
    for path in (one for root in ("procguard", "remote_agent") for one in (REPOSITORY / root).rglob("*.py")):
        if path.stem in SHORT or str(path.relative_to(REPOSITORY)) in TEXT:
            names = defined_in(str(path.relative_to(REPOSITORY)))
            held |= names | {f"{path.stem}.{name}" for name in names}
    others = {"remote_agent.protocol", "state.state_file", "logs.archive"}
    assert sorted(set(DEFINITION.findall(TEXT)) - held - others) == []


def test_the_page_has_its_questions() -> None:
    found = questions()
    assert len(found) == QUESTIONS
    assert [question for question, steps in found.items() if len(steps) < 2] == []


@pytest.mark.parametrize("question", questions())
def test_each_step_is_where_the_page_says_and_leads_to_the_next(question: str) -> None:
    steps = questions()[question]
    for step in steps:
        assert step.name in defined_in(step.path), step
    for step, following in zip(steps, steps[1:], strict=False):
        if not following.elsewhere:
            wanted = following.name.rpartition(".")[2]
            text = (REPOSITORY / step.path).read_text(encoding="utf-8")
            assert re.search(rf"\b{wanted}\b", text), f"{step.path} does not mention {wanted}"
