"""The ledger beside the simulator's wallet and tasks, on the stage."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from gateway.flow import reconcile, resolve
from gateway.rules import money
from gateway.rules.reconcile import Reason
from tests import stage

GROWTH, RESEARCH = "env:KEY_GROWTH", "env:KEY_RESEARCH"


async def reconciled(
    play: stage.Stage,
    *,
    refs: Collection[str] = (GROWTH, RESEARCH),
    openings: Mapping[str, int] | None = None,
    most: int = 100,
) -> reconcile.Report:
    question = reconcile.Question(refs=frozenset(refs), openings=openings or {}, since=play.clock() - 86_400, most=most)
    return await reconcile.reconcile(
        play.parts.database.scan, play.parts.upstream, question=question, key_of=play.keys.get
    )


def parts(report: reconcile.Report, at: int = 0) -> dict[Reason, tuple[int, int, int]]:
    """(tasks, least, most) by reason, of one account."""
    return {each.reason: (each.tasks, each.least_nanos, each.most_nanos) for each in report.accounts[at].parts}


async def outside(play: stage.Stage) -> None:
    """A task that somebody buys with the same key behind the gateway's back."""
    body = b'{"model": "gemini-3-pro-image-preview", "prompt": "outside"}'
    await play.parts.upstream.submit(body, key="vendor-key-growth", idempotency_key=None)


async def test_two_keys_of_one_account_agree_with_the_sum_of_their_ledgers(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.admitted(stage.OTHER, model=stage.PRO)
        await play.finish()
        report = await reconciled(play)
        account = report.accounts[0]
        assert report.is_explained() and len(report.accounts) == 1
        assert account.refs == (GROWTH, RESEARCH)
        assert (account.used_nanos, account.settled_nanos, account.settles) == (55_780_000, 55_780_000, 2)
        assert (account.parts, report.findings, report.asked) == ((), (), 2)


async def test_open_tasks_explain_what_the_vendor_took_beforehand(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.finish()
        await play.admitted(n=2)
        report = await reconciled(play)
        assert report.is_explained()
        assert report.accounts[0].difference_nanos() == 26_560_000
        assert parts(report) == {Reason.OPEN: (1, 0, 26_564_000)}


async def test_a_task_that_ended_there_and_was_not_polled_here_is_explained_to_the_nano(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        play.clock.advance(60)
        report = await reconciled(play)
        assert report.is_explained()
        assert parts(report) == {Reason.UNPOLLED: (1, 13_280_000, 13_280_000)}


async def test_use_behind_the_gateways_back_is_named_to_the_nano_and_an_opening_explains_it(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await outside(play)
        await play.finish()
        report = await reconciled(play)
        assert not report.is_explained()
        assert [each.unexplained_nanos() for each in report.accounts] == [42_500_000]
        assert (await reconciled(play, openings={GROWTH: 42_500_000})).is_explained()
        off_by_one = await reconciled(play, openings={RESEARCH: 42_500_001})
        assert [each.unexplained_nanos() for each in off_by_one.accounts] == [-1] and not off_by_one.is_explained()
        with pytest.raises(reconcile.UnknownReference, match="env:OTHER"):
            await reconciled(play, openings={"env:OTHER": 1})


async def test_a_task_in_doubt_explains_up_to_its_quote_and_not_a_nano_more(tmp_path):
    async with stage.staged(tmp_path) as play:
        play.vendor.set_script([{"on": "submit", "times": 1, "do": {"accept_and_drop": True}}])
        await play.admitted(model=stage.PRO)
        play.vendor.set_script([])
        report = await reconciled(play)
        assert report.is_explained()
        assert parts(report) == {Reason.IN_DOUBT: (1, 0, 42_500_000)}
        await outside(play)
        assert [each.unexplained_nanos() for each in (await reconciled(play)).accounts] == [42_500_000]


async def test_a_bill_that_the_vendor_changed_before_the_end_is_settled_truthfully(tmp_path):
    async with stage.staged(tmp_path) as play:
        play.vendor.set_script([{"on": "submit", "times": 1, "do": {"cost": 99_999}}])
        await play.admitted()
        await play.finish()
        report = await reconciled(play)
        assert report.is_explained() and report.accounts[0].settled_nanos == 199_998_000
        assert report.accounts[0].parts == ()


async def test_a_cost_that_the_vendor_changed_afterwards_names_the_task_and_both_amounts(tmp_path):
    async with stage.staged(tmp_path) as play:
        row = await play.admitted()
        await play.finish()
        play.vendor.set_script([{"on": "poll", "times": None, "do": {"merge": {"cost": 7_000}}}])
        report = await reconciled(play)
        assert not report.is_explained()
        (fault,) = report.faults()
        assert (fault.reason, fault.booked.id, fault.status_there) == (Reason.COST, row.id, "completed")
        assert (fault.booked.cost_nanos, fault.cost_there_nanos) == (13_280_000, 14_000_000)


async def test_a_vendor_that_names_no_cost_is_explained_by_its_rounding_lately_and_long_ago(tmp_path):
    async with stage.staged(tmp_path, vendor={"generation": "early"}) as play:
        await play.admitted(n=3, official_fallback=False)
        await play.finish()
        report = await reconciled(play)
        assert report.is_explained()
        assert report.accounts[0].difference_nanos() == -3_750
        expected = {Reason.ESTIMATED: (1, -3_750, 2_250)}
        assert parts(report) == expected
        play.clock.advance(10 * 86_400)
        later = await reconciled(play)
        assert later.is_explained() and parts(later) == expected and later.asked == 0


async def test_a_vendor_that_names_no_cost_may_have_billed_either_channel(tmp_path):
    async with stage.staged(tmp_path, vendor={"generation": "early"}) as play:
        await play.admitted(official_fallback=True)
        await play.finish()
        report = await reconciled(play)
        assert report.is_explained()
        assert report.accounts[0].settled_nanos == 33_150_000
        assert report.accounts[0].difference_nanos() == -19_870_000
        assert parts(report) == {Reason.ESTIMATED: (1, -19_870_000, 0)}


async def test_a_task_that_the_vendor_does_not_know_is_a_fault_open_or_ended(tmp_path):
    async with stage.staged(tmp_path) as play:
        ended = await play.admitted()
        await play.finish()
        still = await play.admitted()
        play.vendor.reset()
        report = await reconciled(play)
        assert not report.is_explained()
        assert {(each.reason, each.booked.id) for each in report.faults()} == {
            (Reason.UNKNOWN, ended.id),
            (Reason.UNKNOWN, still.id),
        }


async def test_a_task_that_ended_here_and_is_open_there_is_a_fault(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.finish()
        play.vendor.set_script([{"on": "poll", "times": None, "do": {"merge": {"status": "processing"}}}])
        report = await reconciled(play)
        assert [each.reason for each in report.faults()] == [Reason.REOPENED]


async def test_a_failed_task_that_the_vendor_completed_and_billed_is_a_fault(tmp_path):
    async with stage.staged(tmp_path) as play:
        play.vendor.set_script([{"on": "submit", "times": 1, "do": {"outcome": "failed"}}])
        await play.admitted()
        await play.finish()
        merged = {"status": "completed", "cost": 6_640}
        play.vendor.set_script([{"on": "poll", "times": None, "do": {"merge": merged}}])
        (fault,) = (await reconciled(play)).faults()
        assert (fault.reason, fault.booked.cost_nanos, fault.cost_there_nanos) == (Reason.COST, 0, 13_280_000)


async def test_a_hold_that_an_operator_released_explains_up_to_its_quote(tmp_path):
    async with stage.staged(tmp_path) as play:
        play.vendor.set_script([{"on": "submit", "times": 1, "do": {"accept_and_drop": True}}])
        row = await play.admitted()
        decision = resolve.Decision(task_id=row.id, charged_nanos=None, why="the invoice has no such line")
        await resolve.resolve(play.parts.database, decision, now=play.clock())
        play.clock.advance(10 * 86_400)
        report = await reconciled(play)
        assert report.is_explained()
        assert report.accounts[0].difference_nanos() == 13_280_000
        assert parts(report) == {Reason.RESOLVED: (1, 0, 13_282_000)}


@pytest.mark.parametrize(
    ("charged", "difference", "most"), [(13_280_000, 0, 2_000), (13_281_111, -1_111, 889)], ids=["exact", "from a list"]
)
async def test_a_charge_that_an_operator_recorded_is_one_explanation(tmp_path, charged, difference, most):
    async with stage.staged(tmp_path) as play:
        play.vendor.set_script([{"on": "submit", "times": 1, "do": {"accept_and_drop": True}}])
        row = await play.admitted()
        decision = resolve.Decision(task_id=row.id, charged_nanos=money.Nanos(charged), why="line 17")
        await resolve.resolve(play.parts.database, decision, now=play.clock())
        play.clock.advance(10 * 86_400)
        report = await reconciled(play)
        assert report.is_explained() and report.accounts[0].difference_nanos() == difference
        assert parts(report) == {Reason.RESOLVED: (1, -charged, most)}


async def test_a_key_that_cannot_be_read_is_not_known(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.finish()
        del play.keys[RESEARCH]
        report = await reconciled(play)
        assert not report.is_explained()
        assert [(each.refs, each.trouble, each.unexplained_nanos()) for each in report.accounts] == [
            ((GROWTH,), "", 0),
            ((RESEARCH,), "no_key", None),
        ]


async def test_a_vendor_without_the_balance_page_has_its_tasks_compared_all_the_same(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.finish()
        play.vendor.set_script([{"on": "balance", "times": None, "do": {"status": 404}}])
        report = await reconciled(play)
        assert not report.is_explained() and report.asked == 1
        assert {each.trouble for each in report.accounts} == {"404"}
        assert [each.unexplained_nanos() for each in report.accounts] == [None, None]


async def test_a_vendor_that_refuses_the_keys_is_not_asked_about_tasks(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.finish()
        polls = play.vendor.requests.counts["poll"]
        play.vendor.set_script([{"on": "balance", "times": None, "do": {"status": 401}}])
        report = await reconciled(play)
        assert {each.trouble for each in report.accounts} == {"401"}
        assert not report.is_explained() and report.not_asked == 1
        assert play.vendor.requests.counts["poll"] == polls


async def test_what_was_sent_with_an_earlier_key_counts_to_the_reference(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.finish()
        play.keys[GROWTH] = "vendor-key-growth-2"
        await play.admitted(prompt="another")
        await play.finish()
        report = await reconciled(play)
        assert report.is_explained() and report.asked == 2
        assert (report.accounts[0].settled_nanos, report.accounts[0].earlier_nanos) == (26_560_000, 13_280_000)


async def test_a_key_that_is_gone_with_its_team_is_not_known_until_the_operator_says_where_it_was_spent(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted(stage.OTHER)
        await play.finish()
        del play.keys[RESEARCH]
        report = await reconciled(play, refs={GROWTH})
        assert not report.is_explained() and report.not_asked == 1
        assert [(each.refs, each.unexplained_nanos()) for each in report.accounts] == [
            ((GROWTH,), 13_280_000),
            ((RESEARCH,), None),
        ]
        said = {RESEARCH: -13_280_000, GROWTH: 13_280_000}
        assert (await reconciled(play, refs={GROWTH}, openings=said)).is_explained()
        still_there = await reconciled(play, openings=said)
        assert [each.unexplained_nanos() for each in still_there.accounts] == [0, None]


async def test_two_references_to_one_key_are_one_book(tmp_path):
    async with stage.staged(tmp_path) as play:
        play.keys[RESEARCH] = play.keys[GROWTH]
        await play.admitted()
        await play.admitted(stage.OTHER)
        await play.finish()
        report = await reconciled(play)
        assert report.is_explained() and len(report.accounts) == 1
        assert (report.accounts[0].settled_nanos, report.accounts[0].earlier_nanos) == (26_560_000, 0)


async def test_keys_with_wallets_of_their_own_are_accounts_of_their_own(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.finish()
        answers = [{"total_used_usd": 0.01328}, {"total_used_usd": "0"}]
        alternating = [{"on": "balance", "do": {"answer": each}} for each in answers]
        # In every round, and one before the tasks are asked about; which key is answered first is left to chance.
        play.vendor.set_script(alternating * (1 + reconcile.ROUNDS))
        report = await reconciled(play)
        assert sorted((each.refs, each.used_nanos) for each in report.accounts) in (
            [((GROWTH,), 13_280_000), ((RESEARCH,), 0)],
            [((GROWTH,), 0), ((RESEARCH,), 13_280_000)],
        )


async def test_keys_of_one_account_that_differ_while_money_moves_are_read_until_they_agree(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        await play.admitted(stage.OTHER)
        await play.finish()
        # The first two reads find out who answers; then one of two differs for a moment.
        play.vendor.set_script([{"on": "balance", "skip": 2, "do": {"answer": {"total_used_usd": "0.01328"}}}])
        report = await reconciled(play)
        assert report.is_explained()
        assert [(each.refs, each.used_nanos) for each in report.accounts] == [((GROWTH, RESEARCH), 26_560_000)]
        assert play.vendor.requests.counts["balance"] == 6


async def test_the_wallet_that_counts_is_read_after_the_tasks(tmp_path):
    async with stage.staged(tmp_path) as play:
        await play.admitted()
        play.clock.advance(60)
        # To the first look, one for each key, the task had taken nothing yet.
        play.vendor.set_script([{"on": "balance", "times": 2, "do": {"answer": {"total_used_usd": "0"}}}])
        report = await reconciled(play)
        assert report.is_explained() and report.accounts[0].used_nanos == 13_280_000
        assert parts(report) == {Reason.UNPOLLED: (1, 13_280_000, 13_280_000)}


async def test_more_tasks_than_the_bound_are_counted_and_not_asked_about(tmp_path):
    async with stage.staged(tmp_path) as play:
        for number in range(3):
            await play.admitted(prompt=f"fox {number}")
        await play.finish()
        still = await play.admitted(prompt="still open")
        report = await reconciled(play, most=1)
        assert (report.asked, report.not_asked) == (1, 3)
        assert [each.booked.id for each in report.findings] == [still.id]
        assert report.is_explained()


async def test_a_vendor_that_falls_silent_is_not_asked_about_every_task(tmp_path):
    async with stage.staged(tmp_path) as play:
        await asyncio.gather(*(play.admitted(prompt=f"fox {number}") for number in range(40)))
        play.vendor.set_script([{"on": "poll", "times": None, "do": {"status": 503}}])
        report = await reconciled(play)
        assert not report.is_explained() and {each.reason for each in report.faults()} == {Reason.UNASKED}
        assert reconcile.MOST_SILENT <= report.asked < 40 and report.asked + report.not_asked == 40
        assert [each.unexplained_nanos() for each in report.accounts] == [0]


@pytest.mark.parametrize(
    ("caller", "expected"), [(stage.CALLER, {Reason.MEANWHILE: (1, 0, 42_500_000)}), (stage.OTHER, {})]
)
async def test_what_is_reserved_while_the_wallet_is_read_is_explained_under_a_key_that_was_there(
    tmp_path, caller, expected
):
    """The other team came into force after this one had read the policies: nothing stands for its account."""
    async with stage.staged(tmp_path) as play:
        read = play.parts.database.scan

        async def scan(fn):
            found = await read(fn)
            if play.posts() == 0:
                await play.admitted(caller, model=stage.PRO)
            return found

        question = reconcile.Question(refs=frozenset({GROWTH}), openings={}, since=play.clock() - 60, most=10)
        report = await reconcile.reconcile(scan, play.parts.upstream, question=question, key_of=play.keys.get)
        assert (report.is_explained(), parts(report)) == (bool(expected), expected)
