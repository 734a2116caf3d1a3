"""Tables fit the terminal: nothing is wider, and important columns stay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.console import grid
from procguard.console.grid import Cell, Column

COLUMNS: tuple[Column[dict[str, Any]], ...] = (
    Column("NAME", lambda view: view["name"], long=True),
    Column("STATE", lambda view: Cell(view["state"], "blue")),
    Column("PID", lambda view: view["pid"], 3),
    Column("GPU", lambda view: "", 4),
    Column("LABELS", lambda view: view["name"], 9, wide=True),
    Column("WHY", lambda view: view["why"], 1, long=True),
)
VIEW = {"name": "train-1", "state": "● running", "pid": 4711, "why": "exit code 1 after 0.1 s; restart 1 of 3 in 5 s"}


def test_columns_that_are_empty_or_only_for_wide_are_left_out() -> None:
    title, row = grid.render(COLUMNS, [VIEW], None)
    assert title.split() == ["NAME", "STATE", "PID", "WHY"]
    assert row.endswith(VIEW["why"])
    assert grid.render(COLUMNS, [VIEW], None, everything=True)[0].split() == ["NAME", "STATE", "PID", "LABELS", "WHY"]


def test_a_long_text_is_shortened_before_a_column_goes() -> None:
    title, row = grid.render(COLUMNS, [VIEW], 60)
    assert "PID" in title and row.endswith("…") and len(row) <= 60
    assert "PID" not in grid.render(COLUMNS, [VIEW], 38)[0]


@given(st.text(max_size=40), st.text(max_size=60), st.integers(20, 130))
def test_no_line_is_wider_than_the_terminal(name: str, why: str, width: int) -> None:
    for line in grid.render(COLUMNS, [{**VIEW, "name": name, "why": why}], width):
        assert grid.width_of(line) <= width


def test_chinese_texts_take_two_columns_each() -> None:
    rows = grid.render(COLUMNS, [{**VIEW, "name": "训练任务"}, {**VIEW, "name": "abcdefgh"}], None)[1:]
    assert [grid.width_of(row[: row.index("●")]) for row in rows] == [10, 10]
    assert grid.shortened("训练任务", 5) == "训练…"


@given(st.text("ab 训练任务，", max_size=200), st.integers(10, 60))
def test_a_wrapped_text_is_whole_and_no_line_is_too_wide(text: str, width: int) -> None:
    lines = grid.wrapped(text, width, "  ")
    assert "".join("".join(lines).split()) == "".join(text.split())
    longest = max((grid.width_of(word) for word in text.replace("，", " ， ").split()), default=0)
    assert all(grid.width_of(line) <= max(width, longest + 2) for line in lines)


def test_a_strangers_text_stays_on_its_line_and_steers_nothing() -> None:
    (_, row) = grid.render(COLUMNS, [{**VIEW, "why": "\x1b[2Jgone\nforged: well"}], None)
    assert "\x1b" not in row and "\n" not in row


@pytest.mark.parametrize(("colour", "shown"), [(True, "\x1b[34m● running\x1b[0m"), (False, "● running  ")])
def test_colours_are_for_terminals(colour: bool, shown: str) -> None:
    assert shown in grid.render(COLUMNS, [VIEW], None, colour=colour)[1]
