"""The part of AIP-160 that ListTickets serves: comparisons joined by AND. A hostile expression is refused,
never evaluated.

Grammar: `comparison {AND comparison}`, `comparison = field op value`, op one of = != < <= > >= :, value a
word or a string in double quotes with \\" and \\\\. Which operators a field has is in `_OPERATORS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from chassis.errors import InvalidArgument
from tickets.model import Kind, Phase, Priority
from tickets.validation import clean_id

#: Longest expression, in characters.
FILTER_CHARACTERS_MAX = 2_048
#: Most comparisons in one expression.
CONDITIONS_MAX = 16

Value = str | int | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """One comparison, with the value in the form in which the stores keep the field."""

    #: A key of `STORED`.
    field: str
    #: One of = != < <= > >= : (the last: the list holds the value).
    op: str
    #: What to compare with.
    value: Value


_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\["\\])*") |
        (?P<op>!=|<=|>=|=|<|>|:) |
        (?P<word>[^\s"=<>!():]+) |
        (?P<other>\S)
    )""",
    re.VERBOSE,
)


def _bad(why: str) -> InvalidArgument:
    return InvalidArgument(field="filter", why=why)


def _choice(choices: type[Kind] | type[Phase] | type[Priority], prefix: str) -> Callable[[str], Value]:
    def read(text: str) -> Value:
        try:
            return choices(text.upper().removeprefix(prefix).lower()).value
        except ValueError:
            raise _bad(f"{text[:64]!r} is none of {', '.join(c.name for c in choices)}") from None

    return read


def _word(text: str) -> Value:
    if not text or len(text) > 200 or "\x00" in text:
        raise _bad("a value must have 1 to 200 characters")
    return text


def _named(collection: str) -> Callable[[str], Value]:
    def read(text: str) -> Value:
        prefix, _, id = text.partition("/")
        if prefix != collection or not clean_id(id):
            raise _bad(f"{text[:64]!r} must have the form {collection}/{{id}}")
        return id

    return read


def _boolean(text: str) -> Value:
    if text.lower() not in ("true", "false"):
        raise _bad(f"{text[:64]!r} must be true or false")
    return text.lower() == "true"


def _instant(text: str) -> Value:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _bad(f"{text[:64]!r} is not an RFC 3339 time") from None
    if moment.tzinfo is None:
        raise _bad(f"{text[:64]!r} has no time zone")
    return int(moment.astimezone(UTC).timestamp() * 1000)


_READERS: Mapping[str, Callable[[str], Value]] = {
    "kind": _choice(Kind, "TICKET_KIND_"),
    "phase": _choice(Phase, "TICKET_PHASE_"),
    "priority": _choice(Priority, "PRIORITY_"),
    "state": _word,
    "category": _word,
    "caller_number": _word,
    "customer": _named("customers"),
    "parent": _named("tickets"),
    "call": _named("calls"),
    "open": _boolean,
    "breached": _boolean,
    "tags": _word,
    "create_time": _instant,
    "update_time": _instant,
    "due_time": _instant,
}
_TIMES = frozenset({"create_time", "update_time", "due_time"})
_OPERATORS: Mapping[str, frozenset[str]] = {
    name: frozenset({"=", "<", "<=", ">", ">="})
    if name in _TIMES
    else frozenset({"=", ":"})
    if name in ("tags", "call")
    else frozenset({"=", "!="})
    for name in _READERS
}


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        value = match.group(kind)
        if kind == "other":
            raise _bad(f"does not understand {value!r}")
        if kind == "string":
            kind, value = "word", re.sub(r"\\(.)", r"\1", value[1:-1])
        found.append((kind, value))
        if len(found) > 4 * CONDITIONS_MAX:
            raise _bad(f"holds too much, at most {CONDITIONS_MAX} comparisons are allowed")
    return found


def _condition(tokens: list[tuple[str, str]]) -> Condition:
    if [kind for kind, _ in tokens] != ["word", "op", "word"]:
        raise _bad("must be comparisons such as kind = COMPLAINT, joined by AND")
    field, op, value = (text for _, text in tokens)
    reader = _READERS.get(field)
    if reader is None:
        raise _bad(f"there is no field {field[:64]!r} to filter by")
    if op not in _OPERATORS[field]:
        raise _bad(f"{field} cannot be compared with {op}")
    return Condition(field=field, op=op, value=reader(value))


def parse(text: str) -> tuple[Condition, ...]:
    """The comparisons of an expression, () for an empty one; InvalidArgument(filter) for what is not
    served."""
    if len(text) > FILTER_CHARACTERS_MAX:
        raise _bad(f"must be at most {FILTER_CHARACTERS_MAX} characters, got {len(text)}")
    tokens = _tokens(text.strip())
    if not tokens:
        return ()
    groups: list[list[tuple[str, str]]] = [[]]
    for kind, value in tokens:
        if kind == "word" and value == "AND" and len(groups[-1]) == 3:
            groups.append([])
        else:
            groups[-1].append((kind, value))
    if len(groups) > CONDITIONS_MAX:
        raise _bad(f"holds {len(groups)} comparisons, at most {CONDITIONS_MAX} are allowed")
    return tuple(_condition(group) for group in groups)
