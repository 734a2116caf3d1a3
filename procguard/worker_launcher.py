"""`python -m procguard.worker_launcher`, which start_worker.sh runs: one worker, with an agent in the foreground.

Owns the launcher's arguments, output and exit code; remote_agent.agent.launcher does the work.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping

from procguard import hints
from procguard.console import terminal
from procguard.console.arguments import ProgramParser
from procguard.console.language import of_environment, shown
from procguard.errors import ProcGuardError, UsageError
from procguard.tls.launcher_trust import HOW, trust_for
from remote_agent.agent.launcher import TOKEN_VARIABLE, UNTRUSTED, Launcher, LauncherError, LauncherOptions, describe
from remote_agent.agent.settings import SettingsError
from remote_agent.agent.spec_file import command_words
from remote_agent.protocol import messages, states
from remote_agent.protocol.messages import WorkerReport, WorkerSpec
from remote_agent.system import memory, paths
from remote_agent.transport.http import split_url

EPILOG = """WORKER_ID, MANAGER_URL, COMMAND and WORKING_DIR are also read from the environment; arguments win.
Ctrl-C stops the worker and the launcher. Closing the terminal leaves the worker running; the next start adopts it."""


def parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """`environ`: the defaults of options that are not given."""
    made = ProgramParser(hints.commands("start_worker.sh"), "Run one worker by hand.", EPILOG)
    made.add_argument("--worker-id", default=environ.get("WORKER_ID", ""), help=shown("unique in the whole fleet"))
    made.add_argument("--manager-url", default=environ.get("MANAGER_URL", ""), help=shown("e.g. http://10.0.0.5:5000"))
    made.add_argument(
        "--command", default=environ.get("COMMAND", ""), help=shown('e.g. "python train.py --epochs 100"')
    )
    made.add_argument(
        "--working-dir", default=environ.get("WORKING_DIR", ""), help=shown("default: the current directory")
    )
    made.add_argument(
        "--env", action="append", default=[], metavar="K=V", help=shown("for the worker; may be repeated")
    )
    made.add_argument(
        "--env-file", action="append", default=[], metavar="FILE", help=shown("of NAME=VALUE lines; repeatable")
    )
    made.add_argument("--venv", default="", metavar="DIR", help=shown("run in this Python virtual environment"))
    made.add_argument("--conda", default="", metavar="ENV", help=shown("run in this conda environment (name or path)"))
    made.add_argument(
        "--on-partition",
        choices=("keep", "fence"),
        default="keep",
        help=shown(
            "while the manager is unreachable: keep the worker running (keep), or stop it so that it can run elsewhere "
            "(fence)"
        ),
    )
    made.add_argument("--shell", action="store_true", help=shown("run the command with /bin/sh (pipes, &&)"))
    made.add_argument(
        "--token", default=environ.get(TOKEN_VARIABLE, ""), help=shown(f"enrolment token; or {TOKEN_VARIABLE}")
    )
    made.add_argument(
        "--ca",
        default="",
        metavar="FILE|sha256:…",
        help=shown("CA certificate or fingerprint of an https manager"),
    )
    made.add_argument("--replace", action="store_true", help=shown("stop another command that runs under this id"))
    made.add_argument(
        "--exit-when-done", action="store_true", help=shown("exit with the worker's exit code when it ends")
    )
    return made


def parse(argv: list[str], environ: dict[str, str], cwd: str) -> LauncherOptions:
    """Arguments, then the environment. Raises UsageError naming everything that is missing or wrong."""
    given = parser(environ).parse_args(argv)
    env, wrong = _environment(given.env)
    wrong = _missing(given) + wrong
    spec = WorkerSpec(command=given.command, shell=given.shell)
    if given.command and command_words(spec)[1]:
        wrong.append(command_words(spec)[1])
    if wrong:
        raise UsageError("; ".join(wrong), "see start_worker.sh --help")
    return LauncherOptions(
        worker_id=given.worker_id,
        manager_url=given.manager_url.rstrip("/"),
        command=given.command,
        working_dir=os.path.normpath(os.path.join(cwd, os.path.expanduser(given.working_dir or "."))),
        env=env,
        shell=given.shell,
        env_file=[os.path.join(cwd, os.path.expanduser(path)) for path in given.env_file],
        venv=os.path.join(cwd, os.path.expanduser(given.venv)) if given.venv else "",
        conda=os.path.join(cwd, os.path.expanduser(given.conda)) if "/" in given.conda else given.conda,
        on_partition=given.on_partition,
        token=given.token,
        ca=given.ca if not given.ca or ":" in given.ca else os.path.join(cwd, os.path.expanduser(given.ca)),
        replace=given.replace,
        exit_when_done=given.exit_when_done,
    )


def _missing(given: argparse.Namespace) -> list[str]:
    wrong = []
    for name, value in (
        ("--worker-id", given.worker_id),
        ("--manager-url", given.manager_url),
        ("--command", given.command),
    ):
        if not value.strip():
            wrong.append(f"{name} (or {name[2:].replace('-', '_').upper()}) is missing")
    if given.worker_id and not messages.valid_id(given.worker_id):
        wrong.append(f"worker id {given.worker_id!r}: use letters, digits, '_', '.', '-', at most 64 characters")
    try:
        split_url(given.manager_url or "http://missing")
    except ValueError:
        wrong.append(f"manager url {given.manager_url!r}: expected http://host:port")
    return wrong


def _environment(pairs: list[str]) -> tuple[dict[str, str], list[str]]:
    env, wrong = {}, []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            wrong.append(f"--env {pair!r}: expected NAME=VALUE")
        env[name] = value
    return env, wrong


def say(text: str) -> None:
    """Print one line and flush. Raises OSError if the terminal has gone."""
    worker_id, colon, rest = text.partition(": ")
    if colon and of_environment() == "zh":
        terminal.say_as_is(f"{worker_id}：{shown(rest)}")
    else:
        terminal.say(text)
    sys.stdout.flush()


def described(report: WorkerReport) -> str:
    """A worker's report as one line of text, in the language of the command."""
    if of_environment() == "en":
        return describe(report)
    from procguard.i18n.words import Words  # noqa: PLC0415 - 4 MB that most launchers do not need

    words = Words("zh")
    where = f"（pid {report.pid}，第 {report.attempt} 次启动）" if report.pid else ""
    if report.state == states.RUNNING:
        return words.state(report.state) + where
    reason = words.reason(messages.encode(report))
    line = words.state(report.state) + where + (f"：{reason}" if reason else "")
    if report.state in states.SETTLED and report.attempt:
        start = hints.commands(f"invoke start {report.worker_id}")
        line += f"；等待启动（{start}；Ctrl-C 结束启动器）"
    return line


def as_error(exc: LauncherError) -> ProcGuardError:
    """The error as other commands report it. For an untrusted manager the next step names --ca, an argument that
    remote_agent does not know."""
    return ProcGuardError(exc.message, HOW if exc.code == UNTRUSTED else exc.next_step, code=exc.code)


def main(argv: list[str] | None = None) -> int:
    environ, cwd = dict(os.environ), os.getcwd()
    memory.begin_small()
    try:
        options = parse(sys.argv[1:] if argv is None else argv, environ, cwd)
        return Launcher(options, environ, cwd, say=say, trust_for=trust_for, describe=described).run()
    except LauncherError as exc:
        _fail(str(as_error(exc)))
    except (ProcGuardError, SettingsError, paths.UnsafeDirectory) as exc:
        _fail(str(exc))
    except OSError as exc:
        path = shlex.quote(str(exc.filename or "PROCGUARD_HOME"))
        why = f"cannot use {path} ({exc.strerror or exc}); is PROCGUARD_HOME writable and the disk not full?"
        _fail(why)
    return 1


def _fail(text: str) -> None:
    terminal.say_block(f"procguard: {shown(hints.local(text))}", err=True)


if __name__ == "__main__":
    sys.exit(main())
