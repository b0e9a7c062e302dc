"""Draws images at the API, which costs credits, and notes each answer. No submission is ever sent again."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_qwenimage.books.calls import booked_calls, settle_end
from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID, ConnectionSettings
from airflow_provider_qwenimage.client.downloads import ImageClient, fetch
from airflow_provider_qwenimage.client.transport import RequestsTransport
from airflow_provider_qwenimage.contract import DEFAULT_MAX_IMAGE_BYTES, GenerateRequest, TaskSnapshot
from airflow_provider_qwenimage.exceptions import QwenImageError, QwenImageTaskFailedError
from airflow_provider_qwenimage.recordings.cleaning import (
    LEFT_OUT,
    Body,
    clean_body,
    clean_headers,
    clean_image,
    other_headers,
)
from airflow_provider_qwenimage.recordings.format import IMAGE, STATUS, SUBMISSION, RecordedAnswer
from airflow_provider_qwenimage.rules import polling, wait_defaults
from airflow_provider_qwenimage.rules.answers import ApiCall, HttpAnswer, Result, status_call, submission_call
from airflow_provider_qwenimage.rules.http_answers import AnswerHead
from airflow_provider_qwenimage.text.signed_urls import query_names, stated_lifetime

# The seed makes two images comparable; everything else is the API's default.
REQUEST = GenerateRequest(prompt="A red apple on a wooden table, soft daylight", seed=2512)
TIMEOUT_SECONDS = 900.0


@dataclass
class Drawing:
    """Images that are drawn one after the other.

    Args:
        settings: The settings of the connection.
        note: Called with each answer, without the key and without queries of URLs.
        use: Called with the id of an image task and the bytes that were downloaded for it.
        poll_interval: Seconds between the first polls; see `polling.PollPolicy`.
        conn_id: The id of the connection, for its books.

    Attributes:
        paid: The ids of the accepted image tasks.
        unfinished: Those of them that may have an image which was not passed on.
        is_submitting: Whether a submission is under way, so that it may be paid.
    """

    settings: ConnectionSettings
    note: Callable[[RecordedAnswer], None]
    use: Callable[[str, bytes], None]
    poll_interval: float = wait_defaults.DEFAULT_POLL_INTERVAL
    conn_id: str = DEFAULT_CONN_ID
    paid: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    is_submitting: bool = False

    def draw(self, count: int, say: Callable[[str], None]) -> None:
        """Draw images; the first one that fails is the last.

        Args:
            count: How many.
            say: Reports progress.

        Raises:
            QwenImageError: If an image fails, or a budget of the connection has no room for it.
            ValueError: If the connection's `verify` or its books are not usable; nothing was sent.
        """
        transport = RequestsTransport(self.settings)
        try:
            with ImageClient(self.settings.verify) as images:
                for number in range(1, count + 1):
                    self._draw_one(number, transport, images, say)
        finally:
            transport.close()

    def _draw_one(
        self, number: int, transport: RequestsTransport, images: ImageClient, say: Callable[[str], None]
    ) -> None:
        observer = _Observer(number, self.settings, self.note)
        with closing(booked_calls(self.settings.books, self.conn_id, REQUEST)) as booked:
            booked.reserve()
            self.is_submitting = True
            try:
                task_id = transport.send(observer.seeing(submission_call(REQUEST), SUBMISSION))
            except QwenImageError as error:
                # The error says whether it may be paid. An interruption does not, so the flag stays.
                self.is_submitting = False
                booked.note(error)
                raise
            booked.note(task_id)
        self.paid.append(task_id)
        self.unfinished.append(task_id)
        self.is_submitting = False
        say(f"Image {number}: submitted as {task_id}.")
        try:
            snapshot = self._wait(task_id, observer, transport)
        except QwenImageTaskFailedError as error:
            # It has no image, and the error says what it cost.
            self.unfinished.remove(task_id)
            if error.snapshot is not None:
                settle_end(self.settings.books, self.conn_id, error.snapshot)
            raise
        settle_end(self.settings.books, self.conn_id, snapshot)
        say(f"Image {number}: drawn after {observer.elapsed():.0f} s.")
        self.use(task_id, observer.download(images, snapshot.image_urls[0]))
        self.unfinished.remove(task_id)

    def _wait(self, task_id: str, observer: _Observer, transport: RequestsTransport) -> TaskSnapshot:
        policy = polling.PollPolicy.for_timeout(
            TIMEOUT_SECONDS, self.poll_interval, wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES, now=time.time()
        )
        state = polling.PollState()
        while True:
            outcome: TaskSnapshot | QwenImageError
            try:
                call = observer.seeing(status_call(task_id), STATUS)
                outcome = transport.send(call, policy.seconds_for_a_read(time.time()))
            except QwenImageError as error:
                outcome = error
            decision = polling.decide(policy, state, outcome, image_task_id=task_id, now=time.time())
            if isinstance(decision, polling.Done):
                return decision.snapshot
            if isinstance(decision, polling.GiveUp):
                raise decision.error
            state = decision.state
            time.sleep(decision.delay)


class _Observer:
    """Notes the answers about one image, with their times."""

    def __init__(self, number: int, settings: ConnectionSettings, note: Callable[[RecordedAnswer], None]) -> None:
        self._number = number
        self._mask = settings.mask
        self._note = note
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Return the seconds since the submission was sent."""
        return time.monotonic() - self._began

    def seeing(self, call: ApiCall[Result], kind: str) -> ApiCall[Result]:
        """Return a call whose answer is noted before it is read."""
        sent_at = self.elapsed()

        def read(answer: HttpAnswer) -> Result:
            # Whatever an answer contains, a paid image is not lost because it could not be noted.
            with suppress(Exception):
                request = REQUEST.description() if kind == SUBMISSION else {}
                self._add(kind, sent_at, answer, body=clean_body(answer.body, self._mask), request=request)
            return call.read(answer)

        return replace(call, read=read)

    def download(self, images: ImageClient, url: str) -> bytes:
        """Return the bytes under a URL, and note the last answer."""
        sent_at, heads = self.elapsed(), list[AnswerHead]()
        access: dict[str, Any] = {
            "url_parameters": query_names(url),
            "url_seconds": stated_lifetime(url, time.time()),
        }
        body = Body(LEFT_OUT, "not an image, or not complete")
        try:
            # It is verified later: what comes instead of the requested image is a fact as well.
            content = fetch(images, url, DEFAULT_MAX_IMAGE_BYTES, lambda content: content, heads.append)
            body = clean_image(content, self._mask)
        finally:
            with suppress(Exception):
                if heads:
                    self._add(IMAGE, sent_at, heads[-1], body=body, **access)
        return content

    def _add(self, kind: str, sent_at: float, head: HttpAnswer | AnswerHead, *, body: Body, **fields: Any) -> None:
        at = self.elapsed()
        self._note(
            RecordedAnswer(
                image=self._number,
                kind=kind,
                at=at,
                seconds=at - sent_at,
                status=head.status,
                headers=clean_headers(head.headers, self._mask),
                other_headers=other_headers(head.headers, self._mask),
                body=body,
                **fields,
            )
        )
