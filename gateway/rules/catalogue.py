"""The catalogue as a team sees it: the models that it may ask for and that have a price today.

What is listed is what models.yaml lists; a model that only `models.unlisted` allows has no entry to show.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping

from gateway.rules import policy, pricing
from gateway.rules.money import Nanos


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A model id that the team may send, and what it gets for it."""

    name: str
    model: policy.Model
    """The entry that is called: another one where the team's policy rewrites the id."""
    nanos: Mapping[str, Nanos]
    """Today's price of one image, by resolution, with `default`."""


def listed(policies: policy.PolicySet, team: policy.Team, today: datetime.date) -> tuple[Listed, ...]:
    """Every model of the catalogue that the team may use and that has a price in force, in the catalogue's order."""
    found = (find(policies, team, name, today) for name in policies.models)
    return tuple(each for each in found if each is not None)


def find(policies: policy.PolicySet, team: policy.Team, name: str, today: datetime.date) -> Listed | None:
    """One model of the catalogue; None alike for one that is unknown, not allowed, or without a price in force."""
    called = policies.models.get(team.rewrite.get(name, name))
    if name not in policies.models or called is None or not (_allows(team, name) and _allows(team, called.name)):
        return None
    nanos = pricing.in_force(called, today)
    return Listed(name=name, model=called, nanos=nanos) if nanos else None


def _allows(team: policy.Team, name: str) -> bool:
    return not policy.matches(name, team.deny) and (team.allow is None or policy.matches(name, team.allow))
