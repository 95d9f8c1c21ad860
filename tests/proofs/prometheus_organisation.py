"""The organisation whose traffic `prometheus` watches: its teams' policies, keys, and which submits it sends how often.

Marks in a prompt tell the simulator what to do with the task (`SCRIPT`), so that a kind of trouble stays with the
submits that are meant for it. Pure but for `write`.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tests import process

Script = list[dict[str, Any]]

TEAMS: Final[Mapping[str, str]] = {
    "growth": """
labels: {{cost_center: "4711"}}
keys:
  - {{name: ci, sha256: "{ci}"}}
  - {{name: website, sha256: "{website}"}}
  - {{name: dashboard, sha256: "{dashboard}", can: [read]}}
  - {{name: campaign, sha256: "{campaign}", expires: {soon}}}
  - {{name: old, sha256: "{old}", expires: {past}}}
models:
  allow: ["gemini-*", later-model]
  deny: ["gemini-3-pro-*-official"]
  actions: [generate, edit, image2image, reference]
  rewrite: {{gemini-3-pro-image: gemini-3-pro-image-preview}}
official_fallback:
  default: deny
  rules: [{{models: ["gemini-3.1-*"], action: allow, while_spend_below: 0.99}}]
limits: {{n: 4, resolution: 2K, reference_images: 2, open_tasks: 500}}
spend:
  - {{name: daily, cap: "{much}", per: day, warn_at: 0.4}}
  - {{name: monthly, cap: "400.00", per: month, warn_at: 0.8, raises: [{{by: "200.00", until: {soon}, why: launch}}]}}
  - {{name: ci-day, cap: "{some}", per: day, key: ci}}
  - {{name: official, cap: "{some}", per: day, models: ["*-official"], warn_at: 0.5}}
""",
    "research": """
labels: {{cost_center: "0815", department: research}}
keys: [{{name: notebooks, sha256: "{ci}"}}]
models: {{unlisted: {{usd: "0.50"}}}}
official_fallback: {{default: allow}}
limits: {{n: 8, resolution: 4K, open_tasks: 500}}
upstream_down: refuse
spend:
  - {{name: weekly, cap: "{much}", per: week, warn_at: 0.75}}
  - {{name: grant, cap: "5000.00", per: total}}
thresholds:
  - {{at: "{little}", per: day, rewrite: {{gemini-3-pro-image-preview-official: gemini-3-pro-image-preview}}}}
cache: {{requests: all, scope: org, ttl: 90d, grounded: true}}
""",
    "design": """
labels: {{cost_center: "1234"}}
keys: [{{name: studio, sha256: "{ci}"}}]
official_fallback: {{default: force}}
cache: {{requests: seeded, scope: org, ttl: 30d}}
spend: [{{cap: "{much}", per: month, warn_at: 0.5}}]
""",
    "marketing": """
labels: {{cost_center: "5678"}}
keys: [{{name: posts, sha256: "{ci}"}}]
official_fallback: {{default: strip}}
spend: [{{name: daily, cap: "{little}", per: day, warn_at: 0.8}}]
""",
    "trial": """
keys: [{{name: trial, sha256: "{ci}"}}]
spend: [{{name: gift, cap: "{least}", per: total, warn_at: 0.5}}]
""",
    "sandbox": """
keys: [{{name: play, sha256: "{ci}"}}]
limits: {{open_tasks: 3, requests_per_minute: 6}}
""",
    "partner": """
labels: {{cost_center: "9999"}}
keys: [{{name: agency, sha256: "{ci}"}}]
spend: [{{name: daily, cap: "{much}", per: day}}]
""",
    "ghost": """
keys: [{{name: nobody, sha256: "{ci}"}}]
""",
}
"""Team files but for `team` and `upstream_key`. The key of `ghost` cannot be read."""

ENVIRON: Final = {f"KEY_{name.upper()}": f"vendor-secret-{name}" for name in TEAMS if name != "ghost"}

ORGANISATION: Final = """timezone: UTC
contact: "#genai-spend"
spend:
  - {{name: org-day, cap: "{all}", per: day, warn_at: 0.6}}
  - {{cap: "8000.00", per: month, warn_at: 0.8}}
defaults:
  labels: {{department: product}}
"""

UNLISTED: Final = ("wan2.7-image", "qwen-image-2.0")
"""Taken out of models.yaml; the upstream sells them, so they are `other`."""
UNPRICED: Final = '\n  later-model: {prices: [{from: 2999-01-01, usd: "1"}]}\n'

USD_PER_VISIT: Final = 0.028
"""About what a visit of the whole mixture costs; from it follow the caps, for any number of visits."""
SHARES: Final = {"all": 1.4, "much": 0.5, "some": 0.05, "little": 0.015, "least": 0.005}
"""The caps that a team file names, as a share of what all visits together cost: three get full, also where a slow
machine leaves half of the visits out."""


def write(directory: pathlib.Path, *, visits: int, today: datetime.date) -> pathlib.Path:
    """Write the policy files for about so many visits."""
    amounts = {name: f"{max(0.2, share * visits * USD_PER_VISIT):.2f}" for name, share in SHARES.items()}
    dates = {"soon": today + datetime.timedelta(days=5), "past": today - datetime.timedelta(days=1)}
    (directory / "teams").mkdir(parents=True, exist_ok=True)
    (directory / "org.yaml").write_text(ORGANISATION.format(**amounts))
    models = process.MODELS.read_text().splitlines()
    kept = [line for line in models if not line.startswith(tuple(f"  {name}:" for name in UNLISTED))]
    (directory / "models.yaml").write_text("\n".join(kept) + UNPRICED)
    for team, text in TEAMS.items():
        digests = {name: digest(team, name) for name in ("ci", "website", "dashboard", "campaign", "old")}
        head = f"team: {team}\nupstream_key: env:KEY_{team.upper()}\n"
        (directory / "teams" / f"{team}.yaml").write_text(head + text.format(**amounts, **dates, **digests))
    return directory


def bearer(team: str, key: str = "ci") -> str:
    """The virtual key, as a client sends it. A team's only key goes by `ci` whatever its file calls it."""
    return f"wgk_{team}_{key}"


def digest(team: str, key: str = "ci") -> str:
    """What a team file lists of it."""
    return hashlib.sha256(bearer(team, key).encode()).hexdigest()


# What the simulator does for a mark in a prompt; all of it for as long as it runs.

WORD_OF_THE_VENDOR: Final = {"message": "The picture was blocked.", "code": "content_policy_violation"}
REFUSED: Final = {"on": "submit", "prompt": "[refused]", "do": {"status": 400, "code": "content_policy_violation"}}
"""Before every fault: what is refused now may not be accepted in a lost answer and refused when it is repeated, for a
refusal under the idempotency key is the vendor's word that there is no task."""
SCRIPT: Final[Script] = [
    {"on": "submit", "prompt": "[fails]", "do": {"outcome": "failed", "error": WORD_OF_THE_VENDOR}},
    {"on": "submit", "prompt": "[fails-billed]", "do": {"outcome": "failed", "error": WORD_OF_THE_VENDOR, "cost": 999}},
    {"on": "submit", "prompt": "[dear]", "do": {"cost": 40_001}},
    {"on": "submit", "prompt": "[partial]", "do": {"deliver": 1}},
    {"on": "submit", "prompt": "[fallback]", "do": {"fallback": True, "work_s": 2}},
    {"on": "submit", "prompt": "[slow]", "do": {"queue_s": 20}},
    {"on": "submit", "prompt": "[long]", "do": {"work_s": 6}},
    {"on": "submit", "prompt": "[early]", "do": {"generation": "early"}},
    {"on": "submit", "prompt": "[later]", "do": {"generation": "later"}},
    {"on": "submit", "model": "gemini-3-pro*", "do": {"queue_s": 0.5, "work_s": 3}},
    {"on": "submit", "model": "gemini-3.1*", "do": {"queue_s": 0.3, "work_s": 1.5}},
    {"on": "submit", "model": "gemini-2.5*", "do": {"queue_s": 0.1, "work_s": 0.3}},
]
"""Without `times`, see `scripted`."""


def scripted(*faults: dict[str, Any], gone_at: int) -> Script:
    """A fault script: these, then what every mark means, for ever.

    `gone_at`: in unix seconds, when the URLs of `[vanishes]` expire; there is nothing behind them.
    """
    nowhere = {"url": "http://127.0.0.1:9/gone.jpg", "expires_at": gone_at}
    vanishes = {"on": "poll", "prompt": "[vanishes]", "do": {"merge": {"result": {"images": [nowhere]}}}}
    lasting: Script = [{**rule, "times": None} for rule in [REFUSED, vanishes, *SCRIPT]]
    return [lasting[0], *faults, *lasting[1:]]


# What is sent. A visit is one intention of one client; several copies of it leave at once.


class Then(enum.Enum):
    """What a client does after its submit."""

    POLL = "poll"
    WAIT = "long poll, then look at the picture"
    LEAVE = "never ask"
    CANCEL = "cancel"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One intention of a client. `path`: anything but a submit is one GET."""

    team: str
    body: dict[str, Any]
    key: str = "ci"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies: int = 1
    then: Then = Then.POLL
    path: str | None = None


GEMINI: Final = ("gemini-3-pro-image-preview", "gemini-3.1-flash-image-preview", "gemini-2.5-flash-image-preview")
WHOLE_QUOTA: Final = "gemini-3-pro-image-preview"
"""Its price is whole quota, so that a bill that names no cost is settled to what the simulator bills."""
OTHERS: Final = (
    "gemini-3-pro-image-rev",
    "gpt-image-2",
    "gpt-image-1.5-official",
    "gpt-image-1-official",
    "imagen-4.0",
    "doubao-seedream-5.0-lite",
    "doubao-seedream-4.5",
    "doubao-seedream-4.0",
    "z-image-turbo",
    "qwen-image-2.0-pro",
)
OFFICIAL: Final = tuple(f"{model}-official" for model in GEMINI)

Kind = Callable[["Mixture"], Visit]


class Mixture:
    """Draws visits, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.drawn = 0
        self.seeded: list[Visit] = []
        """Earlier visits with a seed, to be repeated."""

    def draw(self) -> Visit:
        """The next visit."""
        self.drawn += 1
        [kind] = self.random.choices([kind for _, kind in KINDS], [weight for weight, _ in KINDS])
        return kind(self)

    def visit(self, team: str, model: str, *, mark: str = "", **more: Any) -> Visit:
        """A visit whose prompt nobody used before."""
        fields = {name: more.pop(name) for name in list(more) if name not in VISIT_FIELDS}
        prompt = f"[{mark}] " if mark else ""
        body = {"model": model, "prompt": f"{prompt}fox {self.drawn} for {team}", **fields}
        return Visit(team=team, body=body, **more)

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of them."""
        return self.random.choice(choices)


VISIT_FIELDS: Final = {field.name for field in dataclasses.fields(Visit)}


def _plain(of: Mixture) -> Visit:
    team = of.pick(("growth", "growth", "growth", "research", "design", "partner"))
    then = of.pick((Then.POLL, Then.POLL, Then.WAIT, Then.LEAVE))
    key = of.pick(("ci", "website", "campaign")) if team == "growth" else "ci"
    return of.visit(team, of.pick(GEMINI), n=of.pick((1, 1, 1, 2)), key=key, then=then)


def _other_model(of: Mixture) -> Visit:
    return of.visit(of.pick(("design", "partner")), of.pick(OTHERS), resolution=of.pick(("1K", "1k", "2K", "4K")))


def _unlisted(of: Mixture) -> Visit:
    return of.visit("research", of.pick(UNLISTED))


def _official(of: Mixture) -> Visit:
    return of.visit(of.pick(("research", "partner")), of.pick(OFFICIAL))


def _fallback(of: Mixture) -> Visit:
    team, model = of.pick((("growth", GEMINI[1]), ("research", of.pick(GEMINI)), ("design", of.pick(GEMINI))))
    return of.visit(team, model, mark="fallback", official_fallback=True)


def _seeded(of: Mixture) -> Visit:
    visit = of.visit(of.pick(("growth", "design", "partner")), of.pick(GEMINI), seed=of.drawn, then=Then.POLL)
    of.seeded = [*of.seeded[-50:], visit]
    return visit


def _repeat(of: Mixture) -> Visit:
    return of.pick(of.seeded) if of.seeded else _seeded(of)


def _at_once(of: Mixture) -> Visit:
    return of.visit(of.pick(("growth", "research", "design")), of.pick(GEMINI), mark="long", seed=of.drawn, copies=3)


def _edit(of: Mixture) -> Visit:
    urls = ["https://pictures.example.com/a.png"]
    return of.visit(of.pick(("growth", "design")), of.pick(GEMINI), action="edit", image_urls=urls)


def _grounded(of: Mixture) -> Visit:
    return of.visit(of.pick(("partner", "design")), GEMINI[1], google_search=True)


def _bypass(of: Mixture) -> Visit:
    return of.visit("growth", of.pick(GEMINI), seed=7, headers={"X-Wave-Cache": of.pick(("no-store", "refresh"))})


def _shape(of: Mixture) -> Visit:
    return of.visit("partner", WHOLE_QUOTA, mark=of.pick(("early", "later")))


def _marked(of: Mixture) -> Visit:
    mark = of.pick(("fails", "fails", "fails-billed", "refused", "refused", "dear"))
    # Nobody listens there: attempts at webhooks that fail.
    hook = "http://127.0.0.1:9/"
    return of.visit(of.pick(("growth", "partner", "marketing")), of.pick(GEMINI), mark=mark, callback_url=hook)


def _partial(of: Mixture) -> Visit:
    return of.visit("growth", WHOLE_QUOTA, mark="partial", n=3)


def _spoilt(of: Mixture) -> Visit:
    return of.visit(of.pick(("growth", "partner")), of.pick(GEMINI), mark="spoilt", then=Then.WAIT)


def _vanishes(of: Mixture) -> Visit:
    return of.visit("partner", GEMINI[2], mark="vanishes")


def _cancel(of: Mixture) -> Visit:
    return of.visit(of.pick(("growth", "partner")), of.pick(GEMINI), mark="slow", then=Then.CANCEL)


def _capped(of: Mixture) -> Visit:
    return of.visit(of.pick(("marketing", "marketing", "trial")), of.pick(GEMINI))


def _play(of: Mixture) -> Visit:
    """Seven at once: one more than the minute's, four more than may be open."""
    return of.visit("sandbox", GEMINI[2], mark="long", copies=7, then=Then.LEAVE)


def _denied(of: Mixture) -> Visit:
    """What a policy says no to, and what is no request at all."""
    free = {"X-Wave-Cache": "only-if-cached"}
    return of.pick(
        (
            of.visit("growth", "gpt-image-2"),
            of.visit("growth", OFFICIAL[0]),
            of.visit("growth", GEMINI[1], action="search_grounded"),
            of.visit("growth", GEMINI[0], official_fallback=True),
            of.visit("growth", GEMINI[0], n=5),
            of.visit("growth", GEMINI[0], resolution="4K"),
            of.visit("growth", GEMINI[2], resolution="4K"),
            of.visit("growth", GEMINI[0], action="edit", image_urls=[f"https://x.example/{n}" for n in range(3)]),
            of.visit("growth", GEMINI[0], headers={"X-Wave-Max-Cost-Usd": "0.01"}),
            of.visit("growth", "later-model"),
            of.visit("growth", GEMINI[0], seed=of.drawn, headers=free),
            of.visit("growth", GEMINI[0], key="dashboard"),
            of.visit("growth", GEMINI[0], key="old"),
            of.visit("growth", GEMINI[0], key="unknown"),
            of.visit("growth", GEMINI[0], n=0),
            of.visit("growth", GEMINI[0], callback_url="ftp://example.com/"),
            of.visit("ghost", GEMINI[0]),
        )
    )


def _look(of: Mixture) -> Visit:
    path = of.pick(
        (
            "/v1/models",
            "/v1/tasks",
            "/v1/dashboard/billing/balance",
            "/v1/dashboard/billing/usage",
            "/v1/tasks/task-wg00000000000000000000000000",
            "/v1/nothing",
        )
    )
    return of.visit("growth", GEMINI[0], path=path)


def _dry(of: Mixture) -> Visit:
    return of.visit("growth", of.pick(GEMINI), headers={"X-Wave-Dry-Run": "true"})


KINDS: Final[Sequence[tuple[int, Kind]]] = (
    (30, _plain),
    (9, _other_model),
    (3, _unlisted),
    (3, _official),
    (6, _fallback),
    (6, _seeded),
    (9, _repeat),
    (2, _at_once),
    (3, _edit),
    (2, _grounded),
    (2, _bypass),
    (2, _shape),
    (4, _marked),
    (1, _partial),
    (3, _spoilt),
    (1, _vanishes),
    (2, _cancel),
    (7, _capped),
    (1, _play),
    (7, _denied),
    (2, _look),
    (1, _dry),
)
"""How often each is drawn, of about a hundred."""
