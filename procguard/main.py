"""python -m procguard.main: patches gevent, parses arguments, starts the manager (or the demo, or controls a daemon).

The same as ./start_manager.sh and `invoke manager`. Exit codes: 0 success, 1 usage error, 3 --status: not running.
"""

from __future__ import annotations

if __name__ == "__main__":  # before any other import, and not in a process that only imports this module
    import gc
    import sys
    from importlib.util import find_spec

    gc.disable()  # imports create no garbage; the manager schedules collections itself (runtime/gc_policy.py)
    if find_spec("gevent") is None:
        from procguard.manager.bootstrap import exec_script

        exec_script("start_manager.sh", sys.argv[1:], "gevent")
    if "--demo" not in sys.argv:  # the demo only starts and watches other programs
        from gevent import monkey

        monkey.patch_all()

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from procguard import __version__, hints
from procguard.cli.program import process
from procguard.console.arguments import ProgramParser
from procguard.console.language import shown
from procguard.console.terminal import cleaned, say
from procguard.errors import ProcGuardError, UsageError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
ABOUT = "ProcGuard's manager: the API for agents and operators, the portal, monitoring and recovery."
EPILOG = """\
examples:
  ./start_manager.sh --config configs/procguard_config.yaml
  ./start_manager.sh --config configs/procguard_config.yaml --daemon
  ./start_manager.sh --set web.port=5055 --set monitoring.heartbeat_timeout=20
  ./start_manager.sh --demo
"""


def parser() -> ProgramParser:
    made = ProgramParser(hints.commands("start_manager.sh"), ABOUT, hints.commands(EPILOG))
    made.add_argument(
        "--config",
        metavar="FILE",
        help=shown("configuration file (default: built-in values, and the state in ~/.local/share/procguard)"),
    )
    made.add_argument("--host", help=shown("address to listen on (web.host)"))
    made.add_argument("--port", type=_port, help=shown("port to listen on (web.port)"))
    made.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help=shown("set a configuration value, e.g. web.port=5055; repeatable"),
    )
    mode = made.add_mutually_exclusive_group()
    mode.add_argument("--daemon", action="store_true", help=shown("run in the background"))
    mode.add_argument("--status", action="store_true", help=shown("show whether a manager is running"))
    mode.add_argument("--stop", action="store_true", help=shown("stop the manager; workers keep running"))
    mode.add_argument(
        "--install-service",
        action="store_true",
        help=shown("start at boot and restart on failure (systemd user unit, or cron)"),
    )
    mode.add_argument("--remove-service", action="store_true", help=shown("undo --install-service"))
    mode.add_argument(
        "--demo", action="store_true", help=shown("run a demo: a manager, this machine as a host, three workers")
    )
    made.add_argument(
        "--managers",
        type=int,
        metavar="N",
        help=shown("with --demo: N managers that share a PostgreSQL server, which the demo starts"),
    )
    made.add_argument("--version", action="version", version=f"ProcGuard {__version__}", help=shown("show the version"))
    return made


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535; 0: any free port)")
    return int(text)


def run(argv: Sequence[str]) -> int:
    """Run the program and return its exit code. Raises ProcGuardError."""
    arguments = parser().parse_args(argv)
    if arguments.managers is not None and not arguments.demo:
        raise UsageError("--managers is an option of --demo", "for a fleet of your own: docs/several_managers.md")
    if arguments.demo:
        from procguard.manager import demo

        return demo.run(arguments.port, arguments.host, 1 if arguments.managers is None else arguments.managers)
    from procguard.config import schema, state_paths
    from procguard.manager import daemon

    given = arguments.set if arguments.config is not None else state_paths.without_configuration(arguments.set)
    settings = schema.load(arguments.config, given, arguments.host, arguments.port)
    if arguments.status:
        return daemon.status(settings)
    if arguments.stop:
        return daemon.stop(settings)
    if arguments.install_service or arguments.remove_service:
        from procguard.manager import service

        words = [word for word in argv if word != "--install-service"]
        if arguments.config is None:  # the service's environment may select another path
            state_options = [value for value in given if value not in arguments.set]
            words = [word for value in state_options for word in ("--set", value)] + words
        say(service.remove(settings) if arguments.remove_service else service.install(settings, words))
        return 0
    note = state_paths.note_of_another(settings.state.state_file)
    if note:
        say(note, err=True)
    if arguments.daemon:
        return daemon.start(argv, settings)
    lock = daemon.lock_state(settings)
    from procguard.manager import app

    if settings.state.database:
        from procguard.manager import several

        app.set_up_logging(settings)
        return several.serve(settings, lock, argv)

    app.set_up_logging(settings)
    return app.Manager(settings, lock).run()


def main(argv: Sequence[str] | None = None) -> int:
    try:
        with cleaned():
            return run(sys.argv[1:] if argv is None else argv)
    except ProcGuardError as exc:
        process.say_error(exc)
        return exc.exit_code
    except OSError as exc:
        if exc.errno not in DISK_ERRORS:
            raise
        where = f": {exc.filename}" if exc.filename else f", for example {os.getcwd()} or the state's folder"
        say(
            f"procguard: cannot write to the disk ({exc.strerror}){where}; free space or repair it, then try again",
            err=True,
        )
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
