"""Ansible Vault: unused values need no password, used ones are decrypted, and none is shown."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from procguard.deploy.inventory import model as inventory
from procguard.deploy.inventory.vault import VARIABLE, Encrypted, Vault, VaultMistake
from procguard.errors import InventoryError, UsageError
from tests.unit.deploy.inventory.shapes import ENCRYPTED, ENCRYPTED_FILE, LABELLED, PASSWORD, vaulted

SECRET, OTHER = "s3cret", "user-from-vault"


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    path.chmod(0o600)
    return str(path)


def written(tmp_path: Path, variables: str, **files: str) -> Path:
    (tmp_path / "host_vars").mkdir()
    for name, text in {"h1/own.yml": variables, **files}.items():
        path = tmp_path / "host_vars" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    path = tmp_path / "hosts"
    path.write_text("h1\n")
    return path


@pytest.mark.parametrize(("text", "plain"), [(ENCRYPTED, SECRET), (LABELLED, OTHER)], ids=["1.1", "1.2"])
def test_both_formats_are_decrypted(password_file: str, text: str, plain: str) -> None:
    assert Vault(password_file).decrypt(text) == plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain", "not an Ansible Vault"),
        ("$ANSIBLE_VAULT;1.0;AES\n00", "not an Ansible Vault"),
        ("$ANSIBLE_VAULT;1.1;AES\n00", "cipher"),
        ("$ANSIBLE_VAULT;1.1;AES256\nzz", "damaged"),
        ("$ANSIBLE_VAULT;1.1;AES256\n00", "damaged"),
        ("$ANSIBLE_VAULT;1.1;AES256\n", "damaged"),
        (ENCRYPTED.replace("33", "34", 1), "does not fit|damaged"),
        (ENCRYPTED[:-20], "does not fit|damaged"),
    ],
)
def test_what_cannot_be_decrypted_is_said_in_words(password_file: str, text: str, words: str) -> None:
    with pytest.raises(VaultMistake, match=words):
        Vault(password_file).decrypt(text)


def test_another_password_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("wrong")
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(VaultMistake, match="wrong vault password"):
        Vault(str(tmp_path / "other")).decrypt(ENCRYPTED)


def test_a_value_that_nothing_uses_needs_no_password(tmp_path: Path) -> None:
    path = written(tmp_path, f"ansible_user: ml\napi_key: {vaulted(ENCRYPTED)}", **{"h1/vault.yml": ENCRYPTED_FILE})
    host = inventory.load(path).hosts["h1"]
    assert host.target.user == "ml"
    [warning] = host.warnings
    assert "vault.yml: is encrypted, so its variables are unknown" in warning and "--vault-password-file" in warning


@pytest.mark.parametrize("way", ["option", "environment", "program"])
def test_a_value_that_is_used_is_decrypted(
    tmp_path: Path, password_file: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    text = f"secret: {vaulted(ENCRYPTED)}ansible_password: '{{{{ secret }}}}'\nansible_user: {vaulted(LABELLED)}"
    path = written(tmp_path, text)
    if way == "program":
        program = tmp_path / "keyring"
        program.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
        program.chmod(0o700)
        password_file = str(program)
    if way == "environment":
        monkeypatch.setenv(VARIABLE, password_file)
    host = inventory.load(path, "" if way == "environment" else password_file).hosts["h1"]
    assert (host.secrets.password, host.target.user) == (SECRET, OTHER)
    assert SECRET not in repr(host)


def test_a_used_value_without_a_password_says_what_to_do(tmp_path: Path) -> None:
    path = written(tmp_path, f"x: 1\nansible_user: {vaulted(ENCRYPTED)}")
    with pytest.raises(InventoryError) as caught:
        inventory.load(path)
    assert "own.yml:2" in str(caught.value) and "--vault-password-file" in str(caught.value)
    assert VARIABLE in str(caught.value)


def test_an_encrypted_file_is_read_with_its_workers(tmp_path: Path, password_file: str) -> None:
    path = written(tmp_path, "ansible_user: '{{ from_file }}'", **{"h1/vault.yml": ENCRYPTED_FILE})
    host = inventory.load(path, password_file).hosts["h1"]
    assert host.target.user == "deep" and host.warnings == ()


@pytest.mark.parametrize(
    "variables",
    [
        "ansible_port: {value}",
        "procguard_service: {value}",
        "ansible_become: {value}",
        "ansible_become: true\nansible_become_user: 'a b {{{{ secret }}}}'\nsecret: {value}",
        "ansible_user: '{{{{ secret | int(base=9) + none }}}}'\nsecret: {value}",
        "ansible_user: '{{{{ nothing[secret] }}}}'\nsecret: {value}",
        "ansible_host: '{{{{ secret * 40 }}}} x'\nsecret: {value}",
        "procguard_workers: [{{id: w, command: run, stop_grace: '{{{{ secret }}}}'}}]\nsecret: {value}",
        "procguard_workers: [{{id: w, command: run, limits: {{memory: '{{{{ secret * 20 }}}}'}}}}]\nsecret: {value}",
        "procguard_workers: [{{id: '{{{{ secret }}}}!', command: run}}]\nsecret: {value}",
        "procguard_workers: [{{id: w, command: '{{{{ secret }}}} && x'}}]\nsecret: {value}",
        "procguard_sync: {{src: x, dest: '{{{{ secret }}}}'}}\nsecret: {value}",
        "procguard_labels: '{{{{ secret }}}}'\nsecret: {value}",
    ],
)
def test_no_mistake_shows_what_was_decrypted(tmp_path: Path, password_file: str, variables: str) -> None:
    path = written(tmp_path, variables.format(value=vaulted(ENCRYPTED)))
    with pytest.raises(InventoryError) as caught:
        inventory.load(path, password_file)
    assert SECRET not in str(caught.value) and SECRET[:5] not in str(caught.value) and str(caught.value)


def test_what_is_cut_short_in_a_message_is_hidden_too() -> None:
    vault = Vault()
    vault.keep_secret("abcdefghijklmnopqrstuvwxyz")
    vault.keep_secret("ml")
    for text in ("got 'abcdefghijk...rstuvwxyz'", "abcdefgh… is wrong", "'abcdefghijklmnopqrstuvwxyz'", "user ml!"):
        hidden = vault.hide(text)
        assert "abcd" not in hidden and "wxyz" not in hidden and "ml" not in hidden
    assert vault.hide("html of a normal text") == "html of a normal text"


def test_a_worker_has_the_value_that_it_needs_and_only_there(tmp_path: Path, password_file: str) -> None:
    path = written(
        tmp_path, f"procguard_workers: [{{id: w, command: run, env: {{KEY: '{{{{ k }}}}'}}}}]\nk: {vaulted(ENCRYPTED)}"
    )
    found = inventory.load(path, password_file)
    assert found.hosts["h1"].workers[0].spec["env"] == {"KEY": SECRET}
    assert pickle.dumps(found).count(SECRET.encode()) == 1


@pytest.mark.parametrize(
    ("mode", "content", "words"),
    [(0o644, "x", "other users can read it"), (0o600, "", "is empty"), (0o700, "#!/bin/sh\nexit 1\n", "exit code 1")],
)
def test_a_password_file_that_is_no_secret_or_none_is_refused(
    tmp_path: Path, mode: int, content: str, words: str
) -> None:
    file = tmp_path / "pw"
    file.write_text(content)
    file.chmod(mode)
    path = written(tmp_path, f"ansible_user: {vaulted(ENCRYPTED)}")
    for where in (str(file), str(tmp_path / "none"), os.fspath(tmp_path)):
        with pytest.raises(UsageError) as caught:
            inventory.load(path, where)
        assert where != str(file) or words in str(caught.value)


def test_an_encrypted_value_shows_nothing_of_itself() -> None:
    assert repr(Encrypted(ENCRYPTED, Vault(), "x:1")) == str(Encrypted("a", Vault(), "x:1")) == "(encrypted)"
