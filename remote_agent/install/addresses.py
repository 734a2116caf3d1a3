"""Selects the manager's address for this host: which candidates a deployment offers, and which one the agent gets.

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
    """([the proven one, others that are proven or configured], what else was tried). What a running agent uses
    already is not asked again.

    An address that is neither is kept from the agent: whoever listens there one day might pass on the proof.
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
    """(the addresses for the agent, those that it does not get), where `found` is the first that proved itself."""
    if found == request.get("tunnel_url"):
        return [found], []  # the others would only be waited for each time the tunnel is away
    good = {*proven, *request.get("manager_configured", ())}
    return (
        [found] + [url for url in offered if url != found and url in good],
        [url for url in offered if url not in good],
    )


def candidates(request: Json) -> "List[str]":
    """The tunnel comes last: it is a detour, and there for those who have no other way."""
    given = [url.rstrip("/") for url in request.get("manager_urls", [])]
    scheme = "https" if given and given[0].startswith("https:") else "http"
    seen = _seen_client(os.environ.get("SSH_CONNECTION", ""), int(request.get("manager_port") or 0), scheme)
    tunnel = [request["tunnel_url"]] if request.get("tunnel_url") else []
    return list(dict.fromkeys(given + ([] if request.get("manager_url_fixed") else seen) + tunnel))


def reach(request: Json, fleet_id: str, known: "List[str]") -> Json:
    """Which of the manager's addresses works from here, and what the others say. Changes nothing.

    `known`: the addresses of the agent here; in the answer `known_works`: whether one of them leads to the manager."""
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
    """The deployer's address as this host's sshd sees it: very often also the manager's. [] without SSH."""
    words = ssh_connection.split()
    if not words or not port:
        return []
    address = words[0].partition("%")[0]
    return [f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"]


def _trust(request: Json) -> Trust:
    from remote_agent.transport.tls import Trust

    return Trust(request.get("manager_ca", ""), bool(request.get("manager_any_name")))
