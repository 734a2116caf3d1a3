"""Runs calls that may never return (hung file systems, drivers) in separate threads with a timeout.

Owns these threads. A call that hangs leaves its thread behind, at most one per key: while it hangs, further calls for
the key fail at once. For hangs that even SIGKILL cannot end (GPU drivers), use a separate process instead.
"""

from __future__ import annotations

import threading

from remote_agent.protocol.hints import Any, Callable


class HangsError(Exception):
    """The call did not return in time, or an earlier call with the same key still hangs."""


class Bounded:
    """Can be used from several threads, but by one at a time per key."""

    def __init__(self) -> None:
        self._hanging: dict[str, threading.Thread] = {}

    def call(self, key: str, function: Callable[[], Any], timeout_s: float) -> Any:
        """Run `function` and return its result or raise its error. Raises HangsError after `timeout_s`."""
        former = self._hanging.pop(key, None)
        if former is not None and former.is_alive():
            self._hanging[key] = former
            raise HangsError("an earlier try still hangs")
        outcome: list[tuple[bool, Any]] = []

        def run() -> None:
            try:
                outcome.append((True, function()))
            except Exception as exc:
                outcome.append((False, exc))

        thread = threading.Thread(target=run, name=f"procguard-{key}"[:15], daemon=True)
        thread.start()
        thread.join(timeout_s)
        if not outcome:
            self._hanging[key] = thread
            raise HangsError(f"no answer within {timeout_s:g} s")
        worked, value = outcome[0]
        if not worked:
            raise value
        return value
