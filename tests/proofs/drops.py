"""The vendor takes 100 of 100 submits and answers none of them: no client sees an error, nothing is bought twice."""

from __future__ import annotations

import asyncio
import collections
import pathlib
import time
from typing import Final

from tests import process
from tests.proofs import run

SUBMITS: Final = 100
MODEL: Final = "gemini-2.5-flash-image-preview"
WITHIN_S: Final = 90


def prove(directory: pathlib.Path) -> str:
    """A hundred submits at once, each accepted and dropped on its first POST."""
    with process.pair(directory) as (gateway, vendor):
        # The pause has all of them on their way before the first is dropped and the circuit opens.
        drop = {"delay_s": 2, "accept_and_drop": True}
        vendor.script([{"on": "submit", "times": SUBMITS, "do": drop}])
        bodies = [{"model": MODEL, "prompt": f"fox {number}"} for number in range(SUBMITS)]
        answers = asyncio.run(gateway.flood(bodies))
        statuses = collections.Counter(status for status, _, _ in answers)
        assert statuses == {200: 100}, f"a client sees an error: {dict(statuses)}"
        said = collections.Counter(document["status"] for _, _, document in answers)
        assert said == {"queued": 100}, dict(said)
        started = time.monotonic()
        ended = [gateway.complete(document["task_id"], within_s=WITHIN_S) for _, _, document in answers]
        took_s = time.monotonic() - started
        states = collections.Counter(document["status"] for document in ended)
        assert states == {"completed": 100}, dict(states)
        bill, posts = vendor.bill(), vendor.requests()["submits"]
        first_posts = {post["idempotency_key"] for post in posts}
        prompts = collections.Counter(line["prompt"] for line in bill["by_task"].values())
        assert (len(prompts), max(prompts.values()), bill["open"]) == (100, 1, 0), prompts.most_common(3)
        assert (len(first_posts), len(posts)) == (100, 200), (len(first_posts), len(posts))
        settled = gateway.settled_nanos()
        assert settled == bill["nanos"] == 1_328_000_000, (settled, bill["nanos"])
        audited = gateway.cli("audit")
        assert audited.returncode == 0, audited.stdout
    return f"100 of 100 answers lost, 100 vendor tasks, 100 settles, $1.328 = the bill, {took_s:.0f} s until the last"


if __name__ == "__main__":
    run.alone("drops", prove)
