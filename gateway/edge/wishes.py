"""What a client wishes in the headers of a task request; each is checked here, or it is a 400 that names it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from gateway import errors
from gateway.edge import render, traced
from gateway.flow import listing, plan, submit
from gateway.rules import money
from gateway.rules.money import Nanos

MOST_TAGS: Final = 8

_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~][ -~]{0,254}", re.ASCII)
_RETRIES: Final = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)
_TAG: Final = re.compile(r"([A-Za-z0-9_.-]{1,64})=([!-+\--~][ -+\--~]{0,127})", re.ASCII)
_WAIT: Final = re.compile(r'wait\s*=\s*"?(\d{1,6})"?(?:\s*;.*)?', re.ASCII | re.IGNORECASE)


def options(request: Request) -> submit.Options:
    """Everything that a submit's headers ask for; raises CallerError `invalid_request`."""
    return submit.Options(
        request_id=render.request_id_of(request.scope),
        idempotency_key=_idempotency_key(request),
        is_retry=_is_retry(request),
        max_cost_nanos=_max_cost_nanos(request),
        cache=_cache(request),
        tags=_tags(request),
        traceparent=traced.traceparent_of(request),
    )


def wait_s(request: Request, max_wait_s: int) -> int | None:
    """The `wait` of a Prefer header (RFC 7240), at most ours; None if there is none."""
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        found = _WAIT.fullmatch(preference.strip())
        if found is not None:
            return min(int(found.group(1)), max_wait_s)
    return None


def query(request: Request) -> listing.Query:
    """What a list asks for; raises CallerError `invalid_request`."""
    said = request.query_params
    limit = said.get("limit", "20")
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= listing.MOST_ON_A_PAGE:
        raise _wrong("limit", f"a number from 1 to {listing.MOST_ON_A_PAGE}")
    status = said.get("status")
    if status is not None and status not in listing.STATES_SHOWN_AS:
        raise _wrong("status", " or ".join(listing.STATES_SHOWN_AS))
    return listing.Query(
        limit=int(limit),
        before=said.get("before"),
        status=status,
        since=_moment(said.get("since")),
        text=said.get("q") or None,
    )


def _moment(text: str | None) -> float | None:
    """Unix seconds or milliseconds, or an ISO 8601 date or time (UTC where it names no zone)."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,13}", text):
        return int(text) / 1000 if len(text) > 11 else int(text)
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise _wrong("since", "unix seconds or an ISO 8601 time such as 2026-11-01T00:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def is_dry_run(request: Request) -> bool:
    """Whether the client only wants to know what would happen."""
    said = request.headers.get("x-wave-dry-run", "false").lower()
    if said not in ("true", "false"):
        raise _wrong("X-Wave-Dry-Run", "true or false")
    return said == "true"


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise _wrong("Idempotency-Key", "1 to 255 printable ASCII characters")
    return key


def _is_retry(request: Request) -> bool:
    """Whether the OpenAI SDKs' count of retries says so; what is no count says nothing."""
    said = request.headers.getlist("x-stainless-retry-count")
    return len(said) == 1 and _RETRIES.fullmatch(said[0]) is not None


def _max_cost_nanos(request: Request) -> Nanos | None:
    text = request.headers.get("x-wave-max-cost-usd")
    if text is None:
        return None
    try:
        return money.parse_usd(text.strip())
    except ValueError:
        raise _wrong("X-Wave-Max-Cost-Usd", "US dollars as a decimal number such as 0.05") from None


def _cache(request: Request) -> plan.CacheMode:
    said = request.headers.get("x-wave-cache", "").strip().lower()
    try:
        return plan.CacheMode(said)
    except ValueError:
        raise _wrong("X-Wave-Cache", "no-store, refresh or only-if-cached") from None


def _tags(request: Request) -> Mapping[str, str]:
    text = request.headers.get("x-wave-tags", "").strip()
    found = [_TAG.fullmatch(part.strip()) for part in text.split(",")] if text else []
    tags = {match[1]: match[2] for match in found if match is not None}
    if len(tags) != len(found) or len(tags) > MOST_TAGS:
        raise _wrong("X-Wave-Tags", f"at most {MOST_TAGS} pairs such as project=blog,stage=draft, each name once")
    return tags


def _wrong(header: str, right: str) -> errors.CallerError:
    return errors.CallerError("invalid_request", f"{header} must be {right}.", details={"param": header})
