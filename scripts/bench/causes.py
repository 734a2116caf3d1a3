"""invoke bench causes: the processor time that a runner needs to determine the cause of a failed attempt.

Reads every text of tests/golden/last_lines, once alone and once at the end of a log of one megabyte. The anchor in
the same run is one start of /bin/true by fork and exec, a cost that every attempt has as well.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from remote_agent.runner.failure_causes.proof import of_attempt
from scripts.bench import common

GOAL_MS = 5.0
ROUNDS = 5
CHATTER = b"".join(b"step %d loss 0.%d it/s 12.4\n" % (number, number) for number in range(40_000))[-(1 << 20) :]


def main(arguments: list[str]) -> int:
    report = common.Report("causes")
    folder = tempfile.mkdtemp(prefix="pgb")
    try:
        for about, before in (("its log alone", b""), ("at the end of 1 MiB", CHATTER)):
            costs = _costs(folder, before)
            report.add(f"an end, {about}: median", statistics.median(costs), "ms", anchor=_start_ms(),
                       anchor_name="a start of /bin/true")  # fmt: skip
            report.add(f"an end, {about}: the dearest", max(costs), "ms", goal=GOAL_MS)
    finally:
        shutil.rmtree(folder)
    return report.finish()


def _costs(folder: str, before: bytes) -> list[float]:
    """The minimum processor time of several rounds for each text, in ms."""
    found = []
    for path in sorted(Path(common.ROOT, "tests", "golden", "last_lines").glob("*.log")):
        head, _, text = path.read_bytes().partition(b"\n")
        kind, number, *_ = head.decode().partition(" -> ")[0].split()
        code, signal = (int(number), None) if kind == "code" else (None, int(number))
        log = os.path.join(folder, "1.log")
        Path(log).write_bytes(before + text)
        least = float("inf")
        for _ in range(ROUNDS):
            began = time.thread_time()
            of_attempt([("out", log)], code, signal)
            least = min(least, time.thread_time() - began)
        found.append(least * 1000)
    return found


def _start_ms() -> float:
    """Processor time of one start, of both processes together, in ms."""
    began = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    for _ in range(20):
        subprocess.run(["/bin/true"], check=True)
    ended = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    used = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(began, ended, strict=True))
    return used * 1000 / 20


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
