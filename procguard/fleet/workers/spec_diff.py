"""Differences between two specifications of a worker, and a specification as it is shown. Values of env are never
shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from procguard.json_types import Json
from remote_agent.protocol import messages

MAX_VALUE = 200
HIDDEN = ("env",)


def differences(before: messages.WorkerSpec, after: messages.WorkerSpec) -> list[str]:
    """`command: "python a.py" -> "python b.py"`, `restart.max_attempts: 3 -> 5`, `env.TOKEN: changed`; in key order."""
    return list(_walk("", messages.encode(before), messages.encode(after)))


def declared_and_defaults(spec: messages.WorkerSpec) -> tuple[Json, Json, list[str]]:
    """Returns the keys of `spec` that differ from the defaults, the defaults of the others, and the names in its
    env."""
    given, usual = messages.encode(spec), messages.encode(messages.WorkerSpec())
    names = sorted(given.pop("env"))
    if given["container"]:
        given["container"] = {**given["container"], "options": _without_values(given["container"]["options"])}
    declared = {key: value for key, value in given.items() if value != usual.get(key)}
    return declared, {key: usual[key] for key in given if key not in declared}, names


def _without_values(options: list[str]) -> list[str]:
    """Podman's options with the values of environment variables removed."""
    shown, value_follows = [], False
    for option in options:
        name, equals, rest = option.partition("=")
        if value_follows:
            shown.append(f"{name}=…" if equals else option)
        elif name in ("--env", "-e") and equals:
            shown.append(f"{name}={rest.partition('=')[0]}=…")
        elif option.startswith("-e") and not option.startswith("--") and len(option) > 2:
            shown.append(f"{name}=…")
        else:
            shown.append(option)
        value_follows = option in ("--env", "-e")
    return shown


def _walk(path: str, before: Any, after: Any) -> list[str]:
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in sorted({*before, *after}):
            where = f"{path}.{key}" if path else key
            if path in HIDDEN:
                lines += _hidden(where, key, before, after)
            else:
                lines += _walk(where, before.get(key), after.get(key))
        return lines
    return [f"{path}: {_shown(before)} -> {_shown(after)}"]


def _hidden(where: str, key: str, before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    if key not in before:
        return [f"{where}: added"]
    if key not in after:
        return [f"{where}: removed"]
    return [f"{where}: changed"] if before[key] != after[key] else []


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"
