"""explain and the scrape: what is read from the books."""

from __future__ import annotations

import msgspec

from gateway import metrics, wire
from gateway.flow import explain, scrape
from gateway.rules import money
from tests import stage as stages

CAPS = 'spend: [{name: daily, cap: "0.05", per: day, warn_at: 0.5}]\n'


async def _explained(stage: stages.Stage, *, max_cost_nanos: int | None = None, **fields) -> explain.Explanation:
    policies = stage.parts.in_force.policies
    request = wire.parse_submit(msgspec.json.encode({"model": stages.FLASH, "prompt": "a fox"} | fields))
    limit = None if max_cost_nanos is None else money.Nanos(max_cost_nanos)
    return await stage.parts.database.read(
        lambda tx: explain.explain(
            tx, policies, policies.teams["growth"], "ci", request, now=stage.clock(), max_cost_nanos=limit
        )
    )


async def test_explain_shows_the_quote_and_every_cap_with_what_is_left(tmp_path):
    org = 'spend: [{name: org-day, cap: "9", per: day}]\n'
    async with stages.staged(tmp_path, org=org, growth=CAPS) as stage:
        await stage.admitted()
        found = await _explained(stage, n=2)
        assert (found.decision, found.quote_usd, found.cache) == ("allow", "0.026564", "bypass")
        [org_cap, daily] = found.caps
        assert (daily.cap_usd, daily.used_usd, daily.reserved_usd, daily.left_usd) == (
            "0.05",
            "0",
            "0.013282",
            "0.036718",
        )
        assert daily.rule == "teams/growth.yaml:6"
        assert (org_cap.scope, org_cap.cap_usd, org_cap.left_usd) == ("org", None, None)
        assert stage.posts() == 1


async def test_explain_denies_as_a_submit_would(tmp_path):
    async with stages.staged(tmp_path, growth=CAPS + "limits: {open_tasks: 2}\n") as stage:
        assert (await _explained(stage, model="unknown")).code == "model_not_allowed"
        assert (await _explained(stage, n=9)).code == "quota_window_exceeded"
        assert (await _explained(stage, max_cost_nanos=13_000_000)).code == "max_cost_exceeded"
        assert (await _explained(stage, max_cost_nanos=13_281_250)).decision == "allow"
        await stage.admitted()
        await stage.admitted()
        assert (await _explained(stage)).code == "concurrency_limit_exceeded"


async def test_explain_tells_a_price_that_is_missing(tmp_path):
    models = 'models: {m: {prices: [{from: 2027-01-01, usd: "0.01"}]}}\n'
    async with stages.staged(tmp_path, models=models) as stage:
        assert (await _explained(stage, model="m")).code == "price_not_configured"


async def test_explain_knows_hits_followers_and_thresholds(tmp_path):
    lines = f'thresholds: [{{at: "0.01", per: day, rewrite: {{{stages.PRO}: {stages.FLASH}}}}}]\n'
    async with stages.staged(tmp_path, growth=lines) as stage:
        assert (await _explained(stage, seed=7)).cache == "miss"
        await stage.admitted(seed=7)
        joined = await _explained(stage, seed=7)
        assert (joined.cache, joined.quote_usd) == ("coalesced", "0")
        await stage.finish()
        assert (await _explained(stage, seed=7)).cache == "hit"
        found = await _explained(stage, model=stages.PRO)
        assert (found.changed, found.quote_usd, found.rule) == (
            ("model=rewritten",),
            "0.013282",
            "teams/growth.yaml:6",
        )


async def test_fallback_while_spend_below_follows_the_fullest_cap(tmp_path):
    lines = (
        CAPS + 'official_fallback: {default: deny, rules: [{models: ["*"], action: allow, while_spend_below: 0.2}]}\n'
    )
    async with stages.staged(tmp_path, growth=lines.replace("0.05", "0.5")) as stage:
        assert (await _explained(stage, official_fallback=True)).quote_usd == "0.03315"
        await stage.admitted(n=8)
        assert (await _explained(stage, official_fallback=True)).code == "official_fallback_denied"


async def test_a_scrape_reads_money_from_the_ledger_and_hides_unlisted_models(tmp_path):
    lines = CAPS.replace("0.05", "5") + 'models: {unlisted: {usd: "0.2"}}\n'
    async with stages.staged(tmp_path, growth=lines) as stage:
        await stage.admitted(n=2)
        stage.vendor.set_script([{"on": "submit", "times": 2, "do": {"answer": {"task_id": "v-1"}}}])
        await stage.finish()
        policies = stage.parts.in_force.policies
        read = await stage.parts.database.scan(lambda tx: scrape.snapshot(tx, policies, now=stage.clock()))
        [total] = read.spend
        assert (total.team, total.model, total.cost_nanos, total.images) == ("growth", stages.FLASH, 26_560_000, 2)
        [cap] = read.caps
        assert (cap.cap, cap.limit_nanos, cap.warn_nanos, cap.settled_nanos) == (
            "daily",
            5_000_000_000,
            2_500_000_000,
            26_560_000,
        )
        assert (read.blobs, read.in_doubt, read.overdue, read.at_risk_urls) == (2, 0, 0, 0)
        text, content_type = metrics.render(read)
        label = 'team="growth",tier="standard"'
        assert f'wave_gateway_cost_usd_total{{model="{stages.FLASH}",{label}}} 0.02656\n'.encode() in text
        assert b'wave_gateway_budget_limit_usd{cap="daily",name="growth",scope="team",window="day"} 5.0\n' in text
        assert content_type.startswith("text/plain")
        assert metrics.render(read, is_openmetrics=True)[0].endswith(b"# EOF\n")


async def test_totals_of_models_outside_the_catalogue_are_one_other(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted()
        await stage.admitted(model=stages.PRO)
        await stage.finish()
        only_official = {
            name: entry for name, entry in stage.parts.in_force.policies.models.items() if "official" in name
        }
        import dataclasses

        fewer = dataclasses.replace(stage.parts.in_force.policies, models=only_official)
        read = await stage.parts.database.scan(lambda tx: scrape.snapshot(tx, fewer, now=stage.clock()))
        assert [(each.model, each.cost_nanos, each.images) for each in read.spend] == [("other", 55_780_000, 2)]
