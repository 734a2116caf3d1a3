"""Output of a deployment: progress while it runs, then a recap in the style of Ansible.

Knows terminals (rich) and results; decides nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status
from rich.text import Text

from procguard.cli.output.language import chosen
from procguard.client.types import AbsentHostInfo, SshTriedInfo
from procguard.console import grid, language, tables
from procguard.console.styled import console as console  # noqa: PLC0414 - re-exported for the commands
from procguard.console.styled import joined, styled
from procguard.deploy.install.rollout import HostResult
from procguard.deploy.session.session import skipped_in_words
from procguard.deploy.ssh.credentials import ask_on_terminal
from procguard.errors import PartlyFailed
from procguard.json_types import Json

if TYPE_CHECKING:  # these modules import Fabric, which `invoke status` does not need
    from procguard.deploy.install.doctor import DoctorStep
    from procguard.deploy.ssh.known_hosts import ShownKey
    from procguard.deploy.sync.transfer import Brought

COLOURS = {"ok": "green", "changed": "yellow", "failed": "red", "unreachable": "red", "skipped": "cyan"}
MAX_NAMED = 12
STATUS_COLUMNS = 11


class Progress:
    """Progress of a deployment: a status line with the number of hosts in each stage, and a permanent line for each
    host that is done."""

    def __init__(self, out: Console, total: int) -> None:
        self._out = out
        self._total = total
        self._lock = threading.Lock()
        self._stages: dict[str, str] = {}
        self._done = 0
        self._status: Status | None = None

    def __enter__(self) -> Progress:
        if self._out.is_terminal:
            self._status = self._out.status(Text())
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def ask(self, question: str) -> str:
        """Prompt for a secret; the status line is hidden meanwhile."""
        with self._lock:
            if self._status is not None:
                self._status.stop()
            try:
                return ask_on_terminal(question)
            finally:
                if self._status is not None:
                    self._status.start()

    def stage(self, host: str, stage: str) -> None:
        with self._lock:
            self._stages[host] = stage
            self._refresh()

    def done(self, result: HostResult) -> None:
        with self._lock:
            self._stages.pop(result.host, None)
            self._done += 1
            self._out.print(_host_line(result))
            self._refresh()

    def _refresh(self) -> None:
        if self._status is not None:
            each = Counter(chosen().named("stage", stage) for stage in self._stages.values())
            counts = " · ".join(f"{stage} {count}" for stage, count in each.items())
            self._status.update(styled("{}/{} done · {}", self._done, self._total, counts))


def _host_line(result: HostResult) -> Text:
    colour = COLOURS[result.status]
    text = str(result.error) if result.error else ", ".join(result.changes) or "nothing to do"
    if result.error:  # translated with the host's name, which is part of the sentence
        text = language.shown(text).removeprefix(f"{result.host}: ").removeprefix(f"{result.host}：")
    seconds = f"{result.seconds:.1f}"
    return styled(f"[{colour}]{{}}[/] {{}}  {{}}  [dim]{{}} s[/]", _status(result.status), result.host, text, seconds)


def _status(status: str) -> str:
    """The status of a host in the language of the command, padded to STATUS_COLUMNS."""
    word = chosen().named("host_result", status)
    return word + " " * (STATUS_COLUMNS - grid.width_of(word))


def recap(out: Console, results: list[HostResult], diff: bool = False) -> None:
    """Print one line per host (status, keep-alive, recovery over SSH, workers), then failures by cause, and totals."""
    out.print(styled("\n[bold]RECAP[/]"))
    width = max((len(result.host) for result in results), default=0)
    for result in results:
        words: list[str | Text] = [styled(f"[{COLOURS[result.status]}]{{}}[/]", _status(result.status))]
        if result.report.get("keep_alive"):
            words.append(f"keep-alive: {result.report['keep_alive']}")
        if result.recovery_ssh:
            words.append(_recovery(result.recovery_ssh))
        counts = Counter(str(one.get("result")) for one in result.workers.values())
        down = Counter(str(one.get("state")) for one in result.workers.values() if one.get("trouble"))
        named = chosen()
        lines = [styled("{} {}", count, named.named("worker_result", name)) for name, count in sorted(counts.items())]
        lines += [styled("[red]{} {}[/]", count, named.named("state", name)) for name, count in sorted(down.items())]
        words.append(styled("workers: {}", joined(lines, ", ") if lines else "none"))
        out.print(styled("{}  {}", f"{result.host:<{width}}", joined(words, "   ")))
        for change in result.changes:
            if change.startswith("restarted "):  # these happened after the host's own line was printed
                out.print(styled("{}  {}", " " * width, change))
        skipped = skipped_in_words(result.report.get("python_skipped") or ())
        if skipped:
            used = f"{', '.join(skipped)}; {result.report.get('python')} is used instead"
            out.print(styled("{}  python: {}", " " * width, used))
        for note in result.notes:
            out.print(styled("{}  note: {}", " " * width, note))
        for folder in result.code:
            _code(out, folder, width, diff)
        for worker_id, one in result.workers.items():
            if one.get("message"):
                out.print(styled("{}  {}: {}", " " * width, worker_id, one["message"]))
            for line in one.get("differences") or () if diff else ():
                out.print(styled("{}    [cyan]{}[/] {}", " " * width, worker_id, line))
    _causes(out, results)
    totals: Counter[str] = Counter(result.status for result in results)
    names = ["ok", "changed", "failed", "unreachable", *(["skipped"] if totals["skipped"] else [])]
    out.print("  ".join(f"{name}={totals[name]}" for name in names))


def absent(out: Console, gone: Mapping[str, AbsentHostInfo], others: dict[str, str]) -> None:
    """Print a note for each host that the deployment left out: those no longer in the inventory, and those of other
    inventories. `gone`: results by host. `others`: inventory names by host."""
    for host, one in list(gone.items())[:MAX_NAMED]:
        names = [name for name, worker in one["workers"].items() if worker["result"] == "undeclared"]
        left = f"undeclared: {', '.join(names[:5])}" if names else "no workers are left"
        left += f" and {len(names) - 5} more" if len(names) > 5 else ""
        what = f"{host}: gone from the inventory; {left}; --prune stops them and removes its agent"
        out.print(styled("[yellow]note: {}[/]", what))
    if len(gone) > MAX_NAMED:
        out.print(f"note: and {len(gone) - MAX_NAMED} more are gone from the inventory", style="yellow")
    if others:
        named = ", ".join(f"{host} ({name or 'of unknown origin'})" for host, name in list(others.items())[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        out.print(f"note: unchanged, from other inventories: {named}{more}", style="dim")


def fetched(out: Console, results: list[HostResult]) -> None:
    """Print failures by cause, and totals; the lines of the hosts have already been printed."""
    _causes(out, results)
    well = [result for result in results if result.error is None]
    files = sum(int(result.report.get("files") or 0) for result in results)
    size = tables.size(sum(int(result.report.get("bytes") or 0) for result in results))
    out.print(f"{files} files, {size} from {len(well)} of {len(results)} hosts")


def _code(out: Console, one: Brought, width: int, diff: bool) -> None:
    """Print the result for one folder of procguard_sync."""
    out.print(styled("{}  code {}: {}", " " * width, one.dest, one.text))
    if one.status == "in_use":
        out.print(styled("[dim]{}    unchanged; --sync-running updates it while they run[/]", " " * width))
    for name in one.names if diff else ():
        out.print(styled("{}    [cyan]{}[/]", " " * width, name))


def _causes(out: Console, results: list[HostResult]) -> None:
    """Print the failures grouped by cause, with the next step of each: one cause often affects many hosts."""
    causes: dict[str, list[HostResult]] = {}
    for result in results:
        if result.error is not None:
            causes.setdefault(result.error.code, []).append(result)
    for code, hit in sorted(causes.items(), key=lambda item: -len(item[1])):
        names = ", ".join(result.host for result in hit[:MAX_NAMED])
        more = f" and {len(hit) - MAX_NAMED} more" if len(hit) > MAX_NAMED else ""
        out.print(styled("[red]{} × {}[/]: {}{}", len(hit), code.replace("_", " "), names, more))
        _down(out, hit)
        first = hit[0].error
        if first is not None and first.next_step:
            out.print(styled("[dim]    {}[/]", first.next_step))


def _down(out: Console, results: list[HostResult]) -> None:
    """Print the workers that should be running and are not, with state and first line of the error."""
    down = [
        (name, result.host, one) for result in results for name, one in result.workers.items() if one.get("trouble")
    ]
    for name, host, one in down[:MAX_NAMED]:
        out.print(styled("    {} on {}: {}", name, host, str(one["trouble"])))
    if len(down) > MAX_NAMED:
        out.print(f"    and {len(down) - MAX_NAMED} more: invoke status --select 'state=failed|backoff'")


def keys(out: Console, found: Sequence[ShownKey]) -> int:
    """Print one line per host key. Returns the number of hosts without a key that can be trusted."""
    width = max((len(key.host) for key in found), default=0)
    colours = {"new": "yellow", "known": "green", "changed": "red", "unreachable": "red"}
    for key in found:
        words = f"{key.kind} {key.fingerprint}  {key.name}" if key.fingerprint else key.name
        host = f"{key.host:<{width}}"
        out.print(styled(f"[{colours[key.status]}]{{}}[/] {{}}  {{}}", _status(key.status), host, words))
        if key.error is not None:
            out.print(styled("{}  {}", " " * (12 + width), key.error))
    return sum(1 for key in found if key.error is not None)


MARKS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "bad": "[red]✗[/]"}


def step(out: Console, found: DoctorStep) -> None:
    """Print one step of `doctor`."""
    name = chosen().named("step", found.name)
    padded = name + " " * (20 - grid.width_of(name))
    out.print(styled(f"{MARKS[found.status]} {{}} {{}}", padded, found.detail))
    if found.status != "ok" and found.next_step:
        out.print(styled("[dim]{}→ {}[/]", " " * 23, found.next_step))


def _recovery(answer: SshTriedInfo) -> Text:
    if answer.get("ok"):
        return styled("recovery over SSH: yes")
    return styled("recovery over SSH: [yellow]no[/] ({})", answer.get("reason") or "unknown")


def as_json(results: list[HostResult], gone: Mapping[str, AbsentHostInfo] | None = None) -> Json:
    return {
        **({"absent": {host: sorted(one["workers"]) for host, one in gone.items()}} if gone else {}),
        "hosts": {
            result.host: {
                "status": result.status,
                "changes": result.changes,
                "error": _error(result),
                "workers": result.workers,
                "code": [one.as_json() for one in result.code],
                "recovery_ssh": result.recovery_ssh,
                "keep_alive": result.report.get("keep_alive"),
                "keep_alive_reason": result.report.get("keep_alive_reason"),
                "agent_pid": result.report.get("pid"),
                "release": result.report.get("release"),
                **{name: result.report[name] for name in ("files", "bytes", "folder") if name in result.report},
                "seconds": round(result.seconds, 3),
            }
            for result in results
        },
        "totals": Counter(result.status for result in results),
    }


def _error(result: HostResult) -> dict[str, str] | None:
    if result.error is None:
        return None
    return {"code": result.error.code, "message": result.error.message, "next": result.error.next_step}


def failure(results: list[HostResult]) -> PartlyFailed | None:
    """The error to raise (exit code 2); None if no host failed."""
    bad = [result.host for result in results if result.error]
    if not bad:
        return None
    return PartlyFailed(f"{len(bad)} of {len(results)} hosts failed ({', '.join(bad[:8])})", "see the lines above")
