"""Prompts with alternatives: what is one, what is kept, and that reading one is quick whatever it is."""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.publish.prompt_patterns import MOST_COUNTED, PromptPattern


def texts(pattern: str) -> list[str]:
    return [expansion.text for expansion in PromptPattern(pattern)]


def escaped(text: str) -> str:
    return re.sub(r"[{|}\\]", r"\\\g<0>", text)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a fox", ["a fox"]),
        ("a {red|blue} {fox|cat}", ["a red fox", "a red cat", "a blue fox", "a blue cat"]),
        ("a {|big }fox", ["a fox", "a big fox"]),
        ("{a|b {c|d}|e}!", ["a!", "b c!", "b d!", "e!"]),
        ("{a|a}", ["a", "a"]),
        # Braces without a bar, and bars and braces outside of groups, are as they are.
        ("{a} | b }", ["{a} | b }"]),
        ("{x {a|b}}", ["{x a}", "{x b}"]),
        (r"\{a\|b\} \\ {\{|\|} \n\a" + "\\", ["{a|b} \\ { \\n\\a\\", "{a|b} \\ | \\n\\a\\"]),
        # Jinja, with strings and dicts in it.
        ("{{ ds | upper }} {a|b}", ["{{ ds | upper }} a", "{{ ds | upper }} b"]),
        ("{a|{{ {'x': {'y': '}}'}}['x'] }}}", ["a", "{{ {'x': {'y': '}}'}}['x'] }}"]),
        ("{{ '\\'}}' }}{a|b}", ["{{ '\\'}}' }}a", "{{ '\\'}}' }}b"]),
        ("{% if x == '%}' %}{a|b}{% endif %}", ["{% if x == '%}' %}a{% endif %}", "{% if x == '%}' %}b{% endif %}"]),
        ("{# {a|b} ' #}{c|d}", ["{# {a|b} ' #}c", "{# {a|b} ' #}d"]),
    ],
)
def test_a_pattern_is_the_texts_of_its_alternatives(pattern: str, expected: list[str]) -> None:
    assert texts(pattern) == expected
    assert PromptPattern(pattern).count == len(expected)


def test_the_chosen_alternatives_are_those_of_the_outer_groups() -> None:
    pattern = PromptPattern("a {in {% if x %}|old {red|blue}} {x {fox|cat}}")
    assert [expansion.chosen for expansion in pattern] == [
        ("in {% if x %}", "fox"),
        ("in {% if x %}", "cat"),
        ("old red", "fox"),
        ("old red", "cat"),
        ("old blue", "fox"),
        ("old blue", "cat"),
    ]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("a {red|blue fox", "which has a brace that is not closed, at character 3"),
        ("{a|b} {c|{d|e}", "which has a brace that is not closed, at character 7"),
        ("a { fox", "which has a brace that is not closed, at character 3"),
        ("{{a|b} c|d}", "which has {{ at character 1, which begins Jinja, and no }} after it"),
        ("{{ 'x }} {a|b}", "which has {{ at character 1, which begins Jinja, and no }} after it"),
        ("{{ {a }} {a|b}", "which has {{ at character 1, which begins Jinja, and no }} after it"),
        ("a {% if x }", "which has {% at character 3, which begins Jinja, and no %} after it"),
        ("a {#1|2}", "which has {# at character 3, which begins Jinja, and no #} after it"),
        ("{a|" * 21 + "}" * 21, "which has groups in groups more than 20 deep"),
        ("x" * 100_001, "which is a pattern of more than 100000 characters"),
    ],
)
def test_an_incomplete_pattern_is_refused(pattern: str, problem: str) -> None:
    with pytest.raises(ValueError, match="^prompt is .*; it must be ") as caught:
        PromptPattern(pattern)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 600


@given(st.text(st.sampled_from("{|}\\%#a '\"") | st.characters()))
def test_an_escaped_text_is_itself(text: str) -> None:
    assert texts(escaped(text)) == [text]


PLAIN = st.text(st.sampled_from("{|}\\ab "), max_size=4)


@given(st.lists(PLAIN | st.lists(PLAIN, min_size=2, max_size=3), max_size=5))
def test_the_texts_are_the_product_of_all_alternatives(parts: list[str | list[str]]) -> None:
    pattern = "".join(
        escaped(part) if isinstance(part, str) else f"{{{'|'.join(map(escaped, part))}}}" for part in parts
    )
    expected = [""]
    for part in parts:
        expected = [before + each for before in expected for each in ([part] if isinstance(part, str) else part)]
    assert texts(pattern) == expected
    assert PromptPattern(pattern).count == math.prod(len(part) for part in parts if isinstance(part, list))


@given(st.text(st.sampled_from("{{||}}\\%#'a"), max_size=12))
def test_any_text_is_a_pattern_or_is_refused(text: str) -> None:
    try:
        pattern = PromptPattern(text)
    except ValueError:
        return
    assert len(list(pattern)) == pattern.count


@pytest.mark.parametrize(
    "pattern",
    ["{a|b}" * 20_000, r"\{" * 50_000, "{{ '" + r"\'" * 49_000, "{{ " + "{" * 99_000, "{#" * 50_000, "{a|" * 30_000],
    ids=lambda pattern: pattern[:8],
)
def test_a_long_pattern_is_read_and_counted_at_once(pattern: str) -> None:
    began = time.process_time()
    try:
        count = PromptPattern(pattern).count
    except ValueError:
        count = 1
    assert count in (1, MOST_COUNTED)
    # Were each part read again for each other part, it would be minutes.
    assert time.process_time() - began < 5
