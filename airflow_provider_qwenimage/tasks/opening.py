"""Opens the records of a running Airflow task: in Airflow's task state, in the output folder, or in both."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import conf

from airflow_provider_qwenimage.airflow_versions import COUNTS_EVERY_CLEAR
from airflow_provider_qwenimage.rules.made_by import state_scope_of, writer_of
from airflow_provider_qwenimage.rules.prices import assumed_price
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.storage.libraries import LOCAL
from airflow_provider_qwenimage.tasks.ledger import Ledger
from airflow_provider_qwenimage.tasks.records import FolderRecords, Records
from airflow_provider_qwenimage.tasks.stores import FolderStore, ReadOnlyFolderStore, TaskStateStore

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
    from airflow_provider_qwenimage.rules.submission_facts import Submission
    from airflow_provider_qwenimage.storage.images import Mark
    from airflow_provider_qwenimage.tasks.bookkeeping import TaskBooks

log = logging.getLogger(__name__)

_EARLIER_KEY = "submission"
_EXECUTORS_OF_ONE_HOST = ("LocalExecutor", "SequentialExecutor", "DebugExecutor")


def try_of(context: Context) -> Try:
    """Return the try that runs."""
    return Try.of(context["ti"], context.get("dag_run") if COUNTS_EVERY_CLEAR else None)


def warn_about_other_hosts(context: Context, folder: ObjectStoragePath) -> None:
    """Log a warning if a retry on another host could not know what this try submits, because only the folder knows."""
    if context.get("task_state_store") is not None or folder.protocol not in LOCAL:
        return
    executors = conf.get("core", "executor", fallback="").split(",")
    if any(name.strip().rpartition(".")[2] not in _EXECUTORS_OF_ONE_HOST for name in executors):
        log.warning(
            "%s is a folder of this host. If a retry runs on another host, it does not find what this try submits, and "
            "pays again. Use storage that all workers share, or upgrade to Airflow 3.3.",
            folder,
        )


class TryInProcess:
    """What this process has done in a try: a subclass may execute the operator once for each of its prompts.

    Attributes:
        counted: Credits of the images that count against the task's limit; see `prices.assumed_price`.
        charged: What the last of them has cost; 0 if there is none.
    """

    def __init__(self) -> None:
        self._try: tuple[str, int] | None = None
        self._number = 0
        self.counted = 0.0
        self.charged = 0.0

    def next_number(self, writer: str, try_number: int) -> int:
        """Return the number of the image that a try begins to draw, counted from 1."""
        if self._try != (writer, try_number):
            self._try, self._number, self.counted, self.charged = (writer, try_number), 0, 0.0, 0.0
        self._number += 1
        return self._number

    def charge(self, consumed_credits: float | None) -> None:
        """Count an image that this task has paid for."""
        self.charged = consumed_credits or 0.0
        self.counted += assumed_price(consumed_credits)


try_in_process = TryInProcess()


def open_ledger(
    context: Context,
    folder: ObjectStoragePath | None,
    instance: Mapping[str, Any],
    *,
    durable: bool,
    number: int | None = None,
    books: TaskBooks | None = None,
) -> Ledger:
    """Return the ledger of an image that the running task draws.

    Args:
        context: The task's context.
        folder: The folder for images, or None.
        instance: The task; see `made_by.description_of`.
        durable: Whether to record anything.
        number: The number of the image among those of the task, counted from 1; None for the next one of this try.
        books: The books of the connection, or None.
    """
    made_in = try_of(context)
    writer = writer_of(instance)
    # Only a task that an earlier version of this package has begun has a record of it.
    may_have_earlier = number is not None or made_in.number > 1
    if number is None:
        number = try_in_process.next_number(writer, made_in.number)
    if not durable:
        return Ledger(instance, made_in, own=None, shared=None, books=books)
    earlier = may_have_earlier and number == 1
    accessor = context.get("task_state_store")
    own: Records | None = None
    if accessor is not None:
        prefix = f"submission-{state_scope_of(context['ti'])}{number}"
        own = Records(TaskStateStore(accessor), prefix, instance, earlier_name=_EARLIER_KEY if earlier else None)
    elif folder is not None:
        own = FolderRecords(
            FolderStore(folder, writer),
            f"{writer}-{number}",
            instance,
            writer=writer,
            earlier_name=writer if earlier else None,
        )
    shared: Callable[[str], Records] | None = None
    if folder is not None:
        store = FolderStore(folder, writer)

        def shared(key: str) -> Records:
            return FolderRecords(store, key, instance, writer=writer)

    return Ledger(instance, made_in, own=own, shared=shared, books=books)


def open_submitted_ledger(
    context: Context,
    folder: ObjectStoragePath | None,
    instance: Mapping[str, Any],
    image_task_id: str | None,
    *,
    durable: bool,
    books: TaskBooks | None = None,
) -> Ledger:
    """Return the ledger of an image task that this task submitted before it was deferred; see `Ledger.current`.

    Args:
        context: The task's context.
        folder: The folder for images, or None.
        instance: The task; see `made_by.description_of`.
        image_task_id: The API's id of the image task, or None for the last one.
        durable: Whether anything is recorded.
        books: The books of the connection, or None.
    """
    found: Ledger | None = None
    for number in count(1):
        ledger = open_ledger(context, folder, instance, durable=durable, number=number, books=books)
        if ledger.find(image_task_id) is not None:
            found = ledger
        if ledger.is_empty or (found is not None and image_task_id is not None):
            return found or ledger
    raise AssertionError("a ledger without records ends the search")


def open_row_ledger(
    made_in: Try,
    folder: ObjectStoragePath,
    instance: Mapping[str, Any],
    identity: ImageIdentity,
    *,
    known: Collection[str] | None = None,
    read_only: bool = False,
    books: TaskBooks | None = None,
    row: int | None = None,
) -> Ledger:
    """Return the ledger of one image of a batch: in the output folder, with every version of Airflow.

    Airflow's task state would take a request to its API server for each of thousands of rows.

    Args:
        made_in: The try of the task.
        folder: The folder for images.
        instance: The task; see `made_by.description_of`.
        identity: The image.
        known: The names of the records that the folder has, if they were listed.
        read_only: Whether the folder stays as it is.
        books: The books of the connection, or None.
        row: The row, counted from 1, for the books.
    """
    writer = writer_of(instance)
    store = (ReadOnlyFolderStore if read_only else FolderStore)(folder, writer)
    earlier_name = earlier_row_name(writer, identity)

    listed = known

    def shared(key: str) -> Records:
        nonlocal listed
        # Only the first look may trust the list: a later one follows a record that others have made since.
        names, listed = listed, None
        return FolderRecords(store, key, instance, writer=writer, earlier_name=earlier_name, known=names)

    return Ledger(instance, made_in, own=None, shared=shared, books=books, batch_row=row)


def find_left(context: Context, folder: ObjectStoragePath, instance: Mapping[str, Any], key: str) -> Submission | None:
    """Return the last submission that a task has recorded for an image in a folder, if it is paid and not done.

    Args:
        context: The task's context.
        folder: The folder for images.
        instance: The task; see `made_by.description_of`.
        key: The key of the image; see `ImageIdentity`.
    """
    writer = writer_of(instance)
    records = FolderRecords(FolderStore(folder, writer), key, instance, writer=writer)
    records.read(try_of(context))
    last = records.history[-1] if records.history else None
    if last is None or last.end is not None or last.image_task_id is None or not last.intent.is_readable:
        return None
    return last if writer_of(last.intent.by) == writer else None


def earlier_row_name(writer: str, identity: ImageIdentity) -> str:
    """Return the name of the record that an earlier version of this package wrote about a row of a batch."""
    return hashlib.sha256(f"{writer} {identity.fingerprint}".encode()).hexdigest()[:16]


def mark_of(provenance: str | Literal[False]) -> Mark | None:
    """Return what marks the files of a task's images; None if they are stored as they came.

    Args:
        provenance: The argument of the operators.
    """
    if provenance is False:
        return None
    from airflow_provider_qwenimage.publish.provenance import ProvenanceMark

    return ProvenanceMark(provenance)
