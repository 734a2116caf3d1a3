"""The post_stop hooks of an attempt that has ended, run in sequence with a time limit each, whatever their result.

Owns which hook is running. Knows no states: task/task_runner.py calls `step` once the attempt's tree has ended, passes
the wait status of `pid`, and kills overdue hooks. (pre_start hooks are part of the attempt; see attempt.go_on.)
"""

from __future__ import annotations

import os

from remote_agent.protocol import reasons
from remote_agent.protocol.reasons import Reason, because, of_exception
from remote_agent.runner import launch as child
from remote_agent.runner.task.assignment import Hook

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Callable


class PostStop:
    def __init__(self, hooks: list[Hook], launch: Callable[[Hook], child.Launch]) -> None:
        self.pid = 0  # the pid of the running hook
        self.until = 0.0  # the deadline of the hook
        self.problems: list[str] = []
        self.done: list[str] = []  # kinds of the hooks that succeeded
        self._left = list(hooks)
        self._launch = launch
        self._current: Hook = {}
        self._word = -1

    @property
    def _kind(self) -> str:
        return str(self._current.get("kind") or "post_stop")

    @property
    def runs(self) -> bool:
        return self.pid != 0

    @property
    def cleans_up(self) -> bool:
        """Whether the running step only removes an ended container, which takes little time and is not part of the
        worker."""
        return self.runs and bool(self._current.get("always"))

    def step(self, now: float) -> bool:
        """Start the next hook; True if none is left. Must not be called while one runs."""
        while self._left:
            self._current = self._left.pop(0)
            try:
                self.pid, self._word = child.start(self._launch(self._current))
            except (child.NotStarted, OSError) as exc:
                self.problems.append(because("hook.not_run", hook=self._kind, why=of_exception(exc)))
                continue
            self.until = now + timeout_s(self._current)
            return False
        return True

    def ended(self, wait_status: int) -> None:
        self.pid = 0
        if self._word >= 0:
            os.close(self._word)
        if wait_status == 0:
            self.done.append(self._kind)
        elif self.problems[-1:] != [self._overdue()]:
            self.problems.append(failure(self._kind, self._current, wait_status))

    def out_of_time(self) -> None:
        """Mark the hook as terminated at its deadline."""
        if self._overdue() not in self.problems:
            self.problems.append(self._overdue())

    def out_of_lease(self) -> None:
        """The worker's lease and grace period have ended: skip the remaining hooks."""
        left = [hook for hook in self._left if not hook.get("always")]
        self.give_up()
        if left or (self.runs and not self.cleans_up):
            self.problems.append(because("hook.no_lease"))

    def give_up(self) -> None:
        """Skip the remaining hooks, for an immediate stop, except the removal of a container."""
        self._left = [hook for hook in self._left if hook.get("always")]

    def _overdue(self) -> Reason:
        return overdue(self._kind, self._current)


def timeout_s(hook: Hook) -> float:
    return float(str(hook.get("timeout_s") or 0))


def failure(kind: str, hook: Hook, wait_status: int) -> Reason:
    """'pre_start failed with exit code 3: rsync -a /data /scratch'"""
    command = reasons.read(hook, "shown")
    if os.WIFSIGNALED(wait_status):
        return because("hook.signal", hook=kind, signal=os.WTERMSIG(wait_status), command=command)
    return because("hook.code", hook=kind, code=os.WEXITSTATUS(wait_status), command=command)


def overdue(kind: str, hook: Hook) -> Reason:
    return because("hook.overdue", hook=kind, limit_s=timeout_s(hook), command=reasons.read(hook, "shown"))
