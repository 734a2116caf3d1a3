"""The manager's own SSH, as a process of its own: python -m procguard.deploy.install.helper.

SSH is CPU-heavy, can hang and does not work under gevent, so it never runs inside the manager. Requests and answers are
JSON lines on stdin and stdout; the end of stdin ends the process. A hanging host occupies one slot until its deadline.

    -> {"id": 7, "op": "ensure", "host": "gpu01", "ssh": {…Target…}, "home": "", "fleet_id": "f-…", "deadline_s": 30}
    <- {"id": 7, "ok": true, "agent": "started", "message": "the agent was started"}

"ensure" also accepts "manager": addresses for a running agent whose own addresses do not reach its manager; the answer
then has "addresses": {"new": [the addresses added], "unreached": whether no address works}
(remote_agent/install/readdress.py).

`ok`: the host was reached. op "check" opens a connection, logs in and closes it. "ensure" starts the agent unless it
runs; a frozen agent (stopped by a signal) is left alone unless "replace_frozen" is set. "restart", "upgrade" (to this
side's release), "rollback" and "log" are operators' maintenance actions; the answer to "log" contains `log`. `agent`:
running | started | absent (not installed) | frozen | failed | unknown.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from procguard.deploy.session import bundle
from procguard.deploy.session.connector import Connector
from procguard.deploy.session.session import HostSession
from procguard.deploy.ssh.failures import why
from procguard.deploy.ssh.pool import MAX_STUCK, ConnectionPool, PoolExhausted, jump_host
from procguard.deploy.ssh.target import from_dict
from procguard.errors import HostError, HostUnreachable, ProcGuardError
from procguard.i18n.reasons import NONE, Reason, because, reason_of
from procguard.json_types import Json
from remote_agent.protocol.messages import encode_dict as expanded

MAX_DEADLINE_S = 30.0
MAX_UPGRADE_S = 120.0  # includes sending a bundle
ANSWER_MARGIN_S = 0.2  # a task that fails at the deadline reports a more precise reason than the timer
MAX_LINE_BYTES = 256 * 1024
MAX_TEXT, MAX_URL, MAX_URLS = 2_000, 300, 20  # limits of a host's report of its agent's addresses
NO_WAY_IN = ("timeout", "connection_lost", "become")  # the host may be up, but the state of its agent is unknown


class Helper:
    """Answers requests, each in its own thread; pool.py limits their concurrency."""

    def __init__(self, connector: Connector, out: Any, pool: ConnectionPool | None = None) -> None:
        self._connector = connector
        self._out = out
        self._out_lock = threading.Lock()
        self._pool = pool or ConnectionPool()

    def take(self, request: Json) -> None:
        """Begin `request`. An answer is sent by its deadline, even if the host hangs."""
        longest_s = MAX_UPGRADE_S if request.get("op") == "upgrade" else MAX_DEADLINE_S
        deadline_s = min(longest_s, float(request.get("deadline_s") or longest_s))
        once = _Once(lambda answer: self._say({"id": request.get("id"), **answer}))
        late = because("ssh.late", host=str(request.get("host")), limit_s=deadline_s)
        timer = threading.Timer(
            deadline_s + ANSWER_MARGIN_S, once.say, [{"ok": False, "agent": "unknown", "message": late}]
        )
        timer.daemon = True
        timer.start()
        deadline = time.monotonic() + deadline_s
        threading.Thread(target=self._work, args=(request, deadline, once, timer), daemon=True).start()

    def _work(self, request: Json, deadline: float, once: _Once, timer: threading.Timer) -> None:
        try:
            ssh = request.get("ssh") or {}
            through = jump_host(str(ssh.get("proxy_jump") or ""), str(ssh.get("proxy_command") or ""))
            with self._pool.connection(through, deadline):
                once.say(self._answer(request, deadline))
        except PoolExhausted as exc:
            message = because("ssh.no_turn", host=str(request.get("host")), error=str(exc))
            once.say({"ok": False, "agent": "unknown", "message": message})
        finally:
            timer.cancel()

    def _answer(self, request: Json, deadline: float) -> Json:
        try:
            return self._do(request, deadline)
        except HostUnreachable as exc:
            return {"ok": False, "agent": "unknown", "message": why(exc, str(request.get("host")))}
        except HostError as exc:
            agent = "absent" if exc.code == "not_installed" else "failed"
            if exc.code in NO_WAY_IN or request.get("op") == "check":
                return {"ok": False, "agent": "unknown", "message": why(exc, str(request.get("host")))}
            return {"ok": True, "agent": agent, "message": why(exc, str(request.get("host")))}
        except ProcGuardError as exc:  # a local error: an unreadable password file
            return {"ok": False, "agent": "unknown", "message": f"{request.get('host')}: {exc}"}
        except Exception as exc:
            return {"ok": False, "agent": "unknown", "message": f"{request.get('host')}: {type(exc).__name__}: {exc}"}

    def _do(self, request: Json, deadline: float) -> Json:
        host = str(request["host"])
        where = {"fleet_id": str(request.get("fleet_id", "")), "host": host, "home": str(request.get("home") or "")}
        target = from_dict(host, request.get("ssh") or {})
        if request.get("op") == "check":
            self._connector.check(target, deadline)
            return {"ok": True, "agent": "unknown", "message": because("ssh.reached")}
        if request.get("op") in ("restart", "upgrade", "rollback", "log"):
            with self._connector.session(target, deadline) as session:
                return maintain(session, request, where, deadline)
        with self._connector.session(target, deadline) as session:
            options = {"replace_frozen": bool(request.get("replace_frozen")), "manager": request.get("manager") or {}}
            report = session.perform("ensure", {**where, **options}, deadline)
        if report.get("frozen"):
            message = because("ssh.agent_frozen", pid=report.get("pid"))
            return {"ok": True, "agent": "frozen", "message": message}
        if report.get("running"):
            started = "started" in (report.get("changes") or [])
            addresses = report.get("addresses") or {}
            message = _described(report, started).then(_of_addresses(host, addresses))
            agent = "started" if started else "running"
            new_addresses = [str(url)[:MAX_URL] for url in (addresses.get("new") or [])[:MAX_URLS]]
            found = {"new": new_addresses, "unreached": bool(addresses.get("unreached"))} if addresses else {}
            return {"ok": True, "agent": agent, "message": message, "addresses": found}
        return {
            "ok": True,
            "agent": "failed",
            "message": reason_of(str(report.get("reason") or "")) or because("ssh.agent_not_running"),
        }

    def _say(self, message: Json) -> None:
        with self._out_lock:
            self._out.write(json.dumps(expanded(message)).encode() + b"\n")
            self._out.flush()

    @property
    def worn_out(self) -> bool:
        """Whether too many threads hang beyond their deadline (a name server, a proxy command): replace this
        process."""
        return self._pool.stuck >= MAX_STUCK


class _Once:
    """Passes on only the first answer, either the host's or the deadline's."""

    def __init__(self, say: Any) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._said = False

    def say(self, answer: Json) -> None:
        with self._lock:
            if self._said:
                return
            self._said = True
        self._say(answer)


def maintain(session: HostSession, request: Json, where: Json, deadline: float) -> Json:
    """Perform an operator's maintenance action on an agent."""
    op = request["op"]
    if op == "log":
        report = session.perform("log", {**where, "max_bytes": request.get("max_bytes")}, deadline)
        return {"ok": True, "agent": "running" if report.get("running") else "failed", "message": "", "log": report}
    if op != "upgrade":
        report = session.perform(op, where, deadline)
        if op == "restart":
            return {"ok": True, "agent": "started", "message": _described(report, True)}
        return {"ok": True, "agent": "started", "message": because("ssh.back_to", release=str(report.get("release")))}
    found = session.hello(where, deadline)
    release = bundle.build()
    if not found.get("installed"):
        return {"ok": True, "agent": "absent", "message": because("ssh.no_agent")}
    before, wanted = found.get("release"), release.sha256[:16]
    asked = {**where, "release": release.sha256, "unpacked_bytes": release.unpacked_bytes}
    code = bundle.byte_code if found.get("magic") == bundle.MAGIC else bytes
    report = session.install(asked, release.data, deadline, code, "upgrade")
    if not report.get("changes"):
        return {"ok": True, "agent": "running", "message": because("ssh.same_release", release=wanted)}
    upgraded = because("ssh.upgraded", before=str(before), release=wanted)
    return {"ok": True, "agent": "started", "message": upgraded.then(_described(report, True))}


def _described(report: Json, started: bool) -> Reason:
    pid = report.get("pid")
    return because("ssh.agent_started", pid=pid) if started else because("ssh.agent_runs", pid=pid)


def _of_addresses(host: str, addresses: Json) -> Reason:
    """The reason text about the agent's manager addresses: what was found and changed."""
    if addresses.get("new"):
        before = list(addresses.get("before") or [])[:MAX_URLS] or because("ssh.no_address")
        return because("ssh.readdressed", before=before, now=list(addresses["new"])[:MAX_URLS])
    if not addresses.get("unreached"):
        return NONE
    tried = [
        because("ssh.tried", url=str(url)[:MAX_URL], error=str(error)[:MAX_URL])
        for url, error in list(addresses["unreached"].items())[:MAX_URLS]
    ]
    unreached = because("ssh.unreached", host=host, tried=tried)
    if addresses.get("fixed"):
        return unreached.then(because("ssh.fix_inventory", host=host))
    return unreached.then(because("ssh.fix_tunnel") if addresses.get("tunnel") else because("ssh.fix_manager"))


def main() -> int:
    helper = Helper(Connector(), sys.stdout.buffer)
    for line in iter(lambda: sys.stdin.buffer.readline(MAX_LINE_BYTES), b""):
        try:
            request = json.loads(line)
        except ValueError:
            continue
        if isinstance(request, dict):
            helper.take(request)
        if helper.worn_out:
            break  # the manager starts another one and repeats the requests
    os._exit(0)  # do not wait for threads that are blocked in a hung connection


if __name__ == "__main__":
    sys.exit(main())
