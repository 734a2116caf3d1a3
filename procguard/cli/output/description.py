"""Output of `describe` for one worker, in sections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from procguard.console import tables
from procguard.console.grid import width_of
from procguard.hints import commands
from procguard.i18n.words import Words

if TYPE_CHECKING:
    from procguard.console.tables import View

EVENTS = 10


def lines(
    view: View, explained: View, events: Sequence[View], now: datetime, words: Words, declared: View | None = None
) -> Iterator[str]:
    """The lines of the output. `explained`: the response of GET /api/workers/ID/explain. `events`: the worker's newest
    events, newest last. `declared`: the keys of its specification that differ from their defaults."""
    yield from _facts("", [*_about(view, now, words), *_declared(declared or {}, words)], words)
    yield from _facts(words.say("cli.usage"), _usage(view), words)
    yield from _facts(words.say("cli.metrics"), _metrics(view, words), words)
    yield from _facts(words.say("cli.last_exit"), _last_exit(view, words), words)
    yield ""
    yield words.say("cli.why")
    for sentence in explained["sentences"]:
        yield f"  {sentence['text']}"
    for step in explained["next_steps"]:
        yield f"  → {commands(step)}"
    yield ""
    yield words.say("cli.events" if events else "cli.no_events")
    for event in events:
        yield f"  {tables.event_line(event, words=words)}"


def _about(view: View, now: datetime, words: Words) -> list[tuple[str, Any]]:
    gang = view.get("gang") or {}
    since = tables.age(view.get("since"), now, words)
    state = words.named("state", view["state"])
    return [
        ("Worker", view["worker_id"]),
        ("State", words.say("cli.since", state=state, d=since) if since else state),
        ("Desired", words.named("state", view.get("desired"))),
        ("Reason", view.get("reason")),
        ("Host", view.get("host")),
        ("Agent", view.get("agent")),
        ("PID", view.get("pid")),
        ("Attempt", view.get("attempt")),
        ("Restarts", words.say("cli.restarts", counted=view.get("restarts", 0), total=view.get("restarts_total", 0))),
        (
            "Next start",
            words.say("cli.next_start", d=words.duration(view["next_start_in_s"]))
            if view.get("next_start_in_s") is not None
            else None,
        ),
        ("Command", view.get("command")),
        ("Group", view.get("group")),
        ("Gang", words.say("cli.gang", **{**gang, "phase": words.named("phase", gang["phase"])}) if gang else None),
        ("Labels", ", ".join(f"{name}={value}" for name, value in sorted((view.get("labels") or {}).items()))),
        ("Health", (view.get("health") or {}).get("status")),
        ("Suspect", view.get("suspect")),
        ("Restart pending", words.say("cli.restart_pending") if view.get("restart_pending") else None),
        ("Undeclared", words.say("cli.undeclared") if view.get("undeclared") else None),
    ]


def _declared(declared: View, words: Words) -> list[tuple[str, Any]]:
    terminal, limit_s = declared.get("tty"), declared.get("max_run_s")
    return [
        ("Terminal", words.say("cli.terminal", **terminal) if terminal else None),
        ("Time limit", words.duration(limit_s) if limit_s is not None else None),
    ]


def _usage(view: View) -> list[tuple[str, Any]]:
    usage = view.get("usage") or {}
    return [
        ("CPU", f"{usage['cpu_percent']:.0f} %" if usage.get("cpu_percent") is not None else None),
        ("Memory", tables.size(usage["rss_bytes"]) if usage.get("rss_bytes") is not None else None),
        ("GPUs", ", ".join(map(str, usage.get("gpus") or ()))),
    ]


def _metrics(view: View, words: Words) -> list[tuple[str, Any]]:
    found = [text.partition("=") for text in tables.metric_texts(view.get("metrics") or (), words)]
    return [*((name, value) for name, _, value in found), ("Progress", tables.progress_text(view, words))]


def _last_exit(view: View, words: Words) -> list[tuple[str, Any]]:
    last = view.get("last_exit") or {}
    at = last.get("at")
    return [
        ("Attempt", last.get("attempt")),
        ("Reason", last.get("reason")),
        ("Exit code", last.get("code")),
        ("Signal", last.get("signal")),
        ("Out of memory", words.say("cli.yes") if last.get("oom") else None),
        ("Ran", words.duration(last["duration_s"]) if last.get("duration_s") is not None else None),
        ("When", datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else None),
        ("Left behind", last.get("left") or None),
    ]


def _facts(title: str, facts: Sequence[tuple[str, Any]], words: Words) -> Iterator[str]:
    shown = [(words.head(name), value) for name, value in facts if value not in (None, "")]
    if not shown:
        return
    if title:
        yield ""
        yield title
    indent = "  " if title else ""
    width = max(width_of(name) for name, _ in shown) + 1
    for name, value in shown:
        yield f"{indent}{name}:{' ' * (width - 1 - width_of(name))}  {value}"
