"""Compute a value in a forked process while the caller goes on: imports hold the interpreter, a thread gains little.

Knows nothing of what is computed. The value crosses a pipe by `marshal`: bytes, numbers, text, and lists and
dictionaries of them.
"""

from __future__ import annotations

import marshal
import os
import threading
from collections.abc import Callable
from typing import Any


class Ahead:
    """`make` runs at once in a child process. Without `os.fork`, or beside other threads, it does not run at all."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._made: Any = None
        if threading.active_count() > 1 or not hasattr(os, "fork"):
            return
        self._pipe, pipe = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._pipe)
                with open(pipe, "wb") as file:
                    file.write(marshal.dumps(make()))
            finally:
                os._exit(0)
        os.close(pipe)

    def value(self) -> Any:
        """What `make` returned; None where it failed or did not run. Waits for it. Safe to call from many threads."""
        with self._lock:
            if self._pid:
                with open(self._pipe, "rb") as file:
                    data = file.read()
                os.waitpid(self._pid, 0)
                self._pid = 0
                self._made = marshal.loads(data) if data else None  # noqa: S302 - of our own child
            return self._made
