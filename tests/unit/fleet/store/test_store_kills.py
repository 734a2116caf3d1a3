"""kill -9 at random points: every acknowledged change survives, and no epoch is granted twice."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.store_writer import Writer, lost
from tests.unit.store_rig import KINDS, loaded


def killed_again_and_again(path: Path, kills: int) -> int:
    """Returns how many changes were acknowledged."""
    path.parent.mkdir()
    chance = random.Random(20261124)
    changes: set[int] = set()
    epochs: list[int] = []
    for _ in range(kills):
        writer = Writer(path)
        try:
            writer.wait_for(chance.randrange(1, 40))
            time.sleep(chance.uniform(0, 0.02))  # not at an acknowledgement, but anywhere
        finally:
            writer.kill()
        changes |= set(writer.changes)
        epochs += writer.epochs
        found = loaded(path)
        assert found.intact, found.notes
        assert lost(changes, found) == set()
    assert epochs == sorted(set(epochs))
    return len(changes)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_five_kills_lose_nothing(tmp_path: Path, kind: str) -> None:
    assert killed_again_and_again(tmp_path / "state" / f"s{kind}", 5) > 5
