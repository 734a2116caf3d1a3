"""The loop of a runner: signals, deadlines and the control socket around one TaskRunner. Decides nothing itself."""

from __future__ import annotations

import _socket
import gc
import os
import select
import sys
import time

from remote_agent.runner.attempt import now_s
from remote_agent.runner.control import PROTOCOL_VERSION, JsonConnection, is_ours
from remote_agent.runner.leases import Alarm
from remote_agent.runner.lock import CannotStart, listen, take_lock
from remote_agent.runner.record import WorkerFiles
from remote_agent.runner.task import operations, takeover
from remote_agent.runner.task.task_runner import TaskRunner
from remote_agent.system import paths, processes
from remote_agent.system.locks import is_still_at
from remote_agent.system.signals import signal

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_CONNECTIONS = 16
RUNTIME_CHECK_S = 600.0  # interval of touching lock and socket, because cleaners of /tmp remove old files
LONGEST_POLL_S = 3600.0


def report(text: str) -> None:
    """Write one line to stderr: the terminal at first, runner.log once the process is a daemon."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} runner: {text}\n")
    sys.stderr.flush()


class Runner:
    """The event loop around one TaskRunner: every event leads to a call of `advance`."""

    def __init__(
        self,
        worker_dir: str,
        runtime_dir: str,
        lock: int,
        listener: _socket.socket,
        lease: tuple[int, int] = (0, 0),
        wanted: dict[str, object] | None = None,
        seen: Iterable[tuple[int, int]] = (),
    ) -> None:
        self._worker_dir = worker_dir
        self._lock_path = paths.runner_lock(runtime_dir, worker_dir)
        self._socket_path = paths.runner_socket(runtime_dir, worker_dir)
        self._lock = lock
        self._listener = listener
        self._connections: dict[int, JsonConnection] = {}
        self._runner = TaskRunner(WorkerFiles(worker_dir, runtime_dir), self._send)
        self._former = lease, wanted, seen
        self._alarm = Alarm()
        self._runtime_check_at = now_s() + RUNTIME_CHECK_S
        self._terminated = False
        self._wake_read, wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wake-up byte is all that is needed
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGINT, self._on_sigterm)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_sigterm(self, *_: object) -> None:
        self._terminated = True

    def run(self) -> None:
        processes.become_subreaper()
        runner = self._runner
        takeover.begin(runner, now_s(), *self._former)
        gc.enable()
        processes.give_memory_back()
        while not runner.task.finished:
            for descriptor in self._wait():
                self._handle(descriptor)
            now = now_s()
            if self._terminated:
                self._terminated = False
                operations.terminate(runner, now)
            runner.advance(now)
            if now >= self._runtime_check_at:
                self._check_runtime(now)
        runner.close()
        self._send({"type": "bye"})

    def _wait(self) -> list[int]:
        """Wait for an event or deadline. Returns the ready descriptors."""
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        poller.register(self._listener, select.POLLIN)
        for descriptor in self._runner.watched():
            poller.register(descriptor, select.POLLIN)
        for descriptor, connection in self._connections.items():
            poller.register(descriptor, select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
        self._alarm.set(self._runner.lease_ends_ns(now_s()))
        if self._alarm.fileno() >= 0:
            poller.register(self._alarm.fileno(), select.POLLIN)
        due = min(self._runner.next_deadline(), self._runtime_check_at) - now_s()
        timeout_s = min(max(due, 0.0), LONGEST_POLL_S)
        return [descriptor for descriptor, _ in poller.poll(timeout_s * 1000 + 0.999 if timeout_s else 0)]

    def _handle(self, descriptor: int) -> None:
        if descriptor == self._wake_read:
            try:
                while len(os.read(self._wake_read, 4096)) == 4096:
                    pass
            except BlockingIOError:
                pass
        elif descriptor == self._listener.fileno():
            self._accept()
        elif descriptor in self._connections:
            self._serve_connection(descriptor, self._connections[descriptor])

    def _accept(self) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]
            peer = _socket.socket(fileno=descriptor)
        except OSError:
            return
        if len(self._connections) >= MAX_CONNECTIONS or not is_ours(peer):
            peer.close()
            return
        self._connections[peer.fileno()] = JsonConnection(peer)

    def _serve_connection(self, descriptor: int, connection: JsonConnection) -> None:
        connection.flush()
        messages = connection.receive()
        # After a freeze of this process, renewals may be queued behind events that depend on the lease.
        messages.sort(key=lambda message: message.get("op") != "lease")
        for message in messages:
            if message.get("op") == "hello":
                connection.send({**self._runner.task.state.message(), "protocol": PROTOCOL_VERSION})
                for event in self._runner.task.state.record.unwritten_events():
                    connection.send({"type": "event", **event})
                for result in self._runner.task.state.results:
                    connection.send(result)
            else:
                operations.operate(self._runner, message, now_s())
        if connection.closed:
            self._drop(descriptor)

    def _send(self, message: dict[str, object]) -> None:
        for descriptor, connection in list(self._connections.items()):
            connection.send(message)
            if connection.closed:
                self._drop(descriptor)

    def _drop(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor, None)
        if connection:
            connection.close()

    def _check_runtime(self, now: float) -> None:
        """Keep lock and socket at their path, even if /tmp is cleaned or another user takes the path."""
        self._runtime_check_at = now + RUNTIME_CHECK_S
        try:
            self._keep_in_place()
        except (OSError, CannotStart, paths.UnsafeDirectory) as exc:
            report(f"cannot keep lock and socket in place: {exc}")
            elsewhere = paths.recorded_runtime_dir(self._worker_dir)
            if elsewhere and elsewhere != os.path.dirname(self._lock_path):
                self._move_to(elsewhere)

    def _keep_in_place(self) -> None:
        directory = os.path.dirname(self._lock_path)
        if not os.path.isdir(directory) and os.path.dirname(directory) not in paths.SHARED:
            paths.ensure_private_dir(os.path.dirname(directory))
        paths.ensure_private_dir(directory)
        if not is_still_at(self._lock_path, self._lock):
            self._lock = take_lock(self._lock_path, 0.0)
        os.utime(self._lock_path)
        if not os.path.exists(self._socket_path):
            listener = listen(self._socket_path)
            self._listener.close()
            self._listener = listener
        os.utime(self._socket_path)

    def _move_to(self, directory: str) -> None:
        """Move to another runtime directory, as the agent did, because another user has taken the former path."""
        before = self._lock_path, self._socket_path
        self._lock_path = paths.runner_lock(directory, self._worker_dir)
        self._socket_path = paths.runner_socket(directory, self._worker_dir)
        try:
            self._keep_in_place()
            report(f"lock and socket are now in {directory}")
        except (OSError, CannotStart, paths.UnsafeDirectory) as exc:
            self._lock_path, self._socket_path = before
            report(f"cannot move lock and socket: {exc}")

    def close(self) -> None:
        """Release the socket, then the lock: the next holder of the lock creates its own socket."""
        self._listener.close()
        try:
            os.unlink(self._socket_path)
        except OSError:
            pass
        os.close(self._lock)
        for descriptor in list(self._connections):
            self._drop(descriptor)
