"""What both hooks have in common: their names in Airflow, their arguments, and what they log and report."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_qwenimage import provider_info
from airflow_provider_qwenimage.client.connection import (
    CONN_TYPE,
    DEFAULT_CONN_ID,
    AirflowConnection,
    ConnectionSettings,
    read_connection,
)
from airflow_provider_qwenimage.client.connection_lookup import ConnectionNotDefinedError, look_up_connection
from airflow_provider_qwenimage.client.diagnosis import describe
from airflow_provider_qwenimage.contract import GENERATE_PATH
from airflow_provider_qwenimage.exceptions import QwenImageError, without_advice
from airflow_provider_qwenimage.rules import polling, retries
from airflow_provider_qwenimage.rules.answers import ApiCall
from airflow_provider_qwenimage.rules.arguments import Seconds, read_argument

# The Test button tests a copy of the connection under an id that nobody has seen.
_TESTED_CONNECTION = "The connection"
# Almost every hook has these. Python's garbage collection visits each object that one of many hooks keeps.
_RETRIES = retries.RequestRetries()


class CommonHook(BaseHook):
    """The part that both hooks have in common; `QwenImageHook` documents the arguments."""

    conn_name_attr = "qwenimage_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = CONN_TYPE
    hook_name = provider_info.HOOK_NAME

    # The cost that the last `check` reported, for the message of a wait that is ended from outside. The rest is not
    # kept: an answer can have a mebibyte, and a triggerer has thousands of waits.
    last_credits: float | None = None
    # The image tasks that it has submitted, if the connection names books: their ends are written there.
    booked_ids: set[str] | None = None
    _settings: ConnectionSettings | None = None

    def __init__(
        self,
        qwenimage_conn_id: str = DEFAULT_CONN_ID,
        *,
        timeout_seconds: Seconds | None = None,
        retry_limit: int = 3,
        retry_delay: float = 1.0,
        connection: AirflowConnection | None = None,
        log_statuses: bool = True,
    ) -> None:
        super().__init__()
        self.qwenimage_conn_id = read_argument("qwenimage_conn_id", qwenimage_conn_id)
        self.timeout_seconds: float | None = None
        if timeout_seconds is not None:
            self.timeout_seconds = read_argument("timeout_seconds", timeout_seconds)
        own_retries = retries.RequestRetries(limit=retry_limit, delay_seconds=retry_delay)
        self.retries = _RETRIES if own_retries == _RETRIES else own_retries
        self._connection: AirflowConnection | None = (
            None if connection is None else read_argument("connection", connection)
        )
        self._log_statuses = read_argument("log_statuses", log_statuses)

    @classmethod
    def get_connection(cls, conn_id: str) -> Any:
        """Return an Airflow connection.

        Raises:
            ValueError: If it is not defined.
            QwenImageConnectionError: If Airflow cannot look it up for the moment.
        """
        return look_up_connection(conn_id)

    def _read_connection(self, connection: AirflowConnection, *, is_tested: bool = False) -> ConnectionSettings:
        name = _TESTED_CONNECTION if is_tested else None
        self._settings = read_connection(connection, timeout_seconds=self.timeout_seconds, name=name)
        return self._settings

    def _why_not_tested(self, error: Exception) -> str:
        if isinstance(error, ConnectionNotDefinedError):
            return f"{_TESTED_CONNECTION} {error.problem}"
        return str(error) if isinstance(error, ValueError) else f"The test could not run: {describe(error)}"

    def pause_before_resend(self, error: QwenImageError, sent_again: int, server_errors: int) -> float | None:
        """Return how many seconds to wait before a submission is sent again, and log it; or None to give up.

        Args:
            error: The error of the last `submit_once`.
            sent_again: How often this process sent it again before.
            server_errors: How many earlier submissions of the same image, in this try of the task or before, ended in
                a `retries.is_plain_server_error`.
        """
        pause = self.retries.pause(error, sent_again, server_errors=server_errors)
        if pause is not None:
            most = sent_again + 1 if retries.is_plain_server_error(error) else self.retries.limit
            self._log_resend(f"POST {GENERATE_PATH}", pause, f"{sent_again + 1} of at most {most}", error)
        return pause

    def _pause_before_read(self, error: QwenImageError, call: ApiCall[Any], sent_again: int) -> float | None:
        pause = self.retries.pause(error, sent_again)
        if pause is not None:
            count = f"{sent_again + 1} of at most {self.retries.limit}"
            self._log_resend(f"{call.method} {call.path}", pause, count, error)
        return pause

    def _log_resend(self, name: str, pause: float, count: str, error: QwenImageError) -> None:
        self.log.warning("%s failed; sending it again in %.1f s (%s): %s", name, pause, count, without_advice(error))

    def _name_connection(self, error: QwenImageError) -> QwenImageError:
        error.name_connection(self.qwenimage_conn_id)
        return error

    def _note_booked(self, image_task_id: str) -> None:
        self.booked_ids = self.booked_ids or set()
        self.booked_ids.add(image_task_id)

    def _log_notice(self, decision: polling.Decision) -> None:
        if isinstance(decision, polling.Wait) and (self._log_statuses or decision.state.failures):
            polling.log_notice(self.log, decision)
            # A logger is ten objects, and a wait has few notices; see `_RETRIES`.
            self._log = None
