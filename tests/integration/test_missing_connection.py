"""A connection that is not defined fails a task at once; a failed lookup of a connection is retried."""

import asyncio
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.secrets import BaseSecretsBackend

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.exceptions import QwenImageConnectionError
from airflow_provider_qwenimage.hooks import QwenImageAsyncHook, QwenImageHook
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW_3
from tests.integration.dag_runs import WAITS, TaskEnd, TestDag

TASKS: dict[str, Any] = {
    "submit": (QwenImageGenerateOperator, {"prompt": "A fox"}),
    "draw": (QwenImageGenerateOperator, {"prompt": "A fox", "output_path": "…"}),
    "draw, deferred": (QwenImageGenerateOperator, {"prompt": "A fox", "output_path": "…", "deferrable": True}),
    "batch": (QwenImageBatchOperator, {"requests": ["A fox"], "output_path": "…"}),
} | {
    f"sense, {name}": (QwenImageStatusSensor, {"image_task_id": "n43any", "poke_interval": 0.01} | wait)
    for name, wait in WAITS.items()
}


class Vault(BaseSecretsBackend):
    """A secrets backend whose first `away` lookups fail."""

    lookups = 0
    away = 0

    def get_connection(self, conn_id: str, team_name: str | None = None) -> None:
        Vault.lookups += 1
        if Vault.lookups <= Vault.away:
            raise TimeoutError("vault.example did not answer; token hvs.5d0c")


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Vault]]:
    """Make Airflow ask the vault first."""
    Vault.lookups, Vault.away = 0, 1_000_000
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", f"{__name__}.Vault")
    _forget_backends()
    yield Vault
    monkeypatch.undo()
    _forget_backends()


def _forget_backends() -> None:
    # Airflow 3.3 caches the backends of a process.
    for module in ("airflow.sdk.configuration", "airflow.configuration"):
        try:
            forget = getattr(import_module(module), "clear_secrets_backends_cache", None)
        except ImportError:
            continue
        if forget is not None:
            forget()


def run(kind: str, folder: Path, **arguments: Any) -> TaskEnd:
    operator, fixed = TASKS[kind]
    paths = {"output_path": str(folder)} if "output_path" in fixed else {}
    dag = TestDag()
    with dag:
        operator(task_id="task", **fixed | paths | arguments)
    return dag.run()["task"]


@pytest.mark.parametrize("kind", TASKS)
def test_a_connection_that_is_not_defined_ends_a_task_at_the_first_try(
    connected_api: Sandbox, tmp_path: Path, kind: str
) -> None:
    end = run(kind, tmp_path, qwenimage_conn_id="nobody_knows")

    assert (end.state, end.tries) == ("failed", 1)
    assert isinstance(end.error, AirflowFailException)
    assert "Connection 'nobody_knows' isn't defined. Create it" in str(end.error)
    assert "correct qwenimage_conn_id" in end.xcoms["error"]["message"]
    assert connected_api.requests == []


@pytest.mark.parametrize("kind", ["submit", "batch", "sense, deferrable"])
def test_an_unavailable_secrets_backend_is_not_reported_as_a_missing_connection(
    connected_api: Sandbox, vault: type[Vault], tmp_path: Path, kind: str, quick_resends: None
) -> None:
    end = run(kind, tmp_path, qwenimage_conn_id="in_the_vault", retries=1)

    assert (end.state, end.tries) == ("failed", 2)
    assert "Airflow could not look up connection 'in_the_vault': Vault failed with TimeoutError" in str(end.errors[0])
    assert "hvs.5d0c" not in f"{end.errors}{end.xcoms}"
    assert connected_api.requests == []


def test_a_connection_is_reported_missing_only_once_the_secrets_backend_answers(vault: type[Vault]) -> None:
    hook = QwenImageHook("in_the_vault")
    vault.away = 2
    with pytest.raises(QwenImageConnectionError, match="could not look up"):
        _ = hook.settings
    with pytest.raises(ValueError, match="'in_the_vault' isn't defined"):
        _ = hook.settings


def test_both_clients_report_a_missing_connection_in_the_same_words(airflow_database: None) -> None:
    with pytest.raises(ValueError, match="isn't defined") as sync:
        QwenImageHook("nobody_knows").get_status("n43any")
    with pytest.raises(ValueError, match="isn't defined") as async_:
        asyncio.run(QwenImageAsyncHook("nobody_knows").get_status("n43any"))
    assert str(sync.value) == str(async_.value)
    works, message = QwenImageHook("nobody_knows").test_connection()
    assert not works
    assert message.startswith("The connection isn't defined. Create it")


@pytest.mark.parametrize("uri", ["qwenimage://:sk-slash/5d0c@", "qwenimage://:sk-slash#5d0c@https%3A%2F%2Fa.example"])
def test_a_uri_whose_key_is_not_percent_encoded_is_not_reported_as_a_missing_connection(
    airflow_database: None, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RAW_KEY", uri)
    with pytest.raises(ValueError, match="'raw_key'") as caught:
        _ = QwenImageHook("raw_key").settings
    assert "Write it as JSON, or percent-encode the key in the URI form" in str(caught.value)
    assert "slash" not in str(caught.value)


@pytest.mark.skipif(not AIRFLOW_3, reason="Airflow 2 reads its database directly")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("API_SERVER_ERROR", "could not look up"),
        ("GENERIC_ERROR", "could not look up"),
        ("CONNECTION_NOT_FOUND", "isn't"),
    ],
)
def test_an_unavailable_api_server_is_not_reported_as_a_missing_connection(
    airflow_database: None, monkeypatch: pytest.MonkeyPatch, answer: str, expected: str
) -> None:
    comms = import_module("airflow.sdk.execution_time.comms")

    class Supervisor:
        """Answers as Airflow's supervisor does if the API server returns an error."""

        def send(self, message: object) -> Any:
            return comms.ErrorResponse(error=answer)

        async def asend(self, message: object) -> Any:
            return self.send(message)

    task_runner = import_module("airflow.sdk.execution_time.task_runner")
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(), raising=False)
    wanted = ValueError if answer == "CONNECTION_NOT_FOUND" else QwenImageConnectionError
    with pytest.raises(wanted, match=expected):
        _ = QwenImageHook("nobody_knows").settings
    with pytest.raises(wanted, match=expected):
        asyncio.run(QwenImageAsyncHook("nobody_knows").get_settings())


def test_an_odd_connection_id_is_shown_shortened_and_printable(airflow_database: None) -> None:
    with pytest.raises(ValueError, match="qwenimage_conn_id is") as caught:
        _ = QwenImageHook("\x1b[2J\n" + "x" * 100_000).settings
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    with pytest.raises(ValueError, match="isn't defined") as caught:
        _ = QwenImageHook("\x1b[2J\n" + "x" * 200).settings
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
