"""JSON without the package `json`: the same values, texts and errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from remote_agent.system import lean_json

TEXTS = (
    '{"a": 1}', " [1, -2.5, 1E5, -0, 12345678901234567890123, null, true] \n", '"\\u00e9\\ud83d\\ude00\\ud800"', "5",
    b'{"a": "\xc3\xa9"}', b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), "-Infinity", "1e400", "[" * 50 + "]" * 50,
)  # fmt: skip
NO_JSON = ('{"a": 1}x', "", '{"a"', "[1,]", "nul", '"\n"', b"\xff", b"\0\0", "'a'", "\u00a05")
VALUES = (
    {"a": 1, "\u00e9": [1.5, None, True, "x\n\0\ud800"]}, (1, 2), {1: 2, None: 3, 2.5: 1}, {True: 0}, float("inf"), "s",
    5, [], {}, "\U0001f600",
)  # fmt: skip


def test_what_json_reads_is_read_alike() -> None:
    for text in TEXTS:
        assert lean_json.loads(text) == json.loads(text), text


def test_what_is_no_json_raises_the_same_error() -> None:
    for text in NO_JSON:
        with pytest.raises(ValueError) as wanted:
            json.loads(text)
        with pytest.raises(type(wanted.value)) as found:
            lean_json.loads(text)
        assert str(found.value) == str(wanted.value)


def test_errors_are_raised_where_json_was_not_loaded_before() -> None:
    """The C function then raises nothing of its own."""
    code = f"""
import sys; sys.path.insert(0, '.')
from remote_agent.system import lean_json
assert 'json' not in sys.modules
for text in {NO_JSON!r}:
    for name in [one for one in sys.modules if one.partition('.')[0] == 'json']:
        del sys.modules[name]
    try:
        print('read', lean_json.loads(text))
    except ValueError:
        pass
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_json_writes_is_written_alike() -> None:
    for value in VALUES:
        assert lean_json.dumps(value) == json.dumps(value, separators=(",", ":")), value
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        lean_json.dumps({"a": {1, 2}})


def test_an_interpreter_without_the_c_functions_uses_json() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); sys.modules['_json'] = None\n"
        "from remote_agent.system import lean_json\n"
        "print(lean_json.loads('[1]'), lean_json.dumps({'a': [1, 2]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == '[1] {"a":[1,2]}\n'
