"""The books record submissions, charges and requests."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from airflow_provider_qwenimage.contract import GenerateRequest, TaskStatus
from airflow_provider_qwenimage.sandbox.books import Books, RequestRecord, Task

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api


class Clock:
    def __init__(self) -> None:
        self.now = 1_734_602_400.0

    def __call__(self) -> float:
        return self.now


def accept(books: Books, outcome: str = "ok", limit: float | None = None, failed_credits: float = 0.0) -> Task | None:
    return books.accept(
        GenerateRequest(prompt="a cat"),
        seconds=10,
        pending_share=0.3,
        outcome=outcome,
        failed_credits=failed_credits,
        credit_limit=limit,
    )


@pytest.mark.parametrize(
    ("after", "outcome", "status", "charged"),
    [
        (0, "ok", TaskStatus.PENDING, 5),
        (2.9, "ok", TaskStatus.PENDING, 5),
        (3, "ok", TaskStatus.IN_PROGRESS, 5),
        (9.9, "failure", TaskStatus.IN_PROGRESS, 5),
        (10, "ok", TaskStatus.SUCCESS, 5),
        (10, "failure", TaskStatus.FAILED, 0),
        (10, "policy", TaskStatus.FAILED, 0),
    ],
)
def test_a_task_progresses_with_the_clock(after: float, outcome: str, status: TaskStatus, charged: float) -> None:
    clock = Clock()
    books = Books(10, clock)
    task = accept(books, outcome)
    assert task is not None
    clock.now += after
    assert task.status_at(clock()) is status
    assert task.data_at(clock(), "http://x/y")["created_at"] == "2024-12-19T10:00:00Z"
    (submission,) = books.submissions()
    assert (submission.status, submission.charged) == (status, charged)
    assert books.credits_charged() == charged


def test_credits_stay_charged_until_a_task_has_failed() -> None:
    clock = Clock()
    books = Books(10, clock)
    assert accept(books, "failure", limit=5)
    assert accept(books, limit=5) is None
    clock.now += 10
    assert accept(books, limit=5)
    assert books.credits_charged() == 5


@pytest.mark.parametrize(("cost", "reported"), [(0.0, "0"), (5.0, "5"), (2.5, "2.5"), (7.0, "7")])
@pytest.mark.parametrize("outcome", ["failure", "policy"])
def test_a_failed_task_costs_the_failed_credits(outcome: str, cost: float, reported: str) -> None:
    clock = Clock()
    books = Books(10, clock)
    task = accept(books, outcome, failed_credits=cost)
    assert task is not None
    assert books.credits_charged() == 5
    clock.now += 10
    assert books.credits_charged() == cost
    assert [submission.charged for submission in books.submissions()] == [cost]
    assert json.dumps(task.data_at(clock(), "http://x/y")["consumed_credits"]) == reported


def test_failed_credits_do_not_change_the_cost_of_an_image() -> None:
    clock = Clock()
    books = Books(10, clock)
    accept(books, failed_credits=7.0)
    clock.now += 10
    assert books.credits_charged() == 5


def test_the_oldest_requests_are_dropped_first() -> None:
    books = Books(3, Clock())
    for number in range(5):
        books.note_request(
            RequestRecord(method="GET", path=f"/{number}", route="other", authorized_header=False, time=0)
        )
    assert [record.path for record in books.requests()] == ["/2", "/3", "/4"]


def test_requests_and_submissions_are_in_the_books(api: Api) -> None:
    task_id = api.submit("a cat", seed=4)
    api.status(task_id)
    api.status("n43unknown", key=None)
    (submission,) = api.sandbox.submissions
    assert submission.task_id == task_id
    assert submission.request["prompt"] == "a cat"
    assert (submission.charged, submission.status, submission.seed) == (5, "SUCCESS", 4)
    generate, status, refused = api.sandbox.requests
    assert (generate.method, generate.path, generate.route) == ("POST", "/api/generate", "generate")
    assert (generate.status, generate.code, generate.task_id) == (200, 200, task_id)
    assert (status.route, status.task_id, status.authorized_header) == ("status", task_id, True)
    assert (refused.status, refused.authorized_header) == (401, False)
    assert submission.accepted_at <= status.time <= refused.time


def test_reset_deletes_everything_and_restores_the_initial_settings(api: Api) -> None:
    task_id = api.submit()
    api.sandbox.configure(wire_style="envelope")
    api.sandbox.script("status", "server_error")
    api.sandbox.reset()
    assert (api.sandbox.submissions, api.sandbox.requests, api.sandbox.credits_charged) == ([], [], 0)
    assert api.sandbox.settings.wire_style == "http"
    assert api.status(task_id).status_code == 404


def test_the_log_size_can_change_while_it_runs(api: Api) -> None:
    for _ in range(4):
        api.generate()
    api.sandbox.configure(request_log_size=2)
    api.generate()
    assert len(api.sandbox.requests) == 2
    assert len(api.sandbox.submissions) == 5


def test_the_books_can_be_read_while_they_are_written() -> None:
    books = Books(1000)
    stop = threading.Event()

    def write() -> None:
        # A limited number of tasks, so that reading them does not become slower and slower.
        for number in itertools.count():
            if stop.is_set():
                return
            if number < 1000:
                accept(books)
            books.note_request(RequestRecord(method="GET", path="/", route="other", authorized_header=False, time=0))

    interval = sys.getswitchinterval()
    # Threads switch as often as possible, also in the middle of an operation.
    sys.setswitchinterval(1e-6)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            books.requests()
            books.submissions()
            books.credits_charged()
    finally:
        stop.set()
        writer.join()
        sys.setswitchinterval(interval)
    assert books.credits_charged() == 5 * len(books.submissions())
