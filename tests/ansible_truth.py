"""The results of ansible-core for inventories and expressions. One process answers many questions, because importing it
takes a second.

    ask([{"list": ["-i", "hosts", …]}, {"render": {"text": …, "variables": {…}}}, …]) -> [{"rc", "out", "err"}, …]

Each question is answered by a fork, so that it does not affect later ones.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Json = dict[str, Any]

WITHIN_S = 300  # for all questions


def ask(questions: list[Json], home: Path) -> list[Json]:
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.ansible_truth"], input=json.dumps(questions), env=environment, cwd=home,
        capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [dict(one) for one in json.loads(done.stdout)]


def main() -> None:
    import importlib

    import ansible.cli.inventory
    import ansible.inventory.manager
    import ansible.plugins.inventory.auto
    import ansible.plugins.inventory.ini
    import ansible.plugins.inventory.yaml
    import ansible.template
    import ansible.vars.manager  # noqa: F401 -- all that forks would import each for itself
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader()
    importlib.import_module("ansible_collections.ansible.builtin")  # which reads a long YAML file
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as shape:
        shape.write("all: {hosts: {h1: }}")
        shape.flush()
        InventoryManager(DataLoader(), [shape.name, "h2,"])  # its plugins are then loaded

    gc.disable()
    gc.freeze()  # a garbage collection in a fork would copy all of this
    print(json.dumps([_forked(question) for question in json.load(sys.stdin)]))


def _forked(question: Json) -> Json:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 1
            try:
                code = _answer(question)
            except SystemExit as exc:
                code = int(exc.code or 0)
            except BaseException as exc:
                print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return {"rc": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


def _answer(question: Json) -> int:
    if "list" in question:
        from ansible.cli.inventory import InventoryCLI

        return int(InventoryCLI(["ansible-inventory", *question["list"], "--list"]).run() or 0)
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar, trust_as_template

    asked = question["render"]
    variables = {
        name: trust_as_template(value) if isinstance(value, str) else value
        for name, value in asked["variables"].items()
    }
    print(json.dumps(Templar(DataLoader(), variables=variables).template(trust_as_template(asked["text"]))))
    return 0


if __name__ == "__main__":
    main()
