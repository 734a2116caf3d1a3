"""The operator's tasks: `invoke X` in a checkout, `procguard X` once installed.

Only reads arguments, calls, prints and turns errors into exit codes: 0 all well, 1 the call was wrong, 2 some hosts or
workers failed, 3 the manager can't be reached. PROCGUARD_MANAGER_URL names the manager (default: the one on this
machine), PROCGUARD_TOKEN is for anywhere but the manager's own machine.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone

from invoke import Collection, Context, Program

from procguard import __version__
from procguard.cli import access as cli_access
from procguard.cli import deploy, forget, groups, history, operations, places, state, task
from procguard.cli.task import operator_task, print_table
from procguard.client import api
from procguard.console import terminal
from procguard.console.terminal import say_json
from procguard.fleet.workers import selectors

# ---------------------------------------------------------------------------------------------------- looking


@operator_task(help={"select": "only these workers: id, glob, or group=trainers,state=running", "json_": "as JSON"})
def status(_context: Context, select: str = "", json_: bool = False) -> None:
    """Workers and agents at a glance. Example: invoke status --select state=failed"""
    manager = api.from_environment()
    views, answer = manager.workers(), manager.hosts()
    if select:
        names = set(selectors.select(select, views))
        views = [view for view in views if view["worker_id"] in names]
    if json_:
        say_json({"workers": views, "hosts": answer["hosts"]})
        return
    from procguard.console import tables

    print_table(tables.workers(views, _now()))
    print_table(tables.summary(views, answer["hosts"]))


@operator_task(help={"json_": "as JSON"})
def hosts(_context: Context, json_: bool = False) -> None:
    """Hosts: agent, load, last sign of life, whether recovery over SSH works. Example: invoke hosts"""
    from procguard.console import tables

    views = api.from_environment().hosts()["hosts"]
    say_json(views) if json_ else print_table(tables.hosts(views, _now()))


@operator_task(
    ("worker",),
    help={
        "worker": "the worker's id",
        "follow": "go on as the log grows, until Ctrl-C",
        "tail": "how many lines back",
        "attempt": "only this start of the worker",
        "stream": "out or err (where stderr is kept apart)",
        "since": "only lines since then: 10m, 2h, or an ISO time",
        "regex": "only lines that match (RE2's dialect: docs/protocol.md)",
        "raw": "also to a terminal as the worker wrote it; else only its colours reach one",
    },
)
def logs(
    _context: Context,
    worker: str,
    follow: bool = False,
    tail: int = 200,
    attempt: int = 0,
    stream: str = "",
    since: str = "",
    regex: str = "",
    raw: bool = False,
) -> None:
    """The log of a worker, over all its attempts. Example: invoke logs worker1 -f

    A terminal is shown the text and its colours, nothing else that steers it; a file or a pipe gets what was written.
    """
    query = {"tail": tail, "attempt": attempt or None, "stream": stream, "since": since, "regex": regex}
    manager = api.from_environment()
    out = terminal.raw(sys.stdout)
    pieces = manager.follow_logs(worker, **query) if follow else manager.log_pieces(worker, **query)
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


# --------------------------------------------------------------------------------------------------- the manager


@operator_task(
    iterable=["set_"],
    help={
        "config": "configuration file",
        "host": "address to listen on",
        "port": "port to listen on",
        "set_": "one configuration value, e.g. web.port=5055; may be given again",
        "daemon": "run in the background",
        "status": "say whether one runs",
        "stop": "end it; its workers run on",
        "install_service": "start it at boot and when it dies (systemd user unit, or cron)",
        "remove_service": "undo --install-service",
        "demo": "manager, this machine as a host, three example workers",
    },
)
def manager(
    _context: Context,
    config: str = "",
    host: str = "",
    port: str = "",
    set_: list[str] | None = None,
    daemon: bool = False,
    status: bool = False,
    stop: bool = False,
    install_service: bool = False,
    remove_service: bool = False,
    demo: bool = False,
) -> None:
    """The manager: the same as ./start_manager.sh. Example: invoke manager --config configs/procguard_config.yaml"""
    words = [sys.executable, "-m", "procguard.main"]
    for flag, value in (("--config", config), ("--host", host), ("--port", port)):
        words += [flag, value] if value else []
    for setting in set_ or []:
        words += ["--set", setting]
    chosen = (
        ("--daemon", daemon),
        ("--status", status),
        ("--stop", stop),
        ("--demo", demo),
        ("--install-service", install_service),
        ("--remove-service", remove_service),
    )
    words += [flag for flag, wanted in chosen if wanted]
    sys.stdout.flush()
    os.execv(sys.executable, words)  # noqa: S606 - gevent must patch before anything else is imported


def _now() -> datetime:
    return datetime.now(timezone.utc)


# ------------------------------------------------------------------------------------------------- collections

TASKS = (
    *deploy.TASKS,
    status,
    hosts,
    *operations.TASKS,
    logs,
    history.search,
    history.events,
    places.move,
    places.cordon,
    places.uncordon,
    forget.forget,
    history.explain,
    groups.groups,
    cli_access.approve,
    cli_access.deny,
    cli_access.audit,
    manager,
)


def collection() -> Collection:
    """The operator's tasks, for tasks.py and for the `procguard` program."""
    made = Collection(*TASKS)
    made.add_collection(cli_access.agents(), name="agents")
    made.add_collection(cli_access.tokens(), name="token")
    made.add_collection(operations.collection(), name="operations")
    made.add_collection(state.collection(), name="state")
    made.add_collection(Collection(history.notify_list, history.notify_test), name="notify")
    return made


def rewritten(argv: list[str]) -> list[str]:
    """`procguard token create` as invoke wants it: token.create; `procguard operations ID` shows that one."""
    words = list(argv)
    for name, parts in (
        ("token", ("create", "list", "revoke")),
        ("agents", ("list", "approve", "deny", "revoke", "rotate")),
    ):
        if len(words) > 2 and words[1] == name and words[2] in parts:
            words[1:3] = [f"{name}.{words[2]}"]
    if len(words) > 2 and words[1] == "state" and words[2] in state.NAMES:
        words[1:3] = [f"state.{words[2]}"]
    if len(words) > 2 and words[1] == "operations" and not words[2].startswith("-"):
        one = words[2] in ("list", "show", "cancel", "retry")
        words[1:3] = [f"operations.{words[2]}"] if one else ["operations.show", words[2]]
    if words[1:3] == ["notify", "test"]:
        words[1:3] = ["notify.test"]
    return words


def main(argv: list[str] | None = None) -> None:
    """The `procguard` program."""
    if argv is None:
        task.begin()
    program = Program(version=__version__, namespace=collection(), name="procguard", binary="procguard")
    program.run(rewritten(sys.argv if argv is None else argv))


if __name__ == "__main__":
    main()
