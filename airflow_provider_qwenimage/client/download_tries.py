"""Decides the time limits, redirects, size limits, errors and retries of one image's download."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from airflow_provider_qwenimage.client.diagnosis import describe, is_interruption
from airflow_provider_qwenimage.client.exchanges import Exchange
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageImageError
from airflow_provider_qwenimage.rules.answers import read_retry_after
from airflow_provider_qwenimage.rules.http_answers import AnswerHead, UnreadableAnswerError, decoded_body
from airflow_provider_qwenimage.rules.image_urls import MAX_REDIRECTS, ImageRequest, redirect_of
from airflow_provider_qwenimage.rules.origins import displayed_url
from airflow_provider_qwenimage.rules.retries import RequestRetries
from airflow_provider_qwenimage.text.urls import without_access

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DownloadPace:
    """How long a download may take: a fixed time, and more for each received byte.

    Attributes:
        first_seconds: The fixed time: to look the host up, to connect, and until the first bytes.
        bytes_per_second: The slowest average rate that is allowed.
        most_seconds: The limit for all tries of one image, with the pauses between them.
    """

    first_seconds: float = 60.0
    bytes_per_second: float = 4096.0
    most_seconds: float = 1800.0


class DownloadTries:
    """All tries to download one image, with either client.

    Args:
        url: The URL of the image.
        max_image_bytes: A longer image is refused.
        retries: The number and the pace of retries.
        pace: The time limits.
        see_head: Called with status and headers of each answer, redirects included.

    Attributes:
        request: The next request to send, in the exchange that `next_exchange` returned.
        is_complete: Whether all bytes of the image were received.
    """

    def __init__(
        self,
        url: str,
        max_image_bytes: int,
        retries: RequestRetries,
        pace: DownloadPace,
        see_head: Callable[[AnswerHead], None] | None = None,
    ) -> None:
        self._retries = retries
        self._see_head = see_head
        self._pace = pace
        self._url = url
        self._shown = displayed_url(url)
        self._max_image_bytes = max_image_bytes
        self._ends_at = time.monotonic() + self._pace.most_seconds
        self._tries = 0
        self.begin()

    def __repr__(self) -> str:
        return f"<download of {self._shown}>"

    def begin(self) -> Exchange:
        """Begin a try, and return an exchange without a request."""
        self._began = time.monotonic()
        self._next = self._url
        self._redirects = 0
        self._head: AnswerHead | None = None
        self._received = bytearray()
        self.is_complete = False
        return Exchange(self._seconds_left())

    def next_exchange(self) -> Exchange:
        """Return an exchange for the next request of a try: the first one, or that of a redirect."""
        self.request = ImageRequest.of(self._next)
        return Exchange(self._seconds_left())

    def take_head(self, head: AnswerHead) -> bool:
        """Return whether the image follows."""
        if self._see_head is not None:
            self._see_head(head)
        target = redirect_of(head, self._next)
        if target is not None:
            self._redirects += 1
            if self._redirects > MAX_REDIRECTS:
                raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")
            self._next = target
            return False
        if head.status != HTTPStatus.OK:
            raise self._refused(head)
        self._head = head
        length = head.headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            self._check_size(int(length[:18]))
        return True

    def add(self, chunk: bytes) -> float:
        """Take bytes of the image, and return how many seconds the rest may take."""
        self._received += chunk
        # The message does not depend on the size of the chunks.
        self._check_size(min(len(self._received), self._max_image_bytes + 1))
        return self._seconds_left()

    def take_end(self) -> None:
        """Note that all bytes were received."""
        self.is_complete = True

    def content(self) -> bytes:
        """Return the image without compression."""
        if self._head is None:
            raise UnreadableAnswerError("no response was received")
        content = decoded_body(self._head, bytes(self._received), self._max_image_bytes)
        self._received.clear()
        self._check_size(len(content))
        return content

    def failure(self, error: Exception, exchange: Exchange) -> Exception:
        """Return the error of a try that failed."""
        if isinstance(error, QwenImageImageError) or is_interruption(error):
            return error
        cause: Exception = exchange.fault or error
        if exchange.fault is None and (exchange.is_over or isinstance(cause, TimeoutError)):
            seconds = time.monotonic() - self._began
            reason = f"it was too slow ({len(self._received)} bytes in {seconds:.0f} s)."
        elif isinstance(cause, ValueError | QwenImageError | UnreadableAnswerError):
            # Libraries also raise such errors, and quote the URL.
            reason = f"{without_access(str(cause)).removesuffix('.')}."
        else:
            reason = describe(cause)
        advice = "Check that the worker may reach the image host."
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            advice = "If a proxy inspects TLS, give the file of its certificate authority as verify in the extra."
        return QwenImageImageError(f"{self._shown} could not be downloaded: {reason} {advice}")

    def pause(self, error: QwenImageImageError) -> float | None:
        """Return how many seconds to wait before the next try, or None to give up."""
        pause = self._retries.pause(error, self._tries)
        if pause is None or time.monotonic() + pause >= self._ends_at:
            return None
        self._tries += 1
        log.warning("Download of %s failed; trying again in %.1f s: %s", self._shown, pause, error)
        return pause

    def _seconds_left(self) -> float:
        most = self._began + self._pace.first_seconds + len(self._received) / self._pace.bytes_per_second
        return max(0.0, min(most, self._ends_at) - time.monotonic())

    def _refused(self, head: AnswerHead) -> QwenImageImageError:
        retry_after = read_retry_after(head.headers)
        wait = "" if retry_after is None else f" It asks to wait {retry_after:.0f} s."
        return QwenImageImageError(
            f"{self._shown} answered HTTP {head.status} instead of the image.{wait} Image URLs may expire; "
            "if it is too late, submit the prompt again.",
            retry_after=retry_after,
        )

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_image_bytes:
            raise QwenImageImageError(
                f"{self._shown} is larger than allowed: at least {size_bytes} bytes, limit {self._max_image_bytes}. "
                "Raise max_image_bytes if images may be that large.",
                permanent=True,
            )
