"""The identity of an agent (agent.json), its lock, and its bounded log. Knows neither the manager nor the workers."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.records import field, names, record
from remote_agent.system import paths
from remote_agent.system.locks import is_still_at
from remote_agent.transport.tls import Trust

LOG_BYTES = 5 * 1024 * 1024
LOCK_TIMEOUT_S = 1.0  # a check whether an agent runs holds the lock for a moment


class SettingsError(Exception):
    """agent.json is unusable, or another agent runs. The text names the path and the next step."""


@record
class AgentSettings:
    """agent.json; written by the installer (deployed) or the launcher. `manager_urls`: the first is in use."""

    fleet_id: str
    host: str
    agent_id: str
    manager_urls: list[str]
    runtime_dir: str
    secret: str = field(default="", repr=False)
    proof_key: str = field(default="", repr=False)
    kind: str = "deployed"  # or "launcher"
    release: str = ""
    python: str = ""
    base_env: dict[str, str] = field(default_factory=dict, repr=False)
    manager_ca: str = field(default="", repr=False)  # the trust of https, as tls.Trust reads it
    manager_any_name: bool = False
    tunnel_url: str = ""  # the one of manager_urls that leads into the manager's tunnel

    def trust(self) -> Trust:
        return Trust(self.manager_ca, self.manager_any_name)


def load(agent_dir: str) -> AgentSettings:
    """Raises SettingsError: missing, broken, or of another fleet or host than the directory's."""
    path = paths.agent_file(agent_dir)
    try:
        data = paths.read_json(path)
    except (OSError, ValueError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}; deploy this host again") from exc
    if data is None:
        raise SettingsError(f"no agent.json in {agent_dir}; is this an agent's directory? `invoke deploy` creates one")
    if not isinstance(data, dict):
        raise SettingsError(f"{path} is not an object; deploy this host again")
    known = names(AgentSettings)
    try:
        settings = AgentSettings(**{key: value for key, value in data.items() if key in known})
    except TypeError as exc:
        raise SettingsError(f"{path} is incomplete ({exc}); deploy this host again") from exc
    for name in ("fleet_id", "host", "agent_id", "runtime_dir"):
        if not isinstance(getattr(settings, name), str) or not getattr(settings, name):
            raise SettingsError(f"{path}: {name} is missing; deploy this host again")
    if not isinstance(settings.manager_urls, list) or not settings.manager_urls:
        raise SettingsError(f"{path}: manager_urls is empty; deploy this host again")
    _check_place(settings, agent_dir)
    return settings


def save(agent_dir: str, settings: AgentSettings) -> None:
    paths.write_json(paths.agent_file(agent_dir), vars(settings), durable=True)


def keep_runtime_dir(agent_dir: str, settings: AgentSettings) -> None:
    """Create the directory for lock and sockets; use another one if the path belongs to somebody else. Call before
    AgentLock.

    Raises SettingsError, OSError."""
    home, worker = os.path.dirname(os.path.dirname(os.path.abspath(agent_dir))), ""
    if settings.kind == "launcher":
        home, worker = os.path.dirname(os.path.dirname(home)), settings.agent_id.partition("launcher:")[2]
    try:
        place = paths.keep_runtime_dir(settings.runtime_dir, home, settings.fleet_id, settings.host, worker)
    except paths.UnsafeDirectory as exc:
        raise SettingsError(str(exc)) from exc
    if place != settings.runtime_dir:
        settings.runtime_dir = place
        data = paths.read_json(paths.agent_file(agent_dir))  # with keys of later releases
        assert isinstance(data, dict)
        paths.write_json(paths.agent_file(agent_dir), {**data, "runtime_dir": place}, durable=True)


def _check_place(settings: AgentSettings, agent_dir: str) -> None:
    """Raise SettingsError if the directory was copied from another host or fleet."""
    place = os.path.abspath(agent_dir)
    if settings.kind == "launcher":
        place = os.path.dirname(os.path.dirname(place))
    host, fleet_id = os.path.basename(place), os.path.basename(os.path.dirname(place))
    if (settings.fleet_id, settings.host) != (fleet_id, host):
        raise SettingsError(
            f"{paths.agent_file(agent_dir)} belongs to host {settings.host} of fleet {settings.fleet_id}, but lies in "
            f"the directory of host {host} of fleet {fleet_id}; it is not used: deploy this host again"
        )


class AgentLock:
    """The flock that ensures one agent per directory; agent.pid is for people and the installer."""

    def __init__(self, runtime_dir: str) -> None:
        self._runtime_dir = runtime_dir
        self._fd = -1

    def take(self) -> Optional[str]:
        """Take the lock. None on success, otherwise a description of the holder ("pid 1234")."""
        path = paths.agent_lock(self._runtime_dir)
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_still_at(path, self._fd):
                    break
            except OSError as exc:
                if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            self.release()
            if time.monotonic() > deadline:
                return self._holder()
            time.sleep(0.02)
        paths.write_atomic(paths.agent_pid_file(self._runtime_dir), f"{os.getpid()}\n".encode())
        return None

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _holder(self) -> str:
        try:
            with open(paths.agent_pid_file(self._runtime_dir), encoding="utf-8") as file:
                return f"pid {int(file.read().split()[0])}"
        except (OSError, ValueError, IndexError):
            return "pid unknown"


class AgentLog:
    """Lines "time event key=value" in a file of at most LOG_BYTES, one old one kept. Never raises: a full disk must not
    end the agent."""

    def __init__(self, path: str, max_bytes: int = LOG_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._last: dict[str, str] = {}

    def say(self, event: str, **facts: Any) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        pairs = "".join(f" {key}={_shown(value)}" for key, value in facts.items())
        try:
            self._rotate()
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, f"{stamp} {event}{pairs}\n".encode("utf-8", "replace"))
            finally:
                os.close(fd)
        except OSError:
            pass

    def changed(self, topic: str, text: str) -> bool:
        """Log `text` only if it differs from the topic's last text; "" = normal again. Returns whether it was
        logged."""
        if self._last.get(topic, "") == text:
            return False
        self._last[topic] = text
        self.say(topic, is_now=text or "well")
        return True

    def _rotate(self) -> None:
        try:
            if os.stat(self._path).st_size >= self._max_bytes:
                os.replace(self._path, self._path + ".1")
        except FileNotFoundError:
            pass


def _shown(value: Any) -> str:
    text = str(value).replace("\n", " | ")
    return f'"{text}"' if " " in text or not text else text
