"""The clients of a life: they submit, repeat what got no answer under its Idempotency-Key, wait, and cancel.

What they were told is kept in a journal, which the books are held against afterwards.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp

from tests import process
from tests.crash import plans

AGAIN_S: Final = 0.02
"""Pause while nobody listens."""
MODEL: Final = "gemini-2.5-flash-image-preview"
DOUBT: Final = "doubt"
"""The team whose upstream key a scenario replaces."""
ENDED: Final = frozenset({"completed", "failed", "cancelled"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a submit was answered."""

    part: plans.Part
    team: str
    key: str | None
    body: Mapping[str, object]
    status: int
    task_id: str | None


class Clients:
    """Everybody who talks to the gateway of one life; from one start to the next they go on."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key_file: pathlib.Path, *, hook_url: str) -> None:
        """`key_file` holds the upstream key of the team that has its key replaced; `hook_url`: where they are told."""
        self._session = session
        self._url = url
        self._key_file = key_file
        self._hook_url = hook_url
        self._keys_made = 0
        self.journal: list[Told] = []
        self.findings: list[str] = []

    async def play(self, part: plans.Part) -> None:
        """Play one scenario to its end."""
        plays: dict[str, Callable[[plans.Part], Awaitable[object]]] = {
            "plain": self._plain,
            "keyless": self._keyless,
            "repeated": self._repeated,
            "seeded": self._seeded,
            "left": self._left,
            "cancelled": self._cancelled,
            "abandoned": self._abandoned,
        }
        await plays[plans.SCENARIOS[part.scenario].play](part)

    async def submit(self, part: plans.Part, key: str | None, *, team: str = "growth", **more: object) -> Told | None:
        """Submit; under a key it is sent again until there is an answer. None: no key and no answer."""
        scenario = plans.SCENARIOS[part.scenario]
        body = {"model": MODEL, "prompt": part.prompt, "callback_url": self._hook_url, **scenario.fields, **more}
        named = {} if key is None else {"Idempotency-Key": key}
        answer = await self._call("POST", "/v1/tasks", team, body, named, is_repeated=key is not None)
        if answer is None:
            return None
        status, document = answer
        task_id = document.get("task_id") if status == 200 else None
        told = Told(part=part, team=team, key=key, body=body, status=status, task_id=task_id)
        self.journal.append(told)
        if status not in scenario.answers:
            self.findings.append(f"{part.prompt}: a submit was answered {status} {document}")
        return told

    async def shown(self, told: Told, *, wait_s: int = 0) -> dict[str, Any]:
        """The task as its team sees it, after a wait for its end."""
        prefer = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        answer = await self._call("GET", f"/v1/tasks/{told.task_id}", told.team, None, prefer, is_repeated=True)
        assert answer is not None
        status, document = answer
        if status != 200:
            self.findings.append(f"{told.part.prompt}: task {told.task_id} answers {status} {document}")
        return document

    async def answered(self) -> None:
        """Return once the gateway answers."""
        await self._call("GET", "/v1/tasks?limit=1", "growth", None, {}, is_repeated=True)

    async def _plain(self, part: plans.Part) -> Told | None:
        return await self.submit(part, part.prompt)

    async def _keyless(self, part: plans.Part) -> None:
        await self.submit(part, None)

    async def _repeated(self, part: plans.Part) -> None:
        await asyncio.gather(*(self.submit(part, part.prompt) for _ in range(3)))

    async def _seeded(self, part: plans.Part) -> None:
        """A leader, one who follows it, and a hit when it is done."""
        told = await asyncio.gather(*(self.submit(part, f"{part.prompt}{each}", seed=7) for each in "ab"))
        for each in told:
            while each is not None and (await self.shown(each, wait_s=5))["status"] not in ENDED:
                pass
        await self.submit(part, f"{part.prompt}c", seed=7)

    async def _left(self, part: plans.Part) -> None:
        """One who follows, and leaves."""
        told = await asyncio.gather(*(self.submit(part, f"{part.prompt}{each}", seed=7) for each in "ab"))
        await self._cancel(told[1])

    async def _cancelled(self, part: plans.Part) -> None:
        await self._cancel(await self._plain(part))

    async def _cancel(self, told: Told | None) -> None:
        if told is not None and told.task_id is not None:
            await self._call("POST", f"/v1/tasks/{told.task_id}/cancel", told.team, None, {}, is_repeated=True)

    async def _abandoned(self, part: plans.Part) -> None:
        """The vendor never says whether it took the task; then the upstream key is replaced."""
        await self.submit(part, part.prompt, team=DOUBT)
        self._keys_made += 1
        beside = self._key_file.with_suffix(".new")
        beside.write_text(f"vendor-secret-doubt-{self._keys_made}")
        beside.rename(self._key_file)

    async def _call(
        self,
        method: str,
        path: str,
        team: str,
        body: Mapping[str, object] | None,
        headers: Mapping[str, str],
        *,
        is_repeated: bool,
    ) -> tuple[int, dict[str, Any]] | None:
        named = {"Authorization": f"Bearer {key_of(team)}", "Content-Type": "application/json", **headers}
        text = None if body is None else json.dumps(body).encode()
        while True:
            try:
                async with self._session.request(method, self._url + path, data=text, headers=named) as answer:
                    return answer.status, await answer.json()
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(AGAIN_S)  # nobody listens: not sent
            except (aiohttp.ClientError, OSError):
                if not is_repeated:
                    return None
                await asyncio.sleep(AGAIN_S)


def key_of(team: str) -> str:
    """The virtual key of a team."""
    return process.KEYS.get(team, f"wgk_{team}")
