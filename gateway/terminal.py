"""What commands share: options made of the settings, the store read beside a gateway, and 80 columns of text."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import click

from gateway import errors, settings
from gateway.store import database, sqlite

T = TypeVar("T")

WIDTH: Final = 80
STORE: Final = ("policies", "data", "media", "database")
"""The settings of commands that read what is kept."""
_LABEL: Final = 14
_BAR: Final = 1000
_GAP: Final = "  "


def setting_options(names: Sequence[str] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options made of the table of settings; all of them, or those named."""
    rows = [row for row in settings.TABLE if names is None or row.name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for row in reversed(rows):
            default = row.default or row.default_help
            text = f"{row.help} [{default}]" if default else row.help
            if row.is_secret:
                command = click.option(row.file_option, metavar="FILE", help=f"File with the {row.name}.")(command)
            if row.is_switch:
                names_of_both = f"{row.option}/--no-{row.name}"
                command = click.option(names_of_both, row.parameter, default=None, help=text)(command)
                continue
            command = click.option(row.option, metavar=row.kind, multiple=row.is_repeatable, help=text)(command)
        return command

    return decorate


def read_store(path: pathlib.Path, fn: Callable[[database.Tx], T], *, is_needed: bool = True) -> T:
    """Read a database file without touching it; an empty one stands in where none is needed."""
    if path.exists():
        return sqlite.scan_file(path, fn)
    if is_needed:
        raise errors.StartError(f"there is no ledger at {path}; name the gateway's directory with --data")
    return sqlite.scan_empty(fn)


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere; yields what is called with (done, of how many)."""
    with click.progressbar(length=_BAR, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield lambda done, total: bar.update(max(0, _BAR * done // max(total, 1) - bar.pos))


def columns(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: range,
    elastic: Sequence[int] = (),
    has_total: bool = False,
) -> str:
    """A table of text; the columns in `right` are aligned to the right, the `elastic` ones cut to fit the width."""
    body = [tuple(row) for row in rows]
    widths = _widths([header, *body], elastic)

    def line(row: Sequence[str]) -> str:
        short = [cut(printable(cell), widths[at]) for at, cell in enumerate(row)]
        cells = (cell.rjust(widths[at]) if at in right else cell.ljust(widths[at]) for at, cell in enumerate(short))
        return _GAP.join(cells).rstrip()

    rule = _GAP.join("-" * width for width in widths)
    lines = [line(header), rule, *(line(row) for row in body)]
    if has_total:
        lines.insert(-1, rule)
    return "\n".join(lines)


def _widths(rows: Sequence[Sequence[str]], elastic: Sequence[int]) -> list[int]:
    """As wide as the widest cell; of the elastic ones the widest give way until the table fits."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    while elastic and sum(widths) + len(_GAP) * (len(widths) - 1) > WIDTH and max(widths[at] for at in elastic) > 1:
        widths[max(elastic, key=lambda at: widths[at])] -= 1
    return widths


def cut(text: str, width: int) -> str:
    """A text of at most `width` characters; what goes is in the middle, because names differ at both ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def named(label: str, value: str) -> str:
    """A labelled value, wrapped below itself."""
    first, *rest = textwrap.wrap(value, WIDTH - _LABEL) or [""]
    return "\n".join([f"{label:<{_LABEL - 1}} {first}", *(" " * _LABEL + line for line in rest)])


def printable(text: str) -> str:
    """A text of strangers without what a terminal would obey."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def instant(at: float) -> str:
    """`2026-11-22 12:00:00 UTC`."""
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def age(seconds: float) -> str:
    """How long ago, in one unit: `42s`, `5m`, `3h`, `12d`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def count(number: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
