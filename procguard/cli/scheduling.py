"""Commands for placement: cordon, uncordon, move."""

from __future__ import annotations

from procguard import hints
from procguard.cli.contexts import connect
from procguard.cli.program.command import operator_task
from procguard.console.terminal import say
from procguard.errors import UsageError

GPU = "one GPU of it, by its index, instead of the whole host"


@operator_task(
    ("host",), help={"host": "its name in the inventory", "reason": "reason, for other operators", "gpu": GPU}
)
def cordon(host: str, reason: str = "", gpu: str = "") -> None:
    """Place no new tasks on a host; running workers are not affected. Example: invoke cordon gpu01

    One GPU alone: invoke cordon gpu01 --gpu 3 --reason 'Xid 79'
    """
    connect().cordon(host, reason, _index(gpu))
    say(f"{_place(host, gpu)}: cordoned; running workers are not affected")


@operator_task(("host",), help={"host": "its name in the inventory", "gpu": GPU})
def uncordon(host: str, gpu: str = "") -> None:
    """Allow tasks to be placed on a host again. Example: invoke uncordon gpu01"""
    connect().uncordon(host, _index(gpu))
    say(f"{_place(host, gpu)}: uncordoned")


def _index(gpu: str) -> int | None:
    if gpu and not (gpu.isdecimal() and gpu.isascii() and int(gpu) < 64):
        raise UsageError(f"--gpu {gpu}: not the index of a GPU", "a number as nvidia-smi shows it, e.g. 3")
    return int(gpu) if gpu else None


def _place(host: str, gpu: str) -> str:
    return f"{host} GPU {gpu}" if gpu else host


@operator_task(("worker", "host"), help={"worker": "its id", "host": "the host to move it to"})
def move(worker: str, host: str) -> None:
    """Stop a worker where it is, then start it on another host. Example: invoke move worker1 gpu02"""
    connect().move(worker, host)
    say(hints.commands(f"{worker}: goes to {host} once it has stopped; see invoke ps"))
