"""What the upstream is told to call when a task has ended: a URL of ours with an unguessable end, a new one each time.

Whoever knows the token can have the task polled once more, and nothing else. Not here: the client's own
`callback_url`, which is ours to serve (`rules/delivery`).
"""

from __future__ import annotations

import re
from typing import Final

EVENTS: Final = ("completed", "failed")
"""What the upstream is asked to tell. Its own example: the strictest version takes it."""
RANDOM_BYTES: Final = 32
TOKEN_LENGTH: Final = 43
"""The least that holds 256 bits in base 62."""
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN: Final = re.compile(f"[0-9A-Za-z]{{{TOKEN_LENGTH}}}", re.ASCII)


def token_of(random: bytes) -> str:
    """A token made of `RANDOM_BYTES` random bytes: letters and digits, so that nobody writes it in two ways."""
    number, digits = int.from_bytes(random), ""
    for _ in range(TOKEN_LENGTH):
        number, digit = divmod(number, len(_BASE62))
        digits += _BASE62[digit]
    return digits


def is_token(text: str) -> bool:
    """Whether a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def url_of(public_url: str, token: str) -> str:
    """Where the upstream is to call; `public_url` is without a slash at its end."""
    return f"{public_url}/callbacks/{token}"
