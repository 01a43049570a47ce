"""The only place where our errors meet gRPC's statuses."""

from __future__ import annotations

import math
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from chassis import localize
from chassis.errors import CallmeshError, Code, ErrorDetails, shorten

#: Name of the trailer that carries a google.rpc.Status.
DETAILS_TRAILER = "grpc-status-details-bin"
#: Most bytes of details: clients refuse trailers of more than about 8 KiB, and binary ones grow by a third on
#: the way.
DETAILS_BYTES_MAX = 4096

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
            bad.field_violations.add(field=field.field, description=field.description)
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


def rich_status(
    error: CallmeshError, domain: str, accept_language: str | None = None, package: str = "chassis"
) -> status_pb2.Status:
    """The error as google.rpc.Status, with a LocalizedMessage when the caller sent an Accept-Language header,
    worded by the texts of `package` and the chassis; violations that do not fit into `DETAILS_BYTES_MAX` are
    left out, last first.
    """
    status = status_pb2.Status(code=GRPC_CODES[error.code].value[0], message=error.message)
    messages = _messages(error.details, domain)
    language = localize.preferred(accept_language)
    if language is not None:
        _localize(error, language, package, messages)
    lists: list[Any] = [
        found
        for message in messages
        for name in ("field_violations", "violations")
        if (found := getattr(message, name, None))
    ]
    while sum(message.ByteSize() for message in messages) > DETAILS_BYTES_MAX and lists and len(lists[0]) > 1:
        del lists[0][-1]
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
