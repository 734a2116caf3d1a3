"""One worker in its agent: the desired state (Assignment), the actual state (its runner's status), and the steps to
reconcile them.

Owns the files that the agent writes for the runner, the start of the runner and the connection to it. Knows no HTTP.
Only the agent's main loop uses a worker.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time

from remote_agent.agent import spec_file as spec_module
from remote_agent.agent.journal import EventTail
from remote_agent.agent.leases import LeaseHolder
from remote_agent.health.schedule import HealthMonitor
from remote_agent.protocol import reasons
from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.messages import (
    Assignment,
    Command,
    ExitRecord,
    Lease,
    WorkerReport,
    WorkerUsage,
    decode,
    encode,
)
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.protocol.states import ALIVE, BACKOFF, FAILED, RUNNING, SETTLED, STOPPED
from remote_agent.runner import control
from remote_agent.runner.leases import AWAITS_LEASE
from remote_agent.runner.restart import needs_runner
from remote_agent.system import other_fleets, paths, state_files
from remote_agent.system.locks import lock_held
from remote_agent.system.processes import Identity, boot_id, is_alive
from remote_agent.telemetry import gpu_allocator

RUNNER_RETRY_S = (0.0, 0.0, 0.5, 2.0, 5.0, 15.0, 30.0)
CONNECT_AGAIN_S = 0.1
HEARTBEATS_IN_A_LEASE = 4
MAX_SEEN = 1000  # processes that are passed to a new runner
STARTS_IN_VAIN = 3  # after this many failed starts of its runner a worker is failed
_NEXT_STEPS = {
    errno.ENOSPC: because("run.write_space"),
    errno.EDQUOT: because("run.write_quota"),
    errno.EROFS: because("run.write_read_only"),
    errno.EACCES: because("run.write_forbidden"),
}


def runner_needed(assignment: Optional[Assignment], status: dict[str, Any], leased: bool = True) -> bool:
    """Whether a worker without a live runner needs one. Pure. False for workers that are no longer assigned."""
    if assignment is None:
        return False
    spec: dict[str, object] = {
        "desired": assignment.desired,
        "generation": assignment.generation,
        "unleased": not leased,
    }
    return needs_runner(spec, status)


def supersedes(new: Assignment, old: Optional[Assignment]) -> bool:
    """Whether `new` may replace `old`: a late or repeated reply must not restore an older assignment."""
    return old is None or (new.epoch, new.generation) >= (old.epoch, old.generation)


def longest_pause_s(assignments: list[Assignment]) -> float:
    """The longest interval between heartbeats with which a lost heartbeat and a slow one after it end no lease."""
    leases = [one.lease_s for one in assignments if one.lease_s is not None and one.desired == "running"]
    return min(leases, default=float("inf")) / HEARTBEATS_IN_A_LEASE


class WorkerHandle:
    def __init__(self, worker_id: str, directory: str, runtime_dir: str) -> None:
        self.worker_id = worker_id
        self.directory = directory
        self.assignment: Optional[Assignment] = None
        self.status: dict[str, Any] = {}
        self.link: Optional[control.RunnerLink] = None
        self.health = HealthMonitor(worker_id)
        self.usage: Optional[WorkerUsage] = None
        self.suspect: Reason = NONE  # evidence of a hang, from the latest measurement
        self.idle_because = ""  # why an idle CPU is no evidence of a hang
        self.gpus: list[int] = []  # handed to it
        self.gpu_wait: Reason = NONE  # the GPUs that it waits for
        self.cwd = self.home = ""  # its working directory; its user's home, "" for this process's
        self.other_user = False  # it runs as another user than the agent
        self.leases = LeaseHolder()  # its leases, if it is fenced
        self._grant = (0, "")  # the newest known Assignment.grant, with its epoch
        self.events = EventTail(paths.events_file(directory))
        self.trouble: Reason = NONE  # why its runner cannot be started
        self.unwritten: Reason = NONE  # why its files cannot be written
        self.reported = False  # the connected runner has reported its status
        self.waiting: dict[str, Command] = {}  # sent to the runner, no result yet
        self.postponed: list[tuple[Command, float]] = []  # (command, monotonic expiry) until it is connected
        self.drained = False  # desired removed: everything of its log is at the manager
        self.settled_since: Optional[float] = None  # monotonic; desired removed
        self._runtime_dir = runtime_dir
        self.tree: list[tuple[int, int]] = []  # (pid, start) of its processes, as measured while its runner lived
        self._starting: Any = None  # subprocess.Popen of a runner that is about to daemonise
        self._starts_in_vain = 0
        self._next_start = 0.0  # monotonic
        self._next_connect = 0.0
        self._said_bye = False

    # ------------------------------------------------------------------------------------------------ the state

    @property
    def state(self) -> str:
        return str(self.status.get("state") or STOPPED)

    @property
    def attempt(self) -> int:
        return int(self.status.get("attempt") or 0)

    @property
    def reason(self) -> Reason:
        """The reason of the state, including problems of the agent or the runner."""
        if self.gpu_wait and self.idle:
            return self.gpu_wait
        own = reasons.read(self.status)
        return own.then(
            self.gpu_wait,
            self.trouble,
            self.unwritten,
            reasons.read(self.status, "problem"),
            AWAITS_LEASE if self._awaits_lease() and AWAITS_LEASE not in own else NONE,
        )

    @property
    def settled(self) -> bool:
        """Whether nothing runs and no runner exists or is being started."""
        return self.state in SETTLED and self.idle

    @property
    def idle(self) -> bool:
        """Whether no runner exists or is being started."""
        return self.link is None and self._starting is None and not self.runner_alive()

    def read_status(self) -> None:
        """Read state.json, unless the runner has sent a newer status that could not be written."""
        try:
            value = state_files.read(self.directory, self._runtime_dir)
        except (OSError, ValueError):
            return
        if value is not None and state_files.newest_first(value) >= state_files.newest_first(self.status):
            self.status = value
            self.leases.heed(value)

    def read_grant(self) -> None:
        """Read the grant from spec.json, where it remains after the worker was assigned to another agent."""
        try:
            value = paths.read_json(paths.spec_file(self.directory))
        except (OSError, ValueError):
            return
        if isinstance(value, dict) and isinstance(value.get("epoch"), int) and isinstance(value.get("grant"), str):
            self._grant = (value["epoch"], value["grant"])

    def report(self) -> WorkerReport:
        """The report on this worker for the manager."""
        status = self.status
        assignment = self.assignment
        generation, epoch = int(status.get("generation") or 0), int(status.get("epoch") or 0)
        if assignment is not None and assignment.desired != "running" and self.settled:
            # Nothing runs, as desired: this fulfils the assignment, even if nothing was ever started.
            generation, epoch = max(generation, assignment.generation), max(epoch, assignment.epoch)
        # state.json is from an earlier boot: none of its processes exists, but the runner that will report this has not
        # started yet.
        went_down = not self.reported and self.state in ALIVE and status.get("boot_id") != boot_id()
        died = not went_down and self._died_unseen()
        awaits_gpus = bool(self.gpu_wait) and self.idle
        state = BACKOFF if went_down or died or awaits_gpus else self.state
        if self._cannot_start():
            assert assignment is not None
            state, generation = FAILED, assignment.generation
        waits_until = status.get("next_start_at")
        last_exit = status.get("last_exit")
        return WorkerReport(
            worker_id=self.worker_id,
            state=state,  # type: ignore[arg-type]
            generation=generation,
            epoch=epoch,
            attempt=self.attempt,
            pid=None if went_down or died else status.get("pid"),
            since=float(status.get("since") or 0.0),
            restarts=int(status.get("restarts") or 0),
            restarts_total=int(status.get("restarts_total") or 0),
            reason=because("exit.host_down") if went_down else self._why_died() if died else self.reason,
            launch_digest=str(status.get("launch_digest") or ""),
            next_start_in_s=max(0.0, float(waits_until) - time.time()) if waits_until else None,
            last_exit=decode(ExitRecord, last_exit) if isinstance(last_exit, dict) else None,
            usage=self.usage if self.state == RUNNING else None,
            health=self.health.current(),
            suspect=self.suspect if self.state == RUNNING else "",
            idle_because=self.idle_because if self.state == RUNNING else "",
            lease_left_s=self.leases.left_s(assignment, status, went_down or self.state in SETTLED),
            grant=self._grant[1] if self._grant[0] == epoch else "",
        )

    def _died_unseen(self) -> bool:
        """Whether the recorded process and its runner have ended unnoticed and no runner is being started."""
        if self.reported or self.state not in ALIVE or not self.idle:
            return False
        pid, start = self.status.get("pid") or 0, self.status.get("pid_start") or 0
        return not is_alive(Identity(pid, start, self.status.get("boot_id")))

    def _why_died(self) -> Reason:
        return because("exit.runner_gone").then(self.trouble or self.unwritten)

    def _cannot_start(self) -> bool:
        """Whether it should run but its runner's files cannot be written. The agent retries."""
        hindered = bool(self.unwritten) or (bool(self.trouble) and self._starts_in_vain >= STARTS_IN_VAIN)
        return hindered and self.settled and self.needs_runner()

    # ------------------------------------------------------------------------------------------------- leases

    def needs_runner(self) -> bool:
        return runner_needed(self.assignment, self.status, self.leases.may_start(self.assignment))

    def take_lease(self, lease: Lease, asked_ns: int) -> None:
        until = self.leases.take(lease, asked_ns)
        if until and self.link is not None:
            self.link.lease(lease.epoch, until)

    def send_lease(self) -> None:
        """Send the current lease to a newly connected runner."""
        held = self.leases.now(self.assignment)
        if self.link is not None and held:
            self.link.lease(*held)

    def _awaits_lease(self) -> bool:
        return self.settled and not self.needs_runner() and runner_needed(self.assignment, self.status)

    # ----------------------------------------------------------------------------------- files for the runner

    def assign(self, assignment: Assignment, default_dir: str, base_env: dict[str, str]) -> None:
        """Apply the assignment and notify the runner. `unwritten`: what could not be written because the disk is full.
        A desired state of stopped still reaches its runner."""
        self.assignment = assignment
        if assignment.grant or assignment.epoch != self._grant[0]:
            self._grant = (assignment.epoch, assignment.grant)
        try:
            self._write(assignment, default_dir, base_env)
            self.unwritten = NONE
        except OSError as exc:
            self.send_to_runner()
            refused = because("run.cannot_write", path=self.directory, error=exc.strerror or str(exc))
            self.unwritten = refused.then(_NEXT_STEPS.get(exc.errno or 0, NONE))

    def assign_again(self, default_dir: str, base_env: dict[str, str]) -> None:
        """Write the runner's files again, because that failed before or its GPUs have changed."""
        if self.assignment is not None:
            self.assign(self.assignment, default_dir, base_env)

    def _write(self, assignment: Assignment, default_dir: str, base_env: dict[str, str]) -> None:
        content = spec_module.resolve(assignment, default_dir)
        content["grant"] = self._grant[1]
        container = content.get("start", {}).get("container")
        if container:  # the container sees only these GPUs, numbered from 0
            container["options"] += [f"--device=nvidia.com/gpu={index}" for index in self.gpus]
        else:
            content["spec"]["env"].update(gpu_allocator.environment(self.gpus))
        run_as = content.get("start", {}).get("run_as")
        self.cwd, self.home = content["cwd"], run_as["home"] if run_as else ""
        self.other_user = bool(run_as) and run_as["uid"] != os.geteuid()
        os.makedirs(paths.attempts_dir(self.directory), mode=paths.PRIVATE_DIR, exist_ok=True)
        _write_if_other(paths.worker_id_file(self.directory), self.worker_id.encode() + b"\n")
        _write_if_other(paths.base_env_file(self.directory), _json_bytes(base_env))
        changed = _write_if_other(paths.spec_file(self.directory), _json_bytes(content))
        if changed:
            self._starts_in_vain, self._next_start = 0, 0.0
            self.send_to_runner()

    def send_to_runner(self) -> None:
        if self.link is not None and self.assignment is not None:
            self.link.assign(self.assignment.desired, self.assignment.generation, self.assignment.epoch)

    # --------------------------------------------------------------------------------------------- the runner

    def runner_alive(self) -> bool:
        return lock_held(paths.runner_lock(self._runtime_dir, self.directory))

    def connect(self) -> bool:
        """Try to connect to a live runner; its status arrives soon after."""
        try:
            self.link = control.RunnerLink.connect(paths.runner_socket(self._runtime_dir, self.directory))
        except (OSError, ValueError):
            return False
        self._said_bye = self.reported = False
        return True

    def converge(self, now: float, python: str, release_dir: str, may_start: bool) -> bool:
        """Perform one step towards the desired state. Returns whether a runner was connected."""
        if self.link is not None:
            return False
        if self._starting is not None and not self._started():
            return False
        if now < self._next_connect:
            return False
        self._next_connect = now + CONNECT_AGAIN_S
        if self.connect():
            return True
        if self.runner_alive():
            return False  # the runner is starting or ending: try again
        self.read_status()
        if self.needs_runner() and (not self.unwritten or self._to_sweep()):
            if not self.gpu_wait and may_start and now >= self._next_start:
                self._start(now, python, release_dir)
        else:
            self._starts_in_vain = 0
        return False

    def _to_sweep(self) -> bool:
        """Whether a stopped worker needs a runner to end processes of a dead runner; that needs no new files."""
        return self.assignment is not None and self.assignment.desired != "running" and bool(self.status)

    def next_step_at(self, now: float) -> Optional[float]:
        """When to call `converge` again without an event (monotonic); None if not needed."""
        if self.link is not None:
            return None
        if self._starting is not None:
            return now + 0.05  # SIGCHLD wakes the loop earlier
        if self.needs_runner():
            if self.gpu_wait:
                return now + 1.0  # the GPUs are read about as often
            return max(self._next_start, self._next_connect)
        return self._next_connect if self.runner_alive() else None

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """(messages that are results, whether the status changed); afterwards `link` is None if the runner has gone."""
        assert self.link is not None
        results, changed = [], False
        for message in self.link.receive():
            kind = message.pop("type", "")
            if kind == "status":
                self.status = message
                changed = self.reported = True
                self.leases.heed(message)
                if message.get("state") == RUNNING:
                    self._starts_in_vain = 0
            elif kind == "result":
                results.append(message)
            elif kind == "event":
                self.events.take(message)
                changed = True
            elif kind == "bye":
                self._said_bye = True
        return results, changed

    def lost_runner(self, now: float) -> bool:
        """Handle a closed connection. Returns whether the runner died without sending "bye"."""
        assert self.link is not None
        self.link.close()
        self.link = None
        self.reported = False
        self.read_status()
        self._next_connect = now
        if self._said_bye:
            self.tree = []
            return False
        self._next_start = max(self._next_start, now)
        return not self.runner_alive()

    def terminate_runner(self) -> None:
        """Make the runner stop its process and exit. The worker is then stopped but not held: the next agent
        starts it again."""
        pid = self.status.get("runner_pid")
        if self.link is not None and not self.link.closed and self.reported and isinstance(pid, int) and pid > 1:
            # the process has the other end of an open connection, so its pid has not been reused
            os.kill(pid, signal.SIGTERM)

    def _start(self, now: float, python: str, release_dir: str) -> None:
        import subprocess

        stop = None
        if self.unwritten and self.assignment is not None and self.assignment.desired != "running":
            stop = (self.assignment.generation, self.assignment.epoch)
        self._starts_in_vain += 1
        self._next_start = now + RUNNER_RETRY_S[min(self._starts_in_vain, len(RUNNER_RETRY_S) - 1)]
        forbidden = other_fleets.forbids(self.directory, self.worker_id)
        if forbidden:
            self.trouble = forbidden
            return
        try:
            with self._open_errors() as errors:
                self._starting = subprocess.Popen(
                    control.runner_argv(
                        python,
                        release_dir,
                        self.directory,
                        self._runtime_dir,
                        self.leases.now(self.assignment),
                        stop,
                        self.tree[:MAX_SEEN],
                    ),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
        except OSError as exc:
            self.trouble = because("run.runner_error", error=exc.strerror or str(exc))

    def _started(self) -> bool:
        """Whether the starting process has exited: the runner then listens, or has reported an error."""
        code = self._starting.poll()
        if code is None:
            return False
        self._starting = None
        self._next_connect = 0.0
        if code in (control.EXIT_STARTED, control.EXIT_ALREADY_RUNNING):
            self.trouble = NONE
        else:
            said = self._error_text()
            self.trouble = (
                because("run.runner_exit", code=code, detail=said)
                if said
                else because("run.runner_exit_silent", code=code)
            )
        return True

    def _open_errors(self) -> Any:
        try:
            return open(self._error_file(), "wb")
        except OSError:  # a full disk: only the runner's messages are lost
            return open(os.devnull, "wb")

    def _error_file(self) -> str:
        return os.path.join(self.directory, "runner.err")

    def _error_text(self) -> str:
        try:
            with open(self._error_file(), "rb") as file:
                lines = file.read(65536).decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:300] if lines else ""


def load_workers(agent_dir: str, runtime_dir: str) -> dict[str, WorkerHandle]:
    """All workers that have a directory on this host."""
    workers: dict[str, WorkerHandle] = {}
    try:
        names = sorted(os.listdir(paths.workers_dir(agent_dir)))
    except FileNotFoundError:
        return workers
    for name in names:
        directory = os.path.join(paths.workers_dir(agent_dir), name)
        try:
            with open(paths.worker_id_file(directory), encoding="utf-8") as file:
                worker_id = file.read().strip()
        except OSError:
            continue
        if directory != paths.worker_dir(agent_dir, worker_id):
            continue  # copied by hand
        worker = WorkerHandle(worker_id, directory, runtime_dir)
        worker.read_status()
        worker.read_grant()
        workers[worker_id] = worker
    return workers


def remove_tree(directory: str) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def stored_form(assignments: list[Assignment], rev: str) -> dict[str, Any]:
    return {"v": 1, "rev": rev, "assignments": [encode(one) for one in assignments]}


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _write_if_other(path: str, data: bytes) -> bool:
    """Returns whether the file was written."""
    try:
        with open(path, "rb") as file:
            if file.read() == data:
                return False
    except FileNotFoundError:
        pass
    paths.write_atomic(path, data)
    return True
