"""A helper process that reads and writes JSON, one message per line: the SSH helper, the process that holds tunnels.

Uses plain `threading` and `subprocess`, which gevent has patched by the time the manager imports this module, so that
waiting does not block the event loop. Does not interpret messages.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterable
from typing import Any

from procguard import resources
from procguard.json_types import Json

END_S = 2.0  # time to exit after its input was closed


class JsonProcess:
    """A running helper process. `on_message` is called with each message that it writes, one at a time; `on_end` with
    this object once it has exited. Both are called in a dedicated thread."""

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
            start_new_session=True,  # only the manager receives Ctrl-C from its terminal
        )
        self.pid: int = self._process.pid
        threading.Thread(target=self._read, daemon=True).start()

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        code: int | None = self._process.poll()
        return code

    def send(self, messages: Iterable[Json]) -> None:
        """Write messages to the process. Raises OSError or ValueError if it has exited."""
        self._process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close the input, which makes the process exit; kill it if it does not within END_S."""
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
