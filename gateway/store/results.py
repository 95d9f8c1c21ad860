"""Results that may be hits, as the task rows know them.

A row's fingerprint is what makes its result a hit. Purging takes it away; the result itself stays with its task.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from gateway.store.database import Tx


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many results of one team and model may be hits."""

    team: str
    model: str
    results: int


# The index `tasks_results` holds exactly these rows.
_RESULT: Final = "state = 'completed' AND leader_id IS NULL AND fingerprint IS NOT NULL"


def counts(tx: Tx) -> list[Count]:
    """Results by team and model."""
    rows = tx.all(
        f"SELECT team, model, COUNT(*) AS results FROM tasks WHERE {_RESULT} "  # noqa: S608 - constant text
        "GROUP BY team, model ORDER BY team, model"
    )
    return [Count(team=row["team"], model=row["model"], results=row["results"]) for row in rows]


def purge(tx: Tx, *, team: str, model: str, fingerprint: str | None, limit: int) -> list[str]:
    """Take some results of one team and model out of the cache; returns their fingerprints, none when all are out."""
    rows = tx.all(
        f"SELECT id, fingerprint FROM tasks WHERE {_RESULT} AND team = :team AND model = :model "  # noqa: S608
        "AND (:fingerprint IS NULL OR fingerprint = :fingerprint) LIMIT :most",
        team=team,
        model=model,
        fingerprint=fingerprint,
        most=limit,
    )
    for row in rows:
        tx.run("UPDATE tasks SET fingerprint = NULL WHERE id = :id", id=row["id"])
    return [row["fingerprint"] for row in rows]
