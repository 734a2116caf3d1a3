"""Browser sessions: which log-ins end which sessions."""

from __future__ import annotations

import json
from typing import Any

from procguard.portal.auth.sessions import (
    MAX_LIFE_S,
    MAX_SESSIONS,
    MAX_SESSIONS_PER_TOKEN,
    SESSION_TTL_S,
    BrowserSessions,
)


def test_a_viewers_log_ins_end_its_own_oldest_sessions_and_no_operators() -> None:
    sessions = BrowserSessions()
    operator = sessions.open("op", "token laptop", "operator", 0.0)
    another = sessions.open("v2", "token wall", "viewer", 0.0)
    first = sessions.open("v1", "token screen", "viewer", 0.0)
    for _ in range(3_000):
        last = sessions.open("v1", "token screen", "viewer", 1.0)
    assert sessions.find(operator.session_id, 2.0) and sessions.find(another.session_id, 2.0)
    assert sessions.find(last.session_id, 2.0) and not sessions.find(first.session_id, 2.0)
    assert len(sessions) == 2 + MAX_SESSIONS_PER_TOKEN


def test_many_tokens_of_a_role_share_what_it_has_and_the_fullest_gives() -> None:
    sessions = BrowserSessions()
    operator = sessions.open("op", "token laptop", "operator", 0.0)
    few = sessions.open("few", "token few", "viewer", 0.0)
    for token in range(20):
        for _ in range(MAX_SESSIONS_PER_TOKEN):
            sessions.open(f"t{token}", "t", "viewer", 0.0)
    assert sessions.find(operator.session_id, 1.0) and sessions.find(few.session_id, 1.0)
    assert len(sessions) == 1 + MAX_SESSIONS


def test_every_end_of_a_session_is_reported_once() -> None:
    ended: list[str] = []
    sessions = BrowserSessions()
    sessions.on_closed(ended.append)
    gone, old, revoked, stays = (sessions.open(f"t{number}", "t", "viewer", 0.0) for number in range(4))
    sessions.close(gone.session_id)
    sessions.close(gone.session_id)
    assert sessions.find(stays.session_id, SESSION_TTL_S - 1) is stays
    sessions.close_token("t2")
    assert sessions.by_handle(old.handle, SESSION_TTL_S + 1) is None
    assert ended == [gone.handle, revoked.handle, old.handle]
    assert sessions.find(stays.session_id, SESSION_TTL_S + 1) is stays
    assert sessions.find(stays.session_id, MAX_LIFE_S) is None


def test_another_manager_takes_over_the_sessions_from_hashes_of_their_ids() -> None:
    records: dict[str, Any] = {}

    def keep(digest: str, record: dict[str, Any] | None) -> None:
        records.update({digest: record}) if record is not None else records.pop(digest)

    first = BrowserSessions()
    first.keep_by(keep)
    stays, ended, revoked = (first.open(f"t{number}", "token laptop", "operator", 0.0) for number in range(3))
    first.close(ended.session_id)
    first.close_token("t2")
    assert first.kept() == records
    assert stays.session_id not in str(records) and stays.csrf not in str(records)
    second = BrowserSessions()
    second.restore(json.loads(json.dumps(records)), 5_000.0)
    found = second.find(stays.session_id, 5_001.0)
    assert found is not None
    assert (found.csrf, found.scope, found.name, found.handle) == (stays.csrf, "operator", "token laptop", stays.handle)
    assert len(second) == 1
    assert second.find(ended.session_id, 5_001.0) is None and second.find(revoked.session_id, 5_001.0) is None
    assert second.find(stays.session_id, 5_000.0 + MAX_LIFE_S + 1) is None
