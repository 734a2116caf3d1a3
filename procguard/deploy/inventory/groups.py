"""Groups, hosts and their variables, merged as Ansible merges them. Knows no file format: the readers fill it.

Owns precedence (low to high): group variables in the inventory (`all`, then parents before children, then
ansible_group_priority, then by name), group_vars/all, group_vars/* in the same order, host variables in the inventory,
host_vars/*. A later value replaces an earlier one; mappings don't merge. Nothing is rendered here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from procguard.deploy.inventory import positions
from procguard.errors import InventoryError
from remote_agent.protocol import messages

MAX_HOSTS = 10_000
EXTENSIONS = ("", ".yml", ".yaml", ".json")  # of files in group_vars/ and host_vars/
ALL, UNGROUPED = "all", "ungrouped"
PRIORITY = "ansible_group_priority"

Tell = Callable[[str, str, str], None]  # where, what, what to do


@dataclass
class Group:
    name: str
    variables: dict[str, Any] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    depth: int = 0
    priority: int = 1


class Groups:
    """`tell` takes a mistake with its place; reading goes on, so that all are reported together."""

    def __init__(self, source: Path, tell: Tell) -> None:
        self.source = source
        self.tell = tell
        self.by_name: dict[str, Group] = {ALL: Group(ALL), UNGROUPED: Group(UNGROUPED)}
        self.host_variables: dict[str, dict[str, Any]] = {}
        self._members: dict[str, list[str]] = {}
        self._groups_of: dict[str, list[Group]] = {}
        self._files: dict[Path, Any] = {}
        self._group_places: dict[tuple[str, str], str] = {}  # (group, variable) -> where it stands
        self._said: dict[str, list[tuple[dict[str, Any], str]]] = {}  # host -> variables as they were read, and where

    # ------------------------------------------------------------------------------------------- filled by readers

    def add_group(self, name: str) -> Group:
        return self.by_name.setdefault(name, Group(name))

    def add_child(self, parent: str, child: str) -> None:
        children = self.add_group(parent).children
        if child not in children:
            children.append(child)
        self.add_group(child)

    def set_variable(self, group: str, name: str, value: Any, where: str) -> None:
        if name != PRIORITY:
            self.by_name[group].variables[name] = value
            self._group_places[group, name] = where
        elif str(value).lstrip("-").isdigit():
            self.by_name[group].priority = int(value)
        else:
            self.tell(where, f"{PRIORITY} of {group}: {value!r} is no number", "write e.g. 10")

    def add_hosts(self, group: str, pattern: str, variables: dict[str, Any], where: str) -> None:
        """`pattern`: a name or a range, with or without `:port`."""
        bare, port = split_port(pattern)
        if re.fullmatch(
            r"\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]|[0-9A-Fa-f.]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*", bare
        ):
            self.tell(where, f"{bare} is an IPv6 address", "use a plain name and set ansible_host to the address")
            return
        try:
            names = list(expand_range(bare))
        except ValueError as exc:
            self.tell(where, f"{pattern}: {exc}", "ranges are written like gpu[01:16] or [a:f]")
            return
        for name in names:
            if not messages.valid_id(name):
                self.tell(where, f"{name!r} can't name a host", "use a plain name and set ansible_host to its address")
                continue
            if name not in self.host_variables:
                self.host_variables[name] = {"ansible_port": port} if port else {}
            self.host_variables[name].update(variables)
            if variables:
                self._said.setdefault(name, []).append((variables, where))
            hosts = self.add_group(group).hosts
            if name not in hosts:
                hosts.append(name)

    def finish(self) -> None:
        """Everything was read: work out who is whose parent. Raises InventoryError for groups in a circle."""
        for group in self.by_name.values():
            for child in group.children:
                self.by_name[child].parents.append(group.name)
        for group in self.by_name.values():
            if group.name != ALL and not group.parents:
                group.parents.append(ALL)
                self.by_name[ALL].children.append(group.name)
        for group in self.by_name.values():
            group.depth = self._depth(group.name, ())
        grouped = {host for name, group in self.by_name.items() if name != ALL for host in group.hosts}
        grouped -= set(self.by_name[UNGROUPED].hosts)
        ungrouped = [host for host in self.host_variables if host not in grouped]
        self.by_name[UNGROUPED].hosts = ungrouped
        self._members = {name: self._hosts_below(name) for name in self.by_name}
        for group in sorted(self.by_name.values(), key=lambda group: (group.depth, group.priority, group.name)):
            for host in self._members[group.name]:
                self._groups_of.setdefault(host, []).append(group)

    def _depth(self, name: str, below: tuple[str, ...]) -> int:
        if name in below:
            circle = " -> ".join((*below, name))
            raise InventoryError(f"{self.source}: groups contain each other: {circle}", "remove one of the children")
        parents = self.by_name[name].parents
        return 1 + max(self._depth(parent, (*below, name)) for parent in parents) if parents else 0

    def _hosts_below(self, name: str) -> list[str]:
        if name == ALL:
            return list(self.host_variables)
        found = dict.fromkeys(self.by_name[name].hosts)
        for child in self.by_name[name].children:
            found.update(dict.fromkeys(self._hosts_below(child)))
        return list(found)

    # ------------------------------------------------------------------------------------------- asked afterwards

    def members(self) -> dict[str, list[str]]:
        """Group -> every host in it or below it."""
        return self._members

    def groups_of(self, host: str) -> list[Group]:
        """The groups of a host in the order in which their variables apply."""
        return self._groups_of[host]

    def variables(self, host: str) -> dict[str, Any]:
        """All variables of a host by precedence, templates as they stand."""
        groups = self.groups_of(host)
        merged: dict[str, Any] = {}
        for group in groups:
            merged.update(group.variables)
        for group in groups:
            merged.update(self._variables_in("group_vars", group.name))
        merged.update(self.host_variables[host])
        merged.update(self._variables_in("host_vars", host))
        return merged

    def place_of(self, host: str, variable: str) -> str:
        """File and line of the value that a host's variable has; "" where it is not known."""
        groups = self.groups_of(host)[::-1]
        own = [self._place_in("host_vars", host, variable)]
        own += [_place(variables, where, variable) for variables, where in reversed(self._said.get(host, []))]
        of_groups = [self._place_in("group_vars", group.name, variable) for group in groups]
        of_groups += [self._group_places.get((group.name, variable), "") for group in groups]
        return next(filter(None, own + of_groups), "")

    def _place_in(self, folder: str, name: str, variable: str) -> str:
        files = [self._files.get(path) for path in _variable_files(self.directory / folder, name)]
        found = [data for data in files if isinstance(data, positions.Map) and variable in data]
        return found[-1].where(variable) if found else ""

    @property
    def directory(self) -> Path:
        """Where group_vars/ and host_vars/ are looked for."""
        return self.source if self.source.is_dir() else self.source.parent

    def _variables_in(self, folder: str, name: str) -> dict[str, Any]:
        """The variables of group_vars/<name> or host_vars/<name>: a file, or a folder of files in order."""
        merged: dict[str, Any] = {}
        for path in _variable_files(self.directory / folder, name):
            if path not in self._files:
                self._files[path] = positions.load(path)
            data = self._files[path]
            if isinstance(data, dict):
                merged.update(data)
            elif data is not None:
                raise InventoryError(f"{path} must hold a mapping of variables", "write name: value")
        return merged


def _place(variables: dict[str, Any], where: str, variable: str) -> str:
    if variable not in variables:
        return ""
    return variables.where(variable) if isinstance(variables, positions.Map) else where


def _variable_files(folder: Path, name: str) -> list[Path]:
    for extension in EXTENSIONS:
        path = folder / (name + extension)
        if path.is_file():
            return [path]
        if not extension and path.is_dir():
            inside = (one for one in path.rglob("*") if one.is_file() and one.suffix in EXTENSIONS)
            return sorted(one for one in inside if not one.name.startswith(".") and not one.name.endswith("~"))
    return []


# ------------------------------------------------------------------------------------------------------- host names


def expand_range(pattern: str) -> Iterator[str]:
    """gpu[01:16].lan -> gpu01.lan …, [a:f], [0:10:2]; several ranges multiply. Raises ValueError."""
    before, bracket, rest = pattern.partition("[")
    if not bracket:
        yield pattern
        return
    inside, closed, after = rest.partition("]")
    bounds = inside.split(":")
    if not closed or len(bounds) not in (2, 3) or not bounds[1]:
        raise ValueError(f"bad range [{inside}]")
    step = int(bounds[2]) if len(bounds) == 3 and bounds[2].isdigit() else 1
    for middle in _sequence(bounds[0] or "0", bounds[1], max(1, step)):
        for end in expand_range(after):
            yield before + middle + end


def _sequence(first: str, last: str, step: int) -> list[str]:
    if first.isdigit() and last.isdigit():
        if len(first) > 1 and first.startswith("0") and len(first) != len(last):
            raise ValueError(f"both ends of [{first}:{last}] need the same number of digits")
        width = len(first) if first.startswith("0") else 0
        numbers = range(int(first), int(last) + 1, step)
        if not 0 < len(numbers) <= MAX_HOSTS:
            raise ValueError(f"[{first}:{last}] names {len(numbers)} hosts")
        return [str(number).zfill(width) for number in numbers]
    letters = string.ascii_letters
    if first in letters and last in letters and letters.index(first) <= letters.index(last):
        return list(letters[letters.index(first) : letters.index(last) + 1 : step])
    raise ValueError(f"bad range [{first}:{last}]")


def split_port(pattern: str) -> tuple[str, int]:
    """host:port, but not the colon of a range."""
    found = re.fullmatch(r"(.+):(\d+)", pattern)
    if found and found[1].count("[") == found[1].count("]"):
        return found[1], int(found[2])
    return pattern, 0
