import json

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.edge import render
from gateway.errors import CallerError


async def answer_ok(request: Request) -> Response:
    return render.json_response({"path": request.url.path})


async def fail_with_gateway_error(request: Request) -> Response:
    raise CallerError("rate_limited", "Slow down.", headers={"Retry-After": "3"})


async def fail_with_http_error(request: Request) -> Response:
    raise HTTPException(int(request.path_params["status"]), "the form is malformed")


async def fail_unforeseen(request: Request) -> Response:
    raise ValueError("upstream key sk-canary")


APP = Starlette(
    routes=[
        Route("/v1/tasks", answer_ok, methods=["POST"]),
        Route("/v1/tasks", answer_ok, methods=["GET"]),
        Route("/v1/limited", fail_with_gateway_error),
        Route("/v1/http/{status}", fail_with_http_error),
        Route("/v1/broken", fail_unforeseen),
    ],
    exception_handlers=render.exception_handlers(),
)


async def ask(method: str, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(APP, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
        return await client.request(method, path)


def test_an_error_is_its_code_message_details_and_request_id():
    error = CallerError(
        "limit_exceeded", "At most 4 images.", details={"param": "n", "limit": "max_images", "value": 4}
    )

    response = render.error_response(error, "req-7")

    assert response.status_code == 403
    assert response.body == (
        b'{"error":{"message":"At most 4 images.","code":"limit_exceeded",'
        b'"param":"n","limit":"max_images","value":4,"request_id":"req-7"}}'
    )
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-length"] == "129"


def test_details_cannot_displace_code_message_or_request_id():
    details = {"code": "ok", "message": "all is well", "request_id": "forged"}

    response = render.error_response(CallerError("not_found", "Nothing here.", details=details), "req-7")

    assert response.body == b'{"error":{"message":"Nothing here.","code":"not_found","request_id":"req-7"}}'


def test_headers_of_an_error_go_out_and_none_are_invented():
    said = CallerError("quota_window_exceeded", "Full.", headers={"Retry-After": "60", "x-should-retry": "false"})
    unsaid = CallerError("rate_limited", "Slow down.", headers={"Retry-After": "1"})

    assert render.error_response(said, "r").headers["x-should-retry"] == "false"
    assert render.error_response(said, "r").headers["retry-after"] == "60"
    assert "x-should-retry" not in render.error_response(unsaid, "r").headers


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"a": [1, None, "ü"]}, '{"a":[1,null,"ü"]}'.encode()),
        (b'{"seed": 9007199254740993}', b'{"seed": 9007199254740993}'),
        ([], b"[]"),
    ],
)
def test_json_is_compact_and_bytes_go_out_as_they_are(value, body):
    response = render.json_response(value, 201, headers={"X-Cache": "HIT"})

    assert (response.status_code, response.body) == (201, body)
    assert response.headers["x-cache"] == "HIT"
    assert response.headers["content-type"] == "application/json"


def test_sealing_adds_what_is_missing_and_keeps_what_is_set():
    assert render.seal([], "r1") == [
        (b"x-wave-request-id", b"r1"),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    kept = [(b"Cache-Control", b"immutable"), (b"X-Content-Type-Options", b"nosniff")]
    assert render.seal(kept, "r1") == [*kept, (b"x-wave-request-id", b"r1")]


async def test_an_unknown_path_is_not_found():
    response = await ask("GET", "/v1/wallet")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


async def test_another_method_on_a_known_path_names_the_methods_of_all_its_routes():
    response = await ask("DELETE", "/v1/tasks")

    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD, POST"
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert response.json()["error"]["message"] == "DELETE is not possible here; this path takes GET, HEAD, POST."


async def test_a_gateway_error_raised_in_a_route_is_rendered():
    response = await ask("GET", "/v1/limited")

    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json() == {"error": {"message": "Slow down.", "code": "rate_limited", "request_id": ""}}


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (400, 400, "invalid_request"),
        (418, 400, "invalid_request"),
        (413, 413, "body_too_large"),
        (415, 415, "unsupported_media_type"),
        (500, 500, "internal_error"),
        (503, 500, "internal_error"),
    ],
)
async def test_a_refusal_by_starlette_gets_one_of_our_codes(raised, status, code):
    response = await ask("GET", f"/v1/http/{raised}")

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert ("the form is malformed" in response.text) == (status < 500)


async def test_an_unforeseen_exception_says_nothing_of_itself():
    response = await ask("GET", "/v1/broken")

    assert response.status_code == 500
    assert json.loads(response.text)["error"]["code"] == "internal_error"
    assert "canary" not in response.text
