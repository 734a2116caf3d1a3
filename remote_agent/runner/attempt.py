"""One attempt: its launch, whether its exec succeeded, and how it ended. No states, no policy, no sockets."""

from __future__ import annotations

import os
import time

from remote_agent.protocol import reasons
from remote_agent.protocol.reasons import Reason, because, reason_of
from remote_agent.runner import launch as child
from remote_agent.runner.restart import Ending, RestartRules
from remote_agent.system import paths, processes
from remote_agent.system.oom import OomCounter

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from remote_agent.runner.failure_causes.proof import ProvenCause

# Seconds for durations. Continues while the machine sleeps and is not affected by clock changes.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
TTY_ROWS, TTY_COLUMNS, TTY_TERM = 24, 80, "xterm-256color"


def now_s() -> float:
    return time.clock_gettime(_CLOCK)


class Attempt:
    """A started child of this process."""

    def __init__(
        self,
        number: int,
        launch: child.Launch,
        launch_digest: str,
        now: float,
        ooms: OomCounter,
        hooks: list[dict[str, object]] | None = None,
    ) -> None:
        """Start the process; with `hooks` (pre_start) `launch` is the first of them.

        Raises child.NotStarted if only a person can fix the cause, OSError if a retry may succeed.
        """
        self.number = number
        self.launch = launch
        self.launch_digest = launch_digest
        self.started = now
        self.failure = ""  # why exec failed
        self.cause = ""  # why the runner ended it ("start_timeout", "unhealthy"), for the exit record
        self.detail = ""
        self.hooks = list(hooks or [])  # pre_start: the first of them runs now, the command runs afterwards
        self.hook_until = 0.0
        self.first_pid = 0  # of a container: its pid 1; `pid` is the process that is waited for
        self.start_deadline = self.ready_at = self.healthy_at = 0.0  # see `expect`; healthy_at: once it runs
        self.exec_fd = -1
        self.go_on(launch, now)
        self._ooms = ooms
        self.ooms_before = ooms.read()

    @property
    def hook(self) -> dict[str, object] | None:
        return self.hooks[0] if self.hooks else None

    def go_on(self, launch: child.Launch, now: float) -> None:
        """Start the next process of this attempt: the first of `hooks`, or the command. Raises as __init__."""
        self._forget_exec()
        self.launch = launch
        self.hook_until = now + float(str(self.hook.get("timeout_s") or 0)) if self.hook else 0.0
        self.pid, self.exec_fd = child.start(launch)
        self.executed = self.exec_fd < 0
        found = processes.read_process(self.pid)  # not reaped yet, so it exists even if it has died
        self.pid_start = found.start if found else 0

    def adopt(self, keeper: int, first: int, start: int, ooms: OomCounter, ooms_before: int) -> None:
        """Adopt a command that another process has started below this one: `first` (with its start time; 0: it has
        ended) is below `keeper`, which exits with its code and is waited for. `ooms`: counts its OOM kills."""
        self._ooms, self.ooms_before = ooms, ooms_before
        self.pid, self.first_pid, self.pid_start = keeper, first, start
        self._forget_exec()
        self.executed = True

    def goes_on(self) -> bool:
        """Called when `pid` has ended: whether the adopted process is still alive, now as a child of this process."""
        if not self.first_pid or self.pid == self.first_pid:
            return False
        found = processes.read_process(self.first_pid)
        if found is None or found.start != self.pid_start or found.ppid != os.getpid():
            return False
        self.pid = self.first_pid
        return True

    def expect(self, policy: RestartRules, now: float) -> None:
        """Set the deadlines of the process that was just started."""
        self.start_deadline = now + policy.start_timeout_s
        self.ready_at = now + policy.start_secs  # set again after the exec if that happens later

    def why_not_started(self, policy: RestartRules) -> Reason:
        """The reason why the process is not running at its deadline."""
        if self.detail:
            return reason_of(self.detail)
        if not self.executed and self.launch.setup is not None:
            return because("start.setup_slow", limit_s=policy.start_timeout_s)
        if not self.executed:
            return because("start.before_exec")
        return because("start.too_short", limit_s=policy.start_secs)

    def check_exec(self) -> None:
        """Check whether the exec succeeded or failed, if that is known by now. Never blocks."""
        if self.exec_fd < 0:
            return
        word = child.word(self.exec_fd, self.launch)
        if word is None:
            return
        self._forget_exec()
        kind, text = word
        self.executed = kind == child.EXECUTED
        if kind == child.HOPELESS:
            self.failure = text
        elif kind == child.FAILED and not self.cause:
            self.cause, self.detail = "start_timeout", text

    def _forget_exec(self) -> None:
        if self.exec_fd >= 0:
            os.close(self.exec_fd)
        self.exec_fd = -1

    def note_ooms(self) -> None:
        """Poll the OOM counter; called regularly, because only a recent OOM kill counts as the cause of an end."""
        self.ooms_before = self._ooms.read()

    def oom_lately(self) -> bool:
        """Whether the kernel's OOM killer has killed a process of this attempt."""
        return self._ooms.read() > self.ooms_before

    def ended(self, wait_status: int, now: float, was_running: bool) -> Ending:
        """The attempt's ending, from its wait status."""
        self.check_exec()
        self._forget_exec()  # it may have died before exec without a report
        signal = os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else None
        code = os.WEXITSTATUS(wait_status)
        if signal is None and self.first_pid not in (0, self.pid) and 128 < code < 128 + 65:
            signal = code - 128  # how conmon reports this
        return Ending(
            code=None if signal is not None or self.failure else code,
            signal=signal,
            ran_s=now - self.started,
            was_running=was_running,
            oom=signal == 9 and self.oom_lately(),
            cause=self.cause or ("not_started" if self.failure else ""),
            detail=self.detail or self.failure,
        )


def prove(attempt: Attempt, ending: Ending, worker_dir: str, apart: bool, own: dict[str, str]) -> ProvenCause | None:
    """The cause of a failure, proven by the last lines of the log; None if unproven. `apart`: stderr has its own
    log."""
    from remote_agent.runner.failure_causes import proof

    streams = ("out", "err") if apart else ("out",)
    files = [(stream, paths.log_file(worker_dir, attempt.number, stream)) for stream in streams]
    return proof.of_attempt(files, ending.code, ending.signal, ending.oom, attempt.oom_lately(), own)


def build_launch(
    assignment: dict[str, object],
    base_env: dict[str, str],
    number: int,
    cookie: str,
    worker_dir: str,
    hook: dict[str, object] | None = None,
) -> child.Launch:
    """The Launch for what the agent resolved into spec.json (`argv`, `cwd`, `start`), with the environment and log
    files of attempt `number`; for a `hook` (of `start`), with the hook's arguments instead of the command's.

    Raises child.NotStarted if spec.json contains no command, or env_file, venv or conda are unusable.
    """
    argv = (hook or assignment).get("argv")
    if assignment.get("error") or not isinstance(argv, list) or not argv or not argv[0]:
        error = reasons.read(assignment, "error")
        raise child.NotStarted(error or because("start.no_command", path=paths.spec_file(worker_dir)))
    spec, start = assignment["spec"], assignment.get("start")
    assert isinstance(spec, dict)
    cwd = str(assignment.get("cwd") or "")
    own = {str(name): str(value) for name, value in (spec.get("env") or {}).items()}
    env = {"PYTHONUNBUFFERED": "1", **base_env}
    scripts: list[str] = []
    if isinstance(start, dict):
        from remote_agent.runner import environment

        run_as = start.get("run_as")
        if isinstance(run_as, dict):
            env, scripts = environment.compose_as(run_as, base_env, start, own, cwd, hook is not None)
        else:
            env, scripts = environment.compose(env, start, own, cwd, hook is not None)
    else:
        env.update(own)
        start = {}
    given = assignment.get("env")
    of_manager = {str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {}
    env.update(of_manager)
    env.update(
        PROCGUARD_WORKER_ID=str(assignment.get("worker_id", "")),
        PROCGUARD_ATTEMPT=str(number),
        PROCGUARD_EPOCH=str(assignment.get("epoch", 0)),
    )
    env[processes.COOKIE_VARIABLE] = f"{cookie}-{number}"
    launch = child.Launch(
        [str(word) for word in argv],
        cwd,
        env,
        paths.log_file(worker_dir, number),
        paths.log_file(worker_dir, number, "err") if spec.get("stderr") == "separate" else "",
    )
    setup = [] if hook else start.get("setup") or []
    if setup or scripts:
        launch.setup = setup
        last = {name: env[name] for name in of_manager}
        launch.argv = environment.wrapped(launch.command, scripts, setup, last)
    launch.umask = int(start.get("umask", -1))
    launch.run_as = start.get("run_as")
    launch.rlimits = start.get("rlimits") or []
    tty = spec.get("tty")
    if isinstance(tty, dict) and not hook:
        launch.tty = int(tty.get("rows") or TTY_ROWS), int(tty.get("columns") or TTY_COLUMNS)
        launch.err_path = ""
        launch.hangup_ends = str(spec.get("stop_signal") or "").upper() in ("HUP", "SIGHUP")
        env.setdefault("TERM", TTY_TERM)
    return launch
