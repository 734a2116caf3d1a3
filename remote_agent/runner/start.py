"""Starts a runner: reads the options of __main__.py, takes the worker's lock and socket, and runs the loop.

--stop: the desired state is stopped, which could not be written to spec.json because the disk is full. --seen:
processes of this boot that the agent observed below a runner that has died.

The command exits with 0 when the daemon listens on its socket, and with EXIT_ALREADY_RUNNING if another runner has the
worker. The daemon exits when the worker is settled. SIGHUP is ignored; SIGTERM stops the child, and the next runner
starts the worker again. Runner and loop import as little as possible, to stay small and to start quickly.
"""

from __future__ import annotations

import os

from remote_agent.runner.control import EXIT_CANNOT_START, EXIT_STARTED, EXIT_USAGE
from remote_agent.runner.lock import CannotStart, listen, refuse_second, take_lock
from remote_agent.runner.loop import Runner, report
from remote_agent.system import paths

MAX_RUNNER_LOG_BYTES = 256 * 1024
USAGE = (
    "usage: remote_agent.runner --worker-dir D --runtime-dir R [--lease EPOCH:UNTIL_NS] [--stop GENERATION:EPOCH] "
    "[--seen PID:START,…] [--foreground]"
)


def leave_terminal(log_path: str) -> None:
    """Change the daemon's working directory and standard streams."""
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


def main(arguments: list[str], report_to: int = -1) -> int:
    """`report_to`: in a daemon, the descriptor on which the starting process waits for the exit code (one byte); -1: in
    the foreground."""
    try:
        options = parse(arguments)
        worker_dir, runtime_dir = options.worker_dir, options.runtime_dir
        lock = take_lock(paths.runner_lock(runtime_dir, worker_dir))
        refuse_second(worker_dir, runtime_dir)
        listener = listen(paths.runner_socket(runtime_dir, worker_dir))
    except CannotStart as exc:
        return _refuse(report_to, exc.code, str(exc))
    except (OSError, ValueError) as exc:
        return _refuse(report_to, EXIT_CANNOT_START, f"cannot start: {exc}")
    if report_to >= 0:
        leave_terminal(paths.runner_log(worker_dir))
        _say(report_to, EXIT_STARTED)
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


def _refuse(report_to: int, code: int, text: str) -> int:
    report(text)
    if report_to >= 0:
        _say(report_to, code)
    return code


def _say(report_to: int, code: int) -> None:
    try:
        os.write(report_to, bytes([code]))
    except OSError:  # the reader has gone
        pass
