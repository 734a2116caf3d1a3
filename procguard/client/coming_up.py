"""Checks whether started or restarted workers have come up: waits for them within a limit, and reports failures.

Reads the manager's views and logs; changes nothing. Owns the criteria: a worker whose desired state is running and
that is failed or in backoff has not come up. Stopped, finished, held and still starting workers are not failures.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from procguard.client.api import ManagerClient
from procguard.client.types import WorkerInfo
from procguard.errors import ProcGuardError, UsageError
from remote_agent.protocol import states

LONGEST_S = 15.0
LOG_TIMEOUT_S = 1.5  # for the last log lines of all failed workers together to arrive at the manager
LOG_LINES = 60
MAX_LOGS = 12
MAX_HOST_QUERY = 2_000  # characters; for a longer list of hosts, all workers are requested
POLL_S, SLOWEST_POLL_S = 0.1, 2.0
POLL_SHARE = 0.1  # requests take at most this share of the time
BAD = (states.FAILED, states.BACKOFF)


@dataclass(frozen=True)
class WaitLimit:
    """How long to wait. `seconds`: None to wait until each worker has been up for its start_secs, at most LONGEST_S."""

    seconds: float | None = None

    @property
    def longest_s(self) -> float:
        return LONGEST_S if self.seconds is None else self.seconds


NO_WAIT = WaitLimit(0.0)


@dataclass(frozen=True)
class Started:
    """A worker to wait for. `attempt`: the first attempt that counts. `stop_s`: seconds that ending its previous
    process may take."""

    attempt: int = 0
    start_secs: float = 1.0
    stop_s: float = 0.0


def wait_limit(wait: str, no_wait: bool) -> WaitLimit:
    """The limit given by --wait SECONDS and --no-wait. Raises UsageError."""
    if no_wait and wait:
        raise UsageError("--wait and --no-wait cannot be combined", "use only one of them")
    if no_wait:
        return NO_WAIT
    if not wait:
        return WaitLimit()
    if not re.fullmatch(r"\d{1,6}(\.\d*)?", wait):
        raise UsageError(f"--wait {wait}: expected seconds", "e.g. --wait 60, or --no-wait")
    return WaitLimit(float(wait))


def is_held(view: WorkerInfo) -> bool:
    """Whether the worker's gang prevents its start, for a reason other than that the gang has failed."""
    gang = view.get("gang") or {}
    return bool(gang.get("held")) and gang.get("phase") != "failed"


def is_bad(view: WorkerInfo) -> bool:
    """Whether the worker's desired state is running and it is failed or in backoff, and not held by its gang."""
    return view.get("desired") == "running" and view.get("state") in BAD and not is_held(view)


def is_decided(view: WorkerInfo, one: Started, seen_for_s: float, limit: WaitLimit) -> bool:
    """Whether there is nothing more to wait for. `seen_for_s`: seconds since the view first reflected the request."""
    if view.get("desired") != "running" or (is_held(view) and (view["gang"] or {}).get("phase") != "restarting"):
        return True
    if not answers(view, one):
        return False
    state, window_s = view.get("state"), one.start_secs if limit.seconds is None else limit.seconds
    if state in (states.FAILED, states.EXITED):
        return True
    if state == states.RUNNING:
        return limit.seconds is None or seen_for_s >= window_s
    if state == states.BACKOFF:
        return seen_for_s + float(view.get("next_start_in_s") or 0.0) >= window_s
    return False


def answers(view: WorkerInfo, one: Started) -> bool:
    """Whether the view reflects the latest request. A manager of an earlier release does not send `current`, which is
    then taken as true."""
    attempt = int(view.get("attempt") or 0)
    if not attempt and view.get("state") in BAD:
        return True  # its host cannot start an attempt: no disk space, for example, or no GPU
    return bool(view.get("current", True)) and attempt >= one.attempt


class Watcher:
    """Polls the views of workers. Thread-safe: concurrent callers share one request."""

    def __init__(self, client: ManagerClient, limit: WaitLimit) -> None:
        self._client = client
        self.limit = limit
        self._lock = threading.Lock()
        self._asked_at = 0.0  # monotonic
        self._pause_s = POLL_S
        self._answer: dict[str, WorkerInfo] = {}
        self._hosts = ""

    def views(self, age_s: float = 0.0) -> dict[str, WorkerInfo]:
        """The views of all workers, by worker id, at most `age_s` seconds old."""
        return self._fresh(time.monotonic() - age_s, "")

    def wait(self, started: Mapping[str, Started], hosts: Iterable[str] = ()) -> dict[str, WorkerInfo]:
        """Wait until all workers of `started` are decided or the limit has passed. `hosts`: request only the workers of
        these hosts. Returns the views by worker id."""
        names = ",".join(sorted(hosts))
        began = time.monotonic()
        longest_s = self.limit.longest_s + max((one.stop_s for one in started.values()), default=0.0)
        if not self.limit.longest_s:
            longest_s = 0.0
        first_seen: dict[str, float] = {}
        while True:
            views, now = self._fresh(time.monotonic(), names), time.monotonic()
            for worker_id, one in started.items():
                if worker_id in views and answers(views[worker_id], one):
                    first_seen.setdefault(worker_id, now)
            undecided = [
                worker_id
                for worker_id, one in started.items()
                if worker_id not in views
                or not is_decided(views[worker_id], one, now - first_seen.get(worker_id, now), self.limit)
            ]
            left_s = began + longest_s - now
            if not undecided or left_s <= 0:
                return views
            time.sleep(min(self._pause_s, left_s))

    def _fresh(self, not_before: float, hosts: str) -> dict[str, WorkerInfo]:
        with self._lock:
            if self._asked_at <= not_before or self._hosts != hosts:
                asked_at = time.monotonic()
                found = self._client.workers(**({"host": hosts} if 0 < len(hosts) <= MAX_HOST_QUERY else {}))
                self._answer = {str(view["worker_id"]): view for view in found}
                self._asked_at, self._hosts = asked_at, hosts
                took_s = time.monotonic() - asked_at
                self._pause_s = min(max(POLL_S, took_s / POLL_SHARE), SLOWEST_POLL_S)
            return self._answer

    def complaints(self, bad: Iterable[WorkerInfo]) -> dict[str, str]:
        """A message by worker id: "in backoff: exit code 1 after 0.1 s; restart 1 of 3 in 5 s: ValueError: no data"."""
        lines, deadline = {}, time.monotonic() + LOG_TIMEOUT_S
        for number, view in enumerate(bad):
            line = self._error_line(view, deadline) if number < MAX_LOGS else ""
            words = [
                "in backoff" if view["state"] == states.BACKOFF else str(view["state"]),
                str(view.get("reason") or ""),
                line,
            ]
            lines[str(view["worker_id"])] = printable(": ".join(word for word in words if word))
        return lines

    def _error_line(self, view: WorkerInfo, deadline: float) -> str:
        """The error line of the worker's last attempt; "" if it never ran or printed nothing."""
        last = view.get("last_exit") or {}
        if not last.get("attempt") or (last.get("code") is None and last.get("signal") is None):
            return ""
        while True:
            try:
                pieces = self._client.log_pieces(str(view["worker_id"]), attempt=last["attempt"], tail=LOG_LINES)
                text = b"".join(pieces).decode(errors="replace")
            except ProcGuardError:
                return ""
            if text.strip() or time.monotonic() > deadline:
                return error_line(text)
            time.sleep(POLL_S)


_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)")
_TRACEBACK = "Traceback (most recent call last):"
_ERROR = re.compile(
    r"\b(\w*error|\w*exception|not found|no such|cannot|can't|could not|unable|denied|refused|fatal|panic|fail(ed|ure)?"
    r"|unknown|invalid|missing|usage)\b",
    re.IGNORECASE,
)
MAX_LINE_CHARS = 300


def printable(text: str, keep: str = "") -> str:
    """`text` without escape sequences, and with spaces for other control characters except those in `keep`: a job's
    output must not control the operator's terminal."""
    return "".join(letter if letter.isprintable() or letter in keep else " " for letter in _ANSI.sub("", text))


def error_line(text: str) -> str:
    """The line that describes the error: the exception of a Python traceback, else the first line that matches _ERROR,
    else the last line. At most MAX_LINE_CHARS characters; "" if there are only empty lines."""
    lines = [line.rstrip() for line in printable(text, keep="\n\t").splitlines() if line.strip()]
    if not lines:
        return ""
    begin = next((number for number, line in enumerate(lines) if line.strip() == _TRACEBACK), None)
    if begin is not None:
        found = next((line for line in lines[begin + 1 :] if not line.startswith((" ", "\t"))), lines[-1])
    else:
        found = next((line for line in lines if _ERROR.search(line)), lines[-1])
    return found.strip()[:MAX_LINE_CHARS]


# ------------------------------------------------------------------------------------------------- one command

UP = (states.RUNNING, states.STARTING)
DEFAULT_GRACE_S = 10.0


def follow(
    client: ManagerClient, before: WorkerInfo, verb: str, command_id: str, limit: WaitLimit
) -> tuple[WorkerInfo, str]:
    """Wait for the result of a start or restart of one worker. Returns its view and what is wrong ("": nothing).
    `before`: its view before the command. Ends once the result is decided or the limit has passed, and immediately if
    the host is unreachable; an agent that the manager has not heard since its own start may still connect."""
    known = int(before.get("attempt") or 0)
    runs_on = verb == "start" and before.get("state") in UP
    one = Started(known if runs_on else known + 1, stop_s=DEFAULT_GRACE_S)
    began, first_seen = time.monotonic(), None
    while True:
        view, command, now = (
            client.worker(str(before["worker_id"])),
            client.command_status(command_id),
            time.monotonic(),
        )
        if command["status"] in ("failed", "expired"):
            return view, f"was not {verb}ed: {command['message']}"
        if command["status"] == "done" and verb == "restart":
            one = replace(one, attempt=0)
        if answers(view, one) and first_seen is None:
            first_seen = now
        if view.get("state") == states.UNKNOWN and (view.get("last_seen") or now - began >= limit.longest_s):
            what = "it is carried out when the host returns" if verb == "start" else "a restart expires after a minute"
            return view, f"is unreachable on {view['host']} ({view['reason']}); {what}"
        over = now - began >= limit.longest_s + one.stop_s
        if over or is_decided(view, one, now - (first_seen or now), limit):
            if not is_bad(view):
                return view, ""
            return view, "is " + Watcher(client, limit).complaints([view])[str(view["worker_id"])]
        time.sleep(POLL_S)
