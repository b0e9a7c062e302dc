"""The books of a connection: their database, their tables and what is left of the budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.books.calls import booked_calls
from airflow_provider_qwenimage.cli.doctor.books_check import check_books
from airflow_provider_qwenimage.cli.doctor.drawing import REQUEST
from airflow_provider_qwenimage.cli.doctor.findings import run_check
from airflow_provider_qwenimage.client.connection import read_connection
from airflow_provider_qwenimage.client.connection_lookup import look_up_connection
from tests.doctor.running import CONN

CONN_ID = "qwenimage_default"


@pytest.fixture(autouse=True)
def books_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = {"conn_type": "sqlite", "host": str(tmp_path / "books.db")}
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", json.dumps(books))


def connect(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> Any:
    monkeypatch.setenv(CONN, json.dumps({"conn_type": "qwenimage", "password": "sk-1", "extra": extra}))
    return read_connection(look_up_connection(CONN_ID))


def checked(settings: Any) -> tuple[str, str]:
    check = run_check("books", lambda: check_books(settings, CONN_ID))
    return check.state, check.message


def test_a_connection_without_books_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(connect(monkeypatch))[0] == "skipped"
    assert checked(None)[0] == "skipped"


def test_books_without_tables_say_who_makes_them_and_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = connect(monkeypatch, books_conn_id="books")
    for _ in range(2):
        state, message = checked(settings)
        assert state == "warning"
        assert "airflow qwenimage books init --conn-id qwenimage_default" in message


def test_what_is_left_of_each_budget_is_said_and_a_spent_one_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = connect(monkeypatch, books_conn_id="books", credits_per_day=10, credits_per_month=100)
    states = []
    for left in (5, 0):
        calls = booked_calls(settings.books, CONN_ID, REQUEST)
        calls.reserve()
        calls.close()
        state, message = checked(settings)
        states.append(state)
        assert f"{left} of 10 credits are left of credits_per_day" in message
        assert f"{90 + left} of 100 credits are left of credits_per_month" in message
    assert states == ["ok", "warning"]


def test_books_that_cannot_be_reached_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"conn_type": "sqlite", "host": str(tmp_path / "nowhere" / "books.db")}
    monkeypatch.setenv("AIRFLOW_CONN_BOOKS", json.dumps(nowhere))
    state, message = checked(connect(monkeypatch, books_conn_id="books"))
    assert (state, "cannot be reached" in message) == ("failed", True)
