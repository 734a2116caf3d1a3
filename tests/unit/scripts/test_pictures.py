"""scripts.pictures, as a shell starts it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import UsageError


def test_in_the_background_of_a_shell_its_launcher_still_ends_upon_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import pictures  # imports Playwright

    inherited: list[Any] = []

    def world(*_: object) -> None:
        inherited.append(signal.getsignal(signal.SIGINT))
        raise UsageError("enough")

    monkeypatch.setattr(pictures, "small_world", world)
    monkeypatch.setattr(pictures.chromium, "path_for_tests", lambda: "a browser")
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(SystemExit, match="enough"):
            pictures.main(["--to", str(tmp_path / "pictures")])
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert inherited == [signal.default_int_handler]
