"""An inventory in Ansible's INI form: fills Groups, with file and line for each mistake.

alone.example.com                       hosts before the first section are in no group
[trainers]
gpu[01:16] ansible_user=ml              a host or a range, then its variables
[trainers:vars]
steps=100                               a value is a Python literal if it parses as one, otherwise text
[gpus:children]
trainers
"""

from __future__ import annotations

import ast
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

from procguard.deploy.inventory import positions
from procguard.deploy.inventory.groups import UNGROUPED, Groups

_SECTION = re.compile(r"\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?")
_GROUP_NAME = re.compile(r"([^:\]\s]+)\s*(?:#.*)?")


def read(path: Path, groups: Groups) -> None:
    """Raises InventoryError if the file cannot be read; errors in it are reported to `groups`."""
    _IniReader(path, groups).read(positions.read_text(path).removeprefix("\ufeff").splitlines())


class _IniReader:
    def __init__(self, path: Path, groups: Groups) -> None:
        self._path = path
        self._groups = groups
        self._line = 0
        self._declared = set(groups.by_name)  # [name] or [name:children]; [name:vars] alone declares nothing
        self._used: list[tuple[str, str, str]] = []  # (group, location, user) of groups that must be declared

    @property
    def _where(self) -> str:
        return f"{self._path}:{self._line}"

    def read(self, lines: list[str]) -> None:
        group, kind = UNGROUPED, "hosts"
        for self._line, raw in enumerate(lines, 1):
            line = raw.strip()
            if not line or line[0] in "#;":
                continue
            section = _SECTION.fullmatch(line)
            if section:
                group, kind = section[1], section[2] or "hosts"
                self._begin(group, kind)
            elif line.startswith("[") and line.endswith("]"):
                self._report(f"{line} is not a section", "write [group], [group:vars] or [group:children]")
            elif kind == "hosts":
                self._host(group, line)
            elif kind == "vars":
                self._variable(group, line)
            elif kind == "children":
                self._child(group, line)
        for name, where, by in self._used:
            if name not in self._declared:
                self._groups.warn(where, f"{by} an undefined group", f"add [{name}] with its hosts")

    def _begin(self, group: str, kind: str) -> None:
        self._groups.add_group(group)
        if kind == "vars":
            self._used.append((group, self._where, f"[{group}:vars] is for"))
        elif kind in ("hosts", "children"):
            self._declared.add(group)
        else:
            self._report(f"[{group}:{kind}] is not a section", "write [group], [group:vars] or [group:children]")

    def _host(self, group: str, line: str) -> None:
        try:
            words = shlex.split(line, comments=True)
        except ValueError as exc:
            self._report(f"{line}: {exc}", "close the quotation")
            return
        if words[0].endswith(":") or words[0] == "---":
            self._report(f"{words[0]} is not a host", "if it is YAML, name the file *.yaml")
            return
        variables = positions.Map()
        variables.file, variables.line, variables.key_lines = str(self._path), self._line, {}
        for word in words[1:]:
            name, equals, value = word.partition("=")
            if not equals:
                self._report(f"{word} is not a variable", "write name=value, in quotes where the value has spaces")
                return
            variables[name], variables.key_lines[name] = _value(value), self._line
        self._groups.add_hosts(group, words[0], variables, self._where)

    def _variable(self, group: str, line: str) -> None:
        name, equals, value = line.partition("=")
        if equals:
            self._groups.set_variable(group, name.strip(), _value(value.strip()), self._where)
        else:
            self._report(f"{line} is not a variable", "write name=value")

    def _child(self, group: str, line: str) -> None:
        found = _GROUP_NAME.fullmatch(line)
        if found is None:
            self._report(f"{line} is not a group name", "write one group on a line")
            return
        self._used.append((found[1], self._where, f"[{group}:children] names {found[1]},"))
        self._groups.add_child(group, found[1])

    def _report(self, what: str, next_step: str) -> None:
        self._groups.report(self._where, what, next_step)


def _value(text: str) -> Any:
    """The value of a variable as in Ansible: a Python literal if it is one, otherwise the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _plain(value: Any) -> Any:
    """The value limited to types of YAML: sets and tuples become lists, bytes become text."""
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, complex):
        return str(value)
    return "..." if value is ... else value
