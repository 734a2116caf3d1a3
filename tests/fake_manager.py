"""A fake manager with a single table: serves agents and launchers over HTTP, records every request, and is controlled
by the test.

Agents, installer, deployer and client are tested against it, and benchmarks of the agent run with it. It follows the
rules of the real one where an agent can tell the difference (sessions, rev, acknowledged log lengths, events acked,
commands per agent process); the test defines all other responses by `routes`. Knows nothing of procguard.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from remote_agent.protocol import leadership, messages, session
from remote_agent.protocol.messages import Assignment, Command, RestartPolicy, WorkerSpec

MAX_LOG_BYTES = 1 << 30  # its disk does not accept a longer file
START_SECS = 0.1  # of every worker, so that tests need not wait a second for each start
FLEET = "fleet-1"
KEY = "proof-key"  # of every agent of a manager that knows all
Route = Callable[[Any], "tuple[int, Any]"]


class Request(NamedTuple):
    method: str
    path: str  # with its query
    body: Any  # the JSON object in it; None where there is none
    headers: dict[str, str]

    @property
    def authorization(self) -> str:
        return self.headers.get("Authorization", "")


class Session(NamedTuple):
    """As in remote_agent/protocol/session.py: who opened it, with which secret, and the key of its MACs."""

    who: str
    secret: str
    key: bytes


class FakeManager:
    """`assign(...)` and `command(...)` steer; `beats`, `events`, `results`, `logs`, `requests` tell what came.

    `routes["GET /api/x"] = lambda body: (200, {...})` answers in place of what stands here. `knows_all`: every agent is
    known, by KEY, whatever its secret is."""

    def __init__(self, fleet_id: str = FLEET, port: int = 0, *, knows_all: bool = False) -> None:
        self.fleet_id = fleet_id
        self.knows_all = knows_all
        self.routes: dict[str, Route] = {}
        self.received: list[str] = []  # agent ids, one per heartbeat
        self.cordoned_gpus: list[str] | None = None  # None: of a manager that knows of none
        self.proof_keys: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.assignments: dict[str, Assignment] = {}
        self.commands: list[Command] = []
        self.beats: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.registrations: list[dict[str, Any]] = []
        self.logs: dict[tuple[str, str], bytearray] = {}  # (worker, "3.out") -> bytes
        self.gaps: list[tuple[str, str, int, int]] = []
        self.requests: list[Request] = []
        self.interval_s = 0.2
        self.repeats = False  # answer each heartbeat with the previous answer, as a network that duplicates answers may
        self.offered_key = "launcher-key"  # by which launchers identify it
        self._offered: dict[tuple[str, str], tuple[str, bytes]] = {}  # (who, nonce) -> (session, what both can compute)
        self._sessions: dict[str, Session] = {}
        self.tokens: list[str] = []  # enrolment tokens that it knows
        self.of_tokens: list[str] = []  # tokens whose possession was proven
        self._last_answer: dict[str, Any] = {}
        self.registered_lease_s = 60.0  # of fenced workers that a launcher registers
        self.withheld: set[str] = set()  # fenced workers that get no lease
        self.register_answer: tuple[int, dict[str, Any]] | None = None  # instead of accepting
        self.refuse_status = 0  # answer agents' own requests with this status
        self.restart_policy = ""  # of registered workers, instead of the default
        self.term = 0  # in every reply, where it is not 0
        self.managers: list[str] = []  # in every reply, with the term
        self.stands_by = False  # answers everything 421, with these two
        self.standby_key: str | None = None  # in place of the agent's key, in the proof of that list
        self.drop_log_answers = 0  # store so many log posts and close without an answer
        self.changed = threading.Condition()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.manager = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ steering

    def know(self, agent_id: str, secret: str = "s3cret", proof_key: str = "key") -> None:
        self.secrets[agent_id], self.proof_keys[agent_id] = secret, proof_key

    def assign(self, worker_id: str, command: str | list[str], **fields: Any) -> Assignment:
        """Declare or change a worker; WorkerSpec's fields and the Assignment's go by name."""
        of_assignment = ("desired", "generation", "epoch", "attempt_base", "gang", "grant")
        own = {name: fields.pop(name) for name in of_assignment if name in fields}
        if "variables" in fields:
            own["env"] = fields.pop("variables")
        fields.setdefault("restart", RestartPolicy(start_secs=START_SECS))
        before = self.assignments.get(worker_id)
        if before is not None:
            kept = ("generation", "epoch", "desired", "grant")
            own = {name: getattr(before, name) for name in kept} | own
        spec = WorkerSpec(command=command, **fields)
        own["lease_s"] = spec.lease_s if spec.on_partition == "fence" else None
        with self.changed:
            self.assignments[worker_id] = Assignment(worker_id, spec, **own)
            self.changed.notify_all()
        return self.assignments[worker_id]

    def set_desired(self, worker_id: str, desired: str) -> None:
        """An operator's start or stop."""
        with self.changed:
            one = self.assignments[worker_id]
            one.desired = desired  # type: ignore[assignment]
            one.generation += 1
            self.changed.notify_all()

    def unassign(self, worker_id: str) -> None:
        with self.changed:
            del self.assignments[worker_id]
            self.changed.notify_all()

    def command(self, worker_id: str, verb: str, attempt: int, ttl_s: float = 60.0, command_id: str = "") -> str:
        with self.changed:
            seq = len(self.commands) + 1
            command_id = command_id or f"c-{seq}"
            self.commands.append(Command(seq, command_id, worker_id, verb, attempt, ttl_s))  # type: ignore[arg-type]
            self.changed.notify_all()
        return command_id

    def report(self, worker_id: str) -> dict[str, Any]:
        """The last report of a worker; {} where there is none."""
        for beat in self.beats[-1:]:
            for report in beat["workers"]:
                if report["worker_id"] == worker_id:
                    return dict(report)
        return {}

    def asked(self, method: str, prefix: str) -> list[Request]:
        return [one for one in self.requests if one.method == method and one.path.startswith(prefix)]

    def state(self, worker_id: str) -> str:
        return str(self.report(worker_id).get("state", ""))

    def log(self, worker_id: str, key: str = "1.out") -> bytes:
        return bytes(self.logs.get((worker_id, key), b""))

    def result(self, command_id: str) -> dict[str, Any] | None:
        return next((one for one in self.results if one["command_id"] == command_id), None)

    def close(self) -> None:
        self._server.closing = True
        with self.changed:
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._server.drop_connections()

    # ------------------------------------------------------------------------------------------------- sessions

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any] | None:
        """(status, what to send) as a test says, by `routes` or a class of its own; None: as it stands here."""
        route = self.routes.get(f"{method} {path.partition('?')[0]}")
        return route(body) if route is not None else None

    def hello(self, who: str, nonce: str, url: str) -> dict[str, Any]:
        """With a session for agents that it knows, and for who has a token that it knows; for nobody else."""
        answer: dict[str, Any] = {"fleet_id": self.fleet_id, "version": "test"}
        digests = [messages.secret_sha256(token) for token in self.tokens]
        of_tokens = {session.TOKEN_PREFIX + session.token_mark(digest): digest for digest in digests}
        key = self.proof_keys.get(who) or of_tokens.get(who) or (KEY if self.knows_all else "")
        if who and key:
            session_id = secrets.token_hex(8)
            shared = session.handshake(key, self.fleet_id, who, nonce, session_id)
            self._offered[who, nonce] = (session_id, shared)
            proof = session.manager_proof(shared, url, 0, "")
            answer["session"] = {"id": session_id, "uid": 0, "machine": "", "proof": proof}
        return answer

    def of_leader(self, value: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
        """An answer with the term and the list of managers, and a standby's proof of them."""
        if not self.term:
            return value
        reply: dict[str, Any] = {**value, "term": self.term, "managers": self.managers}
        if self.stands_by and query.get("nonce"):
            key = self.proof_keys.get(query.get("agent", ""), "") if self.standby_key is None else self.standby_key
            asked = (query.get("agent", ""), query["nonce"], query.get("to", ""))
            reply["proof"] = leadership.standby_proof(key, *asked, self.term, self.managers)
        return reply

    def session_of(self, method: str, target: str, body: bytes, headers: Any) -> tuple[Session | None, int]:
        """Whose request this is, and its number in that session. None: it belongs to none, or its MAC is wrong."""
        scheme, _, text = headers.get("Authorization", "").partition(" ")
        words = text.split(" ")
        if scheme != session.SCHEME or len(words) != 4:
            return None, 0
        session_id, number, digest, mac = words
        if session.OPEN_HEADER in headers:
            who, nonce, sealed = headers[session.OPEN_HEADER].split(" ")
            offered_id, shared = self._offered.pop((who, nonce), ("", b""))
            secret = session.unseal(shared, sealed)
            if offered_id == session_id and secret is not None:
                self._sessions[session_id] = Session(who, secret, session.session_key(shared, secret))
                if who.startswith(session.TOKEN_PREFIX):
                    self.of_tokens.append(secret)
        found = self._sessions.get(session_id)
        path, _, query = target.partition("?")
        right = (
            found is not None
            and digest == session.body_digest(body)
            and mac == session.request_mac(found.key, int(number), method, unquote(path), query, digest)
        )
        return (found, int(number)) if right else (None, 0)

    # ------------------------------------------------------------------------------------------------- answers

    @property
    def rev(self) -> str:
        return messages.canonical_digest([messages.encode(one) for one in self.assignments.values()])

    def reply(self, rev: str, seq: int) -> dict[str, Any]:
        answer = messages.AgentReply(self.fleet_id, self.interval_s, self.rev, cordoned_gpus=self.cordoned_gpus)
        if rev != self.rev:
            answer.assignments = list(self.assignments.values())
        answer.commands = [one for one in self.commands if one.seq > seq]
        return messages.encode(answer)

    def heartbeat(self, beat: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            self.beats.append(beat)
            known = {(event["worker_id"], event["seq"]) for event in self.events}
            self.events += [one for one in beat["events"] if (one["worker_id"], one["seq"]) not in known]
            self.results += beat["results"]
            answer = self.reply(beat["assignments_rev"], beat["commands_seq"])
            answer["beat"] = beat.get("beat", 0)
            answer["leases"] = [messages.encode(one) for one in self.leases()]
            for event in beat["events"]:
                acked = answer["events_acked"].get(event["worker_id"], 0)
                answer["events_acked"][event["worker_id"]] = max(acked, event["seq"])
            if not self.repeats:
                self._last_answer = answer
            return self._last_answer

    def leases(self) -> list[messages.Lease]:
        """As the real one: to all that are to run, and to what still runs though it is to be stopped."""
        return [
            messages.Lease(one.worker_id, one.epoch, one.lease_s)
            for one in self.assignments.values()
            if one.lease_s is not None
            and one.worker_id not in self.withheld
            and (one.desired == "running" or self.state(one.worker_id) in ("starting", "running", "stopping"))
        ]

    def poll(self, rev: str, seq: int, wait_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + min(wait_s, 5.0)
        with self.changed:
            while rev == self.rev and not any(one.seq > seq for one in self.commands) and not self._server.closing:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self.changed.wait(left_s):
                    break
            return self.reply(rev, seq)

    def take_log(self, worker_id: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, Any]]:
        key = f"{query['attempt']}.{query['stream']}"
        offset = int(query["offset"])
        with self.changed:
            stored = self.logs.setdefault((worker_id, key), bytearray())
            if (data or query.get("gap") == "1") and offset > len(stored):
                if query.get("gap") != "1":
                    return 409, {"error": {"code": "offset", "message": "ahead", "next": ""}, "acked": len(stored)}
                if offset > MAX_LOG_BYTES:
                    return 507, {"error": {"code": "storage_failed", "message": "File too large", "next": ""}}
                self.gaps.append((worker_id, key, len(stored), offset))
                stored.extend(b"\0" * (offset - len(stored)))
            stored.extend(data[len(stored) - offset :])
            return 200, {"acked": len(stored)}

    def register(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.changed:
            self.registrations.append(body)
            if self.register_answer is not None:
                return self.register_answer
            worker_id, agent_id = body["worker_id"], messages.LAUNCHER_PREFIX + body["worker_id"]
            self.proof_keys.setdefault(agent_id, self.offered_key)
            self.secrets[agent_id] = "sha256:" + body["secret_sha256"]
            spec = messages.decode(WorkerSpec, body["spec"])
            spec.restart.start_secs = START_SECS
            if self.restart_policy:
                spec.restart.policy = self.restart_policy  # type: ignore[assignment]
            known = self.assignments.get(worker_id)
            if known is None:
                lease_s = self.registered_lease_s if spec.on_partition == "fence" else None
                self.assignments[worker_id] = Assignment(worker_id, spec, lease_s=lease_s)
            else:
                known.spec = spec
                if body["state"] in ("exited", "failed") and known.desired == "running":
                    known.generation += 1
            return 200, messages.encode(
                messages.RegisterReply(
                    "registered", worker_id, agent_id, self.fleet_id, proof_key=self.proof_keys[agent_id], epoch=1
                )
            )

    def admits(self, caller: Session | None) -> bool:
        if caller is None:
            return False
        known = (caller.secret, "sha256:" + messages.secret_sha256(caller.secret))
        return self.knows_all or self.secrets.get(caller.who) in known


@contextlib.contextmanager
def running() -> Iterator[FakeManager]:
    """One that knows all agents, for tests of what is not the agent's."""
    manager = FakeManager(knows_all=True)
    try:
        yield manager
    finally:
        manager.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    manager: FakeManager
    closing = False

    def __init__(self, *args: Any) -> None:
        self.open_sockets: set[Any] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open_sockets.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that its agent's death cut off is no news; anything else is a mistake here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def drop_connections(self) -> None:
        for one in list(self.open_sockets):
            try:
                one.shutdown(2)
            except OSError:
                pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def _route(self) -> None:
        manager, method = self.server.manager, self.command
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        words = unquote(parts.path).strip("/").split("/") + [""] * 3
        value = json.loads(body) if body.startswith(b"{") and "/logs" not in parts.path else None
        with manager.changed:
            manager.requests.append(Request(method, self.path, value, dict(self.headers)))
        caller, number = manager.session_of(method, self.path, body, self.headers)
        own = manager.answer(method, self.path, value)

        def answer(status: int, value: Any) -> None:
            reply = manager.of_leader(value, query) if isinstance(value, dict) else value
            self._answer(status, reply, caller, number)

        if own is not None:
            answer(*own)
        elif manager.stands_by:
            error = {"code": leadership.STANDBY, "message": "this manager stands by", "next": "ask the leader"}
            answer(leadership.STANDBY_STATUS, {"error": error})
        elif words[1] == "hello":
            answer(200, manager.hello(query.get("agent", ""), query.get("nonce", ""), query.get("to", "")))
        elif words[1:3] == ["workers", "register"]:
            answer(*manager.register(value))
        elif (words[1], words[3]) not in (("workers", "logs"), ("agents", "heartbeat"), ("agents", "commands")):
            error = {"code": "not_found", "message": f"no such thing: {parts.path}", "next": "look again"}
            answer(404, {"error": error})
        elif manager.refuse_status:
            answer(manager.refuse_status, {"error": {"code": "no", "message": "told to refuse", "next": ""}})
        elif not manager.admits(caller):
            answer(401, {"error": {"code": "unauthorized", "message": "who are you?", "next": "deploy again"}})
        elif words[3] == "logs":
            status, said = manager.take_log(words[2], query, body)
            if manager.drop_log_answers > 0 and body:
                manager.drop_log_answers -= 1
                self.close_connection = True
                return
            answer(status, said)
        elif words[3] == "heartbeat":
            manager.received.append(words[2])
            beat = messages.decode(messages.AgentHeartbeat, {"agent_id": words[2], **value})  # omits empty fields
            answer(200, manager.heartbeat(messages.encode(beat)))
        else:
            answer(200, manager.poll(query.get("rev", ""), int(query["seq"]), float(query["wait"])))

    do_GET = do_POST = do_PUT = do_DELETE = _route

    def _answer(self, status: int, value: Any, caller: Session | None, number: int) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if caller is not None:
                self.send_header(session.ANSWER_HEADER, session.answer_mac(caller.key, number, status, data))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True
