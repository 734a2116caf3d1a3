"""A table test names its failing rows, runs all of them, and has the fixtures of its test."""

from __future__ import annotations

import pytest

from tests.rows import each


def test_every_row_is_tried_and_those_that_fail_are_named() -> None:
    tried = []

    @each("row", ["a", "b", "c"])
    def table(row: str) -> None:
        tried.append(row)
        assert row == "b"

    with pytest.raises(AssertionError, match=r"2 of 3 failed: a, c\n[\s\S]*---- a\n[\s\S]*assert row == \"b\""):
        table()
    assert tried == ["a", "b", "c"]


@each("row", [1, 2])
def test_fixtures_are_those_of_the_test(row: int, request: pytest.FixtureRequest) -> None:
    assert row in (1, 2) and request.node.name == "test_fixtures_are_those_of_the_test"


def test_an_empty_table_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="tests nothing"):
        each("row", [])
