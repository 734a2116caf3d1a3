"""The installer's session with one host, over any pipe: JSON lines out, marked JSON lines back, hard deadlines.

Owns the order of messages (see `remote_agent.install.__main__.InstallerSession`); knows neither SSH nor processes: it
receives a `Pipe`. Everything is sent over stdin, nothing in argv: no quoting, no secret in a process list.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, TypedDict, cast

from procguard.deploy.ssh.credentials import BECOME_PASSWORD
from procguard.deploy.ssh.target import USER_NAME, Target
from procguard.errors import HostError
from procguard.json_types import Json
from remote_agent.install.__main__ import LINE_MARK

MAX_NOISE_BYTES = 256 * 1024  # banners that a login shell may print before the session starts
MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_QUOTED_CHARS = 300  # length of a host's output quoted in a message
NO_PYTHON = "procguard-no-python"

_ANSWER = (LINE_MARK + "{").encode()

# Places to look for a Python >= 3.9, after the inventory's own; the last ones are where conda usually lives.
PYTHONS = (
    "python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 "
    '"$HOME/miniconda3/bin/python3" "$HOME/anaconda3/bin/python3" "$HOME/miniforge3/bin/python3" '
    '"$HOME/mambaforge/bin/python3" '
    "/opt/conda/bin/python3 /opt/miniconda3/bin/python3 /opt/anaconda3/bin/python3 /usr/local/bin/python3 "
    "/usr/libexec/platform-python"
)
# The interpreter's exit code: 97 too old, 96 a module of the standard library is missing, 95 PyPy, which is used only
# if nothing else is found or the inventory names it. The code that follows arrives on stdin, preceded by its length.
_BOOT = (
    "import sys; sys.version_info < (3, 9) and sys.exit(97); "
    'sys.argv[1:] == [\\"1\\"] and sys.implementation.name > \\"cpython\\" and sys.exit(95); '
    "from importlib.util import find_spec; "
    'None in map(find_spec, (\\"_ctypes\\", \\"_socket\\", \\"fcntl\\", \\"select\\", \\"zlib\\")) and sys.exit(96); '
    "i = sys.stdin.buffer; "
    'exec(compile(i.read(int(i.readline())), \\"procguard\\", \\"exec\\"))'
)
_VERSION = "import platform; print(platform.python_version())"
# One line, without a single quote or an exclamation mark. The first line of stdin is the interpreter that the inventory
# names, or empty; `read` consumes no byte beyond that line. A named interpreter that is missing is an error: no other
# one is used instead. An interpreter that exits with another code is broken, unless it can run a trivial program: then
# the session itself failed. The answer to hello names the interpreters that were skipped.
_SCRIPT = (
    "IFS= read -r want; seen=; "
    'case "$want" in "~/"*) want="$HOME/${want#??}";; esac; '
    '[ -z "$want" ] || command -v "$want" >/dev/null 2>&1 || '
    f'{{ echo {NO_PYTHON} "$want=missing"; exit 0; }}; '
    f'for round in 1 2; do for p in "$want" {PYTHONS}; do '
    '[ -n "$p" ] && command -v "$p" >/dev/null 2>&1 || continue; '
    'n=$round; [ "$p" = "$want" ] && n=2; '
    f'PROCGUARD_SKIPPED="$seen" "$p" -I -S -c "{_BOOT}" $n; code=$?; '
    "case $code in "
    "0) exit 0;; "
    "95) why=PyPy;; "
    "96) why=incomplete;; "
    f'97|2) why=$("$p" -c "{_VERSION}" 2>/dev/null);; '
    '*) "$p" -I -S -c "import os" </dev/null >/dev/null 2>&1 && exit $code; why=;; '
    "esac; "
    '[ $round = 1 ] && seen="$seen $p=$why"; '
    f"done; done; echo {NO_PYTHON} $seen"
)
# For any login shell (also csh and fish): one line in single quotes, without a single quote inside.
REMOTE_COMMAND = f"exec sh -c '{_SCRIPT}'"
# As another user: sudo reads its password from stdin if it requires one (one line, and no byte more); the next line is
# the script. sudo's own output is received with the rest and gives the reason of a refusal. -k: a password that sudo
# has cached for some minutes must not make an unattended log-in appear possible.
SUDO_ASKS = "procguard-sudo-asks"
SUDO_DONE = "procguard-sudo-done"
_AS_ANOTHER_USER = (
    f'exec sh -c \'exec sudo -k -S -p {SUDO_ASKS} -H -u %s -- env SSH_CONNECTION="$SSH_CONNECTION" '
    rf'sh -c "echo {SUDO_DONE}; IFS= read -r line; eval \"\$line\"" 2>&1' + "'"
)


def remote_command(target: Target) -> str:
    """The remote command. Raises HostError for a user name that is more than one shell word."""
    if not target.become_user:
        return REMOTE_COMMAND
    if not USER_NAME.fullmatch(target.become_user):
        raise HostError(f"{target.host}: {target.become_user[:40]!r} names no user", "correct ansible_become_user")
    return _AS_ANOTHER_USER % target.become_user


class Pipe(Protocol):
    """One running command. All methods raise HostError when the deadline (monotonic seconds) passes or it breaks."""

    def send(self, data: bytes, deadline: float) -> None: ...

    def receive(self, deadline: float) -> bytes:
        """The next bytes of its stdout; b"" at its end."""
        ...

    def errors(self) -> str:
        """The end of its stderr so far, for a message."""
        ...

    def close(self) -> None: ...


def become(pipe: Pipe, target: Target, password: str, deadline: float) -> None:
    """Answer sudo's prompt if the inventory requires sudo. Raises HostError with sudo's message."""
    if not target.become_user:
        return
    said, asked = b"", 0
    while SUDO_DONE.encode() + b"\n" not in said:
        data = pipe.receive(deadline)
        said += data
        if not data or len(said) > MAX_NOISE_BYTES:
            text = said.decode("utf-8", "replace").replace(SUDO_ASKS, " ")
            words = " ".join((text + " " + pipe.errors()).split())[-400:]
            raise _no_sudo(target, f"sudo to {target.become_user} failed ({words or 'no output'})")
        if said.count(SUDO_ASKS.encode()) > asked:
            asked += 1
            if asked > 1:
                raise _no_sudo(target, f"sudo to {target.become_user} refused the password")
            if not password:
                raise _no_sudo(target, f"sudo to {target.become_user} asks for a password")
            pipe.send(password.encode() + b"\n", deadline)
    pipe.send(_SCRIPT.encode() + b"\n", deadline)


def _no_sudo(target: Target, what: str) -> HostError:
    next_step = (
        f"give the correct one (--ask-become-pass, or {BECOME_PASSWORD}_FILE), or allow sudo without a password: "
        "NOPASSWD"
    )
    return HostError(f"{target.host}: {what}", next_step, code="become")


class HostStatus(TypedDict, total=False):
    """What an installer reports of its host (remote_agent/install/installer.py); those of earlier releases omit newer
    fields. `python_skipped`: Pythons that do not work, with the reasons. `time`: the host's clock. The last five only
    if they were asked for."""

    installed: bool
    running: bool
    pid: int | None
    frozen: bool
    release: str
    previous: str
    agent_dir: str
    keep_alive: str
    keep_alive_reason: str
    stopped_by_hand: bool
    manager_urls: list[str]
    secret_sha256: str
    python: str
    python_skipped: list[str]
    python_version: str
    magic: str
    user: str
    free_bytes: int | None
    time: float
    workers: list[Json]
    podman: str
    podman_user: str
    podman_lacks: list[str]
    podman_gpus: list[str]


class HostSession:
    """The client of the installer on one host. Use it from one thread; close the pipe's owner when done."""

    def __init__(
        self, pipe: Pipe, target: Target, installer: bytes, beside: Callable[[str, float], Pipe] | None = None
    ) -> None:
        self._pipe = pipe
        self._target = target
        self._installer = installer  # bundle.bootstrap()
        self.beside = beside  # starts another command over the same connection: (command, deadline) -> Pipe
        self._unread = b""
        self._noise = 0
        self._printed = b""  # the last output that is not a response
        self._answered = False

    def open(self, deadline: float) -> None:
        self._put(self._target.python.encode() + b"\n" + self._installer, deadline)

    def hello(self, where: Mapping[str, Any], deadline: float) -> HostStatus:
        """Begin the session. `where`: fleet_id, host, home. Returns `Installer.status`; with `workers` also the
        running workers."""
        reply = self._ask({"op": "hello", **where}, deadline)
        return cast(HostStatus, dict(reply["hello"]))

    def install(
        self,
        request: Json,
        bundle: bytes,
        deadline: float,
        code: Callable[[], bytes] = bytes,
        op: Literal["install", "upgrade"] = "install",
        secret: Callable[[str], str] = lambda current_sha256: "",
    ) -> Json:
        """Install or upgrade the agent. The bundle, its byte code and a `secret` are sent only if the host requests
        them: see `Installer.install`."""
        reply = self._ask({"op": op, **request}, deadline)
        if reply.get("need") == "bundle":
            made = code()
            self._send({"bytes": len(bundle), "code": len(made)}, deadline)
            self._pipe.send(bundle + made, deadline)
            reply = self._answer(deadline)
        if reply.get("need") == "secret":
            reply = self._ask({"secret": secret(str(reply.get("secret_sha256", "")))}, deadline)
        return dict(reply["report"])

    def perform(self, op: str, where: Mapping[str, Any], deadline: float) -> Json:
        return dict(self._ask({"op": op, **where}, deadline)["report"])

    def ask(self, message: Json, deadline: float, data: Iterable[bytes] = (), pause_s: float = 60.0) -> Json:
        """Send a message to another part of the installer, followed by pieces of data, and return the response. Each
        piece may take `pause_s`."""
        self._send(message, deadline)
        for piece in data:
            self._pipe.send(piece, min(deadline, time.monotonic() + pause_s))
        return self._answer(deadline)

    def take(self, size: int, deadline: float) -> bytes:
        """Read `size` raw bytes that the host sends between its lines."""
        while len(self._unread) < size:
            data = self._pipe.receive(deadline)
            if not data:
                raise self._ended()
            self._unread += data
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken

    def take_number(self, deadline: float) -> int:
        """Read a line that consists of a number."""
        try:
            return int(self._line(deadline))
        except ValueError as exc:
            raise self._error("bad_answer", "sent something that is not a number", "try again") from exc

    def answer(self, deadline: float) -> Json:
        """Read the next line that the host sends without a request."""
        return self._answer(deadline)

    def detach(self) -> bytes:
        """Release the pipe to the caller; returns the bytes read beyond the last response."""
        unread, self._unread = self._unread, b""
        return unread

    # ---------------------------------------------------------------------------------------------- inside

    def _ask(self, message: Json, deadline: float) -> Json:
        self._send(message, deadline)
        return self._answer(deadline)

    def _send(self, message: Json, deadline: float) -> None:
        self._put(json.dumps(message, separators=(",", ":")).encode() + b"\n", deadline)

    def _put(self, data: bytes, deadline: float) -> None:
        """Write to the pipe. A shell that found no Python exits without reading everything; its output then explains
        the broken pipe."""
        try:
            self._pipe.send(data, deadline)
        except HostError as exc:
            if exc.code == "connection_lost":
                self._raise_no_python(deadline)
            raise

    def _raise_no_python(self, deadline: float) -> None:
        with contextlib.suppress(HostError):
            while len(self._unread) < MAX_NOISE_BYTES:
                data = self._pipe.receive(deadline)
                if not data:
                    break
                self._unread += data
        for line in self._unread.splitlines():
            self._refuse_no_python(line)
        if not self._answered:
            self._print(self._unread)
            raise self._ended()

    def _answer(self, deadline: float) -> Json:
        while True:
            line = self._line(deadline)
            _, mark, answer = line.partition(_ANSWER)  # start-up files may print without a newline before it
            if mark:
                self._answered = True
                return self._checked(b"{" + answer)
            self._refuse_no_python(line)
            self._print(line + b"\n")
            self._noise += len(line)
            if self._noise > MAX_NOISE_BYTES:
                raise self._error("not_procguard", "prints endless output at login", "check its shell start-up files")

    def _refuse_no_python(self, line: bytes) -> None:
        _, mark, seen = line.partition(NO_PYTHON.encode())
        if mark:
            raise self._no_python(seen.decode("utf-8", "replace").split())

    def _print(self, text: bytes) -> None:
        self._printed = (self._printed + text)[-4 * MAX_QUOTED_CHARS :]

    def _quoted(self) -> str:
        """The host's output as a quotation (“…”), or a note that it printed nothing."""
        words = " ".join((self._printed.decode("utf-8", "replace") + " " + self._pipe.errors()).split())
        return f"it printed “{words[-MAX_QUOTED_CHARS:]}”" if words else "it printed nothing"

    def _checked(self, text: bytes) -> Json:
        try:
            reply = json.loads(text)
        except ValueError as exc:
            raise self._error("bad_answer", "sent an answer that is not JSON", "deploy again") from exc
        if not isinstance(reply, dict):
            raise self._error("bad_answer", "sent an answer that is not an object", "deploy again")
        error = reply.get("error")
        if isinstance(error, dict):
            text_of_error = str(error.get("message", "failed"))
            if not text_of_error.startswith(f"{self._target.host} ") and not text_of_error.startswith(
                f"{self._target.host}:"
            ):
                text_of_error = f"{self._target.host}: {text_of_error}"
            raise HostError(text_of_error, str(error.get("next", "")), code=str(error.get("code", "")))
        return reply

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._unread:
            try:
                data = self._pipe.receive(deadline)
            except HostError as exc:
                if exc.code != "timeout" or self._answered:
                    raise
                self._print(self._unread)
                raise self._error(
                    "timeout",
                    f"logged in, but no answer from the installer in time; {self._quoted()}",
                    f"check what delays a login there (start-up files, ForceCommand, load). {self._try()}",
                ) from exc
            if not data:
                if self._unread:
                    data, self._unread = self._unread, b""
                    return data
                raise self._ended()
            self._unread += data
            if len(self._unread) > MAX_LINE_BYTES:
                raise self._error("bad_answer", "sent an unterminated line", "check its shell start-up files")
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _ended(self) -> HostError:
        if self._answered:
            return self._error(
                "session_ended", f"the installer's session ended early; {self._quoted()}", "deploy again"
            )
        return self._error(
            "session_ended",
            f"logged in, but its shell exited before the installer started; {self._quoted()}",
            f"check the user's login shell, its start-up files and ForceCommand (sshd_config); {self._try()}",
        )

    def _try(self) -> str:
        words = ["ssh", *(["-p", str(self._target.port)] if self._target.port else [])]
        words.append(f"{self._target.user}@{self._target.address}" if self._target.user else self._target.address)
        return "try: sh -c true" if self._target.local else f"try: {shlex.join(words)} true"

    def _no_python(self, seen: list[str]) -> HostError:
        """`seen`: path=version of each interpreter tried; the version is empty if it could not report one."""
        wanted, _, missing = " ".join(seen).rpartition("=")
        if missing == "missing":
            return self._error(
                "no_python",
                f"ansible_python_interpreter: program {wanted} not found on this host",
                "correct it, or omit it to search for Python 3.9 or newer",
            )
        found = ", ".join(skipped_in_words(seen)) or "none found"
        return self._error(
            "no_python", f"no Python 3.9 or newer ({found})", "install one, or set ansible_python_interpreter"
        )

    def _error(self, code: str, what: str, next_step: str) -> HostError:
        return HostError(f"{self._target.host}: {what}", next_step, code=code)


class Sessions(Protocol):
    """The interface of `connector.Connector`; tests use a fake."""

    def session(
        self, target: Target, deadline: float, on_connected: Callable[[], None] | None = None
    ) -> contextlib.AbstractContextManager[HostSession]: ...


def skipped_in_words(seen: Iterable[str]) -> list[str]:
    """Texts for "path=version", such as "python3 (3.6.8)", or "python3.9 (broken)" for an empty version."""
    return [f"{path} ({version or 'broken'})" for path, _, version in (one.partition("=") for one in seen)]
