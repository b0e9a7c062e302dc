"""Each argument: which values are converted, which are refused, and how briefly a refusal shows them."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.batch.requests import read_request as read_row
from airflow_provider_qwenimage.contract import MAX_SEED, GenerateRequest
from airflow_provider_qwenimage.rules import arguments
from airflow_provider_qwenimage.rules.arguments import (
    ARGUMENTS,
    BATCH_ARGUMENTS,
    WAIT_ARGUMENTS,
    read_argument,
    read_request,
)
from airflow_provider_qwenimage.text.messages import shown

FLAGS = (
    *("wait_for_completion", "deferrable", "overwrite", "durable", "prompt_in_asset_events"),
    *("soft_fail", "never_fail", "log_statuses"),
)
SECONDS = ("poll_interval", "poke_interval", "timeout", "timeout_seconds", "retry_delay", "defer_after")
WHOLES = ("max_consecutive_failures", "max_image_bytes", "max_in_flight", "max_failures", "retry_limit")


class Size(str, Enum):  # noqa: UP042  what users have at hand, older than StrEnum
    WIDE = "1536*1024"


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no text for it")


class Level(int, Enum):
    HIGH = 7


class Minutes(int):
    """Like numpy's timedelta: an integer for Python, of an unknown unit."""

    dtype = SimpleNamespace(kind="m")


class Unwilling:
    def __index__(self) -> int:
        raise RuntimeError("no index today")


class Int64:
    """Like a number of numpy: not an int, but an index."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value

    def __repr__(self) -> str:
        return f"Int64({self._value})"


def refusal(name: str, value: object) -> str | None:
    """Return why a value is refused, or None if it is not."""
    try:
        read_argument(name, value)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["False", "true", "", 0, 1, 1.0, None, [], {}], ids=repr)
def test_only_true_and_false_are_flags(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be True or False"):
        read_argument(name, value)


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_are_numbers_or_timedeltas(name: str) -> None:
    for given_value, seconds in [(5, 5), (0.5, 0.5), (timedelta(minutes=1), 60.0), (Decimal("1.5"), 1.5)]:
        assert read_argument(name, given_value) == seconds


@pytest.mark.parametrize("name", [*SECONDS, "end_time"])
@pytest.mark.parametrize("value", ["1", "inf", True, math.inf, -math.inf, math.nan, 10**400, [5], Odd()], ids=type)
def test_other_seconds_are_refused_before_anything_is_submitted(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be (a number of epoch )?seconds"):
        read_argument(name, value)


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [-1, -0.5, 1e300, timedelta.max, timedelta(seconds=-1)], ids=str)
def test_seconds_that_no_clock_reaches_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        read_argument(name, value)


def test_only_a_sensor_and_a_hook_may_wait_for_no_time() -> None:
    assert WAIT_ARGUMENTS["timeout"]("timeout", 0) == 0
    with pytest.raises(ValueError, match="timeout is 0; it must be seconds above 0"):
        ARGUMENTS["timeout"]("timeout", 0)


@pytest.mark.parametrize("name", WHOLES)
def test_integers_of_any_kind_are_taken(name: str) -> None:
    for value in (3, 3.0, Int64(3), Decimal(3), Fraction(3)):
        read = read_argument(name, value)
        assert (read, type(read)) == (3, int)


@pytest.mark.parametrize("name", WHOLES)
@pytest.mark.parametrize(
    "value",
    [0.5, "3", True, None, -1, math.inf, math.nan, 2**63, Fraction(1, 2), Decimal("sNaN"), Decimal("1E+999999")],
)
def test_other_numbers_are_refused(name: str, value: object) -> None:
    with pytest.raises(
        ValueError, match=rf"^{name} is {re.escape(repr(value))}; it must be an integer of at least [01]"
    ):
        read_argument(name, value)


@pytest.mark.parametrize("name", [*SECONDS, *WHOLES, "seed", "max_credits", "end_time"])
def test_a_value_that_cannot_be_read_as_a_number_is_refused_by_name(name: str) -> None:
    for value in (Unwilling(), Decimal("sNaN")):
        with pytest.raises(ValueError, match=f"^{name} is .*; it must be "):
            read_argument(name, value)


@pytest.mark.parametrize("name", [*SECONDS, "max_credits", "end_time"])
def test_a_number_of_an_unknown_unit_is_not_taken_for_seconds(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is 5; it must be "):
        read_argument(name, Minutes(5))


def test_infinite_credits_are_no_limit() -> None:
    assert [read_argument("max_credits", value) for value in (None, math.inf, 0, 7.5, Decimal(5))] == [
        None,
        None,
        0,
        7.5,
        5.0,
    ]


@pytest.mark.parametrize("value", ["100", True, -1, math.nan, [], 10**400], ids=str)
def test_other_credits_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="^max_credits is .*; it must be a number of credits of at least 0, or None"):
        read_argument("max_credits", value)


def test_a_folder_may_be_a_path() -> None:
    assert read_argument("output_path", Path("/data/x")) == "/data/x"
    assert read_argument("output_path", PurePosixPath("images")) == "images"
    assert read_argument("output_path", "s3://bucket/x") == "s3://bucket/x"
    assert read_argument("output_path", None) is None


@pytest.mark.parametrize(
    "value", ["", " ", "\n", "\ufeff", 5, True, b"/data", ["/data"], Path("/data/a.png"), "a\x00b", "\ud83d", "s3://"]
)
def test_a_value_that_is_not_a_folder_is_refused(value: object) -> None:
    for readers in (ARGUMENTS, BATCH_ARGUMENTS):
        with pytest.raises(ValueError, match="^output_path is .*; it must "):
            readers["output_path"]("output_path", value)


def test_a_batch_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="output_path is None"):
        BATCH_ARGUMENTS["output_path"]("output_path", None)


def test_an_image_task_id_is_taken_in_the_form_that_can_be_stored() -> None:
    for task_id, read in [(" n43abc\n", "n43abc"), ("a\nb", "urlencoded:a%0Ab"), ("a\x00", "urlencoded:a%00")]:
        assert read_argument("image_task_id", task_id) == read
        assert read_argument("image_task_id", read) == read


def test_a_connection_id_loses_the_line_break_of_a_template() -> None:
    assert read_argument("qwenimage_conn_id", " my_qwen\n") == "my_qwen"


@pytest.mark.parametrize("name", ["qwenimage_conn_id", "image_task_id"])
@pytest.mark.parametrize("value", [None, "", "  ", 5, b"x", "x" * 501, "\udc00", ["x"]], ids=ascii)
def test_ids_are_texts_that_can_be_stored(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*; it must "):
        read_argument(name, value)


@pytest.mark.parametrize(
    "value",
    [
        (prompt for prompt in ("A fox", "A hare")),
        iter(["A fox"]),
        map(str, [1]),
        {"A fox"},
        frozenset({"A fox"}),
        iter({"A fox": 1}.keys()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_requests_that_are_not_the_same_at_each_parse_are_refused_with_the_reason(value: object) -> None:
    with pytest.raises(ValueError, match=r"^requests is a \w+, (so Airflow would create|which has no order)"):
        read_argument("requests", value)


@pytest.mark.parametrize("value", [None, 5, True, b"p.csv", {"prompt": "A fox"}], ids=repr)
def test_a_value_that_is_not_a_list_of_requests_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^requests is .*; it must be a list"):
        read_argument("requests", value)


def test_requests_may_be_a_list_a_tuple_or_a_path() -> None:
    assert read_argument("requests", ["A fox"]) == ["A fox"]
    assert read_argument("requests", ("A fox",)) == ("A fox",)
    assert read_argument("requests", Path("/data/p.csv")) == "/data/p.csv"


ROWS: list[tuple[dict[str, Any], GenerateRequest]] = [
    ({"prompt": "A fox", "seed": 7.0}, GenerateRequest(prompt="A fox", seed=7)),
    ({"prompt": "A fox", "seed": "7"}, GenerateRequest(prompt="A fox", seed=7)),
    ({"prompt": "A fox", "seed": " 7.0 "}, GenerateRequest(prompt="A fox", seed=7)),
    ({"prompt": "A fox", "seed": Int64(7)}, GenerateRequest(prompt="A fox", seed=7)),
    ({"prompt": "A fox", "seed": -1.0}, GenerateRequest(prompt="A fox")),
    ({"prompt": "A fox", "seed": None}, GenerateRequest(prompt="A fox")),
    ({"prompt": "A fox", "seed": ""}, GenerateRequest(prompt="A fox")),
    ({"prompt": "A fox", "size": None, "output_format": "", "callback_url": " "}, GenerateRequest(prompt="A fox")),
    ({"prompt": "A fox", "size": Size.WIDE}, GenerateRequest(prompt="A fox", size="1536*1024")),
    ({"prompt": 1984}, GenerateRequest(prompt="1984")),
    ({"prompt": Fraction(1984)}, GenerateRequest(prompt="1984")),
    ({"prompt": Level.HIGH, "seed": Level.HIGH}, GenerateRequest(prompt="7", seed=7)),
    # More digits than a float can have.
    ({"prompt": "A fox", "seed": Decimal(2**53 + 1)}, GenerateRequest(prompt="A fox", seed=2**53 + 1)),
    ({"prompt": "A fox", "seed": Fraction(2**53 + 1)}, GenerateRequest(prompt="A fox", seed=2**53 + 1)),
    ({"prompt": "A fox", "seed": "\ufeff", "size": "\u200b"}, GenerateRequest(prompt="A fox")),
    # An emoji of several characters, two of which are invisible by themselves.
    ({"prompt": "\u2764\ufe0f\u200d\U0001f525"}, GenerateRequest(prompt="\u2764\ufe0f\u200d\U0001f525")),
    ({"prompt": "1984", "seed": MAX_SEED}, GenerateRequest(prompt="1984", seed=MAX_SEED)),
]


@pytest.mark.parametrize(("row", "request_"), ROWS, ids=lambda value: repr(value)[:60])
def test_a_row_means_the_same_in_a_batch_and_for_an_operator(row: dict[str, Any], request_: GenerateRequest) -> None:
    assert read_row(row) == read_request(row) == request_
    assert {type(value) for value in request_.payload().values()} <= {str, int}
    assert {name: read_argument(name, value) for name, value in row.items()} == {
        name: getattr(request_, name) for name in row
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", None),
        ("prompt", ""),
        ("prompt", " \n"),
        *[
            ("prompt", text)
            for text in ("\u200b", "\ufeff", "\x1a", "\u00ad", "\u2800", "\u3164", "\u200d\ufe0f", "\u180e \u2060")
        ],
        ("prompt", Decimal("sNaN")),
        ("prompt", True),
        ("prompt", math.nan),
        ("prompt", 10**5000),
        ("prompt", ["A fox"]),
        ("prompt", b"A fox"),
        ("prompt", "x" * 3_000_000),
        ("prompt", "A fox \ud83d"),
        ("prompt", "A fox\x00"),
        ("seed", 7.5),
        ("seed", Decimal("7.00000000000000000001")),
        ("seed", "7.5"),
        ("seed", "seven"),
        ("seed", "None"),
        ("seed", True),
        ("seed", -2),
        ("seed", MAX_SEED + 1),
        ("seed", math.nan),
        ("seed", math.inf),
        ("seed", "9" * 5000),
        ("seed", [7]),
        ("size", "1024x1024"),
        ("size", 1024),
        ("size", ["1024*1024"]),
        ("output_format", "PNG "),
        ("output_format", {}),
        ("callback_url", "example.com"),
        ("callback_url", "https://a.example/" + "x" * 3_000_000),
        ("callback_url", "https://a.example/\ud83d"),
    ],
    ids=lambda value: shown(value)[:30],
)
def test_a_bad_field_is_refused_alike_by_a_batch_and_an_operator(name: str, value: object) -> None:
    row = {"prompt": "A fox"} | {name: value}
    messages = []
    for read in (lambda: read_row(row), lambda: read_request(row), lambda: read_argument(name, value)):
        with pytest.raises(ValueError, match=rf"^{name} .*it must ") as caught:
            read()
        messages.append(str(caught.value))
    assert len(set(messages)) == 1
    assert len(messages[0]) < 600
    assert messages[0].isascii() or "…" in messages[0]


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
@pytest.mark.parametrize("value", ["x" * 3_000_000, ["x" * 3_000_000], b"x" * 3_000_000, Odd()], ids=type)
def test_a_bad_value_is_shown_short(name: str, value: object) -> None:
    message = refusal(name, value)
    assert message is None or (message.startswith(name) and len(message) < 700)


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.timedeltas(),
    lambda parts: st.lists(parts, max_size=2) | st.dictionaries(st.text(max_size=3), parts, max_size=2),
    max_leaves=3,
)


@given(st.sampled_from(sorted(ARGUMENTS)), ANYTHING)
def test_any_value_is_refused_by_name_or_read_and_reading_the_result_again_changes_nothing(
    name: str, value: object
) -> None:
    message = refusal(name, value)
    if message is None:
        read = read_argument(name, value)
        assert read_argument(name, read) == read
    else:
        assert message.startswith(name)


def test_the_table_has_every_argument_of_every_class() -> None:
    from airflow_provider_qwenimage.hooks import QwenImageHook
    from airflow_provider_qwenimage.operators import QwenImageBatchOperator, QwenImageGenerateOperator
    from airflow_provider_qwenimage.sensors import QwenImageStatusSensor

    classes: tuple[Any, ...] = (
        QwenImageGenerateOperator,
        QwenImageBatchOperator,
        QwenImageStatusSensor,
        QwenImageHook,
    )
    for each in classes:
        own = {
            name
            for name, parameter in inspect.signature(each.__init__).parameters.items()
            if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
        }
        assert own <= set(arguments.ARGUMENTS), each


@pytest.mark.parametrize(
    "arguments",
    [
        {"retry_delay": "1"},
        {"retry_delay": -1},
        {"retry_limit": 0.5},
        {"retry_limit": True},
        {"timeout_seconds": math.inf},
        {"timeout_seconds": "30"},
        {"qwenimage_conn_id": ""},
    ],
    ids=str,
)
def test_a_hook_refuses_a_bad_argument_in_its_constructor(arguments: dict[str, Any]) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook

    (name,) = arguments
    for hook in (QwenImageHook, QwenImageAsyncHook):
        with pytest.raises(ValueError, match=f"^{name} is .*; it must be "):
            hook(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "A fox \ud83d"},
        {"prompt": "A fox\x00"},
        {"prompt": "x" * 3_000_000},
        {"prompt": None},
        {"prompt": "A fox", "seed": 7.5},
        {"prompt": "A fox", "callback_url": "https://a.example/\ud83d"},
    ],
    ids=lambda arguments: ascii(arguments)[:40],
)
def test_a_hook_refuses_a_bad_request_before_it_looks_for_its_connection(arguments: dict[str, Any]) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook

    name = list(arguments)[-1]
    with pytest.raises(ValueError, match=f"^{name} .*it must "):
        QwenImageHook("nobody").generate(**arguments)
    with pytest.raises(ValueError, match=f"^{name} .*it must "):
        asyncio.run(QwenImageAsyncHook("nobody").generate(**arguments))


@pytest.mark.parametrize("arguments", [{"timeout": math.inf}, {"timeout": "5"}, {"poll_interval": math.nan}], ids=str)
def test_a_wait_of_a_hook_refuses_a_bad_argument_before_it_asks(arguments: dict[str, Any]) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageHook

    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name} is "):
        QwenImageHook("nobody").wait_for_completion("n43abc", **arguments)


@pytest.mark.parametrize(
    "arguments", [{"poll_interval": "5"}, {"end_time": math.inf}, {"max_consecutive_failures": 0.5}]
)
def test_a_trigger_refuses_a_bad_argument_in_its_constructor(arguments: dict[str, Any]) -> None:
    from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger

    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name} is "):
        QwenImageStatusTrigger("n43abc", **arguments)


def test_a_trigger_serializes_numbers_as_types_that_airflow_can_store() -> None:
    from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger

    _, stored = QwenImageStatusTrigger(
        "n43abc", poll_interval=Decimal(5), max_consecutive_failures=Int64(3)
    ).serialize()
    assert (type(stored["poll_interval"]), type(stored["max_consecutive_failures"])) == (float, int)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, None),
        ("", None),
        (" \n", None),
        ("\u200b", None),
        ("sku-1042 front", "sku-1042 front"),
        (" fox\n", "fox"),
        (1, "1"),
        (2.5, "2.5"),
        (Level.HIGH, "7"),
        ("Fuchs im Gr\u00fcnen", "Fuchs im Gr\u00fcnen"),
        ("Fu\u0308chse", "F\u00fcchse"),
        ("\u7d05\u3044\u72d0", "\u7d05\u3044\u72d0"),
        ("v1.2 (final), a+b=c & more!", "v1.2 (final), a+b=c & more!"),
        ("manifesto", "manifesto"),
        ("fox-2", "fox-2"),
        ("console", "console"),
        ("x" * 150, "x" * 150),
    ],
    ids=ascii,
)
def test_an_image_name_is_a_text_or_a_number_with_one_spelling(value: object, name: str | None) -> None:
    read = read_argument("image_name", value)
    assert read == name
    assert type(read) in (str, type(None))


@pytest.mark.parametrize("character", ["/", "\\", ":", "*", "?", '"', "<", ">", "|", "#", "%", "[", "]"])
def test_a_character_that_storage_or_windows_misread_is_refused_in_an_image_name(character: str) -> None:
    for value in (f"a{character}b", f"{character}b", f"a{character}"):
        with pytest.raises(
            ValueError, match=f"^image_name is {re.escape(repr(value))}; it must be a file name without"
        ):
            read_argument("image_name", value)


@pytest.mark.parametrize(
    ("value", "story"),
    [
        (".hidden", "with no dot at its beginning"),
        ("..", "with no dot at its beginning"),
        ("fox.", "with no dot at its beginning or end"),
        ("a\nb", "printable characters"),
        ("a\x00b", "printable characters"),
        ("a\u202eb", "printable characters"),
        ("\ud83d", "printable characters"),
        ("x" * 151, "at most 150 bytes"),
        ("\u72d0" * 51, "at most 150 bytes"),
        ("x" * 3_000_000, "at most 150 bytes"),
        ("fox.jpg", "without .jpg, because the suffix is added"),
        ("fox.JPEG", "without .JPEG, because"),
        ("fox.png", "without .png, because"),
        ("fox.webp", "without .webp, because"),
        ("fox.json", "without .json, because"),
        ("Manifest", "reserved"),
        ("manifest-3", "reserved"),
        ("fox.refused", "reserved"),
        ("fox.Refused-2", "reserved"),
        ("con", "reserved"),
        ("NUL.2", "reserved"),
        (True, "a file name"),
        (math.nan, "a file name"),
        (b"fox", "a file name"),
        (["fox"], "a file name"),
        (10**5000, "a file name"),
    ],
    ids=lambda value: shown(value)[:30].encode("ascii", "backslashreplace").decode(),
)
def test_an_image_name_that_no_file_should_have_is_refused_with_the_reason(value: object, story: str) -> None:
    with pytest.raises(ValueError, match=f"^image_name is .*; it must be .*{re.escape(story)}") as caught:
        read_argument("image_name", value)
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


@given(st.text(max_size=60))
def test_an_image_name_that_is_accepted_is_one_file_name_on_every_storage(value: str) -> None:
    try:
        name = read_argument("image_name", value)
    except ValueError:
        return
    if name is None:
        return
    for path in (PurePosixPath("/folder"), PureWindowsPath("C:/folder")):
        assert (path / f"{name}.jpg").parent == path
        assert (path / f"{name}.jpg").stem == name
    assert not PureWindowsPath(f"{name}.jpg").is_reserved()
    assert read_argument("image_name", name) == name, "it is stable"
    assert len(f".{name}.refused.jpeg.{'0' * 16}-{'0' * 32}.part".encode()) <= 255
