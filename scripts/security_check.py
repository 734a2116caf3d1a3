"""The security checks of `invoke check`, which need no network: bandit, the locked packages, and their licences.

    python scripts/security_check.py      prints one line for each finding; exits with code 1 if there is any

Exceptions from bandit's rules are in pyproject.toml ([tool.bandit] and [tool.procguard.bandit]), each with a reason.
Lock files must pin every package with hashes and contain no address; versions with known vulnerabilities are findings.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomllib

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import file_findings

ROOT = Path(__file__).resolve().parents[1]
CHECKED = ["procguard", "remote_agent", "scripts", "tasks.py"]

# package -> (first version without a published vulnerability, the vulnerability), for locked packages, as known when
# this was written; `invoke lock` installs newer ones.
GOOD_FROM = {
    "ansible-core": ("2.17.6", "CVE-2024-11079: templating of unsafe variables"),
    "anyio": ("4.4.0", "a race in its event loop threads"),
    "bottle": ("0.12.20", "CVE-2022-31799: errors while a request is bound"),
    "certifi": ("2024.7.4", "CVE-2024-39689: a root certificate that is trusted no more"),
    "cryptography": ("44.0.1", "CVE-2024-12797: raw public keys in TLS"),
    "gevent": ("23.9.0", "CVE-2023-41419: pywsgi and trailers of chunked bodies"),
    "idna": ("3.7", "CVE-2024-3651: time of decoding"),
    "jinja2": ("3.1.6", "CVE-2025-27516: out of the sandbox by |attr"),
    "markdown-it-py": ("2.2.0", "CVE-2023-26302: crash on bad input"),
    "paramiko": ("3.4.0", "CVE-2023-48795: Terrapin"),
    "psutil": ("5.6.7", "CVE-2019-18874: double free"),
    "pydantic": ("2.4.0", "CVE-2024-3772: time of checking e-mail addresses"),
    "pygments": ("2.15.0", "CVE-2022-40896: time of lexing"),
    "pynacl": ("1.6.2", "CVE-2025-69277: points off the curve, in libsodium"),
    "pyyaml": ("5.4", "CVE-2020-14343: code in full_load"),
    "requests": ("2.32.4", "CVE-2024-47081: credentials from .netrc to others"),
    "urllib3": ("2.6.0", "CVE-2025-66418: unbounded decompression"),
    "werkzeug": ("3.0.6", "CVE-2024-49767: memory of multipart forms"),
}

# Permitted licences of the manager's dependencies. Those of development tools do not affect users of ProcGuard.
LICENCES = re.compile(r"MIT|BSD|Apache|PSF|Python Software Foundation|ISC|LGPL|MPL|Unlicense|Public Domain|ZPL", re.I)
LICENCE_SAID_ELSEWHERE = {"gevent-websocket": "Apache 2.0, in its LICENSE; the field holds its author"}
_PINNED = re.compile(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9_.!+-]+)( *;[^\\]*)?")


def main() -> int:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = [*bandit(config["tool"]["procguard"]["bandit"])]
    for path in sorted((ROOT / "requirements").glob("*.lock")):
        found += lock_mistakes(path.name, path.read_text(encoding="utf-8"))
    found += licence_mistakes((ROOT / "requirements" / "runtime.lock").read_text(encoding="utf-8"))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


def bandit(exceptions: dict[str, str]) -> list[str]:
    """bandit's findings. `exceptions`: {"path:test": reason}; an exception without a finding is itself a finding."""
    try:
        results = _bandit_results()
    except ValueError as exc:
        return [str(exc)]
    found, used = [], set()
    for one in results:
        key = f"{one['filename'].removeprefix('./')}:{one['test_id']}"
        used.add(key)
        if key not in exceptions:
            where = f"{one['filename']}:{one['line_number']}"
            found.append(
                f"{where}: {one['test_id']} {one['issue_text']} (mend it, or say why it is right: "
                f'"{key}" = "…" in pyproject.toml, [tool.procguard.bandit])'
            )
    unused = sorted(set(exceptions) - used)
    return found + [f"pyproject.toml: [tool.procguard.bandit] {key}: nothing needs it" for key in unused]


def _bandit_results() -> list[dict[str, Any]]:
    """bandit's results for every file, of which it reads only those that have changed. Raises ValueError."""
    basis = (importlib.metadata.version("bandit"), sys.version, (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    findings = file_findings.of_files(ROOT, _checked_files(), ROOT / "build" / "bandit.json", basis, _run_bandit)
    return [one for found in findings.values() for one in found]


def _run_bandit(paths: list[str]) -> file_findings.Findings:
    words = [sys.executable, "-m", "bandit", "--quiet", "--configfile", "pyproject.toml", "--format", "json", *paths]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        raise ValueError(f"bandit did not run: {(done.stderr or done.stdout).strip()[-500:]}") from None
    if report["errors"]:
        raise ValueError("\n".join(f"bandit: {one['filename']}: {one['reason']}" for one in report["errors"]))
    results = report["results"]
    return {path: [one for one in results if one["filename"].removeprefix("./") == path] for path in paths}


def _checked_files() -> list[str]:
    paths = [
        path for name in CHECKED for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def lock_mistakes(name: str, text: str) -> list[str]:
    """The errors in a lock file: addresses, and packages without hashes or without an exact version."""
    found = []
    for line in text.splitlines():
        if re.search(r"https?://|git\+|file:|--(extra-)?index-url|--find-links|--trusted-host|^-[if] ", line):
            found.append(f"requirements/{name}: {line.strip()[:80]}: a lock names no address")
    for entry in _entries(text):
        head = entry.splitlines()[0].rstrip(" \\")
        pinned = _PINNED.fullmatch(head.strip())
        if pinned is None:
            found.append(f"requirements/{name}: {head[:80]}: not pinned as name==version")
            continue
        if "--hash=sha256:" not in entry:
            found.append(f"requirements/{name}: {pinned[1]}: no hash")
        package = re.sub(r"[-_.]+", "-", pinned[1]).lower()
        good_from, what = GOOD_FROM.get(package, ("0", ""))
        if version(pinned[2]) < version(good_from):
            found.append(f"requirements/{name}: {package} {pinned[2]}: {what}; {good_from} or later (invoke lock)")
    return found


def licence_mistakes(runtime_lock: str) -> list[str]:
    """The manager's packages whose licence, according to their metadata, is not in LICENCES."""
    found = []
    for entry in _entries(runtime_lock):
        name = entry.split("==")[0]
        try:
            said = licence_of(importlib.metadata.metadata(name).items())
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system
        if not LICENCES.search(said) and name not in LICENCE_SAID_ELSEWHERE:
            found.append(f"{name}: licence {said[:80]!r}: not one of those that scripts/security_check.py knows")
    return found


def licence_of(fields: Iterable[tuple[str, str]]) -> str:
    said = [
        value
        for name, value in fields
        if name in ("License", "License-Expression") or (name == "Classifier" and value.startswith("License"))
    ]
    return " ".join(said)


def version(text: str) -> tuple[int, ...]:
    """A release as a value that can be compared: 2024.7.4 < 2026.10.19.post1."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+", maxsplit=1)[0])[:4])


def _entries(text: str) -> list[str]:
    """The requirements of a lock file, each with its lines of hashes."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    entries: list[str] = []
    for line in lines:
        if line.startswith((" ", "\t")) and entries:
            entries[-1] += "\n" + line
        else:
            entries.append(line)
    return entries


if __name__ == "__main__":
    sys.exit(main())
