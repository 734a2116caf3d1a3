"""Reads a YAML inventory into Groups, with file and line for each error. Does not know the meaning of variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from procguard.deploy.inventory import positions
from procguard.deploy.inventory.groups import Groups
from procguard.errors import InventoryError

KEYS = ("hosts", "vars", "children")


def read(path: Path, groups: Groups) -> None:
    """Raises InventoryError if nothing can be read; lesser errors are reported to `groups`."""
    data = positions.load(path, groups.vault, groups.warn)
    if not isinstance(data, positions.Map) or not data:
        raise InventoryError(f"{path} contains no inventory", "it begins with `all:`; see inventory/prod.yaml")
    if "plugin" in data:
        raise InventoryError(
            f"{data.where('plugin')}: the settings of an inventory plugin can't be read here",
            f"write what it finds to a file: ansible-inventory -i {path} --list --yaml > inventory/found.yaml",
        )
    for name, body in data.items():
        _take_group(groups, str(name), body, data.where(name))


def _take_group(groups: Groups, name: str, body: Any, where: str) -> None:
    groups.add_group(name)
    if body is None:
        return
    if not isinstance(body, dict):
        groups.report(where, f"group {name} must be a mapping", "with hosts, vars and children")
        return
    for key in body:
        if key not in KEYS:
            groups.report(_where(body, key, where), f"unknown key {key} in group {name}", f"known: {', '.join(KEYS)}")
    variables = body.get("vars") or {}
    if isinstance(variables, dict):
        for variable, value in variables.items():
            groups.set_variable(name, str(variable), value, _where(variables, variable, where))
    else:
        groups.report(_where(body, "vars", where), f"vars of {name} must be a mapping", "write name: value")
    _take_hosts(groups, name, body.get("hosts"), _where(body, "hosts", where))
    _take_children(groups, name, body.get("children"), _where(body, "children", where))


def _take_children(groups: Groups, parent: str, children: Any, where: str) -> None:
    if isinstance(children, str):
        children = {children: None}
    if children is not None and not isinstance(children, dict):
        groups.report(where, f"children of {parent} must be a mapping", "write name: or name: {hosts: …}")
        return
    for child, body in (children or {}).items():
        groups.add_child(parent, str(child))
        _take_group(groups, str(child), body, _where(children, child, where))


def _take_hosts(groups: Groups, group: str, hosts: Any, where: str) -> None:
    if isinstance(hosts, str):
        hosts = {hosts: None}
    if hosts is not None and not isinstance(hosts, dict):
        groups.report(where, f"hosts of {group} must be a mapping", "end each host with a colon")
        return
    for pattern, variables in (hosts or {}).items():
        place = _where(hosts, pattern, where)
        if isinstance(variables, dict) or variables is None:
            groups.add_hosts(group, str(pattern), variables or {}, place)
        else:
            groups.report(place, f"variables of {pattern} must be a mapping", "write name: value")


def _where(mapping: Any, key: Any, otherwise: str) -> str:
    return mapping.where(key) if isinstance(mapping, positions.Map) else otherwise
