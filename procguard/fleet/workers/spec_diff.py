"""Differences between two specifications of a worker, as readable lines. Values of env are never shown."""

from __future__ import annotations

import json
from typing import Any

from remote_agent.protocol import messages

MAX_VALUE = 200
HIDDEN = ("env",)


def differences(before: messages.WorkerSpec, after: messages.WorkerSpec) -> list[str]:
    """`command: "python a.py" -> "python b.py"`, `restart.max_attempts: 3 -> 5`, `env.TOKEN: changed`; in key order."""
    return list(_walk("", messages.encode(before), messages.encode(after)))


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


def _hidden(where: str, key: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    if key not in before:
        return [f"{where}: added"]
    if key not in after:
        return [f"{where}: removed"]
    return [f"{where}: changed"] if before[key] != after[key] else []


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"
