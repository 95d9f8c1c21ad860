"""`make bench`: start everything, alternate, check every answer, print one table. BENCH.md tells how to read it.

Exit code 0: everything was measured and every answer was right; 1: not so, nothing is written. A goal that is missed
is a line of the table, not an error.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Final

from bench import asks, figures, lives, machine, peers, plot, servers, side_by_side, stage, table
from gateway import VERSION

ROOT: Final = pathlib.Path(__file__).parent.parent
PAGE: Final = ROOT / "BENCH.md"
PLOT: Final = ROOT / "docs" / "images" / "bench.svg"
BEGIN: Final = "<!-- what make bench found: begin -->"
END: Final = "<!-- what make bench found: end -->"
PROGRAMS: Final = (servers.NGINX, "wrk", "taskset")
QUICK: Final = ("A", "B", "C", "E1")
MANY_KEPT: Final = 1_000_000
LEAST_ROUNDS: Final = 5
LEAST_SECONDS: Final = 5


@dataclasses.dataclass(slots=True, kw_only=True)
class Found:
    """What one run found, as it goes on."""

    rounds: list[figures.Measured] = dataclasses.field(default_factory=list)
    goals: list[figures.Goal] = dataclasses.field(default_factory=list)
    facts: list[str] = dataclasses.field(default_factory=list)
    points: list[plot.Curve] = dataclasses.field(default_factory=list)


def main(words: Sequence[str]) -> int:
    """Measure; returns the exit code."""
    chosen = parse(words)
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        sys.stderr.write(f"make bench: needs {', '.join(missing)}; on Debian: apt install nginx-light wrk util-linux\n")
        return 2
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=chosen.folder) as folder:
        bench = side_by_side.Bench(
            cores=machine.cores(),
            folder=pathlib.Path(folder),
            rounds=chosen.rounds,
            seconds=chosen.seconds,
            say=_say,
        )
        try:
            found = _measure(bench, chosen)
        except asks.WrongAnswerError as error:
            sys.stderr.write(f"make bench: a wrong answer, so no figure counts: {error}\n")
            return 1
    text = _page(found, chosen, took_s=time.monotonic() - began_at)
    sys.stdout.write(f"\n{text}\n")
    if not chosen.write:
        return 0
    if is_whole(chosen):
        PLOT.write_text(plot.draw(found.points, dict(stage.TITLES)), encoding="utf-8")
        PAGE.write_text(put(text, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stderr.write("BENCH.md keeps what it has: only a whole run of 5 rounds of 5 s or more is written\n")
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each server on each path")
    parser.add_argument("--seconds", type=int, default=5, help="seconds of a round")
    parser.add_argument("--quick", action="store_true", help="without open loop, growth and the picture of 20 MB")
    parser.add_argument("--paths", default="", help="some of A,B,C,E1,E20,D,F,G,start,idle,memory")
    parser.add_argument("--kept", type=int, default=MANY_KEPT, help="kept tasks of the full gateway; 0: without it")
    parser.add_argument("--peers", type=pathlib.Path, help="folder with litellm/ and portkey/")
    parser.add_argument("--no-open", action="store_true", help="without the open loop")
    parser.add_argument("--folder", type=pathlib.Path, help="where the data are kept meanwhile; a real disk")
    parser.add_argument("--write", action="store_true", help="put what was found into BENCH.md")
    return parser.parse_args(words)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _measure(bench: side_by_side.Bench, chosen: argparse.Namespace) -> Found:
    found = Found()
    wanted = set(filter(None, chosen.paths.split(",")))
    with stage.behind(bench) as up:
        _side_by_side(bench, chosen, up, wanted, found)
        found.goals += _ratios(found.rounds)
        _lives(bench, chosen, up, wanted, found)
    return found


def _side_by_side(
    bench: side_by_side.Bench, chosen: argparse.Namespace, up: stage.Upstream, wanted: set[str], found: Found
) -> None:
    paths = [path for path in (*stage.TITLES, *stage.MEDIA) if not wanted or path in wanted]
    if chosen.quick:
        paths = [path for path in paths if path in QUICK]
    if not paths:
        return
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(stage.filled(bench, up, stage.GATEWAY, others=0))
        contenders = [*stage.of_nginx(up, ours.finished), *stage.of_gateway(ours)]
        if chosen.kept and not chosen.quick:
            full = stack.enter_context(stage.filled(bench, up, stage.FULL, others=chosen.kept - stage.HITS))
            contenders += [each for each in stage.of_gateway(full) if each.path in stage.TITLES]
            rss = servers.settled_rss_bytes(full.server) / lives.MB
            ready = f"ready in {full.server.ready_s:.2f} s"
            found.facts.append(f"with {chosen.kept:,} kept tasks: {table.number(rss)} MB resident, {ready}")
        if chosen.peers is not None:
            contenders += stack.enter_context(_peers(bench, up, chosen.peers, ours.finished))
        for path in paths:
            some = [each for each in contenders if each.path == path]
            found.rounds += side_by_side.measure(bench, some)
            if path in stage.TITLES and not chosen.quick and not chosen.no_open:
                plain = [each for each in some if each.name != stage.FULL]
                found.points += side_by_side.opened(bench, plain, found.rounds)


@contextlib.contextmanager
def _peers(
    bench: side_by_side.Bench, up: stage.Upstream, folder: pathlib.Path, finished: tuple[str, ...]
) -> Iterator[list[side_by_side.Contender]]:
    folder = folder.absolute()
    litellm = peers.Litellm(folder / "litellm", up.upstream.url)
    portkey = peers.Portkey(folder / "portkey", up.upstream.url)
    with (
        litellm.running(core=bench.cores.server, folder=bench.folder / "litellm") as first,
        portkey.running(core=bench.cores.server, folder=bench.folder / "portkey") as second,
    ):
        yield [*stage.of_litellm(litellm, first, finished), *stage.of_portkey(portkey, second)]


RATIOS: Final = (
    ("A", "nginx", "A hit, of nginx's cached POST", 0.45),
    ("A", "litellm", "A hit, of LiteLLM's hit", 60.0),
    ("B", "nginx", "B miss, of nginx's pass-through", 0.15),
    ("B", "litellm", "B miss, of LiteLLM's pass-through", 25.0),
    ("B", "portkey", "B miss, of Portkey's pass-through", 1.0),
    ("C", "nginx", "C finished poll, of nginx's pass-through", 0.5),
    ("C", "litellm", "C finished poll, of LiteLLM's pass-through", 25.0),
    ("E1", "nginx", "E picture of 1 MB, of nginx with sendfile", 0.6),
    ("E20", "nginx", "E picture of 20 MB, of nginx with sendfile", 0.6),
)
"""Path, beside whom, how it is called, the least that is wanted: requests in the same processor time."""
MOST_GROWTH: Final = 1.3


def _ratios(rounds: Sequence[figures.Measured]) -> list[figures.Goal]:
    found = []
    for path, beside, name, bound in RATIOS:
        ratio = figures.cpu_ratio(rounds, path=path, of=stage.GATEWAY, to=beside)
        if ratio is not None:
            found.append(figures.Goal(name=name, found=ratio, bound=bound))
    for path in stage.TITLES:
        ratio = figures.growth(rounds, path=path, empty=stage.GATEWAY, full=stage.FULL)
        if ratio is not None:
            name = f"{path} processor time with a full ledger, of an empty one's"
            found.append(figures.Goal(name=name, found=ratio, bound=MOST_GROWTH, is_most=True))
    return found


def _lives(
    bench: side_by_side.Bench, chosen: argparse.Namespace, up: stage.Upstream, wanted: set[str], found: Found
) -> None:
    few = dataclasses.replace(bench, rounds=1) if chosen.quick else bench

    def is_wanted(name: str) -> bool:
        return not wanted or name in wanted

    if is_wanted("D"):
        with stage.gateway(few, up, "polled") as server:
            found.goals.append(lives.polled(few, server))
    if is_wanted("F"):
        with stage.gateway(few, up, "mirroring") as server:
            goal, mb_per_s = lives.mirrored(few, server)
        found.goals.append(goal)
        found.facts.append(f"F: {lives.MIRRORED} pictures of 20 MB mirrored at once at {table.number(mb_per_s)} MB/s")
    if is_wanted("G"):
        with stage.gateway(few, up, "waited") as server:
            found.goals += lives.waited(few, server)
    if is_wanted("start"):
        numbers = iter(range(1_000))

        def start() -> servers.Server:
            with stage.gateway(few, up, f"started {next(numbers)}") as server:
                return server

        found.goals.append(lives.started(few, start))
    if is_wanted("idle") or is_wanted("memory"):
        with stage.gateway(few, up, "idle") as server:
            found.goals.append(lives.idle(server))
            opened = lives.with_open_tasks(server)
        found.facts.append(f"with {lives.OPEN_TASKS:,} open tasks: {table.number(opened)} MB resident")


def _page(found: Found, chosen: argparse.Namespace, *, took_s: float) -> str:
    now = datetime.datetime.now(datetime.UTC)
    versions = [
        f"wave-gateway {VERSION}",
        machine.version_of([servers.NGINX, "-v"]),
        machine.version_of(["wrk", "-v"]).partition(" [")[0],
    ]
    if chosen.peers is not None:
        versions += ["the peers as the Makefile names them"]
    how = f"{chosen.rounds} rounds of {chosen.seconds} s"
    parts = [
        f"Measured on {now:%Y-%m-%d}, {how}, in {took_s / 60:.0f} minutes. {'; '.join(machine.describe())}.",
        f"{'; '.join(versions)}.",
    ]
    if found.goals:
        parts += ["### Goals", table.goals(found.goals)]
    if found.facts:
        parts.append("\n".join(f"- {fact}" for fact in found.facts))
    if found.rounds:
        parts += ["### Closed loop", table.closed(found.rounds)]
    if found.points:
        picture = f"![Throughput and p99 against load]({PLOT.relative_to(ROOT)})"
        parts += ["### Open loop", picture, table.opened(found.points)]
    return "\n\n".join(parts)


def put(text: str, page: str) -> str:
    """The page with this as what was found last."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def is_whole(chosen: argparse.Namespace) -> bool:
    """Whether a run was long and wide enough to be kept."""
    is_long = chosen.rounds >= LEAST_ROUNDS and chosen.seconds >= LEAST_SECONDS
    return is_long and not (chosen.paths or chosen.quick or chosen.no_open)


def _stop(number: int, _: object) -> None:
    """Ends as an error does, so that every server that was started is ended too."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main(sys.argv[1:]))
