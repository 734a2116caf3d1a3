"""Order and concurrency of a rollout: waves over the hosts, stopped early after too many failures. Each host has a
result.

Owns the order and the mapping of errors to results; independent of the action on a host.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from procguard.client.coming_up import Started
from procguard.client.types import SshTriedInfo, WorkerResultInfo
from procguard.deploy.inventory.model import Host
from procguard.deploy.sync.transfer import Brought
from procguard.errors import HostError, HostUnreachable, ProcGuardError, UsageError
from procguard.json_types import Json

Prepared = TypeVar("Prepared")
Status = Literal["ok", "changed", "failed", "unreachable", "skipped"]


@dataclass
class HostResult:
    """The result of one host. `changes`: texts for people; `error`: set if failed, unreachable or skipped."""

    host: str
    status: Status = "ok"
    changes: list[str] = field(default_factory=list)
    error: ProcGuardError | None = None
    workers: dict[str, WorkerResultInfo] = field(default_factory=dict)  # by id
    started: dict[str, Started] = field(default_factory=dict)  # expected to start; emptied once checked
    notes: list[str] = field(default_factory=list)  # shown in the recap; no changes
    report: Json = field(default_factory=dict)  # as install/__main__.py reports it
    code: list[Brought] = field(default_factory=list)  # the folders that procguard_sync copied
    recovery_ssh: SshTriedInfo = field(default_factory=SshTriedInfo)  # empty: not tried
    seconds: float = 0.0


class Listener(Protocol):
    """Receives the progress. Called from many threads."""

    def stage(self, host: str, stage: str) -> None: ...

    def done(self, result: HostResult) -> None: ...


@dataclass(frozen=True)
class RolloutPlan:
    """Waves and limits. `serial`: the sizes of the waves, as in Ansible: "1,10%,50%" (the last repeats); "": one wave.

    `max_fail`: the rollout ends after a wave once more hosts than this have failed in total, a number or "10%"; "":
    never.
    """

    forks: int = 32
    serial: str = ""
    max_fail: str = ""

    def waves(self, hosts: Sequence[Host]) -> Iterator[list[Host]]:
        sizes = [_amount(part, len(hosts), "--serial", least=1) for part in self.serial.split(",") if part.strip()]
        begin = 0
        while begin < len(hosts):
            size = (sizes.pop(0) if len(sizes) > 1 else sizes[0]) if sizes else len(hosts)
            yield list(hosts[begin : begin + size])
            begin += size

    def too_many(self, failures: int, hosts: int) -> bool:
        return bool(self.max_fail) and failures > _amount(self.max_fail, hosts, "--max-fail", least=0)

    def check(self) -> None:
        """Validate the options before anything is done. Raises UsageError."""
        list(self.waves([]))
        for text in filter(str.strip, self.serial.split(",")):
            _amount(text, 1, "--serial", least=1)
        self.too_many(0, 1)


def _amount(text: str, of: int, option: str, least: int) -> int:
    found = re.fullmatch(r"\s*(\d+)(%?)\s*", text)
    if found is None:
        raise UsageError(f"{option} {text}: expected a number of hosts or a share", f"e.g. {option} 3 or {option} 10%")
    number = int(found[1])
    return max(least, number * of // 100 if found[2] else number)


class Rollout:
    def __init__(self, plan: RolloutPlan, listener: Listener) -> None:
        plan.check()
        self._plan = plan
        self._listener = listener

    def run(
        self,
        hosts: list[Host],
        prepare: Callable[[list[Host]], Prepared],
        action: Callable[[Host, Prepared, HostResult], None],
        settle: Callable[[list[HostResult]], None] = lambda results: None,
        halts: Callable[[HostResult], bool] = lambda result: False,
    ) -> list[HostResult]:
        """Call `action(host, prepared, result)` for every host, wave by wave; one result each, in the hosts' order.

        `prepare(wave)` is called before each wave; its exceptions concern all hosts and propagate. An error of a host
        affects only its own result. `settle(results)` is called after each wave with the results that started workers.
        Without --max-fail the rollout also ends after a wave with a result that `halts`.
        """
        results: dict[str, HostResult] = {}
        for wave in self._plan.waves(hosts):
            failed = sum(1 for result in results.values() if result.error is not None)
            if self._plan.too_many(failed, len(hosts)):
                why = f"skipped: {failed} of {len(results)} hosts before it failed (--max-fail {self._plan.max_fail})"
                results.update({host.name: self._skipped(host, why) for host in wave})
                continue
            halting = next((result.host for result in results.values() if halts(result)), "")
            if halting and not self._plan.max_fail:
                why = f"skipped: the workers of {halting} did not come up (--max-fail says how many hosts may fail)"
                results.update({host.name: self._skipped(host, why) for host in wave})
                continue
            results.update({result.host: result for result in self._wave(wave, prepare(wave), action, settle)})
        return [results[host.name] for host in hosts]

    def _skipped(self, host: Host, why: str) -> HostResult:
        error = HostError(f"{host.name}: {why}", "fix the cause above and run it again", code="skipped")
        result = HostResult(host.name, "skipped", error=error)
        self._listener.done(result)
        return result

    def _wave(
        self,
        wave: list[Host],
        prepared: Prepared,
        action: Callable[[Host, Prepared, HostResult], None],
        settle: Callable[[list[HostResult]], None],
    ) -> list[HostResult]:
        def run(host: Host) -> HostResult:
            result, started = HostResult(host.name), time.monotonic()
            with errors_of(result):
                action(host, prepared, result)
                if result.error is None and result.changes:
                    result.status = "changed"
            result.seconds = time.monotonic() - started
            if not result.started:
                self._listener.done(result)
            return result

        with ThreadPoolExecutor(max(1, min(self._plan.forks, len(wave))), "host") as pool:
            results = list(pool.map(run, wave))
        waiting = [result for result in results if result.started]
        if waiting:
            settle(waiting)
        for result in waiting:
            self._listener.done(result)
        return results


@contextlib.contextmanager
def errors_of(result: HostResult) -> Iterator[None]:
    """Context in which an exception becomes the host's result."""
    try:
        yield
    except HostUnreachable as exc:
        result.status, result.error = "unreachable", exc
    except ProcGuardError as exc:
        result.status, result.error = "failed", exc
    except Exception as exc:
        what = f"{result.host}: it failed ({type(exc).__name__}: {exc})"
        result.status, result.error = "failed", HostError(what, "this is a bug in ProcGuard; please report it")
