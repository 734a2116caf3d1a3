"""`python -m procguard.main` with a Python without the dependencies: executes the script that has them.

Runs before any other import, so it knows only paths. Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def exec_script(script: str, argv: Sequence[str], missing: str) -> NoReturn:
    """Execute `./<script> argv…`, which creates .venv if it is missing. Exits with a message if that cannot help."""
    path = os.path.join(ROOT, script)
    in_own_venv = os.path.realpath(sys.prefix) == os.path.realpath(os.path.join(ROOT, ".venv"))
    if in_own_venv or not os.path.isfile(path):
        sys.exit(
            f"procguard: this Python ({sys.executable}) has no {missing}; install requirements/runtime.lock into it"
        )
    os.execv(path, [path, *argv])  # noqa: S606 - intended: this process becomes the script
