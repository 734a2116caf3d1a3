"""The agent's part of replacing its secret while it runs (`invoke agents.rotate`; the manager's part is
fleet/agents/rotation.py).

    1 create a secret, store it beside agent.json     2 send its digest to the manager     3 write it to agent.json
    4 reopen every connection with it; its first use invalidates the old one

The manager accepts both secrets from step 2 to 4. If the agent is killed before step 3, it returns with the old secret
and is asked again; after step 3, it returns with the new one. The secret itself is never sent. Owns the steps and the
file of the new secret; runs in its own thread, which ends with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading

from remote_agent.protocol import messages
from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.system import locks, paths
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.http import quote
from remote_agent.transport.outcomes import LinkDown

LOCK_WITHIN_S = 5.0  # a deployment in progress holds the lock; the manager then asks again
NOT_ASKED = 409


class SecretRotation:
    """`take` is called by the main loop with each reply that requests a rotation. Called in another thread:
    `replacing(secret)` before it is stored, `replaced()` once it is used."""

    def __init__(
        self,
        agent_dir: str,
        credentials: AgentCredentials,
        connect: Callable[[], Connection],
        *,
        replacing: Callable[[str], None],
        replaced: Callable[[], None],
        say: Callable[..., None],
    ) -> None:
        self._agent_dir = agent_dir
        self._credentials = credentials
        self._connect = connect
        self._replacing, self._replaced = replacing, replaced
        self._say = say
        self._thread: Optional[threading.Thread] = None
        self._done = ""  # the last completed rotation
        self._connection: Optional[Connection] = None

    def take(self, rotation: str) -> None:
        """Begin `rotation`, unless it is in progress, or done but not yet confirmed by the manager."""
        if not rotation or rotation == self._done or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._run, args=(rotation,), name="procguard-rotation", daemon=True)
        self._thread.start()

    def end(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.close()

    # -------------------------------------------------------------------------------------------- its thread

    def _run(self, rotation: str) -> None:
        try:
            self._carry_out(rotation)
        except (OSError, ValueError) as exc:
            self._say("secret not replaced", why=getattr(exc, "strerror", None) or exc)
        except LinkDown as exc:
            self._say("secret not replaced", why=exc)
        finally:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.disconnect()

    def _carry_out(self, rotation: str) -> None:
        secret = self._new_secret(rotation)
        renewal = messages.SecretRenewal(rotation, messages.secret_sha256(secret))
        path = f"/api/agents/{quote(self._credentials.agent_id)}/secret"
        self._connection = self._connect()
        reply = self._connection.request("POST", path, json.dumps(messages.encode(renewal)).encode())
        if reply.status == NOT_ASKED:  # a deployment, or a revocation, came first
            self._forget()
        if not reply.ok:
            self._say("secret not replaced", why=reply.why)
            return
        self._replacing(secret)  # the manager accepts it already, so that any writer of agent.json is harmless now
        if not self._store(secret):
            self._say("secret not replaced", why="a deployment is under way on this host")
            return
        self._done = rotation
        self._credentials.secret = secret
        self._replaced()
        self._forget()
        self._say("secret replaced", rotation=rotation)

    def _new_secret(self, rotation: str) -> str:
        """The new secret of this rotation: the stored one, or a newly created one, stored before its digest is sent."""
        known = self._stored()
        if known.get("rotation") == rotation and isinstance(known.get("secret"), str) and known["secret"]:
            return str(known["secret"])
        made = os.urandom(32).hex()
        paths.write_json(next_secret_file(self._agent_dir), {"rotation": rotation, "secret": made}, durable=True)
        return made

    def _stored(self) -> "dict[str, Any]":
        try:
            value = paths.read_json(next_secret_file(self._agent_dir))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def _store(self, secret: str) -> bool:
        """Write the secret to agent.json, keeping other changes of a deployment. False while a deployment is in
        progress."""
        with _installers_lock(self._agent_dir) as mine:
            if not mine:
                return False
            path = paths.agent_file(self._agent_dir)
            config = paths.read_json(path)
            if not isinstance(config, dict):
                raise ValueError(f"{path} is not an object")
            if config.get("secret") != self._credentials.secret:
                return False  # a deployment has installed another secret; this process is about to end
            paths.write_json(path, {**config, "secret": secret}, durable=True)
            return True

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(next_secret_file(self._agent_dir))


def next_secret_file(agent_dir: str) -> str:
    return os.path.join(agent_dir, "secret.next.json")


@contextlib.contextmanager
def _installers_lock(agent_dir: str) -> Any:
    """Context with the installer's lock. Yields whether it was obtained (install/installer.py holds it during a
    deployment)."""
    fd = os.open(os.path.join(agent_dir, "install.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield locks.lock_within(fd, LOCK_WITHIN_S)
    finally:
        os.close(fd)
