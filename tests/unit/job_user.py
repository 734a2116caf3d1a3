"""A job's user on this machine, who attacks the root agent that runs the job: places it may write to, and canaries.

A canary is a text in a file that root alone may read; a mark is a file that root alone could make. Owns both.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAME = "games"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as another user")


class JobUser:
    def __init__(self) -> None:
        found = pwd.getpwnam(NAME)
        self.name, self.uid, self.gid = NAME, found.pw_uid, found.pw_gid
        self.groups = sorted(os.getgrouplist(NAME, found.pw_gid))
        self.directory = Path(tempfile.mkdtemp(prefix="pg-job-"))  # the job's own
        self.root_only = Path(tempfile.mkdtemp(prefix="pg-root-"))  # 0700, root's
        self.canary = f"CANARY-{os.urandom(8).hex()}"
        self.secret = self.root_only / "secret"
        self.secret.write_text(f"SECRET={self.canary}\n")
        self.secret.chmod(0o600)
        self.mark = self.root_only / "mark"
        os.chown(self.directory, self.uid, self.gid)

    @property
    def run_as(self) -> dict[str, Any]:
        """As agent/spec_file.py resolves `user:`."""
        return {
            "name": self.name, "uid": self.uid, "gid": self.gid, "groups": self.groups,
            "home": str(self.directory), "shell": "/bin/sh",
        }  # fmt: skip

    def write(self, name: str, text: str, mode: int = 0o755) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        os.chown(path.parent, self.uid, self.gid)
        os.chown(path, self.uid, self.gid)
        return path

    def link(self, name: str, target: Path | str) -> Path:
        path = self.directory / name
        path.symlink_to(target)
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        return path

    def run(self, command: str) -> str:
        """As that user's own shell."""
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.directory, user=self.uid, group=self.gid, extra_groups=self.groups,
            env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def preload(self) -> Path:
        """A library that makes the mark in whatever process loads it with root's rights."""
        source = self.write("evil.c", _EVIL.replace("MARK", str(self.mark)))
        library = self.directory / "evil.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        library.chmod(0o755)
        return library

    def end(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.root_only, ignore_errors=True)


_EVIL = """
#include <fcntl.h>
__attribute__((constructor)) static void run(void) { open("MARK", O_CREAT | O_WRONLY, 0644); }
"""


@pytest.fixture
def job_user() -> Iterator[JobUser]:
    one = JobUser()
    yield one
    one.end()
