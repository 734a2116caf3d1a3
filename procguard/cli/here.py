"""Commands for this machine: manager, demo, worker, playbooks, version.

The first three replace this process with another program: gevent must patch before other imports, and a launcher must
not depend on the contents of the working directory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys

from procguard import __version__, resources
from procguard.cli.program.command import operator_task
from procguard.console.terminal import say
from procguard.errors import UsageError


@operator_task(
    help={
        "config": "configuration file",
        "host": "address to listen on",
        "port": "port to listen on",
        "set_": "set a configuration value, e.g. web.port=5055; repeatable",
        "daemon": "run in the background",
        "status": "show whether a manager is running",
        "stop": "stop the manager; workers keep running",
        "install_service": "start at boot and restart on failure (systemd user unit, or cron)",
        "remove_service": "undo --install-service",
        "demo": "run a demo: a manager, this machine as a host, three workers",
    },
)
def manager(
    config: str = "",
    host: str = "",
    port: str = "",
    set_: list[str] | tuple[str, ...] = (),
    daemon: bool = False,
    status: bool = False,
    stop: bool = False,
    install_service: bool = False,
    remove_service: bool = False,
    demo: bool = False,
) -> None:
    """Run the manager: API, portal, monitoring, recovery. Example: invoke manager --daemon"""
    words = []
    for flag, value in (("--config", config), ("--host", host), ("--port", port)):
        words += [flag, value] if value else []
    for setting in set_:
        words += ["--set", setting]
    chosen = (
        ("--daemon", daemon),
        ("--status", status),
        ("--stop", stop),
        ("--demo", demo),
        ("--install-service", install_service),
        ("--remove-service", remove_service),
    )
    _become("-P", "procguard.main", *words, *(flag for flag, wanted in chosen if wanted))


@operator_task(
    help={
        "host": "address to listen on",
        "port": "port to listen on",
        "managers": "number of managers; several share a PostgreSQL server that the demo starts",
    }
)
def demo(host: str = "", port: str = "", managers: int = 1) -> None:
    """Try ProcGuard on this machine: a manager and three workers, until Ctrl-C. Example: invoke demo"""
    given = [word for flag, value in (("--host", host), ("--port", port)) if value for word in (flag, value)]
    given += ["--managers", str(managers)] if managers != 1 else []
    _become("-P", "procguard.main", "--demo", *given)


def worker(words: list[str]) -> None:
    """Run one worker, as start_worker.sh does. Takes the launcher's options."""
    _become("-I", "procguard.worker_launcher", *words)


def _become(isolation: str, module: str, *words: str) -> None:
    """Replace this process with `python ISOLATION -m module words`. `isolation`: -P: do not import from the working
    directory; -I: also ignore the variables PYTHON* and the user's site-packages."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, isolation, "-m", module, *words])  # noqa: S606


@operator_task(("folder",), help={"folder": "a new folder, or one without these files"})
def playbooks(folder: str) -> None:
    """Write the Ansible playbooks into a folder. Example: invoke playbooks ./playbooks

    The playbooks do what deploy, upgrade, rollback and undeploy do, over Ansible's own connections. They contain the
    path of the Python that runs this command; write them again after installing ProcGuard in another place.
    """
    source = resources.path("playbooks")
    target = os.path.abspath(folder)
    for name in sorted(os.listdir(source)):
        if os.path.exists(os.path.join(target, name)):
            raise UsageError(f"{os.path.join(target, name)} already exists", "choose a new folder, or remove it")
    try:
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        path = os.path.join(target, "vars.yaml")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        with open(path, "w", encoding="utf-8") as file:
            file.write(_with_values(text))
    except OSError as exc:
        raise UsageError(f"{exc.filename or target}: {exc.strerror}", "choose a writable folder") from exc
    say(f"{folder}: written; ansible-playbook -i inventory/prod.yaml {os.path.join(folder, 'deploy.yaml')}")


def _with_values(text: str) -> str:
    values = {"procguard_controller": sys.executable, "procguard_import_from": resources.import_root()}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        name = line.partition(":")[0]
        if name in values:
            lines[number] = f"{name}: {json.dumps(values[name])}"  # a JSON string is also a YAML string
    return "\n".join(lines) + "\n"


@operator_task()
def version() -> None:
    """Show the release, the Python version and their paths. Example: invoke version"""
    say(f"ProcGuard {__version__}")
    say(f"  Python {sys.version.split()[0]} ({sys.executable})")
    say(f"  {'installed in' if resources.is_installed() else 'checkout'} {resources.import_root()}")
