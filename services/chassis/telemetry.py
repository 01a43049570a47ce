"""Traces: OpenTelemetry's API, W3C `traceparent` in and out, and next to no cost for a call that is not
sampled.

A sampled incoming trace is always continued; a call without one starts a trace with probability
`trace_ratio`. Unless an exporter is set up nothing is recorded and an incoming `traceparent` is only handed
on.
"""

from __future__ import annotations

import random
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from chassis import callcontext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from chassis.config import ServiceSettings

#: Name of the header, on gRPC and on the bus.
TRACEPARENT = "traceparent"
#: Most spans waiting for export; further ones are dropped.
SPANS_QUEUED_MAX = 2048
#: How long spans are still tried to be exported at the end where the collector does not take them, seconds:
#: the library itself would go on for half a minute, longer than a pod is given.
SHUTDOWN_SECONDS_MAX = 3.0

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_INSTRUMENTATION = "callmesh"


class _State:
    """What `setup` decided."""

    def __init__(self) -> None:
        self.provider: TracerProvider | None = None
        #: Of the provider, where it exports to a collector.
        self.exporter: SpanExporter | None = None
        self.ratio = 0.0
        self.tracer: trace.Tracer = trace.NoOpTracer()


_state = _State()


def setup(settings: ServiceSettings, *, exporter: SpanExporter | None = None) -> None:
    """Starts exporting to the settings' collector, or to `exporter` (tests); does nothing when there is
    neither.

    Export is OTLP over HTTP in both kinds of process, because the gRPC exporter would load grpc into workers.
    """
    shutdown()
    endpoint = settings.otel_exporter_otlp_endpoint
    if exporter is None and not endpoint:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    resource = Resource.create(
        {"service.name": f"callmesh-{settings.service}", "service.instance.id": settings.instance_name()}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        target = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(target, max_queue_size=SPANS_QUEUED_MAX))
        _state.exporter = target
    _state.provider = provider
    _state.ratio = settings.trace_ratio
    _state.tracer = provider.get_tracer(_INSTRUMENTATION)


def shutdown() -> None:
    """Exports what is waiting, for `SHUTDOWN_SECONDS_MAX` and the request that is under way then, and stops;
    safe to repeat.
    """
    provider, _state.provider = _state.provider, None
    exporter, _state.exporter = _state.exporter, None
    _state.ratio = 0.0
    _state.tracer = trace.NoOpTracer()
    if provider is not None:
        giving_up = threading.Timer(SHUTDOWN_SECONDS_MAX, exporter.shutdown) if exporter else None
        if giving_up is not None:
            giving_up.start()
        provider.shutdown()
        if giving_up is not None:
            giving_up.cancel()


def tracer() -> trace.Tracer:
    """The tracer for spans of our own; records nothing before `setup`."""
    return _state.tracer


def valid_traceparent(value: object) -> str | None:
    """`value` if it is a W3C traceparent, else None: what a client sends is never passed on unread."""
    if isinstance(value, str) and len(value) == 55 and (match := _TRACEPARENT.fullmatch(value)):
        trace_id, span_id, _ = match.groups()
        if value[:2] != "ff" and int(trace_id, 16) and int(span_id, 16):
            return value
    return None


def extract(headers: Mapping[str, Any]) -> str | None:
    """The traceparent of a message's headers, None without a valid one."""
    return valid_traceparent(headers.get(TRACEPARENT))


def inject(headers: MutableMapping[str, Any]) -> None:
    """Adds the current trace to headers that go out; nothing outside a trace."""
    value = current_traceparent()
    if value is not None:
        headers[TRACEPARENT] = value


def _format(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def current_traceparent() -> str | None:
    """The trace to hand on: the current span's, or what the call came with."""
    if _state.provider is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            return _format(context)
    call = callcontext.current()
    return None if call is None else call.traceparent


def trace_id() -> str:
    """The current trace's id, 32 hexadecimal characters; makes one, kept for the rest of the call, where
    there is none.
    """
    value = current_traceparent()
    if value is not None:
        return value[3:35]
    fresh = secrets.token_hex(16)
    call = callcontext.current()
    if call is not None:
        call.traceparent = f"00-{fresh}-{secrets.token_hex(8)}-00"
    return fresh


def should_record(traceparent: str | None) -> bool:
    """Whether a call that came with `traceparent` gets a span."""
    if _state.provider is None:
        return False
    if traceparent is not None:
        return bool(int(traceparent[-2:], 16) & TraceFlags.SAMPLED)
    return _state.ratio > 0 and random.random() < _state.ratio


def _parent(traceparent: str | None) -> otel_context.Context:
    if traceparent is None:
        return otel_context.Context()
    remote = SpanContext(
        trace_id=int(traceparent[3:35], 16),
        span_id=int(traceparent[36:52], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(traceparent[53:], 16)),
    )
    return trace.set_span_in_context(NonRecordingSpan(remote), otel_context.Context())


class CallSpan:
    """The span of one handled call or message, current from its making until `end`."""

    __slots__ = ("_span", "_token")

    def __init__(
        self, name: str, traceparent: str | None, kind: SpanKind, attributes: dict[str, Any]
    ) -> None:
        self._span: Span = _state.tracer.start_span(
            name, context=_parent(traceparent), kind=kind, attributes=attributes
        )
        self._token = otel_context.attach(trace.set_span_in_context(self._span))

    @property
    def traceparent(self) -> str:
        """What to hand on."""
        return _format(self._span.get_span_context())

    def end(self, error_type: str = "", attributes: Mapping[str, Any] | None = None) -> None:
        """Ends the span; `error_type` says what went wrong (a gRPC code's name, an exception's class), never
        with which value, "" when nothing did.
        """
        end_span(self._span, error_type, attributes)
        otel_context.detach(self._token)


def end_span(span: Span, error_type: str = "", attributes: Mapping[str, Any] | None = None) -> None:
    """As `CallSpan.end`, for a span that was never current."""
    for key, value in (attributes or {}).items():
        span.set_attribute(key, value)
    if error_type:
        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def start_span(
    name: str, traceparent: str | None, kind: SpanKind, attributes: Mapping[str, Any]
) -> Span | None:
    """A span that is not made the current one, in a trace that is sampled already; None in any other."""
    if traceparent is None or not should_record(traceparent):
        return None
    return _state.tracer.start_span(
        name, context=_parent(traceparent), kind=kind, attributes=dict(attributes)
    )


def exporting() -> bool:
    """Whether spans go anywhere."""
    return _state.provider is not None


def start_call(
    name: str, traceparent: str | None, attributes: dict[str, Any], kind: SpanKind = SpanKind.SERVER
) -> CallSpan | None:
    """A span for a call that came with `traceparent`, or None when it is not sampled (the usual,
    cheap case).
    """
    return CallSpan(name, traceparent, kind, attributes) if should_record(traceparent) else None


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[None]:
    """A span of our own inside a sampled call; nothing inside any other."""
    if _state.provider is None or not trace.get_current_span().is_recording():
        yield
        return
    # An exception's text may hold anything, so only its class is told.
    with _state.tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(Status(StatusCode.ERROR))
            raise
