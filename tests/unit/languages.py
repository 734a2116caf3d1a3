"""Checks that everything recorded can be shown in both languages: parameters must not contain English sentences of
ProcGuard.

Every event that any unit test records passes through here (conftest.py), so that each kind of event is looked at as
the manager really makes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from procguard.i18n import reasons
from procguard.i18n.words import Words
from remote_agent.protocol.reasons import TEXT, also_of, is_plain

# What others wrote: jobs, tools, the operating system, operators, SSH's own messages, older releases.
OF_OTHERS = {"text", "error", "message", "detail", "command", "line", "path", "url", "labels", "selector", "what"}
OF_OTHERS |= {"en", "zh"}  # of a message, which has its Chinese beside it
OF_OTHERS |= {"why", "how"}  # of a test's own words; that none is a literal of ours, test_reasons.py reads
SENTENCE = re.compile(r"(?:\b[a-z']{2,}\b[ ,;]+){3,}[a-z']{2,}")
# Every kind of event that the manager writes: i18n/test_every_kind.py shows one of each in both languages.
EVERY_KIND = frozenset(
    {
        "agent_addresses", "agent_connected", "agent_denied", "agent_ended", "agent_enrolled", "agent_maintenance",
        "agent_pending", "agent_removed", "agent_restart_failed", "agent_restarted", "agent_started", "agent_suspect",
        "acknowledged", "agent_unreachable", "agent_upgrade_failed", "agent_upgraded", "alert_acknowledged",
        "alert_rule", "alert_rule_ok", "alerts_muted", "alerts_unmuted", "archive_failing", "archive_works",
        "circuit_breaker_closed",
        "circuit_breaker_open",
        "command", "credentials", "deploy", "durable_again", "gang_begun", "gang_failed", "gang_finished",
        "gang_forming", "gang_healthy", "gang_incident", "gang_restart", "gang_started", "gang_stopped",
        "gpu_cordoned", "gpu_failed", "gpu_fault", "gpu_uncordoned", "host_cordoned",
        "host_disk_full", "host_disk_ok", "host_uncordoned", "move", "no_spare", "not_durable",
        "operation", "reassigned", "recovery", "recovery_gave_up", "state", "stop_all", "takeover", "task_gave_up",
        "task_waiting", "token", "tunnel_down", "tunnel_up", "warning", "worker_clear", "worker_failed",
        "worker_registered", "worker_removed", "worker_state", "worker_suspect",
    }
)  # fmt: skip
HAN = re.compile(r"[\u4e00-\u9fff]")


def untranslated(reason_code: str, params: dict[str, Any]) -> Iterator[str]:
    """What of a reason would stay English in a Chinese sentence."""
    if reason_code not in reasons.texts("zh"):
        yield f"no sentence for {reason_code}"
    for name, value in params.items():
        if is_plain(value):
            yield from () if value["code"] == TEXT else untranslated(value["code"], value["params"])
        elif isinstance(value, str) and name not in OF_OTHERS and SENTENCE.search(value):
            yield f"{reason_code}.{name}: {value}"
        elif isinstance(value, list):
            for one in value:
                if is_plain(one) and one["code"] != TEXT:
                    yield from untranslated(one["code"], one["params"])
    for one in also_of(params):
        if one["code"] != TEXT:
            yield from untranslated(one["code"], one["params"])


def check(event: dict[str, Any]) -> None:
    """Raises AssertionError."""
    if event["reason_code"] in ("", TEXT):
        return  # a test's own words and kinds, or the audit's; that the manager has none, test_reasons.py reads
    assert event["kind"] in EVERY_KIND, f"add {event['kind']} to EVERY_KIND, and its texts to procguard/i18n"
    assert list(untranslated(event["reason_code"], event["reason_params"])) == [], event["kind"]
    chinese, english = Words("zh").event(event), Words("en").event(event)
    assert HAN.search(chinese), f"{event['kind']}: {chinese}"
    assert not HAN.search(re.sub(r"[\"“].*?[\"”]", "", english)), f"{event['kind']}: {english}"
