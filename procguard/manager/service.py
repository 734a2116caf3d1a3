"""Starts the manager at boot and restarts it on failure: by a systemd user unit if available, else by cron.

Owns the unit and the cron lines of one manager, identified by its state; writes nothing else. The agent's
install/keepalive.py defines the format of units and crontabs.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from procguard import resources
from procguard.config.schema import Config
from procguard.errors import Conflict
from remote_agent.install.keepalive import KeepAlive, systemd_quote


class ManagerService(KeepAlive):
    """`arguments`: those of procguard.main with which the manager is started in `working_dir`."""

    def __init__(self, config: Config, arguments: Sequence[str], working_dir: str) -> None:
        super().__init__(config.state.state_file, sys.executable, "manager")
        self._words = [sys.executable, "-m", "procguard.main", *arguments]
        self._working_dir = working_dir
        self.unit = f"procguard-manager-{self.tag}.service"

    def _unit_text(self) -> str:
        lines = (
            "[Unit]",
            f"Description=ProcGuard manager ({self.agent_dir})",
            "",
            "[Service]",
            f"ExecStart={' '.join(systemd_quote(word) for word in self._words)}",
            f"WorkingDirectory={self._working_dir.replace('%', '%%')}",
            f"Environment={systemd_quote('PYTHONPATH=' + resources.import_root())}",
            "Restart=always",
            "RestartSec=3",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        )
        return "\n".join(lines)

    def _cron_lines(self) -> list[str]:
        """The cron lines. They start a manager each minute, which exits at once if one is running on the state."""
        words = [*self._words, "--daemon"]
        command = (
            f"cd {shlex.quote(self._working_dir)} && PYTHONPATH={shlex.quote(resources.import_root())} "
            + shlex.join(words)
        )
        command = command.replace("%", r"\%")
        end = f">/dev/null 2>&1 # procguard:{self.tag} {self.label}"
        return [f"@reboot {command} {end}", f"* * * * * {command} {end}"]


def install(config: Config, arguments: Sequence[str]) -> str:
    """Install and start the service; returns a text about it. Raises Conflict if neither systemd nor cron is
    available."""
    service = ManagerService(config, arguments, os.getcwd())
    kind, reason = service.choose("auto")
    if kind == "none":
        raise Conflict(
            f"no service manager can start the manager at boot ({reason})",
            "install cron, or start the manager manually",
        )
    service.install(kind)
    if kind == "systemd":
        service.systemctl("restart")
        return f"systemd user unit {service.unit}: enabled and started; systemctl --user status {service.unit}"
    return f"cron starts it at boot and checks it every minute ({reason}); it starts within a minute"


def remove(config: Config) -> str:
    """Remove the service. This stops a manager run by systemd; one started by cron keeps running until --stop."""
    service = ManagerService(config, [], os.getcwd())
    was = service.installed()
    if was == "systemd":
        service.systemctl("stop")
    service.remove()
    return "none was installed" if was == "none" else f"removed ({was})"
