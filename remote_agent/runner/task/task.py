"""The data of a runner about its worker, and every change of it: state, phase, requests, live processes.

The state (protocol/states.py) and the phase (phases.py) change only through `become` and `enter`, which check their
tables. task_runner.py performs due actions, takeover.py records what a previous runner left, operations.py records
requests; they change state and phase only through these methods. Knows no sockets: `send` takes messages.
"""

from __future__ import annotations

import os

from remote_agent.protocol import states
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.runner import restart
from remote_agent.runner.attempt import Attempt, prove
from remote_agent.runner.lease_guard import LeaseGuard
from remote_agent.runner.record import WorkerFiles
from remote_agent.runner.restart import Ending, RestartDecision, RestartRules
from remote_agent.runner.state import WorkerState, whole
from remote_agent.runner.task import phases
from remote_agent.runner.task.assignment import ASKED, FENCE, KILL, STOP, TaskAssignment
from remote_agent.runner.task.tree import WorkerProcesses
from remote_agent.runner.termination import ProcessTreeTerminator
from remote_agent.system import processes
from remote_agent.system.processes import Identity

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_agent.runner import hooks
    from remote_agent.runner.failure_causes.proof import ProvenCause


class WorkerTask:
    """The runner's data. The phase is NEW until takeover.begin has examined what a previous runner left."""

    def __init__(self, record: WorkerFiles, send: Callable[[dict[str, object]], None]) -> None:
        self.state = WorkerState(record, send)
        self.phase = phases.NEW
        self.assignment = TaskAssignment({})
        self.policy = RestartRules()
        self.lease = LeaseGuard()
        self.asked = ""  # the action once the tree is gone; see assignment.ASKED
        self.command_id = ""  # the command that requested it
        self.scheduled: tuple[RestartDecision, float, bool] | None = (
            None  # (decision, earliest start, whether it uses the budget)
        )
        self.next_start = 0.0  # in backoff: the end of the pause
        self.lacks_room = False  # in backoff: the attempt of this number cannot start because of the host's disk
        self.attempt: Attempt | None = None
        self.wait_status: int | None = None  # exit of the attempt's process, until it is processed
        self.no_children = True
        self.ending: Ending | None = None  # end of the last attempt, until it is reported
        self.post_stop: hooks.PostStop | None = None  # hooks to run after an attempt
        self.remarks: Reason = NONE  # messages of the attempt's hooks
        self.own(WorkerProcesses(record, ""))

    @property
    def settled(self) -> bool:
        """Whether this runner will start nothing more."""
        return self.phase == phases.SETTLED

    @property
    def finished(self) -> bool:
        """Whether the settled state is stored, so that the runner may exit. Until then only this process knows it."""
        return self.settled and self.state.record.kept

    # -------------------------------------------------------------------------------------------------------- processes

    def own(self, tree: WorkerProcesses) -> None:
        """Set the process tree of the worker."""
        self.processes = tree
        self.terminator = ProcessTreeTerminator(tree.members, self.collect, tree.kill_group, tree.to_ask)
        self.sweeper = ProcessTreeTerminator(
            tree.left_behind, lambda: not tree.left_behind(), tree.kill_group, tree.left_behind_to_ask
        )

    def sweep_first(self, now: float) -> int:
        """First end the processes that a previous runner left; returns their number."""
        self.sweeper.begin(now, self.assignment.stop_signal, self.assignment.grace_s)
        self.enter(phases.SWEEPING)
        return self.sweeper.reached

    def nothing_to_sweep(self) -> None:
        self.enter(phases.DECIDING)

    def why_failed(self, attempt: Attempt, ending: Ending) -> ProvenCause | None:
        """The proven cause of an attempt that failed by itself, from its last lines; also stored in `ending`."""
        apart = self.assignment.spec.get("stderr") == "separate"
        try:
            found = prove(attempt, ending, self.state.record.worker_dir, apart, self.assignment.causes)
        except Exception:  # unexpected log content must not make the runner fail: the end then has no cause
            return None
        if found is not None:
            ending.failure, ending.proof = found.word, NONE if found.word == "oom" and ending.oom else found.reason
        return found

    def take_over_ending(self, number: int, ending: Ending) -> None:
        """Adopt the end of the previous runner's attempt. Its post_stop hooks run, again if that runner died before
        they had finished."""
        self.ending = ending
        self.post_stop = self.processes.post_stop(self.assignment, number, ending)

    def collect(self) -> bool:
        """Reap all dead children. True if no child is left."""
        dead, self.no_children = self.processes.collect()
        if self.attempt and self.attempt.pid in dead:
            self.wait_status = dead[self.attempt.pid]
        if self.post_stop and self.post_stop.pid in dead:
            self.post_stop.ended(dead[self.post_stop.pid])
        return self.no_children

    # --------------------------------------------------------------------------------------------------------- requests

    def obey(self, assignment: TaskAssignment) -> None:
        """Apply the policy, epoch and lease of this assignment from now on."""
        values = self.state.values
        self.assignment = assignment
        self.policy = assignment.policy()
        values["epoch"] = max(whole(values, "epoch"), assignment.epoch)
        something_lives = bool(self.attempt or self.post_stop or self.terminator.active)
        self.lease.assign(assignment.values.get("lease_s"), whole(values, "epoch"), something_lives)
        self.processes.dies_with_runner = self.lease.lease_s is not None
        self.note_lease()

    def request(self, what: str) -> None:
        """Request a stop of what is being ended already, or change the action after it."""
        self._note_request(what, "")
        self._report_stop()

    def stop_for(self, what: str, now: float, command_id: str = "") -> None:
        """Request a stop, and end the live process tree as it requires. The stop signal waits neither for the files of
        the state nor for their disk: until they are written, only this process knows of the request, and a runner that
        dies before is followed by one that finds its process ended."""
        self._note_request(what, command_id)
        self._end_as_asked(now)
        self._report_stop()

    def _note_request(self, what: str, command_id: str) -> None:
        if self.command_id:
            self.state.result(self.command_id, "failed", because("command.overtaken", why=self.why(what)))
        self.asked, self.command_id, self.scheduled = what, command_id, None
        self.state.values["held"] = what in (STOP, KILL)

    def _report_stop(self) -> None:
        if self.state.values["state"] in (states.STARTING, states.RUNNING):
            self.become(states.STOPPING, self.why(self.asked))

    def _end_as_asked(self, now: float) -> None:
        if self.asked == KILL:
            if self.post_stop:
                self.post_stop.give_up()
            if not (self.post_stop and self.post_stop.cleans_up):
                self.kill_now(now)
        elif self.phase in phases.WITH_ATTEMPT:
            self.begin_ending(now)

    def take_down(self, now: float, cause: str, detail: str) -> None:
        """End an attempt that fails without exiting. Its state is unchanged until it has ended, then the policy
        decides. No effect if it is ending already."""
        if self.attempt and self.phase in phases.WITH_ATTEMPT:
            self.attempt.cause, self.attempt.detail = cause, detail
            self.begin_ending(now)
            why = detail or (because("failure.time_limit") if cause == "time_limit" else cause)
            self.state.say(because("run.ending", why=why))

    def end_at_limit(self, now: float, detail: Reason) -> None:
        """End an attempt that has run for max_run_s."""
        self.state.values["over_time"] = 0
        self.take_down(now, "time_limit", detail)

    def schedule(self, action: str, reason: Reason, now: float) -> None:
        """Schedule an action for when no process is left. Does not change the restart budget."""
        self.scheduled = RestartDecision(action, 0.0, whole(self.state.values, "restarts"), reason), now, False

    def decide(self, ending: Ending, now: float) -> None:
        """Let the restart policy decide and schedule its action for when no process is left."""
        roll = os.urandom(1)[0] / 256
        decision = restart.decide(ending, whole(self.state.values, "restarts"), self.policy, roll)
        self.scheduled = decision, now + decision.delay_s, True

    def decided(self) -> Reason:
        reason: Reason = self.scheduled[0].reason if self.scheduled else self.state.reason
        return reason

    def why(self, what: str) -> Reason:
        return self.lease.why_ended() if what == FENCE else ASKED[what]

    # -------------------------------------------------------------------------------------------------------- ending it

    def begin_ending(self, now: float) -> None:
        first, attempt = None, self.attempt
        if attempt and not attempt.first_pid:  # otherwise its pid is conmon's, which is not asked to stop
            first = Identity(attempt.pid, attempt.pid_start, processes.boot_id())
        self.terminator.begin(now, self.assignment.stop_signal, self.assignment.grace_s, first)
        self.enter(phases.ENDING)

    def kill_now(self, now: float) -> None:
        """Send SIGKILL to all live processes, if any."""
        if self.phase == phases.SWEEPING:
            self.sweeper.kill_now(now)
            return
        if self.phase in (*phases.WITH_ATTEMPT, phases.POST_STOP):
            self.enter(phases.ENDING)
        if self.phase == phases.ENDING:
            self.terminator.kill_now(now)

    # ---------------------------------------------------------------------------------------------------------- changes

    def enter(self, phase: str) -> None:
        phases.check(self.phase, phase)
        self.phase = phase

    def become(self, state: str, reason: Reason) -> None:
        self.state.become(state, reason, ended=self.ending is not None)
        if state != states.STOPPING:  # the ending is reported now; a stop reports it at its end
            self.ending = None

    def note_lease(self) -> None:
        """Record the lease for the next write of state.json."""
        until_ns = self.lease.until_ns
        epoch = whole(self.state.values, "epoch") if until_ns else 0
        self.state.values.update(fenced=self.lease.holds, lease_epoch=epoch, lease_until_ns=until_ns)

    def give_lease_back(self) -> None:
        self.lease.give_back()
        self.note_lease()
