"""A Clear is recognized when `retries` has changed since, and a change of `retries` alone is no Clear."""

from typing import Any

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.events import run_when
from tests.integration.dag_runs import TestDag, dag_that_draws, with_aims
from tests.integration.interruptions import crash, handling_signal, send_signal

pytestmark = pytest.mark.usefixtures("changes_seen_at_once")

with_any_record = with_aims(
    "submitted", "waited for", "waited for, deferred", "stored", "stored, deferred", recorded=True
)


def _max_tries(dag: TestDag) -> int:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        mine = select(TaskInstance.max_tries).where(
            TaskInstance.dag_id == dag.dag.dag_id, TaskInstance.run_id == dag.run_id
        )
        return int(session.scalars(mine).one())


def _set_retries(dag: TestDag, retries: int) -> None:
    dag.dag.task_dict["draw"].retries = retries  # type: ignore[union-attr,unused-ignore]


@pytest.mark.skipif(AIRFLOW == (3, 0), reason="Airflow 3.0 clears a task with the DAG of the run's start.")
@with_any_record
@pytest.mark.parametrize("fault", ["drop_after", "malformed"])
def test_a_clear_after_retries_was_lowered_is_the_consent_to_submit_again(
    connected_api: Sandbox, aim: dict[str, Any], fault: str
) -> None:
    connected_api.script("generate", fault)
    dag = dag_that_draws(**aim, retries=2)
    lost = dag.run()["draw"]
    assert (lost.state, lost.tries, len(connected_api.submissions)) == ("failed", 1, 1)
    before = _max_tries(dag)

    _set_retries(dag, 1)
    draw = dag.clear("draw", with_latest_dag=True)["draw"]
    assert _max_tries(dag) == before, "Airflow's number of tries differs, so this test proves nothing"
    assert (draw.state, draw.errors) == ("success", [])
    assert len(connected_api.submissions) == 2
    assert draw.xcoms["task_id"] == connected_api.submissions[-1].task_id


@with_any_record
def test_a_retry_after_retries_was_lowered_is_no_consent(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    connected_api.configure(hang_seconds=3600)
    connected_api.script("generate", "hang_after")
    dag = dag_that_draws(**aim, retries=2)

    def lower_retries_and_crash() -> None:
        _set_retries(dag, 1)
        crash()

    with handling_signal(lower_retries_and_crash), run_when(lambda: connected_api.submissions, send_signal):
        draw = dag.run()["draw"]

    assert (draw.state, draw.tries) == ("failed", 2)
    assert "QwenImageSubmissionUnknownError" in str(draw.errors[-1])
    assert len(connected_api.submissions) == 1
