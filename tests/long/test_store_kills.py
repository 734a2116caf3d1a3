"""The long form of tests/unit/fleet/store/test_store_kills.py: 200 kills of each store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.fleet.store.test_store_kills import killed_again_and_again
from tests.unit.store_rig import KINDS


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_kills_lose_nothing(tmp_path: Path, kind: str) -> None:
    assert killed_again_and_again(tmp_path / "state" / f"s{kind}", 200) > 200
