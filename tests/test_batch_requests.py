"""The requests of a batch: which are accepted, which are refused, and which share an image."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.batch.manifest import _FIRST_ROW_BYTES
from airflow_provider_qwenimage.batch.requests import BatchRequest, BatchRequests, read_list, read_request
from airflow_provider_qwenimage.contract import MAX_IMAGES, MAX_URL_CHARACTERS, GenerateRequest
from airflow_provider_qwenimage.plugin.manifests import _MOST_ROW_BYTES
from airflow_provider_qwenimage.rules.batch_rows import manifest_row
from airflow_provider_qwenimage.rules.image_texts import MAX_LABEL_CHARACTERS, MAX_TEXT_CHARACTERS
from airflow_provider_qwenimage.rules.request_rows import Row, file_reader
from airflow_provider_qwenimage.text.messages import is_blank


def rows_of(name: str, content: str | bytes) -> list[Row]:
    reader = file_reader(name)
    assert reader is not None
    return list(reader(io.BytesIO(content if isinstance(content, bytes) else content.encode())))


def checked(rows: Iterable[Row], variant: int = 0) -> list[BatchRequest]:
    with closing(BatchRequests(rows, variant=variant)) as requests:
        items = [requests[number] for number in range(len(requests))]
        assert requests.number_to_draw == sum(item.same_as is None for item in items)
        return items


def batch(values: Any, variant: int = 0) -> list[BatchRequest]:
    return checked(read_list(values), variant)


def drawn(requests: list[BatchRequest]) -> list[str]:
    """The file name of each image that is drawn."""
    return [item.identity.stem for item in requests if item.same_as is None]


def test_prompts_and_objects_are_requests() -> None:
    whole = {"prompt": "c", "size": "768*1024", "seed": 7, "output_format": "png", "callback_url": "https://a.b/c"}
    requests = batch(["a", {"prompt": "b"}, whole])
    assert [requests[number].request for number in range(3)] == [
        GenerateRequest(prompt="a"),
        GenerateRequest(prompt="b"),
        GenerateRequest(**whole),
    ]


@pytest.mark.parametrize(
    "value",
    [
        ["a", "b"],
        ("a", "b"),
        iter(["a", "b"]),
        '["a", "b"]',
        "['a', 'b']",
        ' ["a",\n "b"] ',
        [{"prompt": "a"}, "b"],
        "[{'prompt': 'a', 'seed': None}, 'b']",
    ],
)
def test_lists_come_in_many_forms(value: Any) -> None:
    requests = batch(value)
    assert [requests[number].request.prompt for number in range(2)] == ["a", "b"]


@pytest.mark.parametrize("value", ["A red fox", "[not a list", {"prompt": "a"}, None, 5, b"a"])
def test_a_value_that_is_not_a_list_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^requests is .*it must be a list of prompts"):
        batch(value)


@pytest.mark.parametrize(
    "value", ["['a fox' 'a hare']", "['a fox'\n 'a hare']", '["it\'s a fox" "a hare"]', "['a' 'b', 'c']"]
)
def test_strings_that_python_would_join_to_one_prompt_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"^requests is .*two strings side by side.*convert it to a list"):
        batch(value)


def test_comments_are_not_strings_and_the_end_of_a_quote_is_searched_once() -> None:
    assert [item.request.prompt for item in batch("[ # it's\n'a fox', # 'a' 'b'\n'a hare']")] == ["a fox", "a hare"]
    with pytest.raises(ValueError, match=r"^requests is .*it must be a list of prompts"):
        batch("['" + r"\'" * 100_000)
    assert batch("[ # " + r"\'" * 100_000 + "\n]") == []


def test_quotes_in_a_printed_list_do_not_end_its_strings() -> None:
    prompts = ["a 'red' fox", 'a "red" fox', "it's", "both ' and \"", "back\\", "two\nlines", "''", '"" ""']
    assert [item.request.prompt for item in batch(repr(prompts))] == prompts


def test_an_empty_list_is_a_batch_of_nothing() -> None:
    requests = batch([])
    assert requests == []


def test_equal_prompts_with_a_random_seed_are_images_of_their_own() -> None:
    requests = batch(["fox"] * 4)
    assert len(set(drawn(requests))) == 4


def test_equal_requests_with_one_seed_are_one_image() -> None:
    fox = {"prompt": "fox", "seed": 5}
    requests = batch([fox, "hare", fox, fox | {"callback_url": " "}, fox | {"seed": 6}, fox | {"size": None}])
    assert [requests[number].same_as for number in range(6)] == [None, None, 0, 0, None, 0]
    assert len(drawn(requests)) == 3


@pytest.mark.parametrize("own", [{"seed": 5}, {"name": "fox"}, {"seed": 5, "name": "fox"}], ids=str)
@pytest.mark.parametrize("first", [{}, {"callback_url": "https://a.b/first?token=hunter2"}], ids=["none", "another"])
def test_a_callback_that_the_api_would_never_call_makes_a_bad_row(own: dict[str, Any], first: dict[str, Any]) -> None:
    fox = {"prompt": "fox"} | own
    second = fox | {"callback_url": "https://a.b/second?token=hunter2"}
    with pytest.raises(ValueError, match="^requests has 1 bad row") as caught:
        batch([fox | first, "hare", second])
    field = "name" if "name" in own else "seed"
    assert "row 3: callback_url is not that of row 1" in str(caught.value)
    assert f"it must be the same in both rows, or this row needs another {field}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_rows_that_share_an_image_may_have_one_callback() -> None:
    fox = {"prompt": "fox", "seed": 5, "callback_url": "https://a.b/c"}
    requests = batch([fox, fox, {"prompt": "fox", "seed": 5}, fox | {"seed": 6, "callback_url": "https://a.b/d"}])
    assert [item.same_as for item in requests] == [None, 0, 0, None]
    requests = batch([{"prompt": "fox", "callback_url": f"https://a.b/{number}"} for number in range(2)])
    assert [item.same_as for item in requests] == [None, None], "random seeds are images of their own"


def test_a_name_makes_the_image_and_its_file() -> None:
    requests = batch(
        [{"prompt": "fox", "name": " f\u00fcchse "}, {"prompt": "fox", "name": 7}, "fox", {"prompt": "fox", "name": ""}]
    )
    assert [item.name for item in requests] == ["f\u00fcchse", "7", None, None]
    assert [item.identity.stem for item in requests[:2]] == ["f\u00fcchse", "7"]
    assert [item.variant for item in requests] == [0, 0, 0, 1], "named rows are not numbered among the others"
    assert [item.same_as for item in requests] == [None] * 4
    assert requests[0].description() == requests[0].request.description() | {"name": "f\u00fcchse"}
    assert "name" not in requests[2].description()
    assert "name" not in requests[0].request.payload(), "the API is not told"


def test_a_label_and_a_text_describe_a_row_and_not_its_image() -> None:
    fox = {"prompt": "fox", "seed": 5}
    requests = batch(
        [
            fox | {"label": " red fox\n", "text": " a fox, sitting"},
            fox | {"label": 7},
            fox | {"label": " ", "text": None},
        ]
    )
    assert [(item.label, item.text) for item in requests] == [("red fox", " a fox, sitting"), ("7", None), (None, None)]
    assert [item.same_as for item in requests] == [None, 0, 0], "one image may have several labels"
    assert requests[0].description() == requests[2].description() | {"label": "red fox", "text": " a fox, sitting"}
    assert requests[0].identity == requests[2].identity
    assert requests[0].request.payload() == requests[2].request.payload(), "the API is not told"
    named = batch([{"prompt": "fox", "name": "a", "label": "first"}, {"prompt": "fox", "name": "a", "label": "second"}])
    assert [(item.same_as, item.label) for item in named] == [(None, "first"), (0, "second")]


@pytest.mark.parametrize(
    ("field", "most"), [("label", MAX_LABEL_CHARACTERS), ("text", MAX_TEXT_CHARACTERS)], ids=["label", "text"]
)
def test_labels_and_texts_are_limited(field: str, most: int) -> None:
    (longest,) = batch([{"prompt": "fox", field: "\N{FOX FACE}" * most}])
    assert len(longest.description()[field]) == most
    for bad in ("x" * (most + 1), ["red"], True, float("nan"), "half \ud83e", "nul \x00"):
        with pytest.raises(
            ValueError, match=f"row 1: {field} is .*; it must (be a text of at most {most} ch|not cont)"
        ):
            batch([{"prompt": "fox", field: bad}])
        with pytest.raises(
            ValueError, match=f"row 1: {field} is .*; it must be a text of at most {most} char"
        ) as caught:
            checked([Row(1, {"prompt": "fox", field: bad}, is_quotable=False)])
        assert "xxx" not in str(caught.value)


def test_a_file_may_label_and_describe_its_images() -> None:
    items = checked(rows_of("p.csv", 'label,prompt,text\nred,fox,"a fox, sitting"\n,hare,\n'))
    assert [(item.label, item.text) for item in items] == [("red", "a fox, sitting"), (None, None)]
    longest = {"prompt": "\N{FOX FACE}" * 2000, "text": "\N{FOX FACE}" * MAX_TEXT_CHARACTERS, "label": "x"}
    (item,) = checked(rows_of("p.jsonl", json.dumps(longest)))
    assert item.description()["text"] == longest["text"], "the longest row fits, also if JSON escapes it"


def test_the_longest_manifest_row_is_recognized_and_shown() -> None:
    texts = {
        "prompt": "\x01" * 1999 + "a",
        "text": "\x01" * (MAX_TEXT_CHARACTERS - 1) + "a",
        "label": "\x01" * 199 + "a",
    }
    (item,) = batch([texts | {"name": "a" * 150}])
    outcome = {
        "paths": ["/" * 4096] * MAX_IMAGES,
        "image_urls": ["x" * MAX_URL_CHARACTERS] * MAX_IMAGES,
        "message": "\N{FOX FACE}" * 2000,
    }
    row = json.dumps(manifest_row(10**6, item.description(), outcome, "w" * 64), ensure_ascii=False)
    assert len(row.encode()) < min(_FIRST_ROW_BYTES, _MOST_ROW_BYTES)


def test_a_name_is_the_same_image_wherever_the_row_and_whatever_the_variant() -> None:
    before = batch([{"prompt": "fox", "name": "a"}, {"prompt": "fox", "name": "b"}])
    after = batch([{"prompt": "fox", "name": "b"}, "fox", {"prompt": "fox", "name": "a"}], variant=3)
    assert (after[2].identity, after[0].identity) == (before[0].identity, before[1].identity)


@pytest.mark.parametrize("name", ["Fu\u0308chse", "F\u00fcchse", "f\u00dcchse"])
def test_equal_names_with_equal_requests_are_one_image(name: str) -> None:
    requests = batch([{"prompt": "fox", "name": "f\u00fcchse"}, {"prompt": "fox", "name": name}])
    assert [item.same_as for item in requests] == [None, 0]
    assert requests[1].number == 1


@pytest.mark.parametrize(
    "other", [{"prompt": "hare"}, {"size": "768*1024"}, {"seed": 1}, {"output_format": "png"}], ids=str
)
@pytest.mark.parametrize("name", ["straße", "STRASSE"])
def test_equal_names_with_different_requests_are_named_before_anything_is_submitted(
    name: str, other: dict[str, Any]
) -> None:
    rows = ["owl", {"prompt": "fox", "name": "straße"}, {"prompt": ""}, {"prompt": "fox", "name": name} | other]
    with pytest.raises(ValueError, match=r"^requests has 2 bad row\(s\) of 4; nothing was submitted") as caught:
        batch(rows)
    assert "row 4: name is that of row 2, which is another request" in str(caught.value)


def test_a_bad_name_makes_a_bad_row() -> None:
    with pytest.raises(
        ValueError, match=r"row 1: name is 'a/b'; it must be a file name without suffix.*row 2: name is"
    ):
        batch([{"prompt": "fox", "name": "a/b"}, {"prompt": "fox", "name": "b.png"}])


def test_a_file_may_name_its_images() -> None:
    items = checked(rows_of("p.csv", "name,prompt\nsku-1,fox\n,hare\n"))
    assert [item.name for item in items] == ["sku-1", None]
    items = checked(rows_of("p.jsonl", '{"prompt": "fox", "name": "sku-1"}\n{"prompt": "hare", "name": null}'))
    assert [item.name for item in items] == ["sku-1", None]


def test_a_row_inserted_before_others_does_not_change_their_images() -> None:
    before = drawn(batch(["fox", "hare", "fox", "fox"]))
    after = drawn(batch(["owl", "fox", "hare", "fox", "fox"]))
    assert after[1:] == before


def test_mapped_batches_do_not_share_the_images_of_random_seeds() -> None:
    names = [drawn(batch(["fox", "fox"], variant=index)) for index in (0, 1, 2)]
    assert len({name for batch_names in names for name in batch_names}) == 6
    assert drawn(batch(["fox", "fox"])) == names[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", '"a"\n\n{"prompt": "b", "seed": 7.0}\n'),
        ("p.ndjson", b'\xef\xbb\xbf"a"\r\n{"prompt": "b", "seed": "7"}'),
        ("P.JSON", '["a", {"prompt": "b", "seed": 7}]'),
        ("s3://bucket/x/p.csv", "prompt,seed,size\na,,\nb,7,\n"),
        ("p.csv", b'\xef\xbb\xbfseed,prompt\r\n,a\r\n 7 ,"b"\r\n'),
    ],
)
def test_a_file_is_read_by_its_name(name: str, content: str | bytes) -> None:
    assert [read_request(row.value) for row in rows_of(name, content)] == [
        GenerateRequest(prompt="a"),
        GenerateRequest(prompt="b", seed=7),
    ]


def test_a_prompt_in_csv_may_have_commas_quotes_and_line_breaks() -> None:
    (row,) = rows_of("p.csv", 'prompt\n"A fox, a ""hare""\nand an owl"\n')
    assert read_request(row.value).prompt == 'A fox, a "hare"\nand an owl'


@pytest.mark.parametrize("name", ["p.txt", "p", "A red fox", "", "a.jsonl\nb"])
def test_other_suffixes_are_not_files_of_requests(name: str) -> None:
    assert file_reader(name) is None


def test_every_bad_row_is_named_in_one_error() -> None:
    values = [
        "good",
        "",
        5,
        {"seed": 1},
        {"prompt": "a", "sise": "1024*1024"},
        {"prompt": "a", "size": "9*9"},
        "x" * 2001,
    ]
    with pytest.raises(ValueError, match=r"^requests has 6 bad row\(s\) of 7; nothing was submitted") as caught:
        batch(values)
    for row, story in [
        (2, "prompt is ''"),
        (3, "the row is 5; it must be a prompt or an object"),
        (4, "prompt is missing"),
        (5, "'sise' is not a field of a request; the fields are prompt, size"),
        (6, "size is '9*9'; it must be one of 1024*1024"),
        (7, "prompt has 2001 characters"),
    ]:
        assert f"row {row}: {story}" in str(caught.value)


def test_many_bad_rows_are_counted_and_only_the_first_are_described_or_numbered() -> None:
    with pytest.raises(ValueError, match=r"^requests has 10000 bad row\(s\) of 10001") as caught:
        batch([{"prompt": "a", "seed": "x" * 10_000}] * 10_000 + ["good"])
    message = str(caught.value)
    assert message.count("seed is 'x") == 20
    assert "Also bad: rows 21, 22, " in message
    assert message.endswith(", 119, 120 and 9880 more.")
    assert len(message) < 12_000


def test_a_few_bad_rows_more_than_are_described_are_all_numbered() -> None:
    with pytest.raises(ValueError, match=r"\. row 1: .*Also bad: rows 21, 22\.$"):
        batch([{"prompt": "a", "seed": "x"}] * 22)


def test_rows_that_a_batch_cannot_number_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 1000000 rows"):
        checked(Row(number, None) for number in itertools.chain([1], itertools.count(1_000_000)))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('"a"\n\n{"prompt": \n"b"', 3),
        ('"a"\n[1]', 2),
        ('{"prompt": "a", "seed": 1.5}', 1),
        ('{"prompt": "a", "seed": true}', 1),
        ("[" * 100_000, 1),
    ],
)
def test_a_bad_line_is_named_by_its_line(content: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"row \d \(line {line}\): "):
        checked(rows_of("p.jsonl", content))


@pytest.mark.parametrize(
    ("content", "story"),
    [
        ("promt,size\na,\n", r"column 1 is not a field \(did you mean 'prompt'\?\), the column prompt is missing"),
        ("prompt,category\na,b\n", "column 2 is not a field"),
        ("prompt,nmae\na,b\n", r"column 2 is not a field \(did you mean 'name'"),
        ("prompt,size,prompt\na,,b\n", "column 3 repeats prompt"),
        ("prompt;size\na;\n", "separate the columns by commas"),
        ("", "the column prompt is missing"),
        ('prompt\n"a', "is not CSV at line 2"),
    ],
)
def test_a_csv_file_with_other_columns_is_refused(content: str, story: str) -> None:
    with pytest.raises(ValueError, match=story):
        rows_of("p.csv", content)


@pytest.mark.parametrize(
    "content",
    ["prompt\na\nprompt\nb\n", "prompt\na\n\ufeffprompt\nb\n", 'prompt,seed\na,1\n"prompt","seed"\nb,2\n'],
)
def test_the_headers_of_joined_files_are_not_drawn(content: str) -> None:
    with pytest.raises(ValueError, match=r"row 2 \(line 3\): the header again"):
        checked(rows_of("p.csv", content))


def test_a_csv_row_with_too_many_cells_is_a_bad_row() -> None:
    with pytest.raises(ValueError, match=r"row 2 \(line 3\): more cells than the header"):
        checked(rows_of("p.csv", "prompt,size\na,\nA fox, a hare,,\n"))


@pytest.mark.parametrize("content", ["{}", '"a"', "[", "", "[" * 100_000])
def test_a_json_file_without_an_array_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match="file of requests"):
        rows_of("p.json", content)


@given(
    st.lists(st.sampled_from(["fox", "hare", {"prompt": "fox", "seed": 1}, {"prompt": "hare", "seed": 2}]), max_size=20)
)
def test_no_two_images_of_a_batch_share_a_file_and_every_row_has_one(values: list[Any]) -> None:
    requests = batch(values)
    names = drawn(requests)
    assert len(names) == len(set(names))
    for number, value in enumerate(values):
        item = requests[number]
        assert item.request == read_request(value)
        if item.same_as is not None:
            assert requests[item.same_as].request == item.request
            assert requests[item.same_as].same_as is None


@given(st.text(min_size=1, max_size=50).filter(lambda text: not is_blank(text) and "\x00" not in text))
def test_every_prompt_goes_through_json_lines_unchanged(prompt: str) -> None:
    requests = checked(rows_of("p.jsonl", json.dumps({"prompt": prompt})))
    assert requests[0].request.prompt == prompt
