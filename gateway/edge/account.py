"""What a team sees of itself: `/v1/models`, and the upstream's billing pages about its own caps.

Amounts of the billing pages are JSON numbers, as they are upstream. They are written from integer nanos as decimal
text, so no float rounds them.
"""

from __future__ import annotations

import datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import errors
from gateway.edge import auth, render
from gateway.flow import account, parts, submit
from gateway.rules import catalogue, money, policy

CENTS_PER_USD = 100


def routes(with_parts: parts.Parts, keys: auth.Keys) -> list[Route]:
    """`/v1/models`, `/v1/models/{id}` and `/v1/dashboard/billing/…`; a key that can `read` may ask."""

    def caller(request: Request) -> submit.Caller:
        return keys.caller(request, policy.Permission.READ)

    async def models(request: Request) -> Response:
        listed = account.models(with_parts, caller(request).team)
        return render.json_response({"object": "list", "data": [_model(each) for each in listed]})

    async def model(request: Request) -> Response:
        found = account.model(with_parts, caller(request).team, request.path_params["model_id"])
        if found is None:
            raise errors.CallerError(
                "model_not_found",
                "There is no such model among those that your team may use; GET /v1/models lists them.",
                details={"param": "model"},
            )
        return render.json_response(_model(found))

    async def balance(request: Request) -> Response:
        return render.json_response(_balance(await account.statement(with_parts, caller(request))))

    async def usage(request: Request) -> Response:
        return render.json_response(_usage(await account.statement(with_parts, caller(request))))

    async def subscription(request: Request) -> Response:
        return render.json_response(_subscription(await account.statement(with_parts, caller(request))))

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model_id:path}", model, methods=["GET"]),
        Route("/v1/dashboard/billing/balance", balance, methods=["GET"]),
        Route("/v1/dashboard/billing/usage", usage, methods=["GET"]),
        Route("/v1/dashboard/billing/subscription", subscription, methods=["GET"]),
    ]


def _model(listed: catalogue.Listed) -> dict[str, object]:
    """The entry as the client gets it; a list that models.yaml leaves out is null: not checked here."""
    model = listed.model
    official = {} if model.official is None else {"official": model.official}
    return {
        "id": listed.name,
        "object": "model",
        "tier": model.tier.value,
        "price_usd": _price_usd(listed),
        **official,
        "actions": model.actions,
        "resolutions": model.resolutions,
        "aspect_ratios": model.aspect_ratios,
    }


def _price_usd(listed: catalogue.Listed) -> str | dict[str, str]:
    prices = {resolution: money.render_usd(nanos) for resolution, nanos in listed.nanos.items()}
    return prices["default"] if prices.keys() == {"default"} else prices


def _balance(statement: account.Statement) -> dict[str, object]:
    seen = statement.account
    return {
        "object": "credit_summary",
        "currency": "USD",
        "total_granted_usd": _number(seen.limit_nanos),
        "total_used_usd": _number(seen.used_nanos()),
        "total_available_usd": _number(seen.left_nanos()),
        "as_of": _iso(statement.at),
    }


def _usage(statement: account.Statement) -> dict[str, object]:
    """In cents; what is reserved may still be released, so it is not usage yet."""
    return {"object": "list", "total_usage": _number(statement.account.settled_nanos * CENTS_PER_USD)}


def _subscription(statement: account.Statement) -> dict[str, object]:
    seen = statement.account
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "soft_limit_usd": _number(seen.warn_nanos),
        "hard_limit_usd": _number(seen.limit_nanos),
        "system_hard_limit_usd": _number(seen.limit_nanos),
        "access_until": statement.key_expires_at or 0,
    }


def _number(nanos: int) -> msgspec.Raw:
    return msgspec.Raw(money.render_usd(nanos).encode())


def _iso(at: float) -> str:
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
