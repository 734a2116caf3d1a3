"""The live feed by itself: frames encoded once, sequence numbers without gaps, history before snapshots."""

from __future__ import annotations

import json
from typing import Any

from procguard.portal.live.hub import HISTORY_FRAMES, Topic
from procguard.portal.live.logs import LogTopic


class FakeClient:
    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_frame(self, frame: bytes) -> bool:
        self.frames.append(frame)
        return True

    @property
    def messages(self) -> list[Any]:
        """Frames carry 2, 4 or 10 bytes of header before the JSON."""
        return [json.loads(frame[frame.index(b'{"') :]) for frame in self.frames]


class Shelf:
    """A topic over a dict of views."""

    def __init__(self) -> None:
        self.views: dict[str, Any] = {}
        self.asked = 0
        self.topic = Topic("workers", self._all, "worker_id")

    def _all(self) -> list[Any]:
        self.asked += 1
        return list(self.views.values())

    def put(self, worker_id: str, state: str | None) -> None:
        value = None if state is None else {"worker_id": worker_id, "state": state}
        if value is None:
            self.views.pop(worker_id, None)
        else:
            self.views[worker_id] = value
        self.topic.change(worker_id, value)


def test_who_begins_a_log_gets_its_lines_first_and_then_what_came_meanwhile() -> None:
    """Reading the last lines may take a while; nothing that arrives meanwhile is lost or sent before them."""
    topic, client, other = LogTopic("w1"), FakeClient(), FakeClient()
    topic.clients.add(other)

    def read() -> list[dict[str, Any]]:
        topic.append(1, "out", 6, b"meanwhile\n", 2.0)
        return [{"attempt": 1, "stream": "out", "offset": 0, "end": 6, "at": 1.0, "text": "first"}]

    topic.begin(client, read)
    topic.append(1, "out", 16, b"later\n", 3.0)
    assert [message["t"] for message in client.messages] == ["snap", "log", "log"]
    snap, meanwhile, later = client.messages
    assert (meanwhile["prev"], later["prev"]) == (snap["seq"], meanwhile["seq"])
    assert [message["text"] for message in other.messages] == ["meanwhile\n", "later\n"]


def test_who_leaves_while_its_lines_are_read_gets_nothing() -> None:
    topic, client = LogTopic("w1"), FakeClient()

    def read() -> list[dict[str, Any]]:
        topic.clients.discard(client)
        return []

    topic.begin(client, read)
    assert client.frames == [] and topic.starting == {}


def test_a_frame_is_encoded_once_and_shared_by_all() -> None:
    shelf = Shelf()
    clients = [FakeClient() for _ in range(3)]
    for client in clients:
        shelf.topic.subscribe(client, 0)
    shelf.put("w1", "running")
    shelf.topic.flush()
    assert clients[0].frames[-1] is clients[1].frames[-1] is clients[2].frames[-1]
    assert shelf.asked == 1, "one snapshot for clients that came at the same sequence number"


def test_changes_of_one_worker_between_two_flushes_become_the_last_value() -> None:
    shelf, client = Shelf(), FakeClient()
    shelf.topic.subscribe(client, 0)
    shelf.put("w1", "starting")
    shelf.put("w1", "running")
    shelf.put("w2", "running")
    shelf.put("w2", None)
    shelf.topic.flush()
    snap, delta = client.messages
    assert (delta["prev"], delta["seq"]) == (snap["seq"], snap["seq"] + 1)
    assert delta["set"] == [{"worker_id": "w1", "state": "running"}] and delta["del"] == ["w2"]


def test_a_flush_without_changes_sends_nothing() -> None:
    shelf, client = Shelf(), FakeClient()
    shelf.topic.subscribe(client, 0)
    shelf.topic.flush()
    assert len(client.frames) == 1


def test_who_missed_a_few_frames_gets_just_those() -> None:
    shelf, client = Shelf(), FakeClient()
    for number in range(5):
        shelf.put("w1", f"state{number}")
        shelf.topic.flush()
    shelf.topic.subscribe(client, shelf.topic.seq - 2)
    assert [message["t"] for message in client.messages] == ["delta", "delta"]
    assert client.messages[-1]["seq"] == shelf.topic.seq


def test_who_missed_nothing_gets_nothing_and_who_missed_too_much_a_snapshot() -> None:
    shelf, current, old, future = Shelf(), FakeClient(), FakeClient(), FakeClient()
    for number in range(HISTORY_FRAMES + 10):
        shelf.put("w1", str(number))
        shelf.topic.flush()
    shelf.topic.subscribe(current, shelf.topic.seq)
    shelf.topic.subscribe(old, 3)
    shelf.topic.subscribe(future, shelf.topic.seq + 100)
    assert current.frames == []
    assert [message["t"] for message in old.messages + future.messages] == ["snap", "snap"]


def test_a_subscriber_never_gets_a_change_twice_that_its_snapshot_held() -> None:
    shelf, client = Shelf(), FakeClient()
    shelf.put("w1", "running")  # pending when the client comes
    shelf.topic.subscribe(client, 0)
    shelf.topic.flush()
    assert [message["t"] for message in client.messages] == ["snap"]


def test_events_are_added_not_set() -> None:
    topic, client = Topic("events", list, "seq"), FakeClient()
    topic.subscribe(client, 0)
    topic.change("1", {"seq": 1})
    topic.change("2", {"seq": 2})
    topic.flush()
    assert client.messages[-1]["add"] == [{"seq": 1}, {"seq": 2}]


def test_log_offsets_are_bytes_of_the_log_even_within_split_characters() -> None:
    topic, client = LogTopic("w1"), FakeClient()
    topic.clients.add(client)
    data = "aé你\n".encode()
    for position in range(len(data)):
        topic.append(1, "out", position, data[position : position + 1], 1.0)
    assert "".join(message["text"] for message in client.messages) == "aé你\n"
    offset = 0
    for message in client.messages:
        assert message["offset"] == offset
        offset = message["end"]
    assert offset == len(data)


def test_a_log_that_jumps_starts_a_new_text() -> None:
    topic, client = LogTopic("w1"), FakeClient()
    topic.clients.add(client)
    topic.append(1, "out", 0, "你".encode()[:2], 1.0)
    topic.append(1, "out", 50, b"x", 1.0)
    assert [(message["offset"], message["text"]) for message in client.messages] == [(50, "x")]


def test_what_changed_unseen_is_in_the_snapshot_of_whoever_comes_next() -> None:
    shelf, client = Shelf(), FakeClient()
    shelf.put("w1", "starting")
    shelf.topic.flush()
    known = shelf.topic.seq
    shelf.views["w1"] = {"worker_id": "w1", "state": "running"}
    shelf.topic.skip()  # no viewers: the change came without its view
    shelf.topic.subscribe(client, known)
    assert [message["t"] for message in client.messages] == ["snap"]
    assert client.messages[0]["items"] == [{"worker_id": "w1", "state": "running"}]
