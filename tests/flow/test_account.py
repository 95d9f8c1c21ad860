from __future__ import annotations

from gateway import policy_files
from gateway.flow import account
from gateway.rules.account import Account
from tests import stage as stages

OFFICIAL = "gemini-2.5-flash-image-preview-official"
CAPS = """
spend:
  - {name: daily, cap: "25.00", per: day}
  - {name: monthly, cap: "400.00", per: month, warn_at: 0.8}
  - {name: ci-day, cap: "26.00", per: day, key: ci}
"""


async def seen(stage: stages.Stage, caller: stages.Caller = stages.CALLER) -> Account:
    return (await account.statement(stage.parts, caller)).account


async def test_a_statement_follows_a_task_from_its_reserve_to_its_settle(tmp_path):
    async with stages.staged(tmp_path, growth=CAPS) as stage:
        await stage.admitted(official_fallback=False, n=2)
        assert await seen(stage) == Account(
            limit_nanos=25_000_000_000, warn_nanos=25_000_000_000, settled_nanos=0, reserved_nanos=26_564_000
        )
        await stage.finish()
        assert await seen(stage) == Account(
            limit_nanos=25_000_000_000, warn_nanos=25_000_000_000, settled_nanos=26_560_000, reserved_nanos=0
        )


async def test_a_new_window_begins_with_the_whole_cap(tmp_path):
    async with stages.staged(tmp_path, growth='\nspend: [{name: daily, cap: "25.00", per: day}]\n') as stage:
        await stage.admitted()
        await stage.finish()
        assert (await seen(stage)).settled_nanos == 13_280_000
        stage.clock.advance(86_400)
        assert (await seen(stage)).left_nanos() == 25_000_000_000


async def test_the_key_that_asks_meets_its_own_cap(tmp_path):
    key_cap = (
        '\nspend:\n  - {name: daily, cap: "25.00", per: day}\n  - {name: ci-day, cap: "5.00", per: day, key: ci}\n'
    )
    async with stages.staged(tmp_path, growth=key_cap) as stage:
        assert (await seen(stage)).limit_nanos == 5_000_000_000
        assert (await seen(stage, stages.Caller(team="growth", key="nightly"))).limit_nanos == 25_000_000_000


async def test_another_teams_spend_and_the_organisations_cap_are_not_shown(tmp_path):
    org = 'timezone: UTC\nspend: [{name: org-day, cap: "1.00", per: day}]\n'
    async with stages.staged(tmp_path, org=org, growth=CAPS) as stage:
        await stage.admitted(stages.OTHER)
        await stage.finish()
        assert (await seen(stage)).left_nanos() == 25_000_000_000


async def test_without_a_cap_all_that_was_ever_spent_is_shown(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted()
        await stage.admitted(stages.OTHER, model=OFFICIAL)
        await stage.finish()
        stage.clock.advance(400 * 86_400)
        assert await seen(stage) == Account(
            limit_nanos=100_000_000_000_000_000,
            warn_nanos=100_000_000_000_000_000,
            settled_nanos=13_280_000,
            reserved_nanos=0,
        )
        assert (await seen(stage, stages.OTHER)).settled_nanos == 33_150_000


async def test_a_raise_counts_until_it_ends(tmp_path):
    raised = (
        '\nspend: [{name: daily, cap: "25.00", per: day, raises: [{by: "5.00", until: 2026-11-23, why: launch}]}]\n'
    )
    async with stages.staged(tmp_path, growth=raised) as stage:
        assert (await seen(stage)).limit_nanos == 30_000_000_000
        stage.clock.advance(43_200)
        assert (await seen(stage)).limit_nanos == 25_000_000_000


async def test_a_key_ends_at_midnight_of_the_organisation(tmp_path):
    async with stages.staged(tmp_path, org="timezone: Europe/Berlin\n") as stage:
        policies = tmp_path / "policies" / "teams" / "growth.yaml"
        policies.write_text(policies.read_text().replace("name: ci,", "name: ci, expires: 2027-01-01,"))
        await stage.adopt(policy_files.load(tmp_path / "policies"))
        statement = await account.statement(stage.parts, stages.CALLER)
        assert statement.key_expires_at == 1_798_758_000  # 2026-12-31T23:00:00Z
        assert (await account.statement(stage.parts, stages.OTHER)).key_expires_at is None


async def test_a_price_begins_at_midnight_of_the_organisation(tmp_path):
    models = (
        'models: {new: {prices: [{from: 2026-11-23, usd: "0.05"}]}, old: {prices: [{from: 2026-01-01, usd: "0.04"}]}}'
    )
    async with stages.staged(tmp_path, org="timezone: Asia/Tokyo\n", models=models) as stage:
        stage.clock.now = stages.NOON + 3 * 3600 - 1  # 23:59:59 in Tokyo
        assert [each.name for each in account.models(stage.parts, "growth")] == ["old"]
        assert account.model(stage.parts, "growth", "new") is None
        stage.clock.advance(1)
        assert [each.name for each in account.models(stage.parts, "growth")] == ["new", "old"]
        found = account.model(stage.parts, "growth", "new")
        assert found is not None and found.nanos == {"default": 50_000_000}
