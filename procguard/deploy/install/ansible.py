"""Commands that the playbooks run on the controller: the same deployment, with Ansible as the transport.

    python -m procguard.deploy.install.ansible begin --hosts INVENTORY… --dir DIR --action deploy|undeploy|ask [--check]
                                           declares the hosts to the manager (ask: changes nothing); fills DIR (0700)
    … plan    --host NAME --dir DIR     `install.pyz status` on stdin -> the changes, and the bundle that is required
    … request --host NAME --dir DIR     the same on stdin -> the request for `install.pyz install`
    … code    --host NAME --dir DIR     procguard_sync: packs missing archives -> [{"dest", "digest", "archive"}]
    … verify  --host NAME --dir DIR     returns once the agent has sent a heartbeat
    … removal, forget --host NAME --dir DIR     undeploy: wait for its workers' end; remove it from the manager

All decisions are the deployer's; this module only splits a deployment into steps. The request contains the agent's
secret: pass it to `install.pyz install` on stdin, and keep it out of logs (no_log).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
import zlib
from pathlib import Path

from procguard.client import client
from procguard.client.types import DeployedHostInfo
from procguard.console import terminal
from procguard.deploy.install.deployer import VERIFY_TIMEOUT_S, WORKER_CHANGES, Deployer, DeployOptions, would_change
from procguard.deploy.install.rollout import HostResult
from procguard.deploy.install.verify import AgentVerifier
from procguard.deploy.inventory import model, names
from procguard.deploy.session import bundle
from procguard.deploy.session.connector import Connector
from procguard.deploy.session.session import HostStatus
from procguard.deploy.sync.source import Sources
from procguard.errors import ProcGuardError, UsageError
from procguard.json_types import Json

LEFT_OVER_S = 24 * 3600.0


class _Silent:
    def stage(self, host: str, stage: str) -> None:
        """Ansible shows the progress."""

    def done(self, result: HostResult) -> None:
        """Ansible shows the result."""


def begin(paths: list[str], directory: Path, action: str, check: bool, prune: bool) -> Json:
    """Declare the hosts to the manager and write the files for them: install.pyz, the bundle, deployment.json."""
    options = DeployOptions(prune=prune or action == "undeploy", check=check or action == "ask")
    found = model.load(paths)
    if options.prune and found.incomplete and action == "deploy":
        raise UsageError(
            "parts of the inventory could not be read: prune could stop workers that are merely unreadable",
            "correct it",
        )
    hosts = found.select("")
    if action == "undeploy":
        hosts = [model.Host(host.name, host.target, home=host.home, tunnel=host.tunnel) for host in hosts]
    reply = client.from_environment().deploy(_deployer(options).request(hosts))
    _remove_left_over(directory.parent)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    (directory / "install.pyz").write_bytes(bundle.installer_zip())
    if action == "deploy":
        release = bundle.build()
        (directory / _bundle_name(release)).write_bytes(release.data)
    fd = os.open(directory / "deployment.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as out:
        inventory = [os.path.abspath(path) if os.path.exists(path) else path for path in paths]
        json.dump({"inventory": inventory, "reply": reply}, out)
    return {"fleet_id": reply["fleet_id"], "hosts": sorted(reply["hosts"])}


def plan(name: str, directory: Path, found: HostStatus) -> Json:
    """{"changes": list of texts, "bundle": file name, "send_bundle": whether the host lacks the bundle}"""
    _, mine = _begun(name, directory)
    release = bundle.build()
    differs = [one["result"] + " " + worker for worker, one in mine.get("workers", {}).items()]
    worker_changes = [text for text in differs if text.split()[0] in WORKER_CHANGES]
    return {
        "changes": worker_changes + would_change(found, release, mine),
        "bundle": _bundle_name(release),
        "send_bundle": found.get("release") != release.sha256[:16],
    }


def request(name: str, directory: Path, found: HostStatus) -> Json:
    """The request for `install.pyz install` on host `name`; `found`: the host's response to `install.pyz status`."""
    begun, mine = _begun(name, directory)
    host = model.load(begun["inventory"]).hosts[name]
    release = bundle.build()
    deployer = _deployer(DeployOptions())
    asked = deployer.install_request(host, begun["reply"], mine, release, found)
    return {
        **asked,
        "new_secret": False,
        "secret": deployer.new_secret(mine["agent_id"]) if asked["new_secret"] else "",
    }


def code(name: str, directory: Path) -> Json:
    """Pack each folder of the host's procguard_sync into an archive for `install.pyz code`."""
    begun, _ = _begun(name, directory)
    sources, folders = Sources(), []
    for sync in model.load(begun["inventory"]).hosts[name].syncs:
        source = sources.of(sync)
        archive = directory / f"code-{source.digest[:16]}"
        if not archive.exists():
            pack = sources.pack(source, range(len(source.names)))
            manifest = zlib.compress(json.dumps(source.manifest, separators=(",", ":")).encode(), 3)
            scratch = archive.with_suffix(f".{os.getpid()}")
            with open(scratch, "wb") as out:
                out.write(b"%d\n%s" % (len(manifest), manifest))
                out.writelines(pack.blocks())
            scratch.replace(archive)
        folders.append({"dest": sync.dest, "digest": source.digest, "archive": archive.name})
    return {"folders": folders}


def verify(name: str, directory: Path) -> Json:
    _, mine = _begun(name, directory)
    manager = client.from_environment()
    AgentVerifier(manager).wait_for(mine["agent_id"], time.monotonic() + VERIFY_TIMEOUT_S)
    return {"connected": True, "recovery_ssh": manager.check_ssh(name)}


def removal(name: str, directory: Path) -> Json:
    _, mine = _begun(name, directory)
    _deployer(DeployOptions()).await_removal(mine["agent_id"])
    return {"gone": True}


def forget(name: str, directory: Path) -> Json:
    _, mine = _begun(name, directory)
    _deployer(DeployOptions()).forget(mine["agent_id"])
    return {"forgotten": True}


def _begun(name: str, directory: Path) -> tuple[Json, DeployedHostInfo]:
    """(the content of deployment.json, this host's part of the manager's response)."""
    begun = json.loads((directory / "deployment.json").read_text("utf-8"))
    if name not in begun["reply"]["hosts"]:
        raise UsageError(
            f"{name} is not in {' and '.join(begun['inventory'])}", "run the playbook with the inventory it deploys"
        )
    return begun, begun["reply"]["hosts"][name]


def _remove_left_over(folder: Path) -> None:
    """Remove private directories of earlier runs that ended before their last play because all hosts were
    unreachable."""
    for path in folder.glob("procguard-*/deployment.json"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > LEFT_OVER_S:
                shutil.rmtree(path.parent)


def _bundle_name(made: bundle.Bundle) -> str:
    return f"bundle-{made.sha256[:16]}.tar.gz"


def _deployer(options: DeployOptions) -> Deployer:
    return Deployer(client.from_environment(), Connector(), _Silent(), options)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="procguard.deploy.install.ansible", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("step", choices=["begin", "plan", "request", "code", "verify", "removal", "forget"])
    parser.add_argument("--hosts", nargs="+", default=[], help="begin: the inventory, or several")
    parser.add_argument("--action", choices=["deploy", "undeploy", "ask"], default="deploy", help="begin: for what")
    parser.add_argument("--check", action="store_true", help="begin: change nothing")
    parser.add_argument("--prune", action="store_true", help="begin: stop workers gone from the inventory")
    parser.add_argument("--host", default="", help="all others: one host's name")
    parser.add_argument("--dir", required=True, type=Path, help="a private directory of this run")
    given = parser.parse_args(argv)
    given.host = names.fleet_id(given.host) if given.host else ""
    try:
        if given.step == "begin":
            answer = begin(given.hosts, given.dir, given.action, given.check, given.prune)
        elif given.step in ("plan", "request"):
            answer = {"plan": plan, "request": request}[given.step](given.host, given.dir, json.load(sys.stdin))
        else:
            steps = {"code": code, "verify": verify, "removal": removal, "forget": forget}
            answer = steps[given.step](given.host, given.dir)
    except ProcGuardError as exc:
        terminal.say_block(f"procguard: {exc}", err=True)
        return exc.exit_code
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
