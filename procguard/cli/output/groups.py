"""The table of `invoke groups`: one line a group, one for each member of a gang below it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from procguard.console.styled import PlainTable
from procguard.console.tables import STATES, View, age, plain_table, state_text

PHASES = {
    "running": STATES["running"],
    "restarting": ("↻", "yellow"),
    "stopped": STATES["stopped"],
    "failed": STATES["failed"],
    "finished": STATES["exited"],
}


def groups(views: Iterable[View], now: datetime) -> PlainTable:
    table = plain_table("GROUP", "STATE", "HOST", "RANK", "EPOCH", "ATTEMPTS", "SINCE", "WHY")
    for view in views:
        name, members = str(view["group"]), view["members"]
        if view["phase"] is None:
            table.add_row(name, f"{len(members)} workers", "", "", "", "", "", "each restarts by its own policy")
            continue
        spent = f"{view['attempts']} of {view['max_attempts']}"
        state, since = state_text(str(view["phase"]), PHASES), age(view["since"], now)
        table.add_row(name, state, "", "", str(view["epoch"]), spent, since, str(view["reason"]))
        for member in members:
            rank = "" if member["rank"] is None else str(member["rank"])
            what = "" if member["state"] == "running" else str(member["reason"])
            table.add_row(
                f"  {member['worker_id']}",
                state_text(str(member["state"])),
                member["host"],
                rank,
                str(member["epoch"]),
                "",
                "",
                what,
            )
    return table
