"""The processes of one worker: starts those of an attempt, reaps the dead, finds the living, kills all at once.

Owns the worker's control group and its limits. Decides nothing and stores no state of the worker.
"""

from __future__ import annotations

import errno
import os

from remote_agent.protocol import reasons
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.runner import launch as child
from remote_agent.runner.attempt import Attempt, build_launch
from remote_agent.runner.record import WorkerFiles
from remote_agent.runner.restart import Ending
from remote_agent.runner.task.assignment import Hook, TaskAssignment
from remote_agent.system import processes
from remote_agent.system.cgroup import WorkerGroup
from remote_agent.system.oom import OomCounter
from remote_agent.system.processes import Identity

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_agent.runner import hooks
    from remote_agent.runner.task.container_job import Job
    from remote_agent.runner.task.pid_namespace import PidNamespace
    from remote_agent.runner.terminal import Terminal

# Why a start failed: only an operator can help; the host's disk refuses the log; a retry may help.
HOPELESS, NO_ROOM, AGAIN = "hopeless", "no_room", "again"
NO_ROOM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class StartFailed(Exception):
    """`kind`: HOPELESS, NO_ROOM or AGAIN."""

    def __init__(self, kind: str, why: Reason) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class WorkerProcesses:
    """`cookie`: in the environment of every process started here. `group`: the control group of a previous runner.
    `former`: the process that it started in this boot; `in_container`: the first process of a container. `seen`: the
    processes that the agent observed below that runner."""

    def __init__(
        self,
        record: WorkerFiles,
        cookie: str,
        group: str = "",
        former: Identity | None = None,
        seen: Iterable[Identity] = (),
        in_container: bool = False,
    ) -> None:
        self.not_enforced: Reason = NONE  # the limits that this host cannot enforce, for the reason of the state
        self.dies_with_runner = False  # for the next start: the worker is fenced
        self._record, self._cookie = record, cookie
        self._group = WorkerGroup(cookie, group)
        self._former, self._seen = former, list(seen)
        self._group_limits: dict[str, float | None] = {}  # limits in force, or tried
        self._ooms = OomCounter()
        self._job: Job | None = None  # of a container that runs below this runner
        self._in_container = in_container
        self._namespace: PidNamespace | None = None  # set for a fenced container
        self._post_stop: hooks.PostStop | None = None  # runs after the last attempt
        self._terminal: Terminal | None = None  # of an attempt with `tty`, until none of its processes is left
        self._died: dict[int, int] | None = None  # while a container starts, its conmon may be among them

    @property
    def group(self) -> str:
        return self._group.path

    # ----------------------------------------------------------------------------------------------- starting

    def start(self, assignment: TaskAssignment, number: int, now: float) -> Attempt:
        """Start the first process of attempt `number`: a pre_start hook or the command. Raises StartFailed."""
        before, self._job, self._died = assignment.hooks("pre_start"), None, None
        joins_first = True
        try:
            if assignment.container is not None:
                from remote_agent.runner.task import container

                removed = self._post_stop is not None and container.REMOVE in self._post_stop.done
                before = [*before, *container.steps(assignment.container, number, removed)]
                self._died = {}
                joins_first = before[0].get("kind") != container.RUN
            launch = self._build(assignment, number, before[0] if before else None)
            if joins_first:
                self._group.join()
            self._limit_group(assignment)
            attempt = Attempt(number, launch, str(assignment.values.get("launch_digest", "")), now, self._ooms, before)
            self._terminal = launch.terminal
            return attempt
        except child.NotStarted as exc:
            self.end_helpers()
            raise StartFailed(HOPELESS, reasons.of_exception(exc)) from exc
        except OSError as exc:
            self.end_helpers()
            raise StartFailed(NO_ROOM if exc.errno in NO_ROOM_ERRORS else AGAIN, _why_failed(exc)) from exc

    def join_group(self) -> None:
        """Called once the start is recorded: with podman, the runner has not joined its control group yet. OOM kills of
        podman's client are counted in the group above, which includes this one."""
        self._group.join_with_descendants()

    def start_next(self, assignment: TaskAssignment, attempt: Attempt, now: float) -> bool:
        """Start the next pre_start hook or the command. False if that failed; `attempt` has the reason."""
        attempt.hooks.pop(0)
        if not attempt.hooks and assignment.container is not None:
            from remote_agent.runner.task import container_job

            self._job = container_job.adopt(attempt, self._record.worker_dir)
            # It may have ended already: then the next `collect` reports it.
            self._died = {pid: status for pid, status in (self._died or {}).items() if pid == attempt.pid}
            return self._job is not None
        try:
            attempt.go_on(self._build(assignment, attempt.number, attempt.hook), now)
            self._terminal = attempt.launch.terminal
        except child.NotStarted as exc:
            attempt.failure = reasons.of_exception(exc)
        except OSError as exc:
            attempt.cause, attempt.detail = "start_timeout", _why_failed(exc)
        return not attempt.failure and not attempt.cause

    @staticmethod
    def hook_overdue(hook: Hook) -> Reason:
        from remote_agent.runner import hooks

        return hooks.overdue(str(hook.get("kind") or "pre_start"), hook)

    @staticmethod
    def hook_failure(hook: Hook, wait_status: int) -> Reason:
        from remote_agent.runner import hooks

        return hooks.failure(str(hook.get("kind") or "pre_start"), hook, wait_status)

    def post_stop(self, assignment: TaskAssignment, number: int, ending: Ending) -> hooks.PostStop | None:
        """The post_stop hooks to run after attempt `number`; None if there are none."""
        wanted = assignment.hooks("post_stop")
        if assignment.container is not None:
            from remote_agent.runner.task import container

            wanted = [container.remove_step(), *wanted]
        if not wanted or not number:
            return None
        from remote_agent.runner import hooks

        def launch(hook: Hook) -> child.Launch:
            built = self._build(assignment, number, hook)
            built.env["PROCGUARD_EXIT_CODE"] = "" if ending.code is None else str(ending.code)
            built.env["PROCGUARD_EXIT_SIGNAL"] = "" if ending.signal is None else str(ending.signal)
            return built

        self._post_stop = hooks.PostStop(wanted, launch)
        return self._post_stop

    def _build(self, assignment: TaskAssignment, number: int, hook: Hook | None = None) -> child.Launch:
        record = self._record
        base_env = record.read_base_env()
        if hook and hook.get("kind"):
            from remote_agent.runner.task import container

            launch = container.build(hook, assignment, base_env, number, self._cookie, record.worker_dir)
            if hook["kind"] == container.RUN and self.dies_with_runner:
                container.join(launch, self._make_namespace(number))
            return launch
        launch = build_launch(assignment.values, base_env, number, self._cookie, record.worker_dir, hook)
        launch.dies_with_runner = self.dies_with_runner
        return launch

    def _make_namespace(self, number: int) -> str:
        """Create the pid namespace for a fenced container and return its path."""
        from remote_agent.runner.task.pid_namespace import PidNamespace

        try:
            self._namespace = PidNamespace(f"{self._cookie}-{number}")
        except OSError as exc:
            raise child.NotStarted(because("start.pid_namespace", error=exc.strerror or str(exc))) from exc
        return self._namespace.path

    def end_helpers(self) -> None:
        """End all remaining processes of a container: those in its pid namespace, and podman's pause process."""
        if self._namespace is not None:
            self._namespace.end()
            self._namespace = None
        if self._in_container and os.geteuid() != 0:
            from remote_agent.runner.task import container_job

            container_job.end_pause(self._record.read_base_env())

    def _limit_group(self, assignment: TaskAssignment) -> None:
        wanted = assignment.start.get("group_limits")
        if not wanted and not self._group_limits:
            return
        from remote_agent.system import group_limits

        limits = dict(wanted) if isinstance(wanted, dict) else {}
        problem = group_limits.enforce(self._group.path, {**dict.fromkeys(self._group_limits), **limits})
        self._group_limits = limits
        self.not_enforced = problem

    # ------------------------------------------------------------------------------------------ finding, ending

    def collect(self) -> tuple[dict[int, int], bool]:
        """(pid -> wait status of every child that has died, including adopted ones; whether no child is left). With no
        child left the tree is gone, because orphans become children of the subreaper before their parent is reaped."""
        dead: dict[int, int] = {}
        if self._job:
            self._job.check()
        if self._died and self._job:
            dead, self._died = self._died, None
        settled = False
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._finish_terminal()
                return dead, True
            if pid == 0:
                if self._terminal is None:
                    return dead, False
                if settled or not dead:
                    self._terminal.revive()
                    return dead, False
                settled = True
                if self._terminal.settle():  # its last lines are read next
                    continue
                pid, wait_status = os.waitpid(self._terminal.keeper, 0)  # it is ending
            if self._terminal is not None:
                self._terminal.ended(pid)
            dead[pid] = wait_status
            if self._died is not None and not self._job:
                self._died[pid] = wait_status

    @property
    def due_in_s(self) -> float:
        """Seconds until `collect` has something to do even if nothing happens."""
        return self._terminal.revive_in_s if self._terminal else float("inf")

    def _finish_terminal(self) -> None:
        if self._terminal is not None:
            self._terminal.finish()
            self._terminal = None

    def members(self) -> list[Identity]:
        """All live processes below this runner, except the keeper of its terminal, which ends after them."""
        keeper = self._terminal.keeper if self._terminal else 0
        return [one for one in processes.members_below(os.getpid()) if one.pid != keeper]

    def to_ask(self) -> list[Identity]:
        """The members that receive the stop signal."""
        job, namespace = self._job, self._namespace
        members = self.members()
        if namespace is not None:  # ending the holder would end everything inside
            members = [one for one in members if one.pid != namespace.holder.pid]
        if job is None:
            return members
        from remote_agent.runner.task import container_job

        inside = container_job.members_of(job.first)
        if namespace is not None:
            inside += [one for one in namespace.members() if one not in inside]
        return inside or members

    def left_behind_to_ask(self) -> list[Identity]:
        """The processes of previous runners that receive the stop signal."""
        if self._former is None or not self._in_container:
            return self.left_behind()
        from remote_agent.runner.task import container_job

        return container_job.members_of(self._former) or self.left_behind()

    def left_behind(self) -> list[Identity]:
        """All live processes of previous runners."""
        return processes.members_left_behind(self._former, self._cookie, self._group.members(), self._seen)

    def kill_group(self) -> None:
        self._group.kill()
        if self._terminal is not None:
            self._terminal.kill()

    def close(self) -> None:
        """Remove the control group; nothing may be started afterwards."""
        self._group.remove()

    @property
    def job_fd(self) -> int:
        """A descriptor that becomes readable when a container's first process has ended; -1 if there is none."""
        return self._job.fd if self._job else -1


def _why_failed(exc: OSError) -> Reason:
    if exc.filename:
        return because("start.failed_file", error=exc.strerror or str(exc), path=str(exc.filename))
    return because("start.failed", error=exc.strerror or str(exc))
