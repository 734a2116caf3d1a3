"""The agents' secrets: lookup, replacement and revocation. rotation.py rotates them.

Stores only hashes. A method marked "durable" returns when its change is on disk.
"""

from __future__ import annotations

from procguard.fleet.agents.credentials import Tokens
from procguard.fleet.agents.rotation import Rotations
from procguard.fleet.model import clock
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import because
from remote_agent.protocol import session


class AgentSecrets:
    def __init__(self, state: FleetState, tokens: Tokens, rotations: Rotations) -> None:
        self._state = state
        self._tokens = tokens
        self._rotations = rotations

    def authenticate(self, secret_sha256: str) -> str | None:
        """The id of the agent with this secret, "" if there is none. The first use of a new secret revokes the old;
        durable."""
        found = self._state.agent_by_secret.get(secret_sha256)
        if found is None and secret_sha256 in self._state.agent_by_new_secret:
            found = self._rotations.first_use(secret_sha256, clock.read())
        return found

    def session_key_of(self, who: str) -> str:
        """The key that proves a session: an agent's proof key, or the digest of a token ("token:MARK"); "" if there is
        none."""
        if not who.startswith(session.TOKEN_PREFIX):
            return self._state.proof_key(who)
        token = self._tokens.by_mark(who.removeprefix(session.TOKEN_PREFIX))
        return token.sha256 if token is not None else ""

    def set(self, agent_id: str, secret_sha256: str, actor: str, now: Now) -> None:
        """Set an agent's secret (its hash). The previous one is revoked and its held requests are closed. Durable."""
        agent = self._state.agent(agent_id)
        with self._state.transaction(now, actor) as tx:
            self.replace(tx, agent, secret_sha256)

    def replace(self, tx: Transaction, agent: AgentRecord, secret_sha256: str) -> None:
        agent_id, replaced = agent.agent_id, agent.secret_sha256 not in ("", secret_sha256)
        self._state.set_secrets(tx, agent, secret_sha256=secret_sha256)
        agent.rotation = None
        tx.event("credentials", host=agent.host, reason=because("secret.new", agent=agent_id))
        if replaced:
            tx.once_over(lambda: self._state.bus.revoked(agent_id))

    def revoke(self, agent_id: str, actor: str, now: Now) -> None:
        """Revoke a stolen secret and the key with which a deployed agent verifies its manager. Its workers keep
        running; a deployment (a launcher: an approval) issues new ones. Durable.
        """
        agent = self._state.agent(agent_id)
        with self._state.transaction(now, actor) as tx:
            revoked = agent.secret_sha256 or agent.revoked_sha256
            self._state.set_secrets(tx, agent, secret_sha256="")
            agent.revoked_sha256, agent.rotation = revoked, None
            if agent.kind == "deployed":  # a launcher cannot be sent the new one
                agent.key_generation += 1
            # the thief may have used up the sequence numbers of its events
            for worker in self._state.workers_of(agent_id):
                tx.edit(worker).event_seq = 0
            self._tokens.revoke_agents(tx, agent_id)
            tx.event("credentials", host=agent.host, reason=because("secret.revoked", agent=agent_id))
            tx.once_over(lambda: self._state.bus.revoked(agent_id))
