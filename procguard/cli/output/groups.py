"""The table of `invoke groups`: one line a group, one for each member of a gang below it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from procguard.console.grid import Column
from procguard.console.tables import STATES, Columns, View, age, state_cell

PHASES = {
    "running": STATES["running"],
    "restarting": ("↻", "yellow"),
    "stopped": STATES["stopped"],
    "failed": STATES["failed"],
    "finished": STATES["exited"],
}
COLUMNS: Columns = tuple(
    Column(title, lambda row, title=title: row.get(title), rank, long=long)  # type: ignore[misc]
    for title, rank, long in (
        ("GROUP", 0, True),
        ("STATE", 0, False),
        ("HOST", 2, True),
        ("RANK", 4, False),
        ("EPOCH", 5, False),
        ("ATTEMPTS", 3, False),
        ("SINCE", 2, False),
        ("WHY", 1, True),
    )
)


def rows(views: Iterable[View], now: datetime) -> list[View]:
    made: list[View] = []
    for view in views:
        name, members = str(view["group"]), view["members"]
        if view["phase"] is None:
            made.append({"GROUP": name, "STATE": f"{len(members)} workers", "WHY": "each restarts by its own policy"})
            continue
        made.append(
            {
                "GROUP": name,
                "STATE": state_cell(view["phase"], PHASES),
                "EPOCH": view["epoch"],
                "ATTEMPTS": f"{view['attempts']} of {view['max_attempts']}",
                "SINCE": age(view["since"], now),
                "WHY": view["reason"],
            }
        )
        for member in members:
            made.append(
                {
                    "GROUP": f"  {member['worker_id']}",
                    "STATE": state_cell(member["state"]),
                    "HOST": member["host"],
                    "RANK": member["rank"],
                    "EPOCH": member["epoch"],
                    "WHY": "" if member["state"] == "running" else member["reason"],
                }
            )
    return made
