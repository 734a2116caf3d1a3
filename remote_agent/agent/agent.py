"""The agent of one host: adopts live runners, starts runners, converges on its assignments, carries out commands.

Owns the main loop, which alone changes state; threads (link, logs, helpers) only pass messages to it. Killing the
agent at any time does not affect a job: runners stay alive, and the next agent adopts them. wiring.py creates its
parts. Knows HTTP only through `link`, processes only through runners.
"""

from __future__ import annotations

import os
import selectors
import signal
import time

from remote_agent.agent.wiring import AgentParts
from remote_agent.agent.worker import WorkerHandle
from remote_agent.logs.watcher import ShippedWorker
from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import AgentHeartbeat, AgentReply, WorkerEvent, WorkerReport, encode_short
from remote_agent.protocol.states import SETTLED
from remote_agent.runner.leases import boottime_ns
from remote_agent.system import paths
from remote_agent.telemetry.host import host_facts

MAX_EVENTS = 500  # limit per heartbeat
LONGEST_SLEEP_S = 5.0
REMOVE_ANYWAY_S = 120.0  # a removed worker whose log the manager does not accept is forgotten after this time
LAST_WORDS_S = 5.0  # how long a leaving launcher tries to ship the last log bytes and the last report

RELEASE_DIR = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Agent:
    """The agent's main loop, from `run()` to `leave()`. `on_report(report)` is called when a worker's state, attempt
    or reason has changed."""

    def __init__(
        self,
        parts: AgentParts,
        *,
        on_report: Optional[Callable[[WorkerReport], None]] = None,
        on_link: Optional[Callable[[str], None]] = None,
        on_removed: Optional[Callable[[str], None]] = None,
    ) -> None:
        self._parts, self._settings, self._log = parts, parts.settings, parts.log
        self._on_report, self._on_link, self._on_removed = on_report, on_link, on_removed
        self._shipped_keys: dict[str, tuple[Any, ...]] = {}
        self._started_at = time.time()
        self._boot_id = _boot_id()
        self._facts = host_facts()
        self._inbox, self._assigned, self.workers = parts.inbox, parts.assigned, parts.assigned.workers
        self._commands, self._journal, self._shipper = parts.commands, parts.journal, parts.shipper
        self._measuring, self._checks, self._gpus, self._disk = parts.measuring, parts.checks, parts.gpus, parts.disk
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inbox, selectors.EVENT_READ, None)
        # A launcher starts nothing before the manager has responded, or is known to be unreachable.
        self.may_start = parts.registrar is None
        self.start_after_reply = False
        self._leaving = ""  # "now", or "stopped": once every worker is settled
        self._leave_by = 0.0
        self._last_words_from = 0
        self.link = parts.session(self._heartbeat, self._take_reply, self._link_changed)
        self._shipping = False

    def leave(self, how: str = "now") -> None:
        """Request the end: "now" (jobs keep running) or "stopped" (stop all workers; when called twice, kill them).
        Callable in signal handlers."""
        self._inbox.post("leave", how)

    # ------------------------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Run until `leave`. The caller holds the agent's lock."""
        previous = signal.set_wakeup_fd(self._inbox.writable, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that the end of a starting runner wakes the loop
        self._assigned.load()
        self.link.longest_pause_s = self._assigned.longest_pause_s
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
        self._parts.end()
        self._selector.close()

    def _once(self) -> None:
        for key, mask in self._selector.select(self._sleep_s(time.monotonic())):
            if key.data is None:
                self._inbox.clear()
            else:
                self._hear_runner(key.data, mask)
        message = self._inbox.take()
        while message is not None:
            self._take_message(*message, time.monotonic())
            message = self._inbox.take()
        self._tick(time.monotonic())

    def _sleep_s(self, now: float) -> float:
        times = [now + LONGEST_SLEEP_S, self.link.next_at(), self._measuring.next_at(), self._disk.next_at()]
        if self._behind():
            times.append(self._assigned.next_write)
        for worker in self.workers.values():
            steps = (worker.next_step_at(now), self._checks.next_at(worker), self._parts.progress.next_at(worker))
            times += [at for at in steps if at is not None]
        if self._leaving:
            times.append(now + 0.05)
        return max(0.0, min(times) - now)

    def _tick(self, now: float) -> None:
        for worker in list(self.workers.values()):
            if self._gpus.settle(worker):
                self._assigned.assign_again(worker)
                self.link.changed(now)
            if worker.converge(now, self._parts.python, RELEASE_DIR, self.may_start and not self._leaving):
                self._adopted(worker)
            if worker.trouble and self._log.changed(f"trouble of {worker.worker_id}", worker.trouble):
                self.link.changed(now)
            if worker.postponed:
                self._commands.send_postponed(worker, boottime_ns() / 1e9)
            self._checks.tick(worker, now)
            self._parts.progress.tick(worker, now)
            self._finish_removal(worker, now)
            self._send_to_runner(worker)
        self._write_again(now)
        self._disk.tick(now, self._behind())
        if self._commands.take_news():
            self.link.changed(now)
        self._measuring.tick(self.workers, now, self.link.interval_s, self._gpus.awaited)
        self._update_shipper()
        self._parts.numbers.update(self._printing())
        self.link.tick(now)

    def _take_message(self, tag: Any, value: Any, now: float) -> None:
        if tag in ("heartbeat", "poll", "register"):
            self.link.outcome(tag, value, now)
        elif (
            self._measuring.take(tag, value, self.workers, now)
            or self._checks.take(tag, value, self.workers, now)
            or self._parts.progress.take(tag, value, self.workers)
        ):
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
        elif tag in ("secret", "checked"):
            self.link.changed(now)  # the first use of a new secret ends the old one; results are reported at once
        elif tag == "leave":
            self._begin_leaving(value)

    # ------------------------------------------------------------------------------------------------- runners

    def _adopted(self, worker: WorkerHandle) -> None:
        assert worker.link is not None
        self._selector.register(worker.link, selectors.EVENT_READ, worker)
        self._log.say("runner adopted", worker=worker.worker_id, attempt=worker.attempt, state=worker.state)
        worker.send_lease()
        if worker.assignment is not None:
            worker.send_to_runner()  # apply changes made while it had no agent

    def _hear_runner(self, worker: WorkerHandle, mask: int) -> None:
        link = worker.link
        if link is None:
            return
        if mask & selectors.EVENT_WRITE:
            link.flush()
        results, changed = worker.receive()
        now = time.monotonic()
        for result in results:
            self._commands.runner_result(worker, result)
        if changed or results:
            self.link.changed(now)
        if link.closed:
            self._selector.unregister(link)
            if worker.lost_runner(now):
                self._log.say("runner died", worker=worker.worker_id, attempt=worker.attempt, state=worker.state)
            self._commands.runner_gone(worker)
            self.link.changed(now)
        else:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.wants_write else 0)
            self._selector.modify(link, wanted, worker)

    # --------------------------------------------------------------------------------------------- assignments

    def _take_reply(self, reply: AgentReply, asked_ns: int) -> None:
        if reply.fleet_id and reply.fleet_id != self._settings.fleet_id:
            self._log.changed("reply of another fleet ignored", reply.fleet_id)
            return
        now = time.monotonic()
        stored = [self._journal.ack(worker_id, seq) for worker_id, seq in reply.events_acked.items()]
        self._shipper.keep(reply.keep_local_bytes, reply.keep_attempts)
        self._shipper.gather(reply.log_gather_s)
        self._gpus.cordon(reply.cordoned_gpus)
        # Commands first: a kill comes with "desired: stopped", whose gentle stop must not get ahead of it.
        self._commands.receive(reply.commands, self.workers, boottime_ns() / 1e9, asked_ns / 1e9)
        # A duplicated response may arrive in place of a later one, so its leases count from the heartbeat that it
        # answers. Leases are applied before assignments, so that a worker restarted by an assignment already has the
        # lease of its epoch.
        asked_ns = min(asked_ns, reply.beat)
        self._assigned.take_leases(reply.leases, asked_ns)
        if reply.assignments is not None:
            self._assigned.take(reply.assignments, reply.assignments_rev)
            self.link.longest_pause_s = self._assigned.longest_pause_s
            self._assigned.take_leases(reply.leases, asked_ns)  # leases of new workers
            self.link.changed(now)  # and requests the leases of workers that a reply without leases has assigned
        self._parts.searcher.take(reply.searches, self._assigned.log_directory)
        self._shipper.send(reply.ranges)
        self._parts.rotation.take(reply.rotate)
        if self.start_after_reply:
            self.may_start, self.start_after_reply = True, False
        if any(stored) and self._pending_events(1):
            self.link.changed(now)

    def _write_again(self, now: float) -> None:
        if now < self._assigned.next_write:
            return
        if self._assigned.write_again(now):
            self.link.changed(now)
        self._journal.write_again()

    def _behind(self) -> bool:
        """Whether the agent or a runner has data that the disk refused."""
        return self._assigned.behind or self._journal.behind

    def _finish_removal(self, worker: WorkerHandle, now: float) -> None:
        """Complete a removal: once the worker has stopped and its log and events are at the manager, delete its
        directory."""
        if worker.assignment is None or worker.assignment.desired != "removed":
            worker.settled_since = None
            return
        if not worker.settled or worker.needs_runner():
            worker.settled_since = None
            return
        if worker.settled_since is None:
            worker.settled_since, worker.drained = now, False
        acknowledged = worker.drained and not worker.events.pending(self._journal.acked(worker.worker_id), 1)
        if acknowledged or (self.link.up and now - worker.settled_since > REMOVE_ANYWAY_S):
            self._log.say("worker removed", worker=worker.worker_id, log_shipped=worker.drained)
            self._journal.forget(worker.worker_id)
            self._gpus.forget(worker.worker_id)
            self._assigned.remove(worker)
            self.link.changed(now)
            if self._on_removed is not None:
                self._on_removed(worker.worker_id)

    # ------------------------------------------------------------------------------------------------ reports

    def _heartbeat(self) -> dict[str, Any]:
        return encode_short(
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
                workers=[self._report(worker) for worker in self.workers.values()],
                events=self._pending_events(MAX_EVENTS),
                results=self._commands.results(),
                assignments_rev=self._assigned.rev,
                commands_seq=self._commands.seq,
                free_port=self._parts.port.offer(),
                channel_trouble=self._parts.channels.trouble,
                ends=self._leaving == "stopped" and self._leave_by > 0,
                disk_trouble=self._disk.trouble,
                disk_path=self._disk.directory,
            )
        )

    def _report(self, worker: WorkerHandle) -> WorkerReport:
        report = worker.report()
        if worker.assignment is not None and worker.assignment.metrics:
            report.metrics = self._parts.numbers.of(worker.worker_id, worker.attempt)
        return report

    def _pending_events(self, limit: int) -> list[WorkerEvent]:
        events: list[WorkerEvent] = []
        for worker in self.workers.values():
            if len(events) >= limit:
                break
            events += worker.events.pending(self._journal.acked(worker.worker_id), limit - len(events))
        return events

    def _link_changed(self, trouble: str) -> None:
        """Log a change of the connection's status after a heartbeat; "" = answered."""
        if not trouble:
            self._commands.results_taken()
            if not self._shipping:
                self._shipping = True
                self._shipper.start()
            self._shipper.link_is_up()
        if self._log.changed("manager", trouble) and self._on_link is not None:
            self._on_link(trouble)

    def _send_to_runner(self, worker: WorkerHandle) -> None:
        if self._on_report is None:
            return
        about_to_start = not self.may_start or worker.needs_runner()  # also if that is not known yet
        if worker.state in SETTLED and about_to_start and not self._leaving and not worker.gpu_wait:
            return
        key = (worker.state, worker.attempt, worker.status.get("pid"), worker.reason)
        if self._shipped_keys.get(worker.worker_id) != key:
            self._shipped_keys[worker.worker_id] = key
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

    def _printing(self) -> list[Any]:
        """The workers with metrics to read from their output."""
        return [
            [
                worker.worker_id,
                worker.attempt,
                paths.attempts_dir(worker.directory),
                worker.assignment.metrics,
                worker.state in SETTLED,
            ]
            for worker in self.workers.values()
            if worker.assignment is not None and worker.assignment.metrics and worker.attempt
        ]

    # ----------------------------------------------------------------------------------------------- leaving

    def _begin_leaving(self, how: str) -> None:
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
        """Whether the loop ends: at once, or once all workers have ended and there was time to ship their last log
        bytes."""
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
        acknowledged = self.link.beats_answered >= self._last_words_from + 2 and all(
            worker.drained for worker in self.workers.values()
        )
        return acknowledged or now > self._leave_by


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""
