"""Decides what follows the end of an attempt: restart (and when), finished, or failed. Pure: no clock, no files.

The runner passes the ending of the attempt, the number of automatic restarts used and the worker's policy, and receives
a decision with a reason. Plain classes, because the runner must stay small.

- policy "on-failure" restarts failed attempts, "always" also successful ones, "never" none.
- The first restart of a budget is immediate, then the delays of `backoff_s` apply (the last one repeats), ± jitter.
- After `max_attempts` automatic restarts the worker is failed. Running for `healthy_after_s` resets the budget. If
  `progress` is declared, only progress resets it (`has_progressed`), however long an attempt runs.
- A member of a gang never restarts alone: it fails where another worker would be restarted, and finishes where another
  would finish.
- An attempt that has run for max_run_s fails and is not restarted; under "always" the next one follows at once. Neither
  uses a restart.
- Failures with a cause in `never_on` (runner/failure_causes/) are not restarted.
- A successful end under "always" uses no restart if the attempt was running; if it ran for less than the second
  delay, the next start is delayed by that time to prevent a busy loop.
"""

from __future__ import annotations

from remote_agent.protocol.reasons import NONE, Reason, because, reason_of

RESTART = "restart"
FINISH = "finish"
FAIL = "fail"
STOP = "stop"  # never decided by this module, only requested


class RestartDecision:
    """`action`: one of the above. `delay_s`: until the next start. `restarts`: automatic restarts spent by then."""

    __slots__ = ("action", "delay_s", "reason", "restarts")

    def __init__(self, action: str, delay_s: float, restarts: int, reason: Reason) -> None:
        self.action, self.delay_s, self.restarts, self.reason = action, delay_s, restarts, reason

    def because(self, reason: Reason) -> RestartDecision:
        return RestartDecision(self.action, self.delay_s, self.restarts, reason)


DEFAULT_MAX_ATTEMPTS = 3
LARGEST = 1e9  # no setting is infinite: 30 years, a thousand million restarts
DEFAULT_BACKOFF_S = (0.0, 5.0, 30.0, 120.0, 300.0)


class RestartRules:
    """A worker's restart policy, from protocol.RestartPolicy as JSON. Missing and invalid values get defaults."""

    def __init__(self, values: dict[str, object] | None = None) -> None:
        values = values or {}
        self.policy = values.get("policy") if values.get("policy") in ("always", "never") else "on-failure"
        self.max_attempts = int(_number(values, "max_attempts", DEFAULT_MAX_ATTEMPTS))
        self.backoff_s = _numbers(values.get("backoff_s")) or list(DEFAULT_BACKOFF_S)
        self.jitter = min(_number(values, "jitter", 0.25), 1.0)
        self.start_secs = _number(values, "start_secs", 1.0)
        self.start_timeout_s = _number(values, "start_timeout_s", 30.0)
        self.healthy_after_s = _number(values, "healthy_after_s", 600.0)
        self.progress = str(values.get("progress") or "")
        codes = values.get("success_exit_codes")
        self.success_exit_codes = [int(code) for code in _numbers(codes)] if isinstance(codes, list) else [0]
        self.never_on = _words(values.get("never_on"))
        self.gang = False  # not part of the specification: set by the assignment


class Ending:
    """How one attempt ended.

    `ran_s`: seconds since its start. `was_running`: it had been alive for start_secs. `cause` is set if the exit status
    alone is misleading: "" | "not_started" (and a retry cannot help) | "start_timeout" | "unhealthy" | "lost" (the exit
    was not observed) | "time_limit" (max_run_s) | "taken" (ended through no fault of its own); `detail` explains it.
    `failure`: the cause of its own failure, if proven by its last lines; `proof` describes it in words.
    """

    def __init__(
        self,
        *,
        code: int | None = None,
        signal: int | None = None,
        ran_s: float = 0.0,
        was_running: bool = False,
        oom: bool = False,
        cause: str = "",
        detail: str = "",
        failure: str = "",
        proof: Reason = NONE,
    ) -> None:
        self.code = code
        self.signal = signal
        self.ran_s = ran_s
        self.was_running = was_running
        self.oom = oom
        self.cause = cause
        self.detail = detail
        self.failure = failure
        self.proof = proof


def decide(ending: Ending, restarts: int, policy: RestartRules, roll: float = 0.5) -> RestartDecision:
    """Decide what follows `ending` after `restarts` automatic restarts. `roll` in [0, 1) selects the delay within its
    jitter."""
    restarts = remaining_restarts(restarts, ending.ran_s, policy)
    why = describe(ending)
    if policy.gang and not succeeded(ending, policy):
        return RestartDecision(FAIL, 0.0, restarts, why.then(because("restart.gang")))
    if succeeded(ending, policy):
        return _after_success(ending, restarts, policy, roll, why)
    if ending.cause == "time_limit":  # the requested end, or under "always" the next start; not a failure
        if policy.policy == "always":
            return RestartDecision(RESTART, 0.0, restarts, why.then(because("restart.always", delay_s=0.0)))
        return RestartDecision(FAIL, 0.0, restarts, why.then(because("restart.time_limit")))
    if policy.policy == "never":
        return RestartDecision(FAIL, 0.0, restarts, why.then(because("restart.off")))
    if ending.failure and ending.failure in policy.never_on:
        return RestartDecision(FAIL, 0.0, restarts, why.then(because("restart.never_on", cause=ending.failure)))
    return _again(restarts, policy, roll, why)


def _after_success(ending: Ending, restarts: int, policy: RestartRules, roll: float, why: Reason) -> RestartDecision:
    if policy.policy != "always" or policy.gang:
        return RestartDecision(FINISH, 0.0, restarts, because("exit.finished", why=why))
    if not ending.was_running:
        return _again(restarts, policy, roll, why)
    pause_s = policy.backoff_s[min(1, len(policy.backoff_s) - 1)]
    delay_s = 0.0 if ending.ran_s >= pause_s else pause_s
    return RestartDecision(RESTART, delay_s, restarts, why.then(because("restart.always", delay_s=delay_s)))


def _again(restarts: int, policy: RestartRules, roll: float, why: Reason) -> RestartDecision:
    if policy.max_attempts <= 0:
        return RestartDecision(FAIL, 0.0, restarts, why.then(because("restart.none")))
    if restarts >= policy.max_attempts:
        return RestartDecision(FAIL, 0.0, restarts, why.then(because("restart.spent", n=policy.max_attempts)))
    step_s = policy.backoff_s[min(restarts, len(policy.backoff_s) - 1)]
    delay_s = step_s * (1.0 + policy.jitter * (2.0 * roll - 1.0))
    then = because("restart.next", k=restarts + 1, n=policy.max_attempts, delay_s=delay_s)
    return RestartDecision(RESTART, delay_s, restarts + 1, why.then(then))


def remaining_restarts(restarts: int, ran_s: float, policy: RestartRules) -> int:
    """The restarts spent after an attempt has run for `ran_s`: 0 once it has run long enough, unless only progress
    resets the budget."""
    return 0 if ran_s >= policy.healthy_after_s and not policy.progress else restarts


def has_progressed(highest: object, value: object) -> tuple[bool, float | None]:
    """(whether `value` is progress, the highest value so far). The first value is not progress, only the current
    position. An attempt that repeats the work of an earlier one makes no progress."""
    before = highest if isinstance(highest, float) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
        return False, before
    if before is None or value > before:
        return before is not None, float(value)
    return False, before


def needs_runner(spec: dict[str, object], status: dict[str, object]) -> bool:
    """Whether a runner has something to do. `spec`: an assignment; `status`: the last state.json ({}: never ran).

    True while a child may exist or a restart is due, and for a settled worker that was `in_hand` of a runner that died.
    `spec["unleased"]`: a fenced worker without a lease starts nothing; leftovers of a dead runner are still stopped.
    """
    settled = (status.get("state") or "stopped") in ("stopped", "exited", "failed")
    return not settled or bool(status.get("in_hand")) or (may_start(spec, status) and not spec.get("unleased"))


def may_start(spec: dict[str, object], status: dict[str, object]) -> bool:
    """Whether a settled worker may start: its desired state is running, and no operator has stopped it.

    An exited or failed worker, or one stopped by an operator (`held`), needs a new generation. A worker that was
    stopped only because its host shut down starts again, and so does one whose runner died just before its first start.
    """
    if spec.get("desired") != "running":
        return False
    if not status or status.get("in_hand") or (status.get("state", "stopped") == "stopped" and not status.get("held")):
        return True
    return _number(spec, "generation", 0) > _number(status, "generation", 0)


# The first action of a runner for a worker of a former runner (`take_over`).
REST, GO_ON, BY_POLICY, START_AFRESH = "rest", "go_on", "by_policy", "start_afresh"
END_STOPPED, END_THEN_START = "end_stopped", "end_then_start"


def take_over(spec: dict[str, object], former: dict[str, object], state: str) -> str:
    """The action after a previous runner, once the processes that it left have ended. `spec`: the assignment; `former`:
    the previous runner's state.json ({}: never ran); `state`: the worker's state according to it.

    END_STOPPED, END_THEN_START: complete a stop. BY_POLICY: its attempt ended unobserved. GO_ON: continue the delay.
    """
    wanted = spec.get("desired") == "running"
    afresh = _number(spec, "generation", 0) > _number(former, "generation", 0)
    if state == "stopping":
        return END_THEN_START if wanted and not former.get("held") else END_STOPPED
    if state in ("starting", "running", "backoff"):
        if not wanted:
            return END_STOPPED
        if afresh:
            return START_AFRESH
        return GO_ON if state == "backoff" else BY_POLICY
    return START_AFRESH if may_start(spec, former) else REST


def succeeded(ending: Ending, policy: RestartRules) -> bool:
    return not ending.cause and ending.code is not None and ending.code in policy.success_exit_codes


# -------------------------------------------------------------------------------------------------------- reasons


def describe(ending: Ending) -> Reason:
    """'killed by signal 9 (SIGKILL) after 3 h 12 min'"""
    return _how(ending).then(ending.proof)


def _how(ending: Ending) -> Reason:
    ran_s, why = ending.ran_s, ending.detail
    if ending.cause == "lost":
        return reason_of(why) if why else because("exit.unseen")
    if ending.cause == "taken":
        return because("exit.taken", why=why, ran_s=ran_s)
    if ending.cause == "not_started":
        return reason_of(why)
    if ending.cause == "start_timeout":
        return (
            because("exit.not_running_why", why=why, ran_s=ran_s) if why else because("exit.not_running", ran_s=ran_s)
        )
    if ending.cause == "time_limit":
        return because("exit.time_limit", ran_s=ran_s).then(why)
    if ending.cause == "unhealthy":
        return because("exit.unhealthy_why", why=why, ran_s=ran_s) if why else because("exit.unhealthy", ran_s=ran_s)
    if ending.signal is not None:
        name = signal_name(ending.signal)
        if ending.oom:
            return because("exit.oom", signal=ending.signal, name=name, ran_s=ran_s)
        return because("exit.signal", signal=ending.signal, name=name, ran_s=ran_s)
    if ending.code is None:
        return because("exit.ended", ran_s=ran_s)
    return because("exit.code", code=ending.code, ran_s=ran_s)


def describe_left(count: int, names: list[str], ending: Ending) -> Reason:
    """The reason text for a command that left processes in the background, which were ended, with the next step."""
    left = because("exit.left_named", n=count, names=names) if names else because("exit.left", n=count)
    return left.then(because("exit.foreground")) if ending.code == 0 else left


# The numbers on Linux are the same on all supported machines (x86, ARM, RISC-V, POWER).
_SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
    16: "SIGSTKFLT", 17: "SIGCHLD", 18: "SIGCONT", 19: "SIGSTOP", 20: "SIGTSTP", 21: "SIGTTIN", 22: "SIGTTOU",
    23: "SIGURG", 24: "SIGXCPU", 25: "SIGXFSZ", 26: "SIGVTALRM", 27: "SIGPROF", 28: "SIGWINCH", 29: "SIGIO",
    30: "SIGPWR", 31: "SIGSYS",
}  # fmt: skip


def signal_name(number: int) -> str:
    return _SIGNALS.get(number, f"SIG{number}")


def signal_number(name: str, default: int = 15) -> int:
    """The number of a signal: 'TERM', 'SIGTERM' or '15' -> 15; `default` for any other text."""
    text = str(name).strip().upper()
    if text.isdigit() and 0 < int(text) < 65:
        return int(text)
    wanted = text if text.startswith("SIG") else f"SIG{text}"
    for number, known in _SIGNALS.items():
        if known == wanted:
            return number
    return default


def _number(values: dict[str, object], key: str, default: float) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        return default
    return min(float(value), LARGEST)


def _words(values: object) -> list[str]:
    return [str(one) for one in values] if isinstance(values, list) else []


def _numbers(values: object) -> list[float]:
    if not isinstance(values, list):
        return []
    return [
        min(float(v), LARGEST) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0
    ]
