"""Parses DAG files as Airflow's DAG processor does and measures it. `benchmarks.parsing` runs it.

A process with everything that the DAG processor has imported forks a child for each parse, as that does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_PACKAGE = "airflow_provider_qwenimage"
# What Airflow itself imports to know which providers there are.
_KNOWN_TO_AIRFLOW = {_PACKAGE, f"{_PACKAGE}.provider_info"}


@dataclass(frozen=True, kw_only=True)
class Parse:
    """What one parse took.

    Attributes:
        wall_seconds: From the start of the parse to its end.
        cpu_seconds: User and system.
        grown_bytes: How much memory the process used more afterwards.
        modules: How many modules it imported.
    """

    wall_seconds: float
    cpu_seconds: float
    grown_bytes: int
    modules: int


def measure(file: Path) -> Parse:
    """Parse a file in a child of this process.

    Args:
        file: A DAG file.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "client"
            os.write(writing, json.dumps(asdict(_parse(file))).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    if os.waitpid(child, 0)[1] or not said:
        raise ChildProcessError(f"{file} could not be parsed; the reason is above.")
    return Parse(**json.loads(said))


def _parse(file: Path) -> Parse:
    from airflow.dag_processing.dagbag import BundleDagBag

    process = psutil.Process()
    modules, size = len(sys.modules), process.memory_info().rss
    cpu, wall = time.process_time(), time.perf_counter()
    bag = BundleDagBag(dag_folder=file, bundle_path=file.parent, bundle_name="benchmark", load_op_links=False)
    parse = Parse(
        wall_seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
        grown_bytes=process.memory_info().rss - size,
        modules=len(sys.modules) - modules,
    )
    if bag.import_errors or len(bag.dags) != 1:
        print(bag.import_errors or f"{file} has {len(bag.dags)} DAGs instead of one.", file=sys.stderr, flush=True)
        raise ImportError(str(file))
    return parse


def _run(files: Sequence[Path], rounds: int) -> None:
    # What the DAG processor has imported before it forks, and then for each file.
    importlib.import_module("airflow.dag_processing.manager")
    from airflow.utils.file import iter_airflow_imports

    for file in files:
        for module in iter_airflow_imports(str(file)):
            importlib.import_module(module)
    loaded = {name for name in sys.modules if name.partition(".")[0] == _PACKAGE} - _KNOWN_TO_AIRFLOW
    if loaded:
        raise RuntimeError(f"{', '.join(sorted(loaded))} is imported already: it would not be measured.")
    gc.collect()
    gc.freeze()
    for file in files:
        # Python writes its compiled files.
        measure(file)
    for _ in range(rounds):
        print(json.dumps({file.stem: asdict(measure(file)) for file in files}), flush=True)


if __name__ == "__main__":
    _run([Path(argument) for argument in sys.argv[2:]], int(sys.argv[1]))
