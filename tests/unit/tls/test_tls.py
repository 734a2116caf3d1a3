"""https: the manager's own CA and other certificates, clients that trust them, and errors of those that do not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from procguard.client import discovery
from procguard.client.api import ManagerClient
from procguard.client.client import from_environment
from procguard.config import schema
from procguard.config.schema import Tls
from procguard.errors import ConfigError, ManagerUnreachable, ProcGuardError, UsageError
from procguard.tls import authority, certificates
from procguard.tls.launcher_trust import trust_for
from remote_agent.protocol.messages import AgentHeartbeat, encode
from remote_agent.system import paths
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.caller import heartbeat, poll
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.outcomes import LinkDown
from remote_agent.transport.tls import Trust, fingerprint
from tests.raw_websocket import RawWebSocket
from tests.server_process import RunningServer
from tests.waiting import wait_until

NOW = datetime.now(timezone.utc)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"), "web.tls=auto", "web.host=0.0.0.0")
    running.deploy("h1", "w1", secret="one")
    yield running
    running.close()


def ca_of(server: RunningServer) -> str:
    return (server.directory / "tls" / "ca.pem").read_text()


def url_of(server: RunningServer, host: str = "127.0.0.1") -> str:
    return f"https://{host}:{server.port}"


def connection(server: RunningServer, trust: Trust, host: str = "127.0.0.1") -> Connection:
    reported = server.ask("POST", "/api/deployments", {"hosts": [{"host": "h1"}], "check": True}).json
    credentials = AgentCredentials("h1", reported["fleet_id"], "one", reported["hosts"]["h1"]["proof_key"])
    return Connection(Addresses([url_of(server, host)], trust), credentials)


def beat() -> Any:
    return heartbeat("h1", encode(AgentHeartbeat("h1", pid=77, at=time.time())))


def write_pair(directory: Path, issuer: authority.Authority, names: list[str], until: datetime) -> tuple[Path, Path]:
    """A certificate and key as a third-party CA would issue them."""
    ca, ca_key = issuer._load_ca()
    key, _ = authority._issue(ca, ca_key, names, NOW)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    made = (
        authority._builder(authority._name("m"), ca.subject, key.public_key(), until)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    directory.mkdir(exist_ok=True)
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(authority._pem(made))
    key_file.write_bytes(authority._key_pem(key))
    return cert_file, key_file


# ------------------------------------------------------------------------------------------------ certificates


def names_in(path: str) -> set[str]:
    return authority._names_of(x509.load_pem_x509_certificate(Path(path).read_bytes()))


def test_the_own_ca_is_made_once_and_its_keys_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    first = certificates.OwnCa(Tls(mode="auto"), ["localhost", "10.0.0.5", "::1"], NOW, str(directory))
    again = certificates.OwnCa(
        Tls(mode="auto"), ["localhost", "10.0.0.5", "::1"], NOW + timedelta(days=30), str(directory)
    )
    assert first.pinned == again.pinned and first.pinned.any_name
    assert {name: (directory / name).stat().st_mode & 0o777 for name in ("ca.key", "server.key")} == {
        "ca.key": 0o600, "server.key": 0o600
    }  # fmt: skip
    assert directory.stat().st_mode & 0o777 == 0o700
    assert names_in(str(directory / "server.pem")) == {"localhost", "10.0.0.5", "::1"}
    assert first.pinned.fingerprint == fingerprint((directory / "ca.pem").read_text())


def test_the_certificate_is_renewed_before_its_end_by_the_same_ca(tmp_path: Path) -> None:
    made = certificates.OwnCa(Tls(mode="auto"), ["localhost"], NOW, str(tmp_path))
    before = (tmp_path / "server.pem").read_bytes()
    assert not made.refresh(NOW + timedelta(days=200)) and (tmp_path / "server.pem").read_bytes() == before
    assert made.refresh(NOW + timedelta(days=500))
    after = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    assert after.not_valid_after_utc > NOW + timedelta(days=1_000)
    after.verify_directly_issued_by(x509.load_pem_x509_certificate(made.pinned.ca.encode()))


def test_a_new_address_of_the_manager_makes_another_certificate_and_one_less_does_not(tmp_path: Path) -> None:
    made = certificates.OwnCa(Tls(mode="auto"), ["localhost"], NOW, str(tmp_path))
    made.rename(["localhost", "10.0.0.6"])
    assert made.refresh(NOW) and "10.0.0.6" in names_in(str(tmp_path / "server.pem"))
    made.rename(["localhost"])
    assert not made.refresh(NOW)


def test_near_the_cas_own_end_the_certificate_is_not_recreated_each_time(tmp_path: Path) -> None:
    late = NOW + authority.CA_LIFE - timedelta(days=100)
    made = certificates.OwnCa(Tls(mode="auto"), ["localhost"], NOW, str(tmp_path))
    assert made.refresh(late) and not made.refresh(late + timedelta(days=1))
    with pytest.raises(ProcGuardError, match="expired at"):
        made.refresh(late + timedelta(days=200))


def test_a_damaged_ca_is_reported_with_what_to_do(tmp_path: Path) -> None:
    certificates.OwnCa(Tls(mode="auto"), ["localhost"], NOW, str(tmp_path))
    (tmp_path / "ca.key").write_text("nonsense")
    with pytest.raises(ProcGuardError, match="backup"):
        certificates.OwnCa(Tls(mode="auto"), ["localhost", "other"], NOW, str(tmp_path))


def test_files_that_were_replaced_serve_from_then_on_and_bad_ones_do_not(tmp_path: Path) -> None:
    issuer = authority.Authority(str(tmp_path / "ca"), NOW)
    cert, key = write_pair(tmp_path / "files", issuer, ["localhost"], NOW + timedelta(days=9))
    own = certificates.OwnFiles(Tls(mode="files", cert=str(cert), key=str(key)), [], NOW)
    assert not own.refresh(NOW)
    write_pair(tmp_path / "files", issuer, ["localhost"], NOW + timedelta(days=90))
    assert own.refresh(NOW)
    cert.write_text("half a file")
    assert not own.refresh(NOW)
    with pytest.raises(ProcGuardError, match="cannot be used"):
        certificates.OwnFiles(Tls(mode="files", cert=str(cert), key=str(key)), [], NOW)


@pytest.mark.parametrize(
    "setting", ["web.tls=maybe", "web.tls.cert=/x", "web.tls.mode=files", "web.trusted_proxies=[x]"]
)
def test_what_makes_no_sense_is_reported(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0].rpartition(".")[0]):
        schema.load(None, [setting])


def test_the_short_forms_mean_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("web:\n  tls: auto\n")
    assert schema.load(str(tmp_path / "c.yaml")).web.tls.mode == "auto"
    (tmp_path / "c.yaml").write_text("web:\n  tls: {cert: /a/c.pem, key: /a/k.pem}\n")
    assert schema.load(str(tmp_path / "c.yaml")).web.tls.mode == "files"
    (tmp_path / "c.yaml").write_text("web:\n  tls: off\n")
    assert schema.load(str(tmp_path / "c.yaml")).web.tls.mode == "off"


# ------------------------------------------------------------------------------------------------- agents


@pytest.mark.slow
def test_an_agent_with_the_managers_ca_connects_over_it_whatever_the_address_is_called(server: RunningServer) -> None:
    alias = "127.77.7.7"  # an address that no certificate names
    link = connection(server, Trust(ca_of(server), any_name=True), alias)
    assert beat()(link).ok
    assert link.request("POST", "/api/workers/w1/logs?attempt=1&offset=0", b"x" * 300_000).data["acked"] == 300_000
    assert beat()(link).ok
    link.disconnect()


@pytest.mark.slow
def test_an_agent_with_another_ca_sends_no_secret_and_says_why(server: RunningServer, tmp_path: Path) -> None:
    other = authority.Authority(str(tmp_path), NOW).ca_pem
    for trust in (Trust(other, any_name=True), Trust()):
        with pytest.raises(LinkDown, match="its certificate cannot be trusted"):
            beat()(connection(server, trust))


@pytest.mark.slow
def test_a_certificate_of_another_name_is_refused_where_names_count(tmp_path: Path) -> None:
    issuer = authority.Authority(str(tmp_path / "ca"), NOW)
    cert, key = write_pair(tmp_path / "files", issuer, ["elsewhere.example"], NOW + timedelta(days=9))
    running = RunningServer(tmp_path, f"web.tls={{cert: {cert}, key: {key}, ca: {tmp_path}/ca/ca.pem}}")
    try:
        running.deploy("h1", "w1", secret="one")
        reported = running.ask("POST", "/api/deployments", {"hosts": [{"host": "h1"}], "check": True}).json["tls"]
        assert reported == {"ca": issuer.ca_pem, "any_name": False}
        with pytest.raises(LinkDown, match="Hostname mismatch"):
            beat()(connection(running, Trust(reported["ca"], reported["any_name"]), "localhost"))
    finally:
        running.close()


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    issuer = authority.Authority(str(tmp_path / "ca"), NOW)
    cert, key = write_pair(tmp_path / "files", issuer, ["localhost"], NOW - timedelta(days=1))
    context = certificates.OwnFiles(Tls(mode="files", cert=str(cert), key=str(key)), [], NOW).context

    def shake() -> None:
        with contextlib.suppress(OSError):
            peer, _ = listener.accept()
            context.wrap_socket(peer, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = threading.Thread(target=shake)
        peer.start()
        addresses = Addresses([f"https://localhost:{listener.getsockname()[1]}"], Trust(issuer.ca_pem))
        with pytest.raises(LinkDown, match="certificate has expired"):
            beat()(Connection(addresses, AgentCredentials("h1", "f", "one", "key")))
        peer.join(10)


def test_a_held_request_over_tls_is_noticed_when_it_closes(server: RunningServer) -> None:
    link = connection(server, Trust(ca_of(server), any_name=True))
    rev = beat()(link).data["assignments_rev"]

    def hold() -> None:
        with pytest.raises(LinkDown):
            poll("h1", rev, 0)(link)

    def held() -> bool:
        return b"procguard_held_requests 1" in server.ask("GET", "/metrics").body

    holder = threading.Thread(target=hold)
    holder.start()
    wait_until(held, 10, "the request is held")
    link.close()
    holder.join(10)
    link.disconnect()
    began = time.monotonic()
    wait_until(lambda: not held(), 10, "its end is noticed", every_s=0.05)
    assert time.monotonic() - began < 5  # not the 25 s that it would have been held


def test_a_client_that_says_goodbye_before_it_closes_is_noticed_too(server: RunningServer) -> None:
    """curl and browsers send close_notify; the end of the connection follows those bytes."""

    def followers() -> bool:
        return b"procguard_log_followers 0" not in server.ask("GET", "/metrics").body

    secured = ssl.create_default_context(cadata=ca_of(server)).wrap_socket(
        socket.create_connection(("127.0.0.1", server.port), 10), server_hostname="localhost"
    )
    secured.sendall(
        f"GET /api/remote-workers/w1/logs?follow=1 HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode()
    )
    wait_until(followers, 10, "the log is followed")
    with contextlib.suppress(OSError):
        secured.settimeout(0.2)
        secured.unwrap()
    secured.close()
    wait_until(lambda: not followers(), 10, "its end is noticed", every_s=0.05)
    assert "Traceback" not in server.log()


def test_a_held_request_over_tls_answers_at_once(server: RunningServer) -> None:
    link = connection(server, Trust(ca_of(server), any_name=True))
    rev = beat()(link).data["assignments_rev"]
    answers: list[Any] = []
    holder = threading.Thread(target=lambda: answers.append(poll("h1", rev, 0)(link)))
    holder.start()
    wait_until(lambda: b"procguard_held_requests 1" in server.ask("GET", "/metrics").body, 10, "held")
    assert server.ask("POST", "/api/workers/w1/command", {"command": "stop"}).status == 202
    holder.join(10)
    assert answers and answers[0].data["assignments"][0]["desired"] == "stopped"
    link.disconnect()


def test_plain_http_costs_no_tls() -> None:
    code = "import sys, remote_agent.agent.agent, procguard.worker_launcher; sys.exit('ssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# ---------------------------------------------------------------------------------- the wrong scheme, slow peers


def test_http_to_the_https_port_is_answered_with_one_clear_line(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as plain:
        plain.sendall(b"GET /api/hosts HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while data := plain.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 400 ") and b"this port speaks https" in answer
    with pytest.raises(ProcGuardError, match="this port speaks https"):
        ManagerClient(f"http://127.0.0.1:{server.port}").hosts()
    agent = Connection(Addresses([f"http://127.0.0.1:{server.port}"]), AgentCredentials("h1", "f", "one", "k"))
    with pytest.raises(LinkDown, match="this port speaks https"):
        beat()(agent)


@pytest.mark.slow
def test_https_to_a_port_of_http_is_answered_with_one_clear_line(tmp_path: Path) -> None:
    running = RunningServer(tmp_path)
    try:
        with pytest.raises(ManagerUnreachable, match="does not speak https"):
            ManagerClient(f"https://127.0.0.1:{running.port}").hosts()
        agent = Connection(Addresses([f"https://127.0.0.1:{running.port}"]), AgentCredentials("h1", "f", "one", "k"))
        with pytest.raises(LinkDown, match="does not speak https"):
            beat()(agent)
    finally:
        running.close()


def test_a_peer_that_never_shakes_hands_holds_nobody_up(server: RunningServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(20)]
    broken = socket.create_connection(("127.0.0.1", server.port), 10)
    broken.sendall(b"\x16\x03\x01garbage-that-is-no-hello")
    began = time.monotonic()
    assert server.ask("GET", "/healthz").status == 200
    assert time.monotonic() - began < 5
    for one in (*silent, broken):
        one.close()
    assert "Traceback" not in server.log()


# ------------------------------------------------------------------------------------ browsers, tools, launchers


def test_the_live_feed_works_over_wss(server: RunningServer) -> None:
    context = ssl.create_default_context(cadata=ca_of(server))
    client = RawWebSocket(server.port, tls=context)
    try:
        assert client.accepted and client.message()["t"] == "hello"
        client.say({"t": "sub", "topic": "hosts", "seq": 0})
        assert client.until("snap")["topic"] == "hosts"
    finally:
        client.close()


def test_a_browsers_cookie_is_for_https_alone(server: RunningServer) -> None:
    token = server.ask("POST", "/api/tokens", {"scope": "operator", "name": "b"}).json["token"]
    answer = server.ask("POST", "/api/login", {"token": token})
    assert "; Secure" in answer.headers["Set-Cookie"]


def test_the_401_names_the_ca_in_the_lines_to_type(server: RunningServer) -> None:
    answer = server.ask("GET", "/api/hosts", headers={"X-Forwarded-For": "192.0.2.1"})
    ca_file = server.directory / "tls" / "ca.pem"
    assert f"curl --cacert {ca_file} -X POST https://localhost:{server.port}/api/tokens" in answer.json["error"]["next"]


def test_the_tools_take_a_ca_and_say_what_is_wrong_with_another(server: RunningServer, tmp_path: Path) -> None:
    ca_file = str(server.directory / "tls" / "ca.pem")
    assert ManagerClient(url_of(server, "localhost"), ca_file=ca_file).hosts()["hosts"]
    other = tmp_path / "other.pem"
    other.write_text(authority.Authority(str(tmp_path / "other"), NOW).ca_pem)
    for path in ("", str(other)):
        with pytest.raises(ManagerUnreachable, match="certificate cannot be trusted") as caught:
            ManagerClient(url_of(server, "localhost"), ca_file=path).hosts()
        assert "PROCGUARD_CA" in caught.value.next_step
    with pytest.raises(UsageError, match="no PEM certificates"):
        ManagerClient(url_of(server, "localhost"), ca_file=str(tmp_path / "missing")).hosts()


def test_tools_of_the_same_user_find_an_https_manager_of_this_machine_by_themselves(server: RunningServer) -> None:
    discovery.announce(server.port, url_of(server, "localhost"), str(server.directory / "tls" / "ca.pem"))
    try:
        client = from_environment({"PROCGUARD_MANAGER_URL": url_of(server)})
        assert client.hosts()["hosts"]
        assert trust_for(url_of(server), "").ca == ca_of(server)
        assert discovery.find(f"https://192.0.2.1:{server.port}") is None  # another machine's
    finally:
        discovery.withdraw(server.port)
    assert discovery.find(url_of(server)) is None


def test_a_launcher_takes_a_file_or_a_fingerprint(server: RunningServer, tmp_path: Path) -> None:
    pem = ca_of(server)
    assert trust_for(url_of(server), str(server.directory / "tls" / "ca.pem")).ca == pem
    assert trust_for(url_of(server), fingerprint(pem)).ca == pem
    with pytest.raises(ProcGuardError, match="another CA"):
        trust_for(url_of(server), "sha256:" + "0" * 64)
    for bad in ("sha256:12", str(tmp_path / "missing.pem")):
        with pytest.raises(UsageError, match="--ca"):
            trust_for(url_of(server), bad)


def test_a_launcher_that_knows_no_ca_ends_with_what_to_give_it(server: RunningServer, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "procguard.worker_launcher", "--worker-id", "x", "--command", "true"]
    environ = {**os.environ, "PROCGUARD_HOME": str(tmp_path / "home"), "PYTHONPATH": os.getcwd()}
    words += ["--manager-url", url_of(server)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environ, check=False)
    assert done.returncode == 1 and "certificate cannot be trusted" in done.stderr and "--ca FILE" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ a proxy in front


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("behind"), "web.trusted_proxies=[127.0.0.1, 10.1.0.0/16]")
    yield running
    running.close()


def address_seen(server: RunningServer, **headers: str) -> tuple[int, str, str]:
    """(status, the address that the audit names, Set-Cookie) of a log-in that is refused, or not."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = server.ask("POST", "/api/login", {"token": "pg-wrong"}, {"Host": "m.example", **sent})
    said = answer.json["error"]["message"]
    return answer.status, said, answer.headers.get("Set-Cookie", "")


@pytest.mark.slow
def test_nobody_behind_a_trusted_proxy_is_the_local_operator(behind: RunningServer) -> None:
    for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Forwarded-For": "192.0.2.7"}):
        answer = behind.ask("POST", "/api/tokens", {"scope": "operator", "name": "x"}, headers)
        assert answer.status == 401, headers


def test_wrong_tokens_wait_by_the_clients_address_that_the_proxy_reports(behind: RunningServer) -> None:
    for _ in range(8):
        status, said, _ = address_seen(behind, X_Forwarded_For="203.0.113.9, 10.1.2.3")
    assert status == 429 and "203.0.113.9" in said
    assert address_seen(behind, X_Forwarded_For="203.0.113.10")[0] == 401
    # entries left of the first untrusted hop may be forged by the client
    assert address_seen(behind, X_Forwarded_For="198.51.100.1, 203.0.113.9")[0] == 429


def test_an_untrusted_peer_is_not_believed(server: RunningServer) -> None:
    status, said = 0, ""
    for _ in range(8):
        status, said, _ = address_seen(server, X_Forwarded_For="203.0.113.77")
    assert status == 429 and "203.0.113.77" not in said


def test_what_the_proxy_serves_outside_is_what_counts(tmp_path: Path) -> None:
    from procguard.portal.http.proxies import PROXIED, TrustedProxies

    proxies = TrustedProxies(["10.0.0.2", "fd00::/8"])

    def applied(**values: str) -> dict[str, Any]:
        environ: dict[str, Any] = {"wsgi.url_scheme": "http", "REMOTE_ADDR": "10.0.0.2", **values}
        proxies.apply(environ)
        return environ

    assert applied(HTTP_X_FORWARDED_PROTO="https")["wsgi.url_scheme"] == "https"
    assert applied(HTTP_X_FORWARDED_PROTO="gopher")["wsgi.url_scheme"] == "http"
    assert applied(HTTP_X_FORWARDED_FOR="a, b")["REMOTE_ADDR"] == "10.0.0.2"
    assert applied(HTTP_X_FORWARDED_FOR="::ffff:192.0.2.1")["REMOTE_ADDR"] == "192.0.2.1"
    assert applied(REMOTE_ADDR="fd00::1", HTTP_X_FORWARDED_FOR="192.0.2.1")["REMOTE_ADDR"] == "192.0.2.1"
    untouched = applied(REMOTE_ADDR="10.0.0.3", HTTP_X_FORWARDED_FOR="192.0.2.1", HTTP_X_FORWARDED_PROTO="https")
    assert (untouched["REMOTE_ADDR"], untouched["wsgi.url_scheme"]) == ("10.0.0.3", "http") and PROXIED not in untouched
    assert len(json.dumps(applied(HTTP_X_FORWARDED_FOR=", ".join(["10.0.0.2"] * 5_000)))) > 0


def test_tools_find_a_manager_of_this_machine_though_another_user_took_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's directory is neither written nor trusted; the next candidate is used."""
    shared = [tmp_path / "tmp", tmp_path / "var-tmp"]
    for one in shared:
        one.mkdir()
    (shared[0] / f"procguard-{os.getuid()}").write_text("squatted")
    monkeypatch.setattr(paths, "SHARED", tuple(map(str, shared)))
    discovery.announce(1234, "https://localhost:1234", "/ca.pem")
    found = discovery.find("https://127.0.0.1:1234")
    assert found is not None and found.ca_file == "/ca.pem"
    discovery.withdraw(1234)
    assert discovery.find("https://127.0.0.1:1234") is None and not list(shared[1].iterdir())
