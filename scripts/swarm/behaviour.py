"""The behaviour of simulated agents and workers, and scripts of events that happen to them at given times.

A script is a text file with one step per line: TIME ACTION [AMOUNT]

    # at    what       how many (a share or a number; without one: all)
    10s     kill       10%        agents die; their workers' processes keep running
    15s     silence    5          agents hang: connections stay open, nothing is sent
    30s     return     all        killed and silent agents return
    40s     storm                 every connection breaks at once; the agents reconnect by their own retry rule
    50s     crash      20%        the children of this many workers end by SIGKILL
    55s     finish     3          … end with exit code 0
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from procguard.errors import UsageError

AGENT_ACTIONS = ("kill", "silence", "return", "storm")
WORKER_ACTIONS = ("crash", "finish")


@dataclass(frozen=True)
class Behaviour:
    """Rates are those of the whole swarm unless stated otherwise; shares are from 0 to 1."""

    crashes_per_s: float = 0.0  # children that end by SIGKILL
    log_lines_per_s: float = 0.0  # of each running worker
    stubborn: float = 0.0  # share of workers that never end when they are stopped
    refuse: float = 0.0  # share of workers that answer restart and kill with "failed"
    deaf_once: tuple[str, ...] = ()  # ids of workers whose first stop or kill has no effect, but the next one has
    stop_takes_s: float = 0.2
    gpus: bool = False  # every worker has one, with different numbers
    gpus_per_host: int = 0  # GPUs of each host: one per worker (with `gpus`), some idle, some used by other processes
    usage_every_s: float = 1.0  # interval at which a worker's CPU and memory change


class Step(NamedTuple):
    at_s: float
    action: str
    amount: float | int | None  # a share (float), a number (int), None: all


def read_script(text: str, name: str) -> list[Step]:
    """The steps of a script. Raises UsageError that names the line."""
    steps = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) not in (2, 3) or words[1] not in AGENT_ACTIONS + WORKER_ACTIONS:
            raise UsageError(
                f"{name}:{number}: {line.strip()[:80]!r} is not TIME ACTION [AMOUNT]",
                f"e.g. '10s kill 10%'; actions: {', '.join(AGENT_ACTIONS + WORKER_ACTIONS)}",
            )
        try:
            steps.append(Step(seconds(words[0]), words[1], amount(words[2] if len(words) == 3 else "all")))
        except UsageError as exc:
            raise UsageError(f"{name}:{number}: {exc.message}", exc.next_step) from exc
    return sorted(steps, key=lambda step: step.at_s)


def seconds(text: str) -> float:
    """'90', '90s', '1.5m', '1h'. Raises UsageError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)?", text.strip())
    if match is None:
        raise UsageError(f"{text[:40]!r} is not a time", "write it like 90s, 5m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def amount(text: str) -> float | int | None:
    """'10%' -> 0.1, '5' -> 5, 'all' -> None. Raises UsageError."""
    if text == "all":
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%)?", text)
    if match is None or (match[2] is None and "." in text):
        raise UsageError(f"{text[:40]!r} is neither a share nor a number", "write it like 10%, 25 or all")
    return min(1.0, float(match[1]) / 100) if match[2] else int(match[1])
