"""Commands before the first deployment: init writes an inventory, validate checks files."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from procguard import hints
from procguard.cli.deploy import INVENTORY, InventoryOptions
from procguard.cli.program.command import operator_task
from procguard.console.terminal import say
from procguard.errors import PartlyFailed, ProcGuardError, UsageError

if TYPE_CHECKING:
    from procguard.config.logs import Logs

_HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
)
INVENTORY_NAME, CONFIG_NAME = "inventory.yaml", "procguard.yaml"

_INVENTORY = """\
# The fleet: hosts as Ansible reads them, and the workers that run on them.
#   {trust} --hosts {name}        shows the hosts' SSH keys, and remembers them
#   {deploy} --hosts {name}       brings everything to the state below; again after each change
all:
  vars:
{variables}
    # ansible_ssh_private_key_file: ~/.ssh/id_ed25519          # else ~/.ssh/config and ssh-agent, as ssh does
    # ansible_ssh_common_args: -J me@bastion.example.com       # a jump host
    # procguard_tunnel: true                                   # hosts that cannot reach this machine's port 5000
    # procguard_sync: {{src: ../project, dest: ~/project}}       # bring code to the hosts first
    procguard_workers:
      # One on each host; ids are unique in the fleet. Every key: docs/worker.md
      - id: "hello-{{{{ inventory_hostname }}}}"
        command: sh -c 'while true; do date; sleep 5; done'
        # working_dir: ~/project
        # venv: ~/project/.venv
        # env: {{EPOCHS: "100"}}
        # gpus: 1
        # restart: {{policy: on-failure, max_attempts: 3}}
        # health: {{type: http, url: "http://127.0.0.1:8000/healthz"}}
        # group: trainers
  hosts:
{hosts}
"""

_CONFIG = """\
# The manager's configuration. What is left out has its built-in value; every key: docs/configuration.md
#   {manager} --config {name}
state:
  state_file: {state}
logging:
  file: {log}
web:
  host: 0.0.0.0          # agents reach the manager here; who may do what: docs/security.md
  port: 5000
  # tls: auto            # https, with a certificate of the manager's own
recovery:
  max_recovery_attempts: 3
  # task_reassignment: true    # a spare host takes over the tasks of one that is gone
# notifications:               # docs/notifications.md
#   - {{name: oncall, type: webhook, url: "https://example.com/hook"}}
"""


@operator_task(
    ("hosts+",),
    help={
        "hosts": "[user@]host[:port] of each host; localhost for this machine, without SSH",
        "folder": "folder for the two files",
    },
)
def init(hosts: list[str], folder: str = ".") -> None:
    """Write a commented inventory and configuration for some hosts. Example: invoke init ml@gpu01 ml@gpu02:2222"""
    found = [_host(word) for word in hosts]
    users = {user for user, _, _ in found if user}
    common = users.pop() if len(users) == 1 and all(user for user, _, _ in found) else ""
    state = os.path.join(os.path.abspath(folder), "state")
    texts = {
        INVENTORY_NAME: _INVENTORY.format(
            name=INVENTORY_NAME,
            trust=hints.program("trust"),
            deploy=hints.program("deploy"),
            variables=f"    ansible_user: {common}" if common else "    # ansible_user: ml",
            hosts="\n".join(_line(one, common) for one in found),
        ),
        CONFIG_NAME: _CONFIG.format(
            name=CONFIG_NAME,
            manager=hints.program("manager"),
            state=_quoted(os.path.join(state, "fleet.yaml")),
            log=_quoted(os.path.join(state, "procguard.log")),
        ),
    }
    paths = {name: os.path.join(folder, name) for name in texts}
    there = [path for path in paths.values() if os.path.lexists(path)]
    if there:
        raise UsageError(f"{there[0]} already exists", "choose another --folder, or remove it")
    for name, text in texts.items():
        try:
            os.makedirs(folder, exist_ok=True)
            with open(paths[name], "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as exc:
            raise UsageError(f"{paths[name]}: {exc.strerror}", "choose a writable --folder") from exc
        say(f"{paths[name]}: written")
    say("next:")
    say(f"  {hints.program('manager')} --config {paths[CONFIG_NAME]} --daemon")
    say(f"  {hints.program('trust')} --hosts {paths[INVENTORY_NAME]}")
    say(f"  {hints.program('deploy')} --hosts {paths[INVENTORY_NAME]}")


@operator_task(help={"config": "a configuration file of the manager"})
def validate(inventory: InventoryOptions = INVENTORY, config: str = "") -> None:
    """Check an inventory, a configuration or both. Example: invoke validate --hosts inventory.yaml

    Contacts neither hosts nor the manager and changes nothing. Exits with code 1 if a file is invalid.
    """
    if not inventory.hosts and not config:
        raise UsageError("no file given", "invoke validate --hosts inventory.yaml --config procguard.yaml")
    wrong: list[ProcGuardError] = []
    named = " and ".join(inventory.hosts)
    readings: list[tuple[str, Callable[[], str]]] = [
        (named, lambda: _read_inventory(inventory)),
        (config, lambda: _read_config(config)),
    ]
    for what, read in readings:
        if not what:
            continue
        try:
            say(f"{what}: {read()}")
        except PartlyFailed:
            raise
        except ProcGuardError as exc:
            wrong.append(exc)
    if len(wrong) > 1:
        raise UsageError("\n".join(str(exc) for exc in wrong), "no other file was read")
    if wrong:
        raise wrong[0]


def _read_inventory(inventory: InventoryOptions) -> str:
    found = inventory.loaded("validate")
    workers = sum(len(host.workers) for host in found.hosts.values())
    warnings = dict.fromkeys(text for host in found.hosts.values() for text in host.warnings)
    for warning in warnings:
        say(f"note: {warning}", err=True)
    from procguard.deploy.inventory import containers

    needed = [name for name, host in found.hosts.items() if containers.asked_of(host)]
    if needed:
        shown = ", ".join(needed[:10]) + (f" and {len(needed) - 10} more" if len(needed) > 10 else "")
        say(f"note: workers in containers need podman on {shown}; deploy --check shows which have it", err=True)
    return f"{len(found.hosts)} hosts, {workers} workers: valid"


def _read_config(path: str) -> str:
    from procguard.config import schema
    from procguard.notify.routes import Routes
    from procguard.notify.rules import AlertRules
    from procguard.portal.logs import rules

    found = schema.load(path, [])
    Routes(found.notify)  # these constructors validate the selectors
    AlertRules(found.alerts)
    rules.read(found.logs.retention)
    _describe_logs(found.logs)
    return "the configuration is valid"


def _describe_logs(logs: Logs) -> None:
    """Print what `logs.archive` and `logs.retention` mean, one line for each place and rule. No place has
    credentials."""
    from procguard.console import tables

    if logs.archive:
        say(f"logs.archive: {logs.archive}; new log bytes are uploaded within {logs.archive_interval:g} s")
        if logs.archive.startswith("s3://") and importlib.util.find_spec("boto3") is None:
            say(
                "note: logs.archive: s3:// needs boto3, which is not installed here; "
                "on the manager's machine: pip install 'procguard[s3]'",
                err=True,
            )
    for rule in logs.retention:
        if rule.max is None:
            say(f"logs.retention: {rule.select}: deleted {rule.days:g} days after the last write")
        elif rule.days is None:
            say(f"logs.retention: {rule.select}: at most {tables.size(rule.max)} together, oldest attempts deleted")
        else:
            say(
                f"logs.retention: {rule.select}: deleted {rule.days:g} days after the last write; "
                f"at most {tables.size(rule.max)} together, oldest attempts deleted"
            )


def _host(word: str) -> tuple[str, str, str]:
    match = _HOST.fullmatch(word)
    if match is None or not 0 < int(match["port"] or 22) < 65536:
        raise UsageError(f"host {word!r}: expected [user@]host[:port]", "e.g. invoke init ml@gpu01 ml@10.0.0.12:2222")
    return match["user"] or "", match["host"], match["port"] or ""


def _line(found: tuple[str, str, str], common: str) -> str:
    user, host, port = found
    if host == "localhost":
        return "    this-machine: {ansible_connection: local}"
    bare = host.strip("[]")
    is_address = re.fullmatch(r"[0-9.]+", bare) or ":" in bare
    name = "host-" + re.sub(r"[.:]+", "-", bare).strip("-") if is_address else bare
    variables = {"ansible_host": _quoted(bare) if is_address else "", "ansible_port": port}
    variables["ansible_user"] = "" if user == common else user
    inner = ", ".join(f"{key}: {value}" for key, value in variables.items() if value)
    return f"    {name}: {{{inner}}}" if inner else f"    {name}:"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
