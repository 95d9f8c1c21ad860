"""A collector for OTLP over HTTP: takes what an exporter sends on a real socket, and shows the spans as they came."""

from __future__ import annotations

import dataclasses
import http.server
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

WITHIN_S: Final = 30.0
KINDS: Final = {
    trace_pb2.Span.SPAN_KIND_INTERNAL: "internal",
    trace_pb2.Span.SPAN_KIND_SERVER: "server",
    trace_pb2.Span.SPAN_KIND_CLIENT: "client",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A span as it was exported; ids in hex, `parent_id` empty for a root, times in unix seconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    tracestate: str
    is_error: bool
    message: str
    began_at: float
    ended_at: float
    attributes: Mapping[str, object]


class Collector:
    """Listens from `start` to `close`; what came is kept, decoded and as bytes."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.resource: Mapping[str, object] = {}
        self.bodies = b""
        self._came = threading.Condition()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, body: bytes) -> None:
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        with self._came:
            self.bodies += body
            for of_resource in request.resource_spans:
                self.resource = _attributes(of_resource.resource.attributes)
                self.spans += [_seen(span) for scope in of_resource.scope_spans for span in scope.spans]
            self._came.notify_all()

    def trace(self, trace_id: str) -> list[Seen]:
        """The spans of a trace so far, in the order of their beginning."""
        with self._came:
            return sorted((each for each in self.spans if each.trace_id == trace_id), key=lambda each: each.began_at)

    def wait(self, is_there: Callable[[], bool]) -> None:
        """Return when it is so; it is looked at after each export."""
        until = time.monotonic() + WITHIN_S
        with self._came:
            while not is_there():
                assert self._came.wait(until - time.monotonic()), [each.name for each in self.spans]


def _handler(collector: Collector) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_ours = (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
            if is_ours:
                collector.take(body)
            self.send_response(200 if is_ours else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Tests print what they want to."""

    return Handler


def _seen(span: trace_pb2.Span) -> Seen:
    return Seen(
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        tracestate=span.trace_state,
        is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        message=span.status.message,
        began_at=span.start_time_unix_nano / 1e9,
        ended_at=span.end_time_unix_nano / 1e9,
        attributes=_attributes(span.attributes),
    )


def _attributes(pairs: Any) -> dict[str, object]:
    return {each.key: _value(each.value) for each in pairs}


def _value(value: common_pb2.AnyValue) -> object:
    held = value.WhichOneof("value")
    return None if held is None else getattr(value, held)
