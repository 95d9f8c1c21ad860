"""Models and billing pages of a running gateway, on a real socket."""

from __future__ import annotations

import decimal
import json
import re

import pytest

from tests import process

OLD = "gemini-2.5-flash-image-preview"
GROWTH = """
models: {allow: ["gemini-*"], deny: ["*-official"]}
spend:
  - {name: daily, cap: "0.10", per: day, warn_at: 0.8}
  - {name: ever, cap: "400.00", per: total}
"""
ORG = 'timezone: UTC\nspend: [{name: org-day, cap: "0.05", per: day}]\n'
BILLING = "/v1/dashboard/billing"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with process.pair(tmp_path_factory.mktemp("account"), org=ORG, growth=GROWTH) as (gateway, _):
        yield gateway


def page(gateway: process.Gateway, path: str, team: str = "growth") -> dict:
    """A billing page with its numbers exactly as written."""
    authorization = f"Bearer {process.KEYS[team]}"
    status, answered, text = process.fetch(f"{gateway.url}{BILLING}/{path}", Authorization=authorization)
    assert (status, answered["Content-Type"]) == (200, "application/json")
    return json.loads(text, parse_float=decimal.Decimal, parse_int=decimal.Decimal)


def test_a_team_sees_the_models_that_it_may_use(gateway):
    status, _, document = gateway.call("GET", "/v1/models")
    assert status == 200 and document["object"] == "list"
    models = {each["id"]: each for each in document["data"]}
    assert all(name.startswith("gemini-") and not name.endswith("-official") for name in models)
    assert models[OLD] == {
        "id": OLD,
        "object": "model",
        "tier": "standard",
        "price_usd": "0.01328125",
        "official": f"{OLD}-official",
        "actions": ["generate", "image2image", "edit", "reference"],
        "resolutions": ["1K"],
        "aspect_ratios": ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "auto"],
    }
    assert {f"{OLD}-official", "gpt-image-2"} <= {
        each["id"] for each in gateway.call("GET", "/v1/models", team="research")[2]["data"]
    }


def test_a_price_by_resolution_is_a_map_and_what_is_not_listed_is_null(gateway):
    models = {each["id"]: each for each in gateway.call("GET", "/v1/models", team="research")[2]["data"]}
    assert models["gemini-3-pro-image-rev"]["price_usd"] == {"1K": "0.03375", "2K": "0.03375", "4K": "0.045"}
    assert models["gpt-image-2"] == {
        "id": "gpt-image-2",
        "object": "model",
        "tier": "standard",
        "price_usd": "0.006375",
        "actions": None,
        "resolutions": None,
        "aspect_ratios": None,
    }


def test_one_model_is_the_same_object(gateway):
    listed = gateway.call("GET", "/v1/models")[2]["data"]
    for each in listed:
        assert gateway.call("GET", f"/v1/models/{each['id']}")[::2] == (200, each)


@pytest.mark.parametrize("name", ["gemini-9", f"{OLD}-official", "gpt-image-2", "some/model", "", "%00"])
def test_an_unknown_model_and_one_that_is_not_allowed_get_the_same_answer(gateway, name):
    status, headers, document = gateway.call("GET", f"/v1/models/{name}")
    assert status == 404
    assert document["error"] == {
        "message": "There is no such model among those that your team may use; GET /v1/models lists them.",
        "code": "model_not_found",
        "param": "model",
        "request_id": headers["X-Wave-Request-Id"],
    }


def test_the_billing_pages_follow_a_task_to_the_nano(gateway):
    status, _, task = gateway.submit()
    assert status == 200
    gateway.complete(task["task_id"])
    balance = page(gateway, "balance")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", balance.pop("as_of"))
    assert balance == {
        "object": "credit_summary",
        "currency": "USD",
        "total_granted_usd": decimal.Decimal("0.1"),
        "total_used_usd": decimal.Decimal("0.01328"),
        "total_available_usd": decimal.Decimal("0.08672"),
    }
    assert page(gateway, "usage?start_date=2020-01-01&end_date=2020-01-02") == {
        "object": "list",
        "total_usage": decimal.Decimal("1.328"),
    }
    assert page(gateway, "subscription") == {
        "object": "billing_subscription",
        "has_payment_method": True,
        "soft_limit_usd": decimal.Decimal("0.08"),
        "hard_limit_usd": decimal.Decimal("0.1"),
        "system_hard_limit_usd": decimal.Decimal("0.1"),
        "access_until": 0,
    }


def test_a_team_without_a_cap_sees_a_limit_that_nobody_reaches(gateway):
    balance = page(gateway, "balance", "research")
    assert balance["total_granted_usd"] == balance["total_available_usd"] == 100_000_000
    assert balance["total_used_usd"] == page(gateway, "usage", "research")["total_usage"] == 0


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{OLD}", f"{BILLING}/balance", f"{BILLING}/usage"])
def test_nobody_without_a_key_sees_a_page(gateway, path):
    status, _, document = gateway.call("GET", path, Authorization="Bearer wrong")
    assert (status, document["error"]["code"]) == (401, "invalid_api_key")


def test_a_billing_page_that_does_not_exist_is_not_found(gateway):
    assert gateway.call("GET", f"{BILLING}/invoices")[2]["error"]["code"] == "not_found"


def test_a_key_that_may_not_read_sees_no_page(tmp_path):
    with process.pair(tmp_path) as (gateway, _):
        team = tmp_path / "policies" / "teams" / "growth.yaml"
        gateway.end()
        team.write_text(team.read_text().replace("name: ci,", "name: ci, can: [submit],"))
        gateway.start()
        for path in ("/v1/models", f"/v1/models/{OLD}", *(f"{BILLING}/{name}" for name in ("balance", "usage"))):
            status, _, document = gateway.call("GET", path)
            assert (status, document["error"]["code"]) == (403, "not_permitted"), path
