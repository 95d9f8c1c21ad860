"""Bodies of submits: a whole one, and what can go wrong with one, as text; every choice comes from the seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

FLASH: Final = "gemini-2.5-flash-image-preview"
MODELS: Final = (
    FLASH,
    FLASH,
    FLASH,
    "gemini-3.1-flash-image-preview",
    "gemini-3-pro-image-preview",
    "gpt-image-2",
    "no-such",
)

ODD: Final = (
    *(
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-1",
        "1.0",
        "1e0",
        "1E400",
        "-1e-400",
        "01",
        "1.",
        ".5",
        "+1",
        "0x10",
        "1_000",
    ),
    *("NaN", "Infinity", "-Infinity", "9223372036854775807", "9223372036854775808", "-9223372036854775809"),
    *("9007199254740993", "1" * 5000, "0." + "1" * 4000, "123456789012345678901234567890"),
    *('""', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"a\\u0000b"', '"\x01"', '"\\x41"', "'a'", '"\u202e\ufeff"'),
    *('"\\uD83D\\uDE00"', '"' + "長" * 3000 + '"', '"/media/x"', '"http://169.254.169.254/"', '"https://[::1]/"'),
    *("[]", "{}", "[[]]", '[""]', "[null]", '["https://a.example/b.jpg"]', '{"a":{"a":{}}}', "[1,]", '{"a":1,}'),
    *(
        "[" * 33 + "]" * 33,
        "[" * 31 + "]" * 31,
        "[" * 20000 + "]" * 20000,
        '{"a":' * 40 + "1" + "}" * 40,
        "undefined",
        "",
    ),
)
"""Values as text: of the wrong type, out of range, or no JSON at all."""

FIELDS: Final = (
    *("model", "prompt", "action", "n", "seed", "aspect_ratio", "resolution", "image_urls", "official_fallback"),
    *(
        "google_search",
        "callback_url",
        "callback_events",
        "mask_url",
        "extra",
        "",
        "__proto__",
        "task_id",
        "ＭＯＤＥＬ",
    ),
)


def plain(luck: random.Random, marker: str) -> dict[str, Any]:
    """A submit that a team may send; `marker` is in its prompt. One in two can be answered by an earlier one."""
    body: dict[str, Any] = {"model": FLASH, "prompt": marker}
    if luck.random() < 0.5:
        body |= {"prompt": "again", "seed": luck.randrange(40)}
    if luck.random() < 0.3:
        body |= {"n": luck.randint(1, 4)}
    if luck.random() < 0.2:
        body |= {"negative_prompt": "blurred", "quality": 0.5}
    return body


def whole(luck: random.Random, marker: str) -> bytes:
    """The text of such a submit."""
    return json.dumps(plain(luck, marker), ensure_ascii=luck.random() < 0.5).encode()


def mutated(luck: random.Random, marker: str) -> bytes:
    """The text of a submit with one to three things done to it."""
    fields = [(json.dumps(name), json.dumps(value)) for name, value in plain(luck, marker).items()]
    for _ in range(luck.randint(1, 2)):
        luck.choice(_OF_FIELDS)(luck, fields)
    text = "{" + ",".join(f"{name}:{value}" for name, value in fields) + "}"
    data = text.encode("utf-8", "surrogatepass")
    return luck.choice(_OF_TEXT)(luck, data) if luck.random() < 0.4 else data


Fields = list[tuple[str, str]]


def _spoil(luck: random.Random, fields: Fields) -> None:
    at = luck.randrange(len(fields))
    fields[at] = (fields[at][0], luck.choice(ODD))


def _add(luck: random.Random, fields: Fields) -> None:
    fields.insert(luck.randrange(len(fields) + 1), (json.dumps(luck.choice(FIELDS)), luck.choice(ODD)))


def _repeat(luck: random.Random, fields: Fields) -> None:
    fields.append((luck.choice(fields)[0], luck.choice(ODD)))


def _drop(luck: random.Random, fields: Fields) -> None:
    if len(fields) > 1:
        del fields[luck.randrange(len(fields))]


def _rename(luck: random.Random, fields: Fields) -> None:
    at = luck.randrange(len(fields))
    fields[at] = (
        luck.choice(('"\\u006dodel"', '"model "', "model", '"\\ud800"', '"a\\u0000"', '"MODEL"')),
        fields[at][1],
    )


def _other_model(luck: random.Random, fields: Fields) -> None:
    fields[:] = [(name, json.dumps(luck.choice(MODELS)) if name == '"model"' else value) for name, value in fields]


_OF_FIELDS: Final[tuple[Callable[[random.Random, Fields], None], ...]] = (
    _spoil,
    _add,
    _add,
    _repeat,
    _drop,
    _rename,
    _other_model,
)


def _recoded(luck: random.Random, data: bytes) -> bytes:
    return (
        data.decode("utf-8", "surrogatepass").encode(
            luck.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7")), "surrogatepass"
        )
        if b"\\ud" not in data
        else b"\xff\xfe" + data
    )


def _broken_utf8(luck: random.Random, data: bytes) -> bytes:
    at = luck.randrange(len(data))
    return data[:at] + luck.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe9")) + data[at:]


def _cut(luck: random.Random, data: bytes) -> bytes:
    return data[: luck.randrange(len(data))]


def _more(luck: random.Random, data: bytes) -> bytes:
    return data + luck.choice((b"{}", b"]", b"\0", b"//x", b"\n", data))


def _flipped(luck: random.Random, data: bytes) -> bytes:
    at = luck.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << luck.randrange(8))]) + data[at + 1 :]


def _wrapped(luck: random.Random, data: bytes) -> bytes:
    before, after = luck.choice(
        ((b"[", b"]"), (b'"', b'"'), (b"callback(", b")"), (b" \t\r\n", b" \n"), (b"\x0c", b""))
    )
    return before + data + after


_OF_TEXT: Final = (_recoded, _broken_utf8, _cut, _more, _flipped, _wrapped)
