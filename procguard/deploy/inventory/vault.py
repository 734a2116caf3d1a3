"""Ansible Vault: encrypted values and files in formats 1.1 and 1.2 (AES256).

An unused value is not decrypted and needs no password. Decrypted values are remembered, so that no message shows
them. The password comes from a private file or from a program's output, as in Ansible. Knows neither YAML nor Jinja.
Source: Ansible's documentation, "Format of files encrypted with Ansible Vault".
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import os
import re
import stat
import subprocess

from procguard.errors import UsageError

VARIABLE = "ANSIBLE_VAULT_PASSWORD_FILE"
MARK = "$ANSIBLE_VAULT;"
ITERATIONS = 10_000
MAX_PASSWORD_BYTES = 64 * 1024
PROGRAM_TIMEOUT_S = 60.0
SHOWN_CHARS = 4  # shorter parts of a truncated secret in a message reveal nothing


class VaultMistake(ValueError):
    """A decryption error, as text; the caller adds its location."""


class Vault:
    """`password_file`: "" for the one named by the environment, if any. It is read at its first use."""

    def __init__(self, password_file: str = "") -> None:
        self._password_file = password_file or os.environ.get(VARIABLE, "")
        self._password: bytes | None = None
        self._plain: dict[str, str] = {}  # encrypted text -> plain text
        self._secrets: set[str] = set()

    @property
    def opens(self) -> bool:
        """Whether there is a password."""
        return bool(self._password_file)

    def decrypt(self, text: str) -> str:
        """The text of an encrypted value or file. Raises VaultMistake, UsageError for the password's file."""
        text = text.strip()
        if text not in self._plain:
            if not self.opens:
                raise VaultMistake(f"it is encrypted: give its password with --vault-password-file or {VARIABLE}")
            if self._password is None:
                self._password = _password(os.path.expanduser(self._password_file))
            self._plain[text] = _decrypted(text, self._password)
        return self._plain[text]

    def reveal(self, text: str) -> str:
        """Decrypt one value. It is hidden in messages from now on."""
        return self.keep_secret(self.decrypt(text))

    def keep_secret(self, plain: str) -> str:
        self._secrets |= {word for word in (plain, plain.strip(), *plain.splitlines()) if word.strip()}
        return plain

    def hide(self, text: str) -> str:
        """`text` without the revealed values, even if they were truncated."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            for shown in {secret, repr(secret)[1:-1]}:
                alone = re.escape(shown) if len(shown) > SHOWN_CHARS else rf"(?<!\w){re.escape(shown)}(?!\w)"
                text = re.sub(alone, "…", text)
                if len(shown) > SHOWN_CHARS and ("..." in text or "…" in text):
                    text = _without_ends(text, shown)
        return text


class Encrypted:
    """An encrypted value of an inventory, with its location."""

    __slots__ = ("plain", "text", "vault", "where")

    def __init__(self, text: str, vault: Vault, where: str, plain: bool = False) -> None:
        """`plain`: the text is already decrypted, because its whole file was encrypted."""
        self.text, self.vault, self.where, self.plain = text, vault, where, plain

    def reveal(self) -> str:
        """The decrypted value. Raises VaultMistake, UsageError."""
        return self.vault.keep_secret(self.text) if self.plain else self.vault.reveal(self.text)

    def __repr__(self) -> str:
        return "(encrypted)"


def _without_ends(text: str, secret: str) -> str:
    """Hide the beginning and the end of a secret, which reprlib and the like keep of long texts."""
    for dots in ("...", "…"):
        for size in range(len(secret) - 1, SHOWN_CHARS - 1, -1):
            text = text.replace(secret[:size] + dots, dots).replace(dots + secret[-size:], dots)
    return text


def _password(path: str) -> bytes:
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode) and os.access(path, os.X_OK):
            return _said(path)
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path} is not a file", "pass a file with the vault password")
        if found.st_mode & 0o077:
            raise UsageError(f"{path} contains the vault password and other users can read it", f"chmod 600 {path}")
        with open(path, "rb") as file:
            password = file.read(MAX_PASSWORD_BYTES).strip()
    except OSError as exc:
        raise UsageError(f"{path} can't be read: {exc.strerror}", "pass a file with the vault password") from exc
    if not password:
        raise UsageError(f"{path} is empty", "write the vault password into it")
    return password


def _said(path: str) -> bytes:
    """The password printed by a program, for example that of a keyring."""
    try:
        done = subprocess.run(
            [os.path.abspath(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UsageError(
            f"{path} printed no vault password: {exc}", "run it by hand; a plain file is not executable"
        ) from exc
    password = done.stdout[:MAX_PASSWORD_BYTES].strip()
    if done.returncode != 0 or not password:
        raise UsageError(f"{path} printed no vault password (exit code {done.returncode})", "run it by hand")
    return password


def _decrypted(text: str, password: bytes) -> str:
    head, _, body = text.partition("\n")
    words = head.strip().split(";")
    if words[:1] != ["$ANSIBLE_VAULT"] or len(words) not in (3, 4) or words[1] not in ("1.1", "1.2"):
        raise VaultMistake("it is not an Ansible Vault of format 1.1 or 1.2")
    if words[2] != "AES256":
        raise VaultMistake(f"its cipher {words[2][:20]!r} is not supported; use AES256")
    try:
        salt, expected, cipher = (
            binascii.unhexlify(part) for part in binascii.unhexlify("".join(body.split())).split(b"\n", 2)
        )
    except ValueError as exc:
        raise VaultMistake("its encrypted text is damaged") from exc
    derived = hashlib.pbkdf2_hmac("sha256", password, salt, ITERATIONS, 80)
    if not hmac.compare_digest(hmac.digest(derived[32:64], cipher, "sha256"), expected):
        raise VaultMistake("wrong vault password, or the text is damaged")
    return _unpadded(_deciphered(cipher, derived[:32], derived[64:]))


def _deciphered(cipher: bytes, key: bytes, counter: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415 - rarely needed

    decryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).decryptor()
    return decryptor.update(cipher) + decryptor.finalize()


def _unpadded(data: bytes) -> str:
    """Remove the padding of RFC 5652, 6.3."""
    size = data[-1] if data else 0
    if not 0 < size <= 16 or data[-size:] != bytes([size]) * size:
        raise VaultMistake("its encrypted text is damaged")
    try:
        return data[:-size].decode("utf-8")
    except UnicodeDecodeError as exc:
        raise VaultMistake("it contains no text") from exc
