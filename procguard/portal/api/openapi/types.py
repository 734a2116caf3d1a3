"""Response types built from the declared fields of fleet/shapes, for the OpenAPI description."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field as Described
from typing_extensions import NotRequired, TypedDict

from procguard.fields import ShownField
from procguard.fleet.shapes import parts
from procguard.json_types import Json, ReasonParams
from remote_agent.protocol import messages

_KNOWN: dict[str, object] = {
    **vars(parts),
    "Any": Any,
    "Json": Json,
    "Literal": Literal,
    "Moment": str | None,
    "ReasonParams": ReasonParams,
    "messages": messages,
}


def answer_type(
    name: str, words: str, fields: Sequence[ShownField[Any]], names: Mapping[str, Any], also: Sequence[str] = ()
) -> Any:
    """A TypedDict with these fields. `words`: its docstring. `names`: globals of the module that defines the types of
    the fields. `also`: names of fields outside the API's own that some responses have."""
    annotations: dict[str, object] = {}
    for one in fields:
        if one.part_of or not (one.api or one.name in also):
            continue
        kind = _resolved(one.type, names)
        kind = Annotated[kind, Described(description=one.says)] if one.says else kind
        annotations[one.name] = NotRequired[kind] if one.optional or one.name in also else kind
    made: Any = TypedDict(name, annotations)  # type: ignore[misc]
    made.__doc__ = words
    made.__module__ = names["__name__"]
    return made


def _resolved(text: str, names: Mapping[str, Any]) -> Any:
    holder = type("Holder", (), {"__annotations__": {"it": text}})
    return typing.get_type_hints(holder, {**_KNOWN, **names})["it"]
