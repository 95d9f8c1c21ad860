"""The upstream circuit of this process: keeps what `rules/circuit` knows, and shows it as a metric.

In memory only: after a start the circuit is closed, and the first failures open it again.
"""

from __future__ import annotations

import logging
import threading

from gateway import log_events, logs, metrics
from gateway.rules import circuit

log = logging.getLogger(__name__)


class UpstreamCircuit:
    """Open while the upstream is down. Asked by the event loop and by the writer's thread, hence the lock."""

    def __init__(self) -> None:
        self._known = circuit.Circuit()
        self._lock = threading.Lock()
        metrics.UPSTREAM_CIRCUIT_OPEN.set(0)

    @property
    def is_open(self) -> bool:
        """Whether first POSTs are held back."""
        return self._known.is_open

    def may_send(self, *, now: float) -> bool:
        """Whether a submit could leave now; `take` decides."""
        return circuit.may_send(self._known, now=now)

    def take(self, *, now: float) -> bool:
        """Take the right to send one submit now; while the circuit is open that is the probe."""
        with self._lock:
            if not circuit.may_send(self._known, now=now):
                return False
            self._known = circuit.sent(self._known, now=now)
            return True

    def hear(self, word: circuit.Word, *, began_at: float, now: float) -> None:
        """A call to the upstream that began at `began_at` has ended."""
        with self._lock:
            before, self._known = self._known, circuit.hear(self._known, word, began_at=began_at, now=now)
            is_open = self._known.is_open
        if is_open == before.is_open:
            return
        metrics.UPSTREAM_CIRCUIT_OPEN.set(1 if is_open else 0)
        if is_open:
            logs.note(log, logging.ERROR, log_events.UpstreamDown(probe_every_s=circuit.PROBE_EVERY_S))
        else:
            logs.note(log, logging.WARNING, log_events.UpstreamBack())
