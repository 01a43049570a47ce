"""What a server's refusal is in Python: one class a status, one attribute a detail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from chassis.grpc_status import detail_messages

#: Longest advice of a server that is followed, seconds.
RETRY_SECONDS_MAX = 30.0


class CallError(Exception):
    """A call failed. `str()` is the text in the language that was asked for, else in English."""

    def __init__(self, text: str, *, code: grpc.StatusCode, error: grpc.RpcError) -> None:
        super().__init__(text)
        #: gRPC's status.
        self.code = code
        info = _one(error, error_details_pb2.ErrorInfo)
        #: UPPER_SNAKE, stable: what a program looks at. The status's name when the server did not answer
        #: itself.
        self.reason: str = info.reason if info is not None else code.name
        #: "callmesh.<service>", "" when no server of ours answered.
        self.domain: str = info.domain if info is not None else ""
        #: The values that the text was made of.
        self.metadata: Mapping[str, str] = dict(info.metadata) if info is not None else {}
        told = _one(error, error_details_pb2.LocalizedMessage)
        #: BCP 47 tag of the text.
        self.locale: str = told.locale if told is not None else "en-US"
        #: Path of each bad field -> what is wrong with it, in the text's language where it is known.
        self.fields: Mapping[str, str] = {
            violation.field: violation.localized_message.message or violation.description
            for bad in detail_messages(error, error_details_pb2.BadRequest)
            for violation in bad.field_violations
        }
        retry = _one(error, error_details_pb2.RetryInfo)
        #: When the server thinks that a repeat makes sense, seconds, at most `RETRY_SECONDS_MAX`; None: it
        #: says nothing.
        self.retry_seconds: float | None = (
            None
            if retry is None
            else min(max(0.0, retry.retry_delay.ToMilliseconds() / 1000), RETRY_SECONDS_MAX)
        )


class InvalidArgument(CallError):
    """The request cannot be right: see `fields`."""


class NotFound(CallError):
    """There is no such thing."""


class AlreadyExists(CallError):
    """There is one already."""


class FailedPrecondition(CallError):
    """Something has to change first."""


class Aborted(CallError):
    """Somebody else was faster: an etag is old, or a newer stream took over."""


class PermissionDenied(CallError):
    """The token lacks a scope: `metadata["scope"]`."""


class Unauthenticated(CallError):
    """No token, or one that is not accepted."""


class ResourceExhausted(CallError):
    """A limit is reached."""


class Unavailable(CallError):
    """Not now; tries were made where they were safe."""


class DeadlineExceeded(CallError):
    """No answer in time: what became of the call is not known."""


class Unimplemented(CallError):
    """The server is older than the method, or does not do it."""


class ServerFault(CallError):
    """Anything that should not happen."""


_CLASSES: Mapping[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # What gRPC answers for a server that ends in the moment of the call; a call that we end ourselves is
    # asyncio's CancelledError.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


def _one(error: grpc.RpcError, kind: type[Any]) -> Any:
    return next(iter(detail_messages(error, kind)), None)


def of(error: grpc.aio.AioRpcError) -> CallError:
    """The exception that stands for what gRPC raised."""
    told = _one(error, error_details_pb2.LocalizedMessage)
    text = told.message if told is not None else (error.details() or error.code().name)
    return _CLASSES.get(error.code(), ServerFault)(text, code=error.code(), error=error)
