"""Panels as we want them: each with a title, a text, a unit, thresholds, and a word for when there is nothing.

Colours are names of Grafana's palette, which has a shade of each for light and for dark; no text is coloured by hand.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

WIDTH: Final = 24
SOURCE: Final = options.DataSourceRef(type_val="prometheus", uid="${datasource}")

AnyPanel = stat.Panel | bargauge.Panel | table.Panel | timeseries.Panel | statetimeline.Panel
P = TypeVar("P", stat.Panel, bargauge.Panel, table.Panel, timeseries.Panel, statetimeline.Panel)

EMPTY: Final = "-"
"""In a cell without a value; what a panel says that has none is for the whole panel."""
NARROW_PX: Final = 60
"""Of a column, at least; Grafana's own 150 would push half of a table out of sight."""
WIDTHS_PX: Final = {"model": 205, "scope": 60, "per": 64}
"""Of columns with these headings; the others share what is left."""

Steps = Sequence[tuple[float | None, str]]
"""(from this value on, colour); the first has no value."""

NONE: Final[Steps] = [(None, "text")]
"""No value is better than another."""
PLAIN: Final[Steps] = [(None, "blue")]
"""The same, for bars."""
SHARE: Final[Steps] = [(None, "green"), (0.8, "orange"), (1, "red")]
"""Of a cap: the policy's usual `warn_at`, and full."""
BAD_ABOVE_0: Final[Steps] = [(None, "green"), (0.000001, "red")]
GOOD_AT_1: Final[Steps] = [(None, "red"), (1, "green")]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What every panel says of itself."""

    title: str
    text: str
    """What it shows, and what to do if it is bad."""
    width: int
    height: int = 8
    unit: str = "short"
    decimals: int | None = None
    least: float | None = 0
    most: float | None = None
    steps: Steps = dataclasses.field(default_factory=lambda: NONE)
    nothing: str = "none"
    """What is shown where there are no data."""
    names: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    """Value → (word, colour)."""
    time_from: str | None = None
    """A range of its own, such as `now/M`; only while the dashboard's is relative. The title says which it is."""
    colours: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Legend → colour, where what it says is good or bad; the others take theirs in turn."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One query of a table."""

    name: str
    query: str
    unit: str
    steps: Steps = dataclasses.field(default_factory=lambda: NONE)
    decimals: int | None = None


def number(frame: Frame, query: str, *, legend: str = "") -> stat.Panel:
    """One figure, large; with a legend, the legend of each series instead."""
    panel = (
        stat.Panel()
        .graph_mode(options.BigValueGraphMode.NONE)
        .color_mode(options.BigValueColorMode.VALUE)
        .text_mode(options.BigValueTextMode.NAME if legend else options.BigValueTextMode.VALUE)
        .reduce_options(_last())
        .with_target(_instant(query, legend=legend))
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )
    return _framed(panel, frame)


def bars(frame: Frame, query: str, *, legend: str, is_long: bool = False) -> bargauge.Panel:
    """One bar for each series, the largest first. `is_long`: their names need a line of their own."""
    place = options.BarGaugeNamePlacement.TOP if is_long else options.BarGaugeNamePlacement.LEFT
    panel = (
        bargauge.Panel()
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .orientation(options.VizOrientation.HORIZONTAL)
        .name_placement(place)
        .value_mode(options.BarGaugeValueMode.TEXT)
        .show_unfilled(True)
        .max_viz_height(40 if is_long else 30)
        # Else the letters of few bars are as high as their bars, and their names are cut.
        .text(common.VizTextDisplayOptions().title_size(12).value_size(14))
        .reduce_options(_last())
        .with_target(_instant(f"sort_desc({query})", legend=legend))
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )
    return _framed(panel, frame)


def graph(
    frame: Frame,
    *queries: tuple[str, str],
    is_stacked: bool = False,
    are_days: bool = False,
    is_marked: bool = False,
    least_step: str = "",
    is_log: bool = False,
) -> timeseries.Panel:
    """Lines over time, of (query, legend); days as bars that begin at their midnight. `is_marked`: show the steps.

    `least_step`: no two points are nearer, for what is rare. `is_log`: each step up the axis is twice as much, so that
    what is usual can still be read beside an outage.
    """
    panel = (
        timeseries.Panel()
        .draw_style(options.GraphDrawStyle.BARS if are_days else options.GraphDrawStyle.LINE)
        # Stacked lines would lie upon each other: the last, though it is 0, over the whole.
        .fill_opacity(80 if are_days or is_stacked else 0)
        .line_width(0 if are_days or is_stacked else 2)
        .show_points(options.VisibilityMode.NEVER if are_days or is_stacked else options.VisibilityMode.AUTO)
        .stacking(common.StackingConfig().mode(_stacking(is_stacked or are_days)))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(_marking(is_marked)))
        .tooltip(_tooltip())
        .legend(_legend())
        # Not by name: that gives several teams, or completed and failed, one colour.
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
    )
    for name, colour in frame.colours.items():
        panel = panel.override_by_name(name, _values([("color", {"mode": "fixed", "fixedColor": colour})]))
    if are_days:
        least_step = "1d"
        panel = panel.bar_alignment(options.BarAlignment.AFTER).bar_width_factor(0.9)
    if least_step:
        panel = panel.interval(least_step)
    if is_log:
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(options.ScaleDistribution.LOG).log(2))
    for ref_id, (query, legend) in zip(string.ascii_uppercase, queries, strict=False):
        panel = panel.with_target(_ranged(query, legend=legend, ref_id=ref_id))
    return _framed(panel, frame)


def timeline(frame: Frame, *queries: tuple[str, str]) -> statetimeline.Panel:
    """States over time, one line for each series, of (query, legend); a frame's `names` say what a value means."""
    panel = (
        statetimeline.Panel()
        .show_value(options.VisibilityMode.NEVER)
        .merge_values(True)
        .tooltip(_tooltip())
        .legend(_legend())
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )
    for ref_id, (query, legend) in zip(string.ascii_uppercase, queries, strict=False):
        panel = panel.with_target(_ranged(query, legend=legend, ref_id=ref_id))
    return _framed(panel, frame)


def rows(
    frame: Frame, *columns: Column, labels: Mapping[str, str], by: str, is_least_first: bool = False
) -> table.Panel:
    """A table with a row for each set of labels (label → its heading), the most of column `by` first, or the least."""
    panel = table.Panel().cell_height(options.TableCellHeight.SM).show_header(True).min_width(NARROW_PX)
    headings = dict(labels)
    for heading in labels.values():
        looks: list[tuple[str, object]] = [("noValue", EMPTY)]
        if heading in WIDTHS_PX:
            looks += [("custom.width", WIDTHS_PX[heading])]
        panel = panel.override_by_name(heading, _values(looks))
    for ref_id, column in zip(string.ascii_uppercase, columns, strict=False):
        panel = panel.with_target(_instant(column.query, ref_id=ref_id, is_table=True))
        headings["Value" if len(columns) == 1 else f"Value #{ref_id}"] = column.name
        panel = panel.override_by_name(column.name, _looks(column))
    order = {name: place for place, name in enumerate(headings)}
    arranged = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": headings}
    panel = (
        panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(model.DataTransformerConfig(id_val="organize", options=arranged))
        .sort_by([common.TableSortByFieldState().display_name(by).desc(not is_least_first)])
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )
    return _framed(panel, frame)


def _looks(column: Column) -> list[model.DynamicConfigValue]:
    looks: list[tuple[str, object]] = [("unit", column.unit), ("thresholds", _thresholds(column.steps).build())]
    looks += [("noValue", EMPTY)]
    if len(column.steps) > 1:
        looks += [("custom.cellOptions", {"type": "color-text"})]
    if column.decimals is not None:
        looks += [("decimals", column.decimals)]
    return _values(looks)


def _values(looks: Sequence[tuple[str, object]]) -> list[model.DynamicConfigValue]:
    return [model.DynamicConfigValue(id_val=name, value=value) for name, value in looks]


def _framed(panel: P, frame: Frame) -> P:
    panel = (
        panel.title(frame.title)
        .description(frame.text)
        .datasource(SOURCE)
        .unit(frame.unit)
        .thresholds(_thresholds(frame.steps))
        .no_value(frame.nothing)
        .span(frame.width)
        .height(frame.height)
    )
    if frame.decimals is not None:
        panel = panel.decimals(frame.decimals)
    if frame.least is not None:
        panel = panel.min(frame.least)
    if frame.most is not None:
        panel = panel.max(frame.most)
    if frame.time_from is not None:
        panel = panel.time_from(frame.time_from).hide_time_override(True)
    if frame.names:
        named = {
            value: model.ValueMappingResult(text=word, color=colour, index=place)
            for place, (value, (word, colour)) in enumerate(frame.names.items())
        }
        panel = panel.mappings([model.ValueMap(options=named)])
    return panel


def _thresholds(steps: Steps) -> build.ThresholdsConfig:
    return (
        build.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=colour) for value, colour in steps])
    )


def _instant(query: str, *, legend: str = "", ref_id: str = "A", is_table: bool = False) -> prometheus.Dataquery:
    form = PromQueryFormat.TABLE if is_table else PromQueryFormat.TIME_SERIES
    asked = prometheus.Dataquery().expr(query).instant().format(form).ref_id(ref_id).datasource(SOURCE)
    return asked.legend_format(legend or "__auto")


def _ranged(query: str, *, legend: str, ref_id: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query).range().legend_format(legend).ref_id(ref_id).datasource(SOURCE)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)


def _stacking(is_on: bool) -> options.StackingMode:
    return options.StackingMode.NORMAL if is_on else options.StackingMode.NONE


def _marking(is_on: bool) -> options.GraphThresholdsStyleMode:
    return options.GraphThresholdsStyleMode.DASHED if is_on else options.GraphThresholdsStyleMode.OFF


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(options.LegendDisplayMode.LIST)
        .placement(options.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
