"""Output of batch operations: the preview, the progress line, the result by cause. Knows no HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from rich.text import Text

from procguard.console import tables
from procguard.console.grid import Column
from procguard.console.styled import joined, styled
from procguard.i18n.words import Words

if TYPE_CHECKING:
    from procguard.console.tables import View

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


def preview(view: View, words: Words = tables.ENGLISH) -> Text:
    """The numbers of workers that the operation would affect, by state and host, and those left out, by cause."""
    which = view["selector"] if len(view["selector"]) <= 100 else view["selector"][:100] + "…"
    head = (words.named("verb", view["command"]), view["acts"], view["matching"], which)
    lines = [styled("[bold]{}[/] {} of {} workers that match {}", *head)]
    states = joined((_state(one, words) for one in view["by_state"]), "  ")
    lines.append(styled("  states  {}", states))
    named = view["by_host"][:HOSTS_NAMED]
    hosts = " · ".join(f"{one['host']} {one['matching']}" for one in named)
    more = view["hosts"] - len(named)
    lines.append(styled("  hosts   {}{}", hosts, f" · {more} more" if more > 0 else ""))
    for cause in view["causes"]:
        word = "later   " if cause["action"] == "pending" else "left out"
        lines.append(styled("  {} {}: {} ({})", word, cause["count"], cause["message"], _examples(cause)))
    return joined(lines, "\n")


def _state(one: View, words: Words) -> Text:
    glyph, colour = tables.STATES.get(one["state"], ("?", "magenta"))
    return styled(f"[{colour}]{{}} {{}}[/] {{}}", glyph, words.named("state", one["state"]), one["matching"])


def progress(view: View, words: Words = tables.ENGLISH) -> Text:
    """The progress line: "stop 812/9312 · ✓ 700 done  ✖ 3 failed"."""
    counts = view["counts"]
    open_ = sum(counts.get(name, 0) for name in ("waiting", "accepted", "delivered"))
    verb = words.named("verb", view["command"])
    return styled("{} {}/{} · {}", verb, view["total"] - open_, view["total"], _counts(counts, words))


def summary(view: View, words: Words = tables.ENGLISH) -> Text:
    glyph, colour = STATUSES.get(view["status"], ("?", "magenta"))
    status, command = words.named("opstate", view["status"]), words.named("verb", view["command"])
    head = (glyph, status, view["operation_id"], command, _counts(view["counts"], words))
    lines = [styled(f"[{colour}]{{}} {{}}[/] {{}} {{}}: {{}}", *head)]
    if view["joined"]:
        lines.append(styled("{}", words.say("cli.left_alone", n=view["joined"])))
    if view.get("note"):
        lines.append(styled("  {}", view["note"]))
    for cause in view["causes"]:
        glyph, colour = RESULTS.get(cause["result"], ("?", "magenta"))
        what = cause["message"] or cause["cause"] or words.say("cli.no_reason")
        shown = (glyph, cause["count"], words.named("result", cause["result"]), what, _examples(cause))
        lines.append(styled(f"  [{colour}]{{}} {{}} {{}}[/]: {{}} ({{}})", *shown))
    return joined(lines, "\n")


def items(words: Words = tables.ENGLISH) -> tables.Columns:
    return (
        Column("WORKER", lambda view: view["worker_id"], long=True),
        Column(
            "RESULT",
            lambda view: tables.state_cell(view["result"], RESULTS, word=words.named("result", view["result"])),
        ),
        Column("WHY", lambda view: view["message"], 1, long=True),
    )


def listing(now: datetime, words: Words = tables.ENGLISH) -> tables.Columns:
    return (
        Column("OPERATION", lambda view: view["operation_id"]),
        Column(
            "STATUS",
            lambda view: tables.state_cell(view["status"], STATUSES, word=words.named("opstate", view["status"])),
        ),
        Column("COMMAND", lambda view: words.named("verb", view["command"])),
        Column("SELECTOR", lambda view: view["selector"] or "*", 2, long=True),
        Column("RESULT", lambda view: _counts(view["counts"], words).plain, 1, long=True),
        Column("BEGUN", lambda view: words.say("cli.ago", d=tables.age(view["created_at"], now, words)), 3),
        Column("BY", lambda view: view["actor"], 4, long=True),
        Column("WHY", lambda view: view["reason"], 5, long=True),
    )


def _counts(counts: dict[str, int], words: Words = tables.ENGLISH) -> Text:
    shown = [name for name in RESULTS if counts.get(name)]
    parts = (
        styled(f"[{RESULTS[name][1]}]{{}} {{}} {{}}[/]", RESULTS[name][0], counts[name], words.named("result", name))
        for name in shown
    )
    return joined(parts, "  ")


def _examples(cause: View) -> str:
    more = "…" if cause["count"] > len(cause["examples"]) else ""
    return ", ".join(cause["examples"]) + (f", {more}" if more else "")
