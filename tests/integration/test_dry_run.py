"""`dry_run=True`: the batch's plan in a task, without a submission, a file or a connection."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_qwenimage import QwenImageBatchOperator
from airflow_provider_qwenimage.cli.__main__ import main
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import TaskEnd, TestDag

ROWS = [{"prompt": "A fox"}, {"prompt": "A fox"}, {"prompt": "A hare", "name": "hare"}]


def draw(folder: Path, requests: Any, **arguments: Any) -> TaskEnd:
    dag = TestDag()
    with dag:
        QwenImageBatchOperator(
            task_id="draw", requests=requests, output_path=str(folder), poll_interval=0.01, **arguments
        )
    return dag.run()["draw"]


def test_a_dry_run_returns_what_the_command_prints_and_what_the_batch_then_does(
    connected_api: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    task_log: Callable[[], str],
) -> None:
    file, folder = tmp_path / "requests.json", tmp_path / "images"
    file.write_text(json.dumps(ROWS))
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", os.environ.get("_AIRFLOW_PROCESS_CONTEXT", ""))

    def planned() -> Any:
        capfd.readouterr()
        main(["plan", str(file), "--output-path", str(folder), "--output", "json"])
        return json.loads(capfd.readouterr().out)

    with monkeypatch.context() as without_connection:
        without_connection.delenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT")
        end = draw(folder, str(file), dry_run=True)
    assert "     3 rows, 15 credits: to be submitted." in task_log()
    assert (end.state, end.tries) == ("success", 1)
    assert end.returned == planned()
    assert (end.returned["to_submit"], end.returned["credits"]) == (3, 15)
    assert connected_api.requests == []
    assert not folder.exists()

    assert draw(folder, str(file)).returned["consumed_credits"] == connected_api.credits_charged == 15
    assert (planned()["stored"], planned()["credits"]) == (3, 0)
    before = sorted(entry.name for entry in folder.iterdir())
    assert draw(folder, str(file), dry_run=True, overwrite=True).returned["credits"] == 15
    assert connected_api.credits_charged == 15
    assert sorted(entry.name for entry in folder.iterdir()) == before


def test_a_dry_run_fails_once_if_a_row_is_bad_or_too_many_would_fail(connected_api: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "hare.jpg").write_bytes(b"mine")
    (tmp_path / "metadata.csv").write_bytes(b"mine")
    (tmp_path / "contact-sheet.jpg").write_bytes(b"mine")
    dag = TestDag(params={"requests": "to be replaced"})
    arguments: dict[str, Any] = {"output_path": str(tmp_path), "dry_run": True}
    with dag:
        QwenImageBatchOperator(task_id="bad", requests="{{ params.requests }}", **arguments)
        QwenImageBatchOperator(task_id="blocked", requests=ROWS, **arguments)
        QwenImageBatchOperator(task_id="dataset", requests=ROWS[:1], dataset="imagefolder", **arguments)
        QwenImageBatchOperator(task_id="sheet", requests=ROWS[:1], contact_sheet=True, **arguments)
        QwenImageBatchOperator(task_id="allowed", requests=ROWS, max_failures=1, **arguments)
        QwenImageBatchOperator.partial(task_id="mapped", **arguments).expand(requests=[ROWS[:1], ROWS[:2]])
    run = dag.run(run_conf={"requests": '["A fox", ""]'})
    assert (run["bad"].state, run["bad"].tries) == ("failed", 1)
    assert "requests has 1 bad row(s) of 2; nothing was submitted. row 2: " in str(run["bad"].error)
    assert (run["blocked"].state, run["blocked"].tries) == ("failed", 1)
    assert "1 of 3 rows would fail before they are submitted, and max_failures is 0" in str(run["blocked"].error)
    assert "hare.jpg exists and has no sidecar" in str(run["blocked"].error)
    assert (run["dataset"].state, run["dataset"].tries) == ("failed", 1)
    assert "has a file metadata.csv" in str(run["dataset"].error)
    assert (run["sheet"].state, run["sheet"].tries) == ("failed", 1)
    assert "contact-sheet.jpg is not the contact sheet of a batch" in str(run["sheet"].error)
    assert (run["allowed"].returned["blocked"], run["allowed"].returned["to_submit"]) == (1, 2)
    assert [end.returned["to_submit"] for end in run.mapped("mapped")] == [1, 2]
    assert connected_api.requests == []


@pytest.mark.skipif(not hasattr(BaseOperator, "dry_run"), reason="Operators of Airflow 3.0 have no dry run.")
def test_airflows_own_dry_run_of_a_task_still_works(task_log: Callable[[], str], tmp_path: Path) -> None:
    for dry_run in (False, True):
        task = QwenImageBatchOperator(
            task_id="draw", requests=["A fox"], output_path=str(tmp_path / "images"), dry_run=dry_run
        )
        task.dry_run()
        assert "images" in task_log()


@pytest.mark.parametrize("value", ["{{ params.dry_run }}", "yes", None, 1])
def test_a_dry_run_that_is_not_true_or_false_is_refused_since_it_would_pay(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dry_run is .*; it must be True or False"):
        QwenImageBatchOperator(task_id="draw", requests=["A fox"], output_path=str(tmp_path), dry_run=value)
