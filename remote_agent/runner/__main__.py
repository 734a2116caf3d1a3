"""The command that becomes a worker's runner: a small daemon that is the child's parent and outlives the agent.

    python3 -I -S remote_agent/runner/__main__.py --worker-dir D --runtime-dir R [--lease EPOCH:UNTIL_NS]
        [--stop GENERATION:EPOCH] [--seen PID:START,…] [--foreground]

--stop: the desired state is stopped, which could not be written to spec.json because the disk is full. --seen:
processes of this boot that the agent observed below a runner that has died.

Exits with 0 when the daemon listens on its socket, and with EXIT_ALREADY_RUNNING if another runner has the worker.
The daemon exits when the worker is settled. SIGHUP is ignored; SIGTERM stops the child, and the next runner starts
the worker again. This file contains only argument parsing and daemonising, because it is compiled
at each start; runner and loop import only what keeps them below 12 MB.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # -I leaves the script's directory out of the path; this is the release's
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from remote_agent.runner.control import EXIT_CANNOT_START, EXIT_STARTED, EXIT_USAGE
from remote_agent.runner.lock import CannotStart, listen, refuse_second, take_lock
from remote_agent.runner.loop import Runner, report
from remote_agent.system import paths

MAX_RUNNER_LOG_BYTES = 256 * 1024
USAGE = (
    "usage: remote_agent.runner --worker-dir D --runtime-dir R [--lease EPOCH:UNTIL_NS] [--stop GENERATION:EPOCH] "
    "[--seen PID:START,…] [--foreground]"
)


def daemonise(log_path: str) -> bool:
    """Become a daemon by forking. True in the daemon, False in the original process."""
    if os.fork() != 0:
        return False
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    os.chdir("/")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        if os.path.getsize(log_path) > MAX_RUNNER_LOG_BYTES:
            flags |= os.O_TRUNC
    except OSError:
        pass
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        log = os.open(log_path, flags, paths.PRIVATE_FILE)
    except OSError:
        log = nothing
    for target, source in ((0, nothing), (1, nothing), (2, log)):
        os.dup2(source, target)
    return True


def close_inherited(keep: set[int]) -> None:
    """Close all inherited descriptors except `keep`: the daemon may live for months."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass


class RunnerOptions:
    """Options of the command line."""

    def __init__(self) -> None:
        self.worker_dir = self.runtime_dir = ""
        self.lease = (0, 0)
        self.wanted: dict[str, object] = {}
        self.seen: list[tuple[int, int]] = []
        self.foreground = False


def parse(arguments: list[str]) -> RunnerOptions:
    values = {"--worker-dir": "", "--runtime-dir": ""}
    options = RunnerOptions()
    rest = iter(arguments)
    for word in rest:
        if word == "--foreground":
            options.foreground = True
        elif word == "--lease":
            options.lease = read_pair(word, next(rest, ""), "EPOCH:UNTIL_NS")
        elif word == "--stop":
            generation, epoch = read_pair(word, next(rest, ""), "GENERATION:EPOCH")
            options.wanted = {"desired": "stopped", "generation": generation, "epoch": epoch}
        elif word == "--seen":
            options.seen = [read_pair(word, one, "PID:START,…") for one in next(rest, "").split(",")]
        elif word in values:
            values[word] = os.path.abspath(next(rest, "") or ".")
        else:
            raise CannotStart(EXIT_USAGE, f"unknown argument {word}; {USAGE}")
    if not all(values.values()):
        raise CannotStart(EXIT_USAGE, USAGE)
    options.worker_dir, options.runtime_dir = values["--worker-dir"], values["--runtime-dir"]
    return options


def read_pair(option: str, text: str, expected: str) -> tuple[int, int]:
    first, _, second = text.partition(":")
    if not first.isdigit() or not second.isdigit():
        raise CannotStart(EXIT_USAGE, f"{option} {text}: expected {expected}")
    return int(first), int(second)


def main(arguments: list[str]) -> int:
    try:
        options = parse(arguments)
        worker_dir, runtime_dir = options.worker_dir, options.runtime_dir
        lock = take_lock(paths.runner_lock(runtime_dir, worker_dir))
        refuse_second(worker_dir, runtime_dir)
        listener = listen(paths.runner_socket(runtime_dir, worker_dir))
    except CannotStart as exc:
        report(str(exc))
        return exc.code
    except (OSError, ValueError) as exc:
        report(f"cannot start: {exc}")
        return EXIT_CANNOT_START
    if not options.foreground and not daemonise(paths.runner_log(worker_dir)):
        os._exit(EXIT_STARTED)  # the daemon has lock and socket; nothing here may be cleaned up
    close_inherited({lock, listener.fileno()})
    runner = Runner(worker_dir, runtime_dir, lock, listener, options.lease, options.wanted, options.seen)
    try:
        runner.run()
    except (OSError, ValueError) as exc:
        report(f"ended: {exc}")
        return EXIT_CANNOT_START
    finally:
        runner.close()
    return EXIT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
