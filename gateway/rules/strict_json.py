"""JSON read strictly and written canonically, with numbers and unknown fields kept as they were written.

The standard library's scanner is used because it reports duplicate keys; floats and integers of more than 18
digits stay text (`msgspec.Raw`), so `1.10` stays `1.10` and nothing is rounded. Refused: duplicate keys, NaN and
Infinity, numbers that no double can hold, more than 32 levels or 10,000 values, lone surrogates, NUL, and any encoding
but UTF-8. The bounds hold the event loop up for 10 ms at most, and a value takes up many times its bytes.
Source: RFC 8259; CONTRACT §3 (bodies that must be refused).
"""

from __future__ import annotations

import decimal
import json
import re
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 10_000
"""How many values a document may hold, whatever their size; a task with 256 pictures has about 1,500."""
_NAME_SHOWN: Final = 64
"""How much of a key a message repeats."""


class InvalidJson(ValueError):
    """The text is not JSON that we accept; the message says where it went wrong."""


def loads(data: bytes) -> object:
    """Parse UTF-8 JSON; floats and long integers come back as `msgspec.Raw` with their digits as written."""
    if _has_too_many_values(data):
        raise InvalidJson(f"more than {MAX_VALUES} values")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJson(f"the body is not UTF-8 (byte {error.start})") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise InvalidJson(f"more than {MAX_DEPTH} levels of nesting") from None
    _check(value, 1)
    return value


def canonical(value: object) -> bytes:
    """Encode with sorted keys as compact UTF-8, so that equal values have equal bytes."""
    return _ENCODER.encode(value)


def fields_of(data: bytes) -> dict[str, bytes]:
    """Split an object that `loads` accepted into its top-level fields, each value byte for byte as written."""
    return {name: bytes(raw) for name, raw in _FIELDS.decode(data).items()}


def items_of(data: bytes) -> list[bytes]:
    """Split a list that `loads` accepted into its items, byte for byte as written."""
    return [bytes(raw) for raw in _ITEMS.decode(data)]


def join_fields(fields: dict[str, bytes]) -> bytes:
    """Write an object from raw values, in the given order."""
    return _WRITER.encode({name: msgspec.Raw(raw) for name, raw in fields.items()})


def join_items(items: list[bytes]) -> bytes:
    """Write a list from raw values."""
    return _WRITER.encode([msgspec.Raw(raw) for raw in items])


def dumps(value: object) -> bytes:
    """Encode compactly, keys in their order."""
    return _WRITER.encode(value)


def replace_strings(data: bytes, replace: Callable[[str], str]) -> bytes:
    """Pass every string value and key of accepted JSON through `replace`; what it leaves alone keeps its bytes."""

    def token(match: re.Match[bytes]) -> bytes:
        value = _STRING.decode(match.group())
        replaced = replace(value)
        return match.group() if replaced == value else _WRITER.encode(replaced)

    return _STRING_TOKEN.sub(token, data)


def _has_too_many_values(data: bytes) -> bool:
    """Count what begins another value, before anything is made of it; text full of commas is looked at closely."""
    if _marks(data) < MAX_VALUES:
        return False
    without, strings = _STRING_TOKEN.subn(b"", data, count=2 * MAX_VALUES + 1)
    return strings > 2 * MAX_VALUES or _marks(without) >= MAX_VALUES  # a value has a key and a string at most


def _marks(data: bytes) -> int:
    """Every value but the first stands behind one of these."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _check(value: object, depth: int) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, (dict, list)):
        if depth > MAX_DEPTH:
            raise InvalidJson(f"more than {MAX_DEPTH} levels of nesting")
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, depth + 1)


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise InvalidJson("a string holds the NUL character")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidJson("a string holds half of a surrogate pair") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    for name in fields:
        _check_text(name)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidJson(f"the key {twice[:_NAME_SHOWN]!r} occurs twice in one object")
    return fields


def _integer(text: str) -> object:
    return int(text) if len(text) <= 18 else _long_integer(text)


def _long_integer(text: str) -> object:
    if len(text) > 400 or not _fits_a_double(text):
        raise InvalidJson("an integer has more than 308 digits")
    return int(text) if len(text) <= 20 and -(2**63) <= int(text) < 2**63 else msgspec.Raw(text.encode())


def _real(text: str) -> msgspec.Raw:
    if len(text) > 400 or not _fits_a_double(text):
        raise InvalidJson(f"the number {text[:24]} is too large or too long")
    return msgspec.Raw(text.encode())


def _fits_a_double(text: str) -> bool:
    try:
        return decimal.Decimal(text) <= _LARGEST and decimal.Decimal(text) >= -_LARGEST
    except decimal.InvalidOperation:
        return False


def _constant(text: str) -> NoReturn:
    raise InvalidJson(f"{text} is not JSON")


_LARGEST: Final = decimal.Decimal("1.7976931348623157e308")
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant
)
_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_WRITER: Final = msgspec.json.Encoder()
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_STRING: Final = msgspec.json.Decoder(str)
# Possessive: else the engine keeps a way back for each character, a hundred times the memory of a long string.
_STRING_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
