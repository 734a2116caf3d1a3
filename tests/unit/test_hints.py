"""Messages name the command that works for their reader."""

from __future__ import annotations

import pytest

from procguard import hints, resources
from procguard.cli import app


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_DATA", resources.root())  # arranged as a wheel's data


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("list them: invoke status", "list them: procguard status"),
        ("make one: invoke token.create --scope enroll", "make one: procguard token create --scope enroll"),
        ("start it (./start_manager.sh), or wait", "start it (procguard manager), or wait"),
        ("see start_worker.sh --help", "see procguard worker --help"),
        ("启动：invoke start w1", "启动：procguard start w1"),
        (".venv/bin/invoke deploy --hosts F", "procguard deploy --hosts F"),
        ("invoke operations; invoke operations.show o-1", "procguard operations; procguard operations show o-1"),
        ("to invoke it, invoke build; my-invoke status", "to invoke it, invoke build; my-invoke status"),
    ],
)  # fmt: skip
def test_an_installed_manager_names_its_own_program(installed: None, text: str, shown: str) -> None:
    assert hints.commands(text) == shown
    assert hints.commands(shown) == shown


def test_a_checkout_names_invoke_and_its_scripts() -> None:
    """A manager with another installation uses its own form; the command line converts it."""
    assert hints.commands("procguard token create, procguard ps") == "invoke token.create, invoke ps"
    assert hints.commands("start it: procguard manager --daemon") == "start it: ./start_manager.sh --daemon"
    assert hints.commands("invoke manager, ./start_worker.sh") == "invoke manager, ./start_worker.sh"


def test_an_installed_command_names_documents_where_they_lie(installed: None) -> None:
    """…and only for users of this machine: `commands` is for all."""
    found = hints.local("see docs/protocol.md, docs/nothing.md")
    assert found == f"see {resources.path('docs', 'protocol.md')}, docs/nothing.md"
    assert hints.commands("see docs/protocol.md") == "see docs/protocol.md"


def test_examples_and_pages_are_found_in_a_checkout() -> None:
    for parts in (("web", "index.html"), ("playbooks", "deploy.yaml"), ("inventory", "demo.yaml"), ("docs", "grafana")):
        assert (resources.path(*parts)).startswith(resources.root())
    assert not resources.is_installed()


def test_every_command_is_known_to_hints() -> None:
    assert set(hints.COMMANDS) == {*app.commands(), *app.GROUPS, app.LAUNCHER}
    assert {name: set(parts) for name, parts in hints.GROUPS.items()} == {
        name: set(app.group(name)) for name in app.GROUPS
    }
