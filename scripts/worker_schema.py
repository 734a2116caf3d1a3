"""Generates docs/worker.schema.json and the key tables of docs/worker.md from the descriptions in
remote_agent/protocol/worker_spec.py.

python scripts/worker_schema.py   writes them; tests/unit/fleet/workers/test_worker_schema.py fails if they are out of
date
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from pydantic import TypeAdapter  # noqa: E402

from remote_agent.protocol import messages  # noqa: E402

SCHEMA_PATH = os.path.join(ROOT, "docs", "worker.schema.json")
PAGE_PATH = os.path.join(ROOT, "docs", "worker.md")
BEGIN = "<!-- the tables are written by scripts/worker_schema.py -->\n"
END = "<!-- end of the tables -->\n"
_TABLES = (
    ("Every key", messages.WorkerSpec, ""),
    ("restart", messages.RestartPolicy, "restart."),
    ("health", messages.HealthCheck, "health."),
    ("limits", messages.Limits, "limits."),
    ("container", messages.ContainerSpec, "container."),
    ("tty", messages.TerminalSpec, "tty."),
    ("pre_start and post_stop", messages.Hook, "pre_start."),
)


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a worker in an inventory, including short forms."""
    made = TypeAdapter(messages.WorkerSpec).json_schema()
    for part in (made, *made["$defs"].values()):
        part["additionalProperties"] = False
        part.pop("title", None)
        for one in part["properties"].values():
            one.pop("title", None)
    _allow_short_forms(made["properties"])
    made["properties"] = {
        "id": {"type": "string", "pattern": messages.ID_PATTERN, "description": "Unique in the whole fleet"},
        "worker_id": {"type": "string", "pattern": messages.ID_PATTERN, "description": "The same as id"},
        **made["properties"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ProcGuard worker",
        **made,
    }


def _allow_short_forms(properties: dict[str, Any]) -> None:
    """Allow the short forms of procguard/deploy/inventory/workers.py: a word for a list of one, numbers for text."""
    for name in ("env", "labels"):
        properties[name]["additionalProperties"] = {"type": ["string", "number", "boolean", "null"]}
    for name, short in (
        ("restart", {"enum": ["always", "on-failure", "never"]}),
        ("health", {"$ref": "#/$defs/HealthCheck"}),
        ("setup", {"type": "string"}),
        ("container", {"type": "string"}),
        ("tty", {"type": "boolean"}),
        ("pre_start", {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Hook"}]}),
        ("post_stop", {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Hook"}]}),
    ):
        whole = properties[name]
        about = {key: whole.pop(key) for key in ("description", "default") if key in whole}
        if name in ("pre_start", "post_stop"):
            whole["items"] = {"anyOf": [{"type": "string"}, whole["items"]]}
        properties[name] = {"anyOf": [whole, short], **about}


def schema_text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def tables() -> str:
    parts = []
    for title, cls, prefix in _TABLES:
        parts.append(f"\n## {title}\n\n| key | value | default | what it does |\n|---|---|---|---|\n")
        for item in dataclasses.fields(cls):
            about = item.metadata["description"].replace("|", "\\|")
            parts.append(f"| `{prefix}{item.name}` | {_kind(item.type)} | {_default(cls, item)} | {about} |\n")
    return "".join(parts) + "\n"


def _kind(annotation: Any) -> str:
    text = str(annotation).replace("Union[", "").replace("Literal[", "").replace(", None]", "").rstrip("]")
    words = {
        "str, list[str": "text or list", "list[str": "list of text", "str": "text", "int": "number", "float": "number",
        "bool": "true, false", "dict[str, str": "mapping", "int, str": "number or text",
        "list[float": "list of numbers",
        "list[int": "list of numbers", "list[HealthCheck": "list, see below", "list[Hook": "list, see below",
        "RestartPolicy": "mapping, see below", "Limits": "mapping, see below", "ContainerSpec": "mapping, see below",
        "TerminalSpec": "true, or a mapping, see below",
    }  # fmt: skip
    return words.get(text) or ", ".join(f"`{word.strip()}`" for word in text.replace("'", "").split(","))


def _default(cls: type[Any], item: dataclasses.Field[Any]) -> str:
    value = getattr(cls(), item.name)
    if value is None or value in ("", [], {}) or dataclasses.is_dataclass(value):
        return ""
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def with_tables(text: str) -> str:
    head, rest = text.split(BEGIN)
    return head + BEGIN + tables() + END + rest.split(END)[1]


def main() -> None:
    with open(SCHEMA_PATH, "w", encoding="utf-8") as file:
        file.write(schema_text())
    with open(PAGE_PATH, encoding="utf-8") as file:
        page = file.read()
    with open(PAGE_PATH, "w", encoding="utf-8") as file:
        file.write(with_tables(page))


if __name__ == "__main__":
    main()
