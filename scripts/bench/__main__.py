"""`python -m scripts.bench NAME …`: runs one benchmark. SIGTERM, or the death of the parent process, ends it in the
same way as Ctrl-C: it stops the servers and agents that it started."""

from __future__ import annotations

import ctypes
import importlib
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1  # prctl(2)


def main(name: str, *arguments: str) -> int:
    signal.signal(signal.SIGTERM, _end)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return int(importlib.import_module(f"scripts.bench.{name}").main(list(arguments)))


def _end(number: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
