"""Detects other fleets on this host: ids of workers that are already running here for another manager.

A different state file is a different fleet, and fleets do not know about each other: deploying the same inventory
from another state would start every worker a second time. Searches one procguard_home, where the agents of all
fleets of a user are installed by default; reads only files and locks.
"""

from __future__ import annotations

import os
from collections import namedtuple

from remote_agent.protocol.hints import Any
from remote_agent.protocol.ids import valid_id
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.system import paths
from remote_agent.system.locks import lock_held

# manager: an address of its manager, "" if none is known. workers: ids of those whose runner lives here. insists: it
# was deployed with --another-fleet.
Other = namedtuple("Other", ["fleet_id", "host", "directory", "manager", "agent_runs", "workers", "insists"])


def found(home: str, fleet_id: str) -> "list[Other]":
    """The agents and launchers of other fleets on this host that are alive or have a live worker."""
    others = []
    for fleet in _names(home):
        if fleet in (fleet_id, "releases") or not valid_id(fleet):
            continue
        for host in filter(valid_id, _names(os.path.join(home, fleet))):
            directory = os.path.join(home, fleet, host)
            launchers = os.path.join(directory, "launchers")
            for one in (directory, *(os.path.join(launchers, name) for name in _names(launchers))):
                other = _read_worker(fleet, host, one)
                if other is not None and (other.agent_runs or other.workers):
                    others.append(other)
    return others


def doubled(agent_directory: str, worker_ids: "list[str]") -> "list[tuple[Other, list[str]]]":
    """Other fleets that run one of `worker_ids` on this host, if this agent, in <home>/<fleet>/<host>, does not run it
    yet."""
    home, fleet_id = (
        os.path.dirname(os.path.dirname(agent_directory)),
        os.path.basename(os.path.dirname(agent_directory)),
    )
    others = [(other, set(worker_ids).intersection(other.workers)) for other in found(home, fleet_id)]
    if not any(ids for _, ids in others):
        return []
    own = _read_worker(fleet_id, "", agent_directory)
    mine = set(own.workers) if own is not None else set()
    return [(other, sorted(ids - mine)) for other, ids in others if ids - mine]


def forbids(worker_directory: str, worker_id: str) -> Reason:
    """Why this worker of a deployed agent must not be started now; "" if it may be."""
    directory = os.path.dirname(os.path.dirname(worker_directory))
    config = _config(directory)
    if config.get("kind") != "deployed" or config.get("another_fleet"):
        return NONE
    for other, _ in doubled(directory, [worker_id]):
        if not other.insists:
            if other.manager:
                return because("start.another_fleet_of", fleet=other.fleet_id, manager=other.manager)
            return because("start.another_fleet", fleet=other.fleet_id)
    return NONE


def in_words(other: Other) -> str:
    """ "fleet f-0a1b (manager http://10.0.0.5:5000)" """
    return f"fleet {other.fleet_id}" + (f" (manager {other.manager})" if other.manager else "")


def _config(directory: str) -> "dict[str, Any]":
    try:
        config = paths.read_json(paths.agent_file(directory))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _read_worker(fleet_id: str, host: str, directory: str) -> "Other | None":
    config = _config(directory)
    runtime_dir = config.get("runtime_dir")
    if not isinstance(runtime_dir, str) or not runtime_dir:
        return None
    urls = config.get("manager_urls")
    manager = str(urls[0])[:200] if isinstance(urls, list) and urls else ""
    if not manager.isprintable():
        manager = ""
    root = paths.workers_dir(directory)
    alive = [name for name in _names(root) if lock_held(paths.runner_lock(runtime_dir, os.path.join(root, name)))]
    workers = [one for one in (paths.recorded_worker_id(os.path.join(root, name)) for name in alive) if valid_id(one)]
    agent_runs = lock_held(paths.agent_lock(runtime_dir))
    return Other(fleet_id, host, directory, manager, agent_runs, workers, bool(config.get("another_fleet")))


def _names(directory: str) -> "list[str]":
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
