"""Commands for access control: tokens, agents and their secrets, pending launchers, the audit log."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone

from procguard import hints
from procguard.cli.contexts import connect
from procguard.cli.output.language import chosen
from procguard.cli.program.command import ANSWER, OUTPUT, AnswerOptions, OutputOptions, operator_task
from procguard.console.language import shown
from procguard.console.terminal import say, say_as_is, say_json
from procguard.errors import UsageError
from procguard.fleet.agents.token_scopes import AGENT_SCOPE, SCOPES, SCOPES_SHOWN

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_AGENT_HELP = {"agent": "agent id, as shown by `invoke agents`; for a launcher, its worker id"}
_FINGERPRINT = {"fingerprint": "fingerprint, if several launchers are pending under one id"}

# ---------------------------------------------------------------------------------------------------- agents


@operator_task(
    name="list",
    default=True,
    help={"skew": "only agents whose release differs from the manager's"},
)
def agents_list(skew: bool = False, output: OutputOptions = OUTPUT) -> None:
    """List agents with their releases, and pending launchers. Example: invoke agents --skew

    Agents of other releases keep working; `invoke upgrade` installs the manager's release. To admit a pending launcher:
    invoke approve worker1.
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
    """Approve a pending launcher. Compare its fingerprint first. Example: invoke approve launcher:worker1"""
    connect().decide(_launcher_id(agent), "approve", fingerprint)
    say(f"{_launcher_id(agent)}: approved")


@operator_task(("agent",), help={**_AGENT_HELP, **_FINGERPRINT})
def deny(agent: str, fingerprint: str = "") -> None:
    """Deny a pending launcher. Example: invoke deny launcher:worker1"""
    connect().decide(_launcher_id(agent), "deny", fingerprint)
    say(f"{_launcher_id(agent)}: denied")


@operator_task(("agent",), name="revoke", help={"agent": "agent id, as shown by `invoke agents`"})
def agents_revoke(agent: str) -> None:
    """Revoke an agent's secret, for example after theft. Its workers keep running. Example: invoke agents.revoke gpu01

    A deployment (invoke deploy --limit gpu01) issues a new secret; a launcher creates its own and waits for approval.
    """
    connect().revoke_agent(agent)
    launcher = agent.startswith("launcher:")
    then = f"invoke approve {agent}" if launcher else f"invoke deploy --hosts … --limit {agent}"
    say(hints.commands(f"{agent}: secret revoked; its workers keep running. To issue a new one: {then}"))


@operator_task(
    ("target",),
    name="rotate",
    help={
        "target": "an agent's id or host, a glob like 'gpu*' ('*': all), or conditions: host=gpu01,team=vision",
        "limit": "narrow the target, in the same form: gpu*,!gpu03",
        "timeout": "timeout for connected agents, in seconds (default: 60)",
        "no_wait": "send the request and return at once",
    },
)
def agents_rotate(target: str, limit: str = "", timeout: float = 60.0, answer: AnswerOptions = ANSWER) -> None:
    """Rotate agents' secrets while they run. Example: invoke agents.rotate 'gpu*'

    Each agent creates its new secret; the old one stays valid until the new one has been used. Workers keep running.
    Unreachable agents rotate when they return. If a secret was stolen, use invoke agents.revoke.
    """
    from procguard.cli.rotation import rotate

    rotate(connect(), target, limit, timeout, answer.no_wait, answer.json_)


def _launcher_id(text: str) -> str:
    """The agent id of a launcher, which may be named by its worker id alone."""
    return text if ":" in text else f"launcher:{text}"


AGENTS = (agents_list, approve, deny, agents_revoke, agents_rotate)


# ---------------------------------------------------------------------------------------------------- tokens


@operator_task(name="list", default=True)
def token_list(output: OutputOptions = OUTPUT) -> None:
    """List tokens: id, scope, name, expiry, last use. Secrets are not shown. Example: invoke token"""
    from procguard.cli.output.listing import listed
    from procguard.console import tables

    columns = tables.tokens(datetime.now(timezone.utc), chosen(output.lang))
    listed(connect().tokens(), columns, output, "token_id", empty="no tokens")


@operator_task(
    name="create",
    help={
        "name": "description, e.g. laptop",
        "scope": "operator (full access), viewer (read-only), enroll (start_worker.sh --token), metrics, agent:ID",
        "expires": "lifetime: 30d, 12h (default: no expiry)",
        "uses": "number of launchers that an enroll token admits (default: unlimited)",
    },
)
def token_create(name: str = "", scope: str = "operator", expires: str = "", uses: str = "") -> None:
    """Create a token. It is shown once. Example: invoke token.create --scope viewer --name wall-screen --expires 30d"""
    if scope not in SCOPES and not scope.startswith(AGENT_SCOPE):
        raise UsageError(f"--scope {scope} is not known", f"one of: {SCOPES_SHOWN}")
    if uses and not (uses.isdecimal() and int(uses) > 0):
        raise UsageError(f"--uses {uses} is not a number of launchers", "at least 1; without --uses any number")
    life_s = seconds_of(expires) if expires else None
    admits = int(uses) if uses else None
    answer = connect().create_token(scope, name or os.environ.get("USER", "operator"), life_s, admits)
    say_as_is(answer["token"])
    until = f", until {answer['expires_at']}" if answer.get("expires_at") else ""
    say(f"shown once, {scope}{until}; use it as PROCGUARD_TOKEN or `Authorization: Bearer …`", err=True)


@operator_task(("token_id",), name="revoke", help={"token_id": "token id, as shown by `invoke token`"})
def token_revoke(token_id: str) -> None:
    """Revoke a token. Example: invoke token.revoke t-3f2a"""
    connect().revoke_token(token_id)
    say(f"{token_id}: revoked")


TOKENS = (token_list, token_create, token_revoke)


def seconds_of(text: str, option: str = "--expires") -> float:
    """ "30d" or "12h" in seconds. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smhdw])", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{option} {text}: not a time", "write it like 30d, 12h or 45m")
    return float(match[1]) * _UNITS_S[match[2]]


# ---------------------------------------------------------------------------------------------------- the audit


@operator_task(
    help={
        "actor": "filter by actor, e.g. 'token laptop'",
        "worker": "filter by worker",
        "kind": "filter by kind: change, refused, login, logout",
        "since": "start of the range: 10m, 2h, or an ISO 8601 time",
        "until": "end of the range",
        "text": "filter by text",
        "limit": "number of entries, newest first",
        "json_": "one JSON object per line",
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
    """Show the audit log: changes, logins and refusals, newest last. Example: invoke audit --since 2h"""
    query = {"actor": actor, "worker": worker, "kind": kind, "since": since, "until": until, "q": text}
    for one in connect().audit(**query, limit=limit):
        if json_:
            say_json(one, indent=None)
        else:
            who = f"{one['actor'] or shown('somebody')} {shown('from')} {one['address']}"
            request, separator, message = one["what"].partition(": ")
            say_as_is(f"{one['at']} {one['kind']:7} {one['status']} {who}: {request}{separator}{shown(message)}")
