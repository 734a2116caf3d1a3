"""Commands for the hosts of an inventory: deploy, upgrade, rollback, undeploy, trust, doctor, fetch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from procguard.cli.contexts import connect
from procguard.cli.program.command import OptionGroup, operator_task, option
from procguard.console.language import shown
from procguard.console.terminal import say, say_json
from procguard.deploy.install.deployer import DeployedInventory
from procguard.errors import PartlyFailed, UsageError

if TYPE_CHECKING:
    from procguard.deploy.inventory.model import Host, Inventory
    from procguard.deploy.ssh.credentials import LoginCredentials

JSON_RESULT = "print the result as JSON"
WAIT_HELP = {
    "wait": "seconds to wait for started workers (default: their start_secs, at most 15 s)",
    "no_wait": "do not wait for started workers",
}
HOSTS_TEXT = "inventory in Ansible's format, e.g. inventory/prod.yaml; of several, later ones take precedence"
VAULT_TEXT = "file with the Ansible Vault password, or a program that prints it (default: ANSIBLE_VAULT_PASSWORD_FILE)"
FORKS, FORKS_TEXT = 32, "number of hosts in parallel"


@dataclass(frozen=True)
class InventoryOptions(OptionGroup):
    """Options that name the inventory."""

    hosts: tuple[str, ...] = option((), HOSTS_TEXT)
    vault_password_file: str = option("", VAULT_TEXT)

    def loaded(self, action: str) -> Inventory:
        """The whole inventory. Raises UsageError if none is given, and the errors of `model.load`."""
        from procguard.deploy.inventory import model

        if not self.hosts:
            raise UsageError(
                "no inventory given", f"invoke {action} --hosts inventory.yaml; invoke init HOST writes one"
            )
        return model.load(self.hosts, self.vault_password_file)


@dataclass(frozen=True)
class HostsOptions(InventoryOptions):
    """Options that select hosts of the inventory."""

    limit: str = option("", "limit to these hosts or groups, as in Ansible: gpu*,!gpu03")

    def chosen(self, action: str) -> list[Host]:
        """The selected hosts. Raises as `loaded` does."""
        return self.loaded(action).select(self.limit)


@dataclass(frozen=True)
class LoginOptions(OptionGroup):
    """Options for passwords, which are prompted for before anything begins."""

    ask_pass: bool = option(
        False, "prompt for the SSH password (default: keys, the inventory, PROCGUARD_SSH_PASSWORD_FILE)"
    )
    ask_become_pass: bool = option(False, "prompt for the sudo password (default: PROCGUARD_BECOME_PASSWORD_FILE)")

    def credentials(self, hosts: list[Host], ask: Callable[[str], str] | None = None) -> LoginCredentials:
        """The credentials for these hosts. `ask` prompts for the passphrase of a key that needs one (default: on the
        terminal)."""
        from procguard.deploy.ssh.credentials import LoginCredentials, ask_on_terminal

        return LoginCredentials(
            {host.name: host.secrets for host in hosts},
            password=ask_on_terminal("SSH password: ") if self.ask_pass else "",
            become_password=ask_on_terminal("sudo password: ") if self.ask_become_pass else "",
            ask=(ask or ask_on_terminal) if sys.stdin.isatty() else None,
        )


@dataclass(frozen=True)
class RolloutOptions(OptionGroup):
    """Options of a rollout: parallelism, waves, dry run and output."""

    forks: int = option(FORKS, FORKS_TEXT)
    serial: str = option("", "wave size, as in Ansible: 4, 10%, or 1,10%,50%")
    max_fail: str = option("", "stop after a wave in which more hosts failed: 3 or 10%")
    check: bool = option(False, "show what would change; change nothing")
    diff: bool = option(False, "show the differences of workers (names only for env) and of code folders")
    json_: bool = option(False, JSON_RESULT)

    def over(self, action: str, hosts: list[Host], login: LoginOptions, **more: Any) -> None:
        """Run `action`, a method of Deployer, on these hosts and print the results. `more`: further DeployOptions.
        Raises PartlyFailed if a host failed."""
        from procguard.cli.output import deployment
        from procguard.deploy.install.deployer import Deployer, DeployOptions
        from procguard.deploy.install.rollout import RolloutPlan
        from procguard.deploy.session.connector import Connector

        plan = RolloutPlan(_forks(self.forks), self.serial, self.max_fail)
        options = DeployOptions(plan, check=self.check, diff=self.diff, **more)
        out = deployment.console(stderr=self.json_)
        _say_notes(hosts, out)
        progress = deployment.Progress(out, len(hosts))
        connector = Connector(login.credentials(hosts, progress.ask))
        with progress:
            deployer = Deployer(connect(), connector, progress, options)
            results = getattr(deployer, action)(hosts)
        if self.json_:
            say_json(deployment.as_json(results, deployer.absent))
        else:
            deployment.recap(out, results, self.diff)
            deployment.absent(out, deployer.absent, deployer.of_other_inventories)
        failure = deployment.failure(results)
        if failure:
            raise failure


INVENTORY, HOSTS, ROLLOUT, LOGIN = InventoryOptions(), HostsOptions(), RolloutOptions(), LoginOptions()


@operator_task(
    help={
        "prune": "stop workers that are no longer in the inventory",
        "restart_changed": "restart changed workers, one host first; stop at the first that does not come up",
        "sync_running": "sync code (procguard_sync) into folders of running workers too",
        **WAIT_HELP,
        "another_fleet": "allow a second copy of workers that another fleet runs on the host",
        "rotate_secrets": "issue a new secret to each agent and revoke the old one; workers keep running",
    }
)
def deploy(
    among: HostsOptions = HOSTS,
    rollout: RolloutOptions = ROLLOUT,
    prune: bool = False,
    restart_changed: bool = False,
    sync_running: bool = False,
    rotate_secrets: bool = False,
    another_fleet: bool = False,
    wait: str = "",
    no_wait: bool = False,
    login: LoginOptions = LOGIN,
) -> None:
    """Deploy agents and workers to the hosts of an inventory. Example: invoke deploy --hosts inventory/prod.yaml

    Syncs the project's code first (procguard_sync): only changed files, and no folders in which workers are running
    (--sync-running includes these). Hosts that are up to date are left unchanged. Running workers are never
    interrupted: a worker whose specification changed is shown as "restart pending" (--restart-changed restarts it, on
    one host first); a worker that was removed from the inventory keeps running (--prune stops it). If the agent of a
    new release does not start or sends no heartbeat, the release is rolled back on that host. Exits with code 2 if a
    host failed, or if a worker that should be running is failed or in backoff.
    """
    from procguard.client.coming_up import wait_limit
    from procguard.deploy.session import bundle

    bundle.begin()
    limit, found = wait_limit(wait, no_wait), among.loaded("deploy")
    if found.incomplete and prune:
        _say_notes(found)
        raise UsageError(
            "--prune: parts of the inventory could not be read, and what is missing in it need not be gone",
            "correct them (invoke deploy without --prune skips them)",
        )
    named: DeployedInventory | None = None
    if found.identity and not found.incomplete:
        declared = {worker.worker_id: host.name for host in found.hosts.values() for worker in host.workers}
        hosts = None if among.limit else list(found.hosts)
        named = {"name": found.identity, "hosts": hosts, "workers": declared}
    rollout.over(
        "deploy",
        found.select(among.limit),
        login,
        prune=prune,
        restart_changed=restart_changed,
        sync_running=sync_running,
        rotate_secrets=rotate_secrets,
        limited=bool(among.limit),
        wait_limit=limit,
        another_fleet=another_fleet,
        inventory=named,
    )


@operator_task(help={"canary": "host to upgrade first (default: the first of the inventory)"})
def upgrade(
    among: HostsOptions = HOSTS,
    canary: str = "",
    rollout: RolloutOptions = RolloutOptions(serial="1,100%", max_fail="0"),
    login: LoginOptions = LOGIN,
) -> None:
    """Upgrade the agents to this release, one host first. Example: invoke upgrade --hosts inventory/prod.yaml

    Upgrades one host first, stops at the first failure and leaves the remaining hosts unchanged. An agent that does not
    start or sends no heartbeat is rolled back to its previous release. Worker processes are not restarted.
    """
    chosen = among.chosen("upgrade")
    if canary:
        first = [host for host in chosen if host.name == canary]
        if not first:
            raise UsageError(f"--canary {canary} is not one of the hosts", f"e.g. --canary {chosen[0].name}")
        chosen = first + [host for host in chosen if host.name != canary]
    chosen = [replace(host, syncs=()) for host in chosen]  # the agents' release only, not the project's code
    rollout.over("deploy", chosen, login, limited=bool(among.limit))


@operator_task()
def rollback(among: HostsOptions = HOSTS, rollout: RolloutOptions = ROLLOUT, login: LoginOptions = LOGIN) -> None:
    """Restore the previous agent release; workers keep running. Example: invoke rollback --hosts F --limit gpu01"""
    rollout.over("rollback", among.chosen("rollback"), login)


@operator_task()
def undeploy(among: HostsOptions = HOSTS, rollout: RolloutOptions = ROLLOUT, login: LoginOptions = LOGIN) -> None:
    """Stop the workers of these hosts and remove the agent completely. Example: invoke undeploy --hosts F"""
    rollout.over("undeploy", among.chosen("undeploy"), login)


@operator_task(help={"yes": "add keys without a prompt; compare the fingerprints first"})
def trust(among: HostsOptions = HOSTS, yes: bool = False, login: LoginOptions = LOGIN) -> None:
    """Show the hosts' SSH keys and add new ones to known_hosts. Example: invoke trust --hosts inventory/prod.yaml

    Compare the fingerprints with those on the hosts: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. A changed key is
    never added.
    """
    from procguard.cli.output import deployment
    from procguard.deploy.ssh import known_hosts as trust

    chosen = among.chosen("trust")
    credentials = login.credentials(chosen)
    out, bad = deployment.console(), 0
    while True:  # the key of a jump host is needed before those of the hosts behind it
        keys = trust.scan([host.target for host in chosen], credentials)
        bad = deployment.keys(out, keys)
        new = [key for key in keys if key.status == "new"]
        if not new:
            break
        if not yes and not _agreed(f"Add {len(new)} key(s) to known_hosts? [y/N] "):
            raise UsageError("no key was added", "compare the fingerprints, then: invoke trust … --yes")
        named = {host.name: host.target for host in chosen}
        for key in new:
            say(f"added to {trust.add([key], named.get(key.host))}: {key.host} {key.fingerprint}")
    if bad:
        raise PartlyFailed(f"{bad} of {len(chosen)} hosts have no key that can be trusted", "see the messages above")


@operator_task(("host",), help={"host": "its name in the inventory"})
def doctor(host: str, inventory: InventoryOptions = INVENTORY, login: LoginOptions = LOGIN) -> None:
    """Diagnose a host. Example: invoke doctor gpu01 --hosts inventory/prod.yaml

    Checks each step from name resolution to the agent's heartbeat at the manager, and names causes and remedies.
    Changes nothing.
    """
    from procguard.cli.output import deployment
    from procguard.deploy.install.doctor import Doctor
    from procguard.deploy.inventory.names import fleet_id
    from procguard.deploy.session.connector import Connector

    loaded = inventory.loaded("doctor")
    found, host = loaded.hosts, fleet_id(host)
    if host not in found:
        raise UsageError(f"{loaded.path} has no host {host}", f"hosts: {', '.join(list(found)[:8])}")
    out, bad = deployment.console(), 0
    connector = Connector(login.credentials([found[host]]))
    for step in Doctor(connect(), connector).examine(found[host]):
        deployment.step(out, step)
        bad += step.status == "bad"
    if bad:
        raise PartlyFailed(f"{host}: {bad} check(s) failed", "see the messages above")


@operator_task(
    ("pattern", "path"),
    help={
        "pattern": "hosts, as in --limit: gpu*,!gpu03; or an inventory, for all hosts",
        "path": "file, folder or quoted pattern on the host: '~/project/out/*.csv'",
        "to": "local folder, with a subfolder for each host",
        "max_size": "maximum size per host: 500M, 2G",
        "max_files": "maximum number of files per host",
        "forks": FORKS_TEXT,
        "json_": JSON_RESULT,
    },
)
def fetch(
    pattern: str,
    path: str,
    inventory: InventoryOptions = INVENTORY,
    to: str = "fetched",
    max_size: str = "1G",
    max_files: int = 10_000,
    forks: int = FORKS,
    json_: bool = False,
    login: LoginOptions = LOGIN,
) -> None:
    """Fetch files from many hosts. Example: invoke fetch 'gpu*' '~/project/out/*.csv' --hosts inventory/prod.yaml

    Writes each file to ./fetched/HOST under its path on the host. Relative paths start at the user's home directory.
    Folders are fetched recursively, without links. Does not need a manager.
    """
    from pathlib import Path

    from procguard.cli.output import deployment
    from procguard.deploy.install.fetch import Fetcher, Wanted
    from procguard.deploy.session.connector import Connector

    if not inventory.hosts and os.path.exists(pattern):
        inventory, pattern = replace(inventory, hosts=(pattern,)), ""
    chosen = HostsOptions(inventory.hosts, inventory.vault_password_file, pattern).chosen(
        f"fetch {pattern or 'HOSTS'} {path}"
    )
    wanted = Wanted(path, _bytes(max_size), max_files)
    out = deployment.console(stderr=json_)
    connector = Connector(login.credentials(chosen))
    with deployment.Progress(out, len(chosen)) as progress:
        results = Fetcher(connector, progress, Path(to), _forks(forks)).fetch(chosen, wanted)
    if json_:
        say_json(deployment.as_json(results))
    else:
        deployment.fetched(out, results)
    failure = deployment.failure(results)
    if failure:
        raise failure


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"--max-size {text}: expected a size", "e.g. --max-size 500M or --max-size 2G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2].upper()]


def _say_notes(hosts: Inventory | list[Host], out: Any = None) -> None:
    """Print the warnings of the inventory, each once."""
    from procguard.cli.output import deployment
    from procguard.console.styled import styled

    out = out or deployment.console(stderr=True)
    each = hosts if isinstance(hosts, list) else hosts.hosts.values()
    for warning in dict.fromkeys(warning for host in each for warning in host.warnings):
        out.print(styled("[yellow]note: {}[/]", warning))


def _forks(number: int) -> int:
    if number < 1:
        raise UsageError(f"--forks {number}: at least one host at once", f"leave it out for {FORKS}")
    return number


def _agreed(question: str) -> bool:
    return sys.stdin.isatty() and input(shown(question)).strip().lower() in ("y", "yes")
