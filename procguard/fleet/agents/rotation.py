"""Replacing the secrets of agents that run (`invoke agents.rotate`).

    none ──begin──▶ asked ──take: the agent names the new secret's digest──▶ taken ──its first use──▶ none

The agent generates the new secret and sends only its digest, so that no usable secret is transmitted. While a rotation
is `taken`, both secrets are valid, because either side may be killed between any two steps. The first use of the new
secret revokes the old one. Owns these steps; methods marked "durable" return when the change is on disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Literal

from typing_extensions import TypedDict

from procguard.errors import Conflict
from procguard.fleet.agents.credentials import Tokens
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord, PendingRotation
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import because
from remote_agent.protocol import messages


class RotationAsked(TypedDict):
    status: Literal["asked", "unsupported", "unknown"]
    message: str


class Rotations:
    def __init__(self, state: FleetState, tokens: Tokens) -> None:
        self._state = state
        self._tokens = tokens

    def begin(self, agent_ids: Iterable[str], actor: str, now: Now) -> dict[str, RotationAsked]:
        """Request new secrets of these agents; durable. An unreachable agent is asked when it reconnects."""
        with self._state.transaction(now, actor) as tx:
            found = {agent_id: self._begin(tx, agent_id) for agent_id in dict.fromkeys(agent_ids)}
            asked = [agent_id for agent_id, outcome in found.items() if outcome["status"] == "asked"]
            if asked:
                tx.event("credentials", reason=because("secret.asked", agents=asked[:100]))
        return found

    def _begin(self, tx: Transaction, agent_id: str) -> RotationAsked:
        agent = self._state.agents_by_id.get(agent_id)
        if agent is None:
            return {"status": "unknown", "message": "no such agent; list them: invoke agents"}
        why_not = self._unsupported(agent)
        if why_not:
            return {"status": "unsupported", "message": why_not}
        if agent.rotation is None:
            tx.edit(agent).rotation = PendingRotation("r-" + secrets.token_hex(6), tx.now.wall, tx.actor)
        away = self._state.agent_status[agent_id].state != "connected"
        return {"status": "asked", "message": "unreachable; rotated when it returns" if away else ""}

    def _unsupported(self, agent: AgentRecord) -> str:
        if not agent.secret_sha256:
            again = "approve it again" if agent.kind == "launcher" else "deploy it"
            return f"it has no secret (revoked, or never deployed); {again}"
        observed = self._state.agent_status[agent.agent_id]
        if observed.heartbeat is None and observed.state == "connected":
            return "a launcher that sends plain heartbeats has its own secret or token; replace it there"
        return ""

    def take(self, agent_id: str, renewal: messages.SecretRenewal, now: Now) -> None:
        """Accept the digest of the agent's new secret: both secrets are valid from now on. Durable.
        Raises Conflict."""
        agent = self._state.agent(agent_id)
        if agent.rotation is None or agent.rotation.id != renewal.rotation:
            raise Conflict(f"{agent_id}: no new secret was requested", "keep the current one", code="no_rotation")
        digest = renewal.secret_sha256
        if self._state.owner_of_secret(digest) not in (None, agent_id) or self._tokens.find(digest) is not None:
            raise Conflict(f"{agent_id}: this secret is in use already", "make another", code="no_rotation")
        if digest in (agent.secret_sha256, agent.revoked_sha256):
            raise Conflict(f"{agent_id}: this is not a new secret", "make another", code="no_rotation")
        with self._state.transaction(now) as tx:
            self._state.set_secrets(tx, agent, next_sha256=digest)
        self._state.bus.secret_taken(agent_id)

    def first_use(self, sha256: str, now: Now) -> str | None:
        """The agent whose new secret has this digest; its old secret is revoked. None if there is no such agent.
        Durable."""
        agent_id = self._state.agent_by_new_secret.get(sha256)
        agent = self._state.agents_by_id.get(agent_id) if agent_id is not None else None
        if agent is None:
            return None
        with self._state.transaction(now, agent.rotation.actor if agent.rotation is not None else "") as tx:
            self._state.set_secrets(tx, agent, secret_sha256=sha256)
            agent.rotation = None
            what = because("secret.replaced", agent=agent.agent_id)
            tx.event("credentials", host=agent.host, reason=what)
        self._state.bus.secret_replaced(agent.agent_id)
        return agent.agent_id
