"""`procguard_workers` of one host as checked specifications: each error with its location and the closest valid key.

Knows the keys of protocol.WorkerSpec, neither hosts nor precedence. Keys are checked before templates are rendered
(while their lines are known), values after.
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from procguard import log_metrics
from procguard.deploy.inventory import command_words
from procguard.deploy.inventory.positions import Map
from procguard.deploy.inventory.templates.functions import TemplateMistake
from procguard.deploy.inventory.templates.renderer import Renderer
from procguard.deploy.inventory.vault import Encrypted
from procguard.json_types import Json
from remote_agent.agent.spec_file import mistakes_in
from remote_agent.protocol import messages

VARIABLE = "procguard_workers"
MAX_REPLICAS = 10_000
_ADAPTER: TypeAdapter[messages.WorkerSpec] = TypeAdapter(messages.WorkerSpec)
_KEYS = {cls: [item.name for item in dataclasses.fields(cls)] for cls in (
    messages.WorkerSpec, messages.RestartPolicy, messages.HealthCheck, messages.Hook, messages.Limits,
    messages.ContainerSpec, messages.TerminalSpec,
)}  # fmt: skip
SIGNALS = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL")


@dataclass(frozen=True)
class DeclaredWorker:
    """`spec` holds every field of protocol.WorkerSpec, so that a changed default counts as a change."""

    worker_id: str
    spec: Json
    where: str = ""
    keeps: bool = False  # sets on_partition: keep explicitly, which is also the default
    source: str = ""  # absolute file and line of its entry, "/home/ml/inventory/prod.yaml:12"; "": unknown


class SpecReader:
    """Collects the workers of one host; mistakes are passed to `tell(where, what, next)` and reading continues."""

    def __init__(self, renderer: Renderer, where: str, report: Callable[[str, str, str], None]) -> None:
        self._renderer = renderer
        self._where = where
        self._report = report
        self.notes: list[str] = []  # valid declarations that are probably unintended

    def read(self, declared: Any) -> list[DeclaredWorker]:
        if isinstance(declared, (str, Encrypted)):
            declared = self._render(declared, self._where)
        if declared is None:
            return []
        if isinstance(declared, dict):
            entries = [(key, spec, place(declared, key, self._where)) for key, spec in declared.items()]
        elif isinstance(declared, list):
            entries = [self._entry(spec) for spec in declared]
        else:
            self._report(
                self._where, f"{VARIABLE} must be a list of workers or a mapping id: worker", "see inventory/prod.yaml"
            )
            return []
        return [worker for entry in entries for worker in self._copies(*entry)]

    def _copies(self, raw_id: Any, raw: Any, where: str) -> list[DeclaredWorker]:
        """One worker, or with `replicas: N` N workers, each rendered with its `index`, from 0."""
        if isinstance(raw, Encrypted):
            raw = self._render(raw, where)
        if not isinstance(raw, dict) or "replicas" not in raw:
            worker = self._worker(raw_id, raw, where, self._renderer)
            return [worker] if worker else []
        count = self._render(raw["replicas"], where)
        if isinstance(count, bool) or not str(count).isdigit() or int(count) > MAX_REPLICAS:
            self._report(
                place(raw, "replicas", where), f"replicas: {count!r}", f"a number of copies, 0 to {MAX_REPLICAS}"
            )
            return []
        plain = {key: value for key, value in raw.items() if key != "replicas"}
        if isinstance(raw, Map):
            plain = raw.without("replicas")
        if raw_id is not None and "index" not in str(raw_id):
            raw_id = f"{raw_id}-{{{{ index }}}}"
        copies = (self._worker(raw_id, plain, where, self._renderer.having(index=index)) for index in range(int(count)))
        return [worker for worker in copies if worker]

    def _entry(self, spec: Any) -> tuple[Any, Any, str]:
        if not isinstance(spec, dict):
            return None, spec, self._where
        return spec.get("id", spec.get("worker_id")), spec, place(spec, None, self._where)

    def _worker(self, raw_id: Any, raw: Any, where: str, renderer: Renderer) -> DeclaredWorker | None:
        if isinstance(raw, (str, list)) and raw_id is not None:
            raw = {"command": raw}  # id: command, the short form
        if not isinstance(raw, dict):
            self._report(
                where, "a worker must be a mapping with at least id and command", "write: - {id: w1, command: …}"
            )
            return None
        if not self._known_keys(raw, where):
            return None
        try:
            worker_id = str(renderer.render(raw_id)) if raw_id is not None else ""
            spec = renderer.render({key: value for key, value in raw.items() if key not in ("id", "worker_id")})
        except TemplateMistake as exc:
            self._report(where, str(exc), "correct the template or define the variable")
            return None
        if not messages.valid_id(worker_id):
            self._report(
                where,
                f"{worker_id!r} is not a worker id",
                "1 to 64 of A-Z a-z 0-9 _ . -, beginning with a letter or digit",
            )
            return None
        return self._checked(worker_id, spec, where)

    def _checked(self, worker_id: str, spec: Json, where: str) -> DeclaredWorker | None:
        if isinstance(spec.get("umask"), int):
            self._report(
                where, f"worker {worker_id}: umask must be in quotes", 'write: umask: "027" (YAML reads 027 as 23)'
            )
            return None
        try:
            checked = _ADAPTER.validate_python(_plain(spec))
            full = messages.encode(checked)
        except ValidationError as exc:
            for error in exc.errors():
                path = ".".join(str(part) for part in error["loc"] if not _is_branch(part))
                got = reprlib.repr(error["input"])
                self._report(where, f"worker {worker_id}: {path}: {error['msg']}, got {got}", "correct the value")
            return None
        if not full["command"] and checked.container is None:
            self._report(where, f"worker {worker_id} has no command", 'add one: command: "python train.py"')
            return None
        if str(full["stop_signal"]).upper().removeprefix("SIG") not in SIGNALS:
            self._report(
                where, f"worker {worker_id}: stop_signal {full['stop_signal']!r}", f"one of {', '.join(SIGNALS)}"
            )
            return None
        if checked.container is not None and checked.container.gpus:
            if checked.gpus not in (0, checked.container.gpus):
                self._report(where, f"worker {worker_id}: gpus and container.gpus differ", "write one of them")
                return None
            checked.gpus = full["gpus"] = checked.container.gpus
        mistakes = mistakes_in(checked) + command_words.mistakes(checked) + log_metrics.mistakes(checked.metrics)
        if note := command_words.engine_started(checked):
            self.notes.append(f"worker {worker_id}: {note}")
        for mistake in mistakes:
            self._report(where, f"worker {worker_id}: {mistake}", "see docs/worker.md")
        return None if mistakes else DeclaredWorker(worker_id, full, where, spec.get("on_partition") == "keep")

    def _known_keys(self, raw: Json, where: str) -> bool:
        well = self._check_keys(raw, (*_KEYS[messages.WorkerSpec], "id", "worker_id", "replicas"), where, "")
        if isinstance(raw.get("restart"), dict):
            well = self._check_keys(raw["restart"], _KEYS[messages.RestartPolicy], where, "restart.") and well
        health = raw.get("health")
        for check in health if isinstance(health, list) else [health]:
            if isinstance(check, dict):
                well = self._check_keys(check, _KEYS[messages.HealthCheck], where, "health.") and well
        if isinstance(raw.get("limits"), dict):
            well = self._check_keys(raw["limits"], _KEYS[messages.Limits], where, "limits.") and well
        if isinstance(raw.get("container"), dict):
            well = self._check_keys(raw["container"], _KEYS[messages.ContainerSpec], where, "container.") and well
        if isinstance(raw.get("tty"), dict):
            well = self._check_keys(raw["tty"], _KEYS[messages.TerminalSpec], where, "tty.") and well
        for name in ("pre_start", "post_stop"):
            hooks = raw.get(name)
            for hook in hooks if isinstance(hooks, list) else [hooks]:
                if isinstance(hook, dict):
                    well = self._check_keys(hook, _KEYS[messages.Hook], where, f"{name}.") and well
        return well

    def _check_keys(self, raw: Json, known: Any, where: str, prefix: str) -> bool:
        unknown = [key for key in raw if key not in known]
        for key in unknown:
            near = difflib.get_close_matches(str(key), known, 1)
            next_step = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            self._report(place(raw, key, where), f"unknown key {prefix}{key}", next_step)
        return not unknown

    def _render(self, value: Any, where: str) -> Any:
        try:
            return self._renderer.render(value)
        except TemplateMistake as exc:
            self._report(where, str(exc), "correct the template or define the variable")
            return None


def place(mapping: Any, key: Any, otherwise: str) -> str:
    """File and line of a key if known, otherwise `otherwise`."""
    return mapping.where(key) if isinstance(mapping, Map) else otherwise


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's path is the branch of a union, a name that does not occur in inventories."""
    return isinstance(part, str) and (part in ("str", "int", "none") or part.startswith(("list[", "dict[")))


def _plain(spec: Json) -> Json:
    """The specification with short forms expanded: numbers in env and labels, a single health check, `restart: always`,
    `tty: true`, a hook as one line, setup as a block of text."""
    spec = dict(spec)
    for name in ("env", "labels"):
        if isinstance(spec.get(name), dict):
            spec[name] = {str(key): _as_text(value) for key, value in spec[name].items()}
    if isinstance(spec.get("command"), list):
        spec["command"] = [_as_text(word) for word in spec["command"]]
    if isinstance(spec.get("restart"), str):
        spec["restart"] = {"policy": spec["restart"]}
    if isinstance(spec.get("health"), dict):
        spec["health"] = [spec["health"]]
    if isinstance(spec.get("setup"), str):
        spec["setup"] = [spec["setup"]]
    if isinstance(spec.get("tty"), bool):
        spec["tty"] = {} if spec["tty"] else None
    if isinstance(spec.get("container"), str):
        spec["container"] = {"image": spec["container"]}
    for name in ("pre_start", "post_stop"):
        if isinstance(spec.get(name), (str, dict)):
            spec[name] = [spec[name]]
        if isinstance(spec.get(name), list):
            spec[name] = [{"command": hook} if isinstance(hook, str) else hook for hook in spec[name]]
    return {key: value for key, value in spec.items() if value is not None}


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    return str(value) if isinstance(value, (int, float)) else value
