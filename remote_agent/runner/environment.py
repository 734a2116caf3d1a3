"""The environment of a child: the host's, then env_file, then env, then its conda or venv.

All sources are read at each start, so that an edited file or a rebuilt environment takes effect after a restart; the
cost is a few system calls, and none for workers without these keys. Raises child.NotStarted with the file and line.
Knows neither states nor processes. Kept small because the runner imports it (no re, no shlex).
"""

from __future__ import annotations

import os
import stat

from remote_agent.protocol.reasons import because
from remote_agent.runner.launch import REPORT_FD, NotStarted, check_directory
from remote_agent.system import lean_json

MAX_ENV_FILE_BYTES = 1024 * 1024
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$", "`": "`"}
CONDA_ROOTS = (
    "~/miniconda3", "~/anaconda3", "~/miniforge3", "~/mambaforge", "~/micromamba", "~/.conda", "~/conda",
    "/opt/conda", "/opt/miniconda3", "/opt/anaconda3", "/opt/miniforge3", "/opt/mambaforge",
    "/usr/local/conda", "/usr/local/miniconda3", "/usr/local/anaconda3",
)  # fmt: skip


def compose(
    base: dict[str, str], start: dict[str, object], own: dict[str, str], cwd: str, as_far_as_there: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Returns (the environment, the conda scripts to source). `start`: as resolved by agent/spec_file.py; `own`: the
    spec's `env`.

    `as_far_as_there`: skip missing files, because a pre_start hook may create them.
    """
    if start and cwd:
        check_directory(cwd)  # otherwise the error would name a file in it
    env = dict(base)
    files = start.get("env_files")
    for path in files if isinstance(files, list) else ():
        if not (as_far_as_there and not os.path.exists(path)):
            env.update(read_env_file(path))
    env.update(own)
    scripts: list[str] = []
    try:
        if start.get("conda"):
            scripts = enter_conda(env, str(start["conda"]))
        if start.get("venv"):
            enter_venv(env, str(start["venv"]))
    except NotStarted:
        if not as_far_as_there:
            raise
    return env, scripts


def compose_as(
    run_as: dict[str, object],
    base: dict[str, str],
    start: dict[str, object],
    own: dict[str, str],
    cwd: str,
    as_far_as_there: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """As `compose`, for a worker with its own user: files are read with that user's rights, and the caller's
    environment is not included. Raises NotStarted, or OSError if there is no answer."""
    from remote_agent.system import identity

    base = {**identity.base_environment(run_as, base), "PYTHONUNBUFFERED": "1"}

    def question() -> list[object]:
        try:
            return list(compose(base, start, own, cwd, as_far_as_there))
        except NotStarted as exc:
            raise ValueError(*exc.args) from exc

    try:
        found = identity.ask(run_as, question)
    except ValueError as exc:
        raise NotStarted(*exc.args) from None
    assert isinstance(found, list)
    return found[0], found[1]


# ------------------------------------------------------------------------------------------------- env_file


def read_env_file(path: str) -> dict[str, str]:
    """Read NAME=VALUE lines. Messages never show a value, because it may be a secret."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise NotStarted(because("start.env_file_kind", path=path))
            if found.st_size > MAX_ENV_FILE_BYTES:
                raise NotStarted(because("start.env_file_size", path=path, limit=MAX_ENV_FILE_BYTES))
            text = file.read(MAX_ENV_FILE_BYTES).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        raise NotStarted(because("start.env_file_missing", path=path)) from None
    except OSError as exc:
        raise NotStarted(because("start.env_file_unreadable", path=path, error=exc.strerror or str(exc))) from exc
    try:
        return parse_env(text)
    except ValueError as exc:
        raise NotStarted(because("start.env_file_line", path=path, detail=str(exc))) from None


def parse_env(text: str) -> dict[str, str]:
    """Parse a dotenv file. `export` is allowed, # begins a comment, quotes keep spaces and line ends, escapes (\
) apply only in double quotes, and $ is an ordinary character. Raises ValueError "<line>: what is wrong"."""
    values: dict[str, str] = {}
    lines = text[1:].split("\n") if text.startswith("\ufeff") else text.split("\n")
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        number += 1
        if not line or line[0] == "#":
            continue
        if line.startswith(("export ", "export\t")):
            line = line[7:].lstrip()
        name, equals, value = line.partition("=")
        name, value = name.rstrip(), value.lstrip()
        if not equals:
            raise ValueError(f"{number}: this line has no =; expected NAME=VALUE")
        if not _is_name(name):
            raise ValueError(f"{number}: {name[:40]!r} is no name of a variable; expected NAME=VALUE")
        first = number
        if value[:1] in ("'", '"'):
            end = _closing(value)
            while end < 0 and number < len(lines):  # a quoted value may span lines
                value += "\n" + lines[number].rstrip("\r")
                number += 1
                end = _closing(value)
            if end < 0:
                raise ValueError(f"{first}: the {value[0]} of {name} is never closed")
            rest = value[end + 1 :].strip()
            if rest and rest[0] != "#":
                raise ValueError(f"{number}: text after the closing {value[0]} of {name}")
            value = value[1:end] if value[0] == "'" else _unescaped(value[1:end])
        else:
            value = _without_comment(value)
        if "\0" in value:
            raise ValueError(f"{first}: the value of {name} holds a NUL character")
        values[name] = value
    return values


def _is_name(name: str) -> bool:
    return (name.isascii() and name.replace("_", "a").replace(".", "a").replace("-", "a").isalnum()) and not name[
        0
    ].isdigit()


def _closing(value: str) -> int:
    """The index of the closing quote of `value`; -1 if it is not in this line."""
    position = 1
    while position < len(value):
        if value[position] == "\\" and value[0] == '"':
            position += 1
        elif value[position] == value[0]:
            return position
        position += 1
    return -1


def _unescaped(text: str) -> str:
    parts = []
    position = 0
    while position < len(text):
        letter = text[position]
        if letter == "\\" and text[position + 1 : position + 2] in ESCAPES and position + 1 < len(text):
            position += 1
            letter = ESCAPES[text[position]]
        parts.append(letter)
        position += 1
    return "".join(parts)


def _without_comment(value: str) -> str:
    for position, letter in enumerate(value):
        if letter == "#" and (position == 0 or value[position - 1] in " \t"):
            return value[:position].rstrip()
    return value.rstrip()


# ------------------------------------------------------------------------------------------- venv and conda


def enter_venv(env: dict[str, str], venv: str) -> None:
    """Change the environment as the venv's `. bin/activate` would."""
    python = os.path.join(venv, "bin", "python")
    if not os.access(python, os.X_OK):
        if os.path.islink(python):
            raise NotStarted(because("start.venv_python", path=venv, python=os.path.realpath(python)))
        code = "start.venv_no_python" if os.path.isdir(venv) else "start.venv_missing"
        raise NotStarted(because(code, path=venv))
    _first_in_path(env, os.path.join(venv, "bin"), env.get("VIRTUAL_ENV", ""))
    env["VIRTUAL_ENV"] = venv
    env.pop("PYTHONHOME", None)


def enter_conda(env: dict[str, str], name: str) -> list[str]:
    """Change the environment as `conda activate` would, without running conda. Returns the environment's activation
    scripts."""
    prefix, searched = find_conda(env, name)
    if not prefix:
        if searched:
            raise NotStarted(because("start.conda_missing", name=name, places=searched[:10]))
        raise NotStarted(because("start.no_conda", name=name))
    _first_in_path(env, os.path.join(prefix, "bin"), env.get("CONDA_PREFIX", ""))
    env.update(_conda_variables(prefix))
    env["CONDA_PREFIX"] = prefix
    env["CONDA_DEFAULT_ENV"] = prefix if "/" in name else name
    env["CONDA_SHLVL"] = "1"
    directory = os.path.join(prefix, "etc/conda/activate.d")
    try:
        return [os.path.join(directory, one) for one in sorted(os.listdir(directory)) if one.endswith(".sh")]
    except OSError:
        return []


def find_conda(env: dict[str, str], name: str) -> tuple[str, list[str]]:
    """Returns (prefix or "", searched places). `name`: the environment's name or absolute path."""
    if "/" in name:
        return (name if _is_conda(name) else "", [name])
    searched = []
    for root in _conda_roots(env):
        if name == "base" and _is_conda(root):
            return root, []
        directory = os.path.join(root, "envs")
        if os.path.isdir(directory):
            searched.append(directory)
            if _is_conda(os.path.join(directory, name)):
                return os.path.join(directory, name), []
    for prefix in _registered(env):
        if os.path.basename(prefix) == name and _is_conda(prefix):
            return prefix, []
    return "", searched


def _is_conda(prefix: str) -> bool:
    return os.path.isdir(os.path.join(prefix, "conda-meta"))


def _conda_roots(env: dict[str, str]) -> list[str]:
    home = env.get("HOME") or os.path.expanduser("~")
    roots = []
    if env.get("CONDA_EXE"):
        roots.append(os.path.dirname(os.path.dirname(env["CONDA_EXE"])))
    if env.get("MAMBA_ROOT_PREFIX"):
        roots.append(env["MAMBA_ROOT_PREFIX"])
    roots += [home + root[1:] if root[0] == "~" else root for root in CONDA_ROOTS]
    for directory in env.get("PATH", "").split(":"):
        conda = os.path.join(directory, "conda")
        if directory and os.path.isfile(conda):
            roots.append(os.path.dirname(os.path.dirname(os.path.realpath(conda))))
    return list(dict.fromkeys(roots))


def _registered(env: dict[str, str]) -> list[str]:
    """The environments in conda's own list for this user (environments.txt)."""
    home = env.get("HOME") or os.path.expanduser("~")
    try:
        text = _content(os.path.join(home, ".conda/environments.txt")).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _conda_variables(prefix: str) -> dict[str, str]:
    """The variables set with `conda env config vars set`."""
    try:
        values = lean_json.loads(_content(os.path.join(prefix, "conda-meta/state"))).get("env_vars", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return {str(name): str(value) for name, value in values.items()} if isinstance(values, dict) else {}


def _content(path: str) -> bytes:
    """The content of a regular file, at most MAX_ENV_FILE_BYTES. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        return file.read(MAX_ENV_FILE_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""


def _first_in_path(env: dict[str, str], directory: str, former: str) -> None:
    """`former`: the environment that was active before; its bin leaves the PATH."""
    leaving = {directory, os.path.join(former, "bin") if former else directory}
    rest = [one for one in (env.get("PATH") or os.defpath).split(":") if one not in leaving]
    env["PATH"] = ":".join([directory, *rest])


# --------------------------------------------------------------------------------------- lines before the command

# The shell before the command reports "ok" or its error on a descriptor; see launch.word.
_HEAD = f'procguard_step=0; trap \'printf "line %s %s" "$?" "$procguard_step" >&{REPORT_FD}\' EXIT'
_TAIL = f"""set +e; trap - EXIT; unset procguard_step
command -v -- "$1" >/dev/null 2>&1 || {{ printf 'path %s' "$PATH" >&{REPORT_FD}; exit 127; }}
printf ok >&{REPORT_FD}; exec {REPORT_FD}>&-
exec "$@\""""


def wrapped(argv: list[str], scripts: list[str], setup: list[str], last: dict[str, str] | None = None) -> list[str]:
    """Wrap `argv` in a shell that sources `scripts`, runs the lines of `setup`, and then execs the command. `last`:
    variables that take precedence over these lines.

    Uses bash if available, since many setups contain `source`; otherwise sh.
    """
    parts = [_HEAD]
    parts += [f". {_quoted(script)}" for script in scripts]
    parts.append("set -e")
    for number, line in enumerate(setup, 1):
        parts.append(f"procguard_step={number}\n{line}")
    parts += [f"export {name}={_quoted(value)}" for name, value in (last or {}).items() if name.isidentifier()]
    parts.append(_TAIL)
    shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
    return [shell, "-c", "\n".join(parts), "procguard", *argv]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"
