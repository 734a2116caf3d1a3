"""invoke release: wheel, sdist, CycloneDX SBOM, hashes and notes of a release, all in one folder.

    python scripts/release.py [--tag v0.2.0] [--out dist]

Fails if the tag, procguard.__version__ and CHANGELOG.md name different versions. The same commit gives the same wheel:
file times are the commit's. The SBOM lists the packages that requirements/runtime.lock pins, with their hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CYCLONEDX = "cyclonedx-bom==7.5.0"
SBOM, SUMS, NOTES = "sbom.cdx.json", "SHA256SUMS", "NOTES.md"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="release.py", description="Make the files of a release.")
    parser.add_argument("--tag", default="", help="tag of the release, e.g. v0.2.0; must match the version")
    parser.add_argument("--out", default="dist", help="output folder; emptied first")
    parser.add_argument("--no-sbom", action="store_true", help="skip the SBOM, whose tool is downloaded")
    given = parser.parse_args(arguments)
    version = version_of((ROOT / "procguard" / "__init__.py").read_text(encoding="utf-8"))
    notes = notes_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    if given.tag and given.tag != f"v{version}":
        sys.exit(f"release: the tag is {given.tag}, procguard.__version__ says {version}; make them the same")
    if subprocess.run([str(ROOT / "scripts" / "setup_web.sh")], check=False).returncode != 0:
        return 1  # the tool has printed the reason
    out = ROOT / given.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    build(out)
    if not given.no_sbom:
        sbom(out / SBOM, version)
    (out / NOTES).write_text(notes, encoding="utf-8")
    (out / SUMS).write_text(sums(out), encoding="utf-8")
    print((out / SUMS).read_text(encoding="utf-8"), end="")
    return 0


def version_of(source: str) -> str:
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        sys.exit("release: procguard/__init__.py has no __version__")
    return found[1]


def notes_of(changelog: str, version: str) -> str:
    """The section of the changelog for this version."""
    found = re.search(rf"^## \[?{re.escape(version)}\]?[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit(f"release: CHANGELOG.md has no section {version}")
    return found[1].strip() + "\n"


def build(out: Path) -> None:
    epoch = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(out)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch or "0", "PROCGUARD_WEB_BUNDLE": "required"}
    subprocess.run(words, cwd=ROOT, check=True, env=environment)


def sbom(path: Path, version: str) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    words = [uv, "tool", "run", "--from", CYCLONEDX, "cyclonedx-py", "requirements", "requirements/runtime.lock"]
    words += ["--pyproject", "pyproject.toml", "--mc-type", "application", "--output-reproducible"]
    words += ["--of", "JSON", "--output-file", str(path)]
    subprocess.run(words, cwd=ROOT, check=True)
    made = json.loads(path.read_text(encoding="utf-8"))
    made["metadata"]["component"]["version"] = version  # hatchling determines the version
    path.write_text(json.dumps(made, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sums(folder: Path) -> str:
    """The hashes in the format of `sha256sum --check SHA256SUMS`."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS and not path.name.startswith("."))
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
