"""The tree as a table of contents: every package is described, small, and in an import contract."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import tomllib

REPOSITORY = Path(__file__).parents[2]
ROOTS = ("procguard", "remote_agent")
MOST_MODULES = 15
FILES = sorted(path for root in ROOTS for path in (REPOSITORY / root).rglob("*.py"))
PACKAGES = sorted({path.parent for path in FILES})

# Modules that may use JSON of undeclared shape (procguard/json_types.py). Elsewhere data has a declared type.
JSON_AT_THE_EDGE = {
    "requests and responses": """
        agent_api/declaration agent_api/handlers agent_api/http_io agent_api/zmq/channel agent_api/zmq/session
        client/api client/types fleet/workers/deployment fleet/workers/service manager/standby
        portal/api/deployments portal/api/live portal/api/manager portal/live/hub portal/live/logs portal/live/tables
        cli/output/deployment notify/alerts notify/formats
    """,
    "OpenAPI": "portal/api/openapi/document portal/api/openapi/types",
    "messages between processes and from hosts": """
        runtime/json_process deploy/tunnel/client deploy/tunnel/process deploy/session/session
        deploy/install/ansible deploy/install/deployer deploy/install/fetch deploy/install/helper
        deploy/install/helper_client deploy/install/rollout
        deploy/sync/source deploy/sync/transfer deploy/sync/wave
    """,
    "stored records, and the evidence of events": """
        fleet/model/records fleet/gangs/decider fleet/operations/model fleet/history/query
        fleet/store/interface fleet/store/leader_row fleet/store/snapshot portal/logs/archive/objects
    """,
    "YAML and other files of users; specifications by their keys": """
        client/contexts config/schema deploy/inventory/container_words deploy/inventory/containers
        deploy/inventory/groups deploy/inventory/model deploy/inventory/script deploy/inventory/templates/functions
        deploy/inventory/workers deploy/ssh/keys deploy/ssh/target fleet/workers/spec_diff portal/api/workers
    """,
    "arguments of other libraries' functions": """
        cli/program/invoke_form cli/program/parser deploy/ssh/connection fleet/store/postgres_link
        manager/demo_database portal/http/server
    """,
    "the names themselves": "json_types",
}
UNDECLARED = re.compile(r"\b[Dd]ict\[str, ?Any\]|^from procguard\.json_types import .*\bJson\b", re.MULTILINE)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def words_of(package: Path) -> str:
    path = package / "__init__.py"
    return (ast.get_docstring(tree_of(path)) or "") if path in FILES else ""


def test_every_package_says_what_it_owns() -> None:
    assert [shown(one) for one in PACKAGES if not words_of(one)] == []


def test_a_package_holds_few_modules_or_says_why_not() -> None:
    """The reason is a sentence of its `__init__` that gives the number, as in "17 modules, because …"."""
    found = {}
    for one in PACKAGES:
        count = sum(not path.name.startswith("__") for path in one.glob("*.py"))
        if count > MOST_MODULES and not re.search(rf"\b{count} modules\b", words_of(one)):
            found[shown(one)] = count
    assert found == {}


def test_no_package_of_remote_agent_imports_anything() -> None:
    """Agent and runner load only what they use: every process loads the imports of an `__init__`."""
    found = [
        shown(one / "__init__.py")
        for one in PACKAGES
        if "remote_agent" in one.parts
        and any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree_of(one / "__init__.py")))
    ]
    assert found == []


def test_no_two_classes_have_one_name() -> None:
    locations = defaultdict(list)
    for path in FILES:
        for name in re.findall(r"^ *class (\w+)[(:]", path.read_text(encoding="utf-8"), re.MULTILINE):
            locations[name].append(shown(path))
    assert {name: where for name, where in locations.items() if len(where) > 1} == {}


def test_every_package_is_in_an_import_contract() -> None:
    """Complete layers over `procguard` and `remote_agent`, in the permitted order of imports."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    layers = [one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
    for root in ROOTS:
        [contract] = [one for one in layers if one.get("containers") == [root]]
        assert contract["exhaustive"] is True
        named = {word.strip() for row in contract["layers"] for word in row.split("|")}
        here = {path.stem for path in (REPOSITORY / root).iterdir() if (path / "__init__.py").exists()}
        assert here <= named, f"{root}: {sorted(here - named)} are in no layer"


def test_json_without_a_declared_shape_stays_at_the_edge() -> None:
    root = REPOSITORY / "procguard"
    found = [
        str(path.relative_to(root).with_suffix(""))
        for path in FILES
        if path.is_relative_to(root) and UNDECLARED.search(path.read_text(encoding="utf-8"))
    ]
    allowed = sorted(name for names in JSON_AT_THE_EDGE.values() for name in names.split())
    assert sorted(found) == allowed  # a module that no longer needs it leaves the list
