"""Workers: the list, one worker, commands and their results, moves to another host.

Handlers validate the request and pass it to the fleet. Logs are in logs.py, explanations in history.py, and the routes
of launchers and agents in agent_api/handlers.py.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import bottle
from pydantic import Field

from procguard.agent_api import http_io
from procguard.agent_api.declaration import delete, get, post, several, text, whole
from procguard.agent_api.decode import Hints
from procguard.agent_api.handlers import checked_worker_id
from procguard.agent_api.interface import Principal
from procguard.client.types import WorkerInfo
from procguard.errors import UsageError
from procguard.fleet.gangs.views import GangOfWorker  # noqa: F401 -- named by a field of WORKER
from procguard.fleet.model import clock
from procguard.fleet.model.records import WorkerRecord
from procguard.fleet.shapes.workers import WORKER
from procguard.fleet.workers import selectors
from procguard.fleet.workers.spec_diff import declared_and_defaults, differences
from procguard.fleet.workers.views import CommandView
from procguard.i18n.reasons import written
from procguard.json_types import Json
from procguard.portal.api.openapi.types import answer_type
from procguard.portal.api.resource import MAX_REASON_CHARS, Reason, RequestBody, Resource
from remote_agent.protocol import messages

MAX_PAGE = 100_000
MAX_SELECT_CHARS = 8_000  # a request line has at most 8,192; longer selectors go into the body of a preview
SORTABLE = tuple(one.name for one in WORKER if one.sortable)

# ------------------------------------------------------------------------------------------------ request types


@dataclass(frozen=True)
class WorkersQuery:
    select: str = text("a selector: `group=trainers,state=failed`", MAX_SELECT_CHARS)
    state: tuple[str, ...] = several()
    host: tuple[str, ...] = several()
    group: tuple[str, ...] = several()
    agent: tuple[str, ...] = several()
    q: str = text("words that the worker's fields contain")
    sort: str = text("a column; `-column`: descending")
    offset: int = whole(0, 0, 10**9)
    limit: int = whole(MAX_PAGE, 1, MAX_PAGE)


@dataclass(frozen=True)
class CommandsQuery:
    worker: str = text("only commands for this worker")
    limit: int = whole(50, 1, 1_000)


class CommandRequest(RequestBody):
    """{"command": "restart", "reason": "new driver"}"""

    hints: ClassVar[Hints] = {"command": ("unknown_command", f"use one of: {', '.join(messages.VERBS)}")}

    command: messages.Verb
    reason: Reason = ""


class NoteRequest(RequestBody):
    """{"note": "the disk is being replaced"}"""

    note: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""


class MoveRequest(RequestBody):
    """{"host": "gpu02"}"""

    hints: ClassVar[Hints] = {"host": ("", 'name the target, e.g. {"host": "gpu02"}')}

    host: Annotated[str, Field(min_length=1, max_length=MAX_REASON_CHARS)]


# -------------------------------------------------------------------------------------------------- response types


if TYPE_CHECKING:
    WorkerAnswer = WorkerInfo
else:
    WorkerAnswer = answer_type("WorkerAnswer", "One worker as everything shows it.", WORKER, globals())


@dataclass(frozen=True)
class SourceLine:
    """The entry of the inventory that declares a worker, on the machine that deployed it. `workers`: number of workers
    that the entry declares, as copies or for several hosts. `host`: their host if it is the same for all, else ""."""

    file: str
    line: int
    workers: int
    host: str


@dataclass(frozen=True)
class Specification:
    """A worker's specification. `declared`: the keys that differ from their defaults. `env_names`: names of the
    environment variables, without values. `pending`: what a restart would change in the running process."""

    worker_id: str
    inventory: str
    declared: Json
    defaults: Json
    env_names: list[str]
    source: SourceLine | None = None
    pending: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WorkersAnswer:
    workers: list[WorkerAnswer]
    total: int


@dataclass(frozen=True)
class OfWorker:
    worker_id: str
    status: str


@dataclass(frozen=True)
class Moving:
    worker_id: str
    host: str
    status: Literal["moving"] = "moving"


@dataclass(frozen=True)
class Accepted:
    command_id: str
    worker_id: str
    command: messages.Verb
    status: Literal["accepted"] = "accepted"


@dataclass(frozen=True)
class Commands:
    commands: list[CommandView]


# ------------------------------------------------------------------------------------------------ routes


class WorkersApi(Resource):
    @get("/api/remote-workers", "viewer", tag="workers", zh="所有 worker：筛选、排序、分页")
    def workers(self, query: WorkersQuery) -> WorkersAnswer:
        """The workers, filtered, sorted and paged.

        `{"workers": [...], "total": n}`; `select` is a [selector](operations.md#selectors).
        """
        selector = selectors.parse(query.select)
        views = [view for view in self.fleet.state.workers() if selector.matches(view) and _matches(view, query)]
        page = _sorted(views, query.sort or "worker_id")[query.offset : query.offset + query.limit]
        return WorkersAnswer(page, len(views))

    @get("/api/remote-workers/<worker_id>", "viewer", tag="workers", zh="一个 worker", errors=(404,))
    def worker(self, worker_id: str) -> WorkerAnswer:
        """One worker.

        `home`: the host that it belongs to while it runs on another one; `moves`: how often it moved without having
        been healthy since; `moving_to`: the target of a move in progress; `recovery`: `{"state", "reason"}` if its task
        waits for another host (`waiting`, `not_proven_gone`, `no_spare`, `gave_up`, `by_hand`, `switched_off`).
        """
        return self.fleet.state.worker(worker_id)

    @get("/api/workers/<worker_id>/spec", "viewer", tag="workers", zh="它的声明（环境变量只有名称）", errors=(404,))
    def spec(self, worker_id: str, caller: Principal) -> Specification:
        """The worker's specification: every key, and which of them differ from their defaults.

        Only the names of `env` and of a container's `--env` options are returned, because values may be secrets.
        `source`: file and line of its entry in the inventory, and how many workers the entry declares; viewers see
        file names without folders. `pending`: what a restart would change.
        """
        state, may_deploy = self.fleet.state, caller.kind == "operator"
        record = state.find(worker_id)
        agent = state.agents_by_id.get(record.home or record.agent_id)
        inventory = agent.inventory if agent else ""
        started, pending = record.started_spec, bool(state.worker(worker_id)["restart_pending"])
        return Specification(
            worker_id,
            inventory if may_deploy else _without_folders(inventory),
            *declared_and_defaults(record.spec),
            _source_line(record, state.workers_by_id.values(), may_deploy),
            differences(started, record.spec) if pending and started is not None else [],
        )

    @post(
        "/api/workers/<worker_id>/command", "operator", tag="workers", zh="启动、停止、重启或强制结束", status=202,
        errors=(404, 409), example={"command": "stop", "reason": "new driver"},
    )  # fmt: skip
    def command(self, worker_id: str, caller: Principal, body: CommandRequest) -> Accepted:
        """Start, stop, restart or kill a worker.

        `{"command": "start" | "stop" | "restart" | "kill"}`, optionally with a `"reason"` → 202 `{"command_id",
        "worker_id", "command", "status": "accepted"}`.
        """
        http_io.note_change(f"{body.command}: {body.reason}" if body.reason else body.command)
        origin = f"{bottle.request.environ.get('REMOTE_ADDR', '?')}, {caller.via}"
        record = self.fleet.workers.command(worker_id, body.command, caller.actor, clock.read(), body.reason, origin)
        return Accepted(record.command_id, record.worker_id, record.command)

    @post(
        "/api/workers/<worker_id>/move", "operator", tag="workers", zh="迁移到另一台主机", status=202,
        errors=(404, 409), example={"host": "gpu02"},
    )  # fmt: skip
    def move(self, worker_id: str, caller: Principal, body: MoveRequest) -> Moving:
        """Move a worker to another host.

        `{"host": "gpu02"}` → 202. The worker is stopped on its host, then started on the other one. The rules are in
        fleet/workers/placement_service.py.
        """
        http_io.note_change(f"to {body.host}")
        self.fleet.placement.move(worker_id, body.host, caller.actor, clock.read())
        return Moving(worker_id, body.host)

    @post(
        "/api/workers/<worker_id>/acknowledge", "operator", tag="workers", zh="确认已知晓，并留下备注",
        body_optional=True, errors=(404,), example={"note": "the disk is being replaced"},
    )  # fmt: skip
    def acknowledge(self, worker_id: str, caller: Principal, body: NoteRequest) -> OfWorker:
        """Acknowledge a worker's failure, visible to everyone.

        The acknowledgement is an event, and part of the worker's explanation until its next attempt.
        """
        http_io.note_change(body.note)
        self.fleet.workers.acknowledge(worker_id, body.note, caller.actor, clock.read())
        return OfWorker(worker_id, "acknowledged")

    @delete("/api/workers/<worker_id>", "operator", tag="workers", zh="删除已结束的 worker", errors=(404, 409))
    def forget(self, worker_id: str, caller: Principal) -> OfWorker:
        """Remove a worker that has ended."""
        self.fleet.workers.forget(worker_id, caller.actor, clock.read())
        return OfWorker(worker_id, "forgotten")

    @get("/api/commands", "viewer", tag="workers", zh="最近的命令")
    def commands(self, query: CommandsQuery) -> Commands:
        """The newest commands.

        `worker=ID`: only the commands of one worker.
        """
        worker_id = checked_worker_id(query.worker) if query.worker else ""
        return Commands(self.fleet.state.commands(worker_id, query.limit))

    @get("/api/commands/<command_id>", "viewer", tag="workers", zh="命令的结果", errors=(404,))
    def command_status(self, command_id: str) -> CommandView:
        """The status of a command.

        With actor, time, reason, message and status: `accepted`, `delivered`, `done`, `failed` or `expired`.
        """
        return self.fleet.state.command_view(command_id)


def _source_line(record: WorkerRecord, records: Iterable[WorkerRecord], with_folders: bool) -> SourceLine | None:
    file, _, line = record.source.rpartition(":")
    if not file or not line.isdigit():
        return None
    same = [one for one in records if one.source == record.source]
    hosts = {one.home or one.agent_id for one in same}
    name = file if with_folders else os.path.basename(file)
    return SourceLine(name, int(line), len(same), hosts.pop() if len(hosts) == 1 else "")


def _without_folders(inventory: str) -> str:
    """ "head:/home/ml/prod.yaml,/home/ml/more.yaml" as "prod.yaml,more.yaml"."""
    return ",".join(os.path.basename(path) for path in inventory.partition(":")[2].split(",") if path)


def _matches(view: WorkerInfo, query: WorkersQuery) -> bool:
    for name in ("state", "host", "group", "agent"):
        wanted = getattr(query, name)
        if wanted and view.get(name) not in wanted:
            return False
    needle = query.q.lower()
    why = (view["reason"], written(view, "zh"))
    texts = (view["worker_id"], view["host"], view["command"], view["group"], *why)
    return not needle or any(needle in str(text).lower() for text in texts)


def _sorted(views: list[WorkerInfo], field: str) -> list[WorkerInfo]:
    """The views sorted by `field`; descending for `-field`. Ties are sorted by worker id; missing values come last.
    Raises UsageError for a field that cannot be sorted by."""
    name = field.removeprefix("-")
    if name not in SORTABLE:
        raise UsageError(f"sort={field[:40]!r}: not a column to sort by", f"use one of: {', '.join(SORTABLE)}")
    views = sorted(views, key=lambda view: str(view["worker_id"]))
    present = [view for view in views if view.get(name) is not None]
    missing = [view for view in views if view.get(name) is None]
    return sorted(present, key=operator.itemgetter(name), reverse=field.startswith("-")) + missing
