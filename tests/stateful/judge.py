"""What must hold after every step: the invariants M1 to M14, held against the reference and the vendor's bill.

A `Violation` names the invariant. Imports nothing of the gateway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from tests.stateful import model

REPLAY: Final = "replay"
HIT: Final = "hit"
FOLLOW: Final = "follow"
ADMIT: Final = "admit"

NOT_SENT: Final = "not sent"
REFUSED: Final = "refused"
ACCEPTED: Final = "accepted"
LOST: Final = "lost"

_FIXED: Final = ("state", "quote_nanos", "cost_nanos", "ended_at", "settled_at", "leader_id", "upstream_task_id")


class Violation(AssertionError):
    """An invariant does not hold."""


class Judge:
    """Holds every step of the gateway against the reference."""

    def __init__(self, seen: model.Seen, rules: model.Rules, now: float) -> None:
        self.books = model.Books()
        self.books.adopt(rules, now)
        self.asks: dict[str, model.Ask] = {}
        """Task -> the submit that made it."""
        self.resolved: set[str] = set()
        """Tasks that an operator has ended."""
        self._seen = seen
        self._billed: set[str] = set()

    def expected(self, ask: model.Ask, now: float) -> tuple[str, str]:
        """What must come of a submit, and the task that it is about."""
        key = ask.idempotency_key
        known = [row for row in self._seen.rows.values() if key and (row.team, row.idempotency_key) == (ask.team, key)]
        if known:
            is_same = self.asks[known[0].id].fields() == ask.fields()
            return (REPLAY, known[0].id) if is_same else ("idempotency_key_reused", "")
        if ask.is_seeded() and ask.cache != "refresh":
            free = self._free(ask, now)
            if free is not None:
                return free
        if ask.cache == "only-if-cached":
            return "only_if_cached", ""
        quote = self.books.quote(ask)[2]
        if ask.max_cost_nanos is not None and quote > ask.n * model.whole(-(-ask.max_cost_nanos // ask.n)):
            return "max_cost_exceeded", ""
        full = self.books.full(ask, now)
        if full:
            return "spend_cap_reached" if any(key[3] == "total" for key in full) else "quota_window_exceeded", ""
        return ADMIT, ""

    def judge(
        self,
        seen: model.Seen,
        *,
        now: float,
        bill: Mapping[str, Any],
        posts: Sequence[tuple[str, str]] = (),
        is_cost_named: bool = True,
        ask: model.Ask | None = None,
        team: str | None = None,
    ) -> None:
        """Check one step.

        `posts`: what the vendor heard in it, as (idempotency key, what came of it); `ask`: what was submitted; `team`:
        the only team that acted.
        """
        before, self._seen = self._seen, seen
        used = {key: sum(self.books.sums(key)) for key in self.books.windows}
        self._admitted(before, seen, ask, now)
        self._heard(seen, posts, now)
        lines = self._lines(seen, bill, is_cost_named=is_cost_named)
        self._ends(seen, lines)
        self._rows(before, seen)
        self._money(seen, now)
        self._caps(seen, used, before, now)
        self._others(before, seen, team)

    def followers_of(self, task_id: str) -> list[model.Row]:
        """Who waits for a task."""
        return [row for row in self._seen.rows.values() if row.leader_id == task_id and row.state == "following"]

    def left_open(self) -> list[model.Row]:
        """Tasks without an end that are nobody's to mend but ours (M14)."""
        return [row for row in self._seen.rows.values() if row.state not in model.ENDED and not _is_operators(row)]

    def _free(self, ask: model.Ask, now: float) -> tuple[str, str] | None:
        same = [
            self._seen.rows[task.id]
            for task in self.books.tasks.values()
            if task.ask.same() == ask.same() and task.ask.is_seeded()
        ]
        for row in same:
            is_kept = self._seen.kept.get(row.id, 0) >= ask.n and (row.ended_at or 0) > now - model.KEPT_S
            if row.state == "completed" and is_kept:
                return HIT, ""
        leaders = [row.id for row in same if row.inflight is not None]
        return (FOLLOW, leaders[0]) if leaders else None

    def _admitted(self, before: model.Seen, seen: model.Seen, ask: model.Ask | None, now: float) -> None:
        for row in (row for row in seen.rows.values() if row.id not in before.rows):
            if ask is None or row.team != ask.team:
                _violated("M13", f"nobody asked for {row}")
            self.asks[row.id] = ask
            if row.leader_id is not None:
                paid = self.books.tasks[row.leader_id]
                if paid.ask.same() != ask.same() or row.quote_nanos or row.cost_nanos:
                    _violated("M4", f"{row} was given what {paid} was paid for")
                if row.state == "completed":
                    self.books.avoid(row.team, row.model, cache=paid.cost)
                continue
            full = self.books.full(ask, now)
            if full:
                _violated("M1", f"{row} was admitted, and there is no room in {full}")
            task = self.books.admit(ask, row.id, now)
            if row.quote_nanos != task.quote:
                _violated("M9", f"{row} is quoted {row.quote_nanos}, the price list says {task.quote}")

    def _heard(self, seen: model.Seen, posts: Sequence[tuple[str, str]], now: float) -> None:
        rows = {row.upstream_idempotency_key: row for row in seen.rows.values()}
        for key, outcome in posts:
            row = rows.get(key)
            if row is None or row.id not in self.books.tasks:
                _violated("M6", f"a POST left under {key}, and no reservation is kept for it")
            task = self.books.tasks[row.id]
            if task.end is not None or row.id in self.resolved:
                _violated("M5", f"{row} was sent again after its end")
            task.first_post_at = task.first_post_at or now
            if task.is_doubted and now - task.first_post_at >= model.FORGETS_S:
                _violated("M5", f"{row} is in doubt and was sent {now - task.first_post_at} s after its first POST")
            task.is_doubted |= outcome == LOST
            task.is_refused |= outcome == REFUSED

    def _lines(self, seen: model.Seen, bill: Mapping[str, Any], *, is_cost_named: bool) -> dict[str, dict[str, Any]]:
        """The vendor's bill by our tasks."""
        keys = Counter(line["idempotency_key"] for line in bill["by_task"].values())
        twice = [key for key, times in keys.items() if times > 1]
        if twice:
            _violated("M5", f"the vendor has two tasks under each of {twice}")
        rows = {row.upstream_idempotency_key: row.id for row in seen.rows.values()}
        lines: dict[str, dict[str, Any]] = {}
        for vendor_id, line in bill["by_task"].items():
            task = self.books.tasks.get(rows.get(line["idempotency_key"], ""))
            if task is None:
                _violated("M6", f"the vendor has {vendor_id}, and nothing is kept of it: {line}")
            if vendor_id not in self._billed:
                self._billed.add(vendor_id)
                task.is_cost_named = is_cost_named
            lines[task.id] = line
        return lines

    def _ends(self, seen: model.Seen, lines: Mapping[str, dict[str, Any]]) -> None:
        """Each end of a hold, against what the vendor has (M2, M7, M8, M9)."""
        for task in self.books.tasks.values():
            row, entries = seen.rows[task.id], seen.entries.get(task.id, [])
            ends = [entry for entry in entries if entry[0] in ("settle", "release")]
            if len(ends) > 1 or bool(ends) == (row.state in model.HOLDING):
                _violated("M2", f"{row} has the entries {entries}")
            if task.end is None and ends:
                self._end(task, row, ends[0], lines.get(task.id))
            wanted = [("reserve", task.quote, task.ask.model, 0)]
            if task.end == "release":
                wanted.append(("release", task.quote, task.ask.model, 0))
            elif task.end == "settle":
                wanted.append(("settle", task.cost, task.billed, task.images))
                if task.cost > task.quote:
                    wanted.append(("overage", task.cost - task.quote, task.billed, 0))
            if entries != wanted:
                _violated("M3", f"{row} has the entries {entries}, and should have {wanted}")
        strangers = seen.entries.keys() - self.books.tasks.keys()
        if strangers:
            _violated("M4", f"entries of tasks that nobody pays for: {strangers}")

    def _end(
        self, task: model.Task, row: model.Row, entry: tuple[str, int, str, int], line: Mapping[str, Any] | None
    ) -> None:
        kind, nanos, _, images = entry
        if task.id in self.resolved:
            if kind == "settle":
                task.settle(nanos, images, priced=task.ask.n)
            task.end = kind
            return
        if kind == "release":
            self._release(task, row, line)
        else:
            self._settle(task, row, nanos, line)

    def _release(self, task: model.Task, row: model.Row, line: Mapping[str, Any] | None) -> None:
        if line is None and task.is_doubted and not task.is_refused:
            _violated("M7", f"{row} was released, and its POST may have arrived")
        if line is not None and (line["status"] not in ("failed", "cancelled") or line["quota"]):
            _violated("M7", f"{row} was released, and the vendor has {line}")
        task.end = "release"

    def _settle(self, task: model.Task, row: model.Row, nanos: int, line: Mapping[str, Any] | None) -> None:
        if line is None or (row.state in model.DELIVERED) != (line["status"] == "completed"):
            _violated("M8", f"{row} was settled, and the vendor has {line}")
        if nanos != task.price(line):
            _violated("M9", f"{row} was settled to {nanos}, which should be {task.price(line)}: {line}")
        is_listed = not task.ask.fallback and task.standard == model.LIST[task.ask.model][0]
        if not task.is_cost_named and is_listed:
            difference = abs(nanos - line["quota"] * model.QUOTA)
            if difference >= max(1, line["delivered"]) * model.QUOTA:
                _violated("M8", f"{row} is {difference} nanos from the bill: {line}")
        task.settle(nanos, line["delivered"])

    def _rows(self, before: model.Seen, seen: model.Seen) -> None:
        """What ended stays as it is (M10), and what is free is free (M4)."""
        for row in seen.rows.values():
            known = before.rows.get(row.id)
            if known is not None and known.state in model.ENDED:
                changed = [name for name in _FIXED if getattr(known, name) != getattr(row, name)]
                if changed or before.entries.get(row.id) != seen.entries.get(row.id):
                    _violated("M10", f"{row} had ended as {known}")
            if row.id in self.books.tasks:
                if row.state in model.ENDED and row.cost_nanos != self.books.tasks[row.id].cost:
                    _violated("M3", f"{row} cost {self.books.tasks[row.id].cost} by its entries")
                continue
            if row.quote_nanos or row.cost_nanos:
                _violated("M4", f"{row} costs something")
            was_following = known is not None and known.state == "following"
            if was_following and row.state == "completed" and row.leader_id is not None:
                self.books.avoid(row.team, row.model, coalesced=self.books.tasks[row.leader_id].cost)
        lost = before.rows.keys() - seen.rows.keys()
        if lost:
            _violated("M10", f"tasks are gone: {lost}")

    def _money(self, seen: model.Seen, now: float) -> None:
        """Balances, holds, totals and metrics, against the reference (M3, M11, M12)."""
        wanted = self.books.balances()
        if dict(seen.balances) != wanted:
            different = {
                key: (seen.balances.get(key), wanted.get(key))
                for key in seen.balances.keys() | wanted.keys()
                if seen.balances.get(key) != wanted.get(key)
            }
            _violated("M3, M11", f"balance: (kept, should be) settled and reserved: {different}")
        if seen.differences:
            _violated("M3", f"the audit finds {seen.differences}")
        holding = {
            task_id
            for window in self.books.windows.values()
            for task_id in window.tasks
            if self.books.tasks[task_id].end is None
        }
        if seen.holds != len(holding):
            _violated("M2", f"{seen.holds} tasks have rows in holds, {len(holding)} should")
        spent, avoided = self.books.spent(), self.books.avoided
        sums = {key: (*spent.get(key, (0, 0)), *avoided.get(key, (0, 0))) for key in spent.keys() | avoided.keys()}
        if _not_zero(seen.spend) != _not_zero(sums):
            _violated("M12", f"the metrics show {_not_zero(seen.spend)}, and should {_not_zero(sums)}")
        for number, cap in enumerate(self.books.rules.caps):
            key, _, limit = self.books.place(cap, now)
            reading = (limit, *self.books.sums(key))
            if seen.readings[f"cap-{number}"] != reading:
                _violated("M12", f"the metrics show {seen.readings[f'cap-{number}']} for {cap}, and should {reading}")

    def _caps(self, seen: model.Seen, used: Mapping[model.Key, int], before: model.Seen, now: float) -> None:
        """No cap is passed, but by a bill above the quote (M1); what a cap finds when it appears is its first sum."""
        for cap in self.books.rules.caps:
            key, _, limit = self.books.place(cap, now)
            if key not in seen.balances or key not in before.balances:
                continue
            overage = sum(
                max(0, task.cost - task.quote)
                for task_id in self.books.windows[key].tasks
                if (task := self.books.tasks[task_id]).end == "settle"
                and "settle" not in [entry[0] for entry in before.entries.get(task_id, ())]
            )
            if sum(seen.balances[key]) > max(limit, used.get(key, 0)) + overage:
                _violated("M1", f"{cap} is passed: {seen.balances[key]}, it was {used.get(key, 0)}")

    def _others(self, before: model.Seen, seen: model.Seen, team: str | None) -> None:
        """A step of one team changes nothing of another's (M13)."""
        if team is None:
            return
        for row in before.rows.values():
            if row.team != team and seen.rows[row.id] != row:
                _violated("M13", f"team {team} changed {row} into {seen.rows[row.id]}")
        for key, sums in before.balances.items():
            if key[0] != "org" and key[1].partition("/")[0] != team and seen.balances.get(key) != sums:
                _violated("M13", f"team {team} changed the balance {key}")


def _is_operators(row: model.Row) -> bool:
    return row.state == "in_doubt" and row.next_at is None


def _not_zero(sums: Mapping[tuple[str, str], tuple[int, ...]]) -> dict[tuple[str, str], tuple[int, ...]]:
    return {key: each for key, each in sums.items() if any(each)}


def _violated(invariant: str, what: str) -> NoReturn:
    raise Violation(f"{invariant}: {what}")
