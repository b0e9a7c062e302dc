"""`airflow qwenimage books` shows what the books say, and creates them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.books.schema import BOOKS, BUDGETS, SUBMISSIONS
from airflow_provider_qwenimage.cli.books.since import read_since
from tests.books.running import Run, connect, run_books
from tests.books.writing import WrittenBooks

NOW = datetime(2026, 11, 27, 12, 30, tzinfo=UTC)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command."""
    return partial(run_books, capsys)


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Connections to an empty database for books, with budgets; return its file."""
    file = tmp_path / "books.db"
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", json.dumps({"conn_type": "sqlite", "host": str(file)}))
    connect(monkeypatch, books_conn_id="books", credits_per_day=100, credits_per_month=2000)
    return file


def write_some(books: WrittenBooks, now: datetime) -> None:
    account = {"account": "qwenimage_default"}
    books.submit("done", at=now, consumed=4.5, **account)
    books.submit("failed", at=now, consumed=1.0, **account)
    books.submit("submitted", at=now, dag_id="owls", **account)
    books.submit("done", at=now, account="other", dag_id="owls")
    books.submit("done", at=now - timedelta(days=40), **account)


@pytest.fixture
def books_of_two_connections(connected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "OTHER", books_conn_id="books")
    with WrittenBooks.at(f"sqlite:///{connected}") as books:
        write_some(books, datetime.now(UTC))


@pytest.mark.usefixtures("books_of_two_connections")
def test_a_table_ends_with_the_total_and_what_is_left_of_the_budgets(run: Run) -> None:
    now = datetime.now(UTC)
    ran = run("--by", "dag")
    lines = ran.out.splitlines()
    assert ran.code == 0, ran.errors
    assert lines[:5] == [
        "dag_id | submissions | images | credits | at risk | failed | failed credits",
        "=======+=============+========+=========+=========+========+===============",
        "foxes  |           2 |      1 |     5.5 |       0 |      1 |              1",
        "owls   |           1 |      0 |       0 |       5 |      0 |              0",
        "total  |           3 |      1 |     5.5 |       5 |      1 |              1",
    ]
    assert lines[6].startswith("Submissions of connection 'qwenimage_default' since 2")
    tomorrow = (now + timedelta(days=1)).date()
    assert lines[7] == (
        "credits_per_day of connection 'qwenimage_default': 89.5 of 100 credits left for "
        f"{now:%Y-%m-%d}; the next budget begins at {tomorrow} 00:00 UTC."
    )
    assert lines[8].startswith("credits_per_month of connection 'qwenimage_default': ")
    assert len(lines) == 9


@pytest.mark.parametrize(
    ("arguments", "keys", "submissions"),
    [
        ("", [["day"]], 3),
        ("--by task --since 10w", [["dag_id", "task_id"]] * 2, 4),
        ("--by account", [["account"]] * 2, 4),
        ("--all-accounts", [["day"]], 4),
        ("show --conn-id other", [["day"]], 1),
    ],
)
@pytest.mark.usefixtures("books_of_two_connections")
def test_other_connections_are_only_counted_if_they_are_asked_for(
    run: Run, arguments: str, keys: list[list[str]], submissions: int
) -> None:
    report = json.loads(run(*arguments.split(), "--output", "json").out)
    assert [list(group)[: len(key)] for group, key in zip(report["groups"], keys, strict=True)] == keys
    assert report["total"]["submissions"] == submissions
    assert [(one["budget"], one["limit"]) for one in report["budgets"]] == (
        [] if "other" in arguments else [("credits_per_day", 100), ("credits_per_month", 2000)]
    )


def test_csv_is_read_by_spreadsheets_and_runs_nothing_there(run: Run, connected: Path) -> None:
    now = datetime.now(UTC)
    with WrittenBooks.at(f"sqlite:///{connected}") as books:
        for dag_id in ("=HYPERLINK(1)", 'a "fox", and', "@sum", "\x1b[31mred", "-1"):
            books.submit("done", at=now, account="qwenimage_default", dag_id=dag_id, consumed=0.1)
    out = run("--by", "dag", "-o", "csv").out
    assert out.count("\r\n") == out.count("\n") == 6
    head, *rows = csv.reader(io.StringIO(out))
    assert head == ["dag_id", "submissions", "images", "credits", "at_risk", "failed", "failed_credits"]
    assert [row[0] for row in rows] == [
        "\N{REPLACEMENT CHARACTER}[31mred",
        "'-1",
        "'=HYPERLINK(1)",
        "'@sum",
        'a "fox", and',
    ]
    assert rows[0][1:] == ["1", "1", "0.1", "0", "0", "0"]


def test_what_another_program_has_written_is_shown_without_its_escape_sequences(run: Run, connected: Path) -> None:
    with WrittenBooks.at(f"sqlite:///{connected}") as books:
        submission_id = books.submit(at=datetime.now(UTC), account="qwenimage_default", dag_id="\x1b[2J[/red]")
        books.overwrite(submission_id, status="\x1b[31mrefunded", credits_reserved="many")
    ran = run("--by", "dag")
    assert (ran.code, ran.errors) == (0, "")
    assert ran.out.splitlines()[2].split()[0] == "\N{REPLACEMENT CHARACTER}[2J[/red]"
    assert "\x1b" not in ran.out + run("--by", "dag", "--output", "json").out


def test_no_submissions_are_an_empty_table(run: Run, connected: Path) -> None:
    run("init")
    assert run().out.splitlines()[2] == ""
    assert json.loads(run("--output", "json").out)["groups"] == []
    assert run("--output", "csv").out.splitlines() == ["day,submissions,images,credits,at_risk,failed,failed_credits"]


def test_init_creates_the_tables_and_brings_back_a_lost_one(run: Run, connected: Path) -> None:
    names = "qwenimage_submissions, qwenimage_budgets, qwenimage_books"
    assert run("init").out.splitlines()[0] == f"The tables {names} were created (version 1)."
    engine = sa.create_engine(f"sqlite:///{connected}")
    BUDGETS.drop(engine)
    ran = run("init")
    assert (ran.code, ran.out.splitlines()[0]) == (0, f"The tables {names} exist (version 1).")
    assert set(sa.inspect(engine).get_table_names()) == {SUBMISSIONS.name, BUDGETS.name, BOOKS.name}
    engine.dispose()


@pytest.mark.usefixtures("airflow_database")
def test_books_that_cannot_be_used_are_one_line_that_says_what_to_do(
    run: Run, connected: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problems = [(run("show"), "airflow qwenimage books init")]
    engine = sa.create_engine(f"sqlite:///{connected}")
    assert sa.inspect(engine).get_table_names() == []
    run("init")
    with engine.begin() as connection:
        connection.execute(BOOKS.update().values(version=99))
    engine.dispose()
    problems.append((run("show"), "Upgrade airflow-provider-qwenimage"))
    problems.append((run("init"), "Upgrade airflow-provider-qwenimage"))
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "no" / "file")}))
    problems.append((run("show"), "Check that the database runs"))
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", json.dumps({"conn_type": "qwenimage", "password": "x"}))
    problems.append((run("show"), "it must be one to PostgreSQL, MariaDB, MySQL or SQLite"))
    connect(monkeypatch, books_conn_id="nowhere")
    problems.append((run("show"), "books_conn_id in the extra of connection 'qwenimage_default' is 'nowhere'"))
    connect(monkeypatch)
    problems.append((run("show"), "Set books_conn_id in its extra"))
    for ran, advice in problems:
        assert (ran.code, ran.out) == (1, ""), advice
        assert len(ran.errors.splitlines()) == 1, ran.errors
        assert advice in ran.errors


def test_an_option_without_effect_is_refused(run: Run) -> None:
    ran = run("init", "--by", "dag")
    assert (ran.code, ran.errors) == (2, "--by has no effect with init; leave it out.\n")


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("30d", NOW - timedelta(days=30)),
        ("12H", NOW - timedelta(hours=12)),
        (" 2w ", NOW - timedelta(days=14)),
        ("0d", NOW),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-27T13:30:00+02:00", NOW - timedelta(hours=1)),
        ("9999w", NOW - timedelta(weeks=9999)),
    ],
)
def test_a_time_is_so_long_ago_or_a_date_in_utc(text: str, since: datetime) -> None:
    assert read_since(text, NOW) == since


@pytest.mark.parametrize(
    "text", ["", "30", "d", "-1d", "99999d", "٣d", "2027-01-01", "yesterday", "0001-01-01T00+23:00"]
)
def test_another_time_is_refused_with_what_is_allowed(run: Run, text: str) -> None:
    ran = run(f"--since={text}")
    assert (ran.code, ran.out) == (2, "")
    assert ran.errors.startswith(
        f"--since is {text!r}; it must be a number of hours, days or weeks (12h, 30d, 2w), or "
    )
    assert len(ran.errors.splitlines()) == 1


def test_the_command_runs_in_a_process_of_its_own(connected: Path) -> None:
    command = [sys.executable, "-m", "airflow_provider_qwenimage.cli", "books", "init"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("The tables qwenimage_submissions, ")
