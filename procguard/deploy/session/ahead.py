"""Compute a value in a forked process while the caller continues. A thread would gain little, because imports hold the
interpreter lock.

Independent of what is computed. The value is sent through a pipe by `marshal`: bytes, numbers, text, and lists and
dictionaries of them.
"""

from __future__ import annotations

import marshal
import os
import threading
from collections.abc import Callable
from typing import Any


class Ahead:
    """Runs `make` immediately in a child process. It does not run without `os.fork`, or if the process has other
    threads."""

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
        """Wait for the result of `make`; None if it failed or did not run. Safe to call from several threads."""
        with self._lock:
            if self._pid:
                with open(self._pipe, "rb") as file:
                    data = file.read()
                os.waitpid(self._pid, 0)
                self._pid = 0
                self._made = marshal.loads(data) if data else None  # noqa: S302 - of our own child
            return self._made
