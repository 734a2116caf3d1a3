"""The requests to a runner: spec.json, read with defaults (its agent may be older or newer), and requested
starts and stops with the reason of the resulting state. Pure.
"""

from __future__ import annotations

from remote_agent.protocol.reasons import because
from remote_agent.runner import restart
from remote_agent.runner.restart import RestartRules
from remote_agent.runner.state import whole

DEFAULT_GRACE_S = 10.0
NOT_TO_RUN = ("stopped", "removed")

Hook = dict[str, object]  # {"argv", "shown", "timeout_s"}, as agent/spec_file.py resolved it

# What follows the end of the process tree: a start (AFRESH: regardless of the reason of the stop), or `stopped`.
START, RESTART, NEW_EPOCH, AFRESH = STARTS = "start", "restart", "new_epoch", "afresh"
STOP, KILL, TERMINATE, FENCE = "stop", "kill", "terminate", "fence"
ASKED = {what: because(f"asked.{what}") for what in (*STARTS, STOP, KILL, TERMINATE, FENCE)}


class TaskAssignment:
    """`values`: the content of spec.json; never changed."""

    def __init__(self, values: dict[str, object]) -> None:
        self.values = values
        self.generation = whole(values, "generation")
        self.epoch = whole(values, "epoch")
        self.attempt_base = whole(values, "attempt_base")
        self.wanted = values.get("desired") == "running"
        self.gang = bool(values.get("gang"))

    def overruled(self, request: dict[str, object]) -> TaskAssignment:
        """A copy with `request`, a newer "desired" other than running. Only the file can request a start."""
        newer = (whole(request, "epoch"), whole(request, "generation")) > (self.epoch, self.generation)
        if not newer or not stops(request):
            return self
        return TaskAssignment({**self.values, **{key: request[key] for key in ("desired", "generation", "epoch")}})

    @property
    def spec(self) -> dict[str, object]:
        return _object(self.values.get("spec"))

    @property
    def start(self) -> dict[str, object]:
        """Parts of a start besides the command; usually empty."""
        return _object(self.values.get("start"))

    @property
    def container(self) -> dict[str, object] | None:
        """The container's settings; None: the command runs directly."""
        found = self.start.get("container")
        return found if isinstance(found, dict) else None

    def hooks(self, kind: str) -> list[Hook]:
        """`kind`: "pre_start" or "post_stop"."""
        found = self.start.get(kind)
        return found if isinstance(found, list) else []

    @property
    def max_run_s(self) -> float | None:
        """The time limit of an attempt in seconds; None: unlimited."""
        limit = self.spec.get("max_run_s")
        is_time = isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit > 0
        return float(limit) if is_time else None  # type: ignore[arg-type]

    @property
    def causes(self) -> dict[str, str]:
        """User-defined causes of failures: name -> pattern of a last log line."""
        return {word: str(expression) for word, expression in _object(self.values.get("causes")).items()}

    def policy(self) -> RestartRules:
        values = self.spec.get("restart")
        policy = RestartRules(values if isinstance(values, dict) else None)
        if self.spec.get("oneshot") and policy.policy == "always":
            policy.policy = "on-failure"  # run to completion: exit code 0 ends the worker
        policy.gang = self.gang
        return policy

    @property
    def stop_signal(self) -> int:
        return restart.signal_number(str(self.spec.get("stop_signal") or "TERM"))

    @property
    def grace_s(self) -> float:
        grace = self.spec.get("stop_grace_s")
        return float(grace) if isinstance(grace, (int, float)) and grace >= 0 else DEFAULT_GRACE_S


def stops(request: dict[str, object]) -> bool:
    return request.get("desired") in NOT_TO_RUN


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
