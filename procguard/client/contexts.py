"""Contexts: named managers in `~/.config/procguard/contexts.yaml`, each with address, certificates and token.

    current: lab
    contexts:
      lab: {url: "https://gpu-head:5000", ca: ~/.config/procguard/lab.pem, token_file: ~/.config/procguard/lab.token}
      two: {url: ["https://head-a:5000", "https://head-b:5000"]}

Owns that file. It never contains a token; `token_file` names a file that only its owner can read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from procguard.client.managers import split
from procguard.errors import ConfigError, NotFound, UsageError
from procguard.json_types import Json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEYS = ("url", "ca", "token_file")
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class ManagerContext:
    """How to reach one manager, or the leader of several. `url`: one address, or several separated by commas. `ca`,
    `token_file`: paths; with `token_file` "", no token is sent."""

    url: str
    ca: str = ""
    token_file: str = ""

    def token(self) -> str:
        """The contents of `token_file`, or "". Raises ConfigError if the file cannot be read, or if other users can
        read it."""
        if not self.token_file:
            return ""
        path = os.path.expanduser(self.token_file)
        try:
            with open(path, encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                if mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise ConfigError(f"{path}: other users can read this token", f"chmod 600 {path}")
                return file.read(4096).strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: {getattr(exc, 'strerror', '') or 'not text'}", "set in the context") from exc


@dataclass(frozen=True)
class Contexts:
    current: str = ""
    by_name: Mapping[str, ManagerContext] = field(default_factory=dict)

    def chosen(self, name: str = "") -> ManagerContext | None:
        """The context `name`; for "" the current one, or None if there is none. Raises NotFound."""
        name = name or self.current
        if not name:
            return None
        if name not in self.by_name:
            known = ", ".join(sorted(self.by_name)) or "none"
            raise NotFound(f"no context {name!r} in {path()} ({known})", "add it: procguard context add NAME --url …")
        return self.by_name[name]


def path() -> str:
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "procguard", "contexts.yaml")


def load() -> Contexts:
    """The contexts of the file; none if there is no file. Raises ConfigError."""
    try:
        with open(path(), encoding="utf-8") as file:
            text = file.read(MAX_BYTES)
    except FileNotFoundError:
        return Contexts()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path()}: {getattr(exc, 'strerror', '') or 'not text'}", "repair or remove it") from exc
    return _read(text)


def _read(text: str) -> Contexts:
    import yaml

    wrong = ConfigError(
        f"{path()}: expected `current: NAME` and `contexts: {{NAME: {{url: …}}}}`", "repair or remove it"
    )
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path()}: not YAML ({str(exc).splitlines()[0]})", "repair or remove it") from exc
    if not isinstance(found, dict) or not isinstance(found.get("contexts", {}), dict):
        raise wrong
    made = {}
    for name, one in found.get("contexts", {}).items():
        if not isinstance(one, dict) or set(one) - set(KEYS):
            raise wrong
        urls = [one.get("url")] if isinstance(one.get("url"), str) else one.get("url")
        if not isinstance(urls, list) or not urls or not all(isinstance(url, str) for url in urls):
            raise wrong
        made[str(name)] = ManagerContext(",".join(urls), str(one.get("ca") or ""), str(one.get("token_file") or ""))
    return Contexts(str(found.get("current") or ""), made)


def save(contexts: Contexts) -> None:
    """Write the file atomically, readable by its owner only. Raises UsageError."""
    import yaml

    record: Json = {"current": contexts.current, "contexts": {}}
    for name, one in contexts.by_name.items():
        record["contexts"][name] = {key: getattr(one, key) for key in KEYS if getattr(one, key)}
        if "," in one.url:
            record["contexts"][name]["url"] = split(one.url)
    target = path()
    try:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        descriptor = os.open(f"{target}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            yaml.safe_dump(record, file, allow_unicode=True, sort_keys=False)
        os.replace(f"{target}.new", target)
    except OSError as exc:
        raise UsageError(f"{target}: {exc.strerror}", "make its folder writable") from exc


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(f"context {name!r}: expected letters, digits, '.', '_', '-'", "e.g. lab")
    return name
