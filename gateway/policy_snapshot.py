"""The bytes of all policy files at one instant.

Rules: names that begin with a dot are ignored, links are followed (Kubernetes swaps `..data`), size and number are
bounded, and files that change while they are read are read again, so that no mixture is taken for a set.

Not here: what the bytes mean (`policy_documents`), and when to read them (`policy_files`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from gateway import policy_documents, policy_team, policy_yaml

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_TOTAL_BYTES: Final = 64 * 1024 * 1024
MAX_TEAMS: Final = 10_000

Signature = tuple[tuple[object, ...], ...]

_READ_ATTEMPTS: Final = 5

_TOP_FILES: Final = (policy_documents.ORGANISATION_FILE, policy_documents.MODELS_FILE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The bytes of all policy files, and what is wrong before anything is parsed."""

    signature: Signature
    files: Mapping[str, bytes]
    unread: frozenset[str]
    """Files that are there, or may be there, and could not be read."""
    problems: tuple[policy_yaml.Problem, ...]
    is_stable: bool


def read_stable(directory: Path) -> Snapshot:
    """Read all files until none changed meanwhile; the last try is returned as unstable."""
    for _ in range(_READ_ATTEMPTS - 1):
        snapshot = _read(directory)
        if snapshot.is_stable:
            return snapshot
    return _read(directory)


def signature_of(directory: Path) -> Signature:
    """What changes when a file does: cheap, and without reading any."""
    try:
        names = _yaml_names(directory)
    except OSError as error:
        return ((error.errno,),)
    return tuple((name, *stat_of(directory / name)) for name in names)


def stat_of(path: Path) -> tuple[object, ...]:
    """What changes when one file does, also by a swapped link; empty where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_file(path: Path, most: int) -> bytes:
    """At most one byte more than `most`; raises OSError, also for what is no file: opening a pipe would wait."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        with open(file, "rb", closefd=False) as stream:
            return stream.read(most + 1)
    finally:
        os.close(file)


def _read(directory: Path) -> Snapshot:
    problems = policy_yaml.Problems()
    signature = signature_of(directory)
    files: dict[str, bytes] = {}
    names = _policy_names(directory, problems)
    room = MAX_TOTAL_BYTES
    for name in names or ():
        try:
            content = read_file(directory / name, MAX_FILE_BYTES)
        except OSError as error:
            problems.add(policy_yaml.Place(name, 1), f"cannot be read: {error.strerror}; mend or remove it")
            continue
        room -= len(content)
        if len(content) > MAX_FILE_BYTES or room < 0:
            problems.add(policy_yaml.Place(name, 1), "is too large; 1 MiB a file and 64 MiB together are read")
        else:
            files[name] = content
    return Snapshot(
        signature=signature,
        files=files,
        unread=frozenset(_TOP_FILES if names is None else names) - files.keys(),
        problems=problems.found(),
        is_stable=signature_of(directory) == signature,
    )


def _policy_names(directory: Path, problems: policy_yaml.Problems) -> list[str] | None:
    """Names of the files to read, None if unknown; what only looks like a policy file would not count: a problem."""
    try:
        names = _yaml_names(directory)
    except OSError as error:
        problems.add(
            policy_yaml.Place(str(directory), 1),
            f"cannot be listed: {error.strerror}; name the policies directory, or make one with `wave-gateway init`",
        )
        return None
    good = []
    for name in names:
        at = policy_yaml.Place(name, 1)
        if not name.endswith(".yaml"):
            problems.add(at, f"is not read under this name; rename it to {Path(name).with_suffix('.yaml')}")
        elif name.startswith(policy_team.FILE_PREFIX) or name in _TOP_FILES:
            good.append(name)
        else:
            problems.add(at, f"is no policy file; those are {', '.join(_TOP_FILES)} and teams/*.yaml")
    if len(good) > MAX_TEAMS + len(_TOP_FILES):
        problems.add(policy_yaml.Place("teams", 1), f"holds more than {MAX_TEAMS} files; remove teams that are gone")
        return None
    return good


def _yaml_names(directory: Path) -> list[str]:
    """Relative names, sorted, of what ends in .yaml or .yml and does not begin with a dot; raises OSError."""
    names = _visible(os.listdir(directory))
    with contextlib.suppress(FileNotFoundError):
        names += [f"{policy_team.FILE_PREFIX}{name}" for name in _visible(os.listdir(directory / "teams"))]
    return sorted(names)


def _visible(names: Iterable[str]) -> list[str]:
    return [name for name in names if name[0] != "." and name.lower().endswith((".yaml", ".yml"))]
