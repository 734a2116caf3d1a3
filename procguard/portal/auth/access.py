"""Identifies callers and checks their rights. Access is denied unless a rule here allows it (docs/security.md).

Operators and viewers: a bearer token, or a browser session opened with one; the manager's own user on its own machine
is an operator too. Agents: their own secret, valid for their own workers. Knows requests only as WSGI environments;
gate.py knows which route needs which right.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shlex
from collections.abc import Callable
from wsgiref.types import WSGIEnvironment

from procguard.admission.rate import BackOff, RateLimiter
from procguard.agent_api import http_io
from procguard.agent_api.declaration import Who
from procguard.agent_api.interface import Principal
from procguard.agent_api.sessions import AgentSessions
from procguard.errors import Forbidden, LimitExceeded, Refused
from procguard.fleet.agents.addresses import address_group
from procguard.fleet.agents.token_scopes import AGENT_SCOPE, SCOPES, Scope, how_to_replace
from procguard.fleet.fleet import Fleet
from procguard.fleet.model import clock
from procguard.fleet.model.records import TokenRecord
from procguard.portal.auth import local_client, peer_uid
from procguard.portal.auth.audit import ASKS
from procguard.portal.auth.live_uses import LiveUses
from procguard.portal.auth.sessions import COOKIE, CSRF_HEADER, BrowserSession, BrowserSessions, csrf_matches
from procguard.portal.http.proxies import PROXIED
from remote_agent.protocol.messages import secret_sha256 as sha256_of

CALLER = "procguard.caller"  # key of the admitted caller in the WSGI environment; set by the gate
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
UNKNOWN_AGENTS_AT_ONCE, UNKNOWN_AGENTS_PER_S = 200, 20.0  # wrong secrets per address, on agents' routes
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Any of these headers shows that the request was forwarded and the peer is not the caller.
FORWARDING_HEADERS = (
    "HTTP_FORWARDED",
    "HTTP_VIA",
    "HTTP_X_REAL_IP",
    "HTTP_X_CLIENT_IP",
    "HTTP_X_CLUSTER_CLIENT_IP",
    "HTTP_TRUE_CLIENT_IP",
    "HTTP_CF_CONNECTING_IP",
    "HTTP_FASTLY_CLIENT_IP",
)

# The rights that the gate distinguishes (viewer includes operators); agent_api/handlers.py checks agents.
_MAY = {
    "viewer": ("viewer", "operator"),
    "operator": ("operator",),
    "viewer or metrics": ("viewer", "operator", "metrics"),
}
_KINDS: dict[str, Scope] = {scope: scope for scope in SCOPES}

_COOKIE_VALUE = re.compile(r"[A-Za-z0-9_-]{1,100}")  # the form of ids of sessions.py

OwnerUid = Callable[[peer_uid.Address, peer_uid.Address], "int | None"]
WhyForwarded = Callable[[peer_uid.Address, peer_uid.Address], str]


class Auth:
    """Implements procguard.agent_api.interface.Access over the fleet's tokens and agents."""

    def __init__(
        self,
        fleet: Fleet,
        sessions: BrowserSessions,
        wrong_tokens: BackOff | None = None,
        trust_local: bool = True,
        own_uid: int | None = None,
        owner_uid: OwnerUid = peer_uid.owner_uid,
        why_forwarded: WhyForwarded | None = None,
        listed_uid: OwnerUid | None = None,
        agent_sessions: AgentSessions | None = None,
    ) -> None:
        self._fleet = fleet
        self._sessions = sessions
        self._wrong_tokens = BackOff() if wrong_tokens is None else wrong_tokens  # an empty collection is false
        self._unknown_agents = RateLimiter(UNKNOWN_AGENTS_AT_ONCE, UNKNOWN_AGENTS_PER_S)
        self._trust_local = trust_local
        self._own_uid = os.geteuid() if own_uid is None else own_uid
        self._owner_uid = owner_uid
        clients = local_client.LocalClients()
        self._why_forwarded = clients.why_forwarded if why_forwarded is None else why_forwarded
        self._listed_uid = clients.listed_uid if listed_uid is None else listed_uid
        self.uses = LiveUses(self._stands)
        fleet.state.bus.token_ended.subscribe(self._token_ended)
        sessions.on_closed(self.uses.end_session)
        self._agent_sessions = agent_sessions
        self.ca_file = ""  # of the manager's own CA, if https uses it

    # ------------------------------------------------------------------------------------------------ identity

    def identify(self, environ: WSGIEnvironment, own_secret_sha256: str = "", of_agents: bool = False) -> Principal:
        """Identify the caller. Wrong credentials raise Refused; there is no fallback to a weaker rule.

        `own_secret_sha256`: digest that an unknown launcher may authenticate with while it registers. `of_agents`: the
        route is one that agents call.
        """
        caller = self._identified(environ, own_secret_sha256, of_agents)
        connection_handle = environ.get(http_io.CONNECTION_HANDLE)
        if connection_handle is not None and caller.kind != "anonymous":
            connection_handle.prove(caller.actor, caller.kind == "agent")
        return caller

    def _identified(self, environ: WSGIEnvironment, own_secret_sha256: str, of_agents: bool) -> Principal:
        header = environ.get("HTTP_AUTHORIZATION", "")
        if header:
            digest, agent_id = self._shown(header, environ)
            known = self.by_secret(digest, environ.get("REMOTE_ADDR", ""))
            if known is not None and agent_id in ("", known.agent_id):
                return known
            if digest != own_secret_sha256:
                raise self._wrong_token(environ, of_agents, registers=bool(own_secret_sha256))
        found = self._session(environ)
        if found is not None:
            session, token = found
            self._check_session_use(session, environ)
            return Principal(
                session.scope,
                f"{session.name} (browser)",
                via="session",
                token_id=token.token_id,
                session=session.handle,
            )
        reason = self._why_not_local(environ)
        if not reason:
            return Principal("operator", f"{_user_name(self._own_uid)}@localhost", via="local")
        return Principal("anonymous", environ.get("REMOTE_ADDR", "?"), reason=reason)

    def _shown(self, header: str, environ: WSGIEnvironment) -> tuple[str, str]:
        """Returns (digest of the presented secret, agent whose session it was presented in, or ""). Raises Refused."""
        sessions = self._agent_sessions
        if sessions is None or not sessions.is_of_session(header):
            return sha256_of(_bearer(header)), ""
        try:
            session = sessions.check(environ).session
        except Refused as exc:
            wait_s = self._unknown_agents.wait_s(address_group(environ.get("REMOTE_ADDR", "")), clock.read().monotonic)
            raise too_many_wrong_tokens(environ.get("REMOTE_ADDR", ""), wait_s) if wait_s > 0 else exc from exc
        return session.secret_sha256, "" if session.of_token else session.agent_id

    def by_secret(self, secret_sha256: str, address: str = "") -> Principal | None:
        """The owner of a secret or token; None if it is unknown or revoked. Raises Refused for an expired token.
        `address`: the caller's."""
        agent_id = self._fleet.agents.secrets.authenticate(secret_sha256)
        if agent_id:
            return _agents_principal(agent_id)
        tokens, now = self._fleet.tokens, clock.read()
        token = tokens.find(secret_sha256)
        if token is None:
            return None
        ended = tokens.usable(token, now)
        if ended:
            what = "enrolment token" if token.scope == "enroll" else "token"
            raise Refused(f"this {what} {ended}", how_to_replace(token.scope), code="token_ended")
        tokens.used(token, address, now)
        name = f"token {token.name or token.token_id}"
        if token.scope.startswith(AGENT_SCOPE):
            own = token.scope.removeprefix(AGENT_SCOPE)
            return Principal("agent", f"{name} of {own}", agent_id=own, via="token", token_id=token.token_id)
        return Principal(_KINDS[token.scope], name, via="token", token_id=token.token_id)

    # -------------------------------------------------------------------------------------------- lifetime of rights

    def hold(self, caller: Principal, end: Callable[[], None]) -> Callable[[], None]:
        """Register `end()` to be called when the caller's token or session ends. Returns a function that unregisters
        it."""
        return self.uses.open(caller, end)

    def _token_ended(self, token: TokenRecord) -> None:
        self.uses.end_token(token.token_id)
        self._sessions.close_token(token.sha256)

    def _stands(self, caller: Principal) -> bool:
        now, tokens = clock.read(), self._fleet.tokens
        token = tokens.by_id(caller.token_id)
        if token is None or tokens.usable(token, now):
            return False
        return not caller.session or self._sessions.by_handle(caller.session, now.monotonic) is not None

    # ------------------------------------------------------------------------------------------------------- refusals

    def _wrong_token(
        self, environ: WSGIEnvironment, of_agents: bool, *, registers: bool = False
    ) -> Refused | LimitExceeded:
        """The refusal of an unknown token. Only guessing is rate-limited: valid tokens are accepted at any time, also
        from the same address. Agents whose manager lost its state and hosts with many launchers are refused at
        once."""
        address, now = environ.get("REMOTE_ADDR", ""), clock.read().monotonic
        if of_agents:
            wait_s = self._unknown_agents.wait_s(address_group(address), now)
        else:
            wait_s = self._wrong_tokens.wrong(address, now)
        if wait_s > 0:
            return too_many_wrong_tokens(address, wait_s)
        if of_agents:
            return Refused(
                "this secret is not known here (revoked, or of another fleet)",
                "deploy the host again (invoke deploy); a launcher registers again by itself",
            )
        if registers:
            return Refused(
                "this enrolment token is not known here (mistyped, revoked, or of another fleet)",
                how_to_replace("enroll"),
            )
        return Refused("this token is not known here (revoked, or of another fleet)", self._how_to(environ))

    def session(self, environ: WSGIEnvironment) -> BrowserSession | None:
        """The caller's live browser session, if its token is still valid."""
        found = self._session(environ)
        return found[0] if found is not None else None

    def _session(self, environ: WSGIEnvironment) -> tuple[BrowserSession, TokenRecord] | None:
        session_id = cookie(environ, COOKIE)
        if not session_id:
            return None
        session = self._sessions.find(session_id, clock.read().monotonic)
        if session is None:
            return None
        tokens = self._fleet.tokens
        token = tokens.find(session.token_sha256)
        if token is None or tokens.usable(token, clock.read()):
            self._sessions.close(session_id)
            return None
        return session, token

    def _check_session_use(self, session: BrowserSession, environ: WSGIEnvironment) -> None:
        if not same_origin(environ):
            raise Forbidden(
                "the request comes from a page of another site", "use the portal's own page", code="foreign_origin"
            )
        if environ["REQUEST_METHOD"] not in SAFE_METHODS and not csrf_matches(session, environ.get(CSRF_HEADER, "")):
            raise Forbidden(
                "the X-ProcGuard-CSRF header is missing or old", "reload the page and try again", code="bad_csrf"
            )

    def _why_not_local(self, environ: WSGIEnvironment) -> str:
        """ "" if the caller is the manager's own user (or root) on this machine, without forwarding; otherwise the
        reason."""
        if not self._trust_local:
            return "web.trust_local is false"
        if environ.get(PROXIED):
            return "the request comes through a trusted proxy"
        if not is_loopback(environ.get("REMOTE_ADDR", "")):
            return "the request comes from another machine"
        for name in environ:
            if name in FORWARDING_HEADERS or name.startswith("HTTP_X_FORWARDED"):
                return f"the request was forwarded ({_header_name(name)})"
        if host_name(environ.get("HTTP_HOST", "")) not in LOCAL_HOSTS:
            return "Host is not localhost, 127.0.0.1 or [::1]"
        if not same_origin(environ):
            return "the request comes from a page of another site"
        return self._why_not_own_socket(environ)

    def _why_not_own_socket(self, environ: WSGIEnvironment) -> str:
        sock = environ.get("procguard.socket")
        if sock is None:
            return "the connection's owner cannot be determined"
        try:
            client, server = sock.getpeername()[:2], sock.getsockname()[:2]
        except OSError:  # closed meanwhile
            return "the connection's owner cannot be determined"
        uid = self._owner_uid(client, server)
        if uid is None:  # closed, or missed by the kernel's lock-free lookup
            uid = self._listed_uid(client, server)
        if uid is None:
            return "the connection's owner cannot be determined"
        if uid not in (self._own_uid, 0):
            return f"the connection belongs to uid {uid}, not to the manager's user"
        return self._why_forwarded(client, server)

    # --------------------------------------------------------------------------------------------------- rights

    def admit(self, environ: WSGIEnvironment, who: Who) -> Principal:
        """The caller, if it has the route's right.

        Raises Refused (401), with the command that creates a token, or Forbidden (403) for an identified caller without
        the right.
        """
        caller = self.identify(environ)
        if caller.kind != "anonymous":
            environ[ASKS] = caller
        if caller.kind in _MAY[who]:
            return caller
        if caller.kind == "anonymous":
            raise Refused(f"a token is needed: {caller.reason}", self._how_to(environ))
        if caller.kind == "viewer":
            raise Forbidden(f"{caller.actor} is a viewer: it is read-only", self._operators_can(), code="viewer")
        raise Forbidden(f"{caller.actor} has no permission for this", self._operators_can())

    @staticmethod
    def admitted(environ: WSGIEnvironment) -> Principal:
        """The caller that the gate admitted to this route."""
        caller: Principal = environ[CALLER]
        return caller

    @staticmethod
    def _operators_can() -> str:
        return "an operator's token can (invoke token.create, on the manager's machine)"

    def check_agent(self, caller: Principal, agent_id: str) -> Principal:
        if caller.kind == "agent" and caller.agent_id == agent_id:
            return caller
        return self._refuse_agent(caller, agent_id)

    def check_worker_agent(self, caller: Principal, worker_id: str, operator_too: bool = False) -> Principal:
        """Return the agent that runs this worker (or, if allowed, an operator)."""
        if caller.kind == "agent" and self._fleet.agents.owns(caller.agent_id, worker_id):
            return caller
        if operator_too and caller.kind == "operator":
            return caller
        return self._refuse_agent(caller, f"the agent of {worker_id}")

    @staticmethod
    def _refuse_agent(caller: Principal, who: str) -> Principal:
        if caller.kind == "anonymous":
            raise Refused(
                f"only {who} may do this", "send its secret: Authorization: Bearer … (agent.json beside the agent)"
            )
        raise Forbidden(f"{caller.actor} may not act for {who}", "use that agent's own secret")

    def _how_to(self, environ: WSGIEnvironment) -> str:
        """The commands that create a token on the manager's machine and use it."""
        port, scheme = environ.get("SERVER_PORT", "5000"), environ.get("wsgi.url_scheme", "http")
        target = shlex.quote(f"{scheme}://{_printable_host(environ)}{environ.get('bottle.raw_path') or '/'}")
        use = f"curl -H 'Authorization: Bearer TOKEN' {target}"
        own = f"https://localhost:{port}" if self.ca_file else f"http://localhost:{port}"
        curl = f"curl --cacert {shlex.quote(self.ca_file)}" if self.ca_file else "curl"
        if not self._trust_local:
            return f"the first token lies beside the manager's state, in operator.token: {use}"
        create = (
            f"{curl} -X POST {own}/api/tokens -H 'Content-Type: application/json' "
            '-d \'{"scope": "operator", "name": "me"}\''
        )
        return f"on the manager's machine, as {_user_name(self._own_uid)}: {create} ; then: {use}"


def too_many_wrong_tokens(address: str, wait_s: float) -> LimitExceeded:
    return LimitExceeded.for_now(
        f"too many wrong tokens from {address}", f"wait {wait_s:.0f} s", wait_s, "too_many_wrong_tokens"
    )


@functools.lru_cache(maxsize=20_000)
def _agents_principal(agent_id: str) -> Principal:
    """The agent's principal, cached because every heartbeat needs it."""
    return Principal("agent", agent_id, agent_id=agent_id, via="secret")


# --------------------------------------------------------------------------------------------- reading requests


def _bearer(header: str) -> str:
    scheme, _, secret = header.strip().partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret or len(secret) > 512:
        raise Refused("the Authorization header is not 'Bearer <token>'", "send: Authorization: Bearer <token>")
    return secret


def cookie(environ: WSGIEnvironment, name: str) -> str:
    """The value of ProcGuard's cookie. Not parsed by http.cookies, which takes minutes for quoted backslashes in
    Python before 3.11.10 (CVE-2024-7592)."""
    for pair in environ.get("HTTP_COOKIE", "").split(";"):
        before, _, value = pair.partition("=")
        if before.strip() == name:
            found: str = value.strip().strip('"')
            return found if _COOKIE_VALUE.fullmatch(found) else ""
    return ""


def is_loopback(address: str) -> bool:
    address = address.removeprefix("::ffff:")
    return address == "::1" or (address.startswith("127.") and address.count(".") == 3)


def host_name(host: str) -> str:
    """`Host` without its port, in lower case; "" if it is not host or host:port."""
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or host.strip().endswith("]"):
        return host.strip().lower()
    return name if port.isdigit() else ""


def same_origin(environ: WSGIEnvironment) -> bool:
    """False if a browser reports that another site's page sent the request. True for other clients, which send no such
    header."""
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") != "same-origin":
        return False
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return True
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and bool(rest) and rest.lower() == environ.get("HTTP_HOST", "").strip().lower()


def _header_name(wsgi_name: str) -> str:
    return wsgi_name.removeprefix("HTTP_").replace("_", "-").title()


def _printable_host(environ: WSGIEnvironment) -> str:
    host = environ.get("HTTP_HOST", "")
    plain = host.isascii() and all(letter.isalnum() or letter in ".-:[]" for letter in host)
    return host if host and plain and len(host) < 256 else f"localhost:{environ.get('SERVER_PORT', '5000')}"


@functools.cache
def _user_name(uid: int) -> str:
    """The name is needed by every request of a local user, and may come from far away (LDAP)."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
