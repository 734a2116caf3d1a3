"""YAML that remembers where each mapping stood, so that a mistake is told with file and line.

Knows YAML only; raises InventoryError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from procguard.config.loader import UNREADABLE, problem
from procguard.errors import InventoryError


class Map(dict[Any, Any]):
    """A mapping with its place: `where()` for itself, `where(key)` for one of its keys."""

    file = ""
    line = 0
    key_lines: dict[Any, int]

    def where(self, key: Any = None) -> str:
        return f"{self.file}:{self.key_lines.get(key, self.line)}"

    def without(self, key: Any) -> Map:
        """The same in the same place, less one key."""
        result = Map({name: value for name, value in self.items() if name != key})
        result.file, result.line, result.key_lines = self.file, self.line, self.key_lines
        return result


class _InventoryLoader(yaml.SafeLoader):
    file = ""


def _construct_map(loader: _InventoryLoader, node: yaml.MappingNode) -> Any:
    result = Map()
    result.file, result.line, result.key_lines = loader.file, node.start_mark.line + 1, {}
    yield result
    own = {id(key_node) for key_node, _ in node.value}  # not what `<<` brings in: that is there to be overridden
    loader.flatten_mapping(node)
    written: set[Any] = set()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise InventoryError(f"{loader.file}:{line}: a key must be plain text", "quote it if it begins with {{")
        if key in result.key_lines and id(key_node) in own and key in written:
            first = result.key_lines[key]
            raise InventoryError(
                f"{loader.file}:{line}: {key} stands twice (first in line {first})", "remove one of them"
            )
        if id(key_node) in own:
            written.add(key)
        result.key_lines[key] = line
        result[key] = loader.construct_object(value_node, deep=True)


def _refuse_vault(loader: _InventoryLoader, node: yaml.Node) -> Any:
    line = node.start_mark.line + 1
    raise InventoryError(
        f"{loader.file}:{line}: vault-encrypted values can't be read here", "keep secrets out of the inventory"
    )


_InventoryLoader.add_constructor("tag:yaml.org,2002:map", _construct_map)
_InventoryLoader.add_constructor("!vault", _refuse_vault)
_InventoryLoader.add_constructor("!unsafe", lambda loader, node: str(node.value))


def load(path: Path) -> Any:
    """The parsed file. Raises InventoryError: missing, not UTF-8, not YAML (with its line), key given twice."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as exc:
        raise InventoryError(f"there is no file {path}", "name an inventory: --hosts inventory/prod.yaml") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise InventoryError(f"{path} can't be read: {exc}", "is it a YAML file?") from exc
    try:
        loader = _InventoryLoader(text)
        loader.file = str(path)
        return loader.get_single_data()
    except UNREADABLE as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InventoryError(f"{where}: not valid YAML: {problem(exc)}", "correct that line") from exc
