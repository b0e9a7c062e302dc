"""`airflow qwenimage books settle` closes the rows of killed tasks as the API, or the folder, says that they ended."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from airflow.models.connection import Connection

from airflow_provider_qwenimage import QwenImageHook
from airflow_provider_qwenimage.books import accounting, reports
from airflow_provider_qwenimage.books.schema import SUBMISSIONS
from airflow_provider_qwenimage.cli.books.settling import answer_window
from airflow_provider_qwenimage.client.connection import ConnectionSettings
from airflow_provider_qwenimage.rules.book_rows import Reservation
from airflow_provider_qwenimage.rules.budgets import Budgets
from airflow_provider_qwenimage.rules.made_by import description_of, writer_of
from airflow_provider_qwenimage.rules.submission_facts import End, EndKind
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.opening import open_row_ledger
from airflow_provider_qwenimage.tasks.records import FolderRecords
from airflow_provider_qwenimage.tasks.stores import FolderStore
from tests.books.running import Run, run_books
from tests.books.writing import WrittenBooks
from tests.databases.server import Database
from tests.ledgers import REQUEST, asking_of, step_of, ti_of

ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
ACCOUNT = "qwenimage_default"
BUDGETS = Budgets(per_day=10_000)
TRY = Try(number=1, max_tries=2)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `books settle`."""
    return partial(run_books, capsys, "settle")


@pytest.fixture
def books(database: Database, qwenimage_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[WrittenBooks]:
    """Books of the connection to the sandbox."""
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", database.connection_json())
    connection = json.loads(qwenimage_sandbox.connection_json)
    connection["extra"] = {"books_conn_id": "books", "credits_per_day": 10_000}
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))
    with WrittenBooks.at(database.url) as books:
        yield books


def used(books: WrittenBooks) -> float:
    """Return what is used of today's budget."""
    (state,) = books.do(reports.budget_states, ACCOUNT, BUDGETS, datetime.now(UTC))
    return float(state.used)


def ended(sandbox: Sandbox, prompt: str) -> str:
    """Submit an image, wait for its end, and return its id; not through the books."""
    connection = Connection(conn_id="without_books", **json.loads(sandbox.connection_json))
    with QwenImageHook(connection=connection) as hook:
        image_task_id = hook.generate(prompt)
        while hook.get_status(image_task_id).status not in ("SUCCESS", "FAILED"):
            pass
        return image_task_id


def submit(books: WrittenBooks, status: str = "submitted", **fields: Any) -> str:
    """Write the row of a submission that was just made by this connection."""
    return books.submit(status, **{"at": datetime.now(UTC), "account": ACCOUNT} | fields)


def test_rows_of_a_killed_task_are_closed_as_the_api_says(
    run: Run, books: WrittenBooks, qwenimage_sandbox: Sandbox
) -> None:
    done = submit(books, image_task_id=ended(qwenimage_sandbox, "a fox"), task_id="draw", map_index=3)
    failed = submit(books, image_task_id=ended(qwenimage_sandbox, "a fox [fail]"), batch_row=17)
    qwenimage_sandbox.configure(seconds_per_image=600)
    with QwenImageHook() as hook:
        pending = hook.generate("a slow fox")
    submissions = len(qwenimage_sandbox.submissions)
    assert used(books) == 15

    ran = run()
    assert (ran.code, ran.errors) == (0, "")
    *lines, summary = ran.out.splitlines()
    rows = {one: books.row(one) for one in (done, failed)}
    assert sorted(lines) == [
        f"done      foxes.draw[3], image task {rows[done].image_task_id}: 5 credits",
        f"failed    foxes.draw, row 17, image task {rows[failed].image_task_id}: 0 credits",
    ]
    assert summary == ("2 of 3 open rows changed: 1 done, 1 failed. 1 still in progress or awaiting an answer.")
    assert [(row.status, row.credits_consumed) for row in rows.values()] == [("done", 5), ("failed", 0)]
    (left,) = books.do(reports.at_risk_rows, most=9)
    assert left.image_task_id == pending
    assert used(books) == 10
    assert len(qwenimage_sandbox.submissions) == submissions

    again = run()
    assert again.out == "0 of 1 open rows changed. 1 still in progress or awaiting an answer.\n"
    assert used(books) == 10


@ON_SQLITE
def test_an_image_task_that_cannot_be_read_is_left_open_and_is_a_failure(
    run: Run, books: WrittenBooks, qwenimage_sandbox: Sandbox
) -> None:
    lost = submit(books, image_task_id="n0body")
    done = submit(books, image_task_id=ended(qwenimage_sandbox, "a fox"))
    ran = run()
    assert ran.code == 1
    assert ran.out.splitlines()[-1] == "1 of 2 open rows changed: 1 done. 1 could not be read."
    assert ran.errors.startswith("Left open: foxes.draw, image task n0body: ")
    assert (books.row(lost).status, books.row(done).status) == ("submitted", "done")


@ON_SQLITE
def test_a_key_that_is_refused_is_not_tried_for_each_row(
    run: Run, books: WrittenBooks, qwenimage_sandbox: Sandbox
) -> None:
    for number in range(30):
        submit(books, image_task_id=f"n{number}")
    old = submit(books, "reserved", at=datetime.now(UTC) - timedelta(hours=2))
    qwenimage_sandbox.script("status", ("unauthorized", 100))
    before = len(qwenimage_sandbox.requests)
    ran = run()
    assert ran.code == 1
    assert len(qwenimage_sandbox.requests) - before == 5
    assert len(ran.errors.splitlines()) == 21
    assert ran.errors.splitlines()[-1] == "10 more rows were left open."
    assert json.loads(qwenimage_sandbox.connection_json)["password"] not in ran.errors
    assert books.row(old).status == "unknown"


@ON_SQLITE
@pytest.mark.usefixtures("qwenimage_sandbox")
def test_a_submission_without_an_answer_is_unknown_after_an_hour(run: Run, books: WrittenBooks) -> None:
    now = datetime.now(UTC)
    old = submit(books, "reserved", at=now - timedelta(minutes=61))
    young = submit(books, "reserved", at=now - timedelta(minutes=59))
    others = submit(books, "reserved", at=now - timedelta(hours=9), account="other")
    before = used(books)
    ran = run()
    assert (ran.code, ran.out.splitlines()[0]) == (0, f"unknown   foxes.draw, submission {old}")
    assert [books.row(one).status for one in (old, young, others)] == ["unknown", "reserved", "reserved"]
    assert used(books) == before


def test_a_connection_whose_answers_take_longer_has_a_longer_window() -> None:
    settings = ConnectionSettings("https://example.com", "sk-key", timeout_seconds=3600)
    assert answer_window(settings) > timedelta(hours=4)
    assert answer_window(ConnectionSettings("https://example.com", "sk-key")) == timedelta(hours=1)


def record(folder: Path, image_task_id: str | None = None, end: EndKind | None = None) -> str:
    """Have a task record a submission in a folder, as far as it came; return the submission's id."""
    path = open_output_path(str(folder))
    instance = description_of(ti_of())
    asking = asking_of()
    ledger = open_row_ledger(TRY, path, instance, asking.identity)
    step_of(ledger, asking)
    assert ledger.intend(asking)
    assert ledger.current is not None
    submission_id = ledger.current.intent.submission_id
    if image_task_id is not None:
        ledger.accept(image_task_id)
    if end is not None:
        writer = writer_of(instance)
        records = FolderRecords(FolderStore(path, writer), asking.identity.key, instance, writer=writer)
        records.read(TRY)
        records.write_end(submission_id, End(kind=end, made_in=TRY, consumed_credits=2.0))
    return submission_id


@ON_SQLITE
@pytest.mark.parametrize("status", ["reserved", "unknown"])
def test_an_id_that_the_books_have_missed_is_found_in_the_folder(
    run: Run, books: WrittenBooks, qwenimage_sandbox: Sandbox, tmp_path: Path, status: str
) -> None:
    folder = tmp_path / "images"
    image_task_id = ended(qwenimage_sandbox, REQUEST.prompt)
    submission_id = submit(books, status, submission_id=record(folder, image_task_id))
    files = sorted(file.name for file in folder.iterdir())
    assert run().out.splitlines()[-1].startswith("0 of ")
    ran = run("--output-path", str(tmp_path / "none"), "--output-path", str(folder))
    assert (ran.code, ran.errors) == (0, "")
    row = books.row(submission_id)
    assert (row.status, row.image_task_id, row.credits_consumed) == ("done", image_task_id, 5)
    assert sorted(file.name for file in folder.iterdir()) == files


@ON_SQLITE
@pytest.mark.parametrize(
    ("end", "then"),
    [
        (EndKind.NOT_ACCEPTED, ("withdrawn", None)),
        (EndKind.SERVER_ERROR, ("unknown", None)),
        (EndKind.GIVEN_UP, ("unknown", None)),
        (EndKind.FAILED, ("failed", 2)),
        (EndKind.REFUSED, ("failed", 2)),
        (None, ("reserved", None)),
    ],
)
@pytest.mark.usefixtures("qwenimage_sandbox")
def test_an_end_that_the_books_have_missed_is_found_in_the_folder(
    run: Run, books: WrittenBooks, tmp_path: Path, end: EndKind | None, then: tuple[str, float | None]
) -> None:
    submission_id = submit(books, "reserved", submission_id=record(tmp_path, end=end))
    # Another one with the same beginning, of which the folder has nothing.
    other = submit(books, "reserved", submission_id=submission_id[:12] + uuid.uuid4().hex[:20])
    assert run("--output-path", str(tmp_path)).code == 0
    assert (books.row(submission_id).status, books.row(submission_id).credits_consumed) == then
    assert books.row(other).status == "reserved"


@ON_SQLITE
def test_an_end_in_the_folder_counts_if_the_api_no_longer_knows_the_image_task(
    run: Run, books: WrittenBooks, tmp_path: Path
) -> None:
    failed = submit(books, "reserved", submission_id=record(tmp_path / "a", "n0body", EndKind.FAILED))
    given_up = submit(books, "reserved", submission_id=record(tmp_path / "b", "n0body", EndKind.GIVEN_UP))
    ran = run("--output-path", str(tmp_path / "a"), "--output-path", str(tmp_path / "b"))
    assert ran.code == 1
    assert (books.row(failed).status, books.row(failed).image_task_id) == ("failed", "n0body")
    # It was accepted: only its end is not known.
    assert (books.row(given_up).status, books.row(given_up).image_task_id) == ("submitted", "n0body")


@ON_SQLITE
def test_a_dry_run_prints_the_same_and_writes_nothing(
    run: Run, books: WrittenBooks, qwenimage_sandbox: Sandbox
) -> None:
    submission_id = submit(books, image_task_id=ended(qwenimage_sandbox, "a fox"))
    planned = run("--dry-run").out
    assert books.row(submission_id).status == "submitted"
    assert planned == f"{run().out.rstrip()} Nothing was written (--dry-run).\n"
    assert books.row(submission_id).status == "done"


@ON_SQLITE
def test_rows_that_another_program_has_written_hold_up_no_other(
    run: Run, books: WrittenBooks, qwenimage_sandbox: Sandbox
) -> None:
    submit(books, image_task_id="\x1b[2J", dag_id="\x1b[31mred\n\n")
    submit(books, image_task_id=" ")
    submit(books)
    unknown_status, no_time = submit(books), submit(books, "reserved")
    books.overwrite(unknown_status, status="\x1b[31mrefunded")
    books.overwrite(no_time, reserved_at="yesterday")
    blob = sa.update(SUBMISSIONS).where(SUBMISSIONS.c.submission_id == submit(books))
    books.do(lambda one: one.execute(blob.values(submission_id=sa.literal(b"\xff\x00", sa.LargeBinary))))
    done = submit(books, image_task_id=ended(qwenimage_sandbox, "a fox"))
    ran = run()
    assert ran.code == 1
    assert "\x1b" not in ran.out + ran.errors
    assert books.row(done).status == "done"
    assert ran.out.splitlines()[-1] == "1 of 5 open rows changed: 1 done. 4 could not be read."
    assert len(ran.errors.splitlines()) == 4


def reserve_many(books: WrittenBooks, number: int) -> None:
    """Write the rows of submissions of a task that was killed long ago."""
    at = datetime.now(UTC) - timedelta(hours=2)
    rows = [
        Reservation(submission_id=uuid.uuid4().hex, account=ACCOUNT, credits=1, fingerprint="f") for _ in range(number)
    ]
    books.do(accounting.add_periods, ACCOUNT, at)
    books.do(accounting.reserve, rows, BUDGETS, at)


def test_more_rows_than_a_block_are_all_settled(run: Run, books: WrittenBooks) -> None:
    reserve_many(books, 450)
    ran = run()
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "450 of 450 open rows changed: 450 unknown."
    assert run().out == "0 of 0 open rows changed.\n"


@ON_SQLITE
def test_more_rows_than_a_page_are_all_looked_at(run: Run, books: WrittenBooks) -> None:
    reserve_many(books, 5001)
    assert run("--dry-run").out.splitlines()[-1].startswith("5001 of 5001 open rows changed: 5001 unknown.")


@ON_SQLITE
def test_an_option_of_another_action_is_refused(run: Run, books: WrittenBooks) -> None:
    assert run("--by", "dag").errors == "--by has no effect with settle; leave it out.\n"
