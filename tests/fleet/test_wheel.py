"""The wheel is complete: built and installed alone as a normal user in an empty folder, everything works.

The checkout is hidden from what runs: in the mount namespace of each command an empty file system lies over it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fleet.conftest import require_fleet, require_programs
from tests.fleet.hosts import REPOSITORY, Fleet, FleetHost
from tests.fleet.manager import END_WITH_US, free_port, remove_runtime_dirs
from tests.waiting import wait_until

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]

USER = 65534
LEFT_OUT = ("pytest", "ruff", "mypy", "playwright", "hypothesis", "ansible-core", "pyzmq", "torch", "uv", "hatchling")
PAGES = ("overview", "workers", "worker/train-tiny", "worker/train-tiny?tab=charts", "hosts", "host/this-machine",
         "operations", "events", "logs?w=train-tiny,web-api", "search", "recovery", "api")  # fmt: skip


@dataclass
class Account:
    """A normal user with an empty home, an empty folder to work in, and a virtual environment that has the wheel."""

    base: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.base / "work"

    @property
    def home(self) -> Path:
        return self.base / "home"

    def _words(self, *words: str) -> list[str]:
        hide = 'for one in "$0" "$1"; do mount -t tmpfs none "$one" || exit; done; shift; exec "$@"'
        become = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs")
        locations = (os.path.realpath(sys.prefix), str(REPOSITORY))
        return [*END_WITH_US, "unshare", "-m", "sh", "-c", hide, *locations, *become, *words]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        made = {"HOME": str(self.home), "PATH": f"{self.base}/venv/bin:/usr/bin:/bin:/usr/sbin", "LANG": "C.UTF-8"}
        made |= {"ANSIBLE_HOME": str(self.base / "ansible-home"), "ANSIBLE_REMOTE_TMP": str(self.base / "ansible-tmp")}
        made |= {"UV_CACHE_DIR": str(self.base / "cache"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "0"}
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_INDEX", "SSL_CERT"))}
        if "PROCGUARD_CI_MARK" in os.environ:
            kept["PROCGUARD_CI_MARK"] = os.environ["PROCGUARD_CI_MARK"]
        return kept | made | more

    def run(self, *words: str, code: int = 0, timeout_s: float = 180, **more: str) -> str:
        done = subprocess.run(
            self._words(*words), cwd=self.folder, env=self._environment(more), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        print(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
        assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._words(*words), cwd=self.folder, env=self._environment(more), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def own(self, folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(words, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def account(wheel: Path) -> Iterator[Account]:
    """Also verifies that it installs with its declared dependencies only."""
    require_fleet()
    require_programs("unshare", "setpriv", "ssh")
    base = Path(tempfile.mkdtemp(prefix="pgw", dir="/tmp"))
    base.chmod(0o755)
    made = Account(base)
    for path in (made.folder, made.home, base / "cache"):
        path.mkdir()
    shutil.copy(wheel, base / wheel.name)
    shutil.copy(_uv(), base / "uv")
    made.own(base)
    try:
        uv = str(base / "uv")
        made.run(uv, "venv", "-q", "--python", _python(), str(base / "venv"))
        made.run(uv, "pip", "install", "-q", "--python", str(base / "venv"), str(base / wheel.name), timeout_s=300)
        yield made
    finally:
        for process in made.started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            made.run("procguard", "manager", "--config", "procguard.yaml", "--stop", code=0, timeout_s=30)
        remove_runtime_dirs(made.home)
        shutil.rmtree(base, ignore_errors=True)


def _uv() -> str:
    from uv import find_uv_bin

    return str(find_uv_bin())


def _python() -> str:
    """One that a normal user may start: that of these tests lies in root's home on some machines."""
    for path in ("/usr/bin/python3", sys._base_executable):  # type: ignore[attr-defined]
        ask = [path, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        words = ["setpriv", f"--reuid={USER}", "--clear-groups", *ask]
        if subprocess.run(words, check=False, capture_output=True).returncode == 0:
            return path
    pytest.skip("no Python 3.11 or newer that a normal user may start")


def test_the_wheel_holds_all_that_is_no_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "web", "playbooks", "inventory", "configs", "docs"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    wanted = {f"procguard/data/{one}" for one in tracked if not one.startswith("docs/pictures") and one[-4:] != ".svg"}
    wanted.add("procguard/data/web/icon.svg")
    assert wanted - names == set()
    assert {"procguard/py.typed", "remote_agent/py.typed"} <= names
    assert [name for name in names if name.startswith(("tests", "scripts", "web")) or "__pycache__" in name] == []


def test_the_lean_install_has_nothing_for_tests_and_nothing_optional(account: Account) -> None:
    found = account.run(str(account.base / "uv"), "pip", "list", "-q", "--python", str(account.base / "venv"))
    names = {line.split()[0] for line in found.splitlines()[2:]}
    assert "procguard" in names and names.isdisjoint(LEFT_OUT), names
    reported = account.run("procguard", "version")
    assert f"installed in {account.base}/venv/lib" in reported
    assert "check" not in account.run("procguard", "--help")


def readme_lines() -> list[str]:
    """The three lines of the README's installation."""
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Install\n")[2]
    return re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[0].splitlines()


@pytest.mark.parametrize(("place", "tool"), [("clone", "uv tool install ."), ("wheel", "pip install .")])
def test_the_lines_of_the_readme_install_it(account: Account, wheel: Path, place: str, tool: str) -> None:
    install, demo, init = readme_lines()
    assert tool in install and len(readme_lines()) == 3
    folder = account.base / f"{place}-{tool.partition(' ')[0]}"
    clone, bin_folder = folder / "procguard", folder / "venv" / "bin"
    clone.mkdir(parents=True)
    if place == "clone":
        copy_of_what_git_tracks(clone)
    account.own(folder)
    more = {
        "PATH": f"{bin_folder}:{account.base}:/usr/bin:/bin", "UV_TOOL_DIR": str(folder / "tools"),
        "UV_TOOL_BIN_DIR": str(bin_folder), "UV_PYTHON": _python(), "HOME": str(folder),
        "PIP_COMPILE": "0",  # what runs compiles what it imports, a small part of what is installed
    }  # fmt: skip
    if tool.startswith("pip"):
        account.run(str(account.base / "uv"), "venv", "-q", "--seed", "--python", _python(), str(folder / "venv"))
    line = tool if place == "clone" else tool.replace(" .", f" {account.base / wheel.name}")
    account.run("sh", "-c", f"cd {clone} && {line}", timeout_s=400, **more)
    started = account.start("sh", "-c", f"cd {folder} && exec {demo.split('#')[0]} --port 0", **more)
    said = printed_until(started, "Ctrl-C stops")
    started.send_signal(signal.SIGINT)
    said += started.communicate(timeout=60)[0]
    assert "nothing is left" in said, said
    account.run("sh", "-c", f"cd {folder} && {init.split('#')[0]}", **more)
    assert "gpu02" in (folder / "inventory.yaml").read_text()


def copy_of_what_git_tracks(clone: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in tracked.stdout.split("\0"):
        if (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, clone / name)


def printed_until(process: subprocess.Popen[str], beginning: str) -> str:
    """What it prints, up to the line that begins so."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(beginning):
            break
    return said


def test_demo_shows_every_page_and_leaves_nothing(account: Account) -> None:
    from playwright.sync_api import sync_playwright

    from scripts import chromium

    program = chromium.path_for_tests()
    if program is None:
        pytest.skip(chromium.HOW_TO_HAVE_IT)
    demo = account.start("procguard", "demo", "--port", "0")
    said = printed_until(demo, "Ctrl-C stops")
    (url,) = re.findall(r"ProcGuard demo: (\S+)", said) or [said]
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=chromium.ARGUMENTS)
        page = browser.new_page(locale="en")
        page.on("requestfailed", lambda one: wrong.append(f"{one.url}: {one.failure}"))
        page.on("response", lambda one: wrong.append(f"{one.status} {one.url}") if one.status >= 400 else None)
        page.on("console", lambda one: wrong.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        for name in PAGES:
            page.goto(f"{url}/#/{name}")
            page.wait_for_selector("main h1, main .page-title, main h2", timeout=15_000)
            assert "ProcGuard" in page.title()
        assert page.evaluate("document.documentElement.dataset.commands") == "procguard"
        browser.close()
    assert [one for one in wrong if "ERR_ABORTED" not in one and "ERR_NETWORK_CHANGED" not in one] == []
    shown = account.run("procguard", "ps", PROCGUARD_MANAGER_URL=url)
    assert shown.count("● running") == 3, shown
    demo.send_signal(signal.SIGINT)
    assert "nothing is left" in demo.communicate(timeout=60)[0]
    assert [path for path in account.home.rglob("*") if path.is_file()] == []


@pytest.fixture(scope="module")
def host() -> Iterator[FleetHost]:
    require_fleet()
    with Fleet(1) as fleet:
        yield fleet[0]


def test_from_init_to_undeploy_by_commands_and_by_playbooks(account: Account, host: FleetHost) -> None:
    ssh = account.home / ".ssh"
    ssh.mkdir(mode=0o700)
    shutil.copy(host.fleet.private_key, ssh / "id_ed25519")
    account.own(ssh)
    (ssh / "id_ed25519").chmod(0o600)
    port = free_port()

    account.run("procguard", "init", f"root@{host.address}")
    inventory = account.folder / "inventory.yaml"
    config = account.folder / "procguard.yaml"
    config.write_text(config.read_text().replace("port: 5000", f"port: {port}"))
    own = f"    ansible_ssh_private_key_file: {ssh}/id_ed25519\n"
    own += f'    ansible_ssh_common_args: "-o UserKnownHostsFile={ssh}/known_hosts"\n'
    own += "    ansible_python_interpreter: /usr/bin/python3\n    procguard_workers:\n"
    inventory.write_text(inventory.read_text().replace("    procguard_workers:\n", own))
    there = {"PROCGUARD_MANAGER_URL": f"http://127.0.0.1:{port}"}
    files = ("--hosts", "inventory.yaml")
    worker = f"hello-host-{host.address.replace('.', '-')}"

    assert "valid" in account.run("procguard", "validate", *files, "--config", "procguard.yaml")
    started = account.run("procguard", "manager", "--config", "procguard.yaml", "--daemon")
    assert "stop: procguard manager --stop" in started
    account.run("procguard", "trust", *files, "--yes", **there)
    account.run("procguard", "deploy", *files, **there)
    assert account.run("procguard", "wait", worker, "--for", "running", "--timeout", "30", **there) == "1 running\n"
    wait_until(
        lambda: "20" in account.run("procguard", "logs", worker, **there), 20, "the worker's first line in its log"
    )
    account.run("procguard", "upgrade", *files, **there)
    assert "State:     running" in account.run("procguard", "describe", worker, **there)
    refused = account.run("procguard", "forget", worker, code=1, **there)
    assert refused == ""
    account.run("procguard", "undeploy", *files, **there)
    assert host.processes("remote_agent") == [] and account.run("procguard", "ps", "-o", "name", **there) == ""

    by_hand = account.start(
        "procguard", "worker", "--worker-id", "by-hand", "--manager-url", there["PROCGUARD_MANAGER_URL"],
        "--command", "sleep 1000",
    )  # fmt: skip
    wait_until(
        lambda: "by-hand" in account.run("procguard", "ps", "-o", "name", **there), 30, "the launcher is registered"
    )
    account.run("procguard", "wait", "by-hand", "--timeout", "30", **there)
    by_hand.send_signal(signal.SIGINT)
    assert by_hand.wait(30) == 0 or "stopped" in (by_hand.stdout.read() if by_hand.stdout else "")

    uv, ansible = str(account.base / "uv"), account.base / "ansible"
    account.run(uv, "venv", "-q", "--python", _python(), str(ansible))
    account.run(uv, "pip", "install", "-q", "--python", str(ansible), "ansible-core>=2.17", timeout_s=300)
    account.run("procguard", "playbooks", "plays")
    for name, tasks in (("deploy", "changed=1"), ("undeploy", "failed=0")):
        words = (str(ansible / "bin" / "ansible-playbook"), "-i", "inventory.yaml", f"plays/{name}.yaml")
        assert tasks in account.run(*words, **there)
        running = account.run("procguard", "ps", "-o", "name", **there).split()
        assert (worker in running) == (name == "deploy")
    account.run("procguard", "manager", "--config", "procguard.yaml", "--stop")
