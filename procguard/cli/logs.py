"""The command `logs`: the log of one worker as it is, or the logs of several workers merged by line, with prefixes."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

from procguard.cli.contexts import connect
from procguard.cli.program.command import operator_task
from procguard.console import grid, terminal
from procguard.errors import NotFound, ProcGuardError, UsageError

if TYPE_CHECKING:
    from procguard.client.client import Client

MOST_FOLLOWED = 100  # each takes a connection and a thread
NAME_COLOURS = ("cyan", "yellow", "green", "magenta", "blue")
QUEUED_LINES = 10_000


class LogFilters(TypedDict):
    """The parameters of a request for a log."""

    tail: int
    attempt: int | None
    stream: str
    since: str
    regex: str


@operator_task(
    ("workers+",),
    help={
        "workers": "worker ids, globs such as 'train-*', or conditions: group=trainers",
        "follow": "follow the log until Ctrl-C",
        "tail": "number of last lines of each worker",
        "attempt": "filter by attempt",
        "stream": "out or err, if stderr is separate",
        "since": "start of the range: 10m, 2h, or an ISO 8601 time",
        "regex": "filter by regular expression in RE2 syntax (docs/protocol.md)",
        "raw": "print escape sequences unchanged; by default only colours are kept",
    },
)
def logs(
    workers: list[str],
    follow: bool = False,
    tail: int = 200,
    attempt: int = 0,
    stream: str = "",
    since: str = "",
    regex: str = "",
    raw: bool = False,
) -> None:
    """Show the log of a worker over all attempts, or of several workers, merged. Example: invoke logs 'train-*' -f

    On a terminal, control sequences other than colours are removed; a file or a pipe receives the log unchanged. Lines
    of several workers are ordered by time and prefixed with the worker's name.
    """
    query: LogFilters = {"tail": tail, "attempt": attempt or None, "stream": stream, "since": since, "regex": regex}
    manager = connect()
    names = _chosen(manager, workers)
    if len(names) > 1:
        _several(manager, names, query, follow)
    else:
        _one(manager, names[0], query, follow, raw)


def _chosen(manager: Client, words: list[str]) -> list[str]:
    """The worker ids that `words` select, in the order given, without duplicates. Full ids are not checked; the manager
    resolves globs and conditions. Raises NotFound if one of these matches nothing."""
    from procguard.fleet.workers.selectors import is_one_id

    names: dict[str, None] = {}
    for word in words:
        found = [word] if is_one_id(word) else sorted(str(one["worker_id"]) for one in manager.workers(select=word))
        if not found:
            raise NotFound(f"no worker matches {word}", "list them: invoke ps")
        names.update(dict.fromkeys(found))
    return list(names)


def _one(manager: Client, worker: str, query: LogFilters, follow: bool, raw: bool) -> None:
    out = terminal.raw(sys.stdout)
    pieces = manager.log_pieces(worker, **query)
    if follow:
        pieces = manager.follow_logs(worker, **query) if len(manager.urls) == 1 else _resumed(manager, worker, query)
    if raw or not out.isatty():
        for piece in pieces:
            out.buffer.write(piece)
            out.buffer.flush()
        return
    colours = terminal.Colours()
    try:
        for piece in pieces:
            out.write(colours.feed(piece))
            out.flush()
    finally:
        out.write(colours.feed(b"", final=True))
        out.flush()


def _resumed(manager: Client, worker: str, query: LogFilters) -> Iterator[bytes]:
    """The log's complete lines; continues with the new leader after a takeover."""
    for line in manager.follow_log_lines(worker, **query):
        yield line["text"].encode(errors="replace") + b"\n"


def _several(manager: Client, names: list[str], query: LogFilters, follow: bool) -> None:
    if len(names) > MOST_FOLLOWED:
        raise UsageError(
            f"{len(names)} logs at once: at most {MOST_FOLLOWED}", "narrow the selector, or: invoke search"
        )
    lines = _followed(manager, names, query) if follow else _tails(manager, names, query)
    width = max(map(grid.width_of, names))
    out = terminal.raw(sys.stdout)
    colour = out.isatty() and grid.coloured()
    for name, text in lines:
        head = name + " " * (width - grid.width_of(name)) + " |"
        paint = NAME_COLOURS[names.index(name) % len(NAME_COLOURS)]
        shown = terminal.Colours().feed(text.encode(errors="replace"), final=True) if out.isatty() else text
        out.write(f"{grid.painted(grid.Cell(head, paint), colour)} {shown}\n")
        out.flush()


def _tails(manager: Client, names: list[str], query: LogFilters) -> Iterator[tuple[str, str]]:
    found: list[tuple[float, str, str]] = []
    for name in names:
        found += [(line["at"], name, line["text"]) for line in manager.iterate_logs(name, **query)]
    found.sort(key=lambda one: one[0])  # stable: lines of one worker with equal times keep their order
    yield from ((name, text) for _, name, text in found)


def _followed(manager: Client, names: list[str], query: LogFilters) -> Iterator[tuple[str, str]]:
    """(worker id, line) in order of arrival. One thread follows each log; if the output is slow, the queue is full and
    the remaining lines wait at the manager."""
    waiting: queue.Queue[tuple[str, str] | ProcGuardError] = queue.Queue(QUEUED_LINES)

    def follow(name: str) -> None:
        try:
            for line in manager.iterate_logs(name, follow=True, **query):
                waiting.put((name, line["text"]))
            waiting.put((name, "[procguard: this log is no longer followed]"))
        except ProcGuardError as exc:
            waiting.put(exc)

    for name in names:
        threading.Thread(target=follow, args=(name,), daemon=True).start()
    while True:
        got = waiting.get()
        if isinstance(got, ProcGuardError):
            raise got
        yield got
