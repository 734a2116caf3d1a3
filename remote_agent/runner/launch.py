"""Starts the child of one attempt: new session, append-only output, exec. Explains failures to start.

Knows argv, directory, environment and log files; nothing of states, policies or the control socket. posix_spawn
takes 0.3 ms, a fork of this process 2 to 3 (it copies page tables and then page after page). PyPy has no
posix_spawn and forks; the success of exec is then read from a pipe that closes on exec. Drawback of posix_spawn: a
working directory or command on a hung file system blocks the runner, as would its own files on that file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from remote_agent.protocol import reasons
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.system import lean_json, processes
from remote_agent.system.signals import signal

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from remote_agent.runner.terminal import Terminal

OOM_SCORE_FILE = "/proc/self/oom_score_adj"
OOM_SCORE_ADJ = 500  # when memory runs out, the kernel kills the job rather than its runner
EXIT_NOT_STARTED = 127
MAX_FAILURE_BYTES = 4096
ALL_SIGNALS = (*range(1, 32), *range(34, 65))  # 32 and 33 are reserved by the C library
# Signals ignored by the runner or by Python get their default action in the child.
DEFAULTED = (signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


F_DUPFD_CLOEXEC = 1030  # pypy's fcntl lacks the name
# The shell that runs before the command (environment.wrapped) reports its progress on this descriptor.
REPORT_FD = 7
_TARGETS = (0, 1, 2, REPORT_FD)
EXECUTED, HOPELESS, FAILED = "executed", "hopeless", "failed"


class Launch:
    """The process to start. `argv` is ready to exec; `cwd` is absolute or "" (the caller's); `err_path` "" merges
    stderr into stdout.

    `setup`: argv is a shell that runs these lines, and scripts, before `command`. `umask` -1: inherited.
    `run_as`: {"uid", "gid", "groups", "name"}; `rlimits`: [["nofile", "RLIMIT_NOFILE", 4096], …], -1 is unlimited.
    `dies_with_runner`: the kernel kills it when this process ends for any reason. `tty`: (rows, columns) of a terminal
    that replaces the three streams; its output goes to `out_path`. `terminal`: set once it is started. `hangup_ends`:
    SIGHUP has its default action; otherwise it is ignored, as under nohup, because the kernel sends it to the rest of a
    job whose first process, the leader of the terminal's session, has ended.
    """

    def __init__(self, argv: list[str], cwd: str, env: dict[str, str], out_path: str, err_path: str = "") -> None:
        self.argv = argv
        self.cwd = cwd
        self.env = env
        self.out_path = out_path
        self.err_path = err_path
        self.command = argv
        self.setup: list[str] | None = None
        self.umask = -1
        self.run_as: dict[str, object] | None = None
        self.rlimits: list[list[object]] = []
        self.dies_with_runner = False
        self.tty: tuple[int, int] | None = None
        self.terminal: Terminal | None = None
        self.hangup_ends = True

    def defaulted(self) -> tuple[int, ...]:
        """The signals that are reset to their default action in the child."""
        return DEFAULTED if self.hangup_ends else tuple(number for number in DEFAULTED if number != signal.SIGHUP)


class NotStarted(Exception):
    """Retrying cannot help: the command, directory or environment is wrong, as the reason explains."""


def start(launch: Launch) -> tuple[int, int]:
    """Returns (pid, descriptor). The descriptor becomes readable when exec has succeeded (end of file) or failed (see
    `word`); -1: it has succeeded already. Raises NotStarted, or OSError if the log cannot be opened or the process not
    be created.
    """
    opened = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    before = processes.mark_descendants(launch.env.get(processes.COOKIE_VARIABLE, ""))
    try:
        opened.append(_open_log(launch.out_path))
        opened.append(_open_log(launch.err_path) if launch.err_path else opened[1])
        if launch.tty is None:
            return _start(launch, opened)
        return _start_at_terminal(launch, opened)
    finally:
        processes.unmark(before)
        for descriptor in set(opened):
            os.close(descriptor)


def _start(launch: Launch, opened: list[int]) -> tuple[int, int]:
    if launch.run_as or launch.rlimits or launch.dies_with_runner or not hasattr(os, "posix_spawn"):
        return _fork(launch, opened)
    if launch.setup is None:
        return _spawn(launch, opened), -1
    readable, writable = _report_pipe()
    opened.append(writable)
    try:
        return _spawn(launch, opened), readable
    except BaseException:
        os.close(readable)
        raise


def _start_at_terminal(launch: Launch, opened: list[int]) -> tuple[int, int]:
    from remote_agent.runner.terminal import Terminal

    assert launch.tty
    uid = int(str(launch.run_as["uid"])) if launch.run_as else -1
    cookie = launch.env.get(processes.COOKIE_VARIABLE, "")
    launch.terminal = Terminal(launch.tty[0], launch.tty[1], opened[1], cookie, uid)
    try:
        started = _start(launch, opened)
    except BaseException:
        launch.terminal.close()
        launch.terminal = None
        raise
    launch.terminal.started()
    return started


def _open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _report_pipe() -> tuple[int, int]:
    """A pipe whose ends close on exec. Neither end is REPORT_FD, because dup2 to the same descriptor would not clear
    close-on-exec."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    try:
        return readable, fcntl.fcntl(writable, F_DUPFD_CLOEXEC, REPORT_FD + 1)
    finally:
        os.close(writable)


def _spawn(launch: Launch, streams: list[int]) -> int:
    """Attributes that posix_spawn cannot set are set temporarily in this process and inherited: directory, umask, OOM
    score.

    `streams`: for descriptors 0, 1, 2 and, if there is a fourth, REPORT_FD.
    """
    oom_score = _raise_oom_score()
    umask = os.umask(launch.umask) if launch.umask >= 0 else -1
    try:
        try:
            if launch.cwd:
                os.chdir(launch.cwd)
        except OSError as exc:
            raise NotStarted(explain("cwd", exc.errno or 0, "", launch)) from exc
        try:
            return os.posix_spawn(
                locate(launch),
                launch.argv,
                launch.env,
                file_actions=_file_actions(launch, streams),
                setsid=True,
                setsigmask=(),
                setsigdef=launch.defaulted(),
            )
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                raise
            raise NotStarted(explain("exec", exc.errno or 0, _name(exc), launch)) from exc
        except ValueError as exc:  # an invalid NUL or "="
            raise NotStarted(explain("setup", 0, str(exc), launch)) from exc
    finally:
        os.chdir("/")
        _restore_oom_score(oom_score)
        if umask >= 0:
            os.umask(umask)


def _file_actions(launch: Launch, streams: list[int]) -> list[tuple[int, ...]]:
    """The file actions are performed after setsid, so that opening a terminal makes it the controlling terminal."""
    actions: list[tuple[int, ...]] = [
        (os.POSIX_SPAWN_DUP2, stream, target) for target, stream in zip(_TARGETS, streams)
    ]
    if launch.terminal:
        path: int = launch.terminal.path  # type: ignore[assignment]
        opens: tuple[int, ...] = (os.POSIX_SPAWN_OPEN, 0, path, os.O_RDWR, 0)
        actions[:3] = [opens, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    return actions


def _fork(launch: Launch, streams: list[int]) -> tuple[int, int]:
    readable, writable = _report_pipe()
    runner = os.getpid()
    # Blocked until the child has default handlers: a stop signal sent in between waits instead of being lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _become(launch, streams, writable, runner)  # never returns
        return pid, readable
    except OSError:
        os.close(readable)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.close(writable)


def _become(launch: Launch, streams: list[int], report: int, runner: int) -> None:
    stage = "setup"
    try:
        signal.set_wakeup_fd(-1)
        for number in launch.defaulted():
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        if launch.terminal:
            streams = [os.open(launch.terminal.path, os.O_RDWR | os.O_CLOEXEC)] * 3
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        if launch.setup is not None:
            os.dup2(report, REPORT_FD)
        _raise_oom_score()
        _limit(launch)
        stage = "user"
        _become_user(launch)
        if launch.dies_with_runner:
            processes.die_with_parent(runner)  # a change of user would reset it
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        stage = "cwd"
        if launch.cwd:
            os.chdir(launch.cwd)
        stage = "exec"
        os.execve(locate(launch), launch.argv, launch.env)  # noqa: S606 - a list, never a shell line
    except OSError as exc:
        # The message is created here, with the rights of the new user: the runner may read files that this user may
        # not.
        _report(report, explain(stage, exc.errno or 0, _name(exc), launch))
    except BaseException as exc:  # no exception may propagate into the runner's own code after a fork
        _report(report, explain(stage, 0, str(exc), launch, reasons.of_exception(exc)))
    finally:
        os._exit(EXIT_NOT_STARTED)


def _report(descriptor: int, why: Reason) -> None:
    data = f"not {lean_json.dumps(why.plain())}".encode(errors="replace")
    os.write(
        descriptor,
        data if len(data) <= MAX_FAILURE_BYTES else f"not {why}".encode(errors="replace")[:MAX_FAILURE_BYTES],
    )


def _limit(launch: Launch) -> None:
    """Set before the change of user, because only root may raise limits."""
    if launch.umask >= 0:
        os.umask(launch.umask)
    if not launch.rlimits:
        return
    import resource  # imported in the child only: the runner never loads it

    for name, constant, value in launch.rlimits:
        kind, wanted = getattr(resource, str(constant)), int(str(value))
        try:
            resource.setrlimit(kind, (wanted, wanted))
        except (ValueError, OSError) as exc:
            highest = resource.getrlimit(kind)[1]
            shown = "unlimited" if wanted < 0 else wanted
            raise ValueError(because("start.limit", name=str(name), value=shown, highest=highest)) from exc


def _become_user(launch: Launch) -> None:
    if launch.run_as:
        from remote_agent.system import identity

        identity.become(launch.run_as)


def _name(exc: OSError) -> str:
    return exc.filename if isinstance(exc.filename, str) else ""


def _raise_oom_score() -> bytes:
    """Returns the previous score, or b"" if it is unchanged."""
    try:
        before = _read_oom_score()
        if int(before) >= OOM_SCORE_ADJ:
            return b""
        _write_oom_score(str(OOM_SCORE_ADJ).encode())
        return before
    except (OSError, ValueError):
        return b""


def _restore_oom_score(score: bytes) -> None:
    """Without privileges, the score can be lowered to the value at process start."""
    if score:
        try:
            _write_oom_score(score)
        except OSError:
            pass


def _read_oom_score() -> bytes:
    descriptor = os.open(OOM_SCORE_FILE, os.O_RDONLY | os.O_CLOEXEC)  # open() costs three more system calls
    try:
        return os.read(descriptor, 32)
    finally:
        os.close(descriptor)


def _write_oom_score(score: bytes) -> None:
    descriptor = os.open(OOM_SCORE_FILE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, score)
    finally:
        os.close(descriptor)


def locate(launch: Launch) -> str:
    """The command's file, searched in the child's own PATH. Raises OSError with the most informative error and file."""
    command = launch.argv[0]
    if "/" in command:
        return command
    found: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command)
    for directory in search_path(launch.env):
        path = os.path.join(directory, command)
        if not os.path.isfile(path):
            continue
        if os.access(path, os.X_OK):
            return path
        found = PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    raise found


def search_path(env: dict[str, str]) -> list[str]:
    return (env.get("PATH") or os.defpath).split(os.pathsep)


# ---------------------------------------------------------------------------------------------- messages


def word(descriptor: int, launch: Launch) -> tuple[str, Reason] | None:
    """The child's report before exec; None: none yet.

    (EXECUTED, ""): exec has succeeded. (HOPELESS, why): retrying cannot help. (FAILED, why): a line before the command
    failed, and retrying may help.
    """
    try:
        data = os.read(descriptor, MAX_FAILURE_BYTES)
    except BlockingIOError:
        return None
    if not data:
        return (EXECUTED, NONE) if launch.setup is None else (FAILED, because("start.setup_ended"))
    if data == b"ok":
        return EXECUTED, NONE
    # A shell that runs the worker's own lines may have written anything here.
    stage, _, rest = data.decode(errors="replace").replace("\0", "").partition(" ")
    if stage == "path":
        return HOPELESS, _explain_missing(rest, launch)
    if stage == "line":
        code, _, number = rest.partition(" ")
        return FAILED, explain_line(code, number, launch)
    if stage == "not":
        return HOPELESS, _reported(rest)
    return HOPELESS, because("start.not_set_up", detail=rest[:200])


def _reported(text: str) -> Reason:
    try:
        value = lean_json.loads(text)
    except ValueError:
        return Reason(text)
    if not isinstance(value, dict):
        return Reason(text)
    accepted = reasons.accepted("", value.get("code"), value.get("params"))
    return reasons.because_of(accepted.code, accepted.params) if accepted else Reason(text)


def _explain_missing(path: str, launch: Launch) -> Reason:
    """The shell before the command did not find it in the PATH set by the setup lines."""
    if launch.run_as:
        from remote_agent.system import identity

        try:
            found = identity.ask(launch.run_as, lambda: reasons.fields("reason", _search(path, launch)))
            return reasons.read(found if isinstance(found, dict) else {})
        except (ValueError, OSError):
            return because("start.not_in_path", command=launch.command[0], path=path[:1000])
    return _search(path, launch)


def _search(path: str, launch: Launch) -> Reason:
    wanted = Launch(launch.command, launch.cwd, {**launch.env, "PATH": path}, "")
    try:
        locate(wanted)
    except OSError as exc:
        return explain("exec", exc.errno or 0, _name(exc), wanted)
    number = errno.EACCES if os.path.exists(os.path.join(launch.cwd, launch.command[0])) else errno.ENOENT
    return explain("exec", number, launch.command[0], wanted)


def explain_line(code: str, number: str, launch: Launch) -> Reason:
    """The message for a shell that ended with exit code `code` in line `number` of `setup`; 0: in an activation script
    of conda."""
    lines = launch.setup or []
    if not number.isdecimal() or not 0 < int(number) <= len(lines):
        return because("start.conda_failed", code=code[:20])
    line = lines[int(number) - 1].strip().split("\n")[0]
    return because("start.setup_failed", line=int(number), code=code[:20], text=line[:200])


def explain(stage: str, number: int, detail: str, launch: Launch, why: Reason = NONE) -> Reason:
    """`detail`: the examined file (stage exec), or the error (stage setup)."""
    if stage == "cwd":
        return _explain_cwd(number, launch.cwd)
    if stage == "exec":
        return _explain_exec(number, detail, launch)
    if stage == "user" and launch.run_as:
        return because("start.user", user=str(launch.run_as.get("name")), error=os.strerror(number))
    return because("start.not_set_up", detail=why or detail or os.strerror(number))


def check_directory(cwd: str) -> None:
    """Raise NotStarted if it cannot be used as a working directory."""
    try:
        if not stat.S_ISDIR(os.stat(cwd).st_mode):
            raise NotStarted(_explain_cwd(errno.ENOTDIR, cwd))
    except OSError as exc:
        raise NotStarted(_explain_cwd(exc.errno or 0, cwd)) from exc


def _explain_cwd(number: int, cwd: str) -> Reason:
    if number == errno.ENOENT:
        return because("start.cwd_missing", path=cwd)
    if number == errno.ENOTDIR:
        return because("start.cwd_no_directory", path=cwd)
    if number == errno.EACCES:
        return because("start.cwd_forbidden", path=cwd)
    return because("start.cwd_error", path=cwd, error=os.strerror(number))


def _explain_exec(number: int, found: str, launch: Launch) -> Reason:
    command = launch.argv[0]
    path = os.path.join(launch.cwd, found or command)
    if number == errno.ENOENT and os.path.exists(path) and "/" in (found or command):
        return because("start.no_interpreter", path=path, line=_first_line(path))
    if number == errno.ENOENT and "/" not in command:
        return because("start.not_in_path", command=command, path=":".join(search_path(launch.env))[:1000])
    if number in (errno.ENOENT, errno.ENOTDIR):
        return because("start.not_found", path=path)
    if number == errno.EACCES and os.path.isdir(path):
        return because("start.is_directory", path=path)
    if number == errno.EACCES:
        return because("start.not_executable", path=path)
    if number == errno.ENOEXEC:
        return because("start.no_program", path=path)
    if number == errno.E2BIG:
        return because("start.too_long", command=command[:200])
    return because("start.exec_error", command=command[:200], error=os.strerror(number))


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.readline(200).decode(errors="replace").strip()
    except OSError:
        return "(unreadable)"
