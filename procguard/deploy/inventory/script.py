"""Dynamic inventories: an executable that answers `--list` (and, without _meta, `--host NAME`) in JSON.

Runs only the file that the operator named as the inventory, as Ansible does. Fills Groups.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from procguard.deploy.inventory.groups import Groups
from procguard.errors import InventoryError
from procguard.json_types import Json

TIMEOUT_S = 120.0
MAX_BYTES = 64 * 1024 * 1024


def read(path: Path, groups: Groups) -> None:
    """Raises InventoryError if it cannot be started, fails, takes too long, or returns an invalid inventory."""
    answer = _run(path, "--list")
    meta = answer.pop("_meta", None)
    for name, body in answer.items():
        _take_group(groups, str(name), body, path)
    for host, values in (meta.get("hostvars") or {}).items() if isinstance(meta, dict) else ():
        if isinstance(values, dict):  # variables of a host without a group are ignored
            groups.host_variables.get(str(host), {}).update(values)
    if meta is None:
        for host, variables in groups.host_variables.items():
            variables.update(_run(path, "--host", host))


def _take_group(groups: Groups, name: str, body: Any, path: Path) -> None:
    groups.add_group(name)
    if isinstance(body, list):
        body = {"hosts": body}
    if not isinstance(body, dict):
        groups.report(str(path), f"group {name} is neither a mapping nor a list of hosts", "fix the script")
        return
    if not any(key in body for key in ("hosts", "vars", "children")):
        body = {"hosts": [name], "vars": body}  # a host in place of a group
    for host in _list(groups, body, "hosts", name, path):
        groups.add_hosts(name, str(host), {}, str(path))
    for child in _list(groups, body, "children", name, path):
        groups.add_child(name, str(child))
    variables = body.get("vars") or {}
    if isinstance(variables, dict):
        for variable, value in variables.items():
            groups.set_variable(name, variable, value, str(path))
    else:
        groups.report(str(path), f"vars of {name} must be a mapping", "fix the script")


def _list(groups: Groups, body: Json, key: str, name: str, path: Path) -> list[Any]:
    found = body.get(key) or []
    if isinstance(found, list):
        return found
    groups.report(str(path), f"{key} of {name} must be a list", "fix the script")
    return []


def _run(path: Path, *arguments: str) -> Json:
    what = " ".join((str(path), *arguments))
    try:
        done = subprocess.run(
            [str(path.absolute()), *arguments], capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise InventoryError(f"{what} did not end within {TIMEOUT_S:g} s", "run it by hand") from exc
    except OSError as exc:
        raise InventoryError(f"{what}: cannot be started ({exc.strerror})", "check its first line") from exc
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise InventoryError(
            f"{what} failed with exit code {done.returncode}" + (f": {words[-1][:300]}" if words else ""),
            "run it by hand",
        )
    if len(done.stdout) > MAX_BYTES:
        raise InventoryError(f"{what} answered {len(done.stdout)} bytes", f"at most {MAX_BYTES} are read")
    try:
        answer = json.loads(done.stdout or b"{}")
    except ValueError as exc:
        raise InventoryError(f"{what}: its answer is not JSON ({exc})", "run it by hand") from exc
    if not isinstance(answer, dict):
        raise InventoryError(f"{what}: its answer is not JSON object", "see Ansible's “developing inventory”")
    return answer
