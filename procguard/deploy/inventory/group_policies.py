"""`procguard_groups` of an inventory: group policies, checked, each error with its location.

A variable like any other, usually of `all`. Hosts may repeat it, but must not contradict each other. The keys are
those of config/groups.py.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from procguard.config.groups import GroupPolicy
from procguard.deploy.inventory.templates.functions import TemplateMistake
from procguard.deploy.inventory.templates.renderer import Renderer
from procguard.deploy.inventory.workers import DeclaredWorker, place

VARIABLE = "procguard_groups"
KNOWN = tuple(GroupPolicy.model_fields)

ReportMistake = Callable[[str, str, str], None]
Policies = dict[str, GroupPolicy]


def read(declared: Any, renderer: Renderer, where: str, report: ReportMistake) -> Policies:
    """The group policies in one host's variable. Mistakes are passed to `report(where, what, next)`; reading
    continues."""
    if declared is None:
        return {}
    if not isinstance(declared, dict):
        report(
            where, f"{VARIABLE} must be a mapping group: {{…}}", "write: procguard_groups: {trainers: {restart: gang}}"
        )
        return {}
    found: Policies = {}
    for name, raw in declared.items():
        here = place(declared, name, where)
        policy = _policy(str(name), raw, renderer, here, report)
        if policy is not None:
            found[str(name)] = policy
    return found


def _policy(name: str, raw: Any, renderer: Renderer, where: str, report: ReportMistake) -> GroupPolicy | None:
    if not isinstance(raw, dict):
        report(where, f"group {name} must be a mapping", f"write: {name}: {{restart: gang}}")
        return None
    unknown = [key for key in raw if key not in KNOWN]
    for key in unknown:
        near = difflib.get_close_matches(str(key), KNOWN, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KNOWN)}"
        report(place(raw, key, where), f"unknown key {key} of group {name}", hint)
    if unknown:
        return None
    try:
        return GroupPolicy.model_validate(renderer.render(dict(raw)))
    except TemplateMistake as exc:
        report(where, f"group {name}: {exc}", "correct the template or define the variable")
    except ValidationError as exc:
        for error in exc.errors():
            path = ".".join(str(part) for part in error["loc"])
            what = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
            got = f", got {reprlib.repr(error['input'])}" if path else ""
            line = place(raw, error["loc"][0], where) if path else where
            report(line, f"group {name}: {path + ': ' if path else ''}{what}{got}", "see docs/groups.md")
    return None


def merged(each: Iterable[tuple[str, Policies]], report: ReportMistake, where: str) -> Policies:
    """The merged policies of all hosts; contradictions are reported as mistakes."""
    found: Policies = {}
    first: dict[str, str] = {}
    for host, policies in each:
        for name, policy in policies.items():
            if found.setdefault(name, policy) != policy:
                what = f"{VARIABLE}: {host} sets other values for group {name} than {first[name]}"
                report(where, what, "set it once, in the vars of all")
            first.setdefault(name, host)
    return found


def remarks(host: str, workers: Iterable[DeclaredWorker], policies: Policies) -> list[str]:
    """Notes for the user that are not errors."""
    members = [worker for worker in workers if _policy_of(worker, policies) == "gang"]
    return [
        f"{host}: worker {worker.worker_id} sets on_partition: keep, but its group {worker.spec['group']} restarts "
        "as a gang: it is fenced"
        for worker in members
        if worker.keeps
    ]


def _policy_of(worker: DeclaredWorker, policies: Policies) -> str:
    policy = policies.get(str(worker.spec.get("group") or ""))
    return policy.restart if policy is not None else ""
