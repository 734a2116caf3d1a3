"""Numbers that a worker prints (`metrics` of its specification): checks the declared expressions, and rewrites them for
hosts.

Owns the rules for declarations: their names, number and groups, and that no expression can take unbounded time on a
host. Hosts do the matching (remote_agent/logs/number_reader.py); knows no workers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping

from procguard import expression, expression_cost
from procguard.errors import UsageError
from remote_agent.protocol.messages import LOG_METRIC_NAME, MAX_LOG_METRICS

MAX_CHARS = 256
_IS_NAME = re.compile(LOG_METRIC_NAME).fullmatch


def mistakes(metrics: Mapping[str, str]) -> list[str]:
    """The errors in declared metrics, {name: expression}, each as one line: what, and what to write instead."""
    if len(metrics) > MAX_LOG_METRICS:
        return [f"metrics: {len(metrics)} expressions, at most {MAX_LOG_METRICS}"]
    found = []
    for name, text in metrics.items():
        if not _IS_NAME(name):
            found.append(f"metrics: {name[:40]!r} is not a valid name; use up to 40 letters, digits and _, e.g. loss")
            continue
        try:
            host_form(text)
        except UsageError as exc:
            found.append(f"metrics.{name}: {exc.message}; {exc.next_step}")
    return found


def for_hosts(metrics: Mapping[str, str]) -> dict[str, list[str]]:
    """Declared metrics in the form of Assignment.metrics, without those that this release refuses."""
    found = {}
    for name, text in metrics.items():
        try:
            found[name] = list(host_form(text))
        except UsageError:
            continue
    return found


@functools.lru_cache(maxsize=1024)
def host_form(text: str) -> tuple[str, str]:
    """(the expression for Python's `re`, with capturing groups; the longest text that every match contains, so that
    lines without it can be skipped quickly). Raises UsageError."""
    read = expression.read(text, name="metrics", max_chars=MAX_CHARS, captures=True)
    if read.groups not in (1, 2):
        raise UsageError(
            f"the expression has {read.groups} groups in parentheses",
            "put ( ) around the number, or around n and total: 'epoch ([0-9]+)/([0-9]+)'; write other groups as (?: )",
        )
    trouble = expression_cost.unbounded_because(read.tree)
    if trouble:
        raise UsageError(
            f"the expression may take unbounded time: {trouble}",
            "state which characters may occur there, e.g. [0-9.]+, or leave out what the number does not need",
        )
    runs = "".join(_required(read.tree)).split("\n")
    return read.for_hosts, max(runs, key=len)


def _required(node: expression_cost.Node) -> Iterator[str]:
    """The characters that every match contains, in order, with a line feed wherever other characters may occur."""
    if isinstance(node, expression_cost.Sequence):
        for part in node.parts:
            yield from _required(part)
    elif isinstance(node, expression_cost.Characters) and len(node.ranges) == 1 and len({*node.ranges[0]}) == 1:
        yield chr(node.ranges[0][0])
    else:
        yield "\n"
