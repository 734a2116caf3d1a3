"""Several managers on one real PostgreSQL, as processes of this machine, and clients that send requests meanwhile.

`SeveralManagers` starts and harms them, `Relay` is the way of one manager to the database, which can be cut without a
word, `Declarer` declares hosts with a worker each as fast as it may and notes what was acknowledged.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.fleet.hosts import REPOSITORY
from tests.fleet.manager import END_WITH_US, Manager, own_environment
from tests.postgres_server import Postgres
from tests.waiting import wait_until

SERVING_WITHIN_S = 5.0
EXIT_FENCED = 4
REQUEST_TIMEOUT_S = 2.0


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_values: Any) -> None:
        return None


class Relay:
    """A TCP relay on loopback, as a process of its own: this one, which asks the managers as their user, accepts no
    connection. While it is cut, bytes are taken and go nowhere: nobody is told."""

    def __init__(self, target: int) -> None:
        self._process = subprocess.Popen(
            [*END_WITH_US, sys.executable, "-m", "tests.fleet.cut_relay", str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def cut(self) -> None:
        self._say("cut")

    def restore(self) -> None:
        """New connections work; those that were cut have lost bytes, so they end."""
        self._say("restore")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == word + "\n"


class OneOfSeveral(Manager):
    """`name` and a state directory of its own; `relay`: its way to the database."""

    def __init__(
        self,
        folder: Path,
        name: str,
        url: str,
        password: Path,
        relay: Relay | None,
        more: Sequence[str],
        address: str = "127.0.0.1",
    ) -> None:
        folder = folder / name
        folder.mkdir()
        settings = [f"web.host={address}", f"state.manager_name={name}", f"state.database={url}"]
        settings += [f"state.database_password_file={password}", f"state.state_file={folder}/state.yaml"]
        settings += [f"logging.file={folder}/log", *more]
        super().__init__(folder, own_environment(folder), settings)
        self.url = f"http://{address}:{self.port}"
        self.name = name
        self.relay = relay

    def _is_ready(self) -> bool:
        """Also one that stands by."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the manager ended with {self.process.returncode}: {self.console()[-4000:]}")
        return self.role() != ""

    def role(self) -> str:
        """leader, standby, cut (it has led, and has no database now), "" where it does not answer."""
        opener = urllib.request.build_opener(NoRedirects)
        try:
            with opener.open(self.url + "/readyz", timeout=REQUEST_TIMEOUT_S):
                return "leader"
        except urllib.error.HTTPError as error:
            with error:
                code = json.loads(error.read())["error"]["code"]
                return "standby" if code == "standby" else "cut"
        except (OSError, http.client.HTTPException, ValueError):
            return ""

    def send(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def ended(self, timeout_s: float = 15.0) -> int:
        """Its exit code, once it has ended by itself."""
        assert self.process is not None
        process, self.process = self.process, None
        return process.wait(timeout_s)


class SeveralManagers:
    """The managers of one new database."""

    def __init__(
        self,
        folder: Path,
        server: Postgres,
        names: Sequence[str] = ("m1", "m2"),
        *more: str,
        ports: str = "",
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        """`ports`: of several servers, by comma: the managers then reach them directly; `addresses`: by name, where
        each listens."""
        self.server = server
        self.database = server.database()
        self.managers: dict[str, OneOfSeveral] = {}
        for name in names:
            relay = Relay(server.port) if not ports else None
            hosts = [f"127.0.0.1:{port}" for port in (ports.split(",") if ports else [str(relay.port if relay else 0)])]
            url = f"postgresql://procguard@{','.join(hosts)}/{self.database}"
            address = (addresses or {}).get(name, "127.0.0.1")
            self.managers[name] = OneOfSeveral(folder, name, url, server.password, relay, more, address)

    def __enter__(self) -> SeveralManagers:
        for one in self.managers.values():
            one.start()
        self.leader()
        return self

    def __exit__(self, *_exc: object) -> None:
        for one in self.managers.values():
            if one.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    one.send(signal.SIGCONT)
                one.kill()
            if one.relay is not None:
                one.relay.close()

    def leader(self, timeout_s: float = 20.0) -> OneOfSeveral:
        """The leader, as soon as there is one."""
        return wait_until(self._leading, timeout_s, "a manager leads", 0.02)

    def _leading(self) -> OneOfSeveral | None:
        return next((one for one in self.managers.values() if one.process and one.role() == "leader"), None)

    def others(self, leader: OneOfSeveral) -> list[OneOfSeveral]:
        return [one for one in self.managers.values() if one is not leader]

    def led_by_another(self, former: OneOfSeveral, began: float, timeout_s: float = 20.0) -> tuple[OneOfSeveral, float]:
        """(who leads now, seconds since `began` until it served)."""
        found = wait_until(
            lambda: next((one for one in self.others(former) if one.process and one.role() == "leader"), None),
            timeout_s,
            "another manager leads",
            0.02,
        )
        return found, time.monotonic() - began

    def terms(self) -> list[int]:
        """Every term, in the order in which they began, as the managers' logs have them."""
        found = []
        for one in self.managers.values():
            for line in (one.directory / "log").read_text(errors="replace").splitlines():
                if " leads term=" in line:
                    found.append((line[:23], int(line.partition(" leads term=")[2].split()[0])))
        return [term for _, term in sorted(found)]


@contextlib.contextmanager
def one_address(world: SeveralManagers) -> Iterator[str]:
    """The URL of a load balancer in front of them."""
    ports = ",".join(str(one.port) for one in world.managers.values())
    words = [*END_WITH_US, sys.executable, "-m", "tests.fleet.one_address", ports]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class Declarer(threading.Thread):
    """Declares one host with one worker after the other, to whoever leads, until it is stopped."""

    def __init__(self, world: SeveralManagers, prefix: str, pause_s: float) -> None:
        super().__init__(daemon=True)
        self._pause_s = pause_s
        self._urls = [one.url for one in world.managers.values()]
        self._prefix = prefix
        self._stopped = threading.Event()
        self.acknowledged: list[str] = []
        self.longest_gap_s = 0.0
        self._opener = urllib.request.build_opener(NoRedirects)

    def stop(self) -> None:
        self._stopped.set()
        self.join(30)

    def run(self) -> None:
        at, last = 0, time.monotonic()
        while not self._stopped.is_set():
            name = f"{self._prefix}{len(self.acknowledged)}"
            if self._declare(self._urls[at], name):
                self.acknowledged.append(name)
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - last)
                last = time.monotonic()
                time.sleep(self._pause_s)
            else:
                at = (at + 1) % len(self._urls)
                time.sleep(0.01)

    def _declare(self, url: str, name: str) -> bool:
        worker = {"worker_id": name, "spec": {"command": "sleep 9", "on_partition": "fence", "lease_s": 10.0}}
        body = {"hosts": [{"host": name, "ssh": {"hostname": "127.0.0.1", "port": 1}, "workers": [worker]}]}
        request = urllib.request.Request(f"{url}/api/deployments", json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=REQUEST_TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def declaring(world: SeveralManagers, prefix: str = "h", pause_s: float = 0.02) -> Iterator[Declarer]:
    """`pause_s`: after each."""
    one = Declarer(world, prefix, pause_s)
    one.start()
    try:
        yield one
    finally:
        one.stop()


def workers_of(leader: Manager) -> dict[str, int]:
    """Every worker that it knows, with its epoch."""
    return {one["worker_id"]: int(one["epoch"]) for one in leader.get("/api/remote-workers")["workers"]}


def check_nothing_lost(world: SeveralManagers, leader: OneOfSeveral, declarer: Declarer) -> None:
    """No acknowledged change is lost, no epoch is granted twice, terms only increase."""
    acknowledged = list(declarer.acknowledged)  # before the leader is asked: changes go on meanwhile
    known = workers_of(leader)
    assert [name for name in acknowledged if name not in known] == []
    assert len(set(known.values())) == len(known)
    terms = world.terms()
    assert terms == sorted(set(terms))
