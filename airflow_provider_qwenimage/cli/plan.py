"""Runs ``airflow qwenimage plan``: prints what a batch would draw and cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow.cli.simple_table import AirflowConsole
from airflow.providers.common.compat.sdk import AirflowException
from airflow.utils import yaml
from airflow.utils.cli import suppress_logs_and_warning

from airflow_provider_qwenimage.batch.plan import AT_ONCE, Planner
from airflow_provider_qwenimage.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from airflow_provider_qwenimage.cli.metadata_database import with_database
from airflow_provider_qwenimage.cli.output import print_line, say
from airflow_provider_qwenimage.client.connection import read_connection
from airflow_provider_qwenimage.client.connection_lookup import look_up_connection
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.rules.arguments import BATCH_ARGUMENTS
from airflow_provider_qwenimage.rules.templates import is_template
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.drawing import answer_seconds
from airflow_provider_qwenimage.text.messages import shown

if TYPE_CHECKING:
    import argparse

    from airflow_provider_qwenimage.rules.batch_plans import BatchPlan


@suppress_logs_and_warning  # type: ignore[untyped-decorator,unused-ignore]  # Airflow's; they would be part of the output
def run(arguments: argparse.Namespace) -> None:
    """Print the plan of a batch.

    Args:
        arguments: Those of the command; see `definition`.

    Raises:
        SystemExit: With exit code 1 if a row is bad or would fail, or the batch cannot be planned, and 130 after
            Ctrl-C.
    """
    try:
        with with_database():
            plan = _plan(arguments)
    except (ValueError, OSError, ImportError, AirflowException, QwenImageError) as error:
        raise SystemExit(f"The batch cannot be planned. {error}") from None
    except KeyboardInterrupt:
        say("Interrupted.")
        raise SystemExit(EXIT_INTERRUPTED) from None
    _print(plan, arguments.output)
    if not plan.is_sound:
        raise SystemExit(EXIT_FAILED)


def _plan(arguments: argparse.Namespace) -> BatchPlan:
    file = _read("requests", arguments.file)
    folder = open_output_path(_read("output_path", arguments.output_path), create=False)
    times: dict[str, Any] = {}
    if arguments.conn_id is not None:
        settings = read_connection(look_up_connection(_read("qwenimage_conn_id", arguments.conn_id)))
        times["answer_seconds"] = answer_seconds(settings, AT_ONCE)
    index: int = arguments.map_index
    if index < -1:
        raise ValueError(f"map_index is {shown(index)}; it must be 0 or more, or -1 for a task that is not mapped.")
    planner = Planner(map_index=index, variant=max(0, index), overwrite=arguments.overwrite, **times)
    return planner.plan(file, folder)


def _read(name: str, value: str) -> Any:
    """Return an argument as the operator reads it; templates are only rendered in a task."""
    if is_template(value):
        raise ValueError(f"{name} is {shown(value)}, which is a template; give the path that it renders to.")
    return BATCH_ARGUMENTS[name](name, value)


def _print(plan: BatchPlan, output: str) -> None:
    if output == "json":
        print_line(json.dumps(plan.to_json()))
    elif output == "yaml":
        print_line(yaml.dump(plan.to_json(), sort_keys=False).rstrip())
    else:
        console = AirflowConsole()
        with console.capture() as table:
            console.print_as(plan.table(), output)
        print_line(table.get().rstrip("\n"))
        for note in plan.notes():
            print_line(note)
