"""The developer's tasks: check, test, lock, release. tasks.py adds them to the operator's.

    invoke check        format, lint, types, imports, security, the agent's Python 3.9, unit tests; under two minutes
    invoke test         ./run_tests.sh
    invoke docs         the generated pages: configuration, worker, routes, commands
    invoke freeze       tests/golden/frozen: the interface of the next release; run docs first
    invoke lock         requirements/*.lock from pyproject.toml
    invoke swarm        scripts/swarm: simulated agents against the manager on this machine
    invoke bench NAME   scripts/bench/NAME.py: ProcGuard beside its anchor, a table and build/bench/NAME.json
    invoke web          bundles the portal into build/web, as in a wheel; installs esbuild first (npm)
    invoke release      wheel, sdist, SBOM and hashes into dist/
    invoke fuzz         scripts/fuzz: coverage-guided, 60 s for each target; seeds and findings in tests/corpus
    invoke chaos        the long forms of docs/reliability.md's scenarios, a table and build/chaos/NN.json

Also runs by itself, for run_tests.sh:   python scripts/dev_tasks.py static|check|lock
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import scratch
from invoke import Collection, Context, task

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.path.join(ROOT, ".venv", "bin")


def _tool(name: str) -> list[str]:
    """The command that runs a tool of .venv by its module, which also works after a checkout was moved, and if its path
    contains spaces."""
    modules = {"lint-imports": ["-c", "from importlinter.cli import lint_imports_command as main; main()"]}
    return [sys.executable, *modules.get(name, ["-m", name])]


# The unit tests in parallel, without those that start processes, wait or measure. Two processes more than the two cores
# of the reference machine, because many tests wait for a process or a socket; no more, because each process imports
# everything.
QUICK_TESTS = [
    sys.executable, "-m", "pytest", "-q", "tests/unit", "-m", "not slow", "-n", "4", "--dist=loadfile",
]  # fmt: skip

# What `check` runs before the unit tests: name -> command.
STATIC: dict[str, list[str]] = {
    "format": [*_tool("ruff"), "format", "--check", "--output-format", "concise", "."],
    "lint": [*_tool("ruff"), "check", "--quiet", "--output-format", "concise", "."],
    "types": _tool("mypy"),
    "imports": _tool("lint-imports"),
    "security": [sys.executable, os.path.join("scripts", "security_check.py")],
    "python 3.9": [sys.executable, os.path.join("scripts", "agent_check.py")],
}


def run_static() -> int:
    """Run every static check, two at a time. Prints one line for each, and the output of those that fail. Returns the
    number of failures."""
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(_run_check, STATIC.items()))


def _run_check(check: tuple[str, list[str]]) -> int:
    name, command = check
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return _report(name, began, "" if done.returncode == 0 else done.stdout + done.stderr)


def _report(name: str, began: float, trouble: str) -> int:
    text = f"{'FAILED' if trouble else 'ok':6}  {name} ({time.monotonic() - began:.1f} s)\n"
    if trouble:
        text += "        " + trouble.strip().replace("\n", "\n        ") + "\n"
    print(text, end="", flush=True)
    return 1 if trouble else 0


# Everything that configs/procguard_config.yaml may configure works there.
FOR_A_CHECKOUT = ["--extra", "zmq", "--extra", "postgres", "--extra", "s3"]


def run_lock() -> int:
    """Pin runtime.lock and dev.lock again; runtime.lock takes its versions from dev.lock, which is a superset."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: os.path.join(folder, name) for name in ("dev.lock", "runtime.lock")}
        _compile(paths["dev.lock"], ["--extra", "dev", *FOR_A_CHECKOUT])
        _compile(paths["runtime.lock"], ["--constraint", paths["dev.lock"], *FOR_A_CHECKOUT])
        for name, path in paths.items():
            with open(path, encoding="utf-8") as file:
                text = without_addresses(file.read())
            with open(os.path.join(ROOT, "requirements", name), "w", encoding="utf-8") as file:
                file.write(text)
            print(f"requirements/{name}: {text.count('==')} packages")
    return 0


def _compile(output: str, more: list[str]) -> None:
    if shutil.which("uv"):
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--no-emit-index-url"]
    elif shutil.which("pip-compile"):
        command = ["pip-compile", "--quiet", "--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links"]
        command += ["--strip-extras", "--allow-unsafe"]
    else:
        sys.exit("lock: needs uv or pip-compile on PATH: python3 -m pip install uv (or pip-tools)")
    command += ["--no-header", "--generate-hashes", "--output-file", output, "pyproject.toml"]
    subprocess.run([*command, *more], cwd=ROOT, check=True)


def without_addresses(text: str) -> str:
    """`text` of a lock file without index options and temporary paths of constraints: it names versions only, not their
    source."""
    options = r"\s*(--(index-url|extra-index-url|find-links|trusted-host)\b|-i |-f )"
    kept = [line for line in text.splitlines() if not re.match(options, line)]
    kept = [line for line in kept if not re.match(r"\s*#\s+(via )?-c \S+$", line)]
    text = "\n".join(kept) + "\n"
    return re.sub(r"# via\n    #   (.*)\n(?!    #   )", r"# via \1\n", text)  # one constraint: on one line


def _exit_unless_zero(failed: int) -> None:
    if failed:
        raise SystemExit(failed)


@task  # type: ignore[untyped-decorator]
def check(_context: Context) -> None:
    """Check format, types, imports, the agent's Python 3.9 and unit tests, before each commit. Example: invoke check"""
    began = time.monotonic()
    environment = {**os.environ, "PROCGUARD_QUICK_TESTS": "1"}
    # otherwise hundreds of starts of Python would compile every module again
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["TMPDIR"] = folder = scratch.make()
    try:
        # pytest collects tests while the static checks run
        with subprocess.Popen(QUICK_TESTS, cwd=ROOT, env=environment) as unit:
            failed = run_static()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    processor_s = sum(os.times()[2:4])  # processor time of all ended child processes
    print(f"check: {time.monotonic() - began:.0f} s, {processor_s:.0f} s of processor time", flush=True)
    _exit_unless_zero(failed + (unit.returncode != 0))


@task(help={"args": "arguments for pytest; default: run all tests"})  # type: ignore[untyped-decorator]
def test(_context: Context, args: str = "") -> None:
    """Run all tests; installs their prerequisites first. Example: invoke test --args "tests/unit -k config" """
    import shlex

    done = subprocess.run([os.path.join(ROOT, "run_tests.sh"), *shlex.split(args)], cwd=ROOT, check=False)
    _exit_unless_zero(done.returncode)


@task  # type: ignore[untyped-decorator]
def lock(_context: Context) -> None:
    """Regenerate requirements/*.lock from pyproject.toml (needs uv or pip-compile). Example: invoke lock"""
    _exit_unless_zero(run_lock())


@task  # type: ignore[untyped-decorator]
def web(_context: Context) -> None:
    """Bundle the portal into build/web, as in a wheel; installs esbuild first. Example: invoke web"""
    scripts = os.path.join(ROOT, "scripts")
    _exit_unless_zero(subprocess.run([os.path.join(scripts, "setup_web.sh")], check=False).returncode)
    out = os.path.join(ROOT, "build", "web")
    _exit_unless_zero(subprocess.run(["node", os.path.join(scripts, "web", "bundle.mjs"), out], check=False).returncode)
    for name in sorted(os.listdir(out)):
        print(f"{os.path.getsize(os.path.join(out, name)):>8,} {name}")


@task(help={"tag": "tag of the release, e.g. v0.2.0; must match the version"})  # type: ignore[untyped-decorator]
def release(_context: Context, tag: str = "") -> None:
    """Build wheel, sdist, SBOM (CycloneDX), hashes and notes into dist/. Example: invoke release --tag v0.2.0"""
    words = [sys.executable, os.path.join("scripts", "release.py"), *(["--tag", tag] if tag else [])]
    _exit_unless_zero(subprocess.run(words, cwd=ROOT, check=False).returncode)


def benches() -> dict[str, str]:
    """Name -> description (the first line of the docstring) of every module of scripts/bench that can be run."""
    found = {}
    folder = os.path.join(ROOT, "scripts", "bench")
    for file_name in sorted(os.listdir(folder)):
        name, ending = os.path.splitext(file_name)
        if ending != ".py":
            continue
        with open(os.path.join(folder, file_name), encoding="utf-8") as file:
            tree = ast.parse(file.read(), file_name)
        words = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        if words.startswith(f"invoke bench {name}: "):
            found[name] = words.partition(": ")[2]
    return found


@task(  # type: ignore[untyped-decorator]
    positional=["name"], help={"name": "name of a benchmark, or list", "args": "arguments for the benchmark"}
)
def bench(_context: Context, name: str, args: str = "") -> None:  # with a default, invoke would take the name as a task
    """Measure ProcGuard and its reference in the same run. Example: invoke bench recovery --args "--kills 20" """
    import shlex

    known = benches()
    if name == "list":
        for one, words in known.items():
            print(f"{one:12} {words}")
        return
    if name not in known:
        sys.exit(f"bench: choose one of {', '.join(known)}")
    done = subprocess.run([sys.executable, "-m", "scripts.bench", name, *shlex.split(args)], cwd=ROOT, check=False)
    _exit_unless_zero(done.returncode)


@task(
    help={
        "only": "numbers of scenarios; default: all",
        "rounds": "rounds of each scenario; default: its own number",
        "short": "run the short forms, as ./run_tests.sh does",
    }
)  # type: ignore[untyped-decorator]
def chaos(_context: Context, only: str = "", rounds: int = 0, short: bool = False) -> None:
    """Run the chaos suite's scenarios in their long forms, as root. Example: invoke chaos --only "2 4" --rounds 20"""
    words = [*only.replace(",", " ").split(), f"--rounds={rounds}", *(["--short"] if short else [])]
    _exit_unless_zero(subprocess.run([sys.executable, "-m", "scripts.chaos", *words], cwd=ROOT, check=False).returncode)


@task(
    help={
        "only": "names of targets; default: all",
        "seconds": "duration for each target",
        "keep": "folder where the inputs found are kept for the next run",
        "adopt": "afterwards copy inputs that reach new code into tests/corpus",
    }
)  # type: ignore[untyped-decorator]
def fuzz(_context: Context, only: str = "", seconds: int = 60, keep: str = "", adopt: bool = False) -> None:
    """Fuzz the parsers of untrusted input, guided by coverage. Example: invoke fuzz --only "http mux" --seconds 600"""
    names = only.replace(",", " ").split()
    words = [f"--seconds={seconds}", *([f"--keep={keep}"] if keep else []), *(["--adopt"] if adopt else [])]
    words += ["--only", *names] if names else []
    _exit_unless_zero(subprocess.run([sys.executable, "-m", "scripts.fuzz", *words], cwd=ROOT, check=False).returncode)


@task(  # type: ignore[untyped-decorator]
    help={
        "agents": "simulated hosts",
        "workers-per-agent": "workers on each host",
        "manager-url": "URL of a manager on this machine",
        "for": "duration: 90s, 5m, 1h",
        "script": "file of steps: '10s kill 10%', '30s return', '40s storm', …",
        "seed": "seed of the random numbers; the same seed gives the same swarm",
        "crashes-per-s": "crashing children per second, of all workers together",
        "log-lines-per-s": "log lines per second of each running worker",
        "stubborn": "share of workers that do not end when stopped",
        "refuse": "share of workers that refuse restart and kill",
        "prefix": "prefix of the host names",
        "keep": "leave the hosts in the manager at the end",
        "clean": "only remove the hosts of an earlier swarm from the manager",
    }
)
def swarm(
    _context: Context,
    agents: int = 10,
    workers_per_agent: int = 1,
    manager_url: str = "",
    for_: str = "60s",
    script: str = "",
    seed: int = 1,
    crashes_per_s: float = 0.0,
    log_lines_per_s: float = 0.0,
    stubborn: float = 0.0,
    refuse: float = 0.0,
    prefix: str = "swarm",
    keep: bool = False,
    clean: bool = False,
) -> None:
    """Run simulated agents against this machine's manager. Example: invoke swarm --agents 200 --for 5m"""
    values = {
        "--agents": agents, "--workers-per-agent": workers_per_agent, "--manager-url": manager_url, "--for": for_,
        "--script": script, "--seed": seed, "--crashes-per-s": crashes_per_s, "--log-lines-per-s": log_lines_per_s,
        "--stubborn": stubborn, "--refuse": refuse, "--prefix": prefix,
    }  # fmt: skip
    words = [f"{name}={value}" for name, value in values.items() if value != ""]
    words += [name for name, wanted in (("--keep", keep), ("--clean", clean)) if wanted]
    os.execv(sys.executable, [sys.executable, "-m", "scripts.swarm", *words])  # noqa: S606


@task  # type: ignore[untyped-decorator]
def docs(_context: Context) -> None:
    """Write the generated parts of docs/: configuration, worker, routes, commands. Example: invoke docs"""
    for name in ("config_docs", "worker_schema", "route_docs", "cli_docs"):
        subprocess.run([sys.executable, os.path.join("scripts", f"{name}.py")], cwd=ROOT, check=True)


@task(docs)  # type: ignore[untyped-decorator]
def freeze(_context: Context) -> None:
    """Write this version's frozen interface, which is immutable once tagged. Example: invoke freeze"""
    done = subprocess.run([sys.executable, os.path.join("scripts", "frozen.py")], cwd=ROOT, check=False)
    _exit_unless_zero(done.returncode)


namespace = Collection(check, test, docs, freeze, lock, web, release, swarm, bench, fuzz, chaos)


def main() -> int:
    actions = {"static": run_static, "lock": run_lock}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit(f"usage: dev_tasks.py {'|'.join(actions)}")
    return min(actions[sys.argv[1]](), 1)


if __name__ == "__main__":
    sys.exit(main())
