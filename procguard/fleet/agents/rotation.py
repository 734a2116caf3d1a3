"""Replacing the secrets of agents that run (`invoke agents.rotate`).

    none ──begin──▶ asked ──take: the agent names the new secret's digest──▶ taken ──its first use──▶ none

The agent makes the new secret and tells its digest alone, so nothing that could be used travels. While a rotation is
`taken` both secrets are good: each side may be killed between any two steps, and whichever secret the agent has then
lets it in. The first use of the new one ends the old. Owns these steps; methods marked "durable" return when the
change is on disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

from procguard.errors import Conflict
from procguard.fleet.agents.credentials import Tokens
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord
from procguard.fleet.state import FleetState
from remote_agent.protocol import messages

Hook = Callable[[str], None]


class Rotations:
    """The rotations of one fleet. `on_taken(agent_id)`, `on_ended(agent_id)`: hooks at those steps."""

    def __init__(self, state: FleetState, tokens: Tokens) -> None:
        self._state = state
        self._tokens = tokens
        self.on_taken: list[Hook] = []
        self.on_ended: list[Hook] = []

    def begin(self, agent_ids: Iterable[str], actor: str, now: Now) -> dict[str, dict[str, str]]:
        """Ask these agents for new secrets; durable. What became of each: {"status": "asked", "unsupported" or
        "unknown", "message"}. One that is away is asked when it returns."""
        found = {agent_id: self._begin(agent_id, actor, now) for agent_id in dict.fromkeys(agent_ids)}
        asked = [agent_id for agent_id, outcome in found.items() if outcome["status"] == "asked"]
        if asked:
            self._event(f"new secrets asked for: {_shown(asked)}", actor, now)
        self._state.commit()
        return found

    def _begin(self, agent_id: str, actor: str, now: Now) -> dict[str, str]:
        agent = self._state.agents_by_id.get(agent_id)
        if agent is None:
            return {"status": "unknown", "message": "no such agent; list them: invoke agents"}
        why_not = self._unsupported(agent)
        if why_not:
            return {"status": "unsupported", "message": why_not}
        if not agent.rotation:
            agent.rotation = {"id": "r-" + secrets.token_hex(6), "at": now.wall, "actor": actor}
            self._store(agent)
        away = self._state.seen[agent_id].state != "connected"
        return {"status": "asked", "message": "away; done when it returns" if away else ""}

    def _unsupported(self, agent: AgentRecord) -> str:
        if not agent.secret_sha256:
            again = "approve it again" if agent.kind == "launcher" else "deploy it"
            return f"it has no secret (revoked, or never deployed); {again}"
        seen = self._state.seen[agent.agent_id]
        if seen.heartbeat is None and seen.state == "connected":
            return "a launcher that sends plain heartbeats has its own secret or token; replace it there"
        return ""

    def take(self, agent_id: str, renewal: messages.SecretRenewal, now: Now) -> None:
        """The agent has stored a new secret, whose digest this is: it is good from now on, beside the old one. Durable.
        Raises Conflict."""
        agent = self._state.agent(agent_id)
        if not agent.rotation or agent.rotation["id"] != renewal.rotation:
            raise Conflict(f"{agent_id}: no new secret is asked for", "keep the present one", code="no_rotation")
        digest = renewal.secret_sha256
        if self._state.owner_of_secret(digest) not in (None, agent_id) or self._tokens.find(digest) is not None:
            raise Conflict(f"{agent_id}: this secret is in use already", "make another", code="no_rotation")
        if digest in (agent.secret_sha256, agent.revoked_sha256):
            raise Conflict(f"{agent_id}: this is no new secret", "make another", code="no_rotation")
        if agent.next_sha256 != digest:
            self._state.agent_by_new_secret.pop(agent.next_sha256, None)
            agent.next_sha256 = digest
            self._state.agent_by_new_secret[digest] = agent_id
            self._store(agent)
        self._state.commit()
        for hook in self.on_taken:
            hook(agent_id)

    def first_use(self, sha256: str, now: Now) -> str | None:
        """Whose new secret this is; it is that agent's only one from now on. None: nobody's. Durable."""
        agent_id = self._state.agent_by_new_secret.pop(sha256, None)
        agent = self._state.agents_by_id.get(agent_id) if agent_id is not None else None
        if agent is None:
            return None
        actor = str(agent.rotation.get("actor", ""))
        self._state.agent_by_secret.pop(agent.secret_sha256, None)
        agent.secret_sha256, agent.next_sha256, agent.rotation = sha256, "", {}
        self._state.agent_by_secret[sha256] = agent.agent_id
        self._store(agent)
        self._event(f"{agent.agent_id} has a new secret; the one before has ended", actor, now, agent.host)
        self._state.commit()
        for hook in self.on_ended:
            hook(agent.agent_id)
        return agent.agent_id

    def _store(self, agent: AgentRecord) -> None:
        self._state.put("agents", agent.agent_id, agent)
        self._state.notify("hosts", agent.agent_id, self._state.host_view(agent.agent_id))

    def _event(self, reason: str, actor: str, now: Now, host: str = "") -> None:
        self._state.event_log.add("credentials", now, host=host, reason=reason, actor=actor)


def _shown(agent_ids: list[str]) -> str:
    more = f" and {len(agent_ids) - 20} more" if len(agent_ids) > 20 else ""
    return ", ".join(agent_ids[:20]) + more
