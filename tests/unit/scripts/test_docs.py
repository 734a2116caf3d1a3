"""The documents are accurate: every key is documented, both READMEs show the same commands, and these exist."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from procguard import main as manager_main
from procguard.config import schema
from tests.rows import each

REPOSITORY = Path(__file__).parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))
PAGES = [
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "docs/operations.md",
    "docs/configuration.md",
    "docs/reliability.md",
    "docs/security.md",
    "docs/notifications.md",
    "docs/metrics.md",
    "docs/product.md",
    "docs/product.zh-CN.md",
    "docs/cli.md",
    "docs/client.md",
    "docs/howto.md",
    "docs/howto.zh-CN.md",
    "docs/tutorial.md",
    "docs/tutorial.zh-CN.md",
]


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def command_lines(name: str) -> list[str]:
    """The lines of every bash block, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text(name), re.DOTALL)
    lines = [re.sub(r"\s{2,}#.*$", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def code_blocks(name: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", text(name), re.DOTALL)


def test_every_configuration_key_is_documented_as_it_is() -> None:
    """Run `python scripts/config_docs.py` after a change in procguard/config/schema.py."""
    import config_docs

    assert config_docs.with_tables(text("docs/configuration.md")) == text("docs/configuration.md")
    for key in schema.keys():  # noqa: SIM118 - a function, not a mapping's
        assert f"| `{key.path}` |" in text("docs/configuration.md")


def test_every_command_is_documented_as_it_is() -> None:
    """Run `invoke docs` after a change of a command's declaration."""
    from scripts import cli_docs

    assert cli_docs.page() == text("docs/cli.md")


def test_both_readmes_show_the_same_commands_and_inventory() -> None:
    assert command_lines("README.md") == command_lines("README.zh-CN.md")
    assert code_blocks("README.md") == code_blocks("README.zh-CN.md")
    assert len(command_lines("README.md")) >= 8


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_their_flags_in_the_documents_exist(page: str) -> None:
    manager_flags = set(manager_main.parser().format_help().replace(",", " ").split())
    for line in command_lines(page):
        words = shlex.split(line)
        if words[0].startswith("./"):
            assert (REPOSITORY / words[0]).is_file(), line
        if words[0] == "./start_manager.sh":
            assert {word for word in words if word.startswith("--")} <= manager_flags, line
            settings = [value for flag, value in zip(words, words[1:]) if flag == "--set"]
            schema.load(None, settings)
        for flag, value in zip(words, words[1:]):
            if flag in ("--config", "--hosts") and value not in ("inventory.yaml", "procguard.yaml"):  # those of init
                assert (REPOSITORY / value).is_file(), line


@pytest.mark.parametrize("page", PAGES)
def test_tasks_in_the_documents_exist(page: str) -> None:
    """`invoke X` and `procguard X` with flags that X has."""
    from invoke import Collection, Parser, exceptions

    from procguard.cli import app
    from procguard.cli.program import parser as ours

    namespace = Collection.from_module(importlib.import_module("tasks"))
    parser = Parser(contexts=namespace.to_contexts())
    for line in command_lines(page):
        words = shlex.split(line)
        if words[0].rpartition("/")[2] in ("invoke", "procguard") and app.is_ours(words[1]) and words[1] != "worker":
            found = app.find(words[1:])
            ours.parse(found.command, found.path, found.words)
        elif words[0].endswith("bin/invoke"):
            try:
                parser.parse_argv(words[1:])
            except exceptions.ParseError as exc:
                raise AssertionError(f"{page}: {line}: {exc}") from exc


def test_inventory_of_the_readme_is_read_as_it_stands(tmp_path: Path) -> None:
    from procguard.deploy.inventory import model

    (block,) = code_blocks("README.md")
    (tmp_path / "prod.yaml").write_text(block, encoding="utf-8")
    found = model.load(tmp_path / "prod.yaml")
    assert [host.name for host in found.hosts.values()] == ["gpu01", "gpu02"]
    assert found.hosts["gpu02"].workers[0].worker_id == "train-gpu02"
    assert found.hosts["gpu02"].warnings == ()


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md", "CHANGELOG.md", "docs/failures.md", "docs/architecture.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text(page)):
        if "://" not in target:
            assert ((REPOSITORY / page).parent / target).exists(), f"{page}: {target}"


def test_pictures_are_those_of_the_script_and_each_is_shown() -> None:
    """Run `python -m scripts.screenshots` after a change of what a page looks like."""
    from scripts import screenshots

    taken = {screenshots.file_name(shot, *theme) for shot in screenshots.SHOTS for theme in screenshots.themes(shot)}
    files = {path.name: path for path in (REPOSITORY / "docs" / "pictures").iterdir()}
    assert set(files) == taken
    shown: set[Path] = set()
    for page in PAGES:
        for target in re.findall(r"(?:src|srcset)=\"([^\"]+)\"|!\[[^\]]*\]\(([^)]+)\)", text(page)):
            shown.add(((REPOSITORY / page).parent / "".join(target)).resolve())
    assert shown == {path.resolve() for path in files.values()}
    for path in files.values():
        assert path.stat().st_size <= screenshots.MAX_BYTES, path.name
        assert path.read_bytes().startswith(b"\x89PNG"), path.name


def test_every_environment_variable_is_documented() -> None:
    """Variables for users; those of the demo and the tests are internal."""
    private = {"PROCGUARD_CI_MARK", "PROCGUARD_DEMO_DATA", "PROCGUARD_DEMO_HTTP_PORT", "PROCGUARD_VARIABLES"}
    private.add("PROCGUARD_QUICK_TESTS")  # tests/sizes.py
    private.add("PROCGUARD_WEB_BUNDLE")  # of who builds a wheel: docs/decisions/0053
    private.add("PROCGUARD_SKIPPED")  # from the shell of a deployment to the session that it starts
    files = [
        path for folder in ("procguard", "remote_agent", "scripts") for path in (REPOSITORY / folder).rglob("*.??")
    ]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    names = set(re.findall(r"\bPROCGUARD_[A-Z_]*[A-Z](?=[\"=:}])", code)) - private
    assert {"PROCGUARD_HOME", "PROCGUARD_ATTEMPT"} <= names
    documented = set(re.findall(r"`(PROCGUARD_[A-Z_]+)`", text("docs/configuration.md")))
    assert names <= documented, names - documented


def test_each_test_that_the_threat_tables_name_exists() -> None:
    tables = text("SECURITY.md").partition("## Threats")[2].partition("## How it is tried")[0]
    named = set(re.findall(r"`((?:unit|fleet)/(?:\w+/)*test_\w+\.py)`", tables))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (REPOSITORY / "tests" / name).is_file()] == []
    scenarios = set(re.findall(r"scenario (\d+)", tables))
    marked = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        marked |= set(re.findall(r"chaos\((\d+)\)", path.read_text(encoding="utf-8")))
    assert scenarios <= marked


DECISIONS = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
STATUS = re.compile(
    r"^Status: (accepted|superseded by \[decision \d+\]\(\S+\))(,| ·) \d{4}-\d\d-\d\d(\.|$)", re.MULTILINE
)


@each("path", DECISIONS)
def test_a_decision_says_its_status_context_decision_and_consequences(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    number, *_ = path.stem.split("-")
    assert page.startswith(f"# {int(number)}. ")
    assert [one.name for one in DECISIONS if one.name.startswith(f"{number}-")] == [path.name], "a number is used once"
    assert STATUS.search(page), "its third line is Status: accepted · 2026-11-26"
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_the_conformance_tables_have_the_sizes_that_are_documented() -> None:
    """Scenario 29 of docs/reliability.md."""
    from tests.unit import test_json_yaml as documents
    from tests.unit.deploy.inventory import test_inventory_parity as inventories
    from tests.unit.portal.http import test_http_rules as http
    from tests.unit.portal.http import test_websocket_rules as websocket

    yaml = len(documents.YAML) + len(documents.BAD_YAML) + len(documents.ODD_YAML)
    identical = len(inventories.SHAPES) - len(inventories.STRICTER) - len(inventories.KEPT)
    (row,) = [line for line in text("docs/reliability.md").splitlines() if line.startswith("| 29 |")]
    for size in (
        f"{len(http.CASES)} requests and {len(http.CHUNKS)} chunked bodies",
        f"{len(websocket.CASES)} frame sequences",
        f"{len(documents.JSON)} JSON and {yaml} YAML documents",
        f"{identical} inventories, {len(inventories.EXPRESSIONS)} expressions",
    ):
        assert size in row
