"""docs/worker.schema.json and docs/worker.md match the code: every key is described, and the example works."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from procguard.deploy.inventory.templates.renderer import Renderer
from procguard.deploy.inventory.workers import SpecReader
from remote_agent.protocol import messages

ROOT = Path(__file__).parents[4]
sys.path.insert(0, str(ROOT / "scripts"))
PAGE = (ROOT / "docs" / "worker.md").read_text(encoding="utf-8")
EXAMPLE = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
PARTS = (messages.WorkerSpec, messages.RestartPolicy, messages.HealthCheck, messages.Hook, messages.Limits)


def test_schema_and_tables_are_what_the_code_says() -> None:
    """Run `python scripts/worker_schema.py` after a change in remote_agent/protocol/worker_spec.py."""
    import worker_schema

    assert (ROOT / "docs" / "worker.schema.json").read_text(encoding="utf-8") == worker_schema.schema_text()
    assert worker_schema.with_tables(PAGE) == PAGE


@pytest.mark.parametrize("cls", PARTS)
def test_every_key_has_a_description_in_schema_and_page(cls: type[Any]) -> None:
    schema = json.loads((ROOT / "docs" / "worker.schema.json").read_text(encoding="utf-8"))
    described = schema if cls is messages.WorkerSpec else schema["$defs"][cls.__name__]
    assert described["additionalProperties"] is False
    for item in dataclasses.fields(cls):
        assert described["properties"][item.name]["description"] == item.metadata["description"]
        assert re.search(rf"^\| `(\w+\.)?{item.name}` \|", PAGE, re.MULTILINE)


def read(declared: Any) -> tuple[list[Any], list[str]]:
    mistakes: list[str] = []
    reader = SpecReader(Renderer({}), "inventory.yaml:1", lambda where, what, step: mistakes.append(f"{what}; {step}"))
    return reader.read(declared), mistakes


def test_the_page_s_example_is_taken_by_the_inventory() -> None:
    workers, mistakes = read(EXAMPLE["all"]["hosts"]["gpu01"]["procguard_workers"])
    assert mistakes == [] and [worker.worker_id for worker in workers] == ["train-a", "import-once"]
    spec = messages.decode(messages.WorkerSpec, workers[0].spec)
    assert spec.pre_start == [messages.Hook("rsync -a /data/ /scratch/")]
    assert spec.post_stop == [messages.Hook("rm -rf /scratch/tmp", 60.0)]
    assert spec.setup == ["module load cuda"] and spec.limits == messages.Limits(nofile=65536, core=0)
    assert workers[1].spec["oneshot"] is True


@pytest.mark.parametrize(
    ("key", "value", "reported"),
    [
        ("env_fil", ".env", "unknown key env_fil; did you mean env_file?"),
        ("limits", {"memory_mx": 1}, "unknown key limits.memory_mx; did you mean limits.memory_max?"),
        ("pre_start", [{"comand": "x"}], "unknown key pre_start.comand; did you mean pre_start.command?"),
        ("limits", {"nofile": "many"}, "limits.nofile 'many': expected a number or unlimited"),
        ("limits", {"cpu_max": -1}, "limits.cpu_max -1.0: expected a number of CPUs, like 2.5"),
        ("umask", 23, 'umask must be in quotes; write: umask: "027"'),
        ("umask", "888", "umask '888': expected octal digits"),
        ("pre_start", [""], "a pre_start hook has no command"),
        ("post_stop", {"command": "x", "timeout_s": 0}, "post_stop: timeout_s 0.0: expected seconds above 0"),
    ],
)
def test_wrong_values_and_near_keys_are_named(key: str, value: Any, reported: str) -> None:
    workers, mistakes = read([{"id": "w1", "command": "x", key: value}])
    assert workers == [] and len(mistakes) == 1 and reported in mistakes[0]


def test_setup_may_be_a_block_of_text() -> None:
    workers, _ = read([{"id": "w1", "command": "x", "setup": "cd a\nif true; then\n  b\nfi\n"}])
    assert workers[0].spec["setup"] == ["cd a\nif true; then\n  b\nfi\n"]
