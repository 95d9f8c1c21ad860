"""What is kept of a run, and of which."""

from __future__ import annotations

import pathlib

import pytest

from bench import __main__ as program

PAGE = (pathlib.Path(__file__).parents[2] / "BENCH.md").read_text(encoding="utf-8")


def test_the_page_has_one_place_for_what_was_found():
    assert (PAGE.count(program.BEGIN), PAGE.count(program.END)) == (1, 1)
    assert PAGE.index(program.BEGIN) < PAGE.index(program.END)


def test_what_was_found_takes_the_place_of_what_was_found_before():
    first = program.put("first", f"above\n{program.BEGIN}\nold\n{program.END}\nbelow\n")
    assert first == f"above\n{program.BEGIN}\n\nfirst\n\n{program.END}\nbelow\n"
    assert program.put("second", first) == first.replace("first", "second")


@pytest.mark.parametrize(
    ("words", "is_whole"),
    [
        ([], True),
        (["--rounds", "7", "--seconds", "6"], True),
        (["--rounds", "1"], False),
        (["--seconds", "2"], False),
        (["--paths", "A"], False),
        (["--quick"], False),
        (["--no-open"], False),
    ],
)
def test_only_a_whole_run_is_kept(words, is_whole):
    assert program.is_whole(program.parse(words)) is is_whole


def test_every_goal_about_a_ratio_is_explained_in_the_page():
    for path, _, name, _ in program.RATIOS:
        assert f"**{path}**" in PAGE, name
