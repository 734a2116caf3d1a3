"""Runs the agent's own tests on Debian's pypy3, a Python 3.9, because hosts may have other interpreters than CPython.

Owns the list of these tests and .venv-pypy, an environment with a pytest for that interpreter (requirements/pypy.lock).
Of each file, only tests that measure CPython's memory or its list of modules are left out.

    python -m scripts.pypy [arguments for pytest]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv-pypy")
LOCK = os.path.join(ROOT, "requirements", "pypy.lock")

# Folder of tests/unit -> test files, by name.
FILES = {
    "fleet/gangs": "gang_member",
    "fleet/store": "journal",
    "fleet/workers": "transitions",
    "remote_agent/agent": "agent agent_lease by_hand commands worker",
    "remote_agent/health": "evidence health",
    "remote_agent/logs": "log_disk log_times logship",
    "remote_agent/runner": "control env_file lease restart runner runner_lives runner_spec tree_endings",
    "remote_agent/system": "free_port paths process_tree",
    "remote_agent/telemetry": "agent_gpus gpu_allocator gpus suspicion usage",
    "remote_agent/transport": "http_wire link",
}
CPYTHON_ONLY = (
    "remote_agent/system/test_paths.py::test_the_runner_needs_no_heavy_module",
    "remote_agent/runner/test_runner_spec.py::test_runner_stays_small_whatever_the_specification_says",
    "remote_agent/runner/test_lease.py::test_runner_of_a_fenced_worker_is_as_small_as_any",
    "remote_agent/telemetry/test_usage.py::test_memory_shared_by_a_fork_is_counted_once_in_pss",
    # Jobs of this interpreter are named "python".
    "remote_agent/health/test_evidence.py::test_it_reports_every_thread_the_last_lines_and_the_gpus",
    "remote_agent/health/test_evidence.py::test_py_spy_of_the_job_s_path_is_asked_and_ended_in_time",
)


def main(arguments: list[str]) -> int:
    pypy = shutil.which("pypy3")
    if pypy is None:
        sys.exit("pypy: no pypy3 on PATH; on Debian and Ubuntu: apt-get install pypy3 pypy3-venv")
    python = os.path.join(VENV, "bin", "pypy3")
    if not _has_pytest(python):
        subprocess.run([pypy, "-m", "venv", "--clear", VENV], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        subprocess.run([*install, "-r", LOCK], check=True)
    left_out = [f"--deselect=tests/unit/{one}" for one in CPYTHON_ONLY]
    words = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *left_out, *files(), *arguments]
    return subprocess.run(words, cwd=ROOT, check=False).returncode


def files() -> list[str]:
    return [f"tests/unit/{folder}/test_{name}.py" for folder, names in FILES.items() for name in names.split()]


def _has_pytest(python: str) -> bool:
    if not os.path.exists(python):
        return False
    code = "import hypothesis, pytest, pytest_timeout"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
