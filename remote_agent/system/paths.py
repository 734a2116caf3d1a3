"""The layout of files on a host, and atomic replacement of files.

Used by agent and runner. The runner must stay small, so nothing heavy is imported here: functions that need hashing or
user names import it themselves, and the runner receives complete paths. Does not interpret any file.

    <home>/releases/<sha16>/                       shared, immutable
    <home>/<fleet_id>/<host>/                      an agent's directory; a launcher's: …/launchers/<worker>/
        agent.json  known_managers.json  agent.log  assignments.json  journal.jsonl
        current -> ../../releases/<sha16>
        workers/<worker>/                          <worker> = protocol.directory_name(worker_id)
            worker_id  spec.json  base_env.json  state.json  state.reserve  events.jsonl  runner.log
            attempts/<n>.log  attempts/<n>.err  attempts/<n>.exit
    <runtime_dir>/                                 host-local: locks and sockets, never on a shared home
        agent.lock  agent.pid  <digest>.lock  <digest>.sock  <digest>.state
"""

from __future__ import annotations

import errno
import os
import stat

from remote_agent.system import lean_json

MAX_SOCKET_PATH_BYTES = 107  # sun_path has 108 bytes with its final NUL
SHARED = ("/tmp", "/var/tmp")  # noqa: S108 - owner and mode are checked
PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600


class UnsafeDirectory(Exception):
    """A directory that another user may have created or can write to; the text names it and the next step."""


# ------------------------------------------------------------------------------------------------- the home


def procguard_home() -> str:
    """PROCGUARD_HOME, or ~/.procguard; absolute."""
    return os.path.abspath(os.path.expanduser(os.environ.get("PROCGUARD_HOME") or "~/.procguard"))


def releases_dir(home: str) -> str:
    return os.path.join(home, "releases")


def agent_dir(home: str, fleet_id: str, host: str) -> str:
    return os.path.join(home, fleet_id, host)


def launcher_dir(home: str, fleet_id: str, host: str, worker_id: str) -> str:
    from remote_agent.protocol.messages import directory_name

    return os.path.join(agent_dir(home, fleet_id, host), "launchers", directory_name(worker_id))


def agent_file(agent_directory: str) -> str:
    return os.path.join(agent_directory, "agent.json")


def known_managers_file(agent_directory: str) -> str:
    """The file with managers that the agent learned from other managers, and the term of the last leader."""
    return os.path.join(agent_directory, "known_managers.json")


def agent_log(agent_directory: str) -> str:
    return os.path.join(agent_directory, "agent.log")


def assignments_file(agent_directory: str) -> str:
    return os.path.join(agent_directory, "assignments.json")


def journal_file(agent_directory: str) -> str:
    return os.path.join(agent_directory, "journal.jsonl")


def current_release(agent_directory: str) -> str:
    return os.path.join(agent_directory, "current")


def workers_dir(agent_directory: str) -> str:
    return os.path.join(agent_directory, "workers")


def worker_dirs(agent_directory: str) -> "list[str]":
    """The directories of all workers with records on this host."""
    root = workers_dir(agent_directory)
    return [os.path.join(root, name) for name in sorted(os.listdir(root))] if os.path.isdir(root) else []


def worker_dir(agent_directory: str, worker_id: str) -> str:
    from remote_agent.protocol.messages import directory_name

    return os.path.join(workers_dir(agent_directory), directory_name(worker_id))


# --------------------------------------------------------------------------------------- a worker's directory


def worker_id_file(worker_directory: str) -> str:
    return os.path.join(worker_directory, "worker_id")


def recorded_worker_id(worker_directory: str) -> str:
    """The worker id recorded in the directory; the directory's name if there is none."""
    try:
        with open(worker_id_file(worker_directory), encoding="utf-8") as file:
            return file.read(256).strip()
    except OSError:
        return os.path.basename(worker_directory)


def spec_file(worker_directory: str) -> str:
    return os.path.join(worker_directory, "spec.json")


def base_env_file(worker_directory: str) -> str:
    return os.path.join(worker_directory, "base_env.json")


def state_file(worker_directory: str) -> str:
    return os.path.join(worker_directory, "state.json")


def state_reserve(worker_directory: str) -> str:
    return os.path.join(worker_directory, "state.reserve")


def events_file(worker_directory: str) -> str:
    return os.path.join(worker_directory, "events.jsonl")


def runner_log(worker_directory: str) -> str:
    return os.path.join(worker_directory, "runner.log")


def attempts_dir(worker_directory: str) -> str:
    return os.path.join(worker_directory, "attempts")


def log_file(worker_directory: str, attempt: int, stream: str = "out") -> str:
    """The file with the output of attempt `attempt` to `stream` ("out", or "err" if stderr is separate)."""
    return os.path.join(attempts_dir(worker_directory), f"{attempt}.{'log' if stream == 'out' else 'err'}")


def exit_file(worker_directory: str, attempt: int) -> str:
    return os.path.join(attempts_dir(worker_directory), f"{attempt}.exit")


def attempts_on_disk(worker_directory: str) -> list[int]:
    """The attempts that have a file, ascending; empty without a directory."""
    try:
        names = os.listdir(attempts_dir(worker_directory))
    except FileNotFoundError:
        return []
    return sorted({int(stem) for stem in (name.partition(".")[0] for name in names) if stem.isdigit()})


# ------------------------------------------------------------------------------------------ the runtime directory


def choose_runtime_dir(home: str, fleet_id: str, host: str, launcher_worker: str = "") -> str:
    """Make and return the host-local directory for locks and sockets of one agent (record it in agent.json).

    An existing directory is preferred, because runners may be using it. If other users have taken every predictable
    name, an unpredictable one is created. XDG_RUNTIME_DIR is used only with lingering: otherwise logind removes it,
    and every lock in it, at the last log-out. Raises UnsafeDirectory if no candidate is safe.
    """
    name = runtime_name(home, fleet_id, host, launcher_worker)
    refused = []
    candidates = _runtime_candidates(os.getuid())
    for base in sorted(candidates, key=lambda base: not os.path.isdir(os.path.join(base, name))):
        path = os.path.join(base, name)
        try:
            _ensure_runtime_dir(path)
            return path
        except (OSError, UnsafeDirectory) as exc:
            refused.append(str(exc))
    for shared in SHARED:
        path = os.path.join(shared, f"procguard-{os.getuid()}-{os.urandom(8).hex()}", name)
        try:
            _ensure_runtime_dir(path)
            return path
        except (OSError, UnsafeDirectory) as exc:
            refused.append(str(exc))
    raise UnsafeDirectory("no directory for locks and sockets: " + "; ".join(refused))


def keep_runtime_dir(known: str, home: str, fleet_id: str, host: str, launcher_worker: str = "") -> str:
    """The recorded directory if it belongs exclusively to this user (created again after a reboot emptied /tmp),
    otherwise another one."""
    try:
        if known:
            _ensure_runtime_dir(known)
            return known
    except (OSError, UnsafeDirectory):
        pass
    return choose_runtime_dir(home, fleet_id, host, launcher_worker)


def _ensure_runtime_dir(path: str) -> None:
    base = os.path.dirname(path)
    if base not in SHARED:  # those in SHARED belong to the system
        ensure_private_dir(base)
    ensure_private_dir(path)


def recorded_runtime_dir(worker_directory: str) -> str:
    """The current directory of locks and sockets of this worker's agent; "" if unknown."""
    agent_directory = os.path.dirname(os.path.dirname(os.path.abspath(worker_directory)))
    try:
        config = read_json(agent_file(agent_directory))
    except (OSError, ValueError):
        return ""
    return str(config.get("runtime_dir") or "") if isinstance(config, dict) else ""


def runtime_name(home: str, fleet_id: str, host: str, launcher_worker: str = "") -> str:
    """12 hex digits naming one agent of one home: short, because socket paths end at 107 bytes."""
    from remote_agent.protocol.digests import sha256_hex

    parts = [home, fleet_id, host] + ([launcher_worker] if launcher_worker else [])
    return sha256_hex("\0".join(parts).encode())[:12]


def _runtime_candidates(uid: int) -> list[str]:
    """Candidates, best first. /run belongs to root, so that no other user can take a name there."""
    candidates = [os.path.join(shared, f"procguard-{uid}") for shared in SHARED]
    run_user = f"/run/user/{uid}"
    if _lingers(uid) and os.access(run_user, os.W_OK):
        candidates.insert(0, os.path.join(run_user, "procguard"))
    if uid == 0:
        candidates.insert(0, "/run/procguard")
    return candidates


def _lingers(uid: int) -> bool:
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return False
    return os.path.exists(os.path.join("/var/lib/systemd/linger", name))


def ensure_private_dir(path: str, make: bool = True) -> None:
    """Create `path` (one level) with mode 0700, or check that only this user can access it. Raises UnsafeDirectory
    otherwise."""
    try:
        if make:
            os.mkdir(path, PRIVATE_DIR)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        raise UnsafeDirectory(f"{path} is not a directory (it is a link or a file); remove it")
    if found.st_uid != os.getuid():
        raise UnsafeDirectory(f"{path} belongs to uid {found.st_uid}, not to uid {os.getuid()}; remove or rename it")
    if found.st_mode & stat.S_ISVTX:
        raise UnsafeDirectory(f"{path} is writable by every user; name one below it")
    if stat.S_IMODE(found.st_mode) != PRIVATE_DIR:
        os.chmod(path, PRIVATE_DIR)


def agent_lock(runtime_dir: str) -> str:
    return os.path.join(runtime_dir, "agent.lock")


def agent_pid_file(runtime_dir: str) -> str:
    return os.path.join(runtime_dir, "agent.pid")


def runner_lock(runtime_dir: str, worker_directory: str) -> str:
    return os.path.join(runtime_dir, _worker_digest(worker_directory) + ".lock")


def runtime_state(runtime_dir: str, worker_directory: str) -> str:
    return os.path.join(runtime_dir, _worker_digest(worker_directory) + ".state")


def runner_socket(runtime_dir: str, worker_directory: str) -> str:
    """The socket of this worker's runner. Raises ValueError if the path is too long for a unix socket."""
    path = os.path.join(runtime_dir, _worker_digest(worker_directory) + ".sock")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"socket path longer than {MAX_SOCKET_PATH_BYTES} bytes: {path}")
    return path


def _worker_digest(worker_directory: str) -> str:
    """The digest that ends a worker's directory name: the runner needs no hashing of its own."""
    return os.path.basename(os.path.normpath(worker_directory)).rpartition("-")[2]


def absolute(text: str, directory: str, home: str = "") -> str:
    """`text` relative to `directory`; ~ is `home`, which may be another user's."""
    if home and (text == "~" or text.startswith("~/")):
        text = home + text[1:]
    return os.path.normpath(os.path.join(directory, os.path.expanduser(text)))


# ------------------------------------------------------------------------------------------------------ files


def write_atomic(path: str, data: bytes, mode: int = PRIVATE_FILE, durable: bool = False) -> None:
    """Replace `path` by `data`: a reader sees the old or the new content, never a part.

    `durable`: also survives a power loss (fsync of the file and its directory), which takes longer.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    if durable:
        sync_directory(os.path.dirname(path) or ".")


def write_json(path: str, value: object, mode: int = PRIVATE_FILE, durable: bool = False) -> None:
    write_atomic(path, lean_json.dumps(value).encode() + b"\n", mode, durable)


def read_json(path: str) -> object:
    """The parsed file, or None if it does not exist. Raises ValueError naming the file if it is not JSON."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return None
    try:
        return lean_json.loads(content)
    except ValueError as exc:
        raise ValueError(f"{path} is not JSON: {exc}") from exc


def sync_file(path: str) -> None:
    """Make the content of an already written file durable; a missing file is no error."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Make renames inside `path` durable; no effect on file systems that cannot sync a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
