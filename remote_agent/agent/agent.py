"""The agent of one host: adopts live runners, starts runners, converges on its assignments, carries out commands.

Owns the main loop, on which alone all state changes; threads (link, logs, helpers) only hand messages over. Killing it
at any moment never touches a child: runners live on, and the next agent adopts them. Knows HTTP only through
`conversation`, processes only through runners.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import sys
import time

from remote_agent.agent.commands import CommandExecutor
from remote_agent.agent.executor import HelperPool
from remote_agent.agent.journal import AgentJournal
from remote_agent.agent.session import ManagerSession, Registrar
from remote_agent.agent.settings import AgentLog, AgentSettings
from remote_agent.agent.worker import WorkerHandle, load_workers, longest_pause_s, remove_tree, stored_form, supersedes
from remote_agent.health.checks import Checks
from remote_agent.logs.search import LogSearcher
from remote_agent.logs.shipper import LogShipper
from remote_agent.logs.watcher import ShippedWorker
from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import (
    AgentHeartbeat,
    AgentReply,
    Assignment,
    Lease,
    WorkerEvent,
    WorkerReport,
    decode,
    encode,
    valid_id,
)
from remote_agent.protocol.states import SETTLED
from remote_agent.runner.leases import boottime_ns
from remote_agent.system import paths, state_files
from remote_agent.system.free_port import FreePort
from remote_agent.telemetry.gpu_allocator import GpuAllocator
from remote_agent.telemetry.host import host_facts
from remote_agent.telemetry.host_disk import HostDisk
from remote_agent.telemetry.sampler import Measuring
from remote_agent.transport.address_file import AddressFile
from remote_agent.transport.client import Addresses, AgentCredentials, Connection
from remote_agent.transport.negotiation import Channels
from remote_agent.transport.rotation import SecretRotation

MAX_EVENTS = 500  # in one heartbeat
WRITE_AGAIN_S = 2.0
LONGEST_SLEEP_S = 5.0
REMOVE_ANYWAY_S = 120.0  # a removed worker whose log the manager does not take is forgotten after this
LAST_WORDS_S = 5.0  # how long a leaving launcher tries to ship the last log bytes and the last report

RELEASE_DIR = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Agent:
    """`run()` until `leave()`. `default_dir`: where workers without a working_dir run. `base_env`: what their
    environment starts from. `on_report`: told of each worker's report when its state, attempt or reason changed;
    `on_secret`: of another secret, which is about to be stored, from another thread."""

    def __init__(
        self,
        settings: AgentSettings,
        agent_dir: str,
        log: AgentLog,
        *,
        default_dir: str,
        base_env: dict[str, str],
        credentials: Optional[AgentCredentials] = None,
        registrar: Optional[Registrar] = None,
        on_report: Optional[Callable[[WorkerReport], None]] = None,
        on_link: Optional[Callable[[str], None]] = None,
        on_removed: Optional[Callable[[str], None]] = None,
        on_secret: Optional[Callable[[str], None]] = None,
    ) -> None:
        self._settings = settings
        self._agent_dir = agent_dir
        self._log = log
        self._default_dir = default_dir
        self._base_env = base_env
        self._on_report = on_report
        self._on_link = on_link
        self._on_removed = on_removed
        self._told: dict[str, tuple[Any, ...]] = {}
        self._python = settings.python or sys.executable
        self._started_at = time.time()
        self._boot_id = _boot_id()
        self._facts = host_facts()
        self._next_write = 0.0
        self._unstored = False  # assignments.json is older than what is known

        self._selector = selectors.DefaultSelector()
        self._inbox: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._wake_r, self._wake_w = os.pipe()
        for fd in (self._wake_r, self._wake_w):
            os.set_blocking(fd, False)
        self._selector.register(self._wake_r, selectors.EVENT_READ, None)

        self.workers = load_workers(agent_dir, settings.runtime_dir)
        # A launcher starts nothing before it has the manager's word, or knows that there is none to be had.
        self.may_start = registrar is None
        self.start_after_reply = False
        self._rev = ""
        self._journal = AgentJournal(paths.journal_file(agent_dir))
        self.commands = CommandExecutor(self._journal)
        self._leaving = ""  # "now", or "stopped": once every worker is settled
        self._leave_by = 0.0
        self._last_words_from = 0

        credentials = credentials or AgentCredentials(
            settings.agent_id, settings.fleet_id, settings.secret, settings.proof_key
        )
        addresses = Addresses(
            settings.manager_urls,
            settings.trust(),
            settings.tunnel_url,
            file=AddressFile(agent_dir, settings.agent_id, settings.proof_key) if registrar is None else None,
        )
        self._channels = Channels(lambda text: self.post("channel", text))
        self._shipper = LogShipper(Connection(addresses, credentials, self._channels, logs=True), self.post)
        self._searcher = LogSearcher(
            credentials, self._python, lambda: Connection(addresses, credentials, self._channels)
        )
        self._rotation = SecretRotation(
            agent_dir,
            credentials,
            lambda: Connection(addresses, credentials, self._channels),
            replacing=on_secret or (lambda _: None),
            replaced=self._secret_replaced,
            say=log.say,
        )
        self._helpers = HelperPool(self.post)
        self._disk = HostDisk(agent_dir, self._helpers.submit)
        self._measuring = Measuring(agent_dir, self._python, self._helpers.submit)
        self._checks = Checks(
            self._measuring,
            self._helpers.submit,
            log.say,
            lambda: self.link.changed(time.monotonic()),
            python=self._python,
            base_env=base_env,
        )
        self._gpus = GpuAllocator(agent_dir, self._measuring, base_env)
        self._gpus.adopt(self.workers)
        self._port = FreePort()
        self.link = ManagerSession(
            credentials,
            addresses,
            self.post,
            build=self._heartbeat,
            take=self._take_reply,
            cursor=lambda: (self._rev, self.commands.seq),
            link_changed=self._link_changed,
            registrar=registrar,
            channels=self._channels,
        )
        self._shipping = False

    # ---------------------------------------------------------------------------------------- from other threads

    def post(self, tag: Any, value: Any) -> None:
        """Hand something to the main loop; from any thread."""
        self._inbox.put((tag, value))
        try:
            os.write(self._wake_w, b".")
        except (BlockingIOError, OSError):
            pass  # full: it is awake already

    def leave(self, how: str = "now") -> None:
        """End: "now" (children live on) or "stopped" (stop every worker; twice: kill). Signal handlers may call it."""
        self.post("leave", how)

    # ------------------------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Until `leave`. The caller holds the agent's lock."""
        previous = signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that the end of a starting runner wakes the loop
        self._load_assignments()
        self._log.say("agent started", pid=os.getpid(), workers=len(self.workers), usage=self._measuring.available)
        self._update_shipper()
        self._shipper.watch()
        self.link.start()
        try:
            while not self._finished():
                self._once()
        finally:
            signal.set_wakeup_fd(previous)
            self._log.say("agent ends", workers=len(self.workers))
            self.close()

    def close(self) -> None:
        self.link.end()
        self._shipper.end()
        self._searcher.end()
        self._rotation.end()
        self._helpers.end()
        self._measuring.end()
        for worker in self.workers.values():
            if worker.link is not None:
                worker.link.close()
        self._journal.close()
        self._selector.close()

    def _once(self) -> None:
        for key, mask in self._selector.select(self._sleep_s(time.monotonic())):
            if key.data is None:
                _drain(self._wake_r)
            else:
                self._hear_runner(key.data, mask)
        while True:
            try:
                tag, value = self._inbox.get_nowait()
            except queue.Empty:
                break
            self._take_message(tag, value, time.monotonic())
        self._tick(time.monotonic())

    def _sleep_s(self, now: float) -> float:
        times = [now + LONGEST_SLEEP_S, self.link.next_at(), self._measuring.next_at(), self._disk.next_at()]
        if self._behind():
            times.append(self._next_write)
        for worker in self.workers.values():
            times += [at for at in (worker.next_step_at(now), self._checks.next_at(worker)) if at is not None]
        if self._leaving:
            times.append(now + 0.05)
        return max(0.0, min(times) - now)

    def _tick(self, now: float) -> None:
        for worker in list(self.workers.values()):
            if self._gpus.settle(worker):
                worker.assign_again(self._default_dir, self._base_env)
                self.link.changed(now)
            if worker.converge(now, self._python, RELEASE_DIR, self.may_start and not self._leaving):
                self._adopted(worker)
            if worker.trouble and self._log.changed(f"trouble of {worker.worker_id}", worker.trouble):
                self.link.changed(now)
            if worker.postponed:
                self.commands.send_postponed(worker, boottime_ns() / 1e9)
            self._checks.tick(worker, now)
            self._finish_removal(worker, now)
            self._tell(worker)
        self._write_again(now)
        self._disk.tick(now, self._behind())
        if self.commands.take_news():
            self.link.changed(now)
        self._measuring.tick(self.workers, now, self.link.interval_s, self._gpus.awaited)
        self._update_shipper()
        self.link.tick(now)

    def _take_message(self, tag: Any, value: Any, now: float) -> None:
        if tag in ("heartbeat", "poll", "register"):
            self.link.outcome(tag, value, now)
        elif self._measuring.take(tag, value, self.workers, now) or self._checks.take(tag, value, self.workers, now):
            pass
        elif tag == "disk":
            if self._disk.take(value):
                self._log.changed("disk", self._disk.trouble)
                self.link.changed(now)
        elif tag == "drained":
            if value in self.workers:
                self.workers[value].drained = True
        elif tag == "log_trouble":
            self._log.say("logs not shipped", why=value)
        elif tag == "log_note":
            self._log.say("logs", note=value)
        elif tag == "channel":
            self._log.changed("channel", value)
        elif tag == "secret":
            self.link.changed(now)  # its first use ends the old one
        elif tag == "leave":
            self._begin_leaving(value, now)

    # ------------------------------------------------------------------------------------------------- runners

    def _adopted(self, worker: WorkerHandle) -> None:
        assert worker.link is not None
        self._selector.register(worker.link, selectors.EVENT_READ, worker)
        self._log.say("runner adopted", worker=worker.worker_id, attempt=worker.attempt, state=worker.state)
        worker.send_lease()
        if worker.assignment is not None:
            worker.tell_runner()  # whatever changed while it had no agent

    def _hear_runner(self, worker: WorkerHandle, mask: int) -> None:
        link = worker.link
        if link is None:
            return
        if mask & selectors.EVENT_WRITE:
            link.flush()
        results, changed = worker.receive()
        now = time.monotonic()
        for result in results:
            self.commands.runner_result(worker, result)
        if changed or results:
            self.link.changed(now)
        if link.closed:
            self._selector.unregister(link)
            if worker.lost_runner(now):
                self._log.say("runner died", worker=worker.worker_id, attempt=worker.attempt, state=worker.state)
            self.commands.runner_gone(worker)
            self.link.changed(now)
        else:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.wants_write else 0)
            self._selector.modify(link, wanted, worker)

    # --------------------------------------------------------------------------------------------- assignments

    def _load_assignments(self) -> None:
        path = paths.assignments_file(self._agent_dir)
        try:
            data = paths.read_json(path)
            if isinstance(data, dict):
                self._apply([decode(Assignment, one) for one in data.get("assignments", [])])
                self._rev = str(data.get("rev", ""))
        except (OSError, ValueError) as exc:
            self._log.say("assignments unreadable", path=path, why=exc)

    def _take_reply(self, reply: AgentReply, asked_ns: int) -> None:
        if reply.fleet_id and reply.fleet_id != self._settings.fleet_id:
            self._log.changed("reply of another fleet ignored", reply.fleet_id)
            return
        now = time.monotonic()
        stored = [self._journal.ack(worker_id, seq) for worker_id, seq in reply.events_acked.items()]
        self._shipper.keep(reply.keep_local_bytes, reply.keep_attempts)
        self._shipper.gather(reply.log_gather_s)
        # Commands first: a kill comes with "desired: stopped", whose gentle stop must not get ahead of it.
        self.commands.receive(reply.commands, self.workers, boottime_ns() / 1e9, asked_ns / 1e9)
        # An answer that came twice may lie in the place of a later one: its leases count from its own heartbeat. Leases
        # before assignments: what an assignment has started anew finds the lease of its epoch there.
        asked_ns = min(asked_ns, reply.beat)
        self._take_leases(reply.leases, asked_ns)
        if reply.assignments is not None:
            self._apply(reply.assignments)
            self._rev = reply.assignments_rev
            self._store_assignments()
            self._take_leases(reply.leases, asked_ns)  # of workers that are new here
            self.link.changed(now)  # and fetches the leases of those that an answer without any has named
        self._searcher.take(reply.searches, self._log_directory)
        self._rotation.take(reply.rotate)
        if self.start_after_reply:
            self.may_start, self.start_after_reply = True, False
        if any(stored) and self._pending_events(1):
            self.link.changed(now)

    def _secret_replaced(self) -> None:
        """From the rotation's thread."""
        self._channels.renew_key()
        self.post("secret", None)

    def _log_directory(self, worker_id: str) -> Optional[str]:
        worker = self.workers.get(worker_id)
        return paths.attempts_dir(worker.directory) if worker is not None else None

    def _take_leases(self, leases: list[Lease], asked_ns: int) -> None:
        for lease in leases:
            if lease.worker_id in self.workers:
                self.workers[lease.worker_id].take_lease(lease, asked_ns)

    def _apply(self, assignments: list[Assignment]) -> None:
        for assignment in assignments:
            if not valid_id(assignment.worker_id):
                continue
            worker = self.workers.get(assignment.worker_id)
            if worker is None:
                directory = paths.worker_dir(self._agent_dir, assignment.worker_id)
                if assignment.desired == "removed" and not os.path.isdir(directory):
                    continue
                worker = self.workers[assignment.worker_id] = WorkerHandle(
                    assignment.worker_id, directory, self._settings.runtime_dir
                )
                worker.read_status()
            if not supersedes(assignment, worker.assignment):
                self._log.say("older assignment ignored", worker=worker.worker_id, epoch=assignment.epoch)
                continue
            worker.assign(assignment, self._default_dir, self._base_env)
            self._port.handed_out(assignment.env)
        self.link.longest_pause_s = longest_pause_s(assignments)
        listed = {assignment.worker_id for assignment in assignments}
        for worker_id, worker in self.workers.items():
            if worker_id not in listed:
                worker.assignment = None  # no longer this agent's to steer; what runs, runs on

    def _write_again(self, now: float) -> None:
        """What a full disk kept from being written is tried again every few seconds: of all workers at once."""
        if now < self._next_write:
            return
        self._next_write = now + WRITE_AGAIN_S
        for worker in self.workers.values():
            if worker.unwritten and worker.assignment is not None:
                worker.assign_again(self._default_dir, self._base_env)
                if not worker.unwritten:
                    self.link.changed(now)
        if self._unstored:
            self._store_assignments()
        self._journal.write_again()

    def _behind(self) -> bool:
        """Something is known here, or to a runner, that the disk did not take."""
        return (
            self._unstored
            or self._journal.behind
            or any(worker.unwritten or worker.status.get("problem") for worker in self.workers.values())
        )

    def _store_assignments(self) -> None:
        assigned = [worker.assignment for worker in self.workers.values() if worker.assignment is not None]
        try:
            paths.write_json(paths.assignments_file(self._agent_dir), stored_form(assigned, self._rev), durable=True)
            self._unstored = False
            self._log.changed("assignments not stored", "")
        except OSError as exc:
            self._unstored = True
            self._log.changed("assignments not stored", str(exc.strerror or exc))

    def _finish_removal(self, worker: WorkerHandle, now: float) -> None:
        """desired removed: stopped, log and events at the manager, then the directory goes. Not reported = removed."""
        if worker.assignment is None or worker.assignment.desired != "removed":
            worker.settled_since = None
            return
        if not worker.settled or worker.needs_runner():
            worker.settled_since = None
            return
        if worker.settled_since is None:
            worker.settled_since, worker.drained = now, False
        told = worker.drained and not worker.events.pending(self._journal.acked(worker.worker_id), 1)
        if told or (self.link.up and now - worker.settled_since > REMOVE_ANYWAY_S):
            self._log.say("worker removed", worker=worker.worker_id, log_shipped=worker.drained)
            remove_tree(worker.directory)
            state_files.forget_runtime(self._settings.runtime_dir, worker.directory)
            self._journal.forget(worker.worker_id)
            self._gpus.forget(worker.worker_id)
            del self.workers[worker.worker_id]
            self._store_assignments()
            self.link.changed(now)
            if self._on_removed is not None:
                self._on_removed(worker.worker_id)

    # --------------------------------------------------------------------------------------- what is reported

    def _heartbeat(self) -> dict[str, Any]:
        return encode(
            AgentHeartbeat(
                agent_id=self._settings.agent_id,
                fleet_id=self._settings.fleet_id,
                release=self._settings.release,
                boot_id=self._boot_id,
                pid=os.getpid(),
                started_at=self._started_at,
                at=time.time(),
                beat=boottime_ns(),
                facts=self._facts,
                usage=self._measuring.host_usage(self.workers),
                workers=[worker.report() for worker in self.workers.values()],
                events=self._pending_events(MAX_EVENTS),
                results=self.commands.results(),
                assignments_rev=self._rev,
                commands_seq=self.commands.seq,
                free_port=self._port.offer(),
                channel_trouble=self._channels.trouble,
                ends=self._leaving == "stopped" and self._leave_by > 0,
                disk_trouble=self._disk.trouble,
                disk_path=self._disk.directory,
            )
        )

    def _pending_events(self, limit: int) -> list[WorkerEvent]:
        events: list[WorkerEvent] = []
        for worker in self.workers.values():
            if len(events) >= limit:
                break
            events += worker.events.pending(self._journal.acked(worker.worker_id), limit - len(events))
        return events

    def _link_changed(self, trouble: str) -> None:
        """After each heartbeat's outcome; "" = answered."""
        if not trouble:
            self.commands.results_taken()
            if not self._shipping:
                self._shipping = True
                self._shipper.start()
            self._shipper.link_is_up()
        if self._log.changed("manager", trouble) and self._on_link is not None:
            self._on_link(trouble)

    def _tell(self, worker: WorkerHandle) -> None:
        if self._on_report is None:
            return
        about_to_start = not self.may_start or worker.needs_runner()  # or not known yet
        if worker.state in SETTLED and about_to_start and not self._leaving and not worker.gpu_wait:
            return
        key = (worker.state, worker.attempt, worker.status.get("pid"), worker.reason)
        if self._told.get(worker.worker_id) != key:
            self._told[worker.worker_id] = key
            self._on_report(worker.report())

    def _update_shipper(self) -> None:
        self._shipper.update(
            [
                ShippedWorker(
                    worker.worker_id,
                    worker.directory,
                    worker.attempt,
                    worker.settled_since is not None or bool(self._leaving),
                    settled=worker.state in SETTLED and worker.link is None,
                )
                for worker in self.workers.values()
            ]
        )

    # ----------------------------------------------------------------------------------------------- leaving

    def _begin_leaving(self, how: str, now: float) -> None:
        if how != "stopped":
            self._leaving = "now"
            return
        again, self._leaving = self._leaving == "stopped", "stopped"
        self.may_start = False
        for worker in self.workers.values():
            worker.drained = False
            if again and worker.link is not None:
                worker.link.kill(worker.attempt, f"c-local-{worker.attempt}")
            else:
                worker.terminate_runner()
        if again:
            self._log.say("told to end twice: killing")

    def _finished(self) -> bool:
        """Whether the loop ends: at once, or after the last worker has ended and its last bytes were given a chance."""
        if self._leaving != "stopped":
            return bool(self._leaving)
        now = time.monotonic()
        if not all(worker.idle for worker in self.workers.values()):
            self._leave_by = 0.0
            return False
        if self._leave_by == 0.0:
            self._leave_by = now + (LAST_WORDS_S if self.link.up else 0.0)
            self._last_words_from = self.link.beats_answered
            self.link.changed(now)
        told = self.link.beats_answered >= self._last_words_from + 2 and all(
            worker.drained for worker in self.workers.values()
        )
        return told or now > self._leave_by


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except (BlockingIOError, OSError):
        pass
