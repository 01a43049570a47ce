"""The standard methods (AIP 131-135) of every resource that is a record: one way to create, get, list, update
and delete, given what is particular to each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as default_of
from typing import Any

from google.protobuf.json_format import MessageToJson, Parse

from chassis.callcontext import current_identity
from chassis.clock import Clock
from chassis.errors import EtagMismatch, InvalidArgument, ResourceExhausted
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import check_id, new_id, parse_name
from chassis.mongo import etag, parse_etag, retry_conflicts
from chassis.pagination import Page
from tickets import filters, records
from tickets.filters import Field, Term, boolean_field
from tickets.records import Record, RecordQuery, Records

#: (field, what is wrong).
Problem = tuple[str, str]
#: Searched by the service alone.
HIDDEN_FIELDS: Mapping[str, Field] = {"latest": boolean_field(), "retired": boolean_field()}
#: Largest record, bytes of JSON.
RECORD_BYTES_MAX = 1_048_576
#: Longest chosen id; leaves room for a version.
ID_CHARACTERS_MAX = 96


def _no_problems(message: Any) -> Sequence[Problem]:
    return ()


def _no_search(message: Any) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """What is particular to one kind of record."""

    #: A key of `records.RECORDS`, and first part of its name.
    kind: str
    #: Its field in requests.
    field: str
    #: Its message.
    message: type[Any]
    #: What an update may change.
    updatable: frozenset[str]
    #: What is fixed at creation.
    immutable: frozenset[str] = frozenset()
    #: What it may be filtered by.
    fields: Mapping[str, Field] = default_of(default_factory=dict)
    #: What is wrong with a message.
    problems: Callable[[Any], Sequence[Problem]] = _no_problems
    #: What it is searched by.
    search: Callable[[Any], Mapping[str, Any]] = _no_search
    #: What must hold besides of all that are listed.
    always: tuple[Term, ...] = ()
    #: Lists go by name instead of newest first.
    by_id: bool = False
    #: Most of them, every version counted, of a kind that processes read whole; 0: as many as there are.
    most: int = 0


def dump(message: Any) -> str:
    """A message as it is stored."""
    return MessageToJson(message, indent=None, preserving_proto_field_name=True)


class Crud:
    """The standard methods of one resource. Safe for threads."""

    def __init__(self, resource: Resource, store: Records, clock: Clock) -> None:
        self.resource = resource
        self._store = store
        self._clock = clock

    def read(self, record: Record) -> Any:
        """The message of a record, as clients see it."""
        message = self.resource.message()
        Parse(record.body, message, ignore_unknown_fields=True)
        message.name = f"{self.resource.kind}/{record.id}"
        message.etag = etag(record.version) if record.version else ""
        names = message.DESCRIPTOR.fields_by_name
        if "create_time" in names:
            message.create_time.FromMilliseconds(record.created_ms)
        if "update_time" in names:
            message.update_time.FromMilliseconds(record.updated_ms)
        return message

    def id_of(self, name: str, field: str = "name") -> str:
        """The id in a name; InvalidArgument."""
        found = parse_name(field, self.resource.kind, name)
        if "@" in found:
            raise InvalidArgument(field=field, why="names a version; name the resource")
        return found

    def record(self, name: str, field: str = "name") -> Record:
        """The record of a name; InvalidArgument, NotFound."""
        return records.get(self._store, self.resource.kind, self.id_of(name, field))

    def get(self, request: Any) -> Any:
        """One resource."""
        return self.read(self.record(request.name))

    def check(self, message: Any) -> None:
        """InvalidArgument naming each bad field."""
        found = [(f"{self.resource.field}.{name}", why) for name, why in self.resource.problems(message)]
        if not found and len(dump(message).encode("utf-8", "replace")) > RECORD_BYTES_MAX:
            found.append((self.resource.field, f"must be at most {RECORD_BYTES_MAX} bytes in all"))
        if found:
            raise InvalidArgument.many(found)

    def check_names(self, message: Any, record: Record | None, known: Collection[str] = ()) -> None:
        """InvalidArgument naming each field that names another resource, which there is not: neither stored,
        nor `known` to come, nor named by `record` (None: a new one) before."""

    def as_record(self, message: Any, id: str, record: Record | None = None) -> Record:
        """A message made a record; a changed one of `record`."""
        now = self._clock.now_ms()
        bare = type(message)()
        bare.CopyFrom(message)
        for name in ("name", "etag", "create_time", "update_time"):
            if name in bare.DESCRIPTOR.fields_by_name:
                bare.ClearField(name)
        search = {
            key: value for key, value in self.resource.search(message).items() if value not in (None, "", [])
        }
        body = dump(bare)
        if record is not None:
            return replace(record, body=body, search=search, updated_ms=max(now, record.updated_ms))
        return Record(
            kind=self.resource.kind, id=id, body=body, search=search, created_ms=now, updated_ms=now
        )

    def changed(self, message: Any, record: Record) -> Record:
        """What is stored of a changed message, just before it is."""
        return self.as_record(message, record.id, record)

    def check_room(self) -> None:
        """ResourceExhausted when there are as many as may be."""
        kind, most = self.resource.kind, self.resource.most
        if most and self._store.count(kind) >= most:
            raise ResourceExhausted(subject=kind, limit=f"at most {most}")

    def create(self, request: Any, method: str, prepare: Callable[[Any], None] | None = None) -> Any:
        """A new resource; `prepare` fills in what the service decides."""
        message = self.resource.message()
        message.CopyFrom(getattr(request, self.resource.field))
        for descriptor, _ in message.ListFields():
            if descriptor.name not in self.resource.updatable | self.resource.immutable:
                message.ClearField(descriptor.name)
        id_field = f"{self.resource.field}_id"
        chosen = getattr(request, id_field, "")
        if chosen:
            check_id(id_field, chosen, ID_CHARACTERS_MAX)
        elif self.resource.by_id:
            raise InvalidArgument(field=id_field, why="is required")
        if prepare is not None:
            prepare(message)
        self.check(message)
        self.check_names(message, None)
        self.check_room()
        key = request_key(current_identity(), method, request.request_id)
        made, _ = self._store.insert(
            self.as_record(message, chosen or new_id()),
            request_key=key,
            fingerprint=content_fingerprint(request) if key else None,
        )
        return self.read(made)

    def list(self, request: Any) -> tuple[list[Any], str]:
        """(messages of a page, token of the next)."""
        page = Page.of(request)
        query = RecordQuery(
            kind=self.resource.kind,
            terms=filters.parse(getattr(request, "filter", ""), self.resource.fields) + self.resource.always,
            fields={**self.resource.fields, **HIDDEN_FIELDS},
            by_id=self.resource.by_id,
        )
        found = self._store.page(query, page.limit + 1, page.key(int, str))
        shown, token = page.cut(found, lambda record: records.key_of(record, query))
        return [self.read(record) for record in shown], token

    def change(self, name: str, given: str, edit: Callable[[Any], None], field: str = "name") -> Any:
        """Changes a resource as `edit` does with its message (it may run several times); checked afterwards.
        `field` is where the request has the name; the etag stands beside it. NotFound, EtagMismatch when
        `given` is an etag and not the present one."""
        version = parse_etag(field.removesuffix("name") + "etag", given)

        def attempt() -> Any:
            record = self.record(name, field)
            if version is not None and version != record.version:
                raise EtagMismatch(resource=name)
            message = self.read(record)
            edit(message)
            self.check(message)
            self.check_names(message, record)
            return self.read(self._store.update(self.changed(message, record)))

        return attempt() if version is not None else retry_conflicts(attempt)

    def update(self, request: Any, check: Callable[[Any], None] = lambda _: None) -> Any:
        """Partial update (AIP-134); `check` raises where the resource as it is may not be changed."""
        patch, kind = getattr(request, self.resource.field), self.resource

        def edit(message: Any) -> None:
            check(message)
            apply_mask(
                message,
                patch,
                request.update_mask,
                allowed=kind.updatable,
                immutable=kind.immutable,
                at=kind.field,
            )

        return self.change(patch.name, patch.etag, edit, field=f"{kind.field}.name")

    def delete(self, request: Any) -> None:
        """Removes a resource."""
        version = parse_etag("etag", request.etag)
        record = self.record(request.name)
        if version is not None and version != record.version:
            raise EtagMismatch(resource=request.name)
        self._store.delete(record)
