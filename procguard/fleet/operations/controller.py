"""Executes batch operations: one command for all workers that match a selector, with preview, concurrency and limits.

Owns the previews and the operations, running and past. Works through the state: each item is one command with its own
visible lifecycle. Nothing is polled: the command queue and changes of workers signal completion.

After a restart of the manager an operation continues if the manager was down for less than ten minutes; otherwise it
ends as `interrupted`, and `retry` can process the remaining workers, so that an old request stops nothing unexpectedly.
"""

from __future__ import annotations

import heapq
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from procguard.errors import Conflict, LimitExceeded, NotFound, ProcGuardError, UsageError
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.model.records import CommandRecord
from procguard.fleet.operations import model as rules
from procguard.fleet.operations.answers import OperationAnswer, OperationWithItems, PreviewAnswer
from procguard.fleet.operations.confirmations import LASTS_S, Previews
from procguard.fleet.operations.model import FailureLimit, Item, ItemOutcome, Operation
from procguard.fleet.operations.preview import Split, mentions
from procguard.fleet.state import FleetState
from procguard.fleet.store.interface import Tables
from procguard.fleet.transaction import Transaction
from procguard.fleet.workers import selectors
from procguard.fleet.workers.selectors import WorkerFacts
from procguard.fleet.workers.service import WorkerService
from procguard.i18n.reasons import Reason, because, of_message, reason_of
from remote_agent.protocol import messages

ACTOR = "manager"
KEEP_OPERATIONS = 50
KEEP_ITEMS = 30_000  # items of all ended operations together; the newest operation is always kept
MAX_ITEMS = 20_000
MAX_RUNNING = 10
SLICE_S = 0.008  # time for which workers are examined before others may run
SAVE_CHUNKS = 8  # maximum number of chunks of an operation stored per round
SHOW_EVERY_S = 0.25
SAVE_EVERY_S = 1.0
GO_ON_WITHIN_S = 600.0
DEFAULT_CONCURRENCY = 100
DEFAULT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class OperationOptions:
    """Options of an operation. `timeout_s`: the time limit of each worker."""

    concurrency: int = DEFAULT_CONCURRENCY
    max_failures: str = ""
    reason: str = ""
    timeout_s: float = DEFAULT_TIMEOUT_S


@dataclass(frozen=True)
class OperationPreview:
    """A preview; its token confirms exactly these workers."""

    command: messages.Verb
    selector: str
    q: str
    worker_ids: tuple[str, ...]


class Operations:
    def __init__(self, state: FleetState, workers: WorkerService, tables: Tables, now: Now) -> None:
        self._state = state
        self._workers = workers
        self._operations: dict[str, Operation] = {}  # oldest first
        self._previews = Previews[OperationPreview]("p-", "review the matching workers again")
        self._by_worker: dict[str, dict[str, int]] = {}  # worker -> operation -> index of its item that has not ended
        self._by_command: dict[str, tuple[str, int]] = {}
        self._deadlines: list[tuple[float, str, int]] = []  # a heap: monotonic, operation, index
        self._restored_at = now.monotonic
        self._wake: Callable[[], None] = lambda: None
        self._pause: Callable[[], None] = lambda: None
        state.bus.workers.subscribe(self._worker_changed)
        state.bus.commands.subscribe(self._command_changed)
        state.bus.awaited_workers = self._by_worker
        self._restore(tables, now)

    def on_wake(self, wake: Callable[[], None], pause: Callable[[], None]) -> None:
        """Set the callbacks: `wake()` requests a call of `advance` before its next round; `pause()` yields to
        others."""
        self._wake, self._pause = wake, pause

    # ------------------------------------------------------------------------------------------ preview

    def preview(self, command: str, selector: str, actor: str, now: Now, q: str = "", owner: str = "") -> PreviewAnswer:
        """A preview: the workers and the effect on each. Its token is valid for this actor for five minutes. `owner`:
        the actor's unique identity, because two actors may have the same name."""
        verb = next((one for one in messages.VERBS if one == command), None)
        if verb is None:
            raise UsageError(
                f"unknown command {command[:40]!r}", f"use one of: {', '.join(messages.VERBS)}", code="unknown_command"
            )
        found = self.matching(selector, q)
        if len(found) > MAX_ITEMS:
            raise LimitExceeded(
                f"{len(found)} workers match; the limit of an operation is {MAX_ITEMS}",
                "narrow the selector, for example by host",
                status=413,
            )
        split = Split(verb)
        for facts in found:
            split.add(facts)
        shown = OperationPreview(verb, selector, q, tuple(facts["worker_id"] for facts in found))
        token = self._previews.issue(shown, owner or actor, now) if found else ""
        return {
            "token": token or None,
            "expires_in_s": LASTS_S,
            "command": verb,
            "selector": selector,
            "q": q,
            "matching": len(found),
            **split.counted(),
        }

    def matching(self, selector: str, q: str) -> list[WorkerFacts]:
        """The facts of the matching workers, ordered by id. Yields to other greenlets."""
        read, words = selectors.parse(selector), q.lower().split()
        state = self._state
        found: list[WorkerFacts] = []
        since = time.perf_counter()
        for worker_id, worker in list(state.workers_by_id.items()):
            if time.perf_counter() - since > SLICE_S:
                self._pause()
                since = time.perf_counter()
            if state.workers_by_id.get(worker_id) is not worker:
                continue  # removed during a pause
            facts = state.facts(worker)
            if read.matches(facts) and (not words or mentions(state.worker_view(worker), words)):
                found.append(facts)
        return sorted(found, key=lambda facts: facts["worker_id"])

    # ------------------------------------------------------------------------------------------ beginning, ending

    def begin(self, token: str, actor: str, now: Now, options: OperationOptions, owner: str = "") -> OperationAnswer:
        """Begin a previewed operation with the workers of its preview; durable. A token is valid once."""
        preview = self._previews.find(token, owner or actor, now)
        self._check_room()
        limit = FailureLimit(options.max_failures)
        self._previews.use_up(token)  # before yielding, so that a duplicate request begins nothing
        match_now = {facts["worker_id"] for facts in self.matching(preview.selector, preview.q)}
        operation = self._new(preview.command, preview.selector, list(preview.worker_ids), actor, options, limit, now)
        operation.q = preview.q
        operation.joined = len(match_now.difference(preview.worker_ids))
        operation.left = sum(1 for worker_id in preview.worker_ids if worker_id not in match_now)
        return self._admit(operation, now)

    def retry(self, operation_id: str, actor: str, now: Now, *, rest: bool = False) -> OperationAnswer:
        """Begin a new operation for the failed and expired workers; with `rest` also for those that were never
        begun."""
        former = self._get(operation_id)
        if former.live:
            raise Conflict(
                f"{operation_id} is still running", "wait until it finishes, or cancel it", code="still_running"
            )
        wanted = (*rules.BAD, "cancelled") if rest else rules.BAD
        ids = [item.worker_id for item in former.items if item.state in wanted]
        if not ids:
            raise Conflict(f"no worker of {operation_id} failed", "there is nothing to retry", code="nothing_failed")
        self._check_room()
        options = OperationOptions(former.concurrency, former.max_failures, former.reason, former.timeout_s)
        limit = FailureLimit(former.max_failures)
        operation = self._new(former.command, former.selector, ids, actor, options, limit, now)
        operation.q, operation.retry_of = former.q, operation_id
        return self._admit(operation, now)

    def cancel(self, operation_id: str, actor: str, now: Now) -> OperationAnswer:
        """Items that have not started are skipped; accepted items finish and are still watched. Durable."""
        operation = self._get(operation_id)
        if not operation.live:
            raise Conflict(f"{operation_id} has already finished", "show its items", code="has_ended")
        if operation.status == "running":
            operation.status = "cancelling"
            operation.note = because("operation.cancelled_by", actor=actor)
            operation.drop_the_rest("cancelled")
            with self._state.transaction(now, actor) as tx:
                what = {"operation": operation.operation_id, "counts": operation.summary()}
                self._emit_event(tx, operation, because("operation.cancelling", **what), actor)
                self._end_if_over(tx, operation)
                self._save(tx, operation)
                self._show(tx, operation)
        return operation.view()

    def _check_room(self) -> None:
        if sum(1 for one in self._operations.values() if one.live) >= MAX_RUNNING:
            raise Conflict(
                f"the limit of {MAX_RUNNING} running operations is reached",
                "wait for one to finish, or cancel one",
                code="too_many",
            )

    def _new(
        self,
        command: messages.Verb,
        selector: str,
        ids: list[str],
        actor: str,
        options: OperationOptions,
        limit: FailureLimit,
        now: Now,
    ) -> Operation:
        return Operation(
            operation_id="o-" + secrets.token_hex(4),
            command=command,
            selector=selector,
            actor=actor,
            created_wall=now.wall,
            items=[Item(worker_id) for worker_id in ids],
            reason=options.reason,
            concurrency=options.concurrency,
            max_failures=limit.text,
            timeout_s=options.timeout_s,
        )

    def _admit(self, operation: Operation, now: Now) -> OperationAnswer:
        with self._state.transaction(now, operation.actor) as tx:
            self._operations[operation.operation_id] = operation
            tx.undo(lambda: self._operations.pop(operation.operation_id))
            self._forget_old(tx)
            self._emit_event(tx, operation, _begun(operation), operation.actor)
            self._save(tx, operation)
            self._show(tx, operation)
        self._wake()
        return operation.view()

    # ------------------------------------------------------------------------------------------ views

    def views(self) -> list[OperationAnswer]:
        """Views of all operations, newest first."""
        return [operation.view() for operation in reversed(self._operations.values())]

    def view(self, operation_id: str, result: str = "", offset: int = 0, limit: int = 200) -> OperationWithItems:
        """One operation with a page of its items; `result`: only those in one of these states, separated by commas."""
        operation = self._get(operation_id)
        wanted = tuple(filter(None, result.split(",")))
        unknown = [one for one in wanted if one not in rules.ITEM_STATES]
        if unknown:
            raise UsageError(f"result={unknown[0][:40]!r}: not known", f"use some of: {', '.join(rules.ITEM_STATES)}")
        found = [item for item in operation.items if not wanted or item.state in wanted]
        page = [item.view() for item in found[offset : offset + limit]]
        return {**operation.view(), "items": page, "items_total": len(found)}

    def _get(self, operation_id: str) -> Operation:
        operation = self._operations.get(operation_id)
        if operation is None:
            raise NotFound(
                f"no operation {operation_id[:40]!r}", "list them: invoke operations; old operations are deleted"
            )
        return operation

    # ------------------------------------------------------------------------------------------ progress

    def advance(self, now: Now) -> bool:
        """Process due items, at most one chunk of each operation; durable. True if more items are due at once."""
        live = [one for one in self._operations.values() if one.live or one.dirty_chunks]
        self._expire(now)
        more = False
        if live:
            with self._state.transaction(now, ACTOR) as tx:
                for operation in live:
                    more = self._advance_one(tx, operation) or more
        return more

    def _advance_one(self, tx: Transaction, operation: Operation) -> bool:
        more = self._begin_some(tx, operation) == rules.CHUNK
        if operation.status == "running" and operation.limit_exceeded():
            operation.status = "halting"
            operation.note = because("operation.failures", failed=operation.bad, most=operation.max_failures)
            operation.drop_the_rest("halted")
            self._emit_event(tx, operation, _with_note("operation.halted", operation), ACTOR)
        operation.stamp(tx.now.wall)
        self._end_if_over(tx, operation)
        due = SAVE_EVERY_S if operation.dirty_chunks else GO_ON_WITHIN_S / 10
        if not operation.live or tx.now.monotonic - operation.saved_at >= due:
            self._save(tx, operation, SAVE_CHUNKS)
            more = more or bool(operation.dirty_chunks)
        if operation.changed and (not operation.live or tx.now.monotonic - operation.shown_at >= SHOW_EVERY_S):
            self._show(tx, operation)
        return more

    def _begin_some(self, tx: Transaction, operation: Operation) -> int:
        """Begin items up to the chunk size and the concurrency limit. Skipped items do not count."""
        begun = 0
        while begun < rules.CHUNK and operation.may_begin() > 0 and not operation.limit_exceeded():
            index = operation.next_index
            operation.next_index += 1
            begun += 1
            self._begin_one(tx, operation, index)
        return begun

    def _begin_one(self, tx: Transaction, operation: Operation, index: int) -> None:
        state, item = self._state, operation.items[index]
        worker = state.workers_by_id.get(item.worker_id)
        if worker is None:
            operation.set(index, ItemOutcome("skipped", "gone"))
            return
        facts = state.facts(worker)
        planned = rules.plan(operation.command, facts["state"], facts["desired"])
        if planned.action == "skip":
            operation.set(index, ItemOutcome("skipped", planned.cause))
            return
        try:
            with tx.acting_as(operation.actor):
                record = self._workers.accept(
                    tx, item.worker_id, operation.command, operation.reason, operation.operation_id
                )
        except ProcGuardError as exc:
            operation.set(index, ItemOutcome("failed", "", of_message(exc.message)))
            return
        item.command, item.command_id = record.command, record.command_id
        item.generation, item.attempt = record.generation, record.attempt
        if not record.open:
            operation.set(index, ItemOutcome("done", message=record.message))
        else:
            pending = planned.action == "pending"
            operation.set(index, ItemOutcome("pending", "host_away") if pending else ItemOutcome("accepted"))
            self._watch(operation, index, tx.now)

    def _watch(self, operation: Operation, index: int, now: Now) -> None:
        item = operation.items[index]
        self._by_worker.setdefault(item.worker_id, {})[operation.operation_id] = index
        self._by_command[item.command_id] = (operation.operation_id, index)
        if item.state != "pending":
            worker = self._state.workers_by_id.get(item.worker_id)
            grace_s = (
                worker.spec.stop_grace_s if worker else 0.0
            )  # a job's stop grace takes precedence over the operation's time limit
            deadline = now.monotonic + max(operation.timeout_s, grace_s + 30.0)
            heapq.heappush(self._deadlines, (deadline, operation.operation_id, index))

    def _worker_changed(self, worker_id: str) -> None:
        if worker_id not in self._by_worker:
            return
        worker = self._state.workers_by_id.get(worker_id)
        for operation_id, index in list(self._by_worker[worker_id].items()):
            operation = self._operations[operation_id]
            if worker is None:
                self._settle(operation, index, ItemOutcome("skipped", "gone"))
                continue
            command = self._state.command_queue.get(operation.items[index].command_id)
            if command is not None and command.by_manager:
                continue  # carried out for a whole gang: the command's result is the item's
            report = self._state.worker_status[worker_id].report
            outcome = rules.judge(operation.items[index], worker.desired, report)
            if outcome is not None:
                self._settle(operation, index, outcome)

    def _command_changed(self, record: CommandRecord) -> None:
        place = self._by_command.get(record.command_id)
        if place is None:
            return
        operation, index = self._operations[place[0]], place[1]
        item = operation.items[index]
        if self._state.command_queue.status(record) == "delivered" and item.state == "accepted":
            operation.set(index, ItemOutcome("delivered"))
        elif record.status in ("failed", "expired"):
            self._settle(operation, index, ItemOutcome(record.status, "", record.message))
        elif record.status == "done" and record.message.code == "command.replaced":
            self._settle(operation, index, ItemOutcome("skipped", "overtaken"))
        elif record.status == "done" and record.by_manager:
            self._settle(operation, index, ItemOutcome("done", message=record.message))

    def _settle(self, operation: Operation, index: int, outcome: ItemOutcome) -> None:
        """Record the end of an item, which makes room for the next."""
        operation.set(index, outcome)
        self._unwatch(operation, index)
        self._wake()

    def _unwatch(self, operation: Operation, index: int) -> None:
        item = operation.items[index]
        self._by_command.pop(item.command_id, None)
        found = self._by_worker.get(item.worker_id, {})
        found.pop(operation.operation_id, None)
        if not found:
            self._by_worker.pop(item.worker_id, None)

    def _expire(self, now: Now) -> None:
        while self._deadlines and self._deadlines[0][0] <= now.monotonic:
            _, operation_id, index = heapq.heappop(self._deadlines)
            operation = self._operations.get(operation_id)
            if operation is None or index not in operation.in_flight:
                continue
            item = operation.items[index]
            worker = self._state.workers_by_id.get(item.worker_id)
            state = self._state.facts(worker)["state"] if worker else "gone"
            late = {"limit_s": operation.timeout_s, "state": state}
            if item.command == "start":
                message = because("operation.late_running", **late)
            elif item.command == "stop":
                message = because("operation.late_stopped", **late)
            else:
                message = because("operation.late", **late)
            self._settle(operation, index, ItemOutcome("expired", "timeout", message))

    def _end_if_over(self, tx: Transaction, operation: Operation) -> None:
        if operation.in_flight or operation.next_index < len(operation.items) or not operation.live:
            return
        ends: dict[str, rules.Status] = {"cancelling": "cancelled", "halting": "halted"}
        operation.status = ends.get(operation.status, "done")
        operation.ended_wall = tx.now.wall
        self._close(operation)
        what = {"operation": operation.operation_id, "status": operation.status, "counts": operation.summary()}
        self._emit_event(tx, operation, because("operation.ended", **what), ACTOR)

    def _close(self, operation: Operation) -> None:
        for index, item in enumerate(operation.items):
            if item.state == "pending":
                self._unwatch(operation, index)
        operation.changed = True

    # ------------------------------------------------------------------------------------------ storage

    @staticmethod
    def _emit_event(tx: Transaction, operation: Operation, what: Reason, actor: str) -> None:
        tx.event(
            "operation",
            reason=what,
            actor=actor,
            cause="operator",
            evidence={"operation_id": operation.operation_id},
        )

    @staticmethod
    def _show(tx: Transaction, operation: Operation) -> None:
        operation.changed, operation.shown_at = False, tx.now.monotonic
        tx.show("operations", operation.operation_id)

    @staticmethod
    def _save(tx: Transaction, operation: Operation, most: int | None = None) -> None:
        """Store the changed chunks, up to a limit, and the header."""
        operation.stamp(tx.now.wall)
        for number in sorted(operation.dirty_chunks)[:most]:
            operation.dirty_chunks.discard(number)
            tx.put("operation_items", f"{operation.operation_id}/{number}", operation.stored_chunk(number))
        if not operation.dirty_chunks:  # the header last, so that it never records an end before its items are stored
            operation.saved_wall, operation.saved_at = tx.now.wall, tx.now.monotonic
            tx.put("operations", operation.operation_id, operation.stored())

    def _forget_old(self, tx: Transaction) -> None:
        kept = 0
        for number, (operation_id, operation) in enumerate(reversed(list(self._operations.items()))):
            kept += len(operation.items)
            if number and not operation.live and (number >= KEEP_OPERATIONS or kept > KEEP_ITEMS):
                kept -= len(operation.items)
                del self._operations[operation_id]
                tx.put("operations", operation_id, None)
                for chunk in range(-(-len(operation.items) // rules.CHUNK)):
                    tx.put("operation_items", f"{operation_id}/{chunk}", None)
                tx.show("operations", operation_id)

    def find(self, operation_id: str) -> OperationAnswer | None:
        """The operation's row in the list; None if there is no such operation."""
        operation = self._operations.get(operation_id)
        return None if operation is None else operation.view()

    def tables(self) -> Tables:
        operations = self._operations
        return {
            "operations": {operation_id: one.stored() for operation_id, one in operations.items()},
            "operation_items": {
                f"{operation_id}/{number}": one.stored_chunk(number)
                for operation_id, one in operations.items()
                for number in range(-(-len(one.items) // rules.CHUNK))
            },
        }

    def _restore(self, tables: Tables, now: Now) -> None:
        chunks = tables.get("operation_items", {})
        for data in sorted(tables.get("operations", {}).values(), key=lambda one: float(one["created_wall"])):
            numbers = range(-(-int(data["items"]) // rules.CHUNK))
            found = [chunks.get(f"{data['operation_id']}/{number}") for number in numbers]
            operation = Operation.restored(data, [chunk for chunk in found if chunk is not None])
            operation.dirty_chunks.clear()
            self._operations[operation.operation_id] = operation
            if not operation.live:
                continue
            if abs(now.wall - operation.saved_wall) <= GO_ON_WITHIN_S:
                self._go_on(operation, now)
            else:
                self._interrupt(operation, now)

    def _go_on(self, operation: Operation, now: Now) -> None:
        operation.note = operation.note or because("operation.went_on", at=iso(now.wall))
        for index, item in enumerate(operation.items):
            if item.state not in ("accepted", "delivered", "pending"):
                continue
            mortal = item.command in ("restart", "kill")
            if mortal and self._state.command_queue.get(item.command_id) is None:
                operation.set(index, ItemOutcome("expired", "manager_away"))
            else:
                self._watch(operation, index, now)

    def _interrupt(self, operation: Operation, now: Now) -> None:
        for index in list(operation.in_flight):
            operation.set(index, ItemOutcome("expired", "manager_away"))
        operation.drop_the_rest("manager_away")
        operation.status, operation.ended_wall = "interrupted", now.wall
        operation.note = because("operation.manager_away", since=iso(operation.saved_wall), until=iso(now.wall))
        with self._state.transaction(now, ACTOR, wait="nothing") as tx:
            self._emit_event(tx, operation, _with_note("operation.interrupted", operation), ACTOR)
            self._save(tx, operation)


def _with_note(code: str, operation: Operation) -> Reason:
    what = {"operation": operation.operation_id, "why": operation.note, "counts": operation.summary()}
    return because(code, **what)


def _begun(operation: Operation) -> Reason:
    """The event's reason: "o-1 begun: stop of 12 workers (group=trainers); disk change"."""
    which: str = operation.selector or because("operation.all")
    if len(operation.selector) > 120:
        which = because("operation.selection")
    if operation.q:
        which = f"{which}, {operation.q!r}"
    begun = because(
        "operation.begun",
        operation=operation.operation_id,
        verb=operation.command,
        n=len(operation.items),
        selector=which,
    )
    return begun.then(reason_of(operation.reason))
