"""ManagerClient: errors of the API become user-facing errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from procguard.client.api import ManagerClient, error_of
from procguard.client.client import from_environment
from procguard.errors import Conflict, ManagerUnreachable, NotFound, ProcGuardError, Refused
from tests import fake_manager
from tests.fake_manager import FakeManager


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    with fake_manager.running() as one:
        yield one


def test_a_call_carries_token_query_and_json(manager: FakeManager) -> None:
    manager.routes["GET /api/remote-workers"] = lambda body: (200, {"workers": [{"worker_id": "w"}], "total": 1})
    assert ManagerClient(manager.url + "/", "t0ken").workers(state="running", host="") == [{"worker_id": "w"}]
    method, path, _, headers = manager.requests[-1]
    assert (method, path) == ("GET", "/api/remote-workers?state=running")
    assert headers["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, ProcGuardError), (401, Refused), (403, Refused), (404, NotFound), (409, Conflict)]
)
def test_json_errors_become_their_kind(status: int, kind: type[ProcGuardError]) -> None:
    error = error_of(status, b'{"error": {"code": "c", "message": "m", "next": "n", "request_id": "r"}}')
    assert type(error) is kind and (error.message, error.next_step, error.code) == ("m", "n", "c")


def test_an_answer_that_is_no_json_error_is_still_reported() -> None:
    assert "HTTP 502" in str(error_of(502, b"<html>"))


def test_a_refused_connection_says_how_to_go_on() -> None:
    with pytest.raises(ManagerUnreachable, match=r"127\.0\.0\.1:9 \(refused\); start it"):
        ManagerClient("http://127.0.0.1:9").workers()


def test_something_else_on_the_port_is_not_taken_for_the_manager(manager: FakeManager) -> None:
    manager.routes["GET /api/hosts"] = lambda body: (200, "<html>hello</html>")
    with pytest.raises(ManagerUnreachable, match="does not respond as"):
        ManagerClient(manager.url).hosts()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_error_and_never_followed_with_the_token(manager: FakeManager, status: int) -> None:
    manager.routes["GET /api/hosts"] = lambda body: (status, {})
    with pytest.raises(ManagerUnreachable, match="redirects to elsewhere"):
        ManagerClient(manager.url, "t0ken").hosts()
    assert len(manager.requests) == 1


@pytest.mark.parametrize("url", ["localhost:5000", "ftp://x", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ManagerUnreachable, match="not a manager's address"):
        ManagerClient(url)


def test_the_environment_names_the_manager_and_the_token_stays_out_of_repr() -> None:
    one = from_environment({"PROCGUARD_MANAGER_URL": "http://head:5055", "PROCGUARD_TOKEN": "s3cret"})
    assert one.url == "http://head:5055" and "s3cret" not in repr(one)
    assert from_environment({}).url == "http://localhost:5000"


def test_logs_follow_until_the_manager_ends_them(manager: FakeManager) -> None:
    manager.routes["GET /api/remote-workers/w1/logs"] = lambda body: (200, "one\ntwo\n")
    client = ManagerClient(manager.url)
    assert b"".join(client.log_pieces("w1", tail=2)) == b"one\ntwo\n"
    assert b"".join(client.follow_logs("w1")) == b"one\ntwo\n"
    assert "follow=1" in manager.requests[-1][1]


def test_ids_are_quoted_and_the_launchers_colon_stays(manager: FakeManager) -> None:
    manager.routes["POST /api/agents/launcher:w1/approve"] = lambda body: (200, {"status": "approved"})
    assert ManagerClient(manager.url).decide("launcher:w1", "approve")["status"] == "approved"
