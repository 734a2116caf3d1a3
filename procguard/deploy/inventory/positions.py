"""YAML with the position of each mapping, so that an error can name its file and line.

Knows YAML only; raises InventoryError.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from procguard.config.loader import UNREADABLE, check_depth, problem
from procguard.deploy.inventory.vault import MARK, VARIABLE, Encrypted, Vault, VaultMistake
from procguard.errors import InventoryError

ReportMistake = Callable[[str, str, str], None]  # (location, mistake, next step)


class Map(dict[Any, Any]):
    """A mapping with its position: `where()` of itself, `where(key)` of a key, as FILE:LINE."""

    file = ""
    line = 0
    key_lines: dict[Any, int]

    def where(self, key: Any = None) -> str:
        return f"{self.file}:{self.key_lines.get(key, self.line)}"

    def without(self, key: Any) -> Map:
        """A copy at the same position without one key."""
        result = Map({name: value for name, value in self.items() if name != key})
        result.file, result.line, result.key_lines = self.file, self.line, self.key_lines
        return result


class Unsafe(str):
    """Text of `!unsafe`, which is never rendered as a template."""

    __slots__ = ()


class EncryptedFile(InventoryError):
    """The whole file is encrypted and no password was given."""


class _InventoryLoader(yaml.SafeLoader):
    file = ""
    vault: Vault
    warn: ReportMistake


def _construct_map(loader: _InventoryLoader, node: yaml.MappingNode) -> Any:
    result = Map()
    result.file, result.line, result.key_lines = loader.file, node.start_mark.line + 1, {}
    yield result
    own = {id(key_node) for key_node, _ in node.value}  # without keys merged by `<<`, which may be overridden
    loader.flatten_mapping(node)
    written: set[Any] = set()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise InventoryError(f"{loader.file}:{line}: a key must be plain text", "quote it if it begins with {{")
        if key in result.key_lines and id(key_node) in own and key in written:
            first = result.key_lines[key]
            loader.warn(
                f"{loader.file}:{line}",
                f"{key} occurs twice (first in line {first})",
                "the last one counts; remove one",
            )
        if id(key_node) in own:
            written.add(key)
        result.key_lines[key] = line
        result[key] = loader.construct_object(value_node, deep=True)


def _encrypted(loader: _InventoryLoader, node: yaml.Node) -> Encrypted:
    return Encrypted(str(node.value), loader.vault, f"{loader.file}:{node.start_mark.line + 1}")


_InventoryLoader.add_constructor("tag:yaml.org,2002:map", _construct_map)
_InventoryLoader.add_constructor("!vault", _encrypted)
_InventoryLoader.add_constructor("!vault-encrypted", _encrypted)
_InventoryLoader.add_constructor("!unsafe", lambda loader, node: Unsafe(node.value))


class _SecretLoader(_InventoryLoader):
    """The loader for encrypted files: every text in them is a secret."""


def _secret(loader: _SecretLoader, node: yaml.ScalarNode) -> Encrypted:
    return Encrypted(str(node.value), loader.vault, f"{loader.file}:{node.start_mark.line + 1}", plain=True)


def _secret_map(loader: _SecretLoader, node: yaml.MappingNode) -> Any:
    for key_node, _ in node.value:  # keys are not secret
        if key_node.tag == "tag:yaml.org,2002:str":
            key_node.tag = "tag:procguard,name"
    yield from _construct_map(loader, node)


_SecretLoader.add_constructor("tag:yaml.org,2002:str", _secret)
_SecretLoader.add_constructor("tag:yaml.org,2002:map", _secret_map)
_SecretLoader.add_constructor("tag:procguard,name", lambda loader, node: str(node.value))


def load(path: Path, vault: Vault, warn: ReportMistake) -> Any:
    """The parsed file; duplicate keys are passed to `warn`. Raises InventoryError if the file is missing, is not UTF-8
    or YAML (with the line), or is encrypted with another password; EncryptedFile if there is no password."""
    text, kind = read_text(path), _InventoryLoader
    if text.startswith(MARK):
        if not vault.opens:
            raise EncryptedFile(f"{path} is encrypted", f"give its password: --vault-password-file FILE, or {VARIABLE}")
        try:
            text, kind = vault.decrypt(text), _SecretLoader
        except VaultMistake as exc:
            raise InventoryError(f"{path}: {exc}", "check --vault-password-file") from exc
    try:
        check_depth(text)
        loader = kind(text.removeprefix("\ufeff"))
        loader.file, loader.vault, loader.warn = str(path), vault, warn
        return loader.get_single_data()
    except UNREADABLE as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InventoryError(f"{where}: not valid YAML: {problem(exc)}", "correct that line") from exc


def read_text(path: Path) -> str:
    """The file's content. Raises InventoryError if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as exc:
        raise InventoryError(f"there is no file {path}", "pass an inventory: --hosts inventory/prod.yaml") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise InventoryError(f"{path} can't be read: {exc}", "check that it is an inventory in UTF-8") from exc
