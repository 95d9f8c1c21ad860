"""A virtual key becomes a Caller. Only SHA-256 digests are compared, as bytes and in constant time."""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Callable, Mapping

from starlette.requests import Request

from gateway import errors
from gateway.edge import noted
from gateway.flow import submit
from gateway.rules import budget, policy

Found = tuple[bytes, policy.Team, policy.Key]


class Keys:
    """Finds the team and key behind a bearer token, in the policy set that is in force."""

    def __init__(self, policies: Callable[[], policy.PolicySet], clock: Callable[[], float]) -> None:
        self._policies = policies
        self._clock = clock
        self._indexed: policy.PolicySet | None = None
        self._by_digest: Mapping[bytes, Found] = {}

    def caller(self, request: Request, permission: policy.Permission) -> submit.Caller:
        """Who sends a request, by its `Authorization`; raises CallerError `invalid_api_key` or `not_permitted`."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unknown("Send your team's key as `Authorization: Bearer <key>`.")
        team, key = self._find(token.strip())
        notes = noted.of(request.scope)
        notes.team, notes.key = team.name, key.name
        if team.mode is policy.Mode.DISABLED:
            raise _unknown("This team is disabled; ask whoever keeps the policy files.")
        if key.expires is not None and self._today() >= key.expires:
            raise _unknown("This key has expired; ask for a new one.")
        if permission not in key.can:
            raise errors.CallerError(
                "not_permitted",
                f"This key may not {permission.value}; use one whose `can` lists it.",
                details={"rule": key.origin},
            )
        return submit.Caller(team=team.name, key=key.name)

    def _find(self, token: str) -> tuple[policy.Team, policy.Key]:
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = self._index().get(digest)
        if found is None or not hmac.compare_digest(found[0], digest):
            raise _unknown("This key is not known here; check it, or ask for one.")
        return found[1], found[2]

    def _index(self) -> Mapping[bytes, Found]:
        policies = self._policies()
        if self._indexed is not policies:
            self._by_digest = {
                digest: (digest, team, key)
                for team in policies.teams.values()
                for key in team.keys
                for digest in key.sha256
            }
            self._indexed = policies
        return self._by_digest

    def _today(self) -> datetime.date:
        return budget.today(self._clock(), budget.timezone_of(self._policies().organisation.timezone))


def _unknown(message: str) -> errors.CallerError:
    return errors.CallerError("invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
