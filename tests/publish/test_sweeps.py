"""Sweeps: which rows they have, in which order and with which labels, and what is refused before anything is made."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage import sweep
from airflow_provider_qwenimage.contract import MAX_SEED, OUTPUT_FORMATS, SIZES
from airflow_provider_qwenimage.publish.sweeps import Sweep
from airflow_provider_qwenimage.rules.image_texts import MAX_LABEL_CHARACTERS
from airflow_provider_qwenimage.rules.row_fields import read_row


class Whole:
    """Like an integer of numpy: not an int, but an index."""

    ndim = 0

    def __index__(self) -> int:
        return 7


class Array:
    """Like an array of numpy, which cannot be iterated over if it has no dimensions."""

    def __init__(self, *values: Any, ndim: int = 1) -> None:
        self.ndim = ndim
        self._values = values

    def __index__(self) -> int:
        (value,) = self._values
        return int(value)

    def __iter__(self) -> Any:
        if self.ndim == 0:
            raise TypeError
        return iter(self._values)


def labels(rows: Iterable[dict[str, Any]]) -> list[Any]:
    return [row.get("label") for row in rows]


def test_the_rows_are_the_product_with_the_prompt_slowest_and_the_seed_fastest() -> None:
    rows = sweep(["a fox", "a cat"], seed=range(2), size=["768*1024", "1024*768"], output_format=["png", "webp"])
    keys = ("prompt", "size", "output_format", "seed")
    assert [tuple(row[key] for key in keys) for row in rows] == list(
        itertools.product(["a fox", "a cat"], ["768*1024", "1024*768"], ["png", "webp"], [0, 1])
    )
    assert list(rows[0]) == [*keys, "label"]
    assert rows[0]["label"] == "a fox · seed 0 · 768*1024 · png"


def test_what_is_not_given_is_left_to_the_task() -> None:
    assert sweep("a fox") == [{"prompt": "a fox"}], "nothing varies, so there is no label"
    assert sweep("a fox", size=None, seed=" ", output_format="", callback_url=None) == [{"prompt": "a fox"}]
    assert sweep("a fox", size="768*1024", seed=7, callback_url="https://a.b/c") == [
        {"prompt": "a fox", "size": "768*1024", "seed": 7, "callback_url": "https://a.b/c"}
    ]


class Animal(StrEnum):
    FOX = "a fox"


@pytest.mark.parametrize(
    ("seeds", "read"),
    [
        (range(3), [0, 1, 2]),
        (Array(Whole(), 1), [7, 1]),
        (Whole(), [7]),
        (Array(7, ndim=0), [7]),
        ((n for n in (5, 3)), [5, 3]),
        (("7", 8.0, None), [7, 8, -1]),
        ("{{ params.seed }}", ["{{ params.seed }}"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_field_has_one_value_or_any_iterable_of_them(seeds: Any, read: list[Any]) -> None:
    rows = sweep("a fox", seed=seeds)
    assert [row["seed"] for row in rows] == read
    assert json.loads(json.dumps(rows)) == rows, "plain values, which Airflow can store"


def test_only_a_single_text_is_a_pattern() -> None:
    assert [row["prompt"] for row in sweep("a {red|blue} fox")] == ["a red fox", "a blue fox"]
    assert sweep(["a {red|blue} fox"]) == [{"prompt": "a {red|blue} fox"}]
    assert [row["prompt"] for row in sweep([1984, Animal.FOX])] == ["1984", "a fox"]
    assert type(sweep([Animal.FOX])[0]["prompt"]) is str
    assert sweep(5) == [{"prompt": "5"}]


class Output:
    """Stands for the output of another task."""

    def resolve(self, context: Any) -> str:
        raise NotImplementedError

    def __iter__(self) -> Any:
        raise TypeError

    def __eq__(self, other: object) -> bool:
        raise NotImplementedError

    __hash__ = None  # type: ignore[assignment]  # as an XComArg in some versions


def test_what_is_rendered_later_is_not_checked_and_not_in_a_label() -> None:
    first, second = Output(), Output()
    rows = sweep(["{{ ds }} fox", first, "a cat", "x" * 99 + "{{ ds }}"], size=["{{ params.size }}", second], seed=1)  # type: ignore[list-item]  # stand-ins
    assert rows[2]["prompt"] is first
    assert rows[1]["size"] is second
    assert labels(rows)[::2] == [
        f"{prompt} · size no. 1" for prompt in ("prompt no. 1", "prompt no. 2", "a cat", "prompt no. 4")
    ]
    assert labels(sweep("{a|{% if x %}b{% endif %}}", seed=["{{ x }}", 1]))[1:3] == [
        "a · seed 1",
        "prompt no. 2 · seed no. 1",
    ]


def test_a_label_has_the_alternatives_of_a_pattern_and_only_what_varies() -> None:
    assert labels(sweep("a {small|big} {fox|cat}, watercolour", size="768*1024")) == [
        "small fox",
        "small cat",
        "big fox",
        "big cat",
    ]
    assert labels(sweep("a {|big }fox", seed=[3, -1])) == [
        "(none) · seed 3",
        "(none) · random seed",
        "big · seed 3",
        "big · random seed",
    ]
    assert labels(sweep("a fox", seed=range(2))) == ["seed 0", "seed 1"]


def test_labels_are_distinct_and_short() -> None:
    long = "a fox " * 50
    assert labels(sweep([long + "x", long + "y", "a\n cat"]))[2] == "a cat"
    assert labels(sweep([long + "x", long + "y", "fox", "fox (2)", "fox"])) == [
        f"{long[:100]}…",
        f"{long[:100]}… (2)",
        "fox",
        "fox (2)",
        "fox (3)",
    ]
    # The number is that of the prompt, whatever follows.
    numbered = ["fox · seed 0", "fox · seed 1", "fox (2) · seed 0", "fox (2) · seed 1"]
    assert labels(sweep(["fox", "fox "], seed=range(2))) == labels(sweep("{fox|fox }", seed=range(2))) == numbered
    rows = sweep(["x" * 500 + str(n) for n in range(20)], seed=[MAX_SEED, -1], size=SIZES, output_format=OUTPUT_FORMATS)
    assert len(set(labels(rows))) == len(rows)
    assert max(map(len, labels(rows))) <= MAX_LABEL_CHARACTERS
    assert labels(sweep(["\u200b\u2800 \u200bx" if n else "fox" for n in range(2)], seed=[-1, -1]))[:2] == [
        "fox · random seed",
        "fox · random seed (2)",
    ]


FIELD = {
    "prompt": st.text(st.characters(categories=["L", "N", "P"]), min_size=1).filter(lambda text: "{" not in text),
    "seed": st.integers(-1, MAX_SEED),
    "size": st.sampled_from(SIZES),
    "output_format": st.sampled_from(OUTPUT_FORMATS),
}


@given(
    st.fixed_dictionaries(
        {"prompt": st.lists(FIELD["prompt"], min_size=1, max_size=3, unique=True)},
        optional={
            name: st.lists(FIELD[name], min_size=1, max_size=3, unique=True) for name in FIELD if name != "prompt"
        },
    )
)
def test_each_row_is_one_that_a_batch_takes(fields: dict[str, list[Any]]) -> None:
    rows = sweep(**fields)
    assert len(rows) == math.prod(map(len, fields.values()))
    requests = [read_row(row) for row in rows]
    assert len({tuple(row.request.payload().values()) for row in requests}) == len(rows)
    if len(rows) > 1:
        assert len({row.label for row in requests}) == len(rows)
    assert sweep(**fields) == rows


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (lambda: sweep("{a|b}" * 100), "more than 999,999,999,999 prompts"),
        (lambda: sweep("a", seed=itertools.count()), "more than 1,000 seeds"),
        (lambda: sweep(f"fox {n}" for n in itertools.count()), "more than 1,000 prompts"),
        (lambda: sweep("a", seed=range(10**12)), "more than 1,000 seeds"),
        (lambda: sweep("{a|b|c|d}" * 6), "has 4,096 rows (4,096 prompts)"),
        (lambda: sweep("{a|b} {c|d}", seed=range(256)), "has 1,024 rows (4 prompts x 256 seeds)"),
    ],
    ids=["pattern", "seeds", "prompts", "range", "known", "product"],
)
def test_too_many_rows_are_refused_before_any_is_made(make: Callable[[], Sweep], rows: str) -> None:
    with pytest.raises(
        ValueError, match="^limit is 1000, and the sweep has .* it must be at least the number"
    ) as caught:
        make()
    assert rows in str(caught.value)


def test_the_limit_can_be_raised_up_to_that_of_a_batch() -> None:
    assert len(sweep("a", seed=range(1000))) == 1000
    assert len(sweep("a", seed=range(1001), limit=1001)) == 1001
    assert len(sweep("a", seed=range(1001), limit=None)) == 1001
    with pytest.raises(ValueError, match="^limit is 3, and the sweep has 4 rows"):
        sweep("a", seed=range(2), size=SIZES[:2], limit=Array(3))
    for limit in (None, 10**7):
        with pytest.raises(ValueError, match="a batch has at most 1,000,000. Split it"):
            sweep("a", seed=range(10**6 + 1), limit=limit)
    for bad in (0, -1, 2.5, "10", True, math.inf):
        with pytest.raises(ValueError, match="^limit is .*; it must be an integer of at least 1"):
            sweep("a", limit=bad)


def test_equal_rows_are_refused_unless_their_seed_is_random() -> None:
    equal: list[tuple[Callable[[], Sweep], str]] = [
        (lambda: sweep(["a fox", "b", "a fox"], seed=1), "prompt is 'a fox' twice, as its values 1 and 3"),
        (lambda: sweep("{a|a} fox", seed=[-1, 5]), "prompt is 'a fox' twice, as its values 1 and 2"),
        (lambda: sweep("a", seed=[1, 2, "1"]), "seed is 1 twice, as its values 1 and 3"),
        (lambda: sweep("a", size=[None, SIZES[0]], seed=1), r"size is '1024\*1024' twice, as its values 1 and 2"),
    ]
    for make, message in equal:
        with pytest.raises(ValueError, match=f"^{message}; it must be another one each time, because equal rows"):
            make()
    assert labels(sweep(["a fox"] * 3)) == ["a fox", "a fox (2)", "a fox (3)"]
    assert labels(sweep("a", seed=[-1, 4, -1])) == ["random seed", "seed 4", "random seed (2)"]
    assert len(sweep("{a|a}", size=[SIZES[0]] * 2)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": {1, 2}}, "seed is a set, which has no order; it must be one value, or a list"),
        ({"size": dict.fromkeys(SIZES)}, "size is a dict, which has no order"),
        ({"prompt": {"a fox": 1}.keys()}, "prompt is a dict_keys, which has no order"),
        ({"seed": []}, r"seed is \[\], which has no values; it must be one value, or a list"),
        ({"prompt": ()}, r"prompt is \(\), which has no values"),
        ({"seed": Array(ndim=2)}, "seed is a Array of 2 dimensions; it must be one value, or a list"),
        ({"prompt": None}, "prompt is None; it must be a non-empty string"),
        ({"prompt": ""}, "prompt is ''; it must be a non-empty string"),
        ({"prompt": b"a fox"}, "prompt is b'a fox'; it must be a non-empty string"),
        ({"prompt": ["a fox", " "]}, "prompt is ' '; it must be a non-empty string"),
        ({"prompt": "{a|} "}, "prompt is ' '; it must be a non-empty string"),
        ({"prompt": "{a|" + "x" * 2001 + "}"}, "prompt has 2001 characters"),
        ({"prompt": print}, "prompt is <built-in function print>; it must be a non-empty string"),
        ({"prompt": [print]}, "prompt is <built-in function print>; it must be a non-empty string"),
        ({"prompt": ["half \ud83e"]}, "prompt is a text whose character 6 cannot be sent or stored"),
        ({"size": ["9*9"]}, r"size is '9\*9'; it must be one of 1024\*1024"),
        ({"output_format": "gif"}, "output_format is 'gif'; it must be one of jpeg, png, webp"),
        ({"seed": [1, "x"]}, "seed is 'x'; it must be -1 \\(random\\) or an integer"),
        ({"callback_url": ["https://a.b"]}, r"callback_url is \['https://a.b'\]; it must be an absolute http"),
    ],
    ids=lambda value: ascii(value)[:50].partition(" at 0x")[0],
)
def test_a_bad_value_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        sweep(**{"prompt": "a fox", **arguments})


def test_a_sweep_is_a_list_with_a_short_text() -> None:
    rows = sweep("a {red|blue} fox", seed=range(4), size=SIZES[:2])
    text = "<Sweep of 16 images, about 80 credits: 2 prompts x 4 seeds x 2 sizes>"
    for each in (rows, copy.copy(rows), copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):  # noqa: S301  written right here
        assert isinstance(each, list)
        assert (each, repr(each), str(each)) == (rows, text, text)
    assert repr(sweep("a fox")) == "<Sweep of 1 image, about 5 credits>"
    rows.append({"prompt": "another"})
    assert repr(rows) == "<Sweep of 17 images, about 85 credits>", "no longer a product"
    assert repr(Sweep()) == "<Sweep of 0 images, about 0 credits>"
