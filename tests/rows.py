"""A table of cases as one test, because pytest's overhead per test exceeds the cost of most cases."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable
from typing import Any

SHOWN = 5  # failures that are shown with all they say


def each(name: str, rows: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `pytest.mark.parametrize(name, rows)`, in one test, which tries every row and fails with the names of those
    that did. Fixtures are made once: a row must not depend on what the one before left."""
    cases = list(rows)
    assert cases, "an empty table tests nothing"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def all_rows(**fixtures: Any) -> None:
            failed: dict[str, str] = {}
            for row in cases:
                try:
                    test(**fixtures, **{name: row})
                except Exception:
                    failed[str(row)] = traceback.format_exc()
            if failed:
                reported = "\n".join(f"---- {row}\n{why}" for row, why in list(failed.items())[:SHOWN])
                raise AssertionError(f"{len(failed)} of {len(cases)} failed: {', '.join(failed)}\n{reported}")

        signature = inspect.signature(test)
        left = [one for one in signature.parameters.values() if one.name != name]
        all_rows.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return all_rows

    return decorate
