"""Selects the manager's address for this host, from the candidates of a deployment.

An address is accepted if it proved possession of the fleet's key from this host (reachability.py, imported on demand).
Writes nothing.
"""

from __future__ import annotations

import os

from remote_agent.install.release import InstallError
from remote_agent.protocol.hints import TYPE_CHECKING, Any, Callable, Dict, List

if TYPE_CHECKING:
    from remote_agent.transport.tls import Trust

NO_WAY_NEXT = (
    "open the manager's port for this host, set procguard_manager_url in the inventory, or let it come through the "
    "manager's own SSH: procguard_tunnel: true"
)

Json = Dict[str, Any]


def wanted(
    request: Json, before: Json, fleet_id: str, host: str, agent_runs: "Callable[[], bool]"
) -> "tuple[List[str], List[str]]":
    """Returns ([the proven address, other proven or configured ones], failures of the others). The addresses that a
    running agent uses are not tried again.

    Other addresses are not given to the agent, because a later listener there could relay the proof.
    """
    offered = candidates(request)
    known = before.get("manager_urls") or [""]
    same_ca = before.get("manager_ca", "") == request.get("manager_ca", "")
    proven = known[0] in offered and before.get("proof_key") == request["proof_key"] and same_ca
    tried = before.get("manager_tried") or []
    if proven and set(offered) <= {*known, *tried} and agent_runs():
        return list(known), list(tried)
    if proven:
        offered.sort(key=lambda url: url != known[0])
    from remote_agent.install import reachability

    probe = reachability.Probe(request["agent_id"], fleet_id, request["proof_key"], _trust(request))
    found = probe.find(offered) if offered else None
    if found is None:
        failures = [f"{url}: {why}" for url, why in probe.failures.items()]
        if request.get("tunnel_failure"):
            failures.append(f"the tunnel: {request['tunnel_failure']}")
        tried = "; ".join(failures) or "no address is known"
        raise InstallError(
            "manager_out_of_reach",
            f"{host} can't reach the manager ({tried})",
            NO_WAY_NEXT,
        )
    return chosen(found, offered, probe.proven, request)


def chosen(found: str, offered: "List[str]", proven: "List[str]", request: Json) -> "tuple[List[str], List[str]]":
    """Returns (addresses for the agent, rejected ones). `found`: the first address that proved itself."""
    if found == request.get("tunnel_url"):
        return [found], []  # the others would only cost timeouts whenever the tunnel is down
    good = {*proven, *request.get("manager_configured", ())}
    return (
        [found] + [url for url in offered if url != found and url in good],
        [url for url in offered if url not in good],
    )


def candidates(request: Json) -> "List[str]":
    """The addresses to try; the tunnel is last, because it is a fallback."""
    given = [url.rstrip("/") for url in request.get("manager_urls", [])]
    scheme = "https" if given and given[0].startswith("https:") else "http"
    seen = _seen_client(os.environ.get("SSH_CONNECTION", ""), int(request.get("manager_port") or 0), scheme)
    tunnel = [request["tunnel_url"]] if request.get("tunnel_url") else []
    return list(dict.fromkeys(given + ([] if request.get("manager_url_fixed") else seen) + tunnel))


def reach(request: Json, fleet_id: str, known: "List[str]") -> Json:
    """Find the manager's address that works from this host, and the errors of the others. Changes nothing.

    `known`: the agent's addresses; `known_works` in the result: whether one of them reaches the manager."""
    from remote_agent.install import reachability

    offered = candidates(request)
    probe = reachability.Probe(request["agent_id"], fleet_id, request["proof_key"], _trust(request))
    found = probe.find(offered) if offered else None
    works = bool(set(known) & set(probe.proven))
    if not works and known:
        own = reachability.Probe(request["agent_id"], fleet_id, request["proof_key"], _trust(request))
        works = own.find(known) is not None
    return {"ok": True, "found": found, "failures": probe.failures, "known": known, "known_works": works}


def _seen_client(ssh_connection: str, port: int, scheme: str) -> "List[str]":
    """The deployer's address from SSH_CONNECTION, which is often also the manager's; [] without SSH."""
    words = ssh_connection.split()
    if not words or not port:
        return []
    address = words[0].partition("%")[0]
    return [f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"]


def _trust(request: Json) -> Trust:
    from remote_agent.transport.tls import Trust

    return Trust(request.get("manager_ca", ""), bool(request.get("manager_any_name")))
