from __future__ import annotations

import asyncio

import pytest

from gateway import errors
from gateway.flow import submit
from gateway.rules import task
from tests import stage as stages

CAP = 'spend: [{name: daily, cap: "0.05", per: day}, {cap: "1.00", per: month}]\n'
DAY, MONTH = ("team", "growth", "day"), ("team", "growth", "month")


async def test_a_submit_reserves_the_quote_and_settles_to_the_vendors_bill(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        row = await stage.admitted(n=2)
        assert row.state is task.State.SUBMITTED
        assert (await stage.balances())[DAY] == (0, 26_564_000)
        await stage.finish()
        assert (await stage.row(row.id)).state is task.State.COMPLETED
        assert await stage.entries(row.id) == [("reserve", 26_564_000), ("settle", 26_560_000)]
        assert (await stage.balances())[DAY] == (26_560_000, 0)
        assert stage.vendor.bill()["nanos"] == 26_560_000
        assert await stage.audit() == []


async def test_a_completed_task_shows_our_ids_and_our_media_urls(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted()
        assert (await stage.shown(row))["status"] == "queued"
        await stage.finish()
        shown = await stage.shown(row)
        assert (shown["task_id"], shown["status"], shown["cost"]) == (row.id, "completed", 6640)
        [url] = shown["result"]["images"][0]["url"]
        digest = url.removeprefix("http://gateway.test/media/").removesuffix(".jpg")
        path = stage.parts.blobs.path(digest)
        assert path is not None and path.read_bytes()[:3] == b"\xff\xd8\xff"
        assert shown["result"]["images"][0]["expires_at"] == 4_102_444_800


async def test_a_full_cap_refuses_with_every_field_and_nothing_is_stored_or_sent(tmp_path):
    async with stages.staged(tmp_path, growth=CAP) as stage:
        for _ in range(3):
            await stage.admitted()
        deny = await stage.denied()
        assert deny.code == "quota_window_exceeded"
        assert deny.details == {
            "scope": "team",
            "name": "growth",
            "cap_name": "daily",
            "window": "day",
            "used": 0,
            "cap": 25_000,
            "used_usd": "0",
            "cap_usd": "0.05",
            "reserved_usd": "0.039846",
            "reset_at": 1_795_392_000,
            "open_tasks": 3,
            "contact": None,
        }
        assert deny.headers == {"Retry-After": "60", "x-should-retry": "false"}
        assert stage.posts() == 3
        assert (await stage.balances())[DAY] == (0, 39_846_000)
        assert (await stage.balances())[MONTH] == (0, 39_846_000)


async def test_day_has_room_month_has_not_leaves_the_days_counter_untouched(tmp_path):
    caps = 'spend: [{cap: "1.00", per: day}, {cap: "0.01", per: month}]\n'
    async with stages.staged(tmp_path, growth=caps) as stage:
        deny = await stage.denied()
        assert (deny.code, deny.details["window"]) == ("quota_window_exceeded", "month")
        assert await stage.balances() == {DAY: (0, 0), MONTH: (0, 0)}


async def test_n_of_three_with_room_for_two_is_refused_whole(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "0.03", per: day}]\n') as stage:
        assert (await stage.denied(n=3)).code == "quota_window_exceeded"
        assert stage.posts() == 0


async def test_a_total_cap_answers_402_and_outranks_a_window(tmp_path):
    caps = 'spend: [{cap: "0.01", per: month}, {cap: "0.01", per: total}]\n'
    async with stages.staged(tmp_path, growth=caps) as stage:
        deny = await stage.denied()
        assert (deny.code, deny.details["window"]) == ("spend_cap_reached", "total")


async def test_an_organisation_cap_denies_without_showing_its_amounts(tmp_path):
    org = 'contact: "#spend"\nspend: [{name: org-day, cap: "0.01", per: day}]\n'
    async with stages.staged(tmp_path, org=org) as stage:
        deny = await stage.denied()
        assert deny.details == {
            "scope": "org",
            "name": "",
            "cap_name": "org-day",
            "window": "day",
            "open_tasks": 0,
            "contact": "#spend",
            "reset_at": 1_795_392_000,
        }


async def test_a_thousand_concurrent_submits_stop_exactly_at_the_cap(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1.3282", per: day}]\n') as stage:
        results = await asyncio.gather(*(stage.submit() for _ in range(1000)))
        admitted = [each for each in results if isinstance(each, submit.Submitted)]
        assert len(admitted) == 100
        assert stage.posts() == 100
        assert (await stage.balances())[DAY] == (0, 1_328_200_000)


async def test_a_seeded_repeat_is_a_hit_at_cost_0_even_when_the_cap_is_used_up(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "0.0133", per: day}]\n') as stage:
        first = await stage.admitted(seed=7)
        await stage.finish()
        assert (await stage.denied(seed=8)).code == "quota_window_exceeded"
        hit = await stage.admitted(seed=7)
        assert (hit.x_cache, hit.state, hit.cost_nanos) == ("HIT", task.State.COMPLETED, 0)
        assert hit.id != first.id
        shown = await stage.shown(hit)
        assert (shown["task_id"], shown["cost"], shown["status"]) == (hit.id, 0, "completed")
        assert shown["result"] == (await stage.shown(first))["result"]
        assert stage.posts() == 1
        assert await stage.entries(hit.id) == []


async def test_a_hit_needs_no_result_cache_only_the_rows(tmp_path):
    async with stages.staged(tmp_path) as stage:
        first = await stage.admitted(seed=7)
        await stage.finish()
        assert first.fingerprint is not None
        await stage.parts.cache.forget(first.fingerprint)
        assert (await stage.admitted(seed=7)).x_cache == "HIT"


async def test_a_result_whose_blob_is_gone_is_not_a_hit(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted(seed=7)
        await stage.finish()
        for kept in list(stage.parts.blobs.each()):
            stage.parts.blobs.delete(kept.digest)
        assert (await stage.admitted(seed=7)).x_cache == "MISS"


async def test_a_result_older_than_the_ttl_is_not_a_hit(tmp_path):
    async with stages.staged(tmp_path, growth="cache: {ttl: 1h}\n") as stage:
        await stage.admitted(seed=7)
        await stage.finish()
        stage.clock.advance(3601)
        assert (await stage.admitted(seed=7)).x_cache == "MISS"


async def test_a_request_without_a_seed_is_bypass_and_never_joined(tmp_path):
    async with stages.staged(tmp_path) as stage:
        first, second = await stage.admitted(), await stage.admitted()
        assert (first.x_cache, second.x_cache, stage.posts()) == ("BYPASS", "BYPASS", 2)


async def test_identical_requests_in_flight_follow_one_leader_and_all_complete(tmp_path):
    async with stages.staged(tmp_path) as stage:
        rows = await asyncio.gather(*(stage.admitted(seed=7) for _ in range(200)))
        assert len({row.id for row in rows}) == 200
        assert sorted({row.x_cache for row in rows}) == ["COALESCED", "MISS"]
        assert stage.posts() == 1
        await stage.finish()
        for row in rows:
            shown = await stage.shown(row)
            assert (shown["task_id"], shown["status"]) == (row.id, "completed")
        assert await stage.settled_nanos() == 13_280_000
        [total] = await stage.parts.database.read(lambda tx: tx.all("SELECT * FROM totals"))
        assert total["avoided_coalesced_nanos"] == 199 * 13_280_000
        assert await stage.audit() == []


async def test_a_failed_leader_gives_every_follower_its_failure_and_nothing_is_posted_again(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"outcome": "failed", "error": {"message": "x", "code": "y"}}}])
        rows = [await stage.admitted(seed=7) for _ in range(3)]
        await stage.finish()
        for row in rows:
            shown = await stage.shown(row)
            assert (shown["status"], shown["error"]) == ("failed", {"message": "x", "code": "y"})
        assert stage.posts() == 1
        assert await stage.entries(rows[0].id) == [("reserve", 13_282_000), ("release", 13_282_000)]


async def test_teams_do_not_share_results_unless_both_say_org(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted(seed=7)
        await stage.finish()
        assert (await stage.admitted(stages.OTHER, seed=7)).x_cache == "MISS"


async def test_under_scope_org_the_leaders_team_pays_for_a_followers_result(tmp_path):
    shared = "cache: {scope: org}\n"
    async with stages.staged(tmp_path, growth=shared, research=shared) as stage:
        await stage.admitted(seed=7)
        follower = await stage.admitted(stages.OTHER, seed=7)
        assert follower.x_cache == "COALESCED"
        await stage.finish()
        assert (await stage.shown(follower))["status"] == "completed"
        rows = await stage.parts.database.read(lambda tx: tx.all("SELECT team, cost_nanos FROM totals ORDER BY team"))
        assert [(row["team"], row["cost_nanos"]) for row in rows] == [("growth", 13_280_000), ("research", 0)]


async def test_the_same_idempotency_key_and_body_is_the_same_task_finished_or_not(tmp_path):
    async with stages.staged(tmp_path) as stage:
        first = await stage.admitted(key="k1")
        again = await stage.submit(key="k1")
        assert isinstance(again, submit.Submitted) and again.is_replay and again.row.id == first.id
        await stage.finish()
        later = await stage.submit(key="k1")
        assert isinstance(later, submit.Submitted) and later.row.id == first.id
        assert stage.posts() == 1


async def test_the_same_idempotency_key_with_another_body_is_refused_before_any_post(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted(key="k1")
        with pytest.raises(errors.CallerError) as caught:
            await stage.submit(key="k1", prompt="another fox")
        assert caught.value.code == "idempotency_key_reused"
        assert stage.posts() == 1


async def test_two_teams_may_use_the_same_idempotency_key(tmp_path):
    async with stages.staged(tmp_path) as stage:
        mine, theirs = await stage.admitted(key="1"), await stage.admitted(stages.OTHER, key="1")
        assert mine.id != theirs.id
        sent = [record.idempotency_key for record in stage.vendor.requests.submits]
        assert len(set(sent)) == 2 and "1" not in sent


async def test_concurrent_replays_of_one_key_make_one_task_and_wait_for_its_first_answer(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"delay_s": 0.3}}])
        rows = await asyncio.gather(*(stage.admitted(key="k1") for _ in range(20)))
        assert {row.id for row in rows} == {rows[0].id}
        assert {row.state for row in rows} == {task.State.SUBMITTED}
        assert stage.posts() == 1


async def test_a_client_that_leaves_does_not_cancel_the_submit(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"delay_s": 0.3}}])
        client = asyncio.create_task(stage.admitted(key="k1"))
        await asyncio.sleep(0.1)
        client.cancel()
        row = await stage.admitted(key="k1")
        assert (row.state, stage.posts()) == (task.State.SUBMITTED, 1)


async def test_a_refusal_of_the_vendor_releases_and_is_replayed_with_its_status_and_body(tmp_path):
    fault = {"status": 400, "code": "capability_violation", "message": "no", "param": "resolution"}
    async with stages.staged(tmp_path, growth=CAP) as stage:
        stage.vendor.set_script([{"on": "submit", "do": fault}])
        row = await stage.admitted(key="k1")
        assert (row.state, row.refusal_status) == (task.State.REFUSED, 400)
        assert row.document is not None and b"capability_violation" in row.document
        assert await stage.entries(row.id) == [("reserve", 13_282_000), ("release", 13_282_000)]
        assert (await stage.balances())[DAY] == (0, 0)
        again = await stage.submit(key="k1")
        assert isinstance(again, submit.Submitted) and again.is_replay and again.row.refusal_status == 400
        assert stage.posts() == 1


async def test_a_missing_upstream_key_is_that_teams_503_alone(tmp_path):
    async with stages.staged(tmp_path) as stage:
        del stage.keys["env:KEY_GROWTH"]
        with pytest.raises(errors.OurError) as caught:
            await stage.submit()
        assert (caught.value.code, caught.value.status) == ("team_not_ready", 503)
        assert "vendor-key" not in caught.value.message
        assert (await stage.admitted(stages.OTHER)).state is task.State.SUBMITTED


async def test_requests_per_minute_answers_with_a_retry_after(tmp_path):
    async with stages.staged(tmp_path, growth="limits: {requests_per_minute: 2}\n") as stage:
        await stage.admitted()
        await stage.admitted()
        deny = await stage.denied()
        assert (deny.code, deny.headers) == ("rate_limited", {"Retry-After": "30"})
        stage.clock.advance(30)
        await stage.admitted()


async def test_open_tasks_are_bounded_and_followers_do_not_count(tmp_path):
    async with stages.staged(tmp_path, growth="limits: {open_tasks: 1}\n") as stage:
        await stage.admitted(seed=7)
        assert (await stage.admitted(seed=7)).x_cache == "COALESCED"
        assert (await stage.denied()).code == "concurrency_limit_exceeded"
        await stage.finish()
        await stage.admitted()


async def test_a_threshold_that_is_spent_rewrites_the_model_once(tmp_path):
    lines = f'thresholds: [{{at: "0.04", per: day, rewrite: {{{stages.PRO}: {stages.FLASH}}}}}]\n'
    async with stages.staged(tmp_path, growth=lines) as stage:
        assert (await stage.admitted(model=stages.PRO)).model == stages.PRO
        rewritten = await stage.admitted(model=stages.PRO)
        assert (rewritten.model, rewritten.changes) == (stages.FLASH, "model=rewritten")
        assert stage.vendor.requests.submits[-1].body.startswith(b'{"model":"gemini-2.5-flash-image-preview"')


async def test_a_fallback_is_quoted_at_the_official_price_and_settled_to_what_was_billed(tmp_path):
    caps = 'spend: [{cap: "1.00", per: day, models: ["*-official"]}, {name: all, cap: "1", per: day}]\n'
    async with stages.staged(tmp_path, growth=caps) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"fallback": True}}])
        billed = await stage.admitted(model=stages.PRO, official_fallback=True)
        plain = await stage.admitted(model=stages.PRO, official_fallback=True)
        assert (billed.quote_nanos, plain.quote_nanos) == (113_900_000, 113_900_000)
        await stage.finish()
        assert await stage.entries(billed.id) == [("reserve", 113_900_000), ("settle", 113_900_000)]
        assert await stage.entries(plain.id) == [("reserve", 113_900_000), ("settle", 42_500_000)]
        rows = await stage.parts.database.read(
            lambda tx: tx.all("SELECT settled_nanos, reserved_nanos FROM balances WHERE model_filter <> ''")
        )
        assert [stages.values(row) for row in rows] == [(113_900_000, 0)]
        [premium] = await stage.parts.database.read(
            lambda tx: tx.all("SELECT team, model, premium_nanos FROM totals WHERE premium_nanos > 0")
        )
        assert stages.values(premium) == ("growth", stages.PRO, 71_400_000)
        assert await stage.audit() == []


async def test_webhook_fields_are_kept_and_never_forwarded(tmp_path):
    async with stages.staged(tmp_path) as stage:
        row = await stage.admitted(callback_url="https://hooks.example.com/x", callback_events=["completed"])
        assert (row.callback_url, row.callback_events) == ("https://hooks.example.com/x", '["completed"]')
        assert b"callback" not in stage.vendor.requests.submits[-1].body


@pytest.mark.parametrize(
    "url", ["https://10.0.0.1/x", "http://8.8.8.8/x", "https://2130706433.1/", "ftp://x", "https://["]
)
async def test_a_callback_url_that_cannot_be_delivered_to_is_refused(tmp_path, url):
    async with stages.staged(tmp_path) as stage:
        with pytest.raises(errors.CallerError) as caught:
            await stage.submit(callback_url=url)
        assert caught.value.code == "callback_url_not_allowed"
        assert stage.posts() == 0


async def test_a_callback_url_outside_the_teams_list_is_refused(tmp_path):
    lines = 'webhooks: {secret: env:S, allow_hosts: ["hooks.example.com"]}\n'
    async with stages.staged(tmp_path, growth=lines) as stage:
        with pytest.raises(errors.CallerError):
            await stage.submit(callback_url="https://elsewhere.example.com/x")
        await stage.admitted(callback_url="https://hooks.example.com/x")


async def test_numbers_and_unknown_fields_reach_the_vendor_as_written(tmp_path):
    async with stages.staged(tmp_path) as stage:
        body = (
            b'{"model":"gemini-2.5-flash-image-preview","prompt":"\\u4e2d\xe6\x96\x87",'
            b'"seed":9007199254740993,"x":{"a":1.10,"b":1e2}}'
        )
        await submit.submit(stage.parts, stages.CALLER, body, submit.Options(request_id="r"))
        assert stage.vendor.requests.submits[-1].body == body


async def test_a_disabled_team_is_refused(tmp_path):
    async with stages.staged(tmp_path, growth="mode: disabled\n") as stage:
        with pytest.raises(errors.CallerError) as caught:
            await stage.submit()
        assert caught.value.code == "invalid_api_key"


async def test_a_price_that_is_not_configured_is_refused_and_never_counted_as_0(tmp_path):
    models = 'models: {m: {prices: [{from: 2027-01-01, usd: "0.01"}]}}\n'
    async with stages.staged(tmp_path, models=models) as stage:
        assert (await stage.denied(model="m")).code == "price_not_configured"
        assert stage.posts() == 0


async def test_a_threshold_rewrites_what_was_asked_not_what_a_policy_made_of_it(tmp_path):
    lines = (
        f'thresholds: [{{at: "0", per: day, rewrite: {{{stages.PRO}: {stages.FLASH}}}}}]\n'
        f'official_fallback: {{default: deny, rules: [{{models: ["{stages.PRO}"], action: force}}]}}\n'
    )
    async with stages.staged(tmp_path, growth=lines) as stage:
        row = await stage.admitted(model=stages.PRO)
        assert (row.model, row.changes, row.official) == (stages.FLASH, "model=rewritten", None)
