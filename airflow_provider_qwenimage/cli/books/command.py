"""Runs ``airflow qwenimage books``: shows what was spent, creates the tables, and settles open rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException
from airflow.utils.cli import suppress_logs_and_warning

from airflow_provider_qwenimage.books import reports
from airflow_provider_qwenimage.books.opening import open_database
from airflow_provider_qwenimage.books.schema import BOOKS, BUDGETS, SUBMISSIONS
from airflow_provider_qwenimage.cli.books.since import read_since
from airflow_provider_qwenimage.cli.books.spending import SpendingReport
from airflow_provider_qwenimage.cli.exit_codes import EXIT_ARGUMENTS, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from airflow_provider_qwenimage.cli.metadata_database import with_database
from airflow_provider_qwenimage.cli.output import print_line, say
from airflow_provider_qwenimage.client.connection import ConnectionSettings, read_connection
from airflow_provider_qwenimage.client.connection_lookup import look_up_connection
from airflow_provider_qwenimage.exceptions import QwenImageError
from airflow_provider_qwenimage.text.messages import shown

if TYPE_CHECKING:
    import argparse

    from airflow_provider_qwenimage.books.database import BooksDatabase

DEFAULT_SINCE = "30d"
# The options of one action only, and how they are given.
_OPTIONS = {
    "show": {"since": "--since", "by": "--by", "all_accounts": "--all-accounts", "output": "--output"},
    "init": {},
    "settle": {"output_path": "--output-path", "dry_run": "--dry-run"},
}


@dataclass(frozen=True)
class _Opened:
    """The books that a connection names.

    Attributes:
        account: The id of the connection.
        connection: The connection.
        settings: Its settings.
        database: The database of its books.
    """

    account: str
    connection: Any
    settings: ConnectionSettings
    database: BooksDatabase


@suppress_logs_and_warning  # type: ignore[untyped-decorator,unused-ignore]  # Airflow's; they would be part of the output
def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Args:
        arguments: Those of the command; see `definition`.

    Raises:
        SystemExit: With code 1 if the books cannot be used, or a row could not be settled, 2 for arguments that are not
            valid, and 130 after Ctrl-C.
    """
    now = datetime.now(UTC)
    since = _check_arguments(arguments, now)
    code = EXIT_FAILED
    try:
        with with_database(), _open(arguments.conn_id) as opened:
            if arguments.action == "init":
                code = _init(opened.database)
            else:
                _require_tables(opened.database)
                code = (
                    _settle(opened, arguments, now)
                    if arguments.action == "settle"
                    else _show(opened, arguments, since, now)
                )
    except (ValueError, OSError, ImportError, AirflowException, QwenImageError) as error:
        say(f"{error}")
    except KeyboardInterrupt:
        say("Interrupted.")
        code = EXIT_INTERRUPTED
    if code != EXIT_OK:
        raise SystemExit(code)


def _check_arguments(arguments: argparse.Namespace, now: datetime) -> datetime:
    """Return the time of ``--since``.

    Raises:
        SystemExit: If an argument is not valid.
    """
    try:
        _check_options(arguments)
        return read_since(DEFAULT_SINCE if arguments.since is None else arguments.since, now)
    except ValueError as error:
        say(str(error))
        raise SystemExit(EXIT_ARGUMENTS) from None


def _check_options(arguments: argparse.Namespace) -> None:
    unused = [
        flag
        for action, options in _OPTIONS.items()
        if action != arguments.action
        for name, flag in options.items()
        if getattr(arguments, name)
    ]
    if unused:
        raise ValueError(f"{', '.join(unused)} has no effect with {arguments.action}; leave it out.")


@contextmanager
def _open(conn_id: str) -> Iterator[_Opened]:
    connection = look_up_connection(conn_id)
    settings = read_connection(connection)
    if settings.books.conn_id is None:
        raise ValueError(
            f"Connection {shown(conn_id)} has no books. Set books_conn_id in its extra to the id of an Airflow "
            "connection to a PostgreSQL, MariaDB, MySQL or SQLite database."
        )
    database = open_database(settings.books, conn_id)
    try:
        yield _Opened(conn_id, connection, settings, database)
    finally:
        database.close()


def _require_tables(database: BooksDatabase) -> None:
    if database.version() is None:
        raise ValueError(
            f"The database of connection {shown(database.conn_id)} has no books yet. Create them with `airflow "
            "qwenimage books init`; a task that submits an image does so as well, if it may."
        )
    database.prepare()


def _init(database: BooksDatabase) -> int:
    earlier = database.version()
    # Tables that somebody has removed come back.
    database.create()
    database.prepare()
    made = "were created" if earlier is None else "exist"
    names = ", ".join(table.name for table in (SUBMISSIONS, BUDGETS, BOOKS))
    print_line(f"The tables {names} {made} (version {database.version()}).")
    if database.dialect == "sqlite":
        print_line(
            "SQLite has no users: each process that keeps the books must be able to write the file and its folder."
        )
    else:
        print_line("A user who may not create tables needs:")
        for statement in _grants(database.dialect):
            print_line(f"  {statement}")
    return EXIT_OK


def _grants(dialect: str) -> Iterator[str]:
    user = "airflow" if dialect == "postgresql" else "'airflow'@'%'"
    for table, rights in {
        SUBMISSIONS: "SELECT, INSERT, UPDATE",
        BUDGETS: "SELECT, INSERT, UPDATE",
        BOOKS: "SELECT",
    }.items():
        yield f"GRANT {rights} ON {table.name} TO {user};"


def _show(opened: _Opened, arguments: argparse.Namespace, since: datetime, now: datetime) -> int:
    by: reports.By = arguments.by or "day"
    is_of_all = arguments.all_accounts or by == "account"
    accounts = None if is_of_all else [opened.account]

    def read(connection: Any) -> SpendingReport:
        groups = reports.spending(connection, since=since, by=[by], accounts=accounts)
        total = reports.spending(connection, since=since, by=[], accounts=accounts)
        return SpendingReport(
            account=None if is_of_all else opened.account,
            since=since,
            columns=reports.key_columns([by]),
            groups=groups,
            total=total[0] if total else None,
            is_complete=sum(one.submissions for one in groups) == (total[0].submissions if total else 0),
            budgets_of=opened.account,
            budgets=reports.budget_states(connection, opened.account, opened.settings.books.budgets, now),
        )

    for line in opened.database.read(read).lines(arguments.output or "table"):
        print_line(line)
    return EXIT_OK


def _settle(opened: _Opened, arguments: argparse.Namespace, now: datetime) -> int:
    # Most of the package, which the other actions do not need.
    from airflow_provider_qwenimage.cli.books.settling import Report, Settling, answer_window, settle
    from airflow_provider_qwenimage.hooks import QwenImageHook
    from airflow_provider_qwenimage.storage.paths import open_output_path
    from airflow_provider_qwenimage.tasks.folder_facts import FolderFacts

    folders = [FolderFacts(open_output_path(path, create=False)) for path in arguments.output_path or ()]
    report = Report(print_line, say, is_written=not arguments.dry_run)
    with QwenImageHook(opened.account, connection=opened.connection, log_statuses=False) as hook:
        settling = Settling(hook.get_status, folders, now - answer_window(opened.settings))
        settle(opened.database, opened.account, settling, report, now, is_dry_run=arguments.dry_run)
    return EXIT_FAILED if report.problems else EXIT_OK
