"""What is found out about a request on its way through the routes, for the one line that the log has of it."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from starlette.types import Scope

_TASK_ID: Final = re.compile(r"task-wg[0-9A-Z]{26}", re.ASCII)


@dataclasses.dataclass(slots=True, kw_only=True)
class Noted:
    """Filled in by whoever knows; amounts as decimal strings."""

    team: str | None = None
    key: str | None = None
    """The virtual key's name."""
    task_id: str | None = None
    cache: str | None = None
    quote_usd: str | None = None
    cost_usd: str | None = None
    code: str | None = None


def of(scope: Scope) -> Noted:
    """The notes about a request."""
    noted: Noted = scope.setdefault("state", {}).setdefault("noted", Noted())
    return noted


def note_asked_for(scope: Scope, task_id: str) -> None:
    """Note the task that a path names, if it may be one of ours: a client may write anything there."""
    if _TASK_ID.fullmatch(task_id):
        of(scope).task_id = task_id
