"""Long polls: woken by changes, by a newer request, by their peer's close; pipelined bytes are not a close."""

from __future__ import annotations

import time

import gevent
import gevent.socket

from procguard.agent_api.long_poll import LongPoll, LongPolls
from tests.waiting import Stopwatch


def pair() -> tuple[gevent.socket.socket, gevent.socket.socket]:
    ours, theirs = gevent.socket.socketpair()
    return ours, theirs


def waiting(poll: LongPoll, timeout_s: float = 5.0) -> gevent.Greenlet:
    greenlet = gevent.spawn(poll.wait, timeout_s)
    gevent.sleep(0)
    return greenlet


def test_a_peers_close_is_noticed_within_milliseconds() -> None:
    polls, took = LongPolls(), []
    for _ in range(5):
        ours, theirs = pair()
        poll = polls.open("agent:h1", "h1", ours)
        greenlet = waiting(poll)
        began = time.perf_counter()
        theirs.close()
        greenlet.join(2)
        took.append(time.perf_counter() - began)
        assert poll.ending == "peer_closed"
        polls.close(poll)
        ours.close()
    assert min(took) < 0.002
    assert len(polls) == 0


def test_bytes_of_a_next_request_are_left_alone() -> None:
    ours, theirs = pair()
    polls = LongPolls()
    poll = polls.open("agent:h1", "h1", ours)
    greenlet = waiting(poll, 0.05)
    theirs.send(b"GET /next")
    greenlet.join(2)
    assert poll.ending == ""
    polls.close(poll)
    assert ours.recv(9) == b"GET /next"
    ours.close()
    theirs.close()


def test_news_wakes_every_request_of_the_agent_and_nobody_elses() -> None:
    polls = LongPolls()
    mine = [polls.open("agent:h1", "h1", None), polls.open("worker:w1", "h1", None)]
    other = polls.open("agent:h2", "h2", None)
    greenlets = [waiting(poll) for poll in mine]
    unmoved = waiting(other)
    polls.wake("h1")
    gevent.joinall(greenlets, timeout=2)
    assert all(greenlet.dead for greenlet in greenlets)
    assert not unmoved.dead
    unmoved.kill()


def test_a_wake_up_before_the_wait_is_not_lost() -> None:
    polls = LongPolls()
    poll = polls.open("agent:h1", "h1", None)
    polls.wake("h1")
    watch = Stopwatch()
    poll.wait(5.0)
    assert watch.seconds < 1.0


def test_the_newer_request_ends_the_older_and_outlives_its_close() -> None:
    polls = LongPolls()
    older = polls.open("agent:h1", "h1", None)
    newer = polls.open("agent:h1", "h1", None)
    assert (older.ending, newer.ending) == ("superseded", "")
    polls.close(older)
    assert len(polls) == 1
    polls.stop()
    assert newer.ending == "stopping"
    assert polls.open("agent:h1", "h1", None).ending == "stopping"
