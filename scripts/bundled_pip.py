"""`python -I scripts/bundled_pip.py install …`: the pip that comes with this Python, run without installing it.

Installing pip into a virtual environment would take a third of the time that installing the packages of runtime.lock
takes. Standard library only; setup_venv.sh starts it.
"""

from __future__ import annotations

import ensurepip
import glob
import os
import runpy
import sys


def wheel() -> str:
    """The path of the bundled wheel, which Debian keeps in another folder than Python itself."""
    locations = [
        getattr(ensurepip, "_WHEEL_PKG_DIR", None),
        os.path.join(os.path.dirname(ensurepip.__file__), "_bundled"),
    ]
    found = [path for place in locations if place for path in glob.glob(os.path.join(place, "pip-*.whl"))]
    if not found:
        sys.exit(f"{sys.executable} has the module ensurepip, but no pip in it")
    return found[0]


if __name__ == "__main__":
    sys.path.insert(0, wheel())
    sys.argv[0] = "pip"
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
