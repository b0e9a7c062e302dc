"""Measure the batch operator in its own process: a DAG file that is run as a program.

`dag.test()` runs the task in this process, without a scheduler. The usage of `execute` is measured; what the process
used before it (for Airflow, its database and the DAG) is reported separately.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.batch import task
from airflow_provider_qwenimage.tasks.opening import mark_of
from benchmarks.settings import Settings
from benchmarks.usage import Meter

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

SETTINGS = Settings.of_environment()
PROVENANCE: Any = SETTINGS.provenance or False


class MeasuredMarks:
    """Marks images as the operator does, and adds up the CPU time of its threads for that.

    Attributes:
        seconds: The sum, with the hash of what is stored, which an image without a mark does not need.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def mark_of(self, provenance: Any) -> Any:
        """Return what marks images, or None, as `opening.mark_of` does."""
        mark = mark_of(provenance)
        if mark is None:
            return None

        def measured(*arguments: Any) -> Any:
            began = time.thread_time()
            marked = mark(*arguments)
            hashlib.sha256(marked.content).hexdigest()
            self.seconds += time.thread_time() - began
            return marked

        return measured


class MeasuredBatchOperator(QwenImageBatchOperator):
    """The batch operator; it writes the usage of its `execute` to ``usage.json``, and of its marks."""

    def execute(self, context: Context) -> Any:
        """Draw the images, and write the usage."""
        marks = MeasuredMarks()
        # Patched, because the operator has no option for this.
        setattr(task, "mark_of", marks.mark_of)  # noqa: B010
        meter = Meter()
        result = super().execute(context)
        Path(SETTINGS.folder, "usage.json").write_text(json.dumps(asdict(meter.read())))
        Path(SETTINGS.folder, "marks.json").write_text(json.dumps(marks.seconds))
        logging.getLogger(__name__).info("The batch operator returned %s", result)
        return result


with DAG("measured_batch", schedule=None) as dag:
    MeasuredBatchOperator(
        task_id="draw",
        requests=str(Path(SETTINGS.folder, "requests.jsonl")),
        output_path=str(SETTINGS.output("batch")),
        max_in_flight=SETTINGS.in_flight,
        poll_interval=SETTINGS.poll_interval,
        provenance=PROVENANCE,
        contact_sheet=SETTINGS.contact_sheet,
    )

if __name__ == "__main__":
    sys.exit(dag.test().state != "success")
