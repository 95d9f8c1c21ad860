"""The simulator keeps to the vendor's documented shapes, breaks on request, and its bill is exact."""

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from httpx_aiohttp import HttpxAiohttpClient
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from gateway import simulator as simulator_module
from gateway.simulator import Simulator, parse_script, quota_per_image

pytestmark = pytest.mark.asyncio

FLASH_25 = "gemini-2.5-flash-image-preview"
PRO = "gemini-3-pro-image-preview"
FLASH_31 = "gemini-3.1-flash-image-preview"
NOON = 1_800_000_000.0


class HandClock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def simulator(clock: HandClock) -> Simulator:
    return Simulator(base_url="http://vendor.test", clock=clock)


def client_of(simulator: Simulator, key: str = "sk-one") -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(simulator.app),
        base_url="http://vendor.test",
        headers={"Authorization": f"Bearer {key}"},
    )


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(simulator) as client:
        yield client


def body(**changes):
    return {"model": FLASH_25, "prompt": "a lighthouse", **changes}


async def submit(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **changes):
    return (await client.post("/v1/tasks", json=body(**changes), headers=headers)).json()


async def poll(client: httpx.AsyncClient, task_id: str):
    return (await client.get(f"/v1/tasks/{task_id}")).json()


async def finished(client: httpx.AsyncClient, clock: HandClock, **changes):
    """Submit, let the time pass, poll."""
    task_id = (await submit(client, **changes))["task_id"]
    clock.now += 10
    return await poll(client, task_id)


def rule(on: str, /, do: dict, **conditions):
    return {"on": on, "do": do, **conditions}


@contextlib.asynccontextmanager
async def served(simulator: Simulator, http: str = "httptools") -> AsyncIterator[httpx.AsyncClient]:
    """A client of the simulator under a real server on a free loopback port."""
    config = uvicorn.Config(simulator.app, host="127.0.0.1", port=0, http=http, log_level="error")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn sets no event
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    headers = {"Authorization": "Bearer sk-one"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await running


# Tasks and their shapes.


async def test_a_documented_submit_answers_with_exactly_the_documented_fields(client):
    answer = await submit(client)
    task_id = answer.pop("task_id")
    assert answer == {
        "model": "gemini-2.5-flash-image-preview",
        "action": "generate",
        "status": "queued",
        "created_at": 1_800_000_000_000,
        "progress": 0,
    }
    digits, letter, more = task_id[9:19], task_id[19], task_id[20:]
    assert task_id.startswith("task-wave") and digits.isdecimal() and letter.isalpha() and more.isdecimal()


async def test_the_clock_alone_moves_a_task_from_queued_to_processing_to_completed(client, clock):
    task_id = (await submit(client))["task_id"]
    clock.now = NOON + 0.2
    assert (await poll(client, task_id))["status"] == "queued"
    clock.now = NOON + 0.8
    processing = await poll(client, task_id)
    assert (processing["status"], processing["progress"]) == ("processing", 50)
    assert "result" not in processing and "cost" not in processing
    clock.now = NOON + 1.5
    done = await poll(client, task_id)
    assert (done["status"], done["progress"]) == ("completed", 100)
    assert done["completed_at"] == 1_800_000_001_300
    assert done["cost"] == 6640
    [image] = done["result"]["images"]
    assert isinstance(image["url"], list)
    assert image["expires_at"] == 1_800_086_401


async def test_the_early_generation_speaks_in_seconds_synonyms_and_plain_strings(clock):
    simulator = Simulator(base_url="http://vendor.test", clock=clock, generation="early")
    async with client_of(simulator) as client:
        answer = await submit(client)
        assert answer["code"] == "success" and set(answer) == {"code", "data"}
        task_id = answer["data"]
        assert task_id.startswith("task-wave")
        assert (await poll(client, task_id))["progress"] == ""
        clock.now = NOON + 0.75
        running = await poll(client, task_id)
        assert (running["status"], running["progress"]) == ("running", "45%")
        clock.now = NOON + 2
        done = await poll(client, task_id)
    assert done["status"] == "success"
    assert done["created_at"] == 1_800_000_000
    assert not {"cost", "pre_consumed_cost", "urls"} & set(done)
    [image] = done["result"]["images"]
    assert image["url"].startswith("http://vendor.test/files/")
    assert image["expires_at"] == 1_800_086_401


async def test_the_later_generation_has_ulids_urls_iso_times_and_a_settled_bill(clock):
    simulator = Simulator(base_url="http://vendor.test", clock=clock, generation="later")
    async with client_of(simulator) as client:
        answer = await submit(client, n=2)
        task_id = answer["task_id"]
        assert task_id.startswith("task_") and len(task_id) == 31
        assert answer["pre_consumed_cost"] == 13280
        assert answer["created_at"] == "2027-01-15T08:00:00.000Z"
        assert answer["urls"] == {
            "get": f"http://vendor.test/v1/tasks/{task_id}",
            "cancel": f"http://vendor.test/v1/tasks/{task_id}/cancel",
        }
        clock.now += 10
        raw = await client.get(f"/v1/tasks/{task_id}")
    done = raw.json()
    assert (done["progress"], done["billing_status"], done["cost"]) == ("100%", "settled", 13280)
    assert b'"weight":1.10' in raw.content


async def test_a_rule_chooses_the_generation_of_one_task(simulator, client, clock):
    simulator.set_script([rule("submit", {"generation": "later"})])
    assert (await submit(client))["task_id"].startswith("task_")
    assert (await submit(client))["task_id"].startswith("task-wave")


async def test_a_wait_preference_holds_the_answer_until_the_task_is_terminal():
    simulator = Simulator(queue_s=0.05, work_s=0.1)
    async with client_of(simulator) as client:
        assert (await submit(client, {"Prefer": "wait=5"}))["status"] == "completed"
        task_id = (await submit(client))["task_id"]
        held = await client.get(f"/v1/tasks/{task_id}", headers={"Prefer": "wait=5"})
    assert held.json()["status"] == "completed"


async def test_past_its_wait_a_poll_answers_the_current_state(client):
    task_id = (await submit(client))["task_id"]
    held = await client.get(f"/v1/tasks/{task_id}", headers={"Prefer": "wait=1"})
    assert held.json()["status"] == "queued"


async def test_an_unknown_task_is_404(client):
    answer = await client.get("/v1/tasks/task-wave1a2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "task_not_found")
    assert (await client.post("/v1/tasks/task-wave1a2/cancel")).status_code == 404


async def test_a_task_is_visible_to_every_key_of_the_account(simulator, client):
    task_id = (await submit(client))["task_id"]
    async with client_of(simulator, "sk-two") as other:
        assert (await poll(other, task_id))["task_id"] == task_id


# What is refused.


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"model": None}, 400, "invalid_request", "model"),
        ({"prompt": None}, 400, "invalid_request", "prompt"),
        ({"prompt": "  "}, 400, "invalid_request", "prompt"),
        ({"n": "two"}, 400, "invalid_request", "n"),
        ({"n": True}, 400, "invalid_request", "n"),
        ({"n": 0}, 400, "capability_violation", "n"),
        ({"action": "paint"}, 400, "capability_violation", "action"),
        ({"aspect_ratio": "1:8"}, 400, "capability_violation", "aspect_ratio"),
        ({"aspect_ratio": "auto"}, 400, "capability_violation", "aspect_ratio"),
        ({"resolution": "2K"}, 400, "capability_violation", "resolution"),
        ({"model": PRO, "resolution": "0.5k"}, 400, "capability_violation", "resolution"),
        ({"action": "edit"}, 400, "capability_violation", "image_urls"),
        ({"action": "image2image", "image_urls": []}, 400, "capability_violation", "image_urls"),
        ({"action": "reference"}, 400, "capability_violation", "image_urls"),
        ({"action": "search_grounded"}, 400, "capability_violation", "action"),
        ({"google_search": True}, 400, "capability_violation", "google_search"),
        ({"google_image_search": True}, 400, "capability_violation", "google_search"),
        ({"model": "gemini-3-pro-image"}, 500, "price_not_configured", None),
    ],
)
async def test_a_bad_parameter_is_refused_by_name_and_creates_nothing(simulator, client, changes, status, code, param):
    answer = await client.post("/v1/tasks", json=body(**changes))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error.get("param")) == (status, code, param)
    assert simulator.bill()["tasks"] == 0


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"prompt": "\xff"}'])
async def test_a_body_that_is_no_json_object_is_400(client, content):
    answer = await client.post("/v1/tasks", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": FLASH_31, "resolution": "0.5k", "aspect_ratio": "8:1"},
        {"model": FLASH_31, "action": "search_grounded"},
        {"model": FLASH_31, "google_search": True},
        {"model": PRO, "resolution": "4k"},
        {"action": "edit", "image_urls": ["https://pictures.test/1.png"]},
        {"seed": 9007199254740993, "negative_prompt": "rain", "mask_url": None},
        {"model": "imagen-4.0"},
    ],
)
async def test_what_the_model_can_do_is_accepted(client, changes):
    assert (await client.post("/v1/tasks", json=body(**changes))).status_code == 200


async def test_an_unknown_or_missing_key_is_401_everywhere(clock):
    simulator = Simulator(clock=clock, keys={"sk-good"})
    async with client_of(simulator, "sk-bad") as client:
        answers = [
            await client.post("/v1/tasks", json=body()),
            await client.get("/v1/tasks/x"),
            await client.post("/v1/tasks/x/cancel"),
            await client.get("/v1/models"),
            await client.get("/v1/dashboard/billing/balance"),
            await client.post("/v1/tasks", json=body(), headers={"Authorization": ""}),
        ]
    assert {answer.status_code for answer in answers} == {401}
    assert answers[0].json()["error"]["code"] == "invalid_api_key"
    async with client_of(simulator, "sk-good") as client:
        assert (await client.post("/v1/tasks", json=body())).status_code == 200


async def test_a_wallet_that_runs_dry_is_402_and_a_refund_fills_it_again(clock):
    simulator = Simulator(clock=clock, wallet_usd="0.05")
    async with client_of(simulator) as client:
        first = await submit(client, model=PRO)
        refused = await client.post("/v1/tasks", json=body(model=PRO))
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "insufficient_balance")
        await client.post(f"/v1/tasks/{first['task_id']}/cancel")
        assert (await client.post("/v1/tasks", json=body(model=PRO))).status_code == 200


async def test_a_body_too_large_and_a_task_too_many_are_refused(client, monkeypatch):
    monkeypatch.setattr(simulator_module, "MAX_BODY_BYTES", 1000)
    assert (await client.post("/v1/tasks", content=b" " * 1001)).status_code == 413
    monkeypatch.setattr(simulator_module, "MAX_TASKS", 1)
    answers = [await client.post("/v1/tasks", json=body()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 503]


# Money.


@pytest.mark.parametrize(
    ("model", "down", "up"),
    [
        ("gemini-3-pro-image-preview-official", 56950, 56950),
        ("gemini-3-pro-image-preview", 21250, 21250),
        ("gemini-3.1-flash-image-preview-official", 28475, 28475),
        ("gemini-3.1-flash-image-preview", 15937, 15938),
        ("gemini-2.5-flash-image-preview-official", 16575, 16575),
        ("gemini-2.5-flash-image-preview", 6640, 6641),
        ("gpt-image-2", 3187, 3188),
        ("gpt-image-1.5-official", 45220, 45220),
        ("gpt-image-1-official", 56780, 56780),
        ("imagen-4.0", 21250, 21250),
        ("doubao-seedream-5.0-lite", 14875, 14875),
        ("doubao-seedream-4.5", 14875, 14875),
        ("doubao-seedream-4.0", 11900, 11900),
        ("wan2.7-image", 11475, 11475),
        ("z-image-turbo", 5312, 5313),
        ("qwen-image-2.0-pro", 26562, 26563),
        ("qwen-image-2.0", 10625, 10625),
        ("gemini-3-pro-image-rev", 16875, 16875),
    ],
)
async def test_each_model_is_billed_its_listed_price_in_whole_quota(clock, model, down, up):
    assert quota_per_image(model, "1K", "down") == down
    for simulator, each in ((Simulator(clock=clock), down), (Simulator(clock=clock, rounding="up"), up)):
        async with client_of(simulator) as client:
            done = await finished(client, clock, model=model, n=3)
        assert done["cost"] == simulator.bill()["quota"] == 3 * each


async def test_a_model_may_be_priced_per_resolution(client, clock):
    model = "gemini-3-pro-image-rev"
    assert (await finished(client, clock, model=model, resolution="2k"))["cost"] == 16875
    assert (await finished(client, clock, model=model, resolution="4k"))["cost"] == 22500


async def test_official_fallback_bills_the_standard_price_unless_the_channel_was_switched(simulator, client, clock):
    assert (await finished(client, clock, official_fallback=True))["cost"] == 6640
    simulator.set_script([rule("submit", {"fallback": True}, times=None)])
    assert (await finished(client, clock, official_fallback=True, n=2))["cost"] == 33150
    assert (await finished(client, clock))["cost"] == 6640
    assert (await finished(client, clock, model=f"{FLASH_25}-official", official_fallback=True))["cost"] == 16575


async def test_the_bill_counts_terminal_tasks_only_and_names_each(simulator, client, clock):
    first = await submit(client, {"Idempotency-Key": "k1"}, n=2)
    clock.now += 10
    second = await submit(client, model=PRO, prompt="波浪")
    bill = simulator.bill()
    assert bill == {
        "quota": 13280,
        "nanos": 26_560_000,
        "tasks": 2,
        "open": 1,
        "by_task": {
            first["task_id"]: {
                "model": "gemini-2.5-flash-image-preview",
                "n": 2,
                "delivered": 2,
                "status": "completed",
                "quota": 13280,
                "prompt": "a lighthouse",
                "idempotency_key": "k1",
            },
            second["task_id"]: {
                "model": "gemini-3-pro-image-preview",
                "n": 1,
                "delivered": 0,
                "status": "queued",
                "quota": 0,
                "prompt": "波浪",
                "idempotency_key": None,
            },
        },
        "by_model": {
            "gemini-2.5-flash-image-preview": {"tasks": 1, "images": 2, "quota": 13280},
            "gemini-3-pro-image-preview": {"tasks": 1, "images": 0, "quota": 0},
        },
    }
    assert (await client.get("/sim/bill")).json() == bill


async def test_the_billing_pages_tell_what_is_used_and_held(client, clock):
    await finished(client, clock, model=PRO, n=2)
    await submit(client, model=PRO)
    balance = (await client.get("/v1/dashboard/billing/balance")).json()
    assert balance == {
        "object": "credit_summary",
        "currency": "USD",
        "total_granted_usd": 1000,
        "total_used_usd": 0.1275,
        "total_available_usd": 999.8725,
        "as_of": "2027-01-15T08:00:10.000Z",
    }
    usage = await client.get("/v1/dashboard/billing/usage?start_date=2020-01-01")
    assert usage.json() == {"object": "list", "total_usage": 12.75}
    assert (await client.get("/v1/dashboard/billing/subscription")).json()["hard_limit_usd"] == 1000
    assert (await client.get("/v1/dashboard/billing/other")).status_code == 404


async def test_the_catalogue_lists_prices_but_not_in_the_early_generation(client, clock):
    models = (await client.get("/v1/models")).json()["data"]
    assert len(models) == 18
    raw = await client.get("/v1/models/gemini-3-pro-image-rev")
    prices = raw.json()["price_config"]["image_prices"]
    assert prices == {"default": 0.03375, "1K": 0.03375, "2K": 0.03375, "4K": 0.045}
    assert (await client.get("/v1/models/none")).status_code == 404
    async with client_of(Simulator(clock=clock, generation="early")) as early:
        assert "price_config" not in (await early.get(f"/v1/models/{PRO}")).json()


# Idempotency and cancel.


async def test_the_same_idempotency_key_returns_the_first_task_whatever_the_body(simulator, client, clock):
    first = await submit(client, {"Idempotency-Key": "k"})
    again = await submit(client, {"Idempotency-Key": "k"}, model=PRO, prompt="another")
    assert again == first
    clock.now += 10
    assert simulator.bill()["quota"] == 6640


async def test_an_idempotency_key_is_forgotten_after_24_hours(simulator, client, clock):
    first = await submit(client, {"Idempotency-Key": "k"})
    clock.now = NOON + 24 * 3600 - 1
    assert (await submit(client, {"Idempotency-Key": "k"}))["task_id"] == first["task_id"]
    clock.now = NOON + 24 * 3600
    assert (await submit(client, {"Idempotency-Key": "k"}))["task_id"] != first["task_id"]


async def test_an_idempotency_key_belongs_to_one_api_key(simulator, client):
    first = await submit(client, {"Idempotency-Key": "k"})
    async with client_of(simulator, "sk-two") as other:
        assert (await submit(other, {"Idempotency-Key": "k"}))["task_id"] != first["task_id"]


async def test_a_refused_submit_does_not_use_up_its_idempotency_key(client):
    refused = await client.post("/v1/tasks", json=body(n=0), headers={"Idempotency-Key": "k"})
    assert refused.status_code == 400
    assert "task_id" in await submit(client, {"Idempotency-Key": "k"})


async def test_a_vendor_that_ignores_idempotency_keys_can_be_played(clock):
    simulator = Simulator(clock=clock, idempotency=False)
    async with client_of(simulator) as client:
        ids = {(await submit(client, {"Idempotency-Key": "k"}))["task_id"] for _ in range(2)}
    assert len(ids) == 2


async def test_a_queued_task_can_be_cancelled_and_is_refunded_in_full(simulator, client, clock):
    task_id = (await submit(client, n=2))["task_id"]
    answer = await client.post(f"/v1/tasks/{task_id}/cancel")
    assert answer.json() == {"task_id": task_id, "status": "cancelled", "refunded": True, "refunded_quota": 13280}
    clock.now += 10
    done = await poll(client, task_id)
    assert (done["status"], done["cost"]) == ("cancelled", 0)
    assert simulator.bill()["quota"] == 0
    available = (await client.get("/v1/dashboard/billing/balance")).json()["total_available_usd"]
    assert available == 1000


@pytest.mark.parametrize("later_s", [0.5, 5])
async def test_a_task_past_the_queue_cannot_be_cancelled(client, clock, later_s):
    task_id = (await submit(client))["task_id"]
    clock.now += later_s
    answer = await client.post(f"/v1/tasks/{task_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "task_not_cancellable")


async def test_a_pretended_cancel_answers_well_and_the_task_goes_on(simulator, client, clock):
    simulator.set_script([rule("cancel", {"pretend": True})])
    task_id = (await submit(client))["task_id"]
    assert (await client.post(f"/v1/tasks/{task_id}/cancel")).json()["status"] == "cancelled"
    clock.now += 10
    assert (await poll(client, task_id))["status"] == "completed"
    assert simulator.bill()["quota"] == 6640


# Pictures.


def image_url(done: dict, index: int = 0) -> str:
    return done["result"]["images"][index]["url"][0]


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (512, 512)),
        ({"aspect_ratio": "16:9"}, (512, 288)),
        ({"model": PRO, "aspect_ratio": "9:16", "resolution": "2K"}, (432, 768)),
        ({"model": FLASH_31, "aspect_ratio": "8:1", "resolution": "4K"}, (1024, 128)),
    ],
)
async def test_an_image_is_a_jpeg_of_the_asked_shape(client, clock, changes, size):
    done = await finished(client, clock, **changes)
    answer = await client.get(image_url(done))
    assert answer.headers["content-type"] == "image/jpeg"
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, picture.size) == ("JPEG", size)


async def test_pictures_repeat_for_a_fixed_seed_and_differ_by_prompt_seed_and_index(client, clock):
    async def pictures(**changes) -> list[bytes]:
        done = await finished(client, clock, **changes)
        count = len(done["result"]["images"])
        return [(await client.get(image_url(done, index))).content for index in range(count)]

    first, second = await pictures(seed=7, n=2)
    assert [first, second] == await pictures(seed=7, n=2)
    others = [
        *await pictures(seed=8),
        *await pictures(seed=7, prompt="海边的灯塔，暴风雨 🌊"),
        *await pictures(),
        *await pictures(),
    ]
    assert len({first, second, *others}) == 6


async def test_an_image_url_is_dead_after_its_time_and_with_another_signature(simulator, client, clock):
    url = image_url(await finished(client, clock))
    assert (await client.get(url[:-1] + "x")).status_code == 403
    assert (await client.get(url.replace("/0.jpg", "/1.jpg"))).status_code == 403
    assert (await client.get(url.split("?")[0])).status_code == 403
    clock.now = NOON + 86400
    assert (await client.get(url)).status_code == 200
    clock.now = NOON + 86402
    assert (await client.get(url)).status_code == 403


async def test_an_image_needs_no_key_and_one_that_is_sent_is_counted(simulator, client, clock):
    url = image_url(await finished(client, clock))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(simulator.app)) as stranger:
        assert (await stranger.get(url)).status_code == 200
    assert simulator.requests.counts["media_with_auth"] == 0
    assert (await client.get(url)).status_code == 200
    assert (simulator.requests.counts["media"], simulator.requests.counts["media_with_auth"]) == (2, 1)


async def test_urls_follow_the_request_when_no_base_url_is_given(clock):
    async with client_of(Simulator(clock=clock)) as client:
        done = await finished(client, clock)
        assert image_url(done).startswith("http://vendor.test/files/")


# Records and control.


async def test_a_submit_is_recorded_byte_for_byte_without_its_key(simulator, client):
    raw = '{ "model":"gemini-2.5-flash-image-preview", "prompt":"波浪", "seed":9007199254740993, "x":1.10 }'.encode()
    await client.post("/v1/tasks", content=raw, headers={"Idempotency-Key": "k", "Prefer": "wait=0"})
    [record] = simulator.requests.submits
    assert record.body == raw
    assert (record.at, record.idempotency_key, record.headers["prefer"]) == (NOON, "k", "wait=0")
    assert record.authorization_sha256 == hashlib.sha256(b"Bearer sk-one").hexdigest()
    page = await client.get("/sim/requests")
    assert "sk-one" not in page.text
    assert page.json()["counts"]["submit"] == 1
    assert page.json()["submits"][0]["body"] == raw.decode()


async def test_the_oldest_records_are_forgotten_first(simulator, client, monkeypatch):
    monkeypatch.setattr(simulator_module, "MAX_RECORDS", 2)
    for prompt in ("one", "two", "three"):
        await submit(client, prompt=prompt)
    assert [json.loads(one.body)["prompt"] for one in simulator.requests.submits] == ["two", "three"]
    assert simulator.requests.counts["submit"] == 3


async def test_the_script_and_a_reset_come_over_http(simulator, client):
    answer = await client.post("/sim/script", json=[rule("submit", {"status": 503})])
    assert answer.json() == {"rules": 1}
    bad = await client.post("/sim/script", json=[rule("submit", {}), {"on": "submit"}])
    assert bad.status_code == 400 and "rule 1" in bad.json()["error"]["message"]
    assert (await client.post("/sim/script", content=b"{")).status_code == 400
    assert (await client.post("/v1/tasks", json=body())).status_code == 503
    await submit(client)
    await client.post("/sim/reset")
    assert simulator.bill()["tasks"] == 0
    assert simulator.requests.counts["submit"] == 0


async def test_ids_repeat_for_the_same_seed_of_the_simulator(clock):
    ids = []
    for seed in (1, 1, 2):
        async with client_of(Simulator(clock=clock, seed=seed)) as client:
            ids.append((await submit(client))["task_id"])
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({}, "list of rules"),
        (["x"], "rule 0"),
        ([{"on": "submit", "do": {}}, {"on": "sbmit", "do": {}}], "rule 1"),
        ([{"do": {}}], "rule 0"),
        ([{"on": "poll", "do": {}, "time": 1}], "time"),
        ([{"on": "poll", "do": {"dealy_s": 1}}], "dealy_s"),
        ([{"on": "poll", "do": {"delay_s": "1"}}], "delay_s"),
        ([{"on": "poll", "do": {"delay_s": True}}], "delay_s"),
        ([{"on": "poll", "do": {}, "times": -1}], "times"),
        ([{"on": "submit", "do": {"status": 200}}], "status"),
        ([{"on": "submit", "do": {"cost": -1}}], "cost"),
        ([{"on": "submit", "do": {"cost": 1.5}}], "cost"),
        ([{"on": "submit", "do": {"generation": "next"}}], "generation"),
        ([{"on": "poll", "do": {"outcome": "failed"}}], "'outcome' means nothing on poll"),
        ([{"on": "any", "do": {"accept_and_drop": True}}], "'accept_and_drop' means nothing on any"),
        ([{"on": "submit", "do": {"pretend": True}}], "'pretend' means nothing on submit"),
        ([{"on": "submit", "do": {"retry_after": 3}}], "'retry_after' needs status"),
        ([{"on": "submit", "do": {"accept": True}}], "'accept' needs answer or garbage or status"),
        ([{"on": "submit", "do": {"drop": True, "status": 500}}], "drop and status cannot go together"),
    ],
)
async def test_a_wrong_script_is_refused_with_the_place_of_the_mistake(script, says):
    with pytest.raises(ValueError, match=says):
        parse_script(script)


async def test_run_refuses_a_wrong_script_before_it_serves(tmp_path: Path):
    path = tmp_path / "script.json"
    path.write_text('[{"on": "submit", "do": {"oops": 1}}]', encoding="utf-8")
    with pytest.raises(ValueError, match="rule 0"):
        simulator_module.run(host="127.0.0.1", port=0, script=path)


# Faults.


async def test_a_rule_skips_counts_and_looks_at_model_and_prompt(simulator, client):
    simulator.set_script(
        [
            rule("submit", {"status": 500}, model="*-pro-*"),
            rule("submit", {"status": 501}, prompt="storm", skip=1, times=2),
            rule("poll", {"status": 502}, times=None),
            rule("any", {"status": 503}, model="imagen*", times=1),
        ]
    )

    async def status(**changes) -> int:
        return (await client.post("/v1/tasks", json=body(**changes))).status_code

    assert [await status(model=PRO), await status(model=PRO)] == [500, 200]
    assert [await status(prompt="a storm") for _ in range(4)] == [200, 501, 501, 200]
    assert [await status(model="imagen-4.0") for _ in range(2)] == [503, 200]
    assert {(await client.get("/v1/tasks/x")).status_code for _ in range(3)} == {502}


async def test_a_scripted_error_carries_its_fields_and_headers(simulator, client):
    window = {"window": "day", "used": 10, "cap": 10, "reset_at": 1_800_003_600}
    fault = {"status": 429, "retry_after": 3, "code": "quota_window_exceeded", "message": "no", **window}
    simulator.set_script([rule("submit", {**fault, "extra": {"hint": 1.5}})])
    answer = await client.post("/v1/tasks", json=body())
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json() == {"error": {"message": "no", "code": "quota_window_exceeded", **window, "hint": 1.5}}
    assert simulator.bill()["tasks"] == 0


async def test_a_scripted_redirect_names_its_place(simulator, client):
    simulator.set_script([rule("balance", {"status": 307, "location": "http://elsewhere.test/"})])
    answer = await client.get("/v1/dashboard/billing/balance")
    assert (answer.status_code, answer.headers["location"]) == (307, "http://elsewhere.test/")


async def test_garbage_is_no_json_at_any_status(simulator, client):
    garbage: list[dict] = [{"garbage": True}, {"garbage": "html"}, {"garbage": "html", "status": 502}]
    simulator.set_script([rule("models", do) for do in garbage])
    answers = [await client.get("/v1/models") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 502]
    assert [answer.headers["content-type"] for answer in answers][1:] == ["text/html; charset=utf-8"] * 2
    for answer in answers:
        with pytest.raises(ValueError):
            answer.json()


async def test_a_scripted_answer_creates_a_task_only_with_accept(simulator, client):
    simulator.set_script(
        [
            rule("submit", {"answer": {"ok": 1}}),
            rule("submit", {"answer": None, "accept": True}),
            rule("submit", {"status": 502, "accept": True}),
        ]
    )
    answers = [await client.post("/v1/tasks", json=body()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 502]
    assert [answers[0].json(), answers[1].json()] == [{"ok": 1}, None]
    assert simulator.bill()["tasks"] == 2


async def test_fields_are_merged_into_and_taken_out_of_the_true_answer(simulator, client, clock):
    simulator.set_script([rule("poll", {"merge": {"status": "reviewing"}, "without": ["cost"]})])
    done = await finished(client, clock)
    assert done["status"] == "reviewing" and "cost" not in done
    assert (await poll(client, done["task_id"]))["cost"] == 6640


@pytest.mark.parametrize(
    ("place", "read"),
    [
        ("task_id", lambda answer: answer["task_id"]),
        ("id", lambda answer: answer["id"]),
        ("data", lambda answer: answer["data"]),
        ("data.task_id", lambda answer: answer["data"]["task_id"]),
        ("data.id", lambda answer: answer["data"]["id"]),
    ],
)
async def test_the_id_can_be_at_every_place_seen(simulator, client, place, read):
    simulator.set_script([rule("submit", {"id_at": place})])
    assert (await poll(client, read(await submit(client))))["status"] == "queued"


async def test_a_failed_task_tells_why_and_is_refunded(simulator, client, clock):
    error = {"message": "busy", "code": "upstream_rate_limited"}
    simulator.set_script(
        [
            rule("submit", {"outcome": "failed", "error": error}),
            rule("submit", {"outcome": "failed"}),
            rule("submit", {"outcome": "failed", "generation": "early"}),
            rule("submit", {"outcome": "cancelled"}),
        ]
    )
    done = await finished(client, clock)
    assert (done["status"], done["error"], done["cost"]) == ("failed", error, 0)
    assert "result" not in done
    assert (await finished(client, clock))["error"]["code"] == "upstream_unavailable"
    early = (await submit(client))["data"]
    clock.now += 10
    assert (await poll(client, early))["status"] == "error"
    assert (await finished(client, clock))["status"] == "cancelled"
    assert simulator.bill()["quota"] == 0


async def test_a_partial_delivery_bills_what_was_delivered(simulator, client, clock):
    simulator.set_script([rule("submit", {"deliver": 1})])
    done = await finished(client, clock, n=3)
    assert (len(done["result"]["images"]), done["cost"], simulator.bill()["quota"]) == (1, 6640, 6640)


async def test_a_scripted_cost_is_what_the_bill_says_even_for_a_failed_task(simulator, client, clock):
    simulator.set_script([rule("submit", {"cost": 99999}), rule("submit", {"cost": 5, "outcome": "failed"})])
    assert (await finished(client, clock))["cost"] == 99999
    assert (await finished(client, clock))["cost"] == 5
    assert simulator.bill()["quota"] == 100004


async def test_a_task_can_complete_without_an_image(simulator, client, clock):
    simulator.set_script([rule("submit", {"no_result": True}), rule("submit", {"no_result": True, "cost": 6640})])
    done = await finished(client, clock)
    assert (done["status"], done["result"], done["cost"]) == ("completed", {"images": []}, 0)
    assert (await finished(client, clock))["cost"] == 6640


async def test_statuses_are_shown_in_the_scripted_order_and_the_first_terminal_one_is_the_truth(simulator, client):
    shown = ["processing", "queued", "succeeded", "processing", "reviewing"]
    simulator.set_script([rule("submit", {"statuses": shown})])
    task_id = (await submit(client))["task_id"]
    polls = [await poll(client, task_id) for _ in range(6)]
    assert [one["status"] for one in polls] == [*shown, "reviewing"]
    assert [("result" in one, one.get("cost")) for one in polls[1:4]] == [(False, None), (True, 6640), (False, None)]
    assert simulator.bill()["quota"] == 6640


async def test_a_cancelled_task_leaves_its_list_of_statuses_so_that_it_shows_what_it_bills(simulator, client):
    simulator.set_script([rule("submit", {"statuses": ["processing", "completed"]})])
    task_id = (await submit(client))["task_id"]
    assert (await poll(client, task_id))["status"] == "processing"
    await client.post(f"/v1/tasks/{task_id}/cancel")
    done = await poll(client, task_id)
    assert (done["status"], done["cost"], simulator.bill()["quota"]) == ("cancelled", 0, 0)


async def test_a_list_of_statuses_that_fails_first_is_a_failed_task(simulator, client, clock):
    simulator.set_script([rule("submit", {"statuses": ["timeout", "completed"]})])
    done = await finished(client, clock)
    assert (done["status"], done["cost"], simulator.bill()["quota"]) == ("timeout", 0, 0)


async def test_a_rule_sets_the_pace_of_one_task(simulator, client, clock):
    simulator.set_script([rule("submit", {"queue_s": 5, "work_s": 5})])
    task_id = (await submit(client))["task_id"]
    states = []
    for later_s in (4, 9, 10):
        clock.now = NOON + later_s
        states.append((await poll(client, task_id))["status"])
    assert states == ["queued", "processing", "completed"]


@pytest.mark.parametrize(
    ("kind", "media_type", "starts"),
    [
        ("html", "text/html; charset=utf-8", b"<!doctype"),
        ("html_as_jpeg", "image/jpeg", b"<!doctype"),
        ("empty", "image/jpeg", b""),
        ("png", "image/png", b"\x89PNG"),
        ("cut", "image/jpeg", b"\xff\xd8\xff"),
        ("wrong_type", "text/plain; charset=utf-8", b"\xff\xd8\xff"),
    ],
)
async def test_media_can_be_something_else(simulator, client, clock, kind, media_type, starts):
    simulator.set_script([rule("media", {"media": kind})])
    url = image_url(await finished(client, clock, seed=3))
    spoilt, whole = await client.get(url), await client.get(url)
    assert (spoilt.status_code, spoilt.headers["content-type"]) == (200, media_type)
    assert spoilt.content[: len(starts) or None] == starts
    assert whole.content.endswith(b"\xff\xd9")
    if kind == "cut":
        assert whole.content.startswith(spoilt.content) and not spoilt.content.endswith(b"\xff\xd9")


async def test_media_can_redirect_or_fail(simulator, client, clock):
    simulator.set_script([rule("media", {"redirect": "http://10.0.0.1/"}), rule("media", {"status": 503})])
    url = image_url(await finished(client, clock))
    redirected = await client.get(url)
    assert (redirected.status_code, redirected.headers["location"]) == (302, "http://10.0.0.1/")
    assert (await client.get(url)).status_code == 503


async def test_a_gzip_bomb_is_small_on_the_wire_and_vast_unpacked(simulator, client, clock):
    simulator.set_script([rule("media", {"media": "gzip_bomb"})])
    url = image_url(await finished(client, clock))
    async with client.stream("GET", url) as answer:
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert len(raw) < 200_000
    with gzip.open(io.BytesIO(raw)) as unpacked:
        assert unpacked.seek(104_857_604) == 104_857_604


# Callbacks.


def receiver(hears: list[dict], status: int = 200) -> httpx.ASGITransport:
    async def app(scope, receive, send):
        hears.append(json.loads(await Request(scope, receive).body()))
        await Response(status_code=status)(scope, receive, send)

    return httpx.ASGITransport(app)


async def test_a_callback_carries_the_wrapped_task_once_it_is_terminal(clock):
    hears: list[dict] = []
    simulator = Simulator(base_url="http://vendor.test", clock=clock, callback_transport=receiver(hears))
    async with client_of(simulator) as client:
        task_id = (await submit(client, callback_url="http://gateway.test/hint"))["task_id"]
        assert await simulator.send_callbacks() == 0
        clock.now += 10
        assert await simulator.send_callbacks() == 1
        assert hears == [{"event": "task.completed", "data": await poll(client, task_id)}]
    assert await simulator.send_callbacks() == 0
    assert simulator.requests.counts["callback"] == 1


async def test_callbacks_are_sent_without_being_asked_for():
    hears: list[dict] = []
    simulator = Simulator(queue_s=0, work_s=0.05, callback_transport=receiver(hears))
    async with client_of(simulator) as client:
        await submit(client, callback_url="http://gateway.test/hint")
        async with asyncio.timeout(5):
            while not hears:  # noqa: ASYNC110 - what is tested is that nobody has to tell
                await asyncio.sleep(0.01)
    assert hears[0]["data"]["status"] == "completed"


async def test_callbacks_obey_the_wanted_events_and_the_scripted_count(clock):
    hears: list[dict] = []
    simulator = Simulator(clock=clock, callback_transport=receiver(hears))
    simulator.set_script(
        [
            rule("submit", {"callback_times": 2}, prompt="twice"),
            rule("submit", {"callback_times": 0}, prompt="never"),
        ]
    )
    async with client_of(simulator) as client:
        url = "http://gateway.test/hint"
        await submit(client, callback_url=url, callback_events=["failed", "cancelled"])
        await submit(client, callback_url=url, callback_events=["running", "succeeded"], prompt="twice")
        await submit(client, callback_url=url, prompt="never")
    clock.now += 10
    assert await simulator.send_callbacks() == 3
    assert [one["event"] for one in hears] == ["task.completed"] * 2


async def test_a_callback_that_cannot_be_sent_is_counted_and_forgotten(clock):
    simulator = Simulator(clock=clock)
    async with client_of(simulator) as client:
        for url in ("http://127.0.0.1:1/", "not a url", "http://[/"):
            await submit(client, callback_url=url)
    clock.now += 10
    assert await simulator.send_callbacks() == 3
    assert simulator.requests.counts["callback_failed"] == 3


# On a real server: connections that end badly.


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_dropped_submit_closes_the_connection_and_an_accepted_one_is_still_billed(clock, http, caplog):
    simulator = Simulator(clock=clock)
    simulator.set_script([rule("submit", {"drop": True}), rule("submit", {"accept_and_drop": True})])
    async with served(simulator, http) as client:
        for tasks in (0, 1):
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await client.post("/v1/tasks", json=body(), headers={"Idempotency-Key": "k"})
            assert simulator.bill()["tasks"] == tasks
        assert (await submit(client, {"Idempotency-Key": "k"}))["status"] == "queued"
        clock.now += 10
        assert simulator.bill()["quota"] == 6640
    assert not caplog.records


async def test_a_dropped_poll_and_cancel_close_the_connection(clock):
    simulator = Simulator(clock=clock)
    simulator.set_script([rule("poll", {"drop": True}), rule("cancel", {"accept_and_drop": True})])
    async with served(simulator) as client:
        task_id = (await submit(client))["task_id"]
        for call in (client.get(f"/v1/tasks/{task_id}"), client.post(f"/v1/tasks/{task_id}/cancel")):
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await call
        assert (await poll(client, task_id))["status"] == "cancelled"


async def test_in_process_a_drop_raises_what_a_client_of_a_server_sees(simulator, client):
    simulator.set_script([rule("submit", {"accept_and_drop": True})])
    with pytest.raises(httpx.RemoteProtocolError):
        await submit(client)
    assert simulator.bill()["tasks"] == 1


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_truncated_image_ends_before_its_announced_length(clock, http):
    simulator = Simulator(clock=clock)
    simulator.set_script([rule("media", {"truncate": True})])
    async with served(simulator, http) as client:
        url = image_url(await finished(client, clock))
        got = b""
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            async with client.stream("GET", url) as answer:
                async for chunk in answer.aiter_bytes():
                    got += chunk
        assert got.startswith(b"\xff\xd8\xff")
        assert len(got) == int(answer.headers["content-length"]) // 2
        assert (await client.get(url)).content.startswith(got)


async def test_a_hanging_submit_is_billed_and_stops_when_the_client_leaves(clock):
    simulator = Simulator(clock=clock)
    simulator.set_script([rule("submit", {"accept_and_hang_s": 60})])
    before = len(asyncio.all_tasks())
    async with served(simulator) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/tasks", json=body(), timeout=0.2)
        assert simulator.bill()["tasks"] == 1
    # served() waits for the connections to end: had the hang gone on, this would take 60 s.
    assert len(asyncio.all_tasks()) == before


async def test_a_short_hang_and_a_delay_end_in_the_true_answer(simulator, client):
    simulator.set_script([rule("submit", {"accept_and_hang_s": 0.05, "delay_s": 0.05})])
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert (await submit(client))["status"] == "queued"
    assert loop.time() - before >= 0.1


async def test_an_endless_image_goes_on_until_the_client_leaves(clock):
    simulator = Simulator(clock=clock)
    simulator.set_script([rule("media", {"media": "endless"})])
    async with served(simulator) as client:
        url = image_url(await finished(client, clock))
        got = 0
        async with client.stream("GET", url) as answer:
            assert "content-length" not in answer.headers
            async for chunk in answer.aiter_bytes():
                got += len(chunk)
                if got > 8_000_000:
                    break
        assert (await poll(client, url.split("/")[4]))["status"] == "completed"


async def test_a_thousand_concurrent_submits_are_all_taken(clock):
    simulator = Simulator(clock=clock)
    async with (
        served(simulator) as client,
        HttpxAiohttpClient(base_url=client.base_url, headers=client.headers, trust_env=False, timeout=60) as fast,
    ):
        await asyncio.gather(*(submit(fast, prompt=f"{number}") for number in range(1000)))
    assert (simulator.bill()["tasks"], simulator.bill()["open"]) == (1000, 1000)
