"""The state of one worker in its runner: the only place that changes it and notifies others.

`values` is state.json. Every change of state is checked against states.TRANSITIONS, recorded as an event with a
readable reason, written to disk and sent to the connected agents. Decides nothing.
"""

from __future__ import annotations

import os
import time

from remote_agent.protocol import reasons, states
from remote_agent.protocol.reasons import Reason
from remote_agent.protocol.reasons import fields as reason_fields
from remote_agent.runner import restart
from remote_agent.runner.record import WorkerFiles
from remote_agent.runner.restart import Ending
from remote_agent.system import paths, processes

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Callable

    from remote_agent.runner.failure_causes.proof import ProvenCause

STATE_VERSION = 1
KEEP_RESULTS = 20


class WorkerState:
    def __init__(self, record: WorkerFiles, send: Callable[[dict[str, object]], None]) -> None:
        self.record = record
        self._unwritten_exits: list[dict[str, object]] = []
        self.results: list[dict[str, object]] = []  # the last results of commands, for an agent that reconnects
        self._send = send
        self.values: dict[str, object] = {
            "v": STATE_VERSION,
            "worker_id": "",
            "state": states.STOPPED,
            "generation": 0,
            "epoch": 0,
            "attempt": 0,
            "since": time.time(),
            "restarts": 0,
            "restarts_total": 0,
            "progress": None,  # the highest value of the metric in restart.progress, in this generation
            "reason": "",
            "reason_code": "",
            "reason_params": {},
            "last_exit": None,
            "event_seq": 0,
            "writes": 0,  # number of this state across all runners; identifies the newer of two copies
            "over_time": 0,  # the attempt that reached max_run_s; the agent collects evidence before it is ended
            "held": False,  # stopped by an operator: only a new generation starts it
            # A runner is active. If this is set without a runner, a child may be alive regardless of `state`.
            "in_hand": False,
            # Whether live processes depend on a lease, and the newest one at the last change, for this boot only.
            "fenced": False,
            "lease_epoch": 0,
            "lease_until_ns": 0,
            "cookie": os.urandom(16).hex(),
            "cgroup": "",
        }

    def take_over(self, former: dict[str, object], worker_id: str, boot: str) -> None:
        """Continue from a previous runner's state.json ({}: none), as this process.

        All runners of a worker use the same cookie, so that processes left by any of them are found.
        """
        own = processes.read_process(os.getpid())
        self.values.update({name: former[name] for name in self.values if former.get(name) is not None})
        self.values.update(
            v=STATE_VERSION,
            worker_id=worker_id,
            pid=None,
            pid_start=None,
            launch_digest="",
            next_start_at=None,
            boot_id=boot,
            runner_pid=os.getpid(),
            runner_start=own.start if own else 0,
            attempt=max([whole(former, "attempt"), *paths.attempts_on_disk(self.record.worker_dir)]),
        )

    def become(self, state: str, reason: Reason, ended: bool = False) -> None:
        """Change the state. `ended`: the event carries how the last attempt ended."""
        before = str(self.values["state"])
        states.check(before, state)
        self._write_exits()
        at = time.time()
        event: dict[str, object] = {
            "worker_id": self.values["worker_id"],
            "seq": self.record.next_seq(),
            "at": at,
            "attempt": self.values["attempt"],
            "before": before,
            "after": state,
            **reason_fields("reason", reason),
            "exit": self.values["last_exit"] if ended else None,
        }
        self.values.update(state=state, since=at, event_seq=event["seq"])
        self.note_reason(reason)
        self.record.append_event(event)
        self._send({"type": "event", **event})
        self.publish()

    def say(self, reason: Reason) -> None:
        """Change the reason without changing the state."""
        if self.values["reason"] != reason:
            self.note_reason(reason)
            self.publish()

    def note_reason(self, reason: Reason) -> None:
        self.values.update(reason_fields("reason", reason))

    @property
    def reason(self) -> Reason:
        return reasons.read(self.values)

    def publish(self) -> None:
        self.write()
        self._send(self.message())

    def write(self) -> None:
        self._write_exits()
        self.values["writes"] = whole(self.values, "writes") + 1
        self.record.write_state(self.values)

    def write_again(self) -> None:
        """Retry refused writes. The state is reported again once all have succeeded, because `problem` is then
        empty."""
        self.record.write_again()
        self.write()
        if not self.record.problem:
            self.record.sync()
            self._send(self.message())

    def message(self) -> dict[str, object]:
        """state.json as a message; `problem`: why it cannot be written, or ""."""
        return {"type": "status", **self.values, **reason_fields("problem", self.record.problem)}

    def result(self, command_id: str, status: str, message: Reason) -> None:
        """Answer a command, if there was one."""
        if not command_id:
            return
        answer = reason_fields("message", message)
        result: dict[str, object] = {"type": "result", "id": command_id, "status": status, **answer}
        self.results = [*self.results, result][-KEEP_RESULTS:]
        self._send(result)

    def note_exit(self, number: int, ending: Ending, failure: str = "", found: ProvenCause | None = None) -> None:
        """Record how attempt `number` ended. Written before it is reported; the next start does not wait for it."""
        record: dict[str, object] = {
            "attempt": number,
            "code": ending.code,
            "signal": ending.signal,
            "oom": ending.oom,
            "at": time.time(),
            "duration_s": round(ending.ran_s, 3),
            **reason_fields("reason", failure or restart.describe(ending)),
            "cause": ending.cause or ending.failure,
            **reason_fields("detail", ending.detail),
        }
        if found is not None and found.line:
            record.update(line=found.line, line_stream=found.stream, line_offset=found.offset)
        self.values["last_exit"] = record
        self._unwritten_exits.append(record)

    def note_left(self, count: int, names: list[str]) -> None:
        """Record the processes that the attempt left behind and that are terminated."""
        last = self.values["last_exit"]
        if isinstance(last, dict):
            last.update(left=count, left_names=names)

    def _write_exits(self) -> None:
        while self._unwritten_exits:
            self.record.write_exit(self._unwritten_exits.pop(0))


def whole(values: dict[str, object], key: str) -> int:
    value = values.get(key)
    return int(value) if isinstance(value, (int, float)) else 0
