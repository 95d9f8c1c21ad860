"""A dashboard of rows: its variables, its links to the others, ids and places of its panels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog import builder
from grafana_foundation_sdk.models import dashboard as model

from grafana.generator import panels

TAG: Final = "wave-gateway"
TITLES: Final = {"wave-spend": "Wave: spend", "wave-traffic": "Wave: traffic", "wave-media": "Wave: media"}
"""uid → title. A uid is part of addresses that people keep; it never changes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A heading, and what stands below it from left to right; lines break where the width is used up."""

    title: str
    panels: Sequence[panels.AnyPanel]


def board(
    uid: str, text: str, *rows: Row, time_from: str, refresh: str = "1m", has_teams: bool = True
) -> model.Dashboard:
    """The dashboard. `has_teams`: team and model can be chosen; else the choice is only carried on to the others."""
    built = (
        build.Dashboard(TITLES[uid])
        .uid(uid)
        .description(text)
        .tags([TAG])
        .timezone("utc")
        .time(time_from, "now")
        .refresh(refresh)
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .editable()
        .variables(_variables(has_teams=has_teams))
        .links([_link(each) for each in TITLES if each != uid])
    )
    ids = iter(range(1, 1000))
    for row in rows:
        built = built.with_row(build.Row(row.title).id(next(ids)).datasource(panels.SOURCE))
        for each in row.panels:
            built = built.with_panel(each.id(next(ids)))
    made = built.annotations([]).build()
    for link in made.links or ():
        link.placement = None  # type: ignore[assignment]  # the default folds it into a menu that older ones do not have
    return made


def _variables(*, has_teams: bool) -> list[builder.Builder[model.VariableModel]]:
    shown = model.VariableHide.DONT_HIDE if has_teams else model.VariableHide.HIDE_VARIABLE
    chosen = 'job="$job"'
    return [
        build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        _labels("job", "wave_gateway_build_info", "job").label("Gateway"),
        _several("team", f"wave_gateway_cost_usd_total{{{chosen}}}").label("Team").hide(shown),
        _several("model", f"wave_gateway_cost_usd_total{{{chosen}}}").label("Model").hide(shown),
    ]


def _labels(name: str, series: str, label: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .datasource(panels.SOURCE)
        .query({"query": f"label_values({series}, {label})", "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def _several(name: str, series: str) -> build.QueryVariable:
    everything = model.VariableOption(text="All", value="$__all", selected=True)
    return _labels(name, series, name).multi(True).include_all(True).all_value(".*").current(everything)


def _link(uid: str) -> build.DashboardLink:
    return (
        build.DashboardLink(TITLES[uid])
        .type(model.DashboardLinkType.LINK)
        .url(f"/d/{uid}")
        .icon("dashboard")
        .include_vars(True)
        .keep_time(True)
    )
