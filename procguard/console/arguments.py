"""An argparse parser whose help and errors are in the language of the command, for programs outside procguard.cli."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import NoReturn

from procguard.console.language import shown
from procguard.errors import UsageError


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        super().add_usage(usage, actions, groups, f"{shown('usage:')} " if prefix is None else prefix)


class ProgramParser(argparse.ArgumentParser):
    """Raises UsageError for wrong arguments instead of exiting. Texts are translated as they are added."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=shown(description),
            epilog=shown(epilog),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._optionals.title = shown("options:").rstrip(":：")
        self.add_argument("-h", "--help", action="help", help=shown("this help"))

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"its options: {self.prog} --help")
