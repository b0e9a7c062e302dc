"""Files that contain no requests: refused within bounds, by position and kind, without being quoted."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import traceback
import tracemalloc
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.batch.requests import BatchRequests, read_list
from airflow_provider_qwenimage.rules.request_rows import (
    MAX_FILE_BYTES,
    MAX_JSON_BYTES,
    MAX_ROW_BYTES,
    file_reader,
    shown_source,
)
from airflow_provider_qwenimage.text.messages import is_blank

SECRET = "hunter2-5d0c"
NAMES = ["r.jsonl", "r.json", "r.csv"]
of_every_format = pytest.mark.parametrize("name", NAMES)


def read(name: str, content: bytes | str | io.RawIOBase) -> BatchRequests:
    reader = file_reader(name)
    assert reader is not None
    stream = io.BytesIO(content.encode("utf-8", "surrogatepass")) if isinstance(content, str) else content
    return BatchRequests(reader(cast("Any", io.BytesIO(stream) if isinstance(stream, bytes) else stream)))


def refused(name: str, content: bytes | str | io.RawIOBase) -> str:
    """Return the error, after checking that neither it nor its causes contain the secret."""
    with pytest.raises(ValueError, match="requests") as caught:
        read(name, content).close()
    link: BaseException | None = caught.value
    while link is not None:
        assert SECRET not in f"{link!r} {vars(link)} {link.args}"
        assert not isinstance(link, UnicodeError | json.JSONDecodeError), "these hold the text"
        link = link.__cause__ or link.__context__
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 15_000
    return message


class Endless(io.RawIOBase):
    """A stream without an end."""

    def __init__(self, part: bytes, beginning: bytes = b"") -> None:
        self._part = part
        self._beginning = beginning
        self.read_bytes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "it would never end"
        beginning, self._beginning = self._beginning, b""
        data = beginning or (self._part * (size // len(self._part) + 1))[:size]
        self.read_bytes += len(data)
        return data


@of_every_format
@pytest.mark.parametrize(
    "content",
    [
        SECRET,
        f'{{"password": "{SECRET}"}}',
        f'{{"{SECRET}": 1}}',
        f'{{"prompt": "{SECRET}", "{SECRET}": 1}}',
        f"root:{SECRET}:0:0:root:/root:/bin/bash\nnext\n",
        f'["a", {{"prompt": "b", "size": "{SECRET}"}}]',
        f'["{SECRET}", {{"prompt": ["{SECRET}"]}}]',
        f'{{"prompt": "a", "size": "{SECRET}"}}',
        f'{{"prompt": "a", "seed": "{SECRET}"}}',
        f'{{"prompt": "a", "callback_url": "{SECRET}"}}',
        f'{{"prompt": "a", "name": "{SECRET}/{SECRET}"}}',
        f'{{"prompt": "a", "output_format": {{"{SECRET}": 1}}}}',
        f'{{"prompt": "{SECRET * 400}"}}',
        f'"{SECRET}',
        f'["{SECRET}"',
        f'{{"prompt": "{SECRET}" "{SECRET}"}}',
        f'"{SECRET}\\x"',
        f'"{SECRET}\n"',
        f"prompt,{SECRET}\na,b\n",
        f"prompt,size\na,{SECRET}\n",
        f'prompt\n"a{SECRET}\n',
        f'prompt\n"{SECRET}"x\n',
        f"prompt\na,{SECRET}\n",
        f"{SECRET}\x00",
        f"prompt\n{SECRET}\udc80",
        SECRET.encode("utf-16"),
        SECRET.encode("utf-16-le"),
        SECRET.encode("utf-32"),
        f"é{SECRET}".encode("latin-1"),
    ],
)
def test_a_file_that_contains_no_requests_is_not_quoted(name: str, content: str | bytes) -> None:
    assert refused(name, content)


@pytest.mark.parametrize(
    ("name", "content", "story"),
    [
        ("r.jsonl", '"a"\n{prompt: "b"}\n', r"row 2 \(line 2\): not JSON at column 2: Expecting property name"),
        ("r.jsonl", '"a"\n\n  {"prompt" "b"}\n', r"row 2 \(line 3\): not JSON at column 13: Expecting ':' delimiter"),
        ("r.jsonl", '{"prompt": "a", "seed": NaN}', "not JSON: NaN or Infinity"),
        ("r.jsonl", '{"prompt": "a", "seed": -Infinity}', "not JSON: NaN or Infinity"),
        ("r.jsonl", '{"prompt": "a", "prompt": "b"}', "an object with the same key twice"),
        ("r.jsonl", '{"prompt": "a", "size": {"a": 1, "a": 2}}', "an object with the same key twice"),
        ("r.jsonl", f'{{"prompt": "a", "seed": {"9" * 5000}}}', "a number of too many digits"),
        ("r.jsonl", f'{{"prompt": {"[" * 50_000}', "nested too deeply"),
        ("r.jsonl", '{"prompt": "a", "seed": 1e400}', "seed is a number; it must be -1"),
        ("r.jsonl", '{"prompt": "a", "size": "9*9"}', "size is a text of 3 characters; it must be one of 1024"),
        ("r.jsonl", '{"prompt": "a", "seed": true}', "seed is true or false; it must be -1"),
        ("r.jsonl", '{"prompt": [1], "seed": "x"}', "prompt is an array; .*seed is a text of 1 characters"),
        ("r.jsonl", '{"promt": "a"}', r"1 key\(s\) are not fields of a request \(did you mean 'prompt'\?\)"),
        ("r.jsonl", "null", "the row is null; it must be"),
        ("r.json", '["a",\n  {"prompt": }\n]', "is not JSON at line 2, column 14: Expecting value"),
        ("r.json", '{"requests": []}', "contains an object; it must be an array"),
        ("r.json", '["a", 7]', "row 2: the row is a number; it must be"),
        ("r.json", "", "is not JSON at line 1, column 1"),
        ("r.csv", 'prompt\na\n"b" c\n', "is not CSV at line 3"),
        ("r.csv", "prompt,size\na\nb,9\n", r"row 2 \(line 3\): size is a text"),
        ("r.csv", f'prompt\n"{"x" * 140_000}"\n', "is not CSV at line 2: field larger"),
    ],
)
def test_a_problem_is_described_by_its_position_and_kind(name: str, content: str, story: str) -> None:
    with pytest.raises(ValueError, match=story):
        read(name, content).close()


@of_every_format
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b'"a"', mtime=0), "compressed (gzip)"),
        (bz2.compress(b'"a"'), "compressed (bzip2)"),
        (lzma.compress(b'"a"'), "compressed (xz)"),
        (b"PK\x03\x04rest", "a ZIP archive or a spreadsheet"),
        ('"a"'.encode("utf-16"), "text in UTF-16"),
        ('"a"'.encode("utf-32"), "text in UTF-32"),
        (b'"a\n\xc3\xa4b\xff"', "is not text in UTF-8 at line 2, column 3"),
        (b'"a\r\n\n\xff"', "is not text in UTF-8 at line 3, column 1"),
        (b'"a\rb\x00"', "has a NUL character, so it is not text in UTF-8, at line 2, column 2"),
        ('"a"'.encode("utf-16-le"), "has a NUL character"),
    ],
)
def test_a_file_that_is_not_utf_8_is_named_by_its_kind(name: str, content: bytes, kind: str) -> None:
    assert kind in refused(name, content)


@of_every_format
@pytest.mark.parametrize("odd", [r"\ud83d", r"\udc00 a", r"\u0000", r"\ud83d\ud83d"])
def test_a_text_that_a_manifest_cannot_contain_is_refused_before_the_first_credit(name: str, odd: str) -> None:
    row = f'{{"prompt": "a fox {odd}"}}'
    # CSV has no escapes, so half of a character cannot even be written in UTF-8.
    raw = json.loads(f'"{odd}"')
    content = {"r.jsonl": f'"a"\n{row}\n', "r.json": f'["a", {row}]', "r.csv": f"prompt\na\na fox {raw}\n"}[name]
    message = refused(name, content)
    assert "row 2" in message or "line 3" in message


@pytest.mark.parametrize("field", ["prompt", "size", "output_format", "callback_url"])
def test_half_of_a_character_is_refused_in_every_field_and_in_lists_too(field: str) -> None:
    value = "https://a.example/\ud83d" if field == "callback_url" else "\ud83d"
    rows = [{"prompt": "a"} | {field: value}]
    for values in (rows, json.dumps(rows)):
        with pytest.raises(ValueError, match=field) as caught:
            BatchRequests(read_list(values))
        assert str(caught.value).encode()
    assert field in refused("r.json", json.dumps(rows))


@pytest.mark.parametrize("seed", [2**63, 10**30, 1e19, "9" * 30])
def test_a_seed_beyond_64_bits_is_refused(seed: object) -> None:
    assert "seed" in refused("r.jsonl", json.dumps({"prompt": "a", "seed": seed}))


@pytest.mark.parametrize(
    ("name", "endless", "most_bytes"),
    [
        ("r.jsonl", Endless(b"\xf0\x9f\xa6\x8a"), 3 * MAX_ROW_BYTES),
        ("r.jsonl", Endless(b"a"), 3 * MAX_ROW_BYTES),
        ("r.jsonl", Endless(b"\x00"), 3 * MAX_ROW_BYTES),
        ("r.json", Endless(b" "), 2 * MAX_JSON_BYTES),
        ("r.csv", Endless(b"a"), 3 * MAX_ROW_BYTES),
        ("r.csv", Endless(b"a,"), 3 * MAX_ROW_BYTES),
        ("r.csv", Endless(b"a\n", b'prompt\n"'), 3 * MAX_ROW_BYTES),
        ("r.csv", Endless(b'a\n","', b'prompt\n"'), 3 * MAX_ROW_BYTES),
    ],
)
def test_reading_a_file_without_an_end_stops_at_a_bound(name: str, endless: Endless, most_bytes: int) -> None:
    tracemalloc.start()
    try:
        refused(name, endless)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert endless.read_bytes <= most_bytes
    assert peak < most_bytes + 32 * MAX_ROW_BYTES


@pytest.mark.parametrize(("name", "part"), [("r.jsonl", b"\n"), ("r.csv", b"\n")])
def test_reading_empty_lines_without_an_end_stops_at_a_bound(
    name: str, part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_FILE_BYTES >= 1_000_000 * 2000, "a million prompts"
    monkeypatch.setattr("airflow_provider_qwenimage.rules.request_rows.MAX_FILE_BYTES", 1_000_000)
    assert " bytes" in refused(name, Endless(part, b"" if name == "r.jsonl" else b"prompt\n"))


def test_thousands_of_bad_rows_make_a_short_error_and_take_no_memory() -> None:
    class Bad(io.RawIOBase):
        rows = (b'{"prompt": "' + SECRET.encode() + b'", "size": 1}\n') * 1000
        left = 5

        def read(self, size: int = -1) -> bytes:
            del size
            self.left -= 1
            return self.rows if self.left >= 0 else b""

    tracemalloc.start()
    try:
        message = refused("r.jsonl", Bad())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message.startswith("requests has 5000 bad row(s) of 5000")
    assert message.endswith("and 4880 more.")
    assert len(message) < 5000
    assert peak < 4_000_000


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@of_every_format
def test_every_line_end_and_a_byte_order_mark_are_read(name: str, mark: bytes, ending: str) -> None:
    lines = {
        "r.jsonl": ['"a"', "", '{"prompt": "b"}'],
        "r.json": ["[", '"a",', '{"prompt": "b"}', "]"],
        "r.csv": ["prompt,size", "a,", 'b,""'],
    }[name]
    requests = read(name, mark + ending.join(lines).encode())
    assert [requests[number].request.prompt for number in range(len(requests))] == ["a", "b"]
    requests.close()


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(
            lambda text: not (is_blank(text) or text.lstrip("\ufeff") == "prompt")  # A CSV refuses a second header.
        ),
        min_size=1,
    ),
    st.integers(1, 9),
)
def test_rows_do_not_depend_on_the_size_of_the_pieces_that_are_read(prompts: list[str], size: int) -> None:
    class Pieces(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(size)

    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerows([["prompt"], *[[prompt] for prompt in prompts]])
    lines = "\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts)
    for name, content in [("r.jsonl", lines), ("r.csv", written.getvalue())]:
        requests = read(name, cast("Any", Pieces(content.encode())))
        assert [requests[number].request.prompt for number in range(len(requests))] == prompts
        requests.close()


@given(st.sampled_from(NAMES), st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_whatever_is_in_a_file_it_is_read_or_refused(name: str, content: bytes) -> None:
    refusal, requests = "", None
    try:
        requests = read(name, content)
    except ValueError as error:
        refusal = str(error)
    assert len(refusal.encode()) < 15_000
    if requests is not None:
        for number in range(len(requests)):
            assert json.dumps(requests[number].request.payload(), ensure_ascii=False).encode()
        requests.close()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/data/r.jsonl", "'/data/r.jsonl'"),
        ("s3://aws_default@bucket/r.jsonl", "'s3://aws_default@bucket/r.jsonl'"),
        (f"https://user:{SECRET}@a.example/r.csv?X-Amz-Signature={SECRET}#x", "'https://user:***@a.example/r.csv'"),
        (f"https://[{SECRET}", "a URL that cannot be read"),
    ],
)
def test_a_source_is_shown_without_its_credentials(source: str, shown: str) -> None:
    assert shown_source(source) == shown
