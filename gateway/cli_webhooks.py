"""The commands about webhooks that were given up: which they are, and to send them once more."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence

import click

from gateway import app, cli_writing, settings, terminal
from gateway.edge import control
from gateway.flow import resend
from gateway.rules import delivery
from gateway.store import outbox


@click.group("webhooks")
def webhooks_group() -> None:
    """Webhooks: those that were given up, and to send them once more."""


@webhooks_group.command("list")
@click.option("--team", help="Only of this team.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="How many.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@terminal.setting_options(terminal.STORE)
def webhooks_list(team: str | None, limit: int, form: str, **options: object) -> None:
    """List the webhooks that were given up, the latest first.

    \b
    Example:
      wave-gateway webhooks list --team growth
    """
    store = settings.parse(options, os.environ)
    found = terminal.read_store(app.database_file(store), lambda tx: outbox.given_up(tx, team=team, limit=limit))
    if form == "json":
        click.echo(json.dumps([_fields(each) for each in found], indent=2))
    else:
        click.echo(_text(found, time.time()))


@webhooks_group.command("resend")
@click.argument("task_id", metavar="[ID]", required=False)
@click.option("--all", "is_all", is_flag=True, help="All that were given up.")
@click.option("--team", help="With --all: only of this team.")
@terminal.setting_options(terminal.STORE)
def webhooks_resend(task_id: str | None, is_all: bool, team: str | None, **options: object) -> None:
    """Send the webhook of the task ID once more, or --all that were given up.

    It leaves at once and is tried as often as a new one, under the same
    webhook-id. One that was delivered can be sent once more, too. Exit code 1
    if the task has no webhook.

    \b
    Example:
      wave-gateway webhooks resend task-wg01K...
      wave-gateway webhooks resend --all --team growth
    """
    if is_all == (task_id is not None) or (team is not None and not is_all):
        raise click.UsageError("name a task, or --all with or without --team")
    store = settings.parse(options, os.environ)
    answer = cli_writing.asked(store, control.Resend(task_id=task_id, team=team), cli_writing.quiet)
    if isinstance(answer, control.Resent):
        count = answer.webhooks
    else:
        which = resend.Which(task_id=task_id, team=team)
        count = cli_writing.alone(store, lambda alone: resend.resend(alone.database, which, now=time.time()))
    if task_id is not None and not count:
        cli_writing.fail(f"task {task_id} has no webhook: it has not ended, nobody wanted to hear of it, or is unknown")
    click.echo(f"{terminal.count(count, 'webhook')} to be sent once more.")


def _fields(each: outbox.Delivery) -> dict[str, object]:
    return {"webhook_id": delivery.webhook_id(each.task_id), **dataclasses.asdict(each)}


def _text(found: Sequence[outbox.Delivery], now: float) -> str:
    if not found:
        return "No webhook is given up."
    lines: list[str] = []
    for each in found:
        tries = f"{each.attempts} tries" if each.attempts != 1 else "1 try"
        ago = terminal.age(now - (each.ended_at or now))
        lines += [
            f"{each.task_id}  {each.event}  {each.team}",
            f"  {each.receiver}, {tries}, {ago} ago: {each.problem}",
        ]
    lines += ["", "Send them once more, when their receivers answer again:", "  wave-gateway webhooks resend ID|--all"]
    return "\n".join(terminal.cut(terminal.printable(line), terminal.WIDTH) for line in lines)
