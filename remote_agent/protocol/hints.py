"""The names of `typing` for annotations, without the module: 0.6 MB of each agent's memory, and 3 ms of each start.

Nobody evaluates an annotation on a host (every module has `from __future__ import annotations`), so that a name which
can be subscripted is enough there. Whoever has loaded `typing` already gets the true ones: the manager, whose pydantic
reads the messages' annotations, and every tool and test.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING or "typing" in sys.modules:
    from typing import (
        IO,
        Any,
        Callable,
        Dict,
        Iterable,
        Iterator,
        List,
        Literal,
        Mapping,
        Optional,
        Protocol,
        Set,
        Tuple,
        Union,
    )
else:

    class _Name:
        def __getitem__(self, parameters: object) -> _Name:
            return self

    IO = Any = Callable = Dict = Iterable = Iterator = List = Literal = Mapping = Optional = Set = Tuple = Union = (
        _Name()
    )
    Protocol = object

__all__ = [
    "IO", "TYPE_CHECKING", "Any", "Callable", "Dict", "Iterable", "Iterator", "List", "Literal", "Mapping", "Optional",
    "Protocol", "Set", "Tuple", "Union",
]  # fmt: skip
