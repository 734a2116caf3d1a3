"""Run as the first process of a pid namespace: python -m tests.unit.pid_reuse ROUNDS

In each round a process of ours ends and a stranger gets its pid, while somebody goes on signalling ours: by its
recorded identity, and as a dead runner's recorded child that is to be swept. Prints how many pids were reused, how
many strangers were hit, and how many of ours were missed while they lived.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from remote_agent.system import processes

LAST_PID = "/proc/sys/kernel/ns_last_pid"
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def with_pid(wanted: int) -> int | None:
    """A new process with this very pid; None where somebody was quicker."""
    with open(LAST_PID, "w", encoding="ascii") as file:
        file.write(str(wanted - 1))
    pid = sleeper()
    if pid == wanted:
        return pid
    end(pid)
    return None


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def alive(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


def one_round() -> tuple[int, int, int]:
    """(reused, wrong, missed), each 0 or 1."""
    ours = sleeper()
    identity = processes.identity_of(ours)
    assert identity is not None
    time.sleep(TICK_S * 1.5)  # start times are in ticks: a pid reused within one is out of any kernel's reach
    reached = processes.send_signal(identity, signal.SIGKILL)
    os.waitpid(ours, 0)
    stranger = with_pid(ours)
    if stranger is None:
        return 0, 0, int(not reached)
    hit = processes.send_signal(identity, signal.SIGKILL)
    swept = processes.members_left_behind(identity, "no such cookie")
    hit = processes.signal_all(swept, signal.SIGKILL) > 0 or hit
    hit = processes.is_alive(identity) or hit
    unharmed = alive(stranger)
    if unharmed:
        end(stranger)
    return 1, int(hit or not unharmed), int(not reached)


def main(rounds: int) -> int:
    try:
        with open(LAST_PID, encoding="ascii"):
            pass
    except OSError as exc:
        print(f"cannot choose pids here: {exc}", file=sys.stderr)
        return 1
    totals = [0, 0, 0]
    while totals[0] < rounds:
        totals = [total + one for total, one in zip(totals, one_round())]
    print("reused", totals[0], "wrong", totals[1], "missed", totals[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
