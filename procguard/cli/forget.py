"""The command `forget`, which removes a worker, a host or a launcher from the fleet's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from procguard.cli.contexts import connect
from procguard.cli.program.command import operator_task
from procguard.console.terminal import say
from procguard.errors import NotFound, UsageError
from remote_agent.protocol import states

if TYPE_CHECKING:
    from procguard.client.api import ManagerClient
    from procguard.client.types import HostInfo, WorkerInfo


@operator_task(
    ("name",),
    help={
        "name": "a worker id, or an agent id (a host or a launcher), as shown by `invoke agents`",
        "agent": "the name is an agent's, if a worker has the same name",
        "yes": "forget it even if a job may still be running, unsupervised",
    },
)
def forget(name: str, agent: bool = False, yes: bool = False) -> None:
    """Remove a lost worker or agent from the fleet. Stops nothing. Example: invoke forget gpu07

    The worker must have ended or be unreachable; the agent must not be connected (to remove a connected one: invoke
    undeploy). When the host returns, the remains of the worker are removed from it.
    """
    manager = connect()
    views = [] if agent else [view for view in manager.workers() if view["worker_id"] == name]
    if views:
        _refuse_alive(name, views, yes)
        manager.forget(name)
        say(f"{name}: forgotten")
        return
    found = _agent(manager, name)
    if found is None:
        raise NotFound(f"no worker and no agent {name}", "list them: invoke status, invoke agents")
    agent_id = str(found["agent"])
    mine = [view for view in manager.workers() if view.get("agent") == agent_id]
    if found.get("agent_state") != "connected":  # the manager itself refuses a connected agent
        _refuse_alive(agent_id, mine, yes)
    manager.forget_agent(agent_id)
    say(f"{agent_id}: forgotten" + (f", with {len(mine)} worker(s)" if mine else ""))


def _agent(manager: ManagerClient, name: str) -> HostInfo | None:
    views = manager.hosts()["hosts"]
    for wanted in (name, f"launcher:{name}"):
        for view in views:
            if view.get("agent") == wanted:
                return view
    return next((view for view in views if view.get("host") == name), None)


def _refuse_alive(name: str, views: list[WorkerInfo], yes: bool) -> None:
    """Raise UsageError if jobs of unreachable workers may still be running, unless `yes`."""
    maybe = [view for view in views if view["state"] == states.UNKNOWN and view.get("last_known_state") in states.ALIVE]
    if maybe and not yes:
        named = ", ".join(f"{view['worker_id']} on {view['host']}" for view in maybe[:5])
        raise UsageError(
            f"{name}: may still be running: {named}",
            f"wait for the host to return; if it is permanently lost: invoke forget {name} --yes",
            code="not_confirmed",
        )
