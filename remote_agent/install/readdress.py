"""Writes the manager's new addresses to agent.json after the manager has moved; the running agent reloads them.

Runs on the host, sent with the session that recovery opens; the agent's part is transport/address_file.py. Only
addresses change: the agent's identity, its secret and the manager's key stay the same, and a new address is accepted
only if it proves possession of that key from this host (reachability.py). Neither the agent nor runners nor workers are
restarted.
"""

from __future__ import annotations

from remote_agent.install import addresses, reachability
from remote_agent.install.installer import Installer
from remote_agent.protocol.hints import Any, Dict
from remote_agent.system import paths
from remote_agent.transport.tls import Trust

Json = Dict[str, Any]


def update_addresses(installer: Installer, manager: Json) -> Json:
    """Give the installed agent the addresses of `manager`, if none of its own reaches its manager.

    `manager` is part of a deployment's request: {"manager_urls", "manager_configured", "manager_port", "manager_ca",
    "manager_any_name"}. Returns {"new": [its new addresses], "before": […]}. If none works, {"unreached": {address:
    error}}, with "fixed": the address set by the inventory, or "tunnel": true if it has a tunnel. Returns {} if the
    agent's own addresses work.
    """
    config = installer.config()
    known = [str(url) for url in config.get("manager_urls") or []]
    trust = Trust(config.get("manager_ca", ""), bool(config.get("manager_any_name")))
    identity = (config.get("agent_id", ""), installer.fleet_id, config.get("proof_key", ""))
    own = reachability.Probe(*identity, trust)
    if own.find(known):
        return {}
    fixed, tunnel_url = str(config.get("manager_fixed") or ""), str(config.get("tunnel_url") or "")
    if fixed:
        return {"unreached": own.failures, "fixed": fixed}
    if not trust.ca:  # it has no certificate to keep; the manager may use TLS since it moved
        trust = Trust(manager.get("manager_ca", ""), bool(manager.get("manager_any_name")))
    given = {**manager, "tunnel_url": tunnel_url}
    candidates = [url for url in addresses.candidates(given) if url not in known]
    probe = reachability.Probe(*identity, trust)
    found = probe.find(candidates) if candidates else None
    if found is None:
        return {"unreached": {**own.failures, **probe.failures}, "tunnel": bool(tunnel_url)}
    urls, tried = addresses.chosen(found, candidates, probe.proven, given)
    config_now = {**config, "manager_urls": urls, "manager_tried": tried}
    if trust.ca:
        config_now.update(manager_ca=trust.ca, manager_any_name=trust.any_name)
    with installer.locked():
        if installer.config() != config:
            return {}  # a deployment has changed the addresses meanwhile
        paths.write_json(paths.agent_file(installer.dir), config_now, durable=True)
    return {"new": urls, "before": known}
