"""Reloads the manager's addresses from agent.json when none of the known addresses responds.

The writer (install/readdress.py) changes addresses only; a new one is accepted only if it proves possession of the
manager's key that the agent knows. Neither the agent nor runners nor children are restarted.
"""

from __future__ import annotations

import os

from remote_agent.protocol.hints import Optional
from remote_agent.protocol.records import record
from remote_agent.system import paths
from remote_agent.transport.tls import Trust


@record(frozen=True)
class NewAddresses:
    urls: list[str]
    trust: Trust
    tunnel_url: str


class AddressFile:
    """Reads agent.json for an agent whose addresses do not respond. Costs one stat() while the file is unchanged.

    `proof_key`: a file with another one belongs to a deployment that is about to restart this agent."""

    def __init__(self, agent_dir: str, agent_id: str, proof_key: str) -> None:
        self._path = paths.agent_file(agent_dir)
        self._identity = (agent_id, proof_key)
        # the first check reads the file, because it may have changed while the agent started
        self._seen: tuple[int, ...] = ()

    def news(self) -> Optional[NewAddresses]:
        """The addresses in the file, if it has changed since the previous call; otherwise None. Never raises."""
        mark = self._mark()
        if mark == self._seen:
            return None
        self._seen = mark
        try:
            data = paths.read_json(self._path)
        except (OSError, ValueError):
            return None
        if not isinstance(data, dict) or (data.get("agent_id"), data.get("proof_key")) != self._identity:
            return None
        urls = data.get("manager_urls")
        if not isinstance(urls, list) or not urls or not all(isinstance(url, str) and url for url in urls):
            return None
        trust = Trust(str(data.get("manager_ca") or ""), bool(data.get("manager_any_name")))
        return NewAddresses(urls, trust, str(data.get("tunnel_url") or ""))

    def _mark(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._path)
        except OSError:
            return ()
        return (found.st_ino, found.st_mtime_ns, found.st_size)
