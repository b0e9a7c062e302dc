"""The same answers over a socket to both clients, which must give the same result or error, without the key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from tests.fuzz.answers import TASK_ID, Answer, answers, check_event_of
from tests.fuzz.junk import KEY
from tests.fuzz.storable import check_message, check_no_key, check_text
from tests.raw_server import RawServer

# Two connections, because a 429 to one request slows down the other requests of its connection.
_READS, _SUBMISSIONS = "fuzz_reads", "fuzz_submissions"
_REQUEST = GenerateRequest(prompt="a fox", seed=7)
_HEADER_TEXTS = st.text(
    st.characters(min_codepoint=0, max_codepoint=255, exclude_characters="\r\n"), max_size=30
) | st.sampled_from((KEY, "x" * 9000, "gzip", "chunked", "0", "-1", "https://elsewhere.example/R\xe9seaux"))
_HEADERS = st.tuples(
    st.sampled_from(("Location", "Server", "X-Request-Id", "Content-Encoding", "Set-Cookie", "Content-Type", "Vary")),
    _HEADER_TEXTS,
)
_FRAMINGS = ("length", "length", "length", "none", "chunked", "too long", "too short", "two lengths", "garbage")


@st.composite
def wire_answers(draw: st.DrawFn) -> bytes:
    """Return answers as the bytes that a server or a proxy sends."""
    answer: Answer = draw(answers())
    headers = [*answer.headers, *draw(st.lists(_HEADERS, max_size=3))]
    headers += [("X-Filler", "y")] * draw(st.sampled_from((0, 0, 0, 150)))
    body, length = answer.body, len(answer.body)
    match draw(st.sampled_from(_FRAMINGS)):
        case "length":
            headers.append(("Content-Length", str(length)))
        case "too long":
            headers.append(("Content-Length", str(length + 7)))
        case "too short":
            headers.append(("Content-Length", str(max(0, length - 7))))
        case "two lengths":
            headers += [("Content-Length", str(length))] * 2
        case "garbage":
            headers.append(("Content-Length", draw(_HEADER_TEXTS)))
        case "chunked":
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (length, body) if length else b"0\r\n\r\n"
        case _:
            pass
    reason = draw(st.sampled_from(("OK", "", "Nicht gefunden", "R\xe9seaux")))
    before = draw(st.sampled_from((b"", b"", b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")))
    head = f"HTTP/1.1 {answer.status} {reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
    return before + head.encode("latin-1", "replace") + b"Connection: close\r\n\r\n" + body


class _Log(logging.Handler):
    """Keeps the lines that are logged while an answer is read."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextlib.contextmanager
def prepare() -> Iterator[Callable[[bytes], None]]:
    """Yield the check of one answer, which both clients receive."""
    server, log = RawServer(b""), _Log()
    connection = {"conn_type": "qwenimage", "host": server.url, "password": KEY, "extra": {"timeout_seconds": 60}}
    variables = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(connection) for name in (_READS, _SUBMISSIONS)}
    os.environ |= variables
    root = logging.getLogger()
    root.addHandler(log)

    def check(answer: bytes) -> None:
        server.answer = answer
        server.requests.clear()
        log.lines.clear()
        pairs = list(zip(_sync(), loop.run(_async()), strict=True))
        for one, other in pairs:
            for outcome in (one, other):
                if isinstance(outcome, QwenImageError):
                    check_message(outcome)
                else:
                    check_no_key(repr(outcome))
            assert _kind(one) == _kind(other), f"requests: {one!r}; aiohttp: {other!r}"
        reads, submissions = pairs
        for read in reads:
            check_event_of(read)
        for submitted in submissions:
            check_text(str(submitted))
        check_no_key("\n".join(log.lines))

    try:
        with server, asyncio.Runner() as loop:
            yield check
    finally:
        root.removeHandler(log)
        for name in variables:
            del os.environ[name]


def _kind(outcome: Any) -> Any:
    return (type(outcome), outcome.permanent) if isinstance(outcome, QwenImageError) else outcome


def _sync() -> tuple[Any, Any]:
    with QwenImageHook(_READS, retry_limit=0) as hook:
        read = hook.check(TASK_ID)
    with QwenImageHook(_SUBMISSIONS, retry_limit=0) as hook:
        try:
            return read, hook.submit(_REQUEST)
        except QwenImageError as error:
            return read, error


async def _async() -> tuple[Any, Any]:
    async with QwenImageAsyncHook(_READS, retry_limit=0) as hook:
        read = await hook.check(TASK_ID)
    async with QwenImageAsyncHook(_SUBMISSIONS, retry_limit=0) as hook:
        try:
            return read, await hook.submit(_REQUEST)
        except QwenImageError as error:
            return read, error
