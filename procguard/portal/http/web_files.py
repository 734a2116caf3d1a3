"""Serves the portal's files: the page, its scripts and styles, its texts.

A checkout serves `web/` directly; each file is revalidated at each load (304). A wheel also contains a bundle
(`web/dist`, built by scripts/web/bundle.mjs): a few files named by their content hash, which browsers cache for a
year. Only files in the bundle's manifest are served from it, from memory, so that an upgrade of the files does not
affect a running manager. Texts and fields are assembled here; the page refers to them by content hash. Knows no
session.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import bottle

from procguard import hints
from procguard.agent_api import http_io
from procguard.errors import ProcGuardError
from procguard.i18n.reasons import for_portal

BUNDLE = "dist"
LOCALES = {"locales/en.json": "en", "locales/zh-CN.json": "zh"}
FIELDS = "fields.json"
TYPES = {".js": "text/javascript; charset=UTF-8", ".css": "text/css; charset=UTF-8", ".svg": "image/svg+xml"}
SCRIPTS = ("js/first.js", "js/main.js")  # modules of the page; the first one must not import the second one
JSON_TYPE = "application/json"
ALWAYS_ASK = "no-cache"
KEEP = "public, max-age=31536000, immutable"  # immutable: its URL changes with its content
NEVER_CHANGES = re.compile(r"\w[\w.-]*-[0-9A-Za-z]{8}\.(?:js|css|svg)")
_FILES = re.compile(r"<!-- files:.*?<!-- end of files -->", re.DOTALL)
_MODULES = re.compile(r"<!-- modules:.*?-->")
_IMPORTS = re.compile(r"^(?:import|export) [^;]*?from '([^']+)';", re.MULTILINE)


@dataclass(frozen=True)
class Stored:
    """A cached body. `encoded`: gzip and br forms, if they are shorter; `tag`: its ETag, weak because all codings
    share it."""

    body: bytes
    kind: str
    tag: str
    encoded: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class BundledFiles:
    main: str
    early: str
    style: str
    icon: str
    files: dict[str, Stored]


class WebFiles:
    """`directory`: web/; `fields`: the body of GET /api/fields."""

    def __init__(self, directory: str, fields: Callable[[], bytes]) -> None:
        self._directory = directory
        self._bundle = read_bundle(os.path.join(directory, BUNDLE))
        self._fields = fields
        self._texts: dict[str, tuple[tuple[int, int], Stored]] = {}  # name -> (version of the source file, result)

    def page(self) -> bottle.HTTPResponse:
        """The HTML page, with links to every file that it needs, which saves the round trips of discovering them."""
        with open(os.path.join(self._directory, "index.html"), encoding="utf-8") as file:
            page = file.read()
        page = page.replace('data-commands="invoke"', f'data-commands="{hints.form()}" data-texts="{self._version()}"')
        if self._bundle is not None:
            links = _bundle_links(self._bundle)
            page = _FILES.sub(lambda _: links, page)
        else:
            links = _module_links(self._directory)
            page = _MODULES.sub(lambda _: links, page)
        return _answer(stored(page.encode(), "text/html; charset=UTF-8"), ALWAYS_ASK)

    def file(self, path: str) -> Any:
        """A file of web/; bottle prevents paths outside of that directory."""
        if any(part.startswith(".") for part in path.split("/")):
            return bottle.HTTPError(404)
        if path.startswith(f"{BUNDLE}/"):
            found = self._bundle and self._bundle.files.get(path.removeprefix(f"{BUNDLE}/"))
            return _answer(found, KEEP) if found else bottle.HTTPError(404)
        if path == FIELDS or path in LOCALES:
            current = bottle.request.query.get("v") == self._version()
            return _answer(self._text(path), KEEP if current else ALWAYS_ASK)
        answer = bottle.static_file(path, root=self._directory)
        answer.set_header("Cache-Control", ALWAYS_ASK)
        return answer

    def _version(self) -> str:
        tags = "".join(self._text(name).tag for name in (*LOCALES, FIELDS))
        return hashlib.sha256(tags.encode()).hexdigest()[:12]

    def _text(self, name: str) -> Stored:
        """The portal's texts together with the templates of all reasons (i18n), or the fields of the lists."""
        path = os.path.join(self._directory, name)
        seen = os.stat(path) if name in LOCALES else None
        state = (seen.st_mtime_ns, seen.st_size) if seen else (0, 0)
        known = self._texts.get(name)
        if known is not None and known[0] == state:
            return known[1]
        if name in LOCALES:
            with open(path, encoding="utf-8") as file:
                body = http_io.dumps({**json.loads(file.read()), **for_portal(LOCALES[name])})
        else:
            body = self._fields()
        made = stored(body, JSON_TYPE, {"gzip": gzip.compress(body, 9, mtime=0)})
        self._texts[name] = (state, made)
        return made


def stored(body: bytes, kind: str, encoded: dict[str, bytes] | None = None) -> Stored:
    shorter = {name: packed for name, packed in (encoded or {}).items() if len(packed) < len(body)}
    return Stored(body, kind, f'W/"{hashlib.sha256(body).hexdigest()[:32]}"', shorter)


def read_bundle(folder: str) -> BundledFiles | None:
    """Read the bundle; None if there is none. Raises ProcGuardError if it is incomplete."""
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            said = json.loads(file.read())
        files = {str(name): _read_file(folder, str(name)) for name in said["files"]}
        made = BundledFiles(said["main"], said["early"], said["style"], said["icon"], files)
        missing = [one for one in (made.main, made.early, made.style, made.icon) if one not in files]
        if missing:
            raise ValueError(f"{missing[0]} is not among its files")
    except FileNotFoundError as exc:
        if exc.filename == os.path.join(folder, "manifest.json"):
            return None
        raise ProcGuardError(f"the portal's files are not whole: no {exc.filename}", "install ProcGuard again") from exc
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise ProcGuardError(f"the portal's files are not whole: {folder}: {exc}", "install ProcGuard again") from exc
    return made


def _read_file(folder: str, name: str) -> Stored:
    if not NEVER_CHANGES.fullmatch(name):
        raise ValueError(f"{name[:80]!r} does not name its content")
    bodies = {}
    for ending in ("", ".gz", ".br"):
        with open(os.path.join(folder, name + ending), "rb") as file:
            bodies[ending] = file.read()
    kind = TYPES[os.path.splitext(name)[1]]
    return stored(bodies[""], kind, {"br": bodies[".br"], "gzip": bodies[".gz"]})


def accepted(header: str) -> set[str]:
    """The codings that an Accept-Encoding names and allows; "gzip;q=0" excludes gzip."""
    found = set()
    for one in header[:400].split(","):
        name, _, weight = one.partition(";")
        if not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight):
            found.add(name.strip().lower())
    return found


def _answer(one: Stored, caching: str) -> bottle.HTTPResponse:
    headers = {"Cache-Control": caching, "ETag": one.tag, "Vary": "Accept-Encoding"}
    if one.tag in (bottle.request.get_header("If-None-Match") or ""):
        return bottle.HTTPResponse(b"", 304, headers)
    headers["Content-Type"] = one.kind
    allowed = accepted(bottle.request.get_header("Accept-Encoding") or "")
    coding = next((name for name in ("br", "gzip") if name in allowed and name in one.encoded), None)
    if coding is None:
        return bottle.HTTPResponse(one.body, 200, headers)
    return bottle.HTTPResponse(one.encoded[coding], 200, headers | {"Content-Encoding": coding})


def _bundle_links(bundle: BundledFiles) -> str:
    there = f"/static/{BUNDLE}/"
    return "\n    ".join(
        [
            f'<script src="{there}{bundle.early}"></script>',
            f'<link rel="icon" type="image/svg+xml" href="{there}{bundle.icon}">',
            f'<link rel="stylesheet" href="{there}{bundle.style}">',
            f'<script type="module" src="{there}{bundle.main}"></script>',
        ]
    )


def _module_links(directory: str) -> str:
    """The modules that each script of the page imports statically, directly or indirectly, in the order in which they
    are fetched. Pages are imported when they are opened."""
    found: list[str] = []
    for script in SCRIPTS:
        found.append(script)
        for name in found:
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                imported = _IMPORTS.findall(file.read())
            paths = (posixpath.normpath(posixpath.join(posixpath.dirname(name), one)) for one in imported)
            found += [path for path in dict.fromkeys(paths) if path not in found]
    return "\n    ".join(f'<link rel="modulepreload" href="/static/{name}">' for name in found)
