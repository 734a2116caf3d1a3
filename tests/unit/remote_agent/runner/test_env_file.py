"""env_file: the syntax of a dotenv file, and its errors, which name file and line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_agent.runner.environment import parse_env, read_env_file
from remote_agent.runner.launch import NotStarted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# a comment\n\n   \n", {}),
        ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        ("export A=1", {"A": "1"}),
        ("export\tA=1", {"A": "1"}),
        ("exported=1", {"exported": "1"}),
        ("  A = 1  ", {"A": "1"}),
        ("A=", {"A": ""}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=b=c", {"A": "b=c"}),
        ("A=1 # one", {"A": "1"}),
        ("A=# nothing", {"A": ""}),
        ("A=#nothing", {"A": ""}),
        ("URL=http://x/#top", {"URL": "http://x/#top"}),
        ("A='a # b' # c", {"A": "a # b"}),
        ('A="a \' b"', {"A": "a ' b"}),
        ("A='a \" b'", {"A": 'a " b'}),
        (r'A="a\tb\nc\"d\\e\$f"', {"A": 'a\tb\nc"d\\e$f'}),
        (r'A="C:\Users"', {"A": r"C:\Users"}),
        (r"A='a\nb'", {"A": r"a\nb"}),
        (r"A=a\nb", {"A": r"a\nb"}),
        ("A=$HOME/x", {"A": "$HOME/x"}),
        ('KEY="-----BEGIN\nabc\n-----END"\nB=1', {"KEY": "-----BEGIN\nabc\n-----END", "B": "1"}),
        ("A=1\r\nB='x'\r\n", {"A": "1", "B": "x"}),
        ("\ufeffA=1", {"A": "1"}),
        ("A=你好", {"A": "你好"}),
        ("MY.KEY-1=x", {"MY.KEY-1": "x"}),
    ],
)
def test_dotenv_lines(text: str, expected: dict[str, str]) -> None:
    assert parse_env(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=1\nB", r"^2: this line has no =; expected NAME=VALUE$"),
        ("\n\n=1", r"^3: '' is no name of a variable"),
        ("1A=1", r"^1: '1A' is no name"),
        ("A B=1", r"^1: 'A B' is no name"),
        ("A='x", r"^1: the ' of A is never closed$"),
        ('B=1\nA="x\ny\nz', r'^2: the " of A is never closed$'),
        ("A='x' y", r"^1: text after the closing ' of A$"),
        ("A=x\0y", r"^1: the value of A holds a NUL"),
    ],
)
def test_wrong_line_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_env(text)


def test_message_names_file_and_line_and_shows_no_value(tmp_path: Path) -> None:
    path = tmp_path / "secrets.env"
    path.write_text("A=1\nTOKEN='s3cret\n")
    with pytest.raises(NotStarted) as caught:
        read_env_file(str(path))
    assert str(caught.value) == f"env_file {path}:2: the ' of TOKEN is never closed"
    path.write_text("A=1\ns3cret-without-a-name\n")
    with pytest.raises(NotStarted, match=r":2: this line has no =") as caught:
        read_env_file(str(path))
    assert "s3cret" not in str(caught.value)


def test_missing_file_and_what_is_no_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match=f"^env_file does not exist: {tmp_path}/none$"):
        read_env_file(str(tmp_path / "none"))
    with pytest.raises(NotStarted, match=r"is not a file|cannot be read: Is a directory"):
        read_env_file(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")  # it has no writer: reading it would hang
    with pytest.raises(NotStarted, match="is not a file"):
        read_env_file(str(tmp_path / "pipe"))


def test_bytes_that_are_no_utf8_reach_the_environment(tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(b"A=\xff\xfe\n")
    assert os.fsencode(read_env_file(str(tmp_path / "e"))["A"]) == b"\xff\xfe"
