import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules import callback


def test_a_token_is_43_letters_and_digits_whatever_the_bytes() -> None:
    assert callback.token_of(bytes(32)) == "0" * 43
    assert callback.token_of(bytes(31) + b"\x3d") == "z" + "0" * 42
    assert callback.token_of(bytes(30) + b"\x01\x00") == "84" + "0" * 41  # 256 = 4 * 62 + 8, the lowest digit first
    assert re.fullmatch("[0-9A-Za-z]{43}", callback.token_of(b"\xff" * 32))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_different_bytes_are_different_tokens(one: bytes, other: bytes) -> None:
    assert (callback.token_of(one) == callback.token_of(other)) == (one == other)
    assert callback.is_token(callback.token_of(one))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 42,
        "a" * 44,
        "a" * 42 + "\n",
        "a" * 43 + "\n",
        "a" * 42 + "\0",
        "a" * 42 + "/",
        "é" + "a" * 42,
        "١" * 43,
    ],
)
def test_what_has_not_the_form_of_a_token_is_none(text: str) -> None:
    assert not callback.is_token(text)


def test_the_url_ends_with_the_token() -> None:
    assert callback.url_of("https://wave.example.com", "abc") == "https://wave.example.com/callbacks/abc"
