"""The documents say what the program has, all of it and nothing else.

What exists is collected from the program itself: the table of settings, the error codes, the instruments, the tree of
commands, the keys that the policy loader names, the routes, the modules, the table of transitions.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from starlette.routing import Route

from gateway import (
    app,
    cli,
    errors,
    log_events,
    metrics,
    policy_documents,
    policy_files,
    policy_team,
    policy_yaml,
    settings,
)
from gateway.rules import policy, task
from tests import named_tests
from tests.mutants import mutants

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HTTP = (ROOT / "docs" / "HTTP.md").read_text(encoding="utf-8")
MONEY = (ROOT / "docs" / "MONEY.md").read_text(encoding="utf-8")
LOGS = (ROOT / "docs" / "LOGS.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "METRICS.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "grafana").glob("*.md")])
MANUAL = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

CODE = re.compile(r"`([^`]+)`")


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above; comments in examples are no headings."""
    level = len(heading.split(" ")[0])
    below = text.partition(f"\n{heading}\n")[2]
    assert below, f"there is no heading {heading!r}"
    return re.split(rf"^#{{2,{level}}} ", below, flags=re.MULTILINE)[0]


def rows(text: str, *, named: str) -> list[list[str]]:
    """The cells of the table whose first heading is `named`, without its head."""
    table = text.partition(f"| {named} |")[2].split("\n\n")[0]
    assert table, f"there is no table of {named!r}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def prose(text: str) -> str:
    """A text without its examples."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def codes(cell: str) -> list[str]:
    return CODE.findall(cell)


# The settings in the README


def test_every_setting_is_in_the_table_with_its_variable_and_default_and_nothing_else():
    written = {tuple(codes(row[0])): (tuple(codes(row[1])), row[2]) for row in rows(README, named="option")}
    expected: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}
    for row in settings.TABLE:
        options = (row.option, row.file_option) if row.is_secret else (row.option,)
        variables = (row.variable, row.file_variable) if row.is_secret else (row.variable,)
        in_words = written.get(options, ((), ""))[1]
        expected[options] = (variables, in_words if row.default is None else f"`{row.default}`")
    assert written == expected


def test_every_variable_that_is_mentioned_exists():
    known = {name for row in settings.TABLE for name in (row.variable, row.file_variable)}
    assert set(re.findall(r"WAVE_GATEWAY_[A-Z_]+", MANUAL)) <= known


# The errors in the page about HTTP


def later_codes() -> set[str]:
    """The codes that the page says are never answered by this version."""
    return set(codes(section(HTTP, "## Errors").partition("never answered by this one:")[2]))


def test_every_error_code_is_documented_with_its_status_and_none_that_does_not_exist():
    written = {codes(row[1])[0]: int(row[0]) for row in rows(HTTP, named="status")}
    later = {code: errors.STATUS_OF_CODE.get(code, 0) for code in later_codes()}
    assert written.keys().isdisjoint(later)
    assert written | later == dict(errors.STATUS_OF_CODE)


def test_a_code_that_is_said_to_come_later_is_not_used_yet():
    program = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "gateway").rglob("*.py")
        if not path.name.startswith(("errors", "simulator"))
    )
    used = {code for code in later_codes() if f'"{code}"' in program}
    # The rule is there, but no header reaches it: see `Options` in flow/submit.
    assert used <= {"max_cost_exceeded"}
    assert "max_cost_nanos=" not in (ROOT / "gateway/edge/tasks.py").read_text(encoding="utf-8")


# The metrics in their page


def metric_names() -> set[str]:
    """Names as they stand in an exposition, without the suffixes of histograms."""
    nothing = metrics.Snapshot(
        spend=(),
        caps=(),
        open_tasks={},
        in_doubt=0,
        overdue=0,
        at_risk_urls=0,
        blobs=0,
        blob_bytes=0,
        webhooks_pending=0,
    )
    exposition = metrics.render(nothing)[0].decode()
    registered = {family.name for family in metrics.REGISTRY.collect()}
    rendered = dict(re.findall(r"^# TYPE (\S+) (\S+)$", exposition, flags=re.MULTILINE))
    assert all(name in rendered or f"{name}_total" in rendered for name in registered)
    return {name for name in rendered if not name.endswith("_created")}


def test_every_metric_is_documented_and_none_that_does_not_exist():
    assert {codes(row[0])[0] for row in rows(METRICS, named="metric")} == metric_names()


def test_every_metric_that_is_mentioned_exists():
    assert set(re.findall(r"wave_gateway_[a-z_]+[a-z]", README + METRICS)) == metric_names()


# The events in the page about logs


def test_every_event_is_documented_with_its_fields_and_none_that_does_not_exist():
    written = {codes(row[0])[0]: tuple(codes(row[1])) for row in rows(LOGS, named="event")}
    assert written == dict(log_events.EVENTS)


def test_the_logs_example_is_a_line_that_the_program_could_have_written():
    [example] = re.findall(r"^```json\n(.*?)^```$", LOGS, flags=re.DOTALL | re.MULTILINE)
    time, level, logger, event, *fields = json.loads(example)
    assert (time, level, logger, event) == ("time", "level", "logger", "event")
    known = log_events.EVENTS[json.loads(example)["event"]]
    assert fields == [name for name in known if name in fields]


def test_every_event_is_logged_somewhere():
    program = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "gateway").rglob("*.py"))
    assert {
        each.__name__ for each in log_events.Event.__subclasses__() if f"log_events.{each.__name__}(" not in program
    } == set()


# The tests in the page about money


def named_by(text: str) -> set[str]:
    return set(re.findall(r"`(tests/[^`\s]+\.py::[^`\s]+)`", text))


def test_every_test_that_the_page_about_money_names_exists():
    assert {node for node in named_by(MONEY) if not named_tests.exists(node)} == set()


def test_every_invariant_has_its_row_with_a_test_and_a_mutant_that_exist():
    table = section(MONEY, "## The invariants").partition("| | invariant |")[2].split("\n\n")[0]
    written = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
    assert [row[0].strip() for row in written] == [f"M{number}" for number in range(1, 15)]
    exist = {each.name for each in mutants.MUTANTS}
    for _, _, kept_by, tests, removed_by in written:
        assert codes(kept_by) and named_by(tests), kept_by
        assert codes(removed_by) and set(codes(removed_by)) <= exist, removed_by


# The commands in the README


def commands(group: click.Group, above: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}"


def test_every_command_is_documented_with_an_example_and_none_that_does_not_exist():
    written = {codes(row[0])[0]: codes(row[-1])[0] for row in rows(README, named="command")}
    assert written.keys() == set(commands(cli.cli))
    assert all(example.startswith(f"wave-gateway {name}") for name, example in written.items())


def shown_lines() -> list[str]:
    """Every `wave-gateway …` in an example or in code quotes."""
    fenced = "\n".join(re.findall(r"^```.*?^```$", MANUAL, flags=re.DOTALL | re.MULTILINE))
    quoted = "\n".join(re.findall(r"`(wave-gateway [^`\n]+)`", prose(MANUAL)))
    found = re.findall(r"^\s*(?:\$ )?(wave-gateway [a-z][^#&|\n]*)", f"{fenced}\n{quoted}", flags=re.MULTILINE)
    return sorted({line.strip() for line in found})


@pytest.mark.parametrize("line", shown_lines())
def test_every_command_line_that_is_shown_is_one_that_the_program_takes(line):
    words = line.split()[1:]
    command: click.Command = cli.cli
    while isinstance(command, click.Group):
        assert words and words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    options = {name for each in command.params for name in each.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_examples_show_every_step_to_a_running_gateway():
    assert {"wave-gateway init", "wave-gateway policy check", "wave-gateway serve"} <= set(shown_lines())


# The policy files in the README


def known_keys(problems: tuple[policy_yaml.Problem, ...]) -> set[str]:
    """The keys that the loader names where it refuses one that is like none of them."""
    lists = [names for each in problems for names in re.findall(r"known are (.+)$", each.message)]
    return {key for names in lists for key in names.split(", ")}


def load_problems(**files: str) -> tuple[policy_yaml.Problem, ...]:
    problems = policy_yaml.Problems()
    named = {name if "." in name else f"{name}.yaml": text.encode() for name, text in files.items()}
    policy_documents.parse(named, problems)
    return problems.found()


def policy_keys() -> set[str]:
    """Every key that the loader knows, on all levels, found by asking it for one that it does not know."""
    odd = "{zzzz: 1}"
    both = [f"{key}: {form}" for key in policy_team.SHARED_KEYS for form in (odd, f"[{odd}]")]
    inner = [
        f"official_fallback: {{rules: [{odd}]}}",
        f"models: {{unlisted: {odd}}}",
        f"spend: [{{raises: [{odd}]}}]",
        f"keys: [{odd}]",
        "zzzz: 1",
    ]
    found: set[str] = set()
    for line in both + inner:
        found |= known_keys(load_problems(**{"models": "models: {}", "teams/growth.yaml": f"team: growth\n{line}\n"}))
    for line in (odd, f"spend: [{odd}]"):
        found |= known_keys(load_problems(models="models: {}", org=line))
    for line in (odd, f"models: {{m: {odd}}}"):
        found |= known_keys(load_problems(models=line))
    for line in (f"prices: [{odd}]", f"reference_images: {odd}"):
        found |= known_keys(load_problems(models=f"models: {{m: {{{line}}}}}"))
    return found


def test_the_loader_is_asked_for_keys_of_all_levels():
    keys = policy_keys()
    assert set(policy_team.OWN_KEYS) | set(policy_team.SHARED_KEYS) <= keys
    # one of each mapping that has keys of its own
    assert {"timezone", "usd", "from", "max", "sha256", "allow", "rules", "while_spend_below", "open_tasks"} <= keys
    assert {"warn_at", "until", "at", "ttl", "prompts", "allow_hosts", "key", "unlisted", "aspect_ratios"} <= keys


def examples() -> dict[str, str]:
    """The annotated policy files of the README, by their paths."""
    blocks = re.findall(r"```yaml\n# policies/(\S+?\.yaml)(.*?)```", README, flags=re.DOTALL)
    return {name: "#" + text for name, text in blocks}


def test_every_policy_key_is_in_the_annotated_examples():
    text = "\n".join(examples().values())
    assert {key for key in policy_keys() if not re.search(rf"(^|[{{\s]){key}:", text, flags=re.MULTILINE)} == set()


def test_the_annotated_examples_load(tmp_path):
    for name, text in examples().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert set(examples()) == {"org.yaml", "models.yaml", "teams/growth.yaml"}
    policies = policy_files.load(tmp_path)
    assert set(policies.teams) == {"growth"}


def test_the_fallback_modes_and_windows_are_those_of_the_program():
    text = section(README, "## Policy files")
    for word in (*policy.Fallback, *policy.Window, *policy.Mode, *policy.Cacheable, *policy.CacheScope):
        assert re.search(rf"\b{word}\b", text), word
    assert {each.value for each in policy.Permission} <= set(codes(prose(text)))


# Routes and headers in the page about HTTP


def test_every_route_is_documented_and_none_that_does_not_exist():
    exist = {
        f"{method} {each.path.replace(':path}', '}')}"
        for each in app.routes(settings.parse({}, {}), None)  # type: ignore[arg-type]  # nothing is called
        if isinstance(each, Route)
        for method in (each.methods or set()) - {"HEAD"}
    }
    assert {codes(row[0])[0] for row in rows(HTTP, named="route")} == exist


def test_every_header_of_ours_is_documented_and_none_that_does_not_exist():
    edge = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "gateway/edge").glob("*.py"))
    exist = {name.lower() for name in re.findall(r'"(X-[A-Za-z-]+)"', edge, flags=re.IGNORECASE)}
    written = {name.lower() for name in re.findall(r"`(X-[A-Za-z-]+)", section(HTTP, "## Headers"))}
    asked = {"x-forwarded-for", "x-forwarded-host", "x-real-ip", "x-content-type-options"}  # a proxy's, a browser's
    assert written == {name for name in exist if name.startswith("x-wave-") or name not in asked}


# Size and links


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.encode()) < 40_000


def anchors(page: Path) -> set[str]:
    """What a link into the page may end with: its headings, as they are shown on the web."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "BENCH", "CHANGELOG"))],
    ids=lambda page: page.name,
)
def test_every_relative_link_resolves(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for target, _, anchor in (link.partition("#") for link in links if "://" not in link):
        there = page.parent.joinpath(target) if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_the_changelog_has_a_part_for_what_is_not_released():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# The tables of ARCHITECTURE


def test_every_module_is_in_the_table_and_none_that_does_not_exist():
    source = ROOT / "gateway"
    exist = {str(path.relative_to(source)) for path in source.rglob("*.py") if path.name != "__init__.py"}
    written = [codes(row[0])[0] for row in rows(ARCHITECTURE, named="module")]
    assert sorted(written) == sorted(exist)


def test_the_floors_are_those_that_are_checked():
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    floors = {name: floor for floor, line in enumerate(layers, start=1) for name in re.findall(r"\((\w+)\)", line)}
    for path, floor, *_ in rows(ARCHITECTURE, named="module"):
        name = codes(path)[0].removesuffix(".py").split("/")[0]
        assert floors.get(name) == int(floor), name


def test_every_transition_is_in_the_table_of_states_and_none_that_does_not_exist():
    written = {
        (codes(row[0])[0], event, after)
        for row in rows(ARCHITECTURE, named="state")
        for event, after in re.findall(r"(\w+) → `(\w+)`", row[2] if len(row) > 2 else "")
    }
    assert written == {(before.value, event.value, after.value) for (before, event), after in task.TRANSITIONS.items()}
    assert [codes(row[0])[0] for row in rows(ARCHITECTURE, named="state")] == [state.value for state in task.State]


def test_every_table_of_the_schema_is_named_and_none_that_does_not_exist():
    schema = "\n".join(path.read_text() for path in (ROOT / "gateway/store/schema").glob("*.sql"))
    exist = set(re.findall(r"^CREATE TABLE (\w+)", schema, flags=re.MULTILINE))
    assert {codes(row[0])[0] for row in rows(ARCHITECTURE, named="table")} == exist


def test_every_dependency_has_its_reason_and_none_that_is_not_installed():
    exist = {re.split(r"[<>=!\[ ]", each)[0].lower() for each in PROJECT["project"]["dependencies"]}
    written = {row[0].lower(): row[1] for row in rows(ARCHITECTURE, named="dependency")}
    assert written.keys() == exist
    assert all(written.values())
