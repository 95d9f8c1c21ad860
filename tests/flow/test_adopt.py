from __future__ import annotations

import asyncio

import pytest

from gateway import errors
from gateway.flow import submit
from tests import stage as stages

DAY = ("team", "growth", "day")


async def test_a_cap_added_in_mid_window_counts_what_was_spent_and_what_is_open(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted()
        await stage.finish()
        await stage.admitted(stages.OTHER)
        await stage.admitted()
        capped = stages.write_policies(tmp_path / "policies", growth='spend: [{cap: "0.03", per: day}]\n')
        assert await stage.adopt(capped) == 1
        assert await stage.balances() == {DAY: (13_280_000, 13_282_000)}
        assert (await stage.denied()).code == "quota_window_exceeded"
        await stage.finish()
        assert await stage.balances() == {DAY: (26_560_000, 0)}
        assert await stage.audit() == []


async def test_a_cap_on_some_models_counts_only_what_was_billed_on_them(tmp_path):
    async with stages.staged(tmp_path) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"fallback": True}}])
        await stage.admitted(model=stages.PRO, official_fallback=True)
        await stage.admitted()
        await stage.finish()
        open_one = await stage.admitted(model=stages.PRO, official_fallback=True)
        lines = 'spend: [{name: official, cap: "1", per: day, models: ["*-official"]}]\n'
        await stage.adopt(stages.write_policies(tmp_path / "policies", growth=lines))
        rows = await stage.parts.database.read(lambda tx: tx.all("SELECT settled_nanos, reserved_nanos FROM balances"))
        assert [stages.values(row) for row in rows] == [(113_900_000, 113_900_000)]
        await stage.finish()
        assert (await stage.row(open_one.id)).cost_nanos == 42_500_000
        assert await stage.audit() == []


async def test_a_cap_of_one_key_and_one_of_the_organisation_are_made_of_their_own_entries(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted()
        await stage.admitted(stages.OTHER)
        await stage.finish()
        lines = 'spend: [{name: ci-day, cap: "1", per: day, key: ci}]\n'
        org = 'spend: [{cap: "1", per: total}]\n'
        await stage.adopt(stages.write_policies(tmp_path / "policies", org=org, growth=lines))
        assert await stage.balances() == {
            ("org", "", "total"): (26_560_000, 0),
            ("key", "growth/ci", "day"): (13_280_000, 0),
        }


async def test_another_timezone_makes_new_windows_from_the_entries(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as stage:
        await stage.admitted()
        await stage.finish()
        shifted = stages.write_policies(
            tmp_path / "policies", org="timezone: Asia/Tokyo\n", growth='spend: [{cap: "1", per: day}]\n'
        )
        assert await stage.adopt(shifted) == 1
        rows = await stage.parts.database.read(
            lambda tx: tx.all("SELECT starts_at, settled_nanos FROM balances ORDER BY starts_at")
        )
        assert [stages.values(row) for row in rows] == [(1_795_273_200, 13_280_000)]
        assert await stage.audit() == []


async def test_submits_that_race_a_new_cap_are_all_counted_in_it(tmp_path):
    async with stages.staged(tmp_path) as stage:
        capped = stages.write_policies(tmp_path / "policies", growth='spend: [{cap: "0.9", per: day}]\n')
        results = await asyncio.gather(
            *(stage.submit() for _ in range(50)), stage.adopt(capped), *(stage.submit() for _ in range(50))
        )
        admitted = [each for each in results if isinstance(each, submit.Submitted)]
        assert len(admitted) == 67
        assert await stage.balances() == {DAY: (0, 889_894_000)}
        await stage.finish()
        assert await stage.audit() == []


async def test_a_lowered_cap_admits_nothing_until_below(tmp_path):
    async with stages.staged(tmp_path, growth='spend: [{cap: "1", per: day}]\n') as stage:
        await stage.admitted()
        lowered = stages.write_policies(tmp_path / "policies", growth='spend: [{cap: "0.001", per: day}]\n')
        await stage.adopt(lowered)
        assert (await stage.denied()).code == "quota_window_exceeded"


async def test_a_cap_that_was_away_and_comes_back_counts_what_was_spent_meanwhile(tmp_path):
    cap = 'spend: [{cap: "0.03", per: day}]\n'
    async with stages.staged(tmp_path, growth=cap) as stage:
        await stage.admitted()
        await stage.adopt(stages.write_policies(tmp_path / "policies"))
        assert await stage.audit() == []
        await stage.admitted()
        await stage.finish()
        assert await stage.audit() == []
        await stage.adopt(stages.write_policies(tmp_path / "policies", growth=cap))
        assert await stage.balances() == {DAY: (26_560_000, 0)}
        assert (await stage.denied()).code == "quota_window_exceeded"
        assert await stage.audit() == []


async def test_a_set_whose_balances_could_not_be_kept_does_not_come_into_force(tmp_path):
    async with stages.staged(tmp_path) as stage:
        await stage.admitted()
        before = stage.parts.in_force.policies
        capped = stages.write_policies(tmp_path / "policies", growth='spend: [{cap: "0.03", per: day}]\n')
        await stage.parts.database.write(lambda tx: tx.run("ALTER TABLE balances RENAME TO away"))
        with pytest.raises(errors.OurError):
            await stage.adopt(capped)
        assert stage.parts.in_force.policies is before
        await stage.parts.database.write(lambda tx: tx.run("ALTER TABLE away RENAME TO balances"))
        assert await stage.adopt(capped) == 1
        assert await stage.balances() == {DAY: (0, 13_282_000)}


async def test_a_window_that_ends_elsewhere_in_another_timezone_is_made_anew(tmp_path):
    cap = 'spend: [{cap: "1.00", per: month}]\n'
    utc, london = f"timezone: UTC\n{cap}", f"timezone: Europe/London\n{cap}"
    async with stages.staged(tmp_path, org=utc) as stage:
        stage.clock.now = 1_805_544_000.0  # 2027-03-20 12:00 UTC: March begins at the same instant in London
        await stage.adopt(stage.parts.in_force.policies)
        await stage.admitted()
        await stage.adopt(stages.write_policies(tmp_path / "policies", org=london))
        stage.clock.now = 1_806_535_800.0  # 2027-03-31 23:30 UTC, which is April in London
        await stage.admitted()
        assert await stage.audit() == []
        await stage.adopt(stages.write_policies(tmp_path / "policies", org=utc))
        assert await stage.balances() == {("org", "", "month"): (0, 26_564_000)}
        assert await stage.audit() == []
