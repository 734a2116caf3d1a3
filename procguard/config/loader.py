"""Reads a configuration file so that every error can name its line. Knows YAML, not the meaning of keys."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

import yaml

from procguard.errors import ConfigError

# Exceptions that PyYAML raises for invalid documents. Those other than YAMLError come from impossible dates, numbers
# that are too large, deep nesting, and tags such as `!!int ''`, `!!bool x` and `!!timestamp x`.
UNREADABLE = (yaml.YAMLError, ValueError, OverflowError, RecursionError, LookupError, AttributeError, TypeError)


MAX_DEPTH = 100  # limit on the nesting of brackets and braces


def check_depth(text: str) -> None:
    """Raise RecursionError if `text` is nested more deeply than MAX_DEPTH. PyYAML's own scanner takes seconds for two
    thousand brackets."""
    if text.count("[") + text.count("{") <= MAX_DEPTH or not hasattr(yaml, "CSafeLoader"):
        return
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise RecursionError
    except (yaml.YAMLError, UnicodeError) as exc:
        if "nesting depth" in str(exc):  # libyaml has its own limit, and reads ahead
            raise RecursionError from exc
        # Other errors are left to the loader, which reports them with their line.


class _ConfigLoader(yaml.SafeLoader):
    """A SafeLoader that rejects duplicate keys, of which PyYAML silently uses the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice (first in line {seen[key]})", key_node.start_mark
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


def read(path: str) -> tuple[Any, dict[str, str]]:
    """The file's content (None if empty), and the location of each dotted key: {"web.port": "configs/x.yaml:31"}.

    Raises ConfigError if the file is missing, unreadable or not YAML.
    """
    text = _text(path)
    positions: dict[str, str] = {}
    try:
        check_depth(text)
        loader = _ConfigLoader(text)
        root = loader.get_single_node()
        data = loader.construct_document(root) if root is not None else None
        if root is not None:
            _note_positions(root, "", path, positions)
    except UNREADABLE as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else path
        raise ConfigError(f"{place}: not valid YAML: {problem(exc)}", "correct this line") from exc
    return data, positions


def scalar(text: str) -> Any:
    """Parse one YAML value: "5055" is a number, "false" a boolean. Raises ValueError."""
    try:
        return yaml.safe_load(text)
    except UNREADABLE as exc:
        raise ValueError(problem(exc)) from exc


def shown(value: Any) -> str:
    """A value in YAML, on one line, truncated to about 80 characters."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    text = text.removesuffix("...\n").strip()
    return text if len(text) <= 80 else text[:77] + "…"


def problem(exc: Exception) -> str:
    """A short description of an exception of UNREADABLE."""
    if isinstance(exc, RecursionError):
        return "it is nested too deeply, or contains itself"
    if isinstance(exc, (LookupError, AttributeError, TypeError)):
        return "a value does not fit its tag (!!int, !!bool, …)"
    return str(getattr(exc, "problem", None) or getattr(exc, "reason", None) or str(exc).splitlines()[0])


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError as exc:
        raise ConfigError(
            f"configuration file not found: {os.path.abspath(path)}",
            "give an existing one with --config (invoke init writes one, with comments), or omit --config",
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read configuration file {path}: {reason}", "check its path and rights") from exc


def _note_positions(node: yaml.Node, prefix: str, path: str, positions: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            dotted = f"{prefix}{key_node.value}"
            positions[dotted] = f"{path}:{key_node.start_mark.line + 1}"
            _note_positions(value_node, f"{dotted}.", path, positions)
