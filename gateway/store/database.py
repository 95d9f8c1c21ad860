"""What a transaction looks like, whatever the engine: one SQL text with `:name` parameters.

`write(fn)` runs `fn(tx)` in a durable transaction and returns its value after the commit. `fn` is a plain function
that may be run again, so it changes nothing but the database. `read(fn)` is for point reads, `scan(fn)` for lists,
reports and scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Row(Protocol):
    """One row; columns by name."""

    def __getitem__(self, name: str, /) -> Any:
        """The value of a column."""

    def keys(self) -> Sequence[str]:
        """The columns' names."""


class Tx(Protocol):
    """An open transaction."""

    def run(self, sql: str, /, **parameters: object) -> int:
        """Run a statement; returns how many rows it changed."""

    def one(self, sql: str, /, **parameters: object) -> Row | None:
        """The first row, or None."""

    def all(self, sql: str, /, **parameters: object) -> list[Row]:
        """Every row."""


class Database(Protocol):
    """A place that keeps tables."""

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` in a transaction; returns after it is durable. Raises OurError `unavailable`."""

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn`, a few point reads, on the last committed state."""

    async def scan(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn`, which may read much, away from the event loop."""

    def close(self) -> None:
        """Finish what was accepted and let go of the files."""
