"""Answers of the API, and the events that resumed tasks get from them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from airflow_provider_qwenimage.contract import TaskSnapshot
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.answers import HttpAnswer, parse_status, parse_submission
from airflow_provider_qwenimage.text.masking import Mask
from airflow_provider_qwenimage.triggers import event_of, snapshot_of
from tests.fuzz.junk import KEY, json_bytes, json_values, mutated
from tests.fuzz.storable import check_message, check_storable, check_text

TASK_ID = "n43abc123def456qwenimg"
MOST_EVENT_BYTES = 64 * 1024
_MOST_CHARACTERS = 5000
_DAY_SECONDS = 86_400
_REQUEST = {"prompt": "a fox", "size": "1024*1024", "seed": 7, "output_format": "png", "callback_url": None}
_STATUS = {
    "task_id": TASK_ID,
    "status": "SUCCESS",
    "consumed_credits": 5,
    "error_message": None,
    "created_at": "2024-12-19T10:00:00Z",
    "request": _REQUEST,
    "response": ["https://cdn.example.com/image.png"],
}
_FAILED = _STATUS | {
    "status": "FAILED",
    "consumed_credits": 0,
    "error_message": "Content policy violation detected",
    "response": None,
}
_ENVELOPE = {"code": 200, "message": "success", "data": _STATUS}
_STATUSES = st.one_of(st.just(200), st.sampled_from((200, 201, 204, 302, 400, 401, 402, 404, 429, 500, 502, 599)))
_RETRY_AFTER = st.one_of(
    st.none(),
    st.sampled_from(("0", "30", "-1", "1e9", "9" * 400, "Wed, 21 Oct 2026 07:28:00", "Wed Oct 21 07:28:00 2026", "²")),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer before it is sent; `headers` are the additional ones."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@st.composite
def envelopes(draw: st.DrawFn) -> Any:
    """Return possible envelopes of the API, as JSON values."""
    data = draw(st.one_of(mutated(_STATUS), mutated(_STATUS), mutated(_FAILED), json_values()))
    return draw(st.one_of(st.just(_ENVELOPE | {"data": data}), mutated(_ENVELOPE)))


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """Return answers of the API, of proxies, and of servers that are not the API."""
    body = draw(st.one_of(json_bytes(envelopes()), json_bytes(envelopes()), json_bytes(json_values()), st.binary()))
    retry_after = draw(_RETRY_AFTER)
    headers = () if retry_after is None else (("Retry-After", retry_after),)
    return Answer(draw(_STATUSES), body, headers)


def check_event_of(outcome: TaskSnapshot | QwenImageError) -> None:
    """Check that the event of an outcome can be stored, and that the resumed task reads the same outcome from it."""
    policy = polling.PollPolicy(poll_interval=1, end_time=time.time() + 3600, max_consecutive_failures=1)
    decision = polling.decide(policy, polling.PollState(), outcome, image_task_id=TASK_ID, now=time.time())
    if isinstance(decision, polling.Wait):
        check_text(decision.notice or "")
        return
    event = event_of(decision, TASK_ID)
    check_storable(event, MOST_EVENT_BYTES)
    received = _through_airflow(event)
    read: TaskSnapshot | QwenImageError
    try:
        read = snapshot_of(received)
    except QwenImageError as error:
        read = error
    if isinstance(decision, polling.Done):
        assert isinstance(read, TaskSnapshot), f"the image is drawn, but the resumed task fails: {read}"
        assert read.image_urls == decision.snapshot.image_urls
    else:
        assert isinstance(read, QwenImageError)
        assert type(read) is type(decision.error)
        check_message(read)


def _through_airflow(event: dict[str, Any]) -> Any:
    """Return an event after the triggerer's encoder and the database."""
    from airflow.sdk.execution_time.comms import _new_encoder
    from airflow.serialization.serialized_objects import BaseSerialization
    from airflow.triggers.base import TriggerEvent
    from msgspec import msgpack

    sent = msgpack.decode(_new_encoder().encode(TriggerEvent(event).payload))
    stored = json.dumps(BaseSerialization.serialize(sent), allow_nan=False)
    return BaseSerialization.deserialize(json.loads(stored))


@contextlib.contextmanager
def prepare() -> Iterator[Callable[[Answer], None]]:
    """Yield the check of one answer, without a network."""
    mask = Mask(KEY)

    def check(answer: Answer) -> None:
        headers = {name.lower(): value for name, value in answer.headers}
        got = HttpAnswer(answer.status, headers, answer.body, mask)
        outcome: TaskSnapshot | QwenImageError
        try:
            outcome = parse_status(got, TASK_ID)
        except QwenImageError as error:
            check_bounded(error)
            outcome = error
        else:
            assert outcome.task_id == TASK_ID
        check_event_of(outcome)
        with contextlib.suppress(QwenImageError):
            check_text(parse_submission(got))

    yield check


def check_bounded(error: QwenImageError) -> None:
    """Check the length of an error's message, and the limits of its `retry_after`."""
    check_message(error, _MOST_CHARACTERS)
    retry_after = getattr(error, "retry_after", None)
    assert retry_after is None or 0 <= retry_after <= _DAY_SECONDS
