"""Keeps one worker as it is wanted: takes over from a former runner, and does what others ask. The runner's heart.

Owns the worker's state; keeper.py does what follows by itself. Knows no sockets: `tell` takes messages.

The runner being told to end by SIGTERM (a shutdown of the host) stops the child and leaves the worker "stopped"
without `held`, so that whoever starts runners next starts it again. So does the end of a fenced worker's lease. A
gang's member fails instead: what becomes of it is the manager's to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from remote_agent.protocol import states
from remote_agent.runner import restart
from remote_agent.runner.keeper import ANEW, ASKED, FENCE, KILL, RESTART, START, STOP, TERMINATE, Keeper
from remote_agent.runner.leases import AWAITS_LEASE
from remote_agent.runner.record import WorkerFiles
from remote_agent.runner.restart import Ending
from remote_agent.runner.state import whole
from remote_agent.system import processes
from remote_agent.system.cgroup import WorkerGroup
from remote_agent.system.processes import Identity

NOT_TO_RUN = ("stopped", "removed")


class Supervisor(Keeper):
    def __init__(
        self,
        record: WorkerFiles,
        tell: Callable[[dict[str, object]], None],
        lease: tuple[int, int] = (0, 0),
        wanted: dict[str, object] | None = None,
        seen: Iterable[tuple[int, int]] = (),
    ) -> None:
        """`lease`: (epoch, until_ns) as the agent knew it when it started this runner; (0, 0): none. `wanted`:
        {"desired", "generation", "epoch"} of an assignment that a full disk may have kept from spec.json. `seen`: (pid,
        start) of processes that the agent of this boot saw below a former runner."""
        super().__init__(record, tell)
        self._given = lease
        self._wanted = wanted or {}
        self._seen = [Identity(pid, start, processes.boot_id()) for pid, start in seen]

    # ------------------------------------------------------------------------------------------------- start

    def begin(self, now: float) -> None:
        """Take over from a former runner, or start afresh. Raises ValueError or OSError where spec.json is unusable."""
        former = self.state.record.read_state()
        self._assignment = _as_wanted(self.state.record.read_spec(), self._wanted)
        boot = processes.boot_id()
        same_boot = former.get("boot_id") == boot
        if same_boot and former.get("pid"):
            self._former_child = Identity(whole(former, "pid"), whole(former, "pid_start"), boot)
        self.state.take_over(former, str(self._assignment.get("worker_id", "")), boot)
        self._group = WorkerGroup(str(self.state.values["cookie"]), str(self.state.values["cgroup"]))
        self.state.values["cgroup"] = self._group.path
        new_generation = whole(self._assignment, "generation") > whole(former, "generation")
        wanted = self._assignment.get("desired") == "running"
        if new_generation:
            self.state.values.update(generation=self._assignment["generation"], restarts=0)
        self._obey_assignment()
        self._take_over_lease(former if same_boot else {})
        if former and same_boot and self._find_left_behind():
            self._left_behind.begin(now, self._stop_signal(), self._grace_s())
        self._take_over(former, same_boot, wanted, new_generation, now)
        if not self.settled:
            # From here until it is settled a child may be started at any moment: the next runner must look for it.
            self.state.values["in_hand"] = self._next is not None or self.state.values["state"] not in states.SETTLED
            self.state.publish()
            self.advance(now)

    def _take_over(
        self, former: dict[str, object], same_boot: bool, wanted: bool, new_generation: bool, now: float
    ) -> None:
        """Decide what follows a former runner's last word; `advance` does it once the old tree is gone."""
        state = self.state.values["state"]
        fresh = self._at_once(restart.RESTART, "started", now)
        if self._fence.lease_s is not None and not new_generation:
            # Ends of leases and reboots between its attempts give no budget back: none of them is somebody's decision.
            fresh = (fresh[0]._replace(restarts=whole(self.state.values, "restarts")), *fresh[1:])
        if state in states.ALIVE:
            ending = self._ending = self._lost_ending(former, same_boot)
            self._prepare_post_stop(whole(self.state.values, "attempt"), ending)
            if state == states.STOPPING:
                self._asked = START if wanted and not self.state.values["held"] else STOP
            elif not wanted:
                self._ask(STOP)
            elif new_generation:
                self._next = fresh
            else:
                self._decide(ending, now)
        elif state == states.BACKOFF:
            if not wanted:
                self._next = self._at_once(restart.STOP, ASKED[STOP], now)
            elif new_generation:
                self._next = fresh
            else:
                left_s = float(str(former.get("next_start_at") or 0)) - time.time()
                self._next_start = now + min(max(left_s, 0.0), max(self._policy.backoff_s) * 2)
                self.state.values["next_start_at"] = time.time() + self._next_start - now
        elif restart.may_start(self._assignment, former):
            self._next = fresh
        elif not self._left_behind.active:
            self._finish()

    def _take_over_lease(self, former: dict[str, object]) -> None:
        """`former`: state.json of this boot; of another one no lease is left."""
        self._fence.grant(whole(former, "lease_epoch"), whole(former, "lease_until_ns"))
        self._fence.grant(*self._given)
        self._note_lease()

    def _lost_ending(self, former: dict[str, object], same_boot: bool) -> Ending:
        """How the former runner's last attempt ended (which it perhaps never wrote down): its exit record, or that
        nobody saw it."""
        number = whole(self.state.values, "attempt")
        known = self.state.record.read_exit(number)
        if known is not None:
            self.state.values["last_exit"] = known
            code, signal = known.get("code"), known.get("signal")
            return Ending(
                code=code if isinstance(code, int) else None,
                signal=signal if isinstance(signal, int) else None,
                ran_s=float(str(known.get("duration_s") or 0)),
                was_running=former.get("state") == states.RUNNING,
            )
        reached = self._left_behind.reached
        detail = "the host went down while it ran" if not same_boot else "its runner was killed"
        if reached:
            detail += f"; {reached} left-over process{'es' if reached > 1 else ''} ended"
        ending = Ending(cause="lost", detail=detail, was_running=True)
        self.state.note_exit(number, ending)
        return ending

    # -------------------------------------------------------------------------------------- what others ask

    def operate(self, message: dict[str, object], now: float) -> None:
        """One operation of the agent. Unknown ones (of a newer agent) are ignored, and so is everything once this
        runner leaves: the next one reads what is wanted."""
        if self.finished:
            return
        if self.settled:
            self._operate_settled(message, now)
            return
        operation = message.get("op")
        if operation == "lease":
            self._take_lease(whole(message, "epoch"), whole(message, "until_ns"))
        elif self._fence.ended(now):
            self.advance(now)  # this process may have been frozen since it looked last
        if operation == "assign":
            self._assign(message, now)
        elif operation in (RESTART, KILL):
            self._receive(message, now)
        elif operation == "health" and message.get("restart"):
            self._unhealthy(str(message.get("detail", "")), now)
        self.advance(now)

    def _operate_settled(self, message: dict[str, object], now: float) -> None:
        """It stays only until its end is on a disk. What is to start is the next runner's."""
        verb = message.get("op")
        if verb == "assign" and message.get("desired") in NOT_TO_RUN:
            generation = max(whole(message, "generation"), whole(self.state.values, "generation"))
            if generation > whole(self.state.values, "generation"):
                epoch = max(whole(message, "epoch"), whole(self.state.values, "epoch"))
                held = self.state.values["state"] == states.STOPPED
                self.state.values.update(generation=generation, epoch=epoch, held=held)
                self.state.publish()
        elif verb in (RESTART, KILL):
            status = "done" if verb == KILL else "failed"
            self.state.result(str(message.get("id", "")), status, f"it is {self.state.values['state']} already")
        self.advance(now)

    def _unhealthy(self, detail: str, now: float) -> None:
        if self.state.values["state"] == states.RUNNING and self._attempt and not self._ladder.active:
            self._take_down(now, "unhealthy", detail)

    def _take_lease(self, epoch: int, until_ns: int) -> None:
        """A renewal is no news to anybody, or each would be answered by a heartbeat that brings the next one. The first
        one of an epoch is: the manager relies on a fence only once it is told that it stands."""
        before = (self.state.values["fenced"], self.state.values["lease_epoch"])
        if self._fence.grant(epoch, until_ns):
            self._note_lease()
        if before != (self.state.values["fenced"], self.state.values["lease_epoch"]):
            self.state.publish()

    def _look_at_lease(self, now: float) -> None:
        if not self._fence.ended(now):
            return
        state = self.state.values["state"]
        if self._attempt and state in (states.STARTING, states.RUNNING):
            if not self._policy.gang:
                self._ask(FENCE)
                self._climb(now)
            elif not self._ladder.active:
                self._take_down(now, "taken", self._fence.in_words())
        gone_at = self._fence.gone_at(self._grace_s())
        for ladder in (self._left_behind, self._ladder):
            ladder.hurry(gone_at)
        if self._after and now >= gone_at:
            self._after.out_of_lease()
            if self._after.runs:
                self._ladder.kill_now(now)

    def terminate(self, now: float) -> None:
        """SIGTERM to the runner."""
        if self.settled:
            return  # it stays only until its end is on a disk
        state = self.state.values["state"]
        if state == states.BACKOFF:
            self._next = self._at_once(restart.STOP, ASKED[TERMINATE], now)
        elif self._policy.gang and state in (states.STARTING, states.RUNNING):
            if self._attempt and not self._ladder.active:
                self._take_down(now, "taken", ASKED[TERMINATE])
        elif self._asked not in (STOP, KILL):
            self._ask(TERMINATE)
            self._climb(now)
        self.advance(now)

    def _assign(self, message: dict[str, object], now: float) -> None:
        try:
            assignment = self.state.record.read_spec()
        except (ValueError, OSError) as exc:
            if not _is_stop(message):
                self.state.say(f"the changed specification is unusable and ignored: {exc}")
                return
            assignment = self._assignment
        assignment = _as_wanted(assignment, message)
        generation = whole(assignment, "generation")
        known = whole(self.state.values, "generation")
        if generation < known or whole(assignment, "epoch") < whole(self.state.values, "epoch"):
            return  # an old grant, overtaken by a newer one
        of_a_new_epoch = whole(assignment, "epoch") > whole(self.state.values, "epoch")
        self._assignment = assignment
        self.state.values["generation"] = generation
        self._obey_assignment()
        state = self.state.values["state"]
        if assignment.get("desired") != "running":
            if state == states.BACKOFF:
                self._next = self._at_once(restart.STOP, ASKED[STOP], now)
            elif state in states.ALIVE and self._asked != KILL:
                self._ask(STOP)
                self._climb(now)
            elif state in states.SETTLED:
                self._next = None  # it was about to start, after a sweep
        elif generation > known:
            self.state.values["restarts"] = 0
            if state == states.BACKOFF or state in states.SETTLED:
                self._next = self._at_once(restart.RESTART, ASKED[START], now)
            elif state == states.STOPPING and self._asked != RESTART:
                self._ask(START)
            elif of_a_new_epoch and (self._fence.lease_s is not None or self._policy.gang):
                # What runs belongs to an epoch that is over: the manager started the worker anew.
                self._ask(ANEW)
                self._climb(now)
        elif state == states.BACKOFF and self._policy.gang:
            self._next = self._at_once(restart.STOP, "a member of a gang never restarts alone", now)
        self.state.publish()

    def _receive(self, message: dict[str, object], now: float) -> None:
        """A command, unless it waited in the socket for longer than it was good for."""
        verb, command_id, until_ns = str(message.get("op")), str(message.get("id", "")), whole(message, "until_ns")
        if until_ns and now * 1e9 > until_ns:
            self.state.result(command_id, "expired", "too late; nothing was done")
        else:
            self._command(verb, whole(message, "attempt"), command_id, now)

    def _command(self, verb: str, attempt: int, command_id: str, now: float) -> None:
        state, current = self.state.values["state"], self.state.values["attempt"]
        if attempt != current:
            self.state.result(command_id, "failed", f"meant attempt {attempt}, but attempt {current} is {state}")
        elif verb == RESTART and state == states.STOPPING:
            self.state.result(command_id, "failed", "it is being stopped or restarted already")
        elif state == states.BACKOFF and (self._left_behind.active or self._next):
            self.state.result(command_id, "failed", "what a killed runner left is still being ended; try again")
        elif state == states.BACKOFF and verb == RESTART and not self._fence.open(now):
            self.state.result(command_id, "failed", AWAITS_LEASE)
        elif state == states.BACKOFF:
            if verb == RESTART:
                self._start(now, ASKED[RESTART])
            else:
                self._settle(states.STOPPED, ASKED[KILL], held=True)
            waits = verb == RESTART and self._lacks_room
            self.state.result(
                command_id,
                "failed" if waits else "done",
                f"attempt {self.state.values['attempt']} is {self.state.values['state']}"
                + (f": {self.state.values['reason']}" if waits else ""),
            )
        elif state in states.ALIVE:
            self._ask(verb, command_id)
            self._climb(now)
        else:
            self.state.result(command_id, "failed", f"it is {state}: nothing to {verb}")

    def _ask(self, what: str, command_id: str = "") -> None:
        """Begin to stop, or change what follows a stop that is under way."""
        if self._command_id:
            self.state.result(self._command_id, "failed", f"overtaken: {self._why(what)}")
        self._asked, self._command_id, self._next = what, command_id, None
        self.state.values["held"] = what in (STOP, KILL)
        if self.state.values["state"] in (states.STARTING, states.RUNNING):
            self._become(states.STOPPING, self._why(what))

    def _why(self, what: str) -> str:
        return self._fence.in_words() if what == FENCE else ASKED[what]

    def _climb(self, now: float) -> None:
        """Put the stop into effect on whatever tree is alive."""
        ladder = self._left_behind if self._left_behind.active else self._ladder
        if self._asked == KILL:
            if self._after:
                self._after.give_up()
            ladder.kill_now(now)
        elif not ladder.active and not (self._after and self._after.runs):
            ladder.begin(now, self._stop_signal(), self._grace_s())

    def _after_stop(self, now: float) -> None:
        what, command_id = self._asked or STOP, self._command_id
        self._asked = self._command_id = ""
        if what in (START, RESTART, ANEW):
            if what != RESTART:
                self.state.values["restarts"] = 0
            self._start(now, ASKED[what])
            if self.settled:
                self.state.result(command_id, "failed", AWAITS_LEASE)
            elif self._lacks_room:
                self.state.result(command_id, "failed", f"it is stopped; {self.state.values['reason']}")
            else:
                self.state.result(command_id, "done", f"attempt {self.state.values['attempt']} started")
            return
        reason = self._why(what)
        if self._ladder.killed and what != KILL:
            reason += f"; it did not end within {restart.duration_in_words(self._grace_s())}"
        if self._ending:
            reason += f": {restart.describe(self._ending)}"
        reason, self._remarks = reason + self._remarks, ""
        self._settle(states.STOPPED, reason, held=what in (STOP, KILL))
        self.state.result(command_id, "done", reason)


def _is_stop(wanted: dict[str, object]) -> bool:
    return wanted.get("desired") in NOT_TO_RUN


def _as_wanted(assignment: dict[str, object], wanted: dict[str, object]) -> dict[str, object]:
    """`assignment` of spec.json, overruled by a newer wish that it does not run. What is to run, only the file says."""
    newer = (whole(wanted, "epoch"), whole(wanted, "generation")) > (
        whole(assignment, "epoch"),
        whole(assignment, "generation"),
    )
    if not newer or not _is_stop(wanted):
        return assignment
    return {**assignment, **{key: wanted[key] for key in ("desired", "generation", "epoch")}}
