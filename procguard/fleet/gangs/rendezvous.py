"""Rendezvous of a gang's members: ranks and their environment. Pure.

Ranks follow the members' ids in natural order (trainer-2 before trainer-10), so that they do not change over restarts
and moves. Uses the variable names of torch and torchrun; see
https://docs.pytorch.org/docs/stable/elastic/run.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Used if rank 0's host has reported no free port. Below Linux' range of ephemeral ports (32768 and up), and chosen by
# the epoch, so that two consecutive starts never share a port.
FIRST_PORT, PORTS = 20_000, 10_000
LOOPBACK = "127.0.0.1"


class MemberAddress(NamedTuple):
    """The addresses under which other members may reach a member's host."""

    local: bool  # the manager's own machine, reached without SSH
    ssh_hostname: str  # the address that the manager connects to; "" if the inventory names none
    host: str  # the host's name in the inventory
    peer: str  # the source address of its agent's connection; "" if unknown
    free_port: int  # a port that its agent found free; 0: none reported


def ranks(worker_ids: Iterable[str]) -> dict[str, int]:
    """worker id -> rank, 0 to n - 1."""
    return {worker_id: rank for rank, worker_id in enumerate(sorted(worker_ids, key=_counted))}


def _counted(worker_id: str) -> tuple[list[tuple[int, str]], str]:
    """The sort key of a worker id. Digits compare as numbers: w2 before w10. The id itself orders w1 and w01."""
    parts = re.findall(r"\d+|\D+", worker_id)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], worker_id


def master_address(addresses: list[MemberAddress], chosen: str = "") -> str:
    """The address of rank 0 (the first of `addresses`) for all other members; `chosen`: the group's setting, if any."""
    if chosen:
        return chosen
    if all(place.local for place in addresses):
        return LOOPBACK
    first = addresses[0]
    if not first.local:
        return first.ssh_hostname or first.host
    reachable = first.peer and not first.peer.startswith("127.") and first.peer != "::1"
    return first.peer if reachable else first.host


def master_port(first: MemberAddress, epoch: int, chosen: int = 0) -> int:
    return chosen or first.free_port or FIRST_PORT + epoch % PORTS


def environment(
    kind: str, group: str, rank: int, members: int, nproc_per_node: int, address: str, port: int
) -> dict[str, str]:
    """The rendezvous variables of the member with rank `rank`. `kind`: the group's `rendezvous`.

    RANK and LOCAL_RANK are those of the member's own process. torchrun reads the variables that begin with PET_, starts
    `nproc_per_node` processes and sets RANK and LOCAL_RANK of each.
    """
    variables = {"PROCGUARD_GROUP": group, "PROCGUARD_RANK": str(rank), "PROCGUARD_WORLD_SIZE": str(members)}
    if kind != "torch":
        return variables
    return variables | {
        "NODE_RANK": str(rank),
        "GROUP_RANK": str(rank),
        "GROUP_WORLD_SIZE": str(members),
        "RANK": str(rank * nproc_per_node),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(members * nproc_per_node),
        "LOCAL_WORLD_SIZE": str(nproc_per_node),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "PET_NNODES": str(members),
        "PET_NODE_RANK": str(rank),
        "PET_NPROC_PER_NODE": str(nproc_per_node),
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": str(port),
        "PET_RDZV_ID": group,
        "PET_RDZV_BACKEND": "static",
        "PET_MAX_RESTARTS": "0",
    }
