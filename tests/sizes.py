"""How much a test tries: a quarter in `invoke check`, all of it in ./run_tests.sh, many times as much in the long form
(PROCGUARD_LONG_TESTS=1)."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("PROCGUARD_LONG_TESTS"))
QUICK = bool(os.environ.get("PROCGUARD_QUICK_TESTS"))  # set by scripts/dev_tasks.py


def examples(usual: int, long: int = 0) -> int:
    """How many, where ./run_tests.sh tries `usual`; `long`: what the long form tries, if that is another number."""
    if LONG:
        return long or usual
    return max(3, usual // 4) if QUICK else usual
