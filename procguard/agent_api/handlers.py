"""Request handlers for agents and launchers, shared by all channels.

Owns the agents' routes, the order of their checks (identity, size, content) and the long polls. Knows the fleet's
methods, access control (`Access`) and, of a channel, only `Call`. The messages are in remote_agent.protocol.messages;
docs/protocol.md shows each of them.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import gevent

from procguard import __version__
from procguard.admission.memory import ByteBudget
from procguard.admission.rate import RateLimiter
from procguard.agent_api import answers, decode
from procguard.agent_api.declaration import Who, choice, flag, get, post, read_query, routes_of, seconds, text, whole
from procguard.agent_api.interface import Access, LogSink, Principal
from procguard.agent_api.long_poll import LongPoll, LongPolls
from procguard.agent_api.sessions import AgentSessions
from procguard.config.limits import WebLimits
from procguard.errors import Conflict, LimitExceeded, ProcGuardError, Refused, UsageError
from procguard.fleet.agents.addresses import address_group
from procguard.fleet.fleet import Fleet
from procguard.fleet.model import clock
from procguard.json_types import Json
from remote_agent.protocol import messages as protocol
from remote_agent.protocol import session

MAX_REGISTRATION_BYTES = 256 * 1024
MAX_ATTEMPT = 10**9
MAX_OFFSET = 2**62
MAX_WRITTEN = 50_000  # cached encoded responses
MAX_LOG_BYTES_AT_ONCE = 64 * 1024 * 1024  # limit of log posts in memory
SMALL_LOG_BYTES = 64 * 1024  # live lines never wait behind backlogs
LOG_TURN_S = 8.0
LONGEST_TURN_S = 1.0  # longest delay of a heartbeat; sequential ones never need more
MAX_TIMES_CHARS = 8000
MAX_FOUND_BYTES = 4 * 1024 * 1024  # limit of the answer to a search
MAX_URL_CHARS = 512
NOT_HERE_NEXT = "deploy the host again, or name the address in web.advertise if it does lead here"
_TIME = re.compile(r"([0-9]{1,8}):(-?[0-9]{1,13})")


Offer = Callable[[str, str, str], "protocol.ZmqOffer | None"]
WhyNotHere = Callable[["Call", str], str]


class Answer(NamedTuple):
    """`message`: one of the protocol's, a JSON object, or its bytes."""

    status: int
    message: Any

    @property
    def data(self) -> Json:
        """The message as JSON values."""
        if isinstance(self.message, bytes):
            return dict(json.loads(self.message))
        return self.message if isinstance(self.message, dict) else protocol.encode(self.message)


class Call:
    """One request from a channel. `declared_bytes`: the body's size if it is known in advance; `sock`: the connection
    whose closing ends a long poll, None if the channel reports it itself (`held`); `direct`: not through a tunnel."""

    __slots__ = ("declared_bytes", "direct", "peer", "query", "sock")

    channel: ClassVar[str] = "http"  # the channel's name

    def __init__(
        self, query: Mapping[str, str], peer: str, declared_bytes: int | None = None, sock: Any | None = None
    ) -> None:
        self.query = query
        self.peer = peer
        self.declared_bytes = declared_bytes
        self.direct = True
        self.sock = sock

    @property
    def proven(self) -> bool:
        """Whether the caller has also proved that it holds the agent's proof key."""
        return False

    def sealed(self, secret: str) -> str:
        """The secret in the form in which the response may contain it: encrypted in a session."""
        return secret

    @property
    def arrived_at(self) -> str:
        """The local address of the connection; "" if it is not meaningful."""
        return ""

    def identify(self, own_secret_sha256: str = "") -> Principal:
        """Identify the caller. Raises Refused for invalid credentials."""
        raise NotImplementedError

    def read(self, max_bytes: int) -> bytes:
        """The whole body. Raises LimitExceeded beyond `max_bytes`."""
        raise NotImplementedError

    def held(self, poll: LongPoll) -> None:
        """Called when the request is held; the channel may end it (`poll.end`) when its connection closes."""


class AgentRoute(NamedTuple):
    """`path`: in bottle's syntax, with at most one <name>; `handler(call, id)` or `handler(call)`. `often`: called by
    every agent periodically."""

    method: str
    path: str
    handler: Callable[..., Answer]
    name: str
    who: Who
    often: bool = False


def _name_in(path: str) -> str:
    return path.partition("<")[2].partition(">")[0]


@dataclass(frozen=True)
class HelloQuery:
    agent: str = text("the agent's id", 128)
    nonce: str = text("a number used once", 128)
    to: str = text("the address that the agent used; the proof covers it", MAX_URL_CHARS)
    curve: str = text("the agent's CURVE key in hexadecimal, to be admitted to the zmq channel", 64)
    mac: str = text("proves that `curve` belongs to the holder of the agent's proof key", 64)


@dataclass(frozen=True)
class WaitQuery:
    wait: float = seconds(
        0.0, 0.0, protocol.MAX_WAIT_S, f"seconds to hold the request, at most {protocol.MAX_WAIT_S:g}"
    )


@dataclass(frozen=True)
class PollQuery(WaitQuery):
    rev: str = text("the `rev` of the assignments that the agent has")
    seq: int = whole(0, 0, 2**53, "the last command it received")


@dataclass(frozen=True)
class ShippedQuery:
    attempt: int = whole(1, 0, MAX_ATTEMPT)
    stream: str = choice("out", "err", default="out", says="the stream")
    offset: int = whole(0, 0, MAX_OFFSET, "offset of the body's first byte")
    gap: bool = flag("the bytes before `offset` are lost")
    at: float | None = seconds(None, 0.0, 4e9, "when the first byte was written, Unix seconds")
    times: str = text("later times of bytes in the body, as byte:time: `512:250,9000:1250`", MAX_TIMES_CHARS)
    fill: str = text("the `LogRange` that this post answers", 64)
    end: int = whole(0, 0, MAX_OFFSET, "with `fill` and `gap`: the bytes from `offset` to here are lost")
    last: bool = flag("with `fill`: the last post of that range")


class AgentApi:
    """The handlers of agents' requests. `start` subscribes to the fleet's wake-ups, `stop` ends held requests."""

    def __init__(
        self,
        fleet: Fleet,
        access: Access,
        log_sink: LogSink,
        limits: WebLimits | None = None,
        sessions: AgentSessions | None = None,
        why_not_here: WhyNotHere = lambda _call, _url: "",
    ) -> None:
        """`sessions`: offered to HTTP agents in hello; `why_not_here(call, url)`: why this manager does not prove its
        identity for `url` on that connection, or ""."""
        self._limits = limits = limits or WebLimits()
        self._fleet = fleet
        self._access = access
        self._logs = log_sink
        self._held = LongPolls()
        self._log_budget = ByteBudget(MAX_LOG_BYTES_AT_ONCE)
        self._register_rate = RateLimiter(limits.registrations_at_once, limits.registrations_per_second)
        self._offer: Offer | None = None
        self._sessions = sessions
        self._why_not_here = why_not_here
        self._written: dict[str, tuple[protocol.WorkerReply, Answer]] = {}  # keyed by worker id

    def offer_by(self, offer: Offer) -> None:
        """`offer(agent_id, key, peer)`: returns the zmq channel's offer to an agent; `key`: the agent's proven CURVE
        key, or "" for a query."""
        self._offer = offer

    def start(self) -> None:
        bus = self._fleet.state.bus
        bus.news.subscribe(self._held.wake)
        bus.revoked.subscribe(self._held.end_agent)
        bus.secret_replaced.subscribe(self._held.end_agent)

    def stop(self) -> None:
        """Answer every held request now; the agents reconnect to the next manager."""
        self._held.stop()

    @property
    def held_count(self) -> int:
        return len(self._held)

    def routes(self) -> list[AgentRoute]:
        return [
            AgentRoute(one.method, one.path, self._of_term(one.handler), _name_in(one.path), one.who, one.often)
            for one in routes_of(AgentApi)
        ]

    def _of_term(self, name: str) -> Callable[..., Answer]:
        """Wrap a handler so that its refusals contain the leader's term, as replies do, because agents ignore refusals
        with a lower term."""
        handler: Callable[..., Answer] = getattr(self, name)

        @functools.wraps(handler)
        def answer(*arguments: Any) -> Answer:
            try:
                return handler(*arguments)
            except ProcGuardError as exc:
                term = self._fleet.state.leadership.term
                if term:
                    exc.extra = {"term": term} | getattr(exc, "extra", {})  # type: ignore[attr-defined]
                raise

        return answer

    # -------------------------------------------------------------------------------------------- first contact

    @get(
        "/api/hello", "anyone", tag="agents", zh="证明这就是本机群的管理端", query=HelloQuery,
        answers={200: answers.Hello}, errors=(401, 421), often=True, example_query="?agent=gpu01&nonce=00",
    )  # fmt: skip
    def hello(self, call: Call) -> Answer:
        """Proof that this is the fleet's manager, before an agent sends it its secret.

        Also offers [sessions](#sessions-a-mac-in-place-of-the-secret), [zmq](#the-zmq-channel).
        """
        asked = read_query(HelloQuery, call.query)
        agent_id, nonce, url = asked.agent, asked.nonce, asked.to
        if "\0" in nonce or "\0" in url:
            raise UsageError("nonce, to: expected text without NUL", "see docs/protocol.md")
        fleet_id = self._fleet.state.fleet_id
        reply = {"fleet_id": fleet_id, "version": __version__, "protocol": protocol.PROTOCOL_VERSION}
        of_session = self._sessions is not None and nonce.startswith(session.NONCE_PREFIX)
        is_agent = protocol.valid_agent_id(agent_id)
        if not nonce or not (is_agent or (of_session and agent_id.startswith(session.TOKEN_PREFIX))):
            return Answer(200, reply)
        why_not = self._why_not_here(call, url) if url else ""
        if why_not:
            raise _NotHere(url, why_not)
        if self._sessions is not None and of_session:
            # Never together with a proof of the earlier kind, because a relay could remove the session.
            reply["session"] = self._sessions.offer(agent_id, nonce, url)
        else:
            key = self._fleet.state.proof_key(agent_id)
            reply["proof"] = protocol.manager_proof(key, fleet_id, agent_id, nonce)
        if is_agent:
            offer = self._zmq_offer(call, asked)
            if offer is not None:
                reply["zmq"] = protocol.encode(offer)
        return Answer(200, reply)

    def _zmq_offer(self, call: Call, asked: HelloQuery) -> protocol.ZmqOffer | None:
        """The zmq offer, if `mac` proves that the agent's CURVE key in `curve` belongs to the holder of the proof
        key."""
        agent_id, nonce, own = asked.agent, asked.nonce, asked.curve
        if self._offer is None or not call.direct or agent_id not in self._fleet.state.agents_by_id:
            return None
        proof_key = self._fleet.state.proof_key(agent_id)
        if own and not hmac.compare_digest(
            asked.mac.encode(),
            protocol.curve_key_proof(proof_key, agent_id, nonce, own).encode(),
        ):
            raise Refused("mac does not match the curve key", "compute it as described in docs/protocol.md")
        offer = self._offer(agent_id, own, call.peer)
        if offer is not None:
            offer.proof = protocol.zmq_offer_proof(proof_key, agent_id, nonce, offer)
        return offer

    @post(
        "/api/workers/register", "anyone", tag="agents", zh="注册一个手动启动的 worker", body=protocol.Registration,
        answers={200: protocol.RegisterReply, 202: protocol.RegisterReply}, errors=(409,),
        example={"worker_id": "by-hand", "command": "id", "secret_sha256": "0" * 64},
    )  # fmt: skip
    def register(self, call: Call) -> Answer:
        """Register a worker started by hand. From another machine it needs approval."""
        registration = decode.read(protocol.Registration, call.read(MAX_REGISTRATION_BYTES))
        caller = call.identify(registration.secret_sha256)
        if caller.kind == "anonymous":
            self._limit_registrations(call.peer)
        reply = self._fleet.agents.enrolment.register(
            registration,
            actor=caller.actor,
            trusted=self._trusted_to_register(caller, registration.worker_id),
            peer=call.peer,
            now=clock.read(),
            enrolled_by=caller.token_id if caller.kind == "enroll" else "",
        )
        if reply.status == "pending":
            return Answer(202, reply)
        reply.proof_key = call.sealed(reply.proof_key)
        reply.log_offsets = self._logs.lengths(registration.worker_id)
        return Answer(200, reply)

    def _trusted_to_register(self, caller: Principal, worker_id: str) -> bool:
        if caller.kind == "agent":
            own_id = protocol.LAUNCHER_PREFIX + worker_id  # a token created for a launcher that has not registered yet
            return caller.agent_id == own_id or bool(self._fleet.agents.owns(caller.agent_id, worker_id))
        return caller.kind in ("operator", "enroll")

    def _limit_registrations(self, peer: str) -> None:
        wait_s = self._register_rate.wait_s(address_group(peer), clock.read().monotonic)
        if wait_s > 0:
            raise LimitExceeded.for_now(
                f"too many registrations from {peer}", f"wait {wait_s:.1f} s", wait_s, "too_often"
            )

    # --------------------------------------------------------------------------------- one worker, the plain form

    @post(
        "/api/workers/<worker_id>/heartbeat", "agent or operator", tag="agents", zh="单个 worker 的心跳",
        body=protocol.WorkerHeartbeat, answers={200: protocol.WorkerReply}, errors=(404, 409, 429), often=True,
        example={"state": "failed"},
    )  # fmt: skip
    def worker_heartbeat(self, call: Call, worker_id: str) -> Answer:
        """A heartbeat of one worker, for plain launchers."""
        if worker_id not in self._fleet.state.workers_by_id:  # existing workers have valid ids
            checked_worker_id(worker_id)
        self._access.check_worker_agent(call.identify(), worker_id, operator_too=True)
        worker = self._fleet.state.workers_by_id.get(worker_id)
        self._in_turn(worker.agent_id if worker is not None else "")
        beat = decode.read(protocol.WorkerHeartbeat, call.read(self._limits.body_size))
        reply = self._fleet.agents.heartbeats.take_plain(worker_id, beat, clock.read(), call.channel)
        known = self._written.get(worker_id)
        if known is None or known[0] is not reply:  # nearly all receive the same response repeatedly
            if len(self._written) > MAX_WRITTEN:
                self._written.clear()
            known = self._written[worker_id] = (reply, Answer(200, decode.dumps(reply)))
        return known[1]

    @get(
        "/api/workers/<worker_id>/command", "agent or operator", tag="agents", zh="长轮询：worker 要执行的命令",
        query=WaitQuery, answers={200: protocol.WorkerReply}, errors=(404,), often=True,
    )  # fmt: skip
    def worker_commands(self, call: Call, worker_id: str) -> Answer:
        """Changes for the worker; the request is held until there are some."""
        worker_id = checked_worker_id(worker_id)
        caller = self._access.check_worker_agent(call.identify(), worker_id, operator_too=True)
        agent_id = self._fleet.state.worker(worker_id)["agent"]
        deadline = clock.read().monotonic + read_query(WaitQuery, call.query).wait
        poll = self._open(f"worker:{worker_id}", agent_id, call, caller)
        try:
            while not poll.ending:
                now = clock.read()
                reply = self._fleet.agents.replies.news_for_worker(worker_id, now)
                if reply is not None:
                    return Answer(200, reply)
                if not _wait(poll, deadline - now.monotonic):
                    break
        finally:
            self._held.close(poll)
        _refuse_revoked(poll)
        return self._nothing_new_for(worker_id)

    def _nothing_new_for(self, worker_id: str) -> Answer:
        view, leadership = self._fleet.state.worker(worker_id), self._fleet.state.leadership
        reply = protocol.WorkerReply(worker_id=worker_id, desired=view["desired"], epoch=view.get("epoch", 0))
        reply.managers, reply.term = list(leadership.manager_urls()), leadership.term
        return Answer(200, reply)

    @post(
        "/api/workers/<worker_id>/logs", "agent", tag="agents", zh="上传日志字节", query=ShippedQuery, body=bytes,
        answers={200: answers.Acked}, errors=(404, 409, 507), example={"not": "a log"},
        example_query="?attempt=1&offset=0",
    )  # fmt: skip
    def worker_logs(self, call: Call, worker_id: str) -> Answer:
        """Upload bytes of a log; acknowledged bytes are durable."""
        worker_id, caller = checked_worker_id(worker_id), call.identify()
        asked = read_query(ShippedQuery, call.query)
        attempt, stream, offset = asked.attempt, asked.stream, asked.offset
        if caller.kind != "agent" or not self._fleet.agents.may_ship(caller.agent_id, worker_id, attempt):
            self._access.check_worker_agent(caller, worker_id)
        at = clock.read().wall if asked.at is None else asked.at
        with self._log_turn(call.declared_bytes):
            data = call.read(protocol.MAX_LOG_POST_BYTES)
            if asked.fill:
                return self._filled(caller.agent_id, worker_id, asked, data, at)
            if not data and not asked.gap:
                try:
                    stored = self._logs.length(worker_id, attempt, stream)
                except OSError as exc:
                    raise _StorageFailed(f"{worker_id}: cannot store log bytes ({exc.strerror or exc})") from exc
                return Answer(200, self._acked(worker_id, attempt, stream, stored))
            try:
                times = _times(asked.times, at, len(data))
                acked = self._logs.append(worker_id, attempt, stream, offset, data, at, asked.gap, times)
            except OSError as exc:
                raise _StorageFailed(f"{worker_id}: cannot store log bytes ({exc.strerror or exc})") from exc
            return Answer(200, self._acked(worker_id, attempt, stream, acked))

    def _acked(self, worker_id: str, attempt: int, stream: str, acked: int) -> dict[str, int]:
        """Add the offset up to which all bytes are stored or archived and, with several managers, the term."""
        term, kept = self._fleet.state.leadership.term, self._logs.kept(worker_id, attempt, stream, acked)
        if term:
            return {"acked": acked, "kept": kept, "term": term}
        return {"acked": acked} if kept == acked else {"acked": acked, "kept": kept}

    def _filled(self, agent_id: str, worker_id: str, asked: ShippedQuery, data: bytes, at: float) -> Answer:
        """Store a part of a log that this manager requested. Raises Conflict if it did not."""
        ranges, attempt, stream = self._fleet.log_ranges, asked.attempt, asked.stream
        if not ranges.admits(agent_id, asked.fill, worker_id, attempt, stream):
            raise Conflict("no request is waiting for this part of the log", "nothing to do", code="no_range")
        try:
            if asked.gap:
                self._logs.lose(worker_id, attempt, stream, asked.offset, asked.end, at)
            elif data:
                self._logs.fill(worker_id, attempt, stream, asked.offset, data)
            else:
                self._logs.announce(worker_id, attempt, stream, asked.offset, at)
        except OSError as exc:
            raise _StorageFailed(f"{worker_id}: cannot store log bytes ({exc.strerror or exc})") from exc
        if asked.last:
            ranges.complete(asked.fill)
        return Answer(200, self._acked(worker_id, attempt, stream, asked.offset + len(data)))

    @contextlib.contextmanager
    def _log_turn(self, declared_bytes: int | None) -> Iterator[None]:
        """A context in which a large post has memory; waits until it is available. Raises LimitExceeded."""
        size = protocol.MAX_LOG_POST_BYTES if declared_bytes is None else declared_bytes
        if size <= SMALL_LOG_BYTES or size > protocol.MAX_LOG_POST_BYTES:  # the latter is refused without being read
            yield
            return
        with self._log_budget.room(size, LOG_TURN_S, "many hosts send their logs at once"):
            yield

    # -------------------------------------------------------------------------------------- all workers of an agent

    @post(
        "/api/agents/<agent_id>/heartbeat", "agent", tag="agents", zh="主机上所有 worker 的心跳",
        body=protocol.AgentHeartbeat, answers={200: protocol.AgentReply}, errors=(404, 409, 429), often=True,
        example={"agent_id": "gpu01", "boot_id": "another"},
    )  # fmt: skip
    def agent_heartbeat(self, call: Call, agent_id: str) -> Answer:
        """A host's heartbeat: the reports of all its workers."""
        self._access.check_agent(call.identify(), agent_id)
        self._in_turn(agent_id)
        beat = decode.read(protocol.AgentHeartbeat, call.read(self._limits.heartbeat_size))
        if beat.agent_id != agent_id:
            raise UsageError(
                f"the heartbeat of {beat.agent_id[:70]!r} was sent to {agent_id}", "send it to its own address"
            )
        return Answer(200, self._fleet.agents.heartbeat(agent_id, beat, clock.read(), call.channel))

    def _in_turn(self, agent_id: str) -> None:
        """Delay heartbeats of an agent that changes more than its share, before the body is read. Raises
        LimitExceeded."""
        wait_s = self._fleet.agents.heartbeats.wait_s(agent_id, clock.read().monotonic)
        if wait_s <= 0:
            return
        if wait_s > LONGEST_TURN_S:
            raise LimitExceeded.for_now(
                f"{agent_id} reports more changes than its share", f"wait {wait_s:.0f} s", wait_s
            )
        gevent.sleep(wait_s)

    @get(
        "/api/agents/<agent_id>/commands", "agent", tag="agents", zh="长轮询：Agent 要执行的命令", query=PollQuery,
        answers={200: protocol.AgentReply}, errors=(404,), often=True,
    )  # fmt: skip
    def agent_commands(self, call: Call, agent_id: str) -> Answer:
        """Changes for the agent; the request is held until there are some."""
        caller = self._access.check_agent(call.identify(), agent_id)
        asked = read_query(PollQuery, call.query)
        deadline, rev = clock.read().monotonic + asked.wait, asked.rev
        self._fleet.agents.heartbeats.poll_opened(agent_id, clock.read())
        poll = self._open(f"agent:{agent_id}", agent_id, call, caller)
        try:
            while not poll.ending:
                now = clock.read()
                reply = self._fleet.agents.replies.news_for_agent(agent_id, rev, asked.seq, now)
                if reply is not None:
                    return Answer(200, reply)
                if not _wait(poll, deadline - now.monotonic):
                    break
        finally:
            self._held.close(poll)
            self._fleet.agents.heartbeats.poll_closed(agent_id, clock.read(), peer_closed=poll.ending == "peer_closed")
        _refuse_revoked(poll)
        return Answer(200, self._fleet.agents.replies.nothing_new(rev))

    @post(
        "/api/agents/<agent_id>/searches", "agent", tag="agents", zh="Agent 的日志搜索结果",
        body=protocol.LogSearchResult, answers={200: answers.OfSearch}, errors=(404,), example={"results": []},
    )  # fmt: skip
    def agent_found(self, call: Call, agent_id: str) -> Answer:
        """The result of a log search on an agent's host.

        Only for a search that the agent was asked to perform.
        """
        self._access.check_agent(call.identify(), agent_id)
        result = decode.read(protocol.LogSearchResult, call.read(MAX_FOUND_BYTES), MAX_FOUND_BYTES)
        self._fleet.log_searches.take(agent_id, result)
        return Answer(200, {"search_id": result.search_id, "status": "taken"})

    @post(
        "/api/agents/<agent_id>/secret", "agent", tag="agents", zh="Agent 新密钥的摘要", body=protocol.SecretRenewal,
        answers={200: answers.OfAgent}, errors=(404, 409),
        example={"rotation": "r-1", "secret_sha256": protocol.secret_sha256("mine")},
    )  # fmt: skip
    def agent_secret(self, call: Call, agent_id: str) -> Answer:
        """Set the digest of the new secret during a rotation.

        A bearer secret is not sufficient: rotation must exclude anybody who has read the old secret.
        """
        self._access.check_agent(call.identify(), agent_id)
        if not call.proven:
            raise Conflict(
                "a new secret is accepted only in a session",
                "open one with GET /api/hello (docs/protocol.md)",
                code="no_session",
            )
        renewal = decode.read(protocol.SecretRenewal, call.read(MAX_REGISTRATION_BYTES))
        self._fleet.agents.rotations.take(agent_id, renewal, clock.read())
        return Answer(200, {"agent_id": agent_id, "status": "taken"})

    def _open(self, key: str, agent_id: str, call: Call, caller: Principal) -> LongPoll:
        poll = self._held.open(key, agent_id, call.sock)
        poll.close_use = self._access.hold(caller, functools.partial(poll.end, "revoked"))
        call.held(poll)
        return poll


def _refuse_revoked(poll: LongPoll) -> None:
    if poll.ending == "revoked":
        raise Refused("this secret was revoked while its request waited", "deploy the host again (invoke deploy)")


class _NotHere(ProcGuardError):
    http_status = 421
    default_code = "not_this_manager"

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url[:200]} does not lead to this manager directly: {why}", NOT_HERE_NEXT)


class _StorageFailed(ProcGuardError):
    http_status = 507
    default_code = "storage_failed"

    def __init__(self, message: str) -> None:
        super().__init__(
            message, "free space in the manager's state directory; the agent keeps the bytes and tries again"
        )


def checked_worker_id(text: str) -> str:
    """The worker id, if it is valid. Raises UsageError otherwise."""
    if not protocol.valid_id(text):
        raise UsageError(f"{text[:80]!r} is not a worker id", f"ids match {protocol.ID_PATTERN}", code="bad_id")
    return text


def _times(text: str, at: float, length: int) -> list[tuple[int, float]]:
    """`times=512:250,9000:1250` as [(byte of the body, wall time)…]. Raises UsageError."""
    found: list[tuple[int, float]] = []
    for part in text.split(",") if text else ():
        match = _TIME.fullmatch(part)
        if match is None or int(match[1]) <= (found[-1][0] if found else 0):
            raise UsageError(f"times: {part[:40]!r} is not byte:milliseconds, rising", "e.g. times=512:250,9000:1250")
        if int(match[1]) < length:
            found.append((int(match[1]), min(4e9, max(0.0, at + int(match[2]) / 1000))))
    return found


def _wait(poll: LongPoll, left_s: float) -> bool:
    """Wait until the poll is woken. False on timeout."""
    if left_s <= 0:
        return False
    poll.wait(left_s)
    return True
