"""What policy files may say, and where each thing that they may not say is reported."""

from __future__ import annotations

import datetime
from fractions import Fraction

import pytest

from gateway import policy_documents, policy_yaml
from gateway.rules import policy
from gateway.rules.money import Nanos

MODELS = """\
models:
  pro:
    prices: [{from: 2026-04-01, usd: "0.0425"}]
    official: pro-official
    resolutions: [1k, 2K, 4K]
  pro-official:
    tier: official
    prices: [{from: 2026-04-01, usd: "0.1139"}]
"""

TEAM = """\
team: growth
upstream_key: env:WAVE_KEY_GROWTH
"""

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
OTHER = "60303AE22B998861BCE3B28F33EEC1BE758A213C86C93C076DBE9F558C11C752"


def read(**files: str | bytes) -> tuple[policy.PolicySet, list[str]]:
    """Parse files given by stem: `growth` is teams/growth.yaml."""
    texts: dict[str, str | bytes] = {"models": MODELS, "growth": TEAM, **files}
    named = {
        f"{name}.yaml" if name in ("org", "models") else f"teams/{name}.yaml": (
            text if isinstance(text, bytes) else text.encode()
        )
        for name, text in texts.items()
    }
    problems = policy_yaml.Problems()
    return policy_documents.parse(named, problems), [str(problem) for problem in problems.found()]


def good(**files: str) -> policy.PolicySet:
    policies, problems = read(**files)
    assert problems == []
    return policies


def team(lines: str, **files: str) -> policy.Team:
    return good(growth=TEAM + lines, **files).teams["growth"]


def test_what_no_file_says_is_built_in():
    assert good() == policy.PolicySet(
        organisation=policy.Organisation(timezone="UTC", contact=None, caps=()),
        models={
            "pro": policy.Model(
                name="pro",
                prices=(policy.Price(since=datetime.date(2026, 4, 1), nanos={"default": Nanos(42_500_000)}),),
                official="pro-official",
                resolutions=("1K", "2K", "4K"),
                origin="models.yaml:2",
            ),
            "pro-official": policy.Model(
                name="pro-official",
                prices=(policy.Price(since=datetime.date(2026, 4, 1), nanos={"default": Nanos(113_900_000)}),),
                tier=policy.Tier.OFFICIAL,
                origin="models.yaml:6",
            ),
        },
        teams={
            "growth": policy.Team(
                name="growth",
                upstream_key="env:WAVE_KEY_GROWTH",
                origins={"team": "teams/growth.yaml:1", "upstream_key": "teams/growth.yaml:2"},
            )
        },
    )
    assert good().teams["growth"].limits.open_tasks == 1000
    assert good().teams["growth"].cache.ttl_s == 2_592_000


def test_an_empty_file_says_nothing():
    assert good(org="# nothing yet\n") == good(org="") == good(org="---\n") == good()


def test_every_key_of_a_team_file_is_read():
    found = team(
        f"""\
mode: disabled
labels: {{cost_center: "4711"}}
contact: growth-oncall@example.com
keys:
  - {{name: ci, sha256: {DIGEST}, expires: 2027-01-01, can: [submit, read]}}
  - name: web
    sha256: ["{OTHER}"]
models:
  allow: ["p*"]
  deny: ["*-official"]
  actions: [generate, edit]
  rewrite: {{old: pro}}
  unlisted: {{usd: "0.20"}}
official_fallback:
  default: strip
  rules:
    - {{models: ["pro"], action: allow, while_spend_below: .5}}
    - {{models: ["*"], action: force}}
limits: {{n: 4, resolution: 2k, reference_images: 0, open_tasks: 50, requests_per_minute: 600}}
upstream_down: refuse
spend:
  - {{cap: "25.00", per: day}}
  - {{name: grant, cap: "400", per: total, warn_at: 0.8, raises: [{{by: "0.5", until: 2026-12-01, why: launch}}]}}
  - {{name: ci-week, cap: "5.00", per: week, key: ci, models: ["*-official"]}}
thresholds:
  - {{at: "20.00", per: month, rewrite: {{pro-official: pro}}}}
cache: {{requests: off, scope: org, ttl: 12h, grounded: true}}
retention: {{media: keep, prompts: keep, tasks: keep}}
webhooks: {{secret: file:hooks/secret, allow_hosts: [hooks.example.com]}}
"""
    )
    assert found == policy.Team(
        name="growth",
        upstream_key="env:WAVE_KEY_GROWTH",
        mode=policy.Mode.DISABLED,
        labels={"cost_center": "4711"},
        contact="growth-oncall@example.com",
        keys=(
            policy.Key(
                name="ci",
                sha256=(bytes.fromhex(DIGEST),),
                expires=datetime.date(2027, 1, 1),
                can=frozenset({policy.Permission.SUBMIT, policy.Permission.READ}),
                origin="teams/growth.yaml:7",
            ),
            policy.Key(name="web", sha256=(bytes.fromhex(OTHER),), origin="teams/growth.yaml:8"),
        ),
        allow=("p*",),
        deny=("*-official",),
        actions=("generate", "edit"),
        rewrite={"old": "pro"},
        unlisted_nanos=Nanos(200_000_000),
        fallback=policy.Fallback.STRIP,
        fallback_rules=(
            policy.FallbackRule(
                models=("pro",),
                action=policy.Fallback.ALLOW,
                while_spend_below=Fraction(1, 2),
                origin="teams/growth.yaml:19",
            ),
            policy.FallbackRule(models=("*",), action=policy.Fallback.FORCE, origin="teams/growth.yaml:20"),
        ),
        limits=policy.Limits(n=4, resolution="2K", reference_images=0, open_tasks=50, requests_per_minute=600),
        upstream_down=policy.UpstreamDown.REFUSE,
        caps=(
            policy.Cap(
                name="day",
                nanos=Nanos(25_000_000_000),
                window=policy.Window.DAY,
                origin="teams/growth.yaml:24",
            ),
            policy.Cap(
                name="grant",
                nanos=Nanos(400_000_000_000),
                window=policy.Window.TOTAL,
                warn_at=Fraction(4, 5),
                raises=(policy.Raise(nanos=Nanos(500_000_000), until=datetime.date(2026, 12, 1), why="launch"),),
                origin="teams/growth.yaml:25",
            ),
            policy.Cap(
                name="ci-week",
                nanos=Nanos(5_000_000_000),
                window=policy.Window.WEEK,
                key="ci",
                models=("*-official",),
                origin="teams/growth.yaml:26",
            ),
        ),
        thresholds=(
            policy.Threshold(
                nanos=Nanos(20_000_000_000),
                window=policy.Window.MONTH,
                rewrite={"pro-official": "pro"},
                origin="teams/growth.yaml:28",
            ),
        ),
        cache=policy.CachePolicy(
            requests=policy.Cacheable.OFF, scope=policy.CacheScope.ORG, ttl_s=43_200, grounded=True
        ),
        webhook_secret="file:hooks/secret",
        webhook_hosts=("hooks.example.com",),
        origins=found.origins,
    )
    assert {key: found.origin(key) for key in ("models.deny", "official_fallback.default", "limits.n", "spend")} == {
        "models.deny": "teams/growth.yaml:12",
        "official_fallback.default": "teams/growth.yaml:17",
        "limits.n": "teams/growth.yaml:21",
        "spend": "teams/growth.yaml:23",
    }
    assert found.origin("models.rewrite", "models") == "teams/growth.yaml:14"
    assert found.origin("models.unlisted") == "teams/growth.yaml:15"
    assert found.origin("cache.scope") == "teams/growth.yaml:29"


def test_every_key_of_a_model_is_read():
    models = """\
models:
  flash:
    prices:
      - {from: 2026-04-01, usd: "0.01328125"}
      - from: 2026-06-01
        usd: {1k: "0.03375", 0.5K: "0.03", default: "0.045"}
    actions: [generate, search_grounded]
    resolutions: [0.5k, 1k, 2k]
    aspect_ratios: ["1:1", auto]
    reference_images: {max: 14, usd: "0.001"}
    grounded: true
"""
    assert good(models=models).models["flash"] == policy.Model(
        name="flash",
        prices=(
            policy.Price(since=datetime.date(2026, 4, 1), nanos={"default": Nanos(13_281_250)}),
            policy.Price(
                since=datetime.date(2026, 6, 1),
                nanos={"1K": Nanos(33_750_000), "0.5K": Nanos(30_000_000), "default": Nanos(45_000_000)},
            ),
        ),
        actions=("generate", "search_grounded"),
        resolutions=("0.5K", "1K", "2K"),
        aspect_ratios=("1:1", "auto"),
        reference_images_max=14,
        reference_image_nanos=Nanos(1_000_000),
        grounded=True,
        origin="models.yaml:2",
    )


ORGANISATION = """\
timezone: Europe/Berlin
contact: "#genai-spend"
spend:
  - {name: org-day, cap: "500.00", per: day, models: ["pro*"]}
  - {cap: "8000.00", per: month, warn_at: 1}
defaults:
  labels: {department: product, cost_center: "1"}
  limits: {n: 2, open_tasks: 10}
  models: {deny: ["*-official"], actions: [generate]}
  spend: [{cap: "9", per: day}]
"""


def test_the_organisation_has_caps_and_a_timezone():
    assert good(org=ORGANISATION).organisation == policy.Organisation(
        timezone="Europe/Berlin",
        contact="#genai-spend",
        caps=(
            policy.Cap(
                name="org-day",
                nanos=Nanos(500_000_000_000),
                window=policy.Window.DAY,
                models=("pro*",),
                origin="org.yaml:4",
            ),
            policy.Cap(
                name="month",
                nanos=Nanos(8_000_000_000_000),
                window=policy.Window.MONTH,
                warn_at=Fraction(1),
                origin="org.yaml:5",
            ),
        ),
    )


def test_defaults_hold_where_the_team_says_nothing_and_keep_their_place():
    found = team("", org=ORGANISATION)
    assert found.labels == {"department": "product", "cost_center": "1"}
    assert found.limits == policy.Limits(n=2, open_tasks=10)
    assert (found.deny, found.actions) == (("*-official",), ("generate",))
    assert found.caps == (
        policy.Cap(name="day", nanos=Nanos(9_000_000_000), window=policy.Window.DAY, origin="org.yaml:10"),
    )
    assert (found.origin("models.deny"), found.origin("spend")) == ("org.yaml:9", "org.yaml:10")


def test_mappings_merge_per_leaf_and_lists_replace():
    found = team(
        'labels: {cost_center: "4711"}\nlimits: {n: 4}\nmodels: {deny: [], allow: [pro]}\nspend: []\n',
        org=ORGANISATION,
    )
    assert found.labels == {"department": "product", "cost_center": "4711"}
    assert found.limits == policy.Limits(n=4, open_tasks=10)
    assert (found.allow, found.deny, found.actions, found.caps) == (("pro",), (), ("generate",), ())
    places = ("limits", "limits.n", "limits.open_tasks", "models.allow", "models.deny", "models.actions", "spend")
    assert [found.origin(place) for place in places] == [
        "teams/growth.yaml:4",
        "teams/growth.yaml:4",
        "org.yaml:8",
        "teams/growth.yaml:5",
        "teams/growth.yaml:5",
        "org.yaml:9",
        "teams/growth.yaml:6",
    ]


def test_an_unlisted_model_may_be_a_rewrite_target_where_unlisted_models_are_allowed():
    lines = 'models: {rewrite: {old: elsewhere}, unlisted: {usd: "0.1"}}\n'
    assert team(lines).rewrite == {"old": "elsewhere"}
    assert team("models: {rewrite: {old: elsewhere}}\n", org='defaults: {models: {unlisted: {usd: "0.1"}}}').rewrite


def test_globs_may_match_nothing():
    assert team('models: {allow: ["kling-*"], deny: ["?"]}\n').allow == ("kling-*",)


T = "teams/growth.yaml:3"


@pytest.mark.parametrize(
    ("lines", "place", "fragment"),
    [
        ("modle: enforce", T, "unknown key 'modle' in a team file; did you mean 'mode'?"),
        ("zzz: 1", T, "unknown key 'zzz' in a team file; known are team, upstream_key, keys, mode"),
        ("limits: {N: 4}", T, "unknown key 'N' in limits; did you mean 'n'?"),
        ("limits: {n: 4, n: 5}", T, "the key 'n' was said on line 3 already; keep one of them"),
        ("\nmode: enforce\nlimits: {}\nmode: enforce", "teams/growth.yaml:6", "'mode' was said on line 4 already"),
        ("retention: {image: keep}", T, "unknown key 'image' in retention"),
        ("webhooks: {hosts: []}", T, "unknown key 'hosts' in webhooks; did you mean 'allow_hosts'?"),
        ("labels: {no: a}", T, "YAML reads the key 'no' as a boolean; write it in quotes"),
        ("labels: {7: a}", T, "YAML reads the key '7' as a number; write it in quotes"),
        ("labels: {<<: {a: b}}", T, "YAML reads the key '<<' as a merge; write the keys out"),
        ("labels: {[a]: b}", T, "a key is a list; a key is text"),
        ("limits: 4", T, "limits: holds a single value; write a mapping"),
        ("limits: []", T, "limits: holds a list; write a mapping"),
        ("limits:", T, "limits: holds nothing; write a mapping, such as {key: value}, or {} for none"),
        ("spend:", T, "spend: holds nothing; write a list, such as [a, b], or [] for none"),
        ("spend: {}", T, "spend: holds a mapping; write a list"),
        ("spend: [daily]", T, "a cap: holds a single value; write a mapping"),
        ("models: {allow: pro}", T, "allow: holds a single value; write a list"),
        ("models: {allow: [[pro]]}", T, "allow: holds a list; write a single value"),
        ("labels: [a]", T, "labels: holds a list; write a mapping"),
        ("contact: [a]", T, "contact: holds a list; write a single value"),
        ("contact:", T, "contact: has no value; write one or remove the key"),
        ("contact: ~", T, 'contact: YAML reads ~ as nothing; write it in quotes: "~"'),
        ("contact: 010", T, 'contact: YAML reads 010 as a number; write it in quotes: "010"'),
        ("labels: {cost_center: 4711}", T, 'cost_center: YAML reads 4711 as a number; write it in quotes: "4711"'),
        ("labels: {a: no}", T, 'a: YAML reads no as a boolean; write it in quotes: "no"'),
        ("labels: {a: 2026-01-01}", T, "a: YAML reads 2026-01-01 as a date; write it in quotes"),
        ("labels: {a: =}", T, "a: YAML reads = as a default; write it in quotes"),
        ("contact: ' '", T, "contact: ' ' is empty or more than one line"),
        ('contact: "a\\nb"', T, "contact: 'a\\nb' is empty or more than one line; write one line of text"),
        ("contact: ''", T, "contact: '' is empty or more than one line"),
        ("limits: {n: 010}", T, "n: 010 is not a whole number here; write plain digits such as 4, unquoted"),
        ("limits: {n: 1:30}", T, "n: 1:30 is not a whole number here"),
        ("limits: {n: .nan}", T, "n: .nan is not a whole number here"),
        ("limits: {n: 4.0}", T, "n: 4.0 is not a whole number here"),
        ("limits: {n: 0x4}", T, "n: 0x4 is not a whole number here"),
        ("limits: {n: 1_000}", T, "n: 1_000 is not a whole number here"),
        ("limits: {n: true}", T, "n: true is not a whole number here"),
        ('limits: {n: "4"}', T, 'n: "4" is not a whole number here; write plain digits such as 4, unquoted'),
        ("limits: {n: -1}", T, "n: -1 is not a whole number here"),
        ("limits: {n: 0}", T, "n: 0 is out of range; write 1 to 1000000000"),
        ("limits: {open_tasks: 1000000001}", T, "open_tasks: 1000000001 is out of range"),
        ("limits: {resolution: 2048}", T, "resolution: YAML reads 2048 as a number; write it in quotes"),
        ("limits: {resolution: 2M}", T, "resolution: '2M' is no resolution; write a number and K, such as 2K or 0.5K"),
        ('cache: {grounded: "no"}', T, 'grounded: "no" is not a boolean here; write true or false, without quotes'),
        ("cache: {grounded: no}", T, "grounded: no is not a boolean here; write true or false"),
        ("cache: {grounded: on}", T, "grounded: on is not a boolean here"),
        ("cache: {grounded: True}", T, "grounded: True is not a boolean here"),
        ('cache: {grounded: "true"}', T, 'grounded: "true" is not a boolean here'),
        ("cache: {grounded: 1}", T, "grounded: 1 is not a boolean here"),
        ("mode: observe", T, "mode: observe is not available yet; write enforce or disabled"),
        ("mode: off", T, "mode: 'off' is unknown; write one of enforce, disabled"),
        ("upstream_down: wait", T, "upstream_down: 'wait' is unknown; write one of queue, refuse"),
        (
            "official_fallback: {default: maybe}",
            T,
            "default: 'maybe' is unknown; write one of allow, deny, strip, force",
        ),
        ("cache: {requests: seed}", T, "requests: 'seed' is unknown; write one of seeded, all, off"),
        ("cache: {scope: global}", T, "scope: 'global' is unknown; write one of team, org"),
        ("retention: {media: 90d}", T, "media: '90d' is not available yet, nothing would be deleted; write keep"),
        ("cache: {ttl: 30}", T, "ttl: '30' is not a duration; write a whole number and s, m, h or d"),
        ("cache: {ttl: 1:30}", T, "ttl: '1:30' is not a duration"),
        ("cache: {ttl: 0s}", T, "ttl: 0s is out of range; write 1s to 3650d"),
        ("cache: {ttl: 3651d}", T, "ttl: 3651d is out of range; write 1s to 3650d"),
        (
            "spend: [{cap: 25.00, per: day}]",
            T,
            'cap: the amount 25.00 must be a decimal string; write it in quotes: "25.00"',
        ),
        ("spend: [{cap: 25, per: day}]", T, 'cap: the amount 25 must be a decimal string; write it in quotes: "25"'),
        ("spend: [{cap: .nan, per: day}]", T, "cap: '.nan' is not an amount"),
        ('spend: [{cap: "-1", per: day}]', T, "cap: '-1' is not an amount"),
        ('spend: [{cap: "1e3", per: day}]', T, "cap: '1e3' is not an amount"),
        ('spend: [{cap: "0.0000000001", per: day}]', T, "cap: '0.0000000001' is not an amount"),
        ('spend: [{cap: "1000000001", per: day}]', T, "cap: '1000000001' is more than 1000000000 US dollars"),
        ('spend: [{cap: "$5", per: day}]', T, "cap: '$5' is not an amount"),
        ('spend: [{cap: "1"}]', T, "the key 'per' is missing in a cap; add it"),
        ("spend: [{per: day}]", T, "the key 'cap' is missing in a cap; add it"),
        ('spend: [{cap: "1", per: year}]', T, "per: 'year' is unknown; write one of day, week, month, total"),
        ('spend: [{cap: "1", per: day, warn_at: 80}]', T, "warn_at: 80 is not a ratio; write a number above 0"),
        ('spend: [{cap: "1", per: day, warn_at: 0}]', T, "warn_at: 0 is not a ratio"),
        ('spend: [{cap: "1", per: day, warn_at: 0.0}]', T, "warn_at: 0.0 is not a ratio"),
        ('spend: [{cap: "1", per: day, warn_at: 1.1}]', T, "warn_at: 1.1 is not a ratio"),
        ('spend: [{cap: "1", per: day, warn_at: .nan}]', T, "warn_at: .nan is not a ratio"),
        ('spend: [{cap: "1", per: day, warn_at: "0.8"}]', T, 'warn_at: "0.8" is not a ratio'),
        (
            'spend: [{cap: "1", per: day, name: A day}]',
            T,
            "name: 'A day' will not do; write 1 to 63 lower-case letters",
        ),
        (
            'spend: [{cap: "1", per: day, models: []}]',
            T,
            "models: is empty; list globs, or remove the key to count all",
        ),
        ('spend: [{cap: "1", per: day, key: ci}]', T, "key: team growth has no key 'ci'; write one of its keys (none)"),
        (
            'spend:\n  - {cap: "1", per: day}\n  - {name: day, cap: "2", per: week}',
            "teams/growth.yaml:5",
            "spend: two caps are called 'day'; give this one a name of its own",
        ),
        (
            'spend: [{cap: "1", per: day, raises: [{by: 5, until: 2026-12-01, why: a}]}]',
            T,
            'by: the amount 5 must be a decimal string; write it in quotes: "5"',
        ),
        ('spend: [{cap: "1", per: day, raises: [{by: "5"}]}]', T, "the key 'until' is missing in a raise; add it"),
        ('spend: [{cap: "1", per: day, raises: [{by: "5"}]}]', T, "the key 'why' is missing in a raise; add it"),
        (
            'spend: [{cap: "1", per: day, raises: [{by: "5", until: 2026-12-1, why: a}]}]',
            T,
            "until: '2026-12-1' is not a date; write YYYY-MM-DD, such as 2026-12-01",
        ),
        (
            'spend: [{cap: "1", per: day, raises: [{by: "5", until: 2026-02-30, why: a}]}]',
            T,
            "until: '2026-02-30' is not a date",
        ),
        ("models: {unlisted: {}}", T, "the key 'usd' is missing in unlisted; add it"),
        ('models: {unlisted: "0.20"}', T, "unlisted: holds a single value; write a mapping"),
        ("models: {rewrite: {old: new}}", T, "rewrite: 'new' is not in models.yaml; add it, correct the id, or set"),
        ('thresholds: [{at: "1", per: day}]', T, "the key 'rewrite' is missing in a threshold; add it"),
        ("thresholds: [{per: day, rewrite: {pro: new}}]", T, "rewrite: 'new' is not in models.yaml"),
        ("thresholds: [{per: day, rewrite: {}}]", T, "the key 'at' is missing in a threshold; add it"),
        ("official_fallback: {rules: [{action: allow}]}", T, "the key 'models' is missing in a rule; add it"),
        ("official_fallback: {rules: [{models: [a]}]}", T, "the key 'action' is missing in a rule; add it"),
        ("webhooks: {allow_hosts: ['https://a']}", T, "allow_hosts: 'https://a' will not do; write a host name"),
        ("webhooks: {secret: hush}", T, "secret: is not a reference (the value is not shown here)"),
        (f"keys: [{{sha256: {DIGEST}}}]", T, "the key 'name' is missing in a key; add it"),
        ("keys: [{name: ci}]", T, "the key 'sha256' is missing in a key; add it"),
        ("keys: [{name: ci, sha256: []}]", T, "sha256: is empty; write what `wave-gateway keys new` prints"),
        ("keys: [{name: ci, sha256: wgk_hush}]", T, "sha256: is not a SHA-256 (the value is not shown here)"),
        (f"keys: [{{name: ci, sha256: {DIGEST}a}}]", T, "sha256: is not a SHA-256"),
        (f"keys: [{{name: CI, sha256: {DIGEST}}}]", T, "name: 'CI' will not do"),
        (f"keys: [{{name: ci, sha256: {DIGEST}, expires: never}}]", T, "expires: 'never' is not a date"),
        (f"keys: [{{name: ci, sha256: {DIGEST}, can: [admin]}}]", T, "can: 'admin' is unknown; write one of submit"),
        (
            f"keys:\n  - {{name: ci, sha256: {DIGEST}}}\n  - {{name: ci, sha256: {OTHER}}}",
            "teams/growth.yaml:5",
            "keys: two are called 'ci'; rename one, or list both digests on one",
        ),
        (
            f"keys:\n  - name: ci\n    sha256:\n      - {DIGEST}\n      - {DIGEST.upper()}",
            "teams/growth.yaml:7",
            "sha256: this key is listed at teams/growth.yaml:6 already; a key belongs to one team",
        ),
        ("contact: &a b", T, "anchors (&) and aliases (*) are not read here; write the value out, or quote it"),
        ("contact: *a", T, "anchors (&) and aliases (*) are not read here"),
        ("contact: !!str 5", T, "tags (!) are not read here; write the plain value, or quote it"),
        ("labels: !x {a: b}", T, "tags (!) are not read here"),
        ("labels: " + "[" * 16 + "]" * 16, T, "lists and mappings lie more than 16 deep here"),
        ("contact: [", "teams/growth.yaml:", "is not YAML: "),
        ("contact: 'a", "teams/growth.yaml:", "is not YAML: found unexpected end of stream; look at indentation"),
        ("contact: a\n mode: b", "teams/growth.yaml:4", "is not YAML: mapping values are not allowed"),
        ("\n---\nteam: growth", "teams/growth.yaml:4", "a second document begins here; write one per file"),
        ("\ncontact: a\x07b", "teams/growth.yaml:4", "holds the control character U+0007; remove it"),
        ("contact: a\u2028b", T, "holds the control character U+2028; remove it"),
    ],
)
def test_a_team_file_is_refused_at_the_line(lines, place, fragment):
    _, problems = read(growth=f"{TEAM}{lines}\n")
    assert any(problem.startswith(place) and fragment in problem for problem in problems), problems
    assert not any("hush" in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "place", "fragment"),
    [
        ("team: growth", "teams/growth.yaml:1", "the key 'upstream_key' is missing in a team file; add it"),
        ("upstream_key: env:A", "teams/growth.yaml:1", "the key 'team' is missing in a team file; add it"),
        ("", "teams/growth.yaml:1", "the key 'team' is missing in a team file; add it"),
        ("- a", "teams/growth.yaml:1", "holds a list; write `key: value` lines"),
        ("growth", "teams/growth.yaml:1", "holds a single value; write `key: value` lines"),
        (
            "team: sales\nupstream_key: env:A",
            "teams/growth.yaml:1",
            "team: 'sales' is not the file's name; write 'growth'",
        ),
        (
            "team: Growth\nupstream_key: env:A",
            "teams/growth.yaml:1",
            "team: 'Growth' will not do; write 1 to 63 lower-case",
        ),
        ("team: 7\nupstream_key: env:A", "teams/growth.yaml:1", "team: YAML reads 7 as a number"),
    ],
)
def test_a_team_file_without_its_essentials_is_refused(text, place, fragment):
    _, problems = read(growth=text)
    assert any(problem.startswith(f"{place}: ") and fragment in problem for problem in problems), problems


@pytest.mark.parametrize(
    "value",
    [
        "sk-wave-hush-1234",
        "env:",
        "env:sk-wave-hush",
        "env:1A",
        "file:",
        '"file: a"',
        "ENV:A",
        "Bearer hush",
        "hush: 1",
    ],
)
def test_a_literal_upstream_key_is_refused_unseen(value):
    _, problems = read(growth=f"team: growth\nupstream_key: {value}\n")
    assert len(problems) == 1
    assert problems[0].startswith("teams/growth.yaml:2: ")
    assert "hush" not in problems[0]


def test_a_literal_upstream_key_is_answered_with_what_would_be_right():
    assert read(growth="team: growth\nupstream_key: sk-hush\n")[1] == [
        "teams/growth.yaml:2: upstream_key: is not a reference (the value is not shown here); "
        "write env:NAME or file:PATH, never the key itself"
    ]


@pytest.mark.parametrize(
    ("lines", "place", "fragment"),
    [
        ("timezone: Mars/Olympus", "org.yaml:1", "timezone: 'Mars/Olympus' is not a timezone; write a name such as"),
        ("timezone: ../../etc/passwd", "org.yaml:1", "is not a timezone"),
        ("time_zone: UTC", "org.yaml:1", "unknown key 'time_zone' in org.yaml; did you mean 'timezone'?"),
        ('spend: [{cap: "1", per: day, key: ci}]', "org.yaml:1", "unknown key 'key' in a cap of the organisation"),
        ("defaults: []", "org.yaml:1", "defaults: holds a list; write a mapping"),
        ("defaults:\n  team: a", "org.yaml:2", "team: belongs to one team; write it in that team's file"),
        ("defaults:\n  upstream_key: hush", "org.yaml:2", "upstream_key: belongs to one team"),
        ("defaults:\n  keys: []", "org.yaml:2", "keys: belongs to one team"),
        ("defaults:\n  limit: {}", "org.yaml:2", "unknown key 'limit' in defaults; did you mean 'limits'?"),
        ("defaults:\n  limits: {m: 1}", "org.yaml:2", "unknown key 'm' in limits"),
        ("defaults:\n  mode: observe", "org.yaml:2", "mode: observe is not available yet"),
        ('defaults:\n  spend: [{cap: "1", per: day, key: ci}]', "org.yaml:2", "key: team growth has no key 'ci'"),
        ("defaults:\n  models: {rewrite: {a: b}}", "org.yaml:2", "rewrite: 'b' is not in models.yaml"),
    ],
)
def test_the_organisation_file_is_refused_at_the_line(lines, place, fragment):
    _, problems = read(org=lines)
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{place}: ")
    assert fragment in problems[0]
    assert "hush" not in problems[0]


def test_a_wrong_default_is_reported_once_also_without_teams_and_under_a_team_that_overrides_it():
    org = "defaults:\n  limits: {n: x}\n"
    expected = ["org.yaml:2: n: x is not a whole number here; write plain digits such as 4, unquoted"]
    sales = "team: sales\nupstream_key: env:A\n"
    assert read(org=org, sales=sales)[1] == expected
    assert read(org=org, growth=f"{TEAM}limits: {{n: 4}}\n")[1] == expected
    problems = policy_yaml.Problems()
    policy_documents.parse({"org.yaml": org.encode(), "models.yaml": MODELS.encode()}, problems)
    assert [str(problem) for problem in problems.found()] == expected


P = 'prices: [{from: 2026-04-01, usd: "1"}]'


@pytest.mark.parametrize(
    ("entry", "line", "fragment"),
    [
        ("a b: {" + P + "}", 2, "'a b' is no model id; write printable ASCII without spaces"),
        ("a: pro", 2, "a model: holds a single value; write a mapping"),
        ("a: {}", 2, "the key 'prices' is missing in a model; add it"),
        ("a: {prices: []}", 2, "prices: is empty; write one, such as"),
        ('a: {prices: "0.1"}', 2, "prices: holds a single value; write a list"),
        ('a: {prices: [{usd: "1"}]}', 2, "the key 'from' is missing in a price; add it"),
        ("a: {prices: [{from: 2026-04-01}]}", 2, "the key 'usd' is missing in a price; add it"),
        ("a: {prices: [{from: 2026-04-01, usd: 0.04}]}", 2, "usd: the amount 0.04 must be a decimal string"),
        ("a: {prices: [{from: 2026-04-01, usd: [1]}]}", 2, "usd: holds a list; write a single value"),
        ('a: {prices: [{from: 0226-04-01, usd: "1"}]}', 2, "from: '0226-04-01' is not a date"),
        ("a: {prices: [{from: 2026-04-01, usd: {}}]}", 2, "usd: is empty; write an amount, or"),
        ("a: {prices: [{from: 2026-04-01, usd: {1K: 1}}]}", 2, "1K: the amount 1 must be a decimal string"),
        ('a: {prices: [{from: 2026-04-01, usd: {1K: "1", 1k: "2"}}]}', 2, "usd: two prices for 1K, which is compared"),
        ('a: {prices: [{from: 2026-04-01, usd: {big: "1"}}]}', 2, "usd: 'big' is no resolution; write one such as 2K"),
        (
            'a: {resolutions: [1k, 2k], prices: [{from: 2026-04-01, usd: {4K: "1"}}]}',
            2,
            "usd: '4K' is not one of the model's resolutions (1K, 2K); write one of those, or default",
        ),
        (
            'a:\n    prices:\n      - {from: 2026-04-01, usd: "1"}\n      - {from: 2026-04-01, usd: "2"}',
            5,
            "prices: two begin on 2026-04-01; keep one of them",
        ),
        ("a: {tier: gold, " + P + "}", 2, "tier: 'gold' is unknown; write one of standard, official"),
        ("a: {official: b, " + P + "}", 2, "official: 'b' is not in models.yaml; add it or correct the id"),
        ("a: {official: a, " + P + "}", 2, "official: 'a' is not of `tier: official`; say so there"),
        ("a: {tier: official, official: a, " + P + "}", 2, "official: this model is of tier official itself"),
        ("a: {aspect_ratios: [16:9], " + P + "}", 2, "aspect_ratios: YAML reads 16:9 as a number; write it in quotes"),
        ("a: {actions: generate, " + P + "}", 2, "actions: holds a single value; write a list"),
        ("a: {reference_images: {max: many}, " + P + "}", 2, "max: many is not a whole number here"),
        ("a: {reference_images: {usd: 0}, " + P + "}", 2, "usd: the amount 0 must be a decimal string"),
        ("a: {grounded: yes, " + P + "}", 2, "grounded: yes is not a boolean here"),
        ("a: {price: [], " + P + "}", 2, "unknown key 'price' in a model; did you mean 'prices'?"),
        ("1.5: {" + P + "}", 2, "YAML reads the key '1.5' as a number; write it in quotes"),
    ],
)
def test_the_catalogue_is_refused_at_the_line(entry, line, fragment):
    _, problems = read(models=f"models:\n  {entry}\n")
    assert any(problem.startswith(f"models.yaml:{line}: ") and fragment in problem for problem in problems), problems


def test_two_wrong_dates_are_not_called_the_same():
    problems = read(models='models: {a: {prices: [{from: x, usd: "1"}, {from: y, usd: "1"}]}}\n')[1]
    assert len(problems) == 2
    assert all("is not a date" in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "models.yaml:1: the key 'models' is missing in models.yaml; add it"),
        ("models: []\n", "models.yaml:1: models: holds a list; write a mapping, such as {key: value}, or {} for none"),
        ("models: {}\nmodel: {}\n", "models.yaml:2: unknown key 'model' in models.yaml; did you mean 'models'?"),
    ],
)
def test_the_catalogue_has_one_key(text, problem):
    assert problem in read(models=text)[1]


def test_the_catalogue_must_be_there():
    problems = policy_yaml.Problems()
    policy_documents.parse({"teams/growth.yaml": TEAM.encode()}, problems)
    assert [str(problem) for problem in problems.found()] == [
        "models.yaml:1: the file is missing; list what the upstream sells, or begin with `wave-gateway init`"
    ]


def test_a_file_that_cannot_be_read_leaves_no_problems_in_the_others():
    lines = f"{TEAM}models: {{rewrite: {{old: new}}}}\n"
    assert read(growth=lines, models="models: [")[1][0].startswith("models.yaml:")
    assert len(read(growth=lines, models="models: [")[1]) == 1
    assert len(read(growth=lines, org="defaults: [")[1]) == 1
    problems = policy_yaml.Problems()
    policy_documents.parse({"teams/growth.yaml": lines.encode()}, problems, unread={"org.yaml", "models.yaml"})
    assert problems.found() == ()


def test_bytes_that_are_no_utf_8_are_refused_at_the_line():
    assert read(org=b"timezone: UTC\ncontact: \xff\n")[1] == ["org.yaml:2: is not UTF-8; save the file as UTF-8"]
    assert read(org="timezone: UTC\n".encode("utf-16"))[1] == ["org.yaml:1: is not UTF-8; save the file as UTF-8"]


def test_a_byte_order_mark_is_no_problem():
    assert read(org=b"\xef\xbb\xbftimezone: UTC\r\n")[1] == []


def test_a_key_belongs_to_one_team():
    key = f'keys: [{{name: ci, sha256: "{DIGEST}"}}]\n'
    sales = f"team: sales\nupstream_key: env:A\ncontact: b\n{key}"
    assert read(growth=TEAM + key, sales=sales)[1] == [
        "teams/sales.yaml:4: sha256: this key is listed at teams/growth.yaml:3 already; a key belongs to one team"
    ]


def test_all_problems_of_all_files_are_found_in_one_pass():
    problems = read(
        org="timezone: Nowhere\ncontact: 1\n",
        models=MODELS + "    grounded: yes\n",
        growth=TEAM + "mode: observe\nlimits: {n: 0, resolution: big}\nspend: [{cap: 1}]\n",
        sales="team: sale\n",
    )[1]
    assert [problem.partition(": ")[0] for problem in problems] == [
        "models.yaml:9",
        "org.yaml:1",
        "org.yaml:2",
        "teams/growth.yaml:3",
        "teams/growth.yaml:4",
        "teams/growth.yaml:4",
        "teams/growth.yaml:5",
        "teams/growth.yaml:5",
        "teams/sales.yaml:1",
        "teams/sales.yaml:1",
    ]


def test_an_expansion_bomb_costs_nothing():
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert read(org=bomb)[1] == [
        "org.yaml:1: anchors (&) and aliases (*) are not read here; write the value out, or quote it"
    ]


def test_a_long_value_is_cut_in_a_message():
    problem = read(growth=TEAM + f"mode: {'x' * 500}\n")[1][0]
    assert len(problem) < 160
