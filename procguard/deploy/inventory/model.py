"""What an inventory means for ProcGuard: each host, how to reach it and what it runs.

Its form is inventory_source's, groups and the precedence of variables inventory_groups'. Opens no connection. All
mistakes are reported together, each with file and line where they are known.
"""

from __future__ import annotations

import fnmatch
import os
import re
import socket
from dataclasses import dataclass, field, replace
from typing import Any

from procguard.config.groups import GroupPolicy
from procguard.deploy.inventory import code, group_policies
from procguard.deploy.inventory import source as inventory_source
from procguard.deploy.inventory.groups import ALL, UNGROUPED, Groups
from procguard.deploy.inventory.templates import Renderer, TemplateMistake
from procguard.deploy.inventory.workers import VARIABLE, DeclaredWorker, SpecReader
from procguard.deploy.ssh.credentials import HostSecrets
from procguard.deploy.ssh.target import USER_NAME, Target, parse_ssh_args
from procguard.errors import HostUnreachable, InventoryError

MAX_MISTAKES = 20
SERVICES = ("auto", "systemd", "cron", "none")
# Of the variables that begin with procguard_, those that mean something.
PROCGUARD_VARIABLES = (
    VARIABLE, group_policies.VARIABLE, "procguard_manager_url", "procguard_home", "procguard_service",
    "procguard_spare", "procguard_labels", "procguard_tunnel", code.VARIABLE,
)  # fmt: skip
CONNECTIONS = ("ssh", "paramiko", "paramiko_ssh", "smart", "local")
TRUTHS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "": False,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True)
class Host:
    """One machine: how to reach it and what it runs. `warnings` are told, not fatal."""

    name: str
    target: Target
    workers: tuple[DeclaredWorker, ...] = ()
    home: str = ""  # procguard_home; "" = the host's default
    manager_url: str = ""  # procguard_manager_url; "" = candidates are probed
    service: str = "auto"
    spare: bool | int = False  # procguard_spare: may take over tasks of other hosts; a number: at most so many
    labels: dict[str, str] = field(default_factory=dict)  # procguard_labels
    groups: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    policies: dict[str, GroupPolicy] = field(default_factory=dict)  # procguard_groups, of the whole inventory
    tunnel: bool = False  # procguard_tunnel: the agent may reach the manager through the manager's own SSH
    secrets: HostSecrets = field(default_factory=HostSecrets, repr=False)
    syncs: tuple[code.Sync, ...] = ()  # procguard_sync: the code to bring before the workers start
    gone: bool = False  # not in the inventory any more


@dataclass(frozen=True)
class Inventory:
    path: str
    hosts: dict[str, Host]
    groups: dict[str, list[str]] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """By which a later deployment knows it again: "head:/home/ml/inventory/prod.yaml"; "" for hosts named on the
        command line."""
        return f"{socket.gethostname()}:{os.path.realpath(self.path)}" if os.path.exists(self.path) else ""

    def select(self, limit: str) -> list[Host]:
        """The hosts that `--limit` names, in inventory order. Patterns as in Ansible: names, globs, groups, `!`, `&`.

        Raises InventoryError when nothing matches: a typing mistake must not look like success.
        """
        if not limit:
            return list(self.hosts.values())
        chosen: set[str] | None = None
        parts = [part.strip() for part in re.split(r"[,:]", limit) if part.strip()]
        parts.sort(key=lambda part: part[0] in "!&")  # as Ansible: first what adds, then what takes away
        for part in parts:
            names = self._match(part.lstrip("!&"))
            if part.startswith("!"):
                chosen = (set(self.hosts) if chosen is None else chosen) - names
            elif part.startswith("&"):
                chosen = (set(self.hosts) if chosen is None else chosen) & names
            else:
                chosen = (chosen or set()) | names
        if not chosen:
            raise InventoryError(f"--limit {limit} matches no host of {self.path}", f"hosts: {_some(list(self.hosts))}")
        return [host for name, host in self.hosts.items() if name in chosen]

    def _match(self, pattern: str) -> set[str]:
        found = {name for name in self.hosts if fnmatch.fnmatchcase(name, pattern)}
        for group, members in self.groups.items():
            if fnmatch.fnmatchcase(group, pattern):
                found.update(members)
        if not found:
            raise InventoryError(f"--limit: no host or group matches {pattern}", f"hosts: {_some(list(self.hosts))}")
        return found


def load(path: str | os.PathLike[str]) -> Inventory:
    """Read and check an inventory as a whole: a file (YAML, INI, executable), a folder of these, or `host1,host2`.

    Raises InventoryError with every mistake found.
    """
    return _InventoryReader(os.fspath(path)).read()


class _InventoryReader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._mistakes: list[str] = []
        self._hosts: dict[str, tuple[str, Groups]] = {}  # what stands for a place where only the host is known

    def read(self) -> Inventory:
        groups = inventory_source.read(self._source, self._tell)
        self._raise_mistakes()
        members = groups.members()
        hosts = {name: self._host(name, groups) for name in groups.host_variables}
        self._refuse_duplicates(hosts)
        policies = group_policies.merged(
            ((name, host.policies) for name, host in hosts.items()), self._tell, self._source
        )
        self._raise_mistakes()
        hosts = {name: _in_groups(host, policies) for name, host in hosts.items()}
        if not hosts:
            raise InventoryError(f"{self._source} names no host", "add one below all: hosts:")
        return Inventory(self._source, hosts, members)

    # ------------------------------------------------------------------------------------------------ hosts

    def _variables(self, host: str, groups: Groups) -> tuple[dict[str, Any], list[str]]:
        """All variables of a host by precedence, Ansible's own about it among them, and the names of its groups."""
        merged = groups.variables(host)
        names = sorted(group.name for group in groups.groups_of(host) if group.name != ALL)
        merged.update(
            inventory_hostname=host,
            inventory_hostname_short=host.partition(".")[0],
            group_names=names,
            groups=groups.members(),
            inventory_dir=str(groups.directory.absolute()),
            inventory_file=str(groups.source.absolute()),
        )
        return merged, [name for name in names if name != UNGROUPED]

    def _host(self, name: str, inventory: Groups) -> Host:
        variables, groups = self._variables(name, inventory)
        renderer = Renderer(variables)
        where = f"{self._source}: host {name}"
        self._hosts[where] = (name, inventory)
        warnings: list[str] = []
        values: dict[str, Any] = {}
        for variable in variables:
            if variable.startswith("procguard_") and variable not in PROCGUARD_VARIABLES:
                warnings.append(
                    f"{name}: {variable} is not a variable ProcGuard knows ({', '.join(PROCGUARD_VARIABLES)})"
                )
        own = (VARIABLE, group_policies.VARIABLE)  # read below, where their lines are still known
        for variable in (key for key in variables if key.startswith(("ansible_", "procguard_")) and key not in own):
            try:
                values[variable] = renderer.get(variable)
            except TemplateMistake as exc:
                self._tell(where, f"{variable}: {exc}", "correct the template or define the variable")
        workers = SpecReader(renderer, where, self._tell).read(variables.get(VARIABLE))
        policies = group_policies.read(variables.get(group_policies.VARIABLE), renderer, where, self._tell)
        service = str(values.get("procguard_service") or "auto")
        if service not in SERVICES:
            self._tell(where, f"procguard_service: {service!r} is not known", f"one of {', '.join(SERVICES)}")
        target = self._target(name, values, where, warnings)
        tunnel = self._truth("procguard_tunnel", values.get("procguard_tunnel"), where)
        if tunnel and target.local:
            warnings.append(f"{name}: procguard_tunnel means nothing on this machine: its agent needs no way")
        return Host(
            name,
            target,
            tuple(workers),
            home=str(values.get("procguard_home") or ""),
            manager_url=str(values.get("procguard_manager_url") or "").rstrip("/"),
            service=service,
            spare=self._spare(values.get("procguard_spare"), where),
            labels=self._labels(values.get("procguard_labels"), where),
            groups=tuple(groups),
            warnings=tuple(warnings),
            policies=policies,
            tunnel=tunnel,
            secrets=_secrets(values),
            syncs=code.read(values.get(code.VARIABLE), str(inventory.directory.absolute()), where, self._tell),
        )

    def _target(self, name: str, values: dict[str, Any], where: str, warnings: list[str]) -> Target:
        fields: dict[str, Any] = {}
        for variable in ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args"):
            try:
                more, ignored = parse_ssh_args(str(values.get(variable) or ""))
            except ValueError as exc:
                self._tell(where, f"{variable}: {exc}", "quote it as for a shell")
                continue
            fields.update(more)
            for option in ignored:
                always = option.startswith("stricthostkeychecking")
                why = "host keys are always checked" if always else "ProcGuard has no such option"
                warnings.append(f"{name}: {option} of {variable} is not followed: {why}")
        port = _first(values, "ansible_port", "ansible_ssh_port") or fields.get("port") or 0
        if not str(port).isdigit() or not 0 <= int(port) < 65536:
            self._tell(where, f"ansible_port: {port!r} is no port", "a number from 1 to 65535")
            port = 0
        key = str(
            _first(values, "ansible_ssh_private_key_file", "ansible_private_key_file") or fields.get("key_filename", "")
        )
        python = str(values.get("ansible_python_interpreter") or "")
        target = Target(
            name,
            hostname=str(_first(values, "ansible_host", "ansible_ssh_host") or fields.get("hostname", "")),
            port=int(port),
            user=str(_first(values, "ansible_user", "ansible_ssh_user") or fields.get("user", "")),
            key_filename=os.path.abspath(os.path.expanduser(key)) if key else "",
            local=self._connection(values.get("ansible_connection"), where) == "local",
            python="" if python.startswith("auto") else python,
            proxy_jump=fields.get("proxy_jump", ""),
            proxy_command=fields.get("proxy_command", ""),
            known_hosts=fields.get("known_hosts", ""),
            ssh_config=os.path.abspath(os.path.expanduser(fields["ssh_config"])) if fields.get("ssh_config") else "",
            identities_only=bool(fields.get("identities_only")),
            become_user=self._become(values, where),
        )
        try:
            if not target.local:
                target.check_names()
        except HostUnreachable as exc:
            key = exc.next_step.removeprefix("correct ")
            self._tell(where, f"{key}: {exc.message.removeprefix(f'{name}: ')}", "letters, digits and . - _ : alone")
        return target

    def _connection(self, value: Any, where: str) -> str:
        given = str(value or "ssh").removeprefix("ansible.builtin.").removeprefix("ansible.netcommon.")
        if given not in CONNECTIONS:
            self._tell(
                where, f"ansible_connection: {value} leads to no agent", "ssh or local; others are not supported"
            )
        return given

    def _become(self, values: dict[str, Any], where: str) -> str:
        """The user that the agent is installed as by way of sudo; "" = whoever logs in."""
        if not self._truth("ansible_become", _first(values, "ansible_become", "ansible_sudo"), where):
            return ""
        method = str(_first(values, "ansible_become_method") or "sudo").removeprefix("ansible.builtin.")
        if method != "sudo":
            self._tell(where, f"ansible_become_method: {method} is not supported", "sudo is; or log in as that user")
        user = str(_first(values, "ansible_become_user", "ansible_sudo_user") or "root")
        if not USER_NAME.fullmatch(user):
            self._tell(where, f"ansible_become_user: {user!r} names no user", "e.g. root")
        return user

    def _truth(self, variable: str, value: Any, where: str) -> bool:
        text = str(value if value is not None else "").strip().lower()
        if text not in TRUTHS:
            self._tell(where, f"{variable}: {value!r} is neither true nor false", "write true or false")
        return TRUTHS.get(text, False)

    def _spare(self, value: Any, where: str) -> bool | int:
        """true, false, or how many tasks of other hosts; Ansible's own words for true and false are understood."""
        text = str(value if value is not None else "").strip().lower()
        if text.isdigit() and not isinstance(value, bool):
            return int(text)
        if text in ("true", "yes", "on"):
            return True
        if text not in ("", "false", "no", "off"):
            self._tell(where, f"procguard_spare: {value!r} is neither true, false nor a number", "e.g. true, or 2")
        return False

    def _labels(self, value: Any, where: str) -> dict[str, str]:
        if value in (None, ""):
            return {}
        if not isinstance(value, dict) or any(isinstance(one, (dict, list)) for one in value.values()):
            self._tell(where, "procguard_labels must be a mapping of words", "e.g. {gpu: a100, rack: r3}")
            return {}
        return {str(name): _word(one) for name, one in value.items()}

    # ---------------------------------------------------------------------------------------------- mistakes

    def _refuse_duplicates(self, hosts: dict[str, Host]) -> None:
        first: dict[str, tuple[str, str]] = {}
        for host in hosts.values():
            for worker in host.workers:
                if worker.worker_id not in first:
                    first[worker.worker_id] = (host.name, worker.where)
                    continue
                other, where = first[worker.worker_id]
                self._tell(
                    worker.where,
                    f"worker {worker.worker_id} is declared on {other} and on {host.name}" + f" (first: {where})",
                    f'ids are unique in the fleet; write id: "{worker.worker_id}-{{{{ inventory_hostname }}}}"',
                )

    def _tell(self, where: str, what: str, next_step: str) -> None:
        variable = re.match(r"\w+", what)
        if where in self._hosts and variable is not None:
            name, groups = self._hosts[where]
            place = groups.place_of(name, variable[0])
            where = f"{place}: host {name}" if place else where
        mistake = f"{where}: {what}; {next_step}"
        if mistake not in self._mistakes:  # a group's mistake shows at each of its hosts
            self._mistakes.append(mistake)

    def _raise_mistakes(self) -> None:
        if not self._mistakes:
            return
        more = len(self._mistakes) - MAX_MISTAKES
        lines = self._mistakes[:MAX_MISTAKES] + ([f"… and {more} more"] if more > 0 else [])
        raise InventoryError("\n".join(lines))


def _word(value: Any) -> str:
    """As it is written in YAML: true stays "true"."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_groups(host: Host, policies: dict[str, GroupPolicy]) -> Host:
    """The host with what its whole inventory says of groups."""
    remarks = group_policies.remarks(host.name, host.workers, policies)
    return replace(host, policies=policies, warnings=(*host.warnings, *remarks))


def _secrets(values: dict[str, Any]) -> HostSecrets:
    """What Ansible calls them; the first of several names that is set."""
    return HostSecrets(
        str(_first(values, "ansible_password", "ansible_ssh_pass", "ansible_ssh_password") or ""),
        str(_first(values, "ansible_become_password", "ansible_become_pass", "ansible_sudo_pass") or ""),
        str(_first(values, "ansible_private_key_passphrase", "ansible_ssh_private_key_passphrase") or ""),
    )


def _first(values: dict[str, Any], *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
