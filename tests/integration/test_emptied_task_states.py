"""A task state store that is emptied, as Airflow does at a success or a Clear if it is configured so."""

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.airflows import HAS_TASK_STATES
from tests.integration.dag_runs import TestDag, crash_once, dag_that_draws, with_aims

pytestmark = pytest.mark.skipif(not HAS_TASK_STATES, reason="Airflow below 3.3 has no task states")
in_storage = with_aims("stored", "stored, deferred")


def empty_task_states(dag: TestDag) -> None:
    """Remove everything that Airflow's store has of a DAG."""
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete, select

    with create_session() as session:
        mine = TaskStateStoreModel.dag_id == dag.dag.dag_id
        assert list(session.scalars(select(TaskStateStoreModel).where(mine))), "nothing was recorded"
        session.execute(delete(TaskStateStoreModel).where(mine))


@in_storage
def test_the_folder_still_knows_a_paid_image(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept", after=True)
    dag = dag_that_draws(**aim, retries=0)
    assert dag.run().state == "failed"
    empty_task_states(dag)

    draw = dag.clear("draw")["draw"]
    assert draw.state == "success"
    (submission,) = connected_api.submissions
    assert (draw.returned["task_id"], draw.returned["consumed_credits"]) == (submission.task_id, 5)
    assert draw.returned["reused"] is False
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".jpg", ".json"]


@in_storage
def test_the_folder_still_asks_before_it_submits_what_may_be_paid(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "accept")
    dag = dag_that_draws(**aim, retries=0)
    assert dag.run().state == "failed"
    empty_task_states(dag)

    stopped = dag.clear("draw")["draw"]
    assert stopped.state == "failed"
    assert "Compare the credits on your account" in str(stopped.error)
    assert dag.clear("draw").state == "success"
    assert len(connected_api.submissions) == 2


@in_storage
def test_a_finished_task_that_is_cleared_uses_its_stored_image(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    dag = dag_that_draws(**aim)
    assert dag.run().state == "success"
    empty_task_states(dag)

    draw = dag.clear("draw")["draw"]
    assert (draw.state, draw.returned["reused"], draw.returned["consumed_credits"]) == ("success", True, 0)
    assert len(connected_api.submissions) == 1
