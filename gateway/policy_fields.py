"""Typed reading of policy YAML: which keys a mapping has, and what text each value may be.

Rules: what is wrong becomes a problem at its line, says what would be right, and reading goes on; nothing is coerced
(a number is not text, text is not a number, an amount is quoted text). Messages never show a value that could be a
secret in the wrong place.

Not here: which keys exist (`policy_documents`).
"""

from __future__ import annotations

import datetime
import difflib
import enum
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from gateway import policy_yaml
from gateway.rules import money, units
from gateway.rules.money import Nanos

T = TypeVar("T")
Choice = TypeVar("Choice", bound=enum.StrEnum)


class Fields:
    """The keys of one mapping, asked for one by one; unknown keys are problems at once."""

    def __init__(
        self, node: policy_yaml.Node, problems: policy_yaml.Problems, known: Sequence[str], *, what: str
    ) -> None:
        """`what` names the mapping in messages; a node that is no mapping is a problem and reads as an empty one."""
        self.at = node.at
        self.what = what
        self.problems = problems
        self.is_mapping = isinstance(node, policy_yaml.Table)
        self.entries: Mapping[str, policy_yaml.Entry] = entries_of(node, problems, what)
        for key, entry in self.entries.items():
            if key not in known:
                problems.add(entry.at, f"unknown key {policy_yaml.show(key)} in {what}; {_nearest(key, known)}")

    def node(self, key: str) -> policy_yaml.Node | None:
        """The value of a key as it stands."""
        entry = self.entries.get(key)
        return None if entry is None else entry.value

    def get(self, key: str, parse: Callable[[policy_yaml.Scalar], T]) -> T | None:
        """A single value; None where it is absent or wrong."""
        node = self.node(key)
        return None if node is None else leaf(node, parse, self.problems, key)

    def get_or(self, key: str, parse: Callable[[policy_yaml.Scalar], T], default: T) -> T:
        """A single value, or the default where it is absent or wrong."""
        value = self.get(key, parse)
        return default if value is None else value

    def required(self, key: str) -> policy_yaml.Node | None:
        """The value of a key that must be there as it stands; its absence is a problem."""
        if key not in self.entries and self.is_mapping:
            self.problems.add(self.at, f"the key {key!r} is missing in {self.what}; add it")
        return self.node(key)

    def need(self, key: str, parse: Callable[[policy_yaml.Scalar], T], stand_in: T) -> T:
        """A single value that must be there; the stand-in where it is absent or wrong."""
        return stand_in if self.required(key) is None else self.get_or(key, parse, stand_in)

    def within(self, key: str, known: Sequence[str]) -> Fields:
        """The fields of an inner mapping; none where it is absent or wrong."""
        node = self.node(key)
        inner = policy_yaml.Table(at=self.at, entries={}) if node is None else node
        return Fields(inner, self.problems, known, what=key)

    def items(self, key: str) -> tuple[policy_yaml.Node, ...]:
        """The nodes of a list; none where it is absent or wrong."""
        node = self.node(key)
        return () if node is None else items_of(node, self.problems, key)

    def list(self, key: str, parse: Callable[[policy_yaml.Scalar], T]) -> tuple[T, ...] | None:
        """A list of single values without the wrong ones; None where it is absent."""
        if key not in self.entries:
            return None
        values = (leaf(node, parse, self.problems, key) for node in self.items(key))
        return tuple(value for value in values if value is not None)

    def map(self, key: str, parse: Callable[[policy_yaml.Scalar], T]) -> dict[str, T]:
        """A mapping of single values without the wrong ones; empty where it is absent."""
        node = self.node(key)
        if node is None:
            return {}
        entries = entries_of(node, self.problems, key)
        values = {name: leaf(entry.value, parse, self.problems, name) for name, entry in entries.items()}
        return {name: value for name, value in values.items() if value is not None}


def leaf(
    node: policy_yaml.Node, parse: Callable[[policy_yaml.Scalar], T], problems: policy_yaml.Problems, key: str
) -> T | None:
    """Parse a single value; what `parse` raises as ValueError becomes a problem under the key's name."""
    if not isinstance(node, policy_yaml.Scalar):
        problems.add(node.at, f"{key}: holds {policy_yaml.describe(node)}; write a single value")
        return None
    if node.kind == "null" and not node.text:
        problems.add(node.at, f"{key}: has no value; write one or remove the key")
        return None
    try:
        return parse(node)
    except ValueError as error:
        problems.add(node.at, f"{key}: {error}")
        return None


def items_of(node: policy_yaml.Node, problems: policy_yaml.Problems, key: str) -> tuple[policy_yaml.Node, ...]:
    """The nodes of a list; anything else is a problem."""
    if isinstance(node, policy_yaml.Items):
        return node.nodes
    problems.add(node.at, f"{key}: holds {policy_yaml.describe(node)}; write a list, such as [a, b], or [] for none")
    return ()


def entries_of(node: policy_yaml.Node, problems: policy_yaml.Problems, key: str) -> Mapping[str, policy_yaml.Entry]:
    """The entries of a mapping; anything else is a problem."""
    if isinstance(node, policy_yaml.Table):
        return node.entries
    problems.add(
        node.at, f"{key}: holds {policy_yaml.describe(node)}; write a mapping, such as {{key: value}}, or {{}} for none"
    )
    return {}


def text(node: policy_yaml.Scalar) -> str:
    """A non-empty line of text; what YAML reads as something else must be quoted."""
    if not node.quoted and node.kind != "str":
        raise ValueError(
            f'YAML reads {node.text[:60]} as {policy_yaml.KINDS[node.kind]}; write it in quotes: "{node.text[:60]}"'
        )
    if not node.text.strip() or not node.text.isprintable():
        raise ValueError(f"{policy_yaml.show(node.text)} is empty or more than one line; write one line of text")
    return node.text


def matching(pattern: str, right: str) -> Callable[[policy_yaml.Scalar], str]:
    """Text of a certain form; `right` says which."""
    form = re.compile(pattern, re.ASCII)

    def parse(node: policy_yaml.Scalar) -> str:
        value = text(node)
        if form.fullmatch(value) is None:
            raise ValueError(f"{policy_yaml.show(value)} will not do; write {right}")
        return value

    return parse


def choice(kind: type[Choice]) -> Callable[[policy_yaml.Scalar], Choice]:
    """One of a few words; `off` is a word here, not a boolean."""

    def parse(node: policy_yaml.Scalar) -> Choice:
        try:
            return kind(node.text)
        except ValueError:
            raise ValueError(f"{policy_yaml.show(node.text)} is unknown; write one of {', '.join(kind)}") from None

    return parse


def flag(node: policy_yaml.Scalar) -> bool:
    """`true` or `false`, and no other spelling."""
    if node.quoted or node.text not in ("true", "false"):
        raise ValueError(f"{_as_written(node)} is not a boolean here; write true or false, without quotes")
    return node.text == "true"


def integer(least: int, most: int = 1_000_000_000) -> Callable[[policy_yaml.Scalar], int]:
    """A whole number in plain digits within bounds."""

    def parse(node: policy_yaml.Scalar) -> int:
        if node.quoted or not re.fullmatch(r"0|[1-9]\d{0,11}", node.text, re.ASCII):
            raise ValueError(f"{_as_written(node)} is not a whole number here; write plain digits such as 4, unquoted")
        if not least <= int(node.text) <= most:
            raise ValueError(f"{node.text} is out of range; write {least} to {most}")
        return int(node.text)

    return parse


def amount(node: policy_yaml.Scalar) -> Nanos:
    """US dollars as a quoted decimal string; a bare number would have been a float elsewhere."""
    nanos = money.parse_usd(node.text)
    if not node.quoted:
        raise ValueError(f'the amount {node.text} must be a decimal string; write it in quotes: "{node.text}"')
    return nanos


def ratio(node: policy_yaml.Scalar) -> Fraction:
    """A plain number above 0 and at most 1, exactly as written."""
    if not node.quoted and re.fullmatch(r"0?\.\d{1,9}|1(\.0{1,9})?", node.text, re.ASCII):
        value = Fraction(node.text)
        if value > 0:
            return value
    raise ValueError(f"{_as_written(node)} is not a ratio; write a number above 0 and at most 1, such as 0.8, unquoted")


def date(node: policy_yaml.Scalar) -> datetime.date:
    """A day of this millennium."""
    if re.fullmatch(r"2\d{3}-\d\d-\d\d", node.text, re.ASCII):
        try:
            return datetime.date.fromisoformat(node.text)
        except ValueError:
            pass
    raise ValueError(f"{policy_yaml.show(node.text)} is not a date; write YYYY-MM-DD, such as 2026-12-01")


def duration(node: policy_yaml.Scalar) -> int:
    """A duration such as `30d`, in seconds, from a second to ten years."""
    seconds = units.parse_duration(node.text)
    if not 1 <= seconds <= 3650 * 86_400:
        raise ValueError(f"{node.text} is out of range; write 1s to 3650d")
    return seconds


def _as_written(node: policy_yaml.Scalar) -> str:
    return f'"{node.text[:60]}"' if node.quoted else node.text[:60]


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key.lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
