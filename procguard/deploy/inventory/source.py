"""Which form an inventory has, and who reads it: YAML, INI, an executable, a folder of these, or a list of hosts.

Knows no variables and no precedence; hands everything to the readers, which fill one Groups.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from procguard.deploy.inventory import ini, script
from procguard.deploy.inventory import yaml as inventory_yaml
from procguard.deploy.inventory.groups import ALL, Groups, Tell
from procguard.errors import InventoryError

# What Ansible passes over in a folder of inventories.
_IGNORED = re.compile(
    r"^\.|^(host_vars|group_vars|vars_plugins)$|(\.(pyc|pyo|swp|bak|rpm|md|txt|rst|orig|cfg|retry)|~)$"
)
_PROGRAMS = (b"#!", b"\x7fELF")


def read(source: str | os.PathLike[str], tell: Tell) -> Groups:
    """Everything that `--hosts` names. Raises InventoryError; smaller mistakes go to `tell`."""
    text = os.fspath(source)
    if "," in text and not os.path.exists(text):
        groups = Groups(Path("."), tell)
        for name in filter(None, (one.strip() for one in text.split(","))):
            groups.add_hosts(ALL, name, {}, "--hosts")
    else:
        groups = Groups(Path(text), tell)
        _read(Path(text), groups)
    groups.finish()
    return groups


def _read(path: Path, groups: Groups) -> None:
    if path.is_dir():
        found = [one for one in sorted(path.iterdir()) if not _IGNORED.search(one.name)]
        if not found:
            raise InventoryError(
                f"{path} holds no inventory", "put one there, e.g. hosts.yaml; see inventory/prod.yaml"
            )
        for one in found:
            _read(one, groups)
        return
    beginning = _beginning(path)
    if os.access(path, os.X_OK) and beginning.startswith(_PROGRAMS):
        script.read(path, groups)
    elif _is_yaml(path, beginning):
        inventory_yaml.read(path, groups)
    else:
        ini.read(path, groups)


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64 * 1024)
    except FileNotFoundError as exc:
        raise InventoryError(f"there is no file {path}", "name an inventory: --hosts inventory/prod.yaml") from exc
    except OSError as exc:
        raise InventoryError(f"{path} can't be read: {exc.strerror}", "is it an inventory?") from exc


def _is_yaml(path: Path, beginning: bytes) -> bool:
    """By the name's ending, else by the first line that says something: `all:`, `---` or `{` is YAML."""
    if path.suffix in (".yaml", ".yml", ".json"):
        return True
    if path.suffix == ".ini":
        return False
    lines = (line.strip() for line in beginning.decode("utf-8", "replace").splitlines())
    first = next((line for line in lines if line and line[0] not in "#;"), "")
    return first.startswith(("---", "{")) or re.match(r"[^\s\[=]+:(\s|$)", first) is not None
