"""The commands. Each parses its words, calls one thing, prints what a person wants to read on 80 columns.

Exit codes: 0 done, 1 the answer is no, 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn, TypeVar

import click

from gateway import (
    VERSION,
    app,
    cli_kept,
    cli_reconcile,
    cli_report,
    cli_webhooks,
    demo,
    errors,
    policy_files,
    settings,
    simulator,
    terminal,
    wire,
)
from gateway.flow import audit as audit_flow
from gateway.flow import explain as explain_flow
from gateway.flow import references
from gateway.rules import policy
from gateway.store import blobs_disk, database, sqlite

T = TypeVar("T")

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def main() -> None:
    """Run the command line; a StartError is printed and exits with 1."""
    try:
        cli(prog_name="wave-gateway")
    except errors.StartError as error:
        click.echo(f"wave-gateway: {error}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": terminal.WIDTH})
@click.version_option(VERSION, prog_name="wave-gateway")
def cli() -> None:
    """One gateway in front of the Wave task API: keys kept in, a spend cap that
    holds, free seeded repeats, pictures that last, a bill per team.

    \b
    See it at work:   wave-gateway demo
    Begin in earnest: wave-gateway init && wave-gateway serve
    """


@cli.command()
@terminal.setting_options()
def serve(**options: object) -> None:
    """Run the gateway.

    Every option is also an environment variable: --public-url is
    WAVE_GATEWAY_PUBLIC_URL.

    \b
    Example:
      WAVE_KEY_GROWTH=sk-... wave-gateway serve --policies ./policies
    """
    app.serve(settings.parse(options, os.environ), os.environ)


@cli.command("demo")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port of the gateway.")
@click.option("--once", is_flag=True, help="Play a tour, print each step, exit.")
def demo_command(port: int, once: bool) -> None:
    """Simulator, gateway and two teams on a temporary directory.

    No key and no network are needed.

    \b
    Example:
      wave-gateway demo --once
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with demo.running(port, new_virtual_key) as running:
            if once:
                sys.exit(_play(running))
            _invite(running)
            running.processes[1].wait()
            raise errors.StartError("the gateway of the demonstration has ended")
    except KeyboardInterrupt:
        click.echo("\nThe demonstration is over; nothing is kept.")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _play(running: demo.Demo) -> int:
    started = time.monotonic()
    click.echo("Wave Gateway, the main job against the simulated vendor\n")
    number = 0

    def say(step: str, what: str, went_well: bool) -> None:
        nonlocal number
        number += 1
        mark = click.style("ok  ", fg="green") if went_well else click.style("FAIL", fg="red")
        click.echo(f"{mark} {number}. {step}")
        for line in what.splitlines():
            # A URL stays whole, so that it can be clicked.
            wrapped = [line] if "://" in line else textwrap.wrap(line, terminal.WIDTH - 8)
            click.echo("\n".join(f"        {part}" for part in wrapped))

    went_well = demo.tour(running, say)
    click.echo("\nSpend per team, from the ledger:\n")
    groups = ("team", "model")
    spent = sqlite.scan_file(running.data / app.DATABASE_NAME, cli_report.everything(groups))
    click.echo(cli_report.table(groups, spent))
    verdict = "Everything went as it should" if went_well else "Something went wrong"
    click.echo(f"\n{verdict}, in {time.monotonic() - started:.1f} s.")
    return 0 if went_well else 1


def _invite(running: demo.Demo) -> None:
    key = running.keys["growth"]
    click.echo(
        f"""Wave Gateway is at {running.url}, with the simulated vendor behind it.

Team keys:"""
    )
    for team, each in running.keys.items():
        click.echo(f"  {team:<8} {each}")
    click.echo(
        f"""
Try, in another terminal:

  KEY={key}

  # submit; the same line again is a hit at cost 0
  curl -s {running.url}/v1/tasks -H "Authorization: Bearer $KEY" \\
    -d '{{"model":"gemini-2.5-flash-image-preview","prompt":"a fox","seed":7}}'

  # poll, with the task_id of the answer
  curl -s {running.url}/v1/tasks/TASK_ID -H "Authorization: Bearer $KEY"

  # what was spent
  curl -s {running.url}/metrics | grep wave_gateway_cost
  wave-gateway report --data {running.data}

Ctrl-C ends the demonstration; nothing is kept."""
    )


@cli.command("simulate")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on; anybody there may use it.")
@click.option("--port", default=9000, show_default=True, type=click.IntRange(1, 65535), help="Port there.")
@click.option("--script", type=click.Path(path_type=pathlib.Path), help="JSON list of faults to play.")
@click.option(
    "--rounding", default="down", show_default=True, type=click.Choice(["down", "up"]), help="How it rounds its bills."
)
def simulate_command(host: str, port: int, script: pathlib.Path | None, rounding: str) -> None:
    """Run the upstream simulator alone.

    It behaves like the documented vendor, keeps a bill of its own (GET
    /sim/bill) and takes faults on request (POST /sim/script).

    \b
    Example:
      wave-gateway simulate --port 9000 &
      wave-gateway serve --upstream http://127.0.0.1:9000 \\
        --allow-private 127.0.0.0/8
    """
    try:
        simulator.run(host=host, port=port, script=script, rounding=rounding)
    except (ValueError, OSError) as error:
        raise errors.StartError(f"the simulator cannot start: {error}") from None


@cli.command()
@click.argument("directory", default="policies", type=click.Path(path_type=pathlib.Path))
def init(directory: pathlib.Path) -> None:
    """Write commented policy files to start from into DIRECTORY [policies].

    \b
    Example:
      wave-gateway init ./policies
    """
    for path in policy_files.write_starter(directory):
        click.echo(f"wrote {path}")
    click.echo(
        f"""
Next:
  1. wave-gateway keys new --team example --name ci
     and put the line it prints into {directory}/teams/example.yaml
  2. export WAVE_KEY=<your upstream key>
  3. wave-gateway policy check {directory}
  4. wave-gateway serve --policies {directory}"""
    )


@cli.group()
def keys() -> None:
    """Virtual keys of teams."""


@keys.command("new")
@click.option("--team", required=True, help="Name of the team, as in its file.")
@click.option("--name", required=True, help="What to call the key, e.g. ci.")
def keys_new(team: str, name: str) -> None:
    """Make a virtual key and print it, once.

    Only its SHA-256 is ever stored. Standard output is the key and the line
    for the team's file.

    \b
    Example:
      wave-gateway keys new --team growth --name ci
    """
    for what, value in (("--team", team), ("--name", name)):
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", value):
            raise click.UsageError(f"{what} {value!r}: use up to 63 of a-z, 0-9, '-', '_' and '.'")
    key = new_virtual_key()
    digest = hashlib.sha256(key.encode()).hexdigest()
    click.echo(f"Key (shown once, hand it to the client):\n\n  {key}\n")
    click.echo(f'Line for `keys:` in teams/{team}.yaml:\n\n  - {{name: {name}, sha256: "{digest}"}}')


@cli.group("policy")
def policy_group() -> None:
    """Policy files."""


for _command in (
    *(cli_kept.tasks_group, cli_kept.cache_group, cli_kept.media_group, cli_webhooks.webhooks_group),
    *(cli_reconcile.reconcile_command, cli_report.report_command),
):
    cli.add_command(_command)


@policy_group.command("check")
@click.argument("directory", default="policies", type=click.Path(path_type=pathlib.Path))
def policy_check(directory: pathlib.Path) -> None:
    """Validate the policy files in DIRECTORY [policies]; needs no secret.

    \b
    Example:
      wave-gateway policy check ./policies
    """
    try:
        policies = policy_files.load(directory)
    except policy_files.PolicyErrors as error:
        _print_problems(error, err=False)
    caps = len(policies.organisation.caps) + sum(len(team.caps) for team in policies.teams.values())
    counts = (
        terminal.count(len(policies.models), "model"),
        terminal.count(len(policies.teams), "team"),
        terminal.count(caps, "cap"),
    )
    click.echo(f"{directory}: good. {', '.join(counts)}.")


def _load(directory: pathlib.Path) -> policy.PolicySet:
    try:
        return policy_files.load(directory)
    except policy_files.PolicyErrors as error:
        _print_problems(error, err=True)


def _print_problems(error: policy_files.PolicyErrors, *, err: bool) -> NoReturn:
    """Print what is wrong: the answer of `policy check`, an error of any other command."""
    for problem in error.problems:
        click.echo(str(problem), err=err)
    click.echo(f"{terminal.count(len(error.problems), 'problem')}.", err=err)
    sys.exit(1)


@policy_group.command("explain")
@click.option("--team", "team_name", required=True, help="Name of the team.")
@click.option("--key", "key_name", default="", help="Name of one of its keys.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@terminal.setting_options((*terminal.STORE, "public-url", "media-public-url"))
@click.argument("file", type=click.File("rb"))
def policy_explain(team_name: str, key_name: str, form: str, file: io.BufferedReader, **options: object) -> None:
    """Explain the decision about the request in FILE ('-' for standard input).

    Shows the rule that decides, the quote, the fingerprint and every cap that
    the request touches, with what is left by the ledger in --data. Stores and
    sends nothing; exit code 1 where the answer is no.

    \b
    Example:
      echo '{"model":"gemini-3-pro-image-preview","prompt":"a fox"}' |
        wave-gateway policy explain --team growth -
    """
    store = settings.parse(options, os.environ)
    policies = _load(store.policies)
    team = policies.teams.get(team_name)
    if team is None:
        raise click.UsageError(f"--team {team_name!r} has no file; there are {', '.join(sorted(policies.teams))}")
    if key_name and key_name not in [key.name for key in team.keys]:
        raise click.UsageError(f"--key {key_name!r} is not listed in teams/{team_name}.yaml")
    try:
        request = wire.parse_submit(file.read())
    except errors.CallerError as error:
        raise errors.StartError(f"{error.code}: {error.message}") from None
    own = references.place(
        public_url=store.public_url,
        media_public_url=store.media_public_url,
        is_media_public_url_given=store.is_media_public_url_given,
    )

    def explained(tx: database.Tx) -> explain_flow.Explanation:
        now = time.time()
        resolved = references.resolve(tx, request, own, now=now)
        return explain_flow.explain(tx, policies, team, key_name, resolved, now=now)

    found = terminal.read_store(app.database_file(store), explained, is_needed=False)
    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        _print_explanation(found)
    sys.exit(0 if found.decision == "allow" else 1)


def _print_explanation(found: explain_flow.Explanation) -> None:
    decision = found.decision if found.code is None else f"{found.decision} ({found.code})"
    rows = [
        ("decision", decision),
        ("because", found.message or ""),
        ("rule", found.rule),
        ("changed", ", ".join(found.changed)),
        ("quote", f"${found.quote_usd}"),
        ("cache", found.cache),
        ("fingerprint", found.fingerprint or "none: the request is not cacheable"),
    ]
    for name, value in rows:
        if value:
            click.echo(terminal.named(name, value))
    if found.caps:
        click.echo()
        header = ("scope", "cap", "window", "limit", "settled", "reserved", "left", "rule")
        cells = [
            (
                each.scope,
                each.cap_name,
                each.window,
                *(f"${usd}" if usd is not None else "-" for usd in _amounts(each)),
                each.rule,
            )
            for each in found.caps
        ]
        click.echo(terminal.columns(header, cells, right=range(3, 7)))


def _amounts(each: explain_flow.CapLine) -> tuple[str | None, ...]:
    return each.cap_usd, each.used_usd, each.reserved_usd, each.left_usd


@cli.command()
@terminal.setting_options(terminal.STORE)
def audit(**options: object) -> None:
    """Recompute every balance from the ledger; check media rows against blobs.

    Prints each difference; exit code 1 if there is one.

    \b
    Example:
      wave-gateway audit --data ./data
    """
    store = settings.parse(options, os.environ)
    blobs = blobs_disk.DiskBlobs(store.media)
    started = time.monotonic()
    with terminal.progress("Auditing") as progress:
        differences = asyncio.run(_audited(app.database_file(store), blobs, progress=progress))
    for difference in differences:
        click.echo(difference)
    seconds = time.monotonic() - started
    if differences:
        click.echo(f"{terminal.count(len(differences), 'difference')}, in {seconds:.1f} s.")
        sys.exit(1)
    click.echo(f"The books agree to the nano, in {seconds:.1f} s.")


async def _audited(
    ledger_file: pathlib.Path, blobs: blobs_disk.DiskBlobs, *, progress: audit_flow.Progress
) -> list[str]:
    async def scan(fn: Callable[[database.Tx], T]) -> T:
        return terminal.read_store(ledger_file, fn)

    return [each async for each in audit_flow.beside(scan, blobs, progress=progress)]


def new_virtual_key() -> str:
    """`wgk_` and 32 random bytes in base62."""
    number = secrets.randbits(256)
    digits = []
    for _ in range(43):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "wgk_" + "".join(reversed(digits))
