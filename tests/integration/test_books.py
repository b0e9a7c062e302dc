"""The books and the budgets of a connection, as tasks keep them in a real database."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import task

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageHook, QwenImageStatusSensor
from airflow_provider_qwenimage.batch import run as batch
from airflow_provider_qwenimage.books import keeping
from airflow_provider_qwenimage.exceptions import QwenImageBatchError, QwenImageBudgetError, QwenImageConnectionError
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks import bookkeeping
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.integration.changed_answers import Answer, Front
from tests.integration.dag_runs import WAITS, TaskEnd, TestDag, crash_once, dag_that_draws, with_aims
from tests.integration.test_batch import dag_with_batch, manifest

in_every_mode = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)


class SqliteBooks:
    """The books of a test, in a file, and the connection that names them."""

    def __init__(self, file: Path, api: Sandbox, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = file
        self._api = api
        self._stack = stack
        self._connection = json.loads(api.connection_json)
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("AIRFLOW_CONN_BOOKS", json.dumps({"conn_type": "sqlite", "host": str(file)}))
        monkeypatch.setenv("AIRFLOW_CONN_UNKNOWN_TYPE", json.dumps({"conn_type": "typewriter"}))
        self.configure()

    def configure(self, **options: Any) -> None:
        connection = self._connection | {"extra": {"books_conn_id": "books"} | options}
        self._monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))

    def charge(self, amount: float) -> None:
        """Have the API charge so many credits for an image."""

        def change(route: str, answer: Answer) -> Answer:
            return Answer(answer.status, answer.body | {"data": answer.body["data"] | {"consumed_credits": amount}})

        self._connection = json.loads(self._stack.enter_context(Front(self._api, change)).connection_json)
        self.configure()

    def read(self, query: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.file)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.read("SELECT * FROM qwenimage_submissions ORDER BY reserved_at, batch_row")

    @property
    def statuses(self) -> list[str]:
        return sorted(row["status"] for row in self.rows)

    @property
    def used(self) -> set[float]:
        """What counts against the budgets: the same in the day and the month, unless the test runs at midnight."""
        return {float(row["credits"]) for row in self.read("SELECT credits FROM qwenimage_budgets")}


@pytest.fixture
def books(connected_api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteBooks]:
    with ExitStack() as stack:
        yield SqliteBooks(tmp_path / "books.db", connected_api, stack, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait half a second for books that are away."""
    monkeypatch.setattr(keeping, "AWAY_SECONDS", 0.5)
    monkeypatch.setattr(keeping, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(bookkeeping, "_SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(bookkeeping, "_CLOSE_SECONDS", 0.5)


def draw(**arguments: Any) -> TaskEnd:
    return dag_that_draws(**arguments).run()["draw"]


# One row for each submission.


@with_aims("waited for", "waited for, deferred", "stored", "stored, deferred")
def test_each_image_has_a_row_that_says_who_paid_what_for_which_file(
    connected_api: Sandbox, books: SqliteBooks, aim: dict[str, Any]
) -> None:
    books.charge(7)
    dag = dag_that_draws(**aim)
    end = dag.run()["draw"]

    assert end.state == "success"
    (submission,) = connected_api.submissions
    (row,) = books.rows
    paths = end.returned["paths"]
    assert {name: row[name] for name in ("account", "dag_id", "run_id", "task_id", "map_index", "try_number")} == {
        "account": "qwenimage_default",
        "dag_id": dag.dag.dag_id,
        "run_id": dag.run_id,
        "task_id": "draw",
        "map_index": -1,
        "try_number": 1,
    }
    assert (row["status"], row["image_task_id"]) == ("done", submission.task_id)
    assert (row["credits_reserved"], row["credits_consumed"]) == (5, 7)
    assert row["path"] == (paths[0] if paths else None)
    if paths:
        assert row["sha256"] == json.loads(Path(paths[0]).with_suffix(".json").read_text())["sha256"]
    assert row["reserved_at"] <= row["submitted_at"] <= row["settled_at"]
    assert books.used == {7}
    assert "A red kite" not in str(row), "no prompt, but for the words in the file's name"


def test_a_mapped_task_and_its_images_have_a_row_each(connected_api: Sandbox, books: SqliteBooks, folder: Path) -> None:
    run = dag_that_draws(prompts=["A fox", "A fox", "A hare"], output_path=str(folder)).run()

    assert run.state == "success"
    assert sorted(row["map_index"] for row in books.rows) == [0, 1, 2]
    assert books.statuses == ["done"] * 3


def test_a_batch_has_a_row_for_each_image_with_the_number_of_its_request(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    requests = ["A fox", "A hare", "Fog [fail]", "A wolf"]
    connected_api.configure(failed_credits=2)
    end = dag_with_batch(folder, requests=requests, max_failures=1, retries=0).run()["draw"]

    assert end.state == "success"
    rows = {row["batch_row"]: row for row in books.rows}
    assert {number: row["status"] for number, row in rows.items()} == {1: "done", 2: "done", 3: "failed", 4: "done"}
    assert {number: row["credits_consumed"] for number, row in rows.items()} == {1: 5, 2: 5, 3: 2, 4: 5}
    written = {line["task_id"]: line["paths"][0] for line in manifest(folder) if line["status"] == "SUCCESS"}
    assert {row["image_task_id"]: row["path"] for row in rows.values() if row["path"]} == written
    assert all(len(row["sha256"]) == 64 for row in rows.values() if row["path"])
    assert books.used == {17} == {connected_api.credits_charged}


def test_what_is_stored_or_submitted_already_has_no_row(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    for _ in range(2):
        assert draw(output_path=str(folder)).state == "success"

    assert len(books.rows) == 1


@pytest.mark.parametrize("behaviour", ["failure", "policy", "payment", "server_error", "drop_after"])
def test_a_row_says_how_its_submission_ended(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, behaviour: str
) -> None:
    connected_api.script("generate", (behaviour, 9))
    end = draw(output_path=str(folder), retries=0)

    assert end.state == "failed"
    statuses, used = {
        "failure": (["failed"], 0),
        "policy": (["failed"], 0),
        "payment": (["withdrawn"], 0),
        # Each may be paid, although the API says otherwise.
        "server_error": (["unknown"] * 2, 10),
        "drop_after": (["unknown"], 5),
    }[behaviour]
    assert books.statuses == statuses
    assert books.used == {used}


@in_every_mode
@pytest.mark.parametrize(("prompt", "status"), [("A fox", "done"), ("Fog [fail]", "failed")])
def test_the_sensor_settles_what_another_task_has_submitted(
    connected_api: Sandbox, books: SqliteBooks, wait: dict[str, Any], prompt: str, status: str
) -> None:
    dag = TestDag()
    with dag:
        submit = QwenImageGenerateOperator(task_id="submit", prompt=prompt)
        QwenImageStatusSensor(task_id="sense", image_task_id=submit.output, poke_interval=0.01, **wait)
    dag.run()

    (row,) = books.rows
    assert (row["task_id"], row["status"]) == ("submit", status)


@pytest.mark.parametrize("client", ["sync", "async"])
def test_a_hook_in_a_function_of_the_user_keeps_the_books_too(
    connected_api: Sandbox, books: SqliteBooks, client: str
) -> None:
    import asyncio

    books.configure(credits_per_day=10)

    async def generate() -> str:
        async with QwenImageAsyncHook() as hook:
            snapshot = await hook.wait_for_completion(await hook.generate("A fox"), poll_interval=0.01)
            return snapshot.task_id

    @task(task_id="draw", retries=0)
    def function() -> str:
        if client == "async":
            return asyncio.run(generate())
        with QwenImageHook() as hook:
            return hook.wait_for_completion(hook.generate("A fox"), poll_interval=0.01).task_id

    dag = TestDag()
    with dag:
        function()
    ends = [dag.run()["draw"] for _ in range(3)]

    assert [end.state for end in ends] == ["success", "success", "failed"]
    assert isinstance(ends[2].error, QwenImageBudgetError)
    assert len(connected_api.submissions) == 2
    assert [(row["dag_id"], row["task_id"], row["status"]) for row in books.rows] == [
        (dag.dag.dag_id, "draw", "done")
    ] * 2


# Budgets.


def test_a_spent_budget_ends_the_try_before_anything_is_sent_and_says_what_to_do(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    books.configure(credits_per_day=10, credits_per_month=1000)
    dag = dag_that_draws(prompts=[f"Fox {number}" for number in range(4)], output_path=str(folder))
    ends = dag.run().mapped("draw")

    assert Counter(end.state for end in ends) == {"success": 2, "failed": 2}
    assert len(connected_api.submissions) == 2
    for end in ends:
        if end.state == "failed":
            assert end.tries == 3, "a retry may help"
            error = end.errors[-1]
            assert isinstance(error, QwenImageBudgetError)
            assert error.left == 0
            assert 0 < (error.retry_after or 0) <= 24 * 3600
            for part in ("'qwenimage_default'", "credits_per_day = 10", f"{dag.dag.dag_id} 10", "resets"):
                assert part in str(error)
            assert end.xcoms["error"]["error"] == "QwenImageBudgetError"
    assert books.used == {10}


def test_a_batch_stops_at_the_budget_finishes_what_is_paid_and_goes_on_when_there_is_room(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    books.configure(credits_per_month=20)
    dag = dag_with_batch(folder, requests=[f"Fox {number}" for number in range(10)], retries=0, max_in_flight=8)
    end = dag.run()["draw"]

    error = end.error
    assert end.state == "failed"
    assert isinstance(error, QwenImageBatchError)
    assert 0 < (error.retry_after or 0) <= 31 * 24 * 3600
    assert "credits_per_month = 20" in str(error)
    assert "resets" in str(error)
    assert len(connected_api.submissions) == 4
    assert Counter(row["status"] for row in manifest(folder)) == {"SUCCESS": 4, "NOT_SUBMITTED": 6}
    assert books.used == {20}

    books.configure(credits_per_month=50)
    assert dag.clear("draw")["draw"].state == "success"
    assert len(connected_api.submissions) == 10
    assert books.statuses == ["done"] * 10


@pytest.mark.parametrize("kind", ["images", "batch"])
def test_a_run_that_a_budget_stopped_goes_on_by_itself_in_the_next_month(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.configure(credits_per_month=10)
    foxes = [f"Fox {number}" for number in range(4)]

    def let_the_month_pass(context: Any) -> None:
        if context["ti"].try_number == 2:
            monkeypatch.setattr(keeping, "_now", lambda: datetime.now(UTC) + timedelta(days=31))

    arguments: dict[str, Any] = {"output_path": str(folder), "pre_execute": let_the_month_pass}
    dag = (
        dag_that_draws(prompts=foxes, **arguments)
        if kind == "images"
        else dag_with_batch(folder, requests=foxes, **arguments)
    )
    run = dag.run()

    assert run.state == "success"
    assert len(connected_api.submissions) == 4
    months = books.read("SELECT credits FROM qwenimage_budgets WHERE length(period) = 7 ORDER BY period")
    assert [row["credits"] for row in months] == [10, 10]


def test_a_budget_below_the_price_of_an_image_is_not_tried_again(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    books.configure(credits_per_day=4, credits_per_month=100)
    for dag in (dag_that_draws(output_path=str(folder)), dag_with_batch(folder)):
        end = dag.run()["draw"]
        assert (end.state, end.tries) == ("failed", 1)
        assert "credits_per_day = 4, and an image costs 5 credits" in str(end.error)
        assert "to 5 at least" in str(end.error)
    assert connected_api.submissions == []


def test_one_odd_price_is_not_assumed_for_everybodys_next_image(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    books.configure(credits_per_month=1_000_000)
    for number in range(2):
        draw(prompt=f"Fox {number}", output_path=str(folder))
    books.charge(900_000)
    books.configure(credits_per_month=1_000_000)
    states = [draw(prompt=f"Hare {number}", output_path=str(folder), retries=0).state for number in range(2)]

    assert states == ["success", "success"]
    assert [row["credits_reserved"] for row in books.rows] == [5] * 4


def test_an_image_that_fails_for_nothing_leaves_its_credits_to_the_next(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    books.configure(credits_per_day=5)
    assert draw(prompt="Fog [fail]", output_path=str(folder), retries=0).state == "failed"
    assert draw(output_path=str(folder)).state == "success"
    assert draw(prompt="A fox", output_path=str(folder), retries=0).state == "failed"

    assert books.statuses == ["done", "failed"]


def test_the_next_image_is_reserved_at_the_price_that_was_charged_last(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    books.charge(8)
    books.configure(credits_per_day=20)
    states = [draw(prompt=f"Fox {number}", output_path=str(folder), retries=0).state for number in range(3)]

    assert states == ["success", "success", "failed"]
    assert [row["credits_reserved"] for row in books.rows] == [5, 8]
    assert books.used == {16}


def test_a_budget_that_is_nearly_spent_is_logged_once(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, task_log: Callable[[], str]
) -> None:
    books.configure(credits_per_day=25)
    logs = []
    for number in range(5):
        assert draw(prompt=f"Fox {number}", output_path=str(folder)).state == "success"
        logs.append("20 of the 25 credits" in task_log())

    assert logs == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"books_conn_id": "nowhere"}, "'nowhere', which is not defined"),
        ({"books_conn_id": "qwenimage_default"}, "it must be one to PostgreSQL"),
        ({"books_conn_id": "unknown_type"}, "Airflow has no hook for it"),
        ({"books_conn_id": "", "credits_per_day": 5}, "no books_conn_id"),
        ({"credits_per_day": -1}, "must be a number above 0"),
        ({"credits_per_month": "many"}, "must be a number above 0"),
    ],
)
def test_books_that_cannot_be_used_end_the_task_before_anything_is_sent(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, options: dict[str, Any], message: str
) -> None:
    books.configure(**options)
    for dag in (dag_that_draws(output_path=str(folder)), dag_with_batch(folder)):
        end = dag.run()["draw"]
        assert (end.state, end.tries) == ("failed", 1), "a retry would not help"
        assert message in str(end.error)

    assert connected_api.submissions == []


# Crashes.


@with_aims("stored", "stored, deferred", "waited for", recorded=True)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_retry_settles_the_row_of_a_try_that_was_killed_around_the_record_of_the_id(
    connected_api: Sandbox, books: SqliteBooks, aim: dict[str, Any], after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept", after=after)
    end = dag_that_draws(**aim).run()["draw"]

    (row,) = books.rows
    assert len(connected_api.submissions) == 1
    # Before the record nobody knows the id: the submission is at risk, and the user decides.
    assert (end.state, row["status"]) == (("success", "done") if after else ("failed", "unknown"))
    assert books.used == {5}


def test_a_batch_that_is_killed_after_it_has_stored_its_images_has_done_rows(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, bookkeeping, "done")
    dag = dag_with_batch(folder, requests=["A fox", "A hare", "A wolf"])
    dag.run()

    assert len(connected_api.submissions) == 3
    assert books.statuses == ["done"] * 3


def test_a_reservation_that_is_interrupted_is_taken_back(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, keeping.Books, "reserve", after=True)
    end = dag_that_draws(output_path=str(folder)).run()["draw"]

    assert end.state == "success"
    assert books.statuses == ["done", "withdrawn"]
    assert books.used == {5}


@with_aims("stored", "waited for", recorded=True)
def test_a_retry_writes_the_failure_that_a_killed_try_had_recorded(
    connected_api: Sandbox, books: SqliteBooks, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The record of the failure is written, and the process is killed before the books are.
    note = keeping.Books.note
    monkeypatch.setattr(keeping.Books, "note", lambda *_: None)
    connected_api.script("generate", "failure")

    def restore(context: Any) -> None:
        if context["ti"].try_number == 2:
            monkeypatch.setattr(keeping.Books, "note", note)

    end = dag_that_draws(**aim, pre_execute=restore).run()["draw"]

    assert end.state == "success"
    assert books.statuses == ["done", "failed"]


# The database is away.


def test_books_that_are_away_before_a_submission_are_waited_for(
    connected_api: Sandbox, books: SqliteBooks, folder: Path
) -> None:
    draw(prompt="First", output_path=str(folder))
    lock = sqlite3.connect(books.file, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(1.0, lock.rollback)
    release.start()
    began = time.monotonic()
    end = draw(output_path=str(folder))
    release.join()

    assert end.state == "success"
    assert time.monotonic() - began > 1
    assert books.statuses == ["done"] * 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["image", "batch"])
def test_books_that_stay_away_end_the_try_with_nothing_sent_and_a_retry_helps(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = books.file.parent / "elsewhere"
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", json.dumps({"conn_type": "sqlite", "host": str(away / "books.db")}))
    sent_at_first: list[int] = []

    def come_back(context: Any) -> None:
        if context["ti"].try_number == 2:
            sent_at_first.append(len(connected_api.submissions))
            away.mkdir()

    arguments: dict[str, Any] = {"pre_execute": come_back}
    dag = (
        dag_that_draws(output_path=str(folder), **arguments)
        if kind == "image"
        else dag_with_batch(folder, requests=["A fox"], **arguments)
    )
    end = dag.run()["draw"]

    assert (end.state, end.tries) == ("success", 2)
    assert sent_at_first == [0]
    if kind == "image":
        assert isinstance(end.errors[0], QwenImageConnectionError)
    assert "cannot be reached" in str(end.errors[0])


@pytest.mark.usefixtures("impatient")
def test_books_that_are_away_after_a_submission_cost_no_image_and_the_next_task_closes_the_row(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = sqlite3.connect(books.file, isolation_level=None, check_same_thread=False)
    reserve = keeping.Books.reserve

    def go_away(self: keeping.Books, reservation: Any, **options: Any) -> bool:
        is_reserved = reserve(self, reservation, **options)
        lock.execute("BEGIN EXCLUSIVE")
        return is_reserved

    monkeypatch.setattr(keeping.Books, "reserve", go_away)
    dag = dag_with_batch(folder, requests=["A fox"])
    end = dag.run()["draw"]
    assert end.state == "success"
    lock.rollback()
    assert books.statuses == ["reserved"]
    assert list(folder.glob(".submission-*")), "the record says what is to be settled"

    monkeypatch.setattr(keeping.Books, "reserve", reserve)
    end = dag.run()["draw"]
    assert end.state == "success"
    assert len(connected_api.submissions) == 1
    assert books.statuses == ["done"]
    assert list(folder.glob(".submission-*")) == []


def test_a_batch_records_what_is_accepted_while_its_other_images_wait_for_the_books(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_MOST_THREADS", 1)
    is_accepted = threading.Event()
    waited = []
    accept, reserve, reservations = Ledger.accept, keeping.Books.reserve, count()

    def note_and_accept(self: Ledger, image_task_id: str) -> None:
        accept(self, image_task_id)
        is_accepted.set()

    def reserve_one_after_the_other(self: keeping.Books, reservation: Any, **options: Any) -> bool:
        if next(reservations) == 1:
            waited.append(is_accepted.wait(10))
        return reserve(self, reservation, **options)

    monkeypatch.setattr(Ledger, "accept", note_and_accept)
    monkeypatch.setattr(keeping.Books, "reserve", reserve_one_after_the_other)
    end = dag_with_batch(folder, requests=["A fox", "A hare"], max_in_flight=2).run()["draw"]

    assert end.state == "success"
    assert waited == [True]


def test_no_intent_is_recorded_while_the_books_are_waited_for(
    connected_api: Sandbox, books: SqliteBooks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    reserving: list[int] = []
    await_database, reserve = bookkeeping.TaskBooks.await_database, bookkeeping.TaskBooks.reserve

    def records() -> int:
        return len(list(folder.glob(".submission-*")))

    def note_and_wait(self: bookkeeping.TaskBooks) -> None:
        waiting.append(records())
        await_database(self)

    def go_away_once(self: bookkeeping.TaskBooks, *arguments: Any) -> bool:
        reserving.append(records())
        return len(reserving) > 1 and reserve(self, *arguments)

    monkeypatch.setattr(bookkeeping.TaskBooks, "await_database", note_and_wait)
    monkeypatch.setattr(bookkeeping.TaskBooks, "reserve", go_away_once)
    end = draw(prompt="A fox", output_path=str(folder))

    assert (end.state, end.tries) == ("success", 1)
    assert waiting == [0, 0]
    # Below Airflow 3.3, the folder has the record of this task alone as well.
    assert reserving[0] == reserving[1] > 0
    assert len(connected_api.submissions) == 1
    assert books.statuses == ["done"]


# Without the option.


def test_without_the_option_nothing_of_the_books_is_imported(connected_api: Sandbox, folder: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, airflow_provider_qwenimage.operators, airflow_provider_qwenimage.batch.task\n"
        "import airflow_provider_qwenimage.tasks.generating, airflow_provider_qwenimage.tasks.sensing\n"
        "print([name for name in sys.modules if name.startswith('airflow_provider_qwenimage.books.')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("['airflow_provider_qwenimage.books.calls']"), "only the door to them"
