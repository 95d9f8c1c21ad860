"""References: media URLs of ours in a request, and what goes upstream in their place."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest

from gateway.flow import explain, references, submit
from gateway.rules import task
from gateway.store import media, tasks
from tests import stage as stages

OURS = "http://gateway.test/media/"
UNKNOWN = OURS + "0" * 64 + ".jpg"
DAY_S = 86_400


async def _picture(stage: stages.Stage, **fields: Any) -> str:
    """The media URL of a finished task, as a client reads it."""
    row = await stage.admitted(**fields)
    while (await stage.row(row.id)).state is not task.State.COMPLETED:
        await stage.run(5)
    shown = await stage.shown(row)
    [url] = shown["result"]["images"][0]["url"]
    assert url.startswith(OURS)
    return str(url)


async def _upstream_url(stage: stages.Stage, task_id: str) -> str:
    [medium] = await stage.parts.database.read(lambda tx: tasks.media_of(tx, task_id))
    return medium.upstream_url


def _sent(stage: stages.Stage, at: int = -1) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(stage.vendor.requests.submits[at].body)
    return body


def _give_media_url(stage: stages.Stage) -> None:
    stage.parts = dataclasses.replace(
        stage.parts, media_public_url="https://media.test", is_media_public_url_given=True
    )


async def _chain(stage: stages.Stage) -> list[tasks.Task]:
    """Text, an edit of its picture, an edit of that one's."""
    url = await _picture(stage, seed=1)
    for seed in (2, 3):
        url = await _picture(stage, seed=seed, prompt=f"edit {seed}", action="edit", image_urls=[url])
    rows = await stage.parts.database.read(lambda tx: tx.all("SELECT id FROM tasks ORDER BY id"))
    return [await stage.row(row["id"]) for row in rows]


async def test_a_chain_of_edits_reaches_the_vendor_with_its_own_urls(tmp_path):
    async with stages.staged(tmp_path) as stage:
        rows = await _chain(stage)
        assert [row.state for row in rows] == [task.State.COMPLETED] * 3
        assert [_sent(stage, at).get("image_urls") for at in range(3)] == [
            None,
            [await _upstream_url(stage, rows[0].id)],
            [await _upstream_url(stage, rows[1].id)],
        ]
        assert all("/files/" in _sent(stage, at)["image_urls"][0] for at in (1, 2))
        assert await stage.audit() == []


@pytest.mark.parametrize("later_s", [0, DAY_S])
async def test_a_chain_repeated_with_the_same_seeds_is_three_hits_also_after_the_vendors_urls_expired(
    tmp_path, later_s
):
    async with stages.staged(tmp_path) as stage:
        await _chain(stage)
        stage.clock.advance(later_s)
        assert [row.x_cache for row in await _chain(stage)] == ["MISS"] * 3 + ["HIT"] * 3
        assert stage.posts() == 3


async def test_a_repeat_is_a_hit_although_another_url_would_go_out(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage, seed=1)
        await _picture(stage, seed=2, action="edit", image_urls=[url])
        stage.clock.advance(DAY_S)
        _give_media_url(stage)
        name = url.removeprefix(OURS)
        for written in (url, f"https://media.test/media/{name}", f"{url}?w=300"):
            hit = await stage.admitted(seed=2, action="edit", image_urls=[written])
            assert hit.x_cache == "HIT"


async def test_an_identical_edit_in_flight_is_followed_though_its_reference_has_expired_meanwhile(tmp_path):
    async with stages.staged(tmp_path, vendor={"work_s": 2 * DAY_S}) as stage:
        stage.vendor.set_script([{"on": "submit", "do": {"work_s": 1}}])
        url = await _picture(stage, seed=1)
        await stage.admitted(seed=2, action="edit", image_urls=[url])
        stage.clock.advance(DAY_S)
        assert (await stage.admitted(seed=2, action="edit", image_urls=[url])).x_cache == "COALESCED"


@pytest.mark.parametrize("left_s", [299, 301])
async def test_the_vendors_url_is_used_while_it_lives_by_a_margin(tmp_path, left_s):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        [medium] = await stage.parts.database.read(lambda tx: tasks.media_of(tx, "task-wg" + "1".zfill(26)))
        assert medium.expires_at is not None
        stage.clock.now = medium.expires_at - left_s
        _give_media_url(stage)
        await stage.admitted(action="edit", image_urls=[url])
        ours = "https://media.test/media/" + url.removeprefix(OURS)
        assert _sent(stage)["image_urls"] == [medium.upstream_url if left_s == 301 else ours]


async def test_without_a_media_public_url_an_expired_reference_is_refused_and_nothing_is_sent(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        stage.clock.advance(DAY_S)
        deny = await stage.denied(action="edit", image_urls=["https://example.com/1.png", url])
        assert (deny.code, deny.param) == ("reference_not_reachable", "image_urls")
        assert "--media-public-url" in deny.message
        assert url not in deny.message
        assert stage.posts() == 1
        assert len(await stage.parts.database.read(lambda tx: tx.all("SELECT id FROM tasks"))) == 1


async def test_an_unknown_digest_is_refused_whatever_was_given(tmp_path):
    async with stages.staged(tmp_path) as stage:
        _give_media_url(stage)
        deny = await stage.denied(action="edit", image_urls=[UNKNOWN])
        assert (deny.code, deny.param) == ("reference_not_reachable", "image_urls")
        assert (await stage.denied(mask_url=UNKNOWN)).param == "mask_url"
        assert stage.posts() == 0


async def test_too_many_references_are_refused(tmp_path):
    async with stages.staged(tmp_path) as stage:
        urls = [f"{OURS}{number:064x}.jpg" for number in range(references.MOST_REFERENCES + 1)]
        deny = await stage.denied(action="edit", image_urls=urls)
        assert deny.code == "reference_not_reachable"
        assert "256" in deny.message


async def test_the_model_rules_answer_before_a_reference_does(tmp_path):
    async with stages.staged(tmp_path) as stage:
        assert (await stage.denied(model="unknown", image_urls=[UNKNOWN])).code == "model_not_allowed"


async def test_every_url_field_is_resolved_and_every_other_string_is_untouched(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        theirs = await _upstream_url(stage, "task-wg" + "1".zfill(26))
        path = url.removeprefix("http://gateway.test")
        said: dict[str, Any] = {
            "mask_url": url,
            "style_urls": [url, "https://example.com/1.png"],
            "image_urls": [f"https://elsewhere.test{path}", f"http://gateway.test.evil{path}", f"{url}/x", url[:-9]],
            "mixed_urls": [url, {"deep_url": url}],
            "extra": {"mask_url": url},
            "negative_prompt": url,
            "url": url,
        }
        await stage.admitted(prompt=url, **said)
        expected = said | {"mask_url": theirs, "style_urls": [theirs, "https://example.com/1.png"]}
        assert _sent(stage) == {"model": stages.FLASH, "prompt": url} | expected


async def test_all_but_the_reference_goes_out_byte_for_byte(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        theirs = await _upstream_url(stage, "task-wg" + "1".zfill(26))
        escaped = url.replace("/", "\\/")
        written = '{"model":"%s","prompt":"\\u4e2d","image_urls":[ "%s" , "https:\\/\\/example.com" ],"w":1.10}'
        body = (written % (stages.FLASH, escaped)).encode()
        options = submit.Options(request_id="req-2")
        assert isinstance(await submit.submit(stage.parts, stages.CALLER, body, options), submit.Submitted)
        assert stage.vendor.requests.submits[-1].body == (written % (stages.FLASH, theirs)).encode()


async def test_an_idempotent_replay_holds_the_clients_own_body_and_is_served_after_the_expiry(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        first = await stage.admitted(key="k", action="edit", image_urls=[url])
        stage.clock.advance(DAY_S)
        again = await stage.submit(key="k", action="edit", image_urls=[url])
        assert isinstance(again, submit.Submitted)
        assert (again.row.id, again.is_replay, stage.posts()) == (first.id, True, 2)


async def test_a_repeat_after_a_lost_answer_sends_the_same_body_though_the_url_has_expired(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        stage.vendor.set_script([{"on": "submit", "times": 1, "do": {"drop": True}}])
        row = await stage.admitted(action="edit", image_urls=[url])
        assert row.state is task.State.IN_DOUBT
        await stage.run(DAY_S - 4 * 3600)
        assert (await stage.row(row.id)).state is task.State.SUBMITTED
        lost, repeated = list(stage.vendor.requests.submits)[-2:]
        assert lost.body == repeated.body == row.request
        assert "/files/" in _sent(stage)["image_urls"][0]


async def test_of_several_upstream_urls_the_one_that_lives_longest_goes_out(tmp_path):
    async with stages.staged(tmp_path, growth="cache: {requests: off}\n") as stage:
        url = await _picture(stage, seed=1)
        stage.clock.advance(DAY_S // 2)
        assert await _picture(stage, seed=1) == url
        stage.clock.advance(DAY_S // 2)
        await stage.admitted(action="edit", image_urls=[url])
        assert _sent(stage)["image_urls"] == [await _upstream_url(stage, "task-wg" + "2".zfill(26))]


@pytest.mark.parametrize(("kept_s", "is_alive"), [(DAY_S - 301, True), (DAY_S - 299, False)])
async def test_a_url_without_an_expiry_lives_for_a_day_after_its_blob_was_kept(tmp_path, kept_s, is_alive):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        kept_at = stage.clock()
        await stage.parts.database.write(lambda tx: tx.run("UPDATE task_media SET expires_at = NULL"))
        stage.clock.now = kept_at + kept_s
        result = await stage.submit(action="edit", image_urls=[url])
        assert isinstance(result, submit.Submitted) is is_alive


async def test_a_kept_blob_that_no_task_points_at_is_sent_as_ours(tmp_path):
    async with stages.staged(tmp_path) as stage:
        blob = media.BlobRow(digest="a" * 64, size_bytes=1, mime="image/png", extension="png")
        now = stage.clock()
        await stage.parts.database.write(lambda tx: media.keep(tx, blob, task_id="none", position=0, now=now))
        url = f"{OURS}{'a' * 64}.png"
        assert (await stage.denied(mask_url=url)).code == "reference_not_reachable"
        _give_media_url(stage)
        await stage.admitted(mask_url=f"https://media.test/media/{'a' * 64}.png")
        assert _sent(stage)["mask_url"] == f"https://media.test/media/{'a' * 64}.png"


async def test_another_team_may_use_a_media_url_that_it_knows(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        await stage.admitted(stages.OTHER, action="edit", image_urls=[url])
        assert "/files/" in _sent(stage)["image_urls"][0]


async def test_identical_edits_at_once_with_one_reference_are_one_post(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        results = await asyncio.gather(*(stage.submit(seed=5, action="edit", image_urls=[url]) for _ in range(20)))
        assert sorted(each.row.x_cache for each in results if isinstance(each, submit.Submitted)) == [
            *["COALESCED"] * 19,
            "MISS",
        ]
        assert stage.posts() == 2


async def test_a_dry_run_says_what_the_submit_would_meet(tmp_path):
    async with stages.staged(tmp_path) as stage:
        url = await _picture(stage)
        body = msgspec.json.encode(
            {"model": stages.FLASH, "prompt": "p", "seed": 2, "action": "edit", "image_urls": [url]}
        )
        options = submit.Options(request_id="req-3")
        found = await explain.dry_run(stage.parts, stages.CALLER, body, options)
        row = await stage.admitted(prompt="p", seed=2, action="edit", image_urls=[url])
        assert (found.decision, found.fingerprint) == ("allow", row.fingerprint)
        await stage.finish()
        stage.clock.advance(DAY_S)
        assert (await explain.dry_run(stage.parts, stages.CALLER, body, options)).cache == "hit"
        other = body.replace(b'"seed":2', b'"seed":3')
        found = await explain.dry_run(stage.parts, stages.CALLER, other, options)
        assert (found.decision, found.code) == ("deny", "reference_not_reachable")


async def test_a_threshold_that_rewrites_the_model_keeps_the_reference(tmp_path):
    lines = f'thresholds: [{{at: "0.01", per: day, rewrite: {{{stages.PRO}: {stages.FLASH}}}}}]\n'
    async with stages.staged(tmp_path, growth=lines) as stage:
        url = await _picture(stage)
        await stage.admitted(model=stages.PRO, image_urls=[url])
        assert _sent(stage)["model"] == stages.FLASH
        assert "/files/" in _sent(stage)["image_urls"][0]
