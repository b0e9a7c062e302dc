"""Versions, triggerer and gallery, with a real database and real servers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pendulum
import pytest

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.cli.doctor.airflow_checks import check_gallery, check_triggerer, check_versions
from airflow_provider_qwenimage.cli.doctor.findings import Check, run_check
from tests.raw_server import RawServer

needs_pages = pytest.mark.skipif(not HAS_PLUGIN_PAGES, reason="this Airflow has no pages of plugins")


@pytest.fixture
def triggerers(airflow_database: None) -> Iterator[Any]:
    """Return a function that adds a triggerer with a heartbeat so many seconds ago."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    def add(seconds: float, state: str = "running") -> None:
        job = Job(
            job_type="TriggererJob", state=state, latest_heartbeat=pendulum.now("UTC") - timedelta(seconds=seconds)
        )
        job.hostname = "host-of-tests"
        with create_session() as session:
            session.add(job)

    def remove() -> None:
        with create_session() as session:
            session.query(Job).filter(Job.job_type == "TriggererJob").delete()

    remove()
    yield add
    remove()


def test_versions_name_everything_that_takes_part() -> None:
    message = check_versions("s3fs").message
    for part in (f"airflow-provider-qwenimage {__version__}", "Airflow ", "Python ", "aiohttp ", "requests ", "s3fs "):
        assert part in message
    assert "no-such-library (not installed)" in check_versions("no-such-library").message


def test_no_triggerer(triggerers: Any) -> None:
    found = check_triggerer()
    assert (found.state, "none has run yet" in found.message) == ("warning", True)


def test_a_database_without_tables_is_named_with_what_to_do(airflow_database: None) -> None:
    from airflow import settings
    from sqlalchemy import text

    def rename(old: str, new: str) -> None:
        with settings.engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    rename("job", "job_elsewhere")
    try:
        found = check_triggerer()
    finally:
        rename("job_elsewhere", "job")
    assert found.state == "failed"
    assert "cannot be read, so no triggerer can be looked for: OperationalError: no such table: job." in found.message
    assert "airflow db migrate" in found.message
    assert "SELECT" not in found.message


def test_a_triggerer_that_has_died_and_one_that_runs(triggerers: Any) -> None:
    triggerers(3600)
    dead = check_triggerer()
    assert (dead.state, "the last heartbeat was 20" in dead.message) == ("warning", True)
    triggerers(1)
    assert check_triggerer().state == "ok"


def gallery(monkeypatch: pytest.MonkeyPatch, answer: bytes, path: str = "") -> tuple[Check, list[bytes]]:
    with RawServer(answer) as server:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", f"{server.url}{path}/")
        check = run_check("gallery", check_gallery)
        return check, server.requests


def response(status: str, content_type: str = "text/html", body: bytes = b"x") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@needs_pages
@pytest.mark.parametrize(
    ("answer", "state", "problem"),
    [
        (response("401 Unauthorized", "application/json"), "ok", "has the gallery"),
        (response("403 Forbidden"), "ok", "has the gallery"),
        (response("200 OK", "image/svg+xml"), "ok", "has the gallery"),
        # Airflow's UI answers so under any path.
        (response("200 OK"), "failed", "does not have the gallery"),
        (response("404 Not Found"), "failed", "does not have the gallery"),
        (response("302 Found"), "warning", "a login page"),
        (response("502 Bad Gateway"), "warning", "a proxy"),
        (b"", "warning", "cannot be reached"),
        (b"SSH-2.0-OpenSSH_9\r\n\x00\xff", "warning", "cannot be reached"),
    ],
)
def test_the_gallery(answer: bytes, state: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, requests = gallery(monkeypatch, answer, "/airflow")
    assert (check.state, problem in check.message) == (state, True), check.message
    assert requests[0].startswith(b"GET /airflow/qwenimage/static/icon.svg ")


@needs_pages
@pytest.mark.parametrize(
    "base_url", ["http://127.0.0.1:1", "/airflow", "/\u00e4", "", "http://u:pass-word@127.0.0.1:1"]
)
def test_a_base_url_where_nothing_answers(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    monkeypatch.setenv("AIRFLOW__API__PORT", "1")
    check = run_check("gallery", check_gallery)
    assert (check.state, "[api] base_url" in check.message) == ("warning", True), check.message
    assert "pass-word" not in check.message


@needs_pages
@pytest.mark.parametrize(
    ("base_url", "port"),
    [
        ("http://[", "1"),
        ("\u00e4", "1"),
        ("http://u:pass-word@127.0.0.1:many", "1"),
        ("127.0.0.1:1", "1"),
        ("", "many"),
        ("/airflow", "99999"),
    ],
)
def test_a_base_url_that_is_none_is_named_with_what_to_do(
    base_url: str, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    monkeypatch.setenv("AIRFLOW__API__PORT", port)
    check = run_check("gallery", check_gallery)
    assert (check.state, "Correct [api] base_url" in check.message) == ("warning", True), check.message
    assert "pass-word" not in check.message


@needs_pages
def test_a_base_url_whose_path_is_not_ascii_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    check, requests = gallery(monkeypatch, response("401 Unauthorized"), "/b\u00e4ume/%C3%A4")
    assert check.state == "ok", check.message
    assert requests[0].startswith(b"GET /b%C3%A4ume/%C3%A4/qwenimage/static/icon.svg ")
