"""The fields of a worker. A new field is a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from procguard.fields import Label, Metric, PageColumn, Printed, ShownField
from procguard.fleet.shapes import log_metrics

if TYPE_CHECKING:
    from procguard.fleet.shapes.sources import WorkerSource
    from remote_agent.protocol.messages import WorkerUsage

    Of = ShownField[WorkerSource]
    InUsage = ShownField[WorkerUsage]
else:
    Of = InUsage = ShownField

USAGE = "usage"
NOT_LISTED: Any = {"live": "", "column": None}  # the label is used by the command line only

WORKER: tuple[ShownField[Any], ...] = (
    Of("worker_id", "str", "worker.worker_id", "Unique in the fleet", Label("Worker", "Worker"),
       column=None, printed=Printed("WORKER", 0, wide=False, long=True), sortable=True),
    Of("state", "messages.State", "state", "`unknown` while its agent is out of reach",
       Label("State", "状态"), column=None, printed=Printed("STATE", 0, wide=False, long=True), sortable=True),
    Of("last_known_state", "messages.State", "known", "What was reported last", live="row"),
    Of("desired", "messages.Desired", "worker.desired", "What its declaration or an operator wants of it",
       live="row", sortable=True),
    Of("host", "str", "worker.host", "The host it lives on", Label("Host", "主机"),
       column=PageColumn(width="minmax(80px, .3fr)", narrow="minmax(60px, 1fr)", usual=True),
       printed=Printed("HOST", 1, wide=False, long=True), sortable=True),
    Of("agent", "str", "worker.agent_id", "The agent that runs it", live="row", sortable=True),
    Of("group", "str", "worker.spec.group", "As declared", Label("Group", "组"),
       column=PageColumn(width="minmax(70px, .6fr)"), sortable=True),
    Of("labels", "dict[str, str]", "worker.spec.labels", "As declared", Label("Labels", "标签"), "labels",
       column=PageColumn(width="minmax(90px, .9fr)"), printed=Printed(long=True)),
    Of("attempt", "int", lambda w: max(w.worker.attempt, w.report.attempt if w.report else 0), "Which start of it",
       Label("Attempt", "次数"), unit="count", column=PageColumn(width="52px"), sortable=True),
    Of("pid", "int | None", lambda w: w.report.pid if w.report else None, "Of its process", Label("PID", "PID"),
       printed=Printed("PID", 7, wide=False), sortable=True, **NOT_LISTED),
    Of("epoch", "int", "worker.epoch", "Rises when it changes its host, or its gang starts"),
    Of("generation", "int", "worker.generation", "Rises with each change of what is wanted"),
    Of("current", "bool", "is_current", "Whether what its host reports is of what was asked last"),
    Of("restarts", "int", lambda w: w.report.restarts if w.report else 0,
       "Automatic restarts since the budget was last given back", live="row", sortable=True),
    Of("restarts_total", "int", lambda w: w.report.restarts_total if w.report else 0, "All automatic restarts",
       Label("Restarts", "重启"), unit="count", column=PageColumn("restarts", "60px", "60px", usual=True),
       printed=Printed("RESTARTS", 3, wide=False), sortable=True),
    Of("usage", "messages.WorkerUsage | None", lambda w: w.encoded("usage"), "Null: nothing was measured"),
    InUsage("cpu_percent", "float", "cpu_percent", "100 is one core", Label("CPU", "CPU"), "percent", USAGE,
            live_read=lambda u: round(u.cpu_percent, 1), column=PageColumn("cpu", "62px", "54px", usual=True),
            printed=Printed("CPU", 6, wide=False),
            metric=Metric("cpu_usage_ratio", "CPU of the process tree; 1 is one core busy")),
    InUsage("rss_bytes", "int", "rss_bytes",
            "Memory of the process tree; of a container, that of its control group", Label("Memory", "内存"), "bytes",
            USAGE, column=PageColumn("rss", "76px", "66px", usual=True), printed=Printed("MEMORY", 5, wide=False),
            metric=Metric("resident_memory_bytes", "Memory of the process tree (RSS)")),
    InUsage("pss_bytes", "int | None", "pss_bytes", "With shared pages divided", unit="bytes", part_of=USAGE,
            metric=Metric("proportional_memory_bytes", "Memory of the tree with shared pages divided (PSS)")),
    InUsage("processes", "int", "processes", "Of the tree", Label("Processes", "进程"), "count", USAGE,
            metric=Metric("processes", "Processes of the tree"), **NOT_LISTED),
    InUsage("threads", "int", "threads", "Of the tree", Label("Threads", "线程"), "count", USAGE,
            metric=Metric("threads", "Threads of the tree"), **NOT_LISTED),
    InUsage("fds", "int | None", "fds", "Of the tree", unit="count", part_of=USAGE,
            metric=Metric("open_fds", "Open file descriptors of the tree")),
    InUsage("read_bytes_per_s", "float | None", "read_bytes_per_s", "From storage", unit="bytes_per_s",
            part_of=USAGE, metric=Metric("read_bytes_per_second", "Bytes read from storage")),
    InUsage("written_bytes_per_s", "float | None", "written_bytes_per_s", "To storage", unit="bytes_per_s",
            part_of=USAGE, metric=Metric("written_bytes_per_second", "Bytes written to storage")),
    Of("gpus", "list[int] | None", lambda w: w.usage.gpus if w.usage else None, "Which", part_of=USAGE, live="row"),
    InUsage("gpu_percent", "float | None", "gpu_percent", "Mean over its GPUs", Label("GPU", "GPU"),
            "percent", USAGE, live_read=lambda u: None if u.gpu_percent is None else round(u.gpu_percent),
            column=PageColumn("gpu", "84px", usual=True), printed=Printed("GPU", 4, wide=False),
            metric=Metric("gpu_utilization_ratio", "Mean utilisation of its GPUs")),
    InUsage("gpu_memory_bytes", "int | None", "gpu_memory_bytes", "Of its own processes",
            Label("GPU memory", "显存"), "bytes", USAGE, column=PageColumn("gpu_memory", "92px"),
            metric=Metric("gpu_memory_bytes", "GPU memory of its own processes")),
    Of("metrics", "list[messages.LogMetric]", lambda w: log_metrics.listed(w.report), "Numbers from its log",
       Label("Metrics", "指标"), live="measure", live_read=lambda w: log_metrics.values(w.report),
       column=PageColumn("metrics", "minmax(84px, 1fr)")),
    Of("progress_percent", "float | None", lambda w: log_metrics.progress_percent(w.report),
       "Of the first metric with a total", Label("Progress", "进度"), "percent", live="measure",
       column=PageColumn("progress", "132px")),
    Of("eta_s", "float | None", lambda w: log_metrics.eta_s(w.report), "Seconds left, as of that metric's last change",
       live="measure"),
    Of("last_exit", "messages.ExitRecord | None", lambda w: w.encoded("last_exit"), "How it ended last"),
    Of("health", "messages.Health | None", lambda w: w.encoded("health"), "Null: it has no checks", live="row",
       live_read=lambda w: w.health),
    Of("suspect", "str | None", "suspicion", "Evidence that it hangs", live="row",
       live_read=lambda w: w.suspicion.plain() if w.suspicion else None),
    Of("suspect_code", "str", lambda w: w.suspicion.code if w.suspicion else "", "What kind of evidence"),
    Of("suspect_params", "dict[str, Any]", lambda w: w.suspicion.params if w.suspicion else {}, "Of its text"),
    Of("restart_pending", "bool", "restart_pending", "It runs as declared earlier", live="row"),
    Of("undeclared", "bool", "worker.undeclared", "Its inventory names it no more", live="row"),
    Of("next_start_in_s", "float | None", lambda w: w.report.next_start_in_s if w.report else None, "In backoff"),
    Of("next_start_at", "float | None", "next_start_at", api=False, live="row"),
    Of("home", "str | None", lambda w: w.worker.home or None, "Where it belongs while it lives elsewhere"),
    Of("moving_to", "str | None", "moving_to", "The agent it is being moved to"),
    Of("moves", "int", "worker.moves", "How often it moved without having been healthy"),
    Of("recovery", "WorkerRecoveryStatus | None", "recovery", "Why its task waits for another host"),
    Of("gang", "GangOfWorker | None", "gang", "Null: it is no member of a gang"),
    Of("since", "Moment", lambda w: w.report.since if w.report else w.worker.last_since, "When it entered its state",
       Label("Since", "持续"), "moment", column=PageColumn(width="84px", narrow="84px", usual=True),
       printed=Printed("SINCE", 2, wide=False), sortable=True),
    Of("last_seen", "Moment", "last_seen_wall", "The last heartbeat of its agent", unit="moment", live="row",
       # otherwise the host's row shows it
       live_read=lambda w: None if w.reachable else w.last_seen_wall, sortable=True),
    Of("command", "str", "command", "As declared", Label("Command", "命令"),
       column=PageColumn(width="minmax(120px, 1.4fr)"), printed=Printed(long=True)),
    Of("reason_code", "str", "reason.code", "The reason for programs (docs/protocol.md, Reasons)", sortable=True),
    Of("reason_params", "dict[str, Any]", "reason.params", "Of the reason's text"),
    Of("reason", "str", "reason", "Why it is in its state", Label("Reason", "原因"),
       live_read=lambda w: w.reason.plain(),
       column=PageColumn(width="minmax(138px, 3fr)", narrow="", usual=True),
       printed=Printed("WHY", 1, wide=False, long=True), sortable=True),
)  # fmt: skip
