"""Plans a batch: looks at its requests and its folder as the batch does, and submits, pays and writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.batch.listing import list_records_and_images
from airflow_provider_qwenimage.batch.manifest import check_manifest
from airflow_provider_qwenimage.batch.marker import BatchMarker
from airflow_provider_qwenimage.batch.request_files import read_requests
from airflow_provider_qwenimage.batch.requests import RowProblems
from airflow_provider_qwenimage.client.connection import ConnectionSettings
from airflow_provider_qwenimage.contract import DEFAULT_BASE_URL
from airflow_provider_qwenimage.exceptions import QwenImageBatchError
from airflow_provider_qwenimage.rules.batch_plans import BatchPlan, Prospect
from airflow_provider_qwenimage.rules.batch_rows import manifest_name
from airflow_provider_qwenimage.rules.batch_totals import in_brief
from airflow_provider_qwenimage.rules.made_by import description_of, variant_of
from airflow_provider_qwenimage.rules.submissions import LookAgain, Resume, Stop, Submit
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.storage.images import StoredImages
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.drawing import EFFORT, Drawing, DrawingOptions, answer_seconds
from airflow_provider_qwenimage.tasks.failures import reporting_failures
from airflow_provider_qwenimage.tasks.opening import open_row_ledger, try_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from airflow_provider_qwenimage.batch.listing import FolderListing
    from airflow_provider_qwenimage.batch.requests import BatchRequest, BatchRequests
    from airflow_provider_qwenimage.batch.task import BatchOperator
    from airflow_provider_qwenimage.rules.submissions import Step

log = logging.getLogger(__name__)

# As many rows are looked at at once as a batch draws by default.
AT_ONCE = 16
_ROWS_AT_ONCE = 1000
# A connection without a time limit of its own.
_DEFAULT_SETTINGS = ConnectionSettings(base_url=DEFAULT_BASE_URL, api_key="")


@dataclass(frozen=True, kw_only=True)
class Planner:
    """The task that would draw the batch.

    Attributes:
        instance: Its description; see `made_by.description_of`. Without one, it is a task that has never run.
        made_in: Its try.
        map_index: Its map index, or -1.
        variant: See `made_by.variant_of`.
        overwrite: Whether it draws new images.
        answer_seconds: How long the answer to a submission may take.
    """

    instance: Mapping[str, Any] = field(default_factory=dict)
    made_in: Try = Try(number=1, max_tries=0)  # noqa: RUF009  immutable
    map_index: int = -1
    variant: int = 0
    overwrite: bool = False
    answer_seconds: float = answer_seconds(_DEFAULT_SETTINGS, AT_ONCE)

    def plan(self, requests: object, folder: ObjectStoragePath) -> BatchPlan:
        """Look at requests and a folder, and return what a batch would do.

        Args:
            requests: The argument `requests`, rendered.
            folder: The folder for the images, which may not exist.

        Raises:
            ValueError: If the requests cannot be read at all, or a file is in the way of the manifest.
            OSError: If the requests or the folder cannot be read.
        """
        problems = RowProblems()
        plan = BatchPlan()
        with closing(read_requests(requests, self.variant, problems)) as found:
            plan.count(Prospect.BAD, problems.bad_rows)
            for row in problems.named:
                plan.name(row.number, row.problem or "", row.line)
            plan.refusal = str(problems) if problems.bad_rows else None
            check_manifest(folder, manifest_name(self.map_index))
            self._look_at_each(found, folder, plan)
        return plan

    def _look_at_each(self, requests: BatchRequests, folder: ObjectStoragePath, plan: BatchPlan) -> None:
        stems = (item.identity.stem for item in map(requests.find, range(len(requests))) if item is not None)
        listing = list_records_and_images(folder, stems)

        def look(number: int) -> tuple[Prospect, str]:
            item = requests.find(number)
            if item is None:
                return Prospect.BAD, ""
            if item.same_as is not None:
                return Prospect.SHARED, ""
            return _prospect(self._look(item, folder, listing))

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="qwenimage-plan") as threads:
            # In parts, since each row that is handed to a thread takes memory.
            for first in range(0, len(requests), _ROWS_AT_ONCE):
                numbers = range(first, min(first + _ROWS_AT_ONCE, len(requests)))
                for number, (prospect, problem) in zip(numbers, threads.map(look, numbers), strict=True):
                    if prospect is not Prospect.BAD:
                        plan.count(prospect)
                    if problem:
                        plan.name(number + 1, problem)

    def _look(self, item: BatchRequest, folder: ObjectStoragePath, listing: FolderListing) -> StoredImages | Step:
        identity = item.identity
        ledger = open_row_ledger(self.made_in, folder, self.instance, identity, known=listing.records, read_only=True)
        options = DrawingOptions(
            instance=self.instance,
            made_in=self.made_in,
            folder=folder,
            overwrite=self.overwrite,
            answer_seconds=self.answer_seconds,
        )
        drawing = Drawing(identity, ledger, options, check=_never, pause_before_resend=lambda *_: None)
        return drawing.look(was_looked_for=listing.has_no_image(identity))


def _never(_: Submit) -> None:
    raise AssertionError("a plan submits nothing")


def _prospect(found: StoredImages | Step) -> tuple[Prospect, str]:
    if isinstance(found, StoredImages):
        return Prospect.STORED, ""
    if isinstance(found, Stop):
        return Prospect.BLOCKED, in_brief(found.error)
    # Another process is submitting it: its answer is on its way.
    return Prospect.PENDING if isinstance(found, Resume | LookAgain) else Prospect.SUBMIT, ""


def plan_task(operator: BatchOperator, context: Context) -> dict[str, Any]:
    """Plan the batch of a running task instead of drawing it, and log the plan.

    Args:
        operator: The operator, rendered.
        context: The task's context.

    Returns:
        The plan, as `BatchPlan.to_json` returns it.

    Raises:
        ValueError: If an argument or a request is not valid.
        QwenImageBatchError: If more rows would fail than `max_failures` allows.
        OSError: If the requests or the storage cannot be read.
    """
    ti = context["ti"]
    with reporting_failures(ti):
        operator.check_rendered()
        folder = open_output_path(operator.output_path, create=False)
        made_by = description_of(ti)
        effort = {EFFORT: BatchMarker(context, folder, made_by).effort} if operator.overwrite else {}
        planner = Planner(
            instance=made_by | effort,
            made_in=try_of(context),
            map_index=made_by["map_index"],
            variant=variant_of(ti),
            overwrite=operator.overwrite,
            answer_seconds=answer_seconds(_DEFAULT_SETTINGS, operator.max_in_flight),
        )
        plan = planner.plan(operator.requests, folder)
        if operator.dataset is not None:
            from airflow_provider_qwenimage.publish.dataset_folder import check_dataset

            check_dataset(folder)
        if operator.contact_sheet:
            from airflow_provider_qwenimage.publish.contact_sheets import ContactSheets

            ContactSheets(folder, lambda: iter(()), made_by).check(plan.rows)
        for line in plan.table():
            log.info("%6d rows, %g credits: %s.", line["rows"], line["credits"], line["what"])
        for note in plan.notes():
            log.warning("%s", note)
        _check(plan, operator.max_failures)
        return plan.to_json()


def _check(plan: BatchPlan, max_failures: int) -> None:
    """Fail as the batch itself would before it submits anything, or if too many rows are sure to fail."""
    if plan.refusal is not None:
        raise ValueError(plan.refusal)
    if plan.failures > max_failures:
        raise QwenImageBatchError(
            f"{plan.failures} of {plan.rows} rows would fail before they are submitted, and max_failures is "
            f"{max_failures}. Nothing was submitted. {' | '.join(plan.notes())}",
            # Another try would only find the same.
            permanent=True,
        )
