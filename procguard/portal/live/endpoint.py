"""/ws: admits clients and passes their subscriptions to the live hub."""

from __future__ import annotations

from wsgiref.types import WSGIEnvironment

from procguard.agent_api import http_io
from procguard.agent_api.interface import Principal
from procguard.errors import ProcGuardError
from procguard.portal.auth import access as auth
from procguard.portal.http import websocket
from procguard.portal.live.hub import LiveHub

MAX_MESSAGE_CHARS = 4096
MESSAGE_WORK = 5  # minimum cost of a message, in units of admission/turns.py


class LiveEndpoint:
    """Implements websocket.Guard."""

    path = "/ws"

    def __init__(self, hub: LiveHub, access: auth.Auth, keeper: websocket.PingReaper, max_clients: int = 1_000) -> None:
        self._hub = hub
        self._access = access
        self._keeper = keeper
        self._max_clients = max_clients

    def check(self, environ: WSGIEnvironment) -> None:
        """Refuse pages of other sites, regardless of the user."""
        if not auth.same_origin(environ):
            raise websocket.Refusal(
                "403 Forbidden",
                "foreign_origin",
                "the request comes from a page of another site",
                "use the portal's own page",
            )

    def serve(self, connection: websocket.WebSocketConnection, environ: WSGIEnvironment) -> None:
        caller = self._viewer(environ)
        if caller is None:
            # Browsers show a page the close code, but not an HTTP status: hence after the 101. Nothing is read.
            connection.close(websocket.CLOSE_UNAUTHORIZED, "log in")
            return
        if len(self._keeper) >= self._max_clients:
            connection.close(websocket.CLOSE_TOO_MANY, f"{self._max_clients} clients are connected already")
            return
        connection.send_frame(self._hub.hello())
        self._keeper.add(connection)
        close_use = self._access.hold(caller, connection.revoke)
        try:
            while (message := connection.receive()) is not None:
                if not connection.open:
                    break
                connection.spend(MESSAGE_WORK)
                self._take(connection, message)
        finally:
            close_use()
            self._keeper.remove(connection)
            self._hub.leave(connection)

    def _viewer(self, environ: WSGIEnvironment) -> Principal | None:
        try:
            return self._access.admit(environ, "viewer")
        except ProcGuardError:
            return None

    def _take(self, connection: websocket.WebSocketConnection, message: str | bytes) -> None:
        try:
            problem = self._obey(connection, message)
        except ProcGuardError as exc:
            problem = exc.message
        if problem:
            connection.send_text(http_io.dumps({"t": "error", "message": problem}))

    def _obey(self, connection: websocket.WebSocketConnection, message: str | bytes) -> str:
        if len(message) > MAX_MESSAGE_CHARS:
            return f"a message is at most {MAX_MESSAGE_CHARS} characters"
        data = http_io.parse_json(message.encode() if isinstance(message, str) else message)
        kind = data.get("t") if isinstance(data, dict) else None
        topic = data.get("topic") if isinstance(data, dict) else None
        if kind not in ("sub", "unsub", "credit") or not isinstance(topic, str):
            return 'expected {"t": "sub" | "unsub" | "credit", "topic": …, "seq" | "n": n}'
        if kind == "credit":
            chars = data.get("n")
            if not isinstance(chars, int) or chars <= 0:
                return "credit: expected n, how many characters more"
            self._hub.grant(connection, topic, chars)
            return ""
        if kind == "unsub":
            self._hub.unsubscribe(connection, topic)
            return ""
        seq = data.get("seq") or 0
        return self._hub.subscribe(connection, topic, seq if isinstance(seq, int) else 0)
