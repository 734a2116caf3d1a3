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
from typing import Any

from procguard.client.api import ManagerClient
from procguard.errors import ProcGuardError, UsageError
from remote_agent.protocol import states

LONGEST_S = 15.0
LOG_TIMEOUT_S = 1.5  # for the last lines of those that failed to reach the manager, of all of them together
LOG_LINES = 60
MAX_LOGS = 12
MAX_HOST_QUERY = 2_000  # characters; beyond it every worker is asked for
POLL_S, SLOWEST_POLL_S = 0.1, 2.0
POLL_SHARE = 0.1  # at most this share of the manager's time
BAD = (states.FAILED, states.BACKOFF)


View = dict[str, Any]


@dataclass(frozen=True)
class WaitLimit:
    """How long to wait. `seconds` None: until each has been up for its start_secs, at most LONGEST_S."""

    seconds: float | None = None

    @property
    def longest_s(self) -> float:
        return LONGEST_S if self.seconds is None else self.seconds


NO_WAIT = WaitLimit(0.0)


@dataclass(frozen=True)
class Started:
    """One worker to wait for. `attempt`: the first that counts. `stop_s`: what ending its old process may take."""

    attempt: int = 0
    start_secs: float = 1.0
    stop_s: float = 0.0


def wait_limit(wait: str, no_wait: bool) -> WaitLimit:
    """From --wait S and --no-wait."""
    if no_wait and wait:
        raise UsageError("--wait and --no-wait exclude each other", "use only one of them")
    if no_wait:
        return NO_WAIT
    if not wait:
        return WaitLimit()
    if not re.fullmatch(r"\d{1,6}(\.\d*)?", wait):
        raise UsageError(f"--wait {wait}: expected seconds", "e.g. --wait 60, or --no-wait")
    return WaitLimit(float(wait))


def is_held(view: View) -> bool:
    """By its gang, for another reason than that the gang has failed."""
    gang = view.get("gang") or {}
    return bool(gang.get("held")) and gang.get("phase") != "failed"


def is_bad(view: View) -> bool:
    """It is to run and does not: failed, or between two attempts."""
    return view.get("desired") == "running" and view.get("state") in BAD and not is_held(view)


def is_decided(view: View, one: Started, seen_for_s: float, limit: WaitLimit) -> bool:
    """Whether there is nothing more to wait for. `seen_for_s`: since its view first answered what was asked."""
    if view.get("desired") != "running" or (is_held(view) and view["gang"].get("phase") != "restarting"):
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


def answers(view: View, one: Started) -> bool:
    """Whether what its host reports is of what was asked last; a manager of an earlier release does not say so."""
    attempt = int(view.get("attempt") or 0)
    if not attempt and view.get("state") in BAD:
        return True  # its host can't start one: no room there, or no GPU
    return bool(view.get("current", True)) and attempt >= one.attempt


class Watcher:
    """Looks at the workers of some hosts; threads share one request."""

    def __init__(self, client: ManagerClient, limit: WaitLimit) -> None:
        self._client = client
        self.limit = limit
        self._lock = threading.Lock()
        self._asked_at = 0.0  # monotonic
        self._pause_s = POLL_S
        self._answer: dict[str, View] = {}
        self._hosts = ""

    def views(self, age_s: float = 0.0) -> dict[str, View]:
        """All, by worker id, as they are now or were at most `age_s` ago."""
        return self._fresh(time.monotonic() - age_s, "")

    def wait(self, started: Mapping[str, Started], hosts: Iterable[str] = ()) -> dict[str, View]:
        """The views once all of `started` are decided, or the time is over."""
        names = ",".join(sorted(hosts))
        began = time.monotonic()
        longest_s = self.limit.longest_s + max((one.stop_s for one in started.values()), default=0.0)
        if not self.limit.longest_s:
            longest_s = 0.0
        first_seen: dict[str, float] = {}
        while True:
            views, now = self._fresh(time.monotonic(), names), time.monotonic()
            for worker_id, one in started.items():
                if answers(views.get(worker_id, {"current": False}), one):
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

    def _fresh(self, not_before: float, hosts: str) -> dict[str, View]:
        with self._lock:
            if self._asked_at <= not_before or self._hosts != hosts:
                asked_at = time.monotonic()
                found = self._client.workers(**({"host": hosts} if 0 < len(hosts) <= MAX_HOST_QUERY else {}))
                self._answer = {str(view["worker_id"]): view for view in found}
                self._asked_at, self._hosts = asked_at, hosts
                took_s = time.monotonic() - asked_at
                self._pause_s = min(max(POLL_S, took_s / POLL_SHARE), SLOWEST_POLL_S)
            return self._answer

    def complaints(self, bad: Iterable[View]) -> dict[str, str]:
        """What to tell of each: "in backoff: exit code 1 after 0.1 s; restart 1 of 3 in 5 s: ValueError: no data"."""
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

    def _error_line(self, view: View, deadline: float) -> str:
        """The first line of error that its last attempt printed; "" where it never ran or printed nothing."""
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
    """A job's output is data: without colours, and nothing in it that a terminal obeys."""
    return "".join(letter if letter.isprintable() or letter in keep else " " for letter in _ANSI.sub("", text))


def error_line(text: str) -> str:
    """The line that says what went wrong: of a Python traceback its exception, else the first that sounds like an
    error, else the last one."""
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


def follow(client: ManagerClient, before: View, verb: str, command_id: str, limit: WaitLimit) -> tuple[View, str]:
    """What became of a worker by one start or restart: its view, and what is wrong ("": nothing). `before`: its view
    before the command. Waits until it is decided or the time is over, and never for a host that is out of reach."""
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
        if view.get("state") == states.UNKNOWN:
            what = "it is done when the host returns" if verb == "start" else "a restart lapses after a minute"
            return view, f"is out of reach on {view['host']} ({view['reason']}); {what}"
        over = now - began >= limit.longest_s + one.stop_s
        if over or is_decided(view, one, now - (first_seen or now), limit):
            if not is_bad(view):
                return view, ""
            return view, "is " + Watcher(client, limit).complaints([view])[str(view["worker_id"])]
        time.sleep(POLL_S)
