"""Several images in one task instance, by a loop in a subclass or by operators in a `@task`: each is drawn once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import task as task_decorator

from airflow_provider_qwenimage import QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.changed_answers import Answer, Front
from tests.integration.dag_runs import Crash, TaskEnd, TestDag, visible_files, with_aims

PROMPTS = ["A tin robot", "A paper moon", "A red kite"]

with_every_wait = with_aims("submitted", "waited for", "stored")
with_any_record = with_aims("submitted", "waited for", "stored", recorded=True)

BetweenImages = Callable[[Any, int], None]


def _nothing(context: Any, drawn: int) -> None:
    pass


class _Triptych(QwenImageGenerateOperator):
    """Draws three images in one task."""

    def __init__(self, *, between: BetweenImages = _nothing, prompts: list[str] = PROMPTS, **arguments: Any) -> None:
        super().__init__(prompt="…", **arguments)
        self.between = between
        self.prompts = prompts

    def execute(self, context: Any) -> list[Any]:
        drawn: list[Any] = []
        for prompt in self.prompts:
            self.prompt = prompt
            drawn.append(super().execute(context))
            self.between(context, len(drawn))
        return drawn


def _triptych(**arguments: Any) -> TestDag:
    dag = TestDag()
    with dag:
        _Triptych(task_id="draw", poll_interval=0.01, **arguments)
    return dag


def _in_a_python_task(**arguments: Any) -> TestDag:
    between = arguments.pop("between", _nothing)
    dag = TestDag()
    with dag:

        @task_decorator(task_id="draw")
        def draw(**context: Any) -> list[Any]:
            drawn: list[Any] = []
            for number, prompt in enumerate(PROMPTS):
                operator = QwenImageGenerateOperator(
                    task_id=f"image_{number}", prompt=prompt, poll_interval=0.01, **arguments
                )
                drawn.append(operator.execute(context))
                between(context, len(drawn))
            return drawn

        draw()
    return dag


in_both_ways = pytest.mark.parametrize("dag_of", [_triptych, _in_a_python_task], ids=["subclass", "@task"])


def _task_ids(draw: TaskEnd) -> list[str]:
    return [each if isinstance(each, str) else each["task_id"] for each in draw.returned]


def _assert_each_is_drawn_once(draw: TaskEnd, api: Sandbox, folder: Path, aim: dict[str, Any]) -> None:
    assert draw.state == "success"
    assert [submission.request["prompt"] for submission in api.submissions] == PROMPTS
    assert _task_ids(draw) == [submission.task_id for submission in api.submissions]
    assert len(visible_files(folder)) == (2 * len(PROMPTS) if "output_path" in aim else 0)
    if "output_path" in aim:
        paths = [path for each in draw.returned for path in each["paths"]]
        assert len({Path(path).read_bytes() for path in paths}) == len(PROMPTS)


@with_every_wait
@in_both_ways
def test_a_task_that_draws_three_images_draws_each_once(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, dag_of: Callable[..., TestDag]
) -> None:
    draw = dag_of(**aim).run()["draw"]

    _assert_each_is_drawn_once(draw, connected_api, tmp_path, aim)
    assert draw.tries == 1
    assert [each["reused"] for each in draw.returned if isinstance(each, dict)] in ([], [False] * 3)


@with_any_record
@in_both_ways
@pytest.mark.parametrize("drawn_before", [1, 2, 3])
def test_a_retry_of_a_task_that_draws_three_images_pays_for_none_again(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, dag_of: Callable[..., TestDag], drawn_before: int
) -> None:
    def crash(context: Any, drawn: int) -> None:
        if context["ti"].try_number == 1 and drawn == drawn_before:
            raise Crash("between images")

    draw = dag_of(**aim, between=crash).run()["draw"]

    assert (draw.tries, len(draw.errors)) == (2, 1)
    _assert_each_is_drawn_once(draw, connected_api, tmp_path, aim)


@with_aims("waited for", "stored", recorded=True)
@in_both_ways
def test_a_retry_after_an_error_while_the_second_image_is_drawn_waits_for_it(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path, dag_of: Callable[..., TestDag]
) -> None:
    def fail_reads(context: Any, drawn: int) -> None:
        if context["ti"].try_number == 1 and drawn == 1:
            connected_api.script("status", ("server_error", 2))

    draw = dag_of(**aim, between=fail_reads, max_consecutive_failures=2).run()["draw"]

    assert (draw.tries, len(draw.errors)) == (2, 1)
    _assert_each_is_drawn_once(draw, connected_api, tmp_path, aim)


@with_any_record
@in_both_ways
def test_a_lost_answer_for_the_second_of_three_images_is_submitted_once_more_after_a_clear(
    connected_api: Sandbox, aim: dict[str, Any], dag_of: Callable[..., TestDag]
) -> None:
    connected_api.script("generate", "ok", "drop_after")
    dag = dag_of(**aim)
    lost = dag.run()["draw"]
    assert (lost.state, lost.tries, len(connected_api.submissions)) == ("failed", 1, 2)
    assert "QwenImageSubmissionUnknownError" in str(lost.error)

    draw = dag.clear("draw")["draw"]
    assert draw.state == "success"
    prompts = [submission.request["prompt"] for submission in connected_api.submissions]
    assert prompts[:2] == PROMPTS[:2]
    assert prompts.count(PROMPTS[1]) == 2
    assert prompts.count(PROMPTS[2]) == 1
    assert _task_ids(draw)[1:] == [submission.task_id for submission in connected_api.submissions[-2:]]


@with_any_record
def test_equal_prompts_of_one_task_are_images_of_their_own(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path
) -> None:
    if "output_path" in aim:
        pytest.skip("in a folder, equal requests share a file")

    def crash(context: Any, drawn: int) -> None:
        if context["ti"].try_number == 1 and drawn == 2:
            raise Crash("between images")

    draw = _triptych(**aim, prompts=["A tin robot"] * 3, between=crash).run()["draw"]

    assert (draw.state, draw.tries) == ("success", 2)
    assert len(connected_api.submissions) == 3
    assert _task_ids(draw) == [submission.task_id for submission in connected_api.submissions]


@pytest.fixture
def price(connected_api: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """What the API reports as the cost of an image, which a test may change."""
    reported: dict[str, float] = {"credits": 5}

    def change(route: str, answer: Answer) -> Answer:
        if route == "generate":
            return answer
        data = answer.body["data"] | {"consumed_credits": reported["credits"]}
        return Answer(answer.status, answer.body | {"data": data})

    with Front(connected_api, change) as front:
        monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", front.connection_json)
        yield reported


@with_aims("waited for", "stored", recorded=True)
@pytest.mark.parametrize(
    ("reported", "limit_and_submitted"),
    [(5, (10, 2)), (7, (14, 2)), (7, (13, 1)), (7, (20, 2)), (0, (10, 2)), (0, (5, 1))],
)
def test_max_credits_holds_for_all_images_of_a_task_at_the_price_that_the_api_charges(
    connected_api: Sandbox,
    aim: dict[str, Any],
    price: dict[str, float],
    reported: float,
    limit_and_submitted: tuple[float, int],
) -> None:
    max_credits, submitted = limit_and_submitted
    price["credits"] = reported
    draw = _triptych(**aim, max_credits=max_credits).run()["draw"]

    assert draw.state == "failed"
    assert len(connected_api.submissions) == submitted
    assert f"max_credits is {max_credits}" in str(draw.errors[-1])
