"""The one hierarchy of errors that handlers and engines raise; no transport is imported here, so workers use
it too.

A class's docstring is its message: the first paragraph is a template filled with the keyword arguments it is
raised with. A service subclasses with reasons of its own:

    class CustomerNotFound(NotFound):
        \"\"\"There is no customer {resource}.\"\"\"

        reason = "CUSTOMER_NOT_FOUND"

The gRPC server turns an error into a rich status (`chassis.grpc_status`): exactly one `ErrorInfo` with the
reason, the domain `callmesh.<service>` and the keyword arguments as metadata, plus `BadRequest`,
`PreconditionFailure`, `RetryInfo` or `QuotaFailure` where the error carries them. Permission is checked
before existence, so nobody learns from an error whether a thing exists that they may not see.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

#: Most violations one error carries: details travel in a trailer, and clients refuse trailers beyond about 8
#: KiB.
VIOLATIONS_MAX = 16
#: Longest text of one violation or metadata value, in characters.
TEXT_CHARACTERS_MAX = 200
#: Longest message of an error, in characters.
MESSAGE_CHARACTERS_MAX = 300


class Code(enum.StrEnum):
    """gRPC's status codes by name. The table to gRPC's own values stands in the server alone."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldViolation:
    """One input that cannot be accepted."""

    #: Path of the field in the request, snake_case, dots between levels: "customer.numbers".
    field: str
    #: What is wrong with it and what would be right.
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PreconditionViolation:
    """One condition of the system's state that is not met."""

    #: Kind of condition, UPPER_SNAKE.
    type: str
    #: What it is about: a resource name or a setting.
    subject: str
    #: What has to happen before a repeat can succeed.
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaViolation:
    """One limit that was reached."""

    #: Whose limit: "client:<subject>", a resource name, "server".
    subject: str
    #: Which limit, and its value.
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorDetails:
    """What an error says to a machine."""

    #: UPPER_SNAKE, unique within the domain, never changed once published.
    reason: str
    #: "callmesh.<service>"; empty until the server fills it in.
    domain: str = ""
    #: The values that the message was made of.
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: For BadRequest; at most `VIOLATIONS_MAX`.
    field_violations: tuple[FieldViolation, ...] = ()
    #: For PreconditionFailure.
    precondition_violations: tuple[PreconditionViolation, ...] = ()
    #: For RetryInfo: seconds after which a repeat makes sense; None when a repeat as it is cannot help.
    retry_seconds: float | None = None
    #: For QuotaFailure.
    quota: tuple[QuotaViolation, ...] = ()


def shorten(text: str, limit: int = TEXT_CHARACTERS_MAX) -> str:
    """`text`, at most `limit` characters, with an ellipsis where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _template(cls: type) -> str:
    """The first paragraph of the nearest docstring on the way up."""
    for base in inspect.getmro(cls):
        doc = base.__dict__.get("__doc__")
        if doc:
            return " ".join(inspect.cleandoc(doc).split("\n\n", 1)[0].split())
    return str(cls.__name__)


class Blank(dict[str, Any]):
    """A template may name a value that this instance was raised without."""

    def __missing__(self, key: str) -> str:
        return ""


class CallmeshError(Exception):
    """Something went wrong."""

    #: The status that a caller sees.
    code: Code = Code.INTERNAL
    #: UPPER_SNAKE, in ErrorInfo.
    reason: str = "INTERNAL"
    #: Whether it says good-bye: this server ends as it was told to, and its clients go on at another one.
    #: Each rollout has thousands of these, and none of them is a fault.
    farewell: bool = False
    _message_template = "Something went wrong."

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._message_template = _template(cls)

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.message = shorten(
            self._message_template.format_map(Blank(values)).strip(), MESSAGE_CHARACTERS_MAX
        )
        super().__init__(self.message)
        self.details = self._details()

    def _details(self) -> ErrorDetails:
        """Overridden where an error carries more than its reason and values."""
        return ErrorDetails(reason=self.reason, metadata=self._metadata())

    def _metadata(self) -> dict[str, str]:
        return {key: shorten(str(value)) for key, value in self.values.items() if value not in (None, "")}

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross thread pools and process pools; the default would lose the keyword arguments.
        return _rebuild, (type(self), self.values)


def _rebuild(cls: type[CallmeshError], values: dict[str, Any]) -> CallmeshError:
    return cls(**values)


class InvalidArgument(CallmeshError):
    """{field}: {why}."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str = "", why: str = "is not valid", **values: Any) -> None:
        """`field` is the path in the request ("customer.numbers"), `why` ends without a full stop."""
        self._violations: tuple[FieldViolation, ...] = tuple(values.pop("violations", ()))
        super().__init__(field=field, why=why.rstrip("."), **values)

    @classmethod
    def many(cls, violations: Iterable[tuple[str, str] | FieldViolation]) -> InvalidArgument:
        """One error for several bad fields, given as (field, why); needs at least one, keeps
        `VIOLATIONS_MAX`.
        """
        found = [
            v if isinstance(v, FieldViolation) else FieldViolation(field=v[0], description=shorten(v[1]))
            for v in violations
        ]
        if not found:
            raise ValueError("InvalidArgument.many needs at least one violation")
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return cls(field=first.field, why=first.description + more, violations=tuple(found[:VIOLATIONS_MAX]))

    def within(self, path: str) -> InvalidArgument:
        """The same, of what stands at `path` in the request."""
        violations = [replace(each, field=f"{path}.{each.field}") for each in self._violations]
        values = {**self.values, "field": f"{path}.{self.values['field']}", "violations": violations}
        return type(self)(**values)

    def _details(self) -> ErrorDetails:
        own = FieldViolation(field=self.values["field"], description=shorten(self.values["why"]))
        return ErrorDetails(
            reason=self.reason, metadata=self._metadata(), field_violations=self._violations or (own,)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {**self.values, "violations": self._violations})


@contextmanager
def within(path: str) -> Iterator[None]:
    """Checks a part of a request: what it says of a field is said of the field's whole path."""
    try:
        yield
    except InvalidArgument as error:
        raise error.within(path) from None


class MalformedRequest(InvalidArgument):
    """The request is not a valid {message} message."""

    reason = "MALFORMED_REQUEST"

    def __init__(self, message: str = "protobuf", **values: Any) -> None:
        values.setdefault("field", "")
        values.setdefault("why", f"the bytes received do not parse as {message}")
        super().__init__(message=message, **values)


class NotFound(CallmeshError):
    """{resource} was not found."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"

    def __init__(self, resource: str = "", **values: Any) -> None:
        """`resource` is the full resource name: "customers/123"."""
        super().__init__(resource=resource, **values)


class AlreadyExists(CallmeshError):
    """{resource} exists already."""

    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"

    def __init__(self, resource: str = "", **values: Any) -> None:
        """`resource` is the full resource name."""
        super().__init__(resource=resource, **values)


class FailedPrecondition(CallmeshError):
    """{subject}: {why}."""

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"

    def __init__(
        self, subject: str = "", why: str = "is not in a state that allows this", **values: Any
    ) -> None:
        """`subject` is a resource name, `why` says what has to change first."""
        super().__init__(subject=subject, why=why.rstrip("."), **values)

    def _details(self) -> ErrorDetails:
        violation = PreconditionViolation(
            type=self.reason, subject=self.values["subject"], description=shorten(self.values["why"])
        )
        return ErrorDetails(
            reason=self.reason, metadata=self._metadata(), precondition_violations=(violation,)
        )


class EtagMismatch(CallmeshError):
    """{resource} was changed since it was read; read it again and repeat."""

    code = Code.ABORTED
    reason = "ETAG_MISMATCH"

    def __init__(self, resource: str = "", **values: Any) -> None:
        """`resource` is the full resource name."""
        super().__init__(resource=resource, **values)


class PermissionDenied(CallmeshError):
    """This call needs the scope {scope}."""

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"

    def __init__(self, scope: str = "", **values: Any) -> None:
        super().__init__(scope=scope, **values)


class Unauthenticated(CallmeshError):
    """The caller is not authenticated: {why}."""

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"

    def __init__(self, why: str = "no valid token", **values: Any) -> None:
        super().__init__(why=why.rstrip("."), **values)


class ResourceExhausted(CallmeshError):
    """A limit is reached: {subject}{limit}."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self, subject: str = "", retry_seconds: float | None = None, limit: str = "", **values: Any
    ) -> None:
        """`subject` says whose limit, `limit` which one (optional)."""
        super().__init__(
            subject=subject, retry_seconds=retry_seconds, limit=f", {limit}" if limit else "", **values
        )

    def _details(self) -> ErrorDetails:
        text = self.values["limit"].removeprefix(", ") or self.message
        return ErrorDetails(
            reason=self.reason,
            metadata=self._metadata(),
            retry_seconds=self.values["retry_seconds"],
            quota=(QuotaViolation(subject=shorten(self.values["subject"]), description=shorten(text)),),
        )

    def _metadata(self) -> dict[str, str]:
        return {"subject": shorten(str(self.values["subject"]))}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {**self.values, "limit": self.values["limit"].removeprefix(", ")})


class Unavailable(CallmeshError):
    """Not available just now: {why}."""

    code = Code.UNAVAILABLE
    reason = "UNAVAILABLE"

    def __init__(self, why: str = "try again", retry_seconds: float | None = 1.0, **values: Any) -> None:
        """`retry_seconds` becomes RetryInfo; None when nothing is known."""
        super().__init__(why=why.rstrip("."), retry_seconds=retry_seconds, **values)

    def _details(self) -> ErrorDetails:
        return ErrorDetails(
            reason=self.reason, metadata=self._metadata(), retry_seconds=self.values["retry_seconds"]
        )


class DeadlineExceeded(CallmeshError):
    """The caller's deadline is over."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unimplemented(CallmeshError):
    """{method} is not implemented by this server."""

    code = Code.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"

    def __init__(self, method: str = "", **values: Any) -> None:
        """`method` is the full method name: "/callmesh.crm.v1.CrmService/GetCustomer"."""
        super().__init__(method=method, **values)


class Internal(CallmeshError):
    """An internal error; it was logged with this call's trace id."""

    code = Code.INTERNAL
    reason = "INTERNAL"


class StartError(Exception):
    """A process cannot start; its text is the one line that the operator reads."""


#: What makes one of ours out of a library's exception; see `translates`.
Translation = Callable[[BaseException], "CallmeshError"]
_translations: list[tuple[type[BaseException], Translation]] = []


def translates(foreign: type[BaseException], translation: Translation) -> None:
    """Registers how exceptions of a library are shown to callers; the adapter that uses the library calls
    this once.
    """
    if all(known is not foreign for known, _ in _translations):
        _translations.append((foreign, translation))


def translate(error: BaseException) -> CallmeshError:
    """`error` itself if it is ours, its registered translation, or `Internal`, which says nothing of the
    cause.
    """
    if isinstance(error, CallmeshError):
        return error
    for foreign, translation in _translations:
        if isinstance(error, foreign):
            return translation(error)
    return Internal()
