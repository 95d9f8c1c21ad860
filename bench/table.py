"""The table as Markdown, for a terminal and for BENCH.md alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import figures, open_loop

HEAD = ("path", "server", "req/s", "p50 ms", "p99 ms", "CPU µs/request", "spread", "rounds")
GOALS_HEAD = ("goal", "bound", "found", "spread", "met")
OPEN_HEAD = ("path", "server", "offered/s", "answered/s", "p50 ms", "p99 ms")


def closed(rounds: Sequence[figures.Measured]) -> str:
    """A line for each path and server, in the order in which they were measured first."""
    lines = []
    for path, server in dict.fromkeys((each.path, each.server) for each in rounds):
        some = [each for each in rounds if (each.path, each.server) == (path, server)]
        cpu = figures.spread([each.cpu_us for each in some])
        speed, p50, p99 = (
            figures.spread([pick(each) for each in some]).median
            for pick in (_per_s, lambda each: each.p50_ms, lambda each: each.p99_ms)
        )
        between = f"{number(cpu.least)} to {number(cpu.most)}"
        cells = [path, server, number(speed), number(p50), number(p99), number(cpu.median), between, str(len(some))]
        lines.append(cells)
    return _table(HEAD, lines)


def goals(found: Sequence[figures.Goal]) -> str:
    """A line for each goal."""
    return _table(
        GOALS_HEAD,
        [
            [
                each.name,
                f"{'≤' if each.is_most else '≥'} {number(each.bound)} {each.unit}",
                f"{number(each.found.median)} {each.unit}",
                f"{number(each.found.least)} to {number(each.found.most)}",
                "yes" if each.is_met else "**no**",
            ]
            for each in found
        ],
    )


def opened(points: Sequence[tuple[str, str, open_loop.Point]]) -> str:
    """A line for each rate that was offered."""
    return _table(
        OPEN_HEAD,
        [
            [path, server, *(number(value) for value in (at.offered_per_s, at.answered_per_s, at.p50_ms, at.p99_ms))]
            for path, server, at in points
        ],
    )


def number(value: float) -> str:
    """Whole from a hundred on, with thousands apart; three significant digits below, without idle zeros."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _per_s(each: figures.Measured) -> float:
    return each.per_s


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    kept = [list(head), *([*line] for line in lines)]
    widths = [max(len(line[at]) for line in kept) for at in range(len(head))]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in kept
    ]
    written.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(written)
