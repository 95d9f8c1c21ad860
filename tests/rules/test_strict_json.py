import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rules import strict_json

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "body",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b'{"n": NaN}',
        b"1e400",
        b"-1e400",
        b"1.8e308",
        b'{"a": [1e99999999999999999999]}',
        b"-1e99999999999999999999",
        b"0." + b"1" * 5_000,
        b"9" * 5_000,
        b"-" + b"9" * 5_000,
        b"9" * 401,
        b"9" * 309,
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 33 + b"]" * 33,
        b'{"a":' * 33 + b"1" + b"}" * 33,
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 2}',
        b'[{"x": {"b": 1, "c": 2, "b": 3}}]',
        b'"\\ud800"',
        b'"\\udc00 \\ud800"',
        b'{"\\ud83d": 1}',
        b'["\xed\xa0\x80"]',
        b'"\\u0000"',
        b'{"a\\u0000": 1}',
        b'"\x00"',
        b"\x00",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"),
        '{"a": 1}'.encode("utf-32"),
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xc0\xaf"',
        b"",
        b"  ",
        b"{",
        b"{} {}",
        b"01",
        b"1.",
        b"+1",
        b".5",
        b"'a'",
        b'{"a": 1,}',
        b'"line\nbreak"',
        b'"\\x41"',
        b"\x0b1",
        b"// no\n1",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(strict_json.InvalidJson):
        strict_json.loads(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice in one object"),
        (b'{"a":\n nope}', "Expecting value at line 2 column 2"),
        (b"[" * 5_000, "more than 32 levels of nesting"),
        (b"[" * 100_000, "more than 10000 values"),
        (b'{"%s": 1, "%s": 2}' % (b"k" * 65, b"k" * 65), f"the key '{'k' * 64}' occurs twice in one object"),
        (b"[" * 33 + b"]" * 33, "more than 32 levels of nesting"),
        (b'"ab\xff"', r"the body is not UTF-8 \(byte 3\)"),
        (b"[1e999]", "the number 1e999 is too large or too long"),
        (b"[NaN]", "NaN is not JSON"),
        (b'"\\u0000"', "a string holds the NUL character"),
        (b'"\\ud800"', "a string holds half of a surrogate pair"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_where(body: bytes, message: str) -> None:
    with pytest.raises(strict_json.InvalidJson, match=message):
        strict_json.loads(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b" {} ", {}),
        (b"-0", 0),
        (b"123456789012345678", 123456789012345678),
        (b"9007199254740993", 9007199254740993),
        (b"9223372036854775807", 9223372036854775807),
        (b"-9223372036854775808", -9223372036854775808),
        (b"[true, false, null]", [True, False, None]),
        (b'"\\ud83e\\udd8a"', "🦊"),
        ('"一只红狐狸"'.encode(), "一只红狐狸"),
        (b'"\\u4e2d"', "中"),
        (b'{"": 1}', {"": 1}),
    ],
)
def test_plain_json_is_read_as_it_is(body: bytes, value: object) -> None:
    assert strict_json.loads(body) == value


@pytest.mark.parametrize("body", [b"[" * 32 + b"]" * 32, b'{"a":' * 32 + b"1" + b"}" * 32])
def test_thirty_two_levels_are_accepted(body: bytes) -> None:
    strict_json.loads(body)


@pytest.mark.parametrize("value", [b"0", b"{}", b"[]", b'"a"', b'"a,[{"', b'"\\"[["', b"0.5", b"null"])
def test_ten_thousand_values_are_accepted_and_no_more(value: bytes) -> None:
    within = {b"{}": 4_999, b"[]": 4_999}.get(value, 9_999)  # one that is empty counts as if it held another
    strict_json.loads(b"[" + b",".join([value] * within) + b"]")
    with pytest.raises(strict_json.InvalidJson, match="more than 10000 values"):
        strict_json.loads(b"[" + b",".join([value] * 10_000) + b"]")


def test_keys_count_by_their_values() -> None:
    fields = [b'"%d":"a"' % number for number in range(9_999)]
    strict_json.loads(b"{" + b",".join(fields) + b"}")
    with pytest.raises(strict_json.InvalidJson, match="more than 10000 values"):
        strict_json.loads(b"{" + b",".join([*fields, b'"more":1']) + b"}")


def test_text_is_one_value_whatever_it_holds() -> None:
    text = '[{,\\"' * 50_000
    assert strict_json.loads(strict_json.dumps({"prompt": text})) == {"prompt": text}


def test_a_long_text_is_looked_through_in_little_memory() -> None:
    """A mebibyte; the way back of a pattern that could go back took up 116."""
    body = strict_json.dumps({"prompt": "x, " * 349_500})
    tracemalloc.start()
    try:
        assert strict_json.replace_strings(body, lambda text: text) == body
        strict_json.loads(body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * 1024 * 1024


@pytest.mark.parametrize(
    "number",
    [
        b"1.10",
        b"1e2",
        b"1E+2",
        b"-0.0",
        b"1e-400",
        b"1.7976931348623157e308",
        b"-1.7976931348623157e308",
        b"9223372036854775808",
        b"-9223372036854775809",
        b"18446744073709551616",
        b"123456789012345678901234567890",
        b"9" * 308,
    ],
)
def test_a_number_that_would_lose_digits_stays_as_written(number: bytes) -> None:
    value = strict_json.loads(number)
    assert isinstance(value, msgspec.Raw)
    assert bytes(value) == number
    assert strict_json.dumps(value) == number


WRITTEN = (
    '{ "price" : 1.10, "seed":9007199254740993 ,"scale":1e2,"extra" : { "b" : [ 1.0 , {"z":null} ], "a":true },'
    '"prompt":"一只红狐狸", "escaped":"\\u4e2d\\/\\ud83e\\udd8a"}'
).encode()


def test_each_field_keeps_its_bytes() -> None:
    fields = strict_json.fields_of(WRITTEN)
    assert list(fields) == ["price", "seed", "scale", "extra", "prompt", "escaped"]
    assert fields["price"] == b"1.10"
    assert fields["seed"] == b"9007199254740993"
    assert fields["scale"] == b"1e2"
    assert fields["extra"] == b'{ "b" : [ 1.0 , {"z":null} ], "a":true }'
    assert fields["prompt"] == '"一只红狐狸"'.encode()
    assert fields["escaped"] == b'"\\u4e2d\\/\\ud83e\\udd8a"'


def test_fields_are_joined_in_order_and_as_written() -> None:
    joined = strict_json.join_fields(strict_json.fields_of(WRITTEN))
    assert (
        joined
        == (
            '{"price":1.10,"seed":9007199254740993,"scale":1e2,"extra":{ "b" : [ 1.0 , {"z":null} ], "a":true },'
            '"prompt":"一只红狐狸","escaped":"\\u4e2d\\/\\ud83e\\udd8a"}'
        ).encode()
    )


def test_items_keep_their_bytes() -> None:
    items = strict_json.items_of(b'[ 1.10 , { "a" : 1e2 },"\\u4e2d"]')
    assert items == [b"1.10", b'{ "a" : 1e2 }', b'"\\u4e2d"']
    assert strict_json.join_items(items) == b'[1.10,{ "a" : 1e2 },"\\u4e2d"]'


def test_canonical_text_sorts_keys_at_every_level_and_keeps_numbers_as_written() -> None:
    value = strict_json.loads(b'{"b": [ {"z": 1.10, "a": 1e2} ], "a": "\\u4e2d", "c": 9223372036854775808}')
    assert strict_json.canonical(value) == '{"a":"中","b":[{"a":1e2,"z":1.10}],"c":9223372036854775808}'.encode()


def test_encoding_keeps_the_order_of_keys() -> None:
    assert strict_json.dumps({"b": 1, "a": "中"}) == '{"b":1,"a":"中"}'.encode()


def test_replacing_a_string_touches_no_other_byte() -> None:
    body = b'{ "task-1" : "task-1", "n": 1.10, "quoted": "say \\"task-1\\"", "other": "\\u4e2d" , "l": ["task-1"] }'
    replaced = strict_json.replace_strings(body, lambda text: "task-2" if text == "task-1" else text)
    assert replaced == (
        b'{ "task-2" : "task-2", "n": 1.10, "quoted": "say \\"task-1\\"", "other": "\\u4e2d" , "l": ["task-2"] }'
    )


@pytest.mark.parametrize("escaped", [b'"task\\u002d1"', b'"\\u0074ask-1"', b'"task-1"'])
def test_a_string_is_recognised_in_every_spelling(escaped: bytes) -> None:
    assert strict_json.replace_strings(escaped, lambda text: text.replace("task-1", 'x"')) == b'"x\\""'


@given(TREES)
@settings(deadline=None, max_examples=100)
def test_every_json_value_survives_reading_and_writing(tree: Any) -> None:
    body = json.dumps(tree).encode()
    assert json.loads(strict_json.dumps(strict_json.loads(body))) == tree


@given(st.dictionaries(TEXT, TREES, max_size=5))
@settings(deadline=None, max_examples=100)
def test_the_order_of_keys_does_not_change_the_canonical_text(tree: dict[str, Any]) -> None:
    backwards = dict(reversed(tree.items()))
    one, other = (strict_json.loads(json.dumps(each).encode()) for each in (tree, backwards))
    assert strict_json.canonical(one) == strict_json.canonical(other)


@given(st.dictionaries(TEXT, TREES, max_size=5), st.booleans())
@settings(deadline=None, max_examples=100)
def test_replacing_nothing_changes_nothing(tree: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps(tree, ensure_ascii=ascii_only).encode()
    assert strict_json.replace_strings(body, lambda text: text) == body


@given(st.binary(max_size=40) | st.text('[]{}:,"\\eE+-.019a \n', max_size=20).map(str.encode))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_read_or_refused_and_what_is_read_is_json(body: bytes) -> None:
    try:
        strict_json.loads(body)
    except strict_json.InvalidJson:
        return
    json.loads(body)
