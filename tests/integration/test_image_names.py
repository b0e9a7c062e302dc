"""A name that the user chooses is the name of the file, and the identity of the image."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_qwenimage import QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.integration.dag_runs import Crash, DagRun, TaskEnd, TestDag, dag_that_draws, visible_files
from tests.integration.interruptions import submitting

in_both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])


def _fox(folder: Path, **arguments: Any) -> TestDag:
    return dag_that_draws(**{"output_path": str(folder), "image_name": "fox", "prompt": "A red fox"} | arguments)


def _draw_foxes(folder: Path, rows: list[dict[str, Any]], **arguments: Any) -> DagRun:
    """Run a new DAG with a mapped task whose rows have prompts and names."""
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator.partial(
            task_id="draw", poll_interval=0.01, output_path=str(folder), **arguments
        ).expand_kwargs(rows)
    return dag.run()


def _row(name: str) -> dict[str, Any]:
    return {"prompt": f"A fox called {name}", "image_name": name}


def _assert_stopped_before_paying(draw: TaskEnd, api: Sandbox, sent: int) -> None:
    assert (draw.state, draw.tries) == ("failed", 1)
    assert "overwrite=True" in str(draw.error)
    assert "fox" in str(draw.error)
    assert len(submitting(api)) == sent


@in_both_ways
@pytest.mark.parametrize(("output_format", "suffix"), [("jpeg", "jpg"), ("png", "png"), ("webp", "webp")])
def test_the_image_and_its_sidecar_have_the_name_that_was_chosen(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, output_format: str, suffix: str
) -> None:
    draw = _fox(tmp_path, deferrable=deferrable, output_format=output_format).run()["draw"]

    assert draw.state == "success"
    assert visible_files(tmp_path) == sorted([f"fox.{suffix}", "fox.json"])
    assert [Path(path).name for path in draw.returned["paths"]] == [f"fox.{suffix}"]
    with Image.open(tmp_path / f"fox.{suffix}") as image:
        image.load()
    sidecar = json.loads((tmp_path / "fox.json").read_text())
    assert (sidecar["task_id"], sidecar["request"]["prompt"]) == (draw.returned["task_id"], "A red fox")


@in_both_ways
def test_the_name_is_a_template(connected_api: Sandbox, tmp_path: Path, deferrable: bool) -> None:
    draw = _fox(tmp_path, deferrable=deferrable, image_name="{{ task.task_id }}-{{ 6 * 7 }}").run()["draw"]

    assert draw.state == "success"
    assert visible_files(tmp_path) == ["draw-42.jpg", "draw-42.json"]


@in_both_ways
@pytest.mark.parametrize("seed", [-1, 7])
def test_another_run_with_the_same_name_and_request_reuses_the_image(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, seed: int
) -> None:
    first = _fox(tmp_path, deferrable=deferrable, seed=seed).run()["draw"]
    again = _fox(tmp_path, deferrable=deferrable, seed=seed).run()["draw"]

    assert again.returned == first.returned | {"reused": True, "consumed_credits": 0}
    assert len(connected_api.submissions) == 1


@in_both_ways
@pytest.mark.parametrize("seed", [-1, 7])
def test_a_mapped_list_with_names_that_grows_and_changes_its_order_pays_for_the_new_rows_only(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, seed: int
) -> None:
    names = ["ash", "birch", "cedar"]
    before = _draw_foxes(tmp_path, [_row(name) for name in names], deferrable=deferrable, seed=seed)
    assert (before.state, len(connected_api.submissions)) == ("success", 3)
    drawn = dict(zip(names, (end.returned["task_id"] for end in before.mapped("draw")), strict=True))

    grown = ["cedar", "dogwood", "ash", "birch"]
    after = _draw_foxes(tmp_path, [_row(name) for name in grown], deferrable=deferrable, seed=seed)
    assert after.state == "success"
    assert len(connected_api.submissions) == 4
    ends = dict(zip(grown, after.mapped("draw"), strict=True))
    assert {name: ends[name].returned["task_id"] for name in names} == drawn
    assert [ends[name].returned["reused"] for name in grown] == [True, False, True, True]
    assert [ends[name].returned["consumed_credits"] for name in grown] == [0, 5, 0, 0]
    assert visible_files(tmp_path) == sorted(f"{name}.{suffix}" for name in grown for suffix in ("jpg", "json"))


@in_both_ways
def test_mapped_rows_with_one_prompt_and_different_names_are_images_of_their_own(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    rows = [{"prompt": "A red fox", "image_name": name} for name in ("ash", "birch")]
    run = _draw_foxes(tmp_path, rows, deferrable=deferrable, seed=7)

    assert (run.state, len(connected_api.submissions)) == ("success", 2)
    assert visible_files(tmp_path) == ["ash.jpg", "ash.json", "birch.jpg", "birch.json"]


@in_both_ways
def test_mapped_rows_with_one_name_and_different_prompts_pay_for_the_first_one_only(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    rows = [{"prompt": prompt, "image_name": "fox"} for prompt in ("A red fox", "A grey wolf")]
    ends = _draw_foxes(tmp_path, rows, deferrable=deferrable).mapped("draw")

    assert sorted(str(end.state) for end in ends) == ["failed", "success"]
    (stopped,) = (end for end in ends if end.state == "failed")
    _assert_stopped_before_paying(stopped, connected_api, sent=1)
    assert visible_files(tmp_path) == ["fox.jpg", "fox.json"]


_OTHERS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "A grey wolf"},
    "size": {"size": "768*1024"},
    "seed": {"seed": 7},
    "format": {"output_format": "png"},
}


@in_both_ways
@pytest.mark.parametrize("other", _OTHERS)
def test_another_request_with_a_name_that_is_taken_stops_before_it_pays(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, other: str
) -> None:
    assert _fox(tmp_path, deferrable=deferrable).run().state == "success"
    content = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    draw = _fox(tmp_path, deferrable=deferrable, **_OTHERS[other]).run()["draw"]
    _assert_stopped_before_paying(draw, connected_api, sent=1)
    assert {name: (tmp_path / name).read_bytes() for name in content} == content


@in_both_ways
def test_another_request_with_a_name_that_is_taken_replaces_the_image_with_overwrite(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    assert _fox(tmp_path, deferrable=deferrable).run().state == "success"
    draw = _fox(tmp_path, deferrable=deferrable, prompt="A grey wolf", overwrite=True).run()["draw"]

    assert draw.state == "success"
    assert len(connected_api.submissions) == 2
    assert visible_files(tmp_path) == ["fox.jpg", "fox.json"]
    sidecar = json.loads((tmp_path / "fox.json").read_text())
    assert (sidecar["task_id"], sidecar["request"]["prompt"]) == (draw.returned["task_id"], "A grey wolf")


@in_both_ways
@pytest.mark.parametrize("name", ["fox.jpg", "fox.json"])
def test_a_file_of_the_user_with_the_chosen_name_is_not_replaced(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, name: str
) -> None:
    (tmp_path / name).write_bytes(b"mine")
    draw = _fox(tmp_path, deferrable=deferrable).run()["draw"]

    assert (draw.state, draw.tries, len(submitting(connected_api))) == ("failed", 1, 0)
    assert name in str(draw.error)
    assert (tmp_path / name).read_bytes() == b"mine"
    assert visible_files(tmp_path) == [name]


@in_both_ways
def test_a_retry_after_a_crash_stores_the_paid_image_under_its_name(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool
) -> None:
    def crash_at_the_end(context: Any, result: Any = None) -> None:
        if context["ti"].try_number == 1:
            raise Crash("at the end")

    draw = _fox(tmp_path, deferrable=deferrable, post_execute=crash_at_the_end).run()["draw"]

    (submission,) = connected_api.submissions
    assert (draw.state, draw.tries, draw.returned["task_id"]) == ("success", 2, submission.task_id)
    assert visible_files(tmp_path) == ["fox.jpg", "fox.json"]


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", ".", "/fox", "fo\nx", "fox\0", "../fox", "f" * 400])
def test_a_name_that_is_no_file_name_is_refused_before_anything_is_paid(
    connected_api: Sandbox, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match=r"^image_name (is|has) .*; it must "):
        _fox(tmp_path, image_name=name)

    draw = _fox(tmp_path, image_name="{{ params.name }}", params={"name": name}).run()["draw"]
    assert (draw.state, draw.tries) == ("failed", 1)
    assert "image_name " in str(draw.error)
    assert submitting(connected_api) == []
    assert list(tmp_path.iterdir()) == []
