"""The operator's tasks about who may do what: tokens, agents and their secrets, launchers that wait, the audit.

Registered by app.py, which says what all tasks have in common.
"""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone

from procguard import hints
from procguard.cli.contexts import connect
from procguard.cli.output.language import chosen
from procguard.cli.program.command import ANSWER, OUTPUT, AnswerOptions, OutputOptions, operator_task
from procguard.console.terminal import say, say_json
from procguard.errors import UsageError
from procguard.fleet.agents.token_scopes import AGENT_SCOPE, SCOPES, SCOPES_SHOWN

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_AGENT_HELP = {"agent": "its id, as `invoke agents` shows it; of a launcher its worker's id does"}
_FINGERPRINT = {"fingerprint": "which of several that wait under one id, as both sides show it"}

# ---------------------------------------------------------------------------------------------------- agents


@operator_task(
    name="list",
    default=True,
    help={"skew": "only those of another release than the manager's"},
)
def agents_list(skew: bool = False, output: OutputOptions = OUTPUT) -> None:
    """All agents with their releases, and launchers that wait for approval. Example: invoke agents --skew

    An agent of another release than the manager's works on; `invoke upgrade` brings it the manager's. Who waits is let
    in by invoke approve worker1.
    """
    from procguard.cli.output.listing import listed
    from procguard.console import tables

    answer = connect().agents()
    releases = [str(one) for one in answer.get("releases") or ()]
    views = [{**view, "skew": tables.skew(view, releases)} for view in answer["agents"]]
    if skew:
        views = [view for view in views if view["skew"] == "other"]
    listed(views, tables.agents(datetime.now(timezone.utc), chosen(output.lang)), output, "agent")
    if output.form in ("table", "wide"):
        say(hints.commands(tables.releases(answer["agents"], releases, str(answer.get("version") or ""))))


@operator_task(("agent",), help={**_AGENT_HELP, **_FINGERPRINT})
def approve(agent: str, fingerprint: str = "") -> None:
    """Let a hand-started launcher in; compare its fingerprint first. Example: invoke approve launcher:worker1"""
    connect().decide(_launcher_id(agent), "approve", fingerprint)
    say(f"{_launcher_id(agent)}: approved")


@operator_task(("agent",), help={**_AGENT_HELP, **_FINGERPRINT})
def deny(agent: str, fingerprint: str = "") -> None:
    """Send a hand-started launcher away. Example: invoke deny launcher:worker1"""
    connect().decide(_launcher_id(agent), "deny", fingerprint)
    say(f"{_launcher_id(agent)}: denied")


@operator_task(("agent",), name="revoke", help={"agent": "its id, as `invoke agents` shows it"})
def agents_revoke(agent: str) -> None:
    """End an agent's secret, for one that was stolen; its workers run on. Example: invoke agents.revoke gpu01

    A deployment (invoke deploy --limit gpu01) gives it another one; a launcher makes its own and waits for approval.
    """
    connect().revoke_agent(agent)
    launcher = agent.startswith("launcher:")
    then = f"invoke approve {agent}" if launcher else f"invoke deploy --hosts … --limit {agent}"
    say(hints.commands(f"{agent}: its secret is no longer valid; its workers run on. A new one: {then}"))


@operator_task(
    ("target",),
    name="rotate",
    help={
        "target": "an agent's id or host, a glob like 'gpu*' ('*': all), or conditions: host=gpu01,team=vision",
        "limit": "only these of them, in the same form: gpu*,!gpu03",
        "timeout": "how many seconds to wait for agents that are connected (60)",
        "no_wait": "ask, and return at once",
    },
)
def agents_rotate(target: str, limit: str = "", timeout: float = 60.0, answer: AnswerOptions = ANSWER) -> None:
    """Replace agents' secrets while they run. Example: invoke agents.rotate 'gpu*'

    Each agent makes itself a new secret; the old one is valid until the new one was used. Workers run on. Agents that
    are away do it when they return. A secret that was stolen: invoke agents.revoke.
    """
    from procguard.cli.rotation import rotate

    rotate(connect(), target, limit, timeout, answer.no_wait, answer.json_)


def _launcher_id(text: str) -> str:
    """Launchers may be named by their worker alone."""
    return text if ":" in text else f"launcher:{text}"


AGENTS = (agents_list, approve, deny, agents_revoke, agents_rotate)


# ---------------------------------------------------------------------------------------------------- tokens


@operator_task(name="list", default=True)
def token_list(output: OutputOptions = OUTPUT) -> None:
    """Tokens by id, scope, name, end and last use; never the tokens themselves. Example: invoke token"""
    from procguard.cli.output.listing import listed
    from procguard.console import tables

    listed(connect().tokens(), tables.tokens(datetime.now(timezone.utc)), output, "token_id", empty="no tokens")


@operator_task(
    name="create",
    help={
        "name": "what it is for, e.g. laptop",
        "scope": "operator (may do all), viewer (may look), enroll (start_worker.sh --token), metrics, agent:ID",
        "expires": "when it ends: 30d, 12h (default: never)",
        "uses": "how many launchers an enroll token lets in (default: any number)",
    },
)
def token_create(name: str = "", scope: str = "operator", expires: str = "", uses: int = 0) -> None:
    """Make a token; it is shown once. Example: invoke token.create --scope viewer --name wall-screen --expires 30d"""
    if scope not in SCOPES and not scope.startswith(AGENT_SCOPE):
        raise UsageError(f"--scope {scope} is not known", f"one of: {SCOPES_SHOWN}")
    life_s = seconds_of(expires) if expires else None
    answer = connect().create_token(scope, name or os.environ.get("USER", "operator"), life_s, uses)
    say(answer["token"])
    until = f", until {answer['expires_at']}" if answer.get("expires_at") else ""
    say(f"shown once, {scope}{until}; use it as PROCGUARD_TOKEN or `Authorization: Bearer …`", err=True)


@operator_task(("token_id",), name="revoke", help={"token_id": "as `invoke token` shows it"})
def token_revoke(token_id: str) -> None:
    """End a token. Example: invoke token.revoke t-3f2a"""
    connect().revoke_token(token_id)
    say(f"{token_id}: revoked")


TOKENS = (token_list, token_create, token_revoke)


def seconds_of(text: str) -> float:
    """ "30d" or "12h" in seconds. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smhdw])", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"--expires {text}: not a time", "write it like 30d, 12h or 45m")
    return float(match[1]) * _UNITS_S[match[2]]


# ---------------------------------------------------------------------------------------------------- the audit


@operator_task(
    help={
        "actor": "only what this one did, e.g. 'token laptop'",
        "worker": "only of this worker",
        "kind": "only of this kind: change, refused, login, logout",
        "since": "only since then: 10m, 2h, or an ISO time",
        "until": "only until then",
        "text": "only with these words in it",
        "limit": "how many of the newest",
        "json_": "one JSON object a line",
    }
)
def audit(
    actor: str = "",
    worker: str = "",
    kind: str = "",
    since: str = "",
    until: str = "",
    text: str = "",
    limit: int = 50,
    json_: bool = False,
) -> None:
    """Who changed what, and from where, newest last; also log-ins and refusals. Example: invoke audit --since 2h"""
    query = {"actor": actor, "worker": worker, "kind": kind, "since": since, "until": until, "q": text}
    for one in connect().audit(**query, limit=limit):
        if json_:
            say_json(one, indent=None)
        else:
            who = one["actor"] or "somebody"
            say(f"{one['at']} {one['kind']:7} {one['status']} {who} from {one['address']}: {one['what']}")
