"""Creates and connects the parts of the manager: state, fleet, monitor, failure handler, SSH helper, logs, WebMonitor.

Owns the order of start and shutdown, and the main loop. Decides nothing itself.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gevent
import gevent.event

from procguard import __version__, expression
from procguard.client import discovery
from procguard.config.schema import Config
from procguard.console import log_format
from procguard.console.language import shown, template
from procguard.deploy.install.helper_client import Result, SshHelper
from procguard.deploy.tunnel.client import TunnelProcess
from procguard.errors import ProcGuardError
from procguard.fleet.agents.maintenance import AgentMaintenance, Op
from procguard.fleet.changes import ChangeBus
from procguard.fleet.fleet import Fleet
from procguard.fleet.history.events import EventBounds, EventLog
from procguard.fleet.history.query import Event
from procguard.fleet.model import clock
from procguard.fleet.model.records import AgentRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.handler import FailureHandler
from procguard.fleet.recovery.incident import SshProbe
from procguard.fleet.recovery.monitor import LOST_AFTER_S, SUSPECT_AFTER_S, ProcessMonitor
from procguard.fleet.state import FleetState
from procguard.fleet.store import open_store
from procguard.fleet.store.interface import Fenced, NotDurable, Store
from procguard.fleet.telemetry.files import MeasurementFiles
from procguard.fleet.telemetry.timeseries import Measurements
from procguard.fleet.workers.selectors import WorkerFacts
from procguard.i18n.reasons import Reason, because, of_message
from procguard.manager import daemon, log_archive, ssh_checks
from procguard.manager.liveness import DeadMan
from procguard.manager.loops import alert_rules, log_retention, measurements, operations
from procguard.manager.peers import ManagerPeers
from procguard.manager.tunnels import Tunnels
from procguard.notify.mutes import Mutes
from procguard.notify.notifier import Notifier, TargetProgress
from procguard.notify.routes import Routes, facts_of
from procguard.notify.rules import AlertRules
from procguard.portal.api.access import new_token
from procguard.portal.logs.archive.archive import LogArchive
from procguard.portal.logs.archive.object_store import kind_of, without_place
from procguard.portal.logs.rules import RetentionKeeper
from procguard.portal.logs.spool import SpooledLogStore
from procguard.portal.web_monitor import WebMonitor
from procguard.runtime import interpreter
from procguard.runtime.cooperative import Pace
from procguard.runtime.gc_policy import GcScheduler
from procguard.runtime.loop_lag import LoopWatchdog
from remote_agent.protocol import messages

FORGET_EVERY_S = 60.0
LOGS_KEPT = 3
ROUND_LATE_S = 30.0  # delay of a monitoring round after which the dead man's switch triggers
TICK_GAP_S = 0.03  # losses within this time are judged together, because thousands of hosts may be lost at once
SSH_DEADLINE_S = 30.0

log = logging.getLogger("procguard.manager.app")


def fleet_settings(config: Config) -> FleetSettings:
    return FleetSettings(
        tick_s=config.monitoring.interval,
        heartbeat_timeout_s=config.monitoring.heartbeat_timeout,
        zombie_detection=config.monitoring.zombie_detection,
        cpu_threshold_percent=config.monitoring.cpu_threshold,
        memory_threshold_percent=config.monitoring.memory_threshold,
        enable_auto_recovery=config.recovery.enable_auto_recovery,
        stop_all_on_failure=config.recovery.stop_all_on_failure,
        task_reassignment=config.recovery.task_reassignment,
        recovery_timeout_s=config.recovery.recovery_timeout,
        max_recovery_attempts=config.recovery.max_recovery_attempts,
        gpu_failures=config.recovery.gpu_failures,
        causes={word: expression.read(text).for_hosts for word, text in config.recovery.causes.items()},
        keep_local_bytes=config.logs.keep_local,
        keep_attempts=config.logs.keep_attempts,
        pending_launchers=config.web.limits.pending_launchers,
        groups=config.groups,
    )


def event_bounds(config: Config) -> EventBounds:
    return EventBounds(config.events.keep, config.events.keep_on_disk)


def measurements_path(state_file: str) -> str:
    """The folder beside the state: data/procguard_state.yaml -> data/procguard_state.measurements."""
    return os.path.splitext(os.path.abspath(state_file))[0] + ".measurements"


class Manager:
    """One running manager. `run` returns after a stop was requested. `lock`: that of the state; `peers`: the other
    managers, if any; `ending`: set to request a stop, possibly before `run`."""

    def __init__(
        self,
        config: Config,
        lock: daemon.StateLock,
        peers: ManagerPeers | None = None,
        ending: gevent.event.Event | None = None,
        given: Mapping[str, str] | None = None,
    ) -> None:
        """`given`: secrets of the log archive, already removed from the environment."""
        self._config = config
        self._peers = peers
        self._lock = lock
        self._ending = gevent.event.Event() if ending is None else ending
        self._tick_now = gevent.event.Event()
        self._round_at = clock.read().monotonic
        now = clock.read()
        settings = fleet_settings(config)
        self._silent_after_s = settings.heartbeat_timeout_s / 2  # an agent silent for longer may be cut off
        self._gc = GcScheduler()
        self._gc.start()  # otherwise the collector scans a large state repeatedly while it is read
        if given is None:
            given = log_archive.secrets_of(config)
        log_archive.check(config, given)  # before the state is opened: a refusal leaves it as it was
        store: Store
        if peers is not None:
            store = peers.store
        else:
            store = open_store(config.state.state_file, auto_save=config.state.auto_save, run_blocking=_in_thread_pool)
        events = EventLog(store, event_bounds(config))
        bus = ChangeBus()
        bus.events.subscribe(_log_event)
        logs = SpooledLogStore(
            os.path.join(config.state_directory, "logs"),
            config.logs.keep_attempts,
            keep_per_worker=config.logs.keep_per_worker,
            keep_in_all=config.logs.keep_in_all,
        )
        routes, self.mutes, self.alert_rules = Routes(config.notify), Mutes(), AlertRules(config.alerts)
        self.notifier = Notifier(
            config.notifications,
            lambda: self.fleet.state.fleet_id,
            self._portal_url,
            routes=[route.model_dump() for route in config.notify],
            routed=lambda event: routes.targets(event, self._facts_of(event)) if config.notify else (),
            muted=lambda event: self.mutes.cover(event["at"], self._facts_of(event)),
            last_lines=logs.last_lines,
            notified_of_ends=routes.notified_of_ends,
            keep=self._keep_message,
        )
        bus.events.subscribe(self.notifier.take)
        self._state: FleetState | None = None  # None until the state is read, because reading it creates events
        self.fleet = Fleet(store, events, settings, now, bus, peers.seat if peers is not None else None)
        self._state = self.fleet.state
        self.archive: LogArchive | None = None
        if config.logs.archive:
            self.archive = log_archive.attach(
                config,
                logs,
                fleet_id=self.fleet.state.fleet_id,
                given=given,
                database=peers.seat.place if peers is not None else None,
                term=self.fleet.state.leadership.term,
                said=self._archive_said,
                known=lambda: {messages.directory_name(one): one for one in self.fleet.state.workers_by_id},
            )
        self.fleet.state.more_tables += [self.notifier.tables, self.mutes.tables, self.alert_rules.tables]
        self.mutes.restore(self.fleet.kept_tables["mutes"], now.wall)
        self.alert_rules.restore(self.fleet.kept_tables["rule_alerts"])
        self.monitor = ProcessMonitor(self.fleet, settings, now)
        self.ssh = SshHelper()
        self.tunnels = Tunnels(self.fleet, TunnelProcess)
        self.failures = FailureHandler(
            self.fleet,
            monitor=self.monitor,
            settings=settings,
            probe=self._probe,
            spawn=gevent.spawn,
            read_clock=clock.read,
            manager_urls=self._manager_urls,
            rest=Pace(),
        )
        self.maintenance = AgentMaintenance(
            self.fleet, run_ssh=self._maintain_agent, spawn=gevent.spawn, pause=gevent.sleep, read_clock=clock.read
        )
        bus.poll_lost.subscribe(self._tick_soon)
        self.retention = RetentionKeeper(config.logs.retention, logs, self._facts)
        self.watchdog = LoopWatchdog()
        self.measurements = Measurements()
        self.measurement_files = MeasurementFiles(measurements_path(config.state.state_file))
        self.web = WebMonitor(
            config,
            self.fleet,
            logs,
            self.ssh,
            self.notifier,
            tunnels=self.tunnels,
            maintenance=self.maintenance,
            measurements=self.measurements,
            lags=self.watchdog.lags,
            managers=peers,
            mutes=self.mutes,
            alert_rules=self.alert_rules,
            listener=peers.listener if peers is not None else None,
            retention=self.retention.rules,
        )

    def _facts_of(self, event: Event) -> Mapping[str, Any]:
        if self._state is None:
            return {"worker_id": "", "host": "", "state": ""}
        return facts_of(self._state, event)

    def _manager_urls(self) -> list[str]:
        return self.web.manager_urls()  # created later than its callers

    def _portal_url(self) -> str:
        """The portal's URL for links in messages, reachable from other machines; "" if there is no portal."""
        return self.web.manager_urls()[0] if self._config.web.enabled and self.web.manager_urls() else ""

    def _first_token(self) -> str:
        """Create the first operator token in a private file, which is necessary without web.trust_local.

        Returns the file's path, "" if not necessary. The token is revoked like any other.
        """
        tokens, now = self.fleet.tokens, clock.read()
        usable = [token for token in tokens.all() if token.scope == "operator" and not tokens.usable(token, now)]
        if self._config.web.trust_local or usable:
            return ""
        token, path = new_token(), os.path.join(self._config.state_directory, "operator.token")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # processes that have an earlier file open must not see the new content
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(token + "\n")
        tokens.add("operator", "first", messages.secret_sha256(token), "manager", now)
        return path

    def run(self) -> int:
        """Serve until a signal ends it. The address is printed once it answers."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            gevent.signal_handler(number, self._ending.set)
        self._gc.start()  # the next collection runs once the fleet has reconnected
        try:
            self.web.start()
            self.tunnels.start(self.web.agents_port)
            self.notifier.resume(
                self.fleet.kept_tables["notifier"], self.fleet.state.events(limit=1_000), clock.read().wall
            )
            self.notifier.start()
            self._lock.announce(self.web.url)
            if self.web.ca_file:
                discovery.announce(self.web.port, self.web.url, self.web.ca_file)
            self._print_summary()
            loops: list[gevent.Greenlet[..., object]] = [
                gevent.spawn(self._loop),
                gevent.spawn(operations.drive, self.fleet.operations),
                gevent.spawn(measurements.drive, self.measurements, self.measurement_files, self.fleet),
                gevent.spawn(log_retention.drive, self.retention),
                gevent.spawn(alert_rules.drive, self.alert_rules, self.fleet),
            ]
            if self.archive is not None:
                loops.append(gevent.spawn(self.archive.run))
            monitoring = self._config.monitoring
            if monitoring.dead_man_url:
                dead_man = DeadMan(monitoring.dead_man_url, monitoring.dead_man_interval, self._is_alive)
                loops.append(gevent.spawn(dead_man.run))
            if self._peers is not None:
                loops += [gevent.spawn(self._end_with_the_term, self._peers), gevent.spawn(self._check_ssh)]
            self.watchdog.start()
            self._ending.wait()
            log.info("ending")
            gevent.killall(loops)
        finally:
            if self.web.ca_file:
                discovery.withdraw(self.web.port)
            self.web.stop()
            self.tunnels.stop()
            self.notifier.stop()
            self.ssh.close()
            self.measurement_files.close()
            self.watchdog.stop()
            if self.archive is not None:
                self.archive.close()
            self.fleet.close()
            self._lock.release()
        return 0

    def _facts(self) -> Iterator[WorkerFacts]:
        """The facts about all workers for selectors. Yields to other greenlets."""
        rest = Pace()
        for worker_id, worker in list(self.fleet.state.workers_by_id.items()):
            rest()
            if self.fleet.state.workers_by_id.get(worker_id) is worker:
                yield self.fleet.state.facts(worker)

    def _archive_said(self, problem: str) -> None:
        assert self.archive is not None
        shown = self.archive.place.shown
        place = kind_of(shown)  # viewers read events
        if problem:
            reason = because("archive.failing", place=place, error=of_message(without_place(problem, shown)))
            self._emit_event("archive_failing", reason, clock.read())
        else:
            self._emit_event("archive_works", because("archive.works", place=place), clock.read())

    def _end_with_the_term(self, peers: ManagerPeers) -> None:
        gevent.wait([peers.seat.fenced, peers.handed_over], count=1)
        self._ending.set()

    def _check_ssh(self) -> None:
        """Check after a takeover whether recovery over SSH works from this manager, before it is needed."""
        agents = [agent for agent in self.fleet.state.agents_by_id.values() if agent.kind == "deployed"]

        def report(host: str, ok: bool, reason: Reason) -> None:
            self.fleet.agents.set_recovery_ssh(host, ok, reason, clock.read())

        ssh_checks.check_all(self.ssh, [(agent.host, agent.ssh) for agent in agents], report)

    def _tick_soon(self, _agent_id: str) -> None:
        """Schedule a round for a lost connection before the next regular interval."""
        for after_s in (SUSPECT_AFTER_S, LOST_AFTER_S):
            gevent.spawn_later(after_s + 0.005, self._tick_now.set)

    def _is_alive(self) -> bool:
        """Whether the main loop has completed a round recently."""
        return clock.read().monotonic - self._round_at < ROUND_LATE_S + self._config.monitoring.interval

    def _loop(self) -> None:
        silent_agents_due = True
        disk_refuses = False
        forgot_at = clock.read().monotonic
        refused = ""
        while True:
            due_s = max(TICK_GAP_S, self.failures.due_in_s(clock.read()))
            self._tick_now.wait(min(self._config.monitoring.interval, due_s))
            self._tick_now.clear()
            if not self.fleet.state.leadership.may_direct():  # without the database, or no longer the leader
                continue
            now = clock.read()
            self._round_at = now.monotonic
            try:
                self._yield_if_cut_off(now)
                self._keep_state_in_place(now)
                if silent_agents_due and not self.monitor.in_grace(now):
                    silent_agents_due = False
                    self._gc.start()
                    self.failures.open_incidents_for_silent_agents(now)
                self.failures.tick(now)
                self.fleet.gangs.tick(now)
                self.fleet.agents.enrolment.expire(now)
                self._keep_cursors(now)
                self.fleet.state.durability.commit()
                self._run_breaker_probe(now)
                if not silent_agents_due:
                    self._gc.collect_if_due(now.monotonic)
                if disk_refuses:
                    disk_refuses = False
                    self._emit_event("durable_again", because("state.durable_again"), now)
                if now.monotonic - forgot_at > FORGET_EVERY_S:
                    forgot_at = now.monotonic
                    self.fleet.agents.enrolment.forget_the_ended(now)
                self.fleet.state.durability.save()
                refused = ""
            except Fenced as exc:  # further changes of this process would not be stored
                log.critical("%s", exc)
                if self._peers is not None:
                    self._peers.seat.ended = True
                self._ending.set()
            except ProcGuardError as exc:  # the disk refused; the next round tries again
                if str(exc) != refused:
                    log.error("%s", exc)
                refused = str(exc)
                # reported once; written when the disk accepts writes again
                if isinstance(exc, NotDurable) and not disk_refuses:
                    disk_refuses = True
                    self._emit_event("not_durable", because("state.not_durable", error=of_message(exc.message)), now)
            except Exception:  # an error in one round must not end supervision
                log.exception("a monitoring round failed; the next one goes on")
            gevent.sleep(TICK_GAP_S)

    def _yield_if_cut_off(self, now: clock.Now) -> None:
        """Hand over to a standby that the agents can reach if nearly none of them reaches this leader, before their
        hosts are considered lost."""
        if self._peers is None or self._peers.handed_over.is_set():
            return
        oldest = now.monotonic - self._silent_after_s
        seen = [one.last_seen for one in self.fleet.state.agent_status.values() if one.last_seen is not None]
        connected = sum(at >= oldest for at in seen)
        successor = self._peers.better_connected(connected, len(seen))
        if successor:
            reason = because(
                "managers.cut_off",
                manager=self._peers.seat.name,
                successor=successor,
                connected=connected,
                agents=len(seen),
            )
            log.error("%s", reason)
            self._emit_event("state", reason, now)
            self._peers.promote(successor)

    def _keep_cursors(self, now: clock.Now) -> None:
        """Store the notifier's cursors, so that the next manager process or leader sends pending alerts."""
        moved = self.notifier.moved()
        if moved:
            with self.fleet.state.transaction(now, "manager", wait="nothing") as tx:
                for name, record in moved.items():
                    tx.put("notifier", name, dict(record))

    def _keep_message(self, target: str, progress: TargetProgress) -> None:
        """Store which alerts a message is about before it is sent: a later leader sends it again as the same. Where it
        cannot be stored, it is sent nevertheless."""
        with contextlib.suppress(ProcGuardError):
            with self.fleet.state.transaction(clock.read(), "manager") as tx:
                tx.put("notifier", target, dict(progress))

    def _emit_event(self, kind: str, reason: Reason, now: clock.Now) -> None:
        with self.fleet.state.transaction(now, "manager", wait="nothing") as tx:
            tx.event(kind, reason=reason)

    def _keep_state_in_place(self, now: clock.Now) -> None:
        """Restore missing state files. Raises ProcGuardError while they cannot be written."""
        if self.fleet.state.durability.displaced:
            self._lock.renew()
        try:
            self.fleet.state.keep_in_place(now)
        except ProcGuardError as exc:
            if exc.code == "another_state":
                self._lock.let_go()
            raise

    def _run_breaker_probe(self, now: clock.Now) -> None:
        """While the circuit breaker is open, check whether SSH to other hosts works. Starts nothing there."""
        agent = self.monitor.breaker_probe(now)
        if agent is None:
            return

        def probe() -> None:
            result = self.ssh.check(agent.host, agent.ssh, SSH_DEADLINE_S)
            self.monitor.ssh_answered(result.ok, because("ssh.probe", host=agent.host, why=result.message))

        gevent.spawn(probe)

    def _probe(self, agent: AgentRecord, replace_frozen: bool) -> SshProbe:
        result = self.ssh.ensure_agent(
            agent.host,
            agent.ssh,
            home=agent.procguard_home,
            fleet_id=self.fleet.state.fleet_id,
            replace_frozen=replace_frozen,
            manager=self.web.for_agents(local=bool(agent.ssh.get("local"))),
            deadline_s=SSH_DEADLINE_S,
        )
        if result.ok:
            self.tunnels.kick(agent.agent_id)
        addresses = result.addresses
        new_addresses, no_way = tuple(addresses.get("new") or ()), bool(addresses.get("unreached"))
        return SshProbe(result.ok, result.agent, result.message, new_addresses, no_way)

    def _maintain_agent(self, op: Op, agent: AgentRecord, deadline_s: float, max_bytes: int = 0) -> Result:
        return self.ssh.maintain(
            op,
            agent.host,
            agent.ssh,
            home=agent.procguard_home,
            fleet_id=self.fleet.state.fleet_id,
            deadline_s=deadline_s,
            max_bytes=max_bytes,
        )

    def _print_summary(self) -> None:
        config = self._config
        _say(f"ProcGuard {__version__} is running (pid {os.getpid()}); Ctrl-C stops it, workers keep running")
        _say(f"  portal  {self.web.url}" if config.web.enabled else f"  API     {self.web.url}")
        if config.communication.adapter_type == "zmq":
            own = config.communication.adapter_config
            _say(f"  zmq     {own.host}, ports {own.port_base} and {own.port_base + 1}")
        _say(f"  state   {self.fleet.state.store.path}")
        if self._peers is not None:
            seat = self._peers.seat
            _say(f"  leads   as {seat.name}, term {seat.term}")
        _say(f"  log     {config.logging.file}")
        if self.web.ca_file:
            _say(f"  CA      {self.web.ca_file} ({self.web.pinned().fingerprint})")
            curl = shlex.join(["curl", "--cacert", self.web.ca_file, f"{self.web.url}/api/remote-workers"])
            _say(f"  try     {curl}")
        token_file = self._first_token()
        if token_file:
            _say(f"  token   {token_file} (web.trust_local is false; set it as PROCGUARD_TOKEN)")
        for note in (*self.fleet.notes, *interpreter.known_holes()):
            print(f"{template('  note    {}').format(shown(note))}", flush=True)
            log.warning("%s", note)
        log.info("running url=%s fleet=%s state=%s", self.web.url, self.fleet.state.fleet_id, config.state.state_file)


class PrivateLog(logging.handlers.RotatingFileHandler):
    """A log file that only its owner can read, whatever the umask; fixes the mode of an existing file, too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for number in range(1, self.backupCount + 1):
            with contextlib.suppress(OSError):
                os.chmod(f"{self.baseFilename}.{number}", 0o600)

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Decides by the bytes written: logging's own method stats the file and formats the record again for each
        record."""
        return self.stream is not None and self.stream.tell() >= self.maxBytes

    def _open(self) -> Any:
        name, mode = self.baseFilename, self.mode
        file = open(name, mode, encoding=self.encoding, errors=self.errors, opener=daemon.private)  # noqa: SIM115
        os.fchmod(file.fileno(), 0o600)
        return file


def set_up_logging(config: Config) -> None:
    """Set up the manager's log: bounded, in the configured format."""
    try:
        os.makedirs(os.path.dirname(config.logging.file), mode=0o700, exist_ok=True)
        handler = PrivateLog(config.logging.file, maxBytes=20_000_000, backupCount=LOGS_KEPT, encoding="utf-8")
    except OSError as exc:
        raise ProcGuardError(
            f"logging.file: cannot write {config.logging.file} ({exc.strerror})",
            "choose another: --set logging.file=PATH",
        ) from exc
    handler.setFormatter(log_format.Formatter(config.logging.format))
    log_format.look_up_only(config.logging.format)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(config.logging.level)
    logging.getLogger("paramiko").setLevel(logging.WARNING)
    log_format.report_greenlets_to(log, gevent.get_hub())


def _say(text: str) -> None:
    print(shown(text), flush=True)


def _in_thread_pool(task: Callable[[], None]) -> None:
    """Run blocking disk work off the event loop."""
    gevent.get_hub().threadpool.apply(task)


def _log_event(event: Event) -> None:
    shown = {
        key: value
        for key, value in event.items()
        if value is not None and key not in ("seq", "at", "reason", "kind", "evidence")
    }
    fields = " ".join(f"{key}={value}" for key, value in shown.items())
    log.info("%s %s: %s", event["kind"], fields, event["reason"])
