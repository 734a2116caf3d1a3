"""Placement of a worker on a spare. Pure: facts about hosts in; the choice and the reasons against all others out.

An unsuitable host is never chosen; its reason is returned instead (`Placement.rejected`), and the worker waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from procguard.i18n.reasons import NONE, Reason, because

NAMED_REASONS = 5  # named in the reason; the others are counted
NEVER_SPARES = ("place.no_spare", "place.launcher")  # codes of hosts that were never intended as spares


@dataclass(frozen=True)
class Task:
    """Requirements of a worker. `avoid`: agents on which it has just failed, or that may still run it."""

    worker_id: str
    requires: dict[str, str] = field(default_factory=dict)
    gpus: int = 0
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Candidate:
    """A candidate host. `carries`: the number of workers of other hosts that it already runs; `carries_most` None: no
    limit."""

    agent_id: str
    host: str
    deployed: bool = True  # False: a launcher started by hand, which runs its own worker and nothing else
    connected: bool = True
    cordoned: Reason = NONE  # why; "" = not cordoned
    spare: bool = True
    home: bool = False  # the inventory declares the worker on this host: neither spare nor labels are required
    carries: int = 0
    carries_most: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus_free: int | None = 0  # None: not reported
    score: float = 0.0  # from its failure history; 0: no failures, higher is worse
    workers: int = 0
    same_gang: int = 0  # members of the same gang on this host; spreading them limits the damage of a host's loss


@dataclass(frozen=True)
class Placement:
    agent_id: str  # "": no suitable host
    reason: Reason
    rejected: dict[str, Reason]  # host -> why it was rejected


def choose(task: Task, candidates: Iterable[Candidate]) -> Placement:
    """Choose among the suitable spares: fewest members of the worker's gang, then lowest failure score, then fewest
    workers, then by name."""
    rejected: dict[str, Reason] = {}
    fitting: list[Candidate] = []
    for candidate in candidates:
        why = against(task, candidate)
        if why:
            rejected[candidate.host] = why
        else:
            fitting.append(candidate)
    if not fitting:
        return Placement("", _nowhere(rejected), rejected)
    best = min(
        fitting,
        key=lambda candidate: (candidate.same_gang, round(candidate.score, 1), candidate.workers, candidate.host),
    )
    if len(fitting) == 1:
        return Placement(best.agent_id, because("place.only", host=best.host), rejected)
    return Placement(best.agent_id, because("place.best", host=best.host, n=len(fitting)), rejected)


def against(task: Task, candidate: Candidate) -> Reason:
    """The first reason why the worker cannot be placed there; "" if it can."""
    missing = [f"{name}={value}" for name, value in task.requires.items() if candidate.labels.get(name) != value]
    missing = [] if candidate.home else missing
    obstacles = (
        (not candidate.deployed, because("place.launcher")),
        (not candidate.spare and not candidate.home, because("place.no_spare")),
        (not candidate.connected, because("place.not_connected")),
        (bool(candidate.cordoned), because("place.cordoned", why=candidate.cordoned)),
        (candidate.agent_id in task.avoid, because("place.avoided")),
        (bool(missing), because("place.labels", labels=missing)),
        (
            candidate.carries_most is not None and candidate.carries >= candidate.carries_most and not candidate.home,
            because("place.full", carries=candidate.carries, most=candidate.carries_most),
        ),
        (
            task.gpus > 0 and candidate.gpus_free is None,
            because("place.gpus_unknown", needed=task.gpus),
        ),
        (
            candidate.gpus_free is not None and task.gpus > candidate.gpus_free,
            because("place.gpus", free=candidate.gpus_free, needed=task.gpus),
        ),
    )
    return next((why for obstacle, why in obstacles if obstacle), NONE)


def _nowhere(rejected: dict[str, Reason]) -> Reason:
    """The reason why there is no candidate, as one sentence. Hosts that are not spares are not named individually."""
    spares = {host: why for host, why in rejected.items() if why.code not in NEVER_SPARES}
    if not spares:
        return because("place.no_spares")
    named = [because("place.obstacle", host=host, why=why) for host, why in sorted(spares.items())[:NAMED_REASONS]]
    more = len(spares) - len(named)
    if more > 0:
        return because("place.none_fits_more", obstacles=named, more=more)
    return because("place.none_fits", obstacles=named)
