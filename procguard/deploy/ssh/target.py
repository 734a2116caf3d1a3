"""How to reach one host, as plain data: from the inventory to the deployer, the manager and its SSH helper.

Knows no network; contains no secret (a key's path, never its content).
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from procguard.errors import HostUnreachable
from procguard.json_types import Json

USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?")  # names that are safe as a word of a command line
# Valid values of %h, %n and %r in a ProxyCommand or a Match exec, shell lines that contain them without quoting: no
# quote, blank, control character or shell operator, and no option. An address may have a zone.
HOST_NAME = re.compile(r"[\w:][\w.:-]{0,254}(%[\w.-]{1,32})?")
LOGIN_NAME = re.compile(r"[\w.][\w.@+%:=/,\\-]{0,254}\$?")


@dataclass(frozen=True)
class Target:
    """`host` is the inventory's name. Empty fields leave the choice to ~/.ssh/config and the defaults of ssh.

    As JSON: {"host": "gpu01", "hostname": "10.0.0.7", "port": 2222, "user": "ml", "local": false, …}
    """

    host: str
    hostname: str = ""
    port: int = 0
    user: str = ""
    key_filename: str = ""
    local: bool = False
    python: str = ""  # "": search for one
    proxy_jump: str = ""  # user@bastion:port[,…], as ssh -J
    proxy_command: str = ""
    known_hosts: str = ""  # a file instead of ~/.ssh/known_hosts
    ssh_config: str = ""  # a file instead of ~/.ssh/config, as ssh -F
    identities_only: bool = False  # only the key named above (or in ~/.ssh/config), not all that ssh-agent holds
    become_user: str = ""  # sudo to this user on the host; "": keep the login user

    @property
    def address(self) -> str:
        return self.hostname or self.host

    def check_names(self) -> None:
        """Raise HostUnreachable for an address or user that is not a plain name on a command line."""
        for what, text, pattern, key in (
            ("address", self.address, HOST_NAME, "ansible_host"),
            ("user", self.user, LOGIN_NAME, "ansible_user"),
        ):
            if text and not pattern.fullmatch(text):
                raise bad_name(self.host, what, text, key)

    def describe(self) -> str:
        if self.local:
            return "this machine"
        return f"{self.address} port {self.port or 22}"


def bad_name(host: str, what: str, text: str, key: str) -> HostUnreachable:
    shown = ascii(host[:64])[1:-1]  # the address may be the same text
    return HostUnreachable(f"{shown}: {text[:64]!a} is not a valid {what}", f"correct {key}", code="bad_name")


def to_dict(target: Target) -> Json:
    return dataclasses.asdict(target)


def from_dict(host: str, data: Mapping[str, Any]) -> Target:
    """Unknown keys are ignored and missing ones get their defaults; `host` takes precedence over the one in `data`."""
    known = {item.name for item in dataclasses.fields(Target)}
    values = {name: value for name, value in data.items() if name in known and value is not None}
    return Target(**{**values, "host": host})


# Options of ssh in ansible_ssh_common_args that are supported: option -> field.
_OPTIONS = {
    "proxyjump": "proxy_jump",
    "proxycommand": "proxy_command",
    "userknownhostsfile": "known_hosts",
    "identityfile": "key_filename",
    "user": "user",
    "port": "port",
    "hostname": "hostname",
    "identitiesonly": "identities_only",
    "configfile": "ssh_config",
}
_FLAGS = {"-J": "proxyjump", "-i": "identityfile", "-l": "user", "-p": "port", "-F": "configfile"}
# Options that affect neither the target nor the log-in, or that always apply here.
HARMLESS = frozenset({
    "controlmaster", "controlpath", "controlpersist", "serveraliveinterval", "serveralivecountmax", "tcpkeepalive",
    "connecttimeout", "connectionattempts", "loglevel", "compression", "batchmode", "passwordauthentication",
    "kbdinteractiveauthentication", "preferredauthentications", "pubkeyauthentication", "numberofpasswordprompts",
    "gssapiauthentication", "checkhostip", "hashknownhosts", "updatehostkeys", "visualhostkey", "requesttty",
    "forwardagent", "forwardx11", "exitonforwardfailure", "addkeystoagent", "escapechar",
    "-A", "-a", "-C", "-q", "-v", "-vv", "-vvv", "-vvvv", "-T", "-t", "-tt", "-x", "-X", "-4",
})  # fmt: skip


def parse_ssh_args(text: str) -> tuple[dict[str, str | bool], list[str]]:
    """The fields that `ansible_ssh_common_args` sets, and the unsupported options (reported once).

    Raises ValueError for text that a shell could not split.
    """
    fields: dict[str, str | bool] = {}
    ignored: list[str] = []
    words = shlex.split(text)
    while words:
        word = words.pop(0)
        name, value = _option(word, words)
        if name in _OPTIONS and value:
            fields[_OPTIONS[name]] = value.lower() == "yes" if name == "identitiesonly" else value
        elif name == "stricthostkeychecking" and value.lower() == "yes":
            continue  # the default here
        elif name and name not in HARMLESS:
            ignored.append(f"{name}={value}" if value else name)
    return fields, ignored


def _option(word: str, rest: list[str]) -> tuple[str, str]:
    """Returns (lower-case option name, value) of one ssh argument; a separate value is taken from `rest`."""
    for flag, name in _FLAGS.items():
        if word.startswith(flag):
            return name, word[len(flag) :] or (rest.pop(0) if rest else "")
    if word.startswith("-o"):
        setting = word[2:] or (rest.pop(0) if rest else "")
        name, _, value = setting.partition("=") if "=" in setting else setting.partition(" ")
        return name.strip().lower(), value.strip()
    return word, ""
