"""Keeps one attempt after the other going: starts, watches, ends what fails, and follows what was decided.

Every change of state goes through `_become`, is checked against states.TRANSITIONS, recorded and told. `advance(now)`
is called after anything happened (a child ended, an operation came, a deadline passed) and does whatever is due;
`next_deadline` says when it must be called at the latest. What is asked from outside and what a former runner left is
supervisor.py's.

Taking down a failing attempt (never started, unhealthy) keeps its state until it is gone: "stopping" is only what
somebody asked for.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from remote_agent.protocol import states
from remote_agent.runner import hooks, restart
from remote_agent.runner import launch as child
from remote_agent.runner.attempt import Attempt, build_launch, now_s
from remote_agent.runner.lease_guard import Fence
from remote_agent.runner.leases import AWAITS_LEASE
from remote_agent.runner.record import WorkerFiles
from remote_agent.runner.restart import Decision, Ending, RestartRules
from remote_agent.runner.state import WorkerState, whole
from remote_agent.runner.termination import Ladder
from remote_agent.system import processes
from remote_agent.system.cgroup import WorkerGroup
from remote_agent.system.oom import OomCounter
from remote_agent.system.processes import Identity

HOUSEKEEPING_S = 60.0
WRITE_AGAIN_S = 1.0  # what a disk refused
# A start that the host's disk is in the way of is nobody's failure: it waits, and is tried so often.
ROOM_AGAIN_S = 2.0
NO_ROOM_NEXT = "; free some space on the host: then it starts by itself, and no restart is spent"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
DEFAULT_GRACE_S = 10.0

# What follows a stop that somebody asked for. The last four leave the worker stopped.
START, RESTART, ANEW = "start", "restart", "anew"
STOP, KILL, TERMINATE, FENCE = "stop", "kill", "terminate", "fence"
ASKED = {
    START: "started by an operator",
    RESTART: "restarted by an operator",
    ANEW: "started anew by the manager, under a new epoch",
    STOP: "stopped by an operator",
    KILL: "killed by an operator",
    TERMINATE: "the runner was asked to end by SIGTERM",
    FENCE: "its lease ended",
}


class Keeper:
    def __init__(self, record: WorkerFiles, tell: Callable[[dict[str, object]], None]) -> None:
        self.state = WorkerState(record, tell)
        self.settled = False  # nothing more will run under this runner
        self._assignment: dict[str, object] = {}
        self._policy = RestartRules()
        self._fence = Fence()
        self._attempt: Attempt | None = None
        self._wait_status: int | None = None
        self._ending: Ending | None = None
        self._next: tuple[Decision, float, bool] | None = None  # decision, its start not before, spends the budget
        self._after: hooks.PostStop | None = None  # what is to run, or runs, after an attempt and before anything else
        self._remarks = ""  # what its hooks have to say
        self._asked = ""  # while stopping: what follows; see _ASKED
        self._command_id = ""
        self._ready_at = self._start_deadline = self._healthy_at = self._next_start = 0.0
        self._housekeeping_at = now_s() + HOUSEKEEPING_S
        self._write_again_at = 0.0
        self._lacks_room = False  # in backoff: the host's disk keeps the attempt of this number from starting
        self._group = WorkerGroup()
        self._group_limits: dict[str, float | None] = {}  # in force, or tried
        self._not_enforced = ""
        self._ooms = OomCounter()
        self._ladder = Ladder(lambda: processes.members_below(os.getpid()), self._reap, self._kill_group)
        self._left_behind = Ladder(self._find_left_behind, lambda: not self._find_left_behind(), self._kill_group)
        self._former_child: Identity | None = None
        self._seen: list[Identity] = []  # what the agent saw below a former runner

    # ------------------------------------------------------------------------------------------- what goes on

    @property
    def finished(self) -> bool:
        """Settled, and that is on a disk: the runner may end. Until then it stays: nobody else could know."""
        return self.settled and self.state.record.kept

    def next_deadline(self) -> float:
        """When `advance` must be called at the latest, on the clock of `now_s`."""
        if self.settled:
            return self._write_again_at
        return min(self._next_step(), self._fence.due(now_s(), self._grace_s()))

    def lease_ends_ns(self, now: float) -> int:
        """When a lease ends on which something may run; 0: there is none, or it has ended."""
        return self._fence.keeps_until_ns if self._fence.holds and not self._fence.ended(now) else 0

    def _next_step(self) -> float:
        due = [self._write_again_at if self.state.record.problem else self._housekeeping_at]
        state, attempt = self.state.values["state"], self._attempt
        for ladder in (self._left_behind, self._ladder):
            if ladder.active and ladder.due is not None:
                due.append(ladder.due)
        if len(due) > 1:
            return min(due)  # nothing else happens before the tree is gone
        if self._after:
            return min(due[0], self._after.until if self._after.runs else 0.0)
        if self._next:
            due.append(0.0)
        if attempt and attempt.hook:
            due.append(attempt.hook_until)
        elif state == states.STARTING and attempt:
            due.append(self._start_deadline)
            if attempt.executed:
                due.append(self._ready_at)
        elif state == states.RUNNING and attempt and self.state.values["restarts"]:
            due.append(self._healthy_at)
        elif state == states.BACKOFF:
            due.append(self._next_start)
        return min(due)

    def exec_fd(self) -> int:
        """Readable when the exec came about or failed; -1 where that is known."""
        return self._attempt.exec_fd if self._attempt else -1

    def advance(self, now: float) -> None:
        """Do everything that is due. Safe to call at any time."""
        if self.state.record.problem and now >= self._write_again_at:
            self._write_again_at = now + WRITE_AGAIN_S
            self.state.write_again()
        if self.settled:
            return
        if now >= self._housekeeping_at:
            self._keep_house(now)
        empty = self._reap()
        self._take_exit(now)
        self._look_at_lease(now)
        if self._left_behind.active and not self._left_behind.step(now):
            return
        if self._ladder.active:
            if not self._ladder.step(now):
                self._name_the_stuck(now)
                self._watch_attempt(now)
                return
            self._take_exit(now)
        elif (self._next or self._after) and not empty and not (self._after and self._after.runs):
            self._end_leftovers(now)
            return
        if not self._after or self._run_post_stop(now):
            self._go_on(now)

    def _go_on(self, now: float) -> None:
        """No tree is in the way (or the attempt runs): follow what was asked or decided."""
        if self.state.values["state"] == states.STOPPING:
            self._after_stop(now)
        elif self._next:
            decision, not_before, counted = self._next
            self._next = None
            self._follow(decision, not_before, counted, now)
        elif self.state.values["state"] == states.BACKOFF and now >= self._next_start and self._lacks_room:
            self._start(now, "started: the host's disk takes its files again")
        elif self.state.values["state"] == states.BACKOFF and now >= self._next_start:
            self._start(now, f"restart {self.state.values['restarts']} of {self._policy.max_attempts}, after its pause")
        elif self.state.values["state"] in states.SETTLED:
            self._finish()
        else:
            self._watch_attempt(now)

    def _after_stop(self, now: float) -> None:
        """The tree is gone after somebody asked for a stop."""
        raise NotImplementedError

    def _look_at_lease(self, now: float) -> None:
        """After what has ended by itself, before anything else: may there be a child?"""
        raise NotImplementedError

    def _reap(self) -> bool:
        """Collect every dead child of ours, adopted ones too. True when no child is left: the tree is gone, for a
        subreaper's orphans become its children before it hears of their parent's death."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if self._attempt and pid == self._attempt.pid:
                self._wait_status = wait_status
            elif self._after and pid == self._after.pid:
                self._after.ended(wait_status)

    def _take_exit(self, now: float) -> None:
        """The child has ended: note how, then decide what follows."""
        if self._wait_status is None or self._attempt is None:
            return
        attempt, wait_status = self._attempt, self._wait_status
        self._wait_status = None
        if attempt.hook and self._go_on_after_hook(attempt, wait_status, now):
            return
        self._attempt = None
        ending = attempt.ended(wait_status, now, self.state.values["state"] == states.RUNNING)
        self.state.note_exit(attempt.number, ending, attempt.failure)
        self.state.values.update(pid=None, pid_start=None, launch_digest="")
        self._ending = ending
        self._prepare_post_stop(attempt.number, ending)
        if self.state.values["state"] == states.STOPPING:
            return
        if attempt.failure:
            self._next = (Decision(restart.FAIL, 0.0, self.state.values["restarts"], attempt.failure), now, False)
        else:
            self._decide(ending, now)

    def _decide(self, ending: Ending, now: float) -> None:
        roll = os.urandom(1)[0] / 256
        decision = restart.decide(ending, whole(self.state.values, "restarts"), self._policy, roll)
        self._next = (decision, now + decision.delay_s, True)

    def _end_leftovers(self, now: float) -> None:
        """The child has ended but not all of its tree: a clean slate comes before anything else."""
        names = processes.names(processes.members_below(os.getpid()))
        self._ladder.begin(now, self._stop_signal(), self._grace_s())
        count = self._ladder.reached
        if self._next and self._ending and count:
            self.state.note_left(count, names)
            said = restart.left_in_words(count, names, self._ending)
            self._next = (self._next[0]._replace(reason=self._next[0].reason + said), *self._next[1:])
        reason = self._next[0].reason if self._next else self.state.values["reason"]
        self.state.say(f"{reason}; ending what it left behind first")

    def _follow(self, decision: Decision, not_before: float, counted: bool, now: float) -> None:
        self.state.values["restarts"] = decision.restarts
        if self._remarks:
            decision = decision._replace(reason=decision.reason + self._remarks)
            self._remarks = ""
        if decision.action == restart.FINISH:
            self._settle(states.EXITED, decision.reason)
        elif decision.action == restart.FAIL:
            self._settle(states.FAILED, decision.reason)
        elif decision.action == restart.STOP:
            self._settle(states.STOPPED, decision.reason, held=decision.reason != ASKED[TERMINATE])
        else:
            self.state.values["restarts_total"] = whole(self.state.values, "restarts_total") + counted
            if now >= not_before:
                self._start(now, decision.reason)
            else:
                self._next_start = not_before
                self.state.values["next_start_at"] = time.time() + not_before - now
                self._become(states.BACKOFF, decision.reason)

    def _watch_attempt(self, now: float) -> None:
        """Starting, running: the deadlines of a living child."""
        attempt, state = self._attempt, self.state.values["state"]
        if attempt is None:
            return
        if attempt.exec_fd >= 0:
            attempt.look_at_exec()
            if attempt.executed:
                self._ready_at = now + self._policy.start_secs
        if state == states.STARTING and not self._ladder.active:
            if attempt.hook:
                if now >= attempt.hook_until:
                    self._take_down(now, "start_timeout", hooks.overdue("pre_start", attempt.hook))
            elif attempt.executed and now >= self._ready_at:
                self._healthy_at = now + self._policy.healthy_after_s
                self._become(states.RUNNING, f"running (pid {attempt.pid})" + self._not_enforced)
            elif now >= self._start_deadline and not attempt.failure:
                self._take_down(now, "start_timeout", attempt.detail or _why_not_started(attempt, self._policy))
        elif state == states.RUNNING and self.state.values["restarts"] and now >= self._healthy_at:
            self.state.values["restarts"] = 0
            self.state.publish()

    def _take_down(self, now: float, cause: str, detail: str) -> None:
        """End an attempt that fails without exiting. Its state stays until it is gone, then the policy decides."""
        assert self._attempt
        self._attempt.cause, self._attempt.detail = cause, detail
        self._ladder.begin(now, self._stop_signal(), self._grace_s())
        self.state.say(f"{detail or cause}; ending it")

    def _name_the_stuck(self, now: float) -> None:
        if self._ladder.stuck(now):
            pids = ", ".join(str(member.pid) for member in processes.members_below(os.getpid()))
            self.state.say(
                f"process {pids} does not die of SIGKILL: it waits in the kernel, often for a disk or a device"
            )

    # ------------------------------------------------------------------------------------------------- starts

    def _start(self, now: float, reason: str) -> None:
        """The next attempt. The child comes first, the paperwork after it."""
        if not self._fence.open(now):
            self._stay_down(reason)
            return
        number = self._number()
        self.state.values.update(attempt=number, next_start_at=None, held=False)
        if not self.state.record.kept:
            self._wait_for_room(now, reason, self.state.record.problem)
            return
        hopeless = problem = ""
        try:
            self._attempt = self._launch(number, now)
        except child.NotStarted as exc:
            hopeless = str(exc)
        except OSError as exc:
            problem = f"cannot start: {exc.strerror}" + (f": {exc.filename}" if exc.filename else "")
            if exc.errno in NO_ROOM and not self._policy.gang:
                self._wait_for_room(now, reason, problem)
                return
        self._lacks_room = False
        self._start_deadline = now + self._policy.start_timeout_s
        self._ready_at = now + self._policy.start_secs  # later where the exec is still to come
        self._become(states.STARTING, reason)
        self.state.record.sync()
        if hopeless:
            self.state.note_exit(number, Ending(cause="not_started", detail=hopeless), hopeless)
            self._next = (Decision(restart.FAIL, 0.0, whole(self.state.values, "restarts"), hopeless), now, False)
        elif problem:
            ending = Ending(cause="start_timeout", detail=problem)
            self.state.note_exit(number, ending)
            self._decide(ending, now)

    def _number(self) -> int:
        """Of the attempt that starts now; one that the disk kept from starting is the same still."""
        known = whole(self.state.values, "attempt")
        return known if self._lacks_room else max(known, whole(self._assignment, "attempt_base")) + 1

    def _wait_for_room(self, now: float, reason: str, problem: str) -> None:
        """Nothing was started: the host's disk refuses its log, or to note the start, which could then come twice."""
        if self.state.values["state"] != states.BACKOFF:
            if self.state.values["state"] != states.STARTING:
                self._become(states.STARTING, reason)
            self._become(states.BACKOFF, f"{problem}{NO_ROOM_NEXT}")
        else:
            self.state.say(f"{problem}{NO_ROOM_NEXT}")
        self._lacks_room = True
        self._next_start = now + ROOM_AGAIN_S
        self.state.values["next_start_at"] = time.time() + ROOM_AGAIN_S

    def _stay_down(self, reason: str) -> None:
        """It was to start, but holds no lease: whoever starts runners starts it again once there is one."""
        state = self.state.values["state"]
        if state == states.BACKOFF:
            reason = str(self.state.values["reason"])  # why it paused says more than that the pause is over
        reason = f"{reason}; {AWAITS_LEASE}"
        if state in (states.STARTING, states.RUNNING):
            self._become(states.STOPPING, reason)  # its tree is gone already
        if state not in states.SETTLED:
            self._settle(states.STOPPED, reason)
            return
        if state == states.STOPPED:
            self.state.values["held"] = False
        else:  # exited, failed: as if the generation that wants the start had not been heard of yet
            self.state.values["generation"] = whole(self.state.values, "generation") - 1
        self.state.values.update(reason=reason, in_hand=True)  # so that the end is written below
        self._finish()

    def _launch(self, number: int, now: float) -> Attempt:
        values = self.state.values
        before = self._hooks("pre_start")
        launch = self._build(number, before[0] if before else None)
        self._group.join()
        self._limit_group()
        attempt = Attempt(number, launch, str(self._assignment.get("launch_digest", "")), now, self._ooms, before)
        values.update(pid=attempt.pid, pid_start=attempt.pid_start, launch_digest=attempt.launch_digest)
        return attempt

    def _limit_group(self) -> None:
        start = self._assignment.get("start")
        wanted = start.get("group_limits") if isinstance(start, dict) else None
        if not wanted and not self._group_limits:
            return
        from remote_agent.system import group_limits

        problem = group_limits.enforce(self._group.path, {**dict.fromkeys(self._group_limits), **(wanted or {})})
        self._group_limits = dict(wanted or {})
        self._not_enforced = f"; {problem}" if problem else ""

    def _build(self, number: int, hook: hooks.Hook | None = None) -> child.Launch:
        record, cookie = self.state.record, str(self.state.values["cookie"])
        launch = build_launch(self._assignment, record.read_base_env(), number, cookie, record.worker_dir, hook)
        launch.dies_with_runner = self._fence.lease_s is not None
        return launch

    # -------------------------------------------------------------------------------------------------- hooks

    def _hooks(self, kind: str) -> list[hooks.Hook]:
        start = self._assignment.get("start")
        found = start.get(kind) if isinstance(start, dict) else None
        return found if isinstance(found, list) else []

    def _go_on_after_hook(self, attempt: Attempt, wait_status: int, now: float) -> bool:
        """A pre_start hook has ended: the next one or the command follows. False: the attempt is over."""
        assert attempt.hook
        attempt.look_at_exec()
        if self.state.values["state"] != states.STARTING or attempt.cause or attempt.failure:
            return False
        if wait_status != 0:
            attempt.cause, attempt.detail = "start_timeout", hooks.failure("pre_start", attempt.hook, wait_status)
            return False
        if self._fence.ended(now):
            attempt.cause, attempt.detail = "taken", self._fence.in_words()
            return False
        attempt.hooks.pop(0)
        following = attempt.hooks[0] if attempt.hooks else None
        try:
            attempt.go_on(self._build(attempt.number, following), now)
        except child.NotStarted as exc:
            attempt.failure = str(exc)
            return False
        except OSError as exc:
            attempt.cause, attempt.detail = "start_timeout", f"cannot start: {exc}"
            return False
        self._start_deadline = now + self._policy.start_timeout_s
        self._ready_at = now + self._policy.start_secs
        self.state.values.update(pid=attempt.pid, pid_start=attempt.pid_start)
        self.state.publish()
        return True

    def _prepare_post_stop(self, number: int, ending: Ending) -> None:
        """To be run once the tree of attempt `number` is gone. Again where a former runner died before their end."""
        wanted = self._hooks("post_stop")
        if not wanted or not number:
            return

        def launch(hook: hooks.Hook) -> child.Launch:
            built = self._build(number, hook)
            built.env["PROCGUARD_EXIT_CODE"] = "" if ending.code is None else str(ending.code)
            built.env["PROCGUARD_EXIT_SIGNAL"] = "" if ending.signal is None else str(ending.signal)
            return built

        self._after = hooks.PostStop(wanted, launch)

    def _run_post_stop(self, now: float) -> bool:
        """One step; true once all of them are done."""
        assert self._after
        if self._after.runs:
            if now >= self._after.until:
                self._after.out_of_time()
                self._ladder.begin(now, self._stop_signal(), self._grace_s())
            return False
        if not self._after.step(now):
            self.state.say(f"{self._next[0].reason if self._next else self.state.values['reason']}; post_stop runs")
            return False
        self._remarks = "".join(f"; {problem}" for problem in self._after.problems)
        self._after = None
        return True

    # ------------------------------------------------------------------------------------------- its processes

    def _find_left_behind(self) -> list[Identity]:
        cookie = str(self.state.values["cookie"])
        return processes.members_left_behind(self._former_child, cookie, self._group.members(), self._seen)

    def _kill_group(self) -> None:
        self._group.kill()

    def close(self) -> None:
        """The worker is settled: its group goes."""
        self._group.remove()

    # ---------------------------------------------------------------------------------------------- small things

    def _at_once(self, action: str, reason: str, now: float) -> tuple[Decision, float, bool]:
        """For `_next`: what somebody asked for while nothing runs, but the remains of a killed runner may be alive."""
        return Decision(action, 0.0, 0, reason), now, False

    def _finish(self) -> None:
        """Settled before, and settled it stays."""
        self.settled = True
        self._give_lease_back()
        if self.state.values["in_hand"]:
            self.state.values["in_hand"] = False
            self.state.publish()

    def _settle(self, state: str, reason: str, held: bool = False) -> None:
        self.state.values.update(held=held, next_start_at=None, in_hand=False)
        self._give_lease_back()
        self._become(state, reason)
        self.state.record.sync()
        self.settled = True

    def _become(self, state: str, reason: str) -> None:
        self.state.become(state, reason, ended=self._ending is not None)
        if state != states.STOPPING:  # the ending is told now; a stop tells it at its end
            self._ending = None

    def _keep_house(self, now: float) -> None:
        self._housekeeping_at = now + HOUSEKEEPING_S
        if self._attempt:  # an OOM kill is ours only if it happened lately
            self._attempt.ooms_before = self._ooms.read()

    def _obey_assignment(self) -> None:
        """Policy, epoch and fence as the assignment in force says."""
        values = self.state.values
        self._policy = self._policy_of_spec()
        values["epoch"] = max(whole(values, "epoch"), whole(self._assignment, "epoch"))
        child_is_there = bool(self._attempt or self._after or self._ladder.active)
        self._fence.assign(self._assignment.get("lease_s"), whole(values, "epoch"), child_is_there)
        self._note_lease()

    def _note_lease(self) -> None:
        """For state.json, at its next change."""
        until_ns = self._fence.until_ns
        epoch = whole(self.state.values, "epoch") if until_ns else 0
        self.state.values.update(fenced=self._fence.holds, lease_epoch=epoch, lease_until_ns=until_ns)

    def _give_lease_back(self) -> None:
        self._fence.give_back()
        self._note_lease()

    def _spec(self) -> dict[str, object]:
        spec = self._assignment.get("spec")
        return spec if isinstance(spec, dict) else {}

    def _policy_of_spec(self) -> RestartRules:
        values = self._spec().get("restart")
        policy = RestartRules(values if isinstance(values, dict) else None)
        if self._spec().get("oneshot") and policy.policy == "always":
            policy.policy = "on-failure"  # run to completion: a good end is the end
        policy.gang = bool(self._assignment.get("gang"))
        return policy

    def _stop_signal(self) -> int:
        return restart.signal_number(str(self._spec().get("stop_signal") or "TERM"))

    def _grace_s(self) -> float:
        grace = self._spec().get("stop_grace_s")
        return float(grace) if isinstance(grace, (int, float)) and grace >= 0 else DEFAULT_GRACE_S


def _why_not_started(attempt: Attempt, policy: RestartRules) -> str:
    if not attempt.executed and attempt.launch.setup is not None:
        return f"its setup lines are not done; restart.start_timeout_s is {policy.start_timeout_s:g} s"
    if not attempt.executed:
        return "still before exec: is its working directory on a file system that hangs?"
    return f"start_secs is {policy.start_secs:g} s"
