"""Media: are pictures lost, and when is the disk full?"""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import dashboard as model

from grafana.generator import board, panels, queries
from grafana.generator.panels import Frame
from grafana.generator.queries import DAY_S, gauge, rate

GIB: Final = 2.0**30
ROOM: Final = [(None, "red"), (2 * GIB, "orange"), (10 * GIB, "green")]
"""Below --min-free, 2 GiB unless set, mirroring stops so that the ledger does not starve."""
BYTES: Final = "bytes"


def dashboard() -> model.Dashboard:
    """For who keeps the pictures."""
    return board.board(
        "wave-media",
        "Whether every picture is stored before its URL expires, how much is kept, and when the disk is full.",
        board.Row(title="Is a picture about to be lost, and when is the disk full?", panels=_first()),
        board.Row(title="Mirroring", panels=_mirroring()),
        board.Row(title="What is kept", panels=_kept()),
        time_from="now-6h",
        has_teams=False,
    )


def _first() -> list[panels.AnyPanel]:
    free = queries.selector("disk_free_bytes")
    return [
        panels.number(
            Frame(
                title="At risk",
                text="Pictures that are not mirrored although their task has ended; their vendor URLs will expire. "
                "Any for more than some minutes: see failures by reason, then the disk.",
                width=6,
                height=4,
                steps=panels.BAD_ABOVE_0,
                nothing="not scraped",
            ),
            gauge("mirror_at_risk_urls"),
        ),
        panels.number(
            Frame(
                title="Disk free",
                text="Where the pictures lie. Below `--min-free` (2 GiB) mirroring stops so that the ledger does not "
                "starve: make room, or shorten the retention and run `wave-gateway media gc`.",
                width=6,
                height=4,
                unit=BYTES,
                steps=ROOM,
                nothing="not scraped",
            ),
            gauge("disk_free_bytes", least=True),
        ),
        panels.number(
            Frame(
                title="Full in",
                text="When the disk is full if it fills as in the last six hours; not said in the first hour. "
                "Less than a week: plan the room now.",
                width=6,
                height=4,
                unit="dtdurations",
                decimals=0,
                steps=[(None, "red"), (2 * DAY_S, "orange"), (7 * DAY_S, "green")],
                nothing="not filling",
            ),
            f"min({free} / (-deriv({free}[6h]) > 0) and {free} offset 1h)",
        ),
        panels.number(
            Frame(
                title="Kept",
                text="Bytes of kept pictures; equal pictures are kept once.",
                width=6,
                height=4,
                unit=BYTES,
                nothing="not scraped",
            ),
            gauge("media_bytes"),
        ),
        panels.graph(
            Frame(
                title="Disk free, and in three days",
                text="Free bytes, and what they will be in three days if the disk fills as in the last six hours. The "
                "dashed lines: 10 GiB, and the 2 GiB at which mirroring stops.",
                width=24,
                unit=BYTES,
                steps=ROOM,
                nothing="not scraped",
            ),
            (gauge("disk_free_bytes", least=True), "free"),
            (f"clamp_min(min(predict_linear({free}[6h], {3 * DAY_S})), 0)", "in three days"),
            is_marked=True,
        ),
    ]


def _mirroring() -> list[panels.AnyPanel]:
    return [
        panels.graph(
            Frame(
                title="Mirrored",
                text="Bytes of pictures stored a second. Nothing while tasks end: the downloads fail.",
                width=8,
                unit="binBps",
                nothing="nothing mirrored",
            ),
            (rate("mirror_bytes_total"), "mirrored"),
        ),
        panels.graph(
            Frame(
                title="Failures by reason",
                text="Downloads that failed, a second; each is tried again until its URL expires. The reason says "
                "whose it is; `expired`: the picture is lost.",
                width=8,
                unit="ops",
                nothing="no failures",
            ),
            (queries.rate_of_moved("mirror_failures_total", by="reason"), "{{reason}}"),
            is_stacked=True,
        ),
        panels.graph(
            Frame(
                title="At risk over time",
                text="Pictures that are not mirrored although their task has ended. It must come back to 0.",
                width=8,
                steps=panels.BAD_ABOVE_0,
                nothing="not scraped",
            ),
            (gauge("mirror_at_risk_urls"), "at risk"),
        ),
    ]


def _kept() -> list[panels.AnyPanel]:
    kept = queries.selector("media_bytes")
    return [
        panels.graph(
            Frame(
                title="Kept bytes",
                text="A drop is a `media gc`.",
                width=8,
                unit=BYTES,
                nothing="not scraped",
            ),
            (gauge("media_bytes"), "kept"),
        ),
        panels.graph(
            Frame(
                title="Kept pictures",
                text="How many files; equal pictures are one.",
                width=8,
                nothing="not scraped",
            ),
            (gauge("media_blobs"), "pictures"),
        ),
        panels.graph(
            Frame(
                title="Growth a day",
                text="How many bytes more are kept a day, at the slope of the last six hours. Faster than the disk "
                "allows: see Full in, and plan for more room; nothing is deleted by itself.",
                width=8,
                unit=BYTES,
                least=None,
                nothing="not scraped",
            ),
            (f"max(deriv({kept}[6h])) * {DAY_S}", "growth"),
        ),
    ]
