"""Describes the commands of ``airflow qwenimage``. Airflow 3.2 and later ask for them at every start of ``airflow``.

So nothing is imported here but Airflow's own description of commands, which is imported then anyway. The module that
runs a command is imported when it runs.
"""

from __future__ import annotations

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ActionCommand,
    Arg,
    CLICommand,
    GroupCommand,
    lazy_load_command,
)

GROUP = "qwenimage"

_PLAN = ActionCommand(
    name="plan",
    help="Show what a batch of requests would draw and cost, without submitting anything",
    description=(
        "Show what a QwenImageBatchOperator would do with a file of requests: which rows are bad, stored already, paid "
        "and pending, or to be paid. Nothing is submitted or written, and no API key is needed. The exit code is 1 if "
        "a row is bad or would fail."
    ),
    func=lazy_load_command("airflow_provider_qwenimage.cli.plan.run"),
    args=(
        Arg(("file",), metavar="FILE", help="The path or URL of the .jsonl, .ndjson, .json or .csv file of requests"),
        Arg(("--output-path",), required=True, metavar="URL", help="The folder for the images, a path or a URL"),
        Arg(
            ("--conn-id",),
            help="Also check this Airflow connection as the task does, and use its time limits (default: none is read)",
        ),
        Arg(
            ("--overwrite",),
            action="store_true",
            help="Plan for overwrite=True: images that are stored are drawn again",
        ),
        Arg(("--map-index",), type=int, default=-1, help="Plan for this map index of a mapped task"),
        ARG_OUTPUT,
        ARG_VERBOSE,
    ),
)

_DOCTOR = ActionCommand(
    name="doctor",
    help="Check the connection, the way to the API, the storage and Airflow",
    description=(
        "Check the connection, the way to the API, the storage and Airflow. Each line ends with what to do about it. "
        "The exit code is 1 if a check failed. Nothing is submitted without --draw."
    ),
    func=lazy_load_command("airflow_provider_qwenimage.cli.doctor.command.run"),
    args=(
        Arg(("--conn-id",), default="qwenimage_default", help="The Airflow connection (default: qwenimage_default)"),
        Arg(("--output-path",), metavar="URL", help="Check this folder for images, as output_path of the operator"),
        ARG_OUTPUT,
        Arg(
            ("--draw",),
            type=int,
            # Airflow's Arg has no `const`: None stands for the option without a number.
            nargs="?",
            default=0,
            metavar="N",
            help="Draw N images (default: 1), which costs credits, and compare each answer with the documented API",
        ),
        Arg(("-y", "--yes"), action="store_true", help="Draw without a question"),
        Arg(("--record",), metavar="FILE", help="With --draw: keep the answers in a new file, without the API key"),
        ARG_VERBOSE,
    ),
)

_BOOKS = ActionCommand(
    name="books",
    help="Show what was spent, from the books in your own database; create them; settle open rows",
    description=(
        "Show what was spent, from the books that books_conn_id of the connection names. `init` creates their tables. "
        "`settle` asks the API how submissions of killed tasks ended, which costs nothing. The exit code is 1 if the "
        "books cannot be used, or if it could not be read how a submission ended."
    ),
    func=lazy_load_command("airflow_provider_qwenimage.cli.books.command.run"),
    args=(
        Arg(
            ("action",),
            nargs="?",
            choices=("show", "init", "settle"),
            default="show",
            help="What to do (default: show)",
        ),
        Arg(("--conn-id",), default="qwenimage_default", help="The Airflow connection (default: qwenimage_default)"),
        # The options of one action have no default here, so that giving them to another one is noticed.
        Arg(("--since",), metavar="TIME", help="show: from then on: 12h, 30d, 2w or a date in UTC (default: 30d)"),
        Arg(("--by",), choices=("day", "dag", "task", "account"), help="show: what to group by (default: day)"),
        Arg(("--all-accounts",), action="store_true", help="show: all connections that use these books"),
        Arg(("-o", "--output"), choices=("table", "json", "csv"), help="show: the format (default: table)"),
        Arg(
            ("--output-path",),
            action="append",
            metavar="URL",
            help="settle: also read what this folder of images has recorded; may be given several times",
        ),
        Arg(("--dry-run",), action="store_true", help="settle: write nothing"),
        ARG_VERBOSE,
    ),
)

COMMANDS: tuple[ActionCommand, ...] = (_BOOKS, _DOCTOR, _PLAN)


def get_qwenimage_cli_commands() -> list[CLICommand]:
    """Return the commands of the package, as one group."""
    return [
        GroupCommand(
            name=GROUP,
            help="Plan batches of images and diagnose the connection to the Qwen-Image API",
            subcommands=COMMANDS,
        )
    ]
