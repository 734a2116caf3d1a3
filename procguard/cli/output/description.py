"""What `describe` shows of one worker, in sections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from procguard.console import tables
from procguard.hints import commands

View = dict[str, Any]
EVENTS = 10


def lines(view: View, explained: View, events: Sequence[View], now: datetime) -> Iterator[str]:
    """`explained`: of GET /api/workers/ID/explain; `events`: the newest ones, newest last."""
    yield from _facts("", _about(view, now))
    yield from _facts("Usage", _usage(view))
    yield from _facts("Last exit", _last_exit(view))
    yield ""
    yield "Why"
    for sentence in explained["sentences"]:
        yield f"  {sentence['text']}"
    for step in explained["next_steps"]:
        yield f"  → {commands(step)}"
    yield ""
    yield "Events" if events else "Events: none"
    for event in events:
        yield f"  {tables.event_line(event)}"


def _about(view: View, now: datetime) -> list[tuple[str, Any]]:
    gang = view.get("gang") or {}
    since = tables.age(view.get("since"), now)
    return [
        ("Worker", view["worker_id"]),
        ("State", f"{view['state']}{f', for {since}' if since else ''}"),
        ("Desired", view.get("desired")),
        ("Reason", view.get("reason")),
        ("Host", view.get("host")),
        ("Agent", view.get("agent")),
        ("PID", view.get("pid")),
        ("Attempt", view.get("attempt")),
        ("Restarts", f"{view.get('restarts', 0)} counted, {view.get('restarts_total', 0)} in all"),
        ("Next start", f"in {view['next_start_in_s']:.0f} s" if view.get("next_start_in_s") is not None else None),
        ("Command", view.get("command")),
        ("Group", view.get("group")),
        ("Gang", f"{gang['phase']}, rank {gang['rank']}, epoch {gang['epoch']}" if gang else None),
        ("Labels", ", ".join(f"{name}={value}" for name, value in sorted((view.get("labels") or {}).items()))),
        ("Health", (view.get("health") or {}).get("status")),
        ("Suspect", view.get("suspect")),
        ("Restart pending", "its specification has changed" if view.get("restart_pending") else None),
        ("Undeclared", "no longer in the inventory" if view.get("undeclared") else None),
    ]


def _usage(view: View) -> list[tuple[str, Any]]:
    usage = view.get("usage") or {}
    return [
        ("CPU", f"{usage['cpu_percent']:.0f} %" if usage.get("cpu_percent") is not None else None),
        ("Memory", tables.size(usage["rss_bytes"]) if usage.get("rss_bytes") is not None else None),
        ("GPUs", ", ".join(map(str, usage.get("gpus") or ()))),
    ]


def _last_exit(view: View) -> list[tuple[str, Any]]:
    last = view.get("last_exit") or {}
    at = last.get("at")
    return [
        ("Attempt", last.get("attempt")),
        ("Reason", last.get("reason")),
        ("Exit code", last.get("code")),
        ("Signal", last.get("signal")),
        ("Out of memory", "yes" if last.get("oom") else None),
        ("Ran", f"{last['duration_s']:.0f} s" if last.get("duration_s") is not None else None),
        ("When", datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else None),
        ("Left behind", last.get("left") or None),
    ]


def _facts(title: str, facts: Sequence[tuple[str, Any]]) -> Iterator[str]:
    shown = [(name, value) for name, value in facts if value not in (None, "")]
    if not shown:
        return
    if title:
        yield ""
        yield title
    indent = "  " if title else ""
    width = max(len(name) for name, _ in shown) + 1
    for name, value in shown:
        yield f"{indent}{name + ':':<{width}}  {value}"
