"""The route that the API calls back: real API servers on one PostgreSQL database, with strangers among the callers."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from cryptography.fernet import Fernet

from airflow_provider_qwenimage.cli.doctor.callback_check import check_callbacks
from airflow_provider_qwenimage.cli.doctor.findings import run_check
from airflow_provider_qwenimage.contract import MAX_PROMPT_CHARACTERS
from airflow_provider_qwenimage.rules import callbacks
from airflow_provider_qwenimage.rules.callbacks import digest_of, new_secret
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger
from tests.databases.postgres import Postgres
from tests.databases.server import ServerMissingError
from tests.events import wait_until
from tests.gallery.callback_servers import ApiServer, Rows, Servers, Waiting, serving_callbacks, wait_for_wake

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    try:
        postgres = Postgres()
    except ServerMissingError as error:
        pytest.skip(str(error))
    with (
        postgres,
        serving_callbacks(postgres.new_database(), tmp_path_factory.mktemp("callbacks"), Fernet.generate_key()) as both,
    ):
        yield both


@pytest.fixture
def rows(servers: Servers) -> Rows:
    return servers.rows


@pytest.fixture
def one(servers: Servers) -> ApiServer:
    return servers.one


@pytest.fixture(autouse=True)
def _nothing_is_told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look for secrets and false alarms in what both servers have written in a test."""
    if "servers" not in request.fixturenames:
        yield
        return
    both: Servers = request.getfixturevalue("servers")
    before = [len(server.output) for server in (both.one, both.other)]
    yield
    for server, start in zip((both.one, both.other), before, strict=True):
        written = server.output[start:]
        assert not re.search(r"[A-Za-z0-9_-]{43}", written)
        assert "Traceback" not in written
        assert "/qwenimage/callback/" not in written or "/masked" in written


@pytest.mark.parametrize("earlier_tries", [0, 1, 3])
@pytest.mark.parametrize("name", ["one", "other"])
def test_a_callback_resumes_the_task_once_whichever_try_it_is_in(
    servers: Servers, rows: Rows, name: str, earlier_tries: int
) -> None:
    server = getattr(servers, name)
    waiting, bystander = rows.add(earlier_tries=earlier_tries), rows.add(earlier_tries=earlier_tries)
    answer = server.call(waiting)
    assert (answer.status_code, answer.json()) == (200, {"detail": "OK"})
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert rows.is_woken(waiting)
    for again in (servers.one, servers.other):
        assert again.call(waiting).status_code == 404
    assert rows.is_woken(waiting)
    assert not rows.is_woken(bystander)


def _kwargs(**arguments: Any) -> dict[str, Any]:
    return QwenImageStatusTrigger("n43", **arguments).serialize()[1]


@pytest.mark.parametrize(
    "add",
    [
        lambda rows: rows.add(state="running"),
        lambda rows: rows.add(state="success"),
        lambda rows: rows.add(state="up_for_retry"),
        lambda rows: rows.add(classpath=f"{callbacks.TRIGGER}Forged"),
        lambda rows: rows.add(classpath="airflow.providers.standard.triggers.temporal.DateTimeTrigger"),
        lambda rows: rows.add(kwargs=_kwargs()),
        lambda rows: rows.add(kwargs=_kwargs(callback=digest_of(new_secret()))),
        lambda rows: rows.add(kwargs=_kwargs(callback="\u00e4")),
        lambda rows: rows.add(kwargs=_kwargs() | {"callback": ["a"] * 64}),
        lambda rows: rows.add(stored=""),
        lambda rows: rows.add(stored="{"),
        lambda rows: rows.add(stored="{}"),
        lambda rows: rows.add(stored="[]"),
        lambda rows: rows.add(stored='{"__var": 5, "__type": "dict"}'),
        lambda rows: rows.add(stored="gAAAAAB" + 100 * "x"),
        lambda rows: rows.add(kwargs=_kwargs() | {"padding": 100_000 * "x"}),
    ],
)
def test_no_other_task_is_resumed_and_the_answer_does_not_tell_why(
    one: ApiServer, rows: Rows, add: Callable[[Rows], Waiting]
) -> None:
    waiting = add(rows)
    before = rows.look(waiting)
    unknown = Waiting(uuid.uuid4(), uuid.uuid4(), new_secret())
    answers = [one.call(rung) for rung in (waiting, unknown)]
    answers.append(one.call(rows.add(), new_secret()))
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (404, '{"detail": "No task is waiting for this callback."}')
    }
    assert len({frozenset({*answer.headers}) for answer in answers}) == 1
    assert rows.look(waiting) == before


def test_the_secret_of_one_task_resumes_no_other(one: ApiServer, rows: Rows) -> None:
    mine, other = rows.add(), rows.add()
    assert one.call(other, mine.secret).status_code == 404
    assert not rows.is_woken(mine)
    assert not rows.is_woken(other)


def test_a_callback_right_after_the_deferral_is_accepted_and_resumes_the_task_when_that_is_safe(
    servers: Servers, rows: Rows
) -> None:
    waiting = rows.add(seconds=0)
    # The clock of the server that deferred the task may be ahead.
    ahead = rows.add(seconds=-60)
    for server in (servers.one, servers.other) * 2:
        assert server.call(waiting).status_code == 202
    assert servers.one.call(ahead).status_code == 202
    assert not rows.is_woken(waiting)
    assert wait_for_wake(rows, waiting) > 1
    wait_for_wake(rows, ahead)
    wait_until(lambda: servers.one.call(ahead).status_code == 404, "the end of the second wait")


def test_an_early_callback_resumes_neither_the_next_deferral_nor_a_task_that_is_marked_meanwhile(
    one: ApiServer, rows: Rows
) -> None:
    deferred_again, marked, last = (rows.add(seconds=0) for _ in range(3))
    for waiting in (deferred_again, marked):
        assert one.call(waiting).status_code == 202
    rows.defer_again(deferred_again, seconds=-3600)
    rows.set_state(marked, "failed")
    # Its wait ends after those of the others.
    assert one.call(last).status_code == 202
    wait_for_wake(rows, last)
    assert not rows.is_woken(deferred_again)
    assert rows.look(marked)[0] == "failed"


def test_callbacks_at_once_on_several_servers_resume_the_task_once(servers: Servers, rows: Rows) -> None:
    waiting = rows.add()
    before = servers.one.output.count("has woken") + servers.other.output.count("has woken")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda server: server.call(waiting).status_code, [servers.one, servers.other] * 8))
    assert 200 in answers
    assert {*answers} <= {200, 404}
    assert rows.is_woken(waiting)
    assert servers.one.output.count("has woken") + servers.other.output.count("has woken") == before + 1


def test_a_task_is_resumed_ten_times_at_most_and_then_its_own_polls_remain(one: ApiServer, rows: Rows) -> None:
    waiting = rows.add(earlier_tries=1)
    for _ in range(10):
        assert one.call(waiting).status_code == 200
        rows.defer_again(waiting)
    assert one.call(waiting).status_code == 429
    assert not rows.is_woken(waiting)
    # Whoever has not the secret learns nothing about that, and other tasks are resumed.
    assert one.call(waiting, new_secret()).status_code == 404
    assert one.call(rows.add()).status_code == 200


@pytest.mark.parametrize(("size", "status"), [(64 * 1024, 200), (64 * 1024 + 1, 413)])
def test_the_body_may_have_the_longest_prompt_twice(one: ApiServer, rows: Rows, size: int, status: int) -> None:
    prompt = json.dumps("\U0001f98a" * MAX_PROMPT_CHARACTERS)
    assert 2 * len(prompt) < 64 * 1024
    # With a length, and in chunks, which tell none.
    for body in (size * b" ", iter([prompt.encode(), (size - len(prompt)) * b" "])):
        waiting = rows.add()
        assert one.call(waiting, json=None, data=body).status_code == status
        assert rows.is_woken(waiting) == (status == 200)


def test_doctor_recognizes_the_route(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    for server in (servers.one, servers.other):
        monkeypatch.setenv("AIRFLOW__QWENIMAGE__CALLBACK_BASE_URL", server.url)
        found = run_check("callbacks", check_callbacks)
        assert (found.state, server.url in found.message) == ("ok", True), found.message


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_only_a_post_resumes_a_task(one: ApiServer, rows: Rows, method: str) -> None:
    waiting = rows.add()
    url = callbacks.callback_url(one.url, waiting.id, waiting.secret)
    answer = requests.request(method, url, timeout=100)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert not rows.is_woken(waiting)


@pytest.mark.parametrize("name", ["one", "other"])
def test_every_other_route_still_needs_a_login(servers: Servers, name: str) -> None:
    base = getattr(servers, name).url
    for path in ("/", "/data", "/credits", "/dags/foxes/runs/1", "/callback", "/callbacks/x"):
        for method in ("GET", "POST"):
            answer = requests.request(method, f"{base}/qwenimage{path}", timeout=100)
            assert answer.status_code in {401, 404, 405}, path
            assert method == "POST" or path.startswith("/callback") or answer.status_code in {401, 404}
    assert requests.get(f"{base}/qwenimage/", timeout=100).status_code == 401
    assert requests.get(f"{base}/api/v2/dags", timeout=100).status_code == 401


def test_a_stranger_who_hammers_leaves_airflow_its_connections(one: ApiServer, rows: Rows) -> None:
    waiting = rows.add()
    unknown = [Waiting(uuid.uuid4(), uuid.uuid4(), new_secret()) for _ in range(300)]
    with ThreadPoolExecutor(60) as pool:
        answers = pool.map(lambda rung: one.call(rung).status_code, unknown)
        health = requests.get(f"{one.url}/api/v2/monitor/health", timeout=100).json()
        assert {*answers} <= {404, 503}
    assert health["metadatabase"]["status"] == "healthy"
    assert one.call(waiting).status_code == 200


def test_while_the_database_is_away_a_callback_is_refused_and_the_server_goes_on(servers: Servers, rows: Rows) -> None:
    waiting, early = rows.add(), rows.add(seconds=0)
    assert servers.one.call(early).status_code == 202
    servers.database.kill()
    try:
        for _ in range(3):
            answer = servers.one.call(waiting)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
        wait_until(lambda: servers.one.output.count("could not wake its task: ") >= 4, "the end of the early callback")
    finally:
        servers.database.start()
    wait_until(lambda: servers.one.call(waiting).status_code != 503, "a connection to the database")
    assert rows.is_woken(waiting)
    assert not rows.is_woken(early)
    assert servers.one.call(early).status_code == 200


def test_a_server_ends_at_once_while_it_holds_a_callback_and_the_task_is_left_to_its_polls(
    servers: Servers, rows: Rows
) -> None:
    waiting = rows.add(seconds=-3600)
    assert servers.other.call(waiting).status_code == 202
    servers.other.terminate()
    assert not rows.is_woken(waiting)
