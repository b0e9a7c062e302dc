"""Runs the commands on Airflow versions whose ``airflow`` has no commands of providers: below 3.2."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from airflow_provider_qwenimage.cli.definition import COMMANDS

PROGRAM = "python -m airflow_provider_qwenimage.cli"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: The command and its arguments; None for those of the process.

    Raises:
        SystemExit: With the exit code of a command that failed, or 2 for arguments that are not valid.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM, description="The commands of `airflow qwenimage`.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(
            command.name, help=command.help, description=command.description or command.help, epilog=command.epilog
        )
        for argument in command.args:
            argument.add_to_parser(subparser)
        subparser.set_defaults(func=command.func)
    parsed = parser.parse_args(arguments)
    parsed.func(parsed)


if __name__ == "__main__":
    main()
