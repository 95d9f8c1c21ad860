"""Webhooks: which ends a client wants to hear of, when an attempt is due, and how it is signed.

Source: Standard Webhooks, https://www.standardwebhooks.com (the three headers, `v1` signatures, `whsec_` secrets).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import email.utils
import hashlib
import hmac
import re
import urllib.parse
from collections.abc import Collection, Mapping
from typing import Final

SCHEDULE_S: Final = (0.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21_600.0, 86_400.0)
"""Wait before each attempt, counted from the one before; after the last the webhook is given up."""
JITTER: Final = 0.1
"""A wait is shorter or longer by up to this part of it: receivers that came back are not met by everybody at once."""
SPELLINGS: Final[Mapping[str, str]] = {"succeeded": "completed"}
"""Other names of an end in `callback_events`."""
SECRET_PREFIX: Final = "whsec_"


def is_wanted(status: str, events: Collection[str]) -> bool:
    """Whether a client that asked for these events hears of an end with this status; without events, of each."""
    return not events or status in {SPELLINGS.get(each, each) for each in events}


def next_delay(attempts: int, *, luck: float, wished_s: float | None = None) -> float | None:
    """Seconds until the next attempt after `attempts` (≥ 1) that failed; None: it is given up.

    `wished_s` is the receiver's wish: heard where it is longer, as far as to the wait that comes after this one.
    """
    if attempts >= len(SCHEDULE_S):
        return None
    delay_s = SCHEDULE_S[attempts] * (1 - JITTER + 2 * JITTER * luck)
    longest_s = SCHEDULE_S[min(attempts + 1, len(SCHEDULE_S) - 1)]
    return max(delay_s, min(wished_s or 0.0, longest_s))


def wished_wait(retry_after: str | None, *, now: float) -> float | None:
    """Seconds that a Retry-After asks for: a number of them, or a date (RFC 9110 §10.2.3). None: it makes no sense."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp() - now)


def webhook_id(task_id: str) -> str:
    """The `webhook-id` of a task's end: the same on every attempt, so that a receiver knows a repeat."""
    return "msg_" + task_id.removeprefix("task-")


def receiver_of(url: str) -> str:
    """`host:port` of a callback_url: attempts at one receiver are limited together. Empty: the URL names none."""
    try:
        parsed = urllib.parse.urlsplit(url)
        port = parsed.port or (80 if parsed.scheme == "http" else 443)
    except ValueError:
        return ""
    return f"{parsed.hostname}:{port}" if parsed.hostname else ""


def sign(secret: str, body: bytes, *, webhook_id: str, timestamp: int) -> str:
    """The `webhook-signature` of an attempt at `timestamp` in unix seconds.

    What follows `whsec_` is the key in base64; any other secret is the key as it is written. Raises ValueError for a
    `whsec_` secret that is not base64, or without a key.
    """
    key = _key(secret)
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode("ascii")


def _key(secret: str) -> bytes:
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"the secret begins with {SECRET_PREFIX} and does not go on in base64") from None
    if not key:
        raise ValueError(f"there is no key behind {SECRET_PREFIX}")
    return key
