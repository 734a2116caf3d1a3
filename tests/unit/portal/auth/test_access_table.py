"""Every route × every method × every kind of unauthorized caller. Scenarios 7 and 25 of the chaos suite.

The routes are the running application's own; who may call each is what its declaration says. What a declaration may say
is held by a rule with its exceptions written here by hand: reading is for viewers, changing for operators. So a new
route needs nothing here, and one that is more open than others fails until somebody names it here as well.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from procguard.agent_api.declaration import Route
from procguard.portal.api.resource import all_routes
from procguard.portal.web_monitor import PAGES
from tests.chaos import ChaosReport
from tests.other_user import OtherUser, other_user
from tests.raw_websocket import Frame, RawWebSocket
from tests.server_process import RunningServer
from tests.waiting import wait_until

ANYONE, READ, SCRAPE, ACT, AGENT, AGENT_OR_ACT = "anyone", "look", "scrape", "act", "agent", "agent or act"
ENROL = "enrol"  # who may not is kept waiting for approval (202) where others are refused
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
SAFE = ("GET", "HEAD")
REFUSED = (401, 403, 429)
NO_SUCH_METHOD = (400, 404, 405, 501)


@dataclass(frozen=True)
class Row:
    """`body`: one that would change something, where that is possible."""

    who: str
    body: Any = None
    query: str = ""


KINDS = {
    "anyone": ANYONE,
    "viewer": READ,
    "viewer or metrics": SCRAPE,
    "operator": ACT,
    "agent": AGENT,
    "agent or operator": AGENT_OR_ACT,
}
REGISTER = "POST /api/workers/register"
# More open than the rule, or less.
OPEN_TO_ANYONE = {
    "GET /api/ca", "GET /api/fields", "GET /api/hello", "GET /api/live", "GET /api/openapi.json", "GET /api/session",
    "GET /healthz", "GET /readyz", "POST /api/login", "POST /api/logout", REGISTER,
}  # fmt: skip
AGENTS_OWN = {
    "POST /api/workers/<worker_id>/heartbeat": AGENT_OR_ACT,
    "GET /api/workers/<worker_id>/command": AGENT_OR_ACT,
    "POST /api/workers/<worker_id>/logs": AGENT,
    "POST /api/agents/<agent_id>/heartbeat": AGENT,
    "GET /api/agents/<agent_id>/commands": AGENT,
    "POST /api/agents/<agent_id>/searches": AGENT,
    "POST /api/agents/<agent_id>/secret": AGENT,
}
READ_BY_OPERATORS_ONLY = {"GET /api/tokens", "GET /api/hosts/<host>/agent-log"}
# What runs a command, and what makes a token that may: not with a browser's session, which can be stolen.
NOT_IN_BROWSERS = {"/api/deployments", "/api/tokens", "/api/agents/<agent_id>/credentials"}
READ_BY_METRICS_TOO = {"GET /metrics"}


def by_rule(name: str) -> str:
    """The callers permitted on a route, for this test."""
    if name in AGENTS_OWN:
        return AGENTS_OWN[name]
    if name in OPEN_TO_ANYONE:
        return ANYONE
    if name in READ_BY_METRICS_TOO:
        return SCRAPE
    return READ if name.startswith("GET ") and name not in READ_BY_OPERATORS_ONLY else ACT


def row_of(route: Route) -> Row:
    who = ENROL if f"{route.method} {route.path}" == REGISTER else KINDS[route.who]
    return Row(who, route.example, route.example_query)


ROWS = {
    **{f"{route.method} {route.path}": row_of(route) for route in all_routes()},
    **{f"{method} {path}": Row(ANYONE) for method, path in PAGES},  # the WebSocket has a test of its own below
}
EXAMPLES = {"gpu01": "h1", "gpu02": "h2", "train-1": "w1"}  # names in examples -> names of what is here
NAMES = {
    "mute_id": "m-1",
    "worker_id": "w1",
    "agent_id": "h1",
    "host": "h1",
    "path": "index.html",
    "operation_id": "o-1",
    "name": "workers",
}


@dataclass(frozen=True)
class Caller:
    """`may`: the kinds of rows that serve it; `safe_only`: with GET and HEAD alone. `way`: through which connection."""

    name: str
    headers: dict[str, str] = field(default_factory=dict)
    may: frozenset[str] = frozenset()
    safe_only: bool = False
    way: str = "direct"

    def served(self, row: Row, method: str) -> bool:
        return row.who in self.may and (method in SAFE or not self.safe_only)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


class Location:
    """A manager with two hosts and a worker on each, and the credentials of callers."""

    def __init__(self, directory: Path) -> None:
        self.server = RunningServer(directory)
        self.secrets = {host: self.server.deploy(host, f"w{host[1]}") for host in ("h1", "h2")}
        for host, secret in self.secrets.items():
            self.server.beat(host, secret)
        self.tokens = {scope: self._token(scope) for scope in ("operator", "viewer", "enroll", "metrics", "agent:h1")}
        self.token_ids = {scope: token["token_id"] for scope, token in self.tokens.items()}
        revoked = self._token("operator")
        self.revoked = revoked["token"]
        assert self.server.ask("DELETE", f"/api/tokens/{revoked['token_id']}").status == 200

    def _token(self, scope: str) -> Any:
        answer = self.server.ask("POST", "/api/tokens", {"scope": scope, "name": "t"})
        assert answer.status == 201, answer.body
        return answer.json

    def token(self, scope: str) -> dict[str, str]:
        return bearer(self.tokens[scope]["token"])

    def log_in(self, scope: str) -> tuple[str, str]:
        """(cookie, CSRF)"""
        answer = self.server.ask("POST", "/api/login", {"token": self.tokens[scope]["token"]})
        assert answer.status == 200, answer.body
        return answer.headers["Set-Cookie"].partition(";")[0], answer.json["csrf"]

    def fill(self, rule: str) -> str:
        names = {**NAMES, "token_id": self.token_ids["operator"], "command_id": "c-1"}
        return re.sub(r"<(\w+)(?::\w+)?>", lambda match: names[match[1]], rule)

    def callers(self) -> list[Caller]:
        local = f"localhost:{self.server.port}"
        operator_cookie, operator_csrf = self.log_in("operator")
        viewer_cookie, viewer_csrf = self.log_in("viewer")
        operators_browser = {"Cookie": operator_cookie, "X-ProcGuard-CSRF": operator_csrf, "Host": "m.example"}
        viewers_browser = {"Cookie": viewer_cookie, "X-ProcGuard-CSRF": viewer_csrf, "Host": "m.example"}
        far = "X-Forwarded-For"  # a forwarded request is not a local one
        reads, act = frozenset({READ, SCRAPE}), frozenset({READ, SCRAPE, ACT, AGENT_OR_ACT, ENROL})
        own = frozenset({AGENT, AGENT_OR_ACT})
        forwarding = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "Via", "X-Real-IP")
        return [
            *(Caller(f"forwarded ({name})", {name: "127.0.0.1"}) for name in forwarding),
            Caller("foreign Host", {"Host": f"evil.example:{self.server.port}"}),  # what is none: test_http_rules.py
            Caller("a rebound name", {"Host": f"localhost.evil.example:{self.server.port}"}),
            Caller("foreign Origin", {"Origin": "http://evil.example"}),
            Caller("Origin null", {"Origin": "null"}),
            Caller("Origin of another port", {"Origin": "http://localhost:1"}),
            Caller("cross-site", {"Sec-Fetch-Site": "cross-site"}),
            Caller("same-site", {"Sec-Fetch-Site": "same-site"}),
            Caller("a forwarder of the manager's user", {"Host": "head.example:8080"}, way="forwarder"),
            Caller("wrong token", bearer("pg-wrong")),
            Caller("revoked token", bearer(self.revoked)),
            Caller("no bearer", {"Authorization": "Basic cm9vdDpyb290"}),
            Caller("enrolment token", self.token("enroll"), frozenset({ENROL})),
            Caller("metrics token", self.token("metrics"), frozenset({SCRAPE})),
            Caller("other agent's secret", bearer(self.secrets["h2"])),
            Caller("own agent's secret", bearer(self.secrets["h1"]), own),
            Caller("token of the agent", self.token("agent:h1"), own),
            Caller("viewer", self.token("viewer"), reads),
            Caller("viewer from elsewhere", {**self.token("viewer"), "Host": "m.example", far: "192.0.2.7"}, reads),
            Caller("viewer's browser", viewers_browser, reads),
            Caller("browser without CSRF", {"Cookie": operator_cookie, "Host": "m.example"}, act, safe_only=True),
            Caller("browser on a foreign page", {"Cookie": operator_cookie, "Origin": "http://evil.example"}),
            Caller("forged cookie", {"Cookie": "procguard_session=x", "Host": "m.example"}),
            Caller("operator's token", {**self.token("operator"), "Host": "m.example", far: "192.0.2.7"}, act),
            Caller("operator's browser", operators_browser, act),
            Caller("the manager's user", {"Host": local}, act),
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Location]:
    made = Location(tmp_path_factory.mktemp("manager"))
    yield made
    made.server.close()


@contextlib.contextmanager
def forwarder(port: int) -> Iterator[int]:
    """A minimal `ssh -L`: its clients reach the manager through a socket of the manager's own user."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


class Wire:
    """One kept connection; a request that ends it opens another."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def ask(self, method: str, target: str, headers: dict[str, str], body: str | None) -> tuple[int, bytes]:
        sent = {"Content-Type": "application/json", **headers}
        try:
            self._http.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in {**sent, **({"Content-Length": str(len(body))} if body else {})}.items():
                self._http.putheader(name, value)
            self._http.endheaders(body.encode() if body else None)
            with self._http.getresponse() as reply:
                return reply.status, reply.read()
        except (http.client.HTTPException, OSError):
            self._http.close()
            raise

    def close(self) -> None:
        self._http.close()


def requests_of(place: Location) -> Iterator[tuple[str, str, str, Row]]:
    """(method, rule, target, row): every route, HEAD where there is GET, destructive ones last."""
    routes = place.server.routes()
    for method, rule in sorted(routes, key=lambda one: (one[0] not in SAFE, one[0] == "DELETE", "revoke" in one[1])):
        row = ROWS.get(f"{method} {rule}", Row(ACT))  # one without a row is reported above
        target = place.fill(rule) + of_here(row.query)
        if rule == "/api/log-search":
            target += "&select=no-such-worker"  # or each waits six seconds for hosts that do not search
        yield method, rule, target, row
        if method == "GET":
            yield "HEAD", rule, target, row


def text_of(row: Row) -> str | None:
    return None if row.body is None else of_here(json.dumps(row.body))


def of_here(text: str) -> str:
    for example, here in EXAMPLES.items():
        text = text.replace(example, here)
    return text


def state_of(server: RunningServer) -> Any:
    """State that no hostile request may change."""
    workers = [(one["worker_id"], one["host"], one["desired"], one["generation"], one["state"]) for one in
               server.ask("GET", "/api/remote-workers").json["workers"]]  # fmt: skip
    hosts = [(one["agent"], one["cordoned"]) for one in server.ask("GET", "/api/hosts").json["hosts"]]
    tokens = [one["token_id"] for one in server.ask("GET", "/api/tokens").json["tokens"]]
    changes = [one["seq"] for one in server.ask("GET", "/api/audit?kind=change&limit=10000").json["audit"]]
    return workers, hosts, tokens, changes


# ----------------------------------------------------------------------------------------------------- the table


def test_what_is_served_is_what_is_declared(place: Location) -> None:
    served = {f"{method} {rule}" for method, rule in place.server.routes()}
    assert sorted(served - set(ROWS)) == [], "served without a declaration (an operator's only)"
    assert sorted(set(ROWS) - served) == [], "declared, but not served"


def test_no_route_is_declared_more_open_than_the_rule() -> None:
    """Viewers read, operators change; the exceptions are named above."""
    wrong = {
        name: (route.who, by_rule(name))
        for route in all_routes()
        if KINDS[route.who] != by_rule(name := f"{route.method} {route.path}")
    }
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.chaos(7)
def test_every_route_refuses_whoever_has_no_business_there(place: Location, chaos_report: ChaosReport) -> None:
    server, before = place.server, state_of(place.server)
    asked = refused = served = 0
    wrong: list[str] = []
    with forwarder(server.port) as forwarded_port:
        for caller in place.callers():
            wire = Wire(forwarded_port if caller.way == "forwarder" else server.port)
            for method, rule, target, row in requests_of(place):
                if caller.served(row, method) and method not in SAFE:
                    continue  # what may act is tried below, when nothing has to stay as it was
                if rule == "/api/logout" and "Cookie" in caller.headers:
                    continue  # it would work
                status, body = wire.ask(method, target, caller.headers, text_of(row))
                asked += 1
                what = f"{caller.name}: {method} {target}: {status} {body[:200]!r}"
                if row.who == ANYONE:
                    if status >= 500:
                        wrong.append(what)
                elif row.who == ENROL:
                    refused += 1
                    if status not in (*REFUSED, 202, 409):
                        wrong.append(what)
                elif caller.served(row, method):
                    served += 1
                    if status in REFUSED:
                        wrong.append(what)
                else:
                    refused += 1
                    if status not in REFUSED or (method != "HEAD" and "error" not in json.loads(body)):
                        wrong.append(what)
            wire.close()
    assert not wrong, f"{len(wrong)} of {asked}:\n" + "\n".join(wrong[:20])
    assert state_of(server) == before
    chaos_report(
        measured=f"{len(server.routes())} routes, {len(place.callers())} kinds of caller: {refused} of {refused} "
        f"refused, {served} of {served} who may look served"
    )


def test_other_methods_do_nothing_for_anybody(place: Location) -> None:
    """Also for permitted callers: an unknown route is unknown with every method (a fix once omitted DELETE)."""
    known = set(place.server.routes())
    before, wire = state_of(place.server)[:3], Wire(place.server.port)
    for rule in sorted({rule for _, rule in known}):
        for method in METHODS:
            if (method, rule) in known or (method == "HEAD" and ("GET", rule) in known):
                continue
            target = place.fill(rule)
            same = {(method, other) for other in (one for _, one in known) if place.fill(other) == target}
            if same & known:
                continue
            status, _ = wire.ask(method, target, place.token("operator"), "{}")
            assert status in NO_SUCH_METHOD, f"{method} {target}: {status}"
    wire.close()
    assert state_of(place.server)[:3] == before  # DELETE /api/workers/register is asked for, of a worker of that name


def test_without_trust_in_local_users_nobody_is_served_without_a_token(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, "web.trust_local=false")
    try:
        wire = Wire(server.port)
        for method, rule in server.routes():
            row = ROWS.get(f"{method} {rule}", Row(ACT))
            if row.who in (ANYONE, ENROL):
                continue
            target = re.sub(r"<\w+>", "x1", rule) + row.query
            status, body = wire.ask(method, target, {"Host": f"localhost:{server.port}"}, text_of(row))
            assert status == 401, f"{method} {target}: {status} {body!r}"
        wire.close()
    finally:
        server.close()


@pytest.mark.parametrize(
    "headers, code",
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 4401),
        ({"X-Forwarded-For": "127.0.0.1"}, 4401),
        (bearer("pg-wrong"), 4401),
    ],
)
def test_the_live_feed_is_closed_to_them_too(place: Location, headers: dict[str, str], code: int) -> None:
    socket_ = RawWebSocket(place.server.port, headers)
    try:
        if code == 403:
            assert socket_.status == 403
        else:
            assert _frame(socket_).close_code == code
    finally:
        socket_.close()


def _frame(client: RawWebSocket) -> Frame:
    frame = client.frame()
    assert frame is not None
    return frame


def test_viewers_see_the_live_feed(place: Location) -> None:
    socket_ = RawWebSocket(place.server.port, {**place.token("viewer"), "Host": "m.example"})
    try:
        assert _frame(socket_).json["t"] == "hello"
    finally:
        socket_.close()


def test_a_foreign_page_learns_nothing_about_the_session(place: Location) -> None:
    for headers in ({"Host": "evil.example"}, {"X-Forwarded-For": "127.0.0.1"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = place.server.ask("GET", "/api/session", headers=headers)
        assert (answer.status, answer.json["operator"], answer.json["role"]) == (200, False, None)


# ------------------------------------------------------------------------------------- other users of this machine


def other_users(port: int) -> contextlib.AbstractContextManager[OtherUser]:
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("only root can become another user")
        pytest.skip("only root can become another user")
    return other_user(port)


def refusals(server: RunningServer) -> dict[tuple[str, str], int]:
    """How many requests of each (method, rule) were answered 401, as the manager counts them."""
    text = server.ask("GET", "/metrics").body.decode()
    found = re.findall(r'procguard_http_requests_total\{route="([^"]+)",method="(\w+)",status="401"\} (\d+)', text)
    return {(method, rule): int(number) for rule, method, number in found}


def closing(port: int) -> int:
    """Connections to this port whose client's end was not acknowledged yet (FIN_WAIT1)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for line in lines if line[2].endswith(f":{port:04X}") and line[3] == "04")


@pytest.mark.chaos(25)
def test_another_user_of_the_machine_is_refused_also_when_it_has_gone(
    place: Location, chaos_report: ChaosReport
) -> None:
    """A connection that was closed before it was accepted is shown by the kernel as uid 0: it must not pass as root."""
    server, before = place.server, state_of(place.server)
    headers = {"Host": f"localhost:{server.port}", "Content-Type": "application/json"}
    closed = [
        (method, rule, target, row)
        for method, rule, target, row in requests_of(place)
        if row.who not in (ANYONE, ENROL) and method != "HEAD"
    ]
    with other_users(server.port) as somebody:
        for method, _, target, row in closed:
            status = somebody.ask(method, target, headers, text_of(row))
            assert status == 401, f"{method} {target}: {status}"
        vanished = 0
        for number in chaos_report.rounds(short=2, long=20):
            counted = refusals(server)
            server.process.send_signal(signal.SIGSTOP)  # nothing is accepted while they come and go
            try:
                vanished += somebody.vanish(
                    [(method, target, headers, text_of(row)) for method, _, target, row in closed]
                )
                if (
                    number % 2 == 0
                ):  # the kernel has let go of them: their uid is shown as 0 now; else it is just about to
                    wait_until(lambda: not closing(server.port), 10, "the closed connections are orphans")
            finally:
                server.process.send_signal(signal.SIGCONT)

            def all_refused(counted: dict[tuple[str, str], int] = counted) -> bool:
                now = refusals(server)
                return all(now.get(key, 0) == counted.get(key, 0) + 1 for key in {(one[0], one[1]) for one in closed})

            wait_until(all_refused, 60, "each of the vanished requests was refused with 401", every_s=0.1)
    with forwarder(server.port) as port:
        wire, forwarded = Wire(port), 0
        for method, _, target, row in closed:
            status, _ = wire.ask(method, target, {"Host": "head.example:8080"}, text_of(row))
            assert status == 401, f"forwarded: {method} {target}: {status}"
            forwarded += 1
    assert state_of(server) == before
    chaos_report(
        measured=f"401 for {len(closed)} of {len(closed)} requests of another uid, {vanished} of {vanished} closed "
        f"before accept, {forwarded} of {forwarded} through a forwarder"
    )


# ---------------------------------------------------------------------------------------- the lines of the documents


def curl_lines(port: int) -> list[str]:
    """The curl lines of the README, for the worker and the port that are here."""
    text = (Path(__file__).parents[4] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^curl .*$", text, re.MULTILINE)
    lines += [
        f'curl http://localhost:5000/api/remote-workers -X GET -H "Accept: {kind}"' for kind in ("*/*", "text/html")
    ]
    for verb in ("start", "stop", "restart", "kill"):
        lines.append(
            "curl -X POST http://localhost:5000/api/workers/worker1/command "
            f'-H "Content-Type: application/json" -d \'{{"command": "{verb}"}}\''
        )
    return [re.sub(r"train-gpu01|worker1", "w1", line.replace(":5000", f":{port}")) for line in lines]


@pytest.mark.skipif(shutil.which("curl") is None and os.environ.get("CI") != "true", reason="needs curl")
def test_the_documented_curl_lines_are_served_as_they_stand(place: Location) -> None:
    lines = curl_lines(place.server.port)
    assert len(lines) >= 9
    for line in lines:
        words = [*shlex.split(line), "-s", "-o", "/dev/null", "-w", "%{http_code}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout in ("200", "202"), f"{line}: {done.stdout}"


@pytest.mark.slow
def test_who_may_act_is_served_everywhere(place: Location) -> None:
    """A request is authorized if the route itself responds, even with 400, 404 or 409."""
    served = 0
    for caller in place.callers():
        if not caller.may - {SCRAPE, READ}:
            continue
        wire = Wire(place.server.port)
        for method, _, target, row in requests_of(place):
            if method not in SAFE and target in NOT_IN_BROWSERS and "Cookie" in caller.headers:
                assert wire.ask(method, target, caller.headers, text_of(row))[0] == 403
                continue
            if row.who == ANYONE or not caller.served(row, method) or "revoke" in target or method == "DELETE":
                continue
            body = "{}" if row.who == ACT else text_of(row)
            status, answer = wire.ask(method, target, caller.headers, body if method not in SAFE else None)
            assert status not in REFUSED and status < 500, f"{caller.name}: {method} {target}: {status} {answer!r}"
            served += 1
        wire.close()
    assert served > 100
