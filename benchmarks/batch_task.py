"""Measure the batch operator in its own process: a DAG file that is run as a program.

`dag.test()` runs the task in this process, without a scheduler. The usage of `execute` is measured; what the process
used before it (for Airflow, its database and the DAG) is reported separately.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageBatchOperator
from benchmarks.settings import Settings
from benchmarks.usage import Meter

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

SETTINGS = Settings.of_environment()
PROVENANCE: Any = SETTINGS.provenance or False


class MeasuredBatchOperator(QwenImageBatchOperator):
    """The batch operator; it writes the usage of its `execute` to ``usage.json``."""

    def execute(self, context: Context) -> Any:
        """Draw the images, and write the usage."""
        meter = Meter()
        result = super().execute(context)
        Path(SETTINGS.folder, "usage.json").write_text(json.dumps(asdict(meter.read())))
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
