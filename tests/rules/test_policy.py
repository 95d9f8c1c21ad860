import dataclasses
from fractions import Fraction
from typing import Any

import pytest

from gateway.rules import policy
from gateway.rules import request as requests
from gateway.rules.money import Nanos
from gateway.rules.policy import Allow, Deny, Fallback
from tests.rules import builders
from tests.rules.builders import FLASH, OLD, ONE, PRO, PRO_OFFICIAL, TWO

EMPTY = Fraction(0)


def decide(
    team: policy.Team, *, fullness: Fraction = EMPTY, policies: policy.PolicySet | None = None, **said: Any
) -> Allow | Deny:
    return policy.decide(policies or builders.policies(), team, builders.request(**said), fullness=fullness)


def allowed(team: policy.Team, **said: Any) -> Allow:
    decided = decide(team, **said)
    assert isinstance(decided, Allow), decided
    return decided


def denied(team: policy.Team, **said: Any) -> Deny:
    decided = decide(team, **said)
    assert isinstance(decided, Deny), decided
    return decided


# Which denial answers first.

STRICT = builders.team(
    allow=("gemini-*",),
    actions=("generate", "image2image"),
    rewrite={"wan2.7-image": "gpt-image-2"},
    limits=policy.Limits(n=4, resolution="2K", reference_images=1),
)
FAULTS: tuple[tuple[dict[str, object], str, str], ...] = (
    ({"model": "wan2.7-image"}, "model_not_allowed", "model"),
    ({"aspect_ratio": "7:3"}, "capability_violation", "aspect_ratio"),
    ({"action": "edit"}, "action_not_allowed", "action"),
    ({"official_fallback": True}, "official_fallback_denied", "official_fallback"),
    ({"n": 5}, "limit_exceeded", "n"),
    ({"resolution": "4K"}, "limit_exceeded", "resolution"),
    ({"image_urls": [ONE, TWO]}, "limit_exceeded", "image_urls"),
)


@pytest.mark.parametrize("first", range(len(FAULTS)), ids=lambda first: f"{FAULTS[first][1]}-{FAULTS[first][2]}")
def test_of_many_faults_the_first_in_the_order_of_a_decision_answers(first: int) -> None:
    said: dict[str, Any] = {"image_urls": [ONE]}
    for fault, _, _ in FAULTS[first:]:
        said |= fault
    decided = denied(STRICT, **said)
    assert (decided.code, decided.param) == FAULTS[first][1:]


def test_a_request_without_a_fault_is_allowed_as_it_is() -> None:
    decided = allowed(STRICT, n=4, resolution="2k", image_urls=[ONE])
    assert decided.request == builders.request(n=4, resolution="2k", image_urls=[ONE])
    assert decided.model is not None and decided.model.name == PRO
    assert decided.official is None
    assert decided.changed == ()


def test_the_model_rules_judge_the_rewritten_model() -> None:
    team = builders.team(allow=("gemini-*",), rewrite={"wan2.7-image": PRO, PRO: "wan2.7-image"})
    assert allowed(team, model="wan2.7-image").request.model == PRO
    assert denied(team, model=PRO).code == "model_not_allowed"


# Models.


@pytest.mark.parametrize(
    ("allow", "deny", "model", "expected"),
    [
        (None, (), PRO, True),
        (None, (), PRO_OFFICIAL, True),
        (None, ("gemini-3-pro-*-official",), PRO_OFFICIAL, False),
        (None, ("gemini-3-pro-*-official",), PRO, True),
        (("gemini-*",), ("*-official",), PRO_OFFICIAL, False),
        (("gemini-*",), ("*-official",), PRO, True),
        (("gemini-2.5-*", "gemini-3.1-*"), (), PRO, False),
        (("gemini-2.5-*", "gemini-3.1-*"), (), FLASH, True),
        ((), (), PRO, False),
        (("Gemini-*",), (), PRO, False),
        ((PRO,), (PRO,), PRO, False),
    ],
)
def test_deny_wins_over_allow_and_globs_match_with_case(
    allow: tuple[str, ...] | None, deny: tuple[str, ...], model: str, expected: bool
) -> None:
    decided = decide(builders.team(allow=allow, deny=deny), model=model)
    assert isinstance(decided, Allow) is expected
    if isinstance(decided, Deny):
        assert (decided.code, decided.param) == ("model_not_allowed", "model")


def test_a_model_outside_the_catalogue_is_denied() -> None:
    decided = denied(builders.team(allow=("*",)), model="gpt-image-2")
    assert decided.code == "model_not_allowed"
    assert decided.message.startswith(
        "Team growth may not use the model 'gpt-image-2': it is not in the organisation's catalogue."
    )


def test_an_unlisted_price_lets_a_model_outside_the_catalogue_pass_unchecked() -> None:
    team = builders.team(unlisted_nanos=Nanos(200_000_000), fallback=Fallback.ALLOW)
    said: dict[str, Any] = {"action": "dance", "resolution": "1024x1024", "aspect_ratio": "7:3", "google_search": True}
    decided = allowed(team, model="gpt-image-2", official_fallback=True, **said)
    assert decided.model is None
    assert decided.official is None


def test_an_unlisted_price_does_not_open_a_denied_model() -> None:
    team = builders.team(unlisted_nanos=Nanos(1), allow=("gemini-*",), deny=("gemini-9",))
    assert denied(team, model="gpt-image-2").code == "model_not_allowed"
    assert denied(team, model="gemini-9").code == "model_not_allowed"


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        ({"deny": ("*",)}, "teams/growth.yaml:14"),
        ({"allow": ()}, "teams/growth.yaml:13"),
        ({}, "built-in default"),
    ],
)
def test_a_denied_model_names_the_rule_that_decided(said: dict[str, Any], rule: str) -> None:
    origins = {"models.allow": "teams/growth.yaml:13", "models.deny": "teams/growth.yaml:14"}
    assert denied(builders.team(origins=origins, **said), model="gpt-image-2").rule == rule


# What the model can do.


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"action": "search_grounded"}, "action"),
        ({"action": "dance"}, "action"),
        ({"action": "Generate"}, "action"),
        ({"resolution": "8K"}, "resolution"),
        ({"resolution": "0.5K"}, "resolution"),
        ({"aspect_ratio": "1:8"}, "aspect_ratio"),
        ({"aspect_ratio": "auto"}, "aspect_ratio"),
        ({"google_search": True}, "google_search"),
        ({"google_image_search": True}, "google_search"),
        ({"action": "edit"}, "image_urls"),
        ({"action": "image2image"}, "image_urls"),
        ({"action": "reference", "image_urls": []}, "image_urls"),
        ({"image_urls": [f"https://example.com/{index}.png" for index in range(15)]}, "image_urls"),
    ],
)
def test_what_the_model_cannot_do_is_a_capability_violation(said: dict[str, Any], param: str) -> None:
    decided = denied(builders.team(), **said)
    assert (decided.code, decided.param) == ("capability_violation", param)
    assert decided.rule == "models.yaml:gemini-3-pro-image-preview"


@pytest.mark.parametrize(
    "said",
    [
        {"resolution": "2k"},
        {"resolution": "4K"},
        {"aspect_ratio": "21:9"},
        {"action": "edit", "image_urls": [ONE]},
        {"action": "reference", "image_urls": [f"https://example.com/{index}.png" for index in range(14)]},
        {"image_urls": [ONE]},
        {"model": FLASH, "action": "search_grounded"},
        {"model": FLASH, "google_search": True},
        {"model": FLASH, "google_image_search": True},
        {"model": FLASH, "resolution": "0.5k"},
        {"google_search": False},
    ],
)
def test_what_the_model_can_do_is_allowed(said: dict[str, Any]) -> None:
    allowed(builders.team(), **said)


def test_a_list_that_is_absent_is_not_checked() -> None:
    model = policy.Model(name="free", grounded=True)
    said: dict[str, Any] = {
        "action": "dance",
        "resolution": "1024x1024",
        "aspect_ratio": "7:3",
        "image_urls": [ONE] * 40,
    }
    decided = decide(builders.team(), policies=builders.policies(model), model="free", **said)
    assert isinstance(decided, Allow)


def test_an_empty_list_forbids_everything() -> None:
    model = policy.Model(name="none", actions=())
    decided = decide(builders.team(), policies=builders.policies(model), model="none")
    assert isinstance(decided, Deny) and decided.code == "capability_violation"


@pytest.mark.parametrize(
    ("said", "param"),
    [({"action": "search_grounded"}, "action"), ({"google_image_search": True}, "google_search")],
)
def test_a_model_that_says_nothing_of_grounding_does_not_ground(said: dict[str, Any], param: str) -> None:
    decided = decide(builders.team(), policies=builders.policies(policy.Model(name="plain")), model="plain", **said)
    assert isinstance(decided, Deny) and (decided.code, decided.param) == ("capability_violation", param)


def test_a_violation_says_what_the_model_takes() -> None:
    assert denied(builders.team(), resolution="8k").message == (
        "The model gemini-3-pro-image-preview does not do resolution '8K'; it takes 1K, 2K, 4K."
    )


def test_a_model_without_images_is_told_by_the_model_not_by_the_team() -> None:
    team = builders.team(actions=("generate",))
    assert denied(team, action="edit").code == "capability_violation"
    assert denied(team, action="edit", image_urls=[ONE]).code == "action_not_allowed"


def test_a_denied_action_names_those_allowed_and_its_rule() -> None:
    team = builders.team(actions=("generate", "reference"), origins={"models.actions": "teams/growth.yaml:9"})
    decided = denied(team, action="edit", image_urls=[ONE])
    assert decided.message == "Team growth may not use action 'edit'; it may use generate, reference."
    assert decided.rule == "teams/growth.yaml:9"


# official_fallback.

FLAG = "official_fallback"
OUTCOMES: tuple[tuple[Fallback, bool, bool | None, tuple[str, ...]], ...] = (
    (Fallback.ALLOW, False, False, ()),
    (Fallback.ALLOW, True, True, ()),
    (Fallback.DENY, False, False, ()),
    (Fallback.DENY, True, None, ()),
    (Fallback.STRIP, False, False, ()),
    (Fallback.STRIP, True, False, ("official_fallback=stripped",)),
    (Fallback.FORCE, False, True, ("official_fallback=forced",)),
    (Fallback.FORCE, True, True, ()),
)


def by_default(action: Fallback) -> policy.Team:
    return builders.team(fallback=action)


def by_rule(action: Fallback) -> policy.Team:
    other = Fallback.ALLOW if action is Fallback.DENY else Fallback.DENY
    rules = (
        policy.FallbackRule(models=("gemini-3.1-*",), action=other),
        policy.FallbackRule(models=("gpt-*", "gemini-3-*"), action=action),
        policy.FallbackRule(models=("*",), action=other),
    )
    return builders.team(fallback=other, fallback_rules=rules)


@pytest.mark.parametrize("make", [by_default, by_rule])
@pytest.mark.parametrize(("action", "asked", "sent", "changed"), OUTCOMES)
def test_the_fallback_flag_is_allowed_denied_stripped_or_forced(
    make: Any, action: Fallback, asked: bool, sent: bool | None, changed: tuple[str, ...]
) -> None:
    decided = decide(make(action), official_fallback=asked)
    if sent is None:
        assert isinstance(decided, Deny) and (decided.code, decided.param) == ("official_fallback_denied", FLAG)
        return
    assert isinstance(decided, Allow)
    assert decided.request.official_fallback is sent
    assert decided.changed == changed
    assert (decided.official.name if decided.official else None) == (PRO_OFFICIAL if sent else None)


@pytest.mark.parametrize("action", Fallback)
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("make", [by_default, by_rule])
def test_on_an_official_id_the_flag_passes_as_written(make: Any, action: Fallback, asked: bool) -> None:
    decided = decide(make(action), model=PRO_OFFICIAL, official_fallback=asked)
    assert isinstance(decided, Allow)
    assert decided.request.official_fallback is asked
    assert decided.official is None
    assert decided.changed == ()


def test_on_an_official_id_outside_the_catalogue_the_flag_is_not_denied() -> None:
    team = builders.team(unlisted_nanos=Nanos(200_000_000))
    assert allowed(team, model="gpt-image-1-official", official_fallback=True).request.official_fallback is True
    assert denied(team, model="gpt-image-2", official_fallback=True).code == "official_fallback_denied"


@pytest.mark.parametrize(
    ("fullness", "expected"),
    [(Fraction(0), True), (Fraction(499, 1000), True), (Fraction(1, 2), False), (Fraction(2), False)],
)
def test_a_rule_with_while_spend_below_ends_at_its_ratio(fullness: Fraction, expected: bool) -> None:
    rule = policy.FallbackRule(
        models=("gemini-3-*",), action=Fallback.ALLOW, while_spend_below=Fraction(1, 2), origin="teams/growth.yaml:20"
    )
    team = builders.team(fallback_rules=(rule,), origins={"official_fallback.default": "teams/growth.yaml:18"})
    decided = decide(team, fullness=fullness, official_fallback=True)
    assert isinstance(decided, Allow) is expected
    if isinstance(decided, Deny):
        assert decided.rule == "teams/growth.yaml:18"


def test_a_spent_rule_gives_way_to_the_next_that_matches() -> None:
    rules = (
        policy.FallbackRule(models=("*",), action=Fallback.FORCE, while_spend_below=Fraction(1, 2)),
        policy.FallbackRule(models=("*",), action=Fallback.STRIP, while_spend_below=Fraction(4, 5)),
    )
    team = builders.team(fallback=Fallback.DENY, fallback_rules=rules)
    assert allowed(team, fullness=Fraction(2, 5)).changed == ("official_fallback=forced",)
    stripped = allowed(team, fullness=Fraction(3, 5), official_fallback=True)
    assert stripped.changed == ("official_fallback=stripped",)
    assert denied(team, fullness=Fraction(4, 5), official_fallback=True).code == "official_fallback_denied"


def test_a_denial_by_a_rule_names_that_rule() -> None:
    rule = policy.FallbackRule(models=(PRO,), action=Fallback.DENY, origin="teams/growth.yaml:20")
    team = builders.team(fallback=Fallback.ALLOW, fallback_rules=(rule,))
    assert denied(team, official_fallback=True).rule == "teams/growth.yaml:20"
    assert allowed(team, model=OLD, official_fallback=True).request.official_fallback is True


def test_the_fallback_rules_judge_the_rewritten_model() -> None:
    rule = policy.FallbackRule(models=(PRO,), action=Fallback.STRIP)
    team = builders.team(fallback_rules=(rule,), rewrite={"gemini-3-pro-image": PRO})
    decided = allowed(team, model="gemini-3-pro-image", official_fallback=True)
    assert decided.changed == ("official_fallback=stripped", "model=rewritten")


@pytest.mark.parametrize("action", [Fallback.FORCE, Fallback.ALLOW])
def test_without_an_official_entry_a_true_flag_leads_to_no_dearer_channel(action: Fallback) -> None:
    alone = dataclasses.replace(builders.CATALOGUE[PRO], official=None)
    team = builders.team(fallback=action)
    decided = decide(team, policies=builders.policies(alone), official_fallback=True)
    assert isinstance(decided, Allow)
    assert decided.request.official_fallback is True
    assert decided.official is None


def test_by_default_the_flag_is_denied() -> None:
    decided = denied(builders.team(), official_fallback=True)
    assert decided.code == "official_fallback_denied"
    assert decided.rule == "built-in default"
    assert decided.message == (
        "Team growth may not use official_fallback with gemini-3-pro-image-preview; send the request without it."
    )


def test_only_a_rule_about_spend_asks_how_full_the_caps_are() -> None:
    plain = policy.FallbackRule(models=("*",), action=Fallback.ALLOW)
    asking = policy.FallbackRule(models=("*",), action=Fallback.ALLOW, while_spend_below=Fraction(1, 2))
    assert policy.needs_fullness(builders.team()) is False
    assert policy.needs_fullness(builders.team(fallback_rules=(plain,))) is False
    assert policy.needs_fullness(builders.team(fallback_rules=(plain, asking))) is True


# Rewrites.


def test_a_rewritten_model_is_named_as_changed() -> None:
    decided = allowed(builders.team(rewrite={"gemini-3-pro-image": PRO}), model="gemini-3-pro-image")
    assert decided.request.model == PRO
    assert decided.changed == ("model=rewritten",)


def test_a_rewrite_is_made_once() -> None:
    team = builders.team(rewrite={"gemini-3-pro-image": PRO, PRO: OLD})
    assert allowed(team, model="gemini-3-pro-image").request.model == PRO


def test_a_model_without_a_rewrite_stays() -> None:
    request = builders.request(model="gpt-image-2")
    assert policy.rewrite(builders.team(rewrite={"gemini-3-pro-image": PRO}), request) is request


def test_a_second_decision_still_tells_what_differs_from_the_clients_words() -> None:
    team = builders.team(fallback=Fallback.STRIP)
    once = allowed(team, official_fallback=True).request
    again = policy.decide(
        builders.policies(), team, dataclasses.replace(once, model=OLD, resolution="1K"), fullness=EMPTY
    )
    assert isinstance(again, Allow)
    assert again.changed == ("official_fallback=stripped", "model=rewritten")


# Limits.


@pytest.mark.parametrize(
    ("limits", "said", "expected"),
    [
        (policy.Limits(n=4), {"n": 4}, None),
        (policy.Limits(n=4), {"n": 5}, ("n", 4, "n")),
        (policy.Limits(n=0), {}, ("n", 0, "n")),
        (policy.Limits(), {"n": 1_000_000, "resolution": "4K", "image_urls": [ONE] * 14}, None),
        (policy.Limits(resolution="2K"), {"resolution": "2k"}, None),
        (policy.Limits(resolution="2K"), {"resolution": "1K"}, None),
        (policy.Limits(resolution="2K"), {"resolution": "4k"}, ("resolution", "2K", "resolution")),
        (policy.Limits(resolution="0.5K"), {}, ("resolution", "0.5K", "resolution")),
        (policy.Limits(reference_images=1), {"image_urls": [ONE]}, None),
        (policy.Limits(reference_images=1), {"image_urls": [ONE, TWO]}, ("reference_images", 1, "image_urls")),
        (policy.Limits(reference_images=0), {"image_urls": [ONE]}, ("reference_images", 0, "image_urls")),
        (policy.Limits(reference_images=0), {}, None),
    ],
)
def test_a_limit_admits_up_to_its_value(
    limits: policy.Limits, said: dict[str, Any], expected: tuple[str, object, str] | None
) -> None:
    origins = {f"limits.{name}": f"teams/growth.yaml:{name}" for name in ("n", "resolution", "reference_images")}
    decided = decide(builders.team(limits=limits, origins=origins), **said)
    if expected is None:
        assert isinstance(decided, Allow)
        return
    limit, value, param = expected
    assert isinstance(decided, Deny)
    assert (decided.code, decided.param, decided.rule) == ("limit_exceeded", param, f"teams/growth.yaml:{limit}")
    assert decided.details == {"limit": limit, "value": value}


def test_a_resolution_that_is_no_number_of_k_exceeds_every_limit() -> None:
    team = builders.team(unlisted_nanos=Nanos(1), limits=policy.Limits(resolution="4K"))
    assert denied(team, model="gpt-image-2", resolution="1024x1024").details["limit"] == "resolution"
    allowed(team, model="gpt-image-2", resolution="3.5k")


def test_an_exceeded_limit_says_what_may_be_asked_for() -> None:
    assert denied(builders.team(limits=policy.Limits(n=4)), n=9).message == (
        "Team growth may ask for n up to 4; the request asks for 9."
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1K", Fraction(1)),
        ("2k", Fraction(2)),
        ("0.5K", Fraction(1, 2)),
        ("1024", None),
        ("K", None),
        ("1KK", None),
        ("-1K", None),
        ("12345K", None),
        ("1024x1024", None),
        ("", None),
    ],
)
def test_a_resolution_is_a_number_of_k(text: str, size: Fraction | None) -> None:
    assert policy.resolution_size(text) == size


# What may be kept.


@pytest.mark.parametrize(
    ("cache", "said", "expected"),
    [
        (policy.CachePolicy(), {}, False),
        (policy.CachePolicy(), {"seed": -1}, False),
        (policy.CachePolicy(), {"seed": 0}, True),
        (policy.CachePolicy(), {"seed": 7}, True),
        (policy.CachePolicy(requests=policy.Cacheable.ALL), {}, True),
        (policy.CachePolicy(requests=policy.Cacheable.OFF), {"seed": 7}, False),
        (policy.CachePolicy(), {"seed": 7, "google_search": True}, False),
        (policy.CachePolicy(), {"seed": 7, "google_image_search": True}, False),
        (policy.CachePolicy(), {"seed": 7, "action": "search_grounded"}, False),
        (policy.CachePolicy(requests=policy.Cacheable.ALL), {"google_search": True}, False),
        (policy.CachePolicy(grounded=True), {"seed": 7, "google_search": True}, True),
        (policy.CachePolicy(grounded=True), {"google_search": True}, False),
        (policy.CachePolicy(requests=policy.Cacheable.OFF, grounded=True), {"seed": 7}, False),
    ],
)
def test_only_seeded_requests_are_kept_unless_the_team_says_otherwise(
    cache: policy.CachePolicy, said: dict[str, Any], expected: bool
) -> None:
    assert policy.is_cacheable(builders.team(cache=cache), builders.request(**said)) is expected


# Defaults and origins.


def test_the_built_in_defaults_are_those_of_the_interface() -> None:
    team = policy.Team(name="growth", upstream_key="env:WAVE_KEY_GROWTH")
    assert team.mode is policy.Mode.ENFORCE
    assert team.fallback is Fallback.DENY
    assert team.limits == policy.Limits(
        n=None, resolution=None, reference_images=None, open_tasks=1000, requests_per_minute=None
    )
    assert team.upstream_down is policy.UpstreamDown.QUEUE
    assert team.cache == policy.CachePolicy(
        requests=policy.Cacheable.SEEDED, scope=policy.CacheScope.TEAM, ttl_s=2_592_000, grounded=False
    )
    assert (team.caps, team.thresholds, team.keys, team.webhook_hosts, team.webhook_secret) == ((), (), (), None, None)
    assert policy.Key(name="ci", sha256=()).can == {"submit", "read", "cancel"}
    assert policy.Key(name="ci", sha256=()).expires is None


def test_an_origin_is_the_first_that_was_said() -> None:
    team = builders.team(origins={"models": "org.yaml:7", "models.allow": "teams/growth.yaml:13"})
    assert team.origin("models.allow", "models") == "teams/growth.yaml:13"
    assert team.origin("models.deny", "models") == "org.yaml:7"
    assert team.origin("limits.n") == "built-in default"


def test_an_allowed_request_names_the_list_that_allowed_it() -> None:
    team = builders.team(allow=("gemini-*",), origins={"models.allow": "teams/growth.yaml:13"})
    assert allowed(team).rule == "teams/growth.yaml:13"
    assert allowed(builders.team()).rule == "built-in default"


@pytest.mark.parametrize(
    ("model", "globs", "expected"),
    [
        ("gemini-3-pro", ("gemini-*",), True),
        ("gemini-3-pro", ("gpt-*", "*-pro"), True),
        ("gemini-3-pro", ("gemini-?-pro",), True),
        ("gemini-3-pro", ("gemini-[12]-pro",), False),
        ("gemini-3-pro", ("GEMINI-*",), False),
        ("gemini-3-pro", (), False),
        ("gemini-3-pro", ("gemini",), False),
    ],
)
def test_a_glob_is_shell_style(model: str, globs: tuple[str, ...], expected: bool) -> None:
    assert policy.matches(model, globs) is expected


def test_deciding_changes_neither_request_nor_values() -> None:
    request = builders.request(official_fallback=True)
    policy.decide(builders.policies(), builders.team(fallback=Fallback.STRIP), request, fullness=EMPTY)
    assert request == builders.request(official_fallback=True)
    assert isinstance(request, requests.Request)
