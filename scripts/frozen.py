"""The frozen interfaces of a release, as sorted lines in tests/golden/frozen/<version>/*.txt.

    invoke freeze       writes the folder of procguard.__version__; fails if that release is already tagged

messages.txt       the fields of every message between agents and the manager
session.txt        what both sides compute for mutual authentication, for fixed values
worker.txt         the keys of a worker in an inventory
configuration.txt  configuration keys, environment variables, names of metrics
commands.txt       commands, their options and arguments, those of manager and launcher
api.txt            routes, who may call them, parameters, and every field of requests and responses

Removing a line is a breaking change. A line that begins with `must` names what a caller must provide; adding such a
line is a breaking change. tests/unit/scripts/test_frozen.py compares.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import worker_schema  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

from procguard import __version__, main, worker_launcher  # noqa: E402
from procguard.cli import app  # noqa: E402
from procguard.cli.program.command import CliCommand  # noqa: E402
from procguard.config import schema  # noqa: E402
from procguard.portal.api.openapi.document import document  # noqa: E402
from remote_agent.protocol import messages, session  # noqa: E402

FOLDER = ROOT / "tests" / "golden" / "frozen"
MUST = "must "


def surface() -> dict[str, list[str]]:
    """The frozen interfaces of this checkout: {file name: sorted lines}."""
    parts = {
        "messages.txt": _messages(),
        "session.txt": _session(),
        "worker.txt": _flat(worker_schema.schema(), {}, "worker", "worker"),
        "configuration.txt": _configuration(),
        "commands.txt": _commands(),
        "api.txt": _api(),
    }
    return {name: sorted(set(lines)) for name, lines in parts.items()}


def differences(frozen: list[str], now: list[str]) -> tuple[list[str], list[str]]:
    """(removed lines, new requirements for existing callers)."""
    before, after = set(frozen), set(now)
    owners = {line.removeprefix(MUST).partition(" | ")[0] for line in frozen}
    gone = [line for line in frozen if line not in after and not line.startswith(MUST)]
    demands = [
        line
        for line in now
        if line.startswith(MUST) and line not in before and line.removeprefix(MUST).partition(" | ")[0] in owners
    ]
    return gone, demands


# ------------------------------------------------------------------------------------------------------- the parts


def _messages() -> Iterator[str]:
    for name, cls in vars(messages).items():
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            yield name
            made = TypeAdapter(cls).json_schema()
            for field, one in made.get("properties", {}).items():
                yield from _flat(one, {}, f"{name} | {field}", name)
            yield from (f"{MUST}{name} | {field}" for field in made.get("required", ()))


def _session() -> Iterator[str]:
    shared = session.handshake("aa" * 32, "f-1", "gpu01", "session.00", "s-1")
    yield f"handshake {shared.hex()}"
    yield f"manager_proof {session.manager_proof(shared, 'http://10.0.0.5:5000', 1000, 'm-1')}"
    yield f"token_mark {session.token_mark('bb' * 32)}"
    yield f"session_key {session.session_key(shared, 'secret').hex()}"
    yield f"seal {session.seal(shared, 'secret')}"
    yield f"seal_in_answer {session.seal_in_answer(shared, 7, 'secret')}"
    for name in ("NONCE_PREFIX", "SCHEME", "OPEN_HEADER", "ANSWER_HEADER", "NO_BODY", "TOKEN_PREFIX", "SEALED"):
        yield f"{name} {getattr(session, name)}"
    yield f"PROTOCOL_VERSION {messages.PROTOCOL_VERSION}"
    yield f"ID_PATTERN {messages.ID_PATTERN}"
    yield f"AGENT_ID_PATTERN {messages.AGENT_ID_PATTERN}"


def _configuration() -> Iterator[str]:
    for key in schema.keys():  # noqa: SIM118 - a function, not a mapping's
        choices = key.kind.split(", ") if ", " in key.kind else []
        yield f"{key.path}" if choices else f"{key.path}: {key.kind}"
        yield from (f"{key.path} = {choice}" for choice in choices)
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    yield from (f"environment {name}" for name in re.findall(r"`(PROCGUARD_[A-Z_]+)`", page))
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    yield from (f"metric {name}" for name in re.findall(r"`(procguard_[a-z_]+)`", page))


def _commands() -> Iterator[str]:
    for name, command in app.commands().items():
        yield from _command(name, command)
    for group in app.GROUPS:
        for part, command in app.group(group).items():
            yield from _command(f"{group} {part}", command)
    yield from _program("manager", main.parser())
    yield from _program("worker", worker_launcher.parser({}))


def _command(path: str, command: CliCommand) -> Iterator[str]:
    yield path
    for place, one in enumerate(command.positionals):
        yield f"{path} | argument {place + 1} {one.name.rstrip('_').upper()}{' …' if one.several else ''}"
        if not one.optional:
            yield f"{MUST}{path} | {one.name.rstrip('_').upper()}"
    for option in command.options:
        kind = {bool: "", list: " VALUE …"}.get(option.kind, " VALUE")
        yield f"{path} | {option.flag}{kind}"
        yield from [f"{path} | -{option.letter} is {option.flag}"] if option.letter else []
        yield from (f"{path} | {option.flag} = {choice}" for choice in option.choices)


def _program(path: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield path
    for action in parser._actions:
        for flag in action.option_strings:
            yield f"{path} | {flag}{'' if action.nargs == 0 else ' VALUE'}"
        if action.required:
            yield f"{MUST}{path} | {action.dest}"


def _api() -> Iterator[str]:
    made = document()
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            owner = f"{method.upper()} {path}"
            yield f"{owner} | by {operation['x-who']}"
            for one in operation.get("parameters", ()):
                yield from _flat(one["schema"], made, f"{owner} | {one['in']} {one['name']}", owner)
                yield from [f"{MUST}{owner} | {one['name']}"] if one.get("required") else []
            for kind, media in operation.get("requestBody", {}).get("content", {}).items():
                yield from _flat(media.get("schema", {}), made, f"{owner} | takes {kind} ", owner)
            for status, answer in operation["responses"].items():
                if status.startswith("2"):
                    for kind, media in answer.get("content", {}).items():
                        where = f"{owner} | {status} {kind} "
                        yield from _flat(media.get("schema", {}), made, where, owner, answered=True)


# --------------------------------------------------------------------------------------------------- JSON schema


def _flat(
    one: dict[str, Any], whole: dict[str, Any], where: str, owner: str, inside: tuple[str, ...] = (),
    answered: bool = False,
) -> Iterator[str]:  # fmt: skip
    """A line for each field, with its type, and a line for each of its literal values."""
    whole = whole or one
    reference = one.get("$ref", "")
    if reference:
        found = _resolved(reference, whole)
        if found is None or reference in inside:
            yield f"{where}: {reference.rpartition('/')[2]}"
            return
        yield from _flat(found, whole, where, owner, (*inside, reference), answered)
        return
    several = one.get("anyOf") or one.get("oneOf")
    if several:
        for choice in several:
            yield from _flat(choice, whole, where, owner, inside, answered)
        return
    words = one.get("enum", [one["const"]] if "const" in one else [])
    if words:
        yield from (f"{where} = {word}" for word in words)
        return
    fields = one.get("properties", {})
    for name, part in fields.items():
        yield from _flat(part, whole, f"{where}.{name}", owner, inside, answered)
    for name in one.get("required", ()):
        yield f"{where}.{name} always" if answered else f"{MUST}{owner} | {where}.{name}"
    if isinstance(one.get("additionalProperties"), dict):
        yield from _flat(one["additionalProperties"], whole, f"{where}.*", owner, inside, answered)
    if isinstance(one.get("items"), dict):
        yield from _flat(one["items"], whole, f"{where}[]", owner, inside, answered)
    elif not fields:
        yield f"{where}: {one.get('type', 'anything')}"


def _resolved(reference: str, whole: dict[str, Any]) -> dict[str, Any] | None:
    found: Any = whole
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found


# ------------------------------------------------------------------------------------------------------ the folder


def write() -> int:
    released = subprocess.run(
        ["git", "tag", "--list", f"v{__version__}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if released.stdout.strip():
        print(f"freeze: v{__version__} is tagged; what it froze stays. Raise procguard.__version__", file=sys.stderr)
        return 1
    folder = FOLDER / __version__
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in surface().items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{folder.relative_to(ROOT)}/{name}: {len(lines)} lines")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(write())
