"""Durations and sizes as people write them."""

from __future__ import annotations

import pytest

from gateway.rules import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("90m", 5_400), ("12h", 43_200), ("30d", 2_592_000), ("0s", 0), ("999999999s", 999_999_999)],
)
def test_a_duration_is_read_as_seconds(text, seconds):
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "30 d", "d", "-1s", "+1s", "1.5h", "030d", "1h30m", "5w", "1S", "30d\n", "٣d", "1000000000s"]
)
def test_anything_else_is_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration; write a whole number and s, m, h or d"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("1B", 1),
        ("512KiB", 524_288),
        ("1MiB", 1_048_576),
        ("2GiB", 2_147_483_648),
        ("1TiB", 1_099_511_627_776),
        ("3kB", 3_000),
        ("500MB", 500_000_000),
        ("7GB", 7_000_000_000),
        ("1TB", 1_000_000_000_000),
        ("1048576TiB", 1_152_921_504_606_846_976),
    ],
)
def test_a_size_is_read_as_bytes(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2", "2 GiB", "2G", "2gib", "2KB", "-1B", "1.5GiB", "02GiB", "1MiB\n", "1PiB"])
def test_anything_else_is_no_size(text):
    with pytest.raises(ValueError, match="is not a size; write a whole number and a unit"):
        units.parse_size(text)


def test_a_size_past_64_bits_is_refused():
    with pytest.raises(ValueError, match="is more than 1048576TiB"):
        units.parse_size("1048577TiB")
