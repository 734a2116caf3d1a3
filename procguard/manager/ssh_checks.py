"""Whether recovery over SSH would work from this manager: a standby tries it before it is needed, a new leader at once.

A check opens a connection and starts nothing. Knows agents as records of the warm copy, and the SSH helper.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import gevent
import gevent.pool

from procguard.deploy.install.helper_client import SshHelper
from procguard.fleet.model.records import SshSettings
from procguard.fleet.store.postgresql import WarmCopy
from procguard.i18n.reasons import Reason
from procguard.portal.api.several import SshChecks

CHECK_EVERY_S = 600.0
FIRST_AFTER_S = 10.0
AT_ONCE = 8
DEADLINE_S = 15.0
MAX_HOSTS = 200  # hosts checked per round of a standby; the next round continues from there
SHOWN = 5

log = logging.getLogger(__name__)

Host = tuple[str, SshSettings]  # name and SSH settings
ReportResult = Callable[[str, bool, Reason], None]  # (host, whether it works, why not)


def check_all(helper: SshHelper, hosts: Iterable[Host], report: ReportResult) -> None:
    """Check all hosts, a few at a time."""

    def check(host: Host) -> None:
        name, ssh = host
        result = helper.check(name, ssh, DEADLINE_S)
        report(name, result.ok, result.reason)

    pool = gevent.pool.Pool(AT_ONCE)
    for _ in pool.imap_unordered(check, hosts):
        pass


class StandbyChecks:
    """Checks of a standby. `view`: the result, which the standby publishes to the leader."""

    def __init__(self, helper: SshHelper, warm: WarmCopy) -> None:
        self._helper = helper
        self._warm = warm
        self._working: dict[str, str] = {}  # host -> why not; "" if it works
        self._next = 0

    def run(self) -> None:
        """Until it is killed."""
        gevent.sleep(FIRST_AFTER_S)
        while True:
            try:
                self.round()
            except Exception:  # an error in one round must not end the checks
                log.exception("a round of SSH checks failed; the next one goes on")
            gevent.sleep(CHECK_EVERY_S)

    def round(self) -> None:
        hosts = deployed_hosts(self._warm)
        for gone in set(self._working) - {name for name, _ in hosts}:
            del self._working[gone]
        if self._next >= len(hosts):
            self._next = 0
        chosen = hosts[self._next : self._next + MAX_HOSTS]
        self._next += MAX_HOSTS

        def note(host: str, ok: bool, reason: str) -> None:
            self._working[host] = "" if ok else reason or "no connection"

        check_all(self._helper, chosen, note)

    def view(self) -> SshChecks | None:
        """None while nothing was tried."""
        if not self._working:
            return None
        failed = {host: reason[:200] for host, reason in self._working.items() if reason}
        return SshChecks(len(self._working) - len(failed), len(failed), dict(sorted(failed.items())[:SHOWN]))

    def close(self) -> None:
        self._helper.close()


def deployed_hosts(warm: WarmCopy) -> list[Host]:
    """The deployed hosts, each once, ordered by name."""
    found: dict[str, SshSettings] = {}
    for agent in warm.tables.get("agents", {}).values():
        if agent.get("kind", "deployed") == "deployed":
            found.setdefault(str(agent["host"]), dict(agent.get("ssh") or {}))
    return sorted(found.items())
