"""Policy YAML, read strictly, every value with the line that it stands on.

Rules: scalars are read from their text, so nothing is guessed (`010`, `1:30`, `no`); a key said twice, an anchor, an
alias, a tag and a second document are refused; depth and size are bounded. Whatever is wrong is collected in
`Problems`, so that one pass finds everything, and reading goes on with a stand-in.

Not here: which keys there are and what they mean (`policy_documents`), and where files lie (`policy_files`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

MAX_DEPTH: Final = 16
"""Lists and mappings inside each other; the deepest that policy files need is 6."""

KINDS: Final = {
    "bool": "a boolean",
    "float": "a number",
    "int": "a number",
    "merge": "a merge",
    "null": "nothing",
    "timestamp": "a date",
    "value": "a default",
}
"""What YAML 1.1 makes of plain words, for messages."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of a file; the path is relative to the policies directory."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong in a policy file: what it is, and what would be right."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class Problems:
    """Everything that was found wrong so far, each thing once."""

    def __init__(self) -> None:
        self._found: set[Problem] = set()

    def add(self, at: Place, message: str) -> None:
        """Note one problem."""
        self._found.add(Problem(at.file, at.line, message))

    def found(self) -> tuple[Problem, ...]:
        """All problems, by file and line."""
        return tuple(sorted(self._found))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """A single value as written; `kind` is what YAML 1.1 would make of it (`str`, `int`, `bool`, `null`, …)."""

    at: Place
    text: str
    quoted: bool
    kind: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A list."""

    at: Place
    nodes: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key of a mapping, with the line of the key."""

    at: Place
    value: Node


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A mapping with keys of text."""

    at: Place
    entries: Mapping[str, Entry]


Node = Scalar | Items | Table


def read(content: bytes, file: str, problems: Problems) -> Table | None:
    """Read the one mapping that a file holds; an empty file is an empty mapping. None where it cannot be read."""
    try:
        text = content.decode("utf-8-sig")
        if strange := _STRANGE.search(text):
            at = Place(file, text.count("\n", 0, strange.start()) + 1)
            raise _UnreadableError(at, f"holds the control character U+{ord(strange.group()):04X}; remove it")
        node = _Builder(text, file, problems).document()
    except UnicodeDecodeError as error:
        problems.add(Place(file, content.count(b"\n", 0, error.start) + 1), "is not UTF-8; save the file as UTF-8")
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Place(file, mark.line + 1 if mark else 1)
        problems.add(at, f"is not YAML: {error.problem}; look at indentation, brackets and quotes here and just above")
        return None
    except _UnreadableError as error:
        problems.add(error.at, error.message)
        return None
    if node is None:
        return Table(at=Place(file, 1), entries={})
    if not isinstance(node, Table):
        problems.add(node.at, f"holds {describe(node)}; write `key: value` lines")
        return None
    return node


def merge(under: Table, over: Table) -> Table:
    """Lay one mapping over another: mappings merge key by key, lists and single values replace."""
    entries = dict(under.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        if below is not None and isinstance(below.value, Table) and isinstance(entry.value, Table):
            entry = dataclasses.replace(entry, value=merge(below.value, entry.value))
        entries[key] = entry
    return Table(at=over.at, entries=entries)


def describe(node: Node) -> str:
    """What a node is, in words, without its value: it may be a secret in the wrong place."""
    match node:
        case Items():
            return "a list"
        case Table():
            return "a mapping"
        case Scalar(kind="null"):
            return "nothing"
        case Scalar():
            return "a single value"


def show(text: str) -> str:
    """A text for a message, in quotes and not too long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


_STRANGE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Control characters and line breaks that editors do not count, so that a line number means the same to everybody."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Only its parser is used; libyaml's is ten times as fast where the wheel has it."""

_RESOLVER: Final[Any] = yaml.resolver.Resolver()


class _UnreadableError(Exception):
    """The file cannot be read past this place."""

    def __init__(self, at: Place, message: str) -> None:
        super().__init__(message)
        self.at = at
        self.message = message


class _Builder:
    """Makes nodes of the parser's events, which still know anchors and tags that a composed tree has lost."""

    def __init__(self, text: str, file: str, problems: Problems) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._file = file
        self._problems = problems

    def document(self) -> Node | None:
        """The first document's node, None for an empty file; a second document is refused."""
        node = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if node is not None:
                    raise _UnreadableError(self._at(event), "a second document begins here; write one per file")
                node = self._node(next(self._events), 0)
        return None if isinstance(node, Scalar) and node.kind == "null" else node

    def _at(self, event: Any) -> Place:
        return Place(self._file, event.start_mark.line + 1)

    def _node(self, event: Any, depth: int) -> Node:
        at = self._at(event)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _UnreadableError(
                at, "anchors (&) and aliases (*) are not read here; write the value out, or quote it"
            )
        if event.tag is not None:
            raise _UnreadableError(at, "tags (!) are not read here; write the plain value, or quote it")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event, at)
        if depth == MAX_DEPTH:
            raise _UnreadableError(at, f"lists and mappings lie more than {MAX_DEPTH} deep here; nothing needs that")
        if isinstance(event, yaml.SequenceStartEvent):
            return Items(at=at, nodes=tuple(self._node(each, depth + 1) for each in self._until(yaml.SequenceEndEvent)))
        return Table(at=at, entries=self._entries(depth + 1))

    def _until(self, end: type[Any]) -> Iterator[Any]:
        while not isinstance(event := next(self._events), end):
            yield event

    def _entries(self, depth: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for event in self._until(yaml.MappingEndEvent):
            key = self._node(event, depth)
            value = self._node(next(self._events), depth)
            name = self._key(key)
            if name in entries:
                first = entries[name].at.line
                self._problems.add(key.at, f"the key {show(name)} was said on line {first} already; keep one of them")
            elif name is not None:
                entries[name] = Entry(at=key.at, value=value)
        return entries

    def _key(self, key: Node) -> str | None:
        if not isinstance(key, Scalar):
            self._problems.add(key.at, f"a key is {describe(key)}; a key is text")
        elif key.quoted or key.kind == "str":
            return key.text
        else:
            right = "write the keys out" if key.kind == "merge" else "write it in quotes"
            self._problems.add(key.at, f"YAML reads the key {show(key.text)} as {KINDS[key.kind]}; {right}")
        return None


def _scalar(event: Any, at: Place) -> Scalar:
    if event.style:  # plain is None in one of the parsers and empty in the other
        return Scalar(at=at, text=event.value, quoted=True, kind="str")
    tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (True, False))
    return Scalar(at=at, text=event.value, quoted=False, kind=tag.rpartition(":")[2])
