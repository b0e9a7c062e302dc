"""Looks up an Airflow connection, and distinguishes a missing one from one that cannot be looked up for the moment.

Airflow raises the same "isn't defined" for both, since it skips a secrets backend that fails. So if it finds nothing,
each backend is called once more to see its error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_qwenimage.airflow_versions import HAS_SUPERVISOR
from airflow_provider_qwenimage.client.diagnosis import describe
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError
from airflow_provider_qwenimage.text.messages import printable, shorten

if TYPE_CHECKING:
    from airflow_provider_qwenimage.client.connection import AirflowConnection

# It needs no service, so its error is about the value of the variable.
_ENVIRONMENT = "EnvironmentVariablesBackend"
# It hides errors of Airflow's API, which is called directly instead.
_API = "ExecutionAPISecretsBackend"


class ConnectionNotDefinedError(AirflowNotFoundException, ValueError):
    """No secrets backend has the connection, or its value cannot be read: a retry would find the same.

    Attributes:
        problem: The message without the connection's name.
    """

    problem = ""

    @classmethod
    def of(cls, conn_id: str, problem: str) -> ConnectionNotDefinedError:
        """Return the error for a connection, with a problem that continues the sentence "Connection … "."""
        error = cls(f"Connection {_shown(conn_id)} {problem}")
        error.problem = problem
        return error


def look_up_connection(conn_id: str) -> AirflowConnection:
    """Return an Airflow connection.

    Raises:
        ConnectionNotDefinedError: If it does not exist or cannot be read.
        QwenImageConnectionError: If Airflow cannot look it up now.
    """
    try:
        connection: AirflowConnection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise _not_found(conn_id, [*_ask_backends(conn_id), *_ask_api(conn_id)]) from None
    except Exception as error:
        raise _look_up_failed(conn_id, describe(error)) from error
    return connection


async def look_up_connection_async(conn_id: str) -> AirflowConnection:
    """Return an Airflow connection, from within an event loop; otherwise like `look_up_connection`."""
    try:
        connection: AirflowConnection = await get_async_connection(conn_id)
    except AirflowNotFoundException:
        supervisor = _supervisor()
        if not hasattr(supervisor, "asend"):
            # Under dag.test() only the sync look-up sees the metadata database.
            return await asyncio.to_thread(look_up_connection, conn_id)
        problems = await asyncio.to_thread(_ask_backends, conn_id)
        try:
            answer = await supervisor.asend(_question(conn_id))
        except Exception as error:  # noqa: BLE001  any error: the connection may exist
            answer = error
        raise _not_found(conn_id, [*problems, *_read_answer(answer)]) from None
    except Exception as error:
        # A short outage of Airflow's API or database must not end the wait for a paid image.
        raise _look_up_failed(conn_id, describe(error)) from error
    return connection


def _not_found(conn_id: str, problems: Iterable[str]) -> Exception:
    problems = list(dict.fromkeys(problems))
    if problems == [_ENVIRONMENT]:
        return ConnectionNotDefinedError.of(
            conn_id,
            "is set in the environment, but Airflow cannot read it. Write it as JSON, or percent-encode the key in the "
            "URI form (/ as %2F, # as %23, @ as %40).",
        )
    others = [problem for problem in problems if problem != _ENVIRONMENT]
    if others:
        return _look_up_failed(conn_id, f"{', '.join(others)}.")
    return ConnectionNotDefinedError.of(
        conn_id,
        "isn't defined. Create it (type qwenimage, the API key in the password), or correct qwenimage_conn_id.",
    )


def _look_up_failed(conn_id: str, why: str) -> QwenImageConnectionError:
    return QwenImageConnectionError(
        f"Airflow could not look up connection {_shown(conn_id)}: {why} Check Airflow's own health, and that of its "
        "secrets backend."
    )


def _shown(conn_id: str) -> str:
    return shorten(repr(printable(conn_id)))


def _ask_backends(conn_id: str) -> list[str]:
    """Return the names of the backends that fail, with the class of their error but not its message."""
    problems = []
    for backend in _backends():
        name = type(backend).__name__
        if name == _API:
            continue
        try:
            found = backend.get_connection(conn_id=conn_id)
        except Exception as error:  # noqa: BLE001  each backend has errors of its own
            problems.append(name if name == _ENVIRONMENT else f"{name} failed with {type(error).__name__}")
        else:
            problems += [f"{name} returned it only when it was called again"] if found else []
    return problems


def _backends() -> Iterable[Any]:
    if HAS_SUPERVISOR:
        from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

        return ensure_secrets_backend_loaded()
    from airflow.configuration import ensure_secrets_loaded

    return ensure_secrets_loaded()


def _ask_api(conn_id: str) -> list[str]:
    supervisor = _supervisor()
    if supervisor is None:
        return []
    try:
        answer = supervisor.send(_question(conn_id))
    except Exception as error:  # noqa: BLE001  any error: the connection may exist
        answer = error
    return _read_answer(answer)


def _supervisor() -> Any:
    """Return the channel of a task or triggerer of Airflow 3 to its supervisor, or None."""
    if not HAS_SUPERVISOR:
        return None
    from airflow.sdk.execution_time import task_runner

    return getattr(task_runner, "SUPERVISOR_COMMS", None)


def _question(conn_id: str) -> Any:
    from airflow.sdk.execution_time.comms import GetConnection

    return GetConnection(conn_id=conn_id)


def _read_answer(answer: Any) -> list[str]:
    """Return the problem of Airflow's API, unless the connection is just missing."""
    reason = str(getattr(getattr(answer, "error", None), "value", type(answer).__name__))
    return [] if reason == "CONNECTION_NOT_FOUND" else [f"Airflow's API answered {reason}"]
