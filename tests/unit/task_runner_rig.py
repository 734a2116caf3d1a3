"""A rig: one worker, the real TaskRunner, decider and table; the processes, clocks and files of its host are made up.

Time passes only when a test says so, a runner can be killed between any two of its writes, and a child that is started
while another process of the worker lives, or without the lease that it needs, is detected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from remote_agent.agent import leases
from remote_agent.agent.leases import LeaseHolder
from remote_agent.protocol import states
from remote_agent.protocol.messages import Lease
from remote_agent.runner import attempt, restart
from remote_agent.runner import launch as child
from remote_agent.runner.record import WorkerFiles
from remote_agent.runner.task import operations, takeover
from remote_agent.runner.task.assignment import ASKED, RESTART
from remote_agent.runner.task.task_runner import TaskRunner
from remote_agent.system import paths, processes
from remote_agent.system.cgroup import WorkerGroup
from remote_agent.system.processes import Identity, StatLine

TERM, KILL, CONT = 15, 9, 18
GRACE_S = 5.0
AGENT_START_S, BOOT_S = 0.1, 1.0
NEW_EPOCH = "restarted by the manager under a new epoch"
OPERATORS_STARTS = (
    "started",
    "started by an operator",
    "restarted by an operator",
    NEW_EPOCH,
)  # the budget is not theirs


class Grant(NamedTuple):
    """What the manager answered to a heartbeat that left at `asked`."""

    asked: float
    epoch: int
    until: float


class RunnerKilled(BaseException):
    """SIGKILL to the runner: nothing of it catches this."""


class Record(WorkerFiles):
    """The worker's files as they are after each write; the runner may die before any of them."""

    def __init__(self, host: TaskRunnerRig) -> None:
        self.worker_dir = "/simulated"
        self.kept = True
        self._failed = {}
        self.host = host

    def read_state(self) -> dict[str, object]:
        return dict(self.host.state)

    def read_spec(self) -> dict[str, object]:
        return dict(self.host.spec)

    def read_base_env(self) -> dict[str, str]:
        return {"PATH": "/bin"}

    def read_exit(self, number: int) -> dict[str, object] | None:
        return self.host.exits.get(number)

    def next_seq(self) -> int:
        self.host.seq += 1
        return self.host.seq

    def write_exit(self, record: dict[str, object]) -> None:
        self.host.writing()
        self.host.exits[int(str(record["attempt"]))] = record

    def write_state(self, state: dict[str, object]) -> None:
        self.host.writing()
        self.host.state = dict(state)

    def append_event(self, event: dict[str, object]) -> None:
        self.host.writing()
        self.host.take_event(event)

    def flush_events(self) -> None:
        pass

    def sync(self) -> None:
        self.host.writing()


class TaskRunnerRig:
    """`start_runner`, `advance`, `order…`: as an agent; `end_child`, `leave_behind`: as the job."""

    def __init__(
        self, policy: dict[str, object], hooks: tuple[str, ...] = (), lease_s: float | None = None, gang: bool = False
    ) -> None:
        """`hooks`: of "pre_start" and "post_stop"; each is one process that may fail, hang or leave daemons too.
        `lease_s`: it is fenced."""
        self.boot = "first boot"
        self.granted = LeaseHolder()  # the agent's
        self.agent_since = 0.0
        self.grants: list[Grant] = []  # all that the manager ever answered, in this boot
        self.settled_at = 0.0  # when all that ran had ended, for the last time
        self.always_fenced = lease_s is not None
        self.launched: list[int] = []  # generations of a gang's member that were started
        self.now, self.wall = 1000.0, 1_700_000_000.0
        self.policy = restart.RestartRules(policy)
        self.spec: dict[str, object] = {
            "worker_id": "w", "desired": "running", "generation": 1, "epoch": 1, "argv": ["job"], "cwd": "/",
            "spec": {"restart": policy, "stop_grace_s": GRACE_S, "env": {}}, "lease_s": lease_s, "gang": gang,
        }  # fmt: skip
        if hooks:
            self.spec["start"] = {kind: [{"argv": [kind], "shown": kind, "timeout_s": 8.0}] for kind in hooks}
        self.state: dict[str, object] = {}
        self.exits: dict[int, dict[str, object]] = {}
        self.seq = 0
        self.events: list[dict[str, Any]] = []
        self.alive: dict[int, bool] = {}  # pid -> it ignores SIGTERM
        self.die_with_runner: set[int] = set()
        self.dead: list[tuple[int, int]] = []  # (pid, wait status), not yet collected
        self.child_pid, self.child_started = 0, 0.0
        self.attempts: list[int] = []
        self.jobs: list[int] = []  # those of which the command itself was started
        self.next_pid = 100
        self.next_start_fails: Exception | None = None
        self.stubborn = False  # the next child ignores SIGTERM
        self.writes_left: int | None = None
        self.torn = 0  # runners killed between two writes: what they had counted is lost
        self.automatic = 0  # restarts by policy since the budget was given back, counted from the events alone
        self.runner: TaskRunner | None = None

    # --------------------------------------------------------------------------------------------- the patched world

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for target, name, value in (
                (child, "start", self._start_child),
                (attempt.OomCounter, "read", lambda _self: 0),
                (processes, "boot_id", lambda: self.boot),
                (leases, "boot_id", lambda: self.boot),
                (leases, "boottime_ns", lambda: int(self.now * 1e9)),
                (processes, "members_below", lambda _pid: self._members()),
                (processes, "members_left_behind", lambda *_: self._members()),
                (processes, "signal_all", self._signal_all),
                (processes, "read_process", lambda pid: StatLine(pid, 1, pid, "S", pid)),
                (WorkerGroup, "_make", lambda _self: ""),
                (paths, "attempts_on_disk", lambda _directory: sorted(self.attempts)),
            ):
                stack.enter_context(mock.patch.object(target, name, value))
            stack.enter_context(mock.patch("time.time", lambda: self.wall))
            stack.enter_context(mock.patch("os.waitpid", self._waitpid))
            stack.enter_context(mock.patch("remote_agent.runner.task.task_runner.now_s", lambda: self.now))
            yield

    def _start_child(self, launch: child.Launch, *_: object) -> tuple[int, int]:
        # What pre_start leaves running (a tunnel, say) is of the same attempt.
        hooked = launch.argv[0] == "job" and "pre_start" in (self.spec.get("start") or {})  # type: ignore[operator]
        assert hooked or not self.alive, "a child is started while something of the worker still lives"
        number = int(launch.env["PROCGUARD_ATTEMPT"])
        self._check_order(launch.argv[0], number)
        self._check_lease(launch, hooked)
        failure, self.next_start_fails = self.next_start_fails, None
        if failure is not None:
            raise failure
        self.next_pid += 1
        self.child_pid, self.child_started = self.next_pid, self.now
        self.alive[self.child_pid] = self.stubborn
        if launch.dies_with_runner:
            self.die_with_runner.add(self.child_pid)
        return self.child_pid, -1

    def _check_lease(self, launch: child.Launch, hooked: bool) -> None:
        """A fenced worker starts by a lease of its epoch that was asked for after all that ran had ended. What belongs
        to an attempt that runs (its command after pre_start, post_stop) has the time that leases and grace leave."""
        if self.spec["lease_s"] is None:
            return
        assert launch.dies_with_runner
        if launch.argv[0] == "post_stop":
            assert not self.always_fenced or self.now <= self.right_until() + GRACE_S
        elif hooked and launch.argv[0] == "job":
            assert not self.always_fenced or self.now < self.right_until()
        else:
            epoch = int(launch.env["PROCGUARD_EPOCH"])
            good = [one for one in self.grants if one.epoch == epoch and one.until > self.now]
            assert any(one.asked > self.settled_at for one in good), "started without a lease"

    def right_until(self) -> float:
        """Until when the manager lets anything of the worker run here."""
        return max((one.until for one in self.grants), default=0.0)

    def _check_order(self, what: str, number: int) -> None:
        """Attempts only rise; within one: pre_start, the command once, post_stop."""
        newest = max(self.attempts, default=0)
        if what == "post_stop":
            assert number == newest, "post_stop belongs to the attempt that ended"
            return
        begun = "pre_start" in (self.spec.get("start") or {}) and what == "job"  # type: ignore[operator]
        assert number == newest if begun else number > newest, f"{what} of attempt {number} after {newest}"
        assert number not in self.jobs, "a command is started once an attempt"
        if not begun:
            self.attempts.append(number)
        if what == "job":
            self.jobs.append(number)

    def _members(self) -> list[Identity]:
        return [Identity(pid, pid, self.boot) for pid in self.alive]

    def _signal_all(self, members: list[Identity], number: int) -> int:
        reached = [member.pid for member in members if member.pid in self.alive]
        for pid in reached:
            if number == KILL or (number == TERM and not self.alive[pid]):
                del self.alive[pid]
                self.dead.append((pid, number))
        return len(reached)

    def _waitpid(self, _pid: int, _flags: int) -> tuple[int, int]:
        if self.dead:
            return self.dead.pop(0)
        if not self.alive:
            raise ChildProcessError
        return 0, 0

    def writing(self) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                self.torn += 1
                raise RunnerKilled
            self.writes_left -= 1

    def take_event(self, event: dict[str, Any]) -> None:
        before, after, reason = event["before"], event["after"], str(event["reason"])
        start = reason.partition("; post_stop")[0]
        assert after in states.TRANSITIONS[before], f"{before} -> {after}"
        if self.events:
            torn = self.events[-1]["after"] != before
            assert not torn or self.torn, "events tell one unbroken story, unless a runner was killed between writes"
            assert event["seq"] > self.events[-1]["seq"]
        ended = event["exit"]
        if ended is not None and float(ended["duration_s"]) >= self.policy.healthy_after_s:
            self.automatic = 0
        if (before, after) == (states.STOPPED, states.STARTING) and self.spec["lease_s"] is None:
            self.automatic = 0  # a stop without any lease came to its end: by a person, or a shutdown
        if after == states.STARTING and self.spec["gang"]:
            generation = int(str(self.runner.task.state.values["generation"])) if self.runner else 0
            asked = start in OPERATORS_STARTS[2:] or generation not in self.launched
            assert asked or self.torn, "a member of a gang restarted alone"
            self.launched.append(generation)
        if after == states.STOPPING and reason == ASKED[RESTART] and self.runner:
            # Whichever runner starts it after that, it was asked for.
            generation = int(str(self.runner.task.state.values["generation"]))
            self.launched = [one for one in self.launched if one != generation]
        # An attempt of policy "always" that ended well while it ran is no recovery: it spends nothing.
        why = str(self.events[-1]["reason"]) if before == states.BACKOFF and self.events else reason
        if after == states.STARTING and start not in OPERATORS_STARTS and "policy always" not in why:
            self.automatic += 1
        self.events.append(event)

    # ------------------------------------------------------------------------------------------------ as the agent

    def _run(self, action: Any) -> None:
        """Whatever the runner does may be its last act."""
        try:
            action()
        except RunnerKilled:
            self.kill_runner()
        self.writes_left = None
        if self.runner is not None and self.runner.task.finished:
            assert not self.alive, "a settled worker has no process left"
            assert self.state["state"] in states.SETTLED
            self.runner = None
            self.settled_at = self.now
        self.granted.heed(self.state)

    def _assignment(self) -> Any:
        return SimpleNamespace(**{name: self.spec[name] for name in ("epoch", "lease_s")})

    def converge(self) -> None:
        """Start a runner where one is needed, as slot.needs_runner says."""
        unleased = not self.granted.may_start(self._assignment())
        if self.runner is None and restart.needs_runner({**self.spec, "unleased": unleased}, self.state):
            lease = self.granted.now(self._assignment()) or (0, 0)
            self.runner = TaskRunner(Record(self), lambda _message: None)
            self._run(lambda: self.runner and takeover.begin(self.runner, self.now, lease))

    def advance(self) -> None:
        if self.runner is not None:
            self._run(lambda: self.runner and self.runner.advance(self.now))

    def operate(self, message: dict[str, object]) -> None:
        if self.runner is not None:
            self._run(lambda: self.runner and operations.operate(self.runner, message, self.now))

    def order(self, desired: str) -> None:
        """An operator's start or stop: a new generation."""
        self.spec = {**self.spec, "desired": desired, "generation": int(str(self.spec["generation"])) + 1}
        if desired == "running":
            self.automatic = 0
        self.operate({"op": "assign"})

    def terminate_runner(self) -> None:
        if self.runner is not None:
            self._run(lambda: self.runner and operations.terminate(self.runner, self.now))

    def kill_runner(self) -> None:
        self.runner = None
        for pid in self.die_with_runner & set(self.alive):
            del self.alive[pid]  # by the kernel
        self.dead.clear()  # init collects them

    def agent_dies(self, back_after_s: float = AGENT_START_S) -> None:
        """The next one knows what the files say, and hears no answer to what the former one asked."""
        self.pass_time(back_after_s, agent=False)
        self.agent_since = self.now
        self.granted = LeaseHolder()
        self.granted.heed(self.state)

    def reboot(self) -> None:
        self.kill_runner()
        self.alive.clear()
        self.boot += "'"
        self.grants.clear()
        self.agent_dies(BOOT_S)

    # ---------------------------------------------------------------------------------------------- as the manager

    def grant(self, took_s: float = 0.0, epoch: int | None = None) -> None:
        """The answer to a heartbeat that left `took_s` ago arrives."""
        if self.spec["lease_s"] is None:
            return
        lease_s, asked = float(str(self.spec["lease_s"])), self.now - took_s
        if asked < self.agent_since:
            return  # who asked for it is gone, and its connections with it
        epoch = int(str(self.spec["epoch"])) if epoch is None else epoch
        self.grants.append(Grant(asked, epoch, asked + lease_s))
        until_ns = self.granted.take(Lease("w", epoch, lease_s), int(asked * 1e9))
        if until_ns:
            self.operate({"op": "lease", "epoch": epoch, "until_ns": until_ns})

    def fence(self, lease_s: float | None) -> None:
        """A redeployment that says so."""
        self.always_fenced = False
        self.spec = {**self.spec, "lease_s": lease_s}
        self.operate({"op": "assign"})

    def restart_under_new_epoch(self, with_a_lease: bool) -> None:
        """A new instance on this same host: a higher epoch and generation."""
        epoch = int(str(self.spec["epoch"])) + 1
        self.spec = {**self.spec, "epoch": epoch}
        if with_a_lease:
            self.grant()
        self.order("running")

    # -------------------------------------------------------------------------------------------------- as the job

    def end_child(self, wait_status: int) -> None:
        if self.child_pid in self.alive:
            del self.alive[self.child_pid]
            self.dead.append((self.child_pid, wait_status))

    def leave_behind(self, stubborn: bool) -> None:
        """The child forks a daemon."""
        if self.child_pid in self.alive:
            self.next_pid += 1
            self.alive[self.next_pid] = stubborn

    # ------------------------------------------------------------------------------------------------------- time

    def pass_time(self, seconds: float, *, agent: bool = True) -> None:
        """Step by step through every deadline on the way, as the runner's loop does. `agent`: one looks as often."""
        end = self.now + seconds
        for _ in range(100):
            if agent:
                self.converge()
            due = min(end, max(self.now, self.runner.next_deadline())) if self.runner else end
            self.wall += due - self.now
            self.now = due
            self.advance()
            if self.child_pid in self.alive and self.now - self.child_started >= self.policy.healthy_after_s:
                self.automatic = 0
            if self.now >= end:
                return
        self.wall += end - self.now
        self.now = end
