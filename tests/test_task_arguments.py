"""The arguments of operators and sensor while a DAG is parsed: refused there, mapped or not, or converted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Param, TaskGroup, XComArg, task
from jinja2.sandbox import SandboxedEnvironment

from airflow_provider_qwenimage import (
    QwenImageBatchOperator,
    QwenImageGenerateOperator,
    QwenImageStatusSensor,
    sweep,
)

Kind = type[QwenImageGenerateOperator] | type[QwenImageBatchOperator] | type[QwenImageStatusSensor]
GOOD: dict[Kind, dict[str, Any]] = {
    QwenImageGenerateOperator: {"prompt": "A fox"},
    QwenImageBatchOperator: {"requests": ["A fox"], "output_path": "/data"},
    QwenImageStatusSensor: {"image_task_id": "n43abc"},
}
# The arguments to map over; all others are passed to `partial`.
MAPPED: dict[Kind, dict[str, Any]] = {
    QwenImageGenerateOperator: {"prompt": ["A fox"]},
    QwenImageBatchOperator: {"requests": [["A fox"]]},
    QwenImageStatusSensor: {"image_task_id": ["n43abc"]},
}

BAD: list[tuple[Kind, str, Any]] = [
    (QwenImageGenerateOperator, "size", "1024x1024"),
    (QwenImageGenerateOperator, "seed", "seven"),
    (QwenImageGenerateOperator, "output_format", "gif"),
    (QwenImageGenerateOperator, "callback_url", "ftp://a.example"),
    (QwenImageGenerateOperator, "qwenimage_conn_id", ""),
    (QwenImageGenerateOperator, "wait_for_completion", "False"),
    (QwenImageGenerateOperator, "deferrable", "True"),
    (QwenImageGenerateOperator, "overwrite", "False"),
    (QwenImageGenerateOperator, "overwrite", "{{ params.overwrite }}"),
    (QwenImageGenerateOperator, "durable", None),
    (QwenImageGenerateOperator, "poll_interval", "5"),
    (QwenImageGenerateOperator, "timeout", math.inf),
    (QwenImageGenerateOperator, "timeout", math.nan),
    (QwenImageGenerateOperator, "timeout", 1e300),
    (QwenImageGenerateOperator, "timeout", timedelta.max),
    (QwenImageGenerateOperator, "timeout", None),
    (QwenImageGenerateOperator, "defer_after", -1),
    (QwenImageGenerateOperator, "defer_after", None),
    (QwenImageGenerateOperator, "defer_after", timedelta.max),
    (QwenImageGenerateOperator, "max_consecutive_failures", 0.5),
    (QwenImageGenerateOperator, "max_consecutive_failures", True),
    (QwenImageGenerateOperator, "max_image_bytes", "1e6"),
    (QwenImageGenerateOperator, "max_credits", "100"),
    (QwenImageGenerateOperator, "output_path", 5),
    (QwenImageGenerateOperator, "output_path", Path("/data/a.png")),
    (QwenImageGenerateOperator, "image_name", "a/b"),
    (QwenImageGenerateOperator, "label", "x" * 201),
    (QwenImageGenerateOperator, "retry_delay", "1"),
    (QwenImageGenerateOperator, "retry_delay", math.nan),
    (QwenImageGenerateOperator, "seed", task(lambda: 7)),
    (QwenImageGenerateOperator, "size", Param("1024*1024")),
    (QwenImageGenerateOperator, "output_path", Param("/data", type="string")),
    (QwenImageBatchOperator, "output_path", None),
    (QwenImageBatchOperator, "max_in_flight", 2.5),
    (QwenImageBatchOperator, "max_in_flight", True),
    (QwenImageBatchOperator, "max_failures", "0"),
    (QwenImageBatchOperator, "overwrite", "False"),
    (QwenImageBatchOperator, "timeout", math.inf),
    (QwenImageBatchOperator, "max_credits", math.nan),
    (QwenImageStatusSensor, "deferrable", "False"),
    (QwenImageStatusSensor, "timeout", math.inf),
    (QwenImageStatusSensor, "poke_interval", 0),
    (QwenImageStatusSensor, "defer_after", "60"),
    (QwenImageStatusSensor, "max_consecutive_failures", 0.5),
    (QwenImageStatusSensor, "soft_fail", "False"),
    (QwenImageStatusSensor, "qwenimage_conn_id", 5),
]
TO_MAP_OVER: list[tuple[Kind, str, Any]] = [
    (QwenImageGenerateOperator, "prompt", ""),
    (QwenImageGenerateOperator, "prompt", None),
    (QwenImageGenerateOperator, "prompt", "A fox \ud83d"),
    (QwenImageGenerateOperator, "prompt", "A fox\x00"),
    (QwenImageGenerateOperator, "prompt", "x" * 3_000_000),
    (QwenImageBatchOperator, "requests", ["A fox", {"prompt": "A hare", "size": "9*9"}]),
    (QwenImageBatchOperator, "requests", "prompts.txt"),
    (QwenImageBatchOperator, "requests", (prompt for prompt in ["A fox"])),
    (QwenImageStatusSensor, "image_task_id", None),
    (QwenImageStatusSensor, "image_task_id", " "),
]


@pytest.fixture(autouse=True)
def dag() -> Iterator[DAG]:
    with DAG("arguments", schedule=None) as dag:
        yield dag


@task
def upstream() -> Any:
    return None


def _name(value: object) -> str:
    """Return the same name of a case in every process, without addresses."""
    return ascii(value)[:40].partition(" at 0x")[0]


@pytest.mark.parametrize(("kind", "name", "value"), BAD + TO_MAP_OVER, ids=_name)
def test_a_bad_argument_is_refused_while_the_dag_is_parsed(kind: Kind, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} .*it must|^requests has a bad row 2: size is"):
        kind(**{"task_id": "draw"} | GOOD[kind] | {name: value})


@pytest.mark.parametrize(("kind", "name", "value"), BAD, ids=_name)
def test_a_bad_argument_of_a_mapped_task_is_refused_while_the_dag_is_parsed(kind: Kind, name: str, value: Any) -> None:
    others = {key: good for key, good in GOOD[kind].items() if key not in MAPPED[kind]}
    with pytest.raises(ValueError, match=f"^{name} is .*it must"), warnings.catch_warnings(action="error"):
        kind.partial(**{"task_id": "draw"} | others | {name: value}).expand(**MAPPED[kind])


@pytest.mark.parametrize(("kind", "name", "value"), TO_MAP_OVER, ids=_name)
def test_a_bad_literal_to_map_over_is_refused_while_the_dag_is_parsed(kind: Kind, name: str, value: Any) -> None:
    others = {key: good for key, good in GOOD[kind].items() if key != name}
    expansions: tuple[Callable[[Any], Any], ...] = (
        lambda partial: partial.expand(**{name: [GOOD[kind][name], value]}),
        lambda partial: partial.expand_kwargs([{name: GOOD[kind][name]}, {name: value}]),
    )
    for expand in expansions:
        with pytest.raises(ValueError, match=f"^{name} .*it must|^requests has a bad row 2: size is"):
            expand(kind.partial(task_id="draw", **others))


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_a_missing_argument_is_named(kind: Kind) -> None:
    (name, *_) = GOOD[kind]
    with pytest.raises(ValueError, match=f"^{name} is missing"):
        kind(**{"task_id": "draw"} | {key: good for key, good in GOOD[kind].items() if key != name})


def test_unknown_arguments_are_refused_by_airflow() -> None:
    with pytest.raises(Exception, match="overwite"):
        QwenImageGenerateOperator(task_id="draw", prompt="A fox", overwite=True)
    with pytest.raises(TypeError, match="overwite"):
        QwenImageGenerateOperator.partial(task_id="draw", overwite=True)


def test_an_unknown_argument_in_a_row_to_map_over_is_refused_while_the_dag_is_parsed() -> None:
    rows = [{"prompt": "A fox"}, {"prompt": "A hare", "overwite": True}]
    with pytest.raises(
        ValueError, match=r"^'overwite' is not an argument of QwenImageGenerateOperator \(did you mean 'over"
    ):
        QwenImageGenerateOperator.partial(task_id="draw").expand_kwargs(rows)


def test_values_of_common_types_are_converted(tmp_path: Path) -> None:
    draw = QwenImageGenerateOperator(
        task_id="draw",
        prompt=1984,
        seed=7.0,
        size=None,
        output_format="",
        callback_url="",
        output_path=tmp_path,
        timeout=timedelta(minutes=30),
        poll_interval=timedelta(seconds=2),
        max_credits=math.inf,
    )
    assert (draw.prompt, draw.seed, draw.size, draw.output_format) == ("1984", 7, "1024*1024", "jpeg")
    assert (draw.callback_url, draw.output_path) == (None, str(tmp_path))
    assert (draw.timeout, draw.poll_interval, draw.max_credits) == (1800.0, 2.0, None)


def test_object_storage_paths_become_texts_that_a_worker_can_open(tmp_path: Path) -> None:
    folder = ObjectStoragePath(f"file://{tmp_path}")
    draw = QwenImageBatchOperator(task_id="draw", requests=folder / "prompts.csv", output_path=folder / "{{ ds }}")
    assert (draw.requests, draw.output_path) == (f"file://{tmp_path}/prompts.csv", f"file://{tmp_path}/{{{{ ds }}}}")
    assert ObjectStoragePath(draw.requests) == folder / "prompts.csv"


def test_an_object_storage_path_with_options_that_a_url_cannot_contain_is_refused() -> None:
    with pytest.raises(ValueError, match="^output_path is 'file:///data' with the storage option 'anon'"):
        QwenImageGenerateOperator(
            task_id="draw", prompt="A fox", output_path=ObjectStoragePath("file:///data", anon=True)
        )


@pytest.mark.parametrize(
    "name", ["prompt", "size", "seed", "output_format", "callback_url", "output_path", "image_name", "label"]
)
def test_values_that_are_known_only_when_the_task_runs_are_not_checked_earlier(name: str, dag: DAG) -> None:
    output: Any = upstream()
    later = ["{{ params.x }}", "{% if x %}a{% endif %}", output, output["key"], lambda context, jinja_env: "A fox"]
    for number, value in enumerate(later):
        others = {"prompt": "A fox", "output_path": "/data"}
        draw = QwenImageGenerateOperator(**{"task_id": f"draw_{number}"} | others | {name: value})
        assert getattr(draw, "image_label" if name == "label" else name) is value
        assert not isinstance(value, XComArg) or draw.upstream_task_ids == {"upstream"}
        if name != "prompt":
            mapped = QwenImageGenerateOperator.partial(**{"task_id": f"mapped_{number}", name: value})
            mapped.expand(prompt=["A fox", "{{ params.x }}", output])


def test_the_known_rows_of_a_batch_are_checked_even_if_others_are_templates() -> None:
    rows = ["{{ params.x }}", {"prompt": "{{ params.y }}", "seed": "seven"}, upstream(), "A fox"]
    QwenImageBatchOperator(task_id="draw", requests=rows, output_path="/data")
    with pytest.raises(ValueError, match="bad row 5: prompt is ''"):
        QwenImageBatchOperator(task_id="bad", requests=[*rows, ""], output_path="/data")


def test_the_first_of_several_bad_arguments_is_named() -> None:
    with pytest.raises(ValueError, match="^size is '9'"):
        QwenImageGenerateOperator(task_id="draw", retry_delay="1", overwrite="no", seed="x", size="9", prompt="A fox")


# The last one is an argument of Airflow's own sensor.
DEFAULTS: list[tuple[Kind, str, Any]] = [
    (QwenImageGenerateOperator, "overwrite", "False"),
    (QwenImageGenerateOperator, "size", "9*9"),
    (QwenImageBatchOperator, "max_credits", "100"),
    (QwenImageStatusSensor, "deferrable", "no"),
    (QwenImageStatusSensor, "soft_fail", "False"),
]


@pytest.mark.parametrize("level", ["dag", "group", "task"])
@pytest.mark.parametrize(("kind", "name", "value"), DEFAULTS, ids=_name)
def test_default_arguments_are_checked_like_others(kind: Kind, name: str, value: Any, level: str) -> None:
    defaults = {name: value}
    own: dict[str, Any] = {"default_args": defaults} if level == "task" else {}
    others = {key: good for key, good in GOOD[kind].items() if key not in MAPPED[kind]}
    with (
        DAG("defaults", schedule=None, default_args=defaults if level == "dag" else {}),
        TaskGroup("group", default_args=defaults if level == "group" else {}),
    ):
        with pytest.raises(ValueError, match=f"^{name} is {value!r}".replace("*", r"\*")):
            kind(task_id="draw", **GOOD[kind], **own)
        with pytest.raises(ValueError, match=f"^{name} is {value!r}".replace("*", r"\*")):
            kind.partial(task_id="mapped", **others, **own).expand(**MAPPED[kind])


@pytest.mark.parametrize("name", ["fox", 7, "{{ params.name }}"])
def test_an_image_name_without_a_folder_is_refused_while_the_dag_is_parsed(name: Any) -> None:
    with pytest.raises(ValueError, match="^image_name is .* and output_path is None; it must be left out"):
        QwenImageGenerateOperator(task_id="draw", prompt="A fox", image_name=name)


def test_an_image_name_may_be_given_before_the_folder_is_mapped() -> None:
    assert QwenImageGenerateOperator(task_id="draw", prompt="A fox", image_name=" ").image_name is None
    QwenImageGenerateOperator.partial(task_id="mapped", prompt="A fox", image_name="fox").expand(
        output_path=["/data/a", "/data/b"]
    )


def test_a_label_is_no_name_of_the_task() -> None:
    draw = QwenImageGenerateOperator(task_id="draw", prompt="A fox", label=" red fox\n")
    assert (draw.image_label, draw.label) == ("red fox", "draw"), "Airflow's graph shows tasks by this attribute"
    draw.image_label = "a template that was rendered " + "x" * 200
    with pytest.raises(ValueError, match="^label is 'a template.*it must be a text of at most 200 characters"):
        draw.check_rendered()
    QwenImageGenerateOperator.partial(task_id="mapped").expand_kwargs(sweep("a {red|blue} fox"))


@pytest.mark.parametrize("mapped", [True, False])
def test_the_label_of_a_mapped_task_is_shown_instead_of_its_map_index(*, mapped: bool) -> None:
    draw = QwenImageGenerateOperator(task_id="draw", prompt="A fox", label="{{ params.x }} fox")
    # As Airflow itself sets it.
    vars(draw)["_BaseOperator__from_mapped"] = mapped
    context: Any = {"params": {"x": "red"}, "map_index_template": None, "task": draw}
    draw.render_template_fields(context, SandboxedEnvironment())
    template = context["map_index_template"]
    assert (template and SandboxedEnvironment().from_string(template).render(context)) == (
        "red fox" if mapped else None
    )
    # The user's own template takes precedence.
    context["map_index_template"] = "{{ ds }}"
    draw.show_label(context)
    assert context["map_index_template"] == "{{ ds }}"


def test_a_template_of_a_label_without_a_value_is_refused() -> None:
    draw = QwenImageGenerateOperator(task_id="draw", prompt="A fox", label="{{ params.nothing }}")
    context: Any = {"params": {"nothing": None}}
    draw.render_template_fields(context, SandboxedEnvironment())
    with pytest.raises(ValueError, match="^label is '{{ params.nothing }}', which does not render as intended"):
        draw.check_rendered()


def test_an_argument_takes_precedence_over_a_default_and_defaults_of_other_operators_are_not_checked() -> None:
    with DAG("defaults", schedule=None, default_args={"overwrite": "False", "soft_fail": "of a sensor"}):
        QwenImageGenerateOperator(task_id="draw", prompt="A fox", overwrite=True)
        QwenImageGenerateOperator.partial(task_id="mapped", overwrite=True).expand(prompt=["A fox"])


def test_the_arguments_of_a_subclass_are_checked() -> None:
    class Watercolour(QwenImageGenerateOperator):
        def __init__(self, *, subject: str, **arguments: Any) -> None:
            super().__init__(prompt=f"{subject}, watercolour", **arguments)

    assert Watercolour(task_id="draw", subject="A fox").prompt == "A fox, watercolour"
    with pytest.raises(ValueError, match="^overwrite is 'no'"):
        Watercolour(task_id="bad", subject="A fox", overwrite="no")
    with pytest.raises(ValueError, match="^overwrite is 'no'"):
        Watercolour.partial(task_id="mapped", overwrite="no")
