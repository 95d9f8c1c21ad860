"""The teams of the soak: caps and thresholds with room, and three teams that are meant to be denied."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Final

from tests import process

ORGANISATION: Final = """timezone: UTC
contact: "#genai-spend"
spend:
  - {name: org-day, cap: "90000.00", per: day, warn_at: 0.8}
  - {name: org-month, cap: "900000.00", per: month}
defaults:
  limits: {open_tasks: 20000}
"""
BROKEN: Final = "timezone: UTC\nspend: [{name: org-day, cap: 500}]\n"
"""An amount without quotes: refused."""

TEAMS: Final[Mapping[str, str]] = {
    "growth": """
labels: {{cost_center: "4711"}}
keys:
  - {{name: ci, sha256: "{ci}"}}
  - {{name: dashboard, sha256: "{dashboard}", can: [read]}}
  - {{name: old, sha256: "{old}", expires: 2026-01-01}}
models:
  deny: ["gemini-3-pro-*-official"]
  actions: [generate, edit, image2image]
  rewrite: {{gemini-3-pro-image: gemini-3-pro-image-preview}}
official_fallback:
  default: deny
  rules: [{{models: ["gemini-3.1-*"], action: allow, while_spend_below: 0.99}}]
limits: {{n: 4, resolution: 2K, reference_images: 2, open_tasks: 20000}}
spend:
  - {{name: daily, cap: "20000.00", per: day, warn_at: 0.4}}
  - {{name: monthly, cap: "90000.00", per: month}}
  - {{name: ci-day, cap: "15000.00", per: day, key: ci}}
  - {{name: official, cap: "5000.00", per: day, models: ["*-official"]}}
webhooks: {{secret: env:SOAK_WEBHOOK_SECRET}}
""",
    "research": """
keys: [{{name: notebooks, sha256: "{ci}"}}]
official_fallback: {{default: allow}}
spend:
  - {{name: weekly, cap: "{changing}", per: week, warn_at: 0.75}}
  - {{name: grant, cap: "50000.00", per: total}}
thresholds:
  - {{at: "5.00", per: day, rewrite: {{gemini-2.5-flash-image-preview-official: gemini-2.5-flash-image-preview}}}}
cache: {{requests: seeded, scope: org, ttl: 90d, grounded: true}}
""",
    "patient": """
keys: [{{name: agency, sha256: "{ci}"}}]
spend: [{{name: daily, cap: "9000.00", per: day}}]
""",
    "hasty": """
keys: [{{name: shop, sha256: "{ci}"}}]
upstream_down: refuse
spend: [{{name: daily, cap: "9000.00", per: day}}]
""",
    "spent": """
keys: [{{name: gift, sha256: "{ci}"}}]
spend: [{{name: gift, cap: "0.001", per: total}}]
""",
    "full": """
keys: [{{name: posts, sha256: "{ci}"}}]
spend: [{{name: daily, cap: "0.001", per: day}}]
""",
    "hurried": """
keys: [{{name: play, sha256: "{ci}"}}]
limits: {{requests_per_minute: 6}}
""",
}
ENVIRON: Final = {
    "SOAK_WEBHOOK_SECRET": "whsec_c29hay1zb2FrLXNvYWstc29haw==",
    **{f"KEY_{name.upper()}": f"vendor-secret-{name}" for name in TEAMS},
}
PAYING: Final = ("growth", "research", "patient", "hasty")
"""Teams whose submits are carried out. The upstream refuses the key of `patient` for a while, now and then."""


def write(directory: pathlib.Path, *, change: int = 0) -> pathlib.Path:
    """Write the policy files; another `change` is another cap of one team."""
    (directory / "teams").mkdir(parents=True, exist_ok=True)
    (directory / "org.yaml").write_text(ORGANISATION)
    (directory / "models.yaml").write_bytes(process.MODELS.read_bytes())
    for team in TEAMS:
        write_team(directory, team, change=change)
    return directory


def write_team(directory: pathlib.Path, team: str, *, change: int = 0) -> None:
    """Write one team's file anew, so that nobody sees half of it."""
    digests = {name: hashlib.sha256(bearer(team, name).encode()).hexdigest() for name in ("ci", "dashboard", "old")}
    head = f"team: {team}\nupstream_key: env:KEY_{team.upper()}\n"
    beside = directory / f".{team}.new"
    beside.write_text(head + TEAMS[team].format(changing=f"{20_000 + change % 2}.00", **digests))
    beside.rename(directory / "teams" / f"{team}.yaml")


def bearer(team: str, key: str = "ci") -> str:
    """A virtual key, as a client sends it; a team's only key goes by `ci`."""
    return f"wgk_{team}_{key}"
