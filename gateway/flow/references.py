"""References: one of our own media URLs in a request becomes a URL that the upstream can reach.

It goes out as the upstream's own URL of that picture while that lives, then as ours if `--media-public-url` was given,
else the request is denied, unless it is a hit or follows another. Looked at are the fields named `…_url` or `…_urls`
(`rules/request.url_fields`); any other string is the client's own affair. Whoever knows a media URL may use it,
whichever team made the picture: the digest is the secret, as it is for reading.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from gateway.flow import parts
from gateway.rules import policy
from gateway.rules import request as requests
from gateway.store import media
from gateway.store.database import Tx

MARGIN_S: Final = 300.0
"""An upstream URL must live this much longer: a submit may wait, and the upstream fetches when it begins."""
UNSAID_S: Final = 86_400.0
"""How long an upstream URL without `expires_at` is taken to live, from when its blob was kept.

Source: UPSTREAM.md, the Gemini image series: 24 hours.
"""
MOST_REFERENCES: Final = 256
"""How many pictures of ours one request may name."""

_PATH: Final = re.compile(r"/media/([0-9a-f]{64})\.[a-z0-9]{1,8}(?:[?#].*)?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where our media are."""

    urls: tuple[str, ...]
    """Every address that clients may have got media URLs at, without a slash at the end."""
    reachable_url: str | None
    """The address that the upstream can fetch from."""


def place(*, public_url: str, media_public_url: str, is_media_public_url_given: bool) -> Place:
    """The place that the settings say."""
    return Place(
        urls=(media_public_url, public_url),
        reachable_url=media_public_url if is_media_public_url_given else None,
    )


async def resolved(with_parts: parts.Parts, request: requests.Request) -> requests.Request:
    """The request with what its references stand for, in one read; without references there is none."""
    own = place(
        public_url=with_parts.public_url,
        media_public_url=with_parts.media_public_url,
        is_media_public_url_given=with_parts.is_media_public_url_given,
    )
    if not _digests(request, own):
        return request
    now = with_parts.clock()
    return await with_parts.database.read(lambda tx: resolve(tx, request, own, now=now))


def resolve(tx: Tx, request: requests.Request, own: Place, *, now: float) -> requests.Request:
    """The request with what each of its references stands for at this instant."""
    digests = _digests(request, own)
    found = {digest: requests.Reference(digest=digest, is_known=False) for digest in digests.values()}
    if len(found) <= MOST_REFERENCES:
        found = {digest: _reference(tx, digest, own, now) for digest in found}
    return dataclasses.replace(request, references={url: found[digest] for url, digest in digests.items()})


def deny(request: requests.Request) -> policy.Deny | None:
    """The answer to a request that would go upstream with a reference that nobody there can reach."""
    for name, urls in requests.url_fields(request).items():
        for url in urls:
            reference = request.references.get(url)
            if reference is not None and reference.url is None:
                return policy.Deny(
                    code="reference_not_reachable",
                    message=_why(request, name, reference),
                    rule=policy.BUILT_IN,
                    param=name,
                )
    return None


def _why(request: requests.Request, name: str, reference: requests.Reference) -> str:
    short = f"{reference.digest[:12]}…"
    if len({each.digest for each in request.references.values()}) > MOST_REFERENCES:
        return f"The request names more than {MOST_REFERENCES} pictures of this gateway; send fewer."
    if not reference.is_known:
        return f"`{name}` names the picture {short}, which is not kept here; give a URL as a task's result shows it."
    return (
        f"`{name}` names the picture {short}, whose copy at the upstream has expired, and the upstream cannot reach "
        "this gateway's copy. Give another public URL of it, or have whoever runs the gateway set --media-public-url."
    )


def _digests(request: requests.Request, own: Place) -> dict[str, str]:
    """Digest by media URL of ours, as the client wrote it."""
    found = {url: _digest(url, own) for urls in requests.url_fields(request).values() for url in urls}
    return {url: digest for url, digest in found.items() if digest is not None}


def _digest(url: str, own: Place) -> str | None:
    for start in own.urls:
        match = _PATH.fullmatch(url, len(start)) if url.startswith(start) else None
        if match is not None:
            return match[1]
    return None


def _reference(tx: Tx, digest: str, own: Place, now: float) -> requests.Reference:
    source = media.get_source(tx, digest, unsaid_s=UNSAID_S)
    if source is None:
        return requests.Reference(digest=digest, is_known=False)
    if source.upstream_url is not None and source.lives_until > now + MARGIN_S:
        return requests.Reference(digest=digest, url=source.upstream_url)
    ours = None if own.reachable_url is None else f"{own.reachable_url}/media/{digest}.{source.extension}"
    return requests.Reference(digest=digest, url=ours)
