"""PromQL about caps: what is used, and whether a cap is reached before its window ends.

The pace of a window is what is settled in it, by the time that has gone; it needs no other series, so it is right for
caps on some models or on one key too.
"""

from __future__ import annotations

from typing import Final

from grafana.generator import queries
from grafana.generator.queries import DAY_S

OF_TEAMS: Final = 'name=~"($team)(/.+)?|"'
"""Caps of the chosen teams and their keys; those of the organisation have no name and are always there."""


def _each(expression: str) -> str:
    """One value for each cap, however many processes say it; across a restart the last one."""
    return f"last_over_time((max by (scope, name, window, cap) (\n  {expression}\n))[{queries.RECENT}:5s])"


def _budget(name: str, *matchers: str) -> str:
    return queries.selector(f"budget_{name}", OF_TEAMS, *matchers)


_SETTLED: Final = _budget("settled_usd")
_RESERVED: Final = _budget("reserved_usd")
_LIMIT: Final = _budget("limit_usd")
_RESET: Final = "reset_timestamp_seconds"
_LEFT_S: Final = f"({_budget(_RESET)} - time())"
_MONTH: Final = _budget(_RESET, 'window="month"')
_WEEK: Final = _budget(_RESET, 'window="week"')
_DAY: Final = _budget(_RESET, 'window="day"')
_WINDOW_S: Final = f"({DAY_S} * (days_in_month({_MONTH} - {DAY_S // 2}) or 7 * {_WEEK} ^ 0 or {_DAY} ^ 0))"
"""A month's days are asked half a day before its end, which is in that month in every timezone."""
_GONE: Final = f"(1 - clamp_max(\n    {_LEFT_S}\n    / {_WINDOW_S}\n  , 0.95))"
"""Share of the window that has gone; a twentieth at least, so that its first request forecasts no ruin."""

RESERVED: Final = _each(_RESERVED)
LIMIT: Final = _each(_LIMIT)
WARN: Final = _each(_budget("warn_usd"))
USED: Final = _each(f"{_SETTLED} + {_RESERVED}")
SHARE: Final = _each(f"({_SETTLED} + {_RESERVED})\n  / ({_LIMIT} > 0)")
RESETS_IN: Final = _each(_LEFT_S)
FORECAST_SHARE: Final = _each(f"(\n  {_RESERVED}\n  + {_SETTLED}\n  / {_GONE}\n  )\n  / ({_LIMIT} > 0)")
"""Of the limit, at the end of the window at its pace; nothing for a `total`, which never ends."""
REACHED_IN: Final = _each(
    f"clamp_min({_LIMIT} - {_SETTLED} - {_RESERVED}, 0)\n"
    f"  / ({_SETTLED} > 0)\n  * {_GONE}\n  * {_WINDOW_S}\n  < {_LEFT_S}"
)
"""Seconds until a cap is reached at its window's pace; nothing for one that is not reached before it resets."""
