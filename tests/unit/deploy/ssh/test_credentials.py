"""Sources of passwords and passphrases, which never appear in output."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.deploy.ssh.credentials import HostSecrets, LoginCredentials, ask_on_terminal
from procguard.errors import UsageError


def test_a_hosts_own_password_comes_before_what_was_asked_and_that_before_the_environment() -> None:
    known = LoginCredentials(
        {"own": HostSecrets("its own", "its sudo")}, password="asked", environ={"PROCGUARD_SSH_PASSWORD": "variable"}
    )
    assert (known.password("own"), known.password("other")) == ("its own", "asked")
    known = LoginCredentials(environ={"PROCGUARD_SSH_PASSWORD": "variable", "PROCGUARD_BECOME_PASSWORD": "sudo"})
    assert (known.password("any"), known.become_password("any")) == ("variable", "sudo")
    assert LoginCredentials(environ={}).password("any") == ""


def test_a_file_comes_before_the_variable_and_its_first_line_counts(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("pass 'word\" ü\nsecond line\n", encoding="utf-8")
    file.chmod(0o600)
    known = LoginCredentials(environ={"PROCGUARD_SSH_PASSWORD_FILE": str(file), "PROCGUARD_SSH_PASSWORD": "variable"})
    assert known.password("any") == "pass 'word\" ü"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "password"
    file.write_text("secret\n")
    file.chmod(mode)
    with pytest.raises(UsageError, match="other users can read") as caught:
        LoginCredentials(environ={"PROCGUARD_SSH_PASSWORD_FILE": str(file)})
    assert "chmod 600" in str(caught.value) and "secret" not in str(caught.value)


def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"PROCGUARD_SSH_PASSPHRASE_FILE: cannot read .*No such file"):
        LoginCredentials(environ={"PROCGUARD_SSH_PASSPHRASE_FILE": str(tmp_path / "none")})
    (tmp_path / "empty").touch(mode=0o600)
    with pytest.raises(UsageError, match="is empty"):
        LoginCredentials(environ={"PROCGUARD_BECOME_PASSWORD_FILE": str(tmp_path / "empty")})


def test_jump_hosts_never_see_the_hosts_password() -> None:
    known = LoginCredentials(
        {"h": HostSecrets("own")}, password="asked", environ={"PROCGUARD_SSH_PASSWORD": "variable"}
    )
    assert known.jump_password() == ""
    assert LoginCredentials(environ={"PROCGUARD_JUMP_PASSWORD": "jump"}).jump_password() == "jump"


def test_a_passphrase_is_asked_once_for_all_hosts_and_again_when_it_is_wrong() -> None:
    asked: list[str] = []
    answers = iter(["wrong", "right"])

    def ask(question: str) -> str:
        asked.append(question)
        return next(answers)

    def unlock(passphrase: str) -> str | None:
        return "the key" if passphrase == "right" else None

    known = LoginCredentials(ask=ask, environ={})
    assert known.opened("/key") is None
    assert [known.key("/key", host, unlock) for host in ("a", "b")] == ["the key"] * 2
    assert known.opened("/key") == "the key"
    assert len(asked) == 2 and asked[1].startswith("Wrong. ")


def test_nobody_is_asked_where_the_passphrase_is_known_or_nobody_is_there() -> None:
    known = LoginCredentials({"h": HostSecrets(passphrase="right")}, environ={"PROCGUARD_SSH_PASSPHRASE": "other"})
    assert known.key("/key", "h", lambda given: given == "right" or None) is True
    assert LoginCredentials(environ={}).key("/key", "h", lambda _given: True) is None


def test_an_empty_answer_does_without_the_key() -> None:
    assert LoginCredentials(ask=lambda _question: "", environ={}).key("/key", "h", lambda _given: True) is None


def test_secrets_are_in_no_repr() -> None:
    assert "hunter2" not in repr(HostSecrets("hunter2", "hunter2", "hunter2"))


def test_asking_without_a_terminal_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError, match="no terminal") as caught:
        ask_on_terminal("SSH password: ")
    assert "PROCGUARD_SSH_PASSWORD_FILE" in str(caught.value)
