"""Values of the model as plain ones: for MongoDB, and as JSON for the audit trail. In C, by msgspec: an
import makes both for every field of every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()


def json_text(value: Any) -> str:
    """A value's JSON; objects as objects with all their fields."""
    return _encoder.encode(value).decode()


def builtin(value: Any) -> Any:
    """Objects as dicts with all their fields, enums as their values, tuples as lists; datetimes stay."""
    return msgspec.to_builtins(value, builtin_types=(datetime,))


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
