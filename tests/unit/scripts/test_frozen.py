"""Compatibility: no wire name, key, command or field of the API of a release is removed or changed."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from procguard import __version__
from scripts import frozen

FILES = sorted(frozen.FOLDER.glob("*/*.txt"))
WHAT_TO_DO = (
    "Keep the old name beside the new one, or make the demand optional. Only while the version is not released yet: "
    "invoke freeze"
)


@functools.cache
def surface() -> dict[str, list[str]]:
    return frozen.surface()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_a_release_froze_is_there_and_nothing_more_is_demanded(path: Path) -> None:
    gone, demands = frozen.differences(path.read_text(encoding="utf-8").splitlines(), surface()[path.name])
    text = [f"frozen by {path.parent.name}, and gone: {line}" for line in gone]
    text += [f"not asked of callers of {path.parent.name}: {line.removeprefix(frozen.MUST)}" for line in demands]
    assert not text, "\n".join([*text, WHAT_TO_DO])


def test_each_part_of_this_version_is_frozen() -> None:
    """A new version starts with the folder that `invoke freeze` writes."""
    assert {path.name for path in FILES if path.parent.name == __version__} == set(surface())
    assert all(surface().values())


BEFORE = ["GET /x | 200 json .a: string", "must GET /x | id", "ps | --select VALUE"]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (BEFORE, ([], [])),
        ([*BEFORE, "GET /x | 200 json .b: string", "GET /y | by viewer", "must GET /y | id"], ([], [])),
        (BEFORE[:2], (["ps | --select VALUE"], [])),
        (["GET /x | 200 json .a: integer", *BEFORE[1:]], (["GET /x | 200 json .a: string"], [])),
        ([*BEFORE, "must GET /x | limit"], ([], ["must GET /x | limit"])),
        ([BEFORE[0], BEFORE[2]], ([], [])),
    ],
    ids=["same", "additions", "option removed", "type changed", "new demand", "demand dropped"],
)
def test_additions_are_allowed_and_losses_are_not(now: list[str], expected: tuple[list[str], list[str]]) -> None:
    assert frozen.differences(BEFORE, now) == expected
