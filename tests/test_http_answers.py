"""The bytes of an answer mean the same however they are cut, and never fill the memory."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.http_answers import (
    MAX_HEADER_BYTES,
    AnswerHead,
    AnswerReader,
    UnreadableAnswerError,
    decoded_body,
)

BODY = b'{"code": 200}'
WHOLE = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + BODY,
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + BODY + b"more",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"
    + BODY[:5]
    + b"\r\n8\r\n"
    + BODY[5:]
    + b"\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
]


def read(pieces: list[bytes]) -> tuple[AnswerReader, bytes]:
    reader, body = AnswerReader(), b""
    for piece in pieces:
        body += reader.feed(piece)
    return reader, body + reader.feed_eof()


@given(st.sampled_from(WHOLE), st.lists(st.integers(0, 150), max_size=6))
def test_an_answer_is_the_same_however_it_is_cut(whole: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    reader, body = read([whole[start:end] for start, end in itertools.pairwise(edges)])
    assert reader.head is not None
    assert (reader.head.status, body) == (200, BODY)


LINES = st.lists(
    st.sampled_from(
        [
            b"Content-Length: 13",
            b"content-length:13",
            b"Content-Length: 013",
            b"Content-Length: 13 ",
            b"Content-Length: 12",
            b"Content-Length: +13",
            b"Content-Length: 13, 13",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: chunked",
            b"Connection: close",
            b"Connection: Keep-Alive",
            b"Connection: upgrade",
            b"Upgrade: h2c",
            b"X-Empty:",
            b"X-Empty: ",
            b"X-Odd:\ta\t",
            b"X-Odd: caf\xc3\xa9",
            b"X Odd: a",
            b": a",
            b" folded",
            b"X_Odd: a  b",
        ]
    ),
    max_size=4,
)


@given(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 200",
            b"HTTP/1.0 200 OK",
            b"HTTP/1.1 204 No",
            b"HTTP/1.1 304 Not",
            b"HTTP/1.1 101 Up",
        ]
    ),
    LINES,
)
def test_an_answer_is_read_alike_at_once_and_in_pieces(status: bytes, lines: list[bytes]) -> None:
    whole = b"\r\n".join([status, *lines, b"", BODY])

    def outcome(*pieces: bytes) -> object:
        try:
            reader, body = read(list(pieces))
        except UnreadableAnswerError as error:
            return str(error)
        return reader.head, body, reader.keeps_open

    assert outcome(whole) == outcome(whole[:3], whole[3:])


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_one_error(noise: bytes) -> None:
    for first in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        with contextlib.suppress(UnreadableAnswerError):
            assert read([first + noise])[0].is_complete


@pytest.mark.parametrize("whole", WHOLE)
def test_a_connection_stays_open_only_after_a_whole_answer_and_nothing_else(whole: bytes) -> None:
    reader = AnswerReader()
    reader.feed(whole)
    assert reader.keeps_open is (not whole.endswith(b"more") and b"HTTP/1.1" in whole)


def test_headers_without_an_end_are_given_up() -> None:
    with pytest.raises(UnreadableAnswerError, match="Receive buffer too long"):
        read([b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * (2 * MAX_HEADER_BYTES // 6)])


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_interim_answers_without_an_end_are_given_up(at_once: int) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    with pytest.raises(UnreadableAnswerError, match=f"headers are longer than {MAX_HEADER_BYTES} bytes"):
        read([interim * at_once] * (10_000 // at_once))


def test_a_hundred_interim_answers_are_skipped_and_a_long_body_does_not_count_as_headers() -> None:
    body = b" " * (2 * MAX_HEADER_BYTES)
    whole = b"HTTP/1.1 102 Processing\r\n\r\n" * 100 + b"HTTP/1.1 200 OK\r\n\r\n" + body
    assert read([whole])[1] == body


def test_a_repeated_header_has_both_values() -> None:
    reader = AnswerReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nVia: a\r\nVia: R\xe9seau\r\n\r\n")
    assert reader.head == AnswerHead(200, {"via": "a, R\N{REPLACEMENT CHARACTER}seau"})


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_a_small_body_cannot_fill_the_memory(compress: object) -> None:
    assert callable(compress)
    coding = "gzip" if compress is gzip.compress else "deflate"
    bomb = compress(b"\0" * 50_000_000)
    twice = compress(bomb)
    tracemalloc.start()
    try:
        for body, codings in ((bomb, coding), (twice, f"{coding}, {coding}")):
            assert len(decoded_body(AnswerHead(200, {"content-encoding": codings}), body, 1024 * 1024)) > 1024 * 1024
        assert tracemalloc.get_traced_memory()[1] < 20 * 1024 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", [b"", b"x"], ids=["empty", "of a byte"])
def test_a_body_of_very_many_parts_is_not_decoded_to_its_end(part: bytes) -> None:
    head = AnswerHead(200, {"content-encoding": "gzip"})
    assert decoded_body(head, gzip.compress(part) * 1000, 1024 * 1024) == part * 1000
    with pytest.raises(UnreadableAnswerError, match="more than 1000 parts"):
        decoded_body(head, gzip.compress(part) * 1001, 1024 * 1024)


@pytest.mark.parametrize("size", [0, 1, 16 * 1024 - 1, 16 * 1024, 100_000])
@pytest.mark.parametrize("behind", [b"", b"\0", b"\x1f", b"\0" * 50_000])
def test_parts_are_put_together_whatever_their_size_and_the_padding_behind_them(size: int, behind: bytes) -> None:
    part = random.Random(size).randbytes(size)
    body = gzip.compress(part) + gzip.compress(b"between") + gzip.compress(part) + behind
    head = AnswerHead(200, {"content-encoding": "gzip"})
    assert decoded_body(head, body, 1024 * 1024) == part + b"between" + part


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate", "gzip, deflate", "br", "x" * 5000, ",", "\ufffd"]))
def test_any_body_is_decoded_or_one_error(body: bytes, codings: str) -> None:
    with contextlib.suppress(UnreadableAnswerError):
        assert len(decoded_body(AnswerHead(200, {"content-encoding": codings}), body, 1000)) <= 1001
