"""One deployment: hosts and the workers that their inventory declares, checked as a whole before anything changes.

Rules: a changed specification is stored and the process is left running; a worker that is no
longer declared keeps running, marked undeclared (`prune` removes it); one that moved to another host is refused until
its old instance has stopped; a stop by an operator is preserved.

A worker belongs to its current host, unless another host, its home, still declares it. Deploying, pruning or
undeploying a host never affects an instance on another host.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, TypeAdapter, ValidationError

from procguard.config.groups import GroupPolicy
from procguard.errors import Conflict, UsageError
from procguard.fleet.gangs.controller import Gangs
from procguard.fleet.leases import Leases, replace_spec
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.model.records import AgentRecord, RecoverySsh, SshSettings, WorkerRecord
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.fleet.workers import ownership
from procguard.fleet.workers.deployed import Declaration, HostAbsent, HostDeployed, WorkerDeployed
from procguard.fleet.workers.placement_service import PlacementService
from procguard.fleet.workers.spec_diff import differences
from procguard.i18n.reasons import because
from procguard.json_types import Json
from remote_agent.protocol import messages, states

MAX_SOURCE_CHARS = 4_200  # a path, and the number of a line

Result = Literal["new", "unchanged", "changed", "refused", "undeclared", "removed", "moved", "elsewhere"]


def _printable(source: str) -> str:
    """Whether the path is printable text, because it is shown in commands that people copy."""
    if not source.isprintable():
        raise ValueError("a file and a line, without control characters")
    return source


class WorkerDeclared(BaseModel):
    """`source`: file and line that declare it, on the machine that deploys: "/home/ml/inventory/prod.yaml:12"."""

    model_config = ConfigDict(extra="forbid")
    worker_id: str = Field(pattern=messages.ID_PATTERN)
    spec: Json
    source: Annotated[str, Field(max_length=MAX_SOURCE_CHARS), AfterValidator(_printable)] = ""


class HostDeclared(BaseModel):
    model_config = ConfigDict(extra="forbid")
    host: str = Field(pattern=messages.ID_PATTERN)
    ssh: SshSettings = Field(default_factory=dict)
    procguard_home: str = ""
    tunnel: StrictBool = False
    spare: StrictBool | Annotated[StrictInt, Field(ge=0)] = False
    labels: dict[str, str] = Field(default_factory=dict)
    workers: list[WorkerDeclared] = Field(default_factory=list)


class FoundWorker(BaseModel):
    """What the files on a host record about one worker, read over SSH."""

    worker_id: str = Field(max_length=256)
    alive: StrictBool = False  # its runner is alive


class InventoryNamed(BaseModel):
    """The inventory of a deployment. `hosts`: all of its hosts; None if only a part is deployed. `workers`: worker id
    -> host, of the whole inventory even if only a part is deployed."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=1_000)
    hosts: list[str] | None = Field(default=None, max_length=10_000)
    workers: dict[str, str] = Field(default_factory=dict, max_length=1_000_000)


class DeploymentRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inventory: InventoryNamed | None = None  # None: hosts that no file names
    hosts: list[HostDeclared] = Field(max_length=10_000)
    groups: dict[str, GroupPolicy] = Field(default_factory=dict)
    prune: bool = False
    check: bool = False
    # Needed after state.rebuild: the workers found on each host that could be read. `all_read`: no host is missing.
    found: dict[str, list[FoundWorker]] | None = None
    all_read: bool = False


OTHERS_NAMED = 50
_SPEC: TypeAdapter[messages.WorkerSpec] = TypeAdapter(messages.WorkerSpec)


class Deployment:
    def __init__(
        self,
        state: FleetState,
        leases: Leases,
        placement: PlacementService,
        gangs: Gangs,
        request: Json,
    ) -> None:
        self._state = state
        self._leases = leases
        self._placement = placement
        self._gangs = gangs
        self._differences: dict[str, list[str]] = {}  # of workers that exist already
        self._starts: dict[str, int] = {}  # the attempt that this deployment starts, if any
        try:
            self._request = DeploymentRequest.model_validate(request)
            self._away: dict[str, list[WorkerRecord]] = {}  # by home: those that live elsewhere
            self._failed_gangs: dict[str, WorkerRecord] = {}  # to be started again: group -> its corrected member
            self._gave_up: dict[str, list[WorkerRecord]] = {}  # by former home: workers whose home is now another host
            named = self._request.inventory
            self._declared_on = dict(named.workers) if named is not None else {}
            for host in self._request.hosts:
                self._declared_on.update((worker.worker_id, host.host) for worker in host.workers)
            self._specs = {
                worker.worker_id: self._spec(worker) for host in self._request.hosts for worker in host.workers
            }
            self._hosts = {host.host for host in self._request.hosts}
            self._sources = {worker.worker_id: worker.source for host in self._request.hosts for worker in host.workers}
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"deployment: {where}: {first['msg']}", "fix the inventory and deploy again") from exc
        self._refuse_duplicates()

    @staticmethod
    def _spec(worker: WorkerDeclared) -> messages.WorkerSpec:
        _SPEC.validate_python(worker.spec)
        return messages.decode(messages.WorkerSpec, worker.spec)

    def _refuse_duplicates(self) -> None:
        first: dict[str, str] = {}
        hosts: set[str] = set()
        for host in self._request.hosts:
            if host.host in hosts:
                raise UsageError(f"deployment: host {host.host} is listed twice", "list it once")
            hosts.add(host.host)
            for worker in host.workers:
                other = first.get(worker.worker_id)
                if other is not None:
                    raise UsageError(
                        f"deployment: worker {worker.worker_id} is declared on {other} and on {host.host}",
                        "a worker id is unique in the fleet: rename one, e.g. with {{ inventory_hostname }} in it",
                        code="duplicate_worker",
                    )
                first[worker.worker_id] = host.host

    def carry_out(self, actor: str, now: Now) -> Declaration:
        """Apply the deployment; with `check`, only report what would change. Durable."""
        self._now = now
        self._refuse_unread()
        self._away = self._relocated_workers()
        if self._request.check:
            return self._declare(None)
        with self._state.transaction(now, actor) as tx:
            answer = self._declare(tx)
            used = {spec.group for spec in self._specs.values() if spec.group}
            self._state.workers_version += 1  # the membership of groups may have changed
            self._gangs.groups.declare(tx, self._request.groups, used)
            self._gangs.reconcile(tx)
            if self._request.found is not None and self._request.all_read and self._state.rebuilt:
                self._state.all_read(tx)
            for worker in self._failed_gangs.values():
                self._gangs.begin_again(tx, worker)
            hosts = len(self._request.hosts)
            tx.event("deploy", reason=because("deploy.declared", hosts=hosts, workers=len(self._specs)))
        return answer

    def _declare(self, tx: Transaction | None) -> Declaration:
        """Declare one host's workers. `tx` None: only report what would change."""
        self._settle_homes(tx)
        return {
            "fleet_id": self._state.fleet_id,
            "hosts": {host.host: self._host(tx, host) for host in self._request.hosts},
            "absent": self._absent(tx),
            "of_other_inventories": self._of_other_inventories(),
        }

    def _absent(self, tx: Transaction | None) -> dict[str, HostAbsent]:
        """Undeclare or prune the workers of hosts that this inventory no longer names. Hosts of other inventories are
        not affected."""
        named = self._request.inventory
        if named is None or named.hosts is None:
            return {}
        found: dict[str, HostAbsent] = {}
        for agent in list(self._state.agents_by_id.values()):
            if agent.kind != "deployed" or agent.inventory != named.name or agent.host in named.hosts:
                continue
            guests = {worker.worker_id for workers in self._away.values() for worker in workers}
            living = [worker.worker_id for worker in self._state.workers_of(agent.agent_id)]
            found[agent.host] = {
                "agent_id": agent.agent_id,
                "ssh": agent.ssh,
                "procguard_home": agent.procguard_home,
                "workers": self._worker_results(self._undeclared(tx, agent.agent_id)),
                "guests": sorted(guests.intersection(living)),
            }
            if tx is not None and not agent.undeclared:
                tx.edit(agent).undeclared = True
        return found

    def _of_other_inventories(self) -> dict[str, str]:
        """Returns deployed hosts that this inventory does not name, with the inventory that named them last.
        Bounded."""
        named = self._request.inventory
        if named is None or named.hosts is None:
            return {}
        agents = [one for one in self._state.agents_by_id.values() if one.kind == "deployed"]
        others = [one for one in agents if one.inventory != named.name and one.host not in named.hosts]
        return {one.host: one.inventory for one in others[:OTHERS_NAMED]}

    def _worker_results(self, workers: dict[str, tuple[Result, str]]) -> dict[str, WorkerDeployed]:
        return {
            wid: {
                "result": result,
                "message": text,
                "differences": self._differences.get(wid, []),
                "starts": self._starts.get(wid),
            }
            for wid, (result, text) in workers.items()
        }

    def _refuse_unread(self) -> None:
        """Raise Conflict if the state was rebuilt and the deployment does not report where its workers may be
        running."""
        request, state = self._request, self._state
        unknown = [worker_id for worker_id in self._specs if worker_id not in state.workers_by_id]
        if state.rebuilt and unknown and request.found is None and not request.check:
            raise Conflict(
                f"this state was rebuilt: where {', '.join(unknown[:5])} may be running must be read from the hosts",
                "deploy with this release's invoke deploy, which reads it over SSH",
                code="records_needed",
            )

    def _where_found(self, worker_id: str) -> list[str]:
        """The hosts on which the worker was found running over SSH."""
        found = self._request.found or {}
        return [host for host, workers in found.items() if any(w.alive and w.worker_id == worker_id for w in workers)]

    def _relocated_workers(self) -> dict[str, list[WorkerRecord]]:
        """Home agent -> its workers that currently run on other hosts."""
        relocated: dict[str, list[WorkerRecord]] = {}
        for worker in self._state.workers_by_id.values():
            if worker.home and worker.home != worker.agent_id:
                relocated.setdefault(worker.home, []).append(worker)
        return relocated

    def _settle_homes(self, tx: Transaction | None) -> None:
        """Update the homes of workers that run on another host: a host that declares a worker it runs becomes its
        home, and a home that no longer declares it ceases to be one. The running instances are not affected."""
        named = {host.host for host in self._request.hosts}
        for home, workers in list(self._away.items()):
            for worker in workers[:]:
                declared_on = self._declared_on.get(worker.worker_id)
                if declared_on != worker.agent_id and (home not in named or declared_on == home):
                    continue
                workers.remove(worker)
                if home in named:
                    self._gave_up.setdefault(home, []).append(worker)
                if tx is not None:
                    tx.edit(worker).home = ""

    def _host(self, tx: Transaction | None, declared: HostDeclared) -> HostDeployed:
        state, agent_id = self._state, declared.host
        agent = state.agents_by_id.get(agent_id)
        if tx is not None:
            if agent is None:
                agent = AgentRecord(agent_id, declared.host, "deployed")
            inventory = self._request.inventory.name if self._request.inventory else agent.inventory
            new = agent.agent_id not in state.agents_by_id or agent.undeclared or agent.inventory != inventory
            if new or _declared(agent) != _declared(declared):
                tx.edit(agent)
                agent.inventory, agent.undeclared = inventory, False
                if agent.ssh != declared.ssh and agent_id in state.agent_status:
                    state.agent_status[agent_id].recovery_ssh = RecoverySsh()
                agent.ssh, agent.procguard_home = declared.ssh, declared.procguard_home
                agent.spare, agent.labels, agent.tunnel = declared.spare, declared.labels, declared.tunnel
                if agent_id not in state.agents_by_id:
                    tx.add(agent)
        workers = {worker.worker_id: self._worker(tx, worker.worker_id, agent_id) for worker in declared.workers}
        workers.update(self._undeclared(tx, agent_id))
        observed = state.agent_status.get(agent_id)
        return {
            "agent_id": agent_id,
            "proof_key": state.proof_key(agent_id),
            "secret_sha256": agent.secret_sha256 if agent else "",
            "last_heartbeat_at": iso(observed.last_seen_wall) if observed else None,
            "workers": self._worker_results(workers),
        }

    def _worker(self, tx: Transaction | None, worker_id: str, agent_id: str) -> tuple[Result, str]:
        state, spec = self._state, self._specs[worker_id]
        worker = state.workers_by_id.get(worker_id)
        if worker is None:
            return self._new(tx, worker_id, agent_id, spec)
        if tx is not None and worker.source != self._sources[worker_id]:
            tx.edit(worker).source = self._sources[worker_id]
        if agent_id not in (worker.agent_id, worker.home):
            return self._moved(tx, worker, agent_id, spec)
        changed = worker.spec != spec
        self._differences[worker_id] = differences(worker.spec, spec)
        revived, corrected = worker.undeclared or worker.desired == "removed", ""
        report = state.worker_status[worker_id].report
        if (changed or revived) and tx is not None:
            tx.edit(worker)
            if report and report.launch_digest == state.launch_digest(worker):
                worker.started_spec = worker.spec
            replace_spec(worker, spec)
            worker.undeclared = False
            if worker.desired == "removed":
                worker.desired, worker.generation = "running", worker.generation + 1
                self._will_start(worker)
            elif changed:
                corrected = self._correct(worker)
        away = ""
        if worker.agent_id != agent_id:
            away = f"it lives on {worker.host} since it was reassigned; to move it back: "
            away += f"invoke move {worker_id} {agent_id}"
        if corrected:
            return "changed", "; ".join(filter(None, (away, corrected)))
        if not changed:
            return ("changed", away or "declared again") if revived else ("unchanged", away)
        if report and report.launch_digest and report.launch_digest != messages.launch_digest(spec):
            return "changed", "restart pending: it keeps running with the specification it was started with"
        return "changed", away

    def _new(
        self, tx: Transaction | None, worker_id: str, agent_id: str, spec: messages.WorkerSpec
    ) -> tuple[Result, str]:
        state, stopped_by, message = self._state, "", ""
        if state.stopped_by:
            stopped_by, message = "failure handler", f"stopped with all others: {state.stopped_by}"
        if state.rebuilt and self._request.found is not None:
            agent_ids = self._where_found(worker_id)
            if agent_ids and agent_id not in agent_ids:
                return "refused", (
                    f"it runs on {', '.join(agent_ids)} according to that host: stop it there, or declare it on "
                    f"{agent_ids[0]} and deploy"
                )
            if not agent_ids:
                unread = [host.host for host in self._request.hosts if host.host not in self._request.found]
                stopped_by = "state.rebuild"
                message = "no host that was read runs it: it is declared stopped; to start it: "
                message += f"invoke start {worker_id}" + (f" (not read: {', '.join(unread[:10])})" if unread else "")
        if tx is not None:
            source = self._sources[worker_id]
            worker = WorkerRecord(worker_id, agent_id, agent_id, spec, epoch=state.next_epoch(tx), source=source)
            if stopped_by:
                cause = "stop_all" if state.stopped_by else "state"
                worker.set_desired("stopped", by=stopped_by, cause=cause, now=tx.now)
            ownership.confirm(tx, state.agents_by_id[agent_id], worker_id)
            tx.add(worker)
            self._will_start(worker)
        return "new", message

    def _correct(self, worker: WorkerRecord) -> str:
        """Start a failed or backing-off worker again with its corrected specification and a new restart budget; a
        failed gang is started again as a whole, once. Returns a note for the operator, or "" if nothing was to be
        done."""
        report = self._state.worker_status[worker.worker_id].report
        reported = report.state if report else worker.last_state
        if worker.desired != "running":
            return ""
        if worker.gang:
            gang = self._gangs.records.get(worker.spec.group)
            if gang is None or gang.phase != "failed":
                return ""
            self._failed_gangs.setdefault(worker.spec.group, worker)
            self._will_start(worker)
            return "corrected: its gang starts again with a new restart budget"
        if reported not in (states.FAILED, states.BACKOFF):
            return ""
        worker.generation, worker.moves = worker.generation + 1, 0
        self._will_start(worker)
        return "corrected: it starts again with a new restart budget"

    def _will_start(self, worker: WorkerRecord) -> None:
        if worker.desired == "running":
            report = self._state.worker_status[worker.worker_id].report
            self._starts[worker.worker_id] = max(worker.attempt, report.attempt if report else 0) + 1

    def _moved(
        self, tx: Transaction | None, worker: WorkerRecord, agent_id: str, spec: messages.WorkerSpec
    ) -> tuple[Result, str]:
        state = self._state
        view = state.worker(worker.worker_id)
        if worker.moving is not None and worker.moving.to == agent_id:
            if tx is not None:
                replace_spec(tx.edit(worker), spec)
                worker.undeclared, worker.moving = False, dataclasses.replace(worker.moving, settles=True)
            return "unchanged", f"moving here from {worker.host}"
        if not self._leases.is_confirmed_stopped(worker.worker_id, self._now):
            return "refused", (
                f"it is {view['state']} on {worker.host}; stop it there first (invoke stop {worker.worker_id}), then "
                f"deploy again; or move it here: invoke move {worker.worker_id} {agent_id}"
            )
        target = state.agents_by_id.get(agent_id)
        if target is not None and worker.worker_id in target.withdrawn:
            return "refused", f"{agent_id} has not confirmed yet that its earlier copy is gone; deploy again soon"
        if tx is not None:
            old = state.agents_by_id.get(worker.agent_id)
            reason = because("task.moved_home", host=worker.host)
            if old is not None and old.kind == "launcher":
                ownership.drop_agent(tx, old)
            elif old is not None:
                ownership.withdraw(state, tx, old, worker)
            self._placement.transfer(tx, worker, agent_id, agent_id)
            worker.spec, worker.undeclared, worker.home, worker.moves = spec, False, "", 0
            self._will_start(worker)
            tx.event("takeover", worker_id=worker.worker_id, host=agent_id, reason=reason)
        return "moved", f"from {view['host']}"

    def _undeclared(self, tx: Transaction | None, agent_id: str) -> dict[str, tuple[Result, str]]:
        """Workers on this host that the inventory no longer names. Excludes workers that another host's inventory
        entry declares, and those that are moving away."""
        found: dict[str, tuple[Result, str]] = {}
        for worker in self._gave_up.get(agent_id, ()):
            if worker.worker_id not in self._declared_on:
                found[worker.worker_id] = (
                    "elsewhere",
                    f"no longer declared here; it runs on {worker.host} and is left unchanged (to remove it: "
                    f"invoke deploy --limit {worker.host} --prune)",
                )
        guests = {worker.worker_id for workers in self._away.values() for worker in workers}
        for worker in self._state.workers_of(agent_id):
            if worker.worker_id in guests or worker.desired == "removed" or worker.moving is not None:
                continue
            elsewhere = self._declared_on.get(worker.worker_id)
            if elsewhere is not None:
                if elsewhere not in self._hosts and elsewhere != agent_id:
                    how = f"invoke move {worker.worker_id} {elsewhere}, then deploy"
                    found[worker.worker_id] = ("elsewhere", f"declared on {elsewhere} now, but still here; {how}")
                continue
            if self._request.prune:
                found[worker.worker_id] = ("removed", "not in the inventory; stopped and removed")
            else:
                found[worker.worker_id] = ("undeclared", "not in the inventory; it keeps running (--prune stops it)")
            if tx is None:
                continue
            tx.edit(worker).undeclared = True
            if self._request.prune:
                worker.desired, worker.generation = "removed", worker.generation + 1
        return found


def _declared(host: HostDeclared | AgentRecord) -> str:
    """A host's declaration in a form that can be compared; as text, because True == 1 in Python, but not here."""
    return repr((host.ssh, host.procguard_home, host.spare, host.labels, host.tunnel))
