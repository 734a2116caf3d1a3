"""Maintenance of one agent on behalf of an operator: restart it, install the deploying side's release, read its log.

Uses the installer's operations; runs on the host, sent with the session. Never affects a runner or its process.
"""

from __future__ import annotations

import os

from remote_agent.protocol.hints import TYPE_CHECKING, Any, Callable, Dict
from remote_agent.system import paths

if TYPE_CHECKING:
    from remote_agent.install.installer import Installer

MAX_LOG_BYTES = 256 * 1024
KEPT = (
    "agent_id",
    "proof_key",
    "manager_urls",
    "manager_fixed",
    "manager_ca",
    "manager_any_name",
    "tunnel_url",
    "base_env",
)

Json = Dict[str, Any]


def upgrade(
    installer: Installer,
    request: Json,
    fetch_bundle: "Callable[[], bytes]",
    fetch_code: "Callable[[], bytes]",
) -> Json:
    """Install another release of the installed agent and change nothing else: `request` names only the release.
    Settings from the inventory (service, addresses, environment) remain those of the last deployment."""
    config = installer.config()
    if not config:
        raise installer.not_installed()
    kept = {name: config[name] for name in KEPT if config.get(name)}
    wanted = {
        **kept,
        "manager_url_fixed": True,
        "manager_configured": kept.get("manager_urls", []),
        "service": installer.keeping().get("service", ""),
        "release": request["release"],
        "unpacked_bytes": request.get("unpacked_bytes", 0),
    }
    return installer.install(wanted, fetch_bundle, fetch_code)


def log(installer: Installer, max_bytes: int) -> Json:
    """The end of agent.log, whether or not there is an agent: {"text", "path", "bytes": the file's size}."""
    status = installer.status()
    if not status["installed"]:
        raise installer.not_installed()
    path = paths.agent_log(installer.dir)
    text, size = b"", 0
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin = max(0, size - min(MAX_LOG_BYTES, max(1, max_bytes)))
            file.seek(begin)
            text = file.read(MAX_LOG_BYTES)
            if begin:  # omit the partial first line
                text = text.partition(b"\n")[2] or text
    except FileNotFoundError:
        pass  # there is no log yet
    shown = text.decode("utf-8", "replace")
    return {"ok": True, "running": status["running"], "pid": status["pid"], "path": path, "bytes": size, "text": shown}
