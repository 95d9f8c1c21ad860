"""Traces by OpenTelemetry, off unless `--traces` is given; the only module that knows that library.

Rules: a span's parent is always handed over as text, a W3C `traceparent`: the one that the client sent is replaced by
that of the server span, kept on the task's row, and so outlives a restart. Without a parent nothing is traced. While
traces are off, `NOTHING` stands for every span and the library is never imported. A span carries names, ids and
amounts; never a prompt, a key, a URL or the text of an error.

Exporting happens on a thread of the library's own, from a bounded queue; whatever becomes of it, no request waits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final

from gateway import VERSION, errors

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace.propagation import tracecontext

SERVICE_NAME: Final = "wave-gateway"
"""Unless the environment names it otherwise."""
FLUSH_S: Final = 2.0
"""How long a stop waits at most for what is queued."""
_EXPORTERS: Final = ("otlp", "none")
_PROTOCOL: Final = "http/protobuf"

log = logging.getLogger(__name__)


class Span:
    """A piece of work in a trace; in a `with` block it ends with the block, in error if that raises."""

    __slots__ = ("_span", "is_recording", "traceparent")

    def __init__(self, span: trace.Span | None = None) -> None:
        """`is_recording`: whether it is worth the while to find attributes; `traceparent`: itself as a parent."""
        self._span = span
        self.is_recording = False
        self.traceparent: str | None = None
        if span is not None:
            context = span.get_span_context()
            self.is_recording = span.is_recording()
            self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, attributes: Mapping[str, str | int | bool]) -> None:
        """Add attributes: names of docs/TRACING.md."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """Give the name that is known only now."""
        if self._span is not None:
            self._span.update_name(name)

    def fail(self, kind: str) -> None:
        """It failed: `kind` is one of few, such as a status or the name of an exception's class."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", kind)

    def end(self, *, at: float | None = None) -> None:
        """It is over: now, or at `at`, in unix seconds."""
        if self._span is not None:
            self._span.end(None if at is None else _nanoseconds(at))

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._span is not None:
            if kind is not None:
                self.fail(kind.__name__)
            self._span.end()


NOTHING: Final = Span()
"""The span of whatever is not traced."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Library:
    """What was imported and made because traces are on."""

    provider: TracerProvider
    tracer: trace.Tracer
    context: tracecontext.TraceContextTextMapPropagator
    kinds: type[trace.SpanKind]


class Tracing:
    """Makes spans, or `NOTHING` while traces are off."""

    __slots__ = ("_library", "is_on")

    def __init__(self, library: _Library | None = None) -> None:
        """Without `library`: off."""
        self._library = library
        self.is_on = library is not None

    def server(self, name: str, headers: Mapping[str, str]) -> Span:
        """The span of a client's request; a valid `traceparent` (and `tracestate`) among its headers is the parent."""
        if self._library is None:
            return NOTHING
        parent = self._library.context.extract(headers)
        return Span(self._library.tracer.start_span(name, parent, kind=self._library.kinds.SERVER))

    def span(self, name: str, parent: str | None, *, is_client: bool = False, began_at: float | None = None) -> Span:
        """A span below another one; `is_client`: it calls somebody else. Began now, or at `began_at`, unix seconds."""
        if self._library is None or parent is None:
            return NOTHING
        kind = self._library.kinds.CLIENT if is_client else self._library.kinds.INTERNAL
        above = self._library.context.extract({"traceparent": parent})
        start_time = None if began_at is None else _nanoseconds(began_at)
        return Span(self._library.tracer.start_span(name, above, kind=kind, start_time=start_time))

    async def aclose(self, *, within_s: float) -> None:
        """Export what is queued, as far as that goes within this time; whoever still ends a span is not heard."""
        if self._library is None:
            return
        flush = threading.Thread(target=self._library.provider.shutdown, name="trace-flush", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, within_s)
        if flush.is_alive():
            log.warning("the last spans were not exported within %.1f s and are lost", within_s)


OFF: Final = Tracing()
"""What there is without `--traces`."""


def start() -> Tracing:
    """Switch traces on, as the environment's OTEL_* variables say.

    Raises StartError where OpenTelemetry is not installed, or the variables ask for what there is not.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation import tracecontext
    except ImportError:
        raise errors.StartError(
            "--traces needs OpenTelemetry, which is not installed: pip install 'wave-gateway[otel]'."
        ) from None
    exporter = _chosen("OTEL_TRACES_EXPORTER", _EXPORTERS)
    _chosen("OTEL_EXPORTER_OTLP_PROTOCOL", (_PROTOCOL,))
    _chosen("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", (_PROTOCOL,))
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return OFF
    try:
        # The library would end itself at the exit of the interpreter, and wait 30 s for a collector that hangs.
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        if exporter == "otlp":
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise errors.StartError(f"--traces: the OTEL_* variables cannot be used: {error}.") from None
    return Tracing(
        _Library(
            provider=provider,
            tracer=provider.get_tracer("wave-gateway", VERSION),
            context=tracecontext.TraceContextTextMapPropagator(),
            kinds=trace.SpanKind,
        )
    )


def _chosen(variable: str, known: tuple[str, ...]) -> str:
    said = os.environ.get(variable, "").strip() or known[0]
    if said not in known:
        raise errors.StartError(f"{variable}: {said!r} cannot be used here; write {' or '.join(known)}.")
    return said


def _resource() -> Resource:
    """Who we are: the environment's words first."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    said = OTELResourceDetector().detect().attributes
    return Resource.create({"service.name": SERVICE_NAME, "service.version": VERSION} | dict(said))


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
