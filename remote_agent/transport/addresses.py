"""The known addresses of managers, the one in use, and the term of the leader.

Addresses in agent.json come from a deployment or the launcher's user; further ones come from authenticated managers,
with their term, and are stored in known_managers.json. Each must prove possession of the fleet's key. Shared by all
connections of one agent; thread-safe. Knows no HTTP.
"""

from __future__ import annotations

import threading
import time

from remote_agent.protocol import leadership
from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.system import paths
from remote_agent.transport.address_file import AddressFile
from remote_agent.transport.http import split_url
from remote_agent.transport.tls import Trust

SILENT_S = 10.0  # how long an address that did not answer in time is skipped while a standby answers at another one
WRITE_AGAIN_S = 2.0
QUICK_CONNECT_S, PATIENT_CONNECT_S = 2.0, 6.0


class Addresses:
    """The address in use (`current`); `failed` selects the next one. `learn` adds addresses from replies, `refuses`
    checks terms."""

    def __init__(
        self,
        urls: list[str],
        trust: Optional[Trust] = None,
        tunnel_url: str = "",
        *,
        file: Optional[AddressFile] = None,
        memory: Optional[ManagersFile] = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`urls`: the configured ones. `tunnel_url`: the one that leads into the manager's tunnel, if any. `file`: the
        file that `read_again` reads. `memory`: stores what is learned beyond the end of this process."""
        if not urls:
            raise ValueError("no manager address")
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._configured = [url.rstrip("/") for url in urls]
        self._learned: list[str] = []
        self._memory, self._wall = memory, wall
        self.term = 0  # the highest that was seen; 0: none
        if memory is not None:
            self.term, self._learned = memory.read()
        self.trust = trust or Trust()
        self.tunnel_url = tunnel_url
        self._file = file
        self._urls = self._joined()
        self._current = 0
        self._silent: dict[str, float] = {}  # until when (monotonic) an address counts as silent
        self._failures = 0  # consecutive failures, without any response between them
        self.edition = 0  # increases with new addresses or a new leader: connections of an earlier edition are closed
        self._lasting: list[Any] = []

    # ------------------------------------------------------------------------------------------- selection

    def current(self) -> str:
        with self._lock:
            return self._urls[self._current]

    def urls(self) -> list[str]:
        with self._lock:
            return list(self._urls)

    def connect_timeout_s(self) -> float:
        """The connection timeout: short while other addresses are untried, longer once all have failed twice (slow
        links)."""
        with self._lock:
            return PATIENT_CONNECT_S if self._failures >= 2 * len(self._urls) else QUICK_CONNECT_S

    def has_one_manager(self) -> bool:
        """Whether no other manager may lead instead. One that has a term shares its state with others, which may all be
        reached at this address."""
        return self.term == 0 and len(self._learned) <= 1

    def failed(self, url: str, *, silent: bool = False) -> None:
        """Record that `url` did not answer as the leader. The next one is used, unless another connection has already
        selected one. `silent`: there was no response in time."""
        with self._lock:
            self._failures += 1
            if silent:
                self._silent[url] = time.monotonic() + SILENT_S
            if self._urls[self._current] == url:
                self._current = (self._current + 1) % len(self._urls)

    def stands_by(self, url: str, leader: str = "") -> None:
        """Record that the manager at `url` is a standby. `leader`: the leader's address, if a proven manager reported
        it. Addresses that were silent just before are skipped, because this standby may become the leader soon."""
        now = time.monotonic()
        with self._lock:
            self._failures = 0
            self._silent = {one: until for one, until in self._silent.items() if until > now and one in self._urls}
            if self._urls[self._current] != url:
                return
            at = self._current
            following = [self._urls[(at + step) % len(self._urls)] for step in range(1, len(self._urls))]
            if leader in following:
                following.insert(0, leader)
            self._current = self._urls.index(next((one for one in following if one not in self._silent), url))

    def answered(self, url: str) -> None:
        """Record that an authenticated manager responded at `url`."""
        with self._lock:
            self._failures = 0
            self._silent.pop(url, None)

    def read_again(self) -> list[str]:
        """Read agent.json again after a failure. Returns the addresses that have replaced the current ones, usually [].
        Takes one stat() if the file has not changed."""
        news = self._file.news() if self._file is not None else None
        if news is None:
            return []
        urls = [url.rstrip("/") for url in news.urls]
        with self._lock:
            if urls == self._configured:
                return []
            if (news.trust.ca, news.trust.any_name) != (self.trust.ca, self.trust.any_name):
                self.trust = news.trust
            self.tunnel_url = news.tunnel_url
            self._configured = urls
            self._learned = [url for url in self._learned if self._acceptable(url)]
            self._urls = self._joined()
            self._current = self._urls.index(urls[0])
            self._silent.clear()
            self.edition += 1
        return urls

    # ------------------------------------------------------------------------------------------------ leader

    def refuses(self, term: int) -> bool:
        """Whether a reply with this term comes from a replaced manager. `term` 0: the reply has none."""
        return 0 < term < self.term

    def learn(self, term: int, managers: list[str], by: Any = None) -> bool:
        """Learn the term and the managers' addresses ([] if there are none) of an authenticated response. Returns True
        if another manager leads since then; all connections except `by` are those of the former leader and are
        interrupted."""
        if term == self.term and (not managers or managers == self._learned) and not self._unwritten():
            return False
        with self._lock:
            known, risen = (self.term, self._learned), term > self.term > 0
            self.term = max(self.term, term)
            if managers and term >= known[0]:
                self._learned = [url for url in dict.fromkeys(managers) if self._acceptable(url)]
                url = self._urls[self._current]
                self._urls = self._joined(url)
                self._current = self._urls.index(url)
            if risen:
                self.edition += 1
            changed = known != (self.term, self._learned)
        for connection in self._lasting if risen else ():
            if connection is not by:
                connection.interrupt()
        self._remember(changed)
        return risen

    def interrupt(self, connection: Any) -> Any:
        """Register a connection to be interrupted whenever another manager leads. Returns the connection."""
        self._lasting.append(connection)
        return connection

    # ------------------------------------------------------------------------------------------------ inside

    def _joined(self, in_use: str = "") -> list[str]:
        """The addresses in order: a tunnel's end if it is configured first, then those that managers have reported (the
        leader first), then the configured ones. The address in use is always included."""
        tunnel = [self.tunnel_url] if self.tunnel_url == self._configured[0] else []
        joined = dict.fromkeys([*tunnel, *self._learned, *self._configured])
        return list(joined) if in_use in joined or not in_use else [in_use, *joined]

    def _acceptable(self, url: str) -> bool:
        """Whether an address from a manager is acceptable: not on this host, and not http after https."""
        if url in self._configured:
            return True
        try:
            found = split_url(url)
            direct = [split_url(one) for one in self._configured if one != self.tunnel_url]
        except ValueError:
            return False
        if _is_loopback(found.host):
            return bool(direct) and all(_is_loopback(one.host) for one in direct)
        return found.scheme == "https" or any(one.scheme == "http" for one in direct)

    def _unwritten(self) -> bool:
        return self._memory is not None and self._memory.is_due()

    def _remember(self, changed: bool) -> None:
        if self._memory is None or not (changed or self._memory.is_due()):
            return
        with self._writing:
            with self._lock:
                term, learned = self.term, list(self._learned)
            self._memory.write(term if leadership.may_remember(term, self._wall()) else 0, learned)


class ManagersFile:
    """known_managers.json: {"term": 28944000, "managers": ["http://10.0.0.5:5000"]}. If the disk refuses writes,
    storing is delayed, but not the use of what was learned."""

    def __init__(self, agent_dir: str) -> None:
        self._path = paths.known_managers_file(agent_dir)
        self._again_at: Optional[float] = None  # monotonic: the disk has refused

    def read(self) -> tuple[int, list[str]]:
        try:
            data = paths.read_json(self._path)
        except (OSError, ValueError):
            return 0, []
        if not isinstance(data, dict):
            return 0, []
        return leadership.read_term(data) or 0, leadership.read_managers(data)

    def is_due(self) -> bool:
        return self._again_at is not None and time.monotonic() >= self._again_at

    def write(self, term: int, managers: list[str]) -> None:
        try:
            paths.write_json(self._path, {"term": term, "managers": managers}, durable=True)
            self._again_at = None
        except OSError:
            self._again_at = time.monotonic() + WRITE_AGAIN_S


def _is_loopback(host: str) -> bool:
    host = host.lower().rstrip(".")
    return host in ("localhost", "::1", "::", "0.0.0.0") or host.startswith("127.") or host.endswith(".localhost")
