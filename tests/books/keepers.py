"""Processes and threads that keep the books of one account at the same time, as the tasks of an Airflow do."""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from airflow_provider_qwenimage.books.opening import open_books
from airflow_provider_qwenimage.exceptions import QwenImageBudgetError
from airflow_provider_qwenimage.rules.book_rows import BookStatus, Change, Reservation
from airflow_provider_qwenimage.rules.budgets import BooksOptions, Budgets
from tests.databases.server import Database

ACCOUNT = "qwen"
_SECONDS = 120
# How submissions end, in turn: as the price that is reserved, for more, and for nothing.
ENDS = ((BookStatus.DONE, 5.0), (BookStatus.DONE, 7.0), (BookStatus.FAILED, 0.0), (BookStatus.WITHDRAWN, None))


def reservation(**fields: Any) -> Reservation:
    """Return a submission that is about to be sent."""
    given: dict[str, Any] = {"account": ACCOUNT, "credits": 5, "fingerprint": "f", "dag_id": "foxes"} | fields
    return Reservation(submission_id=uuid.uuid4().hex, **given)


@dataclass(frozen=True)
class Work:
    """What each of several processes does.

    Attributes:
        budgets: The budgets that they share.
        settles: Whether each submission ends at once, as `ENDS` says.
        threads: The threads of each process.
        wanted: How many submissions each thread wants.
    """

    budgets: Budgets
    settles: bool
    threads: int = 6
    wanted: int = 4


def at_once(database: Database, work: Work, processes: int) -> Counter[str]:
    """Have so many processes do the same work at the same moment.

    Returns:
        How many submissions were reserved and refused, how often a budget was reported to be nearly spent, and how many
        processes have written everything.
    """
    context = multiprocessing.get_context("forkserver")
    # Otherwise each process would import Airflow, and look up its hooks.
    context.set_forkserver_preload([__name__, "tests.books.hooks_in_memory"])
    barrier, ends = context.Barrier(processes), context.SimpleQueue()
    started = [
        context.Process(target=_keep, args=(work, database.connection_json(), barrier, ends), daemon=True)
        for _ in range(processes)
    ]
    for process in started:
        process.start()
    total = Counter[str]()
    for process in started:
        process.join(_SECONDS)
        assert process.exitcode == 0
        total.update(ends.get())
    return total


def _keep(work: Work, connection: str, barrier: Any, ends: Any) -> None:
    os.environ["AIRFLOW_CONN_BOOKS"] = connection
    books = open_books(BooksOptions("books", work.budgets), ACCOUNT, is_batch=True)
    noted: list[str] = []
    books._note_nearly_spent = noted.append

    def run(_: int) -> Sequence[str]:
        found = []
        for number in range(work.wanted):
            one = reservation(credits=books.price)
            try:
                books.reserve(one)
            except QwenImageBudgetError:
                found.append("refused")
                continue
            found.append("reserved")
            if work.settles:
                status, consumed = ENDS[number % len(ENDS)]
                books.note(
                    Change(
                        status=BookStatus.SUBMITTED, submission_id=one.submission_id, image_task_id=one.submission_id
                    )
                    if status is not BookStatus.WITHDRAWN
                    else Change(status=status, submission_id=one.submission_id)
                )
                if consumed is not None:
                    books.settle(
                        Change(status=status, submission_id=one.submission_id, credits_consumed=consumed), _SECONDS
                    )
        return found

    barrier.wait(_SECONDS)
    with ThreadPoolExecutor(work.threads) as pool:
        found = Counter(what for each in pool.map(run, range(work.threads)) for what in each)
    found["written"] = books.close(_SECONDS)
    found["nearly spent"] = len(noted)
    ends.put(dict(found))
