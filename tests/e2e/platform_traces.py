"""A real collector between the platform and the tests: processes send it their spans by OTLP over HTTP, it
batches them and sends them on to a receiver in the test's own process.
"""

from __future__ import annotations

import gzip
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from chassis.localstack import ProcessGroup, ServiceSpec, TcpReady, free_ports

#: Between two exports of a process, milliseconds; five seconds by default.
EXPORT_DELAY_MS = 200
#: How long the collector may take to start, seconds.
START_SECONDS_MAX = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One span as the collector sent it on."""

    #: "callmesh-crm".
    service: str
    name: str
    #: opentelemetry.proto's: 2 server, 4 producer, 5 consumer.
    kind: int
    trace_id: str
    span_id: str
    #: Empty for a root.
    parent_id: str
    attributes: dict[str, Any]
    #: The whole message as text, with what its resource says.
    text: str


class Spans:
    """What has come out of the collector so far. One thread writes, others read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[Seen] = []

    def take(self, body: bytes) -> None:
        """An export request."""
        found = [
            _seen(resource, span)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._seen += found

    def all(self) -> list[Seen]:
        """In the order of arrival."""
        with self._lock:
            return list(self._seen)

    def of_trace(self, trace_id: str) -> list[Seen]:
        """Those of one trace."""
        return [span for span in self.all() if span.trace_id == trace_id]


def _seen(resource: Any, span: Any) -> Seen:
    own = {one.key: one.value.string_value for one in resource.resource.attributes}
    return Seen(
        service=own.get("service.name", ""),
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes={one.key: one.value.string_value for one in span.attributes},
        text=f"{resource.resource} {span}",
    )


class _Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    spans: Spans

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.spans.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def _receiving(spans: Spans) -> Iterator[int]:
    """The port on which spans are received."""
    handler = type("Receiver", (_Receiver,), {"spans": spans})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def agent() -> Path | None:
    """The collector's program; None where its package is not installed."""
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).with_name("rotel-agent")
    return path if path.exists() else None


@contextmanager
def collecting(program: Path, run_dir: Path) -> Iterator[tuple[Spans, dict[str, str]]]:
    """(what comes out, settings of the processes that send to it)."""
    spans = Spans()
    grpc_port, http_port = free_ports(2)
    with _receiving(spans) as port:
        command = [
            *(str(program), "start"),
            *("--pid-file", str(run_dir / "collector.pid"), "--log-file", str(run_dir / "collector.log")),
            *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}"),
            *("--otlp-http-endpoint", f"127.0.0.1:{http_port}"),
            *("--exporter", "otlp", "--otlp-exporter-protocol", "http"),
            *("--otlp-exporter-endpoint", f"http://127.0.0.1:{port}"),
        ]
        spec = ServiceSpec(
            name="collector",
            command=command,
            ready=TcpReady(address=f"127.0.0.1:{http_port}"),
            start_seconds_max=START_SECONDS_MAX,
        )
        group = ProcessGroup(run_dir, [spec], die_with_parent=True)
        group.start("collector")
        try:
            yield (
                spans,
                {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{http_port}",
                    "OTEL_BSP_SCHEDULE_DELAY": str(EXPORT_DELAY_MS),
                    # Only what a test itself asks for is recorded.
                    "TRACE_RATIO": "0",
                },
            )
        finally:
            group.stop("collector")
