"""Measure what the package adds to each start of `airflow` and to the parsing of a DAG file: `make bench-start`."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from benchmarks.sandbox_process import ROOT
from benchmarks.tables import machine, table
from scripts.local_airflow import CannotGoOnError, run_to_the_end
from scripts.progress import Progress

_MS = 1000
_MOST_CLI_MS = 30.0
_MOST_PARSE_MS = 15.0

# `airflow version`, with the metadata of the package changed before Airflow reads it; prints the CPU time.
_VERSION = """
import sys, time
from airflow_provider_qwenimage import provider_info
describe = provider_info.get_provider_info
provider_info.get_provider_info = lambda: {{key: value for key, value in describe().items() if key not in {without!r}}}
sys.argv = ["airflow", "version"]
from airflow.__main__ import main
main()
print(time.process_time())
"""
# Parsing a DAG file, in a process that has loaded what Airflow's DAG processor has; prints its CPU time.
_PARSE = """
import time
import airflow.providers.common.compat.sdk as sdk
for name in ("BaseHook", "BaseOperator", "BaseSensorOperator", "DAG", "ObjectStoragePath", "Context", "conf"):
    getattr(sdk, name)
import airflow.providers.common.compat.connection, airflow.triggers.base, pendulum
source = compile({source!r}, "dag.py", "exec")
began = time.process_time()
exec(source)
print(time.process_time() - began)
"""
_DAG = """
from airflow.providers.common.compat.sdk import DAG, BaseOperator
{imports}
with DAG("measured", schedule=None):
    {operator}
"""
_VERSIONS = {
    "without the commands": _VERSION.format(without=("cli",)),
    "with the commands": _VERSION.format(without=()),
}
_PARSED = {
    "`BaseOperator` alone": _DAG.format(imports="", operator='BaseOperator(task_id="a")'),
    "`QwenImageBatchOperator`": _DAG.format(
        imports="from airflow_provider_qwenimage import QwenImageBatchOperator",
        operator='QwenImageBatchOperator(task_id="a", requests=["A fox"], output_path="/tmp/images")',
    ),
    "http provider's `HttpOperator`": _DAG.format(
        imports="from airflow.providers.http.operators.http import HttpOperator",
        operator='HttpOperator(task_id="a", endpoint="x")',
    ),
}


def main() -> int:
    """Run the comparison, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.starts",
        description="Measure the CPU time of `airflow version` with and without the package's commands, and of parsing "
        "a DAG file with one operator, each in new processes that take turns.",
    )
    parser.add_argument("--runs", type=int, default=15, help="processes of each kind (default: 15)")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    return run_to_the_end(lambda: _run(arguments.runs))


def _run(runs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="qwenimage-starts-") as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        environment |= {"AIRFLOW_HOME": home, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db"}
        versions = _medians(_VERSIONS, runs, environment)
        parsed = _medians({name: _PARSE.format(source=source) for name, source in _PARSED.items()}, runs, environment)
    print(f"\n{machine()}, medians of {runs}\n")
    print(table(["start", "CPU ratio", "CPU ms"], _rows(versions)))
    added = _difference(versions)
    print(f"\nThe commands add {added:.0f} ms to a start (goal: at most {_MOST_CLI_MS:g} ms).\n")
    print(table(["parsing", "CPU ratio", "CPU ms"], _rows(parsed)))
    part = _difference(parsed)
    print(f"\nThe package adds {part:.1f} ms to a DAG file (goal: at most {_MOST_PARSE_MS:g} ms).")


def _medians(scripts: Mapping[str, str], runs: int, environment: Mapping[str, str]) -> dict[str, float]:
    """Return the median of what each script prints last, in milliseconds."""
    progress = Progress(sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in scripts}
    with progress.step(f"{len(scripts)} kinds of processes, {runs} of each"):
        # The first round fills the cache of the disk, and compiles what is not compiled yet.
        for number in range(runs + 1):
            for name, script in scripts.items():
                printed = _printed(script, environment)
                if number:
                    seconds[name].append(printed)
    return {name: statistics.median(each) * _MS for name, each in seconds.items()}


def _printed(script: str, environment: Mapping[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotGoOnError(f"A measured process failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def _difference(medians: Mapping[str, float]) -> float:
    first, second, *_ = medians.values()
    return second - first


def _rows(medians: Mapping[str, float]) -> list[list[str]]:
    first = next(iter(medians.values()))
    return [[name, f"{value / first:.2f}", f"{value:.1f}"] for name, value in medians.items()]


if __name__ == "__main__":
    sys.exit(main())
