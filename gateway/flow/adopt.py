"""A new policy set comes into force: first its balances, then its rules.

A cap that appears, or whose filter or timezone changes, in mid-window counts from the window's start: its balance is
made of the entries and open holds. A balance that no cap looks at any more is dropped, because submits no longer
reserve in it; should the cap come back, it is made anew.
"""

from __future__ import annotations

from gateway import failpoints
from gateway.flow import parts
from gateway.rules import budget, policy
from gateway.store import ledger
from gateway.store.database import Database, Tx


async def adopt(database: Database, in_force: parts.InForce, policies: policy.PolicySet, *, now: float) -> int:
    """Make the missing balances of a policy set and put it in force; returns how many balances were made.

    Nothing is admitted between the transaction and the change of sets: a submit that reaches the writer meanwhile is
    decided again under the new set, or under the old one if the transaction failed.
    """

    def make(tx: Tx) -> int:
        wanted = budget.all_allowances(policies, now=now)
        ledger.drop_balances(tx, keep={each.balance for each in wanted}, now=now)
        failpoints.reach("adopt.dropped")
        made = sum(ledger.make_balance(tx, each) for each in wanted)
        failpoints.reach("adopt.made")
        return made

    with in_force.changing():
        failpoints.reach("adopt.before")
        made = await database.write(make)
        failpoints.reach("adopt.committed")
        in_force.policies = policies
    return made
