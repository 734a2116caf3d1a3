"""docs/architecture.md answers its questions by paths that can be followed: every step is there, and each leads on."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
STEP = re.compile(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`: (.*)$", re.MULTILINE)
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
