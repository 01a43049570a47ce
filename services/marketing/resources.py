"""The standard methods (AIP 131-135) of resources that lie on a shelf in the form of their message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from chassis.auth import current_identity
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import EtagMismatch, FailedPrecondition, InvalidArgument
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import check_id, new_id, parse_name
from chassis.mongo import etag, parse_etag, retry_conflicts
from chassis.pagination import Page
from marketing import convert
from marketing.engine import Problem
from marketing.scopes import method
from marketing.shelf import Kind, Row, Shelves

#: Longest wait, window and time limit, days. A Duration may hold ten thousand years, which end beyond any
#: calendar.
SPAN_DAYS_MAX = 400
#: Fields that the server alone writes.
_SERVED = ("name", "etag", "create_time", "update_time", "campaign_holds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """One kind of message on a shelf, and its rules."""

    #: Name of its service, for request keys.
    service: str
    #: Name of the field that holds it in requests: "tariff".
    field: str
    kind: Kind
    #: The message's class.
    message: Any
    #: What is wrong with a message; beside it the stored one that it is to replace, None for a new one.
    problems: Callable[[Any, Any], list[Problem]]
    #: What it is looked up by.
    keys: Callable[[Any], dict[str, Any]] = lambda _: {}
    #: What is kept beside the message that it is looked up by as well, where it is there.
    kept_keys: frozenset[str] = frozenset()
    #: Fields that Update may not change, beside the name; they are the server's or fixed for good.
    fixed: frozenset[str] = frozenset()


class Desk:
    """The standard methods of one resource."""

    def __init__(
        self,
        resource: Resource,
        shelves: Shelves,
        clock: Clock,
        shown: Callable[[Row], Any] | None = None,
    ) -> None:
        """`shown` makes the message of a row where that takes more than the row; `plain` otherwise."""
        self.resource = resource
        self.shelves = shelves
        self.clock = clock
        self.shown = shown or self.plain

    def plain(self, row: Row) -> Any:
        """The message of a row, from the row alone."""
        message = self.resource.message()
        ParseDict(row.content["resource"], message, ignore_unknown_fields=True)
        names = message.DESCRIPTOR.fields_by_name
        message.name = self.resource.kind.name(row.id)
        if "etag" in names:
            message.etag = etag(row.version)
        for field, moment in (("create_time", row.created_at), ("update_time", row.updated_at)):
            if field in names and moment is not None:
                getattr(message, field).FromDatetime(moment)
        return message

    def content(self, message: Any) -> dict[str, Any]:
        """A message as stored."""
        kept = type(message)()
        kept.CopyFrom(message)
        for field in _SERVED:
            if field in kept.DESCRIPTOR.fields_by_name:
                kept.ClearField(field)
        return {"resource": MessageToDict(kept, preserving_proto_field_name=True)}

    def check(self, message: Any, stored: Any = None) -> None:
        """InvalidArgument that names every bad field; `stored` is what the message is to replace."""
        if problems := [*enum_problems(message), *self.resource.problems(message, stored)]:
            raise InvalidArgument.many([(f"{self.resource.field}.{at}", why) for at, why in problems])

    def create(
        self, request: Any, prepare: Callable[[Any], Sequence[Event]] = lambda _: (), rpc: str = ""
    ) -> Any:
        """Adds what the request holds; `prepare` may fill in the server's fields and tells the events."""
        field = self.resource.field
        message = self.resource.message()
        message.CopyFrom(getattr(request, field))
        for name in self.resource.fixed:
            message.ClearField(name)
        wanted = getattr(request, f"{field}_id")
        id = check_id(f"{field}_id", wanted) if wanted else new_id()
        message.name = self.resource.kind.name(id)
        self.check(message)
        events = prepare(message)
        if getattr(request, "validate_only", False):
            return message
        rpc = rpc or "Create" + "".join(part.capitalize() for part in field.split("_"))
        key = request_key(current_identity(), method(self.resource.service, rpc), request.request_id)
        row = Row(id=id, content=self.content(message), keys=self.resource.keys(message))
        stored, _ = self.shelves.insert(
            self.resource.kind,
            row,
            self.clock.now(),
            events,
            request_key=key,
            fingerprint=content_fingerprint(request) if key is not None else None,
        )
        return self.shown(stored)

    def row(self, name: str, field: str = "name") -> Row:
        """The row of a resource name."""
        kind = self.resource.kind
        return self.shelves.get(kind, parse_name(field, kind.resource, name))

    def get(self, request: Any) -> Any:
        """Reads one."""
        return self.shown(self.row(request.name))

    def list(
        self, request: Any, condition: Mapping[str, Any], order: str = "_id"
    ) -> tuple[Sequence[Any], str]:
        """(a page, the token of the next). InvalidArgument."""
        if problems := enum_problems(request):
            raise InvalidArgument.many(problems)
        page = Page.of(request)
        name = order.removeprefix("-")
        after = page.value(str) if name == "_id" else page.key(float, str)
        found = self.shelves.find(self.resource.kind, condition, page.limit + 1, after=after, order=order)
        shown, token = page.cut(found, lambda row: row.id if name == "_id" else (row.keys[name], row.id))
        return [self.shown(row) for row in shown], token

    def update(
        self,
        request: Any,
        allowed: Callable[[Any], None] = lambda _: None,
        change: Callable[[Any, Any], None] = lambda _, __: None,
    ) -> Any:
        """Changes the fields named by the mask; `allowed` raises where the present state forbids it, `change`
        where it forbids the step from (what was, what is wanted).
        """
        given = getattr(request, self.resource.field)
        version = parse_etag(f"{self.resource.field}.etag", given.etag)

        def attempt() -> Any:
            row = self.row(given.name, f"{self.resource.field}.name")
            if version is not None and row.version != version:
                raise EtagMismatch(resource=given.name)
            target = self.shown(row)
            allowed(target)
            names = {field.name for field in target.DESCRIPTOR.fields}
            fixed = {*self.resource.fixed, *_SERVED} & names
            apply_mask(target, given, request.update_mask, allowed=names - fixed)
            before = self.shown(row)
            change(before, target)
            self.check(target, before)
            return self.save(row, target)

        return retry_conflicts(attempt, 1 if version is not None else 5)

    def save(self, row: Row, message: Any, events: Sequence[Event] = (), **extra: Any) -> Any:
        """Stores a changed message; `extra` joins what is kept beside it."""
        content = {**row.content, **self.content(message), **extra}
        kept = {key: content[key] for key in self.resource.kept_keys if key in content}
        changed = replace(row, content=content, keys={**self.resource.keys(message), **kept})
        return self.shown(self.shelves.update(self.resource.kind, changed, self.clock.now(), events))

    def delete(self, request: Any, allowed: Callable[[Any], None] = lambda _: None) -> None:
        """Removes one."""
        version = parse_etag("etag", request.etag)

        def attempt() -> None:
            row = self.row(request.name)
            if version is not None and row.version != version:
                raise EtagMismatch(resource=request.name)
            allowed(self.shown(row))
            self.shelves.delete(self.resource.kind, row)

        retry_conflicts(attempt, 1 if version is not None else 5)

    def move(self, request: Any, change: Callable[[Any], Sequence[Event]], **extra: Any) -> Any:
        """Applies a verb: `change` alters the message and answers the events, or raises."""
        version = parse_etag("etag", getattr(request, "etag", ""))

        def attempt() -> Any:
            row = self.row(request.name)
            if version is not None and row.version != version:
                raise EtagMismatch(resource=request.name)
            message = self.shown(row)
            events = change(message)
            return self.save(row, message, events, **extra)

        return retry_conflicts(attempt, 1 if version is not None else 5)


def turn(
    message: Any, verb: str, table: Mapping[tuple[int, str], int], refusal: type[FailedPrecondition]
) -> str:
    """Brings a message into the state that a verb leads to by its table; the name of the state before. The
    `refusal` where the table has no row.
    """
    states = message.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number
    before = states[message.state].name.removeprefix(states[0].name.removesuffix("UNSPECIFIED"))
    after = table.get((message.state, verb))
    if after is None:
        raise refusal(subject=message.name, why=f"it is {before}")
    message.state = after
    return str(before)


def enum_problems(message: Any, at: str = "") -> list[Problem]:
    """The values that this server does not know, of all enums in a message: protobuf lets any number pass."""
    found: list[Problem] = []
    for field, value in message.ListFields():
        for index, one in enumerate(value if field.is_repeated else [value]):
            path = f"{at}{field.name}[{index}]" if field.is_repeated else f"{at}{field.name}"
            if field.enum_type is not None and one not in field.enum_type.values_by_number:
                found.append((path, "is not a value that this server knows"))
            elif field.message_type is not None:
                found += enum_problems(one, f"{path}.")
    return found


def span_problems(field: str, span: Any) -> list[Problem]:
    """What is wrong with a wait, a window or a time limit."""
    if not timedelta() <= span.ToTimedelta() <= timedelta(days=SPAN_DAYS_MAX):
        return [(field, f"must be 0 to {SPAN_DAYS_MAX} days")]
    return []


def texts_problems(field: str, texts: Sequence[Any], *, characters_max: int = 2_000) -> list[Problem]:
    """What is wrong with texts by language, at least one."""
    from marketing.engine import is_language

    found: list[Problem] = []
    if not 1 <= len(texts) <= 8:
        found.append((field, "needs 1 to 8 texts"))
    for at, text in enumerate(texts[:8]):
        if not is_language(text.language):
            found.append((f"{field}[{at}].language", "must be two or three lower-case letters"))
        if not 1 <= len(text.text.strip()) <= len(text.text) <= characters_max:
            found.append((f"{field}[{at}].text", f"must be 1 to {characters_max} characters"))
    return found


def text_problems(field: str, text: str, characters_max: int, *, required: bool = False) -> list[Problem]:
    """What is wrong with a plain text."""
    if required and not text.strip():
        return [(field, "must not be empty")]
    if len(text) > characters_max:
        return [(field, f"must be at most {characters_max} characters")]
    return []


def name_problems(field: str, collection: str, name: str) -> list[Problem]:
    """What is wrong with an optional resource name."""
    found: list[Problem] = []
    convert._name_id(field, collection, name, found)
    return found


def money_problems(field: str, holder: Any, name: str, currency: str) -> list[Problem]:
    """What is wrong with an optional amount in the one currency."""
    found: list[Problem] = []
    money = convert._optional_money(holder, name, found)
    if money is not None and (money.currency != currency or money.amount < 0):
        found.append((name, f"must be an amount of {currency}, not negative"))
    return [(f"{field}{at}", why) for at, why in found]
