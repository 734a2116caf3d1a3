"""The manager where a module is not installed, for `forked.start`: `without_module MODULE WORDS`."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _NotInstalled(MetaPathFinder):
    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == self._module:
            raise ModuleNotFoundError(f"No module named {fullname}", name=fullname)


def main(words: list[str]) -> int | None:
    from procguard import main as manager

    module, *words = words
    assert module not in sys.modules
    sys.meta_path.insert(0, _NotInstalled(module))
    sys.argv[1:] = words
    return manager.main(words)
