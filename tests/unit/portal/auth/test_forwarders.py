"""A caller through a forwarder of the manager's own user is unauthenticated, also with a local `Host`; a caller on the
manager's machine, also in an SSH session, is an operator."""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import gevent
import pytest

from procguard.portal.auth import local_client, peer_uid, process_sockets
from tests.chaos import ChaosReport
from tests.forwarder import forwarder
from tests.other_user import NOBODY, OtherUser, other_user
from tests.ports import free_port
from tests.server_process import ROOT, RunningServer
from tests.unit.one_sshd import Server as Sshd
from tests.unit.one_sshd import server
from tests.waiting import wait_until

sshd = server  # the fixture, under a name that says which
OTHER = "games"  # a user that Debian has
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and os.environ.get("CI") != "true", reason="only root can become another user"
)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("manager"))
    running.deploy("alpha", "w1")
    yield running
    running.close()


def ask(port: int, manager_port: int, method: str = "GET", path: str = "/api/remote-workers") -> tuple[int, str]:
    """With the `Host` of a local caller."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        body = b'{"command": "stop"}' if method == "POST" else None
        headers = {"Host": f"localhost:{manager_port}", "Content-Type": "application/json"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def ssh(sshd: Sshd, *options: str, user: str = "") -> list[str]:
    target = sshd.target
    return [
        *("ssh", "-F", "none", "-p", str(target.port), "-i", str(sshd.directory / "user_key")),
        *("-o", f"UserKnownHostsFile={sshd.known_hosts}", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"),
        *(*options, f"{user or target.user}@127.0.0.1"),
    ]


@contextlib.contextmanager
def tunnel(sshd: Sshd, kind: str, target_port: int, user: str = "") -> Iterator[int]:
    """`ssh -L` or `ssh -R` to that port of this machine; yields the port that leads there."""
    port = free_port()
    process = subprocess.Popen(
        ssh(sshd, "-N", kind, f"127.0.0.1:{port}:localhost:{target_port}", user=user), stderr=subprocess.PIPE
    )
    try:

        def listens() -> bool:
            assert process.poll() is None and process.stderr is not None, process.stderr.read()  # type: ignore[union-attr]
            return any(one.listens and one.local[1] == port for one in peer_uid.connections(("127.0.0.1", 0)))

        wait_until(listens, 10, f"ssh {kind} listens")
        yield port
    finally:
        process.terminate()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@contextlib.contextmanager
def nobody(port: int) -> Iterator[OtherUser]:
    if os.geteuid() != 0:
        pytest.fail("only root can become another user")
    with other_user(port) as somebody:
        yield somebody


# ------------------------------------------------------------------------------------------------- who is refused


@pytest.mark.slow
@pytest.mark.chaos(25)
@needs_root
def test_who_comes_through_a_forwarder_is_no_operator(
    manager: RunningServer, sshd: Sshd, chaos_report: ChaosReport
) -> None:
    port, refused, served = manager.port, 0, 0

    def is_refused(through: int) -> None:
        nonlocal refused
        for method, path in (("GET", "/api/remote-workers"), ("POST", "/api/workers/w1/command"), ("GET", "/metrics")):
            status, said = ask(through, port, method, path)
            assert status == 401, said
            refused += 1

    for _ in chaos_report.rounds(short=1, long=20):
        with forwarder(port, "0.0.0.0") as through:  # as who forwards to other machines
            is_refused(through)
        for kind in ("-L", "-R"):
            with tunnel(sshd, kind, port) as through:
                is_refused(through)
        with forwarder(port) as near, tunnel(sshd, "-L", near) as through:  # as VS Code and Jupyter's proxy do
            is_refused(through)
        for options in ((), ("once",)):  # another user of this machine, through a forwarder of the manager's
            with forwarder(port, "127.0.0.1", *options) as through, nobody(through) as somebody:
                headers = {"Host": f"localhost:{port}", "Content-Type": "application/json"}
                assert somebody.ask("POST", "/api/workers/w1/command", headers, '{"command": "stop"}') == 401
                refused += 1
        for line in (
            f"curl -s -o /dev/null -w '%{{http_code}}\\n' http://localhost:{port}/api/remote-workers",
            f"curl -s -o /dev/null -w '%{{http_code}}\\n' -X POST http://localhost:{port}/api/workers/w1/command "
            """-H 'Content-Type: application/json' -d '{"command": "start"}'""",
        ):
            done = subprocess.run([*ssh(sshd), line], capture_output=True, text=True, timeout=30, check=True)
            assert done.stdout.strip() in ("200", "202"), done
            served += 1
    desired = manager.ask("GET", "/api/remote-workers/w1").json["desired"]
    assert desired == "running"
    chaos_report(
        measured=f"401 for {refused} of {refused} requests with a local Host through socat-like forwarders, ssh -L and "
        f"ssh -R of the manager's user; {served} of {served} curl lines inside an SSH session served"
    )


@pytest.mark.slow
def test_the_answer_says_which_process_and_what_to_do(manager: RunningServer, sshd: Sshd) -> None:
    with tunnel(sshd, "-L", manager.port) as through:
        status, said = ask(through, manager.port)
    assert status == 401 and "the connection is ssh" in said and "which forwards requests of others" in said
    assert "/api/tokens" in said and "Authorization: Bearer TOKEN" in said


@pytest.mark.slow
def test_through_a_tunnel_a_token_opens_what_it_opens_everywhere(manager: RunningServer, sshd: Sshd) -> None:
    token = manager.ask("POST", "/api/tokens", {"scope": "operator", "name": "laptop"}).json["token"]
    with tunnel(sshd, "-L", manager.port) as through:
        connection = http.client.HTTPConnection("127.0.0.1", through, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", "/api/login", f'{{"token": "{token}"}}', {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()


# -------------------------------------------------------------------------------------------------- who is served


@pytest.mark.slow
def test_a_program_of_the_same_user_may_stand_in_between(manager: RunningServer) -> None:
    """Its peer is the manager's user on the same machine."""
    with forwarder(manager.port) as through:
        assert ask(through, manager.port)[0] == 200


@pytest.mark.slow
def test_a_program_that_serves_itself_and_its_user_may_ask(manager: RunningServer) -> None:
    """As the kernel of a notebook, which holds accepted connections of the notebook's server."""
    code = (
        "import http.client, socket, sys\n"
        "served = socket.create_server(('127.0.0.1', 0))\n"
        "print(served.getsockname()[1], flush=True)\n"
        "accepted, _ = served.accept()\n"
        "web = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=20)\n"
        "web.request('GET', '/api/remote-workers', headers={'Host': 'localhost'})\n"
        "print(web.getresponse().status, flush=True)\n"
    )
    kernel = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, str(manager.port)], stdout=subprocess.PIPE, text=True
    )
    assert kernel.stdout is not None
    with kernel, socket.create_connection(("127.0.0.1", int(kernel.stdout.readline()))):
        assert kernel.stdout.readline().strip() == "200"


# ------------------------------------------------------------------------------ a manager that is not root's

PROBE = """
import os, socket, sys
from procguard.portal.auth.local_client import LocalClients
clients, listener = LocalClients(), socket.create_server(("127.0.0.1", 0))
for _ in range(2):  # what it needs is loaded before its user can't read it any more
    near = socket.create_connection(listener.getsockname())
    far, peer = listener.accept()
    clients.why_forwarded(peer, far.getsockname())
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
print(listener.getsockname()[1], flush=True)
while True:
    connection, peer = listener.accept()
    connection.recv(1)
    connection.sendall((clients.why_forwarded(peer, connection.getsockname()) or "its own").encode())
    connection.close()
"""
REPORT = """
import socket, sys
one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
one.send(b"?")
print(one.recv(999).decode())
"""


@contextlib.contextmanager
def probing_as(uid: int) -> Iterator[int]:
    """A program of this user that reports its verdict on each connection."""
    process = subprocess.Popen([sys.executable, "-c", PROBE, str(uid)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def said(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), 10) as one:
        one.sendall(b"?")
        return one.recv(999).decode()


@pytest.mark.slow
@needs_root
def test_another_users_manager_cannot_see_its_sshd_and_refuses_what_it_cannot_see(sshd: Sshd) -> None:
    """sshd's processes are not inspectable by their own user: a connection without a visible owner counts as
    forwarded."""
    uid = pwd.getpwnam(OTHER).pw_uid
    with probing_as(uid) as port:
        with tunnel(sshd, "-L", port, user=OTHER) as through:
            assert "cannot be seen" in said(through)
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
        if python is not None:  # one that this user may run
            line = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", python, "-c", REPORT, str(port)]
            done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=True, cwd="/")
            assert done.stdout.strip() == "its own"


@pytest.mark.slow
@needs_root
def test_root_is_root_also_where_the_manager_is_not(sshd: Sshd) -> None:
    with probing_as(NOBODY) as port:
        assert said(port) == "its own"


# ------------------------------------------------------------------------------------------------- what it costs


LOOKS = """
from gevent import monkey
monkey.patch_all()
import os, socket
from procguard.portal.auth.local_client import LocalClients
clients, listener = LocalClients(), socket.create_server(("127.0.0.1", 0))
near = [socket.create_connection(listener.getsockname()), socket.socket()]
far, peer = listener.accept()
assert clients.why_forwarded(peer, far.getsockname()) == ""
before = os.listdir("/proc/self/fd")
for _ in range(20):
    assert clients.why_forwarded(peer, far.getsockname()) == ""
print(len(os.listdir("/proc/self/fd")) - len(before))
"""


def test_what_was_opened_to_look_at_a_client_is_closed_at_once() -> None:
    """In the manager, whose os.close leaves the closing to the event loop."""
    done = subprocess.run(
        [sys.executable, "-c", LOOKS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0\n"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not allow to duplicate another process's descriptors (Yama; a kernel before 5.6)."""
    monkeypatch.setattr(process_sockets, "tcp_sockets", lambda *_: None)


def test_a_kept_connection_is_sought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    find = local_client.holders
    monkeypatch.setattr(local_client, "holders", lambda inode, *more: (calls.append(inode), find(inode, *more))[1])
    clients = local_client.LocalClients()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far, peer = listener.accept()
        with far:
            for _ in range(3):
                assert clients.why_forwarded(peer, far.getsockname()) == ""
    assert len(calls) == 1, near
    assert clients.why_forwarded(peer, ("127.0.0.1", 1)) != ""


def test_the_managers_own_connections_are_left_out_of_the_list() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as another:
        ports = {one.local[1] for one in peer_uid.connections(listener.getsockname())}
        assert listener.getsockname()[1] not in ports and another.getsockname()[1] in ports


CONNECTS = """
import socket, sys
kept = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(2)]
for line in sys.stdin:
    if line.strip() == "listen":
        kept.append(socket.create_server(("127.0.0.1", 0)))
    else:
        open("/proc/self/comm", "w").write(line.strip())
    print(flush=True)
"""


def test_who_has_no_socket_but_those_that_lead_here_costs_no_scan_at_all_others(
    monkeypatch: pytest.MonkeyPatch, refused: None
) -> None:
    tables: list[object] = []
    list_all = peer_uid.connections
    monkeypatch.setattr(peer_uid, "connections", lambda server: (tables.append(server), list_all(server))[1])
    clients = local_client.LocalClients()
    in_thread: list[object] = []
    examine = clients._examine
    monkeypatch.setattr(clients, "_examine", lambda ends: (in_thread.extend(ends), examine(ends))[1])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        command = [sys.executable, "-c", CONNECTS, str(listener.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None

            def send(line: bytes) -> None:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(line)
                process.stdin.flush()
                process.stdout.readline()

            (first, peer), (second, another) = listener.accept(), listener.accept()
            with first, second:
                for one in (peer, another, peer, another):
                    assert clients.why_forwarded(one, listener.getsockname()) == ""
                assert len(tables) == 1, "the first look did not know yet that the second connection leads here"
                assert len(in_thread) == 2, "what is known to be its own needs no thread"
                send(b"socat\n")
                assert "socat" in clients.why_forwarded(peer, listener.getsockname())
                send(b"python\n")
                send(b"listen\n")
                assert clients.why_forwarded(another, listener.getsockname()) == ""
                assert len(tables) == 2, "it has a socket of another kind now"
            process.stdin.close()


SERVES = """
import os, socket, sys
kept = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))), socket.socketpair()]
at, other = sys.argv[2], ("127.0.0.1", int(sys.argv[3]))
kept.append(socket.create_server((at, 0)) if at else socket.create_connection(other))
port = kept[-1].getsockname()[1]
print(port, flush=True)
if sys.stdin.readline().strip() == "accept":
    kept[-1].settimeout(20)
    kept.append(kept[-1].accept()[0])
print(flush=True)
sys.stdin.readline()
assert os.get_blocking(kept[-1].fileno()), "what is looked at stays as it is"
"""


@contextlib.contextmanager
def connected_as(uid: int, port: int) -> Iterator[None]:
    code = (
        "import os, socket, sys\n"
        "os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "near = socket.socket()\n"
        "near.connect(('127.0.0.1', int(sys.argv[1])))\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(port), str(uid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield
        assert process.stdin is not None
        process.stdin.close()


@needs_root
@pytest.mark.parametrize("at", ["descriptors", "the table"])
@pytest.mark.parametrize(
    ("listens_at", "accepts_from", "why"),
    [
        ("", None, ""),
        ("127.0.0.1", None, ""),
        ("0.0.0.0", None, "which listens for other machines"),
        ("127.0.0.1", 0, ""),
        ("127.0.0.1", NOBODY, "which serves uid"),
    ],
)
def test_what_a_process_serves_is_seen_in_its_descriptors_as_in_the_table(
    monkeypatch: pytest.MonkeyPatch, at: str, listens_at: str, accepts_from: int | None, why: str
) -> None:
    tables: list[object] = []
    list_all = peer_uid.connections
    monkeypatch.setattr(peer_uid, "connections", lambda server: (tables.append(server), list_all(server))[1])
    if at == "the table":
        monkeypatch.setattr(process_sockets, "tcp_sockets", lambda *_: None)
    clients = local_client.LocalClients()
    with contextlib.ExitStack() as stack:
        listener, another = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        command = [
            sys.executable,
            "-c",
            SERVES,
            str(listener.getsockname()[1]),
            listens_at,
            str(another.getsockname()[1]),
        ]
        process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert process.stdin is not None and process.stdout is not None
        first, peer = listener.accept()
        stack.enter_context(first)
        port = int(process.stdout.readline())
        process.stdin.write(b"accept\n" if accepts_from is not None else b"no\n")
        process.stdin.flush()
        if accepts_from is not None:
            stack.enter_context(connected_as(accepts_from, port))
        process.stdout.readline()
        for _ in range(2):
            said = clients.why_forwarded(peer, listener.getsockname())
            assert why in said if why else said == ""
        assert bool(tables) == (at == "the table")
        process.stdin.close()
        assert process.wait(20) == 0


def test_those_who_ask_at_once_are_answered_by_one_scan_that_begins_after_they_asked(
    monkeypatch: pytest.MonkeyPatch, refused: None
) -> None:
    tables: list[object] = []
    list_all = peer_uid.connections
    monkeypatch.setattr(peer_uid, "connections", lambda server: (tables.append(server), list_all(server))[1])
    clients = local_client.LocalClients()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ends = []
        for _ in range(20):
            stack.enter_context(socket.create_connection(listener.getsockname()))
            far, peer = listener.accept()
            stack.enter_context(far)
            ends.append((peer, far.getsockname()))
        asked = [gevent.spawn(clients.why_forwarded, *one) for one in ends]
        gevent.joinall(asked, timeout=20)
        assert [one.value for one in asked] == [""] * 20
        assert len(tables) == 1
        assert clients.why_forwarded(*ends[0]) == ""
        assert len(tables) == 2


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_ends_of_the_managers_connections_are_left_out_and_no_others(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        ours, other = (stack.enter_context(socket.create_server((address, 0), family=family)) for _ in range(2))
        ends = [stack.enter_context(socket.create_connection(one.getsockname()[:2])) for one in (ours, other)]
        for one in (ours, other):
            stack.enter_context(one.accept()[0])
        listed = {(one.local, one.peer) for one in peer_uid.connections(ours.getsockname()[:2])}
        to_ours, to_other = ((end.getsockname()[:2], end.getpeername()[:2]) for end in ends)
        assert to_ours not in listed and to_ours[::-1] not in listed
        assert to_other in listed and to_other[::-1] in listed


def test_a_process_that_ends_while_it_is_read_has_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of the machine are read to find a connection's: others end meanwhile, and nobody is refused."""
    child = subprocess.Popen(["sleep", "60"])
    listdir = os.listdir

    def list_after_its_end(path: str) -> list[str]:
        child.kill()
        child.wait()
        return listdir(path)

    monkeypatch.setattr(process_sockets.os, "listdir", list_after_its_end)
    assert list(process_sockets.links(child.pid)) == []
