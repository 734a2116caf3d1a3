"""Messages of a hostile agent or launcher: every field of every message at its extremes, ids of others, replays.

Made from the dataclasses of remote_agent.protocol.messages, so that a field that is added is covered by itself. A seed
gives the same messages again. Knows the wire; not what the manager does with it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import types
import typing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Union
from urllib.parse import quote, urlencode

from remote_agent.protocol import messages

INTEGERS = [0, 1, -1, 2, 7, 1000, 65_535, 65_536, 10**8, 10**9, 2**31 - 1, 2**31, 2**53 - 1, 2**53, 2**62, 2**63 - 1]
INTEGERS += [2**63, 2**64, -(2**63), 10**30, 10**150]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, 1e9, 4e9, 1.8e9, 1e18, 1e300, -1e300, 1.7976931348623157e308]
TEXTS = ["", "x", "\0", "\n", "\x1b[2J", "..", "../../etc/passwd", "a/b", "\u00e9", "\ud800", "\u202e", "x" * 300]
TEXTS += ["x" * 5_000, "x" * 100_000, "null", "removed", "running", "0" * 32, "{{7*7}}", "<script>", "' OR 1=1 --"]
WRONG: list[Any] = [None, True, [], {}, "text", 1e308, -1, {"worker_id": 7}, [[[]]], float("nan"), float("inf")]
EXTREMES = [0.0, 0.01, 0.05, 0.3]  # in one message such a part of all values: most get past the first check
STREAMS = ["out", "err", "", "OUT", "../out"]


@dataclass
class Known:
    """The attacker's knowledge, which is more than a real attacker could have."""

    own: list[str]
    others: list[str]
    agents: list[str]
    secrets: list[str] = field(default_factory=list)  # command ids, search ids, grants of its own past
    numbers: list[int] = field(default_factory=list)  # epochs, generations, attempts of others, and about them


class Request(NamedTuple):
    method: str
    path: str
    body: bytes


class Byzantine:
    """`agent_id`: who it is; a launcher's begins with "launcher:"."""

    def __init__(self, seed: int, agent_id: str, known: Known) -> None:
        self._random = random.Random(seed)
        self._agent_id = agent_id
        self._known = known
        self._past: list[Request] = []
        self._extreme = 0.0

    def next(self) -> Request:
        """The next message; some repeat earlier ones."""
        if self._past and self._random.random() < 0.03:
            return self._random.choice(self._past)
        makers = {
            self._heartbeat: 40, self._plain: 14, self._logs: 14, self._found: 8, self._poll: 8, self._worker_poll: 5,
            self._register: 8, self._hello: 3,
        }  # fmt: skip
        [maker] = self._random.choices(list(makers), list(makers.values()))
        made: Request = maker()
        if len(self._past) < 200:
            self._past.append(made)
        elif len(made.body) < 10_000:
            self._past[self._random.randrange(200)] = made
        return made

    # ------------------------------------------------------------------------------------------ each message

    def _heartbeat(self) -> Request:
        beat = self.make(messages.AgentHeartbeat)
        if self._random.random() < 0.9:
            beat["agent_id"] = self._agent_id
        if self._random.random() < 0.8:  # else most are refused for one field of one of them
            beat["workers"] = [self._claim() for _ in range(self._random.choice([0, 1, 1, 2, 5]))]
        if self._random.random() < 0.01:
            beat["workers"] = [self._claim() for _ in range(2_000)]
        if self._random.random() < 0.01:
            event = self.make(messages.WorkerEvent, 1)
            beat["events"] = [event] * self._random.choice([500, 3_000, 10_001])
        agent = self._agent_id if self._random.random() < 0.9 else self._random.choice(self._known.agents)
        return self._post(f"/api/agents/{quote(agent, safe=':')}/heartbeat", beat)

    def _claim(self) -> dict[str, Any]:
        """A report that is well made and says that somebody's worker is here, under whatever epoch."""
        known = self._known
        report = {
            "worker_id": self._random.choice(known.others + known.own),
            "state": self._random.choice(typing.get_args(messages.State)),
            "epoch": self._random.choice([*known.numbers, 2**53 - 1, 2**53, 2**63 - 1, 1]),
            "generation": self._random.choice([0, 1, 2, 5, 2**31, 2**31 + 1, 2**53 - 1]),
            "attempt": self._random.choice([0, 1, 2, 3, 99, 10**8]),
            "grant": self._random.choice([*known.secrets, "", "0" * 32]),
        }
        if self._random.random() < 0.3:
            report["lease_left_s"] = self._random.choice([0.0, 1.0, 1e300])
        return report

    def _plain(self) -> Request:
        return self._post(f"/api/workers/{self._worker()}/heartbeat", self.make(messages.WorkerHeartbeat))

    def _found(self) -> Request:
        return self._post(
            f"/api/agents/{quote(self._agent_id, safe=':')}/searches", self.make(messages.LogSearchResult)
        )

    def _register(self) -> Request:
        body = self.make(messages.Registration)
        body["worker_id"] = self._random.choice([*self._known.others, *self._known.own, "nobody"])
        if body["worker_id"] in self._known.own:
            body.pop("secret_sha256", None)  # else it has another secret from then on, and only locks itself out
        return self._post("/api/workers/register", body)

    def _logs(self) -> Request:
        query = {
            "attempt": self._random.choice([0, 1, 2, 3, 4, 99, 10**9, 10**9 + 1, -1, 2**63]),
            "stream": self._random.choice(STREAMS),
            "offset": self._random.choice([0, 0, 1, 100, 10**6, 2**40, 2**62, 2**63, -1]),
            "at": self._random.choice([0, 1.8e9, 4e9, 1e300, "nan"]),
        }
        if self._random.random() < 0.2:
            query["gap"] = 1
        if self._random.random() < 0.2:
            query["times"] = self._random.choice(["0:0", "1:9999999999999", "9:1,3:1", "x", "1:-1" + ",2:0" * 900])
        data = self._random.choice([b"", b"forged\n", b"\0" * 3_000, b"x" * 70_000])
        return Request("POST", f"/api/workers/{self._worker()}/logs?{urlencode(query)}", data)

    def _poll(self) -> Request:
        agent = self._agent_id if self._random.random() < 0.7 else self._random.choice(self._known.agents)
        query = {"wait": 0, "rev": self._text()[:300], "seq": self._random.choice(INTEGERS)}
        return Request("GET", f"/api/agents/{quote(agent, safe=':')}/commands?{_query(query)}", b"")

    def _worker_poll(self) -> Request:
        return Request("GET", f"/api/workers/{self._worker()}/command?wait=0", b"")

    def _hello(self) -> Request:
        agent = self._random.choice([*self._known.agents, self._text()[:300]])
        return Request("GET", f"/api/hello?{_query({'agent': agent, 'nonce': self._text()[:300]})}", b"")

    def _post(self, path: str, body: dict[str, Any]) -> Request:
        return Request("POST", path, json.dumps(body).encode())

    def _worker(self) -> str:
        return quote(self._random.choice([*self._known.others, *self._known.others, *self._known.own]), safe="")

    # ------------------------------------------------------------------------------------------ any message

    def make(self, cls: type[Any], depth: int = 0) -> dict[str, Any]:
        """One of `cls`, as JSON values. Every field may have any value at all."""
        made = {}
        if depth == 0:
            self._extreme = self._random.choice(EXTREMES)
        for name, kind, required in _fields(cls):
            if required or self._random.random() >= 0.35:
                made[name] = self._value(kind, name, depth)
        return made

    def _value(self, kind: Any, name: str, depth: int) -> Any:
        if self._random.random() < self._extreme / 20:
            return self._random.choice(WRONG)
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin is Union or origin is types.UnionType:
            return self._value(self._random.choice(inner), name, depth)
        if kind is type(None):
            return None
        if origin is typing.Literal:
            return "elsewhere" if self._random.random() < self._extreme / 10 else self._random.choice(inner)
        if origin is list:
            many = self._random.choice([0, 1, 1, 2, 3] if depth < 3 else [0, 1])
            return [self._value(inner[0], name, depth + 1) for _ in range(many)]
        if origin is dict:
            return {self._word(): self._value(inner[1], name, depth + 1) for _ in range(self._random.choice([0, 1, 2]))}
        if dataclasses.is_dataclass(kind):
            return self.make(kind, depth + 1)  # type: ignore[arg-type]
        if kind is bool:
            return self._random.random() < 0.5
        if kind is Any:  # of a reason's parameters
            nested = {"code": self._word(), "params": {self._word(): self._text()}}
            return self._random.choice([self._word(), self._text(), 0, -1.5, None, [self._text()], nested, [[nested]]])
        return self._scalar(kind, name)

    def _scalar(self, kind: Any, name: str) -> Any:
        plausible = self._random.random() >= self._extreme
        if kind is int:
            usual = [0, 1, 2, 3, *self._known.numbers] if name in ("epoch", "seq", "beat") else [0, 1, 2, 3]
            return self._random.choice(usual if plausible else INTEGERS)
        if kind is float:
            return self._random.choice([0.0, 1.0, 1.8e9] if plausible else FLOATS)
        if kind is not str:
            raise AssertionError(f"what is a field of type {kind}? Add it to tests/hostile_messages.py")
        if name == "worker_id" and plausible:
            return self._random.choice(self._known.others + self._known.own)
        if name == "secret_sha256" and plausible:
            return self._random.choice("0123456789abcdef") * 64
        if name in ("command_id", "search_id", "grant") and plausible and self._known.secrets:
            return self._random.choice(self._known.secrets)
        return self._word() if plausible else self._text()

    def _word(self) -> str:
        return self._random.choice(["x", "ok", "done", "LABEL"])

    def _text(self) -> str:
        return self._random.choice([*TEXTS, *self._known.others, *self._known.secrets])


@functools.lru_cache
def _fields(cls: type[Any]) -> list[tuple[str, Any, bool]]:
    """(name, type, whether it has no default)"""
    hints, missing = typing.get_type_hints(cls), dataclasses.MISSING
    return [
        (one.name, hints[one.name], one.default is missing and one.default_factory is missing)
        for one in dataclasses.fields(cls)
    ]


def _query(values: dict[str, Any]) -> str:
    return urlencode(values, errors="replace")
