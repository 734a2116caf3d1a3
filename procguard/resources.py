"""Files of ProcGuard that are not modules: the portal's pages, playbooks, examples, documents.

In a checkout they are at its root. A wheel has them in `procguard/data`, in the same layout, so that relative
references between files (`inventory_dir/../configs/demo`) work in both. Imports nothing of procguard.
"""

from __future__ import annotations

import os

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_DATA = os.path.join(_PACKAGE, "data")


def is_installed() -> bool:
    """Whether this is a wheel's copy; otherwise it is a checkout's."""
    return os.path.isdir(_DATA)


def root() -> str:
    """The folder that holds `web`, `playbooks`, `inventory`, `configs` and `docs`."""
    return _DATA if is_installed() else os.path.dirname(_PACKAGE)


def path(*parts: str) -> str:
    """The path of a file in this installation: `path("inventory", "demo.yaml")`."""
    return os.path.join(root(), *parts)


def import_root() -> str:
    """The folder from which procguard and remote_agent are imported."""
    return os.path.dirname(_PACKAGE)
