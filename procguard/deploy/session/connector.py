"""Opens an installer session for a target: over SSH or on this machine, one connection, always closed.

Knows how to reach targets; knows nothing of the session's content.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from procguard.deploy.session import bundle
from procguard.deploy.session.local import LocalPipe
from procguard.deploy.session.session import HostSession, Pipe, become, remote_command
from procguard.deploy.ssh.credentials import LoginCredentials
from procguard.deploy.ssh.pool import ConnectionPool, PoolExhausted, jump_host
from procguard.deploy.ssh.target import Target
from procguard.errors import HostUnreachable, UsageError
from remote_agent.tunnel.mux import Wire

if TYPE_CHECKING:
    import fabric

    from procguard.deploy.ssh import connection as ssh

Beside = Callable[[str, float], Pipe]


class Connector:
    """Opens sessions; one for a whole run, so that ~/.ssh/config is read once. Safe to use from several threads."""

    def __init__(self, credentials: LoginCredentials | None = None) -> None:
        """`credentials`: None for those of the environment, read on demand, so that an unreadable file is reported for
        each host."""
        self._given = credentials
        self._lock = threading.Lock()
        self._configs: dict[str, fabric.Config] = {}
        self._pool = ConnectionPool()

    @property
    def _credentials(self) -> LoginCredentials:
        if self._given is None:
            self._given = LoginCredentials()
        return self._given

    def check(self, target: Target, deadline: float) -> None:
        """Log in (with sudo if the inventory requires it) and disconnect. Raises HostUnreachable, HostError."""
        if target.become_user:
            with self._pipe(target, deadline):
                return
        if not target.local:
            from procguard.deploy.ssh import connection as ssh  # noqa: PLC0415

            ssh.close(self._connect(target, deadline))

    @contextlib.contextmanager
    def session(
        self, target: Target, deadline: float, on_connected: Callable[[], None] | None = None
    ) -> Iterator[HostSession]:
        """Open a session; its connection is closed at the end. Raises HostUnreachable or HostError."""
        with self._pipe(target, deadline) as (pipe, beside):
            if on_connected:
                on_connected()
            session = HostSession(pipe, target, bundle.bootstrap(), beside)
            session.open(deadline)
            yield session

    @contextlib.contextmanager
    def wire(
        self, target: Target, deadline: float, begin: Callable[[HostSession], None]
    ) -> Iterator[tuple[Wire, bytes]]:
        """Open a session that `begin` turns into a plain stream. Yields the stream and the bytes already read from it.
        Not for hosts without SSH. Raises HostUnreachable or HostError."""
        from procguard.deploy.ssh import connection as ssh  # noqa: PLC0415

        with self._pipe(target, deadline) as (pipe, _):
            session = HostSession(pipe, target, bundle.bootstrap())
            session.open(deadline)
            begin(session)
            assert isinstance(pipe, ssh.SshPipe), f"{target.host} is this machine"
            yield ssh.SshWire(pipe), session.detach()

    @contextlib.contextmanager
    def _pipe(self, target: Target, deadline: float) -> Iterator[tuple[Pipe, Beside | None]]:
        """A shell that is ready for the installer, as the inventory's user, and a function that starts another command
        over the same connection if the user is the same."""
        if target.local:
            local = LocalPipe(target.host, remote_command(target))
            try:
                self._become(local, target, deadline)
                yield local, None
            finally:
                local.close()
            return
        from procguard.deploy.ssh import connection as ssh  # noqa: PLC0415 - Fabric takes 0.2 s to import; a local deploy needs none of it

        connection = self._connect(target, deadline)
        try:
            remote = ssh.SshPipe(connection, remote_command(target), target.host, deadline)
            self._become(remote, target, deadline)
            beside: Beside = lambda command, until: ssh.SshPipe(connection, command, target.host, until)  # noqa: E731
            yield remote, None if target.become_user else beside
            remote.close()
        finally:
            ssh.close(connection)

    def _become(self, pipe: Pipe, target: Target, deadline: float) -> None:
        become(pipe, target, self._credentials.become_password(target.host), deadline)

    def _connect(self, target: Target, deadline: float) -> ssh.StrictConnection:
        from procguard.deploy.ssh import connection as ssh  # noqa: PLC0415

        config, through = self._ssh_config(target.ssh_config), jump_host(target.proxy_jump, target.proxy_command)
        if not through:
            return ssh.connect(target, config, deadline, credentials=self._credentials)
        try:
            with self._pool.connection(through, deadline):
                return ssh.connect(target, config, deadline, credentials=self._credentials)
        except PoolExhausted as exc:
            what = f"{target.host}: timed out waiting for a connection through its jump host ({exc})"
            raise HostUnreachable(what, "try again, or with fewer --forks", code="timeout") from exc

    def _ssh_config(self, path: str) -> fabric.Config:
        """~/.ssh/config with the system's, or only the file at `path`."""
        with self._lock:
            if path not in self._configs:
                import fabric  # noqa: PLC0415

                if path and not os.path.isfile(path):
                    raise UsageError(f"there is no SSH configuration {path}", "correct -F in ansible_ssh_common_args")
                self._configs[path] = fabric.Config(runtime_ssh_path=path) if path else fabric.Config()
                _ = self._configs[path].base_ssh_config
            return self._configs[path]
