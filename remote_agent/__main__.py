"""The agent's command line on the host: run, status, tail. All commands except `run` work without a manager."""

from __future__ import annotations

import os
import signal
import sys

from remote_agent.protocol.hints import Optional
from remote_agent.system import paths


def main(argv: Optional[list[str]] = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words[:2] == ["run", "--dir"] and len(words) == 3:  # the usual start, without the memory for argparse
        return run_agent(os.path.abspath(words[2]))
    return _command_line(words)


EPILOG = """On a deployed host: cd ~/.procguard/FLEET/HOST/current && python3 -m remote_agent status
Neither status nor tail needs the manager, or changes anything."""


def _command_line(words: list[str]) -> int:
    import argparse

    from remote_agent.agent import local_cli

    parser = argparse.ArgumentParser(
        prog="python3 -m remote_agent",
        description="ProcGuard's agent on this host.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    status = commands.add_parser("status", help="show the agents and workers of this host")
    status.add_argument("--dir", help="one agent's directory (default: all below PROCGUARD_HOME or ~/.procguard)")
    tail = commands.add_parser("tail", help="print the end of a worker's log, e.g. `tail worker1 -f`")
    tail.add_argument("worker", help="worker id")
    tail.add_argument("--dir", help="as for status")
    tail.add_argument("-n", "--lines", type=int, default=50, help="how many lines (default 50)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C, across restarts")
    tail.add_argument("--attempt", type=int, default=0, help="an earlier start of the worker (default: the newest)")
    tail.add_argument("--err", action="store_true", help="the error log of a worker with `stderr: separate`")
    run = commands.add_parser("run", help="be the agent of a directory, in the foreground (the installer uses this)")
    run.add_argument("--dir", required=True, help="the agent's directory, which holds agent.json")
    arguments = parser.parse_args(words)
    try:
        if arguments.command == "run":
            return run_agent(os.path.abspath(arguments.dir))
        if arguments.command == "status":
            return local_cli.show_status(local_cli.agent_dirs(arguments.dir))
        if arguments.command == "tail":
            return local_cli.show_tail(
                arguments.worker,
                local_cli.agent_dirs(arguments.dir),
                attempt=arguments.attempt,
                stream="err" if arguments.err else "out",
                lines=max(0, arguments.lines),
                follow=arguments.follow,
            )
    except local_cli.Trouble as exc:
        return _fail(str(exc))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    parser.print_help()
    return 1


def run_agent(agent_dir: str) -> int:
    """Run until SIGTERM or SIGINT; runners and workers continue to run. Exit code 1 if it cannot be the agent of
    `agent_dir`."""
    from remote_agent.agent import settings as settings_module
    from remote_agent.system import memory

    memory.begin_small()
    from remote_agent.agent.agent import Agent
    from remote_agent.agent.wiring import AgentParts

    try:
        settings = settings_module.load(agent_dir)
        settings_module.keep_runtime_dir(agent_dir, settings)
        lock = settings_module.AgentLock(settings.runtime_dir)
        holder = lock.take()
    except (settings_module.SettingsError, OSError) as exc:
        return _fail(str(exc))
    if holder is not None:
        return _fail(f"another agent of {agent_dir} runs already ({holder}); nothing was started")
    log = settings_module.AgentLog(paths.agent_log(agent_dir))
    base_env = settings.base_env or dict(os.environ)
    agent = Agent(AgentParts(settings, agent_dir, log, default_dir=os.path.expanduser("~"), base_env=base_env))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.leave())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    memory.settle()
    try:
        agent.run()
    finally:
        lock.release()
    return 0


def _fail(message: str) -> int:
    print(f"procguard: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
