"""The command that holds our ledger beside the vendor's wallet and tasks."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import click

from gateway import app, errors, policy_files, settings, terminal
from gateway.flow import reconcile
from gateway.rules import money, units
from gateway.rules import reconcile as rules
from gateway.store.database import Tx

T = TypeVar("T")

MOST_LINES: Final = 50
"""Tasks that are named one by one; the JSON names all."""

_WORDS: Final[Mapping[rules.Reason, str]] = {
    rules.Reason.OPENING: "used outside, as --opening says",
    rules.Reason.OPEN: "open there: up to the quote",
    rules.Reason.WAITING: "waiting to be sent: up to the quote",
    rules.Reason.IN_DOUBT: "in doubt: up to the quote",
    rules.Reason.MEANWHILE: "submitted while this ran: up to the quote",
    rules.Reason.UNPOLLED: "ended there, not polled here yet",
    rules.Reason.ESTIMATED: "the vendor named no cost: its rounding",
    rules.Reason.RESOLVED: "ended by an operator's decision",
    rules.Reason.COST: "the vendor's cost differs",
    rules.Reason.REOPENED: "ended here, open there",
    rules.Reason.UNKNOWN: "unknown to the vendor",
    rules.Reason.UNASKED: "the vendor gave no answer about it",
}


@click.command("reconcile")
@click.option("--since", default="24h", show_default=True, help="Ended tasks to ask about: an age, e.g. 7d.")
@click.option("--limit", default=10_000, show_default=True, type=click.IntRange(0), help="Tasks asked about at most.")
@click.option(
    "--opening",
    "openings",
    multiple=True,
    metavar="KEYREF=USD",
    help="What the account used outside of the gateway.",
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@terminal.setting_options((*terminal.STORE, "upstream", "allow-private", "egress-proxy", "ca-bundle"))
def reconcile_command(since: str, limit: int, openings: tuple[str, ...], form: str, **options: object) -> None:
    """Compare the ledger with the vendor's wallet and tasks.

    Asks the vendor with each upstream key of the policies; reads the ledger
    beside a running gateway and changes nothing. Exit code 1 if a difference
    has no explanation, or if a wallet cannot be read.

    KEYREF is the key as the policies name it. What the account had used before
    the gateway began is named once found, and from then on every time; a minus
    names what the ledger has from an earlier account.

    \b
    Example:
      wave-gateway reconcile --opening env:WAVE_KEY_GROWTH=12.5
    """
    store = settings.parse(options, os.environ)
    with terminal.progress("Asking the vendor") as progress:
        report = asyncio.run(_reconcile(store, _age(since), limit, dict(map(_opening, openings)), progress))
    if form == "json":
        click.echo(json.dumps(_as_json(report), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_lines(report)))
    sys.exit(0 if report.is_explained() else 1)


async def _reconcile(
    store: settings.Settings,
    age_s: float,
    limit: int,
    openings: Mapping[str, int],
    progress: Callable[[int, int], None],
) -> reconcile.Report:
    async def scan(fn: Callable[[Tx], T]) -> T:
        return await asyncio.to_thread(terminal.read_store, app.database_file(store), fn)

    try:
        policies = policy_files.load(store.policies)
    except policy_files.PolicyErrors as error:
        raise errors.StartError(f"the policies name the keys and cannot be read:\n{error}") from None
    question = reconcile.Question(
        refs=frozenset(team.upstream_key for team in policies.teams.values()),
        openings=openings,
        since=time.time() - age_s,
        most=limit,
    )
    secrets = policy_files.Secrets(os.environ, store.policies, now=time.time)
    vendor = app.reach_upstream(store)
    try:
        return await reconcile.reconcile(scan, vendor, question=question, key_of=secrets.get, progress=progress)
    except reconcile.UnknownReference as unknown:
        known = ", ".join(sorted(question.refs))
        raise click.UsageError(
            f"--opening {unknown}: neither a policy nor the ledger has it; there is {known}"
        ) from None
    finally:
        await vendor.aclose()


def _age(text: str) -> float:
    try:
        return units.parse_duration(text)
    except ValueError:
        raise click.UsageError(f"--since {text!r}: write an age such as 24h or 7d") from None


def _opening(text: str) -> tuple[str, int]:
    ref, _, amount = text.rpartition("=")
    if not ref:
        raise click.UsageError(f"--opening {text!r}: write KEYREF=USD, e.g. env:WAVE_KEY_GROWTH=12.5")
    try:
        nanos = money.parse_usd(amount.removeprefix("-"))
    except ValueError as error:
        raise click.UsageError(f"--opening {text!r}: {error}") from None
    return ref, -nanos if amount.startswith("-") else nanos


# Text


def _lines(report: reconcile.Report) -> Iterator[str]:
    for account in report.accounts:
        yield from _account(account)
        yield ""
    faults = report.faults()
    for finding in faults[:MOST_LINES]:
        yield from _finding(finding)
    if len(faults) > MOST_LINES:
        yield f"... and {len(faults) - MOST_LINES:,} more; --format json names all."
    if faults:
        yield ""
    asked = f"{terminal.count(report.asked, 'task')} compared one by one"
    yield f"{asked}, {report.not_asked:,} not asked about." if report.not_asked else f"{asked}."
    if report.is_explained():
        yield "The ledger and the vendor agree; every difference has its reason."
    else:
        yield from _wrapped(_verdict(report))


def _account(account: rules.Account) -> Iterator[str]:
    yield "\n".join(_wrapped("account of " + ", ".join(ref or "tasks no longer kept" for ref in account.refs)))
    rows = [("the ledger has settled", f"{account.settles:,}", _usd(account.settled_nanos))]
    if account.earlier_nanos and account.used_nanos is not None:
        rows.append(("  of it with an earlier key", "", _usd(account.earlier_nanos)))
    if account.used_nanos is not None:
        rows.insert(0, ("the vendor's wallet has used", "", _usd(account.used_nanos)))
        rows.append(("difference", "", _usd(account.difference_nanos() or 0)))
    rows += [
        (f"  {_WORDS[each.reason]}", f"{each.tasks:,}" if each.tasks else "", _range(each)) for each in account.parts
    ]
    left = account.unexplained_nanos()
    rows.append(("unexplained", "", "not known" if left is None else _usd(left)))
    yield terminal.columns(("", "tasks", "amount"), rows, right=range(1, 3), elastic=(0,))
    yield from _wrapped(_advice(account, left))


def _advice(account: rules.Account, left: int | None) -> str:
    if left is None:
        return _TROUBLES.get(account.trouble) or (
            f"The wallet cannot be read ({account.trouble}), so this account is not known. Check --upstream and the "
            "network, and run this again."
        )
    if left > 0:
        return (
            f"The vendor counts {_usd(left)} more than anything here explains. Likely: somebody uses the account "
            "outside of the gateway, or did before it began. Look through the vendor's own list for tasks that "
            "`wave-gateway tasks show` does not find; what you can account for, name with "
            f"--opening {account.refs[0]}={money.render_usd(left)}."
        )
    if left < 0:
        earlier = (
            f" {_usd(account.earlier_nanos)} was settled with an earlier key: if that belonged to another account, "
            f"name it with --opening {account.refs[0]}=-{money.render_usd(account.earlier_nanos)}."
        )
        return (
            f"The ledger has {_usd(-left)} more than the vendor counts. Likely: the vendor gave something back after "
            "the task had ended, or tasks were settled at another account. Run this with a longer --since to find "
            "the tasks whose cost differs." + (earlier if account.earlier_nanos else "")
        )
    return ""


_TROUBLES: Final[Mapping[str, str]] = {
    "no_key": "This key cannot be read here, so its account is not known. Give this command the same environment "
    "and files as the gateway.",
    reconcile.NOT_THERE: "The vendor has no balance page, so only single tasks could be compared; nothing is known "
    "about what else the account was used for.",
    "401": "The vendor refuses this key, so its account is not known. Mend the key where the policies point to.",
    "403": "The vendor refuses this key, so its account is not known. Mend the key where the policies point to.",
    "not_a_balance": "The vendor's balance page has no amount in USD that can be read, so this account is not known.",
}


def _finding(finding: rules.Finding) -> Iterator[str]:
    booked = finding.booked
    there = finding.status_there or finding.detail
    cost = "" if finding.cost_there_nanos is None else f", {_usd(finding.cost_there_nanos)}"
    yield f"{booked.id}: {_WORDS[finding.reason]}"
    yield from _wrapped(f"  here {booked.state}, {_usd(booked.cost_nanos)} of {_usd(booked.quote.nanos)} quoted")
    yield f"  there {terminal.printable(there)}{cost}, as"
    yield f"  {terminal.printable(booked.upstream_task_id or '')}"


def _verdict(report: reconcile.Report) -> str:
    left = [each.unexplained_nanos() for each in report.accounts]
    said = []
    if any(each for each in left):
        said.append("a difference has no explanation")
    if None in left:
        said.append("a wallet is not known")
    reasons = {each.reason for each in report.faults()}
    if reasons - {rules.Reason.UNASKED}:
        said.append("tasks differ")
    if rules.Reason.UNASKED in reasons:
        said.append("the vendor gave no answer about some tasks")
    return f"Not reconciled: {', '.join(said)}."


def _wrapped(text: str) -> list[str]:
    """Lines of 80 columns; ids and references stay whole."""
    return textwrap.wrap(text, terminal.WIDTH, break_on_hyphens=False, break_long_words=False)


def _usd(nanos: int) -> str:
    return f"-${money.render_usd(-nanos)}" if nanos < 0 else f"${money.render_usd(nanos)}"


def _range(part: rules.Part) -> str:
    if part.least_nanos == part.most_nanos:
        return _usd(part.least_nanos)
    return f"{_usd(part.least_nanos)} to {_usd(part.most_nanos)}"


# JSON


def _as_json(report: reconcile.Report) -> dict[str, Any]:
    return {
        "explained": report.is_explained(),
        "accounts": [_account_json(each) for each in report.accounts],
        "tasks": [_finding_json(each) for each in report.findings],
        "asked": report.asked,
        "not_asked": report.not_asked,
    }


def _account_json(account: rules.Account) -> dict[str, Any]:
    return {
        "keys": list(account.refs),
        "trouble": account.trouble or None,
        "used_usd": _amount(account.used_nanos),
        "settled_usd": _amount(account.settled_nanos),
        "settles": account.settles,
        "earlier_key_usd": _amount(account.earlier_nanos),
        "difference_usd": _amount(account.difference_nanos()),
        "explanations": [
            {"reason": each.reason, "tasks": each.tasks, **_bounds(each.least_nanos, each.most_nanos)}
            for each in account.parts
        ],
        "unexplained_usd": _amount(account.unexplained_nanos()),
    }


def _finding_json(finding: rules.Finding) -> dict[str, Any]:
    booked = finding.booked
    there = {"status": finding.status_there, "cost_usd": _amount(finding.cost_there_nanos)}
    return {
        "reason": finding.reason,
        "is_fault": finding.reason in rules.FAULTS,
        "task_id": booked.id,
        "upstream_task_id": booked.upstream_task_id,
        "team": booked.team,
        "here": {
            "state": booked.state,
            "cost_usd": _amount(booked.cost_nanos),
            "quote_usd": _amount(booked.quote.nanos),
        },
        "there": there | {"detail": finding.detail or None},
        **_bounds(finding.least_nanos, finding.most_nanos),
    }


def _bounds(least_nanos: int, most_nanos: int) -> dict[str, str | None]:
    return {"least_usd": _amount(least_nanos), "most_usd": _amount(most_nanos)}


def _amount(nanos: int | None) -> str | None:
    return None if nanos is None else money.render_usd(nanos)
