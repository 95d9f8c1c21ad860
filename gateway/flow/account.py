"""What a team sees of itself: the models that it may use, and its account."""

from __future__ import annotations

import dataclasses
import datetime

from gateway.flow import parts, submit
from gateway.rules import account, budget, catalogue, policy
from gateway.store import ledger
from gateway.store.database import Tx


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A team's account at an instant; times in unix seconds."""

    account: account.Account
    at: float
    key_expires_at: int | None
    """When the key that asks ends."""


def models(with_parts: parts.Parts, team: str) -> tuple[catalogue.Listed, ...]:
    """The catalogue as the team may use it today."""
    policies = with_parts.in_force.policies
    return catalogue.listed(policies, policies.teams[team], _today(policies, with_parts.clock()))


def model(with_parts: parts.Parts, team: str, name: str) -> catalogue.Listed | None:
    """One model of the catalogue; one that the team may not use is like an unknown one."""
    policies = with_parts.in_force.policies
    return catalogue.find(policies, policies.teams[team], name, _today(policies, with_parts.clock()))


async def statement(with_parts: parts.Parts, caller: submit.Caller) -> Statement:
    """The account behind a key: the tightest cap that every submit with it meets, in one snapshot of the ledger."""
    policies, now = with_parts.in_force.policies, with_parts.clock()
    team = policies.teams[caller.team]
    return await with_parts.database.scan(lambda tx: _statement(tx, policies, team, caller.key, now))


def _statement(tx: Tx, policies: policy.PolicySet, team: policy.Team, key: str, now: float) -> Statement:
    called = [each.model.name for each in catalogue.listed(policies, team, _today(policies, now))]
    touched = budget.touched(policies, team, key=key, models=called, now=now)
    found = account.tightest([(each, ledger.balance_of(tx, each.balance)) for each in touched], called)
    return Statement(
        account=account.uncapped(_spent(tx, team.name)) if found is None else found,
        at=now,
        key_expires_at=_key_expires_at(policies, team, key),
    )


def _spent(tx: Tx, team: str) -> int:
    return sum(total.cost_nanos for total in ledger.totals(tx) if total.team == team)


def _key_expires_at(policies: policy.PolicySet, team: policy.Team, name: str) -> int | None:
    expires = next((key.expires for key in team.keys if key.name == name), None)
    return None if expires is None else budget.local_midnight(expires, _timezone(policies))


def _today(policies: policy.PolicySet, now: float) -> datetime.date:
    return budget.today(now, _timezone(policies))


def _timezone(policies: policy.PolicySet) -> datetime.tzinfo:
    return budget.timezone_of(policies.organisation.timezone)
