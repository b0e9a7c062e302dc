"""Reads one HTTP answer from the bytes of a connection: the same rules and limits for both clients. No I/O.

Any server may have sent the bytes, so h11 reads them; the clients only pass them on. An answer that arrives at once and
in the plainest form, as almost every status does, is read without h11, which would take longer than the rest of a poll.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import h11

# Company proxies add headers of several kilobytes; no service sends more than this in all.
MAX_HEADER_BYTES = 64 * 1024

_LONG_HEADERS = f"its headers are longer than {MAX_HEADER_BYTES} bytes"
_CUT_OFF = "the connection was closed before the response was complete"
_SLICE_BYTES = 16 * 1024
# Servers that compress in parts make them large; each part takes some microseconds, even an empty one.
_MOST_PARTS = 1000
# h11 reads every other form.
_PLAIN_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [ -~]*)?\r\n((?:[A-Za-z0-9-]+: ?(?:[!-~](?:[ -~]*[!-~])?)?\r\n)+)\r\n"
)
_PLAIN_LENGTH = re.compile(r"[0-9]{1,7}", re.ASCII)
_WITHOUT_BODY = (204, 304)
# A message quotes no others, since a header may contain anything.
_REGISTERED_CODINGS = ("aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd")
_DEFLATE = zlib.MAX_WBITS
_GZIP = zlib.MAX_WBITS + 16


class UnreadableAnswerError(Exception):
    """The bytes are not a complete HTTP answer within the limits."""


@dataclass(frozen=True)
class AnswerHead:
    """Status and headers of an answer.

    Attributes:
        status: The HTTP status.
        headers: The headers, with lower-case names; the values of a repeated one are joined by commas.
            Bytes that are not UTF-8 are replaced by U+FFFD.
    """

    status: int
    headers: Mapping[str, str]


class AnswerReader:
    """Takes the bytes of a connection as they arrive, and returns those of the answer's body.

    Interim answers (1xx) are skipped, and bytes after the end of the answer are dropped.

    Attributes:
        head: Status and headers, as soon as they were read.
        is_complete: Whether the answer was read to its end.
    """

    def __init__(self) -> None:
        self.head: AnswerHead | None = None
        self.is_complete = False
        self._http: h11.Connection | None = None
        self._bytes_before_head = 0

    @property
    def keeps_open(self) -> bool:
        """Whether the connection may be used again after this answer."""
        if self._http is None:
            return self.is_complete
        return self.is_complete and self._http.their_state is h11.DONE and not self._http.trailing_data[0]

    @property
    def closes(self) -> bool:
        """Whether the answer is complete and the connection must not be used again."""
        return self.is_complete and not self.keeps_open

    def feed(self, data: bytes) -> bytes:
        """Take received bytes, at least one, and return those of the body.

        Raises:
            UnreadableAnswerError: If this is not an HTTP answer, or its headers are longer than `MAX_HEADER_BYTES`.
        """
        if self._http is None and (plain := _read_plain(data)):
            self.head, content = plain
            self.is_complete = True
            return content
        body = bytearray()
        # In slices, so that the limit of the headers holds however much arrives at once.
        for start in range(0, len(data), _SLICE_BYTES):
            if self.is_complete:
                break
            piece = data[start : start + _SLICE_BYTES]
            body += self._receive(piece)
            # Each interim answer may be short, and their number has no limit.
            self._bytes_before_head += len(piece) if self.head is None else 0
            if self._bytes_before_head > MAX_HEADER_BYTES:
                raise UnreadableAnswerError(_LONG_HEADERS)
        return bytes(body)

    def feed_eof(self) -> bytes:
        """Take the end of the connection, and return the rest of the body.

        Raises:
            UnreadableAnswerError: If the answer is not complete.
        """
        body = b"" if self.is_complete else self._receive(b"")
        if not self.is_complete:
            raise UnreadableAnswerError(_CUT_OFF)
        return body

    def _receive(self, data: bytes) -> bytes:
        self._http = http = self._http or _open_http()
        body = bytearray()
        try:
            http.receive_data(data)
            while not self.is_complete:
                match event := http.next_event():
                    case h11.Response():
                        self.head = _read_head(event)
                    case h11.Data():
                        body += event.data
                    case h11.EndOfMessage():
                        self.is_complete = True
                    case h11.InformationalResponse():
                        continue
                    case _:
                        break
        except h11.RemoteProtocolError as error:
            # h11 quotes the answer after a colon, and a line of it may contain anything.
            reason = str(error).partition(":")[0]
            raise UnreadableAnswerError(f"the response is not HTTP ({reason})" if data else _CUT_OFF) from None
        return bytes(body)


def _open_http() -> h11.Connection:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
    # h11 needs the request that is answered; only its method matters, and GET and POST are alike.
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "api")]))
    http.send(h11.EndOfMessage())
    return http


def _read_plain(data: bytes) -> tuple[AnswerHead, bytes] | None:
    """Return head and body of a complete answer of the plainest form, or None for any other."""
    found = _PLAIN_HEAD.match(data, 0, _SLICE_BYTES)
    if found is None:
        return None
    headers: dict[str, str] = {}
    for line in found[2].decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name = name.lower()
        if name in headers:
            return None
        headers[name] = value.strip(" ")
    status, length = int(found[1]), headers.get("content-length", "")
    is_plain = (
        status not in _WITHOUT_BODY
        and "transfer-encoding" not in headers
        and headers.get("connection", "keep-alive").lower() == "keep-alive"
        and _PLAIN_LENGTH.fullmatch(length)
        and len(data) == found.end() + int(length)
    )
    return (AnswerHead(status, headers), data[found.end() :]) if is_plain else None


def _read_head(response: h11.Response) -> AnswerHead:
    headers: dict[str, str] = {}
    size = 0
    for name, value in response.headers:
        size += len(name) + len(value)
        key, text = name.decode("ascii"), value.decode("utf-8", "replace")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    if size > MAX_HEADER_BYTES:
        raise UnreadableAnswerError(_LONG_HEADERS)
    return AnswerHead(response.status_code, headers)


def decoded_body(head: AnswerHead, body: bytes, max_bytes: int) -> bytes:
    """Return a body without its compression.

    Args:
        head: Names the compression in Content-Encoding.
        body: The received bytes.
        max_bytes: The result ends there or shortly after, so that a small body cannot fill the memory.

    Raises:
        UnreadableAnswerError: If the body is incomplete or not compressed as its head names it, or in a way that no
            request of this package asks for.
    """
    codings = [coding.strip().lower() for coding in head.headers.get("content-encoding", "").split(",")]
    for coding in reversed(codings):
        if coding in ("", "identity") or not body:
            continue
        if coding not in ("gzip", "x-gzip", "deflate"):
            name = repr(coding) if coding in _REGISTERED_CODINGS else "is unknown, and"
            raise UnreadableAnswerError(f"its Content-Encoding {name} was not requested")
        body = _inflated(body, coding, max_bytes)
    return body


def _inflated(body: bytes, coding: str, max_bytes: int) -> bytes:
    window = _GZIP
    if coding == "deflate":
        # Some servers send deflate without the zlib header that the standard asks for.
        has_header = len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and (body[0] << 8 | body[1]) % 31 == 0
        window = _DEFLATE if has_header else -_DEFLATE
    found, end, parts = bytearray(), 0, 0
    view = memoryview(body)
    try:
        while len(found) <= max_bytes:
            parts += 1
            if parts > _MOST_PARTS:
                raise UnreadableAnswerError(f"its {coding} body has more than {_MOST_PARTS} parts")
            stream = zlib.decompressobj(window)
            # In slices, since at the end of a part zlib copies the rest of its input.
            while not stream.eof and end < len(view) and len(found) <= max_bytes:
                piece = view[end : end + _SLICE_BYTES]
                found += stream.decompress(piece, max_bytes + 1 - len(found))
                end += len(piece) - len(stream.unused_data)
            if not stream.eof and len(found) <= max_bytes:
                raise UnreadableAnswerError(f"its {coding} body is incomplete")
            # A gzip file may have several members; anything else after the first is padding.
            if window != _GZIP or body[end : end + 2] != b"\x1f\x8b":
                break
    except zlib.error as error:
        raise UnreadableAnswerError(f"its body is not {coding}: {error}") from None
    return bytes(found)
