"""What the operators report to OpenLineage, by its own classes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator

with_openlineage = pytest.mark.usefixtures("openlineage")


@pytest.fixture
def openlineage() -> None:
    pytest.importorskip("airflow.providers.openlineage")


def image(output_path: Any = None) -> QwenImageGenerateOperator:
    return QwenImageGenerateOperator(task_id="draw", prompt="a fox", output_path=output_path)


def batch(requests: Any, **arguments: Any) -> QwenImageBatchOperator:
    return QwenImageBatchOperator(task_id="draw", requests=requests, output_path="/data", **arguments)


def names(datasets: Any) -> list[tuple[str, str]]:
    return [(each.namespace, each.name) for each in datasets]


@with_openlineage
@pytest.mark.parametrize(
    ("output_path", "outputs"),
    [
        (None, []),
        (" s3://aws@bucket/images/ ", [("s3://bucket", "images")]),
        (Path("/data/images"), [("file", "/data/images")]),
        ("~/images", [("file", str(Path("~/images").expanduser()))]),
        ("file://images/new", [("file", str(Path("images/new").absolute()))]),
        ("file://localhost", [("file", str(Path("localhost").absolute()))]),
        ("file:////data/images", [("file", "/data/images")]),
        ("file://conn@/data/images", [("file", "/data/images")]),
    ],
)
def test_the_folder_is_an_output(output_path: Any, outputs: list[tuple[str, str]]) -> None:
    lineage = image(output_path).get_openlineage_facets_on_start()
    assert (names(lineage.inputs), names(lineage.outputs), lineage.run_facets) == ([], outputs, {})


@with_openlineage
def test_a_dry_run_has_no_output() -> None:
    lineage = batch("/data/prompts.csv", dry_run=True).get_openlineage_facets_on_start()
    assert (names(lineage.inputs), names(lineage.outputs)) == ([("file", "/data/prompts.csv")], [])


@with_openlineage
@pytest.mark.parametrize(
    ("requests", "inputs"),
    [
        (["a fox"], []),
        ('["a fox"]', []),
        ("s3://aws@bucket/prompts.csv", [("s3://bucket", "prompts.csv")]),
        (Path("/data/prompts.jsonl"), [("file", "/data/prompts.jsonl")]),
        ("s3://key:secret@bucket/prompts.csv", []),
        ("s3://key:se/cret@bucket/prompts.csv", []),
    ],
)
def test_the_file_of_requests_is_an_input_unless_it_has_a_password(
    requests: Any, inputs: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    lineage = batch(requests).get_openlineage_facets_on_start()
    assert names(lineage.inputs) == inputs
    assert names(lineage.outputs) == [("file", "/data")]
    assert "cret" not in caplog.text


@with_openlineage
@pytest.mark.parametrize("output_path", ["s3://key:secret@bucket/a", "s3://key:se/cret@bucket/a", 7])
def test_a_folder_that_the_task_refuses_is_not_reported(output_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    operator = image()
    # As a template may have rendered it.
    operator.output_path = output_path
    assert operator.get_openlineage_facets_on_start() is None
    assert "The lineage of this task could not be reported." in caplog.text
    assert "cret" not in caplog.text


@with_openlineage
def test_a_template_that_is_refused_names_no_dataset() -> None:
    """Without its value, the folder would be the one above."""
    operator = QwenImageBatchOperator(
        task_id="draw", requests="/data/{{ params.missing }}/a.csv", output_path="/data/{{ params.missing }}"
    )
    operator.render_template_fields({"params": {}})
    assert operator.output_path == "/data/"
    for lineage in (operator.get_openlineage_facets_on_start(), operator.get_openlineage_facets_on_failure(None)):
        assert (names(lineage.inputs), names(lineage.outputs)) == ([], [])


@with_openlineage
def test_a_task_that_failed_before_it_submitted_has_no_facet() -> None:
    for operator in (image("/data"), batch(["a fox"])):
        lineage = operator.get_openlineage_facets_on_failure(None)
        assert (names(lineage.outputs), lineage.run_facets) == ([("file", "/data")], {})


@with_openlineage
def test_a_subclass_whose_facts_raise_fails_nothing() -> None:
    class Broken(QwenImageGenerateOperator):
        def lineage_facts(self) -> Mapping[str, Any]:
            raise RuntimeError("broken")

    operator = Broken(task_id="draw", prompt="a fox")
    assert operator.get_openlineage_facets_on_complete(None) is None


def test_without_the_provider_nothing_is_reported_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
    operator = image("/data")
    assert operator.get_openlineage_facets_on_start() is None
    assert operator.get_openlineage_facets_on_complete(None) is None
    assert operator.get_openlineage_facets_on_failure(None) is None
