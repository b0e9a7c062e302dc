"""Watched templates print the same as Jinja, and printed values without a text are noted."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

import jinja2
import pytest
from jinja2.nativetypes import NativeEnvironment
from jinja2.sandbox import SandboxedEnvironment

from airflow_provider_qwenimage.rules.templates import render_text, watch


class Colour(Enum):
    RED = "red"


class Animal:
    def __repr__(self) -> str:
        return "a fox"


class Array:
    """Like an array of numpy: its text is meant for programmers."""

    ndim = 1

    def __str__(self) -> str:
        return "['a' 'b']"


class ArgNotSet:
    """Like Airflow's marker for a variable that does not exist."""

    def __str__(self) -> str:
        return "NOTSET"


class Proxy:
    """Like Airflow's proxy for a value that it looks up late: it reports the class of the value."""

    def __init__(self, value: Any) -> None:
        self._value = value

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._value)

    def __str__(self) -> str:
        return str(self._value)


VALUES: dict[str, Any] = {
    "nothing": None,
    "nan": math.nan,
    "not_a_number": Decimal("NaN"),
    "notset": ArgNotSet(),
    "late_nothing": Proxy(None),
    "late_date": Proxy(datetime(2024, 1, 1, tzinfo=UTC)),
    "text": "a fox",
    "number": 7,
    "amount": Decimal("1.5"),
    "flag": True,
    "date": datetime(2024, 1, 1, tzinfo=UTC),
    "path": PurePosixPath("/data"),
    "colour": Colour.RED,
    "animal": Animal(),
    "items": ["a fox", "a hare"],
    "gaps": ["a fox", None],
    "row": {"prompt": "a fox", "items": []},
    "array": Array(),
    "bytes": b"a fox",
    "function": len,
    "object": object(),
}


def environments(undefined: type[jinja2.Undefined] = jinja2.StrictUndefined) -> list[jinja2.Environment]:
    return [SandboxedEnvironment(undefined=undefined), NativeEnvironment(undefined=undefined)]


def noted(environment: jinja2.Environment, template: str, *, lists: bool = False) -> list[str]:
    """Return the noted problems of a watched template, after checking that it prints the same as Jinja."""
    watched, found = watch(environment, lists=lists)
    rendered = render_text(watched.from_string(template), dict(VALUES))
    assert rendered == render_text(environment.from_string(template), dict(VALUES))
    return found


@pytest.mark.parametrize(
    "template",
    [
        "{{ nothing }}",
        "{{ nan }}",
        "{{ not_a_number }}",
        "{{ notset }}",
        "{{ late_nothing }} and a hare",
        "{{ nothing | trim }}",
        "{{ nothing | title }} {{ text }}",
        "{{ nothing ~ ' in the snow' }}",
        "{{ notset ~ ' in the snow' }}",
        "{{ '%s in the snow' % nothing }}",
        "{{ '%s and %s' % (text, nothing) }}",
        "{{ '%s in the snow' | format(nothing) }}",
        "{{ gaps | join(' and ') }}",
        "{{ 'X in the snow' | replace('X', nothing) }}",
        "{{ (nothing | trim) or 'a hare' }}",
        "{{ (nothing | trim).split(' ')[0] }}",
        "{{ text if flag }}{{ nothing | upper if flag }}",
        "{% for each in gaps %}{{ each }}{% endfor %}",
        "{% macro say(what) %}{{ what | trim }}{% endmacro %}{{ say(nothing) }}",
        "{% set all %}{{ nothing }}{% endset %}{{ all }}",
    ],
)
def test_an_expression_without_a_value_is_noted_however_it_becomes_a_text(template: str) -> None:
    for environment in environments():
        assert set(noted(environment, template)) == {"has no value"}


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ items }}", "list"),
        ("A picture of {{ items }}", "list"),
        ("{{ row }}", "dict"),
        ("{{ row.items }}", "builtin_function_or_method"),
        ("{{ array }}", "Array"),
        ("{{ bytes }}", "bytes"),
        ("{{ function }}", "builtin_function_or_method"),
        ("{{ object }}", "object"),
        ("{{ items | map('upper') }}", "generator"),
        ("{{ items ~ ' in the snow' }}", "list"),
        ("{{ items | string }}", "list"),
    ],
)
def test_a_value_that_prints_as_a_representation_is_noted(template: str, kind: str) -> None:
    for environment in environments():
        watched, found = watch(environment, lists=False)
        render_text(watched.from_string(template), dict(VALUES))
        assert set(found) == {f"is a {kind}, not a text"}


@pytest.mark.parametrize(
    "template",
    [
        "A fox",
        "{{ text }} {{ number }} {{ amount }} {{ flag }} {{ date }} {{ late_date }}",
        "{{ path }} {{ colour }} {{ animal }}",
        "{{ nothing or 'a fox' }}{{ (nothing or text) | trim }}{{ nothing | default('a fox', true) | upper }}",
        "{{ missing | default('a fox') | trim }}",
        "{{ items | join(' and ') }}{{ items | map('upper') | join }}{{ items | first | title }}",
        "{% for each in items %}{{ each }}{{ ', ' if not loop.last }}{% endfor %}",
        "{{ text ~ (' in the snow' if not flag) }}",
        "{{ (text if not flag) | default('a hare') }}",
        "{{ 'a' if not flag else ('b' if not flag) }}",
        "{{ nothing | string == 'x' }}{{ (nothing ~ '') is string }}",
        "{% if nothing | lower == 'oil' %}oil{% endif %}{{ 'oil' if nothing | string == 'x' else text }}",
        "{% if false %}{{ nothing | trim }}{{ nothing ~ 'x' }}{% endif %}{{ nothing | trim if false else text }}",
        "{{ number % 2 }}{{ '%05.1f' % amount }}{{ '%s' % text }}",
        "{{ nothing is none }}{{ nothing | int }}",
        "{% raw %}{{ nothing }}{% endraw %}",
        "{{ row | tojson }}{{ items | length }}{{ items[0][:3] | upper }}",
        "{% filter upper %}{{ text }}{% endfilter %}",
    ],
)
def test_a_value_with_a_text_is_printed_as_by_jinja_and_not_noted(template: str) -> None:
    for environment in environments():
        assert noted(environment, template) == []


@pytest.mark.parametrize("template", ["{{ missing }}", "{{ missing ~ ' fox' }}", "{{ text }}{{ row.missing | trim }}"])
def test_an_undefined_value_is_noted_if_a_dag_allows_printing_it(template: str) -> None:
    for environment in environments(jinja2.Undefined):
        assert set(noted(environment, template)) == {"has no value"}
    for environment in environments():
        watched, _ = watch(environment, lists=False)
        with pytest.raises(jinja2.UndefinedError):
            render_text(watched.from_string(template), dict(VALUES))


def test_lists_may_be_printed_if_they_can_be_read_again() -> None:
    for environment in environments():
        assert noted(environment, "{{ items }}{{ row }}", lists=True) == []
        assert noted(environment, "{{ nothing }}{{ function }}", lists=True) != []


def test_an_object_is_printed_even_if_its_attributes_raise() -> None:
    class Odd:
        @property
        def ndim(self) -> int:
            raise RuntimeError("not now")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("not now")

        __hash__ = None  # type: ignore[assignment]

        def __str__(self) -> str:
            return "an odd fox"

    for environment in environments():
        watched, found = watch(environment, lists=False)
        assert render_text(watched.from_string("{{ odd }}{{ odd ~ '' }}"), {"odd": Odd()}) == "an odd foxan odd fox"
        assert found == []
