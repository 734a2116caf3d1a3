"""A podman of its own for tests: storage in a directory, and an image made of this machine's shell by podman import."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until

IMAGE = "localhost/shell:1"
PROGRAMS = ("sh", "sleep", "cat", "date", "setsid", "seq", "env", "stat", "kill")


class PodmanHost:
    """`env`: what a worker's base environment needs so that its podman is this one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        storage, engine = directory / "storage.conf", directory / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{directory}/root"\nrunroot = "{directory}/runroot"\n'
        )
        # In a test machine there may be no right to raise limits, no systemd and no second version of control groups.
        engine.write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n[engine]\nruntime = "runc"\n'
            f'cgroup_manager = "cgroupfs"\nevents_logger = "file"\ntmp_dir = "{directory}/tmp"\n'
        )
        self.env = {"CONTAINERS_CONF": str(engine), "CONTAINERS_STORAGE_CONF": str(storage)}

    def podman(self, *words: str, data: bytes = b"") -> str:
        done = subprocess.run(
            ["podman", *words], env={**os.environ, **self.env}, input=data, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def import_image(self) -> None:
        self.podman("import", "-", IMAGE, data=shell_image(self.directory / "image"))

    def names(self) -> list[str]:
        """Of all containers, running or not."""
        return self.podman("ps", "--all", "--format", "{{.Names}}").split()

    def remove_all(self) -> None:
        """With their control groups: their conmon may have been killed."""
        made = self.podman("ps", "--all", "--no-trunc", "--format", "{{.ID}}").split()

        def gone() -> bool:
            subprocess.run(
                ["podman", "rm", "--all", "--force", "--time=0"], env={**os.environ, **self.env}, check=False,
                capture_output=True,
            )  # fmt: skip
            return not self.names()

        wait_until(gone, 20.0, "the end of all containers")
        for one in made:
            for left in glob.glob(f"/sys/fs/cgroup/**/libpod-{one}", recursive=True):
                with contextlib.suppress(OSError):
                    os.rmdir(left)

    def close(self) -> None:
        self.remove_all()
        shutil.rmtree(self.directory, ignore_errors=True)


def shell_image(root: Path) -> bytes:
    """A root directory with this machine's shell and PROGRAMS, gathered in `root`, as a tar file."""
    for folder in ("tmp", "proc", "sys", "dev", "etc", "run", "root"):
        (root / folder).mkdir(parents=True)
    for name in PROGRAMS:
        found = shutil.which(name)
        if found is None:
            continue
        subprocess.run(["cp", "-L", "--parents", found, str(root)], check=True)
        listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=False).stdout
        for word in listed.split():
            if word.startswith("/") and os.path.exists(word):
                subprocess.run(["cp", "-L", "--parents", word, str(root)], check=True)
    if not (root / "bin").exists():
        (root / "bin").symlink_to("usr/bin")
    return subprocess.run(["tar", "-C", str(root), "-c", "."], capture_output=True, check=True).stdout


def require_long_form(config: pytest.Config) -> None:
    """Skip a test with containers on real hosts that is run by hand, and where containers cannot run."""
    if not config.getoption("chaos_long"):
        pytest.skip("takes minutes: invoke chaos --only 33")
    if not usable():
        pytest.skip("needs podman, conmon and runc")


def usable() -> bool:
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("podman", "conmon", "runc"))


@pytest.fixture(scope="module")
def podman_host() -> Iterator[PodmanHost]:
    if not usable():
        pytest.skip("needs root and podman, conmon, runc: apt-get install --no-install-recommends podman conmon runc")
    made = PodmanHost(Path(tempfile.mkdtemp(prefix="pgp")))
    made.import_image()
    yield made
    made.close()
