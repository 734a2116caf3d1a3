"""known_hosts: each file is read once for all connections, and again when it has changed."""

from __future__ import annotations

from pathlib import Path

import paramiko
import pytest

from procguard.deploy.ssh import trusted

ONE, OTHER = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()


def line(name: str, key: paramiko.PKey) -> str:
    return f"{name} {key.get_name()} {key.get_base64()}\n"


def known(host: str, port: int, *paths: Path) -> list[paramiko.PKey]:
    client = paramiko.SSHClient()
    trusted.give(client, host, port, map(str, paths))
    name = host if port == 22 else f"[{host}]:{port}"
    return list((client.get_host_keys().lookup(name) or {}).values())


def test_a_host_has_the_keys_of_its_own_name_and_port(tmp_path: Path):
    file = tmp_path / "known_hosts"
    hashed = paramiko.HostKeys.hash_host("10.0.0.9")
    file.write_text(line("10.0.0.7", ONE) + line("[10.0.0.7]:2222", OTHER) + line(hashed, ONE))
    assert known("10.0.0.7", 22, file) == [ONE]
    assert known("10.0.0.7", 2222, file) == [OTHER]
    assert known("10.0.0.9", 22, file) == [ONE]
    assert known("10.0.0.8", 22, file) == []


def test_the_first_of_two_keys_of_a_kind_counts_and_missing_files_do_not_matter(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(line("h", ONE))
    second.write_text(line("h", OTHER))
    assert known("h", 22, tmp_path / "none", first, second) == [ONE]


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, read = tmp_path / "known_hosts", []

    class Counted(paramiko.HostKeys):
        def load(self, filename: str) -> None:
            read.append(filename)
            super().load(filename)

    monkeypatch.setattr(paramiko, "HostKeys", Counted)
    file.write_text(line("h", ONE))
    assert [known("h", 22, file) for _ in range(3)] == [[ONE]] * 3
    assert read.count(str(file)) == 1
    with file.open("a") as more:
        more.write(line("new", OTHER))
    assert known("new", 22, file) == [OTHER]
    assert read.count(str(file)) == 2
