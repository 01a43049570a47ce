"""The envelope: CloudEvents 1.0 in JSON, `data` being the JSON form of a protobuf message.

What comes from the bus is hostile until it was parsed: `from_json` refuses anything that is not exactly an
envelope, within bounds, and says which attribute is wrong. Attributes that CloudEvents allows beside ours are
ignored, as are unknown fields of the message, so that a producer may be newer than its consumer.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from chassis import telemetry
from chassis.clock import to_ms, to_text
from chassis.errors import InvalidArgument, shorten
from chassis.ids import check_id, new_id

#: Largest envelope in bytes, published or accepted.
EVENT_BYTES_MAX = 256 * 1024
SPEC_VERSION = "1.0"
CONTENT_TYPE = "application/cloudevents+json"
_JSON = "application/json"
#: Longest type: AMQP's limit of a routing key.
TYPE_CHARACTERS_MAX = 255
SUBJECT_CHARACTERS_MAX = 255
#: How deep `data` may be nested; protobuf's own parser stops at the same depth.
DATA_DEPTH_MAX = 64

_SOURCE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_SUBJECT = re.compile(r"[\x21-\x7e]*")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")

MessageType = TypeVar("MessageType", bound=Message)


class MalformedEvent(InvalidArgument):
    """The event is not usable: {field} {why}."""

    reason = "MALFORMED_EVENT"


class _Envelope(msgspec.Struct, frozen=True):
    """The JSON object as such; values are checked afterwards."""

    specversion: str
    id: str
    source: str
    type: str
    time: str
    data: dict[str, Any]
    subject: str = ""
    datacontenttype: str = _JSON
    traceparent: str | None = None


_decoder = msgspec.json.Decoder(_Envelope)


class _Label(msgspec.Struct, frozen=True):
    """What of an envelope decides where it goes; the rest is only passed over."""

    id: str
    source: str
    type: str
    traceparent: str | None = None


_label_decoder = msgspec.json.Decoder(_Label)


class _Written(msgspec.Struct, omit_defaults=True):
    """The JSON object as it is written."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    traceparent: str | None = None
    #: Anything that is written as the JSON form of the message.
    data: Any = None


_encoder = msgspec.json.Encoder()


class Told(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An envelope that this process's own service wrote, on its way out as it is: not taken apart again."""

    #: As `Event.id`.
    id: str
    #: As `Event.source`.
    source: str
    #: As `Event.type`.
    type: str
    #: As `Event.traceparent`.
    traceparent: str | None
    #: The envelope.
    body: bytes

    def to_json(self) -> str:
        """The envelope."""
        return self.body.decode()

    @classmethod
    def written(
        cls,
        data: Any,
        *,
        id: str,
        source: str,
        type: str,
        subject: str,
        time: datetime,
        traceparent: str | None,
    ) -> Told:
        """An event as it goes out, whose `data` are whatever msgspec writes as the JSON form of the message:
        a dict, a struct, parts that are JSON already (`msgspec.Raw`). MalformedEvent when it is larger than
        `EVENT_BYTES_MAX`.
        """
        body = _encoder.encode(
            _Written(SPEC_VERSION, id, source, type, subject, to_text(time), _JSON, traceparent, data)
        )
        _check_size(len(body))
        return cls(id=id, source=source, type=type, traceparent=traceparent, body=body)

    @classmethod
    def of(cls, body: str) -> Told:
        """Reads where it goes; MalformedEvent for what is no envelope at all, or too large."""
        raw = body.encode("utf-8", "surrogatepass")
        _check_size(len(raw))
        try:
            label = _label_decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedEvent(field="envelope", why=shorten(str(error))) from None
        if not _SOURCE.fullmatch(label.source):
            raise MalformedEvent(field="source", why="must be the name of a service")
        if len(label.type) > TYPE_CHARACTERS_MAX or not _TYPE.fullmatch(label.type):
            raise MalformedEvent(field="type", why="must be the full name of a message")
        return cls(id=label.id, source=label.source, type=label.type, traceparent=label.traceparent, body=raw)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened, as it travels between services."""

    #: Unique for ever; consumers recognise a repetition by it.
    id: str
    #: Name of the service that says so: "crm".
    source: str
    #: Full name of the protobuf message in `data`; also the routing key.
    type: str
    #: Resource name of what it is about: "customers/123"; may be empty.
    subject: str
    #: Business time at which it happened, timezone-aware UTC, to the millisecond.
    time: datetime
    #: W3C trace context of the call that caused it; None outside a trace.
    traceparent: str | None = None
    #: The message in protobuf's JSON form (lowerCamelCase names).
    data: dict[str, Any]

    @classmethod
    def of(
        cls,
        message: Message,
        *,
        source: str,
        subject: str,
        time: datetime,
        id: str | None = None,
        traceparent: str | None = None,
    ) -> Event:
        """An event that carries `message`; a fresh id and the current call's trace unless given.

        MalformedEvent for attributes that `from_json` would refuse, ValueError for a naive `time`.
        """
        event = cls(
            id=new_id() if id is None else id,
            source=source,
            type=message.DESCRIPTOR.full_name,
            subject=subject,
            time=_to_utc_ms(time),
            traceparent=traceparent or telemetry.current_traceparent(),
            data=MessageToDict(message),
        )
        _check(event)
        return event

    def message(self, cls: builtins.type[MessageType]) -> MessageType:
        """`data` as a protobuf message; MalformedEvent when the type is another or the data does not fit it.

        Unknown fields are ignored.
        """
        if cls.DESCRIPTOR.full_name != self.type:
            raise MalformedEvent(field="type", why=f"is {self.type}, not {cls.DESCRIPTOR.full_name}")
        message = cls()
        try:
            ParseDict(self.data, message, ignore_unknown_fields=True)
        except (ParseError, RecursionError, ValueError) as error:
            raise MalformedEvent(field="data", why=shorten(str(error))) from None
        return message

    def to_json(self) -> str:
        """The envelope; MalformedEvent when it is larger than `EVENT_BYTES_MAX`."""
        return self.body().decode()

    def told(self) -> Told:
        """The event as it goes out; MalformedEvent when it is larger than `EVENT_BYTES_MAX`."""
        return Told.written(
            self.data,
            id=self.id,
            source=self.source,
            type=self.type,
            subject=self.subject,
            time=self.time,
            traceparent=self.traceparent,
        )

    def body(self) -> bytes:
        """The envelope in UTF-8; MalformedEvent when it is larger than `EVENT_BYTES_MAX`."""
        return self.told().body

    @classmethod
    def from_json(cls, body: bytes | str) -> Event:
        """Reads an envelope, strictly; MalformedEvent names the attribute that is wrong."""
        raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
        _check_size(len(raw))
        try:
            envelope = _decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedEvent(field="envelope", why=shorten(str(error))) from None
        if envelope.specversion != SPEC_VERSION:
            raise MalformedEvent(field="specversion", why=f"must be {SPEC_VERSION}")
        if envelope.datacontenttype.partition(";")[0].strip().lower() != _JSON:
            raise MalformedEvent(field="datacontenttype", why="must be application/json")
        event = cls(
            id=envelope.id,
            source=envelope.source,
            type=envelope.type,
            subject=envelope.subject,
            time=_parse_time(envelope.time),
            traceparent=telemetry.valid_traceparent(envelope.traceparent),
            data=envelope.data,
        )
        _check(event)
        return event


def _check_size(size: int) -> None:
    if size > EVENT_BYTES_MAX:
        raise MalformedEvent(field="envelope", why=f"has {size} bytes, at most {EVENT_BYTES_MAX} are allowed")


def _check(event: Event) -> None:
    if not isinstance(event.data, dict):
        raise MalformedEvent(field="data", why="must be an object; some well-known types are not")
    try:
        check_id("id", event.id)
    except InvalidArgument as error:
        raise MalformedEvent(field="id", why=error.values["why"]) from None
    if not _SOURCE.fullmatch(event.source):
        raise MalformedEvent(field="source", why="must be the name of a service")
    if len(event.type) > TYPE_CHARACTERS_MAX or not _TYPE.fullmatch(event.type):
        raise MalformedEvent(field="type", why="must be the full name of a message")
    if len(event.subject) > SUBJECT_CHARACTERS_MAX or not _SUBJECT.fullmatch(event.subject):
        raise MalformedEvent(field="subject", why="must be a resource name")
    _check_depth(event.data)


def _check_depth(data: Mapping[str, Any]) -> None:
    # Level by level, not by recursion: the input decides how deep it goes.
    level: list[Any] = [data]
    for _ in range(DATA_DEPTH_MAX):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise MalformedEvent(field="data", why=f"is nested deeper than {DATA_DEPTH_MAX}")


def _to_utc_ms(moment: datetime) -> datetime:
    """`moment` in UTC, cut to the millisecond as the envelope writes it."""
    to_ms(moment)
    exact = moment.astimezone(UTC)
    return exact.replace(microsecond=exact.microsecond // 1000 * 1000)


def _parse_time(text: str) -> datetime:
    if len(text) > 40 or not _TIME.fullmatch(text) or not text.isascii():
        raise MalformedEvent(field="time", why="must be an RFC 3339 time with its zone")
    try:
        return _to_utc_ms(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise MalformedEvent(field="time", why="is not a time that exists") from None
