"""What schemathesis checks of ours; loaded by it through SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import json
from typing import Any

import schemathesis

NEVER_OF_VALID = frozenset({"invalid_json", "unsupported_media_type", "method_not_allowed", "not_found"})
BROAD = frozenset({"/media/{name}", "/callbacks/{token}"})
"""Where a valid name or token need not be one that exists."""


@schemathesis.check
def what_the_document_allows_is_understood(context: Any, response: Any, case: Any) -> None:
    """A refusal of a request that the document allows is about policy or state, never about its form."""
    del context
    mode = case.meta.generation.mode if case.meta is not None else None
    if mode is None or not mode.is_positive or response.status_code < 400 or case.operation.path in BROAD:
        return
    code = json.loads(response.content)["error"]["code"] if response.content else ""
    if code == "invalid_json" and b"NUL" in response.content:  # which no schema of a string can say
        return
    assert code not in NEVER_OF_VALID, f"a valid request was answered with {code}: {response.content!r}"


@schemathesis.check
def no_server_error_but_the_explained(context: Any, response: Any, case: Any) -> None:
    """With a healthy upstream only `only_if_cached` is a 5xx."""
    del context, case
    if response.status_code >= 500 and response.content:
        assert json.loads(response.content)["error"]["code"] == "only_if_cached", response.content
