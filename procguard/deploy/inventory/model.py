"""Interprets an inventory for ProcGuard: each host, how to reach it and which workers it runs.

source.py reads the formats, groups.py merges variables. Opens no connections. All errors are reported together, with
file and line where known. Templates are rendered in a process with limits (templates/contained.py).
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from procguard.config.groups import GroupPolicy
from procguard.deploy.inventory import code, group_policies, names
from procguard.deploy.inventory import source as inventory_source
from procguard.deploy.inventory.groups import ALL, UNGROUPED, Groups
from procguard.deploy.inventory.templates import contained
from procguard.deploy.inventory.templates.functions import TemplateMistake
from procguard.deploy.inventory.templates.renderer import HostVars, Renderer, is_template
from procguard.deploy.inventory.vault import Encrypted, Vault
from procguard.deploy.inventory.workers import VARIABLE, DeclaredWorker, SpecReader
from procguard.deploy.ssh.credentials import HostSecrets
from procguard.deploy.ssh.target import USER_NAME, Target, parse_ssh_args
from procguard.errors import HostUnreachable, InventoryError
from procguard.json_types import Json

MAX_MISTAKES = 20
SERVICES = ("auto", "systemd", "cron", "none")
# The known variables that begin with procguard_.
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
    """One machine: how to reach it and what it runs. `warnings` are shown and are not fatal."""

    name: str
    target: Target
    workers: tuple[DeclaredWorker, ...] = ()
    home: str = ""  # procguard_home; "" = the host's default
    manager_url: str = ""  # procguard_manager_url; "" = candidates are probed
    service: str = "auto"
    spare: bool | int = False  # procguard_spare: may run workers of other hosts; a number: at most this many
    labels: dict[str, str] = field(default_factory=dict)  # procguard_labels
    groups: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    policies: dict[str, GroupPolicy] = field(default_factory=dict)  # procguard_groups of the whole inventory
    tunnel: bool = False  # procguard_tunnel: the agent may reach the manager through the manager's own SSH
    secrets: HostSecrets = field(default_factory=HostSecrets, repr=False)
    syncs: tuple[code.Sync, ...] = ()  # procguard_sync: the code to sync before the workers start
    gone: bool = False  # no longer in the inventory
    inventory_name: str = ""  # the name in the inventory; `name` is the fleet's id


@dataclass(frozen=True)
class Inventory:
    """`sources`: the files read; `hosts`, `groups`: by the fleet's ids. `incomplete`: unreadable parts were left out,
    with a warning, so that a missing host may still be declared."""

    sources: tuple[str, ...]
    hosts: dict[str, Host]
    groups: dict[str, list[str]] = field(default_factory=dict)
    incomplete: bool = False

    @property
    def path(self) -> str:
        return " and ".join(self.sources)

    @property
    def identity(self) -> str:
        """The identity by which later deployments recognise it: "head:/home/ml/inventory/prod.yaml"; "" for hosts named
        on the command line."""
        paths = [os.path.realpath(one) for one in self.sources if os.path.exists(one)]
        return f"{socket.gethostname()}:{','.join(paths)}" if len(paths) == len(self.sources) else ""

    def select(self, limit: str) -> list[Host]:
        """The hosts selected by `--limit`, in inventory order. Patterns as in Ansible: names, globs, groups, `!`, `&`.

        Raises InventoryError if nothing matches, so that a typo does not look like success.
        """
        if not limit:
            return list(self.hosts.values())
        chosen: set[str] | None = None
        known = {*self.hosts, *(host.inventory_name for host in self.hosts.values())}
        parts = [limit] if limit in known else [part.strip() for part in re.split(r"[,:]", limit) if part.strip()]
        parts.sort(key=lambda part: part[0] in "!&")  # as in Ansible: additions first, then ! and &
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
        found = {
            name
            for name, host in self.hosts.items()
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(host.inventory_name, pattern)
        }
        for group, members in self.groups.items():
            if fnmatch.fnmatchcase(group, pattern):
                found.update(members)
        if not found:
            raise InventoryError(f"--limit: no host or group matches {pattern}", f"hosts: {_some(list(self.hosts))}")
        return found


def load(
    source: str | os.PathLike[str] | Sequence[str], vault_password_file: str = "", within_bounds: bool = True
) -> Inventory:
    """Read and check a whole inventory: a file (YAML, INI, executable), a folder of these, or `host1,host2`. Of several
    sources, later ones take precedence. `within_bounds`: enforce the time and memory limits of templates.

    Raises InventoryError with every mistake found, UsageError if the vault's password cannot be read.
    """
    sources = (os.fspath(source),) if isinstance(source, (str, os.PathLike)) else tuple(source)
    return _InventoryReader(sources, Vault(vault_password_file)).read(within_bounds)


class _InventoryReader:
    def __init__(self, sources: tuple[str, ...], vault: Vault) -> None:
        self._sources = sources
        self._source = " and ".join(sources)
        self._vault = vault
        self._bounds: contained.Bounds | None = None
        self._mistakes: list[str] = []
        self._warnings: dict[str, None] = {}
        self._hosts: dict[str, tuple[str, Groups]] = {}  # stands in for the location if only the host is known
        self._renderers: dict[str, Renderer] = {}

    def read(self, within_bounds: bool) -> Inventory:
        groups = inventory_source.read(self._sources, self._report, self._warn, self._vault)
        self._raise_mistakes()
        if not groups.host_variables:
            raise InventoryError(f"{self._source} names no host", "add one below all: hosts:")
        variables = {name: self._variables(name, groups) for name in groups.host_variables}
        if within_bounds and _has_templates(list(variables.values())):
            return contained.run(lambda bounds: self._meant(groups, variables, bounds))
        return self._meant(groups, variables, None)

    def _meant(self, groups: Groups, variables: dict[str, Json], bounds: contained.Bounds | None) -> Inventory:
        peers = HostVars(variables, lambda name: self._renderers[name])
        for name, own in variables.items():
            base = str(groups.origin(name)[0])
            self._renderers[name] = Renderer(own, peers, base, self._vault, bounds)
        found = {name: self._host(name, variables[name], groups) for name in variables}
        self._refuse_duplicates(found)
        policies = group_policies.merged(
            ((name, host.policies) for name, host in found.items()), self._report, self._source
        )
        self._raise_mistakes()
        hosts = {host.name: _in_groups(host, policies) for host in found.values()}
        members = {group: [names.fleet_id(name) for name in below] for group, below in groups.members().items()}
        return Inventory(self._sources, hosts, members, groups.incomplete)

    # ------------------------------------------------------------------------------------------------ hosts

    def _variables(self, host: str, groups: Groups) -> Json:
        """All variables of a host by precedence, including Ansible's built-in ones."""
        merged = groups.variables(host)
        _, file = groups.origin(host)
        merged.update(
            inventory_hostname=host,
            inventory_hostname_short=host.partition(".")[0],
            group_names=sorted(group.name for group in groups.groups_of(host) if group.name != ALL),
            groups=groups.members(),
            inventory_dir=str(file if file.is_dir() else file.parent),
            inventory_file=str(file),
        )
        return merged

    def _host(self, name: str, variables: Json, inventory: Groups) -> Host:
        renderer = self._renderers[name]
        groups = [group for group in variables["group_names"] if group != UNGROUPED]
        where = f"{self._source}: host {name}"
        self._hosts[where] = (name, inventory)
        warnings = list(self._warnings)
        values: Json = {}
        for variable in variables:
            if variable.startswith("procguard_") and variable not in PROCGUARD_VARIABLES:
                warnings.append(
                    f"{name}: {variable} is not a variable ProcGuard knows ({', '.join(PROCGUARD_VARIABLES)})"
                )
            elif meant := _meant_for(variable, variables):
                warnings.append(f"{name}: {variable} is not a variable of ProcGuard; did you mean {meant}?")
        own = (VARIABLE, group_policies.VARIABLE)  # read below, while their lines are still known
        for variable in (key for key in variables if key.startswith(("ansible_", "procguard_")) and key not in own):
            try:
                values[variable] = renderer.get(variable)
            except TemplateMistake as exc:
                self._report(where, f"{variable}: {exc}", "correct the template or define the variable")
        specs = SpecReader(renderer, where, self._report)
        place = _absolute(inventory.place_of(name, VARIABLE))
        workers = [
            replace(worker, source=place if worker.where == where else _absolute(worker.where))
            for worker in specs.read(variables.get(VARIABLE))
        ]
        warnings += [f"{name}: {note}" for note in specs.notes]
        policies = group_policies.read(variables.get(group_policies.VARIABLE), renderer, where, self._report)
        service = str(values.get("procguard_service") or "auto")
        if service not in SERVICES:
            self._report(where, f"procguard_service: {service!r} is not known", f"one of {', '.join(SERVICES)}")
        target = self._target(name, values, where, warnings)
        tunnel = self._truth("procguard_tunnel", values.get("procguard_tunnel"), where)
        if tunnel and target.local:
            warnings.append(f"{name}: procguard_tunnel has no effect on this machine: its agent needs no tunnel")
        return Host(
            names.fleet_id(name),
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
            syncs=code.read(values.get(code.VARIABLE), str(inventory.origin(name)[0]), where, self._report),
            inventory_name=name,
        )

    def _target(self, name: str, values: Json, where: str, warnings: list[str]) -> Target:
        fields: Json = {}
        for variable in ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args"):
            try:
                more, ignored = parse_ssh_args(str(values.get(variable) or ""))
            except ValueError as exc:
                self._report(where, f"{variable}: {exc}", "quote it as for a shell")
                continue
            fields.update(more)
            for option in ignored:
                always = option.startswith("stricthostkeychecking")
                why = "host keys are always checked" if always else "ProcGuard does not support this option"
                warnings.append(f"{name}: {option} of {variable} is not followed: {why}")
        port = _first(values, "ansible_port", "ansible_ssh_port") or fields.get("port") or 0
        if not str(port).isdigit() or not 0 <= int(port) < 65536:
            self._report(where, f"ansible_port: {port!r} is not a port", "a number from 1 to 65535")
            port = 0
        key = str(
            _first(values, "ansible_ssh_private_key_file", "ansible_private_key_file") or fields.get("key_filename", "")
        )
        python = str(values.get("ansible_python_interpreter") or "")
        own = names.fleet_id(name)
        target = Target(
            own,
            hostname=str(
                _first(values, "ansible_host", "ansible_ssh_host")
                or fields.get("hostname", "")
                or (names.address(name) if own != name else "")
            ),
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
            self._report(where, f"{key}: {exc.message.removeprefix(f'{name}: ')}", "letters, digits and . - _ : alone")
        return target

    def _connection(self, value: Any, where: str) -> str:
        given = str(value or "ssh").removeprefix("ansible.builtin.").removeprefix("ansible.netcommon.")
        if given not in CONNECTIONS:
            self._report(where, f"ansible_connection: {value} is not supported", "use ssh or local")
        return given

    def _become(self, values: Json, where: str) -> str:
        """The user under which the agent is installed, using sudo; "" for the login user."""
        if not self._truth("ansible_become", _first(values, "ansible_become", "ansible_sudo"), where):
            return ""
        method = str(_first(values, "ansible_become_method") or "sudo").removeprefix("ansible.builtin.")
        if method != "sudo":
            self._report(where, f"ansible_become_method: {method} is not supported", "use sudo, or log in as that user")
        user = str(_first(values, "ansible_become_user", "ansible_sudo_user") or "root")
        if not USER_NAME.fullmatch(user):
            self._report(where, f"ansible_become_user: {user!r} names no user", "e.g. root")
        return user

    def _truth(self, variable: str, value: Any, where: str) -> bool:
        text = str(value if value is not None else "").strip().lower()
        if text not in TRUTHS:
            self._report(where, f"{variable}: {value!r} is neither true nor false", "write true or false")
        return TRUTHS.get(text, False)

    def _spare(self, value: Any, where: str) -> bool | int:
        """Spare capacity: true, false, or the number of other hosts' tasks. Accepts Ansible's words for true and
        false."""
        text = str(value if value is not None else "").strip().lower()
        if text.isdigit() and not isinstance(value, bool):
            return int(text)
        if text in ("true", "yes", "on"):
            return True
        if text not in ("", "false", "no", "off"):
            self._report(where, f"procguard_spare: {value!r} is neither true, false nor a number", "e.g. true, or 2")
        return False

    def _labels(self, value: Any, where: str) -> dict[str, str]:
        if value in (None, ""):
            return {}
        if not isinstance(value, dict) or any(isinstance(one, (dict, list)) for one in value.values()):
            self._report(where, "procguard_labels must be a mapping of words", "e.g. {gpu: a100, rack: r3}")
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
                self._report(
                    worker.where,
                    f"worker {worker.worker_id} is declared on {other} and on {host.name}" + f" (first: {where})",
                    f'ids are unique in the fleet; write id: "{worker.worker_id}-{{{{ inventory_hostname }}}}"',
                )

    def _report(self, where: str, what: str, next_step: str) -> None:
        variable = re.match(r"\w+", what)
        if where in self._hosts and variable is not None:
            name, groups = self._hosts[where]
            place = groups.place_of(name, variable[0])
            where = f"{place}: host {name}" if place else where
        mistake = self._vault.hide(f"{where}: {what}; {next_step}")
        if mistake not in self._mistakes:  # a group's mistake recurs for each of its hosts
            self._mistakes.append(mistake)

    def _warn(self, where: str, what: str, next_step: str) -> None:
        self._warnings[self._vault.hide(f"{where}: {what}; {next_step}")] = None

    def _raise_mistakes(self) -> None:
        if not self._mistakes:
            return
        more = len(self._mistakes) - MAX_MISTAKES
        lines = self._mistakes[:MAX_MISTAKES] + ([f"… and {more} more"] if more > 0 else [])
        raise InventoryError("\n".join(lines))


def _has_templates(value: Any, seen: set[int] | None = None) -> bool:
    """Whether the value contains a template; shared parts are examined once."""
    seen = set() if seen is None else seen
    if isinstance(value, str):
        return is_template(value)
    if isinstance(value, Encrypted):
        return True
    if not isinstance(value, (dict, list)) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_has_templates(one, seen) for one in ([*value, *value.values()] if isinstance(value, dict) else value))


def _meant_for(variable: str, variables: Json) -> str:
    """The known variable that an unknown one is probably a misspelling of; "" if it is unrelated to ProcGuard."""
    if variable in PROCGUARD_VARIABLES:
        return ""
    if variable.lower().replace("-", "_") in PROCGUARD_VARIABLES:
        return variable.lower().replace("-", "_")
    near = difflib.get_close_matches(variable, PROCGUARD_VARIABLES, 1, 0.88) if "proc" in variable.lower() else []
    if near:
        return near[0]
    similar = variable in ("worker", "workers", "procguard") and VARIABLE not in variables
    return VARIABLE if similar and _declares_workers(variables[variable]) else ""


def _declares_workers(value: Any) -> bool:
    entries = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(isinstance(one, dict) and ("command" in one or "container" in one) for one in entries)


def _word(value: Any) -> str:
    """The value as written in YAML: true becomes "true"."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_groups(host: Host, policies: dict[str, GroupPolicy]) -> Host:
    """The host, with the group policies of the whole inventory applied to its workers."""
    remarks = group_policies.remarks(host.name, host.workers, policies)
    return replace(host, policies=policies, warnings=(*host.warnings, *remarks))


def _absolute(place: str) -> str:
    """FILE:LINE with an absolute path; "" for other texts and for unprintable names."""
    found = re.fullmatch(r"(.+):(\d+)", place)
    return f"{os.path.abspath(found[1])}:{found[2]}" if found and place.isprintable() else ""


def _secrets(values: Json) -> HostSecrets:
    """The secrets in Ansible's variables; if one has several names, the first that is set."""
    return HostSecrets(
        str(_first(values, "ansible_password", "ansible_ssh_pass", "ansible_ssh_password") or ""),
        str(_first(values, "ansible_become_password", "ansible_become_pass", "ansible_sudo_pass") or ""),
        str(_first(values, "ansible_private_key_passphrase", "ansible_ssh_private_key_passphrase") or ""),
    )


def _first(values: Json, *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
