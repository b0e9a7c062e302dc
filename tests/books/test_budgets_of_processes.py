"""A budget holds for all processes at once, whatever is killed: no credit more is spent, and none is left over.

Each process is an Airflow task that draws a batch, and all share one connection and one database.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_qwenimage.books.schema import BUDGETS, SUBMISSIONS
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.databases.server import Database
from tests.events import finish_images, wait_until
from tests.task_processes import ProcessEnd, TaskProcess, TaskProcesses

IMAGES, ALLOWED = 100, 20
CREDITS = 5 * ALLOWED


@dataclass
class House:
    """Tasks of one connection with a budget, which together want more images than it allows."""

    api: Sandbox
    database: Database
    processes: TaskProcesses
    folder: Path

    def start(self, tasks: int, max_in_flight: int) -> list[TaskProcess]:
        """Start so many batches at the same moment, which want `IMAGES` images in total."""
        shares = [len(range(number, IMAGES, tasks)) for number in range(tasks)]
        started = [
            self.start_task(number, shares[number], max_in_flight=max_in_flight, waits=True) for number in range(tasks)
        ]
        for process in started:
            process.go()
        return started

    def start_task(self, number: int, images: int, *, max_in_flight: int, **options: Any) -> TaskProcess:
        """Start a batch, whose prompts begin with its number."""
        arguments = {
            "requests": [f"{number}: fox {row}" for row in range(images)],
            "output_path": str(self.folder / str(number)),
            "max_in_flight": max_in_flight,
            "poll_interval": 0.01,
        }
        return self.processes.start("QwenImageBatchOperator", arguments, task_id=f"draw_{number}", **options)

    def accepted(self, number: int) -> list[str]:
        """Return the ids of the image tasks that the API has accepted from a batch."""
        return [each.task_id for each in self.api.submissions if each.request["prompt"].startswith(f"{number}:")]

    def are_waited_for(self, number: int, images: int) -> bool:
        """Whether so many images of a batch are submitted, and polled for a second time."""
        polls = Counter(request.task_id for request in self.api.requests if request.route == "status")
        ids = self.accepted(number)
        return len(ids) == images and all(polls[task_id] > 1 for task_id in ids)

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of submissions that count against the budget."""
        return self._read(sa.select(SUBMISSIONS).where(SUBMISSIONS.c.status != "withdrawn"))

    def budgets(self) -> list[float]:
        """Return what is spent or reserved in each period."""
        return [row["credits"] for row in self._read(sa.select(BUDGETS))]

    def _read(self, statement: Any) -> Sequence[Mapping[str, Any]]:
        engine = sa.create_engine(self.database.url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(statement)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskProcesses]:
    with TaskProcesses(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest.fixture
def house(
    server: TaskProcesses, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[House]:
    with Sandbox(seconds_per_image=0) as api:
        extra = {"books_conn_id": "books", "credits_per_month": CREDITS}
        connection = json.loads(api.connection_json) | {"extra": json.dumps(extra)}
        monkeypatch.setenv("AIRFLOW_CONN_BOOKS", database.connection_json())
        monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", json.dumps(connection))
        yield House(api, database, server, tmp_path)
        server.kill_all()


def assert_stopped_at_the_budget(ends: Sequence[ProcessEnd]) -> None:
    errors = [str(end.error) for end in ends]
    assert all("QwenImageBatchError" in error and "credits_per_month" in error for error in errors), errors


@pytest.mark.parametrize("tasks", [1, 2])
def test_batches_that_want_more_than_the_budget_submit_exactly_what_it_allows(house: House, tasks: int) -> None:
    ends = [process.wait() for process in house.start(tasks, max_in_flight=8)]

    assert_stopped_at_the_budget(ends)
    assert len(house.api.submissions) == ALLOWED
    assert [row["status"] for row in house.rows()] == ["done"] * ALLOWED
    assert {row["image_task_id"] for row in house.rows()} == {each.task_id for each in house.api.submissions}
    assert house.budgets() == [CREDITS, CREDITS]


def test_a_batch_that_was_killed_and_is_retried_neither_spends_more_nor_leaves_credits_over(house: House) -> None:
    house.api.configure(seconds_per_image=3600)
    started = house.start(8, 2)
    wait_until(lambda: all(house.are_waited_for(number, 2) for number in range(8)), "the wait for images")
    started[0].kill()
    started[0] = house.start_task(0, 13, max_in_flight=2, try_number=2)
    finish_images(house.api)
    ends = [process.wait() for process in started]

    assert_stopped_at_the_budget(ends)
    assert len(house.api.submissions) == ALLOWED
    assert [row["status"] for row in house.rows()] == ["done"] * ALLOWED
    assert {row["image_task_id"] for row in house.rows()} == {each.task_id for each in house.api.submissions}
    assert house.budgets() == [CREDITS, CREDITS]


def test_what_was_on_its_way_when_a_batch_was_killed_stays_reserved(house: House) -> None:
    house.api.configure(fault_paths=("generate",), hang_after_share=1.0, hang_seconds=0.2)
    started = house.start(3, 2)
    wait_until(lambda: house.accepted(0), "a submission without an answer")
    started[0].kill()
    ends = [process.wait() for process in started[1:]]

    assert_stopped_at_the_budget(ends)
    rows = house.rows()
    assert len(rows) == ALLOWED
    assert house.budgets() == [CREDITS, CREDITS]
    known = {row["image_task_id"] for row in rows if row["image_task_id"] is not None}
    left = [row for row in rows if row["image_task_id"] is None]
    assert {row["task_id"] for row in left} == {"draw_0"}
    assert {row["status"] for row in left} == {"reserved"}
    unanswered = {each.task_id for each in house.api.submissions} - known
    assert 1 <= len(unanswered) <= len(left)


def test_a_batch_that_was_killed_while_it_waited_for_the_books_is_retried_without_a_question(house: House) -> None:
    house.database.kill()
    killed = house.start_task(0, 2, max_in_flight=2)
    wait_until(lambda: "Trying again" in killed.log, "the wait for the books")
    killed.kill()
    house.database.start()
    end = house.start_task(0, 2, max_in_flight=2, try_number=2).wait()

    assert end.value["images"] == len(house.api.submissions) == 2
    assert [row["status"] for row in house.rows()] == ["done"] * 2
