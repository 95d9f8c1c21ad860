"""Where policies lie: the directory, its reload, the last good copy, and the secrets that it refers to.

Rules: all files together or not at all; a set with a problem changes nothing; a set that changed while it was read is
read again. The last good set is kept in the data directory, and a start falls back to it. A secret is read from where
a reference points, kept in memory only, and in no message.

Not here: reading the bytes (`policy_snapshot`), what they may say (`policy_documents`), and putting a new set into
effect (`flow/adopt`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from gateway import errors, policy_documents, policy_snapshot, policy_yaml
from gateway.rules import policy

MAX_SECRET_BYTES: Final = 64 * 1024
SECRET_CHECK_S: Final = 1.0
"""How long a secret's file is trusted before it is looked at again."""

STARTER_FILES: Final = ("org.yaml", "models.yaml", "teams/example.yaml")


class PolicyErrors(Exception):
    """The policy files cannot be used; `problems` is everything that is wrong, by file and line."""

    def __init__(self, problems: tuple[policy_yaml.Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A set was loaded from the files and is now the current one."""

    policies: policy.PolicySet
    not_kept: str | None = None
    """Why it could not be kept as the last good set; None where it was."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FellBack:
    """The files cannot be used; the set that was kept as the last good one is the current one. Say so loudly."""

    policies: policy.PolicySet
    problems: tuple[policy_yaml.Problem, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The files changed and cannot be used; the current set stays."""

    problems: tuple[policy_yaml.Problem, ...]


def load(directory: Path) -> policy.PolicySet:
    """Load the policy files of a directory; raises PolicyErrors with every problem of every file."""
    return _parse(policy_snapshot.read_stable(directory))


def write_starter(directory: Path) -> list[Path]:
    """Write commented policy files to start from; raises StartError rather than overwrite one."""
    source = importlib.resources.files("gateway") / "starter"
    paths = [directory / name for name in STARTER_FILES]
    there = [str(path) for path in paths if os.path.lexists(path)]
    if there:
        raise errors.StartError(f"{', '.join(there)} is there already; nothing was written. Name another directory.")
    try:
        for name, path in zip(STARTER_FILES, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(source.joinpath(name).read_bytes())
    except OSError as error:
        raise errors.StartError(f"The policy files cannot be written to {directory}: {error.strerror}.") from error
    return paths


class PolicySource:
    """The policy files of a running gateway.

    `refresh` may run in another thread than the readers of `policies`: every attribute is replaced as a whole.
    """

    def __init__(self, directory: Path, data: Path, environ: Mapping[str, str], *, now: Callable[[], float]) -> None:
        """`data` is an existing directory, where the last good set is kept; `now` gives unix seconds."""
        self.policies = policy.PolicySet()
        self.ok = False
        """Whether the files as they lie there are what is in force."""
        self.loaded_at = 0.0
        """Unix seconds at which the current set was loaded."""
        self.problems: tuple[policy_yaml.Problem, ...] = ()
        self.secrets = Secrets(environ, directory, now=now)
        self._directory = directory
        self._kept = data / "policies.last-good.json"
        self._now = now
        self._seen: policy_snapshot.Signature = ()
        self._files: Mapping[str, bytes] = {}

    def start(self) -> Changed | FellBack:
        """Load the files, else the last good set; raises StartError with every problem if there is none."""
        snapshot = policy_snapshot.read_stable(self._directory)
        self._seen = snapshot.signature
        try:
            return self._adopt(_parse(snapshot), snapshot)
        except PolicyErrors as error:
            self.problems = error.problems
        kept = _read_kept(self._kept)
        if kept is None:
            raise errors.StartError(
                f"The policy files in {self._directory} cannot be used, and no earlier good set is kept:\n"
                + "\n".join(map(str, self.problems))
            )
        self.policies, self._files = kept
        self.loaded_at = self._now()
        return FellBack(policies=self.policies, problems=self.problems)

    def refresh(self) -> Changed | Broken | None:
        """Load the files if they changed since the last look; None if not, or if they are changing right now."""
        if policy_snapshot.signature_of(self._directory) == self._seen:
            return None
        snapshot = policy_snapshot.read_stable(self._directory)
        if not snapshot.is_stable:
            return None
        self._seen = snapshot.signature
        if self.ok and snapshot.files == self._files and not snapshot.problems:
            return None
        try:
            return self._adopt(_parse(snapshot), snapshot)
        except PolicyErrors as error:
            self.ok, self.problems = False, error.problems
            return Broken(problems=error.problems)

    def _adopt(self, policies: policy.PolicySet, snapshot: policy_snapshot.Snapshot) -> Changed:
        self.policies, self._files = policies, snapshot.files
        self.ok, self.problems, self.loaded_at = True, (), self._now()
        return Changed(policies=policies, not_kept=_keep(self._kept, snapshot.files))


class Secrets:
    """Secrets by reference: `env:NAME`, or `file:PATH`, where a relative path begins at the policies directory."""

    def __init__(self, environ: Mapping[str, str], base: Path, *, now: Callable[[], float]) -> None:
        self._environ = environ
        self._base = base
        self._now = now
        self._read: dict[Path, _SecretFile] = {}

    def get(self, reference: str) -> str | None:
        """The secret as it is now, a file's at most `SECRET_CHECK_S` old; None as for `resolve_secret`."""
        path = _secret_path(reference, self._base)
        if path is None:
            return resolve_secret(reference, self._environ, self._base)
        known, now = self._read.get(path), self._now()
        if known is not None and 0 <= now - known.checked_at < SECRET_CHECK_S:
            return known.value
        signature = policy_snapshot.stat_of(path)
        value = known.value if known is not None and known.signature == signature else _read_secret(path)
        self._read[path] = _SecretFile(checked_at=now, signature=signature, value=value)
        return value


def resolve_secret(reference: str, environ: Mapping[str, str], base: Path) -> str | None:
    """The secret that a reference points to, without surrounding whitespace.

    Returns None if it is unset, empty, unreadable, or cannot be sent in a header.
    """
    path = _secret_path(reference, base)
    if path is not None:
        return _read_secret(path)
    scheme, _, name = reference.partition(":")
    return _clean(environ.get(name, "")) if scheme == "env" else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _SecretFile:
    checked_at: float
    signature: tuple[object, ...]
    value: str | None = dataclasses.field(repr=False)


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """The file of the last good set."""

    version: int
    files: dict[str, str]


def _parse(snapshot: policy_snapshot.Snapshot) -> policy.PolicySet:
    problems = policy_yaml.Problems()
    policies = policy_documents.parse(snapshot.files, problems, unread=snapshot.unread)
    found = problems.found() + snapshot.problems
    if found:
        raise PolicyErrors(tuple(sorted(found)))
    return policies


def _keep(path: Path, files: Mapping[str, bytes]) -> str | None:
    """Write the last good set, whole or not at all; returns why it could not be written."""
    texts = {name: content.decode("utf-8-sig") for name, content in files.items()}
    content = msgspec.json.encode(_Kept(version=1, files=texts), order="deterministic")
    beside = path.with_name(f"{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == content:
                return None
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(file)
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return None


def _read_kept(path: Path) -> tuple[policy.PolicySet, Mapping[str, bytes]] | None:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None
    files = {name: text.encode() for name, text in kept.files.items()}
    problems = policy_yaml.Problems()
    policies = policy_documents.parse(files, problems)
    return None if kept.version != 1 or problems.found() else (policies, files)


def _secret_path(reference: str, base: Path) -> Path | None:
    scheme, _, rest = reference.partition(":")
    return base / rest if scheme == "file" and rest else None


def _read_secret(path: Path) -> str | None:
    try:
        content = policy_snapshot.read_file(path, MAX_SECRET_BYTES)
        return _clean(content.decode()) if len(content) <= MAX_SECRET_BYTES else None
    except (OSError, ValueError):
        return None


def _clean(text: str) -> str | None:
    """A secret as a header can carry it, else None."""
    value = text.strip()
    return value if value and value.isprintable() and value.isascii() else None
