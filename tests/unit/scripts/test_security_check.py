"""The security checks of `invoke check` find their targets (scripts/security_check.py)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomllib

from scripts import security_check

ROOT = Path(__file__).parents[3]
INDEX = "index-url"
GOOD = "paramiko==5.1.0 \\\n    --hash=sha256:00\n    # via procguard\n"


def test_the_locks_of_this_repository_are_well() -> None:
    for path in (ROOT / "requirements").glob("*.lock"):
        assert security_check.lock_mistakes(path.name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text, complaint",
    [
        (f"--{INDEX} https://elsewhere.example\n" + GOOD, "no address"),
        (f"--extra-{INDEX} http://elsewhere.example\n" + GOOD, "no address"),
        ("paramiko @ git+https://elsewhere.example/paramiko\n", "no address"),
        ("paramiko==5.1.0\n", "no hash"),
        ("paramiko>=5 \\\n    --hash=sha256:00\n", "not pinned"),
        ("paramiko==3.3.1 \\\n    --hash=sha256:00\n", "Terrapin"),
        ("PyYAML==5.3.1 ; python_version > '3' \\\n    --hash=sha256:00\n", "full_load"),
    ],
)
def test_what_a_lock_must_not_say_is_found(text: str, complaint: str) -> None:
    found = security_check.lock_mistakes("x.lock", text)
    assert found and complaint in " ".join(found)
    assert security_check.lock_mistakes("x.lock", GOOD) == []


def test_releases_are_compared_by_their_numbers() -> None:
    order = ["0.12.20", "3.1.6", "3.10", "42.0.4", "2024.7.4", "2026.10.19.post1"]
    assert sorted(reversed(order), key=security_check.version) == order


def test_every_exception_of_bandit_says_why() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert all(len(reason) > 20 for reason in config["procguard"]["bandit"].values())
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    skips = text[text.index("[tool.bandit]") : text.index("[tool.procguard.bandit]")]
    assert all("#" in line for line in skips.splitlines() if line.strip().startswith('"B'))


def test_bandit_checks_again_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[list[str]] = []
    run = subprocess.run

    def counted(words: list[str], **options: Any) -> Any:
        checked.append([word for word in words if word.endswith(".py")])
        return run(words, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    for name, value in (("ROOT", tmp_path), ("CHECKED", ["code"])):
        monkeypatch.setattr(security_check, name, value)
    (tmp_path / "pyproject.toml").write_text("[tool.bandit]\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/one.py").write_text("import pickle\n")
    (tmp_path / "code/two.py").write_text("import json\n")
    [reported] = security_check.bandit({})
    assert "code/one.py:1: B403" in reported
    assert security_check.bandit({}) == [reported] and security_check.bandit({"code/one.py:B403": "it is right"}) == []
    (tmp_path / "code/two.py").write_text("import marshal, pickle\n")
    assert len(security_check.bandit({})) == 2
    assert checked == [["code/one.py", "code/two.py"], ["code/two.py"]]


def test_a_licence_is_read_wherever_a_package_says_it() -> None:
    said = ([("License", "MIT")], [("License-Expression", "BSD-3-Clause")], [("Classifier", "License :: OSI :: ISC")])
    assert all(security_check.LICENCES.search(security_check.licence_of(fields)) for fields in said)
    assert not security_check.LICENCES.search(security_check.licence_of([("License", "AGPL-3.0"), ("Name", "MIT")]))
