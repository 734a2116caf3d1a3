"""One SSH connection to one host, by Fabric: strict host keys, ~/.ssh/config, a deadline for every wait.

Maps low-level errors to one HostUnreachable with its cause. Does not know what is installed. Must run outside the
manager's process: paramiko is CPU-heavy and does not work under gevent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import shlex
import socket
import time
from typing import Any

import fabric
import paramiko

from procguard.deploy.ssh import keys, trusted
from procguard.deploy.ssh.credentials import PASSPHRASE, SSH_PASSWORD, LoginCredentials
from procguard.deploy.ssh.deadline import remaining_s
from procguard.deploy.ssh.target import HOST_NAME, Target, bad_name
from procguard.errors import HostError, HostUnreachable
from procguard.json_types import Json
from remote_agent.tunnel.mux import MuxEnded, Wire

CONNECT_TIMEOUT_S = 10.0
CONNECT_ATTEMPTS = 3  # sshd drops connections at random beyond MaxStartups
MAX_ERROR_BYTES = 8 * 1024
TRUST = "invoke trust --hosts INVENTORY"  # the same text for every host, because it shows and adds the keys of all

# paramiko logs tracebacks of errors that `explain` reports in one line
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class UnknownHostKey(paramiko.SSHException):
    def __init__(self, name: str, key: paramiko.PKey) -> None:
        super().__init__(f"host key of {name} is not known")
        self.name = name
        self.key = key


class _RefuseUnknown(paramiko.MissingHostKeyPolicy):
    """Refuses unknown host keys. Fabric's default (AutoAddPolicy) would accept any key at the first connection."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise UnknownHostKey(hostname, key)


class StrictConnection(fabric.Connection):  # type: ignore[misc]
    """A Fabric connection that trusts only known_hosts, for jump hosts too."""

    # Fabric sets it without declaring it: the write would go to the configuration, which would be rebuilt while
    # the connections of other threads read from it.
    inline_ssh_env: bool | None = None

    def __init__(
        self,
        target: Target,
        config: fabric.Config,
        timeout_s: float,
        credentials: LoginCredentials | None = None,
        *,
        is_hop: bool = False,
    ) -> None:
        target.check_names()  # before ~/.ssh/config is evaluated: `Match exec` runs a shell with them
        kwargs: dict[str, Any] = {"banner_timeout": timeout_s, "auth_timeout": timeout_s, "channel_timeout": timeout_s}
        if target.key_filename:
            kwargs["key_filename"] = [os.path.expanduser(target.key_filename)]
        known = credentials or LoginCredentials(environ={})
        password = known.jump_password() if is_hop else known.password(target.host)
        if password:
            kwargs["password"] = password
        super().__init__(
            target.address,
            user=target.user or None,
            port=target.port or None,
            config=config,
            connect_timeout=max(1, int(timeout_s)),
            connect_kwargs=kwargs,
            forward_agent=False,  # regardless of ~/.ssh/config: a host must not use the operator's keys
        )
        files = keys.identity_files(target.key_filename, self.ssh_config)
        if target.identities_only or str(self.ssh_config.get("identitiesonly", "")).lower() == "yes":
            self.connect_kwargs.update(allow_agent=False, look_for_keys=False, pkey=keys.agent_key(files))
        opened = next(filter(None, map(known.opened, files)), None)
        if opened is not None:
            self.connect_kwargs["pkey"] = opened
        # `_set`: Fabric takes plain attribute writes for configuration.
        self._set(
            target=target,
            locked_keys=keys.unlocked(files, target.host, known),
            gateway=_gateway(self, target, config, timeout_s, credentials),
        )
        self.client.set_missing_host_key_policy(_RefuseUnknown())
        trusted.give(self.client, self.host, int(self.port), known_hosts_files(target, self.ssh_config))

    def get_gateway(self) -> None:
        """Jump hosts are opened by `_gateway`, with strict host keys; Fabric's own method would trust any key."""
        return

    def open(self) -> None:
        """Connect and log in. A key with a passphrase is unlocked only if all other methods were refused."""
        while True:
            try:
                super().open()
                return
            except paramiko.SSHException as exc:
                if not _is_refusal(exc):
                    raise
                key = next(self.locked_keys, None)  # raises LockedKey if only a passphrase is missing
                if key is None:
                    raise
            self.client.close()
            self.connect_kwargs.update(pkey=key, allow_agent=False, look_for_keys=False, key_filename=[])

    def open_gateway(self) -> Any:
        """The connection through the jump host. Errors there are reported as errors of the jump host."""
        if isinstance(self.gateway, str):
            return paramiko.ProxyCommand(self.gateway)  # Fabric would expand %h and similar placeholders a second time
        try:
            self.gateway.open()
            return super().open_gateway()
        except (UnknownHostKey, paramiko.BadHostKeyException, HostUnreachable):
            raise  # these errors name their machine
        except paramiko.ChannelException as exc:
            raise _not_forwarded(exc, self.target, self.gateway.target) from exc
        except Exception as exc:
            error = explain(exc, self.gateway.target)
            what = f"{self.target.host}: cannot connect through its jump host: {error.message}"
            code = "jump_auth" if error.code == "auth" else error.code  # distinguishes a failed log-in at the jump host
            raise HostUnreachable(what, error.next_step, code=code) from exc


def _is_refusal(exc: paramiko.SSHException) -> bool:
    """Whether the log-in was refused, so that other keys may be accepted. Host keys and broken connections do not
    count."""
    refused = isinstance(exc, (paramiko.AuthenticationException, paramiko.PasswordRequiredException))
    return refused or "No authentication methods" in str(exc)


def _gateway(
    connection: StrictConnection,
    target: Target,
    config: fabric.Config,
    timeout_s: float,
    credentials: LoginCredentials | None,
) -> Any:
    """The jump host's connection, a ProxyCommand, or None. Of several jumps the last is the nearest to the target."""
    if target.proxy_command:
        return _filled(target.proxy_command, target, connection)
    jumps = target.proxy_jump or connection.ssh_config.get("proxyjump", "")
    if jumps and jumps.lower() != "none":
        earlier, _, nearest = jumps.rpartition(",")
        hop = _parse_hop(nearest, earlier, target.known_hosts)
        if not target.proxy_jump and hop.address == connection.host:
            return None  # a wildcard in ~/.ssh/config that also matches the jump host
        return StrictConnection(hop, config, timeout_s, credentials, is_hop=True)
    command = connection.ssh_config.get("proxycommand")
    return command if command and command.lower() != "none" else None


def _filled(command: str, target: Target, connection: StrictConnection) -> str:
    """Expand %h, %p, %r and %n in the inventory's ProxyCommand. Each value must be a plain name (`check_names`),
    because it may be inside quotes. Raises HostUnreachable if %n is used and the host's name is not one."""
    if "%n" in command and not HOST_NAME.fullmatch(target.host):
        raise bad_name(target.host, "host's name", target.host, "its name in the inventory, or leave %n out")
    values = {"%h": connection.host, "%p": str(connection.port), "%r": connection.user, "%n": target.host}
    filled = re.sub("%[%hprn]", lambda found: "%" if found[0] == "%%" else shlex.quote(values[found[0]]), command)
    return re.sub(r"(?<!\S)~(?=/)", lambda _: shlex.quote(os.path.expanduser("~")), filled)


def _parse_hop(text: str, earlier: str, known_hosts: str) -> Target:
    """Parse user@host:port, in the syntax of ssh -J."""
    text = text.strip().removeprefix("ssh://")
    user, _, address = text.rpartition("@")
    if address.startswith("["):
        name, _, port = address[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = address.partition(":") if address.count(":") == 1 else (address, "", "")
    return Target(name, port=int(port or 0), user=user, proxy_jump=earlier, known_hosts=known_hosts)


def known_hosts_files(target: Target, ssh_config: Json) -> list[str]:
    if target.known_hosts:
        own = shlex.split(target.known_hosts)
    else:
        own = shlex.split(str(ssh_config.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")))
    return [os.path.expanduser(path) for path in own] + ["/etc/ssh/ssh_known_hosts"]


# ------------------------------------------------------------------------------------------------ connecting


def connect(
    target: Target,
    config: fabric.Config,
    deadline: float,
    timeout_s: float = CONNECT_TIMEOUT_S,
    credentials: LoginCredentials | None = None,
) -> StrictConnection:
    """Open a connection. Raises HostUnreachable with the cause; only dropped connections are retried."""
    if target.key_filename and not os.path.exists(os.path.expanduser(target.key_filename)):
        raise _unreachable(
            target, "key_missing", f"there is no key {target.key_filename}", "correct ansible_ssh_private_key_file"
        )
    for attempt in range(1, CONNECT_ATTEMPTS + 1):
        began = time.monotonic()
        left_s = min(timeout_s, remaining_s(deadline, target.host, "connecting"))
        connection = None
        try:
            connection = StrictConnection(target, config, left_s, credentials)
            connection.open()
            connection.transport.set_keepalive(15)
            return connection
        except Exception as exc:
            error = explain(exc, target)
            stalled = error.code == "timeout" or time.monotonic() - began > 0.8 * left_s
            if error.code in ("timeout", "dropped", "ssh") and stalled:  # otherwise it was closed
                error = _stalled(target, connection)
            if connection is not None:
                close(connection)
            pause_s = random.uniform(0.2, 1.0) * attempt  # noqa: S311 - jitter, no secret
            late = time.monotonic() + pause_s >= deadline
            if error.code != "dropped" or attempt == CONNECT_ATTEMPTS or late:
                raise error from exc
        time.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def close(connection: StrictConnection) -> None:
    """Close the connection and those of its jump hosts; never raises, never waits."""
    hop: Any = connection
    while isinstance(hop, StrictConnection):
        with contextlib.suppress(Exception):
            hop.client.close()
        hop = hop.gateway


def explain(exc: BaseException, target: Target) -> HostUnreachable:
    """The HostUnreachable for any exception of the lower layers."""
    where = target.describe()
    if isinstance(exc, HostUnreachable):
        return exc
    if isinstance(exc, UnknownHostKey):
        return _unknown_key(exc.name, exc.key, target)
    if isinstance(exc, paramiko.BadHostKeyException):
        return _changed_key(exc, target)
    if isinstance(exc, paramiko.PasswordRequiredException):
        path = exc.path if isinstance(exc, keys.LockedKey) else ""
        next_step = (
            f"load it into ssh-agent: {shlex.join(['ssh-add', *filter(None, [path])])}; or name a file with it: "
        )
        return _unreachable(
            target, "auth", str(exc) if path else "the key needs a passphrase", f"{next_step}{PASSPHRASE}_FILE"
        )
    if isinstance(exc, paramiko.AuthenticationException) or "No authentication methods" in str(exc):
        return _refused(exc, target)
    if isinstance(exc, paramiko.ProxyCommandFailure):
        return _unreachable(
            target, "proxy", f"its ProxyCommand ended early ({exc.command})", "try that command by itself"
        )
    if isinstance(exc, paramiko.ssh_exception.NoValidConnectionsError) and exc.errors:
        return explain(next(iter(exc.errors.values())), target)
    if isinstance(exc, socket.gaierror):
        return _unreachable(
            target, "name", f"the name {target.address} can't be resolved", "correct it, or set ansible_host"
        )
    if isinstance(exc, ConnectionRefusedError):
        return _unreachable(target, "refused", f"cannot connect (refused, {where})", "is sshd running there?")
    if (
        isinstance(exc, (socket.timeout, TimeoutError))
        or "timed out" in str(exc).lower()
        or "Timeout" in type(exc).__name__
    ):
        return _unreachable(
            target, "timeout", f"cannot connect (timeout, {where})", "is it up, and reachable from here?"
        )
    if isinstance(exc, (EOFError, ConnectionResetError)) or "banner" in str(exc) or "No existing session" in str(exc):
        return _unreachable(
            target,
            "dropped",
            f"the connection was closed by the server ({where})",
            "is sshd listening there? see its log",
        )
    if isinstance(exc, OSError):
        return _unreachable(target, "network", f"cannot connect ({exc.strerror or exc}, {where})", "is the network up?")
    return _unreachable(
        target, "ssh", f"SSH failed ({type(exc).__name__}: {exc}, {where})", f"try: {ssh_command(target)} true"
    )


def _stalled(target: Target, connection: StrictConnection | None) -> HostUnreachable:
    """The error for a connection that stalled, by the stage that it had reached. For a jump host: a timeout."""
    transport = connection.client.get_transport() if connection is not None else None
    where = target.describe()
    if transport is None or transport.authenticated:
        return explain(TimeoutError(), target)
    if not transport.remote_version:
        what = f"the port accepts connections, but sent no SSH banner ({where})"
        return _unreachable(target, "timeout", what, "is sshd listening there? is the machine overloaded?")
    if not transport.initial_kex_done:
        what = f"sshd sent its banner, but the key exchange stalls ({where})"
        next_step = f"large packets seem to be lost on the way (MTU?): ping -M do -s 1400 {shlex.quote(target.address)}"
        return _unreachable(target, "timeout", what, next_step)
    what = f"the key exchange succeeded, but the log-in stalls ({where})"
    return _unreachable(target, "timeout", what, f"a slow directory or PAM there? try: {ssh_command(target)} true")


def ssh_command(target: Target) -> str:
    """The ssh command that reproduces the connection."""
    words = ["ssh"]
    if target.port:
        words += ["-p", str(target.port)]
    if target.key_filename:
        words += ["-i", target.key_filename]
    if target.proxy_jump:
        words += ["-J", target.proxy_jump]
    words.append(f"{target.user}@{target.address}" if target.user else target.address)
    return shlex.join(words)


def _refused(exc: BaseException, target: Target) -> HostUnreachable:
    """The error for a failed log-in. If the host accepts passwords, it explains how to provide one."""
    user = target.user or "the default user"
    offered = exc.allowed_types if isinstance(exc, paramiko.BadAuthenticationType) else []
    next_step = f"try: {ssh_command(target)} true"
    if {"password", "keyboard-interactive"}.intersection(offered):
        next_step += f"; it also takes a password: --ask-pass, or {SSH_PASSWORD}_FILE"
    return _unreachable(target, "auth", f"login as {user} was refused ({target.describe()})", next_step)


def _not_forwarded(exc: paramiko.ChannelException, target: Target, hop: Target) -> HostUnreachable:
    """The error for a jump host that accepted the log-in but did not forward to the target."""
    if exc.code == 1:
        what, next_step = (
            f"its jump host {hop.host} forbids forwarding",
            "allow it there: AllowTcpForwarding in sshd_config",
        )
    else:
        what = f"its jump host {hop.host} can't connect to {target.describe()} ({exc.text or 'no reason given'})"
        next_step = "is the host up, and reachable from the jump host?"
    return _unreachable(target, "jump", what, next_step)


def _unreachable(target: Target, code: str, what: str, next_step: str) -> HostUnreachable:
    return HostUnreachable(f"{target.host}: {what}", next_step, code=code)


def _unknown_key(name: str, key: paramiko.PKey, target: Target) -> HostUnreachable:
    return _unreachable(
        target,
        "host_key_unknown",
        f"its host key is not known ({key.get_name()} {key.fingerprint}, {name})",
        f"compare the fingerprints, and add those that are right: {TRUST}",
    )


def _changed_key(exc: paramiko.BadHostKeyException, target: Target) -> HostUnreachable:
    file = f" -f {shlex.quote(target.known_hosts)}" if target.known_hosts else ""
    return _unreachable(
        target,
        "host_key_changed",
        f"its host key has changed ({exc.key.get_name()} {exc.key.fingerprint}, {exc.hostname})",
        f"if you know why (else it is an attack): ssh-keygen -R {shlex.quote(exc.hostname)}{file}; then: {TRUST}",
    )


# ------------------------------------------------------------------------------------------------- one command


class SshPipe:
    """A command on the host as a `channel.Pipe`. Never waits for its exit status, because paramiko ignores the timeout
    there."""

    def __init__(self, connection: StrictConnection, command: str, host: str, deadline: float) -> None:
        self._host = host
        self._said = b""
        try:
            self.channel = connection.transport.open_session(timeout=remaining_s(deadline, host, "opening a session"))
            self.channel.settimeout(remaining_s(deadline, host, "starting the installer"))
            self.channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise self._broken(exc, "starting the installer") from exc

    def send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        try:
            while view:
                self.channel.settimeout(remaining_s(deadline, self._host, "sending"))
                view = view[self.channel.send(view[: 256 * 1024]) :]
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise self._broken(exc, "sending") from exc

    def receive(self, deadline: float) -> bytes:
        try:
            self.channel.settimeout(remaining_s(deadline, self._host, "waiting for its answer"))
            return bytes(self.channel.recv(64 * 1024))
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise self._broken(exc, "waiting for its answer") from exc

    def errors(self) -> str:
        with contextlib.suppress(Exception):
            while self.channel.recv_stderr_ready():
                self._said = (self._said + self.channel.recv_stderr(4096))[-MAX_ERROR_BYTES:]
        lines = [line.strip() for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-400:]

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.channel.close()

    def _broken(self, exc: BaseException, doing: str) -> HostError:
        if isinstance(exc, (socket.timeout, TimeoutError)):
            return HostError(
                f"{self._host}: no answer in time while {doing}",
                "the machine may be overloaded; try again",
                code="timeout",
            )
        said = self.errors() or str(exc) or type(exc).__name__
        return HostError(
            f"{self._host}: the connection broke while {doing} ({said})", "try again", code="connection_lost"
        )


class SshWire(Wire):
    """The same channel as a stream that never waits, for a tunnel."""

    def __init__(self, pipe: SshPipe) -> None:
        self._channel = pipe.channel
        self._channel.settimeout(0.0)

    def fileno(self) -> int:
        return int(self._channel.fileno())

    def read(self) -> bytes:
        while self._channel.recv_stderr_ready():
            self._channel.recv_stderr(4096)  # discarded; otherwise the channel would always appear readable
        try:
            data = bytes(self._channel.recv(64 * 1024))
        except TimeoutError:
            return b""
        if not data:
            raise MuxEnded("the SSH connection ended")
        return data

    def write(self, data: bytes) -> int:
        try:
            return int(self._channel.send(data))
        except TimeoutError:
            return 0
