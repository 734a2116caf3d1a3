"""Commands for history: events, search, explain, notify."""

from __future__ import annotations

import codecs
import sys
from datetime import datetime
from typing import TYPE_CHECKING, TypedDict, cast

from procguard import hints
from procguard.cli.access import seconds_of
from procguard.cli.contexts import connect
from procguard.cli.output.language import chosen
from procguard.cli.program.command import OUTPUT, OutputOptions, operator_task
from procguard.console.grid import say_wrapped
from procguard.console.language import shown
from procguard.console.terminal import json_escaped, say, say_as_is, say_json
from procguard.errors import PartlyFailed, UsageError

if TYPE_CHECKING:
    from procguard.console.tables import View
    from procguard.fleet.agents.log_search import HostSearched
    from procguard.portal.api.search import FoundLine, FoundTotals

EVENTS_SHOWN = 50
MOST_EVENTS_SHOWN = 10_000


class EventFilters(TypedDict):
    """The parameters of a request for events."""

    worker: str
    host: str
    kind: str
    cause: str
    actor: str
    q: str
    operation: str
    reason_code: str
    since: str
    until: str


@operator_task(
    help={
        "worker": "filter by worker; several: a,b",
        "host": "filter by host",
        "kind": "filter by kind, e.g. worker_state,worker_failed",
        "cause": "filter by cause, e.g. oom",
        "reason_code": "filter by code of the reason, e.g. exit.code, or exit for all that begin with it",
        "actor": "filter by actor",
        "operation": "filter by batch operation",
        "since": "start of the range: 10m, 2h, or an ISO 8601 time",
        "until": "end of the range",
        "text": "filter by text",
        "limit": "number of newest events (0: 50, or all within --since)",
        "follow": "keep printing new events until Ctrl-C",
        "json_": "one JSON object per line; everything on disk unless --limit is given",
        "lang": "en or zh (default: LC_ALL, LC_MESSAGES, LANG)",
    }
)
def events(
    worker: str = "",
    host: str = "",
    kind: str = "",
    cause: str = "",
    reason_code: str = "",
    actor: str = "",
    operation: str = "",
    since: str = "",
    until: str = "",
    text: str = "",
    limit: int = 0,
    follow: bool = False,
    json_: bool = False,
    lang: str = "",
) -> None:
    """List events with their reasons, newest last. Example: invoke events --since 2h --kind worker_failed"""
    from procguard.cli.output.listing import is_coloured, say_painted
    from procguard.console import grid, tables

    words = chosen(lang)
    manager = connect()
    query: EventFilters = {
        "worker": worker,
        "host": host,
        "kind": kind,
        "cause": cause,
        "actor": actor,
        "q": text,
        "operation": operation,
        "reason_code": reason_code,
        "since": since,
        "until": until,
    }
    if json_ and not limit and not follow:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in manager.export_events(**query):
            sys.stdout.write(json_escaped(decoder.decode(piece)))
        sys.stdout.flush()
        return
    limit = limit or (MOST_EVENTS_SHOWN if since else EVENTS_SHOWN)
    for event in manager.iterate_events(follow=follow, limit=limit, **query):
        if json_:
            say_json(event, indent=None)
            continue
        text = tables.event_line(event, words=words)
        width = grid.terminal_width(sys.stdout)
        if is_coloured() and (width is None or grid.width_of(text) <= width):
            say_painted(tables.event_line(event, colour=True, words=words))
        else:
            say_wrapped(text)


@operator_task(
    ("pattern",),
    help={
        "pattern": "regular expression in RE2 syntax (docs/protocol.md)",
        "select": "selector of workers: id, glob, or group=trainers,state=running",
        "text": "treat the pattern as literal text",
        "ignore_case": "ignore case",
        "since": "start of the range: 10m, 2h, or an ISO 8601 time",
        "until": "end of the range",
        "stream": "out or err, if stderr is separate",
        "limit": "number of newest lines",
        "timeout": "timeout per host, in seconds",
        "json_": "one JSON object per line",
    },
)
def search(
    pattern: str,
    select: str = "*",
    text: bool = False,
    ignore_case: bool = False,
    since: str = "",
    until: str = "",
    stream: str = "",
    limit: int = 500,
    timeout: int = 10,
    json_: bool = False,
) -> None:
    """Search the logs of all hosts, newest last. Example: invoke search 'CUDA error' --select group=trainers

    Each agent searches the logs on its host; the manager searches the logs that no connected host holds (moved workers,
    unreachable hosts). Exits with code 2 if something was not searched, and names it.
    """
    query = {"text" if text else "regex": pattern, "select": select, "ignore_case": 1 if ignore_case else None}
    query |= {"since": since, "until": until, "stream": stream, "limit": limit, "timeout": timeout}
    lines: list[FoundLine] = []
    silent: list[HostSearched] = []
    totals: FoundTotals | None = None
    for said in connect().search_logs(**query):
        if said["t"] == "host":
            lines += said["lines"]
            silent += [cast("HostSearched", said)] if said["status"] != "done" else []
        elif said["t"] == "end":
            totals = cast("FoundTotals", said)
    newest = sorted(lines, key=lambda line: float(line["at"]))[-limit:]
    for line in newest:
        if json_:
            say_json(line, indent=None)
        else:
            moment = datetime.fromtimestamp(line["at"]).astimezone().strftime("%m-%d %H:%M:%S") if line["at"] else "?"
            say_as_is(f"{moment} {line['worker_id']}: {line['text']}")
    if totals is None:
        raise PartlyFailed("the search ended before all hosts had answered", "try again")
    say(
        f"{len(newest)} of {totals['found']} matching lines, {totals['hosts_answered']} of {totals['hosts_asked']} "
        f"hosts, {totals['workers']} workers, {totals['bytes'] / 1e6:,.0f} MB in {totals['elapsed_s']:.1f} s",
        err=True,
    )
    if silent:
        words = chosen("")
        for part in silent:
            say(f"{part['host']}: {part['status'].replace('_', ' ')}: {words.reason(part)}", err=True)
        raise PartlyFailed(f"{len(silent)} of {totals['hosts_asked']} hosts did not answer in full", "see above")


@operator_task(
    ("worker",),
    help={"worker": "worker id", "lang": "en or zh (default: LC_ALL, LC_MESSAGES, LANG)", "json_": "as JSON"},
)
def explain(worker: str, lang: str = "", json_: bool = False) -> None:
    """Explain a worker's state and its history. Example: invoke explain worker1 --lang zh"""
    text = chosen(lang)
    said = connect().explain(worker, text.language)
    if json_:
        say_json(said)
        return
    say_wrapped(said["headline"])
    for sentence in said["sentences"]:
        say_wrapped(f"  {sentence['text']}")
    for step in said["next_steps"]:
        say_wrapped(hints.commands(f"→ {step}"))
    say()
    say(text.say("timeline" if said["timeline"] else "timeline_none"))
    for moment in said["timeline"]:
        say_wrapped(f"  {_local_time(moment['at'])}  {moment['text']}")


@operator_task(name="list", default=True)
def notify_list(output: OutputOptions = OUTPUT) -> None:
    """List notification targets and their status. Example: invoke notify"""
    from procguard.cli.output.listing import listed
    from procguard.console.grid import Column

    columns: tuple[Column[View], ...] = (
        Column("NAME", lambda one: one["name"]),
        Column("TYPE", lambda one: one["type"]),
        Column("ADDRESS", lambda one: one["address"], 1, long=True),
        Column("SENT", lambda one: one["sent"]),
        Column("WAITING", lambda one: one["queued"]),
        Column("DROPPED", lambda one: one["dropped"]),
        Column("LAST ERROR", lambda one: shown(one["last_error"] or ""), 1, long=True),
    )
    empty = hints.local("no notifications are configured: docs/notifications.md shows how")
    listed(connect().notifications(), columns, output, "name", empty=empty)


@operator_task(name="test", help={"name": "name of a target, or all"})
def notify_test(name: str = "all") -> None:
    """Send a test message from the manager and show each response. Example: invoke notify.test

    To test a single target: invoke notify.test --name oncall
    """
    results = connect().test_notifications("" if name == "all" else name)
    for one in results:
        status = "ok" if one["ok"] else "failed"
        say(f"{one['name']}: {status} ({one['answer']}, {one['took_s']:.1f} s)")
    failed = [one for one in results if not one["ok"]]
    if failed:
        raise PartlyFailed(f"{len(failed)} of {len(results)} targets did not accept the test message", "see above")


@operator_task(
    ("select",),
    name="mute",
    help={
        "select": "workers or hosts: group=trainers, 'host=gpu0*'",
        "for_": "how long: 2h, 45m, 3d",
        "at": "when it begins, e.g. 2026-12-01T22:00+08:00 (default: now)",
        "note": "reason, for other operators",
    },
)
def notify_mute(select: str, for_: str = "1h", at: str = "", note: str = "") -> None:
    """Send no alerts of some workers for a while. Example: invoke notify.mute 'host=gpu0*' --for 2h --note disks

    A maintenance window: invoke notify.mute group=trainers --at 2026-12-01T22:00+08:00 --for 4h
    """
    try:
        begins = datetime.fromisoformat(at).timestamp() if at else None
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"--at {at}: not a time", "write it like 2026-12-01T22:00+08:00") from exc
    made = connect().mute(select, seconds_of(for_, "--for"), begins, note)
    say(f"{made['mute_id']}: no alerts of {made['select']} until {_local_time(made['ends'])}")


@operator_task(
    ("worker",),
    name="ack",
    help={"worker": "its id, or an alert of invoke notify.firing", "note": "what is known, or done about it"},
)
def notify_ack(worker: str, note: str = "") -> None:
    """Acknowledge a worker's failure, or a firing alert, for everyone to see. Example: invoke notify.ack worker1

    An alert is written as invoke notify.firing shows it, in quotes: invoke notify.ack 'disk-full|gpu01' --note ordered
    """
    if "|" in worker:  # worker ids cannot contain it
        connect().acknowledge_alert(worker, note)
    else:
        connect().acknowledge(worker, note)
    say(f"{worker}: acknowledged")


@operator_task(name="firing")
def notify_firing(output: OutputOptions = OUTPUT) -> None:
    """List the firing alerts on measurements. Example: invoke notify.firing"""
    from procguard.cli.output.listing import listed
    from procguard.console.grid import Column

    columns: tuple[Column[View], ...] = (
        Column("ALERT", lambda one: one["alert"], long=True),
        Column("MEASURE", lambda one: one["measure"] if one["gpu"] is None else f"{one['measure']} ({one['gpu']})"),
        Column("VALUE", lambda one: _amount(one, one["value"])),
        Column("LIMIT", _limit_text),
        Column("BEGINS", lambda one: _local_time(one["since"])),
        Column("MUTED", lambda one: f"{one['mute']['by']} {_local_time(one['mute']['ends'])}" if one["mute"] else "-"),
        Column("SEEN BY", lambda one: one["acknowledged"]["by"] if one["acknowledged"] else "-"),
        Column("NOTE", lambda one: (one["acknowledged"] or {}).get("note") or "-", long=True),
    )
    found = connect().firing()
    empty = "no alert is firing" if found["rules"] else "no rules are configured; see docs/notifications.md"
    listed(found["alerts"], columns, output, "alert", empty=empty)
    if found["total"] > len(found["alerts"]):
        say(f"… and {found['total'] - len(found['alerts'])} more")


def _limit_text(alert: View) -> str:
    if alert["above"] is not None:
        return f"> {_amount(alert, alert['above'])}"
    return "-" if alert["below"] is None else f"< {_amount(alert, alert['below'])}"


def _amount(alert: View, value: float | None) -> str:
    from procguard.console import tables

    if value is None:
        return "-"
    return tables.size(int(value)) if alert["measure"].endswith("_bytes") else f"{value:g}"


@operator_task(("mute",), name="unmute", help={"mute": "its id: invoke notify.mutes lists them"})
def notify_unmute(mute: str) -> None:
    """End a mute before its time. Example: invoke notify.unmute m-0f3a91bc"""
    ended = connect().unmute(mute)
    say(f"{ended['mute_id']}: alerts of {ended['select']} are sent again")


@operator_task(name="mutes")
def notify_mutes(output: OutputOptions = OUTPUT) -> None:
    """List mutes and maintenance windows that have not ended. Example: invoke notify.mutes"""
    from procguard.cli.output.listing import listed
    from procguard.console.grid import Column

    columns: tuple[Column[View], ...] = (
        Column("ID", lambda one: one["mute_id"]),
        Column("SELECTOR", lambda one: one["select"], long=True),
        Column("BEGINS", lambda one: _local_time(one["begins"])),
        Column("UNTIL", lambda one: _local_time(one["ends"])),
        Column("BY", lambda one: one["by"], 1),
        Column("NOTE", lambda one: one["note"], 1, long=True),
    )
    listed(connect().mutes(), columns, output, "mute_id", empty="no mutes")


def _local_time(moment: str) -> str:
    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return moment


NOTIFY = (notify_ack, notify_firing, notify_list, notify_mute, notify_mutes, notify_test, notify_unmute)
