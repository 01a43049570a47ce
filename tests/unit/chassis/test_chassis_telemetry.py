"""traceparent in and out, spans only for sampled calls, log lines with the trace and without telephone
numbers.
"""

from __future__ import annotations

import io
import json
import logging
import time

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chassis import callcontext, logs, telemetry
from chassis.callcontext import ANONYMOUS, CallContext
from chassis.config import ServiceSettings
from chassis.localstack import free_ports

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    telemetry.setup(ServiceSettings(service="test", trace_ratio=0.0), exporter=exporter)
    yield exporter
    telemetry.shutdown()


@pytest.fixture
def call():
    current = CallContext("/x.Y/Z", ANONYMOUS, None, None)
    token = callcontext.set_current(current)
    yield current
    callcontext.reset_current(token)


@given(st.text(max_size=60))
def test_any_text_is_a_traceparent_or_none(text):
    assert telemetry.valid_traceparent(text) in (None, text)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "",
        b"x",
        SAMPLED.upper(),
        "ff" + SAMPLED[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        SAMPLED + "-x",
    ],
)
def test_what_is_no_traceparent_is_dropped(bad):
    assert telemetry.extract({"traceparent": bad}) is None


def test_without_an_exporter_a_trace_is_only_handed_on(call):
    assert telemetry.start_call("x", SAMPLED, {}) is None
    call.traceparent = SAMPLED
    headers = {}
    telemetry.inject(headers)
    assert headers == {"traceparent": SAMPLED}


def test_outside_a_call_nothing_is_injected():
    headers = {}
    telemetry.inject(headers)
    assert headers == {}


def test_a_trace_id_that_had_to_be_made_stays_for_the_call(call):
    made = telemetry.trace_id()
    assert len(made) == 32 and telemetry.trace_id() == made
    assert telemetry.valid_traceparent(telemetry.current_traceparent())
    assert not telemetry.should_record(telemetry.current_traceparent())


def test_a_sampled_call_is_recorded_under_its_parent(spans):
    span = telemetry.start_call("/x.Y/Z", SAMPLED, {"rpc.system.name": "grpc"})
    assert telemetry.current_traceparent() == span.traceparent
    with telemetry.span("inner", rows=3):
        pass
    span.end("INTERNAL", {"rpc.response.status_code": "INTERNAL"})
    inner, outer = spans.get_finished_spans()
    assert f"{outer.context.trace_id:032x}" == TRACE
    assert f"{outer.parent.span_id:016x}" == "b7ad6b7169203331"
    assert inner.parent.span_id == outer.context.span_id and inner.attributes["rows"] == 3
    assert outer.attributes["rpc.response.status_code"] == outer.attributes["error.type"] == "INTERNAL"
    assert not outer.status.is_ok
    assert telemetry.current_traceparent() is None


def test_a_span_names_an_error_and_never_its_text(spans):
    span = telemetry.start_call("x", SAMPLED, {})
    with pytest.raises(ValueError), telemetry.span("inner"):
        raise ValueError("no customer 13812345678")
    span.end()
    inner = spans.get_finished_spans()[0]
    assert inner.attributes["error.type"] == "ValueError" and not inner.status.is_ok
    assert "3812345678" not in inner.to_json()


def test_an_unsampled_call_is_not_recorded(spans):
    assert telemetry.start_call("x", UNSAMPLED, {}) is None
    assert telemetry.start_call("x", None, {}) is None
    with telemetry.span("inner"):
        pass
    assert spans.get_finished_spans() == ()


def test_a_collector_that_is_away_holds_up_no_end(monkeypatch):
    """The library would try for half a minute, and a pod be killed over it."""
    monkeypatch.setattr(telemetry, "SHUTDOWN_SECONDS_MAX", 0.05)
    (port,) = free_ports(1)
    settings = ServiceSettings(otel_exporter_otlp_endpoint=f"http://127.0.0.1:{port}", trace_ratio=1.0)
    telemetry.setup(settings)
    for _ in range(600):
        telemetry.start_call("/x.Y/Z", None, {}).end()
    began = time.monotonic()
    telemetry.shutdown()
    assert time.monotonic() - began < 5.0


def test_a_ratio_of_one_records_calls_without_a_trace():
    exporter = InMemorySpanExporter()
    telemetry.setup(ServiceSettings(service="test", trace_ratio=1.0), exporter=exporter)
    telemetry.start_call("x", None, {}).end()
    telemetry.shutdown()
    assert len(exporter.get_finished_spans()) == 1


@pytest.fixture
def lines():
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.setup(ServiceSettings(service="crm", log_format="json"), stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], root.level = before[0], before[1]
    structlog.reset_defaults()


def test_a_line_is_json_with_the_trace_and_no_number(lines, call):
    call.traceparent = SAMPLED
    logs.get_logger("test").info(
        "call.placed", call="c-1", caller="+8613812345678", nested={"n": ["13812345678"]}
    )
    (line,) = lines()
    assert line["event"] == "call.placed" and line["level"] == "info" and line["service"] == "crm"
    assert line["trace_id"] == TRACE and line["method"] == "/x.Y/Z"
    assert line["caller"] == "+**********678"
    assert line["nested"] == {"n": ["********678"]}
    assert "3812345" not in json.dumps(line)


def test_a_librarys_line_and_its_traceback_are_masked_too(lines):
    try:
        raise ValueError("no customer with 13812345678")
    except ValueError:
        logging.getLogger("some.library").exception("failed for %s", "+8613812345678")
    (line,) = lines()
    assert line["event"] == "failed for +**********678"
    assert "ValueError: no customer with ********678" in line["exception"]


def test_readable_lines_show_no_local_variables(lines):
    stream = io.StringIO()
    logs.setup(ServiceSettings(service="crm", log_format="text"), stream=stream)
    secret = "13812345678"
    try:
        raise ValueError(f"{len(secret)} digits")
    except ValueError:
        logs.get_logger("test").exception("call.failed", call="c-1")
    text = stream.getvalue()
    assert "call.failed" in text and "ValueError: 11 digits" in text and "c-1" in text
    assert "3812345" not in text


def test_lines_below_the_level_are_left_out(lines):
    logs.get_logger("test").debug("quiet")
    logging.getLogger("pymongo.command").info("quiet")
    assert lines() == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+8613812345678", "+**********678"),
        ("call 13812345678 now", "call ********678 now"),
        ("127.0.0.1:27017", "127.0.0.1:27017"),
        ("01m80kytqycr3anm5fn8v0eqxh", "01m80kytqycr3anm5fn8v0eqxh"),
        ("12345", "12345"),
        ("the number is 13812345678.", "the number is ********678."),
        ("version 1.2345678.9", "version 1.2345678.9"),
        ("+86 138-1234-5678", "+** ***-****-*678"),
        ("138 1234 5678", "*** **** *678"),
        ("on 2026-11-22 10:30:00", "on 2026-11-22 10:30:00"),
        ("anna.li+x@mail.example.com is known", "***@mail.example.com is known"),
        ("amqp://user:secret@broker.example:5672", "amqp://user:***@broker.example:5672"),
        ("sip:service-1@beijing", "sip:service-1@beijing"),
    ],
)
def test_masking(text, masked):
    assert logs.mask_text(text) == masked
