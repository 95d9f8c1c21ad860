"""Traffic for the demonstration: what several teams of an organisation would send, at a bounded rate.

Fresh pictures, repeats (hits), twins (coalesced), unseeded ones (bypass), fallbacks to the official channel, cancels,
denials of every kind, a team that uses its cap up; and now and then what the simulator is asked to do wrong: failures,
refusals, a bill off the list, broken pictures, lost answers, an outage of half a minute. Which fault a submit meets is
written into its prompt; the simulator's script looks for it there.

Runs in the gateway's image and needs the standard library only. It keeps nothing: the last tasks are in memory,
bounded. The keys below are public, those of deploy/policies; they are worth nothing anywhere else.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import logging
import math
import random
import signal
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

KEYS: Final[Mapping[str, str]] = {
    "growth": "wgk_demo_growth",
    "growth/ci": "wgk_demo_growth_ci",
    "research": "wgk_demo_research",
    "brand": "wgk_demo_brand",
    "intern": "wgk_demo_intern",
}

MODELS: Final[Mapping[str, Sequence[str]]] = {
    "growth": ("gemini-2.5-flash-image-preview", "gemini-2.5-flash-image-preview", "gemini-3.1-flash-image-preview"),
    "growth/ci": ("gemini-2.5-flash-image-preview",),
    "research": (
        "gpt-image-2",
        "z-image-turbo",
        "wan2.7-image",
        "doubao-seedream-4.0",
        "gemini-3.1-flash-image-preview",
    ),
    "brand": ("gemini-3-pro-image-preview", "imagen-4.0", "qwen-image-2.0"),
    "intern": ("gemini-2.5-flash-image-preview",),
}
"""Who asks for what, when nothing is said about it."""

SUBJECTS: Final = ("a fox", "a lighthouse", "a red bicycle", "an old harbour", "a bowl of plums", "a night train")
STYLES: Final = ("oil on canvas", "as a woodcut", "in fog", "from above", "on white", "in the rain")

FAULTS: Final[Sequence[Mapping[str, Any]]] = (
    {"on": "submit", "prompt": "[fallback]", "times": None, "do": {"fallback": True}},
    {"on": "submit", "prompt": "[slow]", "times": None, "do": {"work_s": 20}},
    {"on": "submit", "prompt": "[off the list]", "times": None, "do": {"cost": 5000}},
    {
        "on": "submit",
        "prompt": "[fails]",
        "times": None,
        "do": {"outcome": "failed", "error": {"code": "content_policy", "message": "The picture was not made."}},
    },
    {
        "on": "submit",
        "prompt": "[refused]",
        "times": None,
        "do": {"status": 400, "code": "invalid_request", "message": "The prompt is not accepted."},
    },
    {"on": "submit", "prompt": "[lost]", "times": 1, "do": {"accept_and_drop": True}},
    {"on": "media", "prompt": "[broken]", "times": 3, "do": {"media": "cut"}},
)
"""The simulator's script. Those with a count are fresh again whenever the script is sent."""

OUTAGE: Final[Mapping[str, Any]] = {
    "on": "any",
    "times": None,
    "do": {"status": 503, "message": "An outage, asked for."},
}
FIRST_OUTAGE_S: Final = 180.0
OUTAGE_EVERY_S: Final = 900.0
OUTAGE_FOR_S: Final = 30.0

DENIALS: Final[Sequence[tuple[str, Mapping[str, Any]]]] = (
    ("growth", {"model": "z-image-turbo"}),
    ("growth", {"model": "gemini-3-pro-image-preview-official"}),
    ("growth", {"n": 9}),
    ("growth", {"resolution": "8K"}),
    ("brand", {"model": "imagen-4.0", "action": "upscale"}),
    ("brand", {"official_fallback": True}),
    ("research", {"model": "no-such-model"}),
    ("research", {"n": 0}),
)

TIMEOUT_S: Final = 30.0
RECENT_MAX: Final = 40
OPEN_MAX: Final = 200
POLLS_A_STEP: Final = 3
PAUSE_S: Final = 2.0
REPORT_EVERY_S: Final = 60.0
PER_SECOND_MAX: Final = 20.0

log = logging.getLogger("traffic")


class Client:
    """A host, asked over a connection of its own each time: nothing is left to go stale between two steps."""

    def __init__(self, url: str) -> None:
        """`url` has no path."""
        self._host = urllib.parse.urlsplit(url).netloc

    def call(self, method: str, path: str, *, key: str = "", body: object = None) -> tuple[int, Any]:
        """(status, JSON or None); raises OSError while the host cannot be reached."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        sent = None if body is None else json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection(self._host, timeout=TIMEOUT_S)) as connection:
            try:
                connection.request(method, path, body=sent, headers=headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise OSError(f"{method} {self._host}: {error!r}") from None
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(text)
        return answer.status, None


class Traffic:
    """One step is one wish of one team, and some polls for what is still open."""

    def __init__(self, gateway: Client, simulator: Client | None, chance: random.Random) -> None:
        """Without a `simulator` nothing goes wrong on request."""
        self._gateway = gateway
        self._simulator = simulator
        self._chance = chance
        self._is_out: bool | None = None
        self._recent: collections.deque[tuple[str, dict[str, Any]]] = collections.deque(maxlen=RECENT_MAX)
        self._open: collections.deque[tuple[str, str]] = collections.deque(maxlen=OPEN_MAX)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._wishes: Mapping[Callable[[], None], int] = {
            self.fresh: 80,
            self.repeat: 44,
            self.twins: 12,
            self.unseeded: 16,
            self.fallback: 10,
            self.official: 4,
            self.cancel: 8,
            self.fault: 12,
            self.denial: 12,
            self.capped: 10,
            self.burst: 1,
            self.stranger: 2,
        }

    def step(self) -> None:
        """Play one wish, drawn by its weight, and poll."""
        (wish,) = self._chance.choices(list(self._wishes), weights=list(self._wishes.values()))
        wish()
        for _ in range(min(POLLS_A_STEP, len(self._open))):
            self.poll(*self._open.popleft())

    def outage(self, is_out: bool) -> None:
        """Have an outage, or none, from now on."""
        if is_out is not self._is_out:
            self._send_script(is_out)
            self._is_out = is_out

    def fresh(self) -> None:
        """A new picture, sometimes several."""
        who, body = self._new()
        if self._chance.random() < 0.2:
            body["n"] = 2
        self._recent.append((who, body))
        self.submit(who, body)

    def repeat(self) -> None:
        """One of the last pictures once more."""
        if self._recent:
            self.submit(*self._chance.choice(self._recent))

    def twins(self) -> None:
        """The same picture twice, the second while the first is being made."""
        who, body = self._new()
        body["prompt"] += " [slow]"
        self.submit(who, body)
        self.submit(who, body)

    def unseeded(self) -> None:
        """A picture that may not be kept for a repeat."""
        who, body = self._new()
        del body["seed"]
        self.submit(who, body)

    def fallback(self) -> None:
        """A picture that ends on the dearer channel."""
        who, body = self._new("research", "gemini-3.1-flash-image-preview")
        body |= {"official_fallback": True, "prompt": f"{body['prompt']} [fallback]"}
        self.submit(who, body)

    def official(self) -> None:
        """A picture asked of the dearer channel."""
        self.submit(*self._new("brand", "gemini-3-pro-image-preview-official"))

    def cancel(self) -> None:
        """A wish that is taken back."""
        who, body = self._new()
        body["prompt"] += " [slow]"
        task_id = self.submit(who, body)
        if task_id is not None:
            self._count("cancel", *self._gateway.call("POST", f"/v1/tasks/{task_id}/cancel", key=KEYS[who]))

    def fault(self) -> None:
        """A submit that the vendor spoils."""
        who, body = self._new("growth", "gemini-2.5-flash-image-preview")
        fault = self._chance.choice(("fails", "fails", "refused", "off the list", "broken", "broken", "lost"))
        self._send_script(self._is_out or False)
        body["prompt"] += f" [{fault}]"
        self.submit(who, body)

    def denial(self) -> None:
        """What a policy does not allow."""
        who, change = self._chance.choice(DENIALS)
        self.submit(who, {**self._new(who)[1], **change})

    def capped(self) -> None:
        """A team with a small cap, and a key with one of its own."""
        self.submit(*self._new(self._chance.choice(("intern", "growth/ci"))))

    def burst(self) -> None:
        """More in a moment than a team may send in a minute."""
        who, body = self._new("brand", "qwen-image-2.0")
        for _ in range(25):
            self.submit(who, body)

    def stranger(self) -> None:
        """Requests that are nobody's, for nothing, or nonsense."""
        self._count("stranger", *self._gateway.call("GET", "/v1/models", key="wgk_unknown"))
        self._count("stranger", *self._gateway.call("GET", "/v1/nothing", key=KEYS["growth"]))
        self._count("stranger", *self._gateway.call("POST", "/v1/tasks", key=KEYS["growth"], body=["nonsense"]))

    def submit(self, who: str, body: Mapping[str, Any]) -> str | None:
        """The id of the task, where there is one."""
        status, document = self._gateway.call("POST", "/v1/tasks", key=KEYS[who], body=body)
        self._count("submit", status, document)
        if status != 200:
            return None
        self._open.append((who, document["task_id"]))
        return str(document["task_id"])

    def poll(self, who: str, task_id: str) -> None:
        """Ask after a task; look at its picture when it is there."""
        status, document = self._gateway.call("GET", f"/v1/tasks/{task_id}", key=KEYS[who])
        if status == 200 and document["status"] in ("queued", "processing"):
            self._open.append((who, task_id))
            return
        self._count("task", status, document)
        if status == 200 and document["status"] == "completed":
            url = urllib.parse.urlsplit(document["result"]["images"][0]["url"][0])
            if url.path.startswith("/media/"):
                self._count("picture", *self._gateway.call("GET", url.path))

    def _send_script(self, is_out: bool) -> None:
        if self._simulator is not None:
            self._simulator.call("POST", "/sim/script", body=[OUTAGE] * is_out + list(FAULTS))

    def _new(self, who: str = "", model: str = "") -> tuple[str, dict[str, Any]]:
        who = who or self._chance.choice(("growth", "growth", "growth", "research", "research", "brand"))
        return who, {
            "model": model or self._chance.choice(MODELS[who]),
            "prompt": f"{self._chance.choice(SUBJECTS)}, {self._chance.choice(STYLES)}",
            "seed": self._chance.randrange(1_000_000),
        }

    def _count(self, what: str, status: int, document: Any) -> None:
        code = document.get("error", {}).get("code", "") if isinstance(document, dict) and status >= 400 else ""
        ended = document.get("status", "") if what == "task" and isinstance(document, dict) and status == 200 else ""
        self.outcomes[" ".join(word for word in (what, str(status), code, ended) if word)] += 1


def is_outage(elapsed_s: float) -> bool:
    """Whether the vendor is down at this time of the traffic."""
    return elapsed_s >= FIRST_OUTAGE_S and (elapsed_s - FIRST_OUTAGE_S) % OUTAGE_EVERY_S < OUTAGE_FOR_S


def run(traffic: Traffic, *, per_second: float, stopping: threading.Event, seconds: float) -> None:
    """Step until told to stop, or for so many seconds; whoever cannot be reached is waited for."""
    started = reported_at = time.monotonic()
    while not stopping.wait(1 / per_second) and (now := time.monotonic()) - started < seconds:
        try:
            traffic.outage(is_outage(now - started))
            traffic.step()
        except OSError as error:
            log.warning("%s", error)
            stopping.wait(PAUSE_S)
        if now - reported_at > REPORT_EVERY_S:
            reported_at = now
            report(traffic)
    report(traffic)


def report(traffic: Traffic) -> None:
    """Log what came of everything so far."""
    log.info("so far: %s", ", ".join(f"{count} {what}" for what, count in sorted(traffic.outcomes.items())))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; of this process, if none is given."""
    parser = argparse.ArgumentParser(description="Traffic for the demonstration.")
    parser.add_argument("--gateway", default="http://127.0.0.1:8080", help="where the gateway is")
    parser.add_argument(
        "--simulator", default="", help="where the simulator is; without it nothing goes wrong on request"
    )
    parser.add_argument("--per-second", type=float, default=1.0, help=f"steps a second, at most {PER_SECOND_MAX:g}")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so long")
    parser.add_argument("--seed", type=int, default=1, help="which course the traffic takes")
    parsed = parser.parse_args(words)
    if not 0.01 <= parsed.per_second <= PER_SECOND_MAX:
        parser.error(f"--per-second: write 0.01 to {PER_SECOND_MAX:g}")
    return parsed


def main() -> None:
    """Send traffic until SIGTERM."""
    words = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    simulator = Client(words.simulator) if words.simulator else None
    traffic = Traffic(Client(words.gateway), simulator, random.Random(words.seed))
    run(traffic, per_second=words.per_second, stopping=stopping, seconds=words.seconds)


if __name__ == "__main__":
    main()
