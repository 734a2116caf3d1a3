"""The fields of a host and its agent. A pending launcher has some of them and three additional ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from procguard.fields import Label, Metric, PageColumn, Printed, ShownField

if TYPE_CHECKING:
    from procguard.fleet.shapes.sources import HostSource
    from remote_agent.protocol.messages import HostUsage

    Of = ShownField[HostSource]
    InUsage = ShownField[HostUsage]
else:
    Of = InUsage = ShownField

USAGE = "usage"
_STATES = '"never", "connected", "suspect", "unreachable", "ended", "pending"'


def _busy(usage: HostUsage) -> int | None:
    busy = [gpu.utilization_percent for gpu in usage.gpus if gpu.utilization_percent is not None]
    return round(sum(busy) / len(busy)) if busy else None


def _sum(usage: HostUsage, name: str) -> int | None:
    return int(sum(getattr(gpu, name) or 0 for gpu in usage.gpus)) if usage.gpus else None


def _used(usage: HostUsage) -> int | None:
    return sum(1 for gpu in usage.gpus if gpu.worker_id or gpu.processes) if usage.gpus else None


HOST: tuple[ShownField[Any], ...] = (
    Of("host", "str", "agent.host", "The host's name in the inventory", Label("Host", "主机"),
       column=PageColumn("host", "minmax(104px, .8fr)", "minmax(90px, 1.3fr)", usual=True),
       printed=Printed("HOST", 0, wide=False, long=True)),
    Of("agent", "str", "agent.agent_id", "The agent's id", live="row"),
    Of("kind", 'Literal["deployed", "launcher"]', "agent.kind", live="row"),
    Of("agent_state", f"Literal[{_STATES}]", "seen.state", "Status of the agent",
       Label("Agent", "Agent"), column=PageColumn("agent", "132px", "132px", usual=True),
       printed=Printed("AGENT", 0, wide=False)),
    Of("labels", "dict[str, str]", "agent.labels", "The labels declared in the inventory", unit="labels",
       optional=True, live="row"),
    Of("spare", "bool | int", "agent.spare", "Whether it may run tasks of other hosts; a number limits them",
       optional=True, live="row"),
    Of("cordoned", "Cordon | None", "cordoned", "The cordon; null if new tasks may be placed there", optional=True,
       live="row"),
    Of("undeclared", "bool", "agent.undeclared", "The inventory that declared it no longer names it",
       optional=True, live="row"),
    Of("workers", "int", "workers", "Number of workers on the host", Label("Workers", "Worker"), "count",
       column=PageColumn("workers", "66px", "64px", usual=True), printed=Printed("WORKERS", 1, wide=False)),
    Of("usage", "messages.HostUsage | None", lambda h: h.encoded("usage"),
       "Resource usage; null if nothing was measured"),
    InUsage("cpu_percent", "float", "cpu_percent", "CPU of the host; 100 is all cores", Label("CPU", "CPU"),
            "percent", USAGE,
            live_read=lambda u: round(u.cpu_percent, 1), column=PageColumn("cpu", "56px", "54px", usual=True),
            printed=Printed("CPU", 5, wide=False),
            metric=Metric("cpu_usage_ratio", "CPU of the host; 1 is all cores busy")),
    InUsage("load1", "float", "load1", "Load average over one minute", Label("Load", "负载"), part_of=USAGE,
            live_read=lambda u: round(u.load1, 2), column=PageColumn("load", "52px", "48px", usual=True),
            printed=Printed("LOAD", 6, wide=False), metric=Metric("load1", "Load average over one minute")),
    InUsage("memory_used_bytes", "int", "memory_used_bytes", "Memory in use", Label("Memory", "内存"), "bytes",
            USAGE, column=PageColumn("memory", "116px", usual=True),
            metric=Metric("memory_used_bytes", "Memory in use")),
    InUsage("swap_used_bytes", "int", "swap_used_bytes", "Swap in use", unit="bytes", part_of=USAGE,
            metric=Metric("swap_used_bytes", "Swap in use")),
    InUsage("disk_free_bytes", "int", "disk_free_bytes", "Free space on the file system of the agent's files",
            Label("Disk free", "磁盘可用"), "bytes", USAGE, column=PageColumn("disk", "70px", usual=True),
            metric=Metric("disk_free_bytes", "Free space on the file system of the agent's files")),
    InUsage("disk_total_bytes", "int", "disk_total_bytes", "Size of that file system", unit="bytes",
            part_of=USAGE, live="measure", metric=Metric("disk_bytes", "Size of that file system")),
    InUsage("network_received_bytes_per_s", "float | None", "network_received_bytes_per_s",
            unit="bytes_per_s", part_of=USAGE, live="measure",
            metric=Metric("network_received_bytes_per_second", "Bytes received")),
    InUsage("network_sent_bytes_per_s", "float | None", "network_sent_bytes_per_s", unit="bytes_per_s",
            part_of=USAGE, live="measure", metric=Metric("network_sent_bytes_per_second", "Bytes sent")),
    InUsage("gpu_percent", "float | None", _busy, "Mean utilization of its GPUs", Label("GPUs", "GPU"), "percent",
            USAGE, column=PageColumn("gpus", "92px", "88px", usual=True), printed=Printed("GPUS", 3, wide=False)),
    InUsage("gpu_memory_used_bytes", "int | None", lambda u: _sum(u, "memory_used_bytes"), unit="bytes",
            part_of=USAGE, live="measure"),
    InUsage("gpu_memory_total_bytes", "int | None", lambda u: _sum(u, "memory_total_bytes"), unit="bytes",
            part_of=USAGE, live="measure"),
    InUsage("gpus_used", "int | None", _used, "GPUs in use, by workers or other processes", part_of=USAGE,
            live="measure"),
    Of("facts", "messages.HostFacts | None", lambda h: h.encoded("facts"), "Facts about the machine"),
    Of("cpus", "int | None", lambda h: h.facts.cpus if h.facts else None, api=False, live="row"),
    Of("memory_bytes", "int | None", lambda h: h.facts.memory_bytes if h.facts else None, api=False, live="row"),
    Of("gpus", "int", lambda h: len(h.usage.gpus) if h.usage else 0, api=False, live="row"),
    Of("gpu_trouble", "str", lambda h: h.usage.gpu_trouble if h.usage else "", api=False, live="row"),
    Of("last_seen", "Moment", "seen.last_seen_wall", "Time of the last heartbeat", Label("Last seen", "最近心跳"),
       "moment", live="measure", live_read=lambda h: round(h.seen.last_seen_wall) if h.seen.last_seen_wall else None,
       column=PageColumn("seen", "96px", "92px", usual=True), printed=Printed("LAST SEEN", 2, wide=False)),
    Of("recovery_ssh", "Checked", "recovery_ssh", "Whether the manager can reach the host over SSH",
       Label("SSH", "SSH"), column=PageColumn("ssh", "100px", usual=True),
       printed=Printed("SSH RECOVERY", 3, wide=False, long=True)),
    Of("release", "str", "release", "The agent's release", Label("Release", "版本"),
       column=None, printed=Printed("RELEASE", 7, wide=False)),
    Of("address", "str", "address", "The address by which it is reached", live="row"),
    Of("agent_pid", "int | None", lambda h: h.beat.pid if h.beat else None, optional=True),
    Of("agent_started", "Moment", lambda h: h.beat.started_at if h.beat else None, unit="moment", optional=True,
       live="row"),
    Of("channel", "str", "seen.channel", "Channel of the last heartbeat: http, zmq or mock", optional=True),
    Of("channel_trouble", "str", lambda h: h.beat.channel_trouble if h.beat else "",
       "Why the agent does not use zmq although it is offered", optional=True),
    Of("disk_trouble", "str", "disk_trouble",
       "Why its disk refuses writes: space, inodes, quota, read_only or io", optional=True, live="row"),
    Of("disk_path", "str", "disk_path", "The path on that disk", optional=True),
    Of("tunnel", "TunnelAnswer | None", "tunnel", "The tunnel over the manager's SSH connection", optional=True,
       live="row"),
    Of("recovery", "HostRecovery | None", "recovery", "The open incident of a silent host", optional=True,
       live="row"),
    Of("rotation", "Rotation | None", "rotation", "A rotation of the agent's secret in progress", optional=True),
    Of("failures", "int", lambda h: len(h.agent.failures), "Number of failures that count in placement",
       optional=True, live="row"),
    Of("last_failure", "Failure | None", "last_failure", optional=True, live="row",
       live_read=lambda h: h.newest_failure),
    Of("fingerprint", "str | None", lambda h: "", "Fingerprint of a launcher that waits for approval", api=False,
       live="row"),
    Of("worker_id", "str | None", lambda h: "", "The launcher's worker", api=False, live="row"),
    Of("command", "str | None", lambda h: "", "The command that the launcher would run", api=False, live="row"),
    Of("reason_code", "str", "seen.reason.code", "Code of the reason, for programs (docs/protocol.md, Reasons)"),
    Of("reason_params", "ReasonParams", "seen.reason.params", "Parameters of the reason"),
    Of("reason", "str", "seen.reason", "Why the agent has this status, as text", Label("Reason", "原因"),
       live_read=lambda h: h.seen.reason.plain(),
       column=PageColumn("reason", "minmax(150px, 2.4fr)", "", usual=True),
       printed=Printed("WHY", 1, wide=False, long=True)),
)  # fmt: skip
OF_PENDING = ("fingerprint", "worker_id", "command")  # keys of pending launchers only
