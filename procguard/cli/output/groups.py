"""The table of `invoke groups`: one line per group, followed by one line per gang member."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from procguard.console.grid import Column
from procguard.console.tables import ENGLISH, STATES, Columns, View, age, state_cell
from procguard.i18n.words import Words

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


def rows(views: Iterable[View], now: datetime, words: Words = ENGLISH) -> list[View]:
    made: list[View] = []
    for view in views:
        name, members = str(view["group"]), view["members"]
        if view["phase"] is None:
            made.append(
                {"GROUP": name, "STATE": words.say("cli.n_workers", n=len(members)), "WHY": words.say("cli.own_policy")}
            )
            continue
        made.append(
            {
                "GROUP": name,
                "STATE": state_cell(view["phase"], PHASES, word=words.named("phase", view["phase"])),
                "EPOCH": view["epoch"],
                "ATTEMPTS": words.say("cli.of", k=view["attempts"], n=view["max_attempts"]),
                "SINCE": age(view["since"], now, words),
                "WHY": view["reason"],
            }
        )
        for member in members:
            made.append(
                {
                    "GROUP": f"  {member['worker_id']}",
                    "STATE": state_cell(member["state"], word=words.named("state", member["state"])),
                    "HOST": member["host"],
                    "RANK": member["rank"],
                    "EPOCH": member["epoch"],
                    "WHY": "" if member["state"] == "running" else member["reason"],
                }
            )
    return made
