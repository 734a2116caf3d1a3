"""The operator's command line: `procguard X`, or `invoke X` in a checkout.

Finds the command, parses its arguments and runs it. The module of a command is imported on use. Exit codes: 0
success, 1 usage error, 2 some hosts or workers failed, 3 the manager is unreachable.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from procguard import __version__, hints
from procguard.cli.program import parser, process
from procguard.cli.program.command import CliCommand
from procguard.console import language
from procguard.console.terminal import say, say_as_is
from procguard.errors import UsageError

# Topic -> module of procguard.cli -> its commands, in the order of the overview.
TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "Getting started": {
        "here": ("demo", "manager", "worker"),
        "setup": ("init", "validate"),
    },
    "Hosts": {
        "deploy": ("deploy", "upgrade", "rollback", "undeploy", "trust", "doctor", "fetch"),
        "here": ("playbooks",),
        "workers": ("hosts",),
        "scheduling": ("cordon", "uncordon"),
    },
    "Workers": {
        "workers": ("ps", "top", "describe", "groups", "wait"),
        "operations": ("start", "stop", "restart", "kill"),
        "scheduling": ("move",),
        "forget": ("forget",),
    },
    "Logs and events": {
        "logs": ("logs",),
        "history": ("search", "events", "explain"),
        "access": ("audit",),
    },
    "Launchers": {"access": ("approve", "deny")},
    "Command line": {"completion": ("completion",), "here": ("version",)},
}
# Group -> (module, name of its tuple of commands, description).
GROUPS = {
    "agents": ("access", "AGENTS", "agents and launchers, their releases and secrets"),
    "context": ("contexts", "CONTEXT", "the manager that commands use"),
    "managers": ("managers", "MANAGERS", "several managers on one database: list, promote"),
    "notify": ("history", "NOTIFY", "notification targets"),
    "operations": ("operations", "OPERATIONS", "batch operations: list, show, cancel, retry"),
    "state": ("state", "STATE", "the manager's state: show, backup, export, import, migrate, rebuild, reindex"),
    "token": ("access", "TOKENS", "tokens: create, list, revoke"),
}
ALIASES = {"status": "ps"}
_MODULE = {name: module for topic in TOPICS.values() for module, names in topic.items() for name in names}
BEFORE_THE_COMMAND = {"--context": "PROCGUARD_CONTEXT", "--lang": language.VARIABLE}
LAUNCHER = "worker"  # its arguments are passed to the launcher, which has its own parser


class Found(NamedTuple):
    command: CliCommand
    path: str
    words: list[str]


def command(name: str) -> CliCommand:
    """The command with this name or alias. Raises KeyError."""
    name = ALIASES.get(name, name)
    found: CliCommand = getattr(importlib.import_module(f"procguard.cli.{_MODULE[name]}"), name)
    return found


def group(name: str) -> dict[str, CliCommand]:
    """The commands of a group, by name. Raises KeyError."""
    module, attribute, _ = GROUPS[name]
    return {one.name: one for one in getattr(importlib.import_module(f"procguard.cli.{module}"), attribute)}


def commands() -> dict[str, CliCommand]:
    """All commands by name and alias, except those of groups and the launcher."""
    return {name: command(name) for name in (*_MODULE, *ALIASES) if name != LAUNCHER}


def is_ours(word: str) -> bool:
    return word in _MODULE or word in ALIASES or word in GROUPS or word.partition(".")[0] in GROUPS


def find(words: Sequence[str]) -> Found:
    """The command that `words` begins with, its path ("token create") and the remaining words. Raises UsageError."""
    name, rest = words[0], list(words[1:])
    head, dot, part = name.partition(".")
    if head in GROUPS:
        parts = group(head)
        if not dot and rest and rest[0] in parts:
            part = rest.pop(0)
        elif not dot and rest and not rest[0].startswith("-"):
            if head != "operations":
                near = parser.did_you_mean(rest[0], parts)
                raise UsageError(f"{head}: unknown command {rest[0]}{near}", f"it has: {', '.join(parts)}")
            part = "show"  # `operations o-7f3a91bc`
        if part and part not in parts:
            raise UsageError(
                f"{head}: unknown command {part}{parser.did_you_mean(part, parts)}", f"it has: {', '.join(parts)}"
            )
        chosen = parts[part] if part else next(one for one in parts.values() if one.is_default)
        return Found(chosen, f"{head} {chosen.name}" if part else head, rest)
    if dot or not is_ours(name):
        known = [*_MODULE, *ALIASES, *GROUPS]
        raise UsageError(
            f"unknown command {name}{parser.did_you_mean(name, known)}", f"all commands: {hints.form()} --help"
        )
    return Found(command(name), name, rest)


def run(words: Sequence[str]) -> None:
    """Run a command line, given without the program's name. Raises ProcGuardError."""
    words = list(words)
    while words and words[0] in BEFORE_THE_COMMAND:
        if len(words) < 2:
            next_step = "invoke context shows the names" if words[0] == "--context" else "one of: en, zh"
            raise UsageError(f"{words[0]}: a name is missing", next_step)
        os.environ[BEFORE_THE_COMMAND[words[0]]] = words[1] if words[0] == "--context" else language.checked(words[1])
        del words[:2]
    if not words or words[0] in ("-h", "--help") or words == ["help"]:
        if len(words) < 2:
            print_overview()
            return
        words = [*words[1:], "--help"]
    if words[0] == "help":
        words = [*words[1:], "--help"]
    if words[0] in ("-V", "--version"):
        say(f"ProcGuard {__version__}")
        return
    if words[0] == "__complete":
        from procguard.cli import completion

        for one in completion.complete(words[1:], commands(), {name: group(name) for name in GROUPS}):
            say_as_is(one)
        return
    if words[0] == LAUNCHER:
        from procguard.cli import here

        here.worker(words[1:])
    words = _with_language(words)
    found = find(words)
    if any(word in ("-h", "--help") for word in found.words):
        for line in parser.help_text(found.command, found.path).split("\n"):
            say_as_is(line)
        return
    found.command.run(parser.parse(found.command, found.path, found.words))


def _with_language(words: list[str]) -> list[str]:
    """`words` without `--lang LANGUAGE`, which every command accepts. The language is set in the environment, so that
    it also applies to errors and help. Raises UsageError."""
    kept = []
    following = iter(words)
    for word in following:
        name, equals, value = word.partition("=")
        if name != "--lang":
            kept.append(word)
            continue
        value = value if equals else next(following, "")
        if not value:
            raise UsageError("--lang: a name is missing", "one of: en, zh")
        os.environ[language.VARIABLE] = language.checked(value)
    return kept


def print_overview() -> None:
    """Print every command by topic, with the first sentence of its help."""
    say(f"usage: {hints.form()} COMMAND [options]        {hints.form()} COMMAND -h: help for a command")
    say("From a list of SSH hosts to a supervised, self-healing fleet of long-running jobs.")
    wide = parser.width()
    for topic, modules in TOPICS.items():
        say()
        say(topic)
        for name in (name for names in modules.values() for name in names):
            about = "Run one worker on this machine" if name == LAUNCHER else command(name).summary
            _row(name, about, wide)
    say()
    say("Groups of commands")
    for name, (_, _, about) in GROUPS.items():
        _row(name, about, wide)
    say()
    say("PROCGUARD_MANAGER_URL or `--context NAME` names the manager (default: the one on this machine).")


def _row(name: str, about: str, wide: int) -> None:
    from procguard.console.grid import shortened

    about = language.shown(f"{about}.").rstrip(".。") if name in _MODULE and name != LAUNCHER else language.shown(about)
    say_as_is(shortened(f"  {name:<12}{about}", wide))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `procguard` program. `argv`: with the program's name; default: sys.argv."""
    if argv is None:
        process.begin()
    words = (sys.argv if argv is None else argv)[1:]
    code = process.guarded(lambda: run(words))
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
