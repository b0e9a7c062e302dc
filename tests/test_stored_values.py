"""Airflow can encode and PostgreSQL can store the events, XComs and records made from any answer of the API.

A value that either refused would end the triggerer, with the waits of all DAGs in it.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, select

from airflow_provider_qwenimage import triggers
from airflow_provider_qwenimage.contract import TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError, QwenImageContractError, QwenImageError
from airflow_provider_qwenimage.rules import polling
from airflow_provider_qwenimage.rules.polling import GiveUp
from airflow_provider_qwenimage.rules.submission_facts import End, EndKind, Intent
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.tasks.failures import reporting_failures
from airflow_provider_qwenimage.text.storable import MAX_TEXT_CHARACTERS, storable
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger, event_of, snapshot_of
from tests.airflows import AIRFLOW
from tests.databases.postgres import Postgres
from tests.databases.server import ServerMissingError
from tests.same_answer import SameAnswer

if AIRFLOW < (3, 3):
    pytest.skip("tests the encoding of the newest Airflow", allow_module_level=True)

from airflow.jobs.triggerer_job_runner import TriggerEventEntry, TriggerRunnerSupervisor, messages
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.sdk.execution_time.comms import _RequestFrame, _ResponseFrame
from airflow.sdk.serde import deserialize, serialize
from airflow.triggers.base import TriggerEvent
from msgspec.msgpack import Decoder

MAX_EVENT_BYTES = 200_000
IMAGE = "https://cdn.example.com/1.png"
DOCUMENTED: dict[str, Any] = {
    "task_id": "n43",
    "status": "SUCCESS",
    "consumed_credits": 5,
    "error_message": None,
    "created_at": "2024-12-19T10:00:00Z",
    "request": {"prompt": "a fox", "size": "1024*1024", "seed": 7, "output_format": "png"},
    "response": [IMAGE],
}
DEEP: Any = {}
for _ in range(400):
    DEEP = {"deeper": DEEP}

TEXTS = st.text(st.characters(categories=None), max_size=20) | st.sampled_from(
    ["a fox \ud83d", "\udc00", "\x00", "a\x00b", "\x1b[31m", "\u202e", "x" * 200_000, "Content policy \ud83d"]
)
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([10**31, -(10**31), 2**63, 2**64, 1e30, 1e300, 10**400, -0.0, math.nan])
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.just(DEEP),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=8,
)
URLS = st.just(IMAGE) | TEXTS.map(lambda text: f"https://cdn.example.com/{text}.png")
DATA = st.fixed_dictionaries(
    {"task_id": st.just("n43"), "status": st.sampled_from(["SUCCESS", "FAILED", "ODD"]) | TEXTS},
    optional={
        "consumed_credits": JSON_VALUES,
        "error_message": JSON_VALUES,
        "created_at": JSON_VALUES,
        "request": st.dictionaries(st.sampled_from(list(DOCUMENTED["request"])) | TEXTS, JSON_VALUES) | JSON_VALUES,
        "response": st.lists(URLS, max_size=40) | JSON_VALUES,
        "other": JSON_VALUES,
    },
)
ANSWERS = st.fixed_dictionaries({"code": st.sampled_from([200, 400, 500])}, optional={"message": TEXTS, "data": DATA})

# The database and the server are the same for all examples.
many = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


class Database:
    """PostgreSQL with Airflow's columns for the arguments of a resumed task and for XComs."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        kinds = {"event": TaskInstance.next_kwargs.type, "xcom": XComModel.value.type}
        columns = [Column(name, kind) for name, kind in kinds.items()]
        self._table = Table("stored", MetaData(), Column("id", Integer, primary_key=True), *columns)
        self._table.create(self._engine)

    def store(self, **values: Any) -> Any:
        """Store a value and return it as read back."""
        (column,) = values
        with self._engine.begin() as connection:
            key = connection.execute(insert(self._table).values(**values)).inserted_primary_key
            assert key is not None
            return connection.execute(select(self._table.c[column]).where(self._table.c.id == key[0])).scalar_one()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    try:
        postgres = Postgres()
    except ServerMissingError as error:
        pytest.skip(str(error))
    with postgres:
        yield Database(postgres.url)


@pytest.fixture(scope="module")
def api() -> Iterator[SameAnswer]:
    with SameAnswer() as server, pytest.MonkeyPatch.context() as environment:
        connection = {"conn_type": "qwenimage", "host": server.url, "password": "sk-0123456789"}
        environment.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))
        # The deadline of each wait has passed; its only poll may take as long as it needs.
        environment.setattr(polling, "LAST_READ_SECONDS", 250.0)
        yield server


def through_airflow(payload: Mapping[str, Any], database: Database) -> Any:
    """Pass an event from a triggerer to the resumed task as Airflow does, and return it as it arrives."""
    entry = TriggerEventEntry(7, TriggerEvent(payload), None)
    sent = messages.TriggerStateChanges(events=[entry], finished=[7])
    frame = _RequestFrame(id=0, body=sent.model_dump()).as_bytes()
    assert len(frame) < MAX_EVENT_BYTES
    received = TriggerRunnerSupervisor.decoder.validate_python(Decoder(_RequestFrame).decode(frame[4:]).body)
    assert isinstance(received, messages.TriggerStateChanges)
    assert received.events
    stored = database.store(event=serialize({"event": received.events[0].event.payload}))
    resumed: Any = deserialize(stored)
    # The API server sends it to the worker's supervisor as JSON; the supervisor sends it to the task as msgpack.
    sent_on = _ResponseFrame(id=0, body=json.loads(json.dumps(resumed))).as_bytes()
    arrived = Decoder(_ResponseFrame).decode(sent_on[4:]).body
    assert arrived is not None
    return arrived["event"]


def fired(answer: Mapping[str, Any], api: SameAnswer) -> dict[str, Any]:
    """Return the event that a trigger fires after this answer."""
    api.answer(answer)
    trigger = QwenImageStatusTrigger("n43", poll_interval=0.001, end_time=1.0, max_consecutive_failures=1)

    async def run() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    (payload,) = asyncio.run(run())
    return dict(payload)


@many
@given(answer=ANSWERS)
def test_every_event_of_an_odd_answer_reaches_its_task(
    answer: dict[str, Any], api: SameAnswer, database: Database
) -> None:
    event = through_airflow(fired(answer, api), database)
    try:
        snapshot = snapshot_of(event)
    except QwenImageError:
        return
    pushed = [list(snapshot.image_urls), snapshot.consumed_credits, snapshot.described_request()]
    assert database.store(xcom=pushed) == pushed


@pytest.mark.parametrize(
    "odd",
    [
        {"request": {"prompt": "a fox \ud83d"}},
        {"request": {"\ud83d": {"\x00": math.nan}}},
        {"request": "\x00"},
        {"consumed_credits": 10**31},
        {"consumed_credits": math.nan},
        {"consumed_credits": math.inf},
        {"consumed_credits": 2**64},
        {"error_message": "\ud83d\x00"},
        {"created_at": "\ud83d"},
        {"created_at": 10**400},
        {"created_at": "2024-12-19T10:00:00+24:00"},
        {"queue": {"\ud83d": [10**31, math.inf, "\x00"]}},
        {"\ud83d": 1},
        {"deep": DEEP},
        {"long": "x" * 900_000},
        {"request": {"prompt": "x" * 900_000}},
    ],
    ids=lambda odd: f"{odd!r:.60}",
)
def test_an_odd_value_in_a_field_that_is_not_needed_does_not_fail_a_success(
    odd: dict[str, Any], api: SameAnswer, database: Database
) -> None:
    event = through_airflow(fired({"code": 200, "data": DOCUMENTED | odd}, api), database)
    assert snapshot_of(event).image_urls == (IMAGE,)


def test_an_event_has_only_the_fields_that_the_resumed_task_reads(api: SameAnswer, database: Database) -> None:
    data = DOCUMENTED | {"request": DOCUMENTED["request"] | {"callback_url": "https://a.example/?token=1"}, "queue": 3}
    event = through_airflow(fired({"code": 200, "data": data}, api), database)
    assert snapshot_of(event) == TaskSnapshot.from_data(DOCUMENTED)
    assert set(event["snapshot"]) == set(DOCUMENTED)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("\ud83d\x00" * 100_000),
        UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no UTF-8"),
        json.JSONDecodeError("no JSON", "\ud83d", 0),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(("module", "function"), [(polling, "decide"), (triggers, "_needed")], ids=["wait", "event"])
def test_an_error_in_a_trigger_ends_only_its_own_wait_with_an_event(
    *,
    api: SameAnswer,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    function: str,
    error: Exception,
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, function, break_down)
    event = through_airflow(fired({"code": 200, "data": DOCUMENTED}, api), database)
    with pytest.raises(QwenImageError, match=rf"{type(error).__name__} .* at .*test_stored_values\.py") as caught:
        snapshot_of(event)
    assert not caught.value.permanent


@many
@given(text=TEXTS)
def test_every_error_of_a_wait_reaches_its_task(text: str, database: Database) -> None:
    for error in (QwenImageConnectionError(text), QwenImageContractError(text * 50)):
        event = through_airflow(event_of(GiveUp(error), text or "n43"), database)
        with pytest.raises(type(error)):
            snapshot_of(event)


@many
@given(value=JSON_VALUES)
def test_every_value_is_made_storable(value: object, database: Database) -> None:
    stored = storable(value)
    assert through_airflow({"value": stored}, database) == {"value": stored}
    assert database.store(xcom=stored) == stored
    assert storable(stored) == stored


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "a fox 🦊\n\t",
        "",
        5,
        -(2**63),
        2**63 - 1,
        2.5,
        -(2.0**53),
        [],
        {},
        {"a": [{"b": None}]},
        "x" * MAX_TEXT_CHARACTERS,
    ],
)
def test_a_storable_value_stays_unchanged(value: object) -> None:
    stored = storable(value)
    assert (stored, type(stored)) == (value, type(value))


def test_an_unstorable_value_is_replaced_visibly() -> None:
    odd = {
        "half \ud83d": "a\x00b",
        "infinite": math.inf,
        "long": 1e300,
        "large": 10**31,
        "larger": 10**5000,
        "status": TaskStatus.SUCCESS,
        "pair": (1, 2),
        "object": {1},
        3: "key",
    }
    assert storable(odd) == {
        "half \ufffd": "a\ufffdb",
        "infinite": "inf",
        "long": "1e+300",
        "large": "1" + "0" * 31,
        "larger": "an integer of more than 40 digits",
        "status": "SUCCESS",
        "pair": [1, 2],
        "object": "{1}",
        "3": "key",
    }
    assert type(storable(TaskStatus.SUCCESS)) is str
    assert storable("x" * 20_000) == "x" * MAX_TEXT_CHARACTERS + "…"
    assert len(json.dumps(storable(DEEP))) < 300
    assert len(storable(list(range(5000)))) == 1000


@many
@given(text=TEXTS)
def test_the_xcom_of_every_error_can_be_stored(text: str, database: Database) -> None:
    pushed: dict[str, Any] = {}

    class TaskInstanceThatPushes:
        def xcom_push(self, key: str, value: Any) -> None:
            pushed[key] = database.store(xcom=value)

    with pytest.raises(QwenImageError), reporting_failures(TaskInstanceThatPushes()):
        raise QwenImageContractError(text * 50)
    assert pushed["error"]["error"] == "QwenImageContractError"
    assert len(pushed["error"]["message"]) <= 2001


@many
@given(text=TEXTS)
def test_every_record_of_a_submission_can_be_stored(text: str, database: Database) -> None:
    made_in = Try(number=1, max_tries=2)
    intent = Intent(
        submission_id="5a1b",
        request={"prompt": text or "a fox", "size": "1024*1024", "seed": -1, "output_format": "png"},
        fingerprint="f",
        intended_at="then",
        made_in=made_in,
        name=text,
        by={"dag_id": text, "map_index": -1},
    )
    end = End(kind=EndKind.FAILED, made_in=made_in, reason=text * 50, consumed_credits=5, image_task_id="n43")
    for written in (intent, end):
        assert database.store(xcom=written.to_json()) == written.to_json()
