"""A submit as we understand it: the few fields with a meaning, and every field as it was written."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Final

from gateway.rules import strict_json

DEFAULT_ACTION: Final = "generate"
DEFAULT_N: Final = 1
DEFAULT_SEED: Final = -1
DEFAULT_ASPECT_RATIO: Final = "1:1"
DEFAULT_RESOLUTION: Final = "1K"
MOST_N: Final = 1_000_000
"""The largest `n` that is read at all; policies set the limit that matters."""

NEVER_SENT: Final = frozenset({"callback_url", "callback_events"})
"""Fields that stay here: the client's webhook is ours to deliver."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What one of our own media URLs in a request stands for."""

    digest: str
    url: str | None = None
    """What goes upstream in its place; None where the upstream could reach nothing."""
    is_known: bool = True
    """False where no such blob is kept."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One submit after its body shape was checked; documented defaults are filled in."""

    model: str
    prompt: str
    action: str = DEFAULT_ACTION
    n: int = DEFAULT_N
    seed: int = DEFAULT_SEED
    aspect_ratio: str = DEFAULT_ASPECT_RATIO
    resolution: str = DEFAULT_RESOLUTION
    image_urls: tuple[str, ...] = ()
    official_fallback: bool = False
    grounded: bool = False
    """True if `google_search` or `google_image_search` is set."""
    callback_url: str | None = None
    callback_events: tuple[str, ...] = ()
    values: Mapping[str, object]
    """Every field, parsed; floats and long integers as `msgspec.Raw`."""
    written: Mapping[str, bytes]
    """Every field, byte for byte as the client wrote it."""
    references: Mapping[str, Reference] = dataclasses.field(default_factory=dict)
    """By our own media URL as the client wrote it; filled in by `flow/references`."""

    def body_digest(self) -> bytes:
        """SHA-256 of the client's canonical body, before any rewrite; what idempotency compares."""
        return hashlib.sha256(strict_json.canonical(self.values)).digest()

    def is_seeded(self) -> bool:
        """Whether the client asked for a fixed seed."""
        return self.seed >= 0


def to_send(request: Request) -> dict[str, bytes]:
    """The fields that reach the upstream, as written but for what a policy changed."""
    sent = {name: raw for name, raw in request.written.items() if name not in NEVER_SENT}
    for name, value in (("model", request.model), ("official_fallback", request.official_fallback)):
        if request.values.get(name, False) != value:
            sent[name] = strict_json.dumps(value)
    for name, urls in url_fields(request).items():
        if not request.references.keys().isdisjoint(urls):
            sent[name] = strict_json.replace_strings(sent[name], functools.partial(_as_sent, request))
    return sent


def url_fields(request: Request) -> dict[str, list[str]]:
    """The strings of every field that is sent and named `…_url` or `…_urls`: itself, or a list of nothing else."""
    fields: dict[str, list[str]] = {}
    for name, value in request.values.items():
        items = value if isinstance(value, list) else [value]
        strings = [item for item in items if isinstance(item, str)]
        if name.endswith(("_url", "_urls")) and name not in NEVER_SENT and len(strings) == len(items):
            fields[name] = strings
    return fields


def _as_sent(request: Request, url: str) -> str:
    reference = request.references.get(url)
    return url if reference is None or reference.url is None else reference.url
