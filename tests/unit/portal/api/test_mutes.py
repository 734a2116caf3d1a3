"""Mutes over HTTP: created by operators, visible to everyone, ended early, stored in the state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server_process import RunningManager, RunningServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    made = RunningServer(tmp_path_factory.mktemp("mutes"))
    yield made
    made.close()


def test_a_mute_is_made_seen_and_ended(server: RunningServer) -> None:
    asked = {"select": "group=trainers", "for_s": 60, "note": "new disks"}
    made = server.ask("POST", "/api/mutes", asked).json["mute"]
    assert (made["select"], made["note"], made["active"]) == ("group=trainers", "new disks", True)
    assert made in server.ask("GET", "/api/mutes").json["mutes"]
    events = server.ask("GET", "/api/events?kind=alerts_muted").json["events"]
    assert events[-1]["evidence"] == {"mute_id": made["mute_id"]} and "group=trainers from " in events[-1]["reason"]
    path = f"/api/mutes/{made['mute_id']}"
    assert server.ask("DELETE", path).json["mute"]["mute_id"] == made["mute_id"]
    assert server.ask("DELETE", path).status == 404
    assert made["mute_id"] not in [one["mute_id"] for one in server.ask("GET", "/api/mutes").json["mutes"]]


def test_what_cannot_be_muted_is_refused_in_words(server: RunningServer) -> None:
    for body, words in (
        ({"select": "a b", "for_s": 60}, "selector"),
        ({"select": "*", "for_s": "long"}, "for_s"),
        ({"select": "*", "for_s": 0}, "more than 0 s"),
        ({"for_s": 60}, "select"),
        ({"select": "*", "for_s": 60, "note": "x" * 501}, "note"),
    ):
        answer = server.ask("POST", "/api/mutes", body)
        assert answer.status == 400 and words in answer.body.decode()
    assert server.ask("PUT", "/api/mutes", {}).status == 405


def test_what_does_not_fire_cannot_be_acknowledged(server: RunningServer) -> None:
    assert server.ask("GET", "/api/alerts").json == {"alerts": [], "total": 0, "rules": 0}
    answer = server.ask("POST", "/api/alerts/acknowledge", {"alert": "disk-full|gpu01"})
    assert answer.status == 404 and "no alert 'disk-full|gpu01' fires" in answer.body.decode()
    for body, words in (({}, "alert"), ({"alert": 7}, "alert"), ({"alert": "a", "note": "x" * 501}, "note")):
        answer = server.ask("POST", "/api/alerts/acknowledge", body)
        assert answer.status == 400 and words in answer.body.decode()
    assert server.ask("PUT", "/api/alerts", {}).status == 405
    assert server.ask("GET", "/api/alerts?limit=0").status == 400


def test_a_mute_outlives_the_manager(tmp_path: Path) -> None:
    first = RunningManager(tmp_path)
    try:
        made = first.ask("POST", "/api/mutes", {"select": "w*", "for_s": 600}).json["mute"]
    finally:
        first.close()
    second = RunningManager(tmp_path)
    try:
        assert second.ask("GET", "/api/mutes").json["mutes"] == [made]
    finally:
        second.close()


def test_an_acknowledgement_is_an_event_with_its_note_for_everyone(server: RunningServer) -> None:
    body = {"worker_id": "acked", "host": "h1", "command": "sleep 1"}
    assert server.ask("POST", "/api/workers/register", body).status in (200, 202)
    server.ask("POST", "/api/agents/acked/approve", {})
    path = "/api/workers/acked/acknowledge"
    assert server.ask("POST", path, {"note": "known; disk ordered"}).json["status"] == "acknowledged"
    event = server.ask("GET", "/api/events?kind=acknowledged").json["events"][-1]
    assert (event["worker_id"], event["reason"], event["cause"]) == ("acked", "known; disk ordered", "operator")
    sentences = server.ask("GET", "/api/workers/acked/explain").json["sentences"]
    assert any("acknowledged it" in one["text"] and "known; disk ordered" in one["text"] for one in sentences)
    assert server.ask("POST", "/api/workers/nobody/acknowledge", {}).status == 404
    assert server.ask("POST", path, {"note": 7}).status == 400
    assert server.ask("GET", path).status == 405
