"""A stored image is reused if it is intact; a missing one is drawn again, and a changed one stops the task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_qwenimage import QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.integration.dag_runs import (
    AIMS,
    DagRun,
    TaskEnd,
    TestDag,
    crash_once,
    dag_that_draws,
    stored_files,
    with_aims,
)

in_storage = with_aims("stored", "stored, deferred")
in_storage_and_mapped = with_aims(*(name for name, aim in AIMS.items() if "output_path" in aim))


def _ends(run: DagRun) -> list[TaskEnd]:
    assert run.state == "success"
    return run.mapped("draw") or [run["draw"]]


def _assert_reused(end: TaskEnd, before: TaskEnd) -> None:
    assert end.returned == before.returned | {"reused": True, "consumed_credits": 0}
    assert end.xcoms == before.xcoms | {"return_value": end.returned, "consumed_credits": 0}


@in_storage_and_mapped
def test_clearing_a_finished_task_reuses_its_stored_image(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path
) -> None:
    dag = dag_that_draws(**aim)
    before = _ends(dag.run())
    files, requests = stored_files(tmp_path), len(connected_api.requests)
    content = [Path(end.returned["paths"][0]).read_bytes() for end in before]

    for end, made in zip(_ends(dag.clear("draw")), before, strict=True):
        _assert_reused(end, made)
    assert len(connected_api.requests) == requests
    assert stored_files(tmp_path) == files
    assert [Path(end.returned["paths"][0]).read_bytes() for end in before] == content


@in_storage_and_mapped
def test_another_run_reuses_the_images_in_its_folder(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    dag = dag_that_draws(**aim)
    before = _ends(dag.run())
    requests = len(connected_api.requests)

    for end, made in zip(_ends(dag.run()), before, strict=True):
        _assert_reused(end, made)
    assert len(connected_api.requests) == requests
    assert connected_api.credits_charged == 5 * len(before)


def test_mapped_tasks_with_the_same_prompt_and_a_random_seed_each_reuse_their_own_image(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    dag = dag_that_draws(output_path=str(tmp_path), prompts=["A paper moon"] * 4)
    before = _ends(dag.run())
    paths = [end.returned["paths"][0] for end in before]
    assert len(set(paths)) == 4
    assert len({Path(path).read_bytes() for path in paths}) == 4

    for after in (_ends(dag.run()), _ends(dag.clear("draw"))):
        assert [end.returned["paths"][0] for end in after] == paths
        assert [end.xcoms["task_id"] for end in after] == [end.xcoms["task_id"] for end in before]
    assert connected_api.credits_charged == 20


def test_a_second_task_with_the_same_request_and_folder_reuses_the_image_of_the_first(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    dag = TestDag()
    with dag:
        first, second = (
            QwenImageGenerateOperator(task_id=name, prompt="A boat", poll_interval=0.01, output_path=str(tmp_path))
            for name in ("first", "second")
        )
        first >> second
    run = dag.run()

    _assert_reused(run["second"], run["first"])
    assert len(connected_api.submissions) == 1


def test_tasks_with_different_requests_share_a_folder(connected_api: Sandbox, tmp_path: Path) -> None:
    requests: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2}, {"size": "768*1024"}, {"output_format": "png"}]
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator.partial(
            task_id="draw", prompt="A boat", poll_interval=0.01, output_path=str(tmp_path), deferrable=True
        ).expand_kwargs(requests)
    paths = [end.returned["paths"][0] for end in _ends(dag.run())]

    assert len(set(paths)) == len(connected_api.submissions) == 4
    assert [end.returned["paths"][0] for end in _ends(dag.clear("draw"))] == paths
    assert len(connected_api.submissions) == 4


@in_storage
def test_overwrite_draws_a_new_image_and_replaces_the_old_one(
    connected_api: Sandbox, aim: dict[str, Any], tmp_path: Path
) -> None:
    dag = dag_that_draws(**aim, overwrite=True)
    ends = [_ends(run)[0] for run in (dag.run(), dag.clear("draw"), dag.run())]

    submitted = [submission.task_id for submission in connected_api.submissions]
    assert [end.returned["task_id"] for end in ends] == submitted
    assert [(end.returned["reused"], end.returned["consumed_credits"]) for end in ends] == [(False, 5)] * 3
    assert len(stored_files(tmp_path)) == 2
    (sidecar,) = tmp_path.glob("*.json")
    assert json.loads(sidecar.read_text())["task_id"] == submitted[-1]


def _damage(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)


def _cut_short(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:1000])


def _delete_sidecar(image: Path) -> None:
    image.with_suffix(".json").unlink()


def _corrupt_sidecar(image: Path) -> None:
    image.with_suffix(".json").write_text("not JSON")


@in_storage
@pytest.mark.parametrize("damage", [_damage, _cut_short, _delete_sidecar, _corrupt_sidecar])
def test_an_image_that_its_sidecar_does_not_describe_is_neither_paid_again_nor_replaced_without_consent(
    connected_api: Sandbox, aim: dict[str, Any], damage: Callable[[Path], None]
) -> None:
    dag = dag_that_draws(**aim, retries=0)
    (before,) = _ends(dag.run())
    image = Path(before.returned["paths"][0])
    damage(image)
    content = image.read_bytes()
    for run in (dag.clear("draw"), dag.run()):
        assert run["draw"].state == "failed"
        assert f"{image} exists and " in str(run["draw"].error)
        assert "Nothing was submitted. Move it away" in str(run["draw"].error)
    assert image.read_bytes() == content
    assert connected_api.credits_charged == 5

    (after,) = _ends(dag_that_draws(**aim, overwrite=True).run())
    assert after.returned["paths"] == before.returned["paths"]
    assert connected_api.credits_charged == 10
    _assert_reused(_ends(dag_that_draws(**aim).run())[0], after)


@in_storage
def test_a_missing_image_is_drawn_again(connected_api: Sandbox, aim: dict[str, Any]) -> None:
    dag = dag_that_draws(**aim)
    (before,) = _ends(dag.run())
    image = Path(before.returned["paths"][0])
    image.unlink()
    (after,) = _ends(dag.clear("draw"))

    assert after.returned["paths"] == before.returned["paths"]
    assert (after.returned["reused"], after.returned["consumed_credits"]) == (False, 5)
    assert after.returned["task_id"] == connected_api.submissions[-1].task_id
    assert connected_api.credits_charged == 10
    with Image.open(image) as opened:
        opened.load()
    _assert_reused(_ends(dag.clear("draw"))[0], after)


@in_storage
def test_a_clear_reuses_an_image_stored_before_a_crash(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_once(monkeypatch, Ledger, "finish")
    dag = dag_that_draws(**aim)
    (before,) = _ends(dag.run())

    _assert_reused(_ends(dag.clear("draw"))[0], before)
    assert len(connected_api.submissions) == 1


@in_storage
def test_resuming_does_not_mistake_an_older_image_for_the_paid_one(
    connected_api: Sandbox, aim: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dag = dag_that_draws(**aim, overwrite=True)
    _ends(dag.run())
    crash_once(monkeypatch, Ledger, "accept", after=True)
    (end,) = _ends(dag.run())

    assert end.tries == 2
    _, paid = connected_api.submissions
    assert end.returned["task_id"] == paid.task_id
    sidecar = Path(end.returned["paths"][0]).with_suffix(".json")
    assert json.loads(sidecar.read_text())["task_id"] == paid.task_id
