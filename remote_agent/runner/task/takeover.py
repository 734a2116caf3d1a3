"""The first action of a runner: take over from a previous runner of the worker, or start from the beginning.

Reads what the previous runner left (state.json, exit records, processes) and records on the task what follows, as
decided by restart.take_over; it takes effect once no process of the previous runner is alive.
"""

from __future__ import annotations

import time

from remote_agent.protocol import states
from remote_agent.protocol.reasons import because
from remote_agent.runner import restart
from remote_agent.runner.restart import Ending
from remote_agent.runner.state import whole
from remote_agent.runner.task import phases
from remote_agent.runner.task.assignment import AFRESH, ASKED, START, STOP, TaskAssignment
from remote_agent.runner.task.task import WorkerTask
from remote_agent.runner.task.task_runner import TaskRunner
from remote_agent.runner.task.tree import WorkerProcesses
from remote_agent.system import processes
from remote_agent.system.processes import Identity

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Iterable


def begin(
    runner: TaskRunner,
    now: float,
    lease: tuple[int, int] = (0, 0),
    wanted: dict[str, object] | None = None,
    seen: Iterable[tuple[int, int]] = (),
) -> None:
    """`lease`: (epoch, until_ns) as the agent knew it when it started this runner; (0, 0): none. `wanted`: {"desired",
    "generation", "epoch"} of an assignment that may be missing from spec.json because the disk is full. `seen`: (pid,
    start) of processes that the agent observed in this boot below a previous runner. Raises ValueError or OSError if
    spec.json is unusable."""
    task = runner.task
    record, values = task.state.record, task.state.values
    former = record.read_state()
    assignment = TaskAssignment(record.read_spec()).overruled(wanted or {})
    boot = processes.boot_id()
    same_boot = former.get("boot_id") == boot
    pid = whole(former, "pid") if same_boot else 0
    task.state.take_over(former, str(assignment.values.get("worker_id", "")), boot)
    tree = WorkerProcesses(
        record,
        str(values["cookie"]),
        str(values["cgroup"]),
        Identity(pid, whole(former, "pid_start"), boot) if pid else None,
        [Identity(*one, boot) for one in seen],
        assignment.container is not None,
    )
    task.own(tree)
    values["cgroup"] = tree.group
    afresh = assignment.generation > whole(former, "generation")
    if afresh:
        values.update(generation=assignment.generation, restarts=0, progress=None)
    task.obey(assignment)
    if same_boot:  # leases are invalid after a reboot
        task.lease.grant(whole(former, "lease_epoch"), whole(former, "lease_until_ns"))
    task.lease.grant(*lease)
    task.note_lease()
    reached = 0
    if former and same_boot and tree.left_behind():
        reached = task.sweep_first(now)
    else:
        task.nothing_to_sweep()
    if values["state"] in states.ALIVE:
        ending = _lost_ending(task, former, same_boot, reached)
        task.take_over_ending(whole(values, "attempt"), ending)
    else:
        ending = Ending()
    _note_what_follows(runner, former, ending, afresh, now)
    if not task.settled:
        # From here until the worker is settled, a process may be started at any time; the next runner must search for
        # it.
        values["in_hand"] = task.scheduled is not None or values["state"] not in states.SETTLED
        task.state.publish()
        runner.advance(now)


def _note_what_follows(runner: TaskRunner, former: dict[str, object], ending: Ending, afresh: bool, now: float) -> None:
    task = runner.task
    values = task.state.values
    state = str(values["state"])
    what = restart.take_over(task.assignment.values, former, state)
    if what == restart.START_AFRESH:
        # Ends of leases and reboots between attempts do not reset the budget, because nobody has decided them. A
        # completed stop without a lease was decided: Ctrl-C in the launcher, or a shutdown.
        if task.lease.lease_s is None:
            values.update(restarts=0, progress=None)
        task.schedule(restart.RESTART, ASKED[AFRESH], now)
    elif what == restart.BY_POLICY:
        task.decide(ending, now)
    elif what == restart.GO_ON:
        left_s = float(str(former.get("next_start_at") or 0)) - time.time()
        task.next_start = now + min(max(left_s, 0.0), max(task.policy.backoff_s) * 2)
        values["next_start_at"] = time.time() + task.next_start - now
    elif what == restart.REST:
        if task.phase == phases.DECIDING:
            runner.finish()
    elif state == states.STOPPING:
        task.asked = STOP if what == restart.END_STOPPED else START if afresh else AFRESH
    elif state == states.BACKOFF:
        task.schedule(restart.STOP, ASKED[STOP], now)
    else:
        task.request(STOP)


def _lost_ending(task: WorkerTask, former: dict[str, object], same_boot: bool, reached: int) -> Ending:
    """How the previous runner's last attempt ended: its exit record if it was written, otherwise "lost", because nobody
    saw it. `reached`: the number of its processes that were still alive."""
    number = whole(task.state.values, "attempt")
    known = task.state.record.read_exit(number)
    if known is not None:
        task.state.values["last_exit"] = known
        code, signal = known.get("code"), known.get("signal")
        return Ending(
            code=code if isinstance(code, int) else None,
            signal=signal if isinstance(signal, int) else None,
            ran_s=float(str(known.get("duration_s") or 0)),
            was_running=former.get("state") == states.RUNNING,
            failure=str(known.get("cause") or ""),
        )
    detail = because("exit.runner_killed") if same_boot else because("exit.host_down")
    if reached:
        detail = detail.then(because("exit.swept", n=reached))
    ending = Ending(cause="lost", detail=detail, was_running=True)
    task.state.note_exit(number, ending)
    return ending
