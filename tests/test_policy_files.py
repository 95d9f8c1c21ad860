"""The policies directory: examples, reload, the last good copy, secrets."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from gateway import errors, policy_files, policy_snapshot
from gateway.rules import policy

ROOT = Path(__file__).parent.parent

MODELS = 'models:\n  pro: {prices: [{from: 2026-04-01, usd: "0.0425"}]}\n'


class HandClock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def directory(tmp_path) -> Path:
    directory = tmp_path / "policies"
    (directory / "teams").mkdir(parents=True)
    (directory / "models.yaml").write_text(MODELS)
    write_team(directory, "growth", "1.00")
    return directory


@pytest.fixture
def data(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def source(directory, data, clock) -> policy_files.PolicySource:
    return policy_files.PolicySource(directory, data, {}, now=clock)


def write_team(directory: Path, name: str, cap: str) -> None:
    """Replace a team file as an editor does: beside it, then over it."""
    text = f'team: {name}\nupstream_key: env:WAVE_KEY\nspend: [{{cap: "{cap}", per: day}}]\n'
    beside = directory / "teams" / f".{name}.yaml.swp"
    beside.write_text(text)
    beside.replace(directory / "teams" / f"{name}.yaml")


def caps(policies: policy.PolicySet) -> dict[str, int]:
    return {team.name: team.caps[0].nanos for team in policies.teams.values()}


def problems_of(directory: Path) -> list[str]:
    with pytest.raises(policy_files.PolicyErrors) as caught:
        policy_files.load(directory)
    assert str(caught.value) == "\n".join(str(problem) for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def test_the_example_policies_load():
    policies = policy_files.load(ROOT / "policies")
    assert sorted(policies.teams) == ["growth", "research"]
    assert policies.organisation.contact == "#genai-spend"


def test_the_starter_loads_and_is_written_once(tmp_path):
    directory = tmp_path / "new" / "policies"
    written = policy_files.write_starter(directory)
    assert [str(path.relative_to(directory)) for path in written] == ["org.yaml", "models.yaml", "teams/example.yaml"]
    assert sorted(policy_files.load(directory).teams) == ["example"]
    (directory / "models.yaml").unlink()
    with pytest.raises(errors.StartError, match=r"org\.yaml, .*example\.yaml is there already; nothing was written"):
        policy_files.write_starter(directory)
    assert not (directory / "models.yaml").exists()


def test_a_starter_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StartError, match=r"cannot be written to .*/file: File exists\."):
        policy_files.write_starter(tmp_path / "file")


def test_the_starter_and_the_examples_sell_the_same_models():
    starter = (ROOT / "gateway" / "starter" / "models.yaml").read_bytes()
    assert starter == (ROOT / "policies" / "models.yaml").read_bytes()


FOUR = ("generate", "image2image", "edit", "reference")
TEN = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")


@pytest.mark.parametrize(
    ("name", "nanos", "official", "resolutions", "actions", "aspect_ratios", "grounded"),
    [
        ("gemini-3-pro-image-preview", 42_500_000, 113_900_000, ("1K", "2K", "4K"), FOUR, TEN, False),
        (
            "gemini-3.1-flash-image-preview",
            31_875_000,
            56_950_000,
            ("0.5K", "1K", "2K", "4K"),
            (*FOUR, "search_grounded"),
            (*TEN, "1:4", "4:1", "1:8", "8:1"),
            True,
        ),
        ("gemini-2.5-flash-image-preview", 13_281_250, 33_150_000, ("1K",), FOUR, TEN, False),
    ],
)
def test_the_gemini_series_is_as_the_upstream_lists_it(
    name, nanos, official, resolutions, actions, aspect_ratios, grounded
):
    models = policy_files.load(ROOT / "policies").models
    standard, dearer = models[name], models[f"{name}-official"]
    assert (standard.tier, dearer.tier) == (policy.Tier.STANDARD, policy.Tier.OFFICIAL)
    assert (standard.official, dearer.official) == (f"{name}-official", None)
    assert (standard.prices[0].nanos, dearer.prices[0].nanos) == ({"default": nanos}, {"default": official})
    for model in (standard, dearer):
        assert (model.resolutions, model.actions, model.grounded) == (resolutions, actions, grounded)
        assert model.aspect_ratios == (*aspect_ratios, "auto")
        assert (model.reference_images_max, model.reference_image_nanos) == (14, 0)


def test_the_other_models_are_priced_and_otherwise_unchecked():
    models = policy_files.load(ROOT / "policies").models
    others = {name: dict(model.prices[0].nanos) for name, model in models.items() if "preview" not in name}
    assert others == {
        "gemini-3-pro-image-rev": {"1K": 33_750_000, "2K": 33_750_000, "4K": 45_000_000},
        "gpt-image-2": {"default": 6_375_000},
        "gpt-image-1.5-official": {"default": 90_440_000},
        "gpt-image-1-official": {"default": 113_560_000},
        "imagen-4.0": {"default": 42_500_000},
        "doubao-seedream-5.0-lite": {"default": 29_750_000},
        "doubao-seedream-4.5": {"default": 29_750_000},
        "doubao-seedream-4.0": {"default": 23_800_000},
        "wan2.7-image": {"default": 22_950_000},
        "z-image-turbo": {"default": 10_625_000},
        "qwen-image-2.0-pro": {"default": 53_125_000},
        "qwen-image-2.0": {"default": 21_250_000},
    }
    assert all(models[name].actions is None for name in others)


def test_names_with_a_dot_and_other_files_are_ignored(directory):
    (directory / ".org.yaml.swp").write_text("[")
    (directory / ".hidden.yaml").write_text("[")
    (directory / "README.md").write_text("[")
    (directory / "teams" / ".sales.yaml").write_text("[")
    (directory / "teams" / "growth.yaml~").write_text("[")
    assert sorted(policy_files.load(directory).teams) == ["growth"]


def test_a_file_that_would_not_count_is_a_problem(directory):
    (directory / "orgs.yaml").write_text("")
    (directory / "org.yml").write_text("")
    (directory / "teams" / "sales.yml").write_text("")
    (directory / "teams" / "ops.YAML").write_text("")
    assert problems_of(directory) == [
        "org.yml:1: is not read under this name; rename it to org.yaml",
        "orgs.yaml:1: is no policy file; those are org.yaml, models.yaml and teams/*.yaml",
        "teams/ops.YAML:1: is not read under this name; rename it to teams/ops.yaml",
        "teams/sales.yml:1: is not read under this name; rename it to teams/sales.yaml",
    ]


def test_a_directory_that_is_not_there_is_one_problem(tmp_path):
    assert problems_of(tmp_path / "nowhere") == [
        f"{tmp_path}/nowhere:1: cannot be listed: No such file or directory; "
        "name the policies directory, or make one with `wave-gateway init`"
    ]


def test_an_organisation_without_teams_is_valid(directory):
    (directory / "teams" / "growth.yaml").unlink()
    (directory / "teams").rmdir()
    assert policy_files.load(directory).teams == {}


def test_what_is_no_file_is_a_problem_and_a_pipe_is_not_waited_for(directory):
    (directory / "org.yaml").mkdir()
    os.mkfifo(directory / "teams" / "pipe.yaml")
    (directory / "teams" / "gone.yaml").symlink_to("nowhere")
    assert problems_of(directory) == [
        "org.yaml:1: cannot be read: it is not a file; mend or remove it",
        "teams/gone.yaml:1: cannot be read: No such file or directory; mend or remove it",
        "teams/pipe.yaml:1: cannot be read: it is not a file; mend or remove it",
    ]


def test_a_file_of_more_than_a_mebibyte_is_refused(directory):
    (directory / "org.yaml").write_text("#" * 1_048_576)
    assert policy_files.load(directory).organisation == policy.Organisation()
    (directory / "org.yaml").write_text("#" * 1_048_577)
    assert problems_of(directory) == ["org.yaml:1: is too large; 1 MiB a file and 64 MiB together are read"]


def test_more_than_64_mebibytes_together_are_refused(directory):
    comment = "#" * (1_048_576 - 60) + "\n"
    for number in range(66):
        (directory / "teams" / f"t{number:02}.yaml").write_text(f"{comment}team: t{number:02}\nupstream_key: env:A\n")
    problems = problems_of(directory)
    assert problems[0] == "teams/t64.yaml:1: is too large; 1 MiB a file and 64 MiB together are read"
    assert len(problems) == 2


def test_more_than_ten_thousand_teams_are_refused_unread(directory):
    for number in range(10_002):
        (directory / "teams" / f"t{number}.yaml").touch()
    assert problems_of(directory) == ["teams:1: holds more than 10000 files; remove teams that are gone"]


def test_a_start_loads_the_files_and_keeps_them(source, data, clock):
    outcome = source.start()
    assert outcome == policy_files.Changed(policies=source.policies, not_kept=None)
    assert (caps(source.policies), source.ok, source.loaded_at, source.problems) == (
        {"growth": 1_000_000_000},
        True,
        1_000.0,
        (),
    )
    kept = data / "policies.last-good.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in data.iterdir()] == ["policies.last-good.json"]


def test_nothing_is_loaded_while_nothing_changes(source, directory):
    source.start()
    assert source.refresh() is None
    (directory / "teams" / "growth.yaml").touch()
    assert source.refresh() is None


def test_a_change_is_loaded_and_a_team_whose_file_goes_away_is_gone(source, directory, clock):
    source.start()
    clock.time = 2_000.0
    write_team(directory, "growth", "2.00")
    write_team(directory, "sales", "3.00")
    changed = source.refresh()
    assert isinstance(changed, policy_files.Changed)
    assert changed.policies is source.policies
    assert caps(source.policies) == {"growth": 2_000_000_000, "sales": 3_000_000_000}
    assert source.loaded_at == 2_000.0
    (directory / "teams" / "growth.yaml").unlink()
    assert isinstance(source.refresh(), policy_files.Changed)
    assert caps(source.policies) == {"sales": 3_000_000_000}


def test_all_files_change_together_or_none_does(source, directory, clock):
    source.start()
    before = source.policies
    clock.time = 2_000.0
    write_team(directory, "growth", "2.00")
    write_team(directory, "sales", "three")
    broken = source.refresh()
    assert isinstance(broken, policy_files.Broken)
    assert [str(problem) for problem in broken.problems] == [
        "teams/sales.yaml:3: cap: 'three' is not an amount: write US dollars as a decimal string such as '0.0425'"
    ]
    assert source.policies is before
    assert (source.ok, source.problems, source.loaded_at) == (False, broken.problems, 1_000.0)
    assert source.refresh() is None, "said once"
    write_team(directory, "sales", "3.00")
    assert isinstance(source.refresh(), policy_files.Changed)
    assert caps(source.policies) == {"growth": 2_000_000_000, "sales": 3_000_000_000}
    assert (source.ok, source.problems, source.loaded_at) == (True, (), 2_000.0)


def test_going_back_to_the_good_files_mends_it(source, directory):
    source.start()
    write_team(directory, "growth", "one")
    assert isinstance(source.refresh(), policy_files.Broken)
    write_team(directory, "growth", "1.00")
    assert isinstance(source.refresh(), policy_files.Changed)
    assert source.ok


def test_a_directory_that_vanishes_leaves_the_policies_in_force(source, directory):
    source.start()
    directory.rename(directory.with_name("moved"))
    assert isinstance(source.refresh(), policy_files.Broken)
    assert caps(source.policies) == {"growth": 1_000_000_000}
    directory.with_name("moved").rename(directory)
    assert isinstance(source.refresh(), policy_files.Changed)


def test_a_swapped_link_is_a_change(tmp_path, data, clock):
    """As Kubernetes mounts a ConfigMap: every file a link through `..data`, which is swapped."""
    mount = tmp_path / "mount"
    for version, cap in (("..v1", "1.00"), ("..v2", "2.00")):
        (mount / version / "teams").mkdir(parents=True)
        (mount / version / "models.yaml").write_text(MODELS)
        write_team(mount / version, "growth", cap)
    (mount / "..data").symlink_to("..v1")
    (mount / "models.yaml").symlink_to("..data/models.yaml")
    (mount / "teams").symlink_to("..data/teams")
    source = policy_files.PolicySource(mount, data, {}, now=clock)
    source.start()
    assert source.refresh() is None
    (mount / "..data_tmp").symlink_to("..v2")
    (mount / "..data_tmp").replace(mount / "..data")
    assert isinstance(source.refresh(), policy_files.Changed)
    assert caps(source.policies) == {"growth": 2_000_000_000}


@pytest.fixture
def interrupted(monkeypatch):
    """Lets another writer act between the look at the files and the reading of one of them."""

    def interrupt(act, times: int) -> None:
        read_file = policy_snapshot.read_file
        left = times

        def read_file_late(path: Path, most: int) -> bytes:
            nonlocal left
            if left and path.name == "growth.yaml":
                left -= 1
                act()
            return read_file(path, most)

        monkeypatch.setattr(policy_snapshot, "read_file", read_file_late)

    return interrupt


def test_a_file_that_vanishes_while_it_is_read_is_no_problem(source, directory, interrupted):
    write_team(directory, "sales", "3.00")
    source.start()
    write_team(directory, "sales", "4.00")
    interrupted(lambda: (directory / "teams" / "growth.yaml").unlink(), times=1)
    assert isinstance(source.refresh(), policy_files.Changed)
    assert caps(source.policies) == {"sales": 4_000_000_000}


def test_files_that_keep_changing_are_left_for_the_next_look(source, directory, interrupted):
    source.start()
    write_team(directory, "growth", "2.00")
    interrupted(lambda: write_team(directory, "growth", "3.00"), times=5)
    assert source.refresh() is None
    assert caps(source.policies) == {"growth": 1_000_000_000}
    assert isinstance(source.refresh(), policy_files.Changed)
    assert caps(source.policies) == {"growth": 3_000_000_000}


def test_a_start_falls_back_to_the_last_good_set(source, directory, data, clock):
    source.start()
    write_team(directory, "growth", "2.00")
    source.refresh()
    write_team(directory, "growth", "three")
    again = policy_files.PolicySource(directory, data, {}, now=clock)
    outcome = again.start()
    assert isinstance(outcome, policy_files.FellBack)
    assert [problem.line for problem in outcome.problems] == [3]
    assert outcome.policies is again.policies
    assert caps(again.policies) == {"growth": 2_000_000_000}
    assert (again.ok, again.problems, again.loaded_at) == (False, outcome.problems, 1_000.0)
    assert again.refresh() is None
    write_team(directory, "growth", "3.00")
    assert isinstance(again.refresh(), policy_files.Changed)
    assert (again.ok, caps(again.policies)) == (True, {"growth": 3_000_000_000})


def test_without_a_good_set_a_start_is_refused_with_every_problem(source, directory):
    write_team(directory, "growth", "one")
    write_team(directory, "sales", "two")
    with pytest.raises(errors.StartError) as caught:
        source.start()
    lines = str(caught.value).splitlines()
    assert "cannot be used, and no earlier good set is kept:" in lines[0]
    assert [line.partition(": ")[0] for line in lines[1:]] == ["teams/growth.yaml:3", "teams/sales.yaml:3"]


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"version":2,"files":{"models.yaml":"models: {}"}}',
        b'{"version":1,"files":{"models.yaml":"model: {}"}}',
        b'{"version":1,"files":{},"more":1}',
    ],
)
def test_a_kept_set_that_is_not_good_any_more_does_not_count(source, directory, data, kept):
    write_team(directory, "growth", "one")
    (data / "policies.last-good.json").write_bytes(kept)
    with pytest.raises(errors.StartError, match="no earlier good set is kept"):
        source.start()


def test_policies_hold_also_where_they_cannot_be_kept(directory, tmp_path, clock):
    source = policy_files.PolicySource(directory, tmp_path / "nowhere", {}, now=clock)
    outcome = source.start()
    assert isinstance(outcome, policy_files.Changed)
    assert (
        outcome.not_kept == f"{tmp_path}/nowhere/policies.last-good.json cannot be written: No such file or directory"
    )
    assert source.ok


def test_the_same_set_is_not_written_again(source, directory, data, clock):
    source.start()
    inode = (data / "policies.last-good.json").stat().st_ino
    policy_files.PolicySource(directory, data, {}, now=clock).start()
    assert (data / "policies.last-good.json").stat().st_ino == inode


def test_no_secret_is_kept(directory, data, clock):
    source = policy_files.PolicySource(directory, data, {"WAVE_KEY": "sk-hush"}, now=clock)
    source.start()
    assert source.secrets.get("env:WAVE_KEY") == "sk-hush"
    assert b"hush" not in (data / "policies.last-good.json").read_bytes()
    assert "hush" not in repr(source.policies)


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ("sk-1", "sk-1"),
        (" sk-1\r\n", "sk-1"),
        ("sk-é", None),
        ("", None),
        (" \n", None),
        ("sk-1\nsk-2", None),
        ("sk-\x00", None),
        ("sk-\x7f", None),
        ("sk-\x85a", None),
        ("sk-钥", None),
        ("sk-\udcff", None),
    ],
)
def test_a_secret_is_what_a_header_can_carry(tmp_path, value, secret):
    assert policy_files.resolve_secret("env:KEY", {"KEY": value}, tmp_path) == secret
    (tmp_path / "key").write_text(value, errors="surrogateescape")
    assert policy_files.resolve_secret("file:key", {}, tmp_path) == secret
    assert policy_files.resolve_secret(f"file:{tmp_path}/key", {}, Path("/nowhere")) == secret


@pytest.mark.parametrize("reference", ["env:OTHER", "env:", "file:", "file:nowhere", "file:.", "file:a\0b", "KEY", ""])
def test_a_reference_to_nothing_resolves_to_none(tmp_path, reference, clock):
    environ = {"KEY": "sk-1", "": "sk-2"} if reference != "env:" else {}
    assert policy_files.resolve_secret(reference, environ, tmp_path) is None
    assert policy_files.Secrets(environ, tmp_path, now=clock).get(reference) is None


def test_a_secret_of_more_than_64_kibibytes_is_none(tmp_path):
    (tmp_path / "key").write_text("k" * 65_536)
    assert policy_files.resolve_secret("file:key", {}, tmp_path) == "k" * 65_536
    (tmp_path / "key").write_text("k" * 65_537)
    assert policy_files.resolve_secret("file:key", {}, tmp_path) is None


def test_a_secret_file_is_read_again_when_it_changes_and_looked_at_once_a_second(tmp_path, clock):
    secrets = policy_files.Secrets({}, tmp_path, now=clock)
    assert secrets.get("file:key") is None
    (tmp_path / "key").write_text("sk-1\n")
    assert secrets.get("file:key") is None, "looked at less than a second ago"
    clock.time += 1
    assert secrets.get("file:key") == "sk-1"
    (tmp_path / "key").write_text("sk-22")
    clock.time += 0.9
    assert secrets.get("file:key") == "sk-1"
    clock.time += 0.1
    assert secrets.get("file:key") == "sk-22"
    clock.time += 1
    assert secrets.get("file:key") == "sk-22"
    (tmp_path / "key").unlink()
    clock.time -= 1_000
    assert secrets.get("file:key") is None, "a clock set back does not keep an old secret"


def test_an_environment_secret_is_read_each_time(tmp_path, clock):
    environ = {"KEY": "sk-1"}
    secrets = policy_files.Secrets(environ, tmp_path, now=clock)
    assert secrets.get("env:KEY") == "sk-1"
    environ["KEY"] = "sk-2"
    assert secrets.get("env:KEY") == "sk-2"


def test_the_example_keys_are_digests_of_nothing_obvious():
    teams = policy_files.load(ROOT / "policies").teams.values()
    digests = [digest for team in teams for key in team.keys for digest in key.sha256]
    assert len(digests) == 5
    guesses = {hashlib.sha256(guess).digest() for guess in (b"", b"test", b"demo", b"key", b"secret", b"ci")}
    assert not guesses & set(digests)
