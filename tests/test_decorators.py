"""Decorated tasks while a DAG is parsed: their arguments, names, links and types; and how they call their functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, get_overloads

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator, task

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, decorators
from airflow_provider_qwenimage.decorators import qwenimage_batch_task, qwenimage_task
from airflow_provider_qwenimage.plugin.task_kinds import OPERATORS
from airflow_provider_qwenimage.rules.task_options import TaskOptions
from tests.airflows import HAS_TASK_STATES

# Tests also pass what type checkers refuse.
DECORATORS: dict[str, Any] = {"qwenimage": qwenimage_task, "qwenimage_batch": qwenimage_batch_task}
OPERATOR_OF: dict[Any, Any] = {qwenimage_task: QwenImageGenerateOperator, qwenimage_batch_task: QwenImageBatchOperator}


def fox(animal: str = "fox") -> str:
    return f"A {animal}"


@pytest.fixture(autouse=True)
def dag() -> Iterator[DAG]:
    with DAG("decorated", schedule=None) as dag:
        yield dag


def operator_of(decorated: Any, *arguments: Any, **named: Any) -> Any:
    return decorated(*arguments, **named).operator


@pytest.mark.parametrize("name", DECORATORS)
def test_airflow_knows_the_decorators_by_name(name: str) -> None:
    assert getattr(task, name) is DECORATORS[name]


def test_a_decorator_without_arguments_names_the_task_after_the_function() -> None:
    operator = operator_of(qwenimage_task(fox))
    assert isinstance(operator, QwenImageGenerateOperator)
    assert (operator.task_id, operator.operator_name) == ("fox", "@task.qwenimage")


def test_the_ui_shows_decorated_tasks_as_those_of_the_operators() -> None:
    single = operator_of(qwenimage_task(fox))
    batch = operator_of(qwenimage_batch_task(output_path="/data")(fox))
    assert {single.task_type, batch.task_type} <= set(OPERATORS)
    assert [link.name for link in single.operator_extra_links] == ["Generated images", "Image"]
    assert [link.name for link in batch.operator_extra_links] == ["Generated images"]
    mapped = operator_of(qwenimage_task(fox).expand, animal=["fox", "hare"])
    assert mapped.task_type in OPERATORS
    assert [link.name for link in mapped.operator_extra_links] == ["Generated images", "Image"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"size": "5x5"}, "size is '5x5'; it must be one of"),
        ({"overwrite": "False"}, "overwrite is 'False'; it must be True or False"),
        ({"defer_after": -1}, "defer_after is -1; it must be seconds of at least 0 and at most 315360000"),
        ({"image_name": "a/b"}, "image_name is 'a/b'; it must be"),
        ({"overrite": True}, "'overrite' is not an argument of @task.qwenimage .did you mean 'overwrite'"),
        ({"prompt": "A fox"}, "prompt is 'A fox'; it must be left out, because the decorated function returns it"),
    ],
)
def test_a_bad_argument_is_refused_when_the_dag_is_parsed_even_if_the_task_is_mapped(
    arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        qwenimage_task(**arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"size": "5x5"}, "size is '5x5'; it must be one of"),
        ({"overrite": True}, "'overrite' is not an argument of @task.qwenimage .did you mean 'overwrite'"),
        ({"prompt": "A hare"}, "prompt is 'A hare'; it must be left out, because the function fox returns it"),
    ],
)
def test_override_refuses_a_bad_argument_too(arguments: dict[str, Any], problem: str) -> None:
    for decorated in (qwenimage_task(fox), qwenimage_task(fox).partial(), qwenimage_task(fox).override(seed=7)):
        with pytest.raises(ValueError, match=problem):
            decorated.override(**arguments)


def test_override_changes_the_arguments_of_one_task() -> None:
    decorated: Any = qwenimage_task(size="768*1024", output_path="/data")(fox)
    operator = operator_of(decorated.override(task_id="draw", size="1024*768"))
    assert (operator.task_id, operator.size, operator.output_path) == ("draw", "1024*768", "/data")
    assert operator_of(decorated).size == "768*1024"


def test_a_hint_names_an_argument_that_the_task_has() -> None:
    # Of the hooks.
    with pytest.raises(ValueError, match="'connection' is not an argument of @task.qwenimage; use"):
        DECORATORS["qwenimage"](connection=None)
    with pytest.raises(ValueError, match=r"\(did you mean 'retries'\?\)"):
        DECORATORS["qwenimage"](retires=3)


def test_the_returned_argument_is_refused_for_a_batch() -> None:
    with pytest.raises(ValueError, match="requests is .'A hare'.; it must be left out"):
        DECORATORS["qwenimage_batch"](output_path="/data", requests=["A hare"])


def test_a_batch_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="output_path is missing; it is required"):
        qwenimage_batch_task(fox)()


def test_async_functions_are_refused() -> None:
    async def draw() -> str:
        return "A fox"

    async def draw_all() -> Any:
        yield "A fox"

    cases: list[Any] = [(qwenimage_task, draw), (qwenimage_batch_task(output_path="/data"), draw_all)]
    for decorate, function in cases:
        with pytest.raises(ValueError, match="The function draw.* is async; it must be a plain function"):
            decorate(function)


def test_what_the_function_returns_does_not_split_what_the_task_returns() -> None:
    def draw() -> dict[str, Any]:
        return {"prompt": "A fox"}

    assert operator_of(qwenimage_task(draw)).multiple_outputs is False
    split = qwenimage_task(multiple_outputs=True, wait_for_completion=True)(draw)
    assert operator_of(split).multiple_outputs is True


def test_a_task_that_returns_an_id_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="multiple_outputs is True; it must be False without wait_for_completion"):
        qwenimage_task(multiple_outputs=True)(fox)()
    with pytest.raises(ValueError, match="multiple_outputs is True; it must be False"):
        QwenImageGenerateOperator(task_id="draw", prompt="A fox", multiple_outputs=True)


def test_default_arguments_of_the_dag_apply() -> None:
    with DAG("defaults", schedule=None, default_args={"prompt": "A hare", "size": "768*1024", "output_path": "/data"}):
        operator = operator_of(qwenimage_task(image_name="fox")(fox))
    assert (operator.size, operator.output_path, operator.image_name) == ("768*1024", "/data", "fox")


def test_the_parameters_of_the_function_may_have_the_names_of_arguments() -> None:
    def draw(prompt: str, size: int, ds: str, output_path: str = "nowhere") -> str:
        return f"{prompt} {size} {ds} {output_path}"

    operator = operator_of(qwenimage_task(size="768*1024", output_path="/data")(draw), "A fox", size=3)
    assert (operator.size, operator.output_path) == ("768*1024", "/data")
    assert called(operator, ds="2026-11-26") == "A fox 3 2026-11-26 nowhere"


def called(operator: Any, **context: Any) -> Any:
    return operator._call_function(context)


def test_the_function_gets_the_values_of_the_context_that_it_asks_for() -> None:
    def by_name(animal: str, ds: str | None = None, *, ti: Any = None) -> str:
        return f"A {animal} {ds} {ti}"

    def all_of_them(animal: str, **context: Any) -> str:
        return f"A {animal} {context['ds']} {context['ti']}"

    for function in (by_name, all_of_them):
        for operator in (
            operator_of(qwenimage_task(function), "fox"),
            operator_of(qwenimage_task(function), animal="fox"),
        ):
            assert called(operator, ds="2026-11-26", ti="instance", run_id="other") == "A fox 2026-11-26 instance"


def test_an_argument_by_position_takes_precedence_over_the_context() -> None:
    def draw(ds: str, run_id: str, **context: Any) -> str:
        return f"A fox {ds} {run_id} {context}"

    operator = operator_of(qwenimage_task(draw), "every day")
    assert called(operator, ds="2026-11-26", run_id="r", ts="now") == "A fox every day r {'ts': 'now'}"


def test_values_of_the_context_are_passed_after_any_number_of_arguments() -> None:
    def draw(*animals: str, ds: str, **context: Any) -> str:
        return f"{animals} {ds} {context}"

    operator = operator_of(qwenimage_task(draw), "fox", "hare")
    assert called(operator, ds="2026-11-26", run_id="r") == "('fox', 'hare') 2026-11-26 {'run_id': 'r'}"


def test_arguments_of_the_function_do_not_change_the_context_of_the_task() -> None:
    def draw(ti: Any) -> str:
        return f"A fox {ti}"

    context: Any = {"ti": "instance"}
    assert operator_of(qwenimage_task(draw), ti="fox")._call_function(context) == "A fox fox"
    assert context == {"ti": "instance"}


def rendered(operator: Any) -> Any:
    # Airflow 2 renders with its own kind of context.
    operator.render_template_fields({"params": {"folder": "foxes", "nothing": "", "animals": ["fox"]}})
    return operator


def test_arguments_of_function_and_task_are_rendered() -> None:
    folder = "/data/{{ params.folder }}"
    operator = rendered(operator_of(qwenimage_task(output_path=folder, image_name="fox")(fox), folder))
    assert (operator.output_path, operator.op_args) == ("/data/foxes", ("/data/foxes",))
    assert operator.prompt is decorators._RETURNED


def test_an_argument_of_the_function_is_not_checked_as_an_equal_one_of_the_task() -> None:
    """-1 is the default of `seed`, whose template would have to render to something."""
    operator = rendered(operator_of(qwenimage_task(task_id="draw")(lambda *_: "A fox"), -1, "{{ params.nothing }}"))
    assert operator.op_args == (-1, "")
    operator.check_rendered()


def test_the_function_sets_the_arguments_that_it_returns() -> None:
    operator = operator_of(qwenimage_task(size="768*1024", seed=7)(fox))
    operator.take_returned("fox", {"prompt": "A {{ fox }}", "seed": 8, "label": "fox 8"})
    assert operator.image_label == "fox 8"
    assert (operator.prompt, operator.size, operator.seed) == ("A {{ fox }}", "768*1024", 8)
    with pytest.raises(ValueError, match="image_name is 'fox' and output_path is None; it must be left out"):
        operator.take_returned("fox", {"prompt": "A fox", "image_name": "fox"})


def test_a_task_that_is_ended_while_its_function_runs_draws_nothing() -> None:
    def draw() -> str:
        operator.on_kill()
        return "A fox"

    def draw_all() -> Iterator[str]:
        yield "A fox"
        operator.on_kill()
        yield "A hare"

    for operator in (
        operator_of(qwenimage_task(draw)),
        operator_of(qwenimage_batch_task(output_path="/data")(draw_all)),
    ):
        # Marked as failed: Airflow calls `on_kill`, and lets the task go on for some seconds.
        with pytest.raises(Exception, match="ended from outside before it submitted its image"):
            type(operator).execute.__wrapped__(operator, {"ti": SimpleNamespace()})


def arguments_of(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: (each.annotation, each.default) for each in parameters if each.kind is each.KEYWORD_ONLY}


@pytest.mark.skipif(not HAS_TASK_STATES, reason="describes the newest Airflow")
@pytest.mark.parametrize("decorator", DECORATORS.values(), ids=DECORATORS)
def test_the_types_of_a_decorator_are_those_of_its_operator(decorator: Any) -> None:
    _, with_arguments = get_overloads(decorator)
    # As it was before `reads_arguments` gave required arguments a default.
    init = inspect.unwrap(OPERATOR_OF[decorator].__init__)
    returned = {"prompt", "requests"}
    own = {name: described for name, described in arguments_of(init).items() if name not in returned}
    typed = arguments_of(with_arguments)
    assert typed.pop("multiple_outputs") == ("bool", False)
    assert typed == own
    task_arguments = arguments_of(inspect.unwrap(BaseOperator.__init__)).keys()
    assert TaskOptions.__annotations__.keys() == task_arguments - {"multiple_outputs"}
