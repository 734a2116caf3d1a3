"""Creates the parts of an agent and connects them, once, at its start.

Owns which part receives which other part. Starts nothing: no thread, no process, no connection.
"""

from __future__ import annotations

import os
import queue
import sys

from remote_agent.agent.assignments import AssignedWorkers
from remote_agent.agent.commands import CommandExecutor
from remote_agent.agent.executor import HelperPool
from remote_agent.agent.journal import AgentJournal
from remote_agent.agent.session import ManagerSession, Registrar
from remote_agent.agent.settings import AgentLog, AgentSettings
from remote_agent.health.checks import Checks
from remote_agent.health.progress import ProgressWatch
from remote_agent.logs.number_readings import NumberReadings
from remote_agent.logs.search import LogSearcher
from remote_agent.logs.shipper import LogShipper
from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import AgentReply
from remote_agent.system import paths
from remote_agent.system.free_port import FreePort
from remote_agent.telemetry.gpu_allocator import GpuAllocator
from remote_agent.telemetry.host_disk import HostDisk
from remote_agent.telemetry.sampler import Measuring
from remote_agent.transport.address_file import AddressFile
from remote_agent.transport.addresses import Addresses, ManagersFile
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.negotiation import Channels
from remote_agent.transport.rotation import SecretRotation


class Inbox:
    """Messages of other threads and signal handlers to the main loop. `fileno` is readable while messages wait."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._readable, self.writable = os.pipe()
        for descriptor in (self._readable, self.writable):
            os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        return self._readable

    def post(self, tag: Any, value: Any) -> None:
        """Add a message. Callable from any thread."""
        self._waiting.put((tag, value))
        try:
            os.write(self.writable, b".")
        except (BlockingIOError, OSError):
            pass  # full: the loop is awake already

    def clear(self) -> None:
        """Reset the wake-up."""
        try:
            while os.read(self._readable, 4096):
                pass
        except (BlockingIOError, OSError):
            pass

    def take(self) -> Optional[tuple[Any, Any]]:
        """The oldest message as (tag, value); None if there is none."""
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return None


class AgentParts:
    """`default_dir`: the working directory of workers without one. `base_env`: their base environment. `on_secret`:
    called from another thread with a new secret before it is stored."""

    def __init__(
        self,
        settings: AgentSettings,
        agent_dir: str,
        log: AgentLog,
        *,
        default_dir: str,
        base_env: dict[str, str],
        credentials: Optional[AgentCredentials] = None,
        registrar: Optional[Registrar] = None,
        on_secret: Optional[Callable[[str], None]] = None,
    ) -> None:
        self.settings, self.log, self.registrar = settings, log, registrar
        self.python = settings.python or sys.executable
        self.inbox = Inbox()
        self.journal = AgentJournal(paths.journal_file(agent_dir))
        self.commands = CommandExecutor(self.journal)
        self.port = FreePort()
        self.assigned = AssignedWorkers(agent_dir, settings.runtime_dir, log, default_dir, base_env, self.port)
        self._credentials = credentials or AgentCredentials(
            settings.agent_id, settings.fleet_id, settings.secret, settings.proof_key
        )
        self._addresses = Addresses(
            settings.manager_urls,
            settings.trust(),
            settings.tunnel_url,
            file=AddressFile(agent_dir, settings.agent_id, settings.proof_key) if registrar is None else None,
            memory=ManagersFile(agent_dir),
        )
        post = self.inbox.post
        self.channels = Channels(lambda text: post("channel", text))
        of_logs = Connection(self._addresses, self._credentials, self.channels, logs=True)
        self.shipper = LogShipper(self._addresses.interrupt(of_logs), post)
        self.searcher = LogSearcher(self._credentials, self.python, self._connection)
        self.numbers = NumberReadings(self.python, log.say)
        self.rotation = SecretRotation(
            agent_dir,
            self._credentials,
            self._connection,
            replacing=on_secret or (lambda _: None),
            replaced=self._secret_replaced,
            say=log.say,
        )
        self.helpers = HelperPool(post)
        self.disk = HostDisk(agent_dir, self.helpers.submit)
        self.measuring = Measuring(agent_dir, self.python, self.helpers.submit)
        self.checks = Checks(
            self.measuring,
            self.helpers.submit,
            log.say,
            lambda: post("checked", None),
            python=self.python,
            base_env=base_env,
        )
        self.progress = ProgressWatch(
            self.helpers.submit, self.numbers.of, lambda worker: self.checks.elsewhere(worker).stat
        )
        self.gpus = GpuAllocator(agent_dir, self.measuring, base_env)
        self.gpus.adopt(self.assigned.workers)

    def session(
        self,
        build: Callable[[], dict[str, Any]],
        take: Callable[[AgentReply, int], None],
        link_changed: Callable[[str], None],
    ) -> ManagerSession:
        """Create the session with the manager; see ManagerSession for the callbacks."""
        return ManagerSession(
            self._credentials,
            self._addresses,
            self.inbox.post,
            build=build,
            take=take,
            cursor=lambda: (self.assigned.rev, self.commands.seq),
            link_changed=link_changed,
            registrar=self.registrar,
            channels=self.channels,
        )

    def end(self) -> None:
        """End all threads and helpers except the main loop."""
        self.shipper.end()
        self.searcher.end()
        self.numbers.end()
        self.rotation.end()
        self.helpers.end()
        self.measuring.end()
        self.assigned.close()
        self.journal.close()

    def _connection(self) -> Connection:
        return Connection(self._addresses, self._credentials, self.channels)

    def _secret_replaced(self) -> None:
        """Called by the rotation's thread."""
        self.channels.renew_key()
        self.inbox.post("secret", None)
