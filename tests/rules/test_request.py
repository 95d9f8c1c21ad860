import dataclasses
import hashlib

import pytest

from gateway.rules import request as requests
from tests.rules import builders


def test_the_digest_of_a_body_is_over_the_clients_words_in_canonical_order() -> None:
    request = builders.request(prompt="一只狐狸", seed=7)
    canonical = '{"model":"gemini-3-pro-image-preview","prompt":"一只狐狸","seed":7}'
    assert request.body_digest() == hashlib.sha256(canonical.encode()).digest()


@pytest.mark.parametrize(
    "said",
    [{"n": 1}, {"seed": 8}, {"callback_url": "https://hooks.example.com/"}, {"official_fallback": False}, {"x": 1}],
)
def test_any_other_word_is_another_body(said: dict[str, object]) -> None:
    assert builders.request(**said).body_digest() != builders.request().body_digest()


def test_a_rewrite_does_not_change_the_digest_of_the_body() -> None:
    request = builders.request()
    rewritten = dataclasses.replace(request, model=builders.OLD, official_fallback=True)
    assert rewritten.body_digest() == request.body_digest()


@pytest.mark.parametrize(("seed", "expected"), [(None, False), (-1, False), (-2, False), (0, True), (7, True)])
def test_a_seed_from_zero_on_is_fixed(seed: int | None, expected: bool) -> None:
    request = builders.request() if seed is None else builders.request(seed=seed)
    assert request.is_seeded() is expected


def test_what_is_sent_is_what_was_written_without_the_webhook() -> None:
    request = dataclasses.replace(
        builders.request(official_fallback=True),
        written={
            "prompt": b'"\\u4e2d"',
            "model": b'"gemini-3-pro-image-preview"',
            "callback_url": b'"https://hooks.example.com/"',
            "callback_events": b'["completed"]',
            "official_fallback": b"true",
            "extra": b'{ "weight" : 1.10 }',
        },
    )
    assert list(requests.to_send(request).items()) == [
        ("prompt", b'"\\u4e2d"'),
        ("model", b'"gemini-3-pro-image-preview"'),
        ("official_fallback", b"true"),
        ("extra", b'{ "weight" : 1.10 }'),
    ]


def test_a_rewritten_model_is_sent() -> None:
    request = dataclasses.replace(builders.request(), model="gemini-2.5-flash-image-preview")
    assert requests.to_send(request)["model"] == b'"gemini-2.5-flash-image-preview"'


def test_a_stripped_fallback_is_sent_as_false() -> None:
    request = dataclasses.replace(builders.request(official_fallback=True), official_fallback=False)
    assert requests.to_send(request)["official_fallback"] == b"false"


def test_a_forced_fallback_is_sent_as_true() -> None:
    request = dataclasses.replace(builders.request(), official_fallback=True)
    assert requests.to_send(request)["official_fallback"] == b"true"


def test_an_absent_fallback_stays_absent() -> None:
    assert "official_fallback" not in requests.to_send(builders.request())


def test_a_false_fallback_is_sent_as_written() -> None:
    assert requests.to_send(builders.request(official_fallback=False))["official_fallback"] == b"false"


OURS = "https://wave.example.com/media/" + "a" * 64 + ".jpg"
DEAD = "https://wave.example.com/media/" + "b" * 64 + ".jpg"
REFERENCES = {
    OURS: requests.Reference(digest="a" * 64, url='https://vendor.test/1.jpg?sig="x"'),
    DEAD: requests.Reference(digest="b" * 64),
}


def refer(**said: object) -> requests.Request:
    return dataclasses.replace(builders.request(**said), references=REFERENCES)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"mask_url": builders.ONE}, {"mask_url": [builders.ONE]}),
        ({"image_urls": [builders.ONE, builders.TWO]}, {"image_urls": [builders.ONE, builders.TWO]}),
        ({"style_urls": []}, {"style_urls": []}),
        ({"mask_url": None, "a_url": 7, "b_urls": [builders.ONE, None], "c_urls": {"url": builders.ONE}}, {}),
        ({"callback_url": builders.ONE}, {}),
        ({"url": builders.ONE, "urls": [builders.ONE], "image": builders.ONE}, {}),
    ],
)
def test_the_fields_of_urls_are_known_by_their_names(said: dict[str, object], expected: dict[str, list[str]]) -> None:
    assert requests.url_fields(builders.request(**said)) == expected


def test_a_reference_is_sent_as_the_url_that_it_stands_for_and_all_else_as_written() -> None:
    sent = requests.to_send(
        refer(prompt=OURS, mask_url=OURS, image_urls=[builders.ONE, OURS], extra={"mask_url": OURS})
    )
    assert sent["mask_url"] == b'"https://vendor.test/1.jpg?sig=\\"x\\""'
    assert sent["image_urls"] == b'["https://example.com/1.png", "https://vendor.test/1.jpg?sig=\\"x\\""]'
    assert OURS.encode() in sent["prompt"]
    assert OURS.encode() in sent["extra"]


def test_a_reference_that_stands_for_nothing_stays_as_written() -> None:
    assert requests.to_send(refer(mask_url=DEAD))["mask_url"] == f'"{DEAD}"'.encode()


def test_a_field_without_a_reference_stays_as_written() -> None:
    request = refer(image_urls=[builders.ONE])
    written = dict(request.written) | {"image_urls": b'[ "https:\\/\\/example.com\\/1.png" ]'}
    sent = requests.to_send(dataclasses.replace(request, written=written))
    assert sent["image_urls"] == b'[ "https:\\/\\/example.com\\/1.png" ]'


def test_a_reference_does_not_change_the_digest_of_the_body() -> None:
    assert refer(mask_url=OURS).body_digest() == builders.request(mask_url=OURS).body_digest()
