"""The only code that installs, upgrades, rolls back, starts and removes an agent on a host. Idempotent.

    remote_agent.install install --home H --fleet F --host X --bundle B      the request, with the secret, is JSON on
                                                                             stdin
    remote_agent.install ensure|start|restart|stop|status|rollback|uninstall --dir AGENT_DIR
    remote_agent.install code --home H --fleet F --host X --dest D --digest SHA256 [--archive A]
                                                                             see install/project_sync/session.py

`session` performs the same operations over one SSH channel, as JSON lines (see `InstallerSession`). The deployer sends
this file's source, so that the installer always has the release of the deploying side. Each command prints one JSON
report on stdout; exit code 0 = success, 1 = failure, with the reason in the report. `installer.py` has the operations.
"""

from __future__ import annotations

import json
import os
import sys

if "remote_agent" not in sys.modules:  # run as a file from a release: python -I leaves its directory out of sys.path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

from remote_agent.install import release
from remote_agent.install.installer import Installer
from remote_agent.install.release import InstallError
from remote_agent.protocol.hints import TYPE_CHECKING, Any, Callable, Dict, List, Optional

if TYPE_CHECKING:
    import argparse

    from remote_agent.install.project_sync.session import CodeSession
    from remote_agent.tunnel.relay import Relay

MAX_REQUEST_BYTES = 1024 * 1024
MAX_BUNDLE_BYTES = 64 * 1024 * 1024
LINE_MARK = "PROCGUARD1 "  # earlier output on stdout is a login banner

Json = Dict[str, Any]


# ----------------------------------------------------------------------------------------------- the session


class InstallerSession:
    """The installer over one SSH channel. Requests and answers are JSON lines; each answer follows LINE_MARK.

    -> {"op": "hello", "fleet_id": "f-1", "host": "gpu01", "home": ""}       <- {"hello": {status…}}; with
       "workers": true also {"workers": [{"worker_id": "w1", "alive": true}]}; with "podman": true also its version ("":
       not installed) and {"podman_user": "ml" ("" = root), "podman_lacks": ["subuid"], "podman_gpus": ["0"]}
    -> {"op": "install", "release": "…", …}            <- {"report": {…}}, preceded by these if required:
                                                       <- {"need": "bundle"}
    -> {"bytes": 81234, "code": 40000}, then the bundle, then its byte code if this Python can load that of the
       deploying side ("magic" in the answer to hello)
                                                       <- {"need": "secret", "secret_sha256": "…"}: of the current one
    -> {"secret": "…"}, "" if the current one is valid
    -> {"op": "upgrade", "release": "…"}: the same for the installed agent; nothing else changes (maintenance.py)
    -> {"op": "log", "max_bytes": 65536}: the end of agent.log           <- {"report": {"text", "path", "bytes", …}}
    -> {"op": "others"}: other fleets on this host                    <- {"report": {"others": [{"fleet_id", …}]}}
    -> {"op": "reach", "proof_key": "…", "manager_urls": […], …}             <- {"report": {"found", "failures"}}
    -> {"op": "code…", …}: a project's code, see install/project_sync/session.py; {"op": "fetch", …}: files, see
    files.py
    -> {"op": "relay", "port": 23456, "may_move": false}               <- {"report": {"port"}}, then frames
    (tunnel/mux.py)
    -> {"op": "ensure", "manager": {"manager_urls": […], …}}: starts the agent unless it runs; if it runs and none of
       its addresses reaches the manager, it gets addresses that do, see readdress.py
                                                       <- {"report": {…, "addresses": {"new": […], "before": […]}}}
    -> {"op": "ensure" | "start" | "restart" | "stop" | "status" | "rollback" | "uninstall", …}
    <- {"error": {"code", "message", "next"}} at any time; end of input ends it.
    """

    def __init__(self) -> None:
        self._input = sys.stdin.buffer
        self._code: "Optional[CodeSession]" = None
        self._relay: "Optional[Relay]" = None
        self._code_size = 0

    def run(self) -> int:
        while self._relay is None:
            line = self._input.readline(MAX_REQUEST_BYTES)
            if not line:
                return 0
            said = answer(lambda line=line: self._do(json.loads(line)))  # type: ignore[misc]
            if said:  # {}: already sent
                self._say(said)
        self._relay.serve()
        return 0

    def _do(self, request: Json) -> Json:
        if request["op"] == "fetch":
            from remote_agent.install import files

            return files.send(request, self._say, sys.stdout.buffer)
        installer = Installer(request.get("home", ""), request["fleet_id"], request["host"])
        if request["op"] == "hello":
            installer.refuse_what_another_runs(request)  # the request names workers only with --check
            runs = {"workers": installer.workers()} if request.get("workers") else {}
            return {"hello": {**installer.status(), **runs, **(_podman() if request.get("podman") else {})}}
        if request["op"] == "install":
            report = installer.install(request, self._receive_bundle, self._receive_code, self._receive_secret)
            return {"report": report}
        if request["op"] in ("upgrade", "log"):
            return {"report": self._maintain(request, installer)}
        if request["op"] == "others":
            return {"report": installer.others()}
        if request["op"] == "reach":
            from remote_agent.install import addresses

            known = [str(url) for url in installer.config().get("manager_urls") or []]
            return {"report": addresses.reach(request, installer.fleet_id, known)}
        if request["op"].startswith("code"):
            return self._do_code(request, installer)
        if request["op"] == "relay":
            return {"report": self._open_relay(request, installer)}
        report = perform(installer, request["op"], bool(request.get("replace_frozen")))
        if request["op"] == "ensure" and request.get("manager") and report.get("running") and not report.get("frozen"):
            report = {**report, **self._update_addresses(request["manager"], installer)}
        return {"report": report}

    def _open_relay(self, request: Json, installer: Installer) -> Json:
        from remote_agent.tunnel.relay import Relay, RelayError  # only the manager's tunnels need it

        port, may_move = int(request.get("port") or 0), bool(request.get("may_move"))
        try:
            self._relay = Relay(installer.fleet_id, installer.host, installer.lock_dir(), port, may_move)
        except RelayError as exc:
            raise InstallError(exc.code, exc.message, exc.next_step) from exc
        return {"ok": True, "port": self._relay.port}

    @staticmethod
    def _update_addresses(manager: Json, installer: Installer) -> Json:
        from remote_agent.install import readdress

        return {"addresses": readdress.update_addresses(installer, manager)}

    def _maintain(self, request: Json, installer: Installer) -> Json:
        from remote_agent.install import maintenance

        if request["op"] == "log":
            return maintenance.log(installer, int(request.get("max_bytes") or maintenance.MAX_LOG_BYTES))
        return maintenance.upgrade(installer, request, self._receive_bundle, self._receive_code)

    def _do_code(self, request: Json, installer: Installer) -> Json:
        from remote_agent.install.project_sync.session import CodeSession

        self._code = self._code or CodeSession(self._input)
        return dict(self._code.do(request, installer))

    def _receive_bundle(self) -> bytes:
        self._say({"need": "bundle"})
        message = self._awaited()
        size, self._code_size = int(message["bytes"]), int(message.get("code") or 0)
        if not 0 < size <= MAX_BUNDLE_BYTES or not 0 <= self._code_size <= MAX_BUNDLE_BYTES:
            raise InstallError("bad_bundle", f"a bundle of {size} bytes is refused", "deploy again")
        return self._receive(size)

    def _receive_secret(self, current_sha256: str) -> str:
        self._say({"need": "secret", "secret_sha256": current_sha256})
        return str(self._awaited()["secret"])

    def _awaited(self) -> Json:
        """Wait for the answer to a `need`."""
        line = self._input.readline(MAX_REQUEST_BYTES)
        if not line:
            raise InstallError("cut_off", "the connection closed during the deployment", "deploy again")
        return dict(json.loads(line))

    def _receive_code(self) -> bytes:
        """Receive the byte code that follows the bundle; b"" if there is none."""
        return self._receive(self._code_size)

    def _receive(self, size: int) -> bytes:
        data = self._input.read(size)
        if len(data) != size:
            raise InstallError("cut_off", f"the connection ended after {len(data)} of {size} bytes", "deploy again")
        return data

    def _say(self, message: Json) -> None:
        sys.stdout.write(LINE_MARK + json.dumps(message, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def answer(action: "Callable[[], Json]") -> Json:
    """The result of `action`, or its error as {"error": …} instead of a traceback."""
    try:
        return action()
    except InstallError as exc:
        return _error(exc.code, exc.message, exc.next_step)
    except OSError as exc:
        error = release.os_error(exc, "the installer failed")
        return _error(error.code, error.message, error.next_step)
    except Exception as exc:
        return _error(
            "internal",
            f"the installer failed: {type(exc).__name__}: {exc}",
            "this is a bug in ProcGuard; please report it",
        )


def _error(code: str, message: str, next_step: str) -> Json:
    return {"ok": False, "error": {"code": code, "message": message, "next": next_step}}


def perform(installer: Installer, op: str, replace_frozen: bool = False) -> Json:
    operations: "Dict[str, Callable[[], Json]]" = {
        "ensure": lambda: installer.ensure(replace_frozen),
        "start": installer.start,
        "restart": installer.restart,
        "stop": installer.stop,
        "status": installer.status,
        "rollback": installer.rollback,
        "uninstall": lambda: _uninstall(installer),
    }
    if op not in operations:
        raise InstallError("bad_request", f"unknown operation: {op}", f"known: install, {', '.join(operations)}")
    if op not in ("status", "uninstall") and not installer.config():
        raise installer.not_installed()
    return operations[op]()


def _uninstall(installer: Installer) -> Json:
    from remote_agent.install import removal

    return removal.uninstall(installer)


# ------------------------------------------------------------------------------------------ the command line


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="remote_agent.install", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "op",
        choices=["install", "ensure", "start", "restart", "stop", "status", "rollback", "uninstall", "code", "session"],
    )
    parser.add_argument("--dir", help="the agent's directory, <home>/<fleet>/<host>")
    parser.add_argument("--home", default="", help="procguard_home; default PROCGUARD_HOME or ~/.procguard")
    parser.add_argument("--fleet", default="", help="fleet id")
    parser.add_argument("--host", default="", help="the host's name in the inventory")
    parser.add_argument("--bundle", help="install: the bundle file; the request is read as JSON from stdin")
    parser.add_argument("--dest", default="", help="code: the folder")
    parser.add_argument("--digest", default="", help="code: of what is to be in it")
    parser.add_argument("--archive", default="", help="code: what was brought; without it only a look")
    parser.add_argument("--under-running", action="store_true", help="code: also where workers run")
    parser.add_argument("--replace-frozen", action="store_true", help="ensure: replace an agent stopped by a signal")
    return parser


def _run(arguments: argparse.Namespace) -> Json:
    if arguments.dir:
        installer = Installer.of_directory(arguments.dir)
    else:
        installer = Installer(arguments.home, arguments.fleet, arguments.host)
    if arguments.op == "code":
        from remote_agent.install.project_sync.session import from_file

        return from_file(installer, arguments.dest, arguments.digest, arguments.archive, arguments.under_running)
    if arguments.op != "install":
        return perform(installer, arguments.op, arguments.replace_frozen)
    if not arguments.bundle:
        raise InstallError("bad_request", "install needs --bundle FILE", "name the bundle file")
    request = json.loads(sys.stdin.buffer.read(MAX_REQUEST_BYTES))

    def read_bundle() -> bytes:
        with open(arguments.bundle, "rb") as file:
            return file.read(MAX_BUNDLE_BYTES)

    return installer.install(request, read_bundle)


def main(argv: "Optional[List[str]]" = None) -> int:
    os.umask(0o022)  # releases may be shared; private files are created with 0600 and 0700 explicitly
    if argv == ["session"]:  # reads no options
        return InstallerSession().run()
    arguments = _parser().parse_args(argv)
    if arguments.op == "session":
        return InstallerSession().run()
    report = answer(lambda: _run(arguments))
    print(json.dumps(report, indent=2, sort_keys=True))
    return 0 if report.get("ok") else 1


def _podman() -> "Json":
    from remote_agent.system import podman

    return {
        "podman": podman.version(),
        "podman_user": os.environ.get("USER", str(os.geteuid())) if os.geteuid() else "",
        "podman_lacks": podman.lacks(dict(os.environ)),
        "podman_gpus": podman.gpus()[:64],
    }


if __name__ == "__main__":
    sys.exit(main())
