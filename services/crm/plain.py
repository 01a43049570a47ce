"""Values of the model as plain ones: for MongoDB, and as JSON for the audit trail. In C, by msgspec: an
import makes both for every field of every row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import datetime
from types import GenericAlias
from typing import Any, get_origin

import msgspec

_encoder = msgspec.json.Encoder()


def json_text(value: Any) -> str:
    """A value's JSON; objects as objects with all their fields."""
    return _encoder.encode(value).decode()


def json_texts(values: Sequence[Any]) -> list[str]:
    """The JSON of each value, as by `json_text`, in one go."""
    # A line end in a text is written as two characters, so a real one stands between values alone.
    return _encoder.encode_lines(values).decode().split("\n")[: len(values)]


def builtin(value: Any) -> Any:
    """Objects as dicts with all their fields, enums as their values, tuples as lists; datetimes stay."""
    return msgspec.to_builtins(value, builtin_types=(datetime,))


def several(kind: Any) -> Any:
    """The shape of a list."""
    return GenericAlias(list, (kind,))


def shape(
    cls: type, inner: Mapping[str, Any], *, always: Collection[str] = (), never: Collection[str] = ()
) -> Any:
    """How `lean` is to take objects of a dataclass. `inner` says what its fields hold that is no plain
    value: the shape of an object, `several(shape)`, `several(Any)` for plain ones. Fields in `always` are
    there even as by default, those in `never` and those made by a factory are not.
    """
    members: list[Any] = []
    for field in fields(cls):
        kind = inner.get(field.name, Any)
        if field.name in never or field.default_factory is not MISSING:
            continue
        if field.name in always or field.default is MISSING:
            members.append((field.name, kind))
        elif get_origin(kind) is list:
            members.append((field.name, kind, msgspec.field(default_factory=list)))
        else:
            members.append((field.name, kind | None if kind is not Any else kind, field.default))
    return msgspec.defstruct(cls.__name__, members, omit_defaults=True, kw_only=True)


def lean(shaped: Any) -> Callable[[Any], dict[str, Any]]:
    """What makes dicts of objects: as by `builtin`, but without what is as by default, inside too."""

    def made(value: Any) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(
            msgspec.convert(value, shaped, from_attributes=True), builtin_types=(datetime,)
        )
        return found

    return made


_defaults_of: dict[type, dict[str, Any]] = {}


def defaults(cls: Any) -> Mapping[str, Any]:
    """Field -> default in plain values, of a dataclass whose fields have any."""
    known = _defaults_of.get(cls)
    if known is None:
        known = _defaults_of[cls] = {
            f.name: builtin(f.default) for f in fields(cls) if f.default is not MISSING
        }
    return known


def without_defaults(cls: type, plain: dict[str, Any]) -> dict[str, Any]:
    """A dict made of an object of `cls`, less what is as by default."""
    default = defaults(cls)
    return {name: value for name, value in plain.items() if name not in default or value != default[name]}
