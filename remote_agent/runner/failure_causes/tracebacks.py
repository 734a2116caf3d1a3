"""Finds Python's tracebacks in a program's last lines, also behind a launcher's prefix or in rich's frames."""

from __future__ import annotations

from remote_agent.runner.failure_causes.patterns import BOX, HEADER

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Sequence


class Traceback:
    """`begin`, `at`: the indices of its header and of its exception. `beside`: it did not end the program."""

    def __init__(self, begin: int, at: int, text: str, where: str, beside: bool) -> None:
        self.begin, self.at, self.text, self.where, self.beside = begin, at, text, where, beside
        head, _, self.message = text.partition(":")
        self.name = head.partition("(")[0].rpartition(".")[2].strip()


def exception_head(text: str) -> bool:
    """'torch.OutOfMemoryError: CUDA …', 'KeyboardInterrupt', 'RayTaskError(ValueError): …'"""
    if not text or text[0].isspace():
        return False
    head = text.partition(":")[0].strip()
    if head.endswith(")"):
        head = head.partition("(")[0]
    parts = head.split(".")
    return all(part.isidentifier() for part in parts) and parts[-1].lstrip("_")[:1].isalpha() and head != "Traceback"


def tracebacks(lines: Sequence[str], lower: Sequence[str]) -> list[Traceback]:
    """The tracebacks that end with an exception, newest first; a bounded number."""
    found: list[Traceback] = []
    for begin in range(len(lines) - 1, -1, -1):
        at = lines[begin].find(HEADER)
        syntax = at < 0 and lines[begin].startswith('  File "') and _is_syntax_error(lines, begin)
        if at < 0 and not syntax:
            continue
        before = lower[begin][: max(at, 0)] + next(
            (one for one in reversed(lower[max(0, begin - 3) : begin]) if one.strip()), ""
        )
        if "exception ignored" in before or "logging error" in before:
            continue
        one = _read(lines, begin, at, syntax)
        if one is not None:
            one.beside = (
                "exception in thread" in before
                or "never retrieved" in before
                or (before.startswith("process ") and before.endswith(":"))
            )
            found.append(one)
        if len(found) >= 8:
            break
    return found


def _is_syntax_error(lines: Sequence[str], begin: int) -> bool:
    """Whether this is `File …` without a traceback header: Python's message for a syntax error in the script itself."""
    if begin and (lines[begin - 1].startswith("    ") or HEADER in lines[begin - 1]):
        return False
    return any(
        one.startswith(("SyntaxError:", "IndentationError:", "TabError:")) for one in lines[begin + 1 : begin + 6]
    )


def _read(lines: Sequence[str], begin: int, at: int, syntax: bool) -> Traceback | None:
    """Parse one traceback. Its lines may share a prefix: the same text, or one of the same length such as a
    timestamp."""
    prefix, cut = lines[begin][:at] if at > 0 else "", 0
    if prefix.endswith("Exception Group "):
        prefix = prefix.partition("+")[0] + "| "
        at = len(prefix)
    following = lines[begin + 1 : begin + 12]
    if prefix and not any(one.startswith(prefix) and one[at:].startswith("  File ") for one in following):
        cut = next((one.find('  File "') for one in following if '  File "' in one), 0)
        cut, prefix = (cut if cut == at else 0), ""
    where, frames = "", int(syntax)
    if syntax:
        where = _place(lines[begin])
    for index in range(begin + 1, len(lines)):
        text = lines[index]
        if prefix:
            if not text.startswith(prefix) and not _same_form(prefix, text):
                continue
            text = text[len(prefix) :]
        elif cut:
            text = text[cut:]
        bare = text.lstrip("│ ┃")
        if text.lstrip().startswith('File "'):
            where, frames = _place(text), frames + 1
        elif text.startswith(BOX):
            frames += 1
            if ".py:" in bare and " in " in bare:
                where = bare.partition(" in ")[0].strip()
        elif text.startswith(" ") or not text.strip():
            continue
        elif frames and exception_head(text):
            return Traceback(begin, index, text.strip(), where, False)
        else:
            return None
    return None


def _same_form(prefix: str, text: str) -> bool:
    """Whether `text` begins with another timestamp of the same form."""
    if sum(one.isdigit() for one in prefix) < 8 or len(text) < len(prefix):
        return False
    return all(one == two or (one.isdigit() and two.isdigit()) for one, two in zip(prefix, text))


def _place(text: str) -> str:
    """'  File "/srv/train.py", line 12, in main' -> '/srv/train.py:12'"""
    path, _, rest = text.partition('File "')[2].partition('"')
    number = rest.partition("line ")[2].partition(",")[0].strip()
    return f"{path}:{number}" if number.isdigit() else ""
