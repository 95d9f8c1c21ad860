"""Each check of the audit: a real database in which exactly that is broken, by hand."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Callable

import pytest

from gateway.flow import audit, changes, resolve
from gateway.rules import money
from gateway.store.database import Row, Tx
from tests import stage as stages

CAPS = 'spend: [{name: daily, cap: "5", per: day}, {name: flash, cap: "5", per: month, models: ["gemini-2.5-*"]}]\n'
ORG = 'timezone: Asia/Kathmandu\nspend: [{name: all, cap: "50", per: total}]\n'


@pytest.fixture
async def busy(tmp_path: pathlib.Path) -> AsyncIterator[stages.Stage]:
    """A day with everything in it: paid, official at a premium, hits, followers, refused, cancelled, open."""
    async with stages.staged(tmp_path, org=ORG, growth=CAPS) as stage:
        await stage.admitted(seed=7, n=2)
        await stage.admitted(stages.CALLER, seed=7, n=2)
        await stage.finish()
        await stage.admitted(seed=7, n=2)
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": {"fallback": True}}])
        await stage.admitted(stages.OTHER, model=stages.PRO, official_fallback=True)
        await stage.finish()
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": {"status": 400}}])
        await stage.admitted(prompt="refused")
        stage.vendor.set_script([])
        stage.clock.advance(86_400)
        await stage.admitted(prompt="open")
        yield stage


async def _broken(stage: stages.Stage, sql: str, **values: object) -> list[str]:
    """What the audit finds after this statement, made without the schema's triggers."""

    def break_it(tx: Tx) -> None:
        for row in tx.all("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            tx.run(f"DROP TRIGGER {row['name']}")
        assert tx.run(sql, **values) > 0

    assert await stage.audit() == []
    await stage.parts.database.write(break_it)
    return await stage.audit()


async def _ids(stage: stages.Stage, which: str) -> list[str]:
    sql = f"SELECT id FROM tasks WHERE {which} ORDER BY id"  # noqa: S608 - written below
    return [row["id"] for row in await stage.parts.database.read(lambda tx: tx.all(sql))]


async def _sizes(stage: stages.Stage) -> list[Row]:
    return await stage.parts.database.read(lambda tx: tx.all("SELECT COUNT(*), SUM(size_bytes) FROM blobs"))


async def test_the_day_has_every_kind_of_task_in_it(busy: stages.Stage) -> None:
    assert await busy.audit() == []
    rows = await busy.parts.database.read(lambda tx: tx.all("SELECT state, x_cache FROM tasks ORDER BY id"))
    assert [stages.values(row) for row in rows] == [
        ("completed", "MISS"),
        ("completed", "COALESCED"),
        ("completed", "HIT"),
        ("completed", "BYPASS"),
        ("refused", "BYPASS"),
        ("submitted", "BYPASS"),
    ]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("settled_nanos", "settled is $0.026560001, the entries say $0.02656"),
        ("reserved_nanos", "reserved is $0.000000001, the open holds say $0"),
    ],
)
async def test_it_finds_one_nano_in_one_balance(busy: stages.Stage, column: str, said: str) -> None:
    this = "scope = 'team' AND name = 'growth' AND period = 'day' AND settled_nanos = 26560000"
    sql = f"UPDATE balances SET {column} = {column} + 1 WHERE {this}"  # noqa: S608 - a column of the table above
    [found] = await _broken(busy, sql)
    assert found.startswith("balance team growth  day ") and found.endswith(said)


async def test_it_finds_a_hold_that_is_not_the_reserve(busy: stages.Stage) -> None:
    [open_id] = await _ids(busy, "state = 'submitted'")
    found = await _broken(busy, "UPDATE holds SET nanos = nanos - 1 WHERE period = 'day'")
    assert len(found) == 2
    assert "its rows of holds say $0.013281999, the open reserves $0.013282" in found[0]
    assert found[1] == f"a row of holds gives task {open_id} $0.013281999, which is no open reserve of it"


async def test_it_finds_a_hold_that_is_missing(busy: stages.Stage) -> None:
    [found] = await _broken(busy, "DELETE FROM holds WHERE period = 'total'")
    assert found == "balance org   total 0: its rows of holds say $0, the open reserves $0.013282"


async def test_it_finds_a_hold_in_a_balance_that_is_not_there(busy: stages.Stage) -> None:
    [found] = await _broken(busy, "DELETE FROM balances WHERE period = 'total'")
    assert found == "balance org   total 0 has no row, and tasks hold $0.013282 in it"


async def test_it_finds_an_open_task_without_a_reservation(busy: stages.Stage) -> None:
    [open_id] = await _ids(busy, "state = 'submitted'")
    found = await _broken(busy, "DELETE FROM entries WHERE task_id = :id", id=open_id)
    assert f"task {open_id} is open and holds no reservation" in found


async def test_it_finds_a_reservation_without_an_end(busy: stages.Stage) -> None:
    [open_id] = await _ids(busy, "state = 'submitted'")
    found = await _broken(busy, "UPDATE tasks SET state = 'failed' WHERE id = :id", id=open_id)
    assert found == [
        f"the reservation of task {open_id} was never settled or released",
        f"task {open_id} has ended, and the ledger has neither a settle nor a release of it",
    ]


async def test_it_finds_an_ended_task_that_the_ledger_does_not_know(busy: stages.Stage) -> None:
    [refused_id] = await _ids(busy, "state = 'refused'")
    [found] = await _broken(busy, "DELETE FROM entries WHERE task_id = :id", id=refused_id)
    assert found == f"task {refused_id} has ended, and the ledger has neither a settle nor a release of it"


async def test_it_finds_an_entry_of_a_hit(busy: stages.Stage) -> None:
    [hit_id] = await _ids(busy, "x_cache = 'HIT'")
    [refused_id] = await _ids(busy, "state = 'refused'")
    found = await _broken(busy, "UPDATE entries SET task_id = :hit WHERE task_id = :id", hit=hit_id, id=refused_id)
    assert f"task {hit_id} is free, and the ledger has entries of it" in found


async def test_it_finds_a_cost_on_a_row_that_is_not_its_settle(busy: stages.Stage) -> None:
    [paid_id] = await _ids(busy, "x_cache = 'BYPASS' AND state = 'completed'")
    [refused_id] = await _ids(busy, "state = 'refused'")
    found = await _broken(busy, "UPDATE tasks SET cost_nanos = 1 WHERE id IN (:a, :b)", a=paid_id, b=refused_id)
    assert found == [
        f"task {paid_id}: its row says that it cost $0.000000001, its end in the ledger $0.1139",
        f"task {refused_id}: its row says that it cost $0.000000001, its end in the ledger $0",
    ]


async def test_it_finds_that_an_ended_task_names_no_cost(busy: stages.Stage) -> None:
    [paid_id] = await _ids(busy, "x_cache = 'BYPASS' AND state = 'completed'")
    found = await _broken(busy, "UPDATE tasks SET cost_nanos = NULL WHERE id = :id", id=paid_id)
    assert found == [f"task {paid_id}: its row says that it cost nothing, its end in the ledger $0.1139"]


async def test_it_finds_a_cost_on_a_follower(busy: stages.Stage) -> None:
    [follower_id] = await _ids(busy, "x_cache = 'COALESCED'")
    [found] = await _broken(busy, "UPDATE tasks SET cost_nanos = 1 WHERE id = :id", id=follower_id)
    assert found == f"task {follower_id} is free, and its row names a cost"


@pytest.mark.parametrize(
    ("where", "column", "kept"),
    [
        (f"growth {stages.FLASH} standard", "cost_nanos", 26_560_000),
        (f"growth {stages.FLASH} standard", "images", 2),
        (f"growth {stages.FLASH} standard", "avoided_cache_nanos", 26_560_000),
        (f"growth {stages.FLASH} standard", "avoided_coalesced_nanos", 26_560_000),
        (f"research {stages.PRO} standard", "premium_nanos", 71_400_000),
        (f"research {stages.PRO}-official official", "drift_nanos", 0),
    ],
)
async def test_it_finds_one_too_many_in_a_total(busy: stages.Stage, where: str, column: str, kept: int) -> None:
    team, model, tier = where.split()
    this = "team = :team AND model = :model AND tier = :tier"
    sql = f"UPDATE totals SET {column} = {column} + 1 WHERE {this}"  # noqa: S608 - a column of the table above
    [found] = await _broken(busy, sql, team=team, model=model, tier=tier)
    assert found == f"totals of {where}: {column} is {kept + 1}, recomputed it is {kept}"


async def test_drift_and_an_operators_charge_are_recomputed_as_they_were_judged(tmp_path: pathlib.Path) -> None:
    async with stages.staged(tmp_path, growth=CAPS) as stage:
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": {"cost": 20_000}}])
        await stage.admitted()
        await stage.finish()
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": {"status": 500}}])
        in_doubt = await stage.admitted(n=2)
        decision = resolve.Decision(task_id=in_doubt.id, charged_nanos=money.Nanos(50_000_000), why="their invoice")
        assert isinstance(await resolve.resolve(stage.parts.database, decision, now=stage.clock()), changes.Change)
        [kept] = await stage.parts.database.read(
            lambda tx: tx.all("SELECT cost_nanos, images, drift_nanos FROM totals")
        )
        # 40,000,000 - 13,281,250 for the first, 50,000,000 - 2 x 13,281,250 for the second.
        assert stages.values(kept) == (90_000_000, 1, 50_156_250)
        assert await stage.audit() == []


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda path: path.unlink(), "has a row and no file"),
        (lambda path: path.write_bytes(b"short"), "has 5 bytes, its row says"),
    ],
)
async def test_it_finds_a_lost_and_a_cut_picture(
    busy: stages.Stage, breaks: Callable[[pathlib.Path], object], said: str
) -> None:
    first = min(each.digest for each in busy.parts.blobs.each())
    path = busy.parts.blobs.path(first)
    assert path is not None
    breaks(path)
    [found] = await busy.audit()
    assert found.startswith(f"blob {first} {said}")


async def test_it_finds_a_result_whose_blob_has_no_row(busy: stages.Stage) -> None:
    first = min(each.digest for each in busy.parts.blobs.each())
    found = await _broken(busy, "DELETE FROM blobs WHERE digest = :digest", digest=first)
    assert found[0] == f"blob {first} is named by a task's result and has no row"
    assert len(found) == 2 and found[1].startswith("usage is 3 blobs of ")


async def test_its_progress_only_grows_and_ends_at_the_whole(busy: stages.Stage) -> None:
    seen: list[tuple[int, int]] = []
    scan, blobs = busy.parts.database.scan, busy.parts.blobs
    found = [each async for each in audit.beside(scan, blobs, progress=lambda done, total: seen.append((done, total)))]
    assert found == []
    assert seen == [(1, 9), (2, 9), (3, 9), (4, 9), (5, 9), (6, 9), (9, 9)]


async def test_it_finds_a_kept_sum_of_the_blobs_that_is_wrong(busy: stages.Stage) -> None:
    [found] = await _broken(busy, "UPDATE usage SET bytes = bytes + 1")
    [(blobs, size)] = [stages.values(row) for row in await _sizes(busy)]
    assert found == f"usage is {blobs} blobs of {size + 1} bytes, recomputed it is {blobs} of {size}"


# Beside a gateway at work


async def _beside(stage: stages.Stage, scan: audit.Scan | None = None) -> list[str]:
    return [each async for each in audit.beside(scan or stage.parts.database.scan, stage.parts.blobs)]


async def test_beside_a_gateway_it_finds_what_it_finds_alone(busy: stages.Stage) -> None:
    first, second = sorted(each.digest for each in busy.parts.blobs.each())[:2]
    for digest, content in ((first, None), (second, b"short")):
        path = busy.parts.blobs.path(digest)
        assert path is not None
        path.unlink() if content is None else path.write_bytes(content)
    await busy.parts.database.write(lambda tx: tx.run("UPDATE tasks SET cost_nanos = 1 WHERE state = 'refused'"))
    found = await busy.audit()
    assert len(found) == 3
    assert await _beside(busy) == found


async def test_a_picture_that_is_collected_between_its_row_and_its_file_is_no_difference(busy: stages.Stage) -> None:
    digests = sorted(each.digest for each in busy.parts.blobs.each())
    lost, collected = digests[0], digests[1]
    looks: list[str] = []

    async def scan(fn: Callable[[Tx], audit.T]) -> audit.T:
        """As the database does it; before the files are looked at again, the collector ends with one of them."""
        found = await busy.parts.database.scan(fn)
        if isinstance(found, audit.Looked):
            looks.append("files")
            await busy.parts.database.write(_row_is_dropped)
        return found

    def _row_is_dropped(tx: Tx) -> None:
        tx.run("DELETE FROM task_media WHERE digest = :digest", digest=collected)
        tx.run("DELETE FROM blobs WHERE digest = :digest", digest=collected)

    for digest in (lost, collected):
        busy.parts.blobs.delete(digest)
    assert await _beside(busy, scan) == [f"blob {lost} has a row and no file"]
    assert looks == ["files"]
