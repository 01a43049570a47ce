"""AIP-160 filter expressions. A hostile one is refused, never evaluated.

Grammar: `expression = sequence {"AND" sequence}`, `sequence = factor {factor}` (a blank joins as AND does),
`factor = term {"OR" term}` (OR binds closer than AND, as AIP-160 has it), `term = ["NOT" | "-"] (comparison |
"(" expression ")")`, `comparison = field op value`, op one of = != < <= > >= :, value a word or a string in
double quotes with \\" and \\\\. `field:*` asks whether there is a value at all. Which fields there are,
and which
operators each has, is the caller's table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from chassis.errors import InvalidArgument
from tickets.model import Channel, Kind, Phase, Priority
from tickets.validation import clean_id

#: Longest expression, in characters.
FILTER_CHARACTERS_MAX = 2_048
#: Most comparisons in one expression.
CONDITIONS_MAX = 16
#: Deepest nesting of parentheses.
DEPTH_MAX = 8

Value = str | int | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """One comparison, with the value in the form in which the stores keep the field."""

    #: A key of the table of fields.
    field: str
    #: One of = != < <= > >= : (the list holds the value) :* (there is a value).
    op: str
    #: What to compare with.
    value: Value


@dataclass(frozen=True, kw_only=True, slots=True)
class AnyOf:
    """At least one holds."""

    #: At least two.
    terms: tuple[Term, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AllOf:
    """All hold."""

    #: At least two.
    terms: tuple[Term, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Not:
    """It doesn't hold."""

    term: Term


Term = Condition | AnyOf | AllOf | Not


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """Something to filter by."""

    #: Makes the value that stores keep of what was written; InvalidArgument(filter).
    read: Callable[[str], Value]
    #: What it may be compared with.
    operators: frozenset[str]
    #: Its name in the stores; empty: the same.
    stored: str = ""
    #: Every stored value is greater. "Has a value" is asked as "above this": an index serves that in its
    #: order, while `$exists` reads documents without one as well (a sparse index of several fields has them).
    below: Value = ""


_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\["\\])*") |
        (?P<op>!=|<=|>=|=|<|>|:) |
        (?P<paren>[()]) |
        (?P<word>[^\s"=<>!():]+) |
        (?P<other>\S)
    )""",
    re.VERBOSE,
)


def _bad(why: str) -> InvalidArgument:
    return InvalidArgument(field="filter", why=why)


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
        if moment.tzinfo is None:
            raise _bad(f"{text[:64]!r} has no time zone")
        return int(moment.astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError):  # the latter at the edges of the calendar, in a zone beyond them
        raise _bad(f"{text[:64]!r} is not an RFC 3339 time") from None


def text_field(stored: str = "") -> Field:
    """A text that is compared whole."""
    return Field(read=_word, operators=frozenset({"=", "!=", ":*"}), stored=stored)


def list_field(stored: str = "") -> Field:
    """A list of texts."""
    return Field(read=_word, operators=frozenset({"=", ":", ":*"}), stored=stored)


def name_field(collection: str, stored: str = "") -> Field:
    """A resource name, stored as its id."""
    return Field(read=_named(collection), operators=frozenset({"=", "!=", ":*"}), stored=stored)


def boolean_field(stored: str = "") -> Field:
    """True or false."""
    return Field(read=_boolean, operators=frozenset({"=", "!="}), stored=stored)


def time_field(stored: str) -> Field:
    """An instant, stored in epoch ms."""
    return Field(
        read=_instant, operators=frozenset({"=", "<", "<=", ">", ">=", ":*"}), stored=stored, below=0
    )


def choice_field(choices: Mapping[str, Value], prefix: str = "", stored: str = "") -> Field:
    """One of a few words, with or without `prefix`; stored as `choices` says."""

    def read(text: str) -> Value:
        word = text.upper().removeprefix(prefix)
        if word not in choices:
            raise _bad(f"{text[:64]!r} is none of {', '.join(choices)}")
        return choices[word]

    return Field(read=read, operators=frozenset({"=", "!="}), stored=stored)


def enum_choices(enum: Any, prefix: str) -> dict[str, Value]:
    """The words of a protobuf enum, without its prefix and its unspecified value."""
    names = [value.name.removeprefix(prefix) for value in enum.DESCRIPTOR.values]
    return {name: name for name in names if name != "UNSPECIFIED"}


def _enum(choices: type[Channel] | type[Kind] | type[Phase] | type[Priority], prefix: str) -> Field:
    return choice_field({choice.name: choice.value for choice in choices}, prefix)


#: What tickets are filtered by.
TICKET_FIELDS: Mapping[str, Field] = {
    "kind": _enum(Kind, "TICKET_KIND_"),
    "phase": _enum(Phase, "TICKET_PHASE_"),
    "priority": _enum(Priority, "PRIORITY_"),
    "state": text_field(),
    "category": text_field(),
    "caller_number": text_field(),
    "flow": name_field("flows"),
    "customer": name_field("customers", "customer_id"),
    "parent": name_field("tickets", "parent_id"),
    "call": Field(read=_named("calls"), operators=frozenset({"=", ":", ":*"}), stored="calls.call_id"),
    "assignee": name_field("agents"),
    "team": name_field("teams"),
    "problem": name_field("problems"),
    "assets": list_field(),
    "products": list_field(),
    "watchers": list_field(),
    "open": boolean_field(),
    "breached": boolean_field(),
    "tags": list_field(),
    "required_skills": list_field(),
    "language": text_field(),
    "customer_tier": text_field("tier"),
    "channel": _enum(Channel, "CHANNEL_"),
    "create_time": time_field("created_ms"),
    "update_time": time_field("updated_ms"),
    "due_time": time_field("due_ms"),
}


def stored_name(name: str, fields: Mapping[str, Field] = TICKET_FIELDS) -> str:
    """What a field is called in the stores."""
    return fields[name].stored or name


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        value = match.group(kind)
        if kind == "other":
            raise _bad(f"does not understand {value!r}")
        if kind == "string":
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.append((kind, value))
    return found


@dataclass(kw_only=True, slots=True)
class _Reader:
    """Where a parse stands. Each method reads one rule of the grammar."""

    tokens: list[tuple[str, str]]
    fields: Mapping[str, Field]
    at: int = 0
    count: int = 0
    depth: int = field(default=0)

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def expression(self) -> list[Term]:
        terms: list[Term] = []
        while True:
            terms.append(self.factor())
            if self.peek() == ("word", "AND"):
                self.at += 1
            elif self.peek()[0] == "end" or self.peek() == ("paren", ")"):
                return terms

    def factor(self) -> Term:
        terms = [self.term()]
        while self.peek() == ("word", "OR"):
            self.at += 1
            terms.append(self.term())
        return terms[0] if len(terms) == 1 else AnyOf(terms=tuple(terms))

    def term(self) -> Term:
        kind, value = self.peek()
        follows_op = self.at + 1 < len(self.tokens) and self.tokens[self.at + 1][0] == "op"
        if (kind, value) == ("word", "NOT") and not follows_op:
            self.at += 1
            return Not(term=self.simple())
        if kind == "word" and value.startswith("-"):
            if value == "-":
                self.at += 1
            else:
                self.tokens[self.at] = (kind, value[1:])
            return Not(term=self.simple())
        return self.simple()

    def simple(self) -> Term:
        if self.peek() != ("paren", "("):
            return self.comparison()
        self.at += 1
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise _bad(f"is nested too deep, at most {DEPTH_MAX} parentheses are allowed")
        terms = self.expression()
        if self.take() != ("paren", ")"):
            raise _bad("has a parenthesis that is not closed")
        self.depth -= 1
        return terms[0] if len(terms) == 1 else AllOf(terms=tuple(terms))

    def comparison(self) -> Condition:
        (kind, name), (op_kind, op), (value_kind, value) = self.take(), self.take(), self.take()
        if kind != "word" or op_kind != "op" or value_kind not in ("word", "string"):
            raise _bad("must be comparisons such as kind = COMPLAINT, joined by AND, OR and NOT")
        if value_kind == "word" and self.peek()[0] == "op":
            # A time, for one: its first part alone would be judged, and the words would be of something else.
            raise _bad(f"{value[:64]!r} goes on with {self.peek()[1]!r}: put such a value in double quotes")
        self.count += 1
        if self.count > CONDITIONS_MAX:
            raise _bad(f"holds too many comparisons, at most {CONDITIONS_MAX} are allowed")
        known = self.fields.get(name)
        if known is None:
            raise _bad(f"there is no field {name[:64]!r} to filter by")
        if op == ":" and value_kind == "word" and value == "*":
            op = ":*"
        if op not in known.operators:
            raise _bad(f"{name} cannot be compared with {op}")
        return Condition(field=name, op=op, value=True if op == ":*" else known.read(value))


def parse(text: str, fields: Mapping[str, Field] = TICKET_FIELDS) -> tuple[Term, ...]:
    """What must all hold, () for an empty expression; InvalidArgument(filter) for what is not served."""
    if len(text) > FILTER_CHARACTERS_MAX:
        raise _bad(f"must be at most {FILTER_CHARACTERS_MAX} characters, got {len(text)}")
    tokens = _tokens(text.strip())
    if not tokens:
        return ()
    reader = _Reader(tokens=tokens, fields=fields)
    terms = reader.expression()
    if reader.peek()[0] != "end":
        raise _bad("has a parenthesis too many")
    return tuple(terms)


_MONGO = {
    "=": "$eq",
    ":": "$eq",
    "!=": "$ne",
    "<": "$lt",
    "<=": "$lte",
    ">": "$gt",
    ">=": "$gte",
    ":*": "$gt",
}


def to_mongo(term: Term, fields: Mapping[str, Field] = TICKET_FIELDS, prefix: str = "") -> dict[str, Any]:
    """The query that finds what a term holds for; stored names get `prefix`."""
    if isinstance(term, Not):
        return {"$nor": [to_mongo(term.term, fields, prefix)]}
    if isinstance(term, AnyOf | AllOf):
        joined = "$or" if isinstance(term, AnyOf) else "$and"
        return {joined: [to_mongo(one, fields, prefix) for one in term.terms]}
    value = fields[term.field].below if term.op == ":*" else term.value
    return {prefix + stored_name(term.field, fields): {_MONGO[term.op]: value}}


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def holds(term: Term, value_of: Callable[[str], Any]) -> bool:
    """Whether a term holds; `value_of` gives a field's stored value (a list, or None where there is none)."""
    if isinstance(term, Not):
        return not holds(term.term, value_of)
    if isinstance(term, AnyOf | AllOf):
        return (any if isinstance(term, AnyOf) else all)(holds(one, value_of) for one in term.terms)
    value = value_of(term.field)
    if term.op == ":*":
        return value not in (None, "", [])
    if isinstance(value, list):
        return (term.value in value) is (term.op != "!=")
    if term.op in ("=", ":"):
        return bool(value == term.value)
    if term.op == "!=":
        return bool(value != term.value)
    return value is not None and _COMPARE[term.op](value, term.value)
