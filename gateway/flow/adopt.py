"""A new policy set comes into force: first its balances, then its rules.

A cap that appears, or whose filter or timezone changes, in mid-window counts from the window's start: its balance is
made of the entries and open holds, in the very transaction after which the set decides.
"""

from __future__ import annotations

from gateway.flow import parts
from gateway.rules import budget, policy
from gateway.store import ledger
from gateway.store.database import Database, Tx


async def adopt(database: Database, in_force: parts.InForce, policies: policy.PolicySet, *, now: float) -> int:
    """Make the missing balances of a policy set and put it in force; returns how many balances were made.

    The set is replaced inside the transaction, on the writer: a submit that was decided under the old set and
    commits later notices it (`Stale`) and is decided again.
    """

    def make(tx: Tx) -> int:
        made = sum(ledger.make_balance(tx, each) for each in budget.all_allowances(policies, now=now))
        in_force.policies = policies
        return made

    return await database.write(make)
