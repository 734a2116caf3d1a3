"""Tokens: credentials of people, launchers and programs other than the manager's own user on its machine.

Owns their lifetime and use; stores only hashes. token_scopes.py has the scopes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from procguard.errors import Conflict, NotFound, Refused, UsageError
from procguard.fleet.agents.token_scopes import AGENT_SCOPE, SCOPES, SCOPES_SHOWN, how_to_replace
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.model.records import TokenRecord
from procguard.fleet.state import FleetState
from procguard.fleet.store.interface import StoredRecord
from procguard.fleet.tables import RecordTable
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import because
from remote_agent.protocol import messages, session

MAX_TOKENS = 10_000
MAX_LIFE_S = 10 * 366 * 24 * 3600.0
MAX_USES = 1_000_000
KEEP_ENDED_S = 30 * 24 * 3600.0  # an expired token is shown this long, so that its user learns why it fails
NOTE_USE_EVERY_S = 600.0  # the last use on disk is at most this much older than the real one


class Tokens:
    """The tokens of one fleet. Methods marked "durable" return when the change is on disk."""

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._table = RecordTable[TokenRecord]("tokens", self._index, self._unindex)
        self._by_hash: dict[str, TokenRecord] = {}
        self._by_mark: dict[str, TokenRecord] = {}  # enrolment tokens, by mark
        self._last_uses: dict[str, tuple[float, str]] = {}  # in this run of the manager: (wall time, address)
        state.add_table(self._table)

    def restore(self, table: Mapping[str, StoredRecord]) -> None:
        self._table.restore(TokenRecord.restored(data) for data in table.values())

    def all(self) -> list[TokenRecord]:
        return list(self._table.rows.values())

    def add(
        self,
        scope: str,
        name: str,
        sha256: str,
        actor: str,
        now: Now,
        life_s: float | None = None,
        uses: int | None = None,
    ) -> TokenRecord:
        """Add a token, identified by the hash of its text; durable. `life_s`: None for no expiry. `uses`: number of
        registrations with an enrolment token, None for unlimited."""
        self._check_scope(scope)
        if uses is not None and scope != "enroll":
            raise UsageError(
                f"uses: a token of scope {scope} has none", "only enrolment tokens (enroll) have a use count"
            )
        self._drop_ended(actor, now)
        if len(self._table.rows) >= MAX_TOKENS:
            raise Conflict(
                f"the limit of {MAX_TOKENS} tokens is reached", "revoke some: invoke token, invoke token.revoke"
            )
        token = TokenRecord("t-" + secrets.token_hex(4), name, scope, sha256, now.wall, created_by=actor)
        token.expires_wall = now.wall + life_s if life_s is not None else None
        token.uses_left = uses
        created = because("token.created", token=token.token_id, scope=scope, name=name or because("token.no_name"))
        if token.expires_wall:
            created = created.then(because("token.until", until=iso(token.expires_wall)))
        with self._state.transaction(now, actor) as tx:
            tx.add(token)
            tx.event("token", reason=created)
        return token

    def by_id(self, token_id: str) -> TokenRecord | None:
        return self._table.rows.get(token_id)

    def find(self, sha256: str) -> TokenRecord | None:
        """The token with this hash, also an expired or revoked one (see `usable`); None if there is none."""
        return self._by_hash.get(sha256)

    def by_mark(self, mark: str) -> TokenRecord | None:
        """The launcher token with this mark, which is not secret; also an expired or revoked one."""
        return self._by_mark.get(mark)

    def usable(self, token: TokenRecord, now: Now) -> str:
        """Why the token is no longer valid (expired, used up, revoked); "" if it is valid."""
        if token.expires_wall is not None and now.wall >= token.expires_wall:
            return f"expired at {iso(token.expires_wall)}"
        return "has admitted its maximum number of launchers" if token.uses_left == 0 else ""

    def used(self, token: TokenRecord, address: str, now: Now) -> None:
        """Record the time and address of a use. Written to disk only occasionally, with a later change."""
        self._last_uses[token.token_id] = (now.wall, address)
        if now.wall - (token.used_wall or 0.0) >= NOTE_USE_EVERY_S:
            with self._state.transaction(now, wait="nothing") as tx:
                tx.edit(token)
                token.used_wall, token.used_from = now.wall, address

    def last_use(self, token: TokenRecord) -> tuple[float | None, str]:
        """(Unix seconds or None, address) of the last use."""
        return self._last_uses.get(token.token_id, (token.used_wall, token.used_from))

    def spend(self, tx: Transaction, token_id: str) -> None:
        """Count one use of an enrolment token. Raises Refused if none is left."""
        token = self._table.rows.get(token_id)
        reason = "was revoked" if token is None else self.usable(token, tx.now)
        if token is None or reason:
            raise Refused(f"this enrolment token {reason}", how_to_replace("enroll"), code="token_ended")
        if token.uses_left is not None:
            tx.edit(token).uses_left = token.uses_left - 1

    def revoke(self, token_id: str, actor: str, now: Now) -> None:
        """Revoke a token; durable."""
        token = self._table.rows.get(token_id)
        if token is None:
            raise NotFound(f"no token {token_id!r}", "list them: invoke token")
        with self._state.transaction(now, actor) as tx:
            self._drop(tx, token)
            named = token.name or because("token.no_name")
            tx.event("token", reason=because("token.revoked", token=token_id, scope=token.scope, name=named))

    def revoke_agents(self, tx: Transaction, agent_id: str) -> int:
        """Revoke every token of this agent. Returns the number."""
        found = [token for token in self.all() if token.scope == AGENT_SCOPE + agent_id]
        for token in found:
            self._drop(tx, token)
        return len(found)

    # -------------------------------------------------------------------------------------------------- inside

    def _check_scope(self, scope: str) -> None:
        if scope in SCOPES:
            return
        if not scope.startswith(AGENT_SCOPE):
            raise UsageError(f"unknown token scope {scope[:80]!r}", f"use {SCOPES_SHOWN}")
        agent_id = scope.removeprefix(AGENT_SCOPE)
        if not messages.valid_agent_id(agent_id):
            raise UsageError(f"{agent_id[:80]!r} is not an agent's id", "e.g. agent:gpu01, agent:launcher:worker1")
        if agent_id not in self._state.agents_by_id and not agent_id.startswith(messages.LAUNCHER_PREFIX):
            raise NotFound(f"no agent {agent_id!r}", "list them: invoke agents", code="unknown_agent")

    def _index(self, token: TokenRecord) -> None:
        self._by_hash[token.sha256] = token
        if token.scope == "enroll" or token.scope.startswith(AGENT_SCOPE):
            self._by_mark[session.token_mark(token.sha256)] = token

    def _unindex(self, token: TokenRecord) -> Callable[[], object]:
        self._by_hash.pop(token.sha256, None)
        self._last_uses.pop(token.token_id, None)
        self._by_mark.pop(session.token_mark(token.sha256), None)
        return lambda: self._index(token)

    def _drop(self, tx: Transaction, token: TokenRecord) -> None:
        tx.remove(token)
        tx.once_over(lambda: self._state.bus.token_ended(token))

    def _drop_ended(self, actor: str, now: Now) -> None:
        with self._state.transaction(now, actor, wait="nothing") as tx:
            for token in self.all():
                if token.expires_wall is not None and now.wall > token.expires_wall + KEEP_ENDED_S:
                    self._drop(tx, token)
