"""A process of ours that reads and writes JSON, one message a line: the SSH helper, the process that keeps tunnels.

Uses plain `threading` and `subprocess`, which gevent has patched by the time the manager imports this: waits then cost
the event loop nothing. Knows no message.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterable
from typing import Any

from procguard import resources

END_S = 2.0  # after its input has ended

Json = dict[str, Any]


class JsonProcess:
    """`on_message` takes what it writes, one at a time; `on_end`, this object, once it has ended. Both are called in a
    thread of its own."""

    def __init__(
        self, command: list[str], on_message: Callable[[Json], None], on_end: Callable[[JsonProcess], None]
    ) -> None:
        self._on_message = on_message
        self._on_end = on_end
        path = os.pathsep.join(filter(None, (resources.import_root(), os.environ.get("PYTHONPATH", ""))))
        self._process: Any = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C at the manager's terminal is the manager's to answer
        )
        self.pid: int = self._process.pid
        threading.Thread(target=self._read, daemon=True).start()

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        code: int | None = self._process.poll()
        return code

    def send(self, messages: Iterable[Json]) -> None:
        """Raises OSError or ValueError where it has ended."""
        self._process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """It ends as its input does, or is killed."""
        try:
            self._process.stdin.close()
            self._process.wait(END_S)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()

    def _read(self) -> None:
        try:
            for line in self._process.stdout:
                self._on_message(json.loads(line))
        except (OSError, ValueError):
            self._process.kill()
        self._process.stdout.close()
        self._process.wait()
        self._on_end(self)
