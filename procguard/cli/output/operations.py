"""What a terminal shows of batch operations: the preview, the line that moves, the result by cause. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.text import Text

from procguard.console import tables
from procguard.console.styled import PlainTable, joined, styled

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


def preview(view: View) -> Text:
    """Whom it means, in four lines at most."""
    which = view["selector"] if len(view["selector"]) <= 100 else view["selector"][:100] + "…"
    head = (view["command"], view["acts"], view["matching"], which)
    lines = [styled("[bold]{}[/] {} of {} workers that match {}", *head)]
    states = joined((tables.state_text(one["state"], after=f" {one['matching']}") for one in view["by_state"]), "  ")
    lines.append(styled("  states  {}", states))
    named = view["by_host"][:HOSTS_NAMED]
    hosts = " · ".join(f"{one['host']} {one['matching']}" for one in named)
    more = view["hosts"] - len(named)
    lines.append(styled("  hosts   {}{}", hosts, f" · {more} more" if more > 0 else ""))
    for cause in view["causes"]:
        word = "later   " if cause["action"] == "pending" else "left out"
        lines.append(styled("  {} {}: {} ({})", word, cause["count"], cause["message"], _examples(cause)))
    return joined(lines, "\n")


def progress(view: View) -> Text:
    """ "stop 812/9,312 · ✓ 700 done  ✖ 3 failed"."""
    counts = view["counts"]
    open_ = sum(counts.get(name, 0) for name in ("waiting", "accepted", "delivered"))
    return styled("{} {}/{} · {}", view["command"], view["total"] - open_, view["total"], _counts(counts))


def summary(view: View) -> Text:
    glyph, colour = STATUSES.get(view["status"], ("?", "magenta"))
    head = (glyph, view["status"], view["operation_id"], view["command"], _counts(view["counts"]))
    lines = [styled(f"[{colour}]{{}} {{}}[/] {{}} {{}}: {{}}", *head)]
    if view["joined"]:
        lines.append(styled("  {} that match were not in the preview and are left alone", view["joined"]))
    if view.get("note"):
        lines.append(styled("  {}", view["note"]))
    for cause in view["causes"]:
        glyph, colour = RESULTS.get(cause["result"], ("?", "magenta"))
        what = cause["message"] or cause["cause"] or "no reason was given"
        shown = (glyph, cause["count"], cause["result"], what, _examples(cause))
        lines.append(styled(f"  [{colour}]{{}} {{}} {{}}[/]: {{}} ({{}})", *shown))
    return joined(lines, "\n")


def items(views: Iterable[View]) -> PlainTable:
    table = tables.plain_table("WORKER", "RESULT", "WHY")
    for view in views:
        table.add_row(view["worker_id"], tables.state_text(view["result"], RESULTS), view["message"])
    return table


def listing(views: Iterable[View], now: datetime) -> PlainTable:
    table = tables.plain_table("OPERATION", "STATUS", "COMMAND", "SELECTOR", "RESULT", "BEGUN", "BY", "WHY")
    for view in views:
        table.add_row(
            view["operation_id"],
            tables.state_text(view["status"], STATUSES),
            view["command"],
            view["selector"][:60] or "*",
            _counts(view["counts"]),
            f"{tables.age(view['created_at'], now)} ago",
            view["actor"],
            view["reason"],
        )
    return table


def _counts(counts: dict[str, int]) -> Text:
    shown = [name for name in RESULTS if counts.get(name)]
    parts = (styled(f"[{RESULTS[name][1]}]{{}} {{}} {{}}[/]", RESULTS[name][0], counts[name], name) for name in shown)
    return joined(parts, "  ")


def _examples(cause: View) -> str:
    more = "…" if cause["count"] > len(cause["examples"]) else ""
    return ", ".join(cause["examples"]) + (f", {more}" if more else "")
