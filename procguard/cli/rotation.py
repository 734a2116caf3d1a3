"""`invoke agents.rotate`: selects agents, and follows them until each has used its new secret.

The manager performs the steps (fleet/agents/rotation.py); this module requests them and polls `GET /api/agents`.
"""

from __future__ import annotations

import fnmatch
import time
from typing import TYPE_CHECKING

from procguard import hints
from procguard.cli.output.language import chosen
from procguard.client.api import ManagerClient
from procguard.console import language
from procguard.console.terminal import say, say_as_is, say_json
from procguard.errors import NotFound, PartlyFailed, UsageError
from procguard.fleet.workers import selectors

if TYPE_CHECKING:
    from procguard.console.tables import View

POLL_INTERVAL_S = 0.5
MOST_NAMED = 20


def rotate(manager: ManagerClient, target: str, limit: str, timeout_s: float, no_wait: bool, as_json: bool) -> None:
    """Rotate the secrets of the agents that match both `target` and `limit`, and print the result of each agent. Raises
    NotFound if none matches, PartlyFailed if an agent has no new secret in time (with `no_wait`: if the manager could
    not request the rotation)."""
    if timeout_s < 0:
        raise UsageError(f"--timeout {timeout_s:g}: expected seconds", "e.g. --timeout 60")
    views = [view for view in manager.agents()["agents"] if view.get("agent_state") != "pending"]
    chosen = {str(view["agent"]): view for view in views if _is_meant(view, target) and _is_meant(view, limit)}
    if not chosen:
        raise NotFound(f"no agent matches {' and '.join(filter(None, (target, limit))) or 'anything'}", "invoke agents")
    outcomes = manager.rotate_agents(sorted(chosen))
    found = {agent: (str(one["status"]), str(one["message"])) for agent, one in sorted(outcomes.items())}
    if not no_wait:
        found = _followed(manager, found, timeout_s, quiet=as_json)
    if as_json:
        shown = {agent: {"status": status, "message": text} for agent, (status, text) in found.items()}
        say_json({"agents": shown})
    else:
        _say(found, no_wait)
    good = ("asked",) if no_wait else ("rotated",)
    failed = [agent for agent, (status, _) in found.items() if status not in good]
    if failed:
        raise PartlyFailed(
            f"{len(failed)} of {len(found)} agents have no new secret: {_named(failed)}",
            "agents that received the request rotate when they return (invoke agents); their old secrets stay valid "
            "until then",
        )


def _is_meant(view: View, text: str) -> bool:
    """Whether `text` selects the agent. `text`: globs of ids or hosts, of which those with ! exclude, or the conditions
    of a selector; "" selects all."""
    if not text:
        return True
    names = {str(view.get("agent") or ""), str(view.get("host") or "")}
    if "=" in text:
        facts = {"worker_id": view.get("agent"), "agent": view.get("agent"), "host": view.get("host")}
        return selectors.parse(text).matches({**facts, "labels": view.get("labels") or {}})
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wanted = [part for part in parts if not part.startswith("!")]
    hit = any(fnmatch.fnmatchcase(name, part) for name in names for part in wanted) if wanted else True
    return hit and not any(fnmatch.fnmatchcase(name, part[1:]) for name in names for part in parts if part[0] == "!")


def _followed(
    manager: ManagerClient, found: dict[str, tuple[str, str]], timeout_s: float, quiet: bool
) -> dict[str, tuple[str, str]]:
    """Poll until every connected agent has its new secret or the timeout has passed. Returns `found`, updated:
    {agent id: (status, message)}."""
    from procguard.cli.output import deployment

    out = deployment.console(stderr=quiet)
    status = out.status("") if out.is_terminal else None
    waiting = {agent for agent, (state, _) in found.items() if state == "asked"}
    total, deadline = len(waiting), time.monotonic() + timeout_s
    try:
        if status:
            status.start()
        while waiting:
            views = {str(view["agent"]): view for view in manager.agents()["agents"]}
            for agent in sorted(waiting):
                view = views.get(agent)
                if view is None:
                    found[agent] = ("unknown", "no longer part of the fleet")
                elif not view.get("rotation"):
                    found[agent] = ("rotated", "")
                else:
                    away = view.get("agent_state") != "connected"
                    found[agent] = (
                        "asked",
                        "unreachable; rotated when it returns" if away else "no new secret in time",
                    )
            waiting = {agent for agent in waiting if found[agent][0] == "asked"}
            if status:
                text = f"{total - len(waiting)} of {total} have new secrets; waiting for {_named(sorted(waiting))}"
                status.update(language.shown(text))
            here = any(found[agent][1] != "unreachable; rotated when it returns" for agent in waiting)
            if not here or time.monotonic() > deadline:
                break
            time.sleep(POLL_INTERVAL_S)
    except KeyboardInterrupt:
        say(hints.commands("the rotation continues; see invoke agents"), err=True)
        raise
    finally:
        if status:
            status.stop()
    return found


def _say(found: dict[str, tuple[str, str]], no_wait: bool) -> None:
    for agent, (status, text) in found.items():
        word = chosen().named("rotation", status)
        say_as_is(f"{agent}: {word}" + (f" ({language.shown(text)})" if text else ""))
    done = sum(1 for status, _ in found.values() if status == "rotated")
    asked = hints.commands(f"{len(found)} agents asked; see invoke agents")
    say(asked if no_wait else f"{done} of {len(found)} agents rotated")


def _named(agents: list[str]) -> str:
    more = f" and {len(agents) - MOST_NAMED} more" if len(agents) > MOST_NAMED else ""
    return ", ".join(agents[:MOST_NAMED]) + more
