"""The managers that share a database, as the API responds with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SshChecks:
    """SSH checks from this manager: the number of reachable hosts, and the reasons for the first five others."""

    ok: int = 0
    failed: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OneManager:
    """`seen_s`: seconds since the manager last wrote to the database. `behind`: number of commits that a standby has
    not read yet. `clock_s`: seconds by which its clock is ahead of the database's."""

    name: str
    role: Literal["leader", "standby", "away"]
    urls: list[str]
    version: str = ""
    seen_s: float = 0.0
    behind: int = 0
    clock_s: float = 0.0
    ssh: SshChecks | None = None


@dataclass(frozen=True)
class Managers:
    """`managers`: empty for a single manager. `warnings`: messages about what endangers a takeover."""

    leader: str = ""
    term: int = 0
    since: str = ""
    database: str = ""
    replication: str = ""
    warnings: list[str] = field(default_factory=list)
    managers: list[OneManager] = field(default_factory=list)
