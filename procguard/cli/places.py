"""The operator's tasks about where work may run: cordon, uncordon, move."""

from __future__ import annotations

from invoke import Context

from procguard.cli.task import operator_task
from procguard.client import api
from procguard.console.terminal import say


@operator_task(("host",), help={"host": "its name in the inventory", "reason": "why, for those who look later"})
def cordon(_context: Context, host: str, reason: str = "") -> None:
    """Place no new tasks on a host; what runs there runs on. Example: invoke cordon gpu01 --reason 'fan is loud'"""
    api.from_environment().cordon(host, reason)
    say(f"{host}: cordoned; what runs there runs on")


@operator_task(("host",), help={"host": "its name in the inventory"})
def uncordon(_context: Context, host: str) -> None:
    """Let tasks be placed on a host again. Example: invoke uncordon gpu01"""
    api.from_environment().uncordon(host)
    say(f"{host}: uncordoned")


@operator_task(("worker", "host"), help={"worker": "its id", "host": "where it is to live"})
def move(_context: Context, worker: str, host: str) -> None:
    """Stop a worker where it is, then start it on another host. Example: invoke move worker1 gpu02"""
    api.from_environment().move(worker, host)
    say(f"{worker}: goes to {host} as soon as it has stopped; invoke status shows it")
