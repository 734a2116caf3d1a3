"""Imports, read from the sources: no cycles, and services are typed by their classes.

Each import counts: those under TYPE_CHECKING, which hide a cycle from Python but not from a reader, and those within
functions, which only put it off.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("procguard", "remote_agent")
# What is handed around most; beside them, whatever is named like a class of several words (log_store: LogStore).
SERVICES = {
    "access", "adapter", "agent", "audit", "auth", "channel", "channels", "communication", "config",
    "connector", "deployer", "fleet", "gangs", "gpu", "gpus", "groups", "journal", "leases",
    "limits", "monitor", "notifier", "operations", "outcome", "peer", "placement", "portal",
    "previews", "purge", "registry", "relay", "reply", "rotations", "sample", "searches", "server", "session",
    "sessions", "settings", "ssh", "state", "store", "tokens", "tree", "tunnels", "usage", "maintenance", "worker",
}  # fmt: skip

Graph = dict[str, set[str]]
COUNTED = (ast.Import, ast.ImportFrom, ast.arg, ast.AnnAssign, ast.ClassDef)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Dotted name -> its tree; a package by the name of its folder."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text("utf-8"), str(path))
    return found


@functools.cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """Imports of the counted kinds; each tree is walked once."""
    return tuple(node for node in ast.walk(tree) if isinstance(node, COUNTED))


def imports_of(tree: ast.Module, known: set[str]) -> set[str]:
    """Those of the `known` modules that it imports, anywhere in it. A submodule counts, not the packages it is in."""
    found: set[str] = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the module's whole name"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            found.update(name if name in known else base for name in names)
    return found & known


def cycle_in(graph: Graph) -> list[str]:
    """One cycle, its first module repeated at the end; [] where there is none."""
    left = dict(graph)
    while ends := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ends:
            del left[name]
    walked: list[str] = []
    name = min(left, default="")
    while name and name not in walked:
        walked.append(name)
        name = min(graph[name] & left.keys())
    return [*walked[walked.index(name) :], name] if name else []


def import_graph() -> Graph:
    trees = modules()
    return {name: imports_of(tree, set(trees)) - {name} for name, tree in trees.items()}


def annotations(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(name, annotation) of every parameter, attribute and variable that has one."""
    for node in nodes(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, (ast.Attribute, ast.Name)):
            yield node.target.attr if isinstance(node.target, ast.Attribute) else node.target.id, node.annotation


def is_any(annotation: ast.expr) -> bool:
    """Any itself, Any | None, Optional[Any], or a sequence of Any; a dict of JSON is not."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return is_any(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        return is_any(annotation.left) or is_any(annotation.right)
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value).rpartition(".")[2]
        return outer in ("Optional", "List", "list", "Sequence", "Iterable", "set", "deque") and is_any(
            annotation.slice
        )
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def service_names(trees: dict[str, ast.Module]) -> set[str]:
    classes = {node.name for tree in trees.values() for node in nodes(tree) if isinstance(node, ast.ClassDef)}
    words = {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("_")).lower() for name in classes}
    return SERVICES | {name for name in words if "_" in name}


def untyped_services(tree: ast.Module, services: set[str]) -> list[str]:
    return [name for name, annotation in annotations(tree) if name.lstrip("_") in services and is_any(annotation)]


# ------------------------------------------------------------------------------------------------- what is held


def test_no_modules_import_each_other_in_a_cycle() -> None:
    assert " -> ".join(cycle_in(import_graph())) == ""


def test_who_is_handed_a_service_names_its_class() -> None:
    """With Any, mypy and go-to-definition would end there."""
    trees = modules()
    services = service_names(trees)
    found = {name: untyped_services(tree, services) for name, tree in trees.items()}
    assert {name: names for name, names in found.items() if names} == {}


# ------------------------------------------------------------------------------------------------ how it is found


def test_imports_under_type_checking_and_in_functions_count() -> None:
    source = """
import os, a.b
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from a import c, Name
def late():
    from a.d import thing
"""
    assert imports_of(ast.parse(source), {"a", "a.b", "a.c", "a.d"}) == {"a", "a.b", "a.c", "a.d"}


def test_a_cycle_is_found_among_modules_that_lead_to_it_and_away() -> None:
    graph = {"start": {"one"}, "one": {"two", "end"}, "two": {"three"}, "three": {"one"}, "end": set[str]()}
    assert cycle_in(graph) == ["one", "two", "three", "one"]
    assert cycle_in({**graph, "three": set()}) == []


def test_any_is_found_in_each_form() -> None:
    source = """
def make(registry: Any, log_store: "Any | None", value: Any, answer: dict[str, Any]) -> None:
    self._registry: Optional[Any] = registry
    tokens: list[Any] = []
class LogStore: ...
"""
    tree = ast.parse(source)
    found = untyped_services(tree, service_names({"m": tree}))
    assert sorted(found) == ["_registry", "log_store", "registry", "tokens"]
