"""The stages of a deployment on a host: deploy, upgrade, roll back, undeploy. The manager is informed first.

Stages: connect, probe, code (procguard_sync; before the manager is informed, so that no worker starts without its
code), upload, install (with start), recovery (the manager itself can open an SSH connection), verify (the agent has
sent a heartbeat after the SSH connection closed). A release that starts but sends no heartbeat is rolled back. Owns
these stages; rollout.py owns the order of hosts. Knows neither terminals nor transports: sessions come from a
`Connector`, the manager is a `ManagerClient`.
"""

from __future__ import annotations

import contextlib
import secrets
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypedDict, cast

from procguard.client.api import ManagerClient
from procguard.client.coming_up import Started, WaitLimit
from procguard.client.types import (
    AbsentHostInfo,
    DeployedHostInfo,
    DeploymentInfo,
    OpenedTunnelInfo,
    SshTriedInfo,
    WorkerInfo,
    WorkerResultInfo,
)
from procguard.deploy.install.readiness import WorkerReadiness
from procguard.deploy.install.rollout import HostResult, Listener, Rollout, RolloutPlan, errors_of
from procguard.deploy.install.verify import POLL_S, AgentVerifier, known_recovery
from procguard.deploy.inventory import containers
from procguard.deploy.inventory.model import Host
from procguard.deploy.session import bundle
from procguard.deploy.session.session import HostStatus, Sessions
from procguard.deploy.ssh.target import from_dict, to_dict
from procguard.deploy.sync.transfer import CodeSync
from procguard.deploy.sync.wave import SyncWave
from procguard.errors import Conflict, HostError, NotFound, ProcGuardError
from procguard.json_types import Json
from remote_agent.protocol.messages import secret_sha256

HOST_TIMEOUT_S = 120.0
VERIFY_TIMEOUT_S = 30.0
REMOVAL_TIMEOUT_S = 60.0
WORKER_CHANGES = ("new", "changed", "removed", "moved")


class DeployedInventory(TypedDict):
    """The deployed inventory. `hosts`: all that it names; None if only some of them were selected. `workers`: the host
    of each."""

    name: str
    hosts: list[str] | None
    workers: dict[str, str]


@dataclass(frozen=True)
class DeployOptions:
    """Options of a deployment.

    `check`: only report what would change. `diff`: report the differences of each changed worker. `sync_running`: sync
    code also into folders with running workers. `rotate_secrets`: replace each agent's secret. `limited`: these are not
    all hosts of the inventory. `wait_limit`: how long to wait for started workers; None: their state is not checked.
    `another_fleet`: deploy even if another fleet's agent on the host runs a worker with the same id.
    """

    plan: RolloutPlan = field(default_factory=RolloutPlan)
    prune: bool = False
    restart_changed: bool = False
    check: bool = False
    diff: bool = False
    sync_running: bool = False
    rotate_secrets: bool = False
    limited: bool = False
    wait_limit: WaitLimit | None = None
    another_fleet: bool = False
    inventory: DeployedInventory | None = None


class Deployer:
    def __init__(self, client: ManagerClient, sessions: Sessions, listener: Listener, options: DeployOptions) -> None:
        self._client = client
        self._sessions = sessions
        self._listener = listener
        self._options = options
        self._verifier = AgentVerifier(client)
        self._fleet_id = ""
        self.absent: dict[str, AbsentHostInfo] = {}  # hosts that are deployed but no longer in the inventory
        self.of_other_inventories: dict[str, str] = {}
        self._specs: dict[str, Json] = {}  # specifications of all declared workers
        self._rollout = Rollout(options.plan, listener)
        self._hosts: list[Host] = []
        self._reported = 0  # the number of these hosts that were reported to the manager
        self._found: dict[str, list[Json]] | None = None  # the workers on each host; None until they are read
        self._with_sources = True  # the manager accepts the inventory's file and line of each worker
        self._readiness = (
            WorkerReadiness(client, options.wait_limit) if options.wait_limit and not options.check else None
        )
        self._code = SyncWave(
            sessions, listener.stage, CodeSync(check=options.check, under_running=options.sync_running)
        )

    def deploy(self, hosts: list[Host]) -> list[HostResult]:
        """Deploy to `hosts`; one result each, in their order. Raises only errors of all hosts: manager, inventory."""
        self._hosts, self._reported = hosts, 0
        self._code.read(hosts)
        self._specs = {worker.worker_id: worker.spec for host in hosts for worker in host.workers}
        if self._options.plan.serial:
            self._asked(hosts)  # for all hosts at once, before the first wave
        with self._code:
            results = self._rollout.run(hosts, self._declared, self._deploy_or_retract, self._settle, self._halts)
        if self._restarts and not self._options.plan.serial:
            self._restart_one_first(results)
        if self._options.prune and not any(result.status == "skipped" for result in results):
            results += self._remove_absent()
        return results

    def _remove_absent(self) -> list[HostResult]:
        """Undeploy hosts that were removed from the inventory; the manager has their addresses."""
        gone, self.absent = self.absent, {}
        hosts = [
            Host(name, from_dict(name, one["ssh"]), home=one["procguard_home"], gone=True) for name, one in gone.items()
        ]
        action = self._check_undeploy if self._options.check else self._undeploy_host
        reply = cast(DeploymentInfo, {"fleet_id": self._fleet_id, "hosts": gone})
        return self._rollout.run(hosts, lambda wave: reply, action)

    @property
    def _restarts(self) -> bool:
        return self._options.restart_changed and not self._options.check

    def _settle(self, results: list[HostResult]) -> None:
        if self._readiness and results:
            for result in results:
                self._listener.stage(result.host, "workers")
            self._readiness.settle(results)

    def _halts(self, result: HostResult) -> bool:
        """Whether this result halts the rollout of --restart-changed: a restarted worker did not come up."""
        down = [name for name, one in result.workers.items() if one.get("trouble")]
        changed = [
            name
            for name in down
            if result.workers[name]["result"] == "changed" or f"restarted {name}" in result.changes
        ]
        return self._restarts and bool(changed)

    def rollback(self, hosts: list[Host]) -> list[HostResult]:
        """Roll back each agent to its previous release. Nothing is declared, and no worker changes."""
        action = self._check_rollback if self._options.check else self._rollback_host
        return self._rollout.run(hosts, self._asked, action)

    def undeploy(self, hosts: list[Host]) -> list[HostResult]:
        """Stop the workers of `hosts`, remove their agents, and remove both from the manager."""
        bare = [Host(host.name, host.target, home=host.home, tunnel=host.tunnel) for host in hosts]
        action = self._check_undeploy if self._options.check else self._undeploy_host
        return self._rollout.run(bare, self._pruned, action)

    def _pruned(self, wave: list[Host]) -> DeploymentInfo:
        """Make the manager stop the workers of `wave`, except on hosts that still run workers of other hosts."""
        guests = {view.get("agent") for view in self._client.workers() if view.get("home")}
        blocked = [host for host in wave if host.name in guests]
        free = [host for host in wave if host.name not in guests]
        replies = [self._asked(blocked)] if blocked else []
        replies += [self._declare({**self.request(free), "prune": True})] if free else []
        return {**replies[-1], "hosts": {name: one for reply in replies for name, one in reply["hosts"].items()}}

    def _noted(self, reply: DeploymentInfo) -> DeploymentInfo:
        """Remember the hosts in a reply that are not part of this deployment."""
        self._fleet_id = str(reply["fleet_id"])
        self.absent = dict(reply.get("absent") or {})
        self.of_other_inventories = dict(reply.get("of_other_inventories") or {})
        return reply

    def _declared(self, wave: list[Host]) -> DeploymentInfo:
        """Sync the code of `wave`, then declare its hosts and workers to the manager."""
        if any(host.syncs for host in wave):
            asked = self._asked(wave)
            self._code.bring(wave, asked["fleet_id"], self._options.plan.forks, HOST_TIMEOUT_S)
            wave = [host for host in wave if not self._code.failed(host.name)]
            if not wave:
                return asked
        self._reported += len(wave)
        try:
            return self._noted(self._declare(self.request(wave)))
        except Conflict as exc:
            if exc.code != "records_needed":
                raise
        if self._found is None:
            self._found = self._read_records(self._hosts)
        last = self._reported == len(self._hosts) == len(self._found)
        records = {"found": self._found, "all_read": last and not self._options.limited}
        return self._noted(self._declare({**self.request(wave), **records}))

    def _read_records(self, hosts: list[Host]) -> dict[str, list[Json]]:
        """The workers on each host according to its own files, without unreadable hosts. The manager needs them after
        its state was rebuilt."""
        fleet_id = self._asked(hosts)["fleet_id"]

        def read(host: Host) -> list[Json] | None:
            where = {"fleet_id": fleet_id, "host": host.name, "home": host.home, "workers": True}
            deadline = time.monotonic() + HOST_TIMEOUT_S
            self._listener.stage(host.name, "read")
            try:
                with self._sessions.session(host.target, deadline) as session:
                    return session.hello(where, deadline).get("workers")
            except ProcGuardError:
                return None  # the host's own deployment reports the reason

        with ThreadPoolExecutor(max(1, min(self._options.plan.forks, len(hosts))), "read") as pool:
            found = dict(zip([host.name for host in hosts], pool.map(read, hosts), strict=True))
        return {name: workers for name, workers in found.items() if workers is not None}

    def _asked(self, hosts: list[Host]) -> DeploymentInfo:
        """The manager's response about `hosts`, without changing anything (check)."""
        asked = {**self.request(hosts), "check": True}
        asked.pop("inventory", None)
        return self._declare(asked)

    def _declare(self, request: Json) -> DeploymentInfo:
        """Declare to the manager. One of an earlier release refuses the sources of workers, which only its pages would
        show; the request is then repeated without them."""
        try:
            return self._client.deploy(request)
        except ProcGuardError as exc:
            if not self._with_sources or ".source:" not in exc.message:
                raise
        self._with_sources = False
        for host in request["hosts"]:
            for worker in host["workers"]:
                worker.pop("source", None)
        return self._client.deploy(request)

    # ------------------------------------------------------------------------------------------------ all

    def request(self, hosts: list[Host]) -> Json:
        return {
            "hosts": [
                {
                    "host": host.name,
                    "ssh": to_dict(host.target),
                    "procguard_home": host.home,
                    "spare": host.spare,
                    "labels": host.labels,
                    **({"tunnel": True} if host.tunnel else {}),
                    "workers": [
                        {
                            "worker_id": worker.worker_id,
                            "spec": worker.spec,
                            **({"source": worker.source} if self._with_sources else {}),
                        }
                        for worker in host.workers
                    ],
                }
                for host in hosts
            ],
            "groups": {name: policy.model_dump() for host in hosts for name, policy in host.policies.items()},
            "prune": self._options.prune,
            "check": self._options.check,
            **({"inventory": self._options.inventory} if self._options.inventory else {}),
        }

    def _restart_one_first(self, results: list[HostResult]) -> None:
        """Restart changed workers on one host first, and on the others only if those came up."""
        views = self._views()
        waiting = [result for result in results if result.error is None and self._pending(result, views)]
        to_restart = len(waiting)
        while waiting:
            first = next((result.host for result in results if self._halts(result)), "")
            if first and self._ends_here(results):
                for result in waiting:
                    why = f"{result.host}: deployed, but not restarted: the workers of {first} did not come up"
                    result.status = "skipped"
                    result.error = HostError(why, "correct them, then run it again", code="skipped")
                return
            group = waiting[:1] if len(waiting) == to_restart else waiting
            waiting = waiting[len(group) :]
            for result in group:
                with errors_of(result):
                    self._restart(result, views)
            self._settle([result for result in group if result.started])

    def _ends_here(self, results: list[HostResult]) -> bool:
        plan, failed = self._options.plan, sum(1 for result in results if result.error is not None)
        return not plan.max_fail or plan.too_many(failed, len(results))

    def _views(self) -> dict[str, WorkerInfo]:
        if self._readiness:
            return self._readiness.views()
        return {str(view["worker_id"]): view for view in self._client.workers()}

    def _pending(self, result: HostResult, views: dict[str, WorkerInfo]) -> list[WorkerInfo]:
        """The workers of a host that need a restart: because of this deployment, of an earlier one that did not restart
        them, or of changed code."""
        under = {name for one in result.code if one.status == "changed" for name in one.users}
        mine = [views[name] for name in sorted(views.keys() & result.workers.keys())]
        return [view for view in mine if view.get("restart_pending") or view["worker_id"] in under]

    def _restart(self, result: HostResult, views: dict[str, WorkerInfo]) -> None:
        for view in self._pending(result, views):
            worker_id = str(view["worker_id"])
            self._client.command(worker_id, "restart")
            result.changes.append(f"restarted {worker_id}")
            result.status = "changed"
            if self._readiness:
                attempt = int(view.get("attempt") or 0) + 1
                result.started[worker_id] = self._expected(worker_id, attempt, restarted=True)

    def _expected(self, worker_id: str, attempt: int, *, restarted: bool = False) -> Started:
        spec = self._specs.get(worker_id) or {}
        start_secs = float((spec.get("restart") or {}).get("start_secs", 1.0))
        return Started(attempt, start_secs, float(spec.get("stop_grace_s", 10.0)) if restarted else 0.0)

    # ------------------------------------------------------------------------------------------- one host

    def _deploy_or_retract(self, host: Host, reply: DeploymentInfo, result: HostResult) -> None:
        """Deploy. If that fails before anything is installed, the host's declaration is removed from the manager:
        otherwise workers that never existed would be shown as unreachable."""
        try:
            self._deploy_host(host, reply, result)
        except Exception:
            mine = reply["hosts"].get(host.name)
            if mine is None or self._options.check:
                raise
            only_new = all(one["result"] == "new" for one in (mine.get("workers") or {}).values())
            if only_new and not mine.get("secret_sha256"):
                with contextlib.suppress(ProcGuardError):  # it was deployed nevertheless, or was known before
                    self._client.forget_agent(mine["agent_id"], undeployed=True)
            raise

    def _deploy_host(self, host: Host, reply: DeploymentInfo, result: HostResult) -> None:
        result.code, code_error = self._code.brought(host.name)
        if code_error is not None:
            raise code_error
        result.changes += [f"code {one.dest}: {one.text}" for one in result.code if "change" in one.status]
        mine = reply["hosts"][host.name]
        result.workers = dict(mine.get("workers") or {})
        result.changes += [
            f"{one['result']} {name}" for name, one in result.workers.items() if one["result"] in WORKER_CHANGES
        ]
        deadline = time.monotonic() + HOST_TIMEOUT_S
        where = {"fleet_id": reply["fleet_id"], "host": host.name, "home": host.home}
        checked = {"worker_ids": [worker.worker_id for worker in host.workers]} if self._options.check else {}
        if self._options.another_fleet:
            checked = {}
        checked = {**checked, **containers.asked_of(host)}
        with self._code.session(host, {**where, **checked}, deadline) as (session, found):
            result.notes += [f"{one.problem}; {one.next_step}" for one in containers.findings(host, found)]
            if self._options.check and found.get("podman"):
                result.notes.append(f"podman {found['podman']}, for {containers.used_by(host)}")
            wanted, taken = host.target.python, str(found.get("python", ""))
            if wanted.startswith("/") and taken and taken != wanted:
                result.notes.append(f"ansible_python_interpreter {wanted} is older than Python 3.9: {taken} is used")
            release = bundle.build()
            if self._options.check:
                result.changes += would_change(found, release, mine)
                return
            self._listener.stage(host.name, "upload" if found.get("release") != release.sha256[:16] else "install")
            request = {**where, **self.install_request(host, reply, mine, release, found)}
            code = bundle.byte_code if found.get("magic") == bundle.MAGIC else bytes
            result.report = session.install(
                request, release.data, deadline, code, secret=lambda current: self._secret(host, mine, current)
            )
        result.changes += [str(change) for change in result.report.get("changes", [])]
        # An agent that was already running does not depend on this SSH session: being connected is sufficient.
        untouched = not result.report.get("changes")
        deadline, since = time.monotonic() + VERIFY_TIMEOUT_S, None if untouched else self._verifier.now()
        if not untouched:  # meanwhile the agent sends its first heartbeat
            self._listener.stage(host.name, "recovery")
            result.recovery_ssh = self._check_recovery(host)
        self._listener.stage(host.name, "verify")
        try:
            seen = self._verifier.wait_for(mine["agent_id"], deadline, since, connected_is_enough=untouched)
        except HostError as exc:
            if "upgraded" in result.report.get("changes", []):
                raise self._gone_back(host, where, mine["agent_id"], exc) from exc
            raise
        if untouched:
            result.recovery_ssh = known_recovery(seen)
            if not result.recovery_ssh:
                self._listener.stage(host.name, "recovery")
                result.recovery_ssh = self._check_recovery(host)
        self._refuse(host, result)
        self._note_started(result)

    def _note_started(self, result: HostResult) -> None:
        """Record the workers that are expected to start; the states of the others are recorded at once."""
        if self._restarts and self._options.plan.serial:
            self._restart(result, self._views())
        if self._readiness is None:
            return
        for worker_id, one in result.workers.items():
            if one.get("starts") or (one["result"] == "new" and "starts" not in one):
                result.started.setdefault(worker_id, self._expected(worker_id, int(one.get("starts") or 1)))
            elif "installed" in result.report.get("changes", []) and one["result"] in ("unchanged", "changed"):
                result.started.setdefault(worker_id, self._expected(worker_id, 0))  # declared by a failed deployment
        if not result.started:
            self._readiness.check([result])

    def _gone_back(self, host: Host, where: Json, agent_id: str, why: HostError) -> HostError:
        """Roll back an upgraded agent that sends no heartbeat. Returns the error to report."""
        self._listener.stage(host.name, "roll back")
        try:
            release = self._roll_back(host, where, agent_id)
        except ProcGuardError as exc:
            return HostError(f"{why.message}; rolling back failed too: {exc.message}", exc.next_step, code=why.code)
        return HostError(f"{why.message}; rolled back to release {release}", why.next_step, code="rolled_back")

    def _roll_back(self, host: Host, where: Json, agent_id: str) -> str:
        """Roll back one host and wait for a heartbeat. Returns the release."""
        deadline = time.monotonic() + HOST_TIMEOUT_S
        with self._sessions.session(host.target, deadline) as session:
            report = session.perform("rollback", where, deadline)
        self._verifier.wait_for(agent_id, time.monotonic() + VERIFY_TIMEOUT_S)
        return str(report.get("release", ""))

    def _rollback_host(self, host: Host, reply: DeploymentInfo, result: HostResult) -> None:
        result.workers = self._as_they_are(reply["hosts"][host.name]["agent_id"])
        where = {"fleet_id": reply["fleet_id"], "host": host.name, "home": host.home}
        self._listener.stage(host.name, "roll back")
        release = self._roll_back(host, where, reply["hosts"][host.name]["agent_id"])
        result.changes.append(f"rolled back to {release}")

    def _as_they_are(self, agent_id: str) -> dict[str, WorkerResultInfo]:
        """The agent's workers with their current states as results, because nothing was declared."""
        mine = [view for view in self._client.workers(host=agent_id) if view.get("agent") == agent_id]
        return {str(view["worker_id"]): {"result": str(view["state"]), "message": ""} for view in mine}

    def _check_rollback(self, host: Host, reply: DeploymentInfo, result: HostResult) -> None:
        result.workers = self._as_they_are(reply["hosts"][host.name]["agent_id"])
        found = self._describe(host, reply)
        if not found.get("installed"):
            raise HostError(
                f"{host.name}: no agent is installed", "deploy it: invoke deploy --hosts …", code="not_installed"
            )
        if not found.get("previous"):
            what = f"{host.name}: there is no release to roll back to"
            raise HostError(what, "deploy the release you want", code="no_previous")
        result.changes.append(f"would roll back from {found.get('release')} to {found['previous']}")

    def _check_undeploy(self, host: Host, reply: DeploymentInfo, result: HostResult) -> None:
        self._note_removed(host, reply, result)
        result.changes += [f"would stop and remove {name}" for name in result.workers]
        if self._describe(host, reply).get("installed"):
            result.changes.append("would remove the agent")

    def _describe(self, host: Host, reply: DeploymentInfo) -> HostStatus:
        """Probe the host: the installer's report about it."""
        where = {"fleet_id": reply["fleet_id"], "host": host.name, "home": host.home}
        deadline = time.monotonic() + HOST_TIMEOUT_S
        self._listener.stage(host.name, "connect")
        with self._sessions.session(host.target, deadline, lambda: self._listener.stage(host.name, "probe")) as session:
            return session.hello(where, deadline)

    def install_request(
        self, host: Host, reply: DeploymentInfo, mine: DeployedHostInfo, release: bundle.Bundle, found: HostStatus
    ) -> Json:
        urls = manager_candidates(host, self._client.url, reply.get("manager_urls") or [])
        tunnel = self._tunnel(host)
        return {
            "agent_id": mine["agent_id"],
            "proof_key": mine["proof_key"],
            "new_secret": self._options.rotate_secrets
            or not mine.get("secret_sha256")
            or mine["secret_sha256"] != found.get("secret_sha256"),
            "release": release.sha256,
            "unpacked_bytes": release.unpacked_bytes,
            "manager_urls": urls,
            "manager_url_fixed": bool(host.manager_url),
            "manager_fixed": host.manager_url,
            "manager_configured": [host.manager_url] if host.manager_url else reply.get("manager_configured") or [],
            "manager_port": port_of(urls[0]) if urls else 0,
            **trust_request(reply),
            "service": host.service,
            "worker_ids": [worker.worker_id for worker in host.workers],
            "another_fleet": self._options.another_fleet,
            "tunnel_url": str(tunnel.get("url", "")),
            "tunnel_failure": str(tunnel.get("reason", "")),
        }

    def _tunnel(self, host: Host) -> OpenedTunnelInfo:
        """The tunnel through the manager's SSH, if the inventory declares one. The host determines whether it is
        needed, and reports why there is none."""
        if not host.tunnel or host.target.local:
            return {}
        try:
            return self._client.open_tunnel(host.name)
        except ProcGuardError as exc:
            return {"reason": exc.message}

    def _secret(self, host: Host, mine: DeployedHostInfo, current_sha256: str) -> str:
        """The secret to send while the host is locked by this session: a new one, registered with the manager; "" if a
        concurrent deployment has made the host's own secret valid in the meantime."""
        may_be_good = current_sha256 and not self._options.rotate_secrets
        if may_be_good and self._asked([host])["hosts"][host.name].get("secret_sha256") == current_sha256:
            return ""
        return self.new_secret(mine["agent_id"])

    def new_secret(self, agent_id: str) -> str:
        """Create a new secret for an agent and register it with the manager."""
        secret = secrets.token_urlsafe(32)
        self._client.set_credentials(agent_id, secret_sha256(secret))
        return secret

    def _check_recovery(self, host: Host) -> SshTriedInfo:
        """Check whether the manager can reach the host over SSH. A failure is reported but does not fail the
        deployment."""
        try:
            return self._client.check_ssh(host.name)
        except ProcGuardError as exc:
            return {"ok": False, "reason": exc.message}

    @staticmethod
    def _refuse(host: Host, result: HostResult) -> None:
        refused = {name: one.get("message", "") for name, one in result.workers.items() if one["result"] == "refused"}
        if refused:
            configured = "; ".join(f"worker {name}: {message}" for name, message in refused.items())
            raise HostError(f"{host.name}: not placed here: {configured}", "", code="refused")

    def _undeploy_host(self, host: Host, reply: DeploymentInfo, result: HostResult) -> None:
        agent_id = reply["hosts"][host.name]["agent_id"]
        where = {"fleet_id": reply["fleet_id"], "host": host.name, "home": host.home}
        self._note_removed(host, reply, result)
        self._listener.stage(host.name, "stop workers")
        self.await_removal(agent_id)
        self._listener.stage(host.name, "connect")
        deadline = time.monotonic() + HOST_TIMEOUT_S
        with self._sessions.session(
            host.target, deadline, lambda: self._listener.stage(host.name, "remove")
        ) as session:
            result.report = session.perform("uninstall", where, deadline)
        result.changes += [str(change) for change in result.report.get("changes", [])]
        self._listener.stage(host.name, "forget")
        self.forget(agent_id)

    def _note_removed(self, host: Host, reply: DeploymentInfo, result: HostResult) -> None:
        """Record the workers removed with the host. Raises HostError if it runs a worker that another host declares."""
        mine = reply["hosts"][host.name]
        found = [name for name, one in (mine.get("workers") or {}).items() if one["result"] == "removed"]
        why = "gone from the inventory; stopped and removed" if host.gone else ""
        result.workers = {name: {"result": "removed", "message": why} for name in found}
        views = self._client.workers(host=mine["agent_id"])
        guests = [one for one in views if one.get("agent") == mine["agent_id"] and one.get("home")]
        if guests:
            named = ", ".join(f"{one['worker_id']} of {one['home']}" for one in guests[:5])
            first = guests[0]
            raise HostError(
                f"{host.name}: workers of other hosts run here: {named}",
                f"move them first, e.g. invoke move {first['worker_id']} {first['home']}, or declare them elsewhere",
                code="guests",
            )

    def forget(self, agent_id: str) -> None:
        """Remove the agent from the manager; retried, because the manager refuses until it notices that the agent
        has ended."""
        deadline = time.monotonic() + VERIFY_TIMEOUT_S
        while True:
            try:
                self._client.forget_agent(agent_id)
                return
            except NotFound:
                return
            except Conflict:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_S)

    def await_removal(self, agent_id: str) -> None:
        """Wait until the agent has reported that its workers are gone. If it is not connected, remote_agent.install
        checks instead."""
        deadline = time.monotonic() + REMOVAL_TIMEOUT_S
        while time.monotonic() < deadline:
            left = [worker for worker in self._client.workers(host=agent_id) if worker.get("agent") == agent_id]
            states = {view["agent"]: view.get("agent_state") for view in self._client.hosts()["hosts"]}
            if not left or states.get(agent_id) != "connected":
                return
            time.sleep(POLL_S)


def manager_candidates(host: Host, client_url: str, configured: list[str]) -> list[str]:
    """The manager addresses to probe from the host, most likely first. An address in the inventory excludes all
    others."""
    if host.manager_url:
        return [host.manager_url]
    own = urllib.parse.urlsplit(client_url)
    loopback = own.hostname in ("localhost", "127.0.0.1", "::1")
    candidates = [f"{own.scheme}://127.0.0.1:{port_of(client_url)}"] if host.target.local and loopback else []
    if not loopback:
        candidates.append(client_url)
    return list(dict.fromkeys(candidates + [url.rstrip("/") for url in configured]))


def trust_request(reply: DeploymentInfo) -> Json:
    """The part of a request with the certificates that the host must trust."""
    pinned = reply.get("tls") or {}
    return {"manager_ca": pinned.get("ca", ""), "manager_any_name": bool(pinned.get("any_name"))}


def port_of(url: str) -> int:
    parts = urllib.parse.urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def would_change(found: HostStatus, release: bundle.Bundle, mine: DeployedHostInfo) -> list[str]:
    """The changes that a deployment would make on the agent, as texts, for --check."""
    if not found.get("installed"):
        return ["would install the agent"]
    changes = []
    if found.get("release") != release.sha256[:16]:
        changes.append(f"would upgrade {found.get('release')} to {release.sha256[:16]}")
    if not mine.get("secret_sha256") or mine.get("secret_sha256") != found.get("secret_sha256"):
        changes.append("would issue a new secret")
    if not found.get("running"):
        changes.append("would start the agent")
    return changes
