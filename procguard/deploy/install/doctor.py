"""Diagnoses one host: each step from name resolution to the agent's heartbeat, with the cause of a failure.

Owns the order and the messages of the steps; read-only. Sessions come from a `Connector`, the manager is a
`ManagerClient`. If a step is impossible, the steps that depend on it are skipped.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypedDict, cast

from procguard.client.api import ManagerClient
from procguard.client.types import DeploymentInfo
from procguard.deploy.install.deployer import manager_candidates, port_of, trust_request
from procguard.deploy.inventory import containers
from procguard.deploy.inventory.model import Host
from procguard.deploy.session import bundle
from procguard.deploy.session.session import HostSession, HostStatus, Sessions, skipped_in_words
from procguard.deploy.ssh.target import Target
from procguard.errors import ManagerUnreachable, ProcGuardError

PORT_TIMEOUT_S = 5.0
HOST_DEADLINE_S = 45.0
CLOCK_OFF_S = 2.0
LITTLE_SPACE_BYTES = 256 * 1024 * 1024

_IN_WORDS = {True: "yes", False: "no", None: "not known"}
StepStatus = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class DoctorStep:
    """One step of the diagnosis. `next_step`: what to do if the verdict is not ok."""

    name: str
    status: StepStatus
    detail: str
    next_step: str = ""


class HostTunnel(NamedTuple):
    """The manager's status of a host's tunnel. `state`: up, opening or down, or "none": it has not been reported."""

    state: str
    reason: str = ""
    port: int = 0
    since: str | None = None


class ReachReport(TypedDict, total=False):
    """Whether a host reaches the manager: the address that works, the errors of the others, and whether one of those
    that its agent knows works."""

    found: str | None
    failures: dict[str, str]
    known: list[str]
    known_works: bool


class OtherFleet(TypedDict):
    """An agent of another fleet on a host. `workers`: ids."""

    fleet_id: str
    manager: str
    workers: list[str]


class Doctor:
    def __init__(self, client: ManagerClient, sessions: Sessions) -> None:
        self._client = client
        self._sessions = sessions

    def examine(self, host: Host) -> Iterator[DoctorStep]:
        """Yield the steps as they are taken. Ends early if the remaining steps are impossible."""
        declared, step = self._ask_manager(host)
        yield step
        if declared:
            yield from self._archive()
        tunnel = self._tunnel(host) if declared and host.tunnel and not host.target.local else None
        if not host.target.local:
            reached = True
            for step in _network(host.target):
                reached = reached and step.status != "bad"
                yield step
            if not reached:
                return
        deadline = time.monotonic() + HOST_DEADLINE_S
        connected = []
        try:
            with self._sessions.session(host.target, deadline, lambda: connected.append(True)) as session:
                yield DoctorStep("login", "ok", host.target.describe())
                asked = time.time()
                where = {
                    "fleet_id": declared["fleet_id"] if declared else "f-none",
                    "host": host.name,
                    "home": host.home,
                }
                found = session.hello({**where, **containers.asked_of(host)}, deadline)
                yield from _on_the_host(found, (asked + time.time()) / 2)
                if containers.asked_of(host):
                    wrong = containers.findings(host, found)
                    yield from (DoctorStep("podman", "bad", one.problem, one.next_step) for one in wrong)
                    if not wrong:
                        yield DoctorStep(
                            "podman", "ok", f"version {found.get('podman')}, for {containers.used_by(host)}"
                        )
                others: list[OtherFleet] = session.perform("others", where, deadline).get("others") or []
                yield from _other_fleets(others, where["fleet_id"], host)
                if tunnel:
                    yield _tunnel_step(tunnel)
                if declared and found.get("installed"):
                    yield from self._reach(host, declared, tunnel, session, where, deadline)
        except ProcGuardError as exc:
            yield DoctorStep("installer" if connected else "login", "bad", exc.message, exc.next_step)
            return
        yield from self._verifier(host, declared)

    # ----------------------------------------------------------------------------------------------- the manager

    def _ask_manager(self, host: Host) -> tuple[DeploymentInfo | None, DoctorStep]:
        """(the manager's response about the host, or None if there is none; the step). Declares nothing."""
        request = {
            "hosts": [
                {
                    "host": host.name,
                    "ssh": {},
                    "procguard_home": host.home,
                    "workers": [{"worker_id": one.worker_id, "spec": one.spec} for one in host.workers],
                }
            ],
            "check": True,
        }
        try:
            reply = self._client.deploy(request)
        except ManagerUnreachable as exc:
            return None, DoctorStep("manager", "bad", exc.message, exc.next_step)
        except ProcGuardError as exc:
            return None, DoctorStep("manager", "bad", exc.message, exc.next_step)
        return reply, DoctorStep("manager", "ok", f"{self._client.url} answers (fleet {reply['fleet_id']})")

    def _archive(self) -> Iterator[DoctorStep]:
        """The state of the log archive, if one is configured."""
        try:
            view = self._client.call("GET", "/api/logs/archive")
        except ProcGuardError as exc:
            yield DoctorStep("log archive", "warn", exc.message, exc.next_step)
            return
        place, waiting_kb = view.get("place"), int(view.get("waiting_bytes") or 0) // 1024
        if not place:
            return
        if view.get("problem"):
            yield DoctorStep("log archive", "bad", f"{view['problem']}; {waiting_kb:,} KB wait on the manager's disk",
                             "see the manager's log; uploads are tried again within a minute")  # fmt: skip
        elif view.get("uploaded_at") is None:
            yield DoctorStep("log archive", "ok", f"{place}: nothing was uploaded yet, {waiting_kb:,} KB wait")
        else:
            age_s = max(0.0, time.time() - float(view["uploaded_at"]))
            yield DoctorStep("log archive", "ok", f"{place}: last upload {age_s:.0f} s ago, {waiting_kb:,} KB wait, "
                             f"conditional uploads: {_IN_WORDS[view.get('conditional')]}")  # fmt: skip

    def _tunnel(self, host: Host) -> HostTunnel:
        """The manager's status of the tunnel that the inventory declares."""
        try:
            views = self._client.hosts()["hosts"]
        except ProcGuardError as exc:
            return HostTunnel("down", exc.message)
        found = next((view.get("tunnel") for view in views if view.get("host") == host.name), None)
        if not found:
            return HostTunnel("none", "not reported to the manager yet")
        return HostTunnel(found["state"], found.get("reason") or "", found["port"], found.get("since"))

    def _reach(
        self,
        host: Host,
        declared: DeploymentInfo,
        tunnel: HostTunnel | None,
        session: HostSession,
        where: dict[str, str],
        deadline: float,
    ) -> Iterator[DoctorStep]:
        mine = declared["hosts"][host.name]
        urls = manager_candidates(host, self._client.url, declared.get("manager_urls") or [])
        request = {
            **where,
            "agent_id": mine["agent_id"],
            "proof_key": mine["proof_key"],
            "manager_urls": urls,
            "manager_url_fixed": bool(host.manager_url),
            "manager_port": port_of(urls[0]) if urls else 0,
            "tunnel_url": f"http://127.0.0.1:{tunnel.port}" if tunnel and tunnel.state == "up" else "",
            **trust_request(declared),
        }
        report = cast(ReachReport, session.perform("reach", request, deadline))
        if report.get("found"):
            yield DoctorStep("path to the manager", "ok", f"{report['found']} responds there and proves its identity")
            yield from _agents_addresses(report, host)
            return
        tried = "; ".join(f"{url}: {why}" for url, why in report.get("failures", {}).items()) or "no address is known"
        yield DoctorStep(
            "path to the manager", "bad", f"none of its addresses is reachable from there ({tried})",
            "open the manager's port for this host, set procguard_manager_url, or procguard_tunnel: true",
        )  # fmt: skip

    def _verifier(self, host: Host, declared: DeploymentInfo | None) -> Iterator[DoctorStep]:
        if not declared:
            return
        try:
            answer = self._client.hosts()
            agent_id = declared["hosts"][host.name]["agent_id"]
            view = next((one for one in answer["hosts"] if one.get("agent") == agent_id), None)
            if view is None:
                yield DoctorStep(
                    "heartbeat", "bad", "the manager does not know this host", f"deploy it: --limit {host.name}"
                )
                return
            connected = view.get("agent_state") == "connected"
            age = _age(answer.get("server_time"), view.get("last_seen"))
            last_seen = f"last heartbeat {age:.1f} s ago" if age is not None else "never sent a heartbeat"
            detail = f"{view.get('agent_state')}, {last_seen}" + (f": {view['reason']}" if view.get("reason") else "")
            yield DoctorStep(
                "heartbeat", "ok" if connected else "bad", detail,
                "" if connected else "see agent.log in its directory on the host",
            )  # fmt: skip
            yield from _gpus(view.get("usage") or {})
            back = self._client.check_ssh(host.name)
            yield DoctorStep(
                "recovery over SSH", "ok" if back.get("ok") else "warn",
                "the manager itself can log in" if back.get("ok") else f"no: {back.get('reason')}",
                "" if back.get("ok") else "give the manager's user an SSH key for this host that needs no prompt",
            )  # fmt: skip
        except ProcGuardError as exc:
            yield DoctorStep("heartbeat", "bad", exc.message, exc.next_step)


def _gpus(usage: Mapping[str, Any]) -> Iterator[DoctorStep]:
    """Whether the agent can read the host's GPUs and their faults. Nothing for a host without GPUs. `usage`: as in its
    heartbeats (HostUsage)."""
    gpus, trouble, unread = usage.get("gpus") or [], usage.get("gpu_trouble"), usage.get("kernel_log_trouble")
    if trouble:
        yield DoctorStep("GPUs", "warn", str(trouble), "run nvidia-smi on the host: is its driver loaded?")
    elif gpus:
        yield DoctorStep("GPUs", "ok", f"{len(gpus)}, read by the agent")
    if unread:
        yield DoctorStep(
            "kernel log", "warn", f"/dev/kmsg cannot be read ({unread}): Xid errors of its GPUs are not detected",
            "run the agent as root, or set kernel.dmesg_restrict=0 on the host",
        )  # fmt: skip


def _agents_addresses(report: ReachReport, host: Host) -> Iterator[DoctorStep]:
    """A warning if none of the agent's manager addresses is this manager's."""
    known = report.get("known")
    if not known or report.get("known_works"):
        return
    detail = f"its agent tries {', '.join(known)}; this manager is at {report['found']}"
    then = f"deploy it again: --limit {host.name}"
    if not host.manager_url:  # otherwise only a deployment changes it
        then += "; or wait: recovery sends the agent this address"
    yield DoctorStep("agent's addresses", "bad", detail, then)


def _tunnel_step(tunnel: HostTunnel) -> DoctorStep:
    if tunnel.state == "up":
        what = f"port {tunnel.port} of the host has led to the manager since {tunnel.since}"
        return DoctorStep("tunnel", "ok", what)
    if tunnel.state == "none":
        return DoctorStep("tunnel", "bad", tunnel.reason, "deploy it: invoke deploy --hosts …")
    what = f"{tunnel.state}: {tunnel.reason or 'opening'}"
    return DoctorStep("tunnel", "bad", what, "the manager opens it with its own SSH: see recovery over SSH")


def _network(target: Target) -> Iterator[DoctorStep]:
    """Check name and port. Skipped behind a jump host, because only the jump host can reach them."""
    if target.proxy_jump or target.proxy_command:
        yield DoctorStep("name", "ok", f"{target.address}, by way of {target.proxy_jump or 'a ProxyCommand'}")
        return
    try:
        found = socket.getaddrinfo(target.address, target.port or 22, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        # It may be a Host of ~/.ssh/config, which the log-in resolves; the diagnosis therefore continues.
        detail = f"{target.address} can't be resolved here ({exc.strerror}); is it an alias of ~/.ssh/config?"
        yield DoctorStep("name", "warn", detail, "correct the name, or set ansible_host")
        return
    address = str(found[0][4][0])
    yield DoctorStep("name", "ok", target.address if address == target.address else f"{target.address} is {address}")
    began = time.monotonic()
    try:
        with socket.create_connection((address, target.port or 22), PORT_TIMEOUT_S):
            took_ms = (time.monotonic() - began) * 1000
        yield DoctorStep("port", "ok", f"{target.port or 22} accepts connections ({took_ms:.0f} ms)")
    except OSError as exc:
        cause = "no answer" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
        status: StepStatus = "bad" if target.port else "warn"  # ~/.ssh/config may name another port
        yield DoctorStep(
            "port", status, f"{target.port or 22}: {cause}", "is the host up, and is sshd listening there?"
        )


def _on_the_host(found: HostStatus, now: float) -> Iterator[DoctorStep]:
    skipped = skipped_in_words(found.get("python_skipped") or ())
    used = f"{found.get('python_version')} ({found.get('python')})"
    if skipped:
        detail = f"{', '.join(skipped)}; {used} is used instead"
        yield DoctorStep("python", "warn", detail, "repair it, or name the other one: ansible_python_interpreter")
    else:
        yield DoctorStep("python", "ok", used)
    free = found.get("free_bytes")
    if free is not None:
        little = free < LITTLE_SPACE_BYTES
        yield DoctorStep(
            "space", "warn" if little else "ok", f"{free / 2**30:.1f} GiB free for {found.get('agent_dir')}",
            "free space, or set procguard_home to another file system" if little else "",
        )  # fmt: skip
    if found.get("time") is not None:
        off = float(found["time"]) - now
        wrong = abs(off) > CLOCK_OFF_S
        detail = f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} this machine's" if wrong else "right"
        yield DoctorStep(
            "clock", "warn" if wrong else "ok", detail,
            "only displayed times are affected; set the host's clock (chrony, ntp)" if wrong else "",
        )  # fmt: skip
    yield _agent(found)


def _agent(found: HostStatus) -> DoctorStep:
    if not found.get("installed"):
        return DoctorStep("agent", "bad", "not installed", "invoke deploy --hosts … --limit this host")
    if found.get("stopped_by_hand"):
        return DoctorStep(
            "agent", "bad", "stopped by hand with remote_agent.install stop", "a deployment starts it again"
        )
    if not found.get("running"):
        return DoctorStep(
            "agent", "bad", "installed, but not running", "a deployment starts it; see agent.log on the host"
        )
    wanted = bundle.build().sha256[:16]
    release = str(found.get("release"))
    kept = f"keep-alive: {found.get('keep_alive') or 'none'}"
    if release != wanted:
        return DoctorStep(
            "agent", "warn", f"runs release {release}, here is {wanted}; {kept}", "invoke upgrade --hosts …"
        )
    return DoctorStep("agent", "ok", f"runs (pid {found.get('pid')}, release {release}, {kept})")


def _other_fleets(others: list[OtherFleet], fleet_id: str, host: Host) -> Iterator[DoctorStep]:
    """Agents of other fleets on this host; bad if one of them runs a worker that this inventory declares."""
    declared = {worker.worker_id for worker in host.workers}
    for other in others:
        manager = f" (manager {other['manager']})" if other.get("manager") else ""
        named, doubled = ", ".join(other["workers"][:8]) or "nothing", sorted(declared.intersection(other["workers"]))
        detail = f"fleet {other['fleet_id']}{manager} has an agent here too and runs {named}; this one is {fleet_id}"
        if doubled:
            next_step = "stop it there, or deploy by that manager: is this one's state file the right one?"
            yield DoctorStep("other fleets", "bad", f"{detail}; both mean {', '.join(doubled[:8])}", next_step)
        else:
            yield DoctorStep("other fleets", "ok", detail)


def _age(server_time: Any, last_seen: Any) -> float | None:
    try:
        then, now = (datetime.fromisoformat(str(text).replace("Z", "+00:00")) for text in (last_seen, server_time))
        return max(0.0, (now - then).total_seconds())
    except ValueError:
        return None
