"""The table of routes: for each what it is for, who may call it, what it takes and what it answers.

A new route needs a row here; tests/unit/portal/api/test_openapi.py says so. The rows are what /api/openapi.json is made
of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from procguard.agent_api.handlers import MAX_ATTEMPT, MAX_OFFSET, MAX_TIMES_CHARS
from procguard.fleet.operations.controller import MAX_ITEMS
from procguard.fleet.telemetry.timeseries import SPANS
from procguard.fleet.workers.deployment import DeploymentRequest
from procguard.portal.api import requests
from procguard.portal.api.maintenance import DEFAULT_LOG_BYTES, MAX_LOG_BYTES
from procguard.portal.api.openapi.answers import (
    access,
    deployments,
    groups,
    history,
    hosts,
    logs,
    manager,
    measurements,
    notifications,
    operations,
    workers,
)
from procguard.portal.api.search import DEFAULT_LINES, MAX_LINES, MAX_PATTERN_CHARS, MAX_SELECT_CHARS
from procguard.portal.auth.access import Who
from procguard.portal.logs import around
from remote_agent.protocol import messages as protocol

Tag = Literal["workers", "logs", "hosts", "operations", "history", "access", "agents", "manager"]

JSON, TEXT, BYTES, LINES = "application/json", "text/plain", "application/octet-stream", "application/x-ndjson"


@dataclass(frozen=True)
class Parameter:
    """One of the query. `schema` is JSON Schema."""

    name: str
    schema: dict[str, Any]
    says: str = ""


@dataclass(frozen=True)
class Route:
    """`path` in bottle's notation. `body`: a type that checks it, bytes, or None; `answers`: status -> type, or media
    types. `errors`: besides those that every route of its kind may answer (document.py)."""

    method: str
    path: str
    tag: Tag
    who: Who
    says: str
    zh: str
    answers: dict[int, Any]
    query: Sequence[Parameter] = ()
    body: Any = None
    body_optional: bool = False
    errors: Sequence[int] = ()
    media: Sequence[str] = field(default=(JSON,))


def whole(name: str, low: int, high: int, default: int | None = None, says: str = "") -> Parameter:
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    return Parameter(name, schema if default is None else {**schema, "default": default}, says)


def text(name: str, says: str = "", max_chars: int = 256, **schema: Any) -> Parameter:
    return Parameter(name, {"type": "string", "maxLength": max_chars, **schema}, says)


def flag(name: str, says: str) -> Parameter:
    return Parameter(name, {"type": "string", "enum": ["0", "1", "true", "false", "yes", "no", "on", "off"]}, says)


SEVERAL = "several, separated by commas"
WAIT = Parameter(
    "wait", {"type": "number", "default": 0}, f"seconds to hold the request, at most {protocol.MAX_WAIT_S:g}"
)
STREAM = text("stream", "which of both", 3, enum=["out", "err"])

AGENTS = (
    Route(
        "GET", "/api/hello", "agents", "anyone",
        "Proof that this is the fleet's manager, before an agent sends it its secret", "证明这就是本集群的管理端",
        {200: manager.Hello}, [
            text("agent", "the agent's id", 128), text("nonce", "a number used once", 128),
            text("to", "the address that the agent used; the proof covers it", 512),
            text("curve", "the agent's CURVE key in hexadecimal, to be admitted to the zmq channel", 64),
            text("mac", "shows that `curve` is of who has the agent's proof key", 64),
        ],
        errors=(401, 421),
    ),
    Route(
        "POST", "/api/workers/register", "agents", "anyone",
        "Announce a worker that was started by hand; from elsewhere it waits for approval", "登记一个手动启动的 worker",
        {200: protocol.RegisterReply, 202: protocol.RegisterReply}, body=protocol.Registration, errors=(409,),
    ),
    Route(
        "POST", "/api/workers/<worker_id>/heartbeat", "agents", "agent or operator",
        "A worker's heartbeat, the plain form", "单个 worker 的心跳",
        {200: protocol.WorkerReply}, body=protocol.WorkerHeartbeat, errors=(404, 409, 429),
    ),
    Route(
        "GET", "/api/workers/<worker_id>/command", "agents", "agent or operator",
        "What the worker is to do: held until there is something new", "长轮询：worker 要执行的命令",
        {200: protocol.WorkerReply}, [WAIT], errors=(404,),
    ),
    Route(
        "POST", "/api/workers/<worker_id>/logs", "agents", "agent",
        "Ship bytes of a log; what is acknowledged is durable", "上传日志字节",
        {200: logs.Acked},
        [
            whole("attempt", 0, MAX_ATTEMPT, 1), STREAM, whole("offset", 0, MAX_OFFSET, 0, "where the body begins"),
            flag("gap", "the bytes before `offset` are gone for ever"),
            Parameter("at", {"type": "number"}, "when the first byte was written, Unix seconds"),
            text("times", "from which byte on another time holds: `512:250,9000:1250`", MAX_TIMES_CHARS),
        ],
        body=bytes, errors=(404, 409, 507),
    ),
    Route(
        "POST", "/api/agents/<agent_id>/heartbeat", "agents", "agent",
        "Everything a host has to say, in one request", "主机上所有 worker 的心跳",
        {200: protocol.AgentReply}, body=protocol.AgentHeartbeat, errors=(404, 409, 429),
    ),
    Route(
        "GET", "/api/agents/<agent_id>/commands", "agents", "agent",
        "What the agent is to do: held until there is something new", "长轮询：agent 要执行的命令",
        {200: protocol.AgentReply},
        [WAIT, text("rev", "the assignments it has"), whole("seq", 0, 2**53, 0, "the last command it received")],
        errors=(404,),
    ),
    Route(
        "POST", "/api/agents/<agent_id>/searches", "agents", "agent",
        "What an agent found in its host's logs", "agent 的日志搜索结果",
        {200: logs.OfSearch}, body=protocol.LogSearchResult, errors=(404,),
    ),
    Route(
        "POST", "/api/agents/<agent_id>/secret", "agents", "agent",
        "The digest of the new secret that an agent was asked for", "agent 新密钥的摘要",
        {200: hosts.OfAgent}, body=protocol.SecretRenewal, errors=(404, 409),
    ),
)  # fmt: skip

WORKERS = (
    Route(
        "GET", "/api/remote-workers", "workers", "viewer",
        "The workers, filtered, sorted, a page at a time", "所有 worker：筛选、排序、分页",
        {200: workers.WorkersAnswer},
        [
            text("select", "a selector: `group=trainers,state=failed`", MAX_SELECT_CHARS),
            text("state", SEVERAL, 4096), text("host", SEVERAL, 4096), text("group", SEVERAL, 4096),
            text("agent", SEVERAL, 4096), text("q", "words that appear in it"),
            text("sort", "a column; `-column`: the other way round"),
            whole("offset", 0, 10**9, 0), whole("limit", 1, 100_000, 100_000),
        ],
    ),
    Route(
        "GET", "/api/remote-workers/<worker_id>", "workers", "viewer", "One worker", "一个 worker",
        {200: workers.WorkerAnswer}, errors=(404,),
    ),
    Route(
        "POST", "/api/workers/<worker_id>/command", "workers", "operator",
        "Start, stop, restart or kill it", "启动、停止、重启或强制结束",
        {202: workers.Accepted}, body=requests.CommandRequest, errors=(404, 409),
    ),
    Route(
        "POST", "/api/workers/<worker_id>/move", "workers", "operator",
        "Stop it here and start it on another host", "迁移到另一台主机",
        {202: workers.Moving}, body=requests.MoveRequest, errors=(404, 409),
    ),
    Route(
        "DELETE", "/api/workers/<worker_id>", "workers", "operator", "Forget one that has ended", "删除已结束的 worker",
        {200: workers.OfWorker}, errors=(404, 409),
    ),
    Route(
        "GET", "/api/workers/<worker_id>/explain", "workers", "viewer",
        "Why it is as it is, in sentences", "用文字解释它的现状",
        {200: history.ExplanationAnswer}, [text("lang", "`en` or `zh`; else by Accept-Language")], errors=(404,),
    ),
    Route(
        "GET", "/api/commands", "workers", "viewer", "The newest commands", "最近的命令",
        {200: workers.Commands}, [text("worker", "those of one worker"), whole("limit", 1, 1_000, 50)],
    ),
    Route(
        "GET", "/api/commands/<command_id>", "workers", "viewer", "What became of a command", "命令的结果",
        {200: workers.CommandView}, errors=(404,),
    ),
    Route(
        "GET", "/api/groups", "workers", "viewer", "The groups and what their gangs do", "分组与 gang 的状态",
        {200: groups.GroupsAnswer},
    ),
)  # fmt: skip

EXPRESSION = "RE2's dialect: docs/protocol.md#regular-expressions"
LOGS = (
    Route(
        "GET", "/api/remote-workers/<worker_id>/logs", "logs", "viewer",
        "The last lines of its log, following it, or all of it", "查看、跟踪或下载日志",
        {200: logs.Lines},
        [
            whole("tail", 0, 100_000, 200, "so many lines"), whole("attempt", -1, MAX_ATTEMPT, -1, "-1: all"), STREAM,
            text("since", "`10m`, ISO 8601 or Unix seconds"), text("regex", EXPRESSION, MAX_PATTERN_CHARS),
            text("at", "the lines around an address (`3.out.73014`) or a moment, with `before` and `after`", 64),
            whole("before", 0, around.MAX_LINES, around.DEFAULT_LINES, "lines before it"),
            whole("after", 0, around.MAX_LINES, around.DEFAULT_LINES, "lines after it"),
            text("format", "", enum=["text", "json"], default="text"),
            flag("follow", "go on with what comes; as JSON one object a line"),
            flag("download", "all of it, as a file"),
        ],
        errors=(404, 429), media=(TEXT, JSON, LINES),
    ),
    Route(
        "GET", "/api/log-search", "logs", "viewer",
        "The agents look through the logs on their hosts", "在所有主机上搜索日志",
        {200: logs.FoundAnswer},
        [
            text("text", "as it stands; or", MAX_PATTERN_CHARS), text("regex", EXPRESSION, MAX_PATTERN_CHARS),
            flag("ignore_case", "upper and lower case are the same"),
            text("select", "a selector: `group=trainers,state=failed`", MAX_SELECT_CHARS),
            text("q", "words that appear in the worker"), STREAM,
            text("since", "`2h`, ISO 8601 or Unix seconds"), text("until", "the same"),
            whole("limit", 1, MAX_LINES, DEFAULT_LINES, "so many of the newest lines"),
            Parameter("timeout", {"type": "number", "default": 10}, "seconds each host may look, at most 60"),
            text("format", "`jsonl`: as the hosts answer", enum=["json", "jsonl"], default="json"),
        ],
        errors=(413, 429), media=(JSON, LINES),
    ),
)  # fmt: skip

HOSTS = (
    Route(
        "GET", "/api/live/<name>", "hosts", "viewer",
        "The list of `workers` or `hosts` in columns, for the live protocol to go on from",
        "列式快照：workers 或 hosts",
        {200: manager.LiveRows}, errors=(404,),
    ),
    Route("GET", "/api/hosts", "hosts", "viewer", "The hosts", "所有主机", {200: hosts.HostsAnswer}),
    Route(
        "GET", "/api/agents", "hosts", "viewer",
        "Hosts and launchers, those that wait for approval too", "主机与手动启动器（含待审批）", {200: hosts.Agents},
    ),
    Route(
        "POST", "/api/agents/<agent_id>/approve", "hosts", "operator", "Let a waiting launcher in", "批准启动器",
        {200: hosts.OfAgent}, body=requests.FingerprintRequest, body_optional=True, errors=(404, 409),
    ),
    Route(
        "POST", "/api/agents/<agent_id>/deny", "hosts", "operator", "Turn a waiting launcher away", "拒绝启动器",
        {200: hosts.OfAgent}, body=requests.FingerprintRequest, body_optional=True, errors=(404, 409),
    ),
    Route(
        "PUT", "/api/agents/<agent_id>/credentials", "hosts", "operator",
        "Give an agent a new secret, as its digest", "为 agent 设置新密钥（摘要）",
        {200: hosts.OfAgent}, body=requests.CredentialsRequest, errors=(404, 409),
    ),
    Route(
        "POST", "/api/agents/rotate", "hosts", "operator",
        "Have agents make themselves new secrets while they run", "轮换 agent 的密钥（运行中）",
        {200: hosts.RotationsAsked}, body=requests.RotationRequest,
    ),
    Route(
        "POST", "/api/agents/<agent_id>/revoke", "hosts", "operator",
        "Its secret was stolen: it is good for nothing from now on", "撤销 agent 的密钥",
        {200: hosts.OfAgent}, errors=(404,),
    ),
    Route(
        "DELETE", "/api/agents/<agent_id>", "hosts", "operator", "Forget an agent that is gone", "删除已卸载的 agent",
        {200: hosts.OfAgent}, query=[flag("undeployed", "only if nothing was ever installed there")],
        errors=(404, 409),
    ),
    Route(
        "POST", "/api/hosts/<host>/cordon", "hosts", "operator",
        "No new tasks there by the manager's choice", "禁止调度新任务到该主机",
        {200: hosts.OfHost}, body=requests.ReasonRequest, body_optional=True, errors=(404, 409),
    ),
    Route(
        "POST", "/api/hosts/<host>/uncordon", "hosts", "operator", "New tasks may go there again", "恢复调度",
        {200: hosts.OfHost}, errors=(404, 409),
    ),
    Route(
        "POST", "/api/hosts/<host>/check-ssh", "hosts", "operator",
        "Can the manager itself reach this host over SSH?", "检查管理端能否通过 SSH 访问主机",
        {200: hosts.SshTried}, errors=(404, 409),
    ),
    Route(
        "POST", "/api/hosts/<host>/restart-agent", "hosts", "operator",
        "Have its agent restarted over SSH; its workers run on. What became of it is an event",
        "通过 SSH 重启该主机的 agent，worker 不受影响；结果见事件",
        {202: hosts.CareBegun}, errors=(404, 409),
    ),
    Route(
        "POST", "/api/hosts/<host>/upgrade-agent", "hosts", "operator",
        "Have its agent brought to the manager's release over SSH; unheard, it goes back. The result is an event",
        "通过 SSH 把该主机的 agent 升级到管理端的版本，失联则回退；结果见事件",
        {202: hosts.CareBegun}, errors=(404, 409),
    ),
    Route(
        "GET", "/api/hosts/<host>/agent-log", "hosts", "operator",
        "The end of its agent's own log, read over SSH", "通过 SSH 读取 agent 自身日志的末尾",
        {200: hosts.AgentLogAnswer}, [whole("bytes", 1, MAX_LOG_BYTES, DEFAULT_LOG_BYTES)], errors=(404, 409),
    ),
    Route(
        "POST", "/api/hosts/<host>/tunnel", "hosts", "operator",
        "Have its tunnel opened (procguard_tunnel), and wait until it is", "建立并等待该主机的隧道",
        {200: hosts.TunnelOpened}, errors=(404, 409),
    ),
    Route(
        "POST", "/api/deployments", "hosts", "operator",
        "Declare hosts and their workers: what `invoke deploy` does", "声明主机与 worker（即 invoke deploy）",
        {200: deployments.Deployed}, body=DeploymentRequest, errors=(409,),
    ),
)  # fmt: skip

OPERATIONS = (
    Route(
        "POST", "/api/purge/preview", "operations", "operator",
        "Which workers are gone for good: undeclared and ended, or of hosts not heard for so long",
        "预览已消失的 worker",
        {200: workers.PurgePreview}, body=requests.PurgePreviewRequest,
    ),
    Route(
        "POST", "/api/purge", "operations", "operator",
        "Take those of the preview out of the fleet", "清除预览中的 worker",
        {200: workers.Purged}, body=requests.PurgeRequest, errors=(409,),
    ),
    Route(
        "POST", "/api/operations/preview", "operations", "operator",
        "What a batch would do to whom, before it begins", "批量操作预览",
        {200: operations.PreviewAnswer}, body=requests.PreviewRequest,
    ),
    Route(
        "POST", "/api/operations", "operations", "operator", "Begin what was previewed", "开始已预览的批量操作",
        {202: operations.OperationAnswer}, body=requests.OperationRequest, errors=(404, 409),
    ),
    Route(
        "GET", "/api/operations", "operations", "viewer", "The newest 50 batches", "最近 50 个批量操作",
        {200: operations.OperationsAnswer},
    ),
    Route(
        "GET", "/api/operations/<operation_id>", "operations", "viewer",
        "One, with its items", "一个批量操作及其条目",
        {200: operations.OperationWithItems},
        [text("result", SEVERAL), whole("offset", 0, 10**9, 0), whole("limit", 1, MAX_ITEMS, 200)], errors=(404,),
    ),
    Route(
        "POST", "/api/operations/<operation_id>/cancel", "operations", "operator",
        "What has not begun is not begun", "取消尚未开始的部分", {200: operations.OperationAnswer}, errors=(404, 409),
    ),
    Route(
        "POST", "/api/operations/<operation_id>/retry", "operations", "operator",
        "The failed ones once more", "重试失败的条目",
        {202: operations.OperationAnswer}, body=requests.RetryRequest, body_optional=True, errors=(404, 409),
    ),
)  # fmt: skip

_SPAN = text("span", "how far back", enum=[span.name for span in SPANS], default=SPANS[0].name)
HISTORY = (
    Route(
        "GET", "/api/measurements/workers/<worker_id>", "history", "viewer",
        "What was measured of a worker, for charts", "worker 的历史度量",
        {200: measurements.WorkerMeasurements}, query=[_SPAN], errors=(404,),
    ),
    Route(
        "GET", "/api/measurements/hosts/<agent_id>", "history", "viewer",
        "What was measured of a host and its GPUs", "主机及其 GPU 的历史度量",
        {200: measurements.HostMeasurements}, query=[_SPAN], errors=(404,),
    ),
    Route(
        "GET", "/api/events", "history", "viewer", "What happened and why", "事件历史",
        {200: history.EventsAnswer},
        [
            text("worker", SEVERAL, 4096), text("host", SEVERAL, 4096), text("kind", SEVERAL, 4096),
            text("cause", SEVERAL, 4096), text("actor", SEVERAL, 4096), text("operation", SEVERAL, 4096),
            text("since", "`2h`, ISO 8601 or Unix seconds"), text("until", "the same"), text("q", "words"),
            whole("after", 0, 2**53, 0, "a `seq`"), whole("limit", 1, 10_000, 200),
            text("format", "`jsonl`: all that is on disk, one object a line", enum=["json", "jsonl"], default="json"),
        ],
        media=(JSON, LINES),
    ),
    Route(
        "GET", "/api/recoveries", "history", "viewer", "Incidents of silent hosts with each step", "主机失联事件",
        {200: history.Recoveries},
    ),
    Route(
        "GET", "/api/notifications", "history", "viewer", "How each target of notifications fares", "通知目标的状态",
        {200: notifications.NotificationTargets},
    ),
    Route(
        "POST", "/api/notifications/test", "history", "operator", "A test message to one target or all", "发送测试通知",
        {200: notifications.NotificationsTried}, body=requests.NameRequest, body_optional=True, errors=(404, 409),
    ),
)  # fmt: skip

ACCESS = (
    Route(
        "POST", "/api/tokens", "access", "operator", "Make a token; it is shown only once", "创建令牌（仅显示一次）",
        {201: access.NewToken}, body=requests.TokenRequest, errors=(404, 409),
    ),
    Route("GET", "/api/tokens", "access", "operator", "The tokens, without them", "令牌列表", {200: access.TokenList}),
    Route(
        "DELETE", "/api/tokens/<token_id>", "access", "operator", "Revoke a token", "撤销令牌",
        {200: access.TokenRevoked}, errors=(404,),
    ),
    Route(
        "GET", "/api/audit", "access", "viewer", "Who changed what, and from where", "审计：谁在何处做了什么改动",
        {200: access.AuditTrail},
        [
            text("worker", SEVERAL, 4096), text("host", SEVERAL, 4096), text("kind", SEVERAL, 4096),
            text("actor", SEVERAL, 4096),
            text("since", "`2h`, ISO 8601 or Unix seconds"), text("until", "the same"), text("q", "words"),
            whole("after", 0, 2**53, 0, "a `seq`"), whole("limit", 1, 10_000, 200),
        ],
    ),
    Route(
        "POST", "/api/login", "access", "anyone", "A browser logs in with a token", "浏览器登录",
        {200: access.SessionAnswer}, body=requests.LoginRequest,
    ),
    Route(
        "POST", "/api/logout", "access", "anyone", "End the browser's session", "退出登录", {200: manager.Status},
    ),
    Route(
        "GET", "/api/session", "access", "anyone", "Who this browser is", "当前会话", {200: access.SessionAnswer},
    ),
)  # fmt: skip

MANAGER = (
    Route(
        "GET", "/api/ca", "manager", "anyone",
        "The CA of its certificate: who knows the fingerprint checks it by that", "管理端证书的 CA",
        {200: deployments.Ca}, errors=(404,),
    ),
    Route("GET", "/healthz", "manager", "anyone", "It is alive", "存活检查", {200: manager.Status}),
    Route(
        "GET", "/readyz", "manager", "anyone", "It takes changes", "就绪检查", {200: manager.Ready}, errors=(503,),
    ),
    Route(
        "GET", "/metrics", "manager", "viewer or metrics", "For Prometheus", "Prometheus 指标",
        {200: str}, media=(TEXT,),
    ),
    Route(
        "GET", "/api/openapi.json", "manager", "anyone", "This description", "本接口说明", {200: dict[str, Any]},
    ),
)  # fmt: skip

ROUTES = (*WORKERS, *LOGS, *OPERATIONS, *HOSTS, *HISTORY, *ACCESS, *AGENTS, *MANAGER)

# Served as well, but no part of the interface for programs.
PAGES = (("GET", "/"), ("GET", "/static/<path:path>"), ("GET", "/ws"))

_WHO: dict[tuple[str, str], Who] = {
    **{(route.method, route.path): route.who for route in ROUTES},
    **dict.fromkeys(PAGES, "anyone"),  # the WebSocket looks for itself (portal/live/endpoint.py)
}


def who_may(method: str, path: str) -> Who:
    """What the gate goes by. A route without a row is an operator's only."""
    return _WHO.get((method, path), "operator")
