"""Seeded bugs about money, each with the tests that must catch it: `make mutants` puts them in, one at a time.

To add one, add a row: `old` is a piece of `file` that occurs there exactly once, short enough to survive a change
beside it; every test that is named must fail with `new` in its place.
"""

from __future__ import annotations

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One bug: what it is in a line, where it is put in, and who notices."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS: Final = (
    # Caps
    Mutant(
        name="cap-guard-dropped",
        what="the reserving UPDATE does not look at the cap",
        file="gateway/store/ledger.py",
        old=" AND settled_nanos + reserved_nanos + :nanos <= :limit_nanos",
        new="",
        tests=(
            "tests/store/test_ledger.py::test_racing_reserves_stop_exactly_at_the_cap",
            "tests/flow/test_submit.py::test_a_full_cap_refuses_with_every_field_and_nothing_is_stored_or_sent",
        ),
    ),
    Mutant(
        name="cap-guard-forgets-open-holds",
        what="the cap is held against what is settled, not against what is reserved",
        file="gateway/store/ledger.py",
        old="AND settled_nanos + reserved_nanos + :nanos <= :limit_nanos",
        new="AND settled_nanos + :nanos <= :limit_nanos",
        tests=("tests/store/test_ledger.py::test_racing_reserves_stop_exactly_at_the_cap",),
    ),
    Mutant(
        name="check-then-act",
        what="the caps are read before the transaction and only added to inside it",
        file="gateway/flow/submit.py",
        old="            return await with_parts.database.write(admit)\n",
        new="""\
            hold = advance.hold_of(draft)
            full = await with_parts.database.read(
                lambda tx: [each for each in planned.allowances if ledger._is_full(tx, hold, each)]
            )
            if full:
                return policy.Deny(code="quota_window_exceeded", message="", rule="")
            await asyncio.sleep(0)
            unchecked = tuple(dataclasses.replace(each, limit_nanos=None) for each in planned.allowances)
            admit = functools.partial(admit, planned=dataclasses.replace(planned, allowances=unchecked))
            return await with_parts.database.write(admit)
""",
        tests=("tests/flow/test_adopt.py::test_submits_that_race_a_new_cap_are_all_counted_in_it",),
    ),
    Mutant(
        name="refusal-keeps-the-day",
        what="refused by the month's cap, the day's counter keeps the quote",
        file="gateway/flow/submit.py",
        old="raise _Denied(_deny_full(tx, planned, draft, full))",
        new="return _deny_full(tx, planned, draft, full)",
        tests=("tests/flow/test_submit.py::test_day_has_room_month_has_not_leaves_the_days_counter_untouched",),
    ),
    Mutant(
        name="highest-cap-of-a-balance",
        what="of two caps on one balance the higher counts",
        file="gateway/store/ledger.py",
        old="lowest.setdefault(each.balance, each)",
        new="lowest[each.balance] = each",
        tests=("tests/store/test_ledger.py::test_of_two_caps_on_one_balance_the_lowest_counts_and_the_balance_once",),
    ),
    Mutant(
        name="admitted-while-policies-change",
        what="a submit that was decided before a new cap came into force passes it",
        file="gateway/flow/submit.py",
        old="if with_parts.in_force.is_changing or with_parts.in_force.policies is not planned.policies:",
        new="if False:",
        tests=("tests/flow/test_adopt.py::test_submits_that_race_a_new_cap_are_all_counted_in_it",),
    ),
    Mutant(
        name="new-cap-without-open-holds",
        what="a cap that comes into force does not count what is open",
        file="gateway/store/ledger.py",
        old='reserved=sum(entry["nanos"] for entry in open_holds)',
        new="reserved=0",
        tests=("tests/flow/test_adopt.py::test_a_cap_added_in_mid_window_counts_what_was_spent_and_what_is_open",),
    ),
    Mutant(
        name="open-task-not-settled-in-a-new-cap",
        what="a cap that comes into force gets no `holds` row for an open task",
        file="gateway/store/ledger.py",
        old="for entry in open_holds:",
        new="for entry in ():",
        tests=("tests/store/test_ledger.py::test_an_open_task_settles_in_a_balance_that_appeared_meanwhile",),
    ),
    Mutant(
        name="stale-balance-comes-back",
        what="a cap that went away and comes back has not counted meanwhile",
        file="gateway/flow/adopt.py",
        old="ledger.drop_balances(tx, keep={each.balance for each in wanted}, now=now)",
        new="pass",
        tests=("tests/flow/test_adopt.py::test_a_cap_that_was_away_and_comes_back_counts_what_was_spent_meanwhile",),
    ),
    Mutant(
        name="filter-keeps-the-cost-of-another-model",
        what="a cap on some models keeps a cost that was billed on another",
        file="gateway/store/ledger.py",
        old="counted = cost_nanos if budget.counts(balance.filter, [billed]) else 0",
        new="counted = cost_nanos",
        tests=(
            "tests/store/test_ledger.py::test_a_filtered_balance_keeps_the_cost_only_of_a_billed_model_that_it_counts",
        ),
    ),
    Mutant(
        name="raise-never-ends",
        what="a raise of a cap stays in force after its day",
        file="gateway/rules/budget.py",
        old="if day < extra.until))",
        new="))",
        tests=("tests/rules/test_budget.py::test_a_raise_ends_by_itself",),
    ),
    # The quote
    Mutant(
        name="quote-not-rounded-up",
        what="the quote is the list price, which the vendor's whole quotas can pass",
        file="gateway/rules/pricing.py",
        old="request.n * money.ceil_to_quota(dearest)",
        new="request.n * dearest",
        tests=("tests/rules/test_pricing.py::test_a_quote_is_the_listed_price_in_whole_quotas_per_image",),
    ),
    Mutant(
        name="n-ignored",
        what="three images are quoted as one",
        file="gateway/rules/pricing.py",
        old="request.n * money.ceil_to_quota(dearest)",
        new="money.ceil_to_quota(dearest)",
        tests=("tests/flow/test_submit.py::test_n_of_three_with_room_for_two_is_refused_whole",),
    ),
    Mutant(
        name="dearest-channel-ignored",
        what="a request that may fall back to the official channel is quoted at the standard price",
        file="gateway/rules/pricing.py",
        old="dearest = max(standard, dearer or money.ZERO)",
        new="dearest = standard",
        tests=(
            "tests/flow/test_submit.py::test_a_fallback_is_quoted_at_the_official_price_and_settled_to_what_was_billed",
        ),
    ),
    Mutant(
        name="unknown-price-is-nothing",
        what="a model without a price in force is quoted at 0",
        file="gateway/rules/pricing.py",
        old="        return _no_price(model, request)\n    dearer",
        new="        standard = money.ZERO\n    dearer",
        tests=("tests/flow/test_submit.py::test_a_price_that_is_not_configured_is_refused_and_never_counted_as_0",),
    ),
    # What ends a hold
    Mutant(
        name="release-on-timeout",
        what="an answer that does not come in time counts as not sent",
        file="gateway/outbound/upstream.py",
        old='return _Silence(reason="timeout")',
        new='return _Silence(reason="timeout", is_sent=False)',
        tests=("tests/flow/test_attempt.py::test_an_answer_that_does_not_come_in_time_leaves_it_in_doubt",),
    ),
    Mutant(
        name="release-on-5xx",
        what="every 5xx counts as a refusal",
        file="gateway/wire.py",
        old='(status == 500 and _code(document) == "price_not_configured")',
        new="status >= 500",
        tests=("tests/flow/test_attempt.py::test_an_answer_decides_what_becomes_of_the_hold[503]",),
    ),
    Mutant(
        name="unlisted-4xx-is-a-refusal",
        what="a 408 or 409 counts as a refusal",
        file="gateway/wire.py",
        old="is_refusal = status in (400, 404, 413, 422) or",
        new="is_refusal = 400 <= status < 500 or",
        tests=("tests/flow/test_attempt.py::test_an_answer_decides_what_becomes_of_the_hold[409]",),
    ),
    Mutant(
        name="unreadable-refusal-is-one",
        what="a 400 from something in between, without JSON, counts as the vendor's refusal",
        file="gateway/wire.py",
        old="if is_refusal and document is not None:",
        new="if is_refusal:",
        tests=("tests/test_wire.py::test_a_refusal_without_a_parsable_body_is_in_doubt",),
    ),
    Mutant(
        name="redirect-followed",
        what="a redirect carries the POST, and the key, to wherever it says",
        file="gateway/outbound/upstream.py",
        old="follow_redirects=False",
        new="follow_redirects=True",
        tests=(
            "tests/flow/test_attempt.py::test_an_answer_decides_what_becomes_of_the_hold[307 to a place that takes it]",
        ),
    ),
    Mutant(
        name="in-doubt-is-not-sent",
        what="a lost answer is handled like a POST that never left",
        file="gateway/flow/advance.py",
        old="_move(tx, row, task.Event.LOST, next_at=at)",
        new="_move(tx, row, task.Event.NOT_SENT, next_at=at)",
        tests=("tests/flow/test_resubmit.py::test_what_nobody_can_be_sure_of_keeps_the_hold",),
    ),
    Mutant(
        name="dropped-answer-is-no-connection",
        what="the transport is believed when it calls a dropped answer a connect timeout",
        file="gateway/outbound/upstream.py",
        old="isinstance(error.__cause__ or error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))",
        new="isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))",
        tests=(
            "tests/flow/test_attempt.py::test_an_answer_decides_what_becomes_of_the_hold[dropped after it is done]",
        ),
    ),
    Mutant(
        name="429-ends-doubt",
        what="a 429 to a repeated POST makes the task count as never accepted",
        file="gateway/rules/task.py",
        old="    (State.WAITING, Event.ATTEMPTED):",
        new="    (State.IN_DOUBT, Event.NOT_SENT): State.WAITING,\n    (State.WAITING, Event.ATTEMPTED):",
        tests=("tests/flow/test_attempt.py::test_doubt_ends_only_on_acceptance_or_refusal_under_its_key",),
    ),
    Mutant(
        name="doubt-expires",
        what="the deadline may end a task in doubt",
        file="gateway/rules/task.py",
        old="    (State.WAITING, Event.EXPIRED):",
        new="    (State.IN_DOUBT, Event.EXPIRED): State.FAILED,\n    (State.WAITING, Event.EXPIRED):",
        tests=("tests/rules/test_task.py::test_only_what_was_provably_not_accepted_expires",),
    ),
    Mutant(
        name="released-by-age",
        what="past the deadline a task in doubt is given up and released",
        file="gateway/flow/resubmit.py",
        old="    if row.state is task.State.WAITING and now >= row.deadline_at:\n",
        new="""\
    if row.state is task.State.IN_DOUBT and now >= row.deadline_at:
        gone = task.Refused(status=504, document=b"{}")
        await with_parts.database.write(lambda tx: advance.answer(tx, row, gone, now=now, luck=0.0))
        return
    if row.state is task.State.WAITING and now >= row.deadline_at:
""",
        tests=("tests/flow/test_resubmit.py::test_a_task_in_doubt_outlives_the_deadline_and_no_age_releases_it",),
    ),
    Mutant(
        name="abandon-releases",
        what="what waits for the operator is released",
        file="gateway/flow/advance.py",
        old="    kept = tasks.move(tx, row, row.state, next_at=None, inflight=None, failure=failure)\n",
        new="""\
    kept = tasks.move(tx, row, row.state, next_at=None, inflight=None, failure=failure)
    ledger.release(tx, hold_of(row), now=now, why="in doubt for too long")
""",
        tests=(
            "tests/flow/test_resubmit.py::test_in_doubt_after_23_hours_is_never_posted_again_and_frees_the_fingerprint",
        ),
    ),
    Mutant(
        name="cancel-releases-at-once",
        what="the vendor's yes to a cancel releases, though the task may complete all the same",
        file="gateway/flow/cancel.py",
        old="            await _look_soon(with_parts, row, is_going_on=outcome.is_refusal)\n",
        new="""\
            said = task.Outcome(event=task.Event.CANCELLED)
            word = {"row": row, "outcome": said, "document": outcome.document, "now": row.created_at, "next_at": 0.0}
            await with_parts.database.write(functools.partial(advance.report, **word))
""",
        tests=(
            "tests/flow/test_cancel.py::test_the_vendors_yes_is_relayed_and_the_hold_stays_until_a_poll_confirms",
            "tests/flow/test_cancel.py::test_a_task_that_completes_after_the_vendors_yes_is_settled_in_full",
        ),
    ),
    Mutant(
        name="lost-cancel-releases",
        what="a task whose cancel was not answered is released",
        file="gateway/flow/cancel.py",
        old="            await _look_soon(with_parts, row, is_going_on=False)\n",
        new="""\
            said = task.Outcome(event=task.Event.CANCELLED)
            word = {"row": row, "outcome": said, "document": b"{}", "now": row.created_at, "next_at": 0.0}
            await with_parts.database.write(functools.partial(advance.report, **word))
""",
        tests=("tests/flow/test_cancel.py::test_an_answer_that_is_lost_or_says_nothing_releases_nothing",),
    ),
    Mutant(
        name="404-to-a-poll-fails-the-task",
        what="a vendor that does not know a task just now has it released",
        file="gateway/outbound/upstream.py",
        old="            is_key_refused = answer.status in (401, 402, 403)\n",
        new="""\
            if answer.status == 404:
                return Polled(outcome=task.Outcome(event=task.Event.FAILED), document=answer.body)
            is_key_refused = answer.status in (401, 402, 403)
""",
        tests=("tests/flow/test_poll.py::test_a_404_for_a_task_we_know_keeps_the_hold_and_is_tried_again",),
    ),
    Mutant(
        name="failed-is-free",
        what="a failed task that the vendor billed is released",
        file="gateway/flow/advance.py",
        old="            if cost.nanos:\n",
        new="            if False:\n",
        tests=("tests/flow/test_poll.py::test_a_failed_task_is_released_and_a_failed_task_with_a_cost_is_settled",),
    ),
    Mutant(
        name="two-ends-for-a-hold",
        what="the database lets a reservation end twice",
        file="gateway/store/schema/0001_first.sql",
        old="CREATE UNIQUE INDEX entries_one_end",
        new="CREATE INDEX entries_one_end",
        tests=("tests/store/test_ledger.py::test_each_hold_ends_exactly_once",),
    ),
    Mutant(
        name="terminal-is-overwritten",
        what="whoever read the row before another changed it writes all the same",
        file="gateway/store/tasks.py",
        old=" WHERE id = :this_id AND state = :state_before",
        new=" WHERE id = :this_id AND :state_before <> ''",
        tests=("tests/flow/test_advance.py::test_whoever_read_the_row_before_another_changed_it_comes_too_late",),
    ),
    Mutant(
        name="late-failure-of-a-completed-task",
        what="a poll that comes late turns a completed task into a failed one",
        file="gateway/rules/task.py",
        old="    (State.DELIVERED, Event.MIRRORED):",
        new="    (State.COMPLETED, Event.FAILED): State.FAILED,\n    (State.DELIVERED, Event.MIRRORED):",
        tests=("tests/flow/test_advance.py::test_a_late_duplicate_or_backward_word_changes_nothing",),
    ),
    Mutant(
        name="clamped-at-zero",
        what="a balance that would fall below zero is set to zero",
        file="gateway/store/ledger.py",
        old="SET reserved_nanos = reserved_nanos - :nanos,",
        new="SET reserved_nanos = MAX(0, reserved_nanos - :nanos),",
        tests=("tests/store/test_ledger.py::test_a_release_of_more_than_is_reserved_fails_and_is_not_clamped",),
    ),
    Mutant(
        name="entries-can-be-changed",
        what="the database lets an entry be changed",
        file="gateway/store/schema/0001_first.sql",
        old="BEFORE UPDATE ON entries\n    BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;",
        new="BEFORE UPDATE ON entries\n    BEGIN SELECT 1; END;",
        tests=("tests/store/test_ledger.py::test_entries_are_append_only",),
    ),
    Mutant(
        name="end-without-a-reserve",
        what="the database lets a task settle or release what it never reserved",
        file="gateway/store/schema/0002_guards.sql",
        old="SELECT RAISE(ABORT, 'no reserve of this task')",
        new="SELECT 1",
        tests=("tests/store/test_sqlite_file.py::test_the_database_refuses_a_settle_and_a_release_without_a_reserve",),
    ),
    Mutant(
        name="release-of-another-amount",
        what="the database lets a release give back another amount than was reserved",
        file="gateway/store/schema/0002_guards.sql",
        old="SELECT RAISE(ABORT, 'a release is the whole reserve')",
        new="SELECT 1",
        tests=(
            "tests/store/test_sqlite_file.py::test_the_database_refuses_a_release_of_another_amount_than_was_reserved",
        ),
    ),
    Mutant(
        name="ended-task-moves-on",
        what="the database lets an ended task change its state",
        file="gateway/store/schema/0002_guards.sql",
        old="SELECT RAISE(ABORT, 'an ended task stays as it ended')",
        new="SELECT 1",
        tests=("tests/store/test_sqlite_file.py::test_the_database_refuses_that_an_ended_task_changes_its_state",),
    ),
    Mutant(
        name="hold-of-an-ended-task",
        what="the database lets a task hold an amount after its reserve has ended",
        file="gateway/store/schema/0002_guards.sql",
        old="SELECT RAISE(ABORT, 'the reserve of this task has ended')",
        new="SELECT 1",
        tests=("tests/store/test_sqlite_file.py::test_the_database_refuses_a_hold_for_a_reserve_that_has_ended",),
    ),
    # What an operator decides
    Mutant(
        name="resolved-during-a-post",
        what="a decision is taken while a POST is on its way, whose answer then comes too late",
        file="gateway/flow/resolve.py",
        old="case task.State.IN_DOUBT if not is_repeated_now:",
        new="case task.State.IN_DOUBT:",
        tests=(
            "tests/flow/test_resolve.py::"
            "test_a_decision_while_a_repeat_is_on_its_way_is_refused_and_the_vendors_answer_counts",
            "tests/flow/test_resolve.py::test_a_decision_that_comes_behind_an_attempt_waits_for_its_answer",
        ),
    ),
    Mutant(
        name="repeat-not-entered",
        what="a repeat does not say that it is on its way",
        file="gateway/flow/resubmit.py",
        old="    with_parts.repeating.add(row.id)",
        new="    pass",
        tests=(
            "tests/flow/test_resolve.py::"
            "test_a_decision_while_a_repeat_is_on_its_way_is_refused_and_the_vendors_answer_counts",
            "tests/flow/test_resolve.py::test_a_decision_that_comes_behind_an_attempt_waits_for_its_answer",
        ),
    ),
    Mutant(
        name="refused-releases-nothing",
        what="the task has failed by an operator's word and its hold stays for ever",
        file="gateway/flow/advance.py",
        old="    if charged_nanos is None:\n        ledger.release(tx, hold_of(row), now=now, why=why)\n",
        new="    if charged_nanos is None:\n        pass\n",
        tests=(
            "tests/flow/test_resolve.py::test_refused_releases_the_hold_and_fails_the_task_for_its_client",
            "tests/flow/test_resolve.py::test_two_decisions_at_once_end_the_hold_once",
        ),
    ),
    Mutant(
        name="charged-releases",
        what="what an operator found billed is released",
        file="gateway/flow/advance.py",
        old="    if charged_nanos is None:\n",
        new="    if True:\n",
        tests=(
            "tests/flow/test_resolve.py::test_charged_settles_to_the_amount_and_tells_the_client_the_cost",
            "tests/flow/test_resolve.py::test_a_charge_above_the_quote_is_recorded_as_overage_and_rings",
        ),
    ),
    Mutant(
        name="resolved-twice",
        what="an operator's decision about an ended task is one more end",
        file="gateway/rules/task.py",
        old="    (State.SUBMITTED, Event.RESOLVED):",
        new="    (State.FAILED, Event.RESOLVED): State.FAILED,\n    (State.SUBMITTED, Event.RESOLVED):",
        tests=("tests/rules/test_task.py::test_terminal_is_terminal[failed]",),
    ),
    Mutant(
        name="resolved-before-it-is-overdue",
        what="a task that the vendor took a minute ago may be ended by a decision",
        file="gateway/flow/resolve.py",
        old="case task.State.SUBMITTED if now - row.created_at > scrape.OVERDUE_AFTER_S:",
        new="case task.State.SUBMITTED if now >= row.created_at:",
        tests=(
            "tests/flow/test_resolve.py::"
            "test_an_accepted_task_is_decided_only_when_overdue_and_the_vendors_later_word_changes_nothing",
        ),
    ),
    Mutant(
        name="charge-in-no-total",
        what="what an operator found billed counts in the caps and in no report of the totals",
        file="gateway/store/ledger.py",
        old="    _add_total(tx, team=hold.team, model=cost.model, tier=cost.tier, cost_nanos",
        new="    why or _add_total(tx, team=hold.team, model=cost.model, tier=cost.tier, cost_nanos",
        tests=("tests/flow/test_resolve.py::test_charged_settles_to_the_amount_and_tells_the_client_the_cost",),
    ),
    Mutant(
        name="charge-delivers-images",
        what="an operator's charge counts images that nobody has",
        file="gateway/rules/pricing.py",
        old="return dataclasses.replace(_booked(quoted, nanos, images=n), images=0)",
        new="return _booked(quoted, nanos, images=n)",
        tests=("tests/flow/test_resolve.py::test_charged_settles_to_the_amount_and_tells_the_client_the_cost",),
    ),
    Mutant(
        name="charge-judged-as-one-image",
        what="an operator's charge for several images is taken for the official model's",
        file="gateway/rules/pricing.py",
        old="_booked(quoted, nanos, images=n)",
        new="_booked(quoted, nanos, images=1)",
        tests=("tests/flow/test_resolve.py::test_a_charge_above_the_standard_price_is_the_official_models",),
    ),
    Mutant(
        name="decision-not-signed",
        what="the ledger does not say of a decision that it was an operator's",
        file="gateway/flow/resolve.py",
        old='return f"operator: {found}: {self.why}"',
        new='return f"{found}: {self.why}"',
        tests=(
            "tests/flow/test_resolve.py::test_refused_releases_the_hold_and_fails_the_task_for_its_client",
            "tests/flow/test_reconcile.py::test_a_hold_that_an_operator_released_explains_up_to_its_quote",
            "tests/flow/test_audit.py::test_drift_and_an_operators_charge_are_recomputed_as_they_were_judged",
        ),
    ),
    # How often a submit is sent
    Mutant(
        name="retry-budget-ignored",
        what="every repeat that is due leaves",
        file="gateway/flow/resubmit.py",
        old="if row.attempts > 0 and not with_parts.retry_budget.take(row.id, now=now):",
        new="if False:",
        tests=("tests/flow/test_resubmit.py::test_retries_are_held_to_the_budget_and_first_posts_are_not",),
    ),
    Mutant(
        name="first-posts-are-retries",
        what="a first POST that was held back waits for the retry budget, and may miss its deadline",
        file="gateway/flow/resubmit.py",
        old="if row.attempts > 0 and not with_parts.retry_budget.take(",
        new="if not with_parts.retry_budget.take(",
        tests=("tests/flow/test_circuit.py::test_a_first_post_that_was_held_back_leaves_with_no_retry_left",),
    ),
    Mutant(
        name="recovery-inside-the-budget",
        what="what was in doubt when the gateway stopped waits for the retry budget",
        file="gateway/flow/recover.py",
        old="with_parts.retry_budget.leave_out(await with_parts.database.read(tasks.ids_to_repeat))",
        new="await with_parts.database.read(tasks.ids_to_repeat)",
        tests=("tests/flow/test_resubmit.py::test_recovery_after_a_restart_is_outside_the_retry_budget",),
    ),
    Mutant(
        name="recovered-stay-outside",
        what="what was recovered after a restart is outside the budget for ever",
        file="gateway/flow/retry_budget.py",
        old="            self._outside.discard(task_id)\n",
        new="",
        tests=("tests/flow/test_resubmit.py::test_of_what_was_recovered_only_the_first_repeat_is_outside_the_budget",),
    ),
    Mutant(
        name="retries-end-with-the-submits",
        what="when no submits come any more what is in doubt is not repeated",
        file="gateway/rules/retry_budget.py",
        old="max(share, budget.least_tokens)",
        new="share",
        tests=(
            "tests/rules/test_retry_budget.py::"
            "test_when_the_load_ends_retries_fall_back_to_three_a_second_and_not_below",
            "tests/rules/test_retry_budget.py::test_three_a_second_are_never_held",
            "tests/flow/test_resubmit.py::test_retries_are_held_to_the_budget_and_first_posts_are_not",
        ),
    ),
    Mutant(
        name="retries-not-counted",
        what="the share of the submits is there for each retry anew",
        file="gateway/rules/retry_budget.py",
        old="max(0, int(SHARE * submits) - retries)",
        new="int(SHARE * submits)",
        tests=("tests/rules/test_retry_budget.py::test_what_left_in_the_last_minute_counts_against_the_share",),
    ),
    Mutant(
        name="submits-not-counted",
        what="however many submits come, retries get no more than the floor",
        file="gateway/flow/submit.py",
        old="with_parts.retry_budget.submitted(now=row.created_at)",
        new="pass",
        tests=("tests/flow/test_circuit.py::test_a_fifth_of_the_live_submits_is_there_for_retries",),
    ),
    Mutant(
        name="repeated-without-idempotency",
        what="a POST in doubt is repeated although the vendor ignores idempotency keys",
        file="gateway/flow/attempt.py",
        old="and not with_parts.is_upstream_idempotent:",
        new="and False:",
        tests=(
            "tests/flow/test_resubmit.py::"
            "test_where_the_vendor_ignores_idempotency_keys_a_post_in_doubt_is_never_repeated",
        ),
    ),
    Mutant(
        name="no-idempotency-not-heard",
        what="`--no-upstream-idempotency` reaches nobody",
        file="gateway/app.py",
        old="is_upstream_idempotent=settings.upstream_idempotency,",
        new="is_upstream_idempotent=True,",
        tests=("tests/test_outage.py::test_with_no_upstream_idempotency_a_lost_answer_is_never_asked_for_again",),
    ),
    Mutant(
        name="recovered-without-idempotency",
        what="a POST that a kill interrupted is repeated although the vendor ignores idempotency keys",
        file="gateway/flow/recover.py",
        old="if with_parts.is_upstream_idempotent:",
        new="if True:",
        tests=(
            "tests/flow/test_resubmit.py::"
            "test_where_the_vendor_ignores_idempotency_keys_a_post_that_a_kill_interrupted_is_the_operators",
        ),
    ),
    Mutant(
        name="recovery-takes-the-operators",
        what="a restart repeats what waits for the operator",
        file="gateway/store/tasks.py",
        old="WHERE state = 'in_doubt' AND next_at IS NOT NULL\", now=now)",
        new="WHERE state = 'in_doubt'\", now=now)",
        tests=("tests/store/test_tasks.py::test_tasks_in_doubt_are_due_at_once_but_for_the_operators",),
    ),
    Mutant(
        name="replaced-key-gives-up-at-once",
        what="a wrong key in the file leaves every task in doubt to the operator, though it is mended in a minute",
        file="gateway/flow/resubmit.py",
        old="if key is None and _is_key_replaced(with_parts, row) and now >= row.deadline_at:",
        new="if key is None and _is_key_replaced(with_parts, row):",
        tests=("tests/flow/test_resubmit.py::test_in_doubt_is_repeated_only_with_the_upstream_key_it_was_sent_with",),
    ),
    Mutant(
        name="replaced-key-waits-for-ever",
        what="a task in doubt whose key was replaced never becomes the operator's",
        file="gateway/flow/resubmit.py",
        old="if key is None and _is_key_replaced(with_parts, row) and now >= row.deadline_at:",
        new="if False:",
        tests=(
            "tests/flow/test_resubmit.py::"
            "test_in_doubt_with_a_replaced_upstream_key_is_the_operators_after_the_deadline",
        ),
    ),
    Mutant(
        name="unreadable-key-is-a-replaced-one",
        what="a key file that cannot be read just now leaves every task in doubt to the operator",
        file="gateway/flow/resubmit.py",
        old="key is not None and attempt.digest_of(key) != row.upstream_key_digest",
        new="(key is None or attempt.digest_of(key) != row.upstream_key_digest)",
        tests=("tests/flow/test_resubmit.py::test_a_key_that_cannot_be_read_is_waited_for",),
    ),
    # What a task cost
    Mutant(
        name="float-money",
        what="the vendor's bill goes through dollars as a float",
        file="gateway/rules/money.py",
        old="return Nanos(quota * NANOS_PER_QUOTA)",
        new="return Nanos(int(quota / 500_000 * 1e9))",
        tests=("tests/rules/test_pricing.py::test_the_vendors_cost_is_kept_to_the_nano",),
    ),
    Mutant(
        name="todays-price-at-settle",
        what="a task without a vendor's cost is settled at the price of the day it ends",
        file="gateway/flow/poll.py",
        old="        row=row,\n",
        new="""\
        row=__import__("dataclasses").replace(
            row,
            standard_unit_nanos=with_parts.in_force.policies.models[row.model].prices[-1].nanos["default"],
        ),
""",
        tests=("tests/test_invariants.py::test_a_price_that_changes_while_a_task_is_open_changes_nothing_about_it",),
    ),
    Mutant(
        name="window-of-the-completion",
        what="a settle lands in the window of its own day",
        file="gateway/store/ledger.py",
        old="        counted = cost_nanos if",
        new="""\
        ended = tx.one("SELECT MAX(at) AS at FROM entries")["at"]
        balance = dataclasses.replace(balance, start=int(ended // 86_400 * 86_400))
        counted = cost_nanos if""",
        tests=("tests/flow/test_poll.py::test_a_settle_lands_in_the_windows_of_its_reserve",),
    ),
    Mutant(
        name="entry-in-the-window-of-the-completion",
        what="an entry counts in the window of its own time",
        file="gateway/store/ledger.py",
        old="        reserved_at=hold.reserved_at,\n",
        new="        reserved_at=at,\n",
        tests=("tests/store/test_ledger.py::test_a_settle_of_the_next_day_lands_in_the_day_of_its_reserve",),
    ),
    Mutant(
        name="overage-hidden",
        what="a bill above the quote is booked as the quote",
        file="gateway/rules/pricing.py",
        old="_booked(quoted, _billed(quoted, outcome, n),",
        new="_booked(quoted, min(quoted.nanos, _billed(quoted, outcome, n)),",
        tests=("tests/flow/test_poll.py::test_a_bill_above_the_quote_is_recorded_as_overage_and_as_drift_and_rings",),
    ),
    Mutant(
        name="vendors-cost-ignored",
        what="the vendor's bill is not read where it says one",
        file="gateway/rules/pricing.py",
        old="if outcome.cost_quota is not None:",
        new="if False:",
        tests=("tests/flow/test_poll.py::test_a_failed_task_is_released_and_a_failed_task_with_a_cost_is_settled",),
    ),
    Mutant(
        name="frozen-price-rounded-up",
        what="without a vendor's cost the rounded quote is booked, not the price",
        file="gateway/rules/pricing.py",
        old="return Nanos(outcome.images * quoted.dearest_unit_nanos())",
        new="return Nanos(outcome.images * money.ceil_to_quota(quoted.dearest_unit_nanos()))",
        tests=("tests/flow/test_poll.py::test_all_three_generations_settle_to_the_bill_or_within_a_quota_per_image",),
    ),
    Mutant(
        name="partial-delivery-billed-in-full",
        what="without a vendor's cost all that was asked for is billed, not what was delivered",
        file="gateway/rules/pricing.py",
        old="return Nanos(outcome.images * quoted.dearest_unit_nanos())",
        new="return Nanos(n * quoted.dearest_unit_nanos())",
        tests=(
            "tests/rules/test_pricing.py::"
            "test_a_task_costs_what_the_vendor_said_else_what_it_took_else_the_frozen_price",
        ),
    ),
    Mutant(
        name="pre-consumed-of-a-partial-delivery",
        what="what the vendor took beforehand is booked though not everything was delivered",
        file="gateway/rules/pricing.py",
        old="outcome.pre_consumed_quota is not None and outcome.images == n:",
        new="outcome.pre_consumed_quota is not None:",
        tests=(
            "tests/rules/test_pricing.py::"
            "test_a_task_costs_what_the_vendor_said_else_what_it_took_else_the_frozen_price",
        ),
    ),
    Mutant(
        name="total-not-updated",
        what="a settle leaves the total of its team and model as it was",
        file="gateway/store/ledger.py",
        old="tier=cost.tier, cost_nanos=cost.nanos, images=cost.images)",
        new="tier=cost.tier, images=cost.images)",
        tests=(
            "tests/store/test_ledger.py::test_totals_add_up_cost_and_images_by_team_model_and_tier",
            "tests/flow/test_submit.py::test_a_submit_reserves_the_quote_and_settles_to_the_vendors_bill",
        ),
    ),
    Mutant(
        name="audit-looks-away",
        what="the audit does not compare what is settled",
        file="gateway/flow/audit.py",
        old="if settled != found.settled_nanos:",
        new="if False:",
        tests=("tests/flow/test_audit.py::test_it_finds_one_nano_in_one_balance",),
    ),
    Mutant(
        name="audit-misses-an-open-hold",
        what="the audit does not look for a reservation that never ended",
        file="gateway/flow/audit.py",
        old="for task_id in sorted(reserved - holding):",
        new="for task_id in ():",
        tests=("tests/flow/test_audit.py::test_it_finds_a_reservation_without_an_end",),
    ),
    Mutant(
        name="audit-misses-a-lost-hold",
        what="the audit does not compare the rows of `holds` with the open reserves",
        file="gateway/flow/audit.py",
        old="if held != reserved:",
        new="if False:",
        tests=("tests/flow/test_audit.py::test_it_finds_a_hold_that_is_missing",),
    ),
    Mutant(
        name="audit-misses-a-total",
        what="the audit does not compare the totals that reports and metrics show",
        file="gateway/flow/audit.py",
        old="if found.get(column, 0) != wanted.get(column, 0):",
        new="if False:",
        tests=("tests/flow/test_audit.py::test_it_finds_one_too_many_in_a_total",),
    ),
    Mutant(
        name="audit-misses-an-ended-task",
        what="the audit does not look for an end in the ledger of each paid task that ended",
        file="gateway/flow/audit.py",
        old="for task_id in checks.ended_without_end(tx):",
        new="for task_id in ():",
        tests=("tests/flow/test_audit.py::test_it_finds_an_ended_task_that_the_ledger_does_not_know",),
    ),
    Mutant(
        name="audit-misses-a-cost",
        what="the audit does not compare a task's row with its settle",
        file="gateway/flow/audit.py",
        old="for row in checks.other_costs(tx):",
        new="for row in ():",
        tests=("tests/flow/test_audit.py::test_it_finds_a_cost_on_a_row_that_is_not_its_settle",),
    ),
    Mutant(
        name="audit-misses-a-cost-that-is-not-there",
        what="to the audit a row without any cost agrees with every settle",
        file="gateway/store/checks.py",
        old="WHERE cost_nanos IS NOT nanos",
        new="WHERE cost_nanos <> nanos",
        tests=("tests/flow/test_audit.py::test_it_finds_that_an_ended_task_names_no_cost",),
    ),
    Mutant(
        name="spend-not-from-the-ledger",
        what="a scrape shows no spend of before the start",
        file="gateway/flow/scrape.py",
        old="spend=_within(policies, ledger.totals(tx)),",
        new="spend=(),",
        tests=("tests/flow/test_books.py::test_a_scrape_reads_money_from_the_ledger_and_hides_unlisted_models",),
    ),
    Mutant(
        name="polled-only-when-asked",
        what="a task that nobody asks about is never polled",
        file="gateway/flow/poll.py",
        old="return list(dict.fromkeys([*wanted, *planned]))[:most]",
        new="return list(dict.fromkeys(wanted))[:most]",
        tests=(
            "tests/flow/test_poll.py::test_a_task_that_nobody_polls_completes",
            "tests/test_invariants.py::test_with_the_vendor_healthy_a_task_in_every_open_state_reaches_its_end",
        ),
    ),
    Mutant(
        name="overdue-not-shown",
        what="what is open for hours shows nowhere",
        file="gateway/flow/scrape.py",
        old="overdue=tasks.count_overdue(tx, before=now - OVERDUE_AFTER_S),",
        new="overdue=0,",
        tests=("tests/test_invariants.py::test_what_is_older_than_it_should_be_is_visible_and_still_held",),
    ),
    # What is free
    Mutant(
        name="hit-counted",
        what="a hit costs what its result once cost",
        file="gateway/flow/submit.py",
        old="        quote_nanos=0,\n        cost_nanos=0,\n",
        new="        quote_nanos=0,\n        cost_nanos=paid.cost_nanos or 0,\n",
        tests=("tests/test_invariants.py::test_a_replay_a_hit_and_a_follower_are_served_when_the_cap_is_used_up",),
    ),
    Mutant(
        name="hit-reserves",
        what="a hit or a follower reserves its quote",
        file="gateway/flow/submit.py",
        old="        tasks.insert(tx, free)\n",
        new="        ledger.reserve(tx, advance.hold_of(draft), planned.allowances)\n        tasks.insert(tx, free)\n",
        tests=("tests/test_invariants.py::test_a_hit_and_a_follower_hold_nothing_where_there_is_room",),
    ),
    Mutant(
        name="follower-charged",
        what="a follower's team pays for its leader's result once more",
        file="gateway/flow/advance.py",
        old="ledger.avoid(tx, team=team, model=row.model, tier=row.tier, coalesced_nanos=nanos)",
        new="ledger._add_total(tx, team=team, model=row.model, tier=row.tier, cost_nanos=nanos)",
        tests=(
            "tests/flow/test_submit.py::test_under_scope_org_the_leaders_team_pays_for_a_followers_result",
            "tests/flow/test_submit.py::test_identical_requests_in_flight_follow_one_leader_and_all_complete",
        ),
    ),
    Mutant(
        name="followers-left-open",
        what="the followers of a failed leader wait for ever",
        file="gateway/flow/advance.py",
        old="    return dataclasses.replace(moved, followers=tuple(",
        new="""\
    if state is not task.State.COMPLETED:
        return moved
    return dataclasses.replace(moved, followers=tuple(""",
        tests=(
            "tests/flow/test_submit.py::"
            "test_a_failed_leader_gives_every_follower_its_failure_and_nothing_is_posted_again",
        ),
    ),
    Mutant(
        name="results-across-teams",
        what="every team's results are in one scope",
        file="gateway/rules/fingerprint.py",
        old='return f"team:{team}"',
        new='return "team"',
        tests=("tests/flow/test_submit.py::test_teams_do_not_share_results_unless_both_say_org",),
    ),
    Mutant(
        name="leader-not-looked-for-again",
        what="the reserving transaction does not look for a leader that came meanwhile",
        file="gateway/flow/submit.py",
        old="leader = None if draft.inflight is None else tasks.get_leader(tx, draft.inflight)",
        new="leader = None",
        tests=(
            "tests/test_invariants.py::test_a_leader_that_came_since_the_decision_is_followed_and_not_bought_again",
        ),
    ),
    # One purchase
    Mutant(
        name="idempotency-after-the-rules",
        what="a replay is looked up after the rules, so a changed policy refuses it",
        file="gateway/flow/submit.py",
        old="    replay = await _replay(with_parts, caller, digest, options)\n",
        new="    replay = None\n",
        tests=(
            "tests/test_invariants.py::test_a_hit_and_a_follower_obey_the_model_rules_and_a_replay_is_the_same_task",
        ),
    ),
    Mutant(
        name="idempotency-after-the-cap",
        what="a replay that races its first is held against the cap",
        file="gateway/flow/submit.py",
        old="    if known is not None:\n        return known, False\n",
        new="""\
    is_full = any(ledger._is_full(tx, advance.hold_of(draft), each) for each in planned.allowances)
    if known is not None and not is_full:
        return known, False
""",
        tests=(
            "tests/test_invariants.py::"
            "test_racing_replays_at_a_cap_with_room_for_one_are_one_task_and_nobody_is_refused",
        ),
    ),
    Mutant(
        name="key-not-looked-for-again",
        what="the reserving transaction does not look for a task of the key that came meanwhile",
        file="gateway/flow/submit.py",
        old="known = replayed(tx, caller, draft.body_digest, options, now=draft.created_at)",
        new="known = None",
        tests=(
            "tests/flow/test_submit.py::test_concurrent_replays_of_one_key_make_one_task_and_wait_for_its_first_answer",
            "tests/flow/test_retries.py::"
            "test_a_retry_of_what_never_arrived_is_a_task_and_its_own_retries_are_that_task",
        ),
    ),
    Mutant(
        name="retry-not-heard",
        what="an SDK's retry after a lost answer is bought again",
        file="gateway/edge/wishes.py",
        old="is_retry=_is_retry(request)",
        new="is_retry=False",
        tests=("tests/test_task_routes.py::test_a_retry_that_says_so_is_the_first_task_and_nonsense_is_a_new_one",),
    ),
    Mutant(
        name="retry-overtakes-the-first",
        what="a retry that arrives before the first is in the ledger is bought beside it",
        file="gateway/flow/submit.py",
        old="await _first_admitted(with_parts, caller, digest)",
        new="pass",
        tests=("tests/flow/test_retries.py::test_a_retry_that_overtakes_the_first_waits_until_that_is_in_the_ledger",),
    ),
    Mutant(
        name="retry-across-keys",
        what="a retry is answered with a task that another virtual key of the team made",
        file="gateway/store/tasks.py",
        old="AND team = :team AND key_name = :key AND body_digest",
        new="AND team = :team AND body_digest",
        tests=("tests/flow/test_retries.py::test_another_virtual_key_is_no_retry",),
    ),
    Mutant(
        name="outage-replayed-to-a-retry",
        what="a task that the upstream would not have in time is all that an SDK's retries ever get",
        file="gateway/store/tasks.py",
        old="return self.state is task.State.FAILED and self.leader_id is None and not is_told",
        new="return False",
        tests=(
            "tests/flow/test_retries.py::test_what_was_refused_for_an_outage_is_tried_again",
            "tests/flow/test_retries.py::test_what_waited_past_its_deadline_is_tried_again",
        ),
    ),
    Mutant(
        name="replay-of-a-refusal-posts-again",
        what="a refused task forgets its idempotency key",
        file="gateway/flow/advance.py",
        old='"refusal_status": outcome.status, "cost_nanos": 0}',
        new='"refusal_status": outcome.status, "cost_nanos": 0, "idempotency_key": None}',
        tests=(
            "tests/flow/test_submit.py::test_a_refusal_of_the_vendor_releases_and_is_replayed_with_its_status_and_body",
        ),
    ),
    Mutant(
        name="clients-key-forwarded",
        what="the client's Idempotency-Key goes to the vendor, where all teams share an account",
        file="gateway/flow/submit.py",
        old='upstream_idempotency_key="wg-"',
        new='upstream_idempotency_key=options.idempotency_key or "wg-"',
        tests=("tests/flow/test_submit.py::test_two_teams_may_use_the_same_idempotency_key",),
    ),
    Mutant(
        name="fresh-key-on-a-repeat",
        what="a repeated POST carries an idempotency key of its own",
        file="gateway/flow/attempt.py",
        old="idempotency_key=row.upstream_idempotency_key",
        new='idempotency_key=f"{row.upstream_idempotency_key}-{row.attempts}"',
        tests=(
            "tests/flow/test_resubmit.py::"
            "test_a_lost_answer_is_in_doubt_and_repeated_under_the_same_key_until_the_vendor_says",
        ),
    ),
    Mutant(
        name="another-body-on-a-repeat",
        what="a repeated POST is sent without the callback that the first one named",
        file="gateway/flow/attempt.py",
        old="if row.callback_token is None or",
        new="if row.attempts > 1 or row.callback_token is None or",
        tests=(
            "tests/flow/test_hint.py::test_a_repeat_sends_the_same_bytes_though_the_settings_changed_meanwhile[True]",
        ),
    ),
    Mutant(
        name="another-upstream-key-on-a-repeat",
        what="a task in doubt is repeated with whatever key is there now",
        file="gateway/flow/resubmit.py",
        old="key = None if _is_key_replaced(with_parts, row) else with_parts.upstream_key(row.upstream_key_ref)",
        new="key = with_parts.upstream_key(row.upstream_key_ref)",
        tests=("tests/flow/test_resubmit.py::test_in_doubt_is_repeated_only_with_the_upstream_key_it_was_sent_with",),
    ),
    Mutant(
        name="23-hours-dropped",
        what="a task in doubt is repeated after the vendor forgot its key",
        file="gateway/flow/resubmit.py",
        old=">= retry.FORGETS_AFTER_S:",
        new=">= 1e12:",
        tests=(
            "tests/flow/test_resubmit.py::test_in_doubt_after_23_hours_is_never_posted_again_and_frees_the_fingerprint",
        ),
    ),
    Mutant(
        name="one-vendor-task-for-two",
        what="the database lets two tasks stand for one task of the vendor",
        file="gateway/store/schema/0001_first.sql",
        old=",\n    UNIQUE (upstream_task_id)",
        new="",
        tests=("tests/store/test_tasks.py::test_a_task_of_the_vendor_is_one_task_of_ours",),
    ),
    Mutant(
        name="two-tasks-for-a-key",
        what="the database lets two tasks have one idempotency key of a team",
        file="gateway/store/schema/0001_first.sql",
        old="    UNIQUE (team, idempotency_key),\n",
        new="",
        tests=("tests/store/test_tasks.py::test_of_racing_submits_under_one_idempotency_key_one_is_kept",),
    ),
    Mutant(
        name="two-leaders",
        what="the database lets two tasks lead for one fingerprint",
        file="gateway/store/schema/0001_first.sql",
        old="    UNIQUE (inflight),\n",
        new="",
        tests=("tests/store/test_tasks.py::test_two_leaders_for_one_fingerprint_are_impossible",),
    ),
    Mutant(
        name="recover-forgets-reserved",
        what="after a kill nobody looks after a submit whose POST was under way",
        file="gateway/flow/recover.py",
        old="tasks.ids_in(tx, task.State.RESERVED)",
        new="tasks.ids_in(tx, task.State.WAITING)",
        tests=("tests/flow/test_resubmit.py::test_after_a_crash_a_post_that_was_under_way_is_in_doubt_and_repeated",),
    ),
    Mutant(
        name="key-complaint-passed-on",
        what="the vendor's 401 about our key reaches the client as its own",
        file="gateway/wire.py",
        old="    if status in (401, 402, 403):\n        return task.NotSent",
        new="""\
    if status in (401, 402, 403) and document is not None:
        return task.Refused(status=status, document=b'{"error":{"code":"invalid_api_key"}}')
    if status in (401, 402, 403):
        return task.NotSent""",
        tests=(
            "tests/flow/test_resubmit.py::test_a_complaint_about_our_key_is_never_passed_on_and_goes_on_when_mended",
        ),
    ),
    # Before the first byte leaves
    Mutant(
        name="post-before-the-commit",
        what="the POST starts while the reservation is still to be written",
        file="gateway/flow/submit.py",
        old="            return await with_parts.database.write(admit)\n",
        new="""\
            _begin(with_parts, draft)
            await asyncio.sleep(0.1)
            return await with_parts.database.write(admit)
""",
        tests=(
            "tests/test_invariants.py::"
            "test_without_a_durable_reservation_the_client_gets_503_and_the_vendor_hears_nothing",
            "tests/flow/test_attempt.py::test_each_attempt_is_on_the_disk_before_the_vendor_hears_of_it",
        ),
    ),
    Mutant(
        name="repeat-before-the-commit",
        what="a later POST starts while its attempt is still to be written",
        file="gateway/flow/resubmit.py",
        old="        begun = await with_parts.database.write(begin)\n",
        new="        await attempt._send(with_parts, row, key)\n"
        "        begun = await with_parts.database.write(begin)\n",
        tests=(
            "tests/test_invariants.py::test_without_a_durable_attempt_nothing_is_sent_again",
            "tests/flow/test_attempt.py::test_each_attempt_is_on_the_disk_before_the_vendor_hears_of_it",
        ),
    ),
    Mutant(
        name="disconnect-cancels-the-post",
        what="a client that leaves takes its POST along",
        file="gateway/flow/submit.py",
        old="    settled = await _settled(with_parts, row, is_replay=False)\n",
        new="""\
    try:
        settled = await _settled(with_parts, row, is_replay=False)
    except asyncio.CancelledError:
        with_parts.attempts[row.id].cancel()
        raise
""",
        tests=(
            "tests/test_invariants.py::test_a_client_that_leaves_during_the_post_has_its_task_bought_once_and_settled",
        ),
    ),
    Mutant(
        name="commit-not-synced",
        what="a commit returns before it is on the disk",
        file="gateway/store/sqlite.py",
        old='"synchronous = FULL"',
        new='"synchronous = NORMAL"',
        tests=("tests/store/test_sqlite.py::test_the_writer_is_durable_at_every_commit",),
    ),
    Mutant(
        name="answered-before-the-commit",
        what="who writes is answered when its function has run, before the COMMIT",
        file="gateway/store/sqlite.py",
        old="            each.value = each.fn(SqliteTx(connection))\n",
        new="""\
            each.value = each.fn(SqliteTx(connection))
            each.loop.call_soon_threadsafe(each.answer)
""",
        tests=("tests/store/test_sqlite.py::test_nobody_is_answered_while_the_batch_is_not_committed",),
    ),
    Mutant(
        name="failed-batch-answered-as-kept",
        what="who wrote in a batch that was not committed is told that it was",
        file="gateway/store/sqlite.py",
        old="if batch and not self._run_batch(batch):",
        new="if batch and self._run_batch(batch) is None:",
        tests=(
            "tests/store/test_sqlite.py::"
            "test_a_lost_transaction_fails_everyone_of_its_batch_and_all_succeed_when_repeated",
        ),
    ),
    # The vendor's books
    Mutant(
        name="unexplained-accepted",
        what="a wallet that was read is explained, whatever is left",
        file="gateway/rules/reconcile.py",
        old="return self.unexplained_nanos() == 0",
        new="return self.unexplained_nanos() is not None",
        tests=(
            "tests/flow/test_reconcile.py::"
            "test_use_behind_the_gateways_back_is_named_to_the_nano_and_an_opening_explains_it",
        ),
    ),
    Mutant(
        name="unexplained-below-a-quota",
        what="less than a quota that is left counts as explained",
        file="gateway/rules/reconcile.py",
        old="return self.unexplained_nanos() == 0",
        new="return abs(self.unexplained_nanos() or 0) < 2_000 and self.used_nanos is not None",
        tests=(
            "tests/flow/test_reconcile.py::"
            "test_use_behind_the_gateways_back_is_named_to_the_nano_and_an_opening_explains_it",
        ),
    ),
    Mutant(
        name="opening-taken-off",
        what="what an operator names as opening is taken off the ledger's side",
        file="gateway/flow/reconcile.py",
        old="nanos = question.openings[ref]",
        new="nanos = -question.openings[ref]",
        tests=(
            "tests/flow/test_reconcile.py::"
            "test_use_behind_the_gateways_back_is_named_to_the_nano_and_an_opening_explains_it",
            "tests/flow/test_reconcile.py::"
            "test_a_key_that_is_gone_with_its_team_is_not_known_until_the_operator_says_where_it_was_spent",
        ),
    ),
    Mutant(
        name="another-cost-is-no-fault",
        what="a task for which the vendor names another cost than was settled is not reported",
        file="gateway/rules/reconcile.py",
        old="FAULTS: Final = frozenset({Reason.COST, ",
        new="FAULTS: Final = frozenset({",
        tests=(
            "tests/flow/test_reconcile.py::"
            "test_a_cost_that_the_vendor_changed_afterwards_names_the_task_and_both_amounts",
            "tests/flow/test_reconcile.py::test_a_failed_task_that_the_vendor_completed_and_billed_is_a_fault",
        ),
    ),
    Mutant(
        name="every-difference-is-rounding",
        what="a cost that differs is put down to the vendor's rounding",
        file="gateway/rules/reconcile.py",
        old="Reason.ESTIMATED if is_rounding else Reason.COST",
        new="Reason.ESTIMATED",
        tests=(
            "tests/flow/test_reconcile.py::"
            "test_a_cost_that_the_vendor_changed_afterwards_names_the_task_and_both_amounts",
        ),
    ),
    Mutant(
        name="doubt-explains-anything",
        what="a task in doubt may have cost twice its quote",
        file="gateway/rules/reconcile.py",
        old="Reason.IN_DOUBT), booked, 0, quote)",
        new="Reason.IN_DOUBT), booked, 0, 2 * quote)",
        tests=("tests/flow/test_reconcile.py::test_a_task_in_doubt_explains_up_to_its_quote_and_not_a_nano_more",),
    ),
    Mutant(
        name="unknown-wallet-is-empty",
        what="a wallet that cannot be read has used nothing",
        file="gateway/flow/reconcile.py",
        old="used = wallet.used_nanos if isinstance(wallet, rules.Wallet) else None",
        new="used = wallet.used_nanos if isinstance(wallet, rules.Wallet) else 0",
        tests=("tests/flow/test_reconcile.py::test_a_key_that_cannot_be_read_is_not_known",),
    ),
    Mutant(
        name="wallet-of-before-the-tasks",
        what="the wallet is read before the vendor says which tasks have ended",
        file="gateway/flow/reconcile.py",
        old="[key for key in keys if isinstance(first[key.refs], rules.Wallet)]",
        new="[]",
        tests=("tests/flow/test_reconcile.py::test_the_wallet_that_counts_is_read_after_the_tasks",),
    ),
    Mutant(
        name="reserved-meanwhile-forgotten",
        what="what was reserved while the wallet was read is not looked up",
        file="gateway/flow/reconcile.py",
        old="reserved = await scan(lambda tx: books.reserved_after(tx, found.last_entry))",
        new="reserved = ()",
        tests=(
            "tests/flow/test_reconcile.py::"
            "test_what_is_reserved_while_the_wallet_is_read_is_explained_under_a_key_that_was_there",
        ),
    ),
    Mutant(
        name="float-balance",
        what="the vendor's balance goes through a float",
        file="gateway/wire.py",
        old="amount = decimal.Decimal(text)",
        new="amount = decimal.Decimal(float(text))",
        tests=(
            "tests/test_wire.py::test_the_used_amount_is_read_from_its_digits[123456789.123456789-123456789123456789]",
        ),
    ),
    # Whose money it is
    Mutant(
        name="another-teams-task-shown",
        what="a team reads another team's task",
        file="gateway/flow/read.py",
        old="row.team != team",
        new="False",
        tests=("tests/flow/test_read.py::test_another_teams_task_is_like_an_unknown_one",),
    ),
    Mutant(
        name="another-teams-cancel",
        what="a team cancels another team's task",
        file="gateway/flow/cancel.py",
        old="if row is None or row.team != team:",
        new="if row is None:",
        tests=("tests/test_invariants.py::test_nothing_that_one_team_does_changes_a_row_of_another",),
    ),
    # Reports
    Mutant(
        name="report-days-in-utc",
        what="a report's days are those of UTC, whatever the organisation's timezone",
        file="gateway/flow/report.py",
        old='return [budget.today(row["at"], timezone).isoformat()]',
        new='return [budget.today(row["at"], datetime.UTC).isoformat()]',
        tests=("tests/flow/test_report.py::test_days_weeks_and_months_are_those_of_the_organisations_timezone",),
    ),
    Mutant(
        name="report-premium-by-delivered-images",
        what="the premium of an operator's charge is held against no image, as none was delivered",
        file="gateway/store/spend.py",
        old="(CASE entries.why WHEN '' THEN entries.images ELSE tasks.n END)",
        new="entries.images",
        tests=(
            "tests/flow/test_report.py::test_savings_and_premium_are_those_of_the_metrics",
            "tests/store/test_spend.py::test_a_charge_that_an_operator_named_has_its_premium_above_all_images_asked_for",
        ),
    ),
    Mutant(
        name="report-average-in-floats",
        what="an average is a float, rounded away from zero",
        file="gateway/rules/share.py",
        old="round(Fraction(cost_nanos, images))",
        new="int(cost_nanos / images + 0.5)",
        tests=("tests/rules/test_share.py::test_an_average_is_rounded_half_to_even_to_the_nano[1-2-0]",),
    ),
    Mutant(
        name="report-share-without-raises",
        what="a line is held against its cap without the raises in force",
        file="gateway/rules/share.py",
        old="limit_nanos=budget.limit(cap, last_day)",
        new="limit_nanos=cap.nanos",
        tests=("tests/rules/test_share.py::test_a_raise_that_had_ended_by_the_last_day_does_not_count",),
    ),
    Mutant(
        name="focus-prices-what-was-free",
        what="a hit is a priced quantity in the file for a FinOps tool",
        file="gateway/rules/focus.py",
        old='images = "0" if charge.reason else str(charge.images)',
        new="images = str(charge.images)",
        tests=("tests/flow/test_report.py::test_a_focus_file_adds_up_to_the_report_to_the_nano",),
    ),
    # Who is told
    Mutant(
        name="end-not-noted",
        what="the end of a paid task is not in the outbox",
        file="gateway/flow/advance.py",
        old="        notice.note(tx, moved.row, now=now)\n",
        new="        pass\n",
        tests=(
            "tests/flow/test_notice.py::"
            "test_a_completed_task_has_its_webhook_in_the_outbox_once_and_an_open_one_has_none",
        ),
    ),
    Mutant(
        name="followers-not-told",
        what="those who follow a task that ends are not in the outbox",
        file="gateway/flow/advance.py",
        old="    notice.note_followers(tx, row.id, state, now=now)\n",
        new="",
        tests=("tests/flow/test_notice.py::test_a_failed_task_is_told_of_and_so_are_its_followers",),
    ),
    Mutant(
        name="webhook-ended-before-its-answer",
        what="a webhook counts as delivered whatever the receiver answers",
        file="gateway/flow/deliver.py",
        old="    if isinstance(outcome, webhook.Delivered):\n",
        new="    if outcome is not None:\n",
        tests=("tests/flow/test_deliver.py::test_a_receiver_that_comes_back_gets_its_webhook",),
    ),
    Mutant(
        name="unsigned-webhook",
        what="a webhook whose secret cannot be read leaves unsigned",
        file="gateway/flow/deliver.py",
        old='        raise ValueError(f"the secret {team.webhook_secret} cannot be read")\n',
        new="        return headers\n",
        tests=("tests/flow/test_deliver.py::test_a_webhook_that_cannot_be_signed_waits_until_it_can",),
    ),
)
