"""Removes an agent from this host: stops it and its workers, and deletes their files. Launchers are kept."""

from __future__ import annotations

import contextlib
import os
import time

from remote_agent.install import release
from remote_agent.install.release import InstallError
from remote_agent.protocol.hints import TYPE_CHECKING, Any, Dict, List
from remote_agent.system import paths
from remote_agent.system.locks import lock_held

if TYPE_CHECKING:
    from remote_agent.install.installer import Installer

RUNNER_MARGIN_S = 8.0  # added to a worker's own stop_grace_s

Json = Dict[str, Any]


def uninstall(installer: Installer) -> Json:
    """Stop the agent and its workers and remove all their files. Launchers started by hand are kept."""
    if not os.path.isdir(installer.dir):
        return {"ok": True, "changed": False, "changes": [], "agent_dir": installer.dir}
    with installer.locked():
        config = installer.config()
        installer.keeper().remove()
        installer.stop_agent(config)
        left = _end_runners(installer.dir, config.get("runtime_dir", ""))
        if left:
            raise InstallError(
                "workers_left", f"{installer.host}: still running: {', '.join(left)}", "stop them, then undeploy again"
            )
        if config.get("runtime_dir"):
            _remove(config["runtime_dir"])
            _rmdir(os.path.dirname(config["runtime_dir"]))
        for name in os.listdir(installer.dir):
            if name != "launchers":
                _remove(os.path.join(installer.dir, name))
        _rmdir(installer.dir)
        _rmdir(os.path.dirname(installer.dir))
    home_gone = release.remove_if_unused(installer.home)
    return {"ok": True, "changed": True, "changes": ["removed"], "agent_dir": installer.dir, "home_gone": home_gone}


def _end_runners(agent_dir: str, runtime_dir: str) -> "List[str]":
    """Request each live runner to stop its process and exit. Returns the ids of the workers that did not end within
    their grace period."""
    from remote_agent.runner import control

    waiting: Dict[str, float] = {}
    for directory in paths.worker_dirs(agent_dir) if runtime_dir else []:
        if not lock_held(paths.runner_lock(runtime_dir, directory)):
            continue
        spec = paths.read_json(paths.spec_file(directory))
        if isinstance(spec, dict):
            paths.write_json(paths.spec_file(directory), dict(spec, desired="removed"))
            grace_s = float((spec.get("spec") or {}).get("stop_grace_s", 10.0))
            with contextlib.suppress(OSError):  # it has ended meanwhile
                link = control.RunnerLink.connect(paths.runner_socket(runtime_dir, directory))
                link.assign()
                link.close()
            waiting[directory] = time.monotonic() + grace_s + RUNNER_MARGIN_S
    left = []
    for directory, deadline in waiting.items():
        while lock_held(paths.runner_lock(runtime_dir, directory)):
            if time.monotonic() > deadline:
                left.append(paths.recorded_worker_id(directory))
                break
            time.sleep(0.02)
    return left


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _rmdir(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)
