"""An answer with a task id is an acceptance, whatever surrounds it; an answer of 500 is sent again at most once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.changed_answers import Answer, Front
from tests.integration.dag_runs import dag_that_draws, visible_files, with_aims
from tests.integration.interruptions import submitting

with_every_aim = with_aims("submitted", "waited for", "waited for, deferred", "stored", "stored, deferred")
with_any_record = with_aims("submitted", "waited for", "stored", "stored, deferred", recorded=True)

Connect = Callable[[Callable[[str, Answer], Answer]], None]


@pytest.fixture
def connect_through(connected_api: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Return a function that has the default connection lead through a proxy that changes answers."""
    fronts: list[Front] = []

    def connect(change: Callable[[str, Answer], Answer]) -> None:
        front = Front(connected_api, change)
        fronts.append(front)
        front.__enter__()
        monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", front.connection_json)

    yield connect
    for front in fronts:
        front.__exit__()


@with_every_aim
@pytest.mark.parametrize("status", [201, 202, 400, 401, 402, 404, 429, 500, 503])
def test_an_accepted_image_task_is_waited_for_whatever_the_http_status_of_the_answer(
    connected_api: Sandbox, connect_through: Connect, aim: dict[str, Any], tmp_path: Path, status: int
) -> None:
    connect_through(lambda route, answer: Answer(status, answer.body) if route == "generate" else answer)
    draw = dag_that_draws(**aim).run()["draw"]

    (submission,) = connected_api.submissions
    assert len(submitting(connected_api)) == 1
    assert (draw.state, draw.tries, draw.xcoms["task_id"]) == ("success", 1, submission.task_id)
    assert len(visible_files(tmp_path)) == (2 if "output_path" in aim else 0)


@with_aims("submitted", "waited for", "stored, deferred")
@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("code", [400, 429, 500, 501, "500", None])
def test_an_accepted_image_task_is_waited_for_whatever_the_code_of_the_answer(
    connected_api: Sandbox, connect_through: Connect, aim: dict[str, Any], status: int, code: object
) -> None:
    connect_through(
        lambda route, answer: Answer(status, answer.body | {"code": code}) if route == "generate" else answer
    )
    draw = dag_that_draws(**aim).run()["draw"]

    (submission,) = connected_api.submissions
    assert len(submitting(connected_api)) == 1
    assert (draw.state, draw.tries, draw.xcoms["task_id"]) == ("success", 1, submission.task_id)


@with_every_aim
def test_the_log_says_that_the_api_contradicts_itself(
    connected_api: Sandbox, connect_through: Connect, aim: dict[str, Any], task_log: Callable[[], str]
) -> None:
    connect_through(lambda route, answer: Answer(500, answer.body) if route == "generate" else answer)
    dag_that_draws(**aim).run()

    (submission, *_) = connected_api.submissions
    warnings = [line for line in task_log().splitlines() if "contradicts itself" in line]
    assert warnings
    assert all("HTTP 500" in warning and submission.task_id in warning for warning in warnings)


def _answered_500(api: Sandbox) -> int:
    return sum(request.behaviour == "server_error" for request in submitting(api))


@with_any_record
@pytest.mark.parametrize("wire_style", ["http", "envelope"])
def test_a_submission_that_is_answered_500_is_sent_again_once_over_all_tries(
    connected_api: Sandbox, aim: dict[str, Any], quick_resends: None, wire_style: str
) -> None:
    connected_api.configure(wire_style=wire_style)
    connected_api.script("generate", ("server_error", 20))
    draw = dag_that_draws(**aim).run()["draw"]

    assert draw.state == "failed"
    assert _answered_500(connected_api) == len(submitting(connected_api)) == 2


@with_any_record
def test_a_submission_that_is_answered_500_in_one_try_is_sent_again_once_in_all_later_tries(
    connected_api: Sandbox, aim: dict[str, Any], quick_resends: None
) -> None:
    # The pauses after the 429s end the first try.
    connected_api.configure(retry_after=90)
    connected_api.script("generate", "server_error", "rate_limit", ("server_error", 20))
    draw = dag_that_draws(**aim).run()["draw"]

    assert draw.state == "failed"
    assert _answered_500(connected_api) <= 2
    assert len(submitting(connected_api)) <= 3


@with_any_record
def test_a_clear_submits_after_a_submission_that_was_answered_500_twice(
    connected_api: Sandbox, aim: dict[str, Any], quick_resends: None
) -> None:
    connected_api.script("generate", ("server_error", 2))
    dag = dag_that_draws(**aim)
    draw = dag.run()["draw"]
    assert (draw.state, len(submitting(connected_api)), connected_api.submissions) == ("failed", 2, [])

    assert dag.clear("draw").state == "success"
    assert len(submitting(connected_api)) == 3
    assert len(connected_api.submissions) == 1


@with_any_record
def test_an_image_that_was_accepted_but_answered_500_is_not_paid_more_than_twice(
    connected_api: Sandbox, connect_through: Connect, aim: dict[str, Any], quick_resends: None
) -> None:
    refusal = {"code": 500, "message": "Internal server error", "data": None}
    connect_through(lambda route, answer: Answer(500, refusal) if route == "generate" else answer)
    draw = dag_that_draws(**aim).run()["draw"]

    assert draw.state == "failed"
    assert len(connected_api.submissions) == 2


@with_any_record
def test_a_submission_that_is_answered_500_once_is_sent_again(
    connected_api: Sandbox, aim: dict[str, Any], quick_resends: None
) -> None:
    connected_api.script("generate", "server_error")
    draw = dag_that_draws(**aim).run()["draw"]

    (submission,) = connected_api.submissions
    assert len(submitting(connected_api)) == 2
    assert (draw.state, draw.xcoms["task_id"]) == ("success", submission.task_id)
