"""The configuration: the seed's keys, and all mistakes reported at once with path, value and expectation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from procguard.config import schema
from procguard.errors import ConfigError

EXAMPLE = Path(__file__).parents[3] / "configs" / "procguard_config.yaml"


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def mistakes_of(path: str | None, *overrides: str, **flags: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        schema.load(path, overrides, **flags)
    return [line.strip() for line in caught.value.message.splitlines()]


def test_example_file_and_built_in_values_are_the_same() -> None:
    """Without --config the manager runs with the example's values."""
    assert schema.load(str(EXAMPLE)).model_dump() == schema.load(None).model_dump()


def test_commented_additions_of_the_example_are_their_defaults() -> None:
    """Removing the comment signs changes nothing: the example shows the defaults."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    keys = ("trust_local:", "advertise:", "logs:", "keep_attempts:", "keep_local:")
    opened = [line.replace("# ", "", 1) if line.strip(" #").startswith(keys) else line for line in lines]
    data = yaml.safe_load("\n".join(opened))
    assert data["web"]["trust_local"] is True and data["logs"]["keep_attempts"] == 50
    assert schema.Config(**data).model_dump() == schema.load(None).model_dump()


def test_relative_paths_are_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """…not of the configuration file's; and nothing is created by reading."""
    monkeypatch.chdir(tmp_path)
    loaded = schema.load(str(EXAMPLE))
    assert loaded.state.state_file == str(tmp_path / "data" / "procguard_state.yaml")
    assert loaded.state_directory == str(tmp_path / "data")
    assert loaded.logging.file == str(tmp_path / "logs" / "procguard.log")
    assert list(tmp_path.iterdir()) == []


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        schema.load(None).web.port = 1  # type: ignore[misc]


def test_file_then_overrides_then_flags(tmp_path: Path) -> None:
    """The most specific source takes precedence."""
    path = written(tmp_path, "web: {port: 1111, host: 10.0.0.1}\nmonitoring: {interval: 2}\n")
    assert schema.load(path).web.port == 1111
    assert schema.load(path, ["web.port=2222"]).web.port == 2222
    both = schema.load(path, ["web.port=2222", "web.port=2223", "monitoring.interval=3"], port=3333)
    assert (both.web.port, both.web.host, both.monitoring.interval) == (3333, "10.0.0.1", 3.0)
    assert both.source == path


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("web.port=5055", "web", "port", 5055),
        ("web.enabled=false", "web", "enabled", False),
        ("web.advertise=['http://a:1/', 'http://b:2']", "web", "advertise", ["http://a:1", "http://b:2"]),
        ("monitoring.interval=0.5", "monitoring", "interval", 0.5),
        ("logging.level=debug", "logging", "level", "DEBUG"),
        ("logging.format=a=%(message)s", "logging", "format", "a=%(message)s"),
        ("logs.keep_local=1 GiB", "logs", "keep_local", 2**30),
        (" web.host = 127.0.0.1", "web", "host", "127.0.0.1"),
    ],
)
def test_set_reads_yaml_values(override: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(schema.load(None, [override]), section), key) == value


def test_every_mistake_is_reported_together_with_place_value_and_expectation(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "web:\n  prot: 5\n  port: abc\n  enabled: 'no'\nloging: {level: 3}\nmonitoring:\n  interval: 0\n"
        "recovery: 5\nstate: {state_file: x.txt}\n",
    )
    lines = mistakes_of(path, "web.host=", "recovery.max_recovery_attempts=-1", "foo", "web=1")
    expected = [
        f"{path}:2: web.prot: unknown key; did you mean web.port?",
        f"{path}:3: web.port: abc: expected a whole number",
        f"{path}:4: web.enabled: 'no': expected true or false",
        f"{path}:5: loging: unknown key; did you mean logging?",
        f"{path}:7: monitoring.interval: 0: expected more than 0",
        f"{path}:8: recovery: 5: expected a section with keys: enable_auto_recovery, stop_all_on_failure,",
        f"{path}:9: state.state_file: x.txt: expected a path that ends in .yaml (readable) or in .db (SQLite)",
        "--set web.host=: web.host: null: expected text",
        "--set foo: expected KEY=VALUE, e.g. --set web.port=5055",
        "--set web=1: web is a section; name one key in it, e.g. --set web.enabled=…",
    ]
    for wanted in expected:
        assert any(line.startswith(wanted) for line in lines), (wanted, lines)
    assert lines[0] == f"configuration {path}: {len(expected)} mistakes:"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("web.port=70000", "expected at most 65535"),
        ("web.port=5000.5", "expected a whole number"),
        ("web.port=true", "expected a whole number"),
        ("web.prt=1", "did you mean web.port?"),
        ("port=1", "did you mean web.port?"),
        ("web.port.x=1", "web.port is not a section"),
        ("web.port=[1", "not valid YAML"),
        ("web.host=a b", "expected an IP address or a host name"),
        ("web.advertise=[10.0.0.5]", "e.g. http://10.0.0.5:5000"),
        ("logging.level=loud", "expected one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("logging.format='%(asctme)s'", "a format of Python's logging"),
        ("logging.file=''", "expected a path"),
        ("monitoring.heartbeat_timeout=.inf", "expected a finite number"),
        ("monitoring.heartbeat_timeout=0.5", "expected more than monitoring.interval (1)"),
        ("communication.adapter_config.port_base=65535", "port_base"),
        ("communication.adapter_type=carrier-pigeon", "expected one of mock, zmq"),
        ("recovery.causes={Data: x}", "words of up to 40 lower-case letters"),
        ("recovery.causes={gone: 'a(?=b)'}", "regular expressions as RE2 reads them"),
        ("logs.keep_local=5 apples", "a size in bytes"),
        ("source=x", "unknown key"),
        ("zzz=1", "expected one of logging, state"),
    ],
)
def test_single_mistake_says_what_was_expected(override: str, expected: str) -> None:
    (line,) = mistakes_of(None, override)
    assert expected in line and f"--set {override}" in line


def test_flags_are_checked_like_keys() -> None:
    (line,) = mistakes_of(None, port=99999)
    assert line == "configuration: --port: web.port: 99999: expected at most 65535"


def test_yaml_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, "web:\n  port: 5000\n\tenabled: true\n")
    (line,) = mistakes_of(path)
    assert line.startswith(f"{path}:3: not valid YAML: ")


def test_key_given_twice_is_refused(tmp_path: Path) -> None:
    """Plain YAML silently uses the last one, while readers see the first."""
    path = written(tmp_path, "web:\n  port: 1\n  port: 2\n")
    assert mistakes_of(path) == [f"{path}:3: not valid YAML: 'port' is given twice (first in line 2)"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "web:\nlogging:\n", "communication:\n  adapter_config:\n"])
def test_empty_file_and_empty_sections_mean_the_defaults(tmp_path: Path, text: str) -> None:
    assert schema.load(written(tmp_path, text)).model_dump() == schema.load(None).model_dump()


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "1: 2\n"])
def test_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert path in mistakes_of(path)[0]


def test_missing_and_unreadable_files_say_so(tmp_path: Path) -> None:
    assert mistakes_of(str(tmp_path / "no.yaml")) == [f"configuration file not found: {tmp_path}/no.yaml"]
    assert mistakes_of(str(tmp_path)) == [f"cannot read configuration file {tmp_path}: Is a directory"]
    (tmp_path / "latin.yaml").write_bytes(b"web: \xe9\xff\n")
    assert "not UTF-8" in mistakes_of(str(tmp_path / "latin.yaml"))[0]


def test_hostile_yaml_builds_no_objects(tmp_path: Path) -> None:
    path = written(tmp_path, "web: !!python/object/apply:os.system ['true']\n")
    assert "not valid YAML" in mistakes_of(path)[0]


def test_every_key_has_a_description_and_a_default() -> None:
    keys = schema.keys()
    assert len({key.path for key in keys}) == len(keys)
    for key in keys:
        assert key.description.endswith("."), key
        section: Any = schema.load(None)
        for name in key.path.split("."):
            section = getattr(section, name)
