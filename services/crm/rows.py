"""Rows of files: cutting bytes into records, records into values by path, values into a customer, and back.
Pure.

A path is that of a field of the proto's Customer: "display_name", "phone_numbers[0].number",
"addresses[1].city", "custom_values.colour". Lists of words ("tags") are one value, separated by ";". A file
may end its lines as it likes; a value of a CSV file may hold line ends between quotes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chassis.errors import InvalidArgument
from crm.model import (
    BirthDate,
    Contact,
    Customer,
    EmailAddress,
    ExternalId,
    Kind,
    PhoneNumber,
    PostalAddress,
    Tier,
    ValueClass,
)

#: Largest record, bytes, its line end included: a larger one is refused as a row, and the rest goes on.
RECORD_BYTES_MAX = 1_048_576
COLUMNS_MAX = 500
# A value is as long as its record at most: one that the reader refused in its middle would go on as rows.
csv.field_size_limit(2 * RECORD_BYTES_MAX)
#: Deepest nesting of a JSON Lines object that is read.
DEPTH_MAX = 4
LIST_MAX = 50

_PATH = re.compile(r"([a-z_]+)(?:\[(\d{1,2})\])?(?:\.([A-Za-z0-9_]{1,64}))?")
_TEXTS = frozenset(
    {
        *("display_name", "given_name", "family_name", "language", "time_zone", "home_region"),
        *("account_manager", "notes"),
    }
)
_LISTS: Mapping[str, tuple[type, frozenset[str]]] = {
    "phone_numbers": (PhoneNumber, frozenset({"number", "label", "primary", "verified"})),
    "email_addresses": (EmailAddress, frozenset({"address", "label", "primary", "verified"})),
    "external_ids": (ExternalId, frozenset({"system", "id"})),
    "addresses": (
        PostalAddress,
        frozenset(
            {
                *("country", "province", "city", "district", "township", "street", "postal_code", "label"),
                *("latitude", "longitude"),
            }
        ),
    ),
    "contacts": (Contact, frozenset({"display_name", "role", "language"})),
}
_FLAGS = frozenset({"primary", "verified"})
_DEGREES = frozenset({"latitude", "longitude"})
_TYPED = _FLAGS | _DEGREES
# Possessive: of a doubled quote neither closes a value, also where the real end has not come yet.
_CLOSING = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')
_DATE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})|--?(\d{1,2})-(\d{1,2})")
_TRUE, _FALSE = frozenset({"true", "1", "yes", "y", "是"}), frozenset({"", "false", "0", "no", "n", "否"})


class BadRow(InvalidArgument):
    """{field}: {why}."""

    reason = "INVALID_ROW"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One record of a file, still text."""

    #: Number of its first line, from 1.
    line: int
    #: Its values by column; None when it cannot be read.
    values: Mapping[str, Any] | None
    #: The object as it stands, when it is a customer as the API (and so an export) tells it; None for others.
    whole: Mapping[str, Any] | None = None
    #: Why it cannot be read; "" when it can.
    fault: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A part of a file that begins and ends with a record."""

    #: Its records, to be read by `csv_records` or `json_records`; None for a single one that is too long.
    data: bytes | None
    #: How long it is, bytes.
    size: int
    #: How many lines it has.
    lines: int


@dataclass(kw_only=True, slots=True)
class Cutter:
    """Cuts a stream of bytes into whole records; what is not whole yet waits.

    Of a record that is too long nothing is kept but how far it goes: where it ends does not depend on how the
    file came.
    """

    #: Whether quotes hold line ends together, and CR alone ends a line.
    csv: bool
    #: As of the module; less in tests.
    record_bytes_max: int = RECORD_BYTES_MAX
    #: Bytes that wait.
    _rest: bytearray = field(default_factory=bytearray)
    #: Of the record that they are of: bytes, and lines, that were let go since it is too long.
    _gone: int = 0
    _gone_lines: int = 0
    #: What waits begins within quotes, which were opened by what was let go.
    _quoted: bool = False

    def cut(self, data: bytes, last: bool) -> list[Span]:
        """Everything up to the end of the last whole record; all that is left at the last piece."""
        self._rest += data
        found: list[Span] = []
        # Where the records that are not in a span yet begin, and the last of them.
        first = begin = last_stretch = 0
        quoted = self._quoted
        for start, stop in self._stretches():
            last_stretch, quoted = start, stop < len(self._rest)
            for end in self._ends(start, stop):
                if self._gone + end - begin > self.record_bytes_max:
                    found += [*self._sound(first, begin), self._too_long(begin, end)]
                    first = end
                begin = end
        rest = len(self._rest) - begin
        if self._gone + rest > self.record_bytes_max:
            found += self._sound(first, begin)
            if last:
                found.append(self._too_long(begin, len(self._rest)))
                self._rest.clear()
            else:
                self._let_go(begin, last_stretch, quoted)
            return found
        end = len(self._rest) if last else begin
        found += self._sound(first, end)
        del self._rest[:end]
        if end:
            self._quoted = False
        return found

    def _sound(self, start: int, end: int) -> list[Span]:
        if start == end:
            return []
        data = bytes(self._rest[start:end])
        return [Span(data=data, size=len(data), lines=lines_of(data, csv=self.csv))]

    def _too_long(self, start: int, end: int) -> Span:
        lines = self._gone_lines + lines_of(bytes(self._rest[start:end]), csv=self.csv)
        span = Span(data=None, size=self._gone + end - start, lines=lines)
        self._gone = self._gone_lines = 0
        return span

    def _let_go(self, begin: int, stretch: int, quoted: bool) -> None:
        """Forgets what waits from `begin` on but for what tells how to read on; `stretch` is where the last
        one outside quotes begins.
        """
        keep = len(self._rest)
        if not quoted and begin < stretch == keep:
            # The quote at the end closes, or is the first of two.
            keep, quoted = keep - 1, True
        elif self._rest[-1:] == b"\r" or (not quoted and self._rest[-1:] == b","):
            keep -= 1
        self._gone += keep - begin
        self._gone_lines += lines_of(bytes(self._rest[begin:keep]), csv=self.csv)
        self._quoted = quoted
        del self._rest[:keep]

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """What waits, without what stands between quotes: of a CSV file the last one reaches the end where no
        quotes are open there.
        """
        start, quoted = 0, self._quoted
        while True:
            if quoted:
                closing = _CLOSING.match(self._rest, start)
                if closing is None:
                    return
                start = closing.end()
            opening = self._opening(start) if self.csv else -1
            yield start, opening if opening >= 0 else len(self._rest)
            if opening < 0:
                return
            start, quoted = opening + 1, True

    def _ends(self, start: int, stop: int) -> Iterator[int]:
        """Ends of records in a stretch outside quotes, the first and the last among them: between two that
        follow each other lies no more than a record may have, or one record.
        """
        end = self._first_end(start, stop)
        while end:
            yield end
            start = end
            end = self._last_end(start, min(stop, start + self.record_bytes_max))
            end = end or self._first_end(start, stop)

    def _first_end(self, start: int, stop: int) -> int:
        """0 when there is none."""
        end = self._rest.find(b"\n", start, stop) + 1
        at = self._rest.find(b"\r", start, end or stop) if self.csv else -1
        while at >= 0 and not self._is_end(at):
            at = self._rest.find(b"\r", at + 1, end or stop)
        return at + 1 if at >= 0 else end

    def _last_end(self, start: int, stop: int) -> int:
        """0 when there is none."""
        end = self._rest.rfind(b"\n", start, stop) + 1
        at = self._rest.rfind(b"\r", max(start, end), stop) if self.csv else -1
        while at >= 0 and not self._is_end(at):
            at = self._rest.rfind(b"\r", max(start, end), at)
        return max(end, at + 1)

    def _is_end(self, at: int) -> bool:
        """Whether a CR ends a record by itself; of one at the very end it is not known yet."""
        return at + 1 < len(self._rest) and self._rest[at + 1] != ord("\n")

    def _opening(self, start: int) -> int:
        """Where the next quote opens a value, which it does at its beginning alone; -1 nowhere."""
        at = self._rest.find(b'"', start)
        while at >= 0 and not (self._rest[at - 1] in b",\r\n" if at else not self._gone):
            at = self._rest.find(b'"', at + 1)
        return at


def lines_of(whole: bytes, *, csv: bool) -> int:
    """How many lines `csv_records` or `json_records` count in whole records: those of a CSV file may end in
    CR alone, too, also within a value.
    """
    ends = whole.count(b"\n")
    return ends + whole.count(b"\r") - whole.count(b"\r\n") if csv else ends


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: it holds nothing that stands for bytes that are none
    (`surrogateescape`), nor half of a pair that JSON may escape.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def csv_records(text: str, columns: Sequence[str], first_line: int) -> Iterator[Record]:
    """The records of a CSV text that holds whole records; bytes that are no UTF-8 are surrogates in it."""
    sound, guarded = is_unicode(text), "'" in text
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = first_line + reader.line_num
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(line=line, values=None, fault=f"is not CSV: {error}")
            continue
        if not values:
            continue
        if not (sound or is_unicode("".join(values))):
            yield Record(line=line, values=None, fault="is not UTF-8")
            continue
        if len(values) > len(columns):
            yield Record(line=line, values=None, fault=f"has {len(values)} values for {len(columns)} columns")
            continue
        if guarded:
            values = [unsafe(value) for value in values]
        yield Record(line=line, values=dict(zip(columns, values, strict=False)))


def json_records(text: str, first_line: int) -> Iterator[Record]:
    """The records of a JSON Lines text; bytes that are no UTF-8 are surrogates in it."""
    for number, raw in enumerate(text.split("\n")):
        if not raw.strip():
            continue
        line = first_line + number
        if not is_unicode(raw):
            yield Record(line=line, values=None, fault="is not UTF-8")
            continue
        try:
            found = json.loads(raw, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            yield Record(line=line, values=None, fault="is not JSON")
            continue
        if not isinstance(found, dict):
            yield Record(line=line, values=None, fault="is not a JSON object")
            continue
        if "\\u" in raw and not is_unicode(json.dumps(found, ensure_ascii=False)):
            yield Record(line=line, values=None, fault="escapes half of a character")
            continue
        name = found.get("name")
        whole = found if isinstance(name, str) and name.startswith("customers/") else None
        try:
            yield Record(line=line, values=flat(found), whole=whole)
        except BadRow as error:
            yield Record(line=line, values=None, fault=error.values["why"])


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def flat(found: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """A JSON object as path -> value."""
    if depth > DEPTH_MAX:
        raise BadRow(field=prefix, why=f"is nested deeper than {DEPTH_MAX}")
    values: dict[str, Any] = {}
    for key, value in found.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            values.update(flat(value, f"{path}.", depth + 1))
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            # One more than there may be: a list that is too long is refused and not cut.
            for index, item in enumerate(value[: LIST_MAX + 1]):
                values.update(flat(item if isinstance(item, dict) else {}, f"{path}[{index}].", depth + 1))
        else:
            values[path] = value
        if len(values) > COLUMNS_MAX:
            raise BadRow(field=path, why=f"is beyond {COLUMNS_MAX} values")
    return values


def headings(text: str) -> list[str]:
    """The columns that a CSV file's first record names. InvalidArgument."""
    if not is_unicode(text.partition("\n")[0]):
        raise InvalidArgument(field="data", why="has headings that are not UTF-8: save the file as UTF-8")
    columns = [c.strip() for c in next(csv.reader(io.StringIO(text, newline="")), [])]
    if not columns or len(columns) > COLUMNS_MAX or len(set(columns)) != len(columns) or "" in columns:
        raise InvalidArgument(
            field="data", why=f"must begin with 1 to {COLUMNS_MAX} different, non-empty headings"
        )
    return columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """Which column goes where."""

    #: Heading or key.
    column: str
    #: Path of the field.
    field: str
    #: In place of an empty value.
    default: str = ""


def by_path(values: Mapping[str, Any], mappings: Sequence[Mapped]) -> dict[str, Any]:
    """A record's values by path; without mappings its columns are paths. Empty ones are left out."""
    if not mappings:
        # Most values are texts of a CSV file, where "not empty" is "true".
        return {path: value for path, value in values.items() if value or value not in ("", None)}
    found = {}
    for mapped in mappings:
        value = values.get(mapped.column)
        if value in ("", None):
            value = mapped.default
        if value not in ("", None):
            found[mapped.field] = value
    return found


def check_paths(paths: Sequence[str]) -> None:
    """InvalidArgument naming the first path that no customer has."""
    for index, path in enumerate(paths):
        try:
            _parsed(path)
        except BadRow as error:
            why = f"{path[:80]!r} {error.values['why']}"
            raise InvalidArgument(field=f"mappings[{index}].field", why=why) from None


#: What a value is: a text of an object in a list, as it stands or as something else; a text; a custom
#: field's; and what is read in a way of its own.
_ITEM_TEXT, _ITEM, _TEXT, _OWN, _SOLE = range(5)
#: (name, index in a list or 0, name inside or "", what it is, by path).
_Parsed = tuple[str, int, str, int]
_parsed_paths: dict[str, _Parsed] = {}


def _parsed(path: str) -> _Parsed:
    known = _parsed_paths.get(path)
    if known is not None:
        return known
    match = _PATH.fullmatch(path)
    if match is None:
        raise BadRow(field=path[:80], why="is not a field's path")
    name, index, inner = match[1], int(match[2] or 0), match[3] or ""
    if name in _LISTS:
        if inner not in _LISTS[name][1]:
            raise BadRow(field=path, why="is not a field of a customer")
        sort = _ITEM if inner in _TYPED else _ITEM_TEXT
    elif name == "custom_values":
        if not inner or match[2]:
            raise BadRow(field=path, why="must name one custom field")
        sort = _OWN
    elif name in _TEXTS or name == "id":
        sort = _TEXT
    elif name in _SINGLE:
        sort = _SOLE
    else:
        raise BadRow(field=path, why="is not a field of a customer")
    parsed = (name, index, inner, sort)
    if len(_parsed_paths) < 10_000:
        _parsed_paths[path] = parsed
    return parsed


def fields_of(paths: Iterable[str]) -> set[str]:
    """The fields of a customer that paths lead into. BadRow."""
    return {_parsed(path)[0] for path in paths}


def customer_of(paths: Mapping[str, Any], custom: Mapping[str, Any]) -> tuple[str, Customer]:
    """(the id or "", the customer as drafted). `custom` are the declared custom fields. BadRow."""
    values: dict[str, Any] = {}
    lists: dict[str, dict[int, dict[str, Any]]] = {}
    for path, value in paths.items():
        name, index, inner, sort = _parsed_paths.get(path) or _parsed(path)
        if sort <= _ITEM:
            items = lists.get(name)
            if items is None:
                items = lists[name] = {}
            item = items.get(index)
            if item is None:
                item = items[index] = {}
            item[inner] = value if sort == _ITEM_TEXT and type(value) is str else _inner(path, inner, value)
        elif sort == _TEXT:
            values[name] = value if type(value) is str else as_text(path, value)
        elif sort == _SOLE:
            values[name] = _SINGLE[name](path, value)
        else:
            values.setdefault(name, {})[inner] = _custom(path, custom.get(inner), value)
    for name, items in lists.items():
        values[name] = tuple([_made(name, items[index]) for index in sorted(items)])
    return values.pop("id", ""), Customer(**values)


def _made(name: str, item: dict[str, Any]) -> Any:
    try:
        return _LISTS[name][0](**item)
    except TypeError:
        raise BadRow(field=name, why="lacks its main value") from None


def _inner(path: str, inner: str, value: Any) -> Any:
    if inner in _FLAGS:
        return flag(path, value)
    if inner in _DEGREES:
        return number(path, value)
    return value if type(value) is str else as_text(path, value)


def as_text(path: str, value: Any) -> str:
    """A text, or a number as one: ids are often written so. BadRow for what is neither."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(field=path, why="must be a text")
    return str(value)


def flag(path: str, value: Any) -> bool:
    """Yes or no as files write it. BadRow."""
    text = str(value).strip().lower()
    if text not in _TRUE and text not in _FALSE:
        raise BadRow(field=path, why="must be true or false")
    return text in _TRUE


def number(path: str, value: Any) -> float:
    """A number, finite. BadRow."""
    try:
        found = float(value)
    except (ValueError, TypeError, OverflowError):
        raise BadRow(field=path, why="must be a number") from None
    if not math.isfinite(found):
        raise BadRow(field=path, why="must be a finite number")
    return found


def _custom(path: str, declared: Any, value: Any) -> Any:
    """A text as the declared field has it; what does not fit goes on as it is, and is refused with its
    reason.
    """
    kind = declared.kind.value if declared is not None else "TEXT"
    if kind == "NUMBER":
        return number(path, value)
    if kind == "BOOLEAN":
        return value if isinstance(value, bool) else flag(path, value)
    if kind == "DATE":
        return _date(path, value)
    if kind == "CHOICES":
        return tuple(value) if isinstance(value, list) else tuple(_words(path, value))
    return str(value) if type(value) in (int, float) else value


def _date(path: str, value: Any) -> BirthDate:
    match = _DATE.fullmatch(str(value).strip())
    if match is None:
        raise BadRow(field=path, why="must be a date such as 1990-02-28")
    if match[4]:
        return BirthDate(month=int(match[4]), day=int(match[5]))
    return BirthDate(year=int(match[1]), month=int(match[2]), day=int(match[3]))


def _words(path: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(str(item) for item in value[: LIST_MAX + 1])
    return tuple(word for word in (part.strip() for part in str(value).split(";")) if word)


def _enum(kind: Any, prefix: str) -> Any:
    names = {member.name: member for member in kind if member.value}

    def read(path: str, value: Any) -> Any:
        found = names.get(str(value).strip().upper().removeprefix(prefix))
        if found is None:
            raise BadRow(field=path, why=f"must be one of {', '.join(names)}")
        return found

    return read


def _company(path: str, value: Any) -> str:
    return str(value).removeprefix("customers/")


_SINGLE: Mapping[str, Any] = {
    "kind": _enum(Kind, "CUSTOMER_KIND_"),
    "tier": _enum(Tier, "TIER_"),
    "value_class": _enum(ValueClass, "VALUE_CLASS_"),
    "birth_date": _date,
    "tags": _words,
    "company": _company,
}


# Export ----------------------------------------------------------------------------------------------------

#: Columns of a CSV export without mappings; what a customer has beyond goes into JSON Lines alone.
EXPORT_COLUMNS = (
    *("id", "kind", "display_name", "given_name", "family_name"),
    *(f"phone_numbers[{n}].number" for n in range(3)),
    *(f"email_addresses[{n}].address" for n in range(2)),
    *("external_ids[0].system", "external_ids[0].id"),
    *(
        f"addresses[0].{part}"
        for part in ("country", "province", "city", "district", "township", "street", "postal_code")
    ),
    *("tier", "language", "time_zone", "home_region", "tags", "account_manager", "value_class"),
    *("birth_date", "notes", "company"),
)
#: A spreadsheet would run what begins like this; a telephone number or an amount only looks so.
_FORMULA = re.compile(r"'*(?:[=@\t\r]|[+\-][\d\s.()+\-]*[^\d\s.()+\-])")


def safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula; for CSV files alone, nothing else runs its values."""
    return "'" + text if _FORMULA.match(text) else text


def unsafe(text: str) -> str:
    """The text that `safe` made this of."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text, 1) else text


def value_at(customer: Customer, path: str) -> str:
    """The value at a path as files have it; "" where there is none."""
    name, index, inner, _ = _parsed(path)
    value = getattr(customer, name)
    if name in _LISTS:
        value = getattr(value[index], inner) if index < len(value) else ""
    elif name == "custom_values":
        value = value.get(inner, "")
    if isinstance(value, BirthDate):
        year = f"{value.year:04}" if value.year else "-"
        return f"{year}-{value.month:02}-{value.day:02}"
    if isinstance(value, tuple):
        return ";".join(value)
    return "" if value is None or value is False else "true" if value is True else str(value)


def csv_line(values: Sequence[str]) -> str:
    """One line of a CSV file."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
