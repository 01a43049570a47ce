"""Custom fields: what an enterprise declares, and whether a value fits it. Pure.

1. A field's kind is fixed; label, choices and requirement may change. Values that were good when they were
   written stay, whatever the declaration becomes.
2. A retired field takes no new value; what it holds stays readable and may be kept by an update.
3. A new customer must have every required field; an update must not take one away.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any, Protocol

from crm import identity
from crm.model import BirthDate, CustomField, FieldKind

FIELDS_MAX = 500
CHOICES_MAX = 200
VALUES_MAX = 100
TEXTS_MAX = 50
TEXT_CHARACTERS_MAX = 2_000
LABEL_CHARACTERS_MAX = 100
CHOICE_CHARACTERS_MAX = 100

_ID = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Faults(Protocol):
    """Where faults are noted."""

    def add(self, field: str, why: str) -> None:
        """One fault."""


def is_field_id(text: str) -> bool:
    """Whether it can be a custom field's id."""
    return bool(_ID.fullmatch(text))


def checked(draft: CustomField, faults: Faults) -> CustomField:
    """A declaration as it is kept; faults are noted by their path in the request."""
    label = identity.clean_text(draft.label, LABEL_CHARACTERS_MAX)
    why = identity.text_problem(label, least=1, most=LABEL_CHARACTERS_MAX)
    if why:
        faults.add("custom_field.label", why)
    wants = draft.kind in (FieldKind.CHOICE, FieldKind.CHOICES)
    if wants and not draft.choices:
        faults.add("custom_field.choices", "must not be empty for this kind")
    if not wants and draft.choices:
        faults.add("custom_field.choices", f"do not belong to kind {draft.kind}")
    if len(draft.choices) > CHOICES_MAX:
        faults.add("custom_field.choices", f"must hold at most {CHOICES_MAX}, got {len(draft.choices)}")
    return replace(draft, label=label, choices=_choices(draft.choices[:CHOICES_MAX], faults))


def _choices(drafts: Sequence[str], faults: Faults) -> tuple[str, ...]:
    done: list[str] = []
    for index, draft in enumerate(drafts):
        choice = identity.clean_text(draft, CHOICE_CHARACTERS_MAX)
        why = identity.text_problem(choice, least=1, most=CHOICE_CHARACTERS_MAX)
        if why or choice in done:
            faults.add(f"custom_field.choices[{index}]", why or "repeats another")
        done.append(choice)
    return tuple(done)


def declared(field: CustomField, id: str, now: datetime) -> CustomField:
    """The first version of a checked declaration."""
    return replace(field, id=id, version=1, retired=False, create_time=now)


def changed(current: CustomField, desired: CustomField) -> CustomField | None:
    """The next version; None when nothing differs (rule 1)."""
    after = replace(current, label=desired.label, choices=desired.choices, required=desired.required)
    return None if after == current else replace(after, version=current.version + 1)


def retired(current: CustomField) -> CustomField | None:
    """Retired; None when it is already."""
    return None if current.retired else replace(current, retired=True, version=current.version + 1)


def check_values(
    values: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    fields: Mapping[str, CustomField],
    faults: Faults,
) -> dict[str, Any]:
    """The values as they are kept, `before` being those of the customer so far, None for a new one; faults
    are noted (rules 2, 3).
    """
    known = before or {}
    if len(values) > VALUES_MAX:
        faults.add("customer.custom_values", f"must hold at most {VALUES_MAX}, got {len(values)}")
    done: dict[str, Any] = {}
    for key in sorted(values)[:VALUES_MAX]:
        path = f"customer.custom_values.{key[:64]}"
        # True is 1 to Python, and no number to us.
        if key in known and (type(known[key]), known[key]) == (type(values[key]), values[key]):
            done[key] = values[key]
            continue
        field = fields.get(key)
        if field is None or field.retired:
            faults.add(path, "is not a declared custom field" if field is None else "is retired")
            continue
        value, why = fitted(field, values[key])
        if why:
            faults.add(path, why)
        done[key] = value
    for id, field in fields.items():
        if field.required and not field.retired and id not in values and (before is None or id in before):
            faults.add(f"customer.custom_values.{id}", "is required")
    return done


def fitted(field: CustomField, value: Any) -> tuple[Any, str]:
    """(the value as it is kept, why it does not fit or "")."""
    return _FITTINGS[field.kind](field, value)


def _text(field: CustomField, value: Any) -> tuple[Any, str]:
    if not isinstance(value, str):
        return value, "must be a text"
    cleaned = identity.clean_text(value, TEXT_CHARACTERS_MAX)
    return cleaned, identity.text_problem(cleaned, least=0, most=TEXT_CHARACTERS_MAX, multiline=True)


def _number(field: CustomField, value: Any) -> tuple[Any, str]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return value, "must be a finite number"
    return float(value), ""


def _boolean(field: CustomField, value: Any) -> tuple[Any, str]:
    return value, "" if isinstance(value, bool) else "must be a boolean"


def _date(field: CustomField, value: Any) -> tuple[Any, str]:
    if isinstance(value, BirthDate):
        try:
            date(value.year, value.month, value.day)
            return value, ""
        except (ValueError, OverflowError):
            pass
    return value, "must be a complete date"


def _choice(field: CustomField, value: Any) -> tuple[Any, str]:
    if isinstance(value, str):
        cleaned = identity.clean_text(value, CHOICE_CHARACTERS_MAX)
        if cleaned in field.choices:
            return cleaned, ""
    return value, "must be one of the declared choices"


def _several(field: CustomField, value: Any) -> tuple[Any, str]:
    if not isinstance(value, tuple) or len(value) > TEXTS_MAX:
        return value, f"must be a list of at most {TEXTS_MAX} declared choices"
    cleaned = [identity.clean_text(item, CHOICE_CHARACTERS_MAX) for item in value]
    if not all(item in field.choices for item in cleaned):
        return value, "must hold declared choices only"
    return tuple(dict.fromkeys(cleaned)), ""


_FITTINGS: Mapping[FieldKind, Callable[[CustomField, Any], tuple[Any, str]]] = {
    FieldKind.TEXT: _text,
    FieldKind.NUMBER: _number,
    FieldKind.BOOLEAN: _boolean,
    FieldKind.DATE: _date,
    FieldKind.CHOICE: _choice,
    FieldKind.CHOICES: _several,
}
