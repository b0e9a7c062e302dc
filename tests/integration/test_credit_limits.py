"""`max_credits` holds at the price that the API charges: the higher of 5 and what it charged last."""

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import Crash, dag_that_draws, visible_files, with_aims

waiting = with_aims("waited for", "waited for, deferred", "stored", "stored, deferred", recorded=True)


@with_aims("waited for", "stored, deferred", recorded=True)
@pytest.mark.parametrize(
    ("charged", "max_credits", "submitted"),
    [
        (7, 6, 1),
        (7, 13, 1),
        (7, 14, 2),
        (7, 20, 2),
        (7, 21, 3),
        (12, 17, 1),
        (2, 6, 1),
        (2, 7, 2),
        (2, 8, 2),
        (0, 5, 3),
    ],
)
def test_failed_images_count_for_the_limit_and_the_next_one_at_the_price_that_was_charged_last(
    connected_api: Sandbox, aim: dict[str, Any], charged: float, max_credits: float, submitted: int
) -> None:
    connected_api.configure(failed_credits=charged)
    draw = dag_that_draws(**aim, prompt="Fog [fail]", max_credits=max_credits).run()["draw"]

    assert draw.state == "failed"
    assert len(connected_api.submissions) == submitted
    assert connected_api.credits_charged <= max(max_credits, charged)
    assert ("max_credits" in str(draw.errors[-1])) == (submitted < 3)


@waiting
def test_the_error_names_the_price_that_was_charged_last(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    connected_api.configure(failed_credits=7)
    draw = dag_that_draws(**aim, prompt="Fog [fail]", max_credits=13).run()["draw"]

    error = str(draw.errors[-1])
    assert (draw.state, draw.tries) == ("failed", 2)
    assert "max_credits is 13" in error
    assert "7 credits" in error
    assert "an image costs 5 credits" not in error


@waiting
def test_the_price_is_known_to_a_try_after_a_crash(connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path) -> None:
    connected_api.configure(failed_credits=7)

    def crash_at_the_second_try(context: Any) -> None:
        if context["ti"].try_number == 2:
            raise Crash("at the start")

    draw = dag_that_draws(**aim, prompt="Fog [fail]", max_credits=13, pre_execute=crash_at_the_second_try).run()["draw"]

    assert (draw.state, draw.tries) == ("failed", 3)
    assert len(connected_api.submissions) == 1
    assert "max_credits is 13" in str(draw.errors[-1])
    assert visible_files(tmp_path) == []


@waiting
def test_a_clear_starts_the_limit_again(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    connected_api.configure(failed_credits=7)
    dag = dag_that_draws(**aim, prompt="Fog [fail]", max_credits=13)
    assert dag.run().state == "failed"
    assert len(connected_api.submissions) == 1

    assert dag.clear("draw").state == "failed"
    assert len(connected_api.submissions) == 2
