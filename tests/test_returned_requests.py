"""What the functions of decorated tasks return: read as requests, or refused with the name of the function."""

from __future__ import annotations

from collections import UserDict
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.batch import returned_requests
from airflow_provider_qwenimage.batch.requests import read_list
from airflow_provider_qwenimage.batch.returned_requests import read_returned_requests, read_rows
from airflow_provider_qwenimage.rules.returned_request import read_returned_request

TOKEN = "https://a.example/?token=secret"


class Table:
    """Iterates over the names of its columns, as a DataFrame does."""

    ndim = 2

    def __iter__(self) -> Any:
        return iter(["prompt", "seed"])


async def coroutine() -> str:
    return "A fox"


@pytest.mark.parametrize(
    ("returned", "fields"),
    [
        ("A fox {{ ds }}", {"prompt": "A fox {{ ds }}"}),
        ({"prompt": "A fox"}, {"prompt": "A fox"}),
        ({"prompt": "A fox", "seed": "7", "image_name": " fox "}, {"prompt": "A fox", "seed": 7, "image_name": "fox"}),
        # As in a row of a batch, None and blank values count as left out.
        ({"prompt": "A fox", "size": None, "output_format": "", "image_name": ""}, {"prompt": "A fox"}),
        ({"prompt": "A fox", "label": " red "}, {"prompt": "A fox", "label": "red"}),
        (UserDict(prompt="A fox", size="768*1024"), {"prompt": "A fox", "size": "768*1024"}),
        ({"prompt": "A fox", "callback_url": TOKEN}, {"prompt": "A fox", "callback_url": TOKEN}),
    ],
)
def test_a_prompt_or_the_fields_of_a_request_are_read(returned: Any, fields: dict[str, Any]) -> None:
    assert read_returned_request("choose", returned) == fields


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "returned None; it must return a prompt"),
        (3, "returned 3; it must return a prompt"),
        (b"A fox", "returned b'A fox'; it must return a prompt"),
        ("", "is not valid: prompt is ''; it must be a non-empty string"),
        ("\u200b", "is not valid: prompt is '\\u200b'; it must be"),
        ("A fox \ud83d", "cannot be sent or stored"),
        ("x" * 2001, "prompt has 2001 characters"),
        (["A fox"], "a value of type list; it must return a prompt"),
        ([{"callback_url": TOKEN}] * 100_000, "For a list of prompts use @task.qwenimage_batch, or map this task"),
        ((text for text in ["A fox"]), "a value of type generator; it must return a prompt"),
        ({}, "prompt is missing; it must be"),
        ({"seed": 7}, "prompt is missing; it must be"),
        ({"prompt": None}, "prompt is None; it must be"),
        ({"prompt": "A fox", "size": "5*5"}, "size is '5*5'; it must be one of 1024*1024"),
        ({"prompt": "A fox", "seed": float("nan")}, "seed is nan; it must be"),
        ({"prompt": "A fox", "image_name": "../fox"}, "image_name is '../fox'; it must be"),
        ({"prompt": "A fox", "label": ["red"]}, "label is ['red']; it must be a text of at most 200 characters"),
        ({"prompt": "A fox", "callback_url": "ftp://a.example?token=secret"}, "callback_url is 'ftp://a.example"),
        ({"promt": "A fox"}, "the key 'promt' (did you mean 'prompt'?); its keys must be among prompt, size, seed"),
        ({"prompt": "A fox", "output_path": "/data"}, "the key 'output_path'"),
        ({7: "A fox"}, "the key 7; its keys must be among"),
    ],
)
def test_anything_else_is_refused_with_the_name_of_the_function(returned: Any, problem: str) -> None:
    with pytest.raises(ValueError, match="^The function choose returned ") as refused:
        read_returned_request("choose", returned)
    assert problem in str(refused.value)
    assert "secret" not in str(refused.value)
    assert len(str(refused.value)) < 700


def test_rows_of_any_iterable_are_read_and_left_as_they_are() -> None:
    rows = ["A fox {{ ds }}", {"prompt": "A hare", "seed": 7}]
    for returned in (rows, tuple(rows), iter(rows), (row for row in rows)):
        assert read_returned_requests("choose", read_rows(returned)) == rows
    assert read_returned_requests("choose", []) == []


def test_the_path_of_a_file_of_requests_is_read_as_one() -> None:
    for returned in ("/data/foxes.jsonl", Path("/data/foxes.jsonl")):
        assert read_returned_requests("choose", read_rows(returned)) == "/data/foxes.jsonl"


def test_rows_without_an_end_are_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returned_requests, "MAX_ROWS", 10)
    rows = read_rows(f"Fox {number}" for number in count())
    assert len(read_returned_requests("choose", rows)) == 11


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "returned None; it must return a list of prompts"),
        (3, "returned 3; it must return a list of prompts"),
        (b"A fox", "returned b'A fox'; it must return a list of prompts"),
        ("", "requests is ''; it must be a list of prompts"),
        ("A fox", "requests is 'A fox'; it must be a list of prompts"),
        ("foxes.txt", "requests is 'foxes.txt'"),
        ("foxes\x00.jsonl", "cannot be sent or stored"),
        ({"prompt": "A fox", "callback_url": TOKEN}, "a value of type dict; it must return a list of prompts"),
        ({"A fox", "A hare"}, "a value of type set; it must return a list of prompts"),
        (Table(), "a value of type Table; it must return a list of prompts"),
    ],
)
def test_what_has_no_rows_is_refused_with_the_name_of_the_function(returned: Any, problem: str) -> None:
    with pytest.raises(ValueError, match="^The function choose returned ") as refused:
        read_returned_requests("choose", read_rows(returned))
    assert problem in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_column_names_of_a_table_are_not_drawn() -> None:
    with pytest.raises(ValueError, match="^requests is .*; it must be a list of prompts"):
        list(read_list(Table()))
