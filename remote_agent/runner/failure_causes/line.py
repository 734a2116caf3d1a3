"""Classifies one line: the cause that it proves, whether the program itself printed it, and whether it shows that the
program continued."""

from __future__ import annotations

from remote_agent.runner.failure_causes.patterns import (
    AFTERWARDS,
    ENDING,
    ERRNO_TEXTS,
    PASSING,
    TEXTS,
    USUAL,
    WENT_ON,
)

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def last_with(lower: Sequence[str], texts: Iterable[str], most: int) -> int:
    """The index of the last line that contains one of these texts, among the last `most` lines; -1: none."""
    for at in range(len(lower) - 1, max(-1, len(lower) - most - 1), -1):
        if any(text in lower[at] for text in texts):
            return at
    return -1


def word_in(text: str) -> str:
    """The cause that an error text proves by itself; "" if none. `text` in lower case."""
    for word, texts in TEXTS:
        if any(one in text for one in texts):
            return "out_of_memory" if word == "gpu_oom" and "allocator cpu" in text else word
    return ""


def may_pass(text: str) -> bool:
    """Whether an error text, in lower case, names an error of the system that may pass."""
    return text.rstrip().endswith(ERRNO_TEXTS) or any(one in text for one in PASSING)


def without_prefix(text: str) -> str:
    """A line without the prefix of a launcher: "[rank0]: ", "(pid=7) ", "0: ", "trainer-1 | "."""
    for _ in range(3):
        text = text.strip()
        if text[:1] in ("[", "(") and (end := text.find("]:" if text[0] == "[" else ") ")) > 0 and end < 60:
            text = text[end + 2 :]
        elif text.partition(":")[0].isdigit():
            text = text.partition(":")[2]
        elif " | " in text[:40] and " " not in text[:40].partition(" | ")[0].strip():
            text = text.partition(" | ")[2]
        else:
            break
    return text.strip()


def is_progress(text: str) -> bool:
    return "%|" in text or "it/s" in text or "s/it" in text


def not_its_own(text: str) -> bool:
    """Whether a line (in lower case) was printed after the end of the program by others, or is irrelevant."""
    text = text.strip()
    bare = without_prefix(text)
    if not bare.strip("=-_*#+^~.│╭╰─ |") or text.startswith(AFTERWARDS) or bare.startswith(AFTERWARDS):
        return True
    glog = bare.lstrip("[")
    if glog[:1] in ("w", "e", "i") and glog[1:4].isdigit():  # as torch.distributed prints it
        return True
    return (
        is_progress(bare)
        or "[launch.py:" in bare
        or "distributed.elastic" in bare
        or " exited with code " in bare
        or ("warning:" in bare and ".py:" in bare)
    )


def went_on(text: str) -> bool:
    if any(one in text for one in WENT_ON):
        return True
    return any(one in text for one in USUAL) and not any(one in text for one in ENDING)


def said_after(lower: Sequence[str], begin: int, end: int) -> list[str] | None:
    """The program's own lines in this range; None if they show that the program continued."""
    found = []
    for text in lower[begin:end]:
        if not_its_own(text):
            continue
        if went_on(text):
            return None
        found.append(text)
    return found
