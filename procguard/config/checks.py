"""Validators of single values: each function returns the value to use, or raises ValueError whose text says what was
expected. Must not know for which key the value is."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from typing import Any
from urllib.parse import urlsplit

from procguard.config.types import postgres_url_problem


def absolute_path(text: str) -> str:
    if not text.strip():
        raise ValueError("a path")
    return os.path.abspath(os.path.expanduser(text))


def state_path(text: str) -> str:
    if not text.endswith((".yaml", ".yml", ".db", ".sqlite")):
        raise ValueError("a path that ends in .yaml (readable) or in .db (SQLite)")
    return text


def database_url(text: str) -> str:
    problem = postgres_url_problem(text) if text else ""
    if problem:
        raise ValueError(problem)
    return text


def manager_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", text):
        raise ValueError("up to 64 letters, digits, dots, dashes and underscores")
    return text


def path_or_nothing(text: str) -> str:
    return absolute_path(text) if text else ""


def network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError as exc:
        raise ValueError("an IP address or a network, e.g. 10.0.0.2 or 10.1.0.0/24") from exc
    return text


def upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def log_format(text: str) -> str:
    record = logging.LogRecord("name", logging.INFO, "file", 1, "message", None, None)
    try:
        logging.Formatter(text).format(record)
    except (KeyError, ValueError, TypeError) as exc:
        raise ValueError(f'a format of Python\'s logging, e.g. "%(asctime)s - %(message)s" ({exc})') from exc
    return text


def nothing_said(value: Any) -> Any:
    return {} if value is None else value


def address(text: str) -> str:
    if not text or any(letter.isspace() or letter == "/" for letter in text):
        raise ValueError("an IP address or a host name to listen on, e.g. 0.0.0.0 or 127.0.0.1")
    return text


def web_address(text: str) -> str:
    if text and (urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).hostname):
        raise ValueError("an address that begins with http:// or https://")
    return text


def manager_url(text: str) -> str:
    expected = "an address that agents can reach, e.g. http://10.0.0.5:5000"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise ValueError(expected) from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or port == 0:
        raise ValueError(expected)
    return text.rstrip("/")
