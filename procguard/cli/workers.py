"""Read-only commands for the fleet: ps, top, hosts, groups, describe, wait."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from procguard.cli.contexts import connect
from procguard.cli.program.command import OUTPUT, OutputOptions, operator_task
from procguard.console.grid import say_wrapped
from procguard.console.terminal import say, say_as_is
from procguard.errors import NotFound, PartlyFailed, UsageError
from procguard.fleet.shapes.hosts import HOST
from procguard.fleet.shapes.workers import WORKER

if TYPE_CHECKING:
    from procguard.console.tables import View

SELECT_TEXT = "selector of workers: id, glob, or group=trainers,state=running"
SORTS = ("cpu", "memory", "restarts", "state", "name")
POLL_INTERVAL_S = 0.5


@operator_task(help={"select": SELECT_TEXT})
def ps(select: str = "", output: OutputOptions = OUTPUT) -> None:
    """List workers and agents. Example: invoke ps --select state=failed

    `status` is an alias.
    """
    from procguard.cli.output.language import chosen
    from procguard.cli.output.listing import is_coloured, listed, say_painted
    from procguard.console import tables

    manager = connect()
    views, answer = manager.workers(select=select), manager.hosts()
    whole = {"workers": views, "hosts": answer["hosts"]}
    words = chosen(output.lang)
    listed(views, tables.workers(_now(), WORKER, words), output, "worker_id", whole=whole)
    if output.form in ("table", "wide"):
        say_painted(tables.summary(views, answer["hosts"], is_coloured(), words))


@operator_task()
def hosts(output: OutputOptions = OUTPUT) -> None:
    """List hosts: agent, load, last heartbeat, recovery over SSH. Example: invoke hosts"""
    from procguard.cli.output.language import chosen
    from procguard.cli.output.listing import listed
    from procguard.console import tables

    views = connect().hosts()["hosts"]
    empty = "no hosts yet: procguard deploy --hosts inventory/prod.yaml"
    listed(views, tables.hosts(_now(), HOST, chosen(output.lang)), output, "host", empty=empty)


@operator_task()
def groups(output: OutputOptions = OUTPUT) -> None:
    """List groups: members, phase, epoch, attempts, last incident. Example: invoke groups"""
    from procguard.cli.output import groups as shown
    from procguard.cli.output.language import chosen
    from procguard.cli.output.listing import listed

    views = connect().groups()
    empty = "no groups: a worker names its own with `group: NAME` (docs/groups.md)"
    words = chosen(output.lang)
    rows = views if output.form == "name" else shown.rows(words.translated(views), _now(), words)
    listed(rows, shown.COLUMNS, output, "group", whole=views, empty=empty)


@operator_task(
    help={
        "select": SELECT_TEXT,
        "sort": f"by {', '.join(SORTS)}",
        "every": "refresh interval, in seconds",
        "count": "number of refreshes (0: until Ctrl-C)",
    }
)
def top(select: str = "", sort: str = "cpu", every: float = 1.0, count: int = 0) -> None:
    """Show resource usage of workers, live, until Ctrl-C. Example: invoke top --sort memory"""
    from rich.live import Live
    from rich.text import Text

    from procguard.console.styled import console

    if sort not in SORTS:
        raise UsageError(f"--sort {sort} is not known", f"one of: {', '.join(SORTS)}")
    if every < 0.2:
        raise UsageError(f"--every {every:g}: at least 0.2 seconds", "leave it out for 1")
    manager, rounds = connect(), 0
    is_terminal = sys.stdout.isatty()
    live = Live(console=console(), screen=True, auto_refresh=False) if is_terminal else None
    if live:
        live.start()
    try:
        while True:
            size = shutil.get_terminal_size()
            lines = _top(manager.workers(select=select), manager.hosts()["hosts"], sort, size if live else None)
            if live:
                live.update(Text.from_ansi("\n".join(lines[: size.lines - 1])), refresh=True)
            else:
                for line in lines:
                    say_as_is(line)
            rounds += 1
            if rounds == count:
                return
            time.sleep(every)
    finally:
        if live:
            live.stop()


def _top(views: Sequence[View], host_views: Sequence[View], sort: str, size: Any) -> list[str]:
    from procguard.cli.output.language import chosen
    from procguard.console import grid, tables

    def key(view: View) -> Any:
        usage = view.get("usage") or {}
        by = {
            "cpu": -(usage.get("cpu_percent") or 0.0),
            "memory": -(usage.get("rss_bytes") or 0),
            "restarts": -(view.get("restarts_total") or 0),
            "state": str(view["state"]),
            "name": str(view["worker_id"]),
        }
        return by[sort], str(view["worker_id"])

    now, words, colour = _now(), chosen(), size is not None and grid.coloured()
    head = f"{now.astimezone():%H:%M:%S}  {tables.summary(views, host_views, colour, words)}"
    width = size.columns if size else None
    shown = words.translated(sorted(views, key=key))
    columns = tables.workers(now, WORKER, words, progress=any(one.get("progress_percent") is not None for one in views))
    return [head, "", *grid.render(columns, shown, width, colour=colour)]


@operator_task(("worker",), help={"worker": "worker id"})
def describe(worker: str, output: OutputOptions = OUTPUT) -> None:
    """Show the details and events of a worker. Example: invoke describe worker1"""
    from procguard.cli.output import description
    from procguard.cli.output.language import chosen
    from procguard.cli.output.listing import say_yaml
    from procguard.console.terminal import say_json

    manager = connect()
    view = manager.worker(worker)
    if output.form in ("json", "yaml"):
        say_json(view) if output.form == "json" else say_yaml(view)
    elif output.form == "name":
        say_as_is(view["worker_id"])
    else:
        words = chosen(output.lang)
        explained = manager.explain(worker, words.language)
        events = manager.events(worker=worker, limit=description.EVENTS)
        try:
            declared = manager.specification(worker).get("declared")
        except NotFound:  # of an earlier manager
            declared = None
        for line in description.lines(words.translated(view), explained, events, _now(), words, declared):
            say_wrapped(line)


@operator_task(
    ("selector",),
    name="wait",
    help={
        "selector": "selector of workers: id, glob, or group=trainers",
        "for_": "running, exited, stopped or failed",
        "timeout": "timeout, in seconds",
    },
)
def wait(selector: str, for_: str = "running", timeout: float = 300.0) -> None:
    """Wait until workers reach a state. Example: invoke wait 'train-*' --for exited --timeout 86400

    Exits with code 2 on timeout, or as soon as a worker has failed and cannot reach the state without intervention.
    """
    from procguard.client import waiting
    from remote_agent.protocol import reasons

    if for_ not in waiting.STATES:
        raise UsageError(f"--for {for_} is not known", f"one of: {', '.join(waiting.STATES)}")
    outcome = connect().wait(selector, for_, timeout)
    if outcome.missing:
        named = reasons.listed([f"{name} ({state})" for name, state in outcome.missing.items()], 8)
        raise PartlyFailed(
            f"{len(outcome.missing)} of {outcome.total} not {for_}: {named}",
            f"why: procguard explain {next(iter(outcome.missing))}",
        )
    say(f"{outcome.total} {for_}")


def _now() -> datetime:
    return datetime.now(timezone.utc)
