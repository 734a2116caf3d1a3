"""Commands for placement: cordon, uncordon, move."""

from __future__ import annotations

from procguard import hints
from procguard.cli.contexts import connect
from procguard.cli.program.command import operator_task
from procguard.console.terminal import say


@operator_task(("host",), help={"host": "its name in the inventory", "reason": "reason, for other operators"})
def cordon(host: str, reason: str = "") -> None:
    """Place no new tasks on a host; running workers are not affected. Example: invoke cordon gpu01"""
    connect().cordon(host, reason)
    say(f"{host}: cordoned; what runs there runs on")


@operator_task(("host",), help={"host": "its name in the inventory"})
def uncordon(host: str) -> None:
    """Allow tasks to be placed on a host again. Example: invoke uncordon gpu01"""
    connect().uncordon(host)
    say(f"{host}: uncordoned")


@operator_task(("worker", "host"), help={"worker": "its id", "host": "the host to run it"})
def move(worker: str, host: str) -> None:
    """Stop a worker where it is, then start it on another host. Example: invoke move worker1 gpu02"""
    connect().move(worker, host)
    say(hints.commands(f"{worker}: goes to {host} as soon as it has stopped; invoke ps shows it"))
