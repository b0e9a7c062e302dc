"""Reads one HTTP answer from the bytes of a connection: the same rules and bounds for both clients. No I/O.

The bytes come from whatever calls itself a server, so h11 reads them, and each client only carries them here.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import h11

# Company proxies add headers of several kilobytes; more than this in all is no answer of a service.
MAX_HEADER_BYTES = 64 * 1024

_CUT_OFF = "the connection was closed before the answer was complete"
_SLICE_BYTES = 16 * 1024
_DEFLATE = zlib.MAX_WBITS
_GZIP = zlib.MAX_WBITS + 16


class UnreadableAnswerError(Exception):
    """The bytes are not one whole HTTP answer within the bounds."""


@dataclass(frozen=True)
class AnswerHead:
    """Status and headers of an answer.

    Attributes:
        status: The HTTP status.
        headers: The headers, with lower-case names; of one that came more than once, all values with commas between.
            Bytes that are not UTF-8 became U+FFFD.
    """

    status: int
    headers: Mapping[str, str]


class AnswerReader:
    """Takes the bytes of a connection as they come, and returns those of the answer's body.

    Interim answers (1xx) are skipped, and bytes after the end of the answer are dropped.

    Attributes:
        head: Status and headers, as soon as they are there.
        is_complete: Whether the answer is there to its end.
    """

    def __init__(self) -> None:
        self.head: AnswerHead | None = None
        self.is_complete = False
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        # h11 wants to know which request is answered; only its method matters, and GET and POST are alike.
        self._http.send(h11.Request(method="GET", target="/", headers=[("Host", "api")]))
        self._http.send(h11.EndOfMessage())

    @property
    def keeps_open(self) -> bool:
        """Whether the connection may be used again after this answer."""
        return self.is_complete and self._http.their_state is h11.DONE and not self._http.trailing_data[0]

    @property
    def closes(self) -> bool:
        """Whether the answer is complete, and nothing else may be read from the connection."""
        return self.is_complete and not self.keeps_open

    def feed(self, data: bytes) -> bytes:
        """Take bytes that were received, and return what they hold of the body.

        Args:
            data: At least one byte.

        Raises:
            UnreadableAnswerError: If this is no HTTP answer, or its headers are longer than `MAX_HEADER_BYTES`.
        """
        body = bytearray()
        # In slices, so that the bound of the headers holds however much comes at once.
        for start in range(0, len(data), _SLICE_BYTES):
            if self.is_complete:
                break
            body += self._receive(data[start : start + _SLICE_BYTES])
        return bytes(body)

    def feed_eof(self) -> bytes:
        """Take the end of the connection, and return what it completes of the body.

        Raises:
            UnreadableAnswerError: If the answer is not complete.
        """
        body = b"" if self.is_complete else self._receive(b"")
        if not self.is_complete:
            raise UnreadableAnswerError(_CUT_OFF)
        return body

    def _receive(self, data: bytes) -> bytes:
        body = bytearray()
        try:
            self._http.receive_data(data)
            while not self.is_complete:
                match event := self._http.next_event():
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
            # Without what h11 quotes of it: a line of an answer may hold anything.
            reason = str(error).partition(":")[0]
            raise UnreadableAnswerError(f"what came is no HTTP answer ({reason})" if data else _CUT_OFF) from None
        return bytes(body)


def _read_head(response: h11.Response) -> AnswerHead:
    headers: dict[str, str] = {}
    size = 0
    for name, value in response.headers:
        size += len(name) + len(value)
        known, text = name.decode("ascii"), value.decode("utf-8", "replace")
        headers[known] = f"{headers[known]}, {text}" if known in headers else text
    if size > MAX_HEADER_BYTES:
        raise UnreadableAnswerError(f"its headers are longer than {MAX_HEADER_BYTES} bytes")
    return AnswerHead(response.status_code, headers)


def decoded_body(head: AnswerHead, body: bytes, max_bytes: int) -> bytes:
    """Return a body without its compression.

    Args:
        head: Says in Content-Encoding how the body is compressed.
        body: What was received.
        max_bytes: The result ends there or shortly after, so that a small body cannot fill the memory.

    Raises:
        UnreadableAnswerError: If the body is not compressed as its head says, not whole, or in a way that no
            request of this package asks for.
    """
    codings = [coding.strip().lower() for coding in head.headers.get("content-encoding", "").split(",")]
    for coding in reversed(codings):
        if coding in ("", "identity") or not body:
            continue
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise UnreadableAnswerError(f"its Content-Encoding {coding[:40]!r} was not asked for")
        body = _inflated(body, coding, max_bytes)
    return body


def _inflated(body: bytes, coding: str, max_bytes: int) -> bytes:
    window = _GZIP
    if coding == "deflate":
        # Some servers send deflate without the zlib header that the standard asks for.
        has_header = len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and (body[0] << 8 | body[1]) % 31 == 0
        window = _DEFLATE if has_header else -_DEFLATE
    found = bytearray()
    try:
        while body and len(found) <= max_bytes:
            stream = zlib.decompressobj(window)
            found += stream.decompress(body, max_bytes + 1 - len(found))
            if not stream.eof and len(found) <= max_bytes:
                raise UnreadableAnswerError(f"its {coding} body is not whole")
            # A gzip file may have several members; anything else behind the first is padding.
            body = stream.unused_data if window == _GZIP and stream.unused_data[:2] == b"\x1f\x8b" else b""
    except zlib.error as error:
        raise UnreadableAnswerError(f"its body is not {coding}: {error}") from None
    return bytes(found)
