"""Decorated tasks: what their functions return is drawn, paid once, deferred, retried and shown as by the operators."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, task

from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks import deferral
from tests.airflows import HAS_TASK_STATES
from tests.integration.dag_runs import TestDag, crash_once, labels_in_the_ui, visible_files


def prompts(api: Sandbox) -> list[str]:
    return sorted(submission.request["prompt"] for submission in api.submissions)


def test_a_function_that_takes_the_whole_context_is_not_warned_of_what_it_does_not_use(connected_api: Sandbox) -> None:
    with (dag := TestDag()).dag:

        @task.qwenimage
        def draw(**context: Any) -> str:
            return f"A fox on {context['ds']}"

        draw()
    # Warnings are errors in these tests, and Airflow 2 has deprecated many values.
    assert dag.run()["draw"].state == "success"
    assert len(connected_api.submissions) == 1


@pytest.mark.parametrize("durable", [True, False])
def test_a_deferred_task_calls_its_function_once(connected_api: Sandbox, tmp_path: Path, durable: bool) -> None:
    calls: list[str] = []
    with (dag := TestDag()).dag:

        @task.qwenimage(
            size="1024*768",
            output_path=f"{tmp_path}/{{{{ dag.dag_id }}}}",
            deferrable=True,
            durable=durable,
            poll_interval=0.01,
        )
        def draw(animal: str, ds: str) -> dict[str, Any]:
            """The type says nothing about what the task returns."""
            calls.append(ds)
            return {"prompt": f"A {animal} {{{{ ds }}}}", "seed": 7, "image_name": f"fox {len(calls)}"}

        draw("{{ 'red' }} fox")
    end = dag.run()["draw"]

    assert (end.state, end.tries, len(calls)) == ("success", 1, 1)
    assert prompts(connected_api) == ["A red fox {{ ds }}"]
    folder = tmp_path / dag.dag.dag_id
    assert visible_files(folder) == ["fox 1.jpg", "fox 1.json"]
    assert end.returned == {
        "task_id": connected_api.submissions[0].task_id,
        "status": "SUCCESS",
        "image_urls": end.returned["image_urls"],
        "paths": [str(folder / "fox 1.jpg")],
        "consumed_credits": 5,
        "seed": 7,
        "size": "1024*768",
        "output_format": "jpeg",
        "reused": False,
    }
    assert end.xcoms.keys() == {"request", "task_id", "consumed_credits", "return_value"}
    assert end.xcoms["request"]["prompt"] == "A red fox {{ ds }}"


def test_mapped_tasks_and_a_batch_draw_what_their_functions_return(connected_api: Sandbox, tmp_path: Path) -> None:
    with (dag := TestDag()).dag:

        @task.qwenimage(wait_for_completion=True, poll_interval=0.01, multiple_outputs=True)
        def draw(animal: str, place: str) -> dict[str, Any]:
            return {"prompt": f"A {animal} in {place}", "label": animal}

        @task.qwenimage_batch(output_path=str(tmp_path), poll_interval=0.01)
        def draw_all(number: int) -> Iterator[dict[str, Any]]:
            for index in range(number):
                yield {"prompt": f"Hare {index} {{{{ ds }}}}", "name": f"hare {index}"}

        draw.partial(place="snow").expand_kwargs([{"animal": "fox"}, {"animal": "owl"}])
        draw_all(2)
    run = dag.run()

    assert run.state == "success"
    drawn = ["A fox in snow", "A owl in snow", "Hare 0 {{ ds }}", "Hare 1 {{ ds }}"]
    assert prompts(connected_api) == drawn
    assert [end.xcoms["request"]["prompt"] for end in run.mapped("draw")] == drawn[:2]
    assert labels_in_the_ui(dag, "draw") == ["fox", "owl"]
    assert all(end.xcoms["image_urls"] == end.returned["image_urls"] for end in run.mapped("draw"))
    assert run["draw_all"].returned["images"] == 2
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["status"]) for row in rows] == [(prompt, "SUCCESS") for prompt in drawn[2:]]


def test_a_retry_resumes_what_is_paid_although_the_function_returns_another_prompt(
    connected_api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    with (dag := TestDag()).dag:

        @task.qwenimage(output_path=str(tmp_path), poll_interval=0.01)
        def draw() -> str:
            calls.append(len(calls))
            return f"Fox {len(calls)}"

        draw()
    crash_once(monkeypatch, QwenImageHook, "wait_for_completion")
    end = dag.run()["draw"]

    assert (end.state, end.tries, len(calls)) == ("success", 2, 2)
    assert prompts(connected_api) == ["Fox 1"]
    assert end.xcoms["request"]["prompt"] == "Fox 1"
    assert [name.partition("-")[0] for name in visible_files(tmp_path)] == ["fox", "fox"]
    # A Clear asks for what the function returns now, if Airflow remembers what it was.
    again = dag.clear("draw")["draw"]
    assert again.state == "success"
    assert prompts(connected_api) == ["Fox 1", "Fox 3"]


def test_a_retry_that_is_resumed_by_an_earlier_event_calls_the_function(
    connected_api: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Airflow 3.0 resumes retries."""
    calls: list[int] = []
    with (dag := TestDag()).dag:

        @task.qwenimage(output_path=str(tmp_path), deferrable=True, poll_interval=0.01)
        def draw() -> str:
            calls.append(len(calls))
            return "A fox"

        draw()
    monkeypatch.setattr(deferral, "is_of_an_earlier_try", lambda *_: len(calls) == 1)
    end = dag.run()["draw"]

    assert (end.state, end.tries, len(calls)) == ("success", 1, 2)
    assert prompts(connected_api) == ["A fox"]


def test_a_function_skips_fails_and_is_refused_before_anything_is_paid(connected_api: Sandbox, tmp_path: Path) -> None:
    calls: list[str] = []
    with (dag := TestDag()).dag:

        @task.qwenimage
        def skip() -> str:
            raise AirflowSkipException("nothing to draw")

        @task.qwenimage
        def fail() -> str:
            calls.append("fail")
            return str(int("A fox"))

        @task.qwenimage
        def choose() -> Any:
            return None

        @task.qwenimage_batch(output_path=str(tmp_path))
        def choose_all() -> list[Any]:
            return ["A fox", 3]

        for decorated in (skip, fail, choose, choose_all):
            decorated()
    run = dag.run()

    assert run["skip"].state == "skipped"
    # A function may fail for a while: Airflow retries it, as any function.
    assert (run["fail"].state, run["fail"].tries, len(calls)) == ("failed", 3, 3)
    for name, message in [
        ("choose", "The function choose returned None; it must return a prompt"),
        ("choose_all", "requests has 1 bad row(s) of 2; nothing was submitted. row 2: the row is 3"),
    ]:
        assert (run[name].state, run[name].tries) == ("failed", 1)
        assert isinstance(run[name].error, AirflowFailException)
        assert message in str(run[name].error)
        assert message in run[name].xcoms["error"]["message"]
    assert connected_api.submissions == []


def test_a_function_that_yields_its_rows_fails_and_skips_as_any_function(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    calls: list[str] = []
    with (dag := TestDag()).dag:

        @task.qwenimage_batch(output_path=str(tmp_path))
        def fail() -> Iterator[str]:
            calls.append("fail")
            yield "A fox"
            yield str(int("A hare"))

        @task.qwenimage_batch(output_path=str(tmp_path))
        def skip() -> Iterator[str]:
            yield "A fox"
            raise AirflowSkipException("no more foxes")

        fail()
        skip()
    run = dag.run()

    assert (run["fail"].state, run["fail"].tries, len(calls)) == ("failed", 3, 3)
    # The gallery does not show a skipped task as a failed one.
    assert (run["skip"].state, run["skip"].xcoms) == ("skipped", {})
    assert connected_api.submissions == []


@pytest.mark.skipif(not HAS_TASK_STATES, reason="one Airflow is enough")
def test_the_error_of_a_mapped_task_names_a_bad_argument_once(connected_api: Sandbox) -> None:
    dag = TestDag()
    # Airflow adds the defaults of the DAG when it creates the mapped task.
    dag.dag.default_args["size"] = "5*5"
    with dag.dag:

        @task.qwenimage
        def draw(animal: str) -> str:
            return animal

        draw.expand(animal=["fox"])
    (end,) = dag.run().mapped("draw")
    assert (end.state, end.tries) == ("failed", 1)
    assert "size is '5*5'; it must be one of" in str(end.error)
    assert connected_api.submissions == []
