"""The English sentences in the manager's code, found by AST: f"no worker {name}" as "no worker {}"."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# Two words of English in a row; one word is a name or a value more often than a sentence.
SENTENCE = re.compile(r"[A-Za-z']{2,}[ ,;]+[a-z']{2,}")
PROGRAM_LINES = 6  # a text of as many lines is a program, a schema or a file's template
# What is shown to people: by commands, by the manager at its start, as errors of the API in the portal.
SHOWN = (
    "admission",
    "cli",
    "client",
    "config",
    "console",
    "deploy",
    "expression.py",
    "expression_cost.py",
    "fleet",
    "log_metrics.py",
    "main.py",
    "manager",
    "notify",
    "portal/api",
    "portal/auth",
    "portal/logs",
    "portal/web_monitor.py",
    "portal/http/sockets.py",
    "tls",
    "agent_api/http_io.py",
    "agent_api/factory.py",
    "agent_api/decode.py",
    "agent_api/handlers.py",
    "agent_api/zmq/port.py",
    "runtime/interpreter.py",
    "worker_launcher.py",
)
# What a launcher prints, of the agent's package.
SHOWN_OF_AGENT = ("agent/launcher.py", "agent/registration.py")
# Modules some of whose texts are shown, besides those of agents' logs.
PARTLY_SHOWN = (
    "remote_agent/agent/settings.py", "remote_agent/agent/spec_file.py", "remote_agent/agent/rlimits.py",
    "remote_agent/health/schedule.py", "remote_agent/system/paths.py",
    "remote_agent/transport/client.py", "tasks.py", "scripts/dev_tasks.py",
)  # fmt: skip  # fmt: skip
# Calls whose texts are not messages: reasons have codes, labels and facts both languages already; log files are
# English; descriptions of keys, metrics and parameters are reference documentation.
OTHER_CALLS = {
    "because", "with_head", "Field", "Of", "Metric", "gauge", "_gauge", "Metrics", "Family", "text", "InUsage", "flag",
    "choice", "seconds", "whole", "answer_type", "_field", "Label", "post", "set_header", "get", "_name", "execute",
    "executemany", "executescript", "compile", "info", "exception", "warning", "error", "critical", "_warn_once",
    "note_change", "Principal", "AttributeError", "RuntimeError", "TypeError", "AssertionError", "_refuse_agent",
    "set_desired", "ArgumentParser", "several",
}  # fmt: skip


class Found(NamedTuple):
    where: str
    text: str


def template_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values)
    return None


def texts_of(source: str, where: str = "") -> Iterator[tuple[Found, tuple[str, ...]]]:
    """Every text but docstrings, with the names of the calls that it is an argument of."""
    tree = ast.parse(source)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(one) for one in node.values}
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr):
                left_out.add(id(first.value))

    def visit(node: ast.AST, calls: tuple[str, ...]) -> Iterator[tuple[Found, tuple[str, ...]]]:
        text = template_of(node) if id(node) not in left_out else None
        if text is not None:
            yield Found(f"{where}:{getattr(node, 'lineno', 0)}", text), calls
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            calls = (*calls, name)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, calls)

    yield from visit(tree, ())


@functools.cache
def texts() -> tuple[tuple[Found, tuple[str, ...]], ...]:
    """Of all files whose texts are shown."""
    return tuple(found for path in paths() for found in texts_of(path.read_text("utf-8"), str(path.relative_to(ROOT))))


def partly_shown() -> Iterator[str]:
    for name in PARTLY_SHOWN:
        source = (ROOT / name).read_text("utf-8")
        if name == "scripts/dev_tasks.py":
            documented = (one for one in ast.parse(source).body if isinstance(one, ast.FunctionDef))
            yield from ((ast.get_docstring(one) or "").partition("Example: ")[0].strip() for one in documented)
        for found, _ in texts_of(source, name):
            yield from map(str.strip, found.text.split("; "))
            yield found.text


def sentences_of(texts: Iterable[tuple[Found, tuple[str, ...]]]) -> Iterator[Found]:
    """The sentences that may be shown, line by line."""
    for found, calls in texts:
        if calls and calls[-1] in OTHER_CALLS:
            continue
        lines = found.text.split("\n")
        for line in lines if len(lines) < PROGRAM_LINES else ():
            if SENTENCE.search(line):
                yield Found(found.where, line.strip())


def paths() -> list[Path]:
    package = ROOT / "procguard"
    found = [path for name in SHOWN for path in ([package / name] if "." in name else (package / name).rglob("*.py"))]
    found += [ROOT / "remote_agent" / name for name in SHOWN_OF_AGENT]
    assert all(path.exists() for path in found)
    return sorted(path for path in found if "openapi" not in path.parts)  # reference documentation
