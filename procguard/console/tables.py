"""Tables of the operator's tasks: the same glyphs, words and colours as the portal.

Turns views of the manager's interface into rich tables; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from rich.text import Text

from procguard.console.styled import PlainTable, joined, styled

View = dict[str, Any]
# Blue to orange, never red against green: read by glyph and word first.
STATES = {
    "running": ("●", "blue"),
    "starting": ("▷", "cyan"),
    "stopping": ("◁", "cyan"),
    "stopped": ("■", "dim"),
    "backoff": ("↻", "yellow"),
    "exited": ("✓", "dim"),
    "failed": ("✖", "bright_red"),
    "unknown": ("?", "magenta"),
}
AGENT_STATES = {
    "connected": ("●", "blue"),
    "suspect": ("◐", "yellow"),
    "unreachable": ("✖", "bright_red"),
    "pending": ("…", "yellow"),
    "never": ("○", "dim"),
    "ended": ("■", "dim"),
}


INTO_BACKGROUND = {**STATES, "exited": ("!", "yellow")}  # the reason says that processes were left behind and ended


def _left(view: View) -> bool:
    return view["state"] == "exited" and bool((view.get("last_exit") or {}).get("left"))


def state_text(state: str, states: dict[str, tuple[str, str]] = STATES, after: str = "") -> Text:
    glyph, colour = states.get(state, ("?", "magenta"))
    return styled(f"[{colour}]{{}} {{}}[/]{{}}", glyph, state, after)


def workers(views: Iterable[View], now: datetime) -> PlainTable:
    table = plain_table("WORKER", "STATE", "HOST", "PID", "RESTARTS", "CPU", "MEMORY", "GPU", "SINCE", "WHY")
    for view in views:
        was = ""
        if view["state"] == "unknown" and view.get("last_known_state"):
            seen = age(view.get("last_seen"), now)
            was = f" (was {view['last_known_state']}, seen {seen} ago)" if seen else " (never seen)"
        usage = view.get("usage") or {}
        table.add_row(
            str(view["worker_id"]),
            state_text(str(view["state"]), INTO_BACKGROUND if _left(view) else STATES, after=was),
            str(view.get("host") or ""),
            str(view.get("pid") or ""),
            str(view.get("restarts_total") or view.get("restarts") or 0),
            f"{usage['cpu_percent']:.0f} %" if usage else "",
            size(usage["rss_bytes"]) if usage else "",
            _gpus_of_worker(usage),
            age(view.get("since"), now),
            "; ".join(_remarks(view)),
        )
    return table


def _gpus_of_worker(usage: View) -> str:
    """ "0,1: 97 %": which GPUs, and how busy they are on average."""
    if not usage.get("gpus"):
        return ""
    busy = usage.get("gpu_percent")
    return ",".join(map(str, usage["gpus"])) + ("" if busy is None else f": {busy:.0f} %")


def _gpus_of_host(usage: View) -> str:
    """ "2 of 8 in use": by whomever."""
    gpus = usage.get("gpus") or []
    if not gpus:
        return "unreadable" if usage.get("gpu_trouble") else ""
    used = sum(1 for gpu in gpus if gpu.get("worker_id") or gpu.get("processes"))
    return f"{used} of {len(gpus)} in use"


def _remarks(view: View) -> list[str]:
    remarks = [str(view["reason"])] if view.get("reason") else []
    if view.get("restart_pending"):
        remarks.append("restart pending: its specification has changed")
    if view.get("undeclared"):
        remarks.append("undeclared: no longer in the inventory")
    if view.get("suspect"):
        remarks.append(f"suspect: {view['suspect']}")
    health = view.get("health") or {}
    if health.get("status") == "failing":
        remarks.append(f"unhealthy: {health.get('detail') or ''}")
    return remarks


def hosts(views: Iterable[View], now: datetime) -> PlainTable:
    table = plain_table(
        "HOST", "AGENT", "ROLE", "WORKERS", "CPU", "LOAD", "GPUS", "LAST SEEN", "RECOVERY OVER SSH", "RELEASE", "WHY"
    )
    for view in views:
        usage, recovery = view.get("usage") or {}, view.get("recovery_ssh") or {}
        can = {True: "yes", False: f"no ({recovery.get('reason') or 'unknown'})"}.get(recovery.get("ok"), "not checked")  # type: ignore[arg-type]
        table.add_row(
            str(view["host"]),
            state_text(str(view.get("agent_state")), AGENT_STATES),
            _role(view),
            str(view.get("workers", 0)),
            f"{usage['cpu_percent']:.0f} %" if usage else "",
            f"{usage['load1']:.2f}" if usage else "",
            _gpus_of_host(usage),
            age(view.get("last_seen"), now),
            can,
            str(view.get("release") or "")[:8],
            "; ".join(one for one in (str(view.get("reason") or ""), _disk(view)) if one),
        )
    return table


def _disk(view: View) -> str:
    """Its disk refuses writes; "" where it takes them."""
    shown = {"space": "disk full", "inodes": "no inodes left", "quota": "quota used up", "read_only": "read-only disk"}
    trouble = str(view.get("disk_trouble") or "")
    path = view.get("disk_path") or "procguard_home"
    return f"{shown.get(trouble, 'disk errors')} ({path}): nothing new starts" if trouble else ""


def _role(view: View) -> str:
    """ "tunnel, spare, cordoned (fan is loud), 2 failures": how it is reached, may it take tasks over, and what speaks
    against it."""
    spare, cordoned, failures = view.get("spare"), view.get("cordoned"), view.get("failures")
    words = ["not in the inventory any more"] if view.get("undeclared") else []
    tunnel = view.get("tunnel")
    if tunnel:
        words.append("tunnel" if tunnel["state"] == "up" else f"tunnel {tunnel['state']}")
    if spare:
        words.append("spare" if spare is True else f"spare for {spare}")
    if cordoned:
        words.append(f"cordoned ({cordoned['reason']})")
    if failures:
        words.append(f"{failures} failure{'s' if failures > 1 else ''}")
    return ", ".join(words)


def skew(view: View, releases: list[str]) -> str:
    """ "same" or "other" than the manager's release; "" where one of the two is not known."""
    release = str(view.get("release") or "")
    if not release or not releases:
        return ""
    return "same" if release[:16] in releases else "other"


def releases(views: list[View], own: list[str], version: str) -> str:
    """ "manager 0.1.0 (a1b2c3d4): 14 agents of its release, 2 of another (9f8e7d6c): invoke upgrade" """
    others = [view for view in views if skew(view, own) == "other"]
    same = sum(1 for view in views if skew(view, own) == "same")
    head = f"manager {version} ({', '.join(one[:8] for one in own)})" if own else "the manager's release is not known"
    if not others:
        return f"{head}: {same} agents of its release"
    names = ", ".join(sorted({str(view["release"])[:8] for view in others}))
    return f"{head}: {same} agents of its release, {len(others)} of another ({names}): invoke upgrade --hosts …"


def agents(views: Iterable[View], now: datetime) -> PlainTable:
    table = plain_table(
        "AGENT", "STATE", "KIND", "HOST", "FINGERPRINT", "RELEASE", "SKEW", "CHANNEL", "LAST SEEN", "WHAT"
    )
    for view in views:
        agent_id = str(view.get("agent") or view.get("agent_id") or "")
        what = str(view.get("reason") or view.get("channel_trouble") or "")
        if view.get("agent_state") == "pending":
            what = f"wants to run: {view.get('command', '')} — invoke agents approve {agent_id}"
        if view.get("rotation"):
            what = f"new secret {view['rotation'].get('state')}" + (f"; {what}" if what else "")
        table.add_row(
            agent_id,
            state_text(str(view.get("agent_state")), AGENT_STATES),
            str(view.get("kind") or ""),
            str(view.get("host") or ""),
            str(view.get("fingerprint") or ""),
            str(view.get("release") or "")[:8],
            styled("[yellow]other[/]") if view.get("skew") == "other" else "",
            str(view.get("channel") or ""),
            age(view.get("last_seen"), now),
            what,
        )
    return table


def tokens(views: Iterable[View], now: datetime) -> PlainTable:
    table = plain_table("ID", "SCOPE", "NAME", "CREATED", "ENDS", "LAST USED", "FROM")
    for view in views:
        left = view.get("uses_left")
        ends = str(view.get("expires_at") or "") + ("" if left is None else f" after {left} more launchers")
        used = age(view.get("last_used_at"), now)
        cells = (
            view["token_id"],
            view["scope"],
            view["name"],
            f"{view.get('created_at') or ''} by {view.get('created_by') or '?'}",
            ends.strip() or "never",
            f"{used} ago" if used else "never",
            view.get("last_used_from") or "",
        )
        table.add_row(*cells)
    return table


def event_line(event: View) -> Text:
    where = " ".join(str(event[name]) for name in ("worker_id", "host") if event.get(name))
    change = f" {event['before']} → {event['after']}" if event.get("before") and event.get("after") else ""
    actor = styled(" [dim](by {})[/]", event["actor"]) if event.get("actor") else ""
    head = (event["at"], event["kind"], where, change)
    return styled("[dim]{}[/] {} {}{}: {}{}", *head, event.get("reason") or "", actor)


def summary(worker_views: list[View], host_views: list[View]) -> Text:
    """workers: ● 3 running  ✖ 1 failed   hosts: ● 2 connected"""

    def counted(values: list[str], states: dict[str, tuple[str, str]]) -> Text | str:
        names = [name for name in states if name in values]
        shown = (
            styled(f"[{states[name][1]}]{{}} {{}} {{}}[/]", states[name][0], values.count(name), name) for name in names
        )
        return joined(shown, "  ") if names else "none"

    of_workers = counted([str(view["state"]) for view in worker_views], STATES)
    of_hosts = counted([str(view.get("agent_state")) for view in host_views], AGENT_STATES)
    return styled("workers: {}    agents: {}", of_workers, of_hosts)


def age(moment: Any, now: datetime) -> str:
    """ "3 h 12 min" since an ISO time or a Unix time; "" when there is none."""
    if not moment:
        return ""
    try:
        if isinstance(moment, (int, float)):
            then = datetime.fromtimestamp(moment, timezone.utc)
        else:
            then = datetime.fromisoformat(str(moment).replace("Z", "+00:00"))
    except ValueError:
        return ""
    seconds = max(0, int((now - then).total_seconds()))
    for unit_s, unit, smaller_s, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= unit_s:
            return f"{seconds // unit_s} {unit} {seconds % unit_s // smaller_s} {smaller}"
    return f"{seconds} s"


def size(count: int) -> str:
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"


def plain_table(*columns: str) -> PlainTable:
    """Nothing is wrapped but the reasons."""
    return PlainTable(*columns, wrapped=("WHY", "WHAT", "RECOVERY OVER SSH"))
