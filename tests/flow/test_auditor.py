"""The hourly audit of a running gateway: what it shows, what it logs, and that a failed one shows its age."""

from __future__ import annotations

import logging
import pathlib
import sqlite3
from collections.abc import AsyncIterator

import pytest

from gateway import metrics
from gateway.flow import auditor, scrape
from gateway.store.database import Tx
from tests import stage as stages


@pytest.fixture
async def stage(tmp_path: pathlib.Path) -> AsyncIterator[stages.Stage]:
    async with stages.staged(tmp_path) as made:
        await made.admitted(n=2)
        await made.finish()
        yield made


async def _shown(stage: stages.Stage) -> list[str]:
    """The lines about the audit of an exposition."""
    policies, audit = stage.parts.in_force.policies, stage.parts.audited.latest

    def read(tx: Tx) -> metrics.Snapshot:
        return scrape.snapshot(tx, policies, now=stage.clock(), audit=audit)

    text = metrics.render(await stage.parts.database.scan(read))[0].decode()
    return [line for line in text.splitlines() if "wave_gateway_audit" in line and not line.startswith("# HELP")]


async def test_before_the_first_audit_both_are_announced_without_a_value(stage: stages.Stage) -> None:
    assert await _shown(stage) == [
        "# TYPE wave_gateway_audit_differences gauge",
        "# TYPE wave_gateway_audit_timestamp_seconds gauge",
    ]


async def test_an_audit_shows_when_it_ended_and_that_the_books_agree(
    stage: stages.Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await auditor.step(stage.parts)
    assert await _shown(stage) == [
        "# TYPE wave_gateway_audit_differences gauge",
        "wave_gateway_audit_differences 0.0",
        "# TYPE wave_gateway_audit_timestamp_seconds gauge",
        f"wave_gateway_audit_timestamp_seconds {stage.clock()!r}",
    ]
    assert caplog.records == []


async def test_every_difference_is_counted_and_logged_as_an_error(
    stage: stages.Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await stage.parts.database.write(lambda tx: tx.run("UPDATE totals SET images = images + 1"))
    await auditor.step(stage.parts)
    assert stage.parts.audited.latest == metrics.AuditReading(differences=1, at=stage.clock())
    where = f"totals of growth {stages.FLASH} standard: images"
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.ERROR, f"audit: {where} is 3, recomputed it is 2")
    ]


async def test_of_many_differences_twenty_are_logged_and_all_are_counted(
    stage: stages.Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(tx: Tx) -> None:
        for number in range(600):
            tx.run("INSERT INTO blobs VALUES (:digest, 1, 'image/png', 'png', 1, NULL)", digest=f"{number:064x}")

    await stage.parts.database.write(lose)
    await auditor.step(stage.parts)
    assert stage.parts.audited.latest == metrics.AuditReading(differences=600, at=stage.clock())
    assert len(caplog.records) == 21
    assert caplog.records[-1].message == "audit: and 580 differences more; `wave-gateway audit` prints them all"


async def test_a_failed_audit_leaves_the_last_ones_time(stage: stages.Stage) -> None:
    """Its loop, `workers.repeat`, logs it and goes on."""
    await auditor.step(stage.parts)
    before = stage.parts.audited.latest
    stage.clock.advance(3600)
    await stage.parts.database.write(lambda tx: tx.run("ALTER TABLE usage RENAME TO lost"))

    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await auditor.step(stage.parts)
    assert stage.parts.audited.latest == before
