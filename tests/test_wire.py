import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import errors, wire
from gateway.rules.task import Accepted, Event, InDoubt, Lost, Media, NotSent, Outcome, Refused, State, Told

# A submit inward.

MINIMAL = b'{"model": "gemini-3-pro-image-preview", "prompt": "a red fox"}'


def submit(**said: Any) -> bytes:
    return json.dumps({"model": "gemini-3-pro-image-preview", "prompt": "a red fox"} | said).encode()


def refused(body: bytes) -> errors.CallerError:
    with pytest.raises(errors.CallerError) as caught:
        wire.parse_submit(body)
    return caught.value


def test_a_submit_is_read_with_the_documented_defaults() -> None:
    request = wire.parse_submit(MINIMAL)
    assert (request.model, request.prompt) == ("gemini-3-pro-image-preview", "a red fox")
    assert (request.action, request.n, request.seed) == ("generate", 1, -1)
    assert (request.aspect_ratio, request.resolution, request.image_urls) == ("1:1", "1K", ())
    assert (request.official_fallback, request.grounded) == (False, False)
    assert (request.callback_url, request.callback_events) == (None, ())
    assert request.values == {"model": "gemini-3-pro-image-preview", "prompt": "a red fox"}
    assert request.written == {"model": b'"gemini-3-pro-image-preview"', "prompt": b'"a red fox"'}


def test_a_submit_is_read_field_by_field() -> None:
    request = wire.parse_submit(
        submit(
            action="reference",
            n=4,
            seed=7,
            aspect_ratio="16:9",
            resolution="2k",
            image_urls=["https://example.com/1.png", "https://example.com/2.png"],
            official_fallback=True,
            google_image_search=True,
            callback_url="https://hooks.example.com/",
            callback_events=["completed", "failed"],
        )
    )
    assert (request.action, request.n, request.seed) == ("reference", 4, 7)
    assert (request.aspect_ratio, request.resolution) == ("16:9", "2k")
    assert request.image_urls == ("https://example.com/1.png", "https://example.com/2.png")
    assert (request.official_fallback, request.grounded) == (True, True)
    assert (request.callback_url, request.callback_events) == ("https://hooks.example.com/", ("completed", "failed"))


@pytest.mark.parametrize("field", ["google_search", "google_image_search"])
@pytest.mark.parametrize("value", [True, False])
def test_either_search_flag_grounds_a_request(field: str, value: bool) -> None:
    assert wire.parse_submit(submit(**{field: value})).grounded is value


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 9007199254740993, 2**63 - 1])
def test_a_seed_of_64_bits_is_read_exactly(seed: int) -> None:
    assert wire.parse_submit(submit(seed=seed)).seed == seed


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"action": ""}, "action"),
        ({"action": 1}, "action"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": True}, "n"),
        ({"n": "1"}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": None}, "n"),
        ({"n": 2**63}, "n"),
        ({"n": 10**30}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": False}, "seed"),
        ({"seed": 7.5}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"aspect_ratio": 1}, "aspect_ratio"),
        ({"resolution": 2}, "resolution"),
        ({"image_urls": "https://example.com/1.png"}, "image_urls"),
        ({"image_urls": [7]}, "image_urls"),
        ({"image_urls": None}, "image_urls"),
        ({"image_urls": {"url": "https://example.com/1.png"}}, "image_urls"),
        ({"official_fallback": "true"}, "official_fallback"),
        ({"official_fallback": 1}, "official_fallback"),
        ({"google_search": 1}, "google_search"),
        ({"google_image_search": "yes"}, "google_image_search"),
        ({"callback_url": None}, "callback_url"),
        ({"callback_url": ["https://hooks.example.com/"]}, "callback_url"),
        ({"callback_events": "completed"}, "callback_events"),
        ({"callback_events": ["finished"]}, "callback_events"),
    ],
)
def test_a_field_of_the_wrong_shape_is_named(said: dict[str, object], param: str) -> None:
    error = refused(submit(**said))
    assert (error.code, error.status, error.details) == ("invalid_request", 400, {"param": param})
    assert error.message.startswith(f"`{param}` must be ")


@pytest.mark.parametrize(("body", "param"), [(b'{"prompt":"x"}', "model"), (b'{"model":"x"}', "prompt")])
def test_model_and_prompt_are_required(body: bytes, param: str) -> None:
    assert refused(body).details == {"param": param}


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null", b"1.10"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    assert refused(body).code == "invalid_request"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"model=x",
        MINIMAL[:-1] + b', "seed": NaN}',
        MINIMAL[:-1] + b', "extra": 1e400}',
        MINIMAL[:-1] + b', "seed": ' + b"9" * 5_000 + b"}",
        MINIMAL[:-1] + b', "extra": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        MINIMAL[:-1] + b', "prompt": "twice"}',
        MINIMAL[:-1] + b', "extra": "\\ud800"}',
        MINIMAL[:-1] + b', "extra": "\\u0000"}',
        MINIMAL.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + MINIMAL,
    ],
)
def test_a_body_that_is_no_strict_json_is_refused(body: bytes) -> None:
    error = refused(body)
    assert (error.code, error.status) == ("invalid_json", 400)


@pytest.mark.parametrize("event", ["queued", "running", "processing", "completed", "succeeded", "failed", "cancelled"])
def test_every_event_of_the_vendors_pages_may_be_asked_for(event: str) -> None:
    assert wire.parse_submit(submit(callback_events=[event])).callback_events == (event,)


def test_what_goes_upstream_is_what_was_written() -> None:
    body = (
        '{"prompt" : "一只红狐狸", "model":"\\u0067emini-3-pro-image-preview","seed":9007199254740993,'
        '"weight":1.10,"scale":1e2,"extra":{ "b" : [1.0], "a":"\\u4e2d" },"callback_url":"https://hooks.example.com/",'
        '"callback_events":["completed"]}'
    )
    assert (
        wire.encode_submit(wire.parse_submit(body.encode()))
        == (
            '{"prompt":"一只红狐狸","model":"\\u0067emini-3-pro-image-preview","seed":9007199254740993,'
            '"weight":1.10,"scale":1e2,"extra":{ "b" : [1.0], "a":"\\u4e2d" }}'
        ).encode()
    )


# The answer to a submit.

QUEUED = b'{"task_id":"task-wave1a2","model":"m","action":"generate","status":"queued","created_at":1,"progress":0}'
NO_PRICE = b'{"error":{"message":"no price","code":"price_not_configured"}}'
SAID_NO = b'{"error":{"message":"no","code":"capability_violation","param":"action"}}'
WINDOW_FULL = (
    b'{"error":{"message":"full","code":"quota_window_exceeded","window":"day","used":9,"cap":9,"reset_at":1781740800}}'
)


@pytest.mark.parametrize("status", [200, 201, 202])
def test_a_task_id_means_accepted(status: int) -> None:
    assert wire.classify_submit(status, QUEUED, retry_after=None) == Accepted(
        upstream_task_id="task-wave1a2", document=QUEUED, outcome=Outcome(event=None, status="queued")
    )


@pytest.mark.parametrize(
    ("body", "task_id"),
    [
        (b'{"code":"success","data":"task-wave1a2"}', "task-wave1a2"),
        (b'{"id":"task_01J0","status":"queued"}', "task_01J0"),
        (b'{"code":"success","data":{"task_id":"task-wave1a2","status":"queued"}}', "task-wave1a2"),
        (b'{"data":{"id":"task-wave1a2"}}', "task-wave1a2"),
        (b'{"task_id":"one","id":"two"}', "one"),
        (b'{"task_id":null,"id":"two"}', "two"),
        (b'{"task_id":"not sane","id":"two"}', "two"),
        (b'{"task_id":"' + b"x" * 200 + b'"}', "x" * 200),
    ],
)
def test_the_task_id_is_found_in_every_shape(body: bytes, task_id: str) -> None:
    answer = wire.classify_submit(200, body, retry_after=None)
    assert isinstance(answer, Accepted)
    assert answer.upstream_task_id == task_id
    assert answer.document == body


def test_an_answer_held_until_the_end_carries_the_outcome() -> None:
    body = (
        b'{"task_id":"t","status":"completed","cost":21250,"result":{"images":[{"url":"https://cdn.example/1.jpg"}]}}'
    )
    answer = wire.classify_submit(200, body, retry_after=None)
    assert isinstance(answer, Accepted)
    assert answer.outcome == Outcome(
        event=Event.DELIVERED,
        status="completed",
        cost_quota=21250,
        media=(Media(url="https://cdn.example/1.jpg"),),
        images=1,
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"status":"queued"}',
        b'{"task_id":""}',
        b'{"task_id":7}',
        b'{"task_id":"has space"}',
        b'{"task_id":"."}',
        b'{"task_id":".."}',
        b'{"task_id":"line\\nbreak"}',
        '{"task_id":"任务"}'.encode(),
        b'{"task_id":"' + b"x" * 201 + b'"}',
        b'{"code":"success","data":[]}',
        b'{"code":"success","data":"two words"}',
        b'{"task_id":"a","task_id":"b"}',
        SAID_NO,
    ],
)
def test_success_without_a_sane_task_id_is_in_doubt(body: bytes) -> None:
    doubt = InDoubt(reason="answer 200 without a task id", is_garbled=True)
    assert wire.classify_submit(200, body, retry_after=None) == doubt


@pytest.mark.parametrize(
    "status", [100, 300, 302, 307, 405, 408, 409, 410, 418, 423, 425, 431, 451, 499, 500, 501, 502, 503, 504, 520, 599]
)
@pytest.mark.parametrize("body", [SAID_NO, QUEUED, b"", b"<html>"])
def test_what_nobody_can_be_sure_of_is_in_doubt(status: int, body: bytes) -> None:
    doubt = InDoubt(reason=f"answer {status}", is_garbled=status in (100, 300, 302, 307))
    assert wire.classify_submit(status, body, retry_after="5") == doubt


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_with_a_parsable_body_is_passed_on(status: int) -> None:
    assert wire.classify_submit(status, SAID_NO, retry_after=None) == Refused(status=status, document=SAID_NO)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@pytest.mark.parametrize("body", [b"", b"<html>Bad Request</html>", b'"no"', b"[1]", b'{"error":'])
def test_a_refusal_without_a_parsable_body_is_in_doubt(status: int, body: bytes) -> None:
    assert wire.classify_submit(status, body, retry_after=None) == InDoubt(reason=f"answer {status}")


def test_a_model_without_a_price_is_refused_though_it_is_a_500() -> None:
    assert wire.classify_submit(500, NO_PRICE, retry_after=None) == Refused(status=500, document=NO_PRICE)
    assert wire.classify_submit(502, NO_PRICE, retry_after=None) == InDoubt(reason="answer 502")


@pytest.mark.parametrize(
    "body", [b'{"error":"price_not_configured"}', b'{"error":{"code":["price_not_configured"]}}', b'{"error":null}']
)
def test_a_500_with_another_error_is_in_doubt(body: bytes) -> None:
    assert wire.classify_submit(500, body, retry_after=None) == InDoubt(reason="answer 500")


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("30", 30),
        (" 7 ", 7),
        ("999999999", 999_999_999),
        ("1000000000", None),
        ("1.5", None),
        ("-1", None),
        ("soon", None),
        ("٣", None),
        ("", None),
        ("Wed, 17 Jun 2026 10:30:00 GMT", None),
    ],
)
def test_a_429_was_not_accepted_and_may_say_how_long_to_wait(retry_after: str | None, seconds: int | None) -> None:
    expected = NotSent(reason="429", retry_after_s=seconds)
    assert wire.classify_submit(429, SAID_NO, retry_after=retry_after) == expected
    assert wire.classify_submit(429, b"slow down", retry_after=retry_after) == expected


def test_a_vendors_full_window_says_when_it_ends() -> None:
    assert wire.classify_submit(429, WINDOW_FULL, retry_after="60") == NotSent(
        reason="429", retry_after_s=60, reset_at=1_781_740_800
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"code":"rate_limited","reset_at":1781740800}}',
        b'{"error":{"code":"quota_window_exceeded"}}',
        b'{"error":{"code":"quota_window_exceeded","reset_at":-1}}',
        b'{"error":{"code":"quota_window_exceeded","reset_at":true}}',
        b'{"error":"quota_window_exceeded","reset_at":1781740800}',
        b"",
    ],
)
def test_any_other_429_has_no_reset(body: bytes) -> None:
    assert wire.classify_submit(429, body, retry_after=None) == NotSent(reason="429")


@pytest.mark.parametrize("status", [401, 402, 403])
@pytest.mark.parametrize("body", [SAID_NO, b"", QUEUED])
def test_a_complaint_about_our_key_or_wallet_is_ours_to_mend(status: int, body: bytes) -> None:
    assert wire.classify_submit(status, body, retry_after="9") == NotSent(
        reason=str(status), retry_after_s=9, is_key_refused=True
    )


# The answer to a cancel.

CANCELLED = b'{"task_id":"t-1","status":"cancelled","refunded":true,"refunded_quota":50000}'
NOT_CANCELLABLE = b'{"error":{"message":"the task is processing","code":"task_not_cancellable"}}'


@pytest.mark.parametrize(
    "body", [CANCELLED, b'{"status":"canceled"}', b'{"code":"success","data":"t-1"}', b'{"data":{"id":"t-1"}}']
)
def test_a_yes_to_a_cancel_is_told_as_it_is(body: bytes) -> None:
    assert wire.classify_cancel(200, body, "t-1", retry_after=None) == Told(status=200, document=body)


@pytest.mark.parametrize("status", [400, 409, 422])
def test_a_no_to_a_cancel_is_told_as_it_is(status: int) -> None:
    told = wire.classify_cancel(status, NOT_CANCELLABLE, "t-1", retry_after=None)
    assert told == Told(status=status, document=NOT_CANCELLABLE, is_refusal=True)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"{}"),
        (200, b'["cancelled"]'),
        (200, b'{"task_id":"t-2","status":"cancelled"}'),
        (204, b""),
        (302, CANCELLED),
        (400, b"no"),
        (400, b'{"error":"no"}'),
        (404, b'{"error":{"message":"no such task","code":"task_not_found"}}'),
        (405, NOT_CANCELLABLE),
        (500, NOT_CANCELLABLE),
        (503, CANCELLED),
    ],
)
def test_any_other_answer_to_a_cancel_says_nothing(status: int, body: bytes) -> None:
    lost = wire.classify_cancel(status, body, "t-1", retry_after=None)
    assert lost == Lost(reason=f"answer {status}", is_answered=True, is_garbled=status < 400)


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_cancel_that_meets_a_complaint_about_our_key_was_not_taken_up(status: int) -> None:
    refused = wire.classify_cancel(status, NOT_CANCELLABLE, "t-1", retry_after=None)
    assert refused == NotSent(reason=str(status), is_key_refused=True)


def test_a_cancel_that_meets_a_rate_limit_was_not_taken_up() -> None:
    assert wire.classify_cancel(429, b"", "t-1", retry_after="7") == NotSent(reason="429", retry_after_s=7)


# A poll's answer.


def read(document: dict[str, Any]) -> Outcome:
    outcome = wire.read_task(json.dumps({"task_id": "t"} | document).encode(), "t")
    assert outcome is not None
    return outcome


@pytest.mark.parametrize(
    ("status", "event"),
    [
        ("queued", None),
        ("processing", None),
        ("running", None),
        ("completed", Event.DELIVERED),
        ("succeeded", Event.DELIVERED),
        ("success", Event.DELIVERED),
        ("done", Event.DELIVERED),
        ("failed", Event.FAILED),
        ("error", Event.FAILED),
        ("cancelled", Event.CANCELLED),
        ("canceled", Event.CANCELLED),
        ("COMPLETED", Event.DELIVERED),
        ("timeout", None),
        ("reviewing", None),
        ("", None),
    ],
)
def test_every_status_word_has_one_meaning_and_an_unknown_one_none(status: str, event: Event | None) -> None:
    outcome = read({"status": status})
    assert outcome.event is event
    assert outcome.status == status.lower()


@pytest.mark.parametrize(
    ("cost", "event"), [(0, Event.FAILED), (21250, Event.FAILED), (None, None), (1.5, None), (-1, None)]
)
def test_a_timeout_is_an_end_only_with_a_cost(cost: object, event: Event | None) -> None:
    assert read({"status": "timeout", "cost": cost}).event is event


URL = "https://cdn.example/1.jpg"
URL_2 = "https://cdn.example/2.jpg"
URL_3 = "https://cdn.example/3.jpg"


@pytest.mark.parametrize(
    ("result", "media", "images"),
    [
        ({"images": [{"url": [URL], "expires_at": 1750086400}]}, (Media(url=URL, expires_at=1750086400),), 1),
        ({"images": [{"url": URL, "expires_at": "1750086400"}]}, (Media(url=URL, expires_at=1750086400),), 1),
        ({"images": [{"url": URL}]}, (Media(url=URL),), 1),
        ({"images": [URL, URL_2]}, (Media(url=URL), Media(url=URL_2)), 2),
        (
            {"images": [{"url": [URL, URL_2], "expires_at": 5}, {"url": URL_3, "expires_at": 6}]},
            (Media(url=URL, expires_at=5), Media(url=URL_2, expires_at=5), Media(url=URL_3, expires_at=6)),
            3,
        ),
        ({"videos": [{"url": [URL]}]}, (Media(url=URL),), 1),
        ({"audios": [{"url": URL}]}, (Media(url=URL),), 1),
        ({"images": [{"url": [URL]}], "videos": [{"url": [URL_2]}]}, (Media(url=URL), Media(url=URL_2)), 2),
        ({"images": [{"url": [URL, URL]}, {"url": URL}]}, (Media(url=URL),), 1),
        ({"video_url": URL, "thumbnail_url": URL_2}, (Media(url=URL), Media(url=URL_2, is_billed=False)), 1),
        ({"video_url": URL, "thumbnail_url": URL}, (Media(url=URL),), 1),
        ({"thumbnail_url": URL}, (Media(url=URL, is_billed=False),), 0),
        (
            {"videos": [{"url": URL}], "video_url": URL, "thumbnail_url": URL_2},
            (Media(url=URL), Media(url=URL_2, is_billed=False)),
            1,
        ),
        (
            {"videos": [{"url": URL}], "video_url": URL_2},
            (Media(url=URL), Media(url=URL_2, is_billed=False)),
            1,
        ),
        ({"images": [{"url": "http://cdn.example/1.jpg"}]}, (Media(url="http://cdn.example/1.jpg"),), 1),
        ({"images": [{"url": ["ftp://cdn.example/1.jpg", "", 7, None]}, {}, 7, None]}, (), 0),
        ({"images": {"url": URL}}, (), 0),
        ({"images": []}, (), 0),
        ({"video_url": 7}, (), 0),
        ({}, (), 0),
        ([], (), 0),
        (None, (), 0),
        ("done", (), 0),
    ],
)
def test_results_are_found_in_every_shape(result: object, media: tuple[Media, ...], images: int) -> None:
    outcome = read({"status": "completed", "result": result})
    assert outcome.event is Event.DELIVERED
    assert outcome.media == media
    assert outcome.images == images


@pytest.mark.parametrize("status", ["queued", "processing", "failed", "cancelled", "reviewing"])
def test_a_result_counts_only_when_it_is_delivered(status: str) -> None:
    outcome = read({"status": status, "result": {"images": [{"url": [URL]}]}})
    assert (outcome.media, outcome.images) == ((), 0)


@pytest.mark.parametrize(
    ("cost", "quota"),
    [
        (21250, 21250),
        (0, 0),
        ("21250", 21250),
        (500_000_000_000, 500_000_000_000),
        (500_000_000_001, None),
        (9007199254740992, None),
        (-1, None),
        (1.5, None),
        (True, None),
        (None, None),
        ("1.5", None),
        ("-1", None),
        ("", None),
        ("٣", None),
        ("9" * 17, None),
        ([1], None),
    ],
)
def test_an_amount_is_a_whole_number_of_quota_or_unknown(cost: object, quota: int | None) -> None:
    outcome = read({"status": "completed", "cost": cost, "pre_consumed_cost": cost})
    assert outcome.cost_quota == quota
    assert outcome.pre_consumed_quota == quota


def test_an_early_task_without_a_cost_has_none() -> None:
    assert read({"status": "completed", "progress": ""}) == Outcome(event=Event.DELIVERED, status="completed")


def test_a_wrapped_task_is_read_inside() -> None:
    body = (
        b'{"code":"success","data":{"task_id":"t","status":"succeeded","cost":7,'
        b'"result":{"images":[{"url":"https://cdn.example/1.jpg"}]}}}'
    )
    assert wire.read_task(body, "t") == Outcome(
        event=Event.DELIVERED, status="succeeded", cost_quota=7, media=(Media(url=URL),), images=1
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"status":"queued"}',
        b'{"id":"t","status":"queued"}',
        b'{"data":{"id":"t","status":"queued"}}',
        b'{"task_id":"t","status":"queued","created_at":"2026-06-17T10:30:00Z","progress":"45%"}',
        b'{"task_id":"t","status":"queued","data":"something else"}',
    ],
)
def test_a_task_may_leave_its_id_out_or_name_it_anywhere(body: bytes) -> None:
    assert wire.read_task(body, "t") == Outcome(event=None, status="queued")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'"queued"',
        b"{}",
        b'{"task_id":"t"}',
        b'{"task_id":"t","status":7}',
        b'{"task_id":"t","status":null}',
        b'{"task_id":"another","status":"completed"}',
        b'{"data":{"id":"another","status":"completed"}}',
        b'{"code":"success","data":"t"}',
        b'{"error":{"message":"no such task","code":"task_not_found"}}',
        b'{"task_id":"t","status":"completed","status":"failed"}',
    ],
)
def test_what_is_not_this_task_says_nothing(body: bytes) -> None:
    assert wire.read_task(body, "t") is None


@given(st.binary(max_size=60) | st.text('{}[]":,tasid_ue0e', max_size=30).map(str.encode))
@settings(deadline=None, max_examples=100)
def test_any_answer_is_classified_and_none_is_an_error(body: bytes) -> None:
    wire.read_task(body, "t")
    for status in (200, 400, 429, 500):
        wire.classify_submit(status, body, retry_after=None)
        wire.classify_cancel(status, body, "t", retry_after=None)


# A task outward.

OURS = "task-wg01jxyzabcdefghjkmnpqrstv"
THEIRS = "task-wave20260617a42"
MINE = "https://media.example.com/media/aa.jpg"
MINE_2 = "https://media.example.com/media/bb.jpg"
CREATED, ENDED = 1_781_692_200.5, 1_781_692_230.25  # 2026-06-17T10:30:00.500Z and 10:30:30.250Z


def view(document: bytes | str | None, state: State = State.SUBMITTED, **said: Any) -> wire.View:
    known: dict[str, Any] = {
        "task_id": OURS,
        "model": "gemini-3-pro-image-preview",
        "action": "generate",
        "state": state,
        "created_at": CREATED,
        "upstream_task_id": None if document is None else THEIRS,
        "document": document.encode() if isinstance(document, str) else document,
        "public_url": "https://gw.example.com",
    }
    return wire.View(**known | said)


def render(document: bytes | str | None, state: State = State.SUBMITTED, **said: Any) -> str:
    return wire.render_task(view(document, state, **said)).decode()


def shown(document: bytes | str | None, state: State = State.SUBMITTED, **said: Any) -> dict[str, Any]:
    rendered = json.loads(render(document, state, **said))
    assert isinstance(rendered, dict)
    return rendered


@pytest.mark.parametrize("state", [State.RESERVED, State.WAITING, State.IN_DOUBT, State.FOLLOWING])
def test_before_the_vendor_answered_the_object_is_ours(state: State) -> None:
    assert render(None, state, quote_quota=21250) == (
        '{"task_id":"task-wg01jxyzabcdefghjkmnpqrstv","model":"gemini-3-pro-image-preview","action":"generate",'
        '"status":"queued","created_at":1781692200500,"progress":0,"pre_consumed_cost":21250}'
    )


def test_a_follower_before_the_vendor_answered_costs_nothing() -> None:
    assert shown(None, State.FOLLOWING, quote_quota=21250, is_free=True)["pre_consumed_cost"] == 0


def test_a_task_that_was_cancelled_before_it_reached_the_vendor_costs_nothing() -> None:
    assert render(None, State.CANCELLED, quote_quota=5) == (
        '{"task_id":"task-wg01jxyzabcdefghjkmnpqrstv","model":"gemini-3-pro-image-preview","action":"generate",'
        '"status":"cancelled","created_at":1781692200500,"progress":0,"pre_consumed_cost":5,"cost":0}'
    )


def test_a_cancel_of_ours_is_answered_in_the_vendors_form() -> None:
    assert wire.render_cancelled("task-wg1", 6641) == (
        b'{"task_id":"task-wg1","status":"cancelled","refunded":true,"refunded_quota":6641}'
    )


def test_the_vendors_answer_to_a_cancel_keeps_its_bytes_but_for_ids() -> None:
    said = b'{"task_id": "task-wave20260617a42", "refunded_quota": 1.10, "x": {"id": "task-wave20260617a42"}}'
    ours = b'{"task_id": "task-wg01jxyzabcdefghjkmnpqrstv", "refunded_quota": 1.10, "x": {"id": "%s"}}'
    assert wire.render_answer(view(QUEUED), said) == ours % OURS.encode()


def test_a_task_that_never_reached_the_vendor_fails_at_no_cost() -> None:
    failure = b'{"message":"The upstream was not available.","code":"upstream_unavailable"}'
    assert render(None, State.FAILED, failure=failure, quote_quota=5) == (
        '{"task_id":"task-wg01jxyzabcdefghjkmnpqrstv","model":"gemini-3-pro-image-preview","action":"generate",'
        '"status":"failed","created_at":1781692200500,"progress":0,"pre_consumed_cost":5,"cost":0,'
        '"error":{"message":"The upstream was not available.","code":"upstream_unavailable"}}'
    )


def test_a_task_cancelled_before_it_was_sent_says_so() -> None:
    assert shown(None, State.CANCELLED)["status"] == "cancelled"


DOCUMENTED = (
    '{"task_id":"task-wave20260617a42","model":"gemini-3-pro-image-preview","action":"generate","status":"completed",'
    '"created_at":1781692201000,"completed_at":1781692220000,"progress":"100%","cost":21250,"pre_consumed_cost":21250,'
    '"urls":{ "get" : "https://www.qingbo.dev/v1/tasks/task-wave20260617a42", '
    '"cancel":"https://www.qingbo.dev/v1/tasks/task-wave20260617a42/cancel" },'
    '"result":{"images":[{"url":["https://cdn.example/1.jpg"],"expires_at":1781778620,"width": 1024.0}],"seed":1.10},'
    '"extra":{ "of" : ["task-wave20260617a42", 1.10, 1e2, 9007199254740993], "zh":"\\u4e2d文", "n":null },'
    '"trace":"req/task-wave20260617a42/7"}'
)


def test_a_completed_task_is_the_vendors_own_with_ids_and_links_made_ours() -> None:
    assert render(DOCUMENTED, State.COMPLETED, links={URL: MINE}) == (
        '{"task_id":"task-wg01jxyzabcdefghjkmnpqrstv","model":"gemini-3-pro-image-preview","action":"generate",'
        '"status":"completed","created_at":1781692201000,"completed_at":1781692220000,"progress":"100%","cost":21250,'
        '"pre_consumed_cost":21250,'
        '"urls":{ "get" : "https://gw.example.com/v1/tasks/task-wg01jxyzabcdefghjkmnpqrstv", '
        '"cancel":"https://gw.example.com/v1/tasks/task-wg01jxyzabcdefghjkmnpqrstv/cancel" },'
        '"result":{"images":[{"url":["https://media.example.com/media/aa.jpg"],"expires_at":4102444800,'
        '"width":1024.0}],"seed":1.10},'
        '"extra":{ "of" : ["task-wg01jxyzabcdefghjkmnpqrstv", 1.10, 1e2, 9007199254740993], "zh":"\\u4e2d文", '
        '"n":null },'
        '"trace":"req/task-wg01jxyzabcdefghjkmnpqrstv/7"}'
    )


@pytest.mark.parametrize("state", [State.SUBMITTED, State.DELIVERED, State.FOLLOWING])
def test_until_completed_is_shown_the_result_is_withheld(state: State) -> None:
    task_shown = shown(DOCUMENTED, state, links={URL: MINE})
    assert task_shown["status"] == "processing"
    assert not {"result", "cost", "completed_at"} & task_shown.keys()
    assert task_shown["pre_consumed_cost"] == 21250
    assert task_shown["extra"]["of"][0] == OURS


def test_the_result_of_a_leader_is_withheld_from_a_follower_that_was_cancelled() -> None:
    task_shown = shown(DOCUMENTED, State.CANCELLED, is_free=True, links={URL: MINE})
    assert task_shown["status"] == "cancelled"
    assert not {"result", "cost", "completed_at"} & task_shown.keys()


def simple(status: object, **said: Any) -> str:
    return json.dumps({"task_id": THEIRS, "status": status, "created_at": 1, "progress": 0} | said)


@pytest.mark.parametrize(
    ("said", "state", "expected"),
    [
        ("queued", State.SUBMITTED, "queued"),
        ("running", State.SUBMITTED, "running"),
        ("reviewing", State.SUBMITTED, "reviewing"),
        ("succeeded", State.SUBMITTED, "processing"),
        ("failed", State.SUBMITTED, "processing"),
        ("timeout", State.SUBMITTED, "processing"),
        ("completed", State.DELIVERED, "processing"),
        ("done", State.DELIVERED, "processing"),
        ("completed", State.COMPLETED, "completed"),
        ("succeeded", State.COMPLETED, "succeeded"),
        ("SUCCESS", State.COMPLETED, "SUCCESS"),
        ("processing", State.COMPLETED, "completed"),
        ("failed", State.FAILED, "failed"),
        ("error", State.FAILED, "error"),
        ("timeout", State.FAILED, "timeout"),
        ("queued", State.FAILED, "failed"),
        ("canceled", State.CANCELLED, "canceled"),
        ("queued", State.CANCELLED, "cancelled"),
        ("completed", State.CANCELLED, "cancelled"),
        (7, State.COMPLETED, "completed"),
        (None, State.FAILED, "failed"),
    ],
)
def test_the_vendors_own_word_is_shown_where_it_tells_the_same_story(said: object, state: State, expected: str) -> None:
    assert shown(simple(said), state)["status"] == expected


def test_a_failed_task_keeps_the_vendors_error_and_cost() -> None:
    error = {"message": "too busy", "code": "upstream_unavailable", "retryable": True}
    task_shown = shown(simple("failed", cost=0, error=error), State.FAILED, failure=b'{"code":"other"}')
    assert task_shown["error"] == error
    assert task_shown["cost"] == 0


def test_a_failure_of_ours_is_shown_where_the_vendor_gave_none() -> None:
    task_shown = shown(simple("queued"), State.FAILED, failure=b'{"message":"m","code":"task_failed"}')
    assert task_shown["status"] == "failed"
    assert task_shown["error"] == {"message": "m", "code": "task_failed"}


def test_an_operators_word_is_shown_with_its_cost_over_what_the_vendor_said_before() -> None:
    failure = b'{"message":"m","code":"upstream_unavailable"}'
    said = {"failure": failure, "cost_quota": 21_250}
    for before in (None, simple("queued"), simple("queued", error=None, cost=0)):
        task_shown = shown(before, State.FAILED, **said)
        assert (task_shown["status"], task_shown["cost"]) == ("failed", 21_250)
        assert task_shown["error"] == {"message": "m", "code": "upstream_unavailable"}
        assert shown(before, State.FAILED, is_free=True, **said)["cost"] == 0


# Every generation of the vendor's shapes.


def test_the_early_answer_gets_the_fields_that_are_always_there() -> None:
    assert render('{"code":"success","data":"task-wave20260617a42"}') == (
        '{"code":"success","data":"task-wg01jxyzabcdefghjkmnpqrstv","task_id":"task-wg01jxyzabcdefghjkmnpqrstv",'
        '"model":"gemini-3-pro-image-preview","action":"generate","status":"queued","created_at":1781692200500,'
        '"progress":0}'
    )


def test_a_wrapped_task_is_rewritten_inside_and_out() -> None:
    wrapped = (
        '{"code":"success","data":{"id":"task-wave20260617a42","status":"succeeded","cost":7,'
        '"result":{"images":[{"url":"https://cdn.example/1.jpg","expires_at":5}]}}}'
    )
    assert render(wrapped, State.COMPLETED, links={URL: MINE}) == (
        '{"code":"success","data":{"id":"task-wg01jxyzabcdefghjkmnpqrstv","status":"succeeded","cost":7,'
        '"result":{"images":[{"url":"https://media.example.com/media/aa.jpg","expires_at":4102444800}]}},'
        '"task_id":"task-wg01jxyzabcdefghjkmnpqrstv","model":"gemini-3-pro-image-preview","action":"generate",'
        '"status":"completed","created_at":1781692200500,"progress":100}'
    )
    withheld = shown(wrapped, State.DELIVERED, links={URL: MINE})
    assert withheld["data"] == {"id": OURS, "status": "processing"}
    assert withheld["status"] == "processing"


def test_a_wrapped_tasks_progress_shows_at_the_top_too() -> None:
    document = '{"code":"success","data":{"id":"task-wave20260617a42","status":"running","progress":"45%"}}'
    task_shown = shown(document)
    assert (task_shown["status"], task_shown["progress"]) == ("running", "45%")


def test_a_link_to_the_task_itself_points_at_the_gateway_wherever_it_stands() -> None:
    theirs = "https://www.qingbo.dev/v1/tasks/task-wave20260617a42?x=1"
    assert shown(simple("queued", poll_url=theirs))["poll_url"] == (
        "https://gw.example.com/v1/tasks/task-wg01jxyzabcdefghjkmnpqrstv?x=1"
    )


def test_a_later_task_keeps_its_new_fields() -> None:
    later = simple("processing", object="task", billing_status="pending", price={"usd": "0.0425"}, terminal=False)
    task_shown = shown(later)
    assert task_shown["object"] == "task"
    assert task_shown["billing_status"] == "pending"
    assert task_shown["price"] == {"usd": "0.0425"}
    assert task_shown["terminal"] is False


def test_a_very_early_video_is_rewritten_too() -> None:
    document = simple("success", result={"video_url": URL, "thumbnail_url": URL_2})
    task_shown = shown(document, State.COMPLETED, links={URL: MINE, URL_2: MINE_2})
    assert task_shown["result"] == {"video_url": MINE, "thumbnail_url": MINE_2}


@pytest.mark.parametrize(
    "result", ["[]", "null", '"soon"', '{"images":null}', '{"images":["x",null,{"url":7,"expires_at":5}]}']
)
def test_a_result_of_an_unknown_shape_passes_as_it_is(result: str) -> None:
    document = f'{{"task_id":"t","status":"completed","result":{result}}}'
    assert shown(document, State.COMPLETED)["result"] == json.loads(result)


@pytest.mark.parametrize("urls", ['"none"', "null", "[]"])
def test_urls_of_an_unknown_shape_pass_as_they_are(urls: str) -> None:
    assert shown(f'{{"status":"queued","urls":{urls}}}')["urls"] == json.loads(urls)


# Links.


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("https://www.qingbo.dev/v1/tasks/task-wave20260617a42", f"https://gw.example.com/v1/tasks/{OURS}"),
        (
            "https://api.qingbo.ai/v1/tasks/task-wave20260617a42/cancel",
            f"https://gw.example.com/v1/tasks/{OURS}/cancel",
        ),
        ("http://qingbo.dev/v1/tasks/task-wave20260617a42?wait=5", f"https://gw.example.com/v1/tasks/{OURS}?wait=5"),
        ("https://www.qingbo.dev/docs", "https://gw.example.com/docs"),
        ("/v1/tasks/task-wave20260617a42", f"/v1/tasks/{OURS}"),
        ("none", "none"),
    ],
)
def test_every_url_of_urls_points_at_the_gateway(theirs: str, ours: str) -> None:
    assert shown(simple("queued", urls={"get": theirs}))["urls"] == {"get": ours}


def test_urls_are_ours_even_where_the_vendors_id_is_not_known() -> None:
    document = simple("queued", urls={"get": "https://www.qingbo.dev/v1/tasks/x"})
    assert shown(document, upstream_task_id=None)["urls"] == {"get": "https://gw.example.com/v1/tasks/x"}


def test_a_short_vendor_id_is_replaced_only_where_it_is_the_whole_string() -> None:
    document = '{"task_id":"17","status":"queued","note":"17 of 170","list":["17"],"17":17}'
    assert render(document, upstream_task_id="17", created_at=1.0) == (
        '{"task_id":"task-wg01jxyzabcdefghjkmnpqrstv","status":"queued","note":"17 of 170",'
        '"list":["task-wg01jxyzabcdefghjkmnpqrstv"],"task-wg01jxyzabcdefghjkmnpqrstv":17,'
        '"model":"gemini-3-pro-image-preview","action":"generate","created_at":1000,"progress":0}'
    )


def test_a_result_url_is_rewritten_wherever_and_however_it_is_written() -> None:
    document = (
        '{"status":"completed","result":{"images":[{"url":["https:\\/\\/cdn.example\\/1.jpg"]}]},'
        '"preview":"https://cdn.example/1.jpg","files":["https://cdn.example/1.jpg"]}'
    )
    task_shown = shown(document, State.COMPLETED, links={URL: MINE})
    assert task_shown["result"]["images"][0]["url"] == [MINE]
    assert task_shown["preview"] == MINE
    assert task_shown["files"] == [MINE]


def test_after_the_patience_the_vendors_url_stays_as_it_is() -> None:
    url = "https://cdn.example/task-wave20260617a42/1.jpg?Signature=x"
    document = simple("completed", result={"images": [{"url": [url], "expires_at": 1781778620}]})
    task_shown = shown(document, State.COMPLETED, links={url: None})
    assert task_shown["task_id"] == OURS
    assert task_shown["result"] == {"images": [{"url": [url], "expires_at": 1781778620}]}


def test_only_a_mirrored_result_lasts() -> None:
    images = [
        {"url": [URL], "expires_at": 5},
        {"url": URL_2, "expires_at": 6},
        {"url": [URL, URL_2], "expires_at": 7},
        {"url": [URL, URL_3], "expires_at": 8},
        {"url": [URL]},
        URL,
    ]
    task_shown = shown(
        simple("completed", result={"images": images, "videos": [{"url": URL, "expires_at": 9}], "expires_at": 10}),
        State.COMPLETED,
        links={URL: MINE, URL_3: MINE_2, URL_2: None},
    )
    assert task_shown["result"] == {
        "images": [
            {"url": [MINE], "expires_at": 4102444800},
            {"url": URL_2, "expires_at": 6},
            {"url": [MINE, URL_2], "expires_at": 7},
            {"url": [MINE, MINE_2], "expires_at": 4102444800},
            {"url": [MINE]},
            MINE,
        ],
        "videos": [{"url": MINE, "expires_at": 4102444800}],
        "expires_at": 10,
    }


# A hit or a follower.


@pytest.mark.parametrize(
    ("created", "completed", "created_shown", "completed_shown"),
    [
        ("1781600000123", "1781600009456", "1781692200500", "1781692230250"),
        ("1781600000", "1781600009", "1781692200", "1781692230"),
        ("1781600000.25", "1781600009.5", "1781692200", "1781692230"),
        (
            '"2026-06-01T00:00:00Z"',
            '"2026-06-01T00:00:09+00:00"',
            '"2026-06-17T10:30:00.500Z"',
            '"2026-06-17T10:30:30.250Z"',
        ),
    ],
)
def test_a_hit_shows_its_own_times_in_the_vendors_form(
    created: str, completed: str, created_shown: str, completed_shown: str
) -> None:
    document = (
        f'{{"task_id":"task-wave20260617a42","status":"completed","created_at":{created},"completed_at":{completed},'
        '"cost":21250,"pre_consumed_cost":21250}'
    )
    rendered = render(document, State.COMPLETED, is_free=True, ended_at=ENDED)
    assert rendered.startswith(
        '{"task_id":"task-wg01jxyzabcdefghjkmnpqrstv","status":"completed",'
        f'"created_at":{created_shown},"completed_at":{completed_shown},"cost":0,"pre_consumed_cost":0,'
    )


def test_a_follower_shows_its_own_beginning_while_its_leader_runs() -> None:
    document = simple("processing", created_at=1_781_600_000_123, pre_consumed_cost=21250)
    task_shown = shown(document, State.SUBMITTED, is_free=True)
    assert (task_shown["created_at"], task_shown["pre_consumed_cost"]) == (1_781_692_200_500, 0)
    assert "cost" not in task_shown


def test_a_hit_is_free_also_where_the_task_is_wrapped() -> None:
    document = '{"data":{"task_id":"task-wave20260617a42","status":"completed","created_at":1781600000,"cost":7}}'
    task_shown = shown(document, State.COMPLETED, is_free=True, ended_at=ENDED)
    assert task_shown["data"] == {"task_id": OURS, "status": "completed", "created_at": 1_781_692_200, "cost": 0}


def test_a_hit_shows_no_cost_where_the_vendor_showed_none() -> None:
    task_shown = shown(simple("completed"), State.COMPLETED, is_free=True, ended_at=ENDED)
    assert not {"cost", "pre_consumed_cost", "completed_at"} & task_shown.keys()


def test_who_paid_sees_the_vendors_times_and_cost() -> None:
    document = simple("completed", created_at=7, completed_at=8, cost=9, pre_consumed_cost=10)
    task_shown = shown(document, State.COMPLETED, ended_at=ENDED)
    assert (task_shown["created_at"], task_shown["completed_at"]) == (7, 8)
    assert (task_shown["cost"], task_shown["pre_consumed_cost"]) == (9, 10)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(State))
@settings(deadline=None, max_examples=100)
def test_an_unknown_field_passes_byte_for_byte_in_every_state(value: Any, state: State) -> None:
    raw = json.dumps(value, ensure_ascii=True)
    rendered = render(f'{{"task_id":"{THEIRS}","status":"processing","unknown":{raw}}}', state)
    assert f'"unknown":{raw}' in rendered
    assert json.loads(rendered)["task_id"] == OURS
    assert THEIRS not in rendered


@given(JSON, JSON, JSON, st.sampled_from(State), st.booleans())
@settings(deadline=None, max_examples=100)
def test_no_shape_of_a_known_field_breaks_a_reader(
    result: Any, urls: Any, created: Any, state: State, is_free: bool
) -> None:
    body = simple("completed", result=result, urls=urls, created_at=created, completed_at=created)
    wire.read_task(body.encode(), THEIRS)
    rendered = shown(body, state, is_free=is_free, ended_at=ENDED)
    assert {"task_id", "model", "action", "status", "created_at", "progress"} <= rendered.keys()


# The balance page


@pytest.mark.parametrize(
    ("used", "nanos"),
    [
        ("0", 0),
        ("12", 12_000_000_000),
        ("0.06906", 69_060_000),
        ("12.345678901", 12_345_678_901),
        ('"12.5"', 12_500_000_000),
        ("1e-05", 10_000),
        ("13.281249999768", 13_281_250_000),
        ("123456789.123456789", 123_456_789_123_456_789),
        ("-0.5", -500_000_000),
    ],
)
def test_the_used_amount_is_read_from_its_digits(used, nanos):
    page = f'{{"object":"credit_summary","currency":"USD","total_used_usd":{used},"as_of":"later"}}'
    wallet = wire.read_balance(page.encode())
    assert wallet is not None and wallet.used_nanos == nanos
    wrapped = wire.read_balance(f'{{"code":"success","data":{page}}}'.encode())
    assert wrapped == wallet


@pytest.mark.parametrize(
    "page",
    [
        "",
        "[]",
        "<html>",
        "{}",
        '{"total_used_usd":null}',
        '{"total_used_usd":true}',
        '{"total_used_usd":""}',
        '{"total_used_usd":"much"}',
        '{"total_used_usd":1e300}',
        '{"total_used_usd":NaN}',
        '{"total_used_usd":"1,5"}',
        '{"total_used_usd":5,"currency":"CNY"}',
    ],
)
def test_a_page_without_an_amount_in_dollars_is_no_balance(page):
    assert wire.read_balance(page.encode()) is None
