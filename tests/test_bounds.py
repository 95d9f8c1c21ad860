"""What the process keeps for as long as it lives has a bound, and the page about it says which."""

from __future__ import annotations

import ast
import asyncio
import collections
import gc
import logging
import pathlib
import re
import sqlite3
import types
from collections.abc import Iterator
from typing import Any, Final

from gateway.rules import policy
from tests import stage as stages
from tests.receiver import receiving, status

GATEWAY: Final = pathlib.Path(__file__).parent.parent / "gateway"
ARCHITECTURE: Final = (GATEWAY.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
KINDS: Final = ("dict", "list", "set", "deque", "OrderedDict", "defaultdict", "Counter", "Mapping", "SimpleQueue")
NOT_KEPT: Final = {
    "simulator.py": "another program",
    "metrics.py": "its instruments: tests/test_cardinality.py; else one exposition",
    "policy_yaml.py": "one look at the policy files",
    "policy_team.py": "one look at the policy files",
    "store/checks.py": "one audit",
    "rules/policy.py": "the policy files, as they are",
    "rules/request.py": "one request",
    "flow/submit.py": "one request",
    "wire.py": "one document",
}
"""Modules whose objects live no longer than what they are for."""


def _kept() -> Iterator[str]:
    """`flow/watch _asked_at`: each attribute that begins as a container, in modules whose objects may live on."""
    for file in sorted(GATEWAY.rglob("*.py")):
        name = file.relative_to(GATEWAY).as_posix()
        if name in NOT_KEPT:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for each in node.body if isinstance(node, ast.ClassDef) else ():
                fields = [each] if isinstance(each, ast.AnnAssign) else []
                if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                    fields = [inner for inner in ast.walk(each) if isinstance(inner, ast.AnnAssign)]
                for field in fields:
                    kind = re.match(r"(?:\w+\.)?(\w+)\[", ast.unparse(field.annotation))
                    is_made = field.value is not None and re.match(
                        r"\{\}|\[\]|set\(\)|(\w+\.)*(field|SimpleQueue|OrderedDict|deque|Counter|defaultdict)\(",
                        ast.unparse(field.value),
                    )
                    if kind is not None and kind[1] in KINDS and is_made:
                        yield f"{name.removesuffix('.py')} {ast.unparse(field.target).removeprefix('self.')}"


def test_every_container_that_lives_on_is_on_the_page_with_its_bound_and_none_that_does_not_exist():
    table = ARCHITECTURE.partition("| container |")[2].split("\n\n")[0]
    named = {
        f"{module} {attribute}"
        for line in table.splitlines()[2:]
        for cell in line.strip("|").split(" | ")[:1]
        for module, *attributes in [re.findall(r"`([^`]+)`", cell)]
        for attribute in attributes
    }
    assert set(_kept()) == named


# How many entries all containers hold that can be reached from the parts of a gateway, by where they are.

_NO_FURTHER: Final = (
    *(type, types.ModuleType, types.FrameType, types.CodeType, logging.Logger, policy.PolicySet),
    sqlite3.Connection,  # remembers up to 200 cursors that are gone, then sweeps them out
)


def entries(root: object) -> dict[str, int]:
    """(path of types and attributes) -> entries in the containers there; a container counts where it is met first."""
    loop = asyncio.get_running_loop()
    counts: collections.Counter[str] = collections.Counter()
    waiting: list[tuple[str, Any]] = [(type(root).__name__, root)]
    seen: set[int] = {id(loop)}
    while waiting:
        path, each = waiting.pop()
        if id(each) in seen or isinstance(each, _NO_FURTHER):
            continue
        seen.add(id(each))
        if isinstance(each, dict | set | list | collections.deque):
            counts[path] += len(each)
        waiting += list(_below(path, each))
    return dict(counts)


def _below(path: str, each: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(each, types.FunctionType):
        for cell in each.__closure__ or ():
            yield path, cell.cell_contents
        return
    own = getattr(each, "__dict__", None)
    slots = {name: getattr(each, name, None) for name in getattr(type(each), "__slots__", ())}
    names = {id(value): name for name, value in {**slots, **(own or {})}.items()}
    for below in gc.get_referents(each, own) if own else gc.get_referents(each):
        if below is not own:
            yield f"{path}.{names.get(id(below), type(below).__name__)}", below


async def _traffic(on: stages.Stage, hook: str, first: int) -> None:
    """Five of everything that leaves something behind for a while."""
    for number in range(first, first + 5):
        row = await on.admitted(key=f"k-{number}", prompt=f"fox {number}", seed=number, callback_url=hook)
        await on.admitted(prompt=f"fox {number}", seed=number)  # follows
        await on.admitted(stages.OTHER, key=f"k-{number}", prompt=f"another fox {number}")
        await on.denied(model=f"model-{number}")
        await on.shown(row)
        await on.parts.watch.wait(row.id, timeout_s=0.001)
    await on.finish(rounds=4)
    await on.deliver()
    await on.deliver()
    for number in range(first, first + 5):
        hit = await on.admitted(key=f"h-{number}", prompt=f"fox {number}", seed=number)
        assert hit.x_cache == "HIT"
    # The result cache is full after 10,000 results, see tests/store/test_cache.py; here only what else grows.
    await on.parts.cache.purge(None)
    on.clock.advance(120)
    await on.run()


async def test_what_is_kept_in_memory_does_not_grow_with_the_tasks(tmp_path):
    lines = "limits: {open_tasks: 100, requests_per_minute: 100000}\n"
    async with receiving(status(200)) as hook, stages.staged(tmp_path, growth=lines) as on:
        await _traffic(on, hook.url, 0)
        before = entries(on.parts)
        for first in (5, 10):
            await _traffic(on, hook.url, first)
        after = entries(on.parts)
    assert "Parts.watch._asked_at" in after and "Parts.retry_budget._submits" in after, sorted(after)
    grown = {path: (before.get(path, 0), count) for path, count in after.items() if count > before.get(path, 0) + 3}
    assert grown == {}
