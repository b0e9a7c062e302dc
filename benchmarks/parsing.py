"""Measures what this package adds to the parsing of a DAG file, which Airflow does all day: time and memory."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.measured_parsing import Parse
from benchmarks.settings import COMPILED
from benchmarks.tables import machine, quantile, table

_ROOT = Path(__file__).resolve().parent.parent
GOAL_SECONDS = 0.030

_OURS = {
    "QwenImageGenerateOperator": 'task_id="draw", prompt="A lighthouse", output_path="file:///tmp/images"',
    "QwenImageStatusSensor": 'task_id="wait", image_task_id="n43"',
    "QwenImageBatchOperator": 'task_id="draw_many", requests=["A lighthouse"], output_path="file:///tmp/images"',
}
_WITHOUT = "airflow.providers.standard.operators.empty", "EmptyOperator"
_EXPLANATION = """\
Each parse is a child, forked as Airflow's DAG processor forks it from a process with all that the DAG processor has
imported; nothing of this package is loaded before. The two files take turns, and have as many tasks. Shown are the
median and the range of the middle 80 % of the rounds; the difference is that of each round."""

_MEASURES: Sequence[tuple[str, Callable[[Parse], float], str]] = (
    ("time", lambda parse: parse.wall_seconds * 1000, "ms"),
    ("CPU time", lambda parse: parse.cpu_seconds * 1000, "ms"),
    ("memory", lambda parse: parse.grown_bytes / 1024**2, "MiB"),
    ("modules", lambda parse: parse.modules, ""),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parsing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how often each file is parsed (default: %(default)d)")
    parser.add_argument(
        "--operators",
        nargs="+",
        choices=list(_OURS),
        default=list(_OURS),
        help="what the file has a task of (default: all)",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1.")
    print(f"Parsing a DAG file. {machine()}", flush=True)
    print(f"  {options.rounds} rounds ...", file=sys.stderr, flush=True)
    with TemporaryDirectory(prefix="qwenimage-bench-") as folder:
        rounds = _measure(Path(folder), options.operators, options.rounds)
    ours, without = [each["ours"] for each in rounds], [each["without"] for each in rounds]
    rows = []
    for name, value, unit in _MEASURES:
        columns = [[value(parse) for parse in ours], [value(parse) for parse in without]]
        columns.append([one - other for one, other in zip(*columns, strict=True)])
        goal = ""
        if name == "time":
            goal = f"< {GOAL_SECONDS * 1000:g} ms: {'met' if median(columns[2]) < GOAL_SECONDS * 1000 else 'missed'}"
        rows.append([name, *(_spread(column, unit) for column in columns), goal])
    print()
    print(table(("to parse a DAG file", "with ours", "with none", "difference", "goal"), rows))
    print(f"\n{_EXPLANATION}")
    return 0


def _measure(folder: Path, operators: Sequence[str], rounds: int) -> list[dict[str, Parse]]:
    files = {"ours": _with_ours(operators), "without": _with_none(len(operators))}
    paths = [folder / f"{name}.py" for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment |= COMPILED | {"AIRFLOW_HOME": str(folder / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [sys.executable, "-m", "benchmarks.measured_parsing", str(rounds), *map(str, paths)]
    said = subprocess.run(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = [json.loads(line) for line in said.splitlines() if line.startswith('{"ours"')]
    return [{name: Parse(**values) for name, values in line.items()} for line in lines]


def _with_ours(operators: Sequence[str]) -> str:
    tasks = [f"{operator}({_OURS[operator]})" for operator in operators]
    return _dag(f"from airflow_provider_qwenimage import {', '.join(operators)}", tasks)


def _with_none(number: int) -> str:
    module, operator = _WITHOUT
    return _dag(f"from {module} import {operator}", [f'{operator}(task_id="task_{index}")' for index in range(number)])


def _dag(imports: str, tasks: Sequence[str]) -> str:
    lines = ["from airflow.sdk import DAG", imports, 'with DAG("benchmark", schedule=None):']
    return "\n".join([*lines, *(f"    {task}" for task in tasks), ""])


def _spread(values: Sequence[float], unit: str) -> str:
    low, middle, high = quantile(values, 0.1), median(values), quantile(values, 0.9)
    return f"{middle:.1f} ({low:.1f} to {high:.1f}) {unit}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
