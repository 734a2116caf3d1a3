"""Preview of an operation: the numbers that an operator confirms. Pure."""

from __future__ import annotations

from collections import Counter

from procguard.client.types import WorkerInfo
from procguard.fleet.operations import model as rules
from procguard.fleet.operations.answers import PreviewCause, PreviewCounts
from procguard.fleet.workers.selectors import WorkerFacts
from procguard.i18n.reasons import because, written
from remote_agent.protocol import messages, reasons

HOSTS_SHOWN = 20


class Split:
    """The preview's counts: by state, by host, and the skipped workers by cause."""

    def __init__(self, command: messages.Verb) -> None:
        self._command = command
        self._actions: Counter[str] = Counter()
        self._states: dict[str, Counter[str]] = {}
        self._hosts: dict[str, Counter[str]] = {}
        self._causes: dict[str, PreviewCause] = {}

    def add(self, facts: WorkerFacts) -> None:
        planned = rules.plan(self._command, facts["state"], facts["desired"])
        self._actions[planned.action] += 1
        for split, key in ((self._states, facts["state"]), (self._hosts, facts["host"])):
            counts = split.setdefault(key, Counter())
            counts["matching"] += 1
            counts["acts"] += planned.action != "skip"
        if planned.cause:
            text, code, params = reasons.values(because(f"cause.{planned.cause}"))
            entry = self._causes.setdefault(
                planned.cause,
                {
                    "cause": planned.cause,
                    "message": text,
                    "message_code": code,
                    "message_params": params,
                    "action": planned.action,
                    "count": 0,
                    "examples": [],
                },
            )
            entry["count"] += 1
            if len(entry["examples"]) < rules.EXAMPLES:
                entry["examples"].append(facts["worker_id"])

    def counted(self) -> PreviewCounts:
        hosts = sorted(self._hosts.items(), key=lambda pair: (-pair[1]["matching"], pair[0]))
        return {
            "acts": self._actions["act"] + self._actions["pending"],
            "pending": self._actions["pending"],
            "skipped": self._actions["skip"],
            "by_state": [
                {"state": state, "matching": counts["matching"], "acts": counts["acts"]}
                for state, counts in sorted(self._states.items())
            ],
            "by_host": [
                {"host": host, "matching": counts["matching"], "acts": counts["acts"]}
                for host, counts in hosts[:HOSTS_SHOWN]
            ],
            "hosts": len(hosts),
            "causes": sorted(self._causes.values(), key=lambda entry: -entry["count"]),
        }


def mentions(view: WorkerInfo, words: list[str]) -> bool:
    """Whether a worker's view contains all words, like the portal's filter and `q=`."""
    labels = [f"{name}={value}" for name, value in (view["labels"] or {}).items()]
    parts = (
        view["worker_id"],
        view["host"],
        view["group"],
        view["reason"],
        written(view, "zh"),
        view["command"],
        *labels,
    )
    text = "\n".join(map(str, parts)).lower()
    return all(word in text for word in words)
