"""Puts each seeded bug into a copy of the tree and runs the tests that must catch it: `make mutants`.

Every named test must pass without the bug and fail with it. Exits with 1 if one does not. Words on the command line
choose mutants by a part of their name. Nothing of the tree itself is touched.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from tests.mutants import mutants

ROOT: Final = Path(__file__).parent.parent.parent
WORKERS: Final = 2
LONGEST_S: Final = 300
"""One run of pytest; a test of its own has 60 s."""

_FAILED: Final = re.compile(r"^FAILED (\S+?::\w+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one mutant; `missed`: the named tests that do not fail."""

    caught_by: str | None
    missed: tuple[str, ...]
    seconds: float
    output: str

    def is_caught(self) -> bool:
        return self.caught_by is not None and not self.missed


def main(words: Sequence[str]) -> int:
    """Try the chosen mutants, or all; returns the exit code."""
    chosen = [each for each in mutants.MUTANTS if not words or any(word in each.name for word in words)]
    if not chosen:
        _say(f"no mutant has {' or '.join(words)} in its name")
        return 1
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wave-mutants-") as folder:
        trees = [_copy(Path(folder) / str(number)) for number in range(WORKERS)]
        if not _pass_without(chosen, trees):
            return 1
        survivors = _try_all(chosen, trees)
    _say(f"{len(chosen) - survivors} of {len(chosen)} mutants caught in {time.monotonic() - started:.0f} s")
    return 1 if survivors else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _copy(to: Path) -> Path:
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(".*", "__pycache__", "node_modules"))
    return to


def _pass_without(chosen: Collection[mutants.Mutant], trees: Sequence[Path]) -> bool:
    """Whether every named test passes in a tree without a bug."""
    named = sorted({test for each in chosen for test in each.tests})
    with concurrent.futures.ThreadPoolExecutor(len(trees)) as pool:
        runs = list(pool.map(lambda at: _pytest(trees[at], named[at :: len(trees)]), range(len(trees))))
    for code, output in runs:
        if code not in (0, 5):  # 5: there was nothing to run
            _say(output)
            _say("the named tests do not pass without a mutant; mend that first")
            return False
    _say(f"{len(named)} named tests pass without a mutant")
    return True


def _try_all(chosen: Collection[mutants.Mutant], trees: Sequence[Path]) -> int:
    """Try the mutants, as many at a time as there are trees; returns how many survived."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def verdict_of(mutant: mutants.Mutant) -> Verdict:
        tree = free.get()
        try:
            return _try(mutant, tree)
        finally:
            free.put(tree)

    survivors = 0
    width = max(len(each.name) for each in chosen)
    _say(f"\n{'mutant':{width}}  seconds  caught by")
    with concurrent.futures.ThreadPoolExecutor(len(trees)) as pool:
        for mutant, verdict in zip(chosen, pool.map(verdict_of, chosen), strict=True):
            by = (verdict.caught_by or "SURVIVED").rpartition("::")[2]
            _say(f"{mutant.name:{width}}  {verdict.seconds:7.1f}  {by}")
            if verdict.is_caught():
                continue
            survivors += 1
            _say(f"  SURVIVED: {mutant.what}")
            for test in verdict.missed:
                _say(f"  does not fail: {test}")
            _say("\n".join(f"  | {line}" for line in verdict.output.splitlines()[-15:]))
    return survivors


def _try(mutant: mutants.Mutant, tree: Path) -> Verdict:
    path = tree / mutant.file
    before = path.read_text(encoding="utf-8")
    if before.count(mutant.old) != 1:
        return Verdict(caught_by=None, missed=mutant.tests, seconds=0.0, output=f"{mutant.file} holds no one such text")
    started = time.monotonic()
    path.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        _, output = _pytest(tree, mutant.tests)
    finally:
        path.write_text(before, encoding="utf-8")
    failed = list(dict.fromkeys(_FAILED.findall(output)))
    return Verdict(
        caught_by=failed[0] if failed else None,
        missed=tuple(test for test in mutant.tests if test.partition("[")[0] not in failed),
        seconds=time.monotonic() - started,
        output=output,
    )


def _pytest(tree: Path, named: Sequence[str]) -> tuple[int, str]:
    """(exit code, output) of these tests in a copy of the tree; what keeps a test from running is no FAILED."""
    if not named:
        return 5, ""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "--timeout=60",
        "--tb=line",
        "-rf",
        "-p",
        "no:cacheprovider",
        *named,
    ]
    try:
        done = subprocess.run(  # -B: a stale .pyc would hide a change of the same size within a second
            command,
            cwd=tree,
            env=environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return 1, f"{late}"
    return done.returncode, done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
