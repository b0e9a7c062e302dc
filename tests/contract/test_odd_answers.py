"""Answers that no server should send, from a raw socket: both clients take the same, and end in the same error."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import os
import socket
import threading
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import pytest

from airflow_provider_qwenimage.exceptions import (
    QwenImageConnectionError,
    QwenImageContractError,
    QwenImageError,
    QwenImageSubmissionUnknownError,
)
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from tests.contract.test_parity import AsyncClient, SyncClient
from tests.raw_server import Answer, RawServer, finish, read_request, reset

KEY = "sk-odd/answers-0123456789"
TASK = "n43"
ENVELOPE = json.dumps(
    {"code": 200, "message": "success", "data": {"task_id": TASK, "status": "PENDING", "consumed_credits": 5}}
).encode()

OK = None
# What a status read ends in; a submission is then unknown, because it was sent.
CUT, JUNK = QwenImageConnectionError, QwenImageContractError


def answer(*headers: bytes, body: bytes = ENVELOPE, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([status, *headers, b"Content-Length: %d" % len(body), b"", body])


def unframed(*headers: bytes, body: bytes = ENVELOPE, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([status, *headers, b"", body])


def chunked(body: bytes) -> bytes:
    return unframed(b"Transfer-Encoding: chunked", body=body)


def redirect(status: int, location: bytes) -> bytes:
    return answer(b"Location: " + location, body=b"", status=b"HTTP/1.1 %d Elsewhere" % status)


WHOLE_CHUNK = b"%x\r\n%b\r\n" % (len(ENVELOPE), ENVELOPE)
BOMB = gzip.compress(b"[" * 100_000_000, 6)
ANSWERS: dict[str, tuple[Answer, type[QwenImageError] | None]] = {
    "a header of 9,000 bytes": (answer(b"X-Company: " + b"a" * 9000), OK),
    "a header of 60,000 bytes": (answer(b"X-Company: " + b"a" * 60_000), OK),
    "a header of 70,000 bytes": (answer(b"X-Company: " + b"a" * 70_000), CUT),
    "headers of 300,000 bytes": (answer(*[b"X-%d: %b" % (number, b"a" * 300) for number in range(1000)]), CUT),
    "150 headers": (answer(*[b"X-%d: 1" % number for number in range(150)]), OK),
    "500 headers": (answer(*[b"X-%d: 1" % number for number in range(500)]), OK),
    "two equal lengths": (answer(b"Content-Length: %d" % len(ENVELOPE)), OK),
    "two different lengths": (answer(b"Content-Length: 7"), CUT),
    "a negative length": (unframed(b"Content-Length: -5"), CUT),
    "a length in words": (unframed(b"Content-Length: many"), CUT),
    "a length and chunks": (unframed(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=WHOLE_CHUNK), CUT),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer(), OK),
    "two interim answers": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + answer(), OK),
    "another protocol": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", CUT),
    "no content": (unframed(status=b"HTTP/1.1 204 No Content", body=b""), JUNK),
    "not modified": (unframed(b"Content-Length: 8", status=b"HTTP/1.1 304 Not Modified", body=b""), JUNK),
    "a body that is cut": (answer()[:-5], CUT),
    "more than its length": (answer() + b"HTTP/1.1 500 More\r\n\r\n", OK),
    "until the end": (unframed(), OK),
    "chunks": (chunked(WHOLE_CHUNK + b"0\r\n\r\n"), OK),
    "chunks with extensions and trailers": (
        chunked(b"%x;a=b\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(ENVELOPE), ENVELOPE)),
        OK,
    ),
    "chunks without an end": (chunked(WHOLE_CHUNK), CUT),
    "chunks of no size": (chunked(b"zz\r\n%b\r\n0\r\n\r\n" % ENVELOPE), CUT),
    "chunks as Python writes sizes": (chunked(b"0x" + WHOLE_CHUNK + b"0\r\n\r\n"), CUT),
    "gzip": (answer(b"Content-Encoding: gzip", body=gzip.compress(ENVELOPE)), OK),
    "gzip in two parts": (
        answer(b"Content-Encoding: GZIP", body=gzip.compress(ENVELOPE[:9]) + gzip.compress(ENVELOPE[9:])),
        OK,
    ),
    "gzip in 50,000 parts": (
        answer(b"Content-Encoding: gzip", body=gzip.compress(b"") * 50_000 + gzip.compress(ENVELOPE)),
        JUNK,
    ),
    "gzip that is none": (answer(b"Content-Encoding: gzip"), JUNK),
    "gzip that is cut": (answer(b"Content-Encoding: gzip", body=gzip.compress(ENVELOPE)[:-12]), JUNK),
    "gzip of 100 MB": (answer(b"Content-Encoding: gzip", body=BOMB), JUNK),
    "deflate": (answer(b"Content-Encoding: deflate", body=zlib.compress(ENVELOPE)), OK),
    "deflate without its header": (answer(b"Content-Encoding: deflate", body=zlib.compress(ENVELOPE)[2:-4]), OK),
    "brotli": (answer(b"Content-Encoding: br"), JUNK),
    "a coding that nobody knows": (answer(b"Content-Encoding: \xff"), JUNK),
    "more than a mebibyte": (answer(body=ENVELOPE + b" " * 2**20), JUNK),
    "a byte order mark": (answer(body=b"\xef\xbb\xbf" + ENVELOPE), OK),
    "UTF-16": (answer(body=ENVELOPE.decode().encode("utf-16")), OK),
    "a name twice": (answer(body=ENVELOPE.replace(b'"code": 200', b'"code": 500, "code": 200')), OK),
    "nesting": (answer(body=b"[" * 100_000), JUNK),
    "an integer of 5,000 digits": (
        answer(body=ENVELOPE.replace(b'"data": {', b'"data": {"queue": ' + b"5" * 5000 + b", ")),
        OK,
    ),
    "a character that is cut": (answer(body=ENVELOPE.replace(b"success", b"a fox \xf0\x9f")), OK),
    "Latin-1": (answer(body=ENVELOPE.replace(b"success", b"succ\xe8s")), OK),
    "half an emoji as UTF-8 has none": (answer(body=ENVELOPE.replace(b"success", b"\xed\xa0\xbd \xff")), OK),
    "control characters": (answer(body=ENVELOPE.replace(b"success", bytes(range(32)))), OK),
    "bytes that are no text": (answer(body=b"\xff\x00\xfe" * 100), JUNK),
    "a redirect that is not UTF-8": (redirect(302, b"http://h.example/R\xe9seaux"), JUNK),
    "a redirect to a bad host": (redirect(302, b"http://[bad"), JUNK),
    "a redirect to a bad port": (redirect(302, b"http://h.example:port/"), JUNK),
    "a redirect to another scheme": (redirect(303, b"javascript:alert(1)"), JUNK),
    "a redirect to nowhere": (answer(body=b"", status=b"HTTP/1.1 302 Found"), JUNK),
    "a redirect without an end": (unframed(b"Location: /", body=b"x" * 100, status=b"HTTP/1.1 302 Found"), JUNK),
    "nothing": (b"", CUT),
    "half a status line": (b"HTTP/1.1 2", CUT),
    "headers without an end": (b"HTTP/1.1 200 OK\r\nX: y\r\n", CUT),
    "a reset": (reset, CUT),
    "bare line feeds": (answer().replace(b"\r\n", b"\n"), OK),
    "HTTP/1.0": (unframed(status=b"HTTP/1.0 200 OK"), OK),
    "HTTP/0.9": (ENVELOPE, CUT),
    "HTTP/2": (answer(status=b"HTTP/2 200 OK"), CUT),
    "another protocol's status": (answer(status=b"ICY 200 OK"), CUT),
    "no reason": (answer(status=b"HTTP/1.1 200"), OK),
    "a reason that is not UTF-8": (answer(status=b"HTTP/1.1 200 R\xe9ussi"), OK),
    "a status of two digits": (answer(status=b"HTTP/1.1 20 OK"), CUT),
    "a header name with a space": (answer(b"X Y: 1"), CUT),
    "a header without a colon": (answer(b"nonsense"), CUT),
    "a header with a NUL": (answer(b"X: a\x00b"), CUT),
    "a header that is not UTF-8": (answer(b"X-R\xc3: R\xe9seaux".replace(b"\xc3", b"")), OK),
    "a folded header": (answer(b"X: a\r\n b"), OK),
    "a cookie that is none": (answer(b"Set-Cookie: \x80=; expires=never"), OK),
    "a transfer coding that is none": (unframed(b"Transfer-Encoding: identity"), CUT),
    "a TLS alert": (b"\x15\x03\x03\x00\x02\x02\x46", CUT),
    "noise": (bytes(range(256)) * 4, CUT),
}


@pytest.fixture(params=[SyncClient, AsyncClient], ids=["requests", "aiohttp"])
def client(request: pytest.FixtureRequest) -> SyncClient:
    return request.param(timeout_seconds=60.0, retry_limit=0)


def connect(monkeypatch: pytest.MonkeyPatch, host: str, **fields: Any) -> None:
    connection = {"conn_type": "qwenimage", "password": KEY, "host": host} | fields
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))


def error_of(call: Callable[[], Any]) -> QwenImageError:
    with pytest.raises(QwenImageError) as caught:
        call()
    chain: BaseException | None = caught.value
    while chain is not None:
        assert isinstance(chain, QwenImageError), "an error of a library may hold the key"
        chain = chain.__cause__ or chain.__context__
    return caught.value


@pytest.mark.parametrize("name", ANSWERS)
def test_an_odd_answer_to_a_status_read(client: SyncClient, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    said, error_class = ANSWERS[name]
    with RawServer(said) as server:
        connect(monkeypatch, server.url)
        if error_class is OK:
            assert client("get_status", TASK).consumed_credits == 5
        else:
            assert type(error_of(lambda: client("get_status", TASK))) is error_class


@pytest.mark.parametrize("name", ANSWERS)
def test_an_odd_answer_to_a_submission_that_was_sent_may_be_paid(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said, error_class = ANSWERS[name]
    with RawServer(said) as server:
        connect(monkeypatch, server.url)
        if error_class is OK:
            assert client("generate", "a fox") == TASK
        else:
            assert type(error_of(lambda: client("generate", "a fox"))) is QwenImageSubmissionUnknownError
        assert len(server.requests) == 1


CONTRADICTIONS = {
    "HTTP 500": answer(status=b"HTTP/1.1 500 Oops"),
    "HTTP 404": answer(status=b"HTTP/1.1 404 Not Found"),
    "HTTP 429": answer(b"Retry-After: 0", status=b"HTTP/1.1 429 Slow down"),
    "HTTP 307": answer(b"Location: /elsewhere", status=b"HTTP/1.1 307 Elsewhere"),
    "code 500": answer(body=ENVELOPE.replace(b"200", b"500")),
    "code '200'": answer(body=ENVELOPE.replace(b"200", b'"200"')),
    "code True": answer(body=ENVELOPE.replace(b"200", b"true")),
    "code 0": answer(body=ENVELOPE.replace(b"200", b"0")),
    "no code": answer(body=ENVELOPE.replace(b'"code": 200, ', b"")),
    "HTTP 502 and no code": answer(body=ENVELOPE.replace(b'"code": 200, ', b""), status=b"HTTP/1.1 502 Bad Gateway"),
}


@pytest.mark.parametrize("around", CONTRADICTIONS)
def test_an_accepted_task_in_an_error_is_accepted_once_and_logged_once(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, around: str
) -> None:
    with RawServer(CONTRADICTIONS[around]) as server:
        connect(monkeypatch, server.url)
        client.arguments["retry_limit"] = 3
        assert client("generate", "a fox") == TASK
        assert len(server.requests) == 1
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [f"The API contradicts itself: {around} around accepted task {TASK}. Waiting for {TASK}."]


@pytest.mark.parametrize("status", [b"201 Created", b"202 Accepted", b"206 Partial Content"])
def test_any_http_success_is_one(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: bytes
) -> None:
    with RawServer(answer(status=b"HTTP/1.1 " + status)) as server:
        connect(monkeypatch, server.url)
        assert client("generate", "a fox") == TASK
        assert client("get_status", TASK).consumed_credits == 5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["a redirect that is not UTF-8", "chunks of no size", "nothing", "noise"])
def test_a_wait_survives_an_odd_answer(client: SyncClient, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    done = ENVELOPE.replace(b'"PENDING"', b'"SUCCESS", "response": ["https://cdn.example/1.png"]')
    said = ANSWERS[name][0]
    assert isinstance(said, bytes)
    # Twice: aiohttp itself asks once more when a connection is dropped under a GET.
    answers = [said, said, said]

    def send(connection: socket.socket) -> None:
        connection.sendall(answers.pop() if answers else answer(body=done))

    with RawServer(send) as server:
        connect(monkeypatch, server.url)
        assert client("wait_for_completion", TASK, poll_interval=0.01).image_urls == ("https://cdn.example/1.png",)


def test_a_connection_is_used_again_only_after_a_whole_answer(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ENVELOPE.replace(b'"PENDING"', b'"SUCCESS", "response": ["https://cdn.example/1.png"]')
    connections = []

    def send(connection: socket.socket) -> None:
        connections.append(connection)
        if len(connections) == 1:
            # What comes behind the length could pass for the next answer.
            connection.sendall(answer() + answer(body=b"{}"))
            server.released.wait(60)
        else:
            connection.sendall(answer())
            read_request(connection)
            connection.sendall(answer(body=done))

    with RawServer(send) as server:
        connect(monkeypatch, server.url)
        snapshot = client("wait_for_completion", TASK, poll_interval=0.01)
        server.released.set()
    assert snapshot.image_urls
    assert len(connections) == 2


@pytest.mark.parametrize("status", [b"201 Created", b"400 Bad Request", b"500 Oh", b"502 Bad Gateway"])
def test_a_submission_is_not_sent_again_after_an_answer_with_a_task_id(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, status: bytes
) -> None:
    with RawServer(answer(status=b"HTTP/1.1 " + status)) as server:
        connect(monkeypatch, server.url)
        again = type(client)(retry_limit=3, retry_delay=0.0)
        assert again("generate", "a fox") == TASK
        assert len(server.requests) == 1


STRANGER = answer(body=ENVELOPE.replace(TASK.encode(), b"stranger"))


@pytest.mark.parametrize(
    "junk",
    [STRANGER, STRANGER[:40], b"\r\n", b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", b"\xff"],
    ids=["an answer", "half an answer", "a line", "a time-out", "a byte"],
)
def test_a_connection_on_which_something_came_unasked_carries_no_other_request(
    monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    answered, given_up = threading.Event(), threading.Event()
    connections = []

    def send(connection: socket.socket) -> None:
        connections.append(connection)
        is_first = len(connections) == 1
        connection.sendall(answer())
        if is_first:
            answered.wait(60)
            connection.sendall(junk)
            if not connection.recv(1):
                given_up.set()

    async def read_twice() -> str:
        async with QwenImageAsyncHook(timeout_seconds=60.0, retry_limit=0) as hook:
            await hook.get_status(TASK)
            answered.set()
            await asyncio.to_thread(given_up.wait, 5)
            return (await hook.get_status(TASK)).task_id

    with RawServer(send) as server:
        connect(monkeypatch, server.url)
        assert asyncio.run(read_twice()) == TASK
        assert given_up.is_set()


@pytest.mark.parametrize("ending", [reset, lambda connection: connection.close()], ids=["reset", "closed"])
def test_a_submission_whose_connection_the_server_gives_up_is_sent_once_and_may_be_paid(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, ending: Callable[[socket.socket], None]
) -> None:
    def send(connection: socket.socket) -> None:
        if server.requests[-1].startswith(b"POST "):
            ending(connection)
        else:
            connection.sendall(answer())
            finish(connection)

    with RawServer(send) as server:
        connect(monkeypatch, server.url)
        assert type(error_of(lambda: submit_after_a_read(client))) is QwenImageSubmissionUnknownError
        assert [request.partition(b" ")[0] for request in server.requests] == [b"GET", b"POST"]


def submit_after_a_read(client: SyncClient) -> str:
    """Submit after a status read of the same client."""
    arguments = client.arguments | {"retry_limit": 3}
    if not isinstance(client, AsyncClient):
        with QwenImageHook(**arguments) as hook:
            hook.get_status(TASK)
            return hook.generate("a fox")

    async def submit() -> str:
        async with QwenImageAsyncHook(**arguments) as hook:
            await hook.get_status(TASK)
            return await hook.generate("a fox")

    return asyncio.run(submit())


SPELLINGS = {
    "as it is": KEY,
    "escaped as PHP does": KEY.replace("/", "\\/"),
    "escaped as Unicode": "".join(f"\\u{ord(character):04X}" for character in KEY),
    "as JSON in JSON": json.dumps(json.dumps(KEY).replace("/", "\\/"))[1:-1],
    "for a URL": KEY.replace("/", "%2F").replace("-", "%2d"),
    "for HTML": "".join(f"&#{ord(character)};" for character in KEY),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("status", [200, 401])
def test_a_key_that_an_answer_quotes_is_not_shown_however_it_is_spelled(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, spelling: str, status: int
) -> None:
    quoted = SPELLINGS[spelling]
    bodies = [
        f'{{"code": 401, "message": "Bad key {quoted}.", "data": null}}',
        f'{{"code": 200, "data": {{"task_id": "{quoted}", "status": "PENDING"}}}}',
        f'{{"code": 200, "data": {{"task_id": "{TASK}", "{quoted}": ["{quoted}"], "status": "{quoted}"}}}}',
        f"<html>{' ' * 190}{quoted}</html>",
    ]
    for body in bodies:
        with RawServer(answer(body=body.encode(), status=b"HTTP/1.1 %d X" % status)) as server:
            connect(monkeypatch, server.url)
            try:
                shown = repr(client("get_status", TASK))
            except QwenImageError as error:
                shown = str(error)
        # Neither as it was nor as it was spelled, nor the part of it that a cut would leave.
        assert KEY not in shown
        assert quoted not in shown
        assert KEY[:12] not in shown


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ['{{"error": "{}"}}', "<html>{}</html>", "{}"])
@pytest.mark.parametrize("first", [b"", b"Error: "], ids=["all of it", "after a text in ASCII"])
def test_a_key_in_an_answer_of_another_encoding_is_not_shown(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, first: bytes
) -> None:
    body = first + text.format(KEY).encode(encoding)
    with RawServer(answer(body=body, status=b"HTTP/1.1 403 X")) as server:
        connect(monkeypatch, server.url)
        shown = str(error_of(lambda: client("get_status", TASK)))
    # What stands between the characters of a key does not hide it from a reader.
    assert KEY not in "".join(character for character in shown if character.isascii() and character.isprintable())


QUERY = "?X-Amz-Signature=s3cr3t&x=%2Fs3cr3t"
SIGNED = f"https://me:s3cr3t@cdn.example/1.png{QUERY}#s3cr3t"


@pytest.mark.parametrize(
    "data",
    [
        {"response": SIGNED.replace("https", "ftp")},
        {"response": json.dumps([SIGNED])},
        {"response": {"url": SIGNED.replace("https", "ftp")}},
        {"response": [{"url": SIGNED.replace("1.png", "1 a.png"), "thumbnail": SIGNED + "a" * 5000}]},
        {"response": [SIGNED.replace("https", "ftp")]},
        {"response": [SIGNED.replace("1.png", "1 a.png")]},
        {"response": [SIGNED + "a" * 5000]},
        {"response": ["https://" + "a" * 180 + ":s3cr3t@cdn.example/1.png "]},
        {"task_id": [SIGNED], "response": None},
        {"status": [SIGNED]},
        [{"response": [SIGNED]}],
        SIGNED,
    ],
)
def test_an_unreadable_answer_is_shown_without_credentials(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, data: Any
) -> None:
    if isinstance(data, dict):
        data = {"task_id": TASK, "status": "SUCCESS"} | data
    body = json.dumps({"code": 200, "data": data})
    for each in (body, body.replace("/", "\\/")):
        with RawServer(answer(body=each.encode())) as server:
            connect(monkeypatch, server.url)
            assert "s3cr3t" not in str(error_of(lambda: client("get_status", TASK)))


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"code": 400, "message": f"Cannot store {SIGNED}, sorry"}),
        json.dumps({"error": SIGNED}).replace("/", "\\/"),
        f"<a href='{SIGNED}'>",
        json.dumps(
            {"code": 200, "data": {"task_id": TASK, "status": "FAILED", "error_message": f"callback {SIGNED}: 404"}}
        ),
        json.dumps({"code": 200, "data": {"task_id": TASK, "status": "FAILED", "error_message": [{"url": SIGNED}]}}),
    ],
)
def test_the_message_of_an_answer_is_shown_without_credentials(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    with RawServer(answer(body=body.encode())) as server:
        connect(monkeypatch, server.url)
        shown = str(error_of(lambda: client("wait_for_completion", TASK, max_consecutive_failures=1)))
    assert "cdn.example" in shown
    assert "s3cr3t" not in shown


@pytest.mark.parametrize("coding", [KEY.encode(), b"x" * 25 + KEY.encode(), b"gzip, " + b"x" * 25 + KEY.encode()])
def test_a_header_that_quotes_the_key_is_not_quoted(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, coding: bytes
) -> None:
    with RawServer(answer(b"Content-Encoding: " + coding)) as server:
        connect(monkeypatch, server.url)
        shown = str(error_of(lambda: client("get_status", TASK)))
    assert KEY[:12] not in shown


def test_nothing_that_is_logged_or_raised_holds_the_key(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for said in (
        answer(b"X Y: " + KEY.encode(), b"no colon " + KEY.encode()),
        answer(status=b"ICY 200 " + KEY.encode()),
        redirect(302, b"https://user:secret@h.example/?key=" + KEY.encode()),
        redirect(302, b"http://[bad/" + KEY.encode()),
        answer(b"Set-Cookie: " + KEY.encode(), body=KEY.encode()),
        b"",
    ):
        with RawServer(said) as server:
            connect(monkeypatch, server.url)
            error = error_of(lambda: client("get_status", TASK))
        assert KEY not in repr(error)
        assert "secret" not in str(error)
    assert KEY not in caplog.text
    assert "Authorization" not in caplog.text


def test_a_redirect_is_shown_without_credentials(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    target = b"https://user:secret@cdn.example/1.png?X-Amz-Signature=0123#part"
    with RawServer(redirect(302, target)) as server:
        connect(monkeypatch, server.url)
        shown = str(error_of(lambda: client("get_status", TASK)))
        assert "https://cdn.example/1.png," in shown
        _, told = client("test_connection")
        assert "https://cdn.example/1.png" in told
        assert "secret" not in shown + told
        assert "0123" not in shown + told


@pytest.mark.parametrize(
    ("host", "family"),
    [
        ("http://[0:0:0:0:0:0:0:1]:{port}", socket.AF_INET6),
        ("http://[::1]:{port}", socket.AF_INET6),
        ("HTTP://LocalHost:{port}", socket.AF_INET),
        ("http://127.0.0.1:{port}/deep/", socket.AF_INET),
    ],
)
def test_the_key_is_sent_to_the_connections_own_origin_however_it_is_written(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, host: str, family: socket.AddressFamily
) -> None:
    with RawServer(answer(), family=family) as server:
        connect(monkeypatch, host.format(port=server.port))
        client("get_status", TASK)
        assert f"Authorization: Bearer {KEY}".encode() in server.requests[0]


@pytest.mark.parametrize("host", ["[::1]", "::1", "0:0:0:0:0:0:0:1"])
def test_the_host_field_may_be_an_ipv6_address(client: SyncClient, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with RawServer(answer(), family=socket.AF_INET6) as server:
        connect(monkeypatch, host, schema="http", port=server.port)
        client("get_status", TASK)
        assert f"Authorization: Bearer {KEY}".encode() in server.requests[0]


def test_a_host_in_another_alphabet_gets_the_key_through_a_proxy(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(answer()) as proxy:
        set_proxy(monkeypatch, "HTTP_PROXY", proxy.url)
        connect(monkeypatch, "http://bücher.example")
        client("get_status", TASK)
        assert proxy.requests[0].startswith(b"GET http://xn--bcher-kva.example/api/status")
        assert f"Authorization: Bearer {KEY}".encode() in proxy.requests[0]


def set_proxy(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for other in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
        monkeypatch.delenv(other.upper(), raising=False)
    monkeypatch.setenv(name, value)


def assert_nothing_was_sent(client: SyncClient, story: str) -> None:
    for verb, argument in (("generate", "a fox"), ("get_status", TASK)):
        error = error_of(lambda verb=verb, argument=argument: client(verb, argument))  # type: ignore[misc]
        assert type(error) is QwenImageConnectionError
        assert story in str(error)
        assert "paid" not in str(error)
        assert "pass-word" not in str(error)
    works, message = client("test_connection")
    assert not works
    assert story in message
    assert "pass-word" not in message


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("kind", ["no file", "no certificates"])
def test_a_variable_that_names_no_authorities_is_named(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, *, variable: str, kind: str
) -> None:
    path = tmp_path / "authorities.pem"
    if kind == "no certificates":
        path.write_text("nothing of that kind")
    for other in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(path))
    connect(monkeypatch, "https://127.0.0.1:9")
    assert_nothing_was_sent(client, variable)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy",
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 403 Forbidden\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_a_proxy_that_refuses_to_connect_means_that_nothing_was_sent(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    with RawServer(said) as proxy:
        set_proxy(monkeypatch, "HTTPS_PROXY", proxy.url.replace("//", "//user:pass-word@"))
        connect(monkeypatch, "https://api.example")
        assert_nothing_was_sent(client, "HTTPS_PROXY")
        assert all(request.startswith(b"CONNECT api.example:443 ") for request in proxy.requests)
        assert not any(KEY.encode() in request for request in proxy.requests)


@pytest.mark.parametrize("password", ["pass-word-471100", "pass@word%21471100", "p471100"])
@pytest.mark.parametrize("scheme", ["http://", ""], ids=["with a scheme", "without"])
def test_a_proxy_that_quotes_its_password_is_not_quoted(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, password: str, scheme: str
) -> None:
    sent = unquote(password)
    for quoted in (sent, quote(sent, safe=""), base64.b64encode(f"me:{sent}".encode()).decode()):
        if quoted != sent and len(sent) < 8:
            continue
        for said in (
            b"HTTP/1.1 407 No %b\r\nContent-Length: 0\r\n\r\n",
            b"No %b\r\n\r\n",
            b"HTTP/1.1 407 X\r\nNo %b\r\n\r\n",
        ):
            with RawServer(said % quoted.encode()) as proxy:
                set_proxy(monkeypatch, "HTTPS_PROXY", f"{scheme}me:{password}@127.0.0.1:{proxy.port}")
                connect(monkeypatch, "https://api.example")
                shown = str(error_of(lambda: client("get_status", TASK)))
            assert "471100" not in shown
            assert quoted == sent or quoted[4:-4] not in shown


def test_a_proxy_without_a_scheme_is_an_http_proxy(client: SyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(answer()) as proxy:
        set_proxy(monkeypatch, "HTTP_PROXY", proxy.url.removeprefix("http://"))
        connect(monkeypatch, "http://api.example")
        client("get_status", TASK)
        assert proxy.requests[0].startswith(b"GET http://api.example/api/status")


@pytest.mark.parametrize(
    ("user", "sent"),
    [
        ("token", "token:"),
        ("user:", "user:"),
        ("us%40er:p%3A%C3%BC", "us@er:p:\xfc"),
        ("user:pass@word", "user:pass@word"),
    ],
)
def test_a_proxy_receives_the_user_of_its_url(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, user: str, sent: str
) -> None:
    with RawServer(answer()) as proxy:
        set_proxy(monkeypatch, "HTTP_PROXY", proxy.url.replace("//", f"//{user}@"))
        connect(monkeypatch, "http://api.example")
        client("get_status", TASK)
        credentials = base64.b64encode(sent.encode("latin-1"))
        assert b"Proxy-Authorization: Basic %b\r\n" % credentials in proxy.requests[0]


@pytest.mark.parametrize("value", ["http://", "http://[bad", "ftp://proxy:1", "http://proxy:port", "a proxy", "://x"])
def test_a_variable_that_holds_no_proxy_is_named(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    set_proxy(monkeypatch, "HTTPS_PROXY", value)
    connect(monkeypatch, "https://api.example")
    assert_nothing_was_sent(client, "HTTPS_PROXY")


@pytest.mark.parametrize("said", [answer(), b"", answer()[:-5], reset], ids=["whole", "nothing", "cut", "reset"])
def test_a_submission_through_a_socks_proxy_is_sent_once_and_may_be_paid(
    monkeypatch: pytest.MonkeyPatch, said: Answer
) -> None:
    pytest.importorskip("socks", reason="PySocks is not installed")

    def serve(connection: socket.socket) -> None:
        assert connection.recv(1) == b"\x05"
        connection.recv(connection.recv(1)[0])
        connection.sendall(b"\x05\x00")
        # It asks to connect to a name: so many characters, and a port.
        assert connection.recv(4) == b"\x05\x01\x00\x03"
        asked.append(connection.recv(connection.recv(1)[0]))
        connection.recv(2)
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        asked.append(read_request(connection))
        if callable(said):
            said(connection)
        else:
            connection.sendall(said)
            finish(connection)

    asked: list[bytes] = []
    with RawServer(serve, at_once=True) as proxy:
        set_proxy(monkeypatch, "HTTP_PROXY", proxy.url.replace("http:", "socks5h:"))
        connect(monkeypatch, "http://api.example")
        client = SyncClient(timeout_seconds=60.0, retry_limit=3, retry_delay=0.0)
        if said == answer():
            assert client("generate", "a fox") == TASK
        else:
            assert type(error_of(lambda: client("generate", "a fox"))) is QwenImageSubmissionUnknownError
    assert asked[0] == b"api.example"
    assert asked[1].startswith(b"POST /api/generate ")
    assert len(asked) == 2


def test_a_socks_proxy_that_refuses_means_that_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("socks", reason="PySocks is not installed")
    with RawServer(b"\x05\xff", at_once=True) as proxy:
        set_proxy(monkeypatch, "HTTPS_PROXY", proxy.url.replace("http:", "socks5h:"))
        connect(monkeypatch, "https://api.example")
        assert_nothing_was_sent(SyncClient(timeout_seconds=60.0, retry_limit=0), "HTTPS_PROXY")


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "127.0.0.0/8", "*"])
def test_both_clients_mind_no_proxy(client: SyncClient, monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    with RawServer(answer()) as server, RawServer(answer(status=b"HTTP/1.1 500 Proxy")) as proxy:
        set_proxy(monkeypatch, "HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        connect(monkeypatch, server.url)
        client("get_status", TASK)
        assert not proxy.requests


@pytest.mark.parametrize("text", ["machine 127.0.0.1 login me password pass-word\n", "machine machine {{\n"])
def test_a_netrc_file_changes_nothing(
    client: SyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, text: str
) -> None:
    (tmp_path / ".netrc").write_text(text)
    os.chmod(tmp_path / ".netrc", 0o600)  # noqa: PTH101  as a user would
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with RawServer(answer()) as server:
        connect(monkeypatch, server.url)
        client("get_status", TASK)
        assert f"Authorization: Bearer {KEY}".encode() in server.requests[0]
