"""Commands for workers: start, stop, restart and kill of one worker or of many, and batch operations.

A full worker id is a single command, which the manager accepts or refuses immediately. Any other target is a batch
operation: its preview is shown, stop and kill of many workers need confirmation, its progress is followed, and failures
are grouped by cause. The rules are in the manager (fleet/operations/controller.py).
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from procguard import hints
from procguard.cli.contexts import connect
from procguard.cli.output.language import chosen
from procguard.cli.program.command import (
    ANSWER,
    OUTPUT,
    AnswerOptions,
    OptionGroup,
    OutputOptions,
    operator_task,
    option,
)
from procguard.console.language import shown
from procguard.console.terminal import say, say_as_is, say_json
from procguard.errors import NotFound, PartlyFailed, UsageError

if TYPE_CHECKING:
    from procguard.client.api import ManagerClient
    from procguard.client.coming_up import WaitLimit
    from procguard.client.types import OperationInfo

CONFIRM_ABOVE = 20  # stop or kill of more workers than this needs confirmation
LIVE = ("running", "cancelling", "halting")
POLL_INTERVAL_S = 0.3
MAX_ITEMS_SHOWN = 40

TARGET_HELP = {"target": "worker id, glob such as 'train-*', or conditions: group=trainers,state=running,host!=gpu03"}
WAIT_HELP = {"wait": "seconds to wait for a single worker (default: its start_secs, at most 15 s)"}


@dataclass(frozen=True)
class BatchOptions(OptionGroup):
    """Options of a command for many workers."""

    concurrency: int = option(0, "number of workers in parallel (0: the manager's default)")
    max_failures: str = option("", "halt after more failures than this: 5, or 10%")
    reason: str = option("", "reason, recorded with each command")
    yes: bool = option(False, "do not ask for confirmation")

    def request(self) -> dict[str, int | str]:
        """The options that are set, as fields of the body of POST /api/operations. Raises UsageError."""
        if self.concurrency < 0:
            raise UsageError(f"--concurrency {self.concurrency}: at least 1", "omit it for the manager's default")
        from procguard.fleet.operations.model import FailureLimit

        FailureLimit(str(self.max_failures))  # validated for a single worker as well, which does not use it
        given: dict[str, int | str] = {
            "concurrency": self.concurrency,
            "max_failures": str(self.max_failures),
            "reason": self.reason,
        }
        return {name: value for name, value in given.items() if value}


BATCH = BatchOptions()


@operator_task(("target",), help={**TARGET_HELP, **WAIT_HELP})
def start(target: str, batch: BatchOptions = BATCH, wait: str = "", answer: AnswerOptions = ANSWER) -> None:
    """Start workers. Example: invoke start worker1

    A single worker is awaited until it is up; the command exits with code 2 and the first line of the error if the
    worker is failed or in backoff. Several workers run as an operation.
    """
    _act("start", target, batch, answer, wait)


@operator_task(("target",), help=TARGET_HELP)
def stop(target: str, batch: BatchOptions = BATCH, answer: AnswerOptions = ANSWER) -> None:
    """Stop workers. They stay stopped. Example: invoke stop group=trainers,state=running"""
    _act("stop", target, batch, answer)


@operator_task(("target",), help={**TARGET_HELP, **WAIT_HELP})
def restart(target: str, batch: BatchOptions = BATCH, wait: str = "", answer: AnswerOptions = ANSWER) -> None:
    """Restart running workers with their newest specification. Example: invoke restart 'train-*' --concurrency 4

    A single worker is awaited until it is up; the command exits with code 2 and the first line of the error if the
    worker is failed or in backoff. Several workers run as an operation.
    """
    _act("restart", target, batch, answer, wait)


@operator_task(("target",), help=TARGET_HELP)
def kill(target: str, batch: BatchOptions = BATCH, answer: AnswerOptions = ANSWER) -> None:
    """Kill workers with SIGKILL. They stay stopped. Example: invoke kill worker1"""
    _act("kill", target, batch, answer)


def _act(verb: str, target: str, batch: BatchOptions, answer: AnswerOptions, wait: str = "") -> None:
    from procguard.cli.output import listing, operations
    from procguard.client import coming_up
    from procguard.fleet.workers import selectors

    request = batch.request()
    manager, limit = connect(), coming_up.wait_limit(wait, answer.no_wait)
    if selectors.is_one_id(target):
        _one(manager, verb, target, batch.reason, answer.json_, limit)
        return
    preview = manager.preview(verb, target)
    if not preview["matching"]:
        raise NotFound(f"no worker matches {target}", "list them: invoke status")
    words = chosen()
    listing.say_styled(operations.preview(words.translated(preview), words), err=answer.json_)
    if not preview["acts"]:
        say_json(preview) if answer.json_ else say("nothing to do")
        return
    if verb in ("stop", "kill") and preview["acts"] > CONFIRM_ABOVE and not batch.yes:
        _confirm(verb, target, preview["acts"])
    _follow(manager, manager.begin_operation({"token": preview["token"], **request}), answer)


def _one(manager: ManagerClient, verb: str, worker_id: str, reason: str, as_json: bool, limit: WaitLimit) -> None:
    from procguard.client import coming_up

    waits = verb in ("start", "restart") and limit != coming_up.NO_WAIT
    try:
        before = manager.worker(worker_id) if waits else None
        answer = manager.command(worker_id, verb, reason)
    except NotFound as exc:
        raise NotFound(f"no worker matches {worker_id}", "list them: invoke status", code=exc.code) from exc
    if before is None:
        say_json(answer) if as_json else say(f"{worker_id}: {verb} accepted")
        return
    if not as_json:
        say(f"{worker_id}: {verb} accepted")
    view, trouble = coming_up.follow(manager, before, verb, str(answer["command_id"]), limit)
    if as_json:
        say_json({**answer, "state": view["state"], "reason": view["reason"], "trouble": trouble})
    elif not trouble:
        state = chosen().state(str(view["state"]))
        say_as_is(f"{worker_id}: {state}" + (f" (pid {view['pid']})" if view.get("pid") else ""))
    if trouble:
        raise PartlyFailed(f"{worker_id} {shown(trouble)}", f"its log: invoke logs {worker_id}")


def _confirm(verb: str, target: str, number: int) -> None:
    """Ask the operator to type the number of workers. Raises UsageError if the reply differs or there is no
    terminal."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{verb} of {number} workers needs confirmation, and there is no terminal",
            f"to confirm: invoke {verb} {shlex.quote(target)} --yes",
            code="not_confirmed",
        )
    given = (
        input(shown(f"{verb} {number} workers? Type {number} to continue: ")).strip().replace(",", "").replace(" ", "")
    )
    if given != str(number):
        raise UsageError("not confirmed; nothing was done", f"type {number} to continue", code="not_confirmed")


def _follow(manager: ManagerClient, view: OperationInfo, answer: AnswerOptions) -> None:
    """Show the operation's progress until it has ended, then its result; with `no_wait` return immediately. Raises
    PartlyFailed unless it is done without failures."""
    from procguard.cli.output import deployment, operations

    operation_id, out = view["operation_id"], deployment.console(stderr=answer.json_)
    if answer.no_wait:
        hint = hints.commands(f"{operation_id}: started; progress: invoke operations.show {operation_id}")
        say_json(view) if answer.json_ else say(hint)
        return
    status, words = out.status("") if out.is_terminal else None, chosen()
    try:
        if status:
            status.start()
        while view["status"] in LIVE:
            if status:
                status.update(operations.progress(view, words))
            time.sleep(POLL_INTERVAL_S)
            view = manager.operation(operation_id, limit=1)
    except KeyboardInterrupt:
        if status:
            status.stop()
        say(
            hints.commands(f"{operation_id} is still running; to cancel it: invoke operations.cancel {operation_id}"),
            err=True,
        )
        raise
    finally:
        if status:
            status.stop()
    if answer.json_:
        say_json(manager.operation(operation_id, limit=20_000))
    else:
        out.print(operations.summary(words.translated(view), words))
    _raise_unless_well(view)


def _raise_unless_well(view: OperationInfo) -> None:
    counts, operation_id = view["counts"], view["operation_id"]
    bad = counts.get("failed", 0) + counts.get("expired", 0)
    if bad or view["status"] != "done":
        what = f"{bad} of {view['total']} failed" if bad else f"{view['status']} before it finished"
        raise PartlyFailed(
            f"{operation_id} ({view['command']}): {what}",
            f"see which: invoke operations.show {operation_id}; to retry: invoke operations.retry {operation_id}",
        )


# ------------------------------------------------------------------------------------------------- operations

ID_HELP = {"operation_id": "as `invoke operations` shows it, e.g. o-7f3a91bc"}


@operator_task(name="list", default=True)
def operations_list(output: OutputOptions = OUTPUT) -> None:
    """List batch operations with progress and result, newest first. Example: invoke operations"""
    from procguard.cli.output import operations
    from procguard.cli.output.listing import listed

    columns = operations.listing(datetime.now(timezone.utc), chosen(output.lang))
    listed(connect().operations(), columns, output, "operation_id", empty="no operations yet")


@operator_task(
    ("operation_id",),
    name="show",
    help={
        **ID_HELP,
        "result": "only these items, e.g. failed,expired",
        "json_": "as JSON, with every item",
        "lang": "en or zh (default: LC_ALL, LC_MESSAGES, LANG)",
    },
)
def operations_show(operation_id: str, result: str = "", json_: bool = False, lang: str = "") -> None:
    """Show an operation: its failures by cause, and its workers. Example: invoke operations.show o-7f3a91bc"""
    from procguard.cli.output import listing, operations
    from procguard.console import grid

    limit = 20_000 if json_ else MAX_ITEMS_SHOWN
    view = connect().operation(operation_id, result=result, limit=limit)
    if json_:
        say_json(view)
        return
    words = chosen(lang)
    view = words.translated(view)
    listing.say_styled(operations.summary(view, words))
    heads = [dataclasses.replace(one, title=words.head(one.title)) for one in operations.items(words)]
    grid.show(heads, view["items"])
    if view["items_total"] > limit:
        say(
            hints.commands(
                f"… and {view['items_total'] - limit} more; all: invoke operations.show {operation_id} --json"
            )
        )


@operator_task(("operation_id",), name="cancel", help=ID_HELP)
def operations_cancel(operation_id: str) -> None:
    """Cancel the remaining workers of an operation. Example: invoke operations.cancel o-7f3a91bc"""
    view = connect().cancel_operation(operation_id)
    say(f"{operation_id}: {view['status']}; {view['counts'].get('cancelled', 0)} of {view['total']} not begun")


@operator_task(
    ("operation_id",),
    name="retry",
    help={**ID_HELP, "rest": "also retry the items that never began"},
)
def operations_retry(operation_id: str, rest: bool = False, answer: AnswerOptions = ANSWER) -> None:
    """Retry the failed workers of an operation, as a new operation. Example: invoke operations.retry o-7f3a91bc"""
    manager = connect()
    _follow(manager, manager.retry_operation(operation_id, rest), answer)


OPERATIONS = (operations_list, operations_show, operations_cancel, operations_retry)
