"""The spending limit of a task: `max_credits` is checked before a submission, never after one."""

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.integration.dag_runs import crash_once, dag_that_draws, with_aims


@with_aims("submitted", "waited for, deferred", "stored")
def test_a_price_above_the_limit_is_refused_before_a_request(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    draw = dag_that_draws(**aim, max_credits=4.5).run()["draw"]

    assert (draw.state, draw.tries) == ("failed", 1)
    assert isinstance(draw.error, AirflowFailException)
    assert str(draw.error).startswith("max_credits is 4.5; an image costs 5 credits")
    assert "Nothing was submitted" in str(draw.error)
    assert connected_api.requests == []


@with_aims("submitted", "waited for, deferred", "stored")
def test_a_cleared_task_may_spend_its_limit_again(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    dag = dag_that_draws(**aim, max_credits=5, overwrite=True)

    assert dag.run().state == "success"
    assert dag.clear("draw").state == "success"
    assert connected_api.credits_charged == 10


@with_aims("waited for", "waited for, deferred", "stored", "stored, deferred")
def test_failed_images_that_cost_nothing_do_not_count_towards_the_limit(
    connected_api: Sandbox, aim: dict[str, Any]
) -> None:
    connected_api.script("generate", "failure", "failure")
    draw = dag_that_draws(**aim, max_credits=5).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 3)
    assert len(connected_api.submissions) == 3


@with_aims("waited for", "waited for, deferred", "stored", "stored, deferred", recorded=True)
def test_failed_images_that_cost_credits_count_towards_the_limit_until_the_task_is_cleared(
    connected_api: Sandbox, aim: dict[str, Any]
) -> None:
    connected_api.configure(failed_credits=4)
    connected_api.script("generate", ("failure", 3))
    dag = dag_that_draws(**aim, max_credits=9)
    draw = dag.run()["draw"]

    assert (draw.state, draw.tries) == ("failed", 3)
    assert [submission.charged for submission in connected_api.submissions] == [4, 4]
    *_, refused = draw.errors
    assert str(refused).startswith("max_credits is 9; an image costs 5 credits (as documented)")
    assert "this task spent 8 before" in str(refused)

    draw = dag.clear("draw")["draw"]
    assert draw.state == "success"
    assert [submission.charged for submission in connected_api.submissions] == [4, 4, 4, 5]


@with_aims("waited for", "waited for, deferred", "stored", "stored, deferred", recorded=True)
def test_a_failed_image_that_a_retry_resumes_counts_towards_the_limit(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected_api.configure(failed_credits=4, seconds_per_image=0)
    connected_api.script("generate", "failure")
    crash_once(monkeypatch, Ledger, "accept", after=True)
    draw = dag_that_draws(**aim, max_credits=8).run()["draw"]

    assert (draw.state, draw.tries) == ("failed", 2)
    assert "this task spent 4 before" in str(draw.errors[-1])
    assert len(connected_api.submissions) == 1


def test_a_stored_image_is_reused_whatever_the_limit(connected_api: Sandbox, tmp_path: Path) -> None:
    assert dag_that_draws(output_path=str(tmp_path)).run().state == "success"

    draw = dag_that_draws(output_path=str(tmp_path), max_credits=0).run()["draw"]
    assert draw.returned["reused"] is True
    assert len(connected_api.submissions) == 1
