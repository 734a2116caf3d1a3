"""Converts messages to JSON-ready values and back, for the records that messages.py passes to it.

Knows no message: `nested` and `reasons` name the fields that hold other messages and the texts that are reasons.
"""

from __future__ import annotations

from remote_agent.protocol.hints import TYPE_CHECKING, Any
from remote_agent.protocol.reasons import Reason, accepted
from remote_agent.protocol.reasons import fields as reason_fields
from remote_agent.protocol.records import empty_defaults, names, values_of

if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

_AS_IT_IS = frozenset((str, int, float, bool, type(None)))


class WireError(ValueError):
    """A message that this side cannot decode; the text names the field."""


class Codec:
    """`nested`: class -> field -> ("one" or "list", class of what it holds). `reasons`: class -> its reasons' fields;
    a reason NAME is accompanied by NAME_code and NAME_params if it has a code."""

    def __init__(self, nested: dict[type, dict[str, tuple[str, type]]], reasons: dict[type, tuple[str, ...]]) -> None:
        self._nested = nested
        self._reasons = {cls: [(name, f"{name}_code", f"{name}_params") for name in of] for cls, of in reasons.items()}
        beside = {name + end for of in reasons.values() for name in of for end in ("_code", "_params")}
        self._absent_where_empty = frozenset(beside | {"metrics"})

    def encode(self, message: Any) -> dict[str, Any]:
        """A message as JSON-ready values, as dataclasses.asdict returns, but without deep copies (a tenth of the time).

        The code and the parameters of a reason are stored beside its text; empty metrics are omitted.
        """
        values = self._plain_items(values_of(message).items())
        for name in self._absent_where_empty & values.keys():
            if not values[name]:
                del values[name]
        return values

    def encode_short(self, message: Any) -> dict[str, Any]:
        """As `encode`, without the fields that have an empty default and this value; `decode` restores them. For
        heartbeats, most of whose fields are empty."""
        values: dict[str, Any] = {}
        usual = empty_defaults(type(message))
        for name, value in values_of(message).items():
            kind = type(value)
            if kind is Reason:
                if value:
                    values.update(reason_fields(name, value))
            elif name not in values and (name not in usual or value != usual[name]):
                values[name] = value if kind in _AS_IT_IS else self._short(value)
        return values

    def _short(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._short(one) for one in value]
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        return self._plain_items(value.items()) if isinstance(value, dict) else self.encode_short(value)

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        if isinstance(value, (list, tuple)):
            return [self._plain(one) for one in value]
        if isinstance(value, dict):
            return self._plain_items(value.items())
        return self.encode(value)

    def _plain_items(self, items: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in items:
            kind = type(value)
            if kind is Reason:
                values.update(reason_fields(name, value))
            elif name not in values:
                values[name] = value if kind in _AS_IT_IS else self._plain(value)
        return values

    def encode_dict(self, values: dict[str, Any]) -> dict[str, Any]:
        """As `encode`, for a dictionary."""
        return self._plain_items(values.items())

    def with_reasons(self, message: T) -> T:
        """The message with its texts converted to reasons; this also bounds what an agent sends."""
        values = vars(message)
        for name, its_code, its_params in self._reasons.get(type(message), ()):
            if getattr(message, its_code):
                made = accepted(getattr(message, name), getattr(message, its_code), getattr(message, its_params))
                values[name], values[its_code], values[its_params] = made, made.code, made.params
        return message

    def decode(self, cls: type[T], data: Any) -> T:
        """Rebuild a message from parsed JSON. Unknown keys are ignored, missing ones take their defaults.

        Checks shape only as far as rebuilding needs it; the manager validates types and bounds with pydantic on top.
        Raises WireError naming the field.
        """
        if not isinstance(data, dict):
            raise WireError(f"{cls.__name__}: expected an object, got {type(data).__name__}")
        nested = self._nested.get(cls, {})
        values: dict[str, Any] = {}
        for name in names(cls):
            if name not in data:
                continue
            value = data[name]
            if value is not None and name in nested:
                kind, inner = nested[name]
                if kind == "one":
                    value = self.decode(inner, value)
                elif isinstance(value, list):
                    value = [self.decode(inner, one) for one in value]
                else:
                    raise WireError(f"{cls.__name__}.{name}: expected a list, got {type(value).__name__}")
            values[name] = value
        try:
            return self.with_reasons(cls(**values))
        except TypeError as exc:
            raise WireError(f"{cls.__name__}: {exc}") from exc
