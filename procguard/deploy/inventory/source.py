"""Detects the format of an inventory: YAML, INI, an executable, a folder of these, or a list of hosts.

Knows no variables and no precedence; passes everything to the readers, which fill one Groups.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from procguard.deploy.inventory import ini, positions, script
from procguard.deploy.inventory import yaml as inventory_yaml
from procguard.deploy.inventory.groups import ALL, Groups, directory_of, is_list
from procguard.deploy.inventory.positions import ReportMistake
from procguard.deploy.inventory.vault import Vault
from procguard.errors import InventoryError

# Files that Ansible ignores in a folder of inventories.
_IGNORED = re.compile(
    r"^\.|^(host_vars|group_vars|vars_plugins)$|(\.(pyc|pyo|swp|bak|rpm|md|txt|rst|orig|cfg|retry)|~)$"
)
_PROGRAMS = (b"#!", b"\x7fELF")


def read(sources: Sequence[str], report: ReportMistake, warn: ReportMistake, vault: Vault) -> Groups:
    """Read everything that `--hosts` names; later sources take precedence. Raises InventoryError; lesser mistakes are
    passed to `report`. If there are several files, an unreadable one is left out, with a warning."""
    left_out: list[tuple[str, str, str]] = []

    def noted(*one: str) -> None:
        left_out.append(one)  # type: ignore[arg-type]
        warn(*one)

    groups = Groups(sources, report, noted, vault)
    for source in sources:
        groups.directory = directory_of(source)
        if is_list(source):
            groups.file = None
            for name in filter(None, (one.strip() for one in source.split(","))):
                groups.add_hosts(ALL, name, {}, "--hosts")
        else:
            _read(Path(source), groups, forgiving=len(sources) > 1)
    if groups.incomplete and not groups.host_variables:
        for where, what, next_step in left_out:
            report(where, what, next_step)
    groups.finish()
    return groups


def _read(path: Path, groups: Groups, forgiving: bool) -> None:
    if path.is_dir():
        found = [one for one in sorted(path.iterdir()) if not _IGNORED.search(one.name)]
        if not found:
            raise InventoryError(
                f"{path} contains no inventory", "put one there, e.g. hosts.yaml; see inventory/prod.yaml"
            )
        for one in found:
            _read(one, groups, forgiving=True)
        return
    groups.file = path
    if not forgiving:
        _read_file(path, groups)
        return
    with groups.forgiving():
        _read_file(path, groups)


def _read_file(path: Path, groups: Groups) -> None:
    beginning = _beginning(path)
    if os.access(path, os.X_OK) and beginning.startswith(_PROGRAMS):
        script.read(path, groups)
    elif _is_yaml(path, beginning):
        _read_yaml(path, groups)
    else:
        ini.read(path, groups)


def _read_yaml(path: Path, groups: Groups) -> None:
    """Read a YAML file. As in Ansible, a file named .yml that contains INI is read as INI."""
    try:
        inventory_yaml.read(path, groups)
    except positions.EncryptedFile:
        raise
    except InventoryError:
        mistakes: list[str] = []
        trial = Groups([str(path)], lambda *one: mistakes.append(one[1]), lambda *_: None, groups.vault)
        ini.read(path, trial)
        if mistakes or not trial.host_variables:
            raise
        ini.read(path, groups)


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64 * 1024)
    except FileNotFoundError as exc:
        raise InventoryError(f"there is no file {path}", "pass an inventory: --hosts inventory/prod.yaml") from exc
    except OSError as exc:
        raise InventoryError(f"{path} can't be read: {exc.strerror}", "check that it is an inventory") from exc


def _is_yaml(path: Path, beginning: bytes) -> bool:
    """Whether the file is YAML, by its extension, otherwise by its first significant line (`all:`, `---` or `{`)."""
    if path.suffix in (".yaml", ".yml", ".json"):
        return True
    if path.suffix == ".ini":
        return False
    lines = (line.strip() for line in beginning.decode("utf-8", "replace").splitlines())
    first = next((line for line in lines if line and line[0] not in "#;"), "")
    return first.startswith(("---", "{")) or re.match(r"[^\s\[=]+:(\s|$)", first) is not None
