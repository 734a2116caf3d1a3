"""When a leader without heartbeats of its agents hands over, and to which standby."""

from __future__ import annotations

from unittest import mock

import pytest

from procguard.fleet.store.leader_row import OtherManager
from procguard.fleet.store.postgres_link import DatabasePlace
from procguard.manager import peers
from procguard.manager.peers import ManagerPeers
from procguard.manager.seat import Seat


def other(name: str, asked: int | None, seen_s: float = 0.5) -> OtherManager:
    about = {} if asked is None else {"asked": asked}
    return OtherManager(name, seen_s, 0.0, [f"http://{name}:5000"], about)


@pytest.mark.parametrize(
    ("connected", "agents", "others", "successor"),
    [
        (0, 100, [other("m2", 100)], "m2"),
        (0, 1, [other("m2", 1)], "m2"),
        (0, 100, [other("m2", 3), other("m3", 90)], "m3"),
        (10, 100, [other("m2", 90)], "m2"),
        (11, 100, [other("m2", 89)], ""),  # a lost switch, not a lost leader
        (0, 100, [other("m2", 0)], ""),  # no agent reaches the standby either
        (5, 100, [other("m2", 5)], ""),
        (0, 100, [other("m2", None)], ""),  # of a release that does not count
        (0, 100, [other("m2", 100, seen_s=30.0)], ""),  # it is away
        (0, 100, [other("m1", 100)], ""),  # this one, from when it stood by
        (0, 0, [other("m2", 7)], ""),  # an empty fleet, whatever strangers say
    ],
)
def test_who_is_cut_off_from_nearly_all_agents_hands_over_to_whom_they_ask(
    connected: int, agents: int, others: list[OtherManager], successor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(peers.time, "monotonic", lambda: now[0])
    seat = Seat(DatabasePlace("postgresql://nobody@127.0.0.1:1/x"), "m1")
    seat.others = others
    leader = ManagerPeers(seat, mock.Mock(acknowledged=0))
    assert leader.better_connected(connected, agents) == "", "agents of the leader before may still come"
    now[0] = peers.SETTLED_S + 1
    assert leader.better_connected(connected, agents) == successor
