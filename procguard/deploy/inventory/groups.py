"""Groups, hosts and their variables, merged as in Ansible. Knows no file format: the readers fill it.

Owns precedence (low to high): group variables in the inventory (`all`, then parents before children, then
ansible_group_priority, then by name), group_vars/all, group_vars/* in the same order, host variables in the
inventory, host_vars/*. A later value replaces an earlier one; mappings are not merged. Nothing is rendered here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from procguard.deploy.inventory import names, positions
from procguard.deploy.inventory.positions import ReportMistake
from procguard.deploy.inventory.vault import Vault
from procguard.errors import InventoryError
from procguard.json_types import Json

EXTENSIONS = ("", ".yml", ".yaml", ".json")  # extensions of files in group_vars/ and host_vars/
MOST_HOSTS = 100_000  # limit per inventory
ALL, UNGROUPED = "all", "ungrouped"
PRIORITY = "ansible_group_priority"


@dataclass
class Group:
    name: str
    variables: Json = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)  # in the order in which they were named
    children: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    depth: int = 0
    priority: int = 1


class Groups:
    """`report` takes a mistake with its location, `warn` a warning; reading continues, so that all mistakes are
    reported together. `incomplete`: an unreadable part was left out, with a warning."""

    def __init__(self, sources: Sequence[str], report: ReportMistake, warn: ReportMistake, vault: Vault) -> None:
        self.report, self.warn, self.vault = report, warn, vault
        self.incomplete = False
        self.directories = list(dict.fromkeys(directory_of(one) for one in sources))
        self.file: Path | None = None  # the file being read
        self.directory = self.directories[0]  # the directory of the source being read
        self.by_name: dict[str, Group] = {ALL: Group(ALL), UNGROUPED: Group(UNGROUPED)}
        self.host_variables: dict[str, Json] = {}
        self._origins: dict[str, tuple[Path, Path | None]] = {}
        self._members: dict[str, list[str]] = {}
        self._groups_of: dict[str, list[Group]] = {}
        self._files: dict[Path, Any] = {}
        self._paths: dict[tuple[str, str], list[Path]] = {}  # (group_vars or host_vars, name) -> its files
        self._folders: dict[str, list[Path]] = {}  # group_vars or host_vars -> the existing folder
        self._group_positions: dict[tuple[str, str], str] = {}  # (group, variable) -> its location
        self._said: dict[str, list[tuple[Json, str]]] = {}  # host -> variables as read, and their location

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """Context for one of several sources: its mistakes become warnings, and unreadable parts are left out."""
        strict, self.report = self.report, self._leave_out
        try:
            yield
        except InventoryError as exc:
            self._leave_out(exc.message, "", exc.next_step)
        finally:
            self.report = strict

    def _leave_out(self, where: str, what: str, next_step: str) -> None:
        self.incomplete = True
        self.warn(where, f"{what} (left out)" if what else "left out", next_step)

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
            self._group_positions[group, name] = where
        elif str(value).lstrip("-").isdigit():
            self.by_name[group].priority = int(value)
        else:
            self.report(where, f"{PRIORITY} of {group}: {value!r} is not a number", "write e.g. 10")

    def add_hosts(self, group: str, pattern: str, variables: Json, where: str) -> None:
        """`pattern`: a name or a range, with or without `:port`."""
        bare, port = names.split_port(pattern)
        try:
            found = [bare] if names.is_ipv6(bare) else list(names.expand_range(bare))
            for name in found:
                names.check(name)
        except ValueError as exc:
            self.report(where, f"{pattern}: {exc}", "a name, an address, or a range like gpu[01:16] or [a:f]")
            return
        for name in found:
            if name not in self.host_variables:
                self.host_variables[name] = {"ansible_port": port} if port else {}
                self._origins[name] = (self.directory, self.file)
            self.host_variables[name].update(variables)
            if variables:
                self._said.setdefault(name, []).append((variables, where))
            self.add_group(group).hosts[name] = None
        if len(self.host_variables) > MOST_HOSTS:
            raise InventoryError(
                f"{where}: the inventory names more than {MOST_HOSTS} hosts", "correct the ranges, or split it"
            )

    def finish(self) -> None:
        """Resolve parents after everything was read. Raises InventoryError for cyclic groups."""
        for group in self.by_name.values():
            for child in group.children:
                self.by_name[child].parents.append(group.name)
        for group in self.by_name.values():
            if group.name != ALL and not group.parents:
                group.parents.append(ALL)
                self.by_name[ALL].children.append(group.name)
        for group in self.by_name.values():
            group.depth = self._depth(group.name, ())
        named = [group for name, group in self.by_name.items() if name not in (ALL, UNGROUPED)]
        grouped = {host for group in named for host in group.hosts}
        ungrouped = (host for host in self.host_variables if host not in grouped)
        self.by_name[UNGROUPED].hosts = dict.fromkeys(ungrouped)
        self._members = {name: self._hosts_below(name) for name in self.by_name}
        for group in sorted(self.by_name.values(), key=lambda group: (group.depth, group.priority, group.name)):
            for host in self._members[group.name]:
                self._groups_of.setdefault(host, []).append(group)

    def _depth(self, name: str, below: tuple[str, ...]) -> int:
        if name in below:
            circle = " -> ".join((*below, name))
            raise InventoryError(f"groups contain each other: {circle}", "remove one of the children")
        parents = self.by_name[name].parents
        return 1 + max(self._depth(parent, (*below, name)) for parent in parents) if parents else 0

    def _hosts_below(self, name: str) -> list[str]:
        if name == ALL:
            return list(self.host_variables)
        found = dict(self.by_name[name].hosts)
        for child in self.by_name[name].children:
            found.update(dict.fromkeys(self._hosts_below(child)))
        return list(found)

    # ------------------------------------------------------------------------------------------- queries

    def members(self) -> dict[str, list[str]]:
        """Group -> all hosts in it or in its children."""
        return self._members

    def groups_of(self, host: str) -> list[Group]:
        """The groups of a host in the order in which their variables apply."""
        return self._groups_of[host]

    def variables(self, host: str) -> Json:
        """All variables of a host by precedence, templates not rendered."""
        groups = self.groups_of(host)
        merged: Json = {}
        for group in groups:
            merged.update(group.variables)
        for group in groups:
            merged.update(self._variables_in("group_vars", group.name))
        merged.update(self.host_variables[host])
        merged.update(self._variables_in("host_vars", host))
        return merged

    def place_of(self, host: str, variable: str) -> str:
        """File and line of the effective value of a host's variable; "" if unknown."""
        groups = self.groups_of(host)[::-1]
        own = [self._place_in("host_vars", host, variable)]
        own += [_place(variables, where, variable) for variables, where in reversed(self._said.get(host, []))]
        of_groups = [self._place_in("group_vars", group.name, variable) for group in groups]
        of_groups += [self._group_positions.get((group.name, variable), "") for group in groups]
        return next(filter(None, own + of_groups), "")

    def _place_in(self, folder: str, name: str, variable: str) -> str:
        files = [self._files.get(path) for path in self._variable_files(folder, name)]
        found = [data for data in files if isinstance(data, positions.Map) and variable in data]
        return found[-1].where(variable) if found else ""

    def origin(self, host: str) -> tuple[Path, Path]:
        """(the folder of the source that named the host first, the file there)."""
        directory, file = self._origins[host]
        return directory.absolute(), (file or directory).absolute()

    def _variables_in(self, folder: str, name: str) -> Json:
        """The variables of group_vars/<name> or host_vars/<name>: a file, or a folder of files in order."""
        merged: Json = {}
        for path in self._variable_files(folder, name):
            if path not in self._files:
                self._files[path] = self._loaded(path)
            data = self._files[path]
            if isinstance(data, dict):
                merged.update({str(name): value for name, value in data.items()})
            elif data is not None:
                raise InventoryError(f"{path} must hold a mapping of variables", "write name: value")
        return merged

    def _loaded(self, path: Path) -> Any:
        try:
            return positions.load(path, self.vault, self.warn)
        except positions.EncryptedFile as exc:  # not a mistake unless a value is used
            self.warn(str(path), "is encrypted, so its variables are unknown", exc.next_step)
            return None

    def _variable_files(self, folder: str, name: str) -> list[Path]:
        """The variable files of a name; cached, because each host of a group asks for the group's files."""
        found = self._paths.get((folder, name))
        if found is None:
            folders = self._folders.get(folder)
            if folders is None:
                folders = [one for one in (directory / folder for directory in self.directories) if one.is_dir()]
                self._folders[folder] = folders
            found = [path for place in folders for path in _variable_files(place, name)]
            self._paths[folder, name] = found
        return found


def directory_of(source: str) -> Path:
    """The directory that contains group_vars/ and host_vars/ of a source."""
    path = Path(source)
    if is_list(source):
        return Path(".")
    return path if path.is_dir() else path.parent


def is_list(source: str) -> bool:
    """Whether the source is a list of host names (`host1,host2`) instead of a file."""
    return "," in source and not os.path.exists(source)


def _place(variables: Json, where: str, variable: str) -> str:
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
