"""Files of requests with any content: a file is read completely or refused with a short error, before any payment."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from airflow_provider_qwenimage.batch.requests import BatchRequests
from airflow_provider_qwenimage.rules.answers import submission_call
from airflow_provider_qwenimage.rules.request_rows import file_reader
from tests.fuzz.junk import KEY, json_bytes, json_values, mutated, texts
from tests.fuzz.storable import check_message, check_storable

_ROW = {
    "prompt": "a fox",
    "size": "1024*1024",
    "seed": 7,
    "output_format": "png",
    "callback_url": "https://hooks.example/1",
}
_MOST_ROW_BYTES = 16 * 1024
_NAMES = ("requests.jsonl", "requests.ndjson", "requests.json", "requests.csv", "S3://bucket/Requests.JSONL")
_CELLS = st.one_of(
    texts(),
    st.sampled_from(("a fox", "7", "7.0", "-1", "", "None", "1024*1024", "png", '"', "\r", 'a"b', "x" * 140_000)),
)


@st.composite
def _json_lines(draw: st.DrawFn) -> bytes:
    rows = st.one_of(mutated(_ROW), st.text(max_size=20), json_values())
    lines = draw(st.lists(json_bytes(rows), max_size=6))
    return draw(st.sampled_from((b"\n", b"\r\n", b"\n\n", b"\r", b"\xe2\x80\xa8"))).join(lines)


@st.composite
def _csv(draw: st.DrawFn) -> bytes:
    header = draw(st.one_of(st.permutations(list(_ROW)), st.lists(texts(), max_size=4)))
    rows = draw(st.lists(st.lists(_CELLS, min_size=1, max_size=6), max_size=5))
    stream = io.StringIO()
    with contextlib.suppress(csv.Error):
        dialect: Any = draw(st.sampled_from(("excel", "excel-tab", "unix")))
        csv.writer(stream, dialect).writerows([list(header), *rows])
    return stream.getvalue().encode(draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-8"))), "surrogatepass")


def files() -> st.SearchStrategy[tuple[str, bytes]]:
    """Return names and contents of files of requests."""
    array = json_bytes(st.lists(st.one_of(mutated(_ROW), json_values()), max_size=5))
    return st.tuples(st.sampled_from(_NAMES), st.one_of(_json_lines(), _csv(), array, st.binary(max_size=100)))


@contextlib.contextmanager
def prepare() -> Iterator[Callable[[tuple[str, bytes]], None]]:
    """Yield the check of one file."""

    def check(file: tuple[str, bytes]) -> None:
        name, content = file
        read = file_reader(name)
        assert read is not None
        try:
            requests = BatchRequests(read(io.BytesIO(content)))
        except UnicodeError as error:
            raise AssertionError("an error of the decoder, which does not name the file") from error
        except ValueError as error:
            check_message(error)
            return
        with contextlib.closing(requests):
            for number in range(len(requests)):
                payload = requests[number].request.payload()
                check_storable(_without_key_check(payload), _MOST_ROW_BYTES)
                submission_call(requests[number].request)

    yield check


def _without_key_check(payload: dict[str, Any]) -> dict[str, Any]:
    """Return a request without the key, which may be part of a prompt in the file."""
    without: dict[str, Any] = json.loads(json.dumps(payload).replace(json.dumps(KEY)[1:-1], "***"))
    return without
