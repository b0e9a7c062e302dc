"""The batch operator in a process of its own, measured: a DAG file that is run as a program.

`dag.test()` runs the task without a scheduler, in this process. Measured is `execute`, from its first to its last line;
what the process needed before it (Airflow, its database, the DAG) is told apart.
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
from benchmarks.measuring import Meter
from benchmarks.settings import Settings

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

SETTINGS = Settings.of_environment()


class MeasuredBatchOperator(QwenImageBatchOperator):
    """The batch operator; what its `execute` has used is in ``usage.json``."""

    def execute(self, context: Context) -> Any:
        """Draw, and measure it."""
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
    )

if __name__ == "__main__":
    sys.exit(dag.test().state != "success")
