"""Which spare takes a task over. Pure: facts about hosts in, a choice and every reason against the others out.

A host that may not is never chosen for want of a better one: its reason is told instead (`Placement.rejected`), and
the task waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

NAMED_REASONS = 5  # in one sentence; the rest is counted


@dataclass(frozen=True)
class Task:
    """What a place must offer. `avoid`: agents it has just failed on, or that may still run it."""

    worker_id: str
    requires: dict[str, str] = field(default_factory=dict)
    gpus: int = 0
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """One host as it is now. `carries`: tasks of other hosts that it has already; `carries_most` None: no bound."""

    agent_id: str
    host: str
    deployed: bool = True  # False: a launcher started by hand, which runs its own worker and nothing else
    connected: bool = True
    cordoned: str = ""  # why; "" = not cordoned
    spare: bool = True
    home: bool = False  # its inventory declares the task here: it needs to be no spare and no label to have it back
    carries: int = 0
    carries_most: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus_free: int | None = 0  # None: it does not say
    standing: float = 0.0  # its reputation: 0 is spotless, more is worse
    workers: int = 0
    same_gang: int = 0  # members of the task's gang that it runs already: one host's loss should cost one of them


@dataclass(frozen=True)
class Placement:
    agent_id: str  # "" = no place
    reason: str
    rejected: dict[str, str]  # host -> why not


def choose(task: Task, places: Iterable[Place]) -> Placement:
    """The fitting spare with the fewest members of the task's gang, then of the best reputation, then with the fewest
    workers, then by name."""
    rejected: dict[str, str] = {}
    fitting: list[Place] = []
    for place in places:
        why = against(task, place)
        if why:
            rejected[place.host] = why
        else:
            fitting.append(place)
    if not fitting:
        return Placement("", _nowhere(rejected), rejected)
    best = min(fitting, key=lambda place: (place.same_gang, round(place.standing, 1), place.workers, place.host))
    why = "the only spare that fits" if len(fitting) == 1 else f"the best of {len(fitting)} spares that fit"
    return Placement(best.agent_id, f"{best.host} is {why}", rejected)


def against(task: Task, place: Place) -> str:
    """Why this task may not go there; "" if it may. The first obstacle is told."""
    missing = [f"{name}={value}" for name, value in task.requires.items() if place.labels.get(name) != value]
    missing = [] if place.home else missing
    obstacles = (
        (not place.deployed, "a hand-started launcher runs only its own worker"),
        (not place.spare and not place.home, "it is no spare (procguard_spare)"),
        (not place.connected, "it is not connected"),
        (bool(place.cordoned), f"it is cordoned ({place.cordoned})"),
        (place.agent_id in task.avoid, "the task has just failed there, or may still be running there"),
        (bool(missing), f"it lacks {', '.join(missing)} (procguard_labels)"),
        (
            place.carries_most is not None and place.carries >= place.carries_most and not place.home,
            f"it carries {place.carries} of at most {place.carries_most} tasks of other hosts",
        ),
        (
            task.gpus > 0 and place.gpus_free is None,
            f"it does not say how many of its GPUs are free, {task.gpus} needed",
        ),
        (
            place.gpus_free is not None and task.gpus > place.gpus_free,
            f"{place.gpus_free} of its GPUs are free, {task.gpus} needed",
        ),
    )
    return next((why for obstacle, why in obstacles if obstacle), "")


def _nowhere(rejected: dict[str, str]) -> str:
    """One sentence. Hosts that were never meant as spares are not named one by one."""
    spares = {host: why for host, why in rejected.items() if "procguard_spare" not in why and "launcher" not in why}
    if not spares:
        return "no host is a spare: set procguard_spare in the inventory and deploy"
    named = [f"{host}: {why}" for host, why in sorted(spares.items())[:NAMED_REASONS]]
    more = len(spares) - len(named)
    return "no spare fits: " + "; ".join(named) + (f"; and {more} more" if more > 0 else "")
