import dataclasses
import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rules import fingerprint
from gateway.rules import request as requests
from tests.rules import builders

TEAM = "team:growth"
SEEDED: dict[str, object] = {"model": "gemini-3-pro-image-preview", "prompt": "a red fox", "seed": 7}


def of(said: dict[str, Any], *, scope: str = TEAM) -> str:
    return fingerprint.of(builders.request(**said), scope=scope)


def test_a_fingerprint_is_over_version_scope_and_canonical_json_with_defaults() -> None:
    text = (
        "wave-fingerprint-1\nteam:growth\n"
        '{"action":"generate","aspect_ratio":"1:1","model":"gemini-3-pro-image-preview","n":1,'
        '"prompt":"一只红狐狸","resolution":"1K","seed":7}'
    )
    assert of(SEEDED | {"prompt": "一只红狐狸"}) == hashlib.sha256(text.encode()).hexdigest()


def test_the_two_examples_of_the_interface_are_one_request() -> None:
    spelled_out = {
        "seed": 7,
        "n": 1,
        "prompt": "a red fox",
        "resolution": "1k",
        "model": "gemini-3-pro-image-preview",
    }
    assert of(spelled_out) == of(SEEDED)


@pytest.mark.parametrize(
    "said",
    [
        {"action": "generate"},
        {"n": 1},
        {"aspect_ratio": "1:1"},
        {"resolution": "1K"},
        {"resolution": "1k"},
        {"official_fallback": False},
        {"callback_url": "https://hooks.example.com/"},
        {"callback_events": ["completed"]},
    ],
)
def test_a_default_or_a_webhook_changes_nothing(said: dict[str, object]) -> None:
    assert of(SEEDED | said) == of(SEEDED)


def test_the_default_seed_is_the_absent_seed() -> None:
    assert of(SEEDED | {"seed": -1}) == of({"prompt": "a red fox"})


@pytest.mark.parametrize(
    "said",
    [
        {"seed": 8},
        {"seed": -1},
        {"model": "gemini-2.5-flash-image-preview"},
        {"prompt": "a red fox "},
        {"prompt": "A red fox"},
        {"n": 2},
        {"action": "edit"},
        {"aspect_ratio": "16:9"},
        {"resolution": "2K"},
        {"official_fallback": True},
        {"image_urls": ["https://example.com/1.png"]},
        {"google_search": True},
        {"negative_prompt": "dogs"},
        {"extra": {"a": 1}},
        {"unknown": None},
    ],
)
def test_any_other_field_makes_another_request(said: dict[str, object]) -> None:
    assert of(SEEDED | said) != of(SEEDED)


def test_text_is_never_normalised() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert of(SEEDED | {"prompt": composed}) != of(SEEDED | {"prompt": decomposed})


def test_the_order_of_images_counts() -> None:
    one, two = "https://example.com/1.png", "https://example.com/2.png"
    assert of(SEEDED | {"image_urls": [one, two]}) != of(SEEDED | {"image_urls": [two, one]})


def test_numbers_of_unknown_fields_count_as_written() -> None:
    short, long = msgspec.Raw(b"1.1"), msgspec.Raw(b"1.10")
    base = builders.request(**SEEDED)
    prints = {
        fingerprint.of(dataclasses.replace(base, values={**SEEDED, "weight": each}), scope=TEAM)
        for each in (short, long)
    }
    assert len(prints) == 2


def test_the_keys_of_nested_objects_have_no_order() -> None:
    assert of(SEEDED | {"extra": {"a": 1, "b": 2}}) == of(SEEDED | {"extra": {"b": 2, "a": 1}})


def test_a_rewritten_model_counts_as_what_is_sent() -> None:
    asked = dataclasses.replace(builders.request(model="gemini-3-pro-image"), model=builders.PRO)
    assert fingerprint.of(asked, scope=TEAM) == fingerprint.of(builders.request(), scope=TEAM)


@pytest.mark.parametrize(("said", "becomes"), [({}, True), ({"official_fallback": True}, False)])
def test_a_forced_or_stripped_fallback_counts_as_what_is_sent(said: dict[str, object], becomes: bool) -> None:
    changed = dataclasses.replace(builders.request(**said), official_fallback=becomes)
    same = builders.request(official_fallback=becomes)
    assert fingerprint.of(changed, scope=TEAM) == fingerprint.of(same, scope=TEAM)


def test_two_scopes_never_share_a_fingerprint() -> None:
    scopes = (fingerprint.team_scope("growth"), fingerprint.team_scope("org"), fingerprint.ORG_SCOPE)
    assert len({of(SEEDED, scope=scope) for scope in scopes}) == 3


def test_a_team_has_a_scope_of_its_own() -> None:
    assert fingerprint.team_scope("growth") == "team:growth"
    assert fingerprint.ORG_SCOPE == "org"


@given(st.permutations(["model", "prompt", "seed", "n", "extra"]))
@settings(deadline=None, max_examples=30)
def test_the_order_of_fields_changes_nothing(names: list[str]) -> None:
    said = SEEDED | {"n": 2, "extra": {"z": [1, 2], "a": "中"}}
    assert of({name: said[name] for name in names}) == of(said)


@given(st.text(max_size=12), st.text(max_size=12))
@settings(deadline=None, max_examples=60)
def test_two_prompts_share_a_fingerprint_only_if_they_are_equal(one: str, other: str) -> None:
    assert (of(SEEDED | {"prompt": one}) == of(SEEDED | {"prompt": other})) is (one == other)


OURS = "https://wave.example.com/media/" + "a" * 64 + ".jpg"


def refer(url: str | None, written: str = OURS, **said: object) -> str:
    """The fingerprint of a request in which `written` stands for one picture, at this upstream URL."""
    reference = requests.Reference(digest="a" * 64, url=url)
    asked = builders.request(**SEEDED | said)
    return fingerprint.of(dataclasses.replace(asked, references={written: reference}), scope=TEAM)


def test_a_reference_counts_by_its_digest() -> None:
    text = (
        "wave-fingerprint-1\nteam:growth\n"
        '{"action":"generate","aspect_ratio":"1:1","image_urls":["https://example.com/1.png",'
        f'"wave-media:{"a" * 64}"],"mask_url":"wave-media:{"a" * 64}",'
        '"model":"gemini-3-pro-image-preview","n":1,"prompt":"a red fox","resolution":"1K","seed":7}'
    )
    found = refer("https://vendor.test/1.jpg", image_urls=[builders.ONE, OURS], mask_url=OURS)
    assert found == hashlib.sha256(text.encode()).hexdigest()


def test_neither_the_upstreams_url_nor_the_spelling_of_ours_counts() -> None:
    moved = OURS.replace("wave.example.com", "media.example.com")
    prints = {refer(url, written, mask_url=written) for url in ("https://v.test/1", None) for written in (OURS, moved)}
    assert len(prints) == 1


def test_a_reference_outside_the_fields_of_urls_counts_as_written() -> None:
    assert refer("https://v.test/1", extra={"mask_url": OURS}) == of(SEEDED | {"extra": {"mask_url": OURS}})


def test_another_field_with_the_same_reference_is_another_request() -> None:
    assert refer(None, mask_url=OURS) != refer(None, style_url=OURS)
    assert refer(None, mask_url=OURS) != refer(None, mask_url=[OURS])
