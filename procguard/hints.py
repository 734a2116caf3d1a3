"""Rewrites commands in messages to the form of this installation.

Messages name commands in one of two forms: `invoke agents.rotate`, `./start_manager.sh` in a checkout, or `procguard
agents rotate`, `procguard manager` when installed. `commands` converts both to the form of this installation,
wherever a message is shown: command line, API errors, portal. Messages of a manager that is installed differently are
converted too. Knows the names of commands, nothing else.
"""

from __future__ import annotations

import os
import re

from procguard import resources

# The operator's commands; tests/unit/test_hints.py compares them with the command line's own.
COMMANDS = (
    *("agents", "approve", "audit", "completion", "context", "cordon", "demo", "deny", "deploy", "describe", "doctor"),
    *("events", "explain", "fetch", "forget", "groups", "hosts", "init", "kill", "logs", "manager", "managers"),
    *(
        "move",
        "notify",
        "operations",
        "playbooks",
        "ps",
        "restart",
        "rollback",
        "search",
        "start",
        "state",
        "status",
        "stop",
        "token",
    ),
    *("top", "trust", "uncordon", "undeploy", "upgrade", "validate", "version", "wait", "worker"),
)
GROUPS = {
    "agents": ("approve", "deny", "list", "revoke", "rotate"),
    "context": ("add", "list", "remove", "use"),
    "managers": ("list", "promote"),
    "notify": ("ack", "firing", "list", "mute", "mutes", "test", "unmute"),
    "operations": ("cancel", "list", "retry", "show"),
    "state": ("backup", "export", "import", "migrate", "rebuild", "reindex", "show"),
    "token": ("create", "list", "revoke"),
}

_IN_GROUPS = "|".join(rf"{name}[. ](?:{'|'.join(parts)})" for name, parts in GROUPS.items())
_COMMAND = re.compile(
    rf"(?<![A-Za-z0-9_/.-])(?:\.venv/bin/)?(invoke|procguard) ({_IN_GROUPS}|{'|'.join(COMMANDS)})(?![A-Za-z0-9_=-])"
)
_SCRIPT = re.compile(r"(?<![A-Za-z0-9_/-])(?:\./)?start_(manager|worker)\.sh\b")
_DOCUMENT = re.compile(r"(?<![A-Za-z0-9_/])docs/([a-z]+(?:/\d+-[a-z-]+)?\.md)")


def commands(text: str) -> str:
    """`text` with its commands in the form of this installation. Adds no path of this machine, so that the result may
    be read elsewhere."""
    if not resources.is_installed():
        return _COMMAND.sub(_in_checkout, text)
    text = _COMMAND.sub(lambda found: f"procguard {found[2].replace('.', ' ')}", text)
    return _SCRIPT.sub(r"procguard \1", text)


def local(text: str) -> str:
    """The same for a reader on this machine: documents are named by their paths here."""
    text = commands(text)
    return _DOCUMENT.sub(_installed_document, text) if resources.is_installed() else text


def program(command: str) -> str:
    """The line that runs `command` in this installation: `invoke ps` or `procguard ps`."""
    return commands(f"procguard {command}")


def form() -> str:
    """ "invoke" or "procguard", for the portal's pages, which do the same as `commands`."""
    return "procguard" if resources.is_installed() else "invoke"


def _in_checkout(found: re.Match[str]) -> str:
    if found[1] == "procguard" and found[2] in ("manager", "worker"):
        return f"./start_{found[2]}.sh"
    return f"invoke {found[2].replace(' ', '.')}"


def _installed_document(found: re.Match[str]) -> str:
    path = resources.path("docs", found[1])
    return path if os.path.exists(path) else found[0]
