"""The files that a runner writes about its worker: state.json, events.jsonl, exit records. No decisions, no processes.

Any write may fail (full disk, read-only home); the data is then kept in a bounded buffer and retried, and the runner
continues. `kept`: whether the latest state is stored on some disk (system/state_files.py); until then, nothing is
started and the runner does not exit. The hot path does not wait for the disk: files are replaced by rename, and `sync`
makes them durable afterwards.
"""

from __future__ import annotations

import os
import time

from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.system import lean_json, paths, state_files

COMPACT_ABOVE_LINES = 1000
KEEP_LINES = 500
KEEP_EXITS = 100


class WorkerFiles:
    def __init__(self, worker_dir: str, runtime_dir: str = "") -> None:
        self.worker_dir = worker_dir
        self.kept = True  # whether the last state can be read by the next runner
        self._runtime_dir = runtime_dir
        self._failed: dict[str, Reason] = {}  # file -> why its last write failed
        self._unwritten_exits: dict[str, dict[str, object]] = {}
        self._in_runtime = bool(runtime_dir) and os.path.exists(paths.runtime_state(runtime_dir, worker_dir))
        self._unwritten_events: list[bytes] = []
        self._unsynced: list[str] = []
        self._base_env: dict[str, str] = {}
        self._base_env_mark = (0, 0, 0)
        os.makedirs(paths.attempts_dir(worker_dir), paths.PRIVATE_DIR, exist_ok=True)
        self._events, last_seq = _read_events(paths.events_file(worker_dir))
        self._seq = last_seq

    @property
    def problem(self) -> Reason:
        """Why something could not be written; "" if everything is on the disk."""
        return next(iter(self._failed.values()), NONE)

    # --------------------------------------------------------------------------------------------- reading

    def read_state(self) -> dict[str, object]:
        """The previous runner's last state; empty if there is none or it is damaged."""
        try:
            state = state_files.read(self.worker_dir, self._runtime_dir)
        except (ValueError, OSError) as exc:
            self._failed[paths.state_file(self.worker_dir)] = because("run.state_unreadable", error=str(exc))
            return {}
        if state is None:
            return {}
        seq = state.get("event_seq")
        self._seq = max(self._seq, seq if isinstance(seq, int) else 0)
        return state

    def read_spec(self) -> dict[str, object]:
        """The assignment as the agent wrote it. Raises ValueError or OSError with the reason if it is unusable."""
        path = paths.spec_file(self.worker_dir)
        spec = paths.read_json(path)
        if not isinstance(spec, dict) or not isinstance(spec.get("spec"), dict):
            raise ValueError(f"{path} is missing or no assignment")
        return spec

    def read_base_env(self) -> dict[str, str]:
        """The base environment of children; the runner's own if the agent recorded none. Cached per file, because the
        agent replaces the file."""
        path = paths.base_env_file(self.worker_dir)
        try:
            found = os.stat(path)
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if mark == self._base_env_mark:
                return dict(self._base_env)
            env = paths.read_json(path)
        except (ValueError, OSError):
            return dict(os.environ)
        if not isinstance(env, dict):
            return dict(os.environ)
        self._base_env, self._base_env_mark = {str(name): str(value) for name, value in env.items()}, mark
        return dict(self._base_env)

    def read_exit(self, attempt: int) -> dict[str, object] | None:
        try:
            found = paths.read_json(paths.exit_file(self.worker_dir, attempt))
        except (ValueError, OSError):
            return None
        return found if isinstance(found, dict) else None

    # --------------------------------------------------------------------------------------------- writing

    def next_seq(self) -> int:
        """Strictly increasing: the wall clock in ms at first, then one more each time, whatever the clock does."""
        self._seq = self._seq + 1 if self._seq else int(time.time() * 1000)
        return self._seq

    def write_exit(self, record: dict[str, object]) -> None:
        path = paths.exit_file(self.worker_dir, int(str(record["attempt"])))
        self._unwritten_exits.pop(path, None)
        if not self._write(path, record):
            self._unwritten_exits[path] = record
            for oldest in list(self._unwritten_exits)[:-KEEP_EXITS]:
                del self._unwritten_exits[oldest]
                self._failed.pop(oldest, None)

    def write_state(self, state: dict[str, object]) -> None:
        """Write state.json or, if the disk refuses, a place that needs no space."""
        if self._write(paths.state_file(self.worker_dir), state):
            self.kept = True
            if self._in_runtime:
                self._in_runtime = False
                state_files.forget_runtime(self._runtime_dir, self.worker_dir)
        elif state_files.keep_in_reserve(self.worker_dir, state):
            self.kept = True
        else:
            self.kept = state_files.keep_in_runtime(self._runtime_dir, self.worker_dir, state)
            self._in_runtime = self._in_runtime or self.kept

    def write_again(self) -> None:
        """Retry refused writes, except that of the state."""
        self.flush_events()
        for record in list(self._unwritten_exits.values()):
            self.write_exit(record)

    def append_event(self, event: dict[str, object]) -> None:
        self._unwritten_events.append(lean_json.dumps(event).encode() + b"\n")
        del self._unwritten_events[:-KEEP_LINES]
        self.flush_events()

    def unwritten_events(self) -> list[dict[str, object]]:
        """The events that are not on the disk yet, for an agent that has just connected."""
        return [lean_json.loads(line) for line in self._unwritten_events]

    def flush_events(self) -> None:
        """Write the pending events; on failure they are kept for the next call."""
        if not self._unwritten_events:
            return
        path = paths.events_file(self.worker_dir)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, paths.PRIVATE_FILE)
            try:
                # One write for all of them: a torn last line of a full disk is skipped by every reader.
                data = b"".join(self._unwritten_events)
                written = os.write(descriptor, data)
                if written < len(data):
                    os.write(descriptor, b"\n")
                    raise OSError(f"{path}: short write, is the disk full?")
            finally:
                os.close(descriptor)
        except OSError as exc:
            self._failed[path] = because("run.cannot_write", path=path, error=exc.strerror or str(exc))
            return
        self._failed.pop(path, None)
        self._events += len(self._unwritten_events)
        self._unwritten_events = []
        self._unsynced.append(path)
        if self._events > COMPACT_ABOVE_LINES:
            self._compact(path)

    def _compact(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                lines = file.readlines()[-KEEP_LINES:]
            paths.write_atomic(path, b"".join(lines))
            self._events = len(lines)
        except OSError:
            pass  # the next event tries it again

    def _write(self, path: str, value: object) -> bool:
        try:
            paths.write_json(path, value)
        except OSError as exc:
            self._failed[path] = because("run.cannot_write", path=path, error=exc.strerror or str(exc))
            return False
        self._failed.pop(path, None)
        self._unsynced.append(path)
        return True

    def sync(self) -> None:
        """Make everything written since the last call durable. Called while idle."""
        files, self._unsynced = set(self._unsynced), []
        try:
            for path in files:
                paths.sync_file(path)
            for directory in {os.path.dirname(path) for path in files}:
                paths.sync_directory(directory)
        except OSError as exc:
            self._failed["sync"] = because("run.cannot_sync", error=str(exc))
        else:
            self._failed.pop("sync", None)
        state_files.make_reserve(self.worker_dir)


def _read_events(path: str) -> tuple[int, int]:
    """Returns (number of lines, highest seq)."""
    count = 0
    highest = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                count += 1
                try:
                    highest = max(highest, int(lean_json.loads(line)["seq"]))
                except (ValueError, KeyError, TypeError):
                    continue
    except OSError:
        pass
    return count, highest
