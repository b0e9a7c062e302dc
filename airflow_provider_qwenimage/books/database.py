"""Opens the database of the books through Airflow's connection to it, and does whole transactions there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import sqlalchemy as sa
from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException, BaseHook
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)

from airflow_provider_qwenimage.books.schema import BOOKS, METADATA, VERSION
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError
from airflow_provider_qwenimage.text.messages import printable, shorten

T = TypeVar("T")

_MYSQL = ("mysql", "mariadb")
_DIALECTS = ("postgresql", *_MYSQL, "sqlite")
_CONNECT_SECONDS = 10
# For a statement: a server that hangs, or somebody's lock, must not stop a task forever.
_STATEMENT_SECONDS = 30
_EXCERPT_CHARACTERS = 300
# A budget's row is locked by one process after the other: a deadlock is not expected, but the database decides.
_TRIES = 3
# What the drivers for MySQL and SQLite call an operational error, although waiting does not help: no right to a
# database, a table or a column; and what SQLite says.
_REFUSED_NUMBERS = (1044, 1142, 1143, 1227)
_REFUSED_TEXTS = ("no such table", "no such column")
# A file that nobody may write to; not one that was moved away, whose error has another name.
_READ_ONLY = "SQLITE_READONLY"


class BooksAwayError(QwenImageConnectionError):
    """The database of the books cannot be reached now, or did not finish in time."""


class BooksDatabase:
    """The database of the books.

    Args:
        conn_id: The id of the Airflow connection, for messages.
        engine: SQLAlchemy's engine.
    """

    def __init__(self, conn_id: str, engine: Any) -> None:
        self.conn_id = conn_id
        self._engine = engine
        _prepare(engine)

    @classmethod
    def of_connection(cls, conn_id: str, connection: Any = None) -> BooksDatabase:
        """Return the database of an Airflow connection, without connecting to it.

        Args:
            conn_id: The id of the connection.
            connection: The connection, if it was looked up already.

        Raises:
            ValueError: If it is not a connection to an SQL database that is supported.
            Exception: Airflow's, if it is not defined.
        """
        hook_class = _sql_hook_class()
        try:
            hook = (connection or BaseHook.get_connection(conn_id)).get_hook()
        except (ImportError, AirflowException) as error:
            if isinstance(error, AirflowNotFoundException):
                raise
            raise ValueError(
                f"books_conn_id is {conn_id!r}, and Airflow has no hook for it ({error}); it must be a connection to "
                "PostgreSQL, MariaDB, MySQL or SQLite, whose Airflow provider must be installed."
            ) from None
        if not isinstance(hook, hook_class):
            raise ValueError(
                f"books_conn_id is {conn_id!r}, a connection of type {getattr(hook, 'conn_type', None)!r}; it must be "
                "one to PostgreSQL, MariaDB, MySQL or SQLite."
            )
        # Parameters are left out of errors: they name DAGs and paths.
        arguments: dict[str, Any] = {"hide_parameters": True, "pool_size": 1, "max_overflow": 0, "pool_recycle": 300}
        arguments["poolclass"] = sa.pool.QueuePool
        try:
            engine = hook.get_sqlalchemy_engine(engine_kwargs=arguments)
        except Exception as error:  # noqa: BLE001  the provider's, SQLAlchemy's or the driver's
            # Without its text, which may quote the URL with the password.
            raise ValueError(
                f"books_conn_id is {conn_id!r}, from whose fields no database URL can be made "
                f"({type(error).__name__}); correct the connection, and install the driver of its database."
            ) from None
        if engine.dialect.name not in _DIALECTS:
            raise ValueError(
                f"books_conn_id is {conn_id!r}, a database of type {engine.dialect.name!r}; it must be PostgreSQL, "
                "MariaDB, MySQL or SQLite."
            )
        return cls(conn_id, engine)

    @property
    def dialect(self) -> str:
        """SQLAlchemy's name of the kind of database."""
        return str(self._engine.dialect.name)

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    def transact(self, work: Callable[[Any], T]) -> T:
        """Call a function with a connection in a transaction, which is committed if it returns.

        Args:
            work: The function. After a deadlock it is called again, in a new transaction.

        Raises:
            BooksAwayError: If the database cannot be reached or does not answer. The work may be done or not.
            ValueError: If the database refuses a statement, for example because a table or a right is missing.
        """
        return self._in_transaction(work, is_read=False)

    def read(self, work: Callable[[Any], T]) -> T:
        """Call a function that only reads: all of its queries see the same state, and nobody who writes waits for them.

        Args:
            work: The function. What it writes is lost.

        Raises:
            BooksAwayError: If the database cannot be reached or does not answer.
            ValueError: If the database refuses a query, for example because a table or a right is missing.
        """
        return self._in_transaction(work, is_read=True)

    def _in_transaction(self, work: Callable[[Any], T], *, is_read: bool) -> T:
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._transact(work, is_read=is_read)
            except DBAPIError as error:
                if tries_left and _is_deadlock(error):
                    continue
                explained = self._explained(error)
                if isinstance(explained, BooksAwayError):
                    # A new connection may reach another server, or a file that has come back.
                    self._engine.dispose()
                raise explained from None
            except SQLAlchemyError as error:
                raise self._explained(error) from None
            except self._engine.dialect.dbapi.Error as error:
                # SQLAlchemy does not wrap those of the statements that it sends by itself.
                self._engine.dispose()
                raise BooksAwayError(self._away(error)) from None
        raise AssertionError("the last try returns or raises")

    def _transact(self, work: Callable[[Any], T], *, is_read: bool) -> T:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._engine.connect())
            if self.dialect == "sqlite":
                # A transaction that begins with a read could not write if another one has written meanwhile.
                connection.exec_driver_sql("BEGIN" if is_read else "BEGIN IMMEDIATE")
                begun = connection.get_transaction() or connection.begin()
            else:
                level = "REPEATABLE READ" if is_read else "READ COMMITTED"
                if self.dialect == "postgresql":
                    connection = connection.execution_options(isolation_level=level)
                    begun = connection.begin()
                    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_STATEMENT_SECONDS * 1000}")
                else:
                    begun = connection.begin()
                    # For this transaction. SQLAlchemy's option sends four statements, and does not wrap their errors.
                    connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}")
            try:
                result = work(connection)
            except BaseException:
                with contextlib.suppress(SQLAlchemyError):
                    begun.rollback()
                raise
            if is_read:
                begun.rollback()
            else:
                begun.commit()
            return result

    def prepare(self) -> None:
        """Check the version of the tables; make them if there are none.

        Raises:
            BooksAwayError: If the database cannot be reached.
            ValueError: If the tables can neither be found nor made, or are of a later version of this package.
        """
        version = self.version()
        if version is None:
            self.create()
            version = self.version()
        if version is not None and version > VERSION:
            raise ValueError(
                f"The books of connection {self.conn_id!r} have version {version}, and this package knows version "
                f"{VERSION}. Upgrade airflow-provider-qwenimage."
            )

    def create(self) -> None:
        """Make the tables that are missing.

        Raises:
            BooksAwayError: If the database cannot be reached.
            ValueError: If it refuses, for example because the user may not create tables.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                return self.transact(_create)
            except (BooksAwayError, ValueError):
                # Another process may make them at the same time: MariaDB then refuses one table after the other.
                if self.version() is not None:
                    return None
                if not tries_left:
                    raise
        return None

    def version(self) -> int | None:
        """Return the version of the tables; None if there are none.

        Raises:
            BooksAwayError: If the database cannot be reached.
            ValueError: If it refuses.
        """

        def read(connection: Any) -> int | None:
            if not sa.inspect(connection).has_table(BOOKS.name):
                return None
            version = connection.execute(sa.select(sa.func.max(BOOKS.c.version))).scalar()
            return None if version is None else int(version)

        return self.read(read)

    def _explained(self, error: SQLAlchemyError) -> Exception:
        said = _said(error)
        if isinstance(error, IntegrityError):
            # Ids are unique: it is our own row, of a transaction whose answer was lost and which ended only now.
            return BooksAwayError(f"The books (connection {self.conn_id!r}) were written to at the same time: {said}")
        if _is_outage(error):
            return BooksAwayError(self._away(error))
        return ValueError(
            f"The books (connection {self.conn_id!r}) refuse a statement: {said} Run `airflow qwenimage books init` "
            "with a connection that may create tables, and grant SELECT, INSERT and UPDATE on them."
        )

    def _away(self, error: Exception) -> str:
        return (
            f"The books (connection {self.conn_id!r}) cannot be reached: {_said(error)} "
            "Check that the database runs and that the connection is right."
        )


def _said(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return shorten(printable(f"{type(cause).__name__}: {cause}"), _EXCERPT_CHARACTERS)


def _create(connection: Any) -> None:
    METADATA.create_all(connection)
    if connection.execute(sa.select(sa.func.count()).select_from(BOOKS)).scalar() == 0:
        connection.execute(BOOKS.insert().values(version=VERSION))


def _sql_hook_class() -> Any:
    try:
        return import_module("airflow.providers.common.sql.hooks.sql").DbApiHook
    except ImportError as error:
        raise ValueError(
            f"books_conn_id is set, but its libraries are not installed ({error}); install "
            "airflow-provider-qwenimage[books] and the Airflow provider of the database."
        ) from None


def _prepare(engine: Any) -> None:
    """Have each new connection give up in time."""

    @sa.event.listens_for(engine, "do_connect")  # type: ignore[untyped-decorator,unused-ignore]  # in SQLAlchemy 1.4
    def bound(dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
        for name, value in _limits_of(dialect).items():
            options.setdefault(name, value)


def _limits_of(dialect: Any) -> dict[str, Any]:
    if dialect.name == "sqlite":
        return {"timeout": _STATEMENT_SECONDS}
    if dialect.name == "postgresql":
        if not dialect.driver.startswith("psycopg"):
            return {}
        # After this time without an acknowledgement the network counts as gone.
        return {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": _STATEMENT_SECONDS * 1000}
    if dialect.driver in {"mysqldb", "pymysql"}:
        seconds = _STATEMENT_SECONDS
        return {"connect_timeout": _CONNECT_SECONDS, "read_timeout": seconds, "write_timeout": seconds}
    return {}


def _is_outage(error: SQLAlchemyError) -> bool:
    if isinstance(error, sa.exc.TimeoutError):
        return True
    if isinstance(error, OperationalError) and _is_refused(error):
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError | InterfaceError | InternalError)


def _is_refused(error: OperationalError) -> bool:
    if getattr(error.orig, "sqlite_errorname", None) == _READ_ONLY:
        return True
    return _number_of(error) in _REFUSED_NUMBERS or any(text in str(error.orig) for text in _REFUSED_TEXTS)


def _number_of(error: DBAPIError) -> object:
    """Return the error number of MySQL's drivers."""
    return error.orig.args[0] if error.orig is not None and error.orig.args else None


def _is_deadlock(error: DBAPIError) -> bool:
    """Whether the database gave up on one of two transactions that waited for each other, and nothing was done."""
    state = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlstate", None)
    return state in {"40001", "40P01"} or _number_of(error) in {1213, 1205}
