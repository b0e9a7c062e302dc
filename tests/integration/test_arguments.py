"""Arguments that are rendered when a task runs: a bad value fails the first try, before anything is paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from airflow.providers.common.compat.sdk import task

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageStatusSensor
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW
from tests.integration.dag_runs import TaskEnd, TestDag


def assert_refused(end: TaskEnd, expected: str) -> None:
    assert (end.state, end.tries) == ("failed", 1)
    assert expected in str(end.error)
    assert end.xcoms["error"]["error"] == "ValueError"
    assert expected in end.xcoms["error"]["message"]


NOTHING = {
    "None": "{{ dag_run.conf.get('missing') }}",
    "a text with None in it": "A picture of {{ dag_run.conf.get('missing') }}",
    "empty": "{{ '' }}",
    "white space": "{{ ' ' }}\n",
    "a block": "{% if false %}A fox{% endif %}",
    "a comment": "{# nothing #}",
    "undefined": "{{ dag_run.conf.missing }}",
    "no variable": "{{ missing }}",
    "no Jinja": "{{ dag_run.",
    "None in a filter": "{{ dag_run.conf.get('missing') | trim }}",
    "None beside a text": "{{ dag_run.conf.get('missing') ~ ' in the snow' }}",
    "None added to a text": "{{ 'A fox in ' + dag_run.conf.get('missing') }}",
    "no variable of Airflow": "{{ var.value.get('missing', none) }}",
    # Older versions raise an error that could also come from an unavailable secrets backend.
    **({"not even None": "{{ var.value.get('missing') }}"} if AIRFLOW >= (3, 3) else {}),
    "None that is looked up late": "Since {{ prev_start_date_success }}",
    "a function": "{{ dag_run.conf.get }}",
    "invisible": "\u200b{{ '\ufeff' }}",
    "a part of a list": "{{ params.animals }} in the snow {{ none }}",
}
LISTS = (
    "{{ params.animals }}",
    "A picture of {{ params.animals }}",
    "{{ params.row }}",
    "{{ params.animals | string }}",
)


@pytest.mark.parametrize("native", [False, True], ids=["texts", "native"])
def test_a_template_that_renders_to_nothing_is_refused_in_one_try_and_pays_nothing(
    connected_api: Sandbox, tmp_path: Path, native: bool
) -> None:
    dag = TestDag(render_template_as_native_obj=native, params={"animals": ["a fox"]})
    expected_messages = {}
    with dag:
        for number, (what, template) in enumerate(NOTHING.items()):
            QwenImageGenerateOperator(task_id=f"prompt_{number}", prompt=template)
            expected_messages[f"prompt_{number}"] = (what, "prompt is ")
            QwenImageBatchOperator(task_id=f"batch_{number}", requests=["A fox", template], output_path=str(tmp_path))
            expected_messages[f"batch_{number}"] = (what, "requests is ")
        for name in ("size", "seed", "output_format", "callback_url", "output_path", "qwenimage_conn_id"):
            QwenImageGenerateOperator(**{"task_id": name, "prompt": "A fox"} | {name: NOTHING["None"]})
            expected_messages[name] = ("None", f"{name} is ")
        QwenImageGenerateOperator(
            task_id="image_name", prompt="A fox", output_path=str(tmp_path), image_name=NOTHING["None"]
        )
        expected_messages["image_name"] = ("None", "image_name is ")
        QwenImageBatchOperator(task_id="folder", requests=["A fox"], output_path=f"{tmp_path}/{NOTHING['None']}/images")
        expected_messages["folder"] = ("None in a path", "output_path is ")
        QwenImageBatchOperator(
            task_id="row", requests=[{"prompt": "A fox", "seed": NOTHING["None"]}], output_path=str(tmp_path)
        )
        expected_messages["row"] = ("None in a row", "requests is ")
        QwenImageStatusSensor(task_id="sensor", image_task_id=NOTHING["None"])
        QwenImageStatusSensor(task_id="poking", image_task_id=NOTHING["None"], deferrable=False)
        expected_messages["sensor"] = expected_messages["poking"] = ("None", "image_task_id is ")
    run = dag.run()

    for task_id, (what, expected) in expected_messages.items():
        assert run[task_id].state == "failed", (task_id, what)
        assert_refused(run[task_id], expected)
    assert connected_api.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("native", [False, True], ids=["texts", "native"])
def test_a_printed_list_or_object_is_not_a_prompt(connected_api: Sandbox, tmp_path: Path, native: bool) -> None:
    dag = TestDag(
        render_template_as_native_obj=native,
        params={"animals": ["a fox", "a hare"], "row": {"prompt": "A row"}, "rows": [{"prompt": "A row of rows"}]},
    )
    with dag:
        for number, template in enumerate(LISTS):
            QwenImageGenerateOperator(task_id=f"prompt_{number}", prompt=template)
        QwenImageGenerateOperator(task_id="folder", prompt="A fox", output_path=f"{tmp_path}/{{{{ params.animals }}}}")
        batch: dict[str, Any] = {"output_path": str(tmp_path), "poll_interval": 0.01}
        QwenImageBatchOperator(task_id="in_a_row", requests=["A fox", "{{ params.animals }}"], **batch)
        QwenImageBatchOperator(task_id="in_a_field", requests=[{"prompt": "{{ params.row }}"}], **batch)
        QwenImageBatchOperator(task_id="row", requests=["{{ params.row }}"], **batch)
        QwenImageBatchOperator(task_id="rows", requests="{{ params.rows }}", **batch)
    run = dag.run()

    refused = [f"prompt_{number}" for number in range(len(LISTS))] + ["folder", "in_a_row", "in_a_field"]
    for task_id in refused if native else [*refused, "row"]:
        assert_refused(run[task_id], ", not a text")
    # With native rendering, an object stays an object.
    assert run["row"].state == ("success" if native else "failed")
    assert run["rows"].state == "success"
    drawn = [submission.request["prompt"] for submission in connected_api.submissions]
    assert sorted(drawn) == ["A row"] * native + ["A row of rows"]


def test_an_error_about_a_template_shows_no_secret_that_it_printed(connected_api: Sandbox) -> None:
    key = json.loads(connected_api.connection_json)["password"]
    dag = TestDag(user_defined_macros={"number": int, "secret": key})
    with dag:
        QwenImageGenerateOperator(task_id="connection", prompt="{{ conn.qwenimage_default }}")
        QwenImageGenerateOperator(task_id="beside", prompt="{{ conn.qwenimage_default.password }} and {{ none }}")
        QwenImageGenerateOperator(task_id="error", prompt="{{ number(secret) }}")
    run = dag.run()

    for task_id in ("beside", "error", *(["connection"] if AIRFLOW >= (3, 0) else [])):
        assert_refused(run[task_id], "prompt is '{{ ")
        assert key not in json.dumps(run[task_id].xcoms)
        assert key not in str(run[task_id].error)
    assert key not in [submission.request["prompt"] for submission in connected_api.submissions]


def test_an_if_without_an_else_may_print_nothing(connected_api: Sandbox) -> None:
    dag = TestDag(params={"animals": ["a fox", "a hare"], "style": None})
    with dag:
        QwenImageGenerateOperator(
            task_id="draw",
            prompt="{% for each in params.animals %}{{ each }}{{ ' and ' if not loop.last }}{% endfor %}"
            "{{ ', in oil' if params.style | lower == 'oil' }}",
        )
    assert dag.run()["draw"].state == "success"
    assert [submission.request["prompt"] for submission in connected_api.submissions] == ["a fox and a hare"]


def test_template_fields_of_a_subclass_render_as_in_any_operator(connected_api: Sandbox) -> None:
    class Tagged(QwenImageGenerateOperator):
        template_fields = (*QwenImageGenerateOperator.template_fields, "tags")

        def __init__(self, *, tags: Any = None, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.tags = tags

        def execute(self, context: Any) -> Any:
            context["ti"].xcom_push(key="tags", value=self.tags)
            return super().execute(context)

    dag = TestDag(params={"tags": ["a"]})
    with dag:
        Tagged(task_id="draw", prompt="A fox", tags=["{{ params.tags }}", "{{ none }}", "{{ '' }}"])
    draw = dag.run()["draw"]

    assert draw.state == "success"
    assert draw.xcoms["tags"] == ["['a']", "None", ""]


def test_an_upstream_task_that_returned_nothing_is_refused_in_one_try(connected_api: Sandbox) -> None:
    dag = TestDag()
    with dag:

        @task
        def nothing() -> None:
            """Return nothing."""

        value = nothing()
        for name in ("prompt", "output_path", "qwenimage_conn_id"):
            QwenImageGenerateOperator(**{"task_id": name, "prompt": "A fox"} | {name: value})
        QwenImageStatusSensor(task_id="image_task_id", image_task_id=value)
        QwenImageBatchOperator(task_id="requests", requests=value, output_path="/data")
    run = dag.run()

    for name in ("prompt", "output_path", "qwenimage_conn_id", "image_task_id", "requests"):
        assert_refused(run[name], f"{name} is ")
    assert connected_api.requests == []


def test_none_may_be_printed_if_it_is_intended(connected_api: Sandbox) -> None:
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator(task_id="word", prompt="None")
        QwenImageGenerateOperator(task_id="text", prompt="{{ 'None' }} but a fox")
        QwenImageGenerateOperator(
            task_id="branch", prompt="A fox{% if params.get('x') %}{{ none }}{% endif %}{{ dag_run.conf.x or '' }}"
        )
    run = dag.run(run_conf={"x": None})

    assert {run[name].state for name in ("word", "text", "branch")} == {"success"}
    assert sorted(submission.request["prompt"] for submission in connected_api.submissions) == [
        "A fox",
        "None",
        "None but a fox",
    ]


@pytest.mark.parametrize("native", [False, True], ids=["texts", "native"])
def test_strings_stay_strings_with_and_without_native_rendering(
    connected_api: Sandbox, tmp_path: Path, native: bool
) -> None:
    prompts = ["1984", "007", "1_000", "1e5", "[1, 2]", "{'a': 1}", "True", "'quoted'", "2024-01-01"]
    dag = TestDag(
        render_template_as_native_obj=native,
        params={"prompts": prompts, "seed": 7, "size": "1024*768", "folder": "2024"},
    )
    with dag:
        for number in range(len(prompts)):
            QwenImageGenerateOperator(
                task_id=f"draw_{number}",
                prompt=f"{{{{ params.prompts[{number}] }}}}",
                seed="{{ params.seed }}",
                size="{{ params.size }}",
            )
        QwenImageBatchOperator(
            task_id="batch",
            requests=[{"prompt": f"{{{{ params.prompts[{number}] }}}}", "seed": "7"} for number in range(len(prompts))],
            output_path=f"{tmp_path}/{{{{ params.folder }}}}",
            poll_interval=0.01,
        )
        QwenImageBatchOperator(
            task_id="list", requests="{{ params.prompts }}", output_path=str(tmp_path / "list"), poll_interval=0.01
        )
    run = dag.run()

    assert run.state == "success"
    drawn = [submission.request["prompt"] for submission in connected_api.submissions]
    assert sorted(drawn) == sorted(prompts * 3)
    assert {submission.request["seed"] for submission in connected_api.submissions} == {7, -1}
    assert (tmp_path / "2024" / "manifest.jsonl").exists()


ROWS: list[dict[str, Any]] = [
    {"prompt": "A fox", "seed": 7.0, "size": None, "output_format": "", "callback_url": ""},
    {"prompt": "A hare", "seed": "7", "size": "", "output_format": None},
    {"prompt": "An owl", "seed": 7},
    {"prompt": 1984, "seed": "7.0"},
]


def test_a_row_makes_the_same_request_in_a_batch_a_mapped_task_and_an_operator(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    dag = TestDag()
    with dag:

        @task
        def rows() -> list[dict[str, Any]]:
            return ROWS

        QwenImageGenerateOperator.partial(task_id="mapped").expand_kwargs(rows())
        QwenImageBatchOperator(task_id="batch", requests=rows(), output_path=str(tmp_path), poll_interval=0.01)
        for number, row in enumerate(ROWS):
            QwenImageGenerateOperator(task_id=f"draw_{number}", **row)
    assert dag.run().state == "success"

    drawn = [tuple(submission.request.items()) for submission in connected_api.submissions]
    assert len(drawn) == 12
    assert {dict(request)["prompt"]: dict(request) for request in drawn} == {
        prompt: {"prompt": prompt, "size": "1024*1024", "seed": 7, "output_format": "jpeg"}
        for prompt in ("A fox", "A hare", "An owl", "1984")
    }
    assert len(set(drawn)) == 4


def test_a_bad_row_to_map_over_fails_its_own_task_in_one_try_with_its_reason(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "A fox", "size": "1024x1024"}, "size is '1024x1024'; it must be one of"),
        ({"prompt": None}, "prompt is None"),
        ({}, "prompt is missing"),
        ({"prompt": "A fox", "overwrite": "False"}, "overwrite is 'False'; it must be True or False"),
        ({"prompt": "A fox", "timeout": "10"}, "timeout is '10'"),
        ({"prompt": "A fox", "seed": 7.5}, "seed is 7.5"),
        ({"prompt": "A fox", "output_path": "/data/a.png"}, "output_path is '/data/a.png'"),
        ({"prompt": "x" * 3000}, "prompt has 3000 characters"),
        ({"prompt": "A fox", "output_path": "{{ none }}"}, "output_path is '{{ none }}'"),
        ({"prompt": "\u200b"}, "prompt is '\\u200b'"),
        ({"prompt": "A fox", "overwite": True}, "'overwite' is not an argument of QwenImageGenerateOperator"),
    ]
    rows_: list[dict[str, Any]] = [{"prompt": "A good fox"}, *(row for row, _ in bad)]
    dag = TestDag()
    with dag:

        @task
        def rows() -> list[dict[str, Any]]:
            return rows_

        @task
        def ids() -> list[Any]:
            return [None, ""]

        QwenImageGenerateOperator.partial(task_id="draw").expand_kwargs(rows())
        QwenImageBatchOperator.partial(task_id="batch", output_path=str(tmp_path)).expand_kwargs(
            rows().map(lambda row: {"requests": [row] if "timeout" in row else 5, "max_failures": "0"})
        )
        QwenImageStatusSensor.partial(task_id="wait").expand(image_task_id=ids())
    run = dag.run()

    good, *others = run.mapped("draw")
    assert good.state == "success"
    for end, (_, expected) in zip(others, bad, strict=True):
        assert_refused(end, expected)
    for end in run.mapped("batch"):
        assert_refused(end, "is ")
    for end in run.mapped("wait"):
        assert_refused(end, "image_task_id is ")
    assert [submission.request["prompt"] for submission in connected_api.submissions] == ["A good fox"]


def test_a_bad_template_does_not_lose_a_paid_image_when_resuming(connected_api: Sandbox, tmp_path: Path) -> None:
    answers = iter(["A fox", None, None, None])
    dag = TestDag(user_defined_macros={"next_answer": lambda: next(answers)})
    with dag:
        QwenImageGenerateOperator(
            task_id="draw",
            prompt="{{ next_answer() }}",
            output_path=str(tmp_path),
            deferrable=True,
            poll_interval=0.01,
        )
    draw = dag.run()["draw"]

    assert draw.state == "success"
    assert len(connected_api.submissions) == 1
    assert len(draw.returned["paths"]) == 1


def test_the_finalize_function_of_a_dag_is_respected(connected_api: Sandbox) -> None:
    dag = TestDag(jinja_environment_kwargs={"finalize": lambda value: "" if value is None else value})
    with dag:
        QwenImageGenerateOperator(task_id="draw", prompt="A fox{{ none }}")
        QwenImageGenerateOperator(task_id="nothing", prompt="{{ none }}")
    run = dag.run()

    assert run["draw"].state == "success"
    assert_refused(run["nothing"], "prompt is '{{ none }}', which renders to ''")
    assert [submission.request["prompt"] for submission in connected_api.submissions] == ["A fox"]


def test_a_template_that_prints_an_undefined_value_is_refused_even_if_the_dag_allows_it(connected_api: Sandbox) -> None:
    dag = TestDag(template_undefined=jinja2.Undefined)
    with dag:
        QwenImageGenerateOperator(task_id="draw", prompt="A fox and {{ missing }}")
    assert_refused(dag.run()["draw"], "because an expression in it has no value")
    assert connected_api.requests == []


def test_a_bad_image_name_fails_its_own_task_in_one_try_and_pays_nothing(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    dag = TestDag(params={"name": "a/b"})
    folder = {"output_path": str(tmp_path)}
    with dag:

        @task
        def listed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return rows

        QwenImageGenerateOperator(task_id="rendered", prompt="A fox", image_name="{{ params.name }}", **folder)
        QwenImageGenerateOperator.partial(task_id="mapped", prompt="A fox").expand_kwargs(
            listed(
                [{"image_name": "fox.jpg", **folder}, {"image_name": "fox"}, {"image_name": "fox", "output_path": 5}]
            )
        )
    run = dag.run()

    assert_refused(run["rendered"], "image_name is 'a/b'; it must be a file name without suffix")
    suffix, without_folder, bad_folder = run.mapped("mapped")
    assert_refused(suffix, "image_name is 'fox.jpg'; it must be without .jpg")
    assert_refused(without_folder, "image_name is 'fox' and output_path is None")
    assert_refused(bad_folder, "output_path is 5; it must be")
    assert connected_api.requests == []


def test_an_image_name_that_an_upstream_task_left_out_is_no_name(connected_api: Sandbox, tmp_path: Path) -> None:
    dag = TestDag()
    with dag:

        @task
        def name() -> None:
            return None

        QwenImageGenerateOperator(
            task_id="draw",
            prompt="A fox",
            image_name=name(),
            deferrable=False,
            output_path=str(tmp_path),
            poll_interval=0.01,
        )
    assert dag.run()["draw"].state == "success"
    assert [file.name[:6] for file in tmp_path.glob("*.jpg")] == ["a-fox-"]
