"""The only place where our errors meet gRPC's statuses."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from chassis import localize
from chassis.errors import CallmeshError, Code, ErrorDetails, shorten

#: Name of the trailer that carries a google.rpc.Status.
DETAILS_TRAILER = "grpc-status-details-bin"
#: Most bytes of details, where the message leaves them that many.
DETAILS_BYTES_MAX = 4096
#: Most bytes of an error's trailers as they travel: clients in Java and C refuse more than 8 KiB, names and
#: 32 bytes a header included, and gRPC adds headers of its own. Binary values grow by a third on the way, and
#: a character of the message that is not ASCII takes up to twelve bytes.
TRAILERS_BYTES_MAX = 8192 - 512
#: How long the texts of details may be that do not fit, characters, one after another.
TEXT_CHARACTERS_LESS = (100, 50, 25, 12)

GRPC_CODES: dict[Code, grpc.StatusCode] = {code: grpc.StatusCode[code.name] for code in Code}


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(math.ceil(max(0.0, seconds) * 1000))
    return info


def _messages(details: ErrorDetails, domain: str) -> list[Message]:
    """ErrorInfo first, then whatever else the error carries."""
    found: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=details.reason, domain=details.domain or domain, metadata=dict(details.metadata)
        )
    ]
    if details.retry_seconds is not None:
        found.append(_retry_info(details.retry_seconds))
    if details.field_violations:
        bad = error_details_pb2.BadRequest()
        for field in details.field_violations:
            # A path may hold a key of a map, which is as long as the caller liked.
            bad.field_violations.add(field=shorten(field.field), description=field.description)
        found.append(bad)
    if details.precondition_violations:
        failure = error_details_pb2.PreconditionFailure()
        for condition in details.precondition_violations:
            failure.violations.add(
                type=condition.type,
                subject=shorten(condition.subject),
                description=shorten(condition.description),
            )
        found.append(failure)
    if details.quota:
        quota = error_details_pb2.QuotaFailure()
        for limit in details.quota:
            quota.violations.add(subject=limit.subject, description=limit.description)
        found.append(quota)
    return found


def _localize(error: CallmeshError, language: str, package: str, messages: list[Message]) -> None:
    """Adds the message in the caller's language, and to each bad field what is wrong with it."""
    locale = localize.TAGS[language]
    for message in messages:
        if language == "zh" and isinstance(message, error_details_pb2.BadRequest):
            for field in message.field_violations:
                field.localized_message.locale = locale
                field.localized_message.message = shorten(localize.sentence(field.description, package))
    text = localize.message(error, language, package)
    messages.append(error_details_pb2.LocalizedMessage(locale=locale, message=text))


def _room(status: status_pb2.Status) -> int:
    """Bytes that are left for details beside the status's message, which travels twice."""
    left = TRAILERS_BYTES_MAX - len(quote(status.message))
    return min(DETAILS_BYTES_MAX, left * 3 // 4 - len(status.message.encode()))


def _fit(messages: list[Message], room: int) -> None:
    """Makes details fit into so many bytes."""
    lists: list[Any] = [
        found
        for message in messages
        for name in ("field_violations", "violations")
        if (found := getattr(message, name, None))
    ]

    def size() -> int:
        # Each is packed with the name of its type.
        return sum(message.ByteSize() + len(message.DESCRIPTOR.full_name) + 32 for message in messages)

    while size() > room and lists and len(lists[0]) > 1:
        del lists[0][-1]
    # Programs look at the metadata of ErrorInfo, which comes first: cut only when nothing else helps.
    for some in (messages[1:], messages):
        for characters in TEXT_CHARACTERS_LESS:
            if size() <= room:
                return
            for message in some:
                _cut(message, characters)


def _cut(message: Message, characters: int) -> None:
    """Shortens the texts of one detail that came from callers; reason, domain and language stay."""
    match message:
        case error_details_pb2.ErrorInfo():
            for key, value in message.metadata.items():
                message.metadata[key] = shorten(value, characters)
        case error_details_pb2.LocalizedMessage():
            message.message = shorten(message.message, 2 * characters)
        case error_details_pb2.BadRequest():
            for bad in message.field_violations:
                bad.field, bad.description = (
                    shorten(bad.field, characters),
                    shorten(bad.description, characters),
                )
                if bad.localized_message.message:
                    bad.localized_message.message = shorten(bad.localized_message.message, characters)
        case error_details_pb2.PreconditionFailure() | error_details_pb2.QuotaFailure():
            for each in message.violations:
                each.subject = shorten(each.subject, characters)
                each.description = shorten(each.description, characters)


def rich_status(
    error: CallmeshError, domain: str, accept_language: str | None = None, package: str = "chassis"
) -> status_pb2.Status:
    """The error as google.rpc.Status, with a LocalizedMessage when the caller sent an Accept-Language header,
    worded by the texts of `package` and the chassis. What does not fit into a trailer beside the message is
    left out: violations, last first, then the ends of texts, of ErrorInfo's metadata last.
    """
    status = status_pb2.Status(code=GRPC_CODES[error.code].value[0], message=error.message)
    messages = _messages(error.details, domain)
    language = localize.preferred(accept_language)
    if language is not None:
        _localize(error, language, package, messages)
    _fit(messages, _room(status))
    for message in messages:
        status.details.add().Pack(message)
    return status


def abort_arguments(
    error: CallmeshError, domain: str, accept_language: str | None = None, package: str = "chassis"
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """What `context.abort` takes: code, message, trailing metadata."""
    status = rich_status(error, domain, accept_language, package)
    return GRPC_CODES[error.code], error.message, ((DETAILS_TRAILER, status.SerializeToString()),)


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """The ErrorInfo of an error that a client received, None without one."""
    return next(iter(detail_messages(error, error_details_pb2.ErrorInfo)), None)


def detail_messages(error: grpc.RpcError, kind: type[Any]) -> list[Any]:
    """All details of the type `kind` (BadRequest, RetryInfo, ...) of an error that a client received."""
    found = []
    trailers: Any = error.trailing_metadata()
    for key, value in trailers or ():
        if key == DETAILS_TRAILER:
            for packed in status_pb2.Status.FromString(value).details:
                if packed.Is(kind.DESCRIPTOR):
                    message = kind()
                    packed.Unpack(message)
                    found.append(message)
    return found
