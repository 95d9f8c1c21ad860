"""Hostile input for as long as one likes: `make fuzz INPUTS=100000 SEED=1`; one again: `ARGS="--replay 1/4711"`.

Three parts: connections of a raw-socket grammar, the OpenAPI document turned against the gateway by schemathesis, and
what reads other people's text in this process. After each of the first two the gateway must be well, its log empty,
its audit clean, and its ledger equal to the vendor's bill. Failing inputs are written to `.fuzz/`; exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.fuzz import described, grammar, parsers, wire, world

KEPT = pathlib.Path(".fuzz")
FAILURES_SHOWN = 10
CONNECTIONS_FOR_AN_EXAMPLE = 2_000


def raw(at: world.World, seeds: Sequence[int], connections: int) -> tuple[wire.Tally, list[str]]:
    """Play so many connections of each seed, then hold the gateway's books against the vendor's."""
    tally = wire.Tally()
    asyncio.run(_play(at.port, seeds, connections, tally))
    problems = [f"{name}: {'; '.join(why)}" for name, why in tally.failures.items()]
    return tally, problems + at.check() + _accounts(at, tally)


async def _play(port: int, seeds: Sequence[int], connections: int, tally: wire.Tally) -> None:
    await asyncio.gather(*(wire.play(port, seed, range(connections), tally) for seed in seeds))


def _accounts(at: world.World, tally: wire.Tally) -> list[str]:
    """Nothing may have reached the vendor that no client submitted, and all that was said to have."""
    bill, asked = at.vendor.bill(), at.vendor.requests()["counts"]["submit"]
    prompts = {line["prompt"] for line in bill["by_task"].values()}
    found = [f"the vendor made {prompt!r}, which nobody submitted" for prompt in sorted(prompts - tally.prompts)]
    found += [f"the vendor knows no {each}" for each in sorted(tally.upstream_ids - bill["by_task"].keys())]
    if asked > tally.submits:
        found.append(f"the vendor was sent {asked} submits, the gateway {tally.submits}")
    return found


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    asking = argparse.ArgumentParser(description=__doc__)
    asking.add_argument("--inputs", type=int, default=100_000)
    asking.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asking.add_argument("--replay", metavar="SEED/NUMBER")
    asked = asking.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        directory = pathlib.Path(name)
        if asked.replay:
            return _replay(directory, asked.replay)
        _say(f"seed {asked.seed}")
        problems = _raw_part(directory, asked.seed, asked.inputs)
        problems += _described_part(directory, asked.seed, asked.inputs)
        problems += _parsers_part(asked.seed, asked.inputs)
    for each in problems[:FAILURES_SHOWN]:
        _say(f"FAIL {each}")
    _say(f"{len(problems)} problems" + (f"; see {KEPT}/" if problems else ""))
    return 1 if problems else 0


def _raw_part(directory: pathlib.Path, seed: int, inputs: int) -> list[str]:
    started = time.monotonic()
    with world.made(directory / "raw") as at:
        tally, problems = raw(at, [seed], inputs)
    for name, why in tally.failures.items():
        script = grammar.script(*map(int, name.split("/")))
        told = {"replay": f'make fuzz ARGS="--replay {name}"', "why": why, "ending": script.ending}
        world.note(KEPT / f"{name.replace('/', '-')}.json", told | {"pieces": [repr(each) for each in script.pieces]})
    _say(f"raw: {tally.connections} connections with {tally.requests} whole requests, {_since(started)}")
    _say(f"  slowest answer {tally.slowest_s:.2f} s; submits {tally.submits}, bought {len(tally.upstream_ids)}")
    _say("  " + ", ".join(f"{name or 'none'}: {count}" for name, count in tally.statuses.most_common()))
    _say("  " + ", ".join(f"{name}: {count}" for name, count in tally.endings.most_common()))
    return problems


def _described_part(directory: pathlib.Path, seed: int, inputs: int) -> list[str]:
    started = time.monotonic()
    examples = max(3, inputs // CONNECTIONS_FOR_AN_EXAMPLE)
    phases = "examples,coverage,fuzzing,stateful"
    with world.made(directory / "described") as at:
        outcome = described.play(at, directory / "reports", seed=seed, examples=examples, phases=phases)
        problems = at.check()
    _say(f"described: {outcome.requests} requests by schemathesis, {_since(started)}")
    if outcome.failures:
        world.note(KEPT / f"described-{seed}.json", outcome.failures.splitlines())
        problems.append(outcome.failures)
    return problems


def _parsers_part(seed: int, inputs: int) -> list[str]:
    started = time.monotonic()
    counts, problems = parsers.play(seed, inputs)
    _say(f"parsers: {json.dumps(counts, ensure_ascii=False)}, {_since(started)}")
    return problems


def _replay(directory: pathlib.Path, name: str) -> int:
    seed, _, number = name.partition("/")
    tally = wire.Tally()
    with world.made(directory) as at:
        asyncio.run(wire.one(at.port, int(seed), int(number), tally))
        _say(repr(grammar.script(int(seed), int(number))))
        _say(at.log.read_text(encoding="utf-8"))
    _say(f"{dict(tally.statuses)}\n{tally.failures or 'nothing is wrong'}")
    return 1 if tally.failures else 0


def _since(started: float) -> str:
    return f"{time.monotonic() - started:.0f} s"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
