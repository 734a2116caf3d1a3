"""Requests to a runner by the agent (control socket) and by SIGTERM: validated, then recorded on its task.

Owns the meaning of each operation in each state. Unknown operations of a newer agent are ignored.

On SIGTERM (a shutdown of the host) the runner stops the worker's process and leaves the worker "stopped" without
`held`, so that it is started again by the next runner. The end of a fenced worker's lease has the same effect. A
member of a gang fails instead; the manager decides what follows.
"""

from __future__ import annotations

from remote_agent.protocol import reasons, states
from remote_agent.protocol.reasons import NONE, because
from remote_agent.runner import restart
from remote_agent.runner.leases import AWAITS_LEASE
from remote_agent.runner.state import whole
from remote_agent.runner.task import phases
from remote_agent.runner.task.assignment import (
    ASKED,
    KILL,
    NEW_EPOCH,
    RESTART,
    START,
    STOP,
    TERMINATE,
    TaskAssignment,
    stops,
)
from remote_agent.runner.task.task import WorkerTask
from remote_agent.runner.task.task_runner import TaskRunner


def operate(runner: TaskRunner, message: dict[str, object], now: float) -> None:
    """Apply one operation of the agent. Ignored once this runner is exiting: the next one reads the desired state."""
    task = runner.task
    if task.finished:
        return
    if task.settled:
        _operate_settled(runner, message, now)
        return
    operation = message.get("op")
    if operation == "lease":
        _take_lease(task, whole(message, "epoch"), whole(message, "until_ns"))
    elif task.lease.ended(now):
        runner.advance(now)  # this process may have been frozen since the last check
    if operation == "assign":
        _assign(task, message, now)
    elif operation in (RESTART, KILL):
        _receive(runner, message, now)
    elif operation == "time_limit":
        _end_at_limit(task, message, now)
    elif operation == "progress":
        _take_progress(task, message.get("value"))
    elif operation == "health" and message.get("restart") and task.phase == phases.RUNNING:
        task.take_down(now, "unhealthy", reasons.read(message, "detail"))
    runner.advance(now)


def _end_at_limit(task: WorkerTask, message: dict[str, object], now: float) -> None:
    """End the attempt at its time limit; the agent has collected evidence. No effect if the limit was raised
    meanwhile."""
    attempt, limit_s = task.attempt, task.assignment.max_run_s
    if attempt is None or task.phase != phases.RUNNING or message.get("attempt") != attempt.number:
        return
    if limit_s is not None and now >= attempt.started + limit_s:
        task.end_at_limit(now, reasons.read(message, "detail"))
    else:
        task.state.values["over_time"] = 0
        task.state.say(because("run.running", pid=attempt.first_pid or attempt.pid))


def terminate(runner: TaskRunner, now: float) -> None:
    """Handle SIGTERM to the runner."""
    task = runner.task
    if task.settled:
        return  # the runner remains only until the end is on a disk
    state = task.state.values["state"]
    if state == states.BACKOFF:
        task.schedule(restart.STOP, ASKED[TERMINATE], now)
    elif task.policy.gang and state in (states.STARTING, states.RUNNING):
        task.take_down(now, "taken", ASKED[TERMINATE])
    elif task.asked not in (STOP, KILL):
        task.stop_for(TERMINATE, now)
    runner.advance(now)


def _operate_settled(runner: TaskRunner, message: dict[str, object], now: float) -> None:
    """Handle an operation while settled: this runner remains only until its end is stored; the next one starts
    workers."""
    task = runner.task
    verb, values = message.get("op"), task.state.values
    if verb == "assign" and stops(message):
        generation = max(whole(message, "generation"), whole(values, "generation"))
        if generation > whole(values, "generation"):
            epoch = max(whole(message, "epoch"), whole(values, "epoch"))
            values.update(generation=generation, epoch=epoch, held=values["state"] == states.STOPPED)
            task.state.publish()
    elif verb in (RESTART, KILL):
        status = "done" if verb == KILL else "failed"
        task.state.result(str(message.get("id", "")), status, because("command.already", state=values["state"]))
    runner.advance(now)


def _take_lease(task: WorkerTask, epoch: int, until_ns: int) -> None:
    """Accept a lease. Renewals are not reported, because each report would trigger a heartbeat that brings the next
    renewal. The first lease of an epoch is reported: the manager relies on fencing only after the report."""
    values = task.state.values
    before = values["fenced"], values["lease_epoch"]
    if task.lease.grant(epoch, until_ns):
        task.note_lease()
    if before != (values["fenced"], values["lease_epoch"]):
        task.state.publish()


def _take_progress(task: WorkerTask, value: object) -> None:
    """Note the current value of the metric in restart.progress. The highest one is written with the next state change,
    at the end of the attempt at the latest."""
    values = task.state.values
    progressed, values["progress"] = restart.has_progressed(values["progress"], value)
    if progressed and values["restarts"] and task.policy.progress:
        values["restarts"] = 0
        task.state.publish()


def _assign(task: WorkerTask, message: dict[str, object], now: float) -> None:
    """Apply a changed spec.json."""
    values, assignment = task.state.values, task.assignment
    try:
        assignment = TaskAssignment(task.state.record.read_spec())
    except (ValueError, OSError) as exc:
        if not stops(message):
            task.state.say(because("run.spec_unusable", detail=str(exc)))
            return
    assignment = assignment.overruled(message)
    known, epoch, state = whole(values, "generation"), whole(values, "epoch"), values["state"]
    if assignment.generation < known or assignment.epoch < epoch:
        return  # an old grant, overtaken by a newer one
    values["generation"] = assignment.generation
    task.obey(assignment)
    if not assignment.wanted:
        if state == states.BACKOFF:
            task.schedule(restart.STOP, ASKED[STOP], now)
        elif state in states.ALIVE and task.asked != KILL:
            task.stop_for(STOP, now)
        elif state in states.SETTLED:
            task.scheduled = None  # it was about to start, after a sweep
    elif assignment.generation > known:
        values.update(restarts=0, progress=None)
        if state == states.BACKOFF or state in states.SETTLED:
            task.schedule(restart.RESTART, ASKED[START], now)
        elif state == states.STOPPING and task.asked != RESTART:
            task.request(START)
        elif assignment.epoch > epoch and (task.lease.lease_s is not None or task.policy.gang):
            # The running process belongs to an old epoch: the manager restarted the worker.
            task.stop_for(NEW_EPOCH, now)
    elif state == states.BACKOFF and task.policy.gang:
        task.schedule(restart.STOP, because("restart.gang"), now)
    task.state.publish()


def _receive(runner: TaskRunner, message: dict[str, object], now: float) -> None:
    """Apply a command unless it has expired while it waited in the socket."""
    verb, command_id, until_ns = str(message.get("op")), str(message.get("id", "")), whole(message, "until_ns")
    if until_ns and now * 1e9 > until_ns:
        runner.task.state.result(command_id, "expired", because("command.late"))
    else:
        _command(runner, verb, whole(message, "attempt"), command_id, now)


def _command(runner: TaskRunner, verb: str, attempt: int, command_id: str, now: float) -> None:
    task = runner.task
    values, result = task.state.values, task.state.result
    state, current = values["state"], values["attempt"]
    if attempt != current:
        result(command_id, "failed", because("command.other_attempt", meant=attempt, attempt=current, state=state))
    elif verb == RESTART and state == states.STOPPING:
        result(command_id, "failed", because("command.under_way"))
    elif state == states.BACKOFF and task.phase != phases.BACKOFF:
        result(command_id, "failed", because("command.sweeping"))
    elif state == states.BACKOFF and verb == RESTART and not task.lease.open(now):
        result(command_id, "failed", AWAITS_LEASE)
    elif state == states.BACKOFF:
        # It leaves its delay.
        task.schedule(restart.RESTART if verb == RESTART else restart.STOP, ASKED[verb], now)
        runner.advance(now)
        waits = task.state.reason if verb == RESTART and task.lacks_room else NONE
        message = because("command.attempt_is", attempt=values["attempt"], state=values["state"])
        result(command_id, "failed" if waits else "done", message.then(waits))
    elif state in states.ALIVE:
        task.stop_for(verb, now, command_id)
    else:
        result(command_id, "failed", because("command.nothing_to", state=state, verb=verb))
