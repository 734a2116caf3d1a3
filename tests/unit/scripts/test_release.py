"""The files of a release are consistent; its workflows name existing files."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from procguard import __version__

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", REPOSITORY / "scripts" / "release.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_a_tag_that_is_not_the_version_is_refused(release: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make them the same"):
        release.main(["--tag", "v9.9.9", "--out", str(tmp_path / "dist"), "--no-sbom"])
    assert not (tmp_path / "dist").exists()


def test_the_changelog_has_notes_for_this_version(release: ModuleType) -> None:
    notes = release.notes_of((REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), __version__)
    assert "### Added" in notes and "\n## " not in notes


def test_hashes_are_those_of_the_files(release: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a b.whl").write_bytes(b"wheel")
    (tmp_path / "SHA256SUMS").write_text(release.sums(tmp_path))
    subprocess.run(["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.slow
def test_the_same_commit_gives_the_same_wheel(release: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        release.build(tmp_path / name)
    hashes = [release.sums(tmp_path / name) for name in ("one", "two")]
    assert hashes[0] == hashes[1] and hashes[0].count("\n") == 2


def test_workflows_name_scripts_and_options_that_exist() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (REPOSITORY / ".github").rglob("*.yml")}
    assert len(texts) >= 6
    for path, text in texts.items():
        assert yaml.safe_load(text), path
        for name in re.findall(r"(?:\./|\s)((?:scripts/|\.ci/)?[\w.]+\.(?:sh|py)|\.ci/run)\b", text):
            assert (REPOSITORY / name).is_file() or name.startswith("smoke"), f"{path}: {name}"
    workflow = yaml.safe_load(texts[REPOSITORY / ".github" / "workflows" / "ci.yml"])
    classifiers = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for version in re.findall(r"Python :: (3\.\d+)", classifiers):
        assert version in workflow["jobs"]["smoke"]["strategy"]["matrix"]["python"]


def test_the_image_copies_all_that_the_wheel_is_made_of() -> None:
    """…and .dockerignore lets it through."""
    copied = set(re.findall(r"^COPY (\w+) \w+$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE))
    ignore = (REPOSITORY / ".dockerignore").read_text()
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (wanted,) = re.findall(r"^only-include = \[(.*)\]$", project, re.MULTILINE)
    assert copied == {name.strip(' "') for name in wanted.split(",")}
    assert all(f"!{name}\n" in ignore for name in copied)


def test_pre_commit_runs_what_check_runs() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = " ".join(one["entry"] for one in hooks)
    assert all(name in entries for name in ("ruff format", "ruff check", "mypy", "security_check.py"))
