"""Runs one worker: starts attempts, watches them, ends them, and carries out decisions and requests.

Has a step for each phase (phases.py) of a WorkerTask. `advance(now)` is called after every event (a process ended, a
request arrived, a deadline passed) and performs all due actions; `next_deadline` is the latest time of the next call.
Knows no sockets.

While a failing attempt (never started, unhealthy) is being ended, its state does not change: "stopping" is used only
for requested stops.
"""

from __future__ import annotations

import time

from remote_agent.protocol import states
from remote_agent.protocol.reasons import NONE, Reason, because, reason_of
from remote_agent.runner import restart
from remote_agent.runner.attempt import Attempt, now_s
from remote_agent.runner.leases import AWAITS_LEASE
from remote_agent.runner.record import WorkerFiles
from remote_agent.runner.restart import Ending, RestartDecision
from remote_agent.runner.state import whole
from remote_agent.runner.task import phases
from remote_agent.runner.task.assignment import ASKED, FENCE, KILL, STARTS, STOP, TERMINATE
from remote_agent.runner.task.task import WorkerTask
from remote_agent.runner.task.tree import HOPELESS, NO_ROOM, StartFailed
from remote_agent.system import processes

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Callable

HOUSEKEEPING_S = 60.0
WRITE_AGAIN_S = 1.0  # retry writes that a disk refused
# A start that the host's disk prevents is not a failure: it waits and is retried at this interval.
ROOM_AGAIN_S = 2.0
# How long an agent may gather evidence of an attempt that has run for max_run_s; afterwards it is ended in any case.
EVIDENCE_S = 35.0
NO_ROOM_NEXT = because("run.no_room")


class TaskRunner:
    """`send(message)` sends a message to the connected agents."""

    def __init__(self, record: WorkerFiles, send: Callable[[dict[str, object]], None]) -> None:
        self.task = WorkerTask(record, send)
        self._housekeeping_at = now_s() + HOUSEKEEPING_S
        self._write_again_at = 0.0
        self._steps: dict[str, Callable[[float], bool]] = {
            phases.SWEEPING: self._sweep,
            phases.DECIDING: self._follow_up,
            phases.PREPARING: self._watch_hook,
            phases.STARTING: self._watch_start,
            phases.RUNNING: self._watch_running,
            phases.ENDING: self._end_tree,
            phases.POST_STOP: self._run_post_stop,
            phases.BACKOFF: self._pause,
        }

    # ------------------------------------------------------------------------------------------ called by the loop

    def next_deadline(self) -> float:
        """The latest time for the next call of `advance`, on the clock of `now_s`."""
        task = self.task
        if task.settled:
            return self._write_again_at
        return min(
            self._write_again_at if task.state.record.problem else self._housekeeping_at,
            task.lease.due(now_s(), task.assignment.grace_s),
            now_s() + task.processes.due_in_s,
            self._next_step(),
        )

    def _next_step(self) -> float:
        task = self.task
        phase, attempt, never = task.phase, task.attempt, float("inf")
        if phase == phases.DECIDING or (task.scheduled and phase == phases.BACKOFF):
            return 0.0
        if phase == phases.BACKOFF:
            return task.next_start
        if phase in (phases.SWEEPING, phases.ENDING):
            due = (task.sweeper if phase == phases.SWEEPING else task.terminator).due
            return never if due is None else due
        if phase == phases.POST_STOP:
            return task.post_stop.until if task.post_stop and task.post_stop.runs else 0.0
        if phase == phases.PREPARING and attempt:
            return attempt.hook_until
        if phase == phases.STARTING and attempt:
            return min(attempt.start_deadline, attempt.ready_at if attempt.executed else never)
        if phase == phases.RUNNING and attempt:
            by_time = task.state.values["restarts"] and not task.policy.progress
            return min(attempt.healthy_at if by_time else never, self._over_time_at(attempt))
        return never

    def _over_time_at(self, attempt: Attempt) -> float:
        """When the attempt reaches its time limit; after that, when it is ended at the latest."""
        limit_s = self.task.assignment.max_run_s
        if limit_s is None:
            return float("inf")
        waits = self.task.state.values["over_time"] == attempt.number
        return attempt.started + limit_s + (EVIDENCE_S if waits else 0.0)

    def lease_ends_ns(self, now: float) -> int:
        """The end of the lease under which processes may run; 0 if there is none or it has ended."""
        task = self.task
        return task.lease.keeps_until_ns if task.lease.holds and not task.lease.ended(now) else 0

    def watched(self) -> list[int]:
        """Descriptors that become readable when the exec has succeeded or failed, or when a container's job has
        ended."""
        exec_fd = self.task.attempt.exec_fd if self.task.attempt else -1
        return [fd for fd in (exec_fd, self.task.processes.job_fd) if fd >= 0]

    def close(self) -> None:
        self.task.processes.close()

    def advance(self, now: float) -> None:
        """Perform all due actions. Safe to call at any time."""
        task = self.task
        if task.state.record.problem and now >= self._write_again_at:
            self._write_again_at = now + WRITE_AGAIN_S
            task.state.write_again()
        if task.settled:
            return
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_S
            if task.attempt:
                task.attempt.note_ooms()
        task.collect()
        self._take_exit(now)
        self._check_lease(now)
        while not task.settled and self._steps[task.phase](now):
            pass

    def _sweep(self, now: float) -> bool:
        return self.task.sweeper.step(now) and self._leave_tree()

    def _check_lease(self, now: float) -> None:
        """Enforce the lease: after exits were collected, before anything else."""
        task = self.task
        if not task.lease.ended(now):
            return
        if task.attempt and task.state.values["state"] in (states.STARTING, states.RUNNING):
            if task.policy.gang:
                task.take_down(now, "taken", task.lease.why_ended())
            else:
                task.stop_for(FENCE, now)
        gone_at = task.lease.gone_at(task.assignment.grace_s)
        for terminator in (task.sweeper, task.terminator):
            terminator.hurry(gone_at)
        if task.post_stop and now >= gone_at:
            task.post_stop.out_of_lease()
            if task.post_stop.runs and not task.post_stop.cleans_up:
                task.kill_now(now)

    # ------------------------------------------------------------------------------------------- ends of attempts

    def _take_exit(self, now: float) -> None:
        """The attempt's process has ended: note how, then decide what follows."""
        task = self.task
        if task.wait_status is None or task.attempt is None:
            return
        attempt, wait_status = task.attempt, task.wait_status
        task.wait_status = None
        if attempt.goes_on():
            return
        if attempt.hook and self._go_on_after_hook(attempt, wait_status, now):
            return
        task.attempt = None
        task.processes.end_helpers()
        values = task.state.values
        ending = attempt.ended(wait_status, now, values["state"] == states.RUNNING)
        by_itself = values["state"] != states.STOPPING and not attempt.hook and not ending.cause
        failed = by_itself and not restart.succeeded(ending, task.policy)
        found = task.why_failed(attempt, ending) if failed else None
        task.state.note_exit(attempt.number, ending, attempt.failure, found)
        values.update(pid=None, pid_start=None, launch_digest="")
        task.take_over_ending(attempt.number, ending)
        if values["state"] == states.STOPPING:
            return
        if attempt.failure:
            task.schedule(restart.FAIL, reason_of(attempt.failure), now)
        else:
            task.decide(ending, now)

    def _end_tree(self, now: float) -> bool:
        task = self.task
        if task.terminator.step(now):
            self._take_exit(now)
            return self._leave_tree()
        if task.terminator.stuck(now):
            pids = ", ".join(str(member.pid) for member in task.processes.members())
            task.state.say(because("run.stuck", pids=pids))
        if task.attempt:
            task.attempt.check_exec()
        return False

    def _leave_tree(self) -> bool:
        """Leave the process tree, in which no process is left."""
        self.task.enter(phases.POST_STOP if self.task.post_stop else phases.DECIDING)
        return True

    def _ended_by_itself(self, now: float) -> bool:
        if self.task.no_children:
            return self._leave_tree()
        self._end_leftovers(now)
        return False

    def _end_leftovers(self, now: float) -> None:
        """End the rest of the process tree after its first process has ended, before anything else follows."""
        task = self.task
        names = processes.names(task.processes.members())
        task.begin_ending(now)
        count = task.terminator.reached
        if task.scheduled and task.ending and count:
            decision, not_before, counted = task.scheduled
            task.state.note_left(count, names)
            left = restart.describe_left(count, names, task.ending)
            task.scheduled = decision.because(decision.reason.then(left)), not_before, counted
        task.state.say(task.decided().then(because("run.ending_left")))

    def _run_post_stop(self, now: float) -> bool:
        """Run one step of the post_stop hooks."""
        task = self.task
        after = task.post_stop
        assert after
        if after.runs:
            if now >= after.until:
                after.out_of_time()
                task.begin_ending(now)
        elif not task.no_children:
            task.processes.end_helpers()
            self._end_leftovers(now)
        elif after.step(now):
            task.remarks = NONE.then(*after.problems)
            task.post_stop = None
            task.enter(phases.DECIDING)
            return True
        else:
            task.state.say(task.decided().then(because("run.post_stop")))
        return False

    # -------------------------------------------------------------------------------------------- running attempts

    def _watch_hook(self, now: float) -> bool:
        task = self.task
        attempt = task.attempt
        if attempt is None:
            return self._ended_by_itself(now)
        attempt.check_exec()
        if attempt.hook and now >= attempt.hook_until:
            task.take_down(now, "start_timeout", task.processes.hook_overdue(attempt.hook))
        return False

    def _go_on_after_hook(self, attempt: Attempt, wait_status: int, now: float) -> bool:
        """A pre_start hook has ended: the next one or the command follows. False: the attempt is over."""
        task = self.task
        assert attempt.hook
        attempt.check_exec()
        if task.state.values["state"] != states.STARTING or attempt.cause or attempt.failure:
            return False
        if wait_status != 0:
            attempt.cause, attempt.detail = "start_timeout", task.processes.hook_failure(attempt.hook, wait_status)
            return False
        if task.lease.ended(now):
            attempt.cause, attempt.detail = "taken", task.lease.why_ended()
            return False
        if not task.processes.start_next(task.assignment, attempt, now):
            return False
        attempt.expect(task.policy, now)
        if not attempt.hook:
            task.enter(phases.STARTING)
        task.state.values.update(pid=attempt.first_pid or attempt.pid, pid_start=attempt.pid_start)
        task.state.publish()
        return True

    def _watch_start(self, now: float) -> bool:
        task = self.task
        attempt = task.attempt
        if attempt is None:
            return self._ended_by_itself(now)
        if attempt.exec_fd >= 0:
            attempt.check_exec()
            if attempt.executed:
                attempt.ready_at = now + task.policy.start_secs
        if attempt.executed and now >= attempt.ready_at:
            attempt.healthy_at = now + task.policy.healthy_after_s
            task.enter(phases.RUNNING)
            running = because("run.running", pid=attempt.first_pid or attempt.pid)
            task.become(states.RUNNING, running.then(task.processes.not_enforced))
        elif now >= attempt.start_deadline and not attempt.failure:
            task.take_down(now, "start_timeout", attempt.why_not_started(task.policy))
        return False

    def _watch_running(self, now: float) -> bool:
        task = self.task
        if task.attempt is None:
            return self._ended_by_itself(now)
        used = task.state.values["restarts"]
        if used and now >= task.attempt.healthy_at and not task.policy.progress:
            task.state.values["restarts"] = 0
            task.state.publish()
        if now >= self._over_time_at(task.attempt):
            self._end_at_limit(task.attempt, now)
        return False

    def _end_at_limit(self, attempt: Attempt, now: float) -> None:
        """Have the agent gather evidence first; it then asks for the end (operations.py)."""
        task = self.task
        if task.state.values["over_time"] != attempt.number:
            task.state.values["over_time"] = attempt.number
            task.state.note_reason(because("run.time_limit", limit_s=task.assignment.max_run_s))
            task.state.publish()
        else:
            task.end_at_limit(now, NONE)

    # --------------------------------------------------------------------------------------------------- next steps

    def _follow_up(self, now: float) -> bool:
        """No process is left: perform the requested or decided action."""
        task = self.task
        state = task.state.values["state"]
        if state == states.STOPPING:
            self._after_stop(now)
        elif task.scheduled:
            decision, not_before, counted = task.scheduled
            task.scheduled = None
            self._follow(decision, not_before, counted, now)
        elif state == states.BACKOFF and now < task.next_start:
            task.enter(phases.BACKOFF)
        elif state == states.BACKOFF and task.lacks_room:
            self._start(now, because("run.disk_again"))
        elif state == states.BACKOFF:
            self._start(now, because("restart.now", k=whole(task.state.values, "restarts"), n=task.policy.max_attempts))
        else:
            self.finish()
        return False  # also after a failed start: requests are handled before the next one

    def _pause(self, now: float) -> bool:
        task = self.task
        if task.scheduled is None and now < task.next_start:
            return False
        task.enter(phases.DECIDING)
        return True

    def _follow(self, decision: RestartDecision, not_before: float, counted: bool, now: float) -> None:
        task = self.task
        task.state.values["restarts"] = decision.restarts
        reason, task.remarks = decision.reason.then(task.remarks), NONE
        if decision.action == restart.FINISH:
            self._settle(states.EXITED, reason)
        elif decision.action == restart.FAIL:
            self._settle(states.FAILED, reason)
        elif decision.action == restart.STOP:
            self._settle(states.STOPPED, reason, held=decision.reason != ASKED[TERMINATE])
        else:
            task.state.values["restarts_total"] = whole(task.state.values, "restarts_total") + counted
            if now >= not_before:
                self._start(now, reason)
                return
            task.next_start = not_before
            task.state.values["next_start_at"] = time.time() + not_before - now
            task.enter(phases.BACKOFF)
            task.become(states.BACKOFF, reason)

    def _after_stop(self, now: float) -> None:
        """Finish a requested stop."""
        task = self.task
        what, command_id = task.asked or STOP, task.command_id
        task.asked = task.command_id = ""
        if what in STARTS:
            self._start(now, ASKED[what])
            if task.settled:
                task.state.result(command_id, "failed", AWAITS_LEASE)
            elif task.lacks_room:
                task.state.result(command_id, "failed", because("command.stopped").then(task.state.reason))
            else:
                task.state.result(command_id, "done", because("command.started", attempt=task.state.values["attempt"]))
            return
        reason = task.why(what)
        if task.terminator.killed and what != KILL:
            reason = reason.then(because("run.outlasted", grace_s=task.assignment.grace_s))
        if task.ending:
            reason = reason.then(restart.describe(task.ending))
        reason, task.remarks = reason.then(task.remarks), NONE
        self._settle(states.STOPPED, reason, held=what in (STOP, KILL))
        task.state.result(command_id, "done", reason)

    def _start(self, now: float, reason: Reason) -> None:
        """Start the next attempt: first the process, then its records, then the control group if it is not joined."""
        task = self.task
        if not task.lease.open(now):
            self._stay_down(reason)
            return
        values, record, failure = task.state.values, task.state.record, None
        known = whole(values, "attempt")
        # An attempt that could not start because of the disk keeps its number.
        number = known if task.lacks_room else max(known, task.assignment.attempt_base) + 1
        values.update(attempt=number, next_start_at=None, held=False)
        if not record.kept:
            self._wait_for_room(now, reason, record.problem)
            return
        try:
            attempt = task.attempt = task.processes.start(task.assignment, number, now)
            values.update(pid=attempt.pid, pid_start=attempt.pid_start, launch_digest=attempt.launch_digest)
            attempt.expect(task.policy, now)
            task.enter(phases.PREPARING if attempt.hook else phases.STARTING)
        except StartFailed as exc:
            if exc.kind == NO_ROOM and not task.policy.gang:
                self._wait_for_room(now, reason, exc.why)
                return
            failure = exc
        task.lacks_room = task.terminator.killed = False
        task.become(states.STARTING, reason)
        if task.attempt:
            task.processes.join_group()
        record.sync()
        if failure and failure.kind == HOPELESS:
            task.state.note_exit(number, Ending(cause="not_started", detail=failure.why), failure.why)
            task.schedule(restart.FAIL, failure.why, now)
        elif failure:
            ending = Ending(cause="start_timeout", detail=failure.why)
            task.state.note_exit(number, ending)
            task.decide(ending, now)

    def _wait_for_room(self, now: float, reason: Reason, problem: Reason) -> None:
        """Wait because nothing was started: the host's disk refuses the log or the record of the start, without which
        an attempt could be started twice."""
        task = self.task
        task.enter(phases.BACKOFF)
        waits = problem.then(NO_ROOM_NEXT)
        if task.state.values["state"] != states.BACKOFF:
            if task.state.values["state"] != states.STARTING:
                task.become(states.STARTING, reason)
            task.become(states.BACKOFF, waits)
        else:
            task.state.say(waits)
        task.lacks_room = True
        task.next_start = now + ROOM_AGAIN_S
        task.state.values["next_start_at"] = time.time() + ROOM_AGAIN_S

    def _stay_down(self, reason: Reason) -> None:
        """Settle without a start, because there is no lease; the agent starts a runner again once there is one."""
        task = self.task
        state = task.state.values["state"]
        if state == states.BACKOFF:
            reason = task.state.reason  # the reason of the delay is more informative than its end
        reason = reason.then(AWAITS_LEASE)
        if state in (states.STARTING, states.RUNNING):
            task.become(states.STOPPING, reason)  # its process tree has ended already
        if state not in states.SETTLED:
            self._settle(states.STOPPED, reason)
            return
        if state == states.STOPPED:
            task.state.values["held"] = False
        else:  # exited, failed: as if the generation that requests the start had not been received yet
            task.state.values["generation"] = whole(task.state.values, "generation") - 1
        task.state.note_reason(reason)
        task.state.values["in_hand"] = True  # so that the end is written below
        self.finish()

    def finish(self) -> None:
        """Remain settled, as before."""
        task = self.task
        task.enter(phases.SETTLED)
        task.give_lease_back()
        if task.state.values["in_hand"]:
            task.state.values["in_hand"] = False
            task.state.publish()

    def _settle(self, state: str, reason: Reason, held: bool = False) -> None:
        task = self.task
        task.state.values.update(held=held, next_start_at=None, in_hand=False)
        task.give_lease_back()
        task.become(state, reason)
        task.state.record.sync()
        task.enter(phases.SETTLED)
