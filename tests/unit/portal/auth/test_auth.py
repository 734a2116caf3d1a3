"""Authentication: each rule for operators without a token, tokens, agents' secrets, browser sessions."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.admission.rate import FREE_FAILURES, BackOff
from procguard.errors import Forbidden, Refused
from procguard.portal.auth import access, peer_uid
from procguard.portal.auth.access import Auth, Principal, cookie, host_name, is_loopback
from procguard.portal.auth.sessions import COOKIE, CSRF_HEADER, BrowserSessions
from remote_agent.protocol.messages import secret_sha256
from tests.unit.fleet_world import World
from tests.waiting import wait_until

OWN_UID = 1234


class FakeSocket:
    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 40_000)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 5_000)


class AccessRig:
    """An Auth over a real fleet; `ask` builds the request of a local curl with the given changes."""

    def __init__(
        self,
        directory: Path,
        uid: int | None = OWN_UID,
        forwarded: str = "",
        listed_uid: int | None = None,
        **options: Any,
    ) -> None:
        def why_not(_client: Any, _server: Any) -> str:
            return forwarded

        self.world = World(directory)
        self.sessions = BrowserSessions()
        self.auth = Auth(
            self.world.fleet,
            self.sessions,
            own_uid=OWN_UID,
            owner_uid=lambda client, server: uid,
            why_forwarded=why_not,
            listed_uid=lambda client, server: listed_uid,
            **options,
        )

    def as_operator(self, environ: dict[str, Any]) -> Principal:
        return self.auth.admit(environ, "operator")

    def token(self, scope: str = "operator") -> str:
        self.world.fleet.tokens.add(scope, "t", secret_sha256(f"pg-{scope}"), "test", self.world.now)
        return f"pg-{scope}"

    @staticmethod
    def request(**changes: Any) -> dict[str, Any]:
        environ = {
            "REQUEST_METHOD": "POST",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "localhost:5000",
            "SERVER_PORT": "5000",
            "bottle.raw_path": "/api/workers/w1/command",
            "procguard.socket": FakeSocket(),
        }
        environ.update(changes)
        return {name: value for name, value in environ.items() if value is not None}


@pytest.fixture
def rig(tmp_path: Path) -> AccessRig:
    return AccessRig(tmp_path)


# ---------------------------------------------------------------------------------- the operator without a token


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "[::1]", "LocalHost:1"]
)
def test_the_managers_user_on_its_machine_is_operator(rig: AccessRig, host: str) -> None:
    caller = rig.as_operator(rig.request(HTTP_HOST=host))
    assert (caller.kind, caller.via) == ("operator", "local")


def test_root_is_operator_too(tmp_path: Path) -> None:
    assert AccessRig(tmp_path, uid=0).as_operator(AccessRig.request()).kind == "operator"


@pytest.mark.parametrize(
    "change",
    [
        {"REMOTE_ADDR": "192.0.2.7"},
        {"REMOTE_ADDR": "127.0.0.1.evil"},
        {"HTTP_HOST": "evil.example:5000"},
        {"HTTP_HOST": "localhost.evil.example"},
        {"HTTP_HOST": "localhost:5000,evil"},
        {"HTTP_HOST": "localhost:5000@evil"},
        {"HTTP_HOST": "127.0.0.1.:5000"},
        {"HTTP_HOST": ""},
        {"HTTP_HOST": None},
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "null"},
        {"HTTP_ORIGIN": "http://localhost:9999"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "same-site"},
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"HTTP_X_FORWARDED_ANYTHING": ""},
        {"HTTP_FORWARDED": "for=127.0.0.1"},
        {"HTTP_VIA": "1.1 proxy"},
        {"HTTP_X_REAL_IP": "127.0.0.1"},
        {"procguard.socket": None},
    ],
)
def test_anything_that_smells_of_another_asker_needs_a_token(rig: AccessRig, change: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refusal:
        rig.as_operator(rig.request(**change))
    assert refusal.value.http_status == 401


def test_a_page_of_the_portal_itself_is_let_in(rig: AccessRig) -> None:
    same = {"HTTP_ORIGIN": "http://localhost:5000", "HTTP_SEC_FETCH_SITE": "same-origin"}
    assert rig.as_operator(rig.request(**same)).kind == "operator"


@pytest.mark.parametrize("uid", [None, 4321])
def test_another_or_unknown_owner_of_the_connection_is_refused(tmp_path: Path, uid: int | None) -> None:
    with pytest.raises(Refused):
        AccessRig(tmp_path, uid=uid).as_operator(AccessRig.request())


@pytest.mark.parametrize(("listed", "let_in"), [(OWN_UID, True), (0, True), (4321, False)])
def test_a_connection_that_the_kernels_quick_answer_missed_is_whose_the_list_says(
    tmp_path: Path, listed: int, let_in: bool
) -> None:
    auth = AccessRig(tmp_path, uid=None, listed_uid=listed).auth
    assert (auth.identify(AccessRig.request()).kind == "operator") is let_in


def test_the_name_of_the_managers_user_is_looked_up_once(rig: AccessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be far away (LDAP), and the lookup would hold the event loop with every request."""
    looked_up = list[int]()

    def getpwuid(uid: int) -> pwd.struct_passwd:
        looked_up.append(uid)
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    access._user_name.cache_clear()
    try:
        assert {rig.as_operator(rig.request()).actor for _ in range(3)} == {f"uid {OWN_UID}@localhost"}
    finally:
        access._user_name.cache_clear()
    assert looked_up == [OWN_UID]


def test_trust_local_false_disables_it(tmp_path: Path) -> None:
    rig = AccessRig(tmp_path, trust_local=False)
    with pytest.raises(Refused):
        rig.as_operator(rig.request())
    assert rig.as_operator(rig.request(HTTP_AUTHORIZATION=f"Bearer {rig.token()}")).via == "token"


def test_the_401_prints_the_lines_to_type(rig: AccessRig) -> None:
    with pytest.raises(Refused) as refusal:
        rig.as_operator(rig.request(HTTP_HOST="10.0.0.5:5000", REMOTE_ADDR="10.0.0.9"))
    assert "curl -X POST http://localhost:5000/api/tokens" in refusal.value.next_step
    assert (
        "curl -H 'Authorization: Bearer TOKEN' http://10.0.0.5:5000/api/workers/w1/command" in refusal.value.next_step
    )


def test_a_hostile_host_or_path_cannot_put_words_into_that_line(rig: AccessRig) -> None:
    request = rig.request(HTTP_HOST="$(reboot)", REMOTE_ADDR="10.0.0.9", **{"bottle.raw_path": "/a;reboot'"})
    with pytest.raises(Refused) as refusal:
        rig.as_operator(request)
    assert "$(reboot)" not in refusal.value.next_step
    assert "'http://localhost:5000/a;reboot'\"'\"''" in refusal.value.next_step


# --------------------------------------------------------------------------------------------------- tokens, agents


def test_a_wrong_token_is_refused_even_where_none_is_needed(rig: AccessRig) -> None:
    for header in ("Bearer wrong", "Basic Zm9vOmJhcg==", "Bearer", "Bearer " + "x" * 600):
        with pytest.raises(Refused):
            rig.as_operator(rig.request(HTTP_AUTHORIZATION=header))


def test_an_operators_token_works_from_anywhere_until_revoked(rig: AccessRig) -> None:
    request = rig.request(REMOTE_ADDR="192.0.2.7", HTTP_AUTHORIZATION=f"bearer {rig.token()}", HTTP_HOST="m:1")
    assert rig.as_operator(request).kind == "operator"
    fleet = rig.world.fleet
    fleet.tokens.revoke(fleet.tokens.all()[0].token_id, "test", rig.world.now)
    with pytest.raises(Refused):
        rig.as_operator(request)


def test_an_enrolment_token_is_no_operators(rig: AccessRig) -> None:
    request = rig.request(HTTP_AUTHORIZATION=f"Bearer {rig.token('enroll')}")
    assert rig.auth.identify(request).kind == "enroll"
    with pytest.raises(Forbidden):
        rig.as_operator(request)


def test_an_agents_secret_is_good_for_its_own_workers_only(rig: AccessRig) -> None:
    rig.world.deploy({"h1": {"w1": {"command": "true"}}, "h2": {"w2": {"command": "true"}}})
    rig.world.fleet.agents.secrets.set("h1", secret_sha256("one"), "test", rig.world.now)
    request = rig.request(HTTP_AUTHORIZATION="Bearer one", REMOTE_ADDR="10.0.0.9")
    assert rig.auth.check_agent(rig.auth.identify(request), "h1").agent_id == "h1"
    assert rig.auth.check_worker_agent(rig.auth.identify(request), "w1").agent_id == "h1"
    for attempt in (
        lambda: rig.auth.check_agent(rig.auth.identify(request), "h2"),
        lambda: rig.auth.check_worker_agent(rig.auth.identify(request), "w2"),
        lambda: rig.auth.check_worker_agent(rig.auth.identify(request), "no-such", operator_too=True),
        lambda: rig.as_operator(request),
    ):
        with pytest.raises(Forbidden):
            attempt()


def test_a_launcher_may_show_its_own_secret_before_it_is_known(rig: AccessRig) -> None:
    request = rig.request(HTTP_AUTHORIZATION="Bearer mine", REMOTE_ADDR="10.0.0.9")
    assert rig.auth.identify(request, secret_sha256("mine")).kind == "anonymous"
    with pytest.raises(Refused):
        rig.auth.identify(request, secret_sha256("another"))


# ---------------------------------------------------------------------------------------------------------- browsers


def test_a_browser_session_acts_with_its_csrf_header_only(rig: AccessRig) -> None:
    rig.token()
    import time

    session = rig.sessions.open(secret_sha256("pg-operator"), "me", "operator", time.monotonic())
    far = {"REMOTE_ADDR": "192.0.2.7", "HTTP_HOST": "m:5000", "HTTP_COOKIE": f"{COOKIE}={session.session_id}"}
    with pytest.raises(Forbidden):
        rig.as_operator(rig.request(**far))
    assert rig.as_operator(rig.request(**far, REQUEST_METHOD="GET")).via == "session"
    assert rig.as_operator(rig.request(**far, **{CSRF_HEADER: session.csrf})).via == "session"
    with pytest.raises(Forbidden):
        rig.as_operator(rig.request(**far, **{CSRF_HEADER: session.csrf}, HTTP_ORIGIN="http://evil"))


def test_revoking_the_token_ends_the_session(rig: AccessRig) -> None:
    import time

    rig.token()
    session = rig.sessions.open(secret_sha256("pg-operator"), "me", "operator", time.monotonic())
    rig.world.fleet.tokens.revoke(rig.world.fleet.tokens.all()[0].token_id, "test", rig.world.now)
    far = {"REMOTE_ADDR": "192.0.2.7", "HTTP_COOKIE": f"{COOKIE}={session.session_id}", "REQUEST_METHOD": "GET"}
    with pytest.raises(Refused):
        rig.as_operator(rig.request(**far))


def test_wrong_tokens_lock_the_address_longer_each_time() -> None:
    lock = BackOff()
    for _ in range(FREE_FAILURES - 1):
        lock.failed("a", 0.0)
    assert lock.wait_s("a", 0.0) == 0.0
    lock.failed("a", 0.0)
    first = lock.wait_s("a", 0.0)
    lock.failed("a", 10.0)
    assert 0 < first < lock.wait_s("a", 10.0)
    assert lock.wait_s("b", 0.0) == 0.0
    lock.succeeded("a")
    assert lock.wait_s("a", 10.0) == 0.0


def test_hosts_and_addresses_are_read_exactly() -> None:
    assert host_name("[::1]:80") == "[::1]" and host_name("LOCALHOST:1") == "localhost"
    assert host_name("localhost:x") == "" and host_name("a:b:1") == "a:b"
    assert is_loopback("127.8.9.1") and is_loopback("::1") and is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("10.0.0.1") and not is_loopback("127.evil") and not is_loopback("")


# ---------------------------------------------------------------------------- the kernel's word on who is connected


@contextlib.contextmanager
def listening(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_server((host, 0), family=family) as server:
        yield server


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_owner_of_our_own_connection_is_ourselves(family: socket.AddressFamily, host: str) -> None:
    with listening(family, host) as server, socket.create_connection(server.getsockname()[:2]):
        accepted, peer = server.accept()
        with accepted:
            assert peer_uid.owner_uid(peer[:2], accepted.getsockname()[:2]) == os.geteuid()


def test_a_connection_closed_before_it_was_accepted_has_no_owner() -> None:
    """A closed socket is shown with uid 0: it must not pass as root."""
    with listening() as server:
        client = socket.create_connection(server.getsockname())
        client.close()
        accepted, peer = server.accept()
        with accepted:
            assert wait_until(
                lambda: peer_uid.owner_uid(peer, accepted.getsockname()) is None, 2.0, "closed socket has no owner"
            )


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_busy_kernel_that_misses_a_connection_makes_nobody_a_stranger(
    family: socket.AddressFamily, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The direct lookup reads the table without a lock: among many connections one may be missed repeatedly."""
    monkeypatch.setattr(peer_uid, "_ask", lambda _request: None)
    world = World(tmp_path)
    with listening(family, host) as server, socket.create_connection(server.getsockname()[:2]) as client:
        accepted, _peer = server.accept()
        with accepted:
            auth = Auth(world.fleet, BrowserSessions())
            request = AccessRig.request(**{"REMOTE_ADDR": host, "procguard.socket": accepted})
            assert auth.identify(request).reason == ""
            client.close()
            assert "owner cannot be determined" in auth.identify(request).reason


def test_the_list_distinguishes_a_dual_stack_servers_connection_and_its_neighbours() -> None:
    with listening() as server, socket.create_connection(server.getsockname()) as client:
        ends, port = client.getsockname(), server.getsockname()[1]
        found = peer_uid.listed_owner((f"::ffff:{ends[0]}", ends[1]), ("::ffff:127.0.0.1", port))
        assert found == peer_uid.owner(ends, server.getsockname()) and found is not None
        assert peer_uid.listed_owner(ends, ("127.0.0.1", port + 1 if port < 65_535 else 1)) is None
        assert peer_uid.listed_owner(("127.0.0.2", ends[1]), server.getsockname()) is None


def test_a_socket_that_does_not_exist_has_no_owner() -> None:
    assert peer_uid.owner_uid(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    assert peer_uid.owner_uid(("nonsense", 1), ("127.0.0.1", 2)) is None
    assert peer_uid.owner_uid(("::1", 1), ("127.0.0.1", 2)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_connection_is_shown_as_that_user() -> None:
    code = (
        "import os, socket, sys; 'x'.encode('idna'); os.setgid(65534); os.setuid(65534); "
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
    )
    with listening() as server:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, str(server.getsockname()[1])], stdin=subprocess.PIPE, cwd="/"
        )
        try:
            server.settimeout(10)
            accepted, peer = server.accept()
            with accepted:
                assert peer_uid.owner_uid(peer, accepted.getsockname()) == 65534
        finally:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(10)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("s=abc", "abc"),
        ('s="abc"', "abc"),
        ("a=b; s=abc; c=d", "abc"),
        ("a=b;s=abc", "abc"),
        (" s = abc ", "abc"),
        ("s=one; s=two", "one"),
        ("xs=abc; S=abc", ""),
        ("s=", ""),
        ("s", ""),
        ("s=a b", ""),
        ("s=a\\073b", ""),
        ("s=" + "a" * 200, ""),
        ("", ""),
    ],
)
def test_the_one_cookie_is_found_among_others(header: str, found: str) -> None:
    assert cookie({"HTTP_COOKIE": header}, "s") == found


def test_no_cookie_header_takes_long_to_read() -> None:
    """CVE-2024-7592: 57 KB took http.cookies 44 s; here the work is a thousandth of a second."""
    began = time.thread_time()
    assert cookie({"HTTP_COOKIE": 'a="' + "\\" * 57_000 + '"; ' + ";" * 8_000}, COOKIE) == ""
    assert time.thread_time() - began < 0.1
