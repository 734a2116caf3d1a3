"""A hook of Hatchling that bundles the portal's files into the wheel, in procguard/data/web/dist.

It bundles if node and esbuild are installed (scripts/setup_web.sh), and downloads nothing. Without them, `pip install
.` gives a wheel that serves the modules unbundled, and prints a note; PROCGUARD_WEB_BUNDLE=required makes this an
error, as in `invoke release`. PROCGUARD_WEB_BUNDLE=FOLDER uses an existing bundle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSIDE = "procguard/data/web/dist"
HOW = "run scripts/setup_web.sh first"


class WebBundle(BuildHookInterface):  # type: ignore[type-arg,misc]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        asked = os.environ.get("PROCGUARD_WEB_BUNDLE", "")
        if asked not in ("", "required"):
            if not os.path.isfile(os.path.join(asked, "manifest.json")):
                sys.exit(f"wheel: PROCGUARD_WEB_BUNDLE={asked} holds no bundle; make it by scripts/web/bundle.mjs")
            build_data["force_include"][os.path.abspath(asked)] = INSIDE
            return
        missing = why_not(self.root)
        if missing and asked == "required":
            sys.exit(f"wheel: the portal cannot be bundled: {missing}; {HOW}")
        if missing:
            print(f"wheel: the portal is not bundled and loads more slowly: {missing}; {HOW}", file=sys.stderr)
            return
        self._folder = tempfile.mkdtemp(prefix="procguard-web-")
        bundle(self.root, self._folder)
        build_data["force_include"][self._folder] = INSIDE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        folder = getattr(self, "_folder", None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def why_not(root: str) -> str:
    """What is missing for bundling; "" if nothing is."""
    if shutil.which("node") is None:
        return "there is no node"
    if not os.path.isdir(os.path.join(root, "scripts", "web", "node_modules", "esbuild")):
        return "esbuild is not installed"
    return ""


def bundle(root: str, folder: str) -> None:
    done = subprocess.run(
        ["node", os.path.join(root, "scripts", "web", "bundle.mjs"), folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"wheel: the portal cannot be bundled:\n{done.stdout}{done.stderr}".rstrip())
