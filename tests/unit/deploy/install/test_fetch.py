"""`invoke fetch`: selection on a host, local paths, limits of a hostile host. Real installer sessions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.cli import deploy
from procguard.deploy.install.fetch import Fetcher, Wanted, place
from procguard.deploy.install.rollout import HostResult
from procguard.deploy.inventory.model import Host
from procguard.deploy.session.connector import Connector
from procguard.deploy.ssh.target import Target
from procguard.errors import HostError, HostUnreachable, UsageError
from tests.unit.deploy.install.test_deployer import Recorder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there" / "it's out"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.csv").write_text("1,2\n")
    (folder / "sub" / "b.csv").write_bytes(os.urandom(600_000))
    (folder / "notes.txt").write_text("n")
    (folder / "latest").symlink_to("sub/b.csv")
    os.mkfifo(folder / "pipe")  # opening it would block indefinitely
    os.utime(folder / "a.csv", (1_600_000_000, 1_600_000_000))
    return folder


def fetched(tmp_path: Path, path: str, **bounds: Any) -> HostResult:
    fetcher = Fetcher(Connector(), Recorder(), tmp_path / "fetched", 4)
    wanted = Wanted(path, **({"max_bytes": 1 << 30, "max_files": 100} | bounds))
    (result,) = fetcher.fetch([Host("here", Target("here", local=True))], wanted)
    return result


def landed(tmp_path: Path) -> set[str]:
    root = tmp_path / "fetched"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_pattern_a_folder_and_a_single_file(tmp_path: Path, there: Path) -> None:
    below = f"here{there}"
    assert fetched(tmp_path, f"{there}/*.csv").changes[0].startswith("1 files, 4 B in ")
    assert landed(tmp_path) == {f"{below}/a.csv"}
    copy = tmp_path / "fetched" / f"{below}/a.csv"
    assert copy.read_text() == "1,2\n" and copy.stat().st_mtime == 1_600_000_000
    result = fetched(tmp_path, str(there))
    assert result.error is None and result.report["files"] == 3 and result.report["left_out"] == 2
    assert landed(tmp_path) == {f"{below}/{name}" for name in ("a.csv", "sub/b.csv", "notes.txt")}
    assert (tmp_path / "fetched" / f"{below}/sub/b.csv").read_bytes() == (there / "sub" / "b.csv").read_bytes()
    assert fetched(tmp_path, f"{there}/**/b.csv").report["files"] == 1
    assert fetched(tmp_path, f"{there}/latest").report["files"] == 1  # a link that was named is followed


@pytest.mark.parametrize(
    ("path", "bounds", "code", "said"),
    [
        ("{there}/nosuch*", {}, "nothing_there", "nothing matches"),
        ("{there}", {"max_bytes": 1000}, "too_much", "--max-size"),
        ("{there}", {"max_files": 1}, "too_much", "--max-files"),
    ],
)
def test_what_can_t_be_had_is_said_and_leaves_nothing(
    tmp_path: Path, there: Path, path: str, bounds: dict[str, int], code: str, said: str
) -> None:
    result = fetched(tmp_path, path.format(there=there), **bounds)
    assert result.status == "failed" and result.error is not None
    assert result.error.code == code and said in str(result.error)
    assert landed(tmp_path) == set()


@pytest.mark.parametrize("name", ["etc/passwd", "/a/../../../etc/cron.d/x", "/", "/a//b", "/a/./b", "/a\0b", ""])
def test_a_host_can_name_no_place_outside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(HostError, match="invalid name"):
        place(tmp_path, name)


class Lying:
    """A host that sends arbitrary data."""

    def __init__(self, *pieces: int) -> None:
        self._pieces = [*pieces]

    @contextlib.contextmanager
    def session(self, target: Target, deadline: float, on_connected: Callable[[], None] | None = None) -> Iterator[Any]:
        if target.host == "off":
            raise HostUnreachable("off: cannot connect")
        yield self

    def ask(self, _request: dict[str, Any], _deadline: float) -> dict[str, Any]:
        return {"found": {"files": 1, "bytes": 1, "left_out": 0}}

    def answer(self, _deadline: float) -> dict[str, Any]:
        return {"file": {"name": "/x/y", "mtime": 0.0}}

    def take_number(self, _deadline: float) -> int:
        return self._pieces.pop(0)

    def take(self, size: int, _deadline: float) -> bytes:
        return b"\0" * size


@pytest.mark.parametrize("pieces", [(1000,) * 20, (1 << 40,)])
def test_more_than_was_asked_for_is_not_taken(tmp_path: Path, pieces: tuple[int, ...]) -> None:
    fetcher = Fetcher(Lying(*pieces, 0), Recorder(), tmp_path, 1)
    (result,) = fetcher.fetch([Host("a", Target("a"))], Wanted("x", max_bytes=5000, max_files=10))
    assert result.error is not None and "received more bytes than announced" in str(result.error)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_that_breaks_off_is_not_kept_and_one_host_hides_no_other(tmp_path: Path) -> None:
    fetcher = Fetcher(Lying(10, -1), Recorder(), tmp_path, 1)
    names = [Host(name, Target(name)) for name in ("off", "a")]
    off, broken = fetcher.fetch(names, Wanted("x", max_bytes=5000, max_files=10))
    assert off.status == "unreachable" and broken.status == "failed" and "/x/y" in str(broken.error)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_sizes_as_people_write_them() -> None:
    assert [deploy._bytes(text) for text in ("5", "500M", "2G", "1 KiB")] == [5, 500 << 20, 2 << 30, 1024]
    for text in ("", "0", "much", "-1"):
        with pytest.raises(UsageError, match="max-size"):
            deploy._bytes(text)
