"""Use a known CPU time, half of it in the task's process and half in a child process, to check the measurement."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

_BURN = "import sys, time\nwhile time.process_time() < float(sys.argv[1]): pass"

with DAG("burn", schedule=None):

    @task
    def burn(**context: Any) -> None:
        """Use the CPU seconds of the run's configuration."""
        half = context["dag_run"].conf["seconds"] / 2
        subprocess.run([sys.executable, "-c", _BURN, str(half)], check=True)
        end = time.process_time() + half
        while time.process_time() < end:
            pass

    burn()
