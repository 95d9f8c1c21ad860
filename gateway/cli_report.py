"""The command that says what was spent and avoided: as a table, CSV, JSON or FOCUS."""

from __future__ import annotations

import csv
import datetime
import functools
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Final

import click

from gateway import app, policy_files, settings, terminal
from gateway.flow import report
from gateway.rules import budget, focus, money, policy, share, units
from gateway.store.database import Tx

_HEADER: Final = (
    *("tasks", "images", "cost_usd", "free", "avoided_usd", "average_usd", "avoided_cache_usd"),
    *("avoided_coalesced_usd", "premium_usd", "cap_scope", "cap_window", "cap", "cap_usd", "cap_share"),
)
"""New columns come last: scripts hold on to those before."""
_FORMULA: Final = re.compile(r"[=+\-@\t\r]")
"""How a cell begins that a spreadsheet would run."""


@click.command("report")
@click.option("--by", default="team,model", show_default=True, help=f"Groups: {', '.join(report.GROUPS)}.")
@click.option("--since", default="30d", show_default=True, help="A date (2026-11-01) or an age (30d).")
@click.option("--until", default="", help="A date, exclusive [now].")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "focus"]), default="table", show_default=True
)
@terminal.setting_options(terminal.STORE)
@click.pass_context
def report_command(context: click.Context, /, by: str, since: str, until: str, form: str, **options: object) -> None:
    """Show spend, savings and counts from the ledger.

    Days, ISO weeks and months are those of the organisation's timezone; a task
    counts when it was settled. --by tag groups by each name=value of
    X-Wave-Tags, --by label by each label of the team's file as it is now: a
    task with two of them is in both lines, in full. The total counts each task
    once, so there it may be less than the sum of the lines.

    `of cap` is the cost as a part of the cap that it counts against. --format
    focus writes a row per day, team, key, model and tags for FinOps tools.

    \b
    Example:
      wave-gateway report --by team,day --since 2026-11-01 --format csv
    """
    groups = tuple(by.split(","))
    unknown = [name for name in groups if name not in report.GROUPS]
    if unknown or len(set(groups)) != len(groups):
        raise click.UsageError(f"--by {by!r}: name each once, of {', '.join(report.GROUPS)}")
    if form == "focus" and context.get_parameter_source("by") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--format focus has rows of its own; leave --by out")
    store = settings.parse(options, os.environ)
    policies = _policies(store)
    timezone = budget.timezone_of(policies.organisation.timezone)
    now = time.time()
    span = {
        "since": _moment("--since", since, now, timezone),
        "until": _moment("--until", until, now, timezone),
    }
    read = functools.partial(terminal.read_store, app.database_file(store))
    if form == "focus":
        charges = read(lambda tx: report.charges(tx, policies, **span))
        click.echo(_focus(charges, policies, timezone), nl=False)
        return
    found = read(lambda tx: report.report(tx, policies, by=groups, now=now, **span))
    render: dict[str, Callable[[Sequence[str], report.Report], str]] = {"table": table, "csv": _csv, "json": _json}
    click.echo(render[form](groups, found), nl=form != "csv")


def everything(by: Sequence[str]) -> Callable[[Tx], report.Report]:
    """Reads all that was ever settled, held against no cap."""
    return lambda tx: report.report(tx, policy.PolicySet(), by=by, since=0, until=2**40, now=0)


def table(groups: Sequence[str], found: report.Report) -> str:
    """A table of 80 columns, unless its amounts alone are wider; average and premium where there is room for them."""
    if not found.lines:
        return "Nothing was settled in this time."
    always = ["tasks", "images", "cost", "free", "avoided"]
    lines = [*found.lines, found.total]
    capped = ["of cap"] if any(_share(line) is not None for line in lines) else []
    extra = ["premium"] if any(line.premium_nanos for line in lines) else []
    for shown in ([*always, *extra, "average", *capped], [*always, *extra, *capped], [*always, *capped]):
        text = _columns(groups, found, shown)
        if len(text.splitlines()[1]) <= terminal.WIDTH:
            return text
    return _columns(groups, found, [*always, *capped], elastic=range(len(groups)))


def _columns(groups: Sequence[str], found: report.Report, shown: Sequence[str], *, elastic: Sequence[int] = ()) -> str:
    rows = [(*line.group, *_shown(line, shown)) for line in found.lines]
    rows.append(("total", *("" for _ in groups[1:]), *_shown(found.total, shown)))
    header = (*groups, *shown)
    return terminal.columns(header, rows, right=range(len(groups), len(header)), elastic=elastic, has_total=True)


def _shown(line: report.Line, names: Sequence[str]) -> list[str]:
    average, part = share.average(line.cost_nanos, line.images), _share(line)
    cells = {
        "tasks": str(line.tasks),
        "images": str(line.images),
        "cost": _dollars(line.cost_nanos),
        "free": str(line.free),
        "avoided": _dollars(line.avoided_nanos()),
        "premium": _dollars(line.premium_nanos),
        "average": "" if average is None else _dollars(average),
        "of cap": "" if part is None else share.percent(part),
    }
    return [cells[name] for name in names]


def _dollars(nanos: int) -> str:
    return f"${money.render_usd(nanos)}"


def _share(line: report.Line) -> Fraction | None:
    return None if line.ceiling is None else line.ceiling.share(line.cost_nanos)


def _named(line: report.Line) -> dict[str, int | str | None]:
    """Every value of a line by its name in CSV and JSON; amounts as decimal strings, None for what there is not."""
    average, part, ceiling = share.average(line.cost_nanos, line.images), _share(line), line.ceiling
    return {
        "tasks": line.tasks,
        "images": line.images,
        "free": line.free,
        "cost_usd": money.render_usd(line.cost_nanos),
        "avoided_usd": money.render_usd(line.avoided_nanos()),
        "average_usd": None if average is None else money.render_usd(average),
        "avoided_cache_usd": money.render_usd(line.avoided_cache_nanos),
        "avoided_coalesced_usd": money.render_usd(line.avoided_coalesced_nanos),
        "premium_usd": money.render_usd(line.premium_nanos),
        "cap_scope": None if ceiling is None else ceiling.scope.value,
        "cap_window": None if ceiling is None else ceiling.window.value,
        "cap": None if ceiling is None else ceiling.cap,
        "cap_usd": None if ceiling is None else money.render_usd(ceiling.limit_nanos),
        "cap_share": None if part is None else share.render(part),
    }


def _csv(groups: Sequence[str], found: report.Report) -> str:
    named = [(line.group, _named(line)) for line in found.lines]
    return _written([*groups, *_HEADER], ([*group, *(values[name] for name in _HEADER)] for group, values in named))


def _json(groups: Sequence[str], found: report.Report) -> str:
    lines = [{**dict(zip(groups, line.group, strict=True)), **_named(line)} for line in found.lines]
    return json.dumps(lines, indent=2, ensure_ascii=False)


def _focus(charges: Iterable[focus.Charge], policies: policy.PolicySet, timezone: datetime.tzinfo) -> str:
    labels = {name: team.labels for name, team in policies.teams.items()}
    rows = (focus.row(each, labels=labels.get(each.team, {}), timezone=timezone) for each in charges)
    return _written(focus.COLUMNS, rows)


def _written(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV as in RFC 4180, but with line feeds alone.

    Model names and tags come from clients, so a cell that a spreadsheet would take for a formula gets an apostrophe
    before it. No amount begins like one.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"'{cell}" if _FORMULA.match(str(cell)) else cell for cell in row] for row in rows)
    return text.getvalue()


def _policies(store: settings.Settings) -> policy.PolicySet:
    """The policies where their files can be read; a report does not need them."""
    try:
        return policy_files.load(store.policies)
    except policy_files.PolicyErrors:
        click.echo(
            f"{store.policies} cannot be read; days are those of UTC, and labels and caps are unknown.", err=True
        )
        return policy.PolicySet()


def _moment(option: str, text: str, now: float, timezone: datetime.tzinfo) -> float:
    if not text:
        return now + 1
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        try:
            return budget.local_midnight(datetime.date.fromisoformat(text), timezone)
        except ValueError:
            raise click.UsageError(f"{option} {text!r} is not a date") from None
    try:
        return now - units.parse_duration(text)
    except ValueError:
        raise click.UsageError(f"{option} {text!r}: write a date such as 2026-11-01 or an age such as 30d") from None
