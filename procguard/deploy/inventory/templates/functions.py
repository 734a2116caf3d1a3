"""Ansible's additions to Jinja: filters, tests and lookups used by inventories, as strict as in ansible-core.

Each computes a value; only `lookup('env')` and `lookup('file')` read from this machine. Functions that run programs
or have side effects are not included. Knows no hosts. Sources: ansible-core's documentation of each filter, for
ipaddr that of ansible.utils.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import itertools
import json
import ntpath
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from procguard.json_types import Json

MAX_FILE_BYTES = 1024 * 1024


class TemplateMistake(ValueError):
    """An error in a template, as text; the caller adds its location."""


# ----------------------------------------------------------------------------------------------------------- text


def as_bool(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _flags(ignorecase: bool, multiline: bool) -> int:
    return (re.IGNORECASE if ignorecase else 0) | (re.MULTILINE if multiline else 0)


def regex_replace(
    value: Any, pattern: str, replacement: str = "", ignorecase: bool = False, multiline: bool = False, count: int = 0
) -> str:
    return re.sub(pattern, replacement, str(value), count=count, flags=_flags(ignorecase, multiline))


def regex_search(value: Any, regex: str, *groups: str, ignorecase: bool = False, multiline: bool = False) -> Any:
    found = re.search(regex, str(value), _flags(ignorecase, multiline))
    if found is None:
        return None
    names = []
    for one in groups:
        named = re.fullmatch(r"\\(?:g<(\S+)>|(\d+))", one)
        if named is None:
            raise TemplateMistake(f"regex_search: {one!r} names no group")
        names.append(named[1] if named[1] and not named[1].isdigit() else int(named[1] or named[2]))
    return [found.group(name) for name in names] if names else found.group()


def regex_findall(value: Any, regex: str, multiline: bool = False, ignorecase: bool = False) -> list[Any]:
    return re.findall(regex, str(value), _flags(ignorecase, multiline))


def _matches(how: str) -> Callable[..., bool]:
    def test(value: Any, pattern: str = "", ignorecase: bool = False, multiline: bool = False) -> bool:
        return bool(getattr(re, how)(pattern, str(value), _flags(ignorecase, multiline)))

    return test


def b64encode(value: Any, encoding: str = "utf-8") -> str:
    return base64.b64encode(str(value).encode(encoding)).decode("ascii")


def b64decode(value: Any, encoding: str = "utf-8") -> str:
    try:
        return base64.b64decode(str(value)).decode(encoding)
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise TemplateMistake(f"b64decode: {exc}") from exc


def get_hash(value: Any, hashtype: str = "sha1") -> str:
    return hashlib.new(hashtype, str(value).encode(), usedforsecurity=False).hexdigest()


def _yaml(value: Any, **options: Any) -> str:
    return str(yaml.safe_dump(value, allow_unicode=True, **{"default_flow_style": None, **options}))


# ------------------------------------------------------------------------------------------- lists and mappings


def dict2items(value: Any, key_name: str = "key", value_name: str = "value") -> list[Json]:
    if not isinstance(value, Mapping):
        raise TemplateMistake(f"dict2items needs a mapping, got {type(value).__name__}")
    return [{key_name: key, value_name: one} for key, one in value.items()]


def items2dict(value: Any, key_name: str = "key", value_name: str = "value") -> dict[Any, Any]:
    return {one[key_name]: one[value_name] for one in value}


def combine(*values: Any, recursive: bool = False) -> dict[Any, Any]:
    merged: dict[Any, Any] = {}
    for value in itertools.chain.from_iterable(one if isinstance(one, list) else [one] for one in values):
        if not isinstance(value, Mapping):
            raise TemplateMistake(f"combine needs mappings, got {type(value).__name__}")
        for key, one in value.items():
            both = recursive and isinstance(merged.get(key), Mapping) and isinstance(one, Mapping)
            merged[key] = combine(merged[key], one, recursive=True) if both else one
    return merged


def flatten(value: list[Any], levels: int | None = None, skip_nulls: bool = True) -> list[Any]:
    found: list[Any] = []
    for one in value:
        if one in (None, "None", "null") and skip_nulls:
            continue
        if isinstance(one, list) and (levels is None or levels > 0):
            found += flatten(one, None if levels is None else levels - 1, skip_nulls)
        else:
            found.append(one)
    return found


def _once(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for one in values:
        if one not in found:
            found.append(one)
    return found


def extract(key: Any, container: Any, morekeys: Any = None) -> Any:
    more = morekeys if isinstance(morekeys, list) else [] if morekeys is None else [morekeys]
    for one in (key, *more):
        try:
            container = container[one]
        except (LookupError, TypeError) as exc:
            raise TemplateMistake(f"extract: there is no {one!r}") from exc
    return container


def mandatory(value: Any, msg: str | None = None) -> Any:
    from jinja2 import Undefined  # noqa: PLC0415

    if isinstance(value, Undefined):
        raise TemplateMistake(msg or f"mandatory variable {value._undefined_name or ''} is not defined")
    return value


def ternary(value: Any, true_val: Any, false_val: Any, none_val: Any = None) -> Any:
    if value is None and none_val is not None:
        return none_val
    return true_val if value else false_val


def subelements(value: Any, path: Any) -> list[tuple[Any, Any]]:
    keys = path.split(".") if isinstance(path, str) else path
    found = []
    for one in value.values() if isinstance(value, Mapping) else value:
        inner = one
        for key in keys:
            inner = inner[key]
        found += [(one, each) for each in inner]
    return found


# ------------------------------------------------------------------------------------------------------ addresses


def ipaddr(value: Any, query: Any = "") -> Any:
    """The address or network, a part of it, or its nth address; False for anything else. Of a list: its valid ones."""
    if isinstance(value, (list, tuple)):
        return [found for one in value if (found := ipaddr(one, query)) not in (False, None, "")]
    try:
        found = ipaddress.ip_interface(str(value))
    except ValueError:
        return False
    whole, network = "/" in str(value), found.network
    if isinstance(query, int) or re.fullmatch(r"-?\d+", str(query)):
        try:
            return f"{network[int(query)]}/{network.prefixlen}"
        except IndexError:
            return False
    answers: dict[str, Callable[[], Any]] = {
        "": lambda: str(value),
        "address": lambda: str(found.ip),
        "ip": lambda: str(found.ip),
        "host": lambda: str(found),
        "net": lambda: str(network) if whole and found.ip == network.network_address else False,
        "network": lambda: str(network.network_address),
        "netmask": lambda: str(network.netmask),
        "prefix": lambda: network.prefixlen,
        "broadcast": lambda: str(network.broadcast_address),
        "subnet": lambda: str(network),
        "size": lambda: network.num_addresses,
        "version": lambda: found.version,
        "ipv4": lambda: str(value) if found.version == 4 else False,
        "ipv6": lambda: str(value) if found.version == 6 else False,
        "private": lambda: str(value) if found.is_private else False,
        "public": lambda: str(value) if found.is_global else False,
    }
    if query not in answers:
        raise TemplateMistake(f"ipaddr: {query!r} is not supported; use {', '.join(filter(None, answers))} or a number")
    return answers[query]()


# -------------------------------------------------------------------------------------------------------- lookups


def read_file(path: str, base: str) -> str:
    """For lookup('file', …): a local file, relative to `base`, without trailing whitespace."""
    full = os.path.join(base, os.path.expanduser(path))
    try:
        with open(os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not os.path.isfile(file.fileno()):
                raise TemplateMistake(f"lookup('file', {path!r}): {full} is not a file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise TemplateMistake(f"lookup('file', {path!r}): {full}: {exc.strerror}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise TemplateMistake(f"lookup('file', {path!r}): {full} has more than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8").rstrip()
    except UnicodeDecodeError as exc:
        raise TemplateMistake(f"lookup('file', {path!r}): {full} is not UTF-8") from exc


FILTERS: dict[str, Callable[..., Any]] = {
    "b64decode": b64decode,
    "b64encode": b64encode,
    "basename": os.path.basename,
    "bool": as_bool,
    "combine": combine,
    "checksum": get_hash,
    "dict2items": dict2items,
    "difference": lambda one, other: _once(each for each in one if each not in other),
    "dirname": os.path.dirname,
    "expanduser": os.path.expanduser,
    "extract": extract,
    "flatten": flatten,
    "from_json": json.loads,
    "from_yaml": yaml.safe_load,
    "hash": get_hash,
    "intersect": lambda one, other: _once(each for each in one if each in other),
    "ipaddr": ipaddr,
    "ipv4": lambda value: ipaddr(value, "ipv4"),
    "ipv6": lambda value: ipaddr(value, "ipv6"),
    "ipwrap": lambda value: f"[{value}]" if ipaddr(value, "ipv6") else value,
    "items2dict": items2dict,
    "mandatory": mandatory,
    "md5": lambda value: get_hash(value, "md5"),
    "path_join": lambda value: os.path.join(*([value] if isinstance(value, str) else value)),
    "product": lambda *values: [list(one) for one in itertools.product(*values)],
    "quote": shlex.quote,
    "realpath": os.path.realpath,
    "regex_escape": re.escape,
    "regex_findall": regex_findall,
    "regex_replace": regex_replace,
    "regex_search": regex_search,
    "sha1": get_hash,
    "split": lambda value, separator=None, most=-1: value.split(separator, most),
    "splitext": os.path.splitext,
    "subelements": subelements,
    "symmetric_difference": lambda one, other: _once(
        each for each in (*one, *other) if (each in one) is not (each in other)
    ),
    "ternary": ternary,
    "to_json": json.dumps,
    "to_nice_json": lambda value, indent=4: json.dumps(value, indent=indent, sort_keys=True),
    "to_nice_yaml": lambda value, indent=4: _yaml(value, indent=indent, default_flow_style=False),
    "to_yaml": _yaml,
    "type_debug": lambda value: type(value).__name__,
    "union": lambda one, other: _once((*one, *other)),
    "unique": _once,
    "win_basename": ntpath.basename,
    "zip": lambda *values: [list(one) for one in zip(*values, strict=False)],
}
TESTS: dict[str, Callable[..., bool]] = {
    "contains": lambda value, one: one in value,
    "match": _matches("match"),
    "regex": _matches("search"),
    "search": _matches("search"),
    "subset": lambda one, other: set(one) <= set(other),
    "superset": lambda one, other: set(one) >= set(other),
}
