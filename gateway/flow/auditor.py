"""The hourly audit of a running gateway: what it finds is logged and shown by the metrics, and nothing is mended.

An audit that fails leaves the last one's time as it is, which grows old; that is what an alert looks at.
"""

from __future__ import annotations

import logging
from typing import Final

from gateway import metrics
from gateway.flow import audit, parts

INTERVAL_S: Final = 3600.0
MOST_LOGGED: Final = 20
"""Differences written to the log by one audit; with the media volume gone each picture is one."""

log = logging.getLogger(__name__)


async def step(with_parts: parts.Parts) -> None:
    """Audit the books once, beside whatever goes on."""
    found = 0
    async for difference in audit.beside(with_parts.database.scan, with_parts.blobs):
        found += 1
        if found <= MOST_LOGGED:
            log.error("audit: %s", difference)
    if found > MOST_LOGGED:
        log.error("audit: and %d differences more; `wave-gateway audit` prints them all", found - MOST_LOGGED)
    with_parts.audited.latest = metrics.AuditReading(differences=found, at=with_parts.clock())
