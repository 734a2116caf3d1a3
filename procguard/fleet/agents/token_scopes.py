"""Scopes of tokens. procguard/portal/auth/gate.py defines what each scope may do.

Imports nothing: the commands check a scope without loading the fleet's state.
"""

from __future__ import annotations

from typing import Literal

Scope = Literal["operator", "viewer", "enroll", "metrics"]
SCOPES: tuple[Scope, ...] = ("operator", "viewer", "enroll", "metrics")
AGENT_SCOPE = "agent:"  # followed by the agent's id
SCOPES_SHOWN = "operator, viewer, enroll, metrics or agent:ID"


def how_to_replace(scope: str) -> str:
    """The next step, as a message, for the holder of an invalid token of this scope."""
    make = f"create another on the manager's machine: invoke token.create --scope {scope}"
    if scope != "enroll":
        return make
    return f"{make}; or start the launcher without --token and have an operator approve it"
