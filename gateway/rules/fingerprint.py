"""The fingerprint: what counts as the same request (INTERFACE §4).

SHA-256 over a version, the scope and the canonical JSON of every field that reaches the upstream, after rewrites,
with the documented defaults filled in. Text is never normalised; unknown fields count. One of our own media URLs
counts by its digest, because the URL that goes upstream in its place changes.
"""

from __future__ import annotations

import hashlib
from typing import Final

from gateway.rules import request as requests
from gateway.rules import strict_json

VERSION: Final = b"wave-fingerprint-1"
ORG_SCOPE: Final = "org"


def team_scope(team: str) -> str:
    """The scope of results that one team keeps for itself."""
    return f"team:{team}"


def of(request: requests.Request, *, scope: str) -> str:
    """Fingerprint of a request, 64 hex digits; two scopes never share one."""
    fields = {name: value for name, value in request.values.items() if name not in requests.NEVER_SENT}
    fields |= {
        "model": request.model,
        "action": request.action,
        "n": request.n,
        "seed": request.seed,
        "aspect_ratio": request.aspect_ratio,
        "resolution": request.resolution.upper(),
    }
    for name, urls in requests.url_fields(request).items():
        counted = [_counted(request, url) for url in urls]
        fields[name] = counted if isinstance(fields[name], list) else counted[0]
    fields.pop("official_fallback", None)
    if request.official_fallback:
        fields["official_fallback"] = True
    digest = hashlib.sha256(VERSION + b"\n" + scope.encode() + b"\n")
    digest.update(strict_json.canonical(fields))
    return digest.hexdigest()


def _counted(request: requests.Request, url: str) -> str:
    reference = request.references.get(url)
    return url if reference is None else f"wave-media:{reference.digest}"
