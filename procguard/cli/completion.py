"""Completion for bash, zsh and fish: commands, options, and ids of workers, hosts and groups from the manager.

The shell scripts only call `procguard __complete WORDS…`; all completions are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

from procguard.cli.program.command import CliCommand, operator_task
from procguard.console.terminal import say
from procguard.errors import ProcGuardError, UsageError

MOST = 1000
_WORKERS = frozenset({"target", "worker", "workers", "selector"})
_HOSTS = frozenset({"host", "pattern"})

_SCRIPTS = {
    "bash": """\
_procguard() {
    local words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    mapfile -t COMPREPLY < <(procguard __complete "${words[@]}" 2>/dev/null)
    [ "${#COMPREPLY[@]}" -gt 0 ] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _procguard procguard
""",
    "zsh": """\
#compdef procguard
_procguard() {
    local -a found
    found=("${(@f)$(procguard __complete "${words[@]:1:$((CURRENT-1))}" 2>/dev/null)}")
    if [ -n "${found[*]}" ]; then compadd -- "${found[@]}"; else _files; fi
}
compdef _procguard procguard
""",
    "fish": """\
complete -c procguard -f -a '(procguard __complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}


@operator_task(("shell",), help={"shell": "bash, zsh or fish"})
def completion(shell: str) -> None:
    """Print the completion script of a shell. Example: source <(invoke completion bash)

    For zsh: source <(procguard completion zsh), after compinit. For fish: procguard completion fish | source
    """
    if shell not in _SCRIPTS:
        raise UsageError(f"no completion for {shell!r}", f"one of: {', '.join(_SCRIPTS)}")
    say_script(_SCRIPTS[shell])


def say_script(text: str) -> None:
    import sys

    sys.stdout.write(text)


def complete(
    words: Sequence[str], commands: dict[str, CliCommand], groups: dict[str, dict[str, CliCommand]]
) -> list[str]:
    """The completions of the last of `words`, sorted, at most MOST. `commands`: by name. `groups`: commands by group
    and name."""
    *before, last = list(words) or [""]
    path = before[:1]
    if not before:
        return _starting([*commands, *groups], last)
    if before[0] in groups:
        parts = groups[before[0]]
        if len(before) == 1 and not last.startswith("-"):
            return _starting(parts, last)
        command = parts.get(before[1]) if len(before) > 1 else None
        path = before[:2]
    else:
        command = commands.get(before[0])
    if command is None:
        return []
    if last.startswith("-"):
        return _starting([*(one.flag for one in command.options), "--help"], last)
    given = before[len(path) :]
    flag = given[-1] if given else ""
    option = next((one for one in command.options if flag in (one.flag, f"-{one.letter}")), None)
    if option is not None and option.kind is not bool:
        if option.choices:
            return _starting(option.choices, last)
        return _ids("select", last) if option.name == "select" else []
    position = sum(not word.startswith("-") for word in given)
    names = [one.name for one in command.positionals]
    several = bool(command.positionals) and command.positionals[-1].several
    if not names or (position >= len(names) and not several):
        return []
    return _ids(names[min(position, len(names) - 1)], last)


def _ids(kind: str, last: str) -> list[str]:
    """The ids of this kind that the manager knows and that complete `last`; empty if it cannot be reached."""
    from procguard.cli.contexts import connect

    head, separator, _ = last.rpartition("group=")
    try:
        if separator:
            groups = {str(view["group"]) for view in connect().groups()}
            return _starting([f"{head}group={name}" for name in groups if name], last)
        if kind in _WORKERS or kind == "select":
            return _starting([str(view["worker_id"]) for view in connect().workers()], last)
        if kind in _HOSTS:
            return _starting([str(view["host"]) for view in connect().hosts()["hosts"]], last)
        if kind == "shell":
            return _starting(_SCRIPTS, last)
    except ProcGuardError:
        return []
    return []


def _starting(names: object, last: str) -> list[str]:
    found = [name for name in names if name.startswith(last)]  # type: ignore[attr-defined]
    return sorted(set(found))[:MOST]


__all__ = ["complete", "completion", "say"]
