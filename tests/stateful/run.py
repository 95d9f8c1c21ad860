"""The model test for as long as one likes: `make stateful STEPS=100000 SEED=1`.

Prints the seed, the steps done, the violations and how often each rule was played. A violation is shrunk to the
shortest play that shows it, which is printed as lines of Python, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from typing import Final

import hypothesis
from hypothesis import stateful

from tests.stateful import judge, machine

STEPS_OF_A_PLAY: Final = 50


def settings(*, examples: int, is_repeatable: bool) -> hypothesis.settings:
    """How a run goes: so many plays; `is_repeatable`: the same ones every time."""
    return hypothesis.settings(
        max_examples=examples,
        stateful_step_count=STEPS_OF_A_PLAY,
        derandomize=is_repeatable,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )


def main() -> int:
    """Play until the steps are done; returns the exit code."""
    words = argparse.ArgumentParser(description="Play the gateway against its reference model.")
    words.add_argument("--steps", type=int, default=100_000)
    words.add_argument("--seed", type=int, default=None)
    asked = words.parse_args()
    seed = random.SystemRandom().randrange(2**32) if asked.seed is None else asked.seed
    began_at = time.monotonic()
    violations, rounds = 0, 0
    say(f"seed {seed}, {asked.steps} steps")
    while machine.steps_played() < asked.steps and not violations:
        left = asked.steps - machine.steps_played()
        plays = max(1, min(200, left // STEPS_OF_A_PLAY))
        play = hypothesis.seed(seed + rounds)(type("Gateway", (machine.Gateway,), {}))
        try:
            stateful.run_state_machine_as_test(play, settings=settings(examples=plays, is_repeatable=False))
        except (judge.Violation, AssertionError):
            traceback.print_exc(file=sys.stdout)
            violations += 1
        rounds += 1
        say(f"{machine.steps_played()} steps, {time.monotonic() - began_at:.0f} s")
    for name, times in sorted(machine.TALLY.items()):
        say(f"{times:9,}  {name}")
    say(f"seed {seed}: {machine.steps_played()} steps in {time.monotonic() - began_at:.0f} s, violations: {violations}")
    return 1 if violations else 0


def say(line: str) -> None:
    """Write a line at once: a run takes minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
