"""Selectors of workers: `train-*`, `group=trainers,state=running`, `host!=gpu03`.

    selector   = condition , condition , …          all must hold
    condition  = glob | !glob                       the worker's id
               | field = value | field != value     field: state host group agent desired id label.NAME
               | NAME = value | NAME != value       any other name is a label
    value      = glob | glob | …                    any of them: state=failed|exited

Conditions on the same field are alternatives (`state=failed,state=exited`, `a-1,a-2`); an exclusion always applies.
Globs are `*`, `?`, `[abc]`. The command line, the HTTP API and the portal use the same syntax. Pure: a selector is
parsed once and then matched against each worker's facts.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypedDict

from procguard.errors import NotFound, UsageError
from remote_agent.protocol import messages, states

FIELDS = {
    "state": "state",
    "host": "host",
    "group": "group",
    "agent": "agent",
    "desired": "desired",
    "id": "worker_id",
    "worker_id": "worker_id",
}
KNOWN_VALUES = {"state": states.ALL, "desired": ("running", "stopped", "removed")}
MAX_CHARS = 1024 * 1024  # ten thousand ids of full length
MAX_GLOBS = 100  # each pattern is tried on each worker; literal values are looked up at no cost
MAX_GLOB_CHARS = 256
MAX_FIELDS = 50
EXAMPLE = "write e.g. group=trainers,state=running or 'train-*,!train-7'"
_NAME = re.compile(r"[A-Za-z0-9_./-]+\Z")
_MAGIC = re.compile(r"[*?\[]")

Facts = Mapping[str, Any]  # WorkerFacts, or a view of the API


class WorkerFacts(TypedDict):
    """The facts about a worker that selectors match."""

    worker_id: str
    state: str
    desired: messages.Desired
    host: str
    agent: str
    group: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Condition:
    """A field, its values, and whether they are included or excluded."""

    name: str
    excluded: bool
    exact: frozenset[str]
    globs: tuple[re.Pattern[str], ...]

    def holds(self, facts: Facts) -> bool:
        value = facts.get(FIELDS[self.name]) if self.name in FIELDS else (facts.get("labels") or {}).get(self.name)
        if value is None or value == "":
            return False
        text = str(value)
        return text in self.exact or any(glob.match(text) for glob in self.globs)


class Selector:
    """A parsed selector. `text`: as written. All conditions on one field are merged into one."""

    def __init__(self, text: str, conditions: Iterable[Condition]) -> None:
        self.text = text
        same: dict[tuple[str, bool], list[Condition]] = {}
        for one in conditions:
            same.setdefault((FIELDS.get(one.name, "label." + one.name), one.excluded), []).append(one)
        merged = [_merged(several) for several in same.values()]
        self._wanted = [one for one in merged if not one.excluded]
        self._excluded = [one for one in merged if one.excluded]

    def matches(self, facts: Facts) -> bool:
        return all(one.holds(facts) for one in self._wanted) and not any(one.holds(facts) for one in self._excluded)


def _merged(same: list[Condition]) -> Condition:
    exact = frozenset(value for one in same for value in one.exact)
    globs = tuple(dict.fromkeys(glob for one in same for glob in one.globs))
    return Condition(same[0].name, same[0].excluded, exact, globs)


def parse(text: str) -> Selector:
    """Parse a selector; "" and "*" match every worker. Raises UsageError that names the invalid part."""
    if len(text) > MAX_CHARS:
        raise UsageError(f"the selector is longer than {MAX_CHARS} characters", "use a glob, a group or a label")
    if not text.strip():
        return Selector(text, [])
    conditions: list[Condition] = []
    globs, fields = 0, set()
    for number, part in enumerate(text.split(","), 1):
        one = _condition(part.strip(), number, text, MAX_GLOBS - globs)
        conditions.append(one)
        globs += len(one.globs)
        fields.add(one.name)
        if len(fields) > MAX_FIELDS:
            what = f"the selector names more than {MAX_FIELDS} fields and labels"
            raise UsageError(what, EXAMPLE, code="bad_selector")
    return Selector(text, conditions)


def _condition(part: str, number: int, text: str, globs_left: int) -> Condition:
    wrong = _complaint(part, number, text)
    match = re.match(r"(!?)([^=!]*)(!?=)(.*)\Z", part, re.DOTALL)
    if match:
        before, written, sign, value = match[1], match[2].strip(), match[3], match[4].strip()
        if before and sign == "!=":
            wrong("excluded twice; write one '!'")
        name, excluded = written, bool(before) or sign == "!="
        name = name.removeprefix("label.")
        if not name:
            wrong("a field is missing before the '='")
        if not _NAME.match(name):
            wrong(f"{name[:40]!r} is neither a field nor a label")
        if name in FIELDS and written.startswith("label."):
            wrong(f"a label with the name of the field {name} can't be selected by")
    else:
        excluded, name, value = part.startswith("!"), "id", part.removeprefix("!").strip()
    if not value:
        wrong("a value is missing" if part else "there is nothing between two commas")
    values = [one.strip() for one in value.split("|")]
    if not all(values):
        wrong("a value is missing beside the '|'")
    for one in values:
        _check_value(name, one, wrong)
    exact = frozenset(one for one in values if not _MAGIC.search(one))
    patterns = [one for one in values if _MAGIC.search(one)]
    if len(patterns) > globs_left:
        wrong(f"more than {MAX_GLOBS} patterns with *, ? or [; use a group or a label, or names in full")
    if any(len(one) > MAX_GLOB_CHARS for one in patterns):
        wrong(f"a pattern is longer than {MAX_GLOB_CHARS} characters")
    return Condition(name, excluded, exact, tuple(re.compile(fnmatch.translate(one)) for one in patterns))


def _check_value(name: str, value: str, wrong: Callable[[str], NoReturn]) -> None:
    if "=" in value:
        wrong("two '=' in one condition; separate conditions by commas")
    if FIELDS.get(name) == "worker_id" and not re.match(r"[A-Za-z0-9_.*?\[\]!-]+\Z", value):
        wrong(f"{value[:40]!r} is not a valid worker id")
    known = KNOWN_VALUES.get(name)
    if known and not any(fnmatch.fnmatchcase(one, value) for one in known):
        wrong(f"there is no {name} {value[:40]!r}; known are {', '.join(known)}")


def _complaint(part: str, number: int, text: str) -> Callable[[str], NoReturn]:
    """The error for one part; the part is quoted if the text has several."""

    def wrong(what: str) -> NoReturn:
        where = f"selector, part {number} ({part[:60]!r})" if "," in text else f"selector {part[:60]!r}"
        raise UsageError(f"{where}: {what}", EXAMPLE, code="bad_selector")

    return wrong


def is_one_id(text: str) -> bool:
    """Whether this is a worker's id in full: no pattern, no condition."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text) is not None


def select(target: str, workers: Iterable[Facts]) -> list[str]:
    """The matching worker ids, sorted. Raises NotFound if there are none, UsageError if `target` is invalid."""
    selector = parse(target)
    found = sorted(str(facts["worker_id"]) for facts in workers if selector.matches(facts))
    if not found:
        raise NotFound(f"no worker matches {target}", "list them: invoke status")
    return found
