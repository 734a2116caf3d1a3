"""Selects the manager that commands use, and the commands that manage contexts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from procguard.cli.program.command import OUTPUT, OutputOptions, operator_task
from procguard.console.terminal import say

if TYPE_CHECKING:
    from procguard.client.client import Client
    from procguard.console.tables import View


def connect() -> Client:
    """The manager that the environment, `--context` or the current context names; else the one on this machine."""
    from procguard.client import client  # imported late: most of a command's start-up time

    return client.from_environment()


@operator_task(name="list", default=True)
def context_list(output: OutputOptions = OUTPUT) -> None:
    """List contexts; * marks the current one. Example: invoke context

    The environment variable PROCGUARD_MANAGER_URL takes precedence over the current context, and --context NAME over
    both.
    """
    from procguard.cli.output.listing import listed
    from procguard.client import contexts
    from procguard.console.grid import Column

    known = contexts.load()
    views = [
        {"name": name, "current": name == known.current, "url": one.url, "ca": one.ca, "token_file": one.token_file}
        for name, one in sorted(known.by_name.items())
    ]
    columns: tuple[Column[View], ...] = (
        Column("CURRENT", lambda view: "*" if view["current"] else ""),
        Column("NAME", lambda view: view["name"]),
        Column("MANAGER", lambda view: view["url"], long=True),
        Column("CA", lambda view: view["ca"], 2, long=True),
        Column("TOKEN FILE", lambda view: view["token_file"], 1, long=True),
    )
    listed(views, columns, output, "name", empty="no contexts: procguard context add NAME --url http://gpu-head:5000")


@operator_task(
    ("name",),
    name="add",
    help={
        "name": "name of the context",
        "url": "the manager's address, e.g. https://gpu-head:5000; several managers separated by commas",
        "ca": "CA certificate file, for https",
        "token_file": "file with the token, readable by you only (chmod 600)",
    },
)
def context_add(name: str, url: str = "", ca: str = "", token_file: str = "") -> None:
    """Add a context and make it the current one. Example: invoke context.add lab --url https://gpu-head:5000"""
    from procguard.client import api, contexts
    from procguard.errors import UsageError

    if not url:
        raise UsageError("no address given", "procguard context add lab --url https://gpu-head:5000")
    files = {"ca": ca, "token_file": token_file}
    absolute = {key: os.path.abspath(os.path.expanduser(value)) if value else "" for key, value in files.items()}
    made = contexts.ManagerContext(url, **absolute)
    api.ManagerClient(made.url, made.token(), made.ca)  # raises for an invalid address or unsafe token file
    known = contexts.load()
    contexts.save(contexts.Contexts(name, {**known.by_name, contexts.checked_name(name): made}))
    say(f"{name}: {url}; current context")


@operator_task(("name",), name="use", help={"name": "as `invoke context` shows it; - for the manager on this machine"})
def context_use(name: str) -> None:
    """Set the current context. Example: invoke context.use lab"""
    from procguard.client import contexts

    known = contexts.load()
    found = None if name == "-" else known.chosen(name)
    contexts.save(contexts.Contexts("" if found is None else name, known.by_name))
    say(f"{name}: {found.url}" if found else "current context: the manager on this machine")


@operator_task(("name",), name="remove", help={"name": "as `invoke context` shows it"})
def context_remove(name: str) -> None:
    """Remove a context. Example: invoke context.remove lab"""
    from procguard.client import contexts

    known = contexts.load()
    known.chosen(name)
    left = {key: one for key, one in known.by_name.items() if key != name}
    contexts.save(contexts.Contexts("" if known.current == name else known.current, left))
    say(f"{name}: removed")


CONTEXT = (context_list, context_add, context_use, context_remove)
