"""Handles GPU faults that agents report: events, cordons, and moves to a spare, according to `recovery.gpu_failures`.

    log       an event and an alert for each fault (the default)
    cordon    a fatal fault also cordons its GPU, or the whole host if it belongs to no GPU: no worker is placed on it
    move      as cordon, and the workers that run on it are moved to a spare; a gang is restarted as a whole. If the
              worker has already ended, it is moved unless the host has another GPU for it

The known faults of an agent are stored with it, so that neither a restart nor another leader repeats an event, and a
cordon that an operator removed is not set again for the same fault. Heartbeats only record which agents report faults.
"""

from __future__ import annotations

from collections.abc import Iterator

from procguard.errors import Conflict
from procguard.fleet.fleet import Fleet
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.model.records import AgentRecord, HostCordon, WorkerRecord
from procguard.fleet.telemetry.gpu_faults import ON_HOST, gpu_key, is_fatal, words
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import of_message
from remote_agent.protocol import states
from remote_agent.protocol.messages import GpuFault

ACTOR = "failure handler"
AGAIN_S = 3600.0  # minimum interval between events of the same fault of the same GPU
MAX_KNOWN = 64  # limit per agent
EVENTS_PER_HOUR = 60  # limit per agent
MAX_CORDONED = 64  # GPUs of a host; beyond, a fault cordons the host


class GpuFailures:
    def __init__(self, fleet: Fleet) -> None:
        self._state, self._placement = fleet.state, fleet.placement
        self._events: dict[str, tuple[float, int]] = {}  # agent -> (monotonic start of the hour, events in it)

    def tick(self, now: Now) -> None:
        """Handle the faults reported since the last call. Durable."""
        noted = list(self._state.faulty_gpus)
        self._state.faulty_gpus.clear()
        for agent_id in noted:
            agent, observed = self._state.agents_by_id.get(agent_id), self._state.agent_status.get(agent_id)
            beat = observed.heartbeat if observed is not None else None
            if agent is not None and beat is not None and agent.kind == "deployed":
                new = dict(self._new(agent, beat.boot_id, beat.usage.gpu_faults if beat.usage is not None else [], now))
                if new:
                    self._take(agent, beat.boot_id, new, now)

    def _new(self, agent: AgentRecord, boot: str, faults: list[GpuFault], now: Now) -> Iterator[tuple[str, GpuFault]]:
        for fault in faults[:MAX_KNOWN]:
            key = f"{boot[:8]}|{gpu_key(fault.uuid, fault.gpu)}|{fault.kind}|{fault.code}"
            known = agent.gpu_faults.get(key)
            if (known is None or fault.at - known >= AGAIN_S) and self._may_emit(agent.agent_id, now):
                yield key, fault

    def _may_emit(self, agent_id: str, now: Now) -> bool:
        begun, count = self._events.get(agent_id, (now.monotonic, 0))
        if now.monotonic - begun >= 3600.0:
            begun, count = now.monotonic, 0
        self._events[agent_id] = begun, count + 1
        return count < EVENTS_PER_HOUR

    def _take(self, agent: AgentRecord, boot: str, new: dict[str, GpuFault], now: Now) -> None:
        policy = self._state.settings.gpu_failures
        fatal = [fault for fault in new.values() if is_fatal(fault)]
        with self._state.transaction(now, ACTOR) as tx:
            kept = {key: at for key, at in agent.gpu_faults.items() if key.startswith(f"{boot[:8]}|")}
            kept.update({key: fault.at for key, fault in new.items()})
            tx.edit(agent).gpu_faults = dict(list(kept.items())[-MAX_KNOWN:])
            for fault in new.values():
                tx.event(
                    "gpu_failed" if is_fatal(fault) else "gpu_fault",
                    host=agent.host,
                    reason=words(fault),
                    cause=f"{fault.kind}_{fault.code}" if fault.code else fault.kind,
                    evidence={"gpu": fault.gpu, "uuid": fault.uuid, "detail": fault.detail, "count": fault.count},
                    source=agent.agent_id,
                )
            if policy != "log":
                for fault in fatal:
                    self._cordon(tx, agent, fault)
        if policy == "move":
            for fault in fatal:
                self._move(agent, fault, now)

    def _cordon(self, tx: Transaction, agent: AgentRecord, fault: GpuFault) -> None:
        cordon = HostCordon(words(fault), ACTOR, iso(tx.now.wall))
        key = gpu_key(fault.uuid, fault.gpu)
        if key == ON_HOST or (key not in agent.gpu_cordons and len(agent.gpu_cordons) >= MAX_CORDONED):
            if agent.cordon is None:
                tx.edit(agent).cordon = cordon
                tx.event("host_cordoned", host=agent.host, reason=cordon.reason)
            return
        if key not in agent.gpu_cordons:
            tx.edit(agent).gpu_cordons = {**agent.gpu_cordons, key: cordon}
            tx.event("gpu_cordoned", host=agent.host, reason=cordon.reason, evidence={"gpu": fault.gpu, "uuid": key})

    def _move(self, agent: AgentRecord, fault: GpuFault, now: Now) -> None:
        for worker_id in sorted(self._on(agent.agent_id, fault) or self._without_gpu(agent, fault)):
            worker = self._state.workers_by_id.get(worker_id)
            if worker is None or worker.agent_id != agent.agent_id or worker.desired != "running":
                continue
            found = self._placement.choose(worker, now)
            try:
                if found.agent_id:
                    self._placement.move(worker_id, self._state.agents_by_id[found.agent_id].host, ACTOR, now)
                    continue
                why = found.reason
            except Conflict as exc:
                why = of_message(exc.message)
            with self._state.transaction(now, ACTOR, wait="nothing") as tx:
                reason = words(fault).then(why)
                tx.event("no_spare", worker_id=worker_id, host=worker.host, reason=reason, cause="reassigned")

    def _on(self, agent_id: str, fault: GpuFault) -> set[str]:
        """The workers on the GPU; for a fault of the host, all workers with a GPU."""
        beat = self._state.agent_status[agent_id].heartbeat
        gpus = beat.usage.gpus if beat is not None and beat.usage is not None else []
        key, found = gpu_key(fault.uuid, fault.gpu), set[str]()
        for gpu in gpus:
            if key in (ON_HOST, gpu_key(gpu.uuid, gpu.index)):
                found |= {gpu.worker_id, *(one.worker_id for one in gpu.processes)}
        return found - {""}

    def _without_gpu(self, agent: AgentRecord, fault: GpuFault) -> set[str]:
        """The worker that waits to be started again and for which the host has no GPU any more; for a fault of the
        host, all that wait. The fault often ends its job before it is reported, and the GPU is free by then."""
        of_agent = [one for one in self._state.workers_of(agent.agent_id) if one.desired == "running" and one.spec.gpus]
        waiting = [one.worker_id for one in of_agent if self._waits(one)]
        if gpu_key(fault.uuid, fault.gpu) == ON_HOST:
            return set(waiting)
        usable = self._placement.usable_gpus(agent.agent_id)
        short = usable is not None and sum(one.spec.gpus for one in of_agent) > len(usable)
        return set(sorted(waiting)[:1]) if short else set()

    def _waits(self, worker: WorkerRecord) -> bool:
        """Whether it has no process and is to be started again, by its agent or with its gang."""
        report = self._state.worker_status[worker.worker_id].report
        if report is None or report.state in states.ALIVE:
            return False
        if not worker.gang:
            return report.state == states.BACKOFF
        gang = self._state.gang_records.get(worker.spec.group)
        phase = gang.phase if gang is not None else ""
        return phase == "restarting" or (phase == "running" and report.state != states.EXITED)
