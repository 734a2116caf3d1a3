"""Operations on one agent directory of this host: install, ensure, start, stop, roll back (uninstall: removal.py).

Serialized per directory by flock; each operation is idempotent and returns a report. Nothing here signals a runner or
its process. Knows no command line (`__main__.py`). This module and its imports load other modules on demand, because on
an up-to-date host the start of the session is most of the cost of a deployment.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import sys
import time

from remote_agent.install import process, release
from remote_agent.install.keepalive import KeepAlive
from remote_agent.install.release import InstallError
from remote_agent.protocol import ids
from remote_agent.protocol.hints import Any, Callable, Dict, Iterator, List
from remote_agent.system import paths
from remote_agent.system.locks import lock_held

LOCK_TIMEOUT_S = 90.0

# Variables of the deploying session, which do not belong to the user's environment on this host.
SESSION_VARIABLES = (
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
    "TERM",
    "MAIL",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LS_COLORS",
    "PS1",
)
SESSION_PREFIXES = ("SSH_", "XDG_", "DBUS_", "PROCGUARD_", "VIRTUAL_ENV", "ANSIBLE_", "SUDO_", "MOTD_", "LC_PROCGUARD")

Json = Dict[str, Any]


def recorded_environment(environ: "Dict[str, str]") -> "Dict[str, str]":
    """The base environment of the agent's workers: this host's, without the variables of the deploying session."""
    kept = {
        name: value
        for name, value in sorted(environ.items())
        if name not in SESSION_VARIABLES and not name.startswith(SESSION_PREFIXES)
    }
    active = environ.get("VIRTUAL_ENV")  # ProcGuard's own venv, when deploying to the local machine
    if active and "PATH" in kept:
        kept["PATH"] = ":".join(one for one in kept["PATH"].split(":") if one != os.path.join(active, "bin"))
    return kept


class Installer:
    """All operations on one agent directory."""

    def __init__(self, home: str, fleet_id: str, host: str) -> None:
        if not ids.valid_id(host) or not ids.valid_id(fleet_id):
            raise InstallError(
                "bad_request",
                f"not a valid fleet or host name: {fleet_id!r}, {host!r}",
                "rename the host in the inventory",
            )
        self.home = os.path.abspath(os.path.expanduser(home)) if home else paths.procguard_home()
        self.fleet_id = fleet_id
        self.host = host
        self.dir = paths.agent_dir(self.home, fleet_id, host)

    @classmethod
    def of_directory(cls, directory: str) -> Installer:
        config = paths.read_json(paths.agent_file(directory))
        if not isinstance(config, dict) or not config.get("fleet_id") or not config.get("host"):
            raise InstallError(
                "not_installed", f"no agent is installed in {directory}", "deploy it: invoke deploy --hosts …"
            )
        directory = os.path.abspath(directory)
        return cls(os.path.dirname(os.path.dirname(directory)), config["fleet_id"], config["host"])

    # -------------------------------------------------------------------------------------------- status

    def config(self) -> Json:
        try:
            value = paths.read_json(paths.agent_file(self.dir))
        except ValueError:
            return {}  # damaged by a full disk: a redeployment rewrites it
        return value if isinstance(value, dict) else {}

    def keeping(self) -> Json:
        """install.json: {"service": the requested keep-alive, "keep_alive": the chosen one, "reason": why}."""
        try:
            value = paths.read_json(self._keeping_file())
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def running(self) -> bool:
        runtime_dir = self.config().get("runtime_dir")
        return process.is_running(runtime_dir) if runtime_dir else False

    def status(self) -> Json:
        config = self.config()
        running = self.running()
        number = process.pid(config["runtime_dir"], self.dir) if running else None
        return {
            "ok": True,
            "installed": bool(config),
            "running": running,
            "pid": number,
            "frozen": number is not None and process.is_frozen(number),  # stopped by a signal or a debugger
            "release": release.current(self.dir),
            "previous": release.previous(self.dir),
            "agent_dir": self.dir,
            "keep_alive": self.keeping().get("keep_alive", ""),
            "keep_alive_reason": self.keeping().get("reason", ""),
            "stopped_by_hand": os.path.exists(self._stop_mark()),
            "manager_urls": config.get("manager_urls", []),
            "secret_sha256": self._secret_sha256(),
            "python": sys.executable,
            "python_skipped": _skipped_pythons(),
            "python_version": ".".join(str(part) for part in sys.version_info[:3]),
            "magic": importlib.util.MAGIC_NUMBER.hex(),  # identifies the byte code that this Python can load
            "user": os.environ.get("USER", ""),
            "free_bytes": release.free_bytes(self.dir),
            "time": time.time(),
        }

    def workers(self) -> "List[Json]":
        """Every worker with records on this host, and whether its runner is alive."""
        runtime_dir = self.config().get("runtime_dir", "")
        return [
            {
                "worker_id": paths.recorded_worker_id(directory),
                "alive": bool(runtime_dir) and lock_held(paths.runner_lock(runtime_dir, directory)),
            }
            for directory in paths.worker_dirs(self.dir)
        ]

    def _secret_sha256(self) -> str:
        secret = self.config().get("secret", "")
        return ids.secret_sha256(secret) if secret else ""

    # ----------------------------------------------------------------------------------------- installing

    def install(
        self,
        request: Json,
        fetch_bundle: "Callable[[], bytes]",
        fetch_code: "Callable[[], bytes]" = bytes,
        fetch_secret: "Callable[[str], str]" = lambda current: "",
    ) -> Json:
        """Bring this host to the state in `request`; see `procguard/deploy/install/deployer.py` for its fields.

        `fetch_bundle`, then `fetch_code` (byte code for this Python, or b"" to compile here) are called only if the
        release is not installed yet. `fetch_secret(digest of the current secret)` is called only for a request with
        `new_secret`, under the lock, so that the manager's newest secret is the one stored here; it returns "" if the
        current secret is valid. A release whose agent does not start is rolled back to the previous one.
        """
        if not request.get("another_fleet"):
            self.refuse_what_another_runs(request)
        with self.locked(make=True):
            changes: List[str] = []
            digest = request["release"]
            unpacked_bytes = int(request.get("unpacked_bytes", 0))
            if not release.present(self.home, digest) and release.unpack(
                self.home, digest, fetch_bundle(), unpacked_bytes, fetch_code()
            ):
                changes.append("unpacked")
            if request.get("new_secret"):
                request = dict(request, secret=fetch_secret(self._secret_sha256()))
            before, before_release = self.config(), release.current(self.dir)
            keeper = self.keeper()
            config, keeping = self._wanted_config(request, before), self._wanted_keeping(request, keeper)
            if self._only_other_ways(config, before):
                paths.write_json(paths.agent_file(self.dir), config, durable=True)
            elif config != before:
                changes.append("configured")
            if before_release != digest[:16]:
                changes.append("upgraded" if before_release else "installed")
            if keeping != self.keeping() or keeper.installed() != keeping["keep_alive"]:
                changes.append("keep-alive")
            if changes or not self.running() or os.path.exists(self._stop_mark()):
                changes.append("restarted" if self.running() else "started")
                self._apply(config, keeping, digest, keeper)
            return self._report(changes)

    def refuse_what_another_runs(self, request: Json) -> None:
        """Raise InstallError if another fleet on this host runs a worker with the same id."""
        worker_ids = [str(one) for one in request.get("worker_ids") or []]
        if not worker_ids:
            return
        from remote_agent.system import other_fleets

        for other, doubled in other_fleets.doubled(self.dir, worker_ids):
            named = ", ".join(doubled[:5]) + (f" and {len(doubled) - 5} more" if len(doubled) > 5 else "")
            raise InstallError(
                "another_fleet",
                f"{self.host}: {named} already run{'s' if len(doubled) == 1 else ''} here in another fleet: "
                f"{other_fleets.in_words(other)}, this one is {self.fleet_id}; nothing was installed",
                "is this the right state file (invoke state)? Deploy by that manager, or stop it there first; "
                "to run a second copy: --another-fleet",
            )

    def others(self) -> Json:
        """Other fleets with agents or workers on this host."""
        from remote_agent.system import other_fleets

        return {"ok": True, "others": [other._asdict() for other in other_fleets.found(self.home, self.fleet_id)]}

    def _only_other_ways(self, config: Json, before: Json) -> bool:
        """Whether only additional addresses of the manager have appeared (a VPN or container network) while the
        agent's own one works. They are used when the current ones fail and do not require a restart."""
        ways, known = config["manager_urls"], before.get("manager_urls") or [""]
        others: Json = {"manager_urls": [], "manager_tried": []}
        same = {**config, **others} == {**before, **others}
        return same and config != before and ways[0] == known[0] and self.running()

    def _apply(self, config: Json, keeping: Json, digest: str, keeper: KeepAlive) -> None:
        self._clear_stop_mark()
        self.stop_agent(self.config())
        self._forget_managers()
        paths.write_json(paths.agent_file(self.dir), config, durable=True)
        before = release.previous(self.dir)
        switched = release.switch(self.dir, self.home, digest)
        keeper.install(keeping["keep_alive"])
        paths.write_json(self._keeping_file(), keeping, durable=True)
        try:
            self._start(config, keeper)
        except InstallError as exc:
            earlier = release.previous(self.dir) if switched else ""
            if not earlier:
                raise
            self._go_back(config, earlier, keeper)
            release.forget_previous(self.dir, before, self.home)
            raise InstallError(exc.code, f"{exc.message}; rolled back to release {earlier}", exc.next_step) from exc

    def _wanted_keeping(self, request: Json, keeper: KeepAlive) -> Json:
        """The keep-alive, which is chosen once, and again only if the inventory changes."""
        service, known = request.get("service") or "auto", self.keeping()
        if known.get("service") == service and known.get("keep_alive"):
            return known
        kind, reason = keeper.choose(service)
        return {"service": service, "keep_alive": kind, "reason": reason}

    def _wanted_config(self, request: Json, before: Json) -> Json:
        config: Json = {
            "fleet_id": self.fleet_id,
            "host": self.host,
            "agent_id": request["agent_id"],
            "secret": request.get("secret") or before.get("secret", ""),
            "proof_key": request["proof_key"],
            "runtime_dir": self._runtime_dir(before),
            "kind": "deployed",
            "release": request["release"][:16],
            "python": sys.executable,
            "base_env": request.get("base_env") or recorded_environment(dict(os.environ)),
        }
        if request.get("another_fleet") or before.get("another_fleet"):
            # --another-fleet: this agent also starts workers that another fleet runs here
            config["another_fleet"] = True
        if request.get("manager_ca"):
            config.update(manager_ca=request["manager_ca"], manager_any_name=bool(request.get("manager_any_name")))
        if request.get("manager_fixed"):
            config["manager_fixed"] = request["manager_fixed"]  # the inventory's: only a deployment changes it
        tunnel_url = request.get("tunnel_url") or (before.get("tunnel_url") if request.get("tunnel_failure") else "")
        if tunnel_url:
            config["tunnel_url"] = tunnel_url
        if not config["secret"]:
            raise InstallError("no_secret", f"{self.host}: no secret here and none was sent", "deploy again")
        from remote_agent.install import addresses

        ways = addresses.wanted(request, before, self.fleet_id, self.host, self.running)
        config["manager_urls"], config["manager_tried"] = ways
        return config

    def _runtime_dir(self, before: Json) -> str:
        """The runtime directory, which is chosen once, because it contains the locks of live runners. Recreated if a
        reboot emptied /tmp."""
        known = str(before.get("runtime_dir") or "")
        try:
            return paths.keep_runtime_dir(known, self.home, self.fleet_id, self.host)
        except paths.UnsafeDirectory as exc:
            raise InstallError("no_runtime_dir", str(exc), "make /tmp usable for this user") from exc

    def lock_dir(self) -> str:
        """The directory of this agent's locks, even before it is installed."""
        return self._runtime_dir(self.config())

    def _report(self, changes: "List[str]") -> Json:
        report = self.status()
        report.update(changed=bool(changes), changes=changes)
        return report

    # ------------------------------------------------------------------------------------ starting, stopping

    def start(self) -> Json:
        with self.locked():
            self._clear_stop_mark()
            return self._ensure(replace_frozen=False)

    def ensure(self, replace_frozen: bool = False) -> Json:
        """Start the agent unless it runs or was stopped by hand. `replace_frozen`: replace a process stopped by a
        signal."""
        if self.running() and not replace_frozen:
            return self._report([])  # called by cron every minute: no lock, no write
        with self.locked():
            return self._ensure(replace_frozen)

    def _ensure(self, replace_frozen: bool) -> Json:
        config = self.config()
        if not config:
            raise self.not_installed()
        if os.path.exists(self._stop_mark()):
            return dict(self._report([]), ok=False, reason="stopped by hand with `remote_agent.install stop`")
        number = process.pid(config["runtime_dir"], self.dir) if self.running() else None
        frozen = replace_frozen and number is not None and process.is_frozen(number)
        if self.running() and not frozen:
            return self._report([])
        if frozen:
            self.stop_agent(config)
        runtime_dir = self._runtime_dir(config)
        if runtime_dir != config["runtime_dir"]:
            config["runtime_dir"] = runtime_dir
            paths.write_json(paths.agent_file(self.dir), config, durable=True)
        self._start(config, self.keeper())
        return self._report(["started"])

    def stop(self) -> Json:
        """Stop the agent and mark it as stopped, which the keep-alive respects. Workers continue to run."""
        with self.locked():
            paths.write_atomic(
                self._stop_mark(), b"stopped by hand; `remote_agent.install start` or a deploy starts it again\n"
            )
            return self._report(["stopped"] if self.stop_agent(self.config()) else [])

    def restart(self) -> Json:
        """Terminate the agent in any state and start it again. Workers continue to run."""
        with self.locked():
            self._clear_stop_mark()
            was = self.stop_agent(self.config())
            self._forget_managers()
            return dict(self._ensure(replace_frozen=False), changes=["restarted" if was else "started"], changed=True)

    def rollback(self) -> Json:
        with self.locked():
            earlier = release.previous(self.dir)
            if not earlier or not release.present(self.home, earlier):
                raise InstallError(
                    "no_previous", f"{self.host}: there is no release to roll back to", "deploy the release you want"
                )
            self.stop_agent(self.config())
            self._go_back(self.config(), earlier, self.keeper())
            # the release that was rolled back: a second rollback must not return to it
            release.forget_previous(self.dir)
            return self._report(["rolled back"])

    def _forget_managers(self) -> None:
        """Forget the terms of earlier managers: the manager that deploys or restarts the agent leads, because its
        database may have been restored."""
        with contextlib.suppress(OSError):
            os.unlink(paths.known_managers_file(self.dir))

    def _go_back(self, config: Json, earlier: str, keeper: KeepAlive) -> None:
        release.switch(self.dir, self.home, earlier)
        config = dict(config, release=earlier)
        paths.write_json(paths.agent_file(self.dir), config, durable=True)
        self._start(config, keeper)

    def _start(self, config: Json, keeper: KeepAlive) -> None:
        by_systemd = self.keeping().get("keep_alive") == "systemd" and keeper.systemctl("restart")
        if by_systemd and process.await_running(config["runtime_dir"], self.dir):
            return
        if not process.is_running(config["runtime_dir"]):
            process.start(config, self.dir)

    def stop_agent(self, config: Json) -> bool:
        if self.keeping().get("keep_alive") == "systemd":
            self.keeper().systemctl("stop")  # otherwise Restart=always would restart it
        return bool(config.get("runtime_dir")) and process.stop(config["runtime_dir"], self.dir)

    # --------------------------------------------------------------------------------------------- inside

    def not_installed(self) -> InstallError:
        return InstallError(
            "not_installed", f"no agent is installed in {self.dir}", "deploy it: invoke deploy --hosts …"
        )

    def _make_dir(self) -> None:
        if os.geteuid() == 0:
            self._refuse_others_place()
        try:
            os.makedirs(self.dir, mode=0o700, exist_ok=True)
            release.check_space(self.dir, 0)
        except OSError as exc:
            raise release.os_error(exc, f"cannot make {self.dir}") from exc

    def _refuse_others_place(self) -> None:
        """Raise InstallError if root's home can be modified by other users, because root executes files from it. A
        user who became root by sudo counts as root."""
        from remote_agent.system import owners

        found = owners.walk(self.dir)
        if found.fd is not None:
            os.close(found.fd)
        if found.shared or (found.actor is not None and str(found.actor.uid) != os.environ.get("SUDO_UID")):
            who = f"user {found.actor.name}" if found.actor is not None else "others than root"
            raise InstallError(
                "unsafe_home",
                f"{self.host}: {who} could replace what root's agent runs in {self.home}",
                "set procguard_home to a directory that root alone can write to, and so all above it",
            )

    def keeper(self) -> KeepAlive:
        return KeepAlive(self.dir, sys.executable, f"{self.fleet_id}/{self.host}")

    def _keeping_file(self) -> str:
        return os.path.join(self.dir, "install.json")

    def _stop_mark(self) -> str:
        return os.path.join(self.dir, "stopped")

    def _clear_stop_mark(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._stop_mark())

    @contextlib.contextmanager
    def locked(self, make: bool = False) -> Iterator[None]:
        """Lock the agent directory against other installers. Hosts that share a home have separate directories and do
        not wait.

        Only an install creates the directory: an `ensure` that waited for an uninstall must not recreate it.
        """
        path = os.path.join(self.dir, "install.lock")
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            if make:
                self._make_dir()
            elif not os.path.isdir(self.dir):
                raise self.not_installed()
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue  # an uninstall removed the directory meanwhile
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(path) and os.stat(path).st_ino == os.fstat(fd).st_ino:
                    break  # otherwise an uninstall removed the file while this process waited
            except BlockingIOError:
                pass
            os.close(fd)
            if time.monotonic() > deadline:
                raise InstallError(
                    "busy",
                    f"{self.host}: another deployment is at work in {self.dir}",
                    "wait for it, then deploy again",
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            os.close(fd)


def _skipped_pythons() -> "List[str]":
    """The interpreters that the session tried before this one: ["python3=3.6.8", "python3.9="], with an empty version
    for a broken one. PyPy is skipped at first, and used if nothing else was found."""
    skipped = os.environ.get("PROCGUARD_SKIPPED", "").split()
    return [one for one in skipped if sys.implementation.name == "cpython" or not one.endswith("=PyPy")]
