import datetime
from fractions import Fraction
from typing import Any

import pytest

from gateway.rules import catalogue, policy, pricing
from gateway.rules.money import Nanos
from tests.rules import builders
from tests.rules.builders import FLASH, FLASH_OFFICIAL, OLD, OLD_OFFICIAL, PRO, PRO_OFFICIAL, SINCE, TODAY

ALL = [PRO, PRO_OFFICIAL, FLASH, FLASH_OFFICIAL, OLD, OLD_OFFICIAL]


def names(*changed: policy.Model, today: datetime.date = TODAY, **said: Any) -> list[str]:
    found = catalogue.listed(builders.policies(*changed), builders.team(**said), today)
    return [each.name for each in found]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ALL),
        ({"allow": ("gemini-3*",)}, [PRO, PRO_OFFICIAL, FLASH, FLASH_OFFICIAL]),
        ({"deny": ("*-official",)}, [PRO, FLASH, OLD]),
        ({"allow": ("gemini-3-*",), "deny": ("gemini-3-pro-*-official",)}, [PRO]),
        ({"allow": ()}, []),
        ({"deny": ("*",)}, []),
        ({"unlisted_nanos": Nanos(1)}, ALL),
    ],
)
def test_a_team_sees_the_models_that_its_lists_let_through(said: dict[str, Any], expected: list[str]):
    assert names(**said) == expected


@pytest.mark.parametrize(
    "said", [{}, {"allow": ("gemini-3*",)}, {"deny": ("*-official",)}, {"allow": ("*flash*",), "deny": (OLD,)}]
)
def test_what_is_listed_is_what_a_submit_gets(said: dict[str, Any]):
    policies, team = builders.policies(), builders.team(**said)
    admitted = []
    for name in policies.models:
        allow = policy.decide(policies, team, builders.request(model=name), fullness=Fraction(0))
        if isinstance(allow, policy.Allow) and isinstance(pricing.quote(policies, team, allow, TODAY), pricing.Quote):
            admitted.append(name)
    assert names(**said) == admitted


def test_a_model_without_a_price_in_force_is_left_out_until_the_day_it_has_one():
    assert names(today=SINCE - datetime.timedelta(days=1)) == []
    assert names(today=SINCE) == ALL
    unpriced = builders.model("z-image", 1, prices=())
    assert names(unpriced) == ALL


def test_the_price_shown_is_the_one_in_force_today():
    later = builders.price(50_000_000, since=TODAY)
    dated = builders.model(PRO, 0, prices=(builders.price(42_500_000), later))
    policies, team = builders.policies(dated), builders.team()
    before = catalogue.find(policies, team, PRO, TODAY - datetime.timedelta(days=1))
    after = catalogue.find(policies, team, PRO, TODAY)
    assert before is not None and before.nanos == {"default": 42_500_000}
    assert after is not None and after.nanos == {"default": 50_000_000}


def test_an_id_that_is_rewritten_shows_what_is_called_in_its_place():
    team = builders.team(rewrite={PRO_OFFICIAL: PRO})
    found = catalogue.find(builders.policies(), team, PRO_OFFICIAL, TODAY)
    assert found is not None
    assert (found.name, found.model.name, found.nanos) == (PRO_OFFICIAL, PRO, {"default": 42_500_000})


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({}, "gemini-9"),
        ({"unlisted_nanos": Nanos(1)}, "gemini-9"),
        ({"rewrite": {"nano": PRO}}, "nano"),
        ({"deny": (PRO,)}, PRO),
        ({"allow": (FLASH,)}, PRO),
        ({"rewrite": {PRO: "gemini-9"}}, PRO),
        ({"rewrite": {PRO: PRO_OFFICIAL}, "deny": ("*-official",)}, PRO),
        ({"rewrite": {PRO_OFFICIAL: PRO}, "deny": ("*-official",)}, PRO_OFFICIAL),
    ],
)
def test_an_unknown_model_and_one_that_is_not_allowed_are_alike(said: dict[str, Any], name: str):
    assert catalogue.find(builders.policies(), builders.team(**said), name, TODAY) is None
