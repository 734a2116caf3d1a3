"""Every command of tutorial, how-tos and README, run in their order on two real hosts, in both forms."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard import hints
from tests import forked
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import REPOSITORY, Fleet
from tests.fleet.manager import Operator, free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]
PROGRAMS = {"procguard": forked.COMMAND, "invoke": forked.INVOKE}


def blocks(page: str, kind: str = "bash") -> list[str]:
    text = (REPOSITORY / ("" if page == "README.md" else "docs") / page).read_text(encoding="utf-8")
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def commands(page: str) -> list[str]:
    return [line for block in blocks(page) for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    require_fleet()
    with Fleet(2) as hosts:
        yield hosts


def control_lines() -> list[str]:
    """What the README types to steer a fleet; the others of its blocks are typed by test_seed.py (start_worker.sh),
    test_demo.py (the demo) and test_wheel.py (the installation)."""
    (block,) = [one for one in blocks("README.md") if "invoke restart" in one]
    return block.splitlines()


class Reader:
    """A user with a folder who runs a page's commands. The hosts have other names than the page's."""

    def __init__(self, folder: Path, fleet: Fleet, form: str) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self._form = form
        self._port = free_port()
        self._operator = Operator.with_keys(folder / "home", fleet.private_key, fleet.known_hosts)
        self._names = {f"gpu0{number + 1}": host.address for number, host in enumerate(fleet.hosts)}
        programs = folder / "bin"
        programs.mkdir()
        for name, module in (("procguard", "procguard"), ("invoke", "invoke")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            (programs / name).chmod(0o755)
        self._path = f"{programs}:{os.environ['PATH']}"
        if (
            form == "invoke"
        ):  # invoke looks for tasks.py in the current directory; the script is beside it in a checkout
            (self.folder / "tasks.py").symlink_to(REPOSITORY / "tasks.py")
            (self.folder / "start_manager.sh").write_text(f'exec "{sys.executable}" -P -m procguard.main "$@"\n')
            (self.folder / "start_manager.sh").chmod(0o755)

    def types(self, line: str) -> str:
        line = line.replace(".venv/bin/invoke ", "procguard ")
        line = hints.commands(line) if self._form == "invoke" else line
        follows = " --follow" in line
        for name, address in self._names.items():
            line = line.replace(f"ml@{name}", f"root@{address}")
            line = re.sub(rf"\b{name}\b", "host-" + address.replace(".", "-"), line)
        line = line.replace("localhost:5000", f"127.0.0.1:{self._port}")
        line += " --yes" if " trust " in line else ""
        done = self._run(line, follows)
        print(f"$ {line}\n{done.stdout}{done.stderr}")
        # Ctrl-C is how following a log ends; timeout answers 124 for it.
        well = done.returncode == 124 and "epoch" in done.stdout if follows else done.returncode == 0
        assert well, f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        assert not (line.startswith("curl ") and '"error"' in done.stdout), f"{line}\n{done.stdout}"
        return done.stdout

    def _run(self, line: str, follows: bool) -> subprocess.CompletedProcess[str]:
        """`init`, what runs a manager, what follows and what needs a shell is typed into one. The other commands are
        forked from a process that has imported them, because each of the two programs takes a second to start."""
        program, verb, *_ = [*shlex.split(line), ""]
        here = {"PATH": self._path, "PROCGUARD_MANAGER_URL": f"http://127.0.0.1:{self._port}"}
        environment = self._operator.environment | here
        plain = not re.search(r"[|&;<>$`*?]", re.sub(r"'[^']*'", "", line))
        if program in PROGRAMS and verb not in ("init", "manager") and plain and not follows:
            words = shlex.split(line)[1:]
            return forked.run(words, environment, program=PROGRAMS[program], timeout_s=120, folder=self.folder)
        typed = f"timeout --signal=INT 10 {line}" if follows else line
        return subprocess.run(
            ["bash", "-c", typed], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env=environment, timeout=120, check=False,
        )  # fmt: skip

    def after(self, line: str) -> None:
        """Manual steps of the page between two commands, and prerequisites of this machine."""
        if line.startswith("procguard init "):
            config = self.folder / "procguard.yaml"
            config.write_text(config.read_text().replace("port: 5000", f"port: {self._port}"))
        if line == "procguard deploy --hosts inventory.yaml":
            wait_until(lambda: "20" in self.types("procguard logs 'hello-*'"), 30, "the first lines in the logs")

    def replaces_the_worker(self, block: str) -> None:
        path = self.folder / "inventory.yaml"
        head, _, rest = path.read_text().partition("    procguard_workers:\n")
        path.write_text(head + block + "  hosts:\n" + rest.partition("  hosts:\n")[2])


@pytest.mark.parametrize("form", ["procguard", "invoke"])
def test_what_the_pages_say_works(fleet: Fleet, tmp_path: Path, form: str) -> None:
    reader = Reader(tmp_path, fleet, form)
    (own_worker,) = blocks("tutorial.md", "yaml")
    for line in commands("tutorial.md"):
        if "--check --diff" in line:
            for other in commands("howto.md"):
                reader.types(other)
            reader.replaces_the_worker(own_worker)
            said = reader.types(line)
            assert "train-" in said
            continue
        if line.startswith("procguard undeploy"):
            for other in control_lines():
                reader.types(other)
        said = reader.types(line)
        if line.startswith("procguard ps"):
            assert said.count("● running") == 2
        reader.after(line)
    assert all(host.processes("remote_agent") == [] for host in fleet.hosts)
    shutil.rmtree(reader.folder)


@pytest.mark.parametrize("page", ["tutorial", "howto"])
def test_both_languages_show_the_same_commands(page: str) -> None:
    assert commands(f"{page}.md") == commands(f"{page}.zh-CN.md")
    assert blocks(f"{page}.md", "yaml") == blocks(f"{page}.zh-CN.md", "yaml")
    assert len(commands(f"{page}.md")) > 10
