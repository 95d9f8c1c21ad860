"""Which tests there are, read from the syntax trees of the test files: nothing is imported and nothing runs."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parent.parent


def exists(node: str) -> bool:
    """Whether `tests/…/test_x.py::test_name` is a test; a case in brackets behind the name is not looked at."""
    file, _, name = node.partition("::")
    return name.startswith("test_") and name.partition("[")[0] in _tests_of(file)


@functools.cache
def _tests_of(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.name.startswith("test_") or not path.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(each.name for each in tree.body if isinstance(each, functions))
