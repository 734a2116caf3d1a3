"""A start without a configuration uses one state per user from any directory; a configuration is used as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard import main
from procguard.config import schema, state_paths
from procguard.manager import daemon

EXAMPLE = Path(__file__).resolve().parents[3] / "configs" / "procguard_config.yaml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path / "home"


def state_of(*given: str) -> str:
    return schema.load(None, state_paths.without_configuration(given)).state.state_file


def make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def test_without_configuration_the_place_does_not_follow_the_working_directory(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = state_of()
    monkeypatch.chdir(tmp_path / "b")
    assert state_of() == first == str(home / ".local/share/procguard/procguard_state.yaml")
    log = schema.load(None, state_paths.without_configuration()).logging.file
    assert log == str(home / ".local/share/procguard/procguard.log")


def test_a_data_directory_of_the_users_own_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "da ta"))
    assert state_of() == f"{tmp_path}/da ta/procguard/procguard_state.yaml"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # the specification calls such a value invalid
    assert "relative" not in state_of()


def test_the_users_own_settings_win(tmp_path: Path) -> None:
    assert state_of(f"state.state_file={tmp_path}/x.db") == f"{tmp_path}/x.db"


def test_the_configuration_of_the_documents_keeps_its_meaning(tmp_path: Path) -> None:
    assert schema.load(str(EXAMPLE)).state.state_file == str(tmp_path / "a/data/procguard_state.yaml")


def test_a_state_of_an_earlier_release_is_used_on_until_there_is_one_in_the_one_place(tmp_path: Path) -> None:
    make(tmp_path / "a/data/procguard_state.db")
    assert state_of() == str(tmp_path / "a/data/procguard_state.yaml")
    make(Path(state_paths.well_known()))
    assert state_of() == state_paths.well_known()


def test_a_new_state_beside_the_users_own_is_reported(tmp_path: Path) -> None:
    new = str(tmp_path / "a/data/procguard_state.yaml")
    assert state_paths.note_of_another(new) == ""
    make(Path(state_paths.well_known()))
    assert state_paths.well_known() in state_paths.note_of_another(new)
    assert state_paths.note_of_another(state_paths.well_known()) == ""
    make(Path(new))
    assert state_paths.note_of_another(new) == ""


def test_stop_that_stops_nothing_shows_in_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--stop"]) == main.main(["--status"]) == 3
    assert "nothing was stopped" in capsys.readouterr().err


def test_the_stop_line_names_the_state_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unchanged command finds the same lock from any directory."""
    settings = schema.load(None, [f"state.state_file={tmp_path}/my state.yaml"])
    words = daemon.stop_line(settings)
    assert words == f"./start_manager.sh --stop --set 'state.state_file={tmp_path}/my state.yaml'"
    monkeypatch.chdir(tmp_path / "b")
    assert schema.load(None, [f"state.state_file={tmp_path}/my state.yaml"]).state_directory == settings.state_directory
    usual = schema.load(None, state_paths.without_configuration())
    assert daemon.stop_line(usual) == "./start_manager.sh --stop"
