"""Columns of the commands' lists: the same glyphs, words and colours as in the portal.

Turns the API's views into columns of a grid; knows no HTTP. Standard library only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from procguard.console.grid import Cell, Column, painted
from procguard.console.language import shown
from procguard.console.terminal import line
from procguard.fields import ShownField
from procguard.hints import program
from procguard.i18n.words import Words

View = Mapping[str, Any]  # a view of the API, as decoded; an earlier manager omits newer fields
Columns = tuple[Column[View], ...]
Fields = Sequence[ShownField[Any]]
ENGLISH = Words("en")
# Blue and orange instead of red and green, for colour-blind readers; glyph and word suffice without colour.
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


INTO_BACKGROUND = {**STATES, "exited": ("!", "yellow")}  # exited, but with processes left behind, as the reason says


def _left(view: View) -> bool:
    return view["state"] == "exited" and bool((view.get("last_exit") or {}).get("left"))


def state_cell(state: object, states: dict[str, tuple[str, str]] = STATES, after: str = "", word: str = "") -> Cell:
    glyph, colour = states.get(str(state), ("?", "magenta"))
    return Cell(f"{glyph} {word or state}", colour, after)


def workers(now: datetime, fields: Fields, words: Words = ENGLISH, progress: bool = False) -> Columns:
    """The columns of a list of workers. `fields`: of a worker (fleet/shapes), in order; cells that combine several
    fields are defined here. `progress`: show the progress column also in the narrow format."""
    return _columns(
        fields,
        now,
        words,
        {
            "state": lambda view: _state_of_worker(view, now, words),
            "attempt": lambda view: view.get("attempt") or "",
            "restarts_total": lambda view: view.get("restarts_total") or view.get("restarts") or 0,
            "gpu_percent": lambda view: _gpus_of_worker(view.get("usage") or {}),
            "metrics": lambda view: " ".join(metric_texts(view.get("metrics") or (), words)),
            "progress_percent": lambda view: progress_text(view, words),
            "reason": lambda view: words.joined(_remarks(view, words)),
        },
        "progress_percent" if progress else "",
    )


def _columns(
    fields: Fields, now: datetime, words: Words, own: dict[str, Callable[[View], object]], always: str = ""
) -> Columns:
    found = []
    for one in fields:
        if one.label is None or one.printed is None:
            continue
        title = one.label.zh if words.language == "zh" else one.printed.title or one.label.en.upper()
        cell = own.get(one.name) or functools.partial(_cell, one, now, words)
        found.append(Column(title, cell, one.printed.rank, one.printed.wide and one.name != always, one.printed.long))
    return tuple(found)


def _cell(field: ShownField[Any], now: datetime, words: Words, view: View) -> str:
    """A field's value with its unit; "" if it is unknown."""
    value = ((view.get(field.part_of) or {}) if field.part_of else view).get(field.name)
    if value is None:
        return ""
    if field.unit == "moment":
        return age(value, now, words)
    if field.unit == "percent":
        return f"{value:.0f} %"
    if field.unit in ("bytes", "bytes_per_s"):
        return size(int(value)) + ("/s" if field.unit == "bytes_per_s" else "")
    if field.unit == "labels":
        return ",".join(f"{name}={what}" for name, what in value.items())
    return str(value)


def _state_of_worker(view: View, now: datetime, words: Words) -> Cell:
    was = ""
    if view["state"] == "unknown" and view.get("last_known_state"):
        seen, known = age(view.get("last_seen"), now, words), words.named("state", view["last_known_state"])
        was = words.say("cli.was", state=known, d=seen) if seen else words.say("cli.never_seen")
    return state_cell(
        view["state"], INTO_BACKGROUND if _left(view) else STATES, was, words.named("state", view["state"])
    )


def _of_usage(view: View, name: str, shown: Any) -> str:
    usage = view.get("usage") or {}
    return "" if usage.get(name) is None else str(shown(usage[name]))


def _gpus_of_worker(usage: View) -> str:
    """ "0,1: 97 %": the worker's GPUs, and their average utilization."""
    if not usage.get("gpus"):
        return ""
    busy = usage.get("gpu_percent")
    return ",".join(map(str, usage["gpus"])) + ("" if busy is None else f": {busy:.0f} %")


def progress_text(view: View, words: Words = ENGLISH) -> str:
    """ "42 %, 3 h 12 min left"; "" if the progress is unknown."""
    percent, eta_s = view.get("progress_percent"), view.get("eta_s")
    if percent is None:
        return ""
    shown = f"{percent:.0f} %"
    return shown if eta_s is None else words.say("cli.left", done=shown, d=words.duration(eta_s))


def metric_texts(metrics: Sequence[View], words: Words = ENGLISH) -> list[str]:
    """["loss=0.231", "step=12/100"]; a metric that is no longer read has a remark instead of its value."""
    found = []
    for one in metrics:
        if one.get("trouble"):
            found.append(f"{one['name']}={words.say('cli.metric_too_long')}")
        elif one.get("value") is not None:
            total = one.get("total")
            found.append(f"{one['name']}={one['value']:.6g}" + ("" if total is None else f"/{total:.6g}"))
    return found


def _gpus_of_host(usage: View, words: Words = ENGLISH) -> str:
    """ "2 of 8 in use", by workers or other processes."""
    gpus = usage.get("gpus") or []
    if not gpus:
        return words.say("cli.gpus_unreadable") if usage.get("gpu_trouble") else ""
    used = sum(1 for gpu in gpus if gpu.get("worker_id") or gpu.get("processes"))
    return words.say("cli.gpus_in_use", used=used, n=len(gpus))


def _remarks(view: View, words: Words) -> list[str]:
    said = str(view.get("reason") or "")
    usual = view.get("reason_code") == "run.running" and not (view.get("reason_params") or {}).get("also")
    remarks = [said] if said and not usual and said != f"running (pid {view.get('pid')})" else []  # both have columns
    if view.get("restart_pending"):
        remarks.append(words.say("cli.restart_pending"))
    if view.get("undeclared"):
        remarks.append(words.say("cli.undeclared"))
    if view.get("suspect"):
        remarks.append(words.say("cli.suspect", why=view["suspect"]))
    health = view.get("health") or {}
    if health.get("status") == "failing":
        remarks.append(words.say("cli.unhealthy", why=health.get("detail") or ""))
    return remarks


def hosts(now: datetime, fields: Fields, words: Words = ENGLISH) -> Columns:
    """The columns of a list of hosts. `fields`: of a host, as for `workers`; the role combines several fields."""
    role: Column[View] = Column("ROLE", lambda view: _role(view, words), 4, long=True)
    columns = _columns(
        fields,
        now,
        words,
        {
            "agent_state": lambda view: _agent_state(view, words),
            "workers": lambda view: view.get("workers", 0),
            "load1": lambda view: _of_usage(view, "load1", "{:.2f}".format),
            "gpu_percent": lambda view: _gpus_of_host(view.get("usage") or {}, words),
            "recovery_ssh": lambda view: _recovery(view, words),
            "release": lambda view: str(view.get("release") or "")[:8],
            "reason": lambda view: words.joined([one for one in (view.get("reason"), _disk(view, words)) if one]),
        },
    )
    return (*columns[:2], role, *columns[2:])


def _agent_state(view: View, words: Words) -> Cell:
    state = view.get("agent_state")
    return state_cell(state, AGENT_STATES, word=words.named("agent_state", state))


def _recovery(view: View, words: Words) -> str:
    """Whether the manager can restart the agent over SSH."""
    found = view.get("recovery_ssh") or {}
    if found.get("ok") is None:
        return words.say("cli.not_checked")
    why = found.get("reason") or words.say("cli.why_unknown")
    return words.say("cli.yes") if found["ok"] else words.say("cli.no", why=why)


def _disk(view: View, words: Words) -> str:
    """A remark if writes to the host's disk fail; else ""."""
    trouble = str(view.get("disk_trouble") or "")
    path = view.get("disk_path") or "procguard_home"
    if not trouble:
        return ""
    key = f"cli.disk_{trouble}"
    return words.say("cli.nothing_new", what=words.say(key if words.has(key) else "cli.disk_io"), path=path)


def _role(view: View, words: Words) -> str:
    """ "tunnel, spare, cordoned (fan is loud), 2 failures": how the host is reached, and whether tasks may be placed on
    it."""
    spare, cordoned, failures = view.get("spare"), view.get("cordoned"), view.get("failures")
    said = [words.say("cli.not_in_inventory")] if view.get("undeclared") else []
    tunnel = view.get("tunnel")
    if tunnel:
        key = "cli.tunnel" if tunnel["state"] == "up" else f"cli.tunnel_{tunnel['state']}"
        said.append(words.say(key) if words.has(key) else str(tunnel["state"]))
    if spare:
        said.append(words.say("cli.spare") if spare is True else words.say("cli.spare_for", n=spare))
    if cordoned:
        said.append(words.say("cli.cordoned", why=cordoned["reason"]))
    if failures:
        said.append(words.say("cli.failures", n=failures))
    return words.say("comma").join(said)


def skew(view: View, releases: list[str]) -> str:
    """ "same" as or "other" than the manager's release; "" if either is unknown."""
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


def agents(now: datetime, words: Words = ENGLISH) -> Columns:
    return (
        Column("AGENT", lambda view: view.get("agent") or view.get("agent_id"), long=True),
        Column("STATE", lambda view: _agent_state(view, words)),
        Column("KIND", lambda view: words.named("agent_kind", view.get("kind") or ""), 4),
        Column("HOST", lambda view: view.get("host"), 3, long=True),
        Column("FINGERPRINT", lambda view: view.get("fingerprint"), 6),
        Column("RELEASE", lambda view: str(view.get("release") or "")[:8], 5),
        Column("SKEW", lambda view: Cell("other", "yellow") if view.get("skew") == "other" else "", 2),
        Column("CHANNEL", lambda view: view.get("channel"), 7),
        Column("LAST SEEN", lambda view: age(view.get("last_seen"), now, words), 2),
        Column("WHAT", lambda view: _what_of_agent(view, words), 1, long=True),
    )


def _what_of_agent(view: View, words: Words) -> str:
    what = str(view.get("reason") or view.get("channel_trouble") or "")
    if view.get("agent_state") == "pending":
        how = f"{program('agents approve')} {view.get('agent')}"
        what = words.say("cli.wants_to_run", command=view.get("command", ""), how=how)
    if view.get("rotation"):
        state = words.named("secret", view["rotation"].get("state"))
        what = words.joined([words.say("cli.new_secret", state=state), *([what] if what else [])])
    return what


def tokens(now: datetime, words: Words = ENGLISH) -> Columns:
    return (
        Column("ID", lambda view: view["token_id"]),
        Column("SCOPE", lambda view: view["scope"], long=True),
        Column("NAME", lambda view: view["name"], 1, long=True),
        Column("CREATED", lambda view: _ago(view.get("created_at"), now, words) or "?", 4),
        Column("BY", lambda view: view.get("created_by"), 5, long=True),
        Column("ENDS", _end_of_token, 1, long=True),
        Column("LAST USED", lambda view: _ago(view.get("last_used_at"), now, words) or shown("never"), 2),
        Column("FROM", lambda view: view.get("last_used_from"), 3),
    )


def _end_of_token(view: View) -> str:
    left = view.get("uses_left")
    ends = str(view.get("expires_at") or "") + ("" if left is None else shown(f" after {left} more launchers"))
    return ends.strip() or shown("never")


def _ago(moment: Any, now: datetime, words: Words) -> str:
    passed = age(moment, now, words)
    return words.say("cli.ago", d=passed) if passed else ""


def event_line(event: Mapping[str, Any], colour: bool = False, words: Words = ENGLISH) -> str:
    event = words.translated(dict(event))
    where = " ".join(str(event[name]) for name in ("worker_id", "host") if event.get(name))
    change = (
        f" {_changed(event['before'], words)} → {_changed(event['after'], words)}"
        if event.get("before") and event.get("after")
        else ""
    )
    head = painted(Cell(line(event["at"]), "dim"), colour)
    text = f"{head} {line(event['kind'])} {line(where)}{line(change)}: {line(event.get('reason') or '')}"
    return text + (
        painted(Cell(words.say("cli.by", actor=line(event["actor"])), "dim"), colour) if event.get("actor") else ""
    )


def _changed(state: object, words: Words) -> str:
    word = words.named("state", state)
    return word if word != state else words.named("agent_state", state)


def summary(
    worker_views: Sequence[View], host_views: Sequence[View], colour: bool = False, words: Words = ENGLISH
) -> str:
    """The summary line: "workers: ● 3 running  ✖ 1 failed    agents: ● 2 connected"."""

    def counted(values: list[str], states: dict[str, tuple[str, str]], kind: str) -> str:
        names = [name for name in states if name in values]
        shown = (
            Cell(f"{states[name][0]} {values.count(name)} {words.named(kind, name)}", states[name][1]) for name in names
        )
        return "  ".join(painted(one, colour) for one in shown) or words.say("cli.none")

    of_workers = counted([str(view["state"]) for view in worker_views], STATES, "state")
    of_hosts = counted([str(view.get("agent_state")) for view in host_views], AGENT_STATES, "agent_state")
    return f"{words.say('cli.workers')}: {of_workers}    {words.say('cli.agents')}: {of_hosts}"


def age(moment: Any, now: datetime, words: Words = ENGLISH) -> str:
    """ "3 h 12 min" since `moment`, an ISO 8601 time or Unix seconds; "" if there is none."""
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
            larger = words.say(f"unit.{unit}", n=seconds // unit_s)
            return f"{larger} {words.say(f'unit.{smaller}', n=seconds % unit_s // smaller_s)}"
    return words.say("unit.s", n=seconds)


def size(count: int) -> str:
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"
