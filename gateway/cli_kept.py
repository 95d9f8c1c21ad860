"""The commands about what is kept: tasks, results, pictures.

Reading is done here, beside a running gateway. What changes something goes through `cli_writing`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Final

import click

from gateway import app, cli_writing, errors, settings, terminal
from gateway.edge import control
from gateway.flow import keep, lookup, resolve
from gateway.rules import money, task
from gateway.store import blobs_disk, cache, results

_FORMAT: Final = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)


_RESOLVE_IT: Final = """
'resolve it': nobody asks the upstream about it any more. Find out there what
became of it, by the key that `tasks show ID` calls "upstream idem", then
  wave-gateway tasks resolve ID --as refused|charged=USD --why TEXT"""

# Tasks


@click.group("tasks")
def tasks_group() -> None:
    """Tasks: the newest ones, and all about one."""


@tasks_group.command("list")
@click.option("--team", help="Only of this team.")
@click.option(
    "--state",
    metavar="STATE",
    type=click.Choice([state.value for state in task.State]),
    help=f"Only in this state: {', '.join(task.State)}.",
)
@click.option("--in-doubt", is_flag=True, help="Only those in doubt, the oldest first, and what comes next.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="How many.")
@_FORMAT
@terminal.setting_options(terminal.STORE)
def tasks_list(team: str | None, state: str | None, in_doubt: bool, limit: int, form: str, **options: object) -> None:
    """List tasks, the newest first.

    A cost after '<' is the quote: the task is not settled yet.

    \b
    Example:
      wave-gateway tasks list --in-doubt --team growth
    """
    if in_doubt and state is not None:
        raise click.UsageError("--in-doubt is a state already; leave --state out")
    store = settings.parse(options, os.environ)
    if in_doubt:
        doubts = terminal.read_store(app.database_file(store), lambda tx: lookup.in_doubt(tx, team=team, limit=limit))
        _print_doubts(doubts, form)
        return
    only = None if state is None else task.State(state)
    found = terminal.read_store(
        app.database_file(store), lambda tx: lookup.newest(tx, team=team, state=only, limit=limit)
    )
    _print_list(found, form)


def _print_list(found: Sequence[lookup.Summary], form: str) -> None:
    if form == "json":
        _print_json([dataclasses.asdict(each) for each in found])
    elif not found:
        click.echo("There is no such task.")
    else:
        click.echo(_table(found))


def _table(found: Sequence[lookup.Summary]) -> str:
    now = time.time()
    head = ("id", "team", "model", "state", "cost", "age")
    rows = [
        (each.id, each.team, each.model, each.state, _price(each), terminal.age(now - each.created_at))
        for each in found
    ]
    return terminal.columns(head, rows, right=range(4, 6), elastic=(1, 2))


def _price(each: lookup.Summary) -> str:
    return f"<${each.quote_usd}" if each.cost_usd is None else f"${each.cost_usd}"


def _print_doubts(found: Sequence[lookup.Doubt], form: str) -> None:
    if form == "json":
        _print_json([dataclasses.asdict(each) for each in found])
        return
    if not found:
        click.echo("No task is in doubt.")
        return
    now = time.time()
    head = ("id", "team", "held", "for", "tries", "next")
    rows = [
        (
            *(each.id, each.team, f"${each.quote_usd}"),
            *(terminal.age(now - each.first_attempt_at), str(each.attempts), _next(each, now)),
        )
        for each in found
    ]
    click.echo(terminal.columns(head, rows, right=range(2, 5), elastic=(1,)))
    if any(each.is_yours for each in found):
        click.echo(_RESOLVE_IT)


def _next(each: lookup.Doubt, now: float) -> str:
    if each.next_at is None:
        return "resolve it"
    return f"again in {terminal.age(each.next_at - now)}" if each.next_at > now else "again now"


@tasks_group.command("resolve")
@click.argument("task_id", metavar="ID")
@click.option("--as", "found", required=True, metavar="refused|charged=USD", help="What the upstream did with it.")
@click.option("--why", required=True, metavar="TEXT", help="How you know; kept in the ledger.")
@terminal.setting_options(terminal.STORE)
def tasks_resolve(task_id: str, found: str, why: str, **options: object) -> None:
    """End the hold of the task ID, which is in doubt or overdue.

    Find out from the upstream first: this cannot be taken back. 'refused'
    releases the hold, 'charged=USD' settles it to that amount. The task fails
    for its client. Exit code 1 if there is nothing to decide about it.

    \b
    Example:
      wave-gateway tasks resolve task-wg01K... --as charged=0.0425 \\
        --why "line 17 of the November invoice"
    """
    request = control.Resolve(task_id=task_id, charged_nanos=_charged(found), why=_reason(why))
    store = settings.parse(options, os.environ)
    answer = cli_writing.asked(store, request, cli_writing.quiet)
    if answer is None:
        decision = control.decision_of(request)
        done = cli_writing.alone(store, lambda alone: resolve.resolve(alone.database, decision, now=time.time()))
        answer = control.resolved(done)
    if isinstance(answer, control.Failed):
        cli_writing.fail(answer.message)
    if isinstance(answer, control.Resolved):
        _print_resolved(answer)


def _charged(found: str) -> money.Nanos | None:
    """The amount of `charged=USD`, None for `refused`."""
    word, _, amount = found.partition("=")
    if found == "refused":
        return None
    if word != "charged":
        raise click.UsageError(f"--as {found!r}: write refused, or charged=0.0425 with what the upstream billed")
    try:
        nanos = money.parse_usd(amount)
    except ValueError as error:
        raise click.UsageError(f"--as {found!r}: {error}") from None
    if not nanos:
        raise click.UsageError(f"--as {found!r}: nothing was billed, so write refused")
    return nanos


def _reason(why: str) -> str:
    """A reason as it is kept: one line that can be read."""
    reason = " ".join(why.split())
    if not reason or not reason.isprintable() or len(reason) > resolve.LONGEST_WHY:
        raise click.UsageError(f"--why: say in 1 to {resolve.LONGEST_WHY} characters of text how you know")
    return reason


def _print_resolved(done: control.Resolved) -> None:
    cost, over = done.cost_nanos, done.cost_nanos - done.quote_nanos
    followers = "" if not done.followers else f", and for {terminal.count(done.followers, 'follower')}"
    beyond = "" if over <= 0 else f", ${money.render_usd(over)} of it overage"
    click.echo(terminal.named("task", done.task_id))
    if cost:
        click.echo(terminal.named("settled", f"${money.render_usd(cost)}{beyond}"))
    else:
        click.echo(terminal.named("released", f"${money.render_usd(done.quote_nanos)}"))
    click.echo(terminal.named("ended", f"failed for its client{followers}"))


@tasks_group.command("show")
@click.argument("ref")
@_FORMAT
@terminal.setting_options(terminal.STORE)
def tasks_show(ref: str, form: str, **options: object) -> None:
    """Show all about the task REF: money, steps, pictures.

    REF is its id, the upstream's id, a request id, an idempotency key, or the
    digest, name or URL of a picture. Exit code 1 if there is none, or several;
    then they are listed.

    \b
    Example:
      wave-gateway tasks show req-b12d5229ab6b250f078b6b43
    """
    store = settings.parse(options, os.environ)
    found = terminal.read_store(app.database_file(store), lambda tx: lookup.find(tx, ref))
    if not isinstance(found, lookup.Record):
        _print_list(found, form)
        sys.exit(1)
    if form == "json":
        _print_json(dataclasses.asdict(found))
    else:
        _print_record(found, time.time())


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_record(found: lookup.Record, now: float) -> None:
    for label, value in [
        *_what(found),
        *_money(found),
        *_names(found),
        *_webhook(found, now),
        *_steps(found, now),
    ]:
        if value:
            click.echo(terminal.named(label, terminal.printable(value)))
    if found.ledger:
        click.echo("\n" + _entries(found.ledger))
    if found.media:
        click.echo("\nresults")
        for each in found.media:
            click.echo(f"  {each.position}  {_file(each)}")
    if found.followers:
        click.echo("\nserved from it at no cost" + (", the first ones" if found.has_more_followers else ""))
        for line in _table(found.followers).splitlines():
            click.echo(line)


def _what(found: lookup.Record) -> list[tuple[str, str | None]]:
    billed = found.billed_model
    seed = "" if found.seed is None else f", seed {found.seed}"
    return [
        ("task", found.id),
        ("state", f"{found.state} (its client sees: {found.shown_as})"),
        ("error", found.error),
        ("team, key", f"{found.team}, {found.key}"),
        ("model", found.model if billed in (None, found.model) else f"{found.model}, billed as {billed}"),
        ("changed", found.changes),
        ("asked for", f"{found.action}, n {found.n}{seed}"),
        ("prompt", found.prompt),
        ("tags", "" if found.tags == "{}" else found.tags),
    ]


def _money(found: lookup.Record) -> list[tuple[str, str | None]]:
    return [
        ("quote", f"${found.quote_usd}" + (f" by prices of {found.price_version}" if found.price_version else "")),
        ("cost", "not known yet" if found.cost_usd is None else f"${found.cost_usd}"),
        ("cache", found.x_cache),
        ("leader", found.leader_id),
        ("fingerprint", found.fingerprint),
    ]


def _names(found: lookup.Record) -> list[tuple[str, str | None]]:
    return [
        ("request id", found.request_id),
        ("client's key", found.idempotency_key),
        ("upstream id", found.upstream_task_id),
        ("upstream idem", found.upstream_idempotency_key),
        ("upstream key", found.upstream_key),
    ]


def _webhook(found: lookup.Record, now: float) -> list[tuple[str, str | None]]:
    if found.callback_host is None:
        return []
    sent = found.webhook
    if sent is None:
        is_open = found.ended_at is None
        return [("webhook to", f"{found.callback_host}: " + ("when it ends" if is_open else "none about this end"))]
    tries = f"{sent.attempts} attempt{'' if sent.attempts == 1 else 's'}"
    if sent.state == "pending":
        came = f"{tries}, next {_when(sent.due_at or now, now)}"
    else:
        came = f"{sent.state.replace('_', ' ')} after {tries}, {_when(sent.ended_at or now, now)}"
    return [("webhook to", f"{found.callback_host}: {sent.event}, {came}"), ("webhook said", sent.problem)]


def _steps(found: lookup.Record, now: float) -> list[tuple[str, str | None]]:
    times = [
        ("created", found.created_at),
        ("first attempt", found.first_attempt_at),
        ("accepted", found.submitted_at),
        ("settled", found.settled_at),
        ("ended", found.ended_at),
        ("next look", found.next_at),
    ]
    tries = f"{found.attempts} submits, {found.troubles} polls or downloads in a row that brought nothing"
    return [("attempts", tries), *((label, _when(at, now)) for label, at in times if at is not None)]


def _when(at: float, now: float) -> str:
    distance = f"{terminal.age(now - at)} ago" if at <= now else f"in {terminal.age(at - now)}"
    return f"{terminal.instant(at)} ({distance})"


def _entries(entries: Sequence[lookup.Movement]) -> str:
    head = ("ledger", "entry", "amount", "model", "why")
    rows = [
        (terminal.instant(each.at).removesuffix(" UTC"), each.kind, f"${each.usd}", each.model, each.why)
        for each in entries
    ]
    return terminal.columns(head, rows, right=range(2, 3), elastic=(3, 4))


def _file(each: lookup.File) -> str:
    if each.digest is not None:
        return f"{each.digest}.{each.extension}"
    until = "" if each.expires_at is None else f", expires {terminal.instant(each.expires_at)}"
    return terminal.cut(f"not mirrored yet, at {terminal.printable(each.upstream_host)}{until}", terminal.WIDTH - 5)


# The result cache


@click.group("cache")
def cache_group() -> None:
    """The result cache: in memory, on disk, on task rows."""


@cache_group.command("stats")
@_FORMAT
@terminal.setting_options(terminal.STORE)
def cache_stats(form: str, **options: object) -> None:
    """Show how many results may be hits.

    The task rows decide what is a hit; memory and disk only make it faster.

    \b
    Example:
      wave-gateway cache stats --format json
    """
    store = settings.parse(options, os.environ)
    counts = terminal.read_store(app.database_file(store), results.counts)
    disk, size_bytes = cache.on_disk(app.cache_directory(store))
    answer = control.ask(store.data, control.CacheStats(), progress=cli_writing.quiet)
    if isinstance(answer, control.Failed):
        raise errors.StartError(answer.message)
    memory = answer.results if isinstance(answer, control.InMemory) else None
    if form == "json":
        by_group = [dataclasses.asdict(each) for each in counts]
        _print_json({"in_memory": memory, "on_disk": disk, "on_disk_bytes": size_bytes, "on_task_rows": by_group})
        return
    click.echo(terminal.named("in memory", "the gateway does not run" if memory is None else f"{memory:,}"))
    click.echo(terminal.named("on disk", f"{disk:,}, {size_bytes:,} bytes"))
    click.echo(terminal.named("on task rows", f"{sum(each.results for each in counts):,}"))
    if counts:
        rows = [(each.team, each.model, f"{each.results:,}") for each in counts]
        table = terminal.columns(("team", "model", "results"), rows, right=range(2, 3), elastic=(0, 1))
        click.echo(f"\n{table}")


@cache_group.command("purge")
@click.option("--team", help="Only results that this team paid for.")
@click.option("--model", metavar="GLOB", help="Only of models like this.")
@click.option("--fingerprint", metavar="F", help="Only the results of this request.")
@terminal.setting_options(terminal.STORE)
def cache_purge(team: str | None, model: str | None, fingerprint: str | None, **options: object) -> None:
    """Make results hits no longer; without an option, all of them.

    In memory, on disk and on the task rows. The tasks keep their results and
    pictures; the next request like them is paid for.

    \b
    Example:
      wave-gateway cache purge --team growth --model 'gemini-*'
    """
    store = settings.parse(options, os.environ)
    with terminal.progress("Purging") as progress:
        request = control.Purge(team=team, model=model, fingerprint=fingerprint)
        answer = cli_writing.asked(store, request, progress)
        if isinstance(answer, control.Purged):
            purged = answer.results
        else:
            which = keep.Which(team=team, model=model, fingerprint=fingerprint)
            purged = cli_writing.alone(
                store, lambda alone: keep.purge(alone.database, alone.results(), which, progress=progress)
            )
    click.echo(f"{terminal.count(purged, 'result')} purged.")


# Media


@click.group("media")
def media_group() -> None:
    """Kept pictures."""


@media_group.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@terminal.setting_options(terminal.STORE)
def media_gc(dry_run: bool, **options: object) -> None:
    """Remove pictures that no kept task points at.

    And files that have no row, as a crash leaves them. What is younger than an
    hour stays: it may be on its way.

    \b
    Example:
      wave-gateway media gc --dry-run
    """
    store = settings.parse(options, os.environ)
    if dry_run:
        blobs = blobs_disk.DiskBlobs(store.media)
        found = terminal.read_store(app.database_file(store), lambda tx: keep.garbage(tx, blobs, now=time.time()))
        click.echo(_removed("Would remove", len(found.blobs), len(found.orphans), found.size_bytes))
        return
    with terminal.progress("Collecting") as progress:
        answer = cli_writing.asked(store, control.Collect(), progress)
        if isinstance(answer, control.Collected):
            done = keep.Collected(blobs=answer.blobs, orphans=answer.orphans, size_bytes=answer.size_bytes)
        else:
            done = cli_writing.alone(
                store, lambda alone: keep.collect(alone.database, alone.blobs, now=time.time(), progress=progress)
            )
    click.echo(_removed("Removed", done.blobs, done.orphans, done.size_bytes))


def _removed(verb: str, blobs: int, orphans: int, size_bytes: int) -> str:
    return f"{verb} {terminal.count(blobs, 'blob')}, {terminal.count(orphans, 'orphan file')}, {size_bytes:,} bytes."
