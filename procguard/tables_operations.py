"""What a terminal shows of batch operations: the preview, the line that moves, the result by cause. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from procguard import tables

View = dict[str, Any]
RESULTS = {
    "waiting": ("…", "dim"),
    "accepted": ("▷", "cyan"),
    "delivered": ("▷", "cyan"),
    "pending": ("◷", "magenta"),
    "done": ("✓", "blue"),
    "failed": ("✖", "bright_red"),
    "expired": ("⌛", "bright_red"),
    "skipped": ("–", "dim"),
    "cancelled": ("■", "yellow"),
}
STATUSES = {
    "running": ("●", "blue"),
    "cancelling": ("◁", "yellow"),
    "halting": ("◁", "bright_red"),
    "done": ("✓", "dim"),
    "cancelled": ("■", "yellow"),
    "halted": ("✖", "bright_red"),
    "interrupted": ("?", "magenta"),
}
HOSTS_NAMED = 6


def preview(view: View) -> str:
    """Whom it means, in four lines at most."""
    which = escape(view["selector"] if len(view["selector"]) <= 100 else view["selector"][:100] + "…")
    lines = [f"[bold]{view['command']}[/] {view['acts']} of {view['matching']} workers that match {which}"]
    states = "  ".join(f"{tables.state_text(one['state'])} {one['matching']}" for one in view["by_state"])
    lines.append(f"  states  {states}")
    named = view["by_host"][:HOSTS_NAMED]
    hosts = " · ".join(f"{escape(one['host'])} {one['matching']}" for one in named)
    more = view["hosts"] - len(named)
    lines.append(f"  hosts   {hosts}" + (f" · {more} more" if more > 0 else ""))
    for cause in view["causes"]:
        word = "later   " if cause["action"] == "pending" else "left out"
        lines.append(f"  {word} {cause['count']}: {escape(cause['message'])} ({_examples(cause)})")
    return "\n".join(lines)


def progress(view: View) -> str:
    """ "stop 812/9,312 · ✓ 700 done  ✖ 3 failed"."""
    counts = view["counts"]
    open_ = sum(counts.get(name, 0) for name in ("waiting", "accepted", "delivered"))
    return f"{view['command']} {view['total'] - open_}/{view['total']} · {_counts(counts)}"


def summary(view: View) -> str:
    glyph, colour = STATUSES.get(view["status"], ("?", "magenta"))
    head = f"[{colour}]{glyph} {view['status']}[/] {view['operation_id']} {view['command']}: {_counts(view['counts'])}"
    lines = [head]
    if view["joined"]:
        lines.append(f"  {view['joined']} that match were not in the preview and are left alone")
    if view.get("note"):
        lines.append(f"  {escape(view['note'])}")
    for cause in view["causes"]:
        glyph, colour = RESULTS.get(cause["result"], ("?", "magenta"))
        what = escape(cause["message"] or cause["cause"] or "no reason was given")
        lines.append(f"  [{colour}]{glyph} {cause['count']} {cause['result']}[/]: {what} ({_examples(cause)})")
    return "\n".join(lines)


def items(views: Iterable[View]) -> Table:
    table = tables.plain_table("WORKER", "RESULT", "WHY")
    for view in views:
        table.add_row(escape(view["worker_id"]), tables.state_text(view["result"], RESULTS), escape(view["message"]))
    return table


def listing(views: Iterable[View], now: datetime) -> Table:
    table = tables.plain_table("OPERATION", "STATUS", "COMMAND", "SELECTOR", "RESULT", "BEGUN", "BY", "WHY")
    for view in views:
        table.add_row(
            view["operation_id"],
            tables.state_text(view["status"], STATUSES),
            view["command"],
            escape(view["selector"][:60] or "*"),
            _counts(view["counts"]),
            f"{tables.age(view['created_at'], now)} ago",
            escape(view["actor"]),
            escape(view["reason"]),
        )
    return table


def _counts(counts: dict[str, int]) -> str:
    shown = [name for name in RESULTS if counts.get(name)]
    return "  ".join(f"[{RESULTS[name][1]}]{RESULTS[name][0]} {counts[name]} {name}[/]" for name in shown)


def _examples(cause: View) -> str:
    more = "…" if cause["count"] > len(cause["examples"]) else ""
    return escape(", ".join(cause["examples"])) + (f", {more}" if more else "")
