"""When a request is sent again: never a submission that may have been accepted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageBadRequestError,
    QwenImageConnectionError,
    QwenImageContractError,
    QwenImageCreditsError,
    QwenImageError,
    QwenImageImageError,
    QwenImageNotFoundError,
    QwenImageRateLimitError,
    QwenImageServerError,
    QwenImageSubmissionUnknownError,
)
from airflow_provider_qwenimage.rules import retries
from airflow_provider_qwenimage.rules.answers import HttpAnswer, status_call, submission_call

SUBMISSION = submission_call(GenerateRequest(prompt="a fox"))
STATUS = status_call("n43")
HTML = b"<html>Bad gateway</html>"


def envelope(code: object, **fields: object) -> bytes:
    return json.dumps({"code": code, "message": "no", "data": None} | fields).encode()


def error_of(call: object, status: int, body: bytes, **headers: str) -> QwenImageError:
    with pytest.raises(QwenImageError) as caught:
        retries.read_answer(call, HttpAnswer(status, headers, body))
    return caught.value


def is_sent_again(error: QwenImageError) -> bool:
    return retries.RequestRetries().pause(error, 0) is not None


@pytest.mark.parametrize(
    ("status", "body", "error_class", "again"),
    [
        (500, envelope(500), QwenImageServerError, True),
        (200, envelope(500), QwenImageServerError, True),
        (429, envelope(429), QwenImageRateLimitError, True),
        (429, HTML, QwenImageRateLimitError, True),
        (200, envelope(429), QwenImageRateLimitError, True),
        (400, envelope(400), QwenImageBadRequestError, False),
        (200, envelope(401), QwenImageAuthError, False),
        (402, envelope(402), QwenImageCreditsError, False),
        (200, envelope(404), QwenImageNotFoundError, False),
        (422, envelope(422), QwenImageBadRequestError, False),
        (200, envelope(455), QwenImageBadRequestError, False),
        (201, envelope(429), QwenImageRateLimitError, True),
        (502, envelope(402), QwenImageCreditsError, False),
        (200, envelope(1001), QwenImageBadRequestError, False),
        (200, b'{"code": 429}', QwenImageRateLimitError, True),
        (301, b"", QwenImageContractError, False),
        (308, b"", QwenImageContractError, False),
    ],
)
def test_an_unambiguous_rejection_of_a_submission_is_not_taken_for_a_lost_answer(
    status: int, body: bytes, error_class: type[QwenImageError], again: bool
) -> None:
    error = error_of(SUBMISSION, status, body)
    assert type(error) is error_class
    assert is_sent_again(error) is again


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, HTML),
        (500, b""),
        (502, envelope(500)),
        (502, envelope(502)),
        (502, HTML),
        (503, envelope(503)),
        (504, HTML),
        (408, HTML),
        (200, HTML),
        (200, b""),
        (200, b'{"code": 200, "message": "success", "data": {}}'),
        (200, b'{"code": 200, "data": {"task_id": 5}}'),
        (202, b""),
        (400, HTML),
        (403, HTML),
        (404, HTML),
        (429, b'{"data": {"task": "n43"}}'),
        (429, envelope(429, data={})),
        (500, envelope(500, data=[])),
        (400, envelope(400, data=False)),
        (400, envelope("400")),
        (200, envelope(None)),
        (200, envelope(True)),
        (200, envelope(0)),
        (200, envelope(302)),
        (200, envelope(408)),
        (200, envelope(501)),
        (200, envelope(503)),
        (500, envelope(200)),
        (429, envelope(200)),
        (302, b""),
        (303, b""),
    ],
)
def test_any_other_answer_to_a_submission_leaves_it_unknown_and_never_sent_again(status: int, body: bytes) -> None:
    error = error_of(SUBMISSION, status, body)
    assert type(error) is QwenImageSubmissionUnknownError
    assert not is_sent_again(error)
    assert error.permanent


@pytest.mark.parametrize(
    ("status", "body", "again"),
    [
        (500, envelope(500), True),
        (500, HTML, True),
        (502, HTML, True),
        (503, b"", True),
        (408, b"", True),
        (429, HTML, True),
        (401, envelope(401), False),
        (404, envelope(404), False),
        (200, HTML, False),
        (201, HTML, False),
    ],
)
def test_a_status_read_is_sent_again_after_a_fault_that_may_pass(status: int, body: bytes, again: bool) -> None:
    assert is_sent_again(error_of(STATUS, status, body)) is again


def test_a_submission_that_was_not_sent_is_sent_again_and_a_lost_one_is_not() -> None:
    not_sent = retries.lost(SUBMISSION, "refused", sent=False)
    lost = retries.lost(SUBMISSION, "reset", sent=True)
    assert (type(not_sent), is_sent_again(not_sent)) == (QwenImageConnectionError, True)
    assert (type(lost), is_sent_again(lost)) == (QwenImageSubmissionUnknownError, False)
    assert "may have been accepted and paid" in str(lost)
    assert "clear the task" in str(lost)


def test_a_lost_status_read_is_sent_again() -> None:
    assert is_sent_again(retries.lost(STATUS, "reset", sent=True))


def test_a_broken_download_is_tried_again_and_a_wrong_image_is_not() -> None:
    assert is_sent_again(QwenImageImageError("truncated"))
    assert not is_sent_again(QwenImageImageError("a cat", permanent=True))


TRANSIENT = QwenImageServerError("no", code=500, from_api=True)


def test_pauses_double_up_to_the_longest_and_end_at_the_limit() -> None:
    policy = retries.RequestRetries(limit=8, delay_seconds=1.0)
    pauses = [policy.pause(TRANSIENT, sent_again, draw=lambda: 1.0) for sent_again in range(9)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, None]


@given(draw=st.floats(0, 1), sent_again=st.integers(0, 2))
def test_jitter_covers_the_whole_pause(draw: float, sent_again: int) -> None:
    assert retries.RequestRetries().pause(TRANSIENT, sent_again, draw=lambda: draw) == draw * 2**sent_again


def test_retry_after_is_waited_for_unless_it_is_longer_than_a_worker_should_sleep() -> None:
    policy = retries.RequestRetries()
    assert policy.pause(QwenImageRateLimitError("slow", retry_after=20.0), 0) == 20.0
    assert policy.pause(QwenImageRateLimitError("slow", retry_after=61.0), 0) is None


BAD_GATEWAY = QwenImageServerError("no", code=502)


@pytest.mark.parametrize(
    ("error", "server_errors", "again"),
    [(TRANSIENT, 0, True), (TRANSIENT, 1, False), (QwenImageRateLimitError("slow"), 1, True), (BAD_GATEWAY, 1, True)],
)
def test_only_a_plain_500_uses_up_the_one_submission_after_it(
    error: QwenImageError, server_errors: int, again: bool
) -> None:
    assert (retries.RequestRetries().pause(error, 0, server_errors=server_errors) is not None) is again


def test_the_error_after_another_500_may_be_paid_and_is_not_retried() -> None:
    assert retries.last_error(TRANSIENT, 0) is TRANSIENT
    assert retries.last_error(BAD_GATEWAY, 1) is BAD_GATEWAY
    last = retries.last_error(TRANSIENT, 1)
    assert type(last) is QwenImageServerError
    assert last.permanent
    assert "may have been charged" in str(last)
    assert "clear the task" in str(last)
    assert not TRANSIENT.permanent


def test_zero_retries_send_once() -> None:
    assert retries.RequestRetries(limit=0).pause(TRANSIENT, 0) is None


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"limit": -1}, "retry_limit"), ({"limit": 1.5}, "retry_limit"), ({"delay_seconds": -0.1}, "retry_delay")],
)
def test_a_bad_retry_argument_is_refused_by_name(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*it must be"):
        retries.RequestRetries(**arguments)
