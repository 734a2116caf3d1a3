"""Commands for several managers on one database: list them, and promote a standby."""

from __future__ import annotations

from typing import TYPE_CHECKING

from procguard import hints
from procguard.cli.contexts import connect
from procguard.cli.program.command import OUTPUT, OutputOptions, operator_task
from procguard.console.grid import Cell, Column
from procguard.console.language import shown
from procguard.console.terminal import say

if TYPE_CHECKING:
    from procguard.console.tables import View

_CLOCK_SHOWN_S = 0.5


@operator_task(name="list", default=True)
def managers_list(output: OutputOptions = OUTPUT) -> None:
    """Show the leader, the standbys, and what endangers a takeover. Example: invoke managers

    Also shows how the database is replicated, whether each manager can recover hosts over SSH, and clock differences.
    """
    from procguard.cli.output.listing import listed

    answer = connect().managers()
    views = list(answer["managers"])
    one = "one manager, with a state of its own; several share a database (docs/several_managers.md)"
    listed(views, _columns(), output, "name", whole=answer, empty=one)
    if output.form in ("table", "wide") and views:
        say(f"database {answer['database']}: {answer['replication'] or 'unknown'}; term {answer['term']}")
        for warning in answer["warnings"]:
            say(hints.commands(f"warning: {warning}"))


@operator_task(("name",), name="promote", help={"name": "the standby to promote, as shown by `invoke managers`"})
def managers_promote(name: str) -> None:
    """Hand over to a standby, for example before this machine is shut down. Example: invoke managers.promote manager2

    The standby leads within a second; the previous leader becomes a standby. Workers are not affected.
    """
    connect().promote_manager(name)
    say(hints.commands(f"{name}: takes over now; invoke managers shows when it leads"))


def _columns() -> tuple[Column[View], ...]:
    return (
        Column("NAME", lambda view: view["name"], long=True),
        Column("ROLE", _role),
        Column("SEEN", lambda view: shown(f"{view['seen_s']:.0f} s ago"), 2),
        Column("BEHIND", lambda view: "" if view["role"] == "leader" else shown(f"{view['behind']} commits"), 3),
        Column("SSH RECOVERY", _ssh, 1, long=True),
        Column("CLOCK", _clock, 4),
        Column("VERSION", lambda view: view["version"], 5),
        Column("ADDRESS", lambda view: ", ".join(view["urls"][:2]), 1, long=True),
    )


def _role(view: View) -> Cell | str:
    role = str(view["role"])
    return Cell(shown(role), {"leader": "green", "away": "red"}.get(role, ""))


def _ssh(view: View) -> str:
    ssh = view.get("ssh")
    if not ssh:
        return shown("not tried yet") if view["role"] == "standby" else ""
    if not ssh["failed"]:
        return shown(f"yes ({ssh['ok']} hosts)")
    reasons = "; ".join(f"{host}: {reason}" for host, reason in list(ssh["reasons"].items())[:1])
    return shown(f"no to {ssh['failed']} of {ssh['ok'] + ssh['failed']} hosts ({reasons})")


def _clock(view: View) -> str:
    by = float(view["clock_s"])
    return "" if abs(by) < _CLOCK_SHOWN_S else f"{by:+.1f} s"


MANAGERS = (managers_list, managers_promote)
