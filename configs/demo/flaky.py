"""An example worker that crashes now and then, each time in another way. Standard library only."""

from __future__ import annotations

import os
import random
import signal
import sys
import time


def main() -> None:
    lifetime_s = random.uniform(20, 60)
    print(f"attempt {os.environ.get('PROCGUARD_ATTEMPT', '?')}: alive, and well for a while", flush=True)
    began = time.monotonic()
    while time.monotonic() - began < lifetime_s:
        time.sleep(1)
        print(f"working, {time.monotonic() - began:.0f} s", flush=True)
    way = random.choice(("exception", "exit", "signal"))
    print(f"now failing by {way}", flush=True)
    if way == "exit":
        sys.exit(3)
    if way == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    raise RuntimeError("the disk of the example is full")


if __name__ == "__main__":
    main()
