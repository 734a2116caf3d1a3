"""The operator's task about groups."""

from __future__ import annotations

from datetime import datetime, timezone

from invoke import Context

from procguard.cli.task import operator_task, print_table
from procguard.client import api
from procguard.console.terminal import say, say_json


@operator_task(help={"json_": "as JSON, with every member"})
def groups(_context: Context, json_: bool = False) -> None:
    """Groups: members, phase, epoch, attempts, last incident. Example: invoke groups"""
    from procguard.cli.output import groups as tables_groups

    views = api.from_environment().groups()
    if json_:
        say_json(views)
    elif not views:
        say("no groups: a worker names its own with `group: NAME` (docs/groups.md)")
    else:
        print_table(tables_groups.groups(views, datetime.now(timezone.utc)))
